import asyncio
import itertools
import random
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from google.rpc import code_pb2
from pyroaring import BitMap64

from tests.support.raw_agent import RawAgent
from wetink.v1 import types_pb2
from wetink_client import (
    AgentUnavailable,
    AsyncCollector,
    Backend,
    Collector,
    CollectorUnavailable,
    Consistency,
    DirtyCounts,
    DirtySet,
    EndReason,
    IncompleteReason,
    InvalidRequest,
    NotFound,
    Refused,
    ResynchronisationNeeded,
    Selection,
    WetinkError,
)


def test_lists_say_who_is_there(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """Hosts and targets, with what the agent said of them."""
    tracked = agent.start(7, range(100))
    agent.round(tracked, range(10))

    with Collector(collector) as client:
        (host,) = (host for host in client.hosts() if host.host_id == host_id)
        (target,) = (target for target in client.targets() if target.host_id == host_id)

        assert (host.host_id, host.connected, host.target_count, host.agent_version) == (host_id, True, 1, "raw")
        assert (target.name, target.pid, target.incarnation, target.round) == (name, 7, 1, 2)
        assert (target.live, target.backend, target.command, target.cgroup) == (True, Backend.REPLAY, "raw", "/test")
        assert target.last_written_page_count == 10
        assert target.pages_per_second is not None
        assert client.targets([f"{host_id}/7"]) == (target,)
        assert client.targets(Selection(cgroups=("/elsewhere",))) == ()


def test_each_answer_goes_on_from_the_cursor_before(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """First everything, then only what changed, written and vanished."""
    tracked = agent.start(7, [1, 2, 3])

    with Collector(collector) as client:
        first = client.dirty(f"{host_id}/7")
        agent.round(tracked, [2], vanished=[3])
        second = client.dirty(name, since=first.cursor)
        third = client.dirty(name, since=second.cursor)

    assert list(first.written) == [1, 2, 3]
    assert (list(second.written), list(second.vanished)) == ([2], [3])
    assert (list(third.written), list(third.vanished)) == ([], [])
    assert first.complete
    assert third.complete
    assert first.consistency is Consistency.NONE
    assert second.as_of is not None
    assert first.as_of is not None
    assert second.as_of > first.as_of


def test_barrier_brings_what_was_written_before_the_call(collector: str, agent: RawAgent, name: str) -> None:
    """Without one, the answer is as of the last committed round."""
    tracked = agent.start(7, [1])

    with Collector(collector) as client:
        cursor = client.dirty(name).cursor
        agent.write(tracked, [5])
        without = client.dirty(name, since=cursor)
        answer = client.dirty(name, since=cursor, barrier=True)

    assert list(without.written) == []
    assert list(answer.written) == [5]
    assert answer.complete
    assert answer.consistency is Consistency.PER_PROCESS


def test_barrier_alone_gives_a_cursor_from_now_on(collector: str, agent: RawAgent, name: str) -> None:
    """It says how far each target has come, and nothing from before comes after it."""
    tracked = agent.start(7, [1])
    agent.write(tracked, [5])

    with Collector(collector) as client:
        result = client.barrier(name)
        agent.round(tracked, [6])
        answer = client.dirty(name, since=result.cursor)

    assert result.complete
    assert result.targets[name].round == 2
    assert list(answer.written) == [6]


def test_barrier_over_a_stopped_target_is_one_cut(collector: str, agent: RawAgent, name: str) -> None:
    """The last round of a migration."""
    agent.start(7, [1]).frozen = True

    with Collector(collector) as client:
        assert client.dirty(name, barrier=True).consistency is Consistency.FROZEN


def test_several_targets_come_in_one_answer(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """Named, of a host, or of a cgroup and below it: one cursor for all of them."""
    one = agent.start(7, [1], cgroup="/a/b")
    agent.start(8, [2, 3], cgroup="/a")
    agent.start(9, [4], cgroup="/c")

    with Collector(collector) as client:
        named = client.dirty([f"{host_id}/8", f"{host_id}/7"])
        of_host = client.dirty(Selection(hosts=(host_id,)))
        of_cgroup = client.dirty(Selection(cgroups=("/a",)))
        agent.round(one, [9])
        later = client.dirty(Selection(cgroups=("/a",)), since=of_cgroup.cursor)

    assert list(named.targets) == [name, f"{host_id}/8@100"]
    assert [list(part.written) for part in of_host.targets.values()] == [[1], [2, 3], [4]]
    assert list(of_cgroup.targets) == [name, f"{host_id}/8@100"]
    assert [list(part.written) for part in later.targets.values()] == [[9], []]


def test_copy_by_the_readers_rule_is_the_memory(collector: str, agent: RawAgent, name: str) -> None:
    """Copy what is written, drop what vanished: whatever happened in between, the copy is the same."""
    chance = random.Random(7)  # noqa: S311 (the same every time)
    memory = dict.fromkeys(range(64), 0)
    copy: dict[int, int] = {}
    tracked = agent.start(7, memory)
    cursor = None

    with Collector(collector) as client:
        for step in itertools.count(1):
            written = set(chance.sample(range(128), 20))
            vanished = set(chance.sample(sorted(memory), 5)) - written
            memory.update(dict.fromkeys(written, step))
            for page in vanished:
                del memory[page]
            agent.round(tracked, written, vanished)
            if step % chance.randint(1, 5):
                continue
            answer = client.dirty(name, since=cursor)
            copy.update((page, memory[page]) for page in answer.written)
            for page in answer.vanished:
                copy.pop(page, None)
            cursor = answer.cursor

            assert copy == memory
            if step > 60:
                break


def test_answer_of_many_messages_is_whole(collector: str, agent: RawAgent, name: str) -> None:
    """Far more than one message holds: it arrives in parts and is put together."""
    chance = random.Random(7)  # noqa: S311 (the same every time)
    tracked = agent.start(7)
    pages = BitMap64()
    for _ in range(6):
        some = BitMap64(chance.sample(range(1 << 22), 50_000))
        pages |= some
        agent.round(tracked, some)

    with Collector(collector) as client:
        answer = client.dirty(name)

    assert len(pages.serialize()) > 1 << 19
    assert answer.written == pages


def _ask(address: str, call: Callable[[Collector], object]) -> WetinkError:
    with Collector(address) as client, pytest.raises(WetinkError) as caught:
        call(client)
    return caught.value


def test_unknown_target_is_not_found(collector: str, agent: RawAgent, host_id: str) -> None:
    """And never an empty set."""
    agent.start(7, [1])

    for call in (
        lambda client: client.dirty(f"{host_id}/8"),
        lambda client: client.dirty([f"{host_id}/7", f"{host_id}/7@5"]),
        lambda client: client.barrier(f"{host_id}/8"),
        lambda client: client.untrack(f"{host_id}/8"),
        lambda client: next(client.watch(f"{host_id}/8")),
    ):
        error = _ask(collector, call)

        assert isinstance(error, NotFound)
        assert error.reason == "TARGET_UNKNOWN"
        assert host_id in str(error)


def test_cursor_that_cannot_be_used_is_refused(collector: str, agent: RawAgent, host_id: str) -> None:
    """Each with its own reason, and never with a set that looks right."""
    agent.start(7, [1])
    agent.start(8, [1])
    with Collector(collector) as client:
        cursor = client.dirty(f"{host_id}/7").cursor

    malformed = _ask(collector, lambda client: client.dirty(f"{host_id}/7", since="nonsense"))
    cut = _ask(collector, lambda client: client.dirty(f"{host_id}/7", since=cursor[:-3]))
    foreign = _ask(collector, lambda client: client.dirty(f"{host_id}/8", since=cursor))

    assert [type(error) for error in (malformed, cut, foreign)] == [InvalidRequest] * 3
    assert [error.reason for error in (malformed, cut, foreign)] == ["CURSOR_MALFORMED"] * 2 + ["CURSOR_FOREIGN"]


def test_cursor_of_an_incarnation_that_ended_asks_for_everything_again(
    collector: str, agent: RawAgent, name: str
) -> None:
    """What was written in the gap is not known: the exception names the targets to be dropped."""
    first = agent.start(7, [1])
    with Collector(collector) as client:
        cursor = client.dirty(name).cursor
        agent.end(first, types_pb2.END_REASON_EXEC)
        agent.start(7, [2], incarnation=2)

        with pytest.raises(ResynchronisationNeeded) as caught:
            client.dirty(name, since=cursor)

        assert caught.value.reason == "CURSOR_INCARNATION_ENDED"
        assert caught.value.targets == (name,)
        assert list(client.dirty(name).written) == [2]


def test_watch_ends_when_an_incarnation_does(collector: str, agent: RawAgent, name: str) -> None:
    """In the middle of the stream, too."""
    first = agent.start(7, [1])
    with Collector(collector) as client:
        answers = client.watch(name)
        assert list(next(answers).written) == [1]
        agent.end(first, types_pb2.END_REASON_EXEC)
        agent.start(7, [2], incarnation=2)

        with pytest.raises(ResynchronisationNeeded):
            for _ in answers:
                pass


@pytest.mark.parametrize("reason", [types_pb2.END_REASON_EXITED, types_pb2.END_REASON_UNTRACKED])
def test_watch_is_over_when_all_that_was_named_has_ended(
    collector: str, agent: RawAgent, name: str, reason: types_pb2.EndReason.ValueType
) -> None:
    """It ends well, by either client, with pages and without: whoever watched again would be told the same again."""
    agent.end(agent.start(7, [1, 2]), reason)
    agent.start(8)  # what was said before is durable when this is

    async def watch() -> list[DirtyCounts]:
        async with AsyncCollector(collector) as client:
            return [one async for one in client.watch(name)] + [one async for one in client.watch_counts(name)]

    with Collector(collector) as client:
        answers = [*client.watch(name), *client.watch_counts(name), *asyncio.run(watch())]

    assert [answer.targets[name].written_page_count for answer in answers] == [2, 2, 2, 2]


def test_exit_is_the_last_thing_that_is_said(collector: str, agent: RawAgent, name: str) -> None:
    """A target that exited is answered to its end, and is not complete: nothing follows."""
    tracked = agent.start(7, [1, 2])
    with Collector(collector) as client:
        cursor = client.dirty(name).cursor
        agent.round(tracked, [2])
        agent.end(tracked, types_pb2.END_REASON_EXITED)
        agent.start(8)  # what was said before is durable when this is

        answer = client.dirty(name, since=cursor)

    assert not answer.complete
    assert answer.target.incomplete_reason is IncompleteReason.TARGET_ENDED
    assert answer.target.end_reason is EndReason.EXITED
    assert answer.target.incomplete_message


def test_silent_agent_makes_an_incomplete_answer(collector: str, agent: RawAgent, name: str) -> None:
    """The call succeeds, says so, and says why."""
    agent.start(7, [1])
    agent.answers_barriers = False

    with Collector(collector) as client:
        result = client.barrier(name, barrier_seconds=0.3)
        answer = client.dirty(name, barrier=True, barrier_seconds=0.3)

    assert not result.complete
    assert result.targets[name].incomplete_reason is IncompleteReason.BARRIER_TIMEOUT
    assert not answer.complete
    assert answer.target.incomplete_reason is IncompleteReason.BARRIER_TIMEOUT
    assert list(answer.written) == [1]


def test_agent_that_is_away_makes_an_incomplete_answer(collector: str, host_id: str, name: str) -> None:
    """What it had delivered is there."""
    with RawAgent(collector, host_id) as agent:
        agent.start(7, [1])

    with Collector(collector) as client:
        answer = client.dirty(name)

    assert not answer.complete
    assert answer.target.incomplete_reason is IncompleteReason.AGENT_DISCONNECTED
    assert list(answer.written) == [1]


def test_track_says_how_it_went(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """With the agent's own sentence where it refuses."""
    with Collector(collector) as client:
        target = client.track(host_id, 7)

        assert (target.name, target.host_id, target.pid) == (name, host_id, 7)
        assert client.track(host_id, 7).name == name
        assert client.untrack(f"{host_id}/7").end_reason is EndReason.UNTRACKED

    for code, kind, reason in (
        (code_pb2.NOT_FOUND, NotFound, "PROCESS_UNKNOWN"),
        (code_pb2.PERMISSION_DENIED, Refused, "TRACK_REFUSED"),
        (code_pb2.FAILED_PRECONDITION, Refused, "TRACK_REFUSED"),
    ):
        agent.track_code, agent.track_message = code, "process 9 is not for you"
        error = _ask(collector, lambda client: client.track(host_id, 9))

        assert (type(error), error.reason) == (kind, reason)
        assert "process 9 is not for you" in str(error)


def test_track_needs_a_host_and_its_agent(collector: str, host_id: str) -> None:
    """A host nobody knows is told apart from one whose agent is away."""
    unknown = _ask(collector, lambda client: client.track(host_id, 7))
    with RawAgent(collector, host_id):
        pass
    away = _ask(collector, lambda client: client.track(host_id, 7))

    assert (type(unknown), unknown.reason) == (NotFound, "HOST_UNKNOWN")
    assert (type(away), away.reason) == (AgentUnavailable, "AGENT_DISCONNECTED")


def test_watch_gives_everything_and_then_what_changes(collector: str, agent: RawAgent, name: str) -> None:
    """Its answers together are what one would have asked for."""
    tracked = agent.start(7, [1, 2])

    with Collector(collector) as client:
        answers = client.watch(name)
        first = next(answers)
        agent.round(tracked, [2], vanished=[1])
        second = next(answers)
        answers.close()
        since_first = client.dirty(name, since=first.cursor)

    assert list(first.written) == [1, 2]
    assert (list(second.written), list(second.vanished)) == ([2], [1])
    assert second.written == since_first.written
    assert second.cursor == since_first.cursor


def test_watch_of_counts_has_no_pages(collector: str, agent: RawAgent, name: str) -> None:
    """For those who only look on."""
    agent.start(7, range(1000))

    with Collector(collector) as client:
        counts = next(client.watch_counts(name))

    assert not isinstance(counts, DirtySet)
    assert counts.targets[name].written_page_count == 1000


def test_closing_ends_a_watch_in_another_thread(collector: str, agent: RawAgent, name: str) -> None:
    """Whoever waits for the next answer does not wait for ever."""
    agent.start(7, [1])
    client = Collector(collector)
    seen = threading.Event()

    def look_on() -> None:
        with suppress(CollectorUnavailable):
            for _ in client.watch(name):
                seen.set()

    thread = threading.Thread(target=look_on)
    thread.start()
    assert seen.wait(10)
    client.close()
    thread.join(10)

    assert not thread.is_alive()


def test_closing_ends_calls_of_asyncio_with_an_error(collector: str, agent: RawAgent, name: str) -> None:
    """As it ends those of threads: who waits is not cancelled by it, and who is cancelled is."""
    agent.start(7, [1])
    agent.answers_barriers = False

    async def watch(client: AsyncCollector) -> None:
        async for _ in client.watch(name):
            pass

    async def ask() -> None:
        client = AsyncCollector(collector)
        waiting = [asyncio.ensure_future(client.barrier(name)), asyncio.ensure_future(watch(client))]
        cancelled = asyncio.ensure_future(watch(client))
        await client.hosts()
        await asyncio.sleep(0.2)
        cancelled.cancel()
        await client.close()

        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, CollectorUnavailable)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(InvalidRequest, match="was closed: make another"):
            await client.hosts()
        with pytest.raises(InvalidRequest, match="was closed: make another"):
            await watch(client)

    asyncio.run(ask())


def test_closed_client_says_so(collector: str) -> None:
    """Both kinds of call."""
    client = Collector(collector)
    client.close()

    with pytest.raises(InvalidRequest, match="was closed: make another"):
        client.hosts()
    with pytest.raises(InvalidRequest, match="was closed: make another"):
        client.dirty("host-1/7")


def test_readers_do_not_disturb_each_other(collector: str, agent: RawAgent, name: str) -> None:
    """Each has a cursor of its own."""
    tracked = agent.start(7, [1])

    with Collector(collector) as one, Collector(collector) as other:
        cursor_of_one = one.dirty(name).cursor
        agent.round(tracked, [2])
        cursor_of_other = other.dirty(name).cursor
        agent.round(tracked, [3])

        assert list(one.dirty(name, since=cursor_of_one).written) == [2, 3]
        assert list(other.dirty(name, since=cursor_of_other).written) == [3]


def test_asyncio_client_does_the_same(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """Every method, with the same values."""

    async def ask() -> None:
        async with AsyncCollector(collector) as client:
            target = await client.track(host_id, 7)
            assert target.name == name
            tracked = agent.start(7, [1, 2], incarnation=2)
            assert host_id in [host.host_id for host in await client.hosts()]
            assert [one.name for one in await client.targets(name)] == [name]

            first = await client.dirty(name)
            agent.write(tracked, [9])
            result, second = await asyncio.gather(
                client.barrier(name), client.dirty(name, since=first.cursor, barrier=True)
            )
            assert list(first.written) == [1, 2]
            assert list(second.written) == [9]
            assert result.complete

            answers = client.watch(name, since=second.cursor)
            await anext(answers)
            await asyncio.to_thread(agent.round, tracked, [4])
            assert list((await anext(answers)).written) == [4]
            await answers.aclose()
            counts = client.watch_counts(name)
            assert (await anext(counts)).targets[name].written_page_count == 4
            await counts.aclose()

            assert (await client.untrack(name)).end_reason is EndReason.UNTRACKED
            with pytest.raises(NotFound, match=f"{host_id}/8"):
                await client.dirty(f"{host_id}/8")
            with pytest.raises(NotFound):
                await client.track("host-0", 1)

    asyncio.run(ask())
