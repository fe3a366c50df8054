"""Watch against a real collector: the same answers, again and again."""

import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from pyroaring import BitMap64

from tests.integration.collector.wire import Agent, Answer, Reader, answers, batch, position, refused, start, target
from tests.support.collector import CollectorProcess, running_collector
from wetink.pages import PAGE_SIZE, split
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.types_pb2 import (
    END_REASON_EXEC,
    END_REASON_EXITED,
    END_REASON_FAILED,
    INCOMPLETE_REASON_AGENT_DISCONNECTED,
    INCOMPLETE_REASON_NO_ROUND,
    INCOMPLETE_REASON_TARGET_ENDED,
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
    """Give the test's agent, welcomed."""
    agent.hello()
    return agent


class Watching:
    """An open watch, answer by answer."""

    def __init__(self, reader: Reader, request: pb.WatchRequest) -> None:
        """Open it."""
        self.call = reader.stub.Watch(request, timeout=60)
        self._answers = answers(self.call)

    def next(self) -> Answer:
        """Wait for the next answer."""
        return next(self._answers)

    def exhaust(self) -> None:
        """Read all that comes."""
        for _ in self._answers:
            pass

    def ends(self) -> bool:
        """Whether the collector has closed it with OK, after what was read."""
        return next(self._answers, None) is None and self.call.code() == grpc.StatusCode.OK


def watch(
    reader: Reader, *targets: str, host: str | None = None, cursor: str = "", pages: bool = True, interval_ms: int = 0
) -> Watching:
    """Open a watch."""
    selection = pb.Selection(targets=targets, hosts=[host] if host else [])
    return Watching(
        reader, pb.WatchRequest(selection=selection, cursor=cursor, pages=pages, interval_min_ms=interval_ms)
    )


def ended(of: types_pb2.Target, reason: types_pb2.EndReason.ValueType) -> ingest_pb2.TargetEnded:
    """Give an end."""
    return ingest_pb2.TargetEnded(target=of, incarnation=1, reason=reason, time_ns=1)


def test_watch_gives_everything_and_then_each_commit(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Each answer goes on where the one before ended."""
    live.deliver(one, [1, 2])
    watching = watch(reader, name)
    assert watching.next().written == {name: {1, 2}}

    for number in range(2, 6):
        live.say(batch(one, number, written=[number * 10], vanished=[1]))
        answer = watching.next()
        assert (answer.written, answer.vanished) == ({name: {number * 10}}, {name: {1}})
        assert answer.summary.targets[0].round == number


def test_watch_goes_on_from_a_cursor_and_gives_cursors(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """GetDirty takes them too."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor
    live.say(batch(one, 2, written=[2]))
    live.acknowledged(one, 2)

    first = watch(reader, name, cursor=cursor).next()

    assert first.written == {name: {2}}
    assert reader.dirty(name, cursor=first.summary.cursor).written == {}


def test_watch_without_pages_gives_counts(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """Only summaries come."""
    live.deliver(one, [1, 2, 3])

    answer = watch(reader, name, pages=False).next()

    assert answer.message_count == 0
    assert answer.summary.targets[0].written_page_count == 3


def test_rounds_within_the_interval_come_in_one_answer(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Not earlier than asked for, and nothing is left out. Where they did not all come in time, it is a longer one."""
    live.deliver(one, [1])
    last, came_in_time = 1, False
    for interval in (0.5, 2.0, 8.0, 32.0):
        # It begins with the first answer, which is after this.
        began = time.monotonic()
        watching = watch(reader, name, interval_ms=round(interval * 1000))
        watching.next()
        first, last = last + 1, last + 10
        for number in range(first, last + 1):
            live.say(batch(one, number, written=[number]))
        live.acknowledged(one, last)
        came_in_time = time.monotonic() - began < interval
        answer = watching.next()
        assert time.monotonic() - began >= interval
        if came_in_time:
            assert answer.written == {name: set(range(first, last + 1))}
            break
        watching.call.cancel()
    assert came_in_time


def test_reader_that_is_slow_gets_fewer_and_larger_answers(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Nobody waits for it, nothing piles up for it, and it misses nothing."""
    live.deliver(one, [0])
    watching = watch(reader, name)
    count = 300
    pages = [set(range(number << 16, (number << 16) + 20_000, 2)) for number in range(2, count + 2)]
    for number, written in enumerate(pages, 2):
        live.say(batch(one, number, written=written))
        live.acknowledged(one, number)

    read, got = 0, set()
    while True:
        answer = watching.next()
        read += 1
        got |= answer.written.get(name, set())
        if answer.summary.targets[0].round == count + 1:
            break

    assert got == set.union({0}, *pages)
    assert read < count / 2


def test_readers_that_stop_in_the_middle_hold_only_what_they_have_not_got(
    collector: CollectorProcess,
) -> None:
    """Nobody waits for them, each holds its set once, and whoever goes on reading misses nothing."""
    big, small, count = target(1), target(2), 20
    pages = BitMap64(range(0, 40_000_000, 40))
    parts = list(split(pages))
    with Agent(collector.address) as agent, ExitStack() as stack:
        agent.hello()
        agent.deliver(small, [1])
        agent.say(start(big))
        for number, part in enumerate(parts):
            message = batch(big, 1, part=number, part_count=len(parts))
            message.written.CopyFrom(part)
            agent.say(message)
        agent.acknowledged(big, 1)
        reader = Reader(collector.address)
        reader.dirty("host-1/1")
        before = resident_bytes(collector.pid)
        readers = [Reader(collector.address) for _ in range(count)]
        for each in readers:
            stack.enter_context(each.channel)
        stuck = [watch(each, "host-1/1") for each in readers]
        for watching in stuck:
            # Its answer has begun; what a stream holds on its way is far less than the rest.
            watching.call.initial_metadata()
        began = time.monotonic()
        agent.say(batch(small, 2, written=[2]))
        agent.acknowledged(small, 2)
        assert reader.dirty("host-1/2").written == {"host-1/2@100": {1, 2}}
        assert time.monotonic() - began < 5
        held = (resident_bytes(collector.pid) - before) / count

        assert held < 2 * sum(len(part.roaring64) for part in parts)
        assert stuck[-1].next().written == {"host-1/1@100": set(pages)}


def resident_bytes(pid: int) -> int:
    """Give the memory of a process that is in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_SIZE


def test_target_that_comes_later_is_included_from_its_first_round(
    live: Agent, reader: Reader, host: str, name: str
) -> None:
    """A watch of a host may begin before anything is tracked on it."""
    watching = watch(reader, host=host)
    live.deliver(target(1, host_id=host), [1])
    answer = watching.next()
    while answer.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_NO_ROUND:
        answer = watching.next()
    assert answer.written == {name: {1}}

    live.deliver(target(2, host_id=host), [10, 11])
    answer = watching.next()
    while not answer.written:
        answer = watching.next()

    assert answer.written == {f"{host}/2@100": {10, 11}}
    assert [status.name for status in answer.summary.targets] == [name, f"{host}/2@100"]


def test_target_that_exits_is_told_and_ends_the_watch(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """With its last set; nothing more can come of a target that was named."""
    live.deliver(one, [1])
    watching = watch(reader, name)
    watching.next()
    live.say(batch(one, 2, written=[2]), ended(one, END_REASON_EXITED))

    written: set[int] = set()
    answer = watching.next()
    written |= answer.written.get(name, set())
    while answer.summary.complete:
        answer = watching.next()
        written |= answer.written.get(name, set())

    assert written == {2}
    assert answer.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_TARGET_ENDED
    assert watching.ends()


def test_target_that_exits_on_a_watched_host_is_told_once(live: Agent, reader: Reader, host: str) -> None:
    """The watch goes on with the others."""
    one, other, other_name = target(1, host_id=host), target(2, host_id=host), f"{host}/2@100"
    live.deliver(one, [1])
    live.deliver(other, [1])
    watching = watch(reader, host=host)
    watching.next()

    live.say(ended(one, END_REASON_EXITED))
    told = watching.next()
    live.say(batch(other, 2, written=[2]))
    after = watching.next()

    assert told.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_TARGET_ENDED
    assert [status.name for status in after.summary.targets] == [other_name]
    assert (after.written, after.summary.complete) == ({other_name: {2}}, True)


def test_target_whose_agent_failed_is_told_with_each_answer(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, host: str
) -> None:
    """The watch goes on with the others, and says each time that it is not complete; not when nothing is new."""
    one, other, other_name = target(1, host_id=host), target(2, host_id=host), f"{host}/2@100"
    live.deliver(one, [1])
    live.deliver(other, [1])
    live.say(ended(one, END_REASON_FAILED))
    live.acknowledged(one, 1)

    watching = watch(reader, host=host)
    told = watching.next()
    with Agent(shared_collector.address, f"{host}-b") as elsewhere:
        elsewhere.hello()
        elsewhere.deliver(target(1, host_id=f"{host}-b"), [1])
    live.say(batch(other, 2, written=[2]))
    after = watching.next()

    for answer in (told, after):
        assert [status.end_reason for status in answer.summary.targets] == [END_REASON_FAILED, 0]
        assert not answer.summary.complete
    assert after.written == {other_name: {2}}


def test_incarnation_that_ends_in_the_middle_ends_the_watch(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """With the error that a cursor gives: the copy is of no use any more."""
    live.deliver(one, [1])
    watching = watch(reader, name)
    watching.next()
    live.say(ended(one, END_REASON_EXEC), start(one, incarnation=2))

    with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED") as refusal:
        watching.exhaust()

    assert refusal.metadata["targets"] == name


def test_agent_that_goes_and_comes_is_told(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """A reader that waits is not left in the belief that nothing was written."""
    live.deliver(one, [1])
    watching = watch(reader, name)
    assert watching.next().summary.complete

    live.end()
    away = watching.next()
    with Agent(shared_collector.address, host) as again:
        again.hello(position(one, 1))
        back = watching.next()

    assert away.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_AGENT_DISCONNECTED
    assert back.summary.complete


def test_watch_that_its_reader_leaves_is_forgotten(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """However many come and go, the collector goes on."""
    live.deliver(one, [1])
    for number in range(2, 22):
        watching = watch(reader, name)
        watching.next()
        watching.call.cancel()
        live.say(batch(one, number, written=[number]))
        live.acknowledged(one, number)

    assert reader.target(name).round == 21


def test_interval_over_an_hour_is_refused(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """A reader that asks for it will not be there."""
    live.deliver(one, [1])

    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"):
        watch(reader, name, interval_ms=3_600_001).next()


def test_watch_ends_when_the_collector_drains(tmp_path: Path) -> None:
    """With UNAVAILABLE: the reader comes back with its cursor."""
    one = target()
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(one, [1])
        watching = watch(Reader(collector.address), "host-1/1")
        watching.next()
        collector.process.terminate()
        agent.hear("drain")
        agent.half_close()

        with refused(grpc.StatusCode.UNAVAILABLE, "COLLECTOR_DRAINING"):
            watching.exhaust()
        assert collector.process.wait(20) == 0
