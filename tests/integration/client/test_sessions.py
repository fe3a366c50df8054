"""Sessions of the SDK, for threads and for asyncio, and ``wetink session``: what is said again is answered again."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.client.command import wetink
from tests.support.raw_agent import RawAgent
from wetink.v1 import types_pb2
from wetink_client import (
    AgentUnavailable,
    AsyncCollector,
    Collector,
    Consistency,
    InvalidRequest,
    NotFound,
    Refused,
    ResynchronisationNeeded,
)
from wetink_client.command import main


class Awaited:
    """An ``AsyncCollector`` whose calls are awaited one by one, so that one test serves both."""

    def __init__(self, address: str) -> None:
        """Connect."""
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_connected(address))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Give a method that waits for its answer."""

        async def call(*arguments: object, **options: object) -> object:
            return await getattr(self._client, name)(*arguments, **options)

        return lambda *arguments, **options: self._runner.run(call(*arguments, **options))

    def close(self) -> None:
        """Let go of the connection and of the loop."""
        self._runner.run(self._client.close())
        self._runner.close()


async def _connected(address: str) -> AsyncCollector:
    return AsyncCollector(address)


@pytest.fixture(params=[Collector, Awaited], ids=["sync", "asyncio"])
def connect(request: pytest.FixtureRequest, collector: str) -> Iterator[Callable[[], Any]]:
    """Give what makes an orchestrator, as often as one dies."""
    made: list[Any] = []

    def connect() -> Any:  # noqa: ANN401 (both kinds have the same methods)
        made.append(request.param(collector))
        return made[-1]

    yield connect
    for one in made:
        one.close()


@pytest.fixture
def session(host_id: str) -> str:
    """Give a session that no other test has."""
    return f"move-{host_id}"


def test_rounds_carry_what_lies_between_their_ends(
    connect: Callable[[], Any], agent: RawAgent, name: str, session: str
) -> None:
    """Begin, close, copy; the next goes on from there, whatever comes after it, and a cursor of it is one as any."""
    tracked = agent.start(7, [1, 2, 3])
    client = connect()
    assert client.open_session(session, name) == ()
    begun = client.begin_round(session, "first")
    assert (begun.round, begun.parent, begun.closed, begun.cursor) == ("first", None, False, None)
    assert (begun.closed_at, dict(begun.targets)) == (None, {})

    first = client.close_round(session, "first")
    agent.round(tracked, [4], vanished=[3])
    client.begin_round(session, "second", "first")
    second = client.close_round(session, "second")
    agent.round(tracked, [5])

    assert first.consistency is Consistency.PER_PROCESS
    assert (second.closed, second.parent, second.targets[name].round) == (True, "first", 4)
    assert first.closed_at is not None
    assert second.closed_at > first.closed_at
    assert list(client.round_dirty(session, "first").written) == [1, 2, 3]
    answer = client.round_dirty(session, "second")
    assert (list(answer.written), list(answer.vanished), answer.complete) == ([4], [3], True)
    assert answer.cursor == second.cursor
    assert list(client.dirty(name, since=second.cursor).written) == [5]


def test_orchestrator_that_died_gets_the_same_answers(
    connect: Callable[[], Any], agent: RawAgent, name: str, session: str
) -> None:
    """It says everything again, in the same words; nobody is harvested again, and what it had closed is as it was."""
    tracked = agent.start(7, [1])
    dead = connect()
    dead.open_session(session, name)
    dead.begin_round(session, "first")
    closed = dead.close_round(session, "first")
    copied = dead.round_dirty(session, "first")
    dead.begin_round(session, "second", "first")
    agent.round(tracked, [2])
    agent.answers_barriers = False

    client = connect()

    assert [one.round for one in client.open_session(session, name)] == ["first", "second"]
    assert client.begin_round(session, "first") == closed
    assert client.close_round(session, "first", barrier_seconds=0.1) == closed
    assert client.round_dirty(session, "first") == copied
    assert not client.begin_round(session, "second", "first").closed
    with pytest.raises(AgentUnavailable):
        client.close_round(session, "second", barrier_seconds=0.1)
    agent.answers_barriers = True
    client.close_round(session, "second")
    assert list(client.round_dirty(session, "second").written) == [2]


def test_lease_is_renewed_by_opening_again(
    connect: Callable[[], Any], agent: RawAgent, name: str, session: str
) -> None:
    """With as much as it says. The session is gone when none comes; then it is opened anew, and knows no round."""
    agent.start(7, [1])
    client = connect()
    client.open_session(session, name, lease_seconds=0.3)
    client.open_session(session, name)
    time.sleep(0.4)
    client.begin_round(session, "first")

    client.open_session(session, name, lease_seconds=0.001)
    time.sleep(0.1)

    with pytest.raises(NotFound, match=rf"no session '{session}' of yours, or its lease is over: open it again"):
        client.close_round(session, "first")
    assert client.open_session(session, name) == ()
    client.close_session(session)
    client.close_session(session)
    with pytest.raises(NotFound):
        client.begin_round(session, "first")


def test_what_cannot_be_is_refused_in_a_sentence(
    connect: Callable[[], Any], agent: RawAgent, host_id: str, name: str, session: str
) -> None:
    """With the exception that says what to do about it."""
    tracked = agent.start(7, [1])
    client = connect()
    client.open_session(session, name)
    client.begin_round(session, "first")

    with pytest.raises(Refused, match=f"round first of session {session} is still open: close it first"):
        client.round_dirty(session, "first")
    with pytest.raises(Refused, match="still open"):
        client.begin_round(session, "second", "first")
    with pytest.raises(NotFound, match="has no round 'nowhere', or not any more: begin it"):
        client.close_round(session, "nowhere")
    with pytest.raises(InvalidRequest, match=r"is no name of a round: 1 to 64 of"):
        client.begin_round(session, "a round")
    for seconds in (4000, 0, -5, float("inf"), float("nan")):
        with pytest.raises(InvalidRequest, match="a session cannot live"):
            client.open_session("other", name, lease_seconds=seconds)
    with pytest.raises(Refused, match="over other targets: close it, or take another name"):
        client.open_session(session, [name, f"{host_id}/8"])
    client.close_round(session, "first")
    with pytest.raises(Refused, match="was begun without a parent: take another name"):
        client.begin_round(session, "first", "first")
    client.begin_round(session, "second", "first")
    agent.end(tracked, types_pb2.END_REASON_EXEC)
    agent.start(7, [2], incarnation=2)
    with pytest.raises(ResynchronisationNeeded) as refused:
        client.close_round(session, "second")
    assert refused.value.targets == (name,)
    client.begin_round(session, "anew")
    client.close_round(session, "anew")
    assert list(client.round_dirty(session, "anew").written) == [2]


@pytest.fixture
def said(
    collector: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Give what runs ``wetink session`` within this process: its exit code, what it printed, and what it complained of.

    A process for each would take most of the time on an interpreter that starts.
    """

    def said(command: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wetink", "--collector", collector, "session", command, *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return said


def test_command_is_said_again_after_a_crash(
    collector: str, agent: RawAgent, name: str, session: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    """Each line of a script is; a program reads the same from it, and a person sees where it stands."""
    tracked = agent.start(7, [1, 2])

    def lines(*arguments: str) -> list[dict[str, Any]]:
        code, printed, complaint = said(*arguments, "--json")
        assert (code, complaint) == (0, "")
        return [json.loads(line) for line in printed.splitlines()]

    assert lines("open", session, name) == []
    (begun,) = lines("begin", session, "first")
    assert (begun["round"], begun["parent"], begun["closed"]) == ("first", None, False)
    closed = lines("close", session, "first")
    agent.round(tracked, [3])
    lines("begin", session, "second", "--parent", "first")

    assert lines("close", session, "first") == closed
    assert closed[0]["targets"] == {name: 2}
    lines("close", session, "second")
    assert [line["complete"] for line in lines("dirty", session, "second") if "complete" in line] == [True]
    text = "first  after nothing  closed, per-process\nsecond  after first  closed, per-process\n"
    ended = wetink("--collector", collector, "session", "open", session, name)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, text, "")
    assert said("end", session) == said("end", session) == (0, "", "")
    assert said("begin", session, "first")[0] != 0


def test_command_says_what_of_a_round_is_not_complete(
    agent: RawAgent, name: str, session: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    """Closed it is all the same: whoever moves must see that the target has ended, in the round and in its pages."""
    tracked = agent.start(7, [1])
    said("open", session, name)
    said("begin", session, "first")
    agent.end(tracked, types_pb2.END_REASON_EXITED)
    agent.start(8)  # what was said before is durable when this is

    closed = said("close", session, "first", "--json")
    pages = said("dirty", session, "first", "--json")

    for code, printed, complaint in (closed, pages):
        assert code == 3
        assert printed.count("\n") == 1
        assert complaint.startswith(f"wetink: {name} is not complete: ")
    assert json.loads(closed[1])["incomplete"].keys() == {name}
    line = json.loads(pages[1])
    assert (line["complete"], line["incomplete_reason"], line["end_reason"]) == (False, "target-ended", "exited")
    assert f"wetink: {name} is not complete: {line['incomplete_message']}\n" == pages[2]


def test_command_that_fails_says_why_and_what_to_do(
    agent: RawAgent, host_id: str, name: str, session: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    """One sentence and an exit code: 3 where it may be said again as it is, 5 where a round without a parent is due."""
    tracked = agent.start(7, [1])

    def failure(*arguments: str) -> tuple[int, str]:
        code, printed, complaint = said(*arguments)
        assert printed == ""
        assert complaint.startswith("wetink: ")
        assert complaint.count("\n") == 1
        return code, complaint.rstrip("\n")

    code, sentence = failure("close", session, "first")
    assert (code, sentence) == (
        4,
        f"wetink: there is no session {session!r} of yours, or its lease is over: open it again",
    )
    assert failure("open", session)[0] == 2
    assert failure("close", session, "first", "--freeze", "--hold-for", "1")[0] == 2
    said("open", session, name)
    said("begin", session, "first")
    code, sentence = failure("dirty", session, "first")
    assert (code, sentence) == (1, f"wetink: round first of session {session} is still open: close it first")
    assert failure("begin", session, "first", "--parent", "other")[0] == 1
    assert failure("open", session, f"{host_id}/8")[1].endswith("close it, or take another name")
    agent.answers_barriers = False
    code, sentence = failure("close", session, "first", "--timeout", "0.1")
    assert code == 3
    assert host_id in sentence
    agent.answers_barriers = True
    assert said("close", session, "first")[0] == 0
    said("begin", session, "second", "--parent", "first")
    agent.end(tracked, types_pb2.END_REASON_EXEC)
    agent.start(7, [2], incarnation=2)
    assert failure("close", session, "second")[0] == 5
