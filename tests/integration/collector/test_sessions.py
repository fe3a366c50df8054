"""SessionService against a real collector: what is said again is answered again, whoever was started again."""

import time

import grpc
import pytest

from tests.integration.collector.wire import (
    PATIENCE_SECONDS,
    Agent,
    Answer,
    answers,
    batch,
    channel,
    meanwhile,
    position,
    refused,
    target,
)
from tests.support.collector import CollectorProcess, running_collector
from wetink.v1 import dirty_pb2, types_pb2
from wetink.v1 import session_pb2 as pb
from wetink.v1.session_pb2_grpc import SessionServiceStub


class Mover:
    """An orchestrator on the plain stub, with one session over one target."""

    def __init__(self, address: str, name: str, session: str = "move-7") -> None:
        """Connect; nothing is opened yet."""
        self.channel = channel(address)
        self.stub = SessionServiceStub(self.channel)
        self.session = session
        self.selection = dirty_pb2.Selection(targets=[name])

    def open(self, lease_ms: int = 0) -> list[pb.SessionRound]:
        """Open the session."""
        request = pb.OpenSessionRequest(session=self.session, selection=self.selection, lease_ms=lease_ms)
        return list(self.stub.OpenSession(request, timeout=PATIENCE_SECONDS).rounds)

    def begin(self, round_: str, parent: str = "") -> pb.SessionRound:
        """Begin a round."""
        request = pb.BeginRoundRequest(session=self.session, round=round_, parent=parent)
        return self.stub.BeginRound(request, timeout=PATIENCE_SECONDS).round

    def close(self, round_: str, timeout_ms: int = 0, freeze: types_pb2.Freeze | None = None) -> pb.SessionRound:
        """Close a round."""
        request = pb.CloseRoundRequest(session=self.session, round=round_, timeout_ms=timeout_ms, freeze=freeze)
        return self.stub.CloseRound(request, timeout=PATIENCE_SECONDS).round

    def get(self, round_: str) -> Answer:
        """Ask what a round carries."""
        request = pb.GetRoundRequest(session=self.session, round=round_)
        (answer,) = answers(self.stub.GetRound(request, timeout=PATIENCE_SECONDS))
        return answer


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


def close(mover: Mover, live: Agent, round_: str, number: int, written: list[int]) -> pb.SessionRound:
    """Close a round that the agent harvests."""
    of = target(host_id=mover.selection.targets[0].rpartition("/")[0])
    with meanwhile(lambda: live.harvest(live.hear("barrier").barrier, batch(of, number, written=written))):
        return mover.close(round_)


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
