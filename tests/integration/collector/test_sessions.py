"""SessionService against a real collector: what is said again is answered again, whoever was started again."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from tests.integration.collector.mover import Mover, close
from tests.integration.collector.wire import Agent, batch, meanwhile, position, refused, start, target
from tests.support.collector import CollectorProcess, running_collector
from wetink.v1 import dirty_pb2, types_pb2
from wetink.v1 import session_pb2 as pb
from wetink.v1.ingest_pb2 import TargetEnded


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


@pytest.fixture
def mover(shared_collector: CollectorProcess, live: Agent, one: types_pb2.Target, name: str, host: str) -> Mover:
    """Give an orchestrator with a session of the test's own, over its target, which has two rounds."""
    live.deliver(one, [1, 2], [2])
    mover = Mover(shared_collector.address, name, host[:64])
    mover.open()
    return mover


def more(live: Agent, of: types_pb2.Target, first: int, last: int) -> None:
    """Let the agent deliver rounds of one page each, the number of the round."""
    live.say(*(batch(of, number, written=[number]) for number in range(first, last + 1)))
    live.acknowledged(of, last)


def test_rounds_carry_what_was_written_between_their_ends(mover: Mover, live: Agent, name: str) -> None:
    """The first everything, the next what came since its parent, whatever has come after it."""
    mover.begin("first")
    close(mover, live, "first", 3, [3])
    mover.begin("second", "first")
    close(mover, live, "second", 4, [4])
    live.say(batch(target(host_id=name.rpartition("/")[0]), 5, written=[5]))
    live.acknowledged(target(host_id=name.rpartition("/")[0]), 5)

    first, second = mover.get("first"), mover.get("second")

    assert first.written == {name: {1, 2, 3}}
    assert second.written == {name: {4}}
    assert second.summary.complete
    assert [(one.round, one.after_round) for one in second.summary.targets] == [(4, 3)]


def test_rounds_asked_for_late_have_no_page_more(mover: Mover, live: Agent, name: str) -> None:
    """A hundred rounds of the agent come after the second round's end, and eighty between both: the answer is exact."""
    one = target(host_id=name.rpartition("/")[0])
    mover.begin("first")
    close(mover, live, "first", 3, [3])
    more(live, one, 4, 83)
    mover.begin("second", "first")
    close(mover, live, "second", 84, [84])
    more(live, one, 85, 184)

    second = mover.get("second")

    assert second.written == {name: set(range(4, 85))}
    assert second.summary.exact


def test_what_is_said_again_is_answered_again(mover: Mover, live: Agent) -> None:
    """Begin, close and get: nobody is harvested a second time."""
    begun = mover.begin("first")
    closed = close(mover, live, "first", 3, [3])
    answer = mover.get("first")

    assert mover.begin("first") == closed
    assert not begun.closed
    assert mover.close("first", timeout_ms=1) == closed
    assert mover.get("first") == answer
    assert [one.round for one in mover.open()] == ["first"]


def test_close_that_was_not_reached_leaves_the_round_open(mover: Mover, live: Agent, name: str) -> None:
    """The error names the host, and the same call later closes it."""
    mover.begin("first")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "AGENT_SILENT"):
        mover.close("first", timeout_ms=100)
    live.hear("barrier")

    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ROUND_OPEN"):
        mover.get("first")
    assert close(mover, live, "first", 3, [3]).closed
    assert mover.get("first").written == {name: {1, 2, 3}}


def test_agent_that_goes_away_during_a_close_is_named(mover: Mover, live: Agent, host: str) -> None:
    """UNAVAILABLE: try again when it is back."""
    mover.begin("first")

    def leave() -> None:
        live.hear("barrier")
        live.half_close()

    with meanwhile(leave), refused(grpc.StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED") as refusal:
        mover.close("first", timeout_ms=20_000)
    assert f"host {host} " in refusal.message


def test_close_that_was_not_frozen_leaves_the_round_open(mover: Mover, live: Agent, one: types_pb2.Target) -> None:
    """What is not at rest is no end of a move."""
    mover.begin("first")

    def fail() -> None:
        asked = live.hear("barrier").barrier
        live.harvest(asked, batch(one, 3))

    with meanwhile(fail), refused(grpc.StatusCode.FAILED_PRECONDITION, "NOT_FROZEN"):
        mover.close("first", freeze=types_pb2.Freeze())
    with refused(reason="ROUND_OPEN"):
        mover.get("first")


def test_names_that_mean_something_else_are_refused(mover: Mover, live: Agent, name: str) -> None:
    """Another parent, other targets, no such round, an open parent, a name that cannot be one."""
    mover.begin("first")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ROUND_OPEN"):
        mover.begin("second", "first")
    close(mover, live, "first", 3, [3])
    mover.begin("second", "first")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ROUND_DIFFERS"):
        mover.begin("second")
    with refused(grpc.StatusCode.NOT_FOUND, "ROUND_UNKNOWN"):
        mover.close("third")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"):
        mover.begin("a/b")
    mover.selection = dirty_pb2.Selection(targets=[name], hosts=[name.rpartition("/")[0]])
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_DIFFERS"):
        mover.open()


def test_target_that_is_tracked_no_more_is_only_named_in_rounds_over_its_host(
    mover: Mover, live: Agent, one: types_pb2.Target, name: str, host: str
) -> None:
    """Its pages are in no round; and when its agent tries again, what a round carries is the same as before."""
    other, other_name = target(2, host_id=host), f"{host}/2@100"
    live.deliver(other, [10])
    live.say(TargetEnded(target=one, incarnation=1, reason=types_pb2.END_REASON_FAILED))
    live.acknowledged(one, 2)
    mover.end()
    mover.selection = dirty_pb2.Selection(hosts=[host])
    mover.open()
    for number, parent in ((2, ""), (3, "round-2")):
        mover.begin(f"round-{number}", parent)
        harvested = batch(other, number, written=[number])
        with meanwhile(lambda some=harvested: live.harvest(live.hear("barrier").barrier, some)):  # type: ignore[misc]
            mover.close(f"round-{number}")

    answers = [mover.get(f"round-{number}") for number in (2, 3)]
    live.say(start(one, incarnation=2), batch(one, 1, written=[1, 2, 3], incarnation=2))
    live.acknowledged(one, 1, incarnation=2)

    assert [answer.written for answer in answers] == [{other_name: {10, 2}}, {other_name: {3}}]
    for answer in answers:
        assert [(part.name, part.complete) for part in answer.summary.targets] == [(name, False), (other_name, True)]
    assert [mover.get(f"round-{number}") for number in (2, 3)] == answers


def test_session_whose_lease_is_over_is_forgotten(mover: Mover) -> None:
    """A mover that never comes back leaves nothing behind."""
    mover.session += "x"
    mover.session = mover.session[-64:]
    mover.open(lease_ms=1)
    time.sleep(0.05)
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_UNKNOWN"):
        mover.begin("first")


def test_oldest_rounds_go_and_a_needed_parent_stays(mover: Mover, live: Agent) -> None:
    """Sixty-four are kept; whoever asks for one that went is told so."""
    mover.begin("parent")
    close(mover, live, "parent", 3, [3])
    for number in range(70):
        mover.begin(f"round-{number}", "parent")

    kept = [one.round for one in mover.open()]
    assert "parent" in kept
    assert "round-69" in kept


def test_a_crash_of_both_changes_no_answer(collector: CollectorProcess, host: str) -> None:
    """Collector and mover are gone; the next ones have the same session, and the round that was closed is as it was."""
    one, name = target(host_id=host), f"{host}/1@100"
    with Agent(collector.address, host) as agent:
        agent.hello()
        agent.deliver(one, [1], [2])
        mover = Mover(collector.address, name)
        mover.open()
        mover.begin("first")
        closed = close(mover, agent, "first", 3, [3])
        answer = mover.get("first")
    collector.kill()
    collector.close()

    with running_collector(collector.data) as again, Agent(again.address, host) as agent:
        agent.hello(position(one, 3))
        mover = Mover(again.address, name)
        assert [found.round for found in mover.open()] == ["first"]
        assert mover.close("first", timeout_ms=1) == closed
        assert mover.get("first") == answer
        mover.begin("second", "first")
        close(mover, agent, "second", 4, [4])
        assert mover.get("second").written == {name: {4}}


def test_round_whose_record_was_damaged_is_refused(collector: CollectorProcess, host: str) -> None:
    """What is left of it would be taken for all; so would an incarnation that comes again, until it has come as far."""
    assert collector.data
    one, name = target(host_id=host), f"{host}/1@100"
    mover = Mover(collector.address, name)
    with Agent(collector.address, host) as agent:
        agent.hello()
        agent.deliver(one, [1], [2])
        mover.open()
        mover.begin("first")
        close(mover, agent, "first", 3, [3])
        with closing(sqlite3.connect(collector.data / "wetink.sqlite3", isolation_level=None)) as connection:
            assert connection.execute("DELETE FROM block WHERE last_round = 2").rowcount == 1
        for _ in range(2):  # when it is found, and when there is nothing left of it
            with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
                mover.get("first")
        mover.begin("second", "first")
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            mover.close("second")
    with Agent(collector.address, host) as agent:
        assert not agent.hello(position(one, 3)).positions
        agent.say(start(one), batch(one, 1, written=[1]))
        agent.acknowledged(one, 1)

        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED") as refusal:
            mover.get("first")
        assert refusal.metadata["targets"] == name

        agent.say(batch(one, 2, written=[2]), batch(one, 3, written=[3]))
        agent.acknowledged(one, 3)
        assert mover.get("first").written == {name: {1, 2, 3}}


def test_session_that_is_closed_meanwhile_is_not_kept(mover: Mover, live: Agent, one: types_pb2.Target) -> None:
    """Who closes a round of it is told that there is none; a new one of that name is another."""
    mover.begin("first")

    def end_it() -> None:
        asked = live.hear("barrier").barrier
        mover.end()
        mover.open()
        live.harvest(asked, batch(one, 3))

    with meanwhile(end_it), refused(grpc.StatusCode.NOT_FOUND, "SESSION_UNKNOWN"):
        mover.close("first")
    assert mover.open() == []


def test_lease_that_is_changed_during_a_close_waits_for_it(mover: Mover, live: Agent, one: types_pb2.Target) -> None:
    """What is kept of a session is kept whole: with the rounds of before, it would lose the one that is closed now."""
    mover.begin("first")
    opened: list[pb.SessionRound] = []

    def renew() -> None:
        asked = live.hear("barrier").barrier
        with meanwhile(lambda: opened.extend(mover.open(lease_ms=600_000))):
            time.sleep(0.2)  # what it would be given if it did not wait, it would be given by then
            live.harvest(asked, batch(one, 3, written=[3]))

    with meanwhile(renew):
        mover.close("first")
    assert [found.closed for found in opened] == [True]


def test_renewal_does_not_wait_for_a_close(mover: Mover, live: Agent, one: types_pb2.Target) -> None:
    """In the same words as before, it changes nothing that anybody would have to wait for."""
    mover.begin("first")

    def renew() -> None:
        asked = live.hear("barrier").barrier
        assert [found.closed for found in mover.open()] == [False]
        live.harvest(asked, batch(one, 3))

    with meanwhile(renew):
        mover.close("first")


def test_session_outlives_its_store_and_says_so(tmp_path: Path) -> None:
    """
    The file is damaged, and another one begun: which rounds there are is known, and none of them is answered, since the
    cursors are of the other store. One without a parent is as good as ever.
    """
    one, name = target(), "host-1/1@100"
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        mover = Mover(collector.address, name)
        mover.open()
        agent.hello()
        agent.deliver(one, *(range(number, 1 << 18, 5) for number in range(5)))
        mover.begin("first")
        close(mover, agent, "first", 6, [1])
        agent.end()
    with (tmp_path / "wetink.sqlite3").open("r+b") as file:
        file.seek(12 << 14)
        file.write(b"\xa5" * (8 << 14))

    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        assert collector.events("store_set_aside")
        mover = Mover(collector.address, name)
        assert [found.round for found in mover.open()] == ["first"]
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OTHER_STORE"):
            mover.get("first")
        mover.begin("second", "first")
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OTHER_STORE"):
            mover.close("second")
        assert not agent.hello(position(one, 6)).positions
        agent.say(start(one, incarnation=2), batch(one, 1, written=[7], incarnation=2))
        agent.acknowledged(one, 1, incarnation=2)
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OTHER_STORE"):
            mover.get("first")
        mover.begin("anew")
        with meanwhile(lambda: agent.harvest(agent.hear("barrier").barrier, batch(one, 2, written=[8], incarnation=2))):
            mover.close("anew")
        assert mover.get("anew").written == {name: {7, 8}}
