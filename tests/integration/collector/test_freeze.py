"""Barriers that freeze, seen from the collector: who is asked for what, and what of their answers is told."""

import time

import pytest

from tests.integration.collector.wire import (
    PATIENCE_SECONDS,
    Agent,
    Reader,
    batch,
    meanwhile,
    position,
    refused,
    target,
)
from tests.support.collector import CollectorProcess
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.types_pb2 import (
    CONSISTENCY_FROZEN,
    CONSISTENCY_NONE,
    CONSISTENCY_PER_PROCESS,
    FREEZE_METHOD_PTRACE,
    FREEZE_METHOD_UNSPECIFIED,
    INCOMPLETE_REASON_NOT_FROZEN,
    Freeze,
)


def outcome(of: types_pb2.Target, message: str = "") -> types_pb2.FreezeOutcome:
    """Say that a target was frozen, or why it was not."""
    method = FREEZE_METHOD_UNSPECIFIED if message else FREEZE_METHOD_PTRACE
    return types_pb2.FreezeOutcome(target=of, method=method, message=message, frozen_ns=0 if message else 5)


def harvest(
    agent: Agent, asked: ingest_pb2.Barrier, one: ingest_pb2.WriteProtectBatch, freeze: types_pb2.FreezeOutcome
) -> None:
    """Answer a barrier that freezes with one round."""
    agent.say(one)
    agent.say(
        ingest_pb2.BarrierReached(
            request_id=asked.request_id, positions=[position(one.target, one.last_round)], freezes=[freeze]
        )
    )


@pytest.fixture
def one(host: str) -> types_pb2.Target:
    """Give a target of the test's host."""
    return target(host_id=host)


@pytest.fixture
def name(host: str) -> str:
    """Give its printed name."""
    return f"{host}/1@100"


@pytest.fixture
def live(agent: Agent) -> Agent:
    """Give the test's agent, welcomed; it can freeze."""
    agent.hello(can_freeze=True)
    return agent


def test_answer_is_as_of_the_frozen_harvest_and_not_of_what_came_after(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """A round that was harvested when the target ran again is for the next answer."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor

    def freeze() -> None:
        asked = live.hear("barrier").barrier
        assert asked.HasField("freeze")
        assert not asked.freeze.hold
        live.say(batch(one, 2, written=[2], frozen=True), batch(one, 3, written=[3]))
        live.acknowledged(one, 3)
        live.say(
            ingest_pb2.BarrierReached(request_id=asked.request_id, positions=[position(one, 2)], freezes=[outcome(one)])
        )

    with meanwhile(freeze):
        answer = reader.dirty(name, cursor=cursor, barrier=True, freeze=Freeze())

    (status,) = answer.summary.targets
    assert answer.written == {name: {2}}
    assert (status.round, status.after_round, status.frozen_ns) == (2, 1, 5)
    assert status.freeze_method == FREEZE_METHOD_PTRACE
    assert answer.summary.complete
    assert answer.summary.consistency == CONSISTENCY_FROZEN
    assert reader.dirty(name, cursor=answer.summary.cursor).written == {name: {3}}


def test_barriers_cursor_is_that_of_the_frozen_harvest(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """From then on, whatever came meanwhile."""
    live.deliver(one, [1])

    def freeze() -> None:
        asked = live.hear("barrier").barrier
        live.say(batch(one, 2, written=[2], frozen=True), batch(one, 3, written=[3]))
        live.acknowledged(one, 3)
        live.say(
            ingest_pb2.BarrierReached(request_id=asked.request_id, positions=[position(one, 2)], freezes=[outcome(one)])
        )

    with meanwhile(freeze):
        response = reader.barrier(name, freeze=Freeze())

    (status,) = response.targets
    assert (status.round, status.frozen, status.complete) == (2, True, True)
    assert response.consistency == CONSISTENCY_FROZEN
    assert reader.dirty(name, cursor=response.cursor).written == {name: {3}}


def test_agent_that_cannot_freeze_is_not_asked_to(
    agent: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """It would harvest the target as it runs, and nobody would know."""
    agent.hello()
    agent.deliver(one, [1])

    answer = reader.dirty(name, barrier=True, freeze=Freeze())

    (status,) = answer.summary.targets
    assert not answer.summary.complete
    assert status.incomplete_reason == INCOMPLETE_REASON_NOT_FROZEN
    assert f"host {one.host_id} " in status.incomplete_message
    assert answer.summary.consistency == CONSISTENCY_NONE


def test_target_that_was_not_frozen_makes_no_complete_answer(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Its pages are there, and the agent's sentence says why they are not of a target at rest."""
    live.deliver(one, [1])

    def fail() -> None:
        harvest(live, live.hear("barrier").barrier, batch(one, 2, written=[2]), outcome(one, "somebody traces it"))

    with meanwhile(fail):
        answer = reader.dirty(name, barrier=True, freeze=Freeze())

    (status,) = answer.summary.targets
    assert status.incomplete_reason == INCOMPLETE_REASON_NOT_FROZEN
    assert "somebody traces it" in status.incomplete_message
    assert answer.written == {name: {1, 2}}
    assert answer.summary.consistency == CONSISTENCY_PER_PROCESS


def test_no_host_lets_go_before_the_last_has_harvested(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """Otherwise there would be no moment at which all were frozen, and the sets together would be no cut."""
    live.deliver(one, [1])
    other = target(host_id=f"{host}x")
    with Agent(shared_collector.address, f"{host}x") as slow:
        slow.hello(can_freeze=True)
        slow.deliver(other, [1])
        thawed_at = harvested_at = 0.0

        def freeze() -> None:
            nonlocal thawed_at, harvested_at
            mine, its = live.hear("barrier").barrier, slow.hear("barrier").barrier
            assert mine.freeze == its.freeze
            assert mine.freeze.hold
            assert mine.freeze.hold_ms == 20_000
            harvest(live, mine, batch(one, 2, frozen=True), outcome(one))
            live.acknowledged(one, 2)
            time.sleep(0.3)
            harvested_at = time.monotonic()
            harvest(slow, its, batch(other, 2, frozen=True), outcome(other))
            for agent in (live, slow):
                thaw = agent.hear("thaw").thaw
                assert (thaw.hold, len(thaw.targets)) == (mine.freeze.hold, 0)
            thawed_at = time.monotonic()

        with meanwhile(freeze):
            response = reader.barrier(name, f"{host}x/1", timeout_ms=20_000, freeze=Freeze())

    assert response.consistency == CONSISTENCY_FROZEN
    assert harvested_at < thawed_at


def test_host_is_let_go_when_the_other_is_too_slow(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """Nobody stays frozen for an answer that has been given up."""
    live.deliver(one, [1])
    with Agent(shared_collector.address, f"{host}x") as silent:
        silent.hello(can_freeze=True)
        silent.deliver(target(host_id=f"{host}x"), [1])

        def freeze() -> None:
            harvest(live, live.hear("barrier").barrier, batch(one, 2, frozen=True), outcome(one))
            assert live.hear("thaw").thaw.hold

        with meanwhile(freeze):
            response = reader.barrier(name, f"{host}x/1", timeout_ms=500, freeze=Freeze())

    assert [status.complete for status in response.targets] == [True, False]
    assert response.consistency == CONSISTENCY_NONE


def test_hold_is_the_callers_and_is_ended_by_its_name(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """The collector passes it on as it is, and lets nobody go by itself."""
    live.deliver(one, [1])
    hold = Freeze(hold_ms=7000, hold="move-7", whole_cgroups=True)

    def freeze() -> None:
        asked = live.hear("barrier").barrier
        assert asked.freeze == hold
        harvest(live, asked, batch(one, 2, frozen=True), outcome(one))

    with meanwhile(freeze):
        reader.barrier(name, freeze=hold)

    def thaw() -> None:
        asked = live.hear("thaw").thaw
        assert (asked.hold, list(asked.targets)) == ("move-7", [one])
        live.say(ingest_pb2.Thawed(request_id=asked.request_id, targets=[one]))

    request = pb.ThawRequest(selection=pb.Selection(targets=[name]), hold="move-7")
    with meanwhile(thaw):
        (status,) = reader.stub.Thaw(request, timeout=PATIENCE_SECONDS).targets
    assert (status.name, status.held, status.message) == (name, True, "")


def test_thaw_of_a_host_that_is_away_says_so(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """Its targets go on when the hold's time is over."""
    live.deliver(one, [1])
    live.end()

    (status,) = reader.stub.Thaw(
        pb.ThawRequest(selection=pb.Selection(targets=[name])), timeout=PATIENCE_SECONDS
    ).targets
    assert not status.held
    assert f"host {one.host_id} " in status.message


@pytest.mark.parametrize(
    "freeze",
    [Freeze(hold_ms=60_001, hold="one"), Freeze(hold_ms=1), Freeze(hold_ms=1, hold="a/b")],
    ids=["too long", "no name", "name"],
)
def test_freeze_that_cannot_be(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, freeze: types_pb2.Freeze
) -> None:
    """Told before anybody is frozen."""
    live.deliver(one, [1])

    with refused(reason="REQUEST_MALFORMED"):
        reader.barrier(name, freeze=freeze)
    with refused(reason="REQUEST_MALFORMED"):
        reader.dirty(name, barrier=True, freeze=freeze)


def test_freeze_without_a_barrier_is_refused(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """Nothing would be harvested while the targets are frozen."""
    live.deliver(one, [1])

    with refused(reason="REQUEST_MALFORMED"):
        reader.dirty(name, freeze=Freeze())
