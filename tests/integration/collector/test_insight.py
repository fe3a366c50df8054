"""InsightService against a real collector: each answer counted afresh, and each mistake one sentence."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import cast

import grpc
import pytest
from google.protobuf.message import Message
from pyroaring import BitMap64

from tests.integration.collector.wire import PATIENCE_SECONDS, T0_NS, Agent, batch, channel, refused, start, target
from tests.support.collector import CollectorProcess, running_collector
from wetink.pages import decode
from wetink.v1 import dirty_pb2, ingest_pb2, prediction_pb2, types_pb2
from wetink.v1 import insight_pb2 as pb
from wetink.v1.insight_pb2_grpc import InsightServiceStub

ONE = target()
NAME = "host-1/1@100"
ROUND_COUNT = 40


def history(seed: int = 1, count: int = ROUND_COUNT) -> list[set[int]]:
    """Give rounds: the first has all of 200 pages, later ones a few hot and a few cold ones of them."""
    random = Random(seed)  # noqa: S311 (to be the same each time)
    return [
        set(range(100, 300)),
        *(
            {page for page in range(100, 110) if random.random() < 0.8} | set(random.sample(range(110, 300), 3))
            for _ in range(count - 1)
        ),
    ]


@contextmanager
def asking(collector: CollectorProcess) -> Iterator[InsightServiceStub]:
    """Connect."""
    with channel(collector.address) as connection:
        yield InsightServiceStub(connection)


class Here:
    """An agent of a host that no other test uses, with a target, and somebody who asks."""

    def __init__(self, address: str, host: str) -> None:
        """Take the collector's address."""
        self.host = host
        self.one = self.target(1)
        self.name = f"{host}/1@100"
        self.selection = dirty_pb2.Selection(targets=[self.name])
        self._address = address
        self._open = ExitStack()

    def target(self, pid: int) -> types_pb2.Target:
        """Give another target of the host."""
        return target(pid, host_id=self.host)

    def __enter__(self) -> tuple[Agent, InsightServiceStub]:
        """Connect both."""
        agent = self._open.enter_context(Agent(self._address, self.host))
        agent.hello()
        return agent, InsightServiceStub(self._open.enter_context(channel(self._address)))

    def __exit__(self, *_: object) -> None:
        """Close both."""
        self._open.close()


@pytest.fixture
def here(shared_collector: CollectorProcess, host: str) -> Here:
    """Give a host of the test's own."""
    return Here(shared_collector.address, host)


def working_set(stub: InsightServiceStub, *targets: str, hosts: Sequence[str] = ()) -> pb.GetWorkingSetResponse:
    """Ask for working sets."""
    chosen = dirty_pb2.Selection(targets=targets, hosts=hosts)
    return stub.GetWorkingSet(pb.GetWorkingSetRequest(selection=chosen), timeout=20)


def mean_of(rounds: Sequence[set[int]], length: int) -> float:
    """Give the mean number of unique pages in runs of so many rounds, of all but the first."""
    later = rounds[1:]
    runs = [set().union(*later[begin : begin + length]) for begin in range(len(later) - length + 1)]
    return sum(map(len, runs)) / len(runs)


def test_working_set_is_what_counting_gives_also_after_a_restart(tmp_path: Path) -> None:
    """While rounds come it is exact; read again from the store, where they were merged, it is between bounds."""
    rounds = history()
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent, asking(collector) as stub:
        agent.hello()
        agent.deliver(ONE, *rounds)
        answer = working_set(stub, NAME)
        (found,) = answer.targets
        lengths = {round(point.window_ns / 1e9): point for point in found.working_set.points}
        assert answer.complete
        assert not answer.HasField("group")
        assert {1, 2, 3, 4} <= lengths.keys()
        assert max(lengths) > ROUND_COUNT * 4 // 5
        for length, point in lengths.items():
            if point.window_ns == length * 10**9:
                assert point.exact
                assert point.window_count == ROUND_COUNT - length
                assert point.pages.mean == pytest.approx(mean_of(rounds, length))
        written = set().union(*rounds[1:])
        assert found.working_set.writable_page_count == found.working_set.writable_page_count_at_least == len(written)
        assert found.working_set.populated_page_count == 1000 + ROUND_COUNT
        rate = sum(map(len, rounds[1:])) / (ROUND_COUNT - 1)
        assert found.working_set.dirty_pages_per_second == pytest.approx(rate)
        assert found.working_set.dirty_pages_per_second_now == len(rounds[-1])
        assert (found.history.first_round, found.history.last_round) == (2, ROUND_COUNT)
        assert found.history.exact
        assert found.history.since_time_ns == T0_NS + 10**9
        exact = lengths[1]
    with running_collector(tmp_path) as collector, asking(collector) as stub:
        answer = working_set(stub, NAME)
        (found,) = answer.targets
        assert not answer.complete
        assert answer.missing == ["host-1: its agent is not connected, so nothing newer is known"]
        assert not found.history.exact
        assert found.history.incomplete_reason == types_pb2.INCOMPLETE_REASON_AGENT_DISCONNECTED
        assert found.history.last_round == ROUND_COUNT
        single = min(found.working_set.points, key=lambda point: point.window_ns)
        assert single.exact
        assert single.window_count < exact.window_count
        assert found.working_set.writable_page_count_at_least <= len(
            set().union(*rounds[found.history.first_round - 1 :])
        )


def test_heatmap_is_what_counting_gives(here: Here) -> None:
    """Unique pages of each row and column; rows cover what is populated, and nothing of a hole."""
    rounds = [*history(), {1 << 30}]
    rounds[0] |= {1 << 30}
    with here as (agent, stub):
        agent.deliver(here.one, *rounds)
        answer = stub.GetHeatmap(
            pb.GetHeatmapRequest(target=here.name, address_bin_count=7, time_bin_count=5), timeout=20
        )

    assert len(answer.rows) <= 7
    assert len(answer.columns) == 5
    assert sum(row.page_count for row in answer.rows) == 201
    assert answer.rows[-1].range.start_address == (1 << 30) * 4096
    counts = iter(answer.page_counts)
    for row in answer.rows:
        first = row.range.start_address // 4096
        pages = set(range(first, first + row.range.size_bytes // 4096))
        for column in answer.columns:
            written = set().union(*rounds[column.first_round - 1 : column.last_round])
            assert next(counts) == len(written & pages)
            assert column.exact
    assert [answer.columns[0].first_round, answer.columns[-1].last_round] == [2, len(rounds)]


def test_heatmap_of_a_part(here: Here) -> None:
    """Only the addresses and the time asked for."""
    rounds = history()
    request = pb.GetHeatmapRequest(
        target=here.name,
        since_time_ns=T0_NS + 30 * 10**9,
        start_address=105 * 4096,
        end_address=108 * 4096,
        address_bin_count=3,
        time_bin_count=1,
    )
    with here as (agent, stub):
        agent.deliver(here.one, *rounds)
        answer = stub.GetHeatmap(request, timeout=20)
        request.start_address, request.end_address = 1 << 40, 1 << 41
        nothing = stub.GetHeatmap(request, timeout=20)

    assert (list(nothing.rows), list(nothing.page_counts), len(nothing.columns)) == ([], [], 1)
    written = set().union(*rounds[30:])
    assert [row.range.start_address // 4096 for row in answer.rows] == [105, 106, 107]
    assert list(answer.page_counts) == [page in written for page in (105, 106, 107)]
    assert answer.history.first_round == 31


def test_hot_pages_are_in_the_order_that_counting_gives(here: Here) -> None:
    """By rounds, and by age."""
    rounds = history()
    counts = {page: sum(page in one for one in rounds[1:]) for page in set().union(*rounds[1:])}
    last = {page: max(number for number, one in enumerate(rounds, 1) if page in one) for page in counts}
    with here as (agent, stub):
        agent.deliver(here.one, *rounds)
        by_rounds = hot(stub, here.selection, pb.HOT_ORDER_ROUNDS)
        by_age = hot(stub, here.selection, pb.HOT_ORDER_AGE)

    assert by_rounds == sorted(counts, key=lambda page: (-counts[page], -last[page], page))[:20]
    assert by_age == sorted(counts, key=lambda page: (-last[page], -counts[page], page))[:20]


def hot(stub: InsightServiceStub, selection: dirty_pb2.Selection, order: pb.HotOrder.ValueType) -> list[int]:
    """Give the twenty hottest pages."""
    request = pb.GetHotPagesRequest(selection=selection, limit=20, order=order)
    (found,) = stub.GetHotPages(request, timeout=20).targets
    return [
        page
        for one in found.pages
        for page in range(one.range.start_address // 4096, (one.range.start_address + one.range.size_bytes) // 4096)
    ]


def test_cold_pages_come_first(here: Here) -> None:
    """Every populated page once; those never written first, and no page before one that was written longer ago."""
    rounds = history()
    last = {page: max(number for number, one in enumerate(rounds, 1) if page in one) for page in rounds[0]}
    with here as (agent, stub):
        agent.deliver(here.one, *rounds)
        agent.say(batch(here.one, ROUND_COUNT + 1, written=[1000], vanished=[150]))
        agent.acknowledged(here.one, ROUND_COUNT + 1)
        last |= {1000: ROUND_COUNT + 1}
        parts = list(stub.GetColdFirst(pb.GetColdFirstRequest(target=here.name, class_count=6), timeout=20))

    order = [set(decode(part.pages)) for part in parts]
    assert sorted(page for some in order for page in some) == sorted((rounds[0] - {150}) | {1000})
    assert order[0] == {page for page in rounds[0] - {150} if last[page] == 1}
    assert parts[0].last_written_time_ns == 0
    assert [part.class_index for part in parts] == sorted(part.class_index for part in parts)
    assert len(parts) <= 6
    for part, some, after in zip(parts, order, order[1:], strict=False):
        assert max(last[page] for page in some) < min(last[page] for page in after)
        if part.last_written_time_ns:
            assert part.last_written_time_ns == T0_NS + max(last[page] for page in some) * 10**9


def mapping(start_page: int, page_count: int, name: str, *, inode: int = 0, offset: int = 0) -> types_pb2.Mapping:
    """Give one mapping; shared where it has an inode."""
    return types_pb2.Mapping(
        range=types_pb2.AddressRange(start_address=start_page * 4096, size_bytes=page_count * 4096),
        name=name,
        shared=bool(inode),
        device=5 if inode else 0,
        inode=inode,
        offset_bytes=offset * 4096,
    )


def mappings(of: types_pb2.Target, *some: types_pb2.Mapping) -> ingest_pb2.TargetMappings:
    """Give a table."""
    return ingest_pb2.TargetMappings(target=of, incarnation=1, round=1, mappings=some)


def test_shared_page_counts_once_in_a_group(here: Here) -> None:
    """Two processes map one object at different addresses, and each has memory of its own at the same ones."""
    two = here.target(2)
    with here as (agent, stub):
        agent.deliver(here.one, range(100), [0, 1, 50], [0, 51], labels={"pod_uid": here.host})
        agent.deliver(two, range(100), [0, 1, 80], [0, 82], labels={"pod_uid": here.host})
        # Pages 50 to 59 of the one are the object's 10 to 19, and 80 to 89 of the other too.
        agent.say(mappings(here.one, mapping(0, 40, "[heap]"), mapping(50, 10, "/memfd:x", inode=7, offset=10)))
        agent.say(mappings(two, mapping(0, 40, "[heap]"), mapping(80, 10, "/memfd:x", inode=7, offset=10)))
        agent.say(batch(here.one, 4, written=[53]), batch(two, 4, written=[84]))
        agent.acknowledged(two, 4)
        response = stub.GetWorkingSet(
            pb.GetWorkingSetRequest(selection=dirty_pb2.Selection(labels={"pod_uid": here.host})), timeout=20
        )

    group = response.group
    # Of the object 10, 11, 13 by the one and 10, 12, 14 by the other; and two pages of each one's own.
    assert group.working_set.writable_page_count == 2 + 2 + 5
    assert group.shared_page_count == 10
    assert group.working_set.populated_page_count == 2 * 1004 - 10
    assert not group.targets_without_mappings
    shortest = group.working_set.points[0]
    assert shortest.pages_at_least.max <= 5
    assert shortest.pages.max >= 5


def test_group_gets_dirty_as_fast_as_its_targets_together(here: Here) -> None:
    """Also where their rounds end at different times, so that each window may have pages of a round more."""
    targets = here.one, here.target(2)
    with here as (agent, stub):
        for number, one in enumerate(targets):
            agent.say(start(one))
            for round_ in range(1, 21):
                some = batch(one, round_, written=range(5 if round_ > 1 else 10))
                some.last_time_ns += number * 5 * 10**8
                agent.say(some)
            agent.acknowledged(one, 20)
        answer = working_set(stub, hosts=[here.host])

    assert [one.working_set.dirty_pages_per_second for one in answer.targets] == [5, 5]
    assert answer.group.working_set.dirty_pages_per_second == 10


def test_group_says_which_mappings_are_not_known(here: Here) -> None:
    """Their shared pages count for each."""
    with here as (agent, stub):
        agent.deliver(here.one, range(10), [1], [2])
        agent.deliver(here.target(2), range(10), [1], [2])
        agent.deliver(here.target(3), range(10))
        answer = working_set(stub, hosts=[here.host])

    assert answer.group.targets_without_mappings == [here.name, f"{here.host}/2@100"]
    assert answer.group.working_set.writable_page_count == 4
    assert not answer.complete
    third = answer.targets[2]
    assert third.history.last_round == 0
    assert "only the first round" in third.history.incomplete_message


def test_answer_about_several_hosts_says_which_are_missing(
    here: Here, shared_collector: CollectorProcess, host: str
) -> None:
    """One is here, one is away, one has no target: each has what is known of it, and the rest is named."""
    away, empty = f"{host[:50]}.away", f"{host[:50]}.empty"
    with here as (agent, stub), Agent(shared_collector.address, empty) as third:
        third.hello()
        agent.deliver(here.one, range(10), [1], [2, 3])
        with Agent(shared_collector.address, away) as other:
            other.hello()
            other.deliver(target(1, host_id=away), range(20), [1], [5, 6, 7])
            both = working_set(stub, hosts=[here.host, away])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (answer := working_set(stub, hosts=[here.host, away, empty])).missing[0].partition(":")[0] != away:
            assert time.monotonic() < deadline

    assert both.complete
    assert not both.missing
    assert not answer.complete
    assert list(answer.missing) == [
        f"{away}: its agent is not connected, so nothing newer is known",
        f"{empty}: no target is tracked there",
    ]
    by_name = {one.history.name: one for one in answer.targets}
    near, far = by_name[here.name], by_name[f"{away}/1@100"]
    assert near.history.complete
    assert far.history.incomplete_reason == types_pb2.INCOMPLETE_REASON_AGENT_DISCONNECTED
    assert "not connected" in far.history.incomplete_message
    assert [one.working_set.writable_page_count for one in (near, far)] == [3, 4]
    assert answer.group.working_set.writable_page_count == 7


def test_nothing_is_exact_across_hosts(here: Here, shared_collector: CollectorProcess, host: str) -> None:
    """Where each round ends with another's it is on one host; between two only if their clocks agree."""
    away = f"{host[:50]}.away"
    rounds = [range(10), [1], [2, 3], [1]]
    with here as (agent, stub), Agent(shared_collector.address, away) as other:
        other.hello()
        agent.deliver(here.one, *rounds)
        agent.deliver(here.target(2), *rounds)
        other.deliver(target(1, host_id=away), *rounds)
        near = working_set(stub, hosts=[here.host]).group.working_set
        far = working_set(stub, hosts=[here.host, away]).group.working_set

    assert all(point.exact and not point.HasField("pages_at_least") for point in near.points)
    assert not any(point.exact for point in far.points)
    assert all(point.HasField("pages_at_least") for point in far.points)
    assert 0 < len(near.points) == len(far.points)


def test_memory_of_a_whole_host_in_a_few_bytes_is_answered_about(here: Here) -> None:
    """Four billion pages, populated and then written: each answer is about what is known, or says why it is not."""
    large = BitMap64()
    large.add_range(1 << 20, (1 << 20) + (1 << 32))
    large.run_optimize()
    small = [{5, 6, number} for number in range(100, 106)]
    about = pb.GetHeatmapRequest(target=here.name, address_bin_count=2)
    predict = prediction_pb2.PredictMigrationRequest(target=here.name, bandwidths_bytes_per_second=[10**9])
    with here as (agent, stub):
        agent.deliver(here.one, large, *small)
        agent.deliver(here.target(2), *small)
        table = mapping(1 << 20, 1 << 32, "/memfd:large", inode=7)
        agent.say(mappings(here.one, table, mapping(5, 1, "/memfd:small", inode=8)))
        agent.say(mappings(here.target(2), table, mapping(5, 1, "/memfd:small", inode=8)))
        both = working_set(stub, hosts=[here.host])
        assert [one.working_set.writable_page_count for one in both.targets] == [8, 7]
        drawn = stub.GetHeatmap(about, timeout=PATIENCE_SECONDS)
        assert sum(row.page_count for row in drawn.rows) == (1 << 32) + 8
        assert sum(drawn.page_counts) > 0
        parts = list(stub.GetColdFirst(pb.GetColdFirstRequest(target=here.name), timeout=PATIENCE_SECONDS))
        assert sum(part.pages.page_count for part in parts if part.class_index == 0) == 1 << 32
        assert sum(part.pages.page_count for part in parts) == (1 << 32) + 8
        assert stub.PredictMigration(predict, timeout=PATIENCE_SECONDS).basis.stretch_count == len(small)

        agent.say(batch(here.one, 8, written=large))
        agent.acknowledged(here.one, 8)
        for ask in (
            lambda: working_set(stub, here.name),
            lambda: stub.GetHeatmap(about, timeout=PATIENCE_SECONDS),
            lambda: stub.PredictMigration(predict, timeout=PATIENCE_SECONDS),
        ):
            with refused() as refusal:
                ask()
            assert refusal.reason == "HISTORY_TOO_SHORT"
            assert "too many pages" in refusal.message
        agent.say(*(batch(here.one, number, written=[number]) for number in range(9, 14)))
        agent.acknowledged(here.one, 13)
        predicted = stub.PredictMigration(predict, timeout=PATIENCE_SECONDS)
        assert predicted.predictions[0].confidence == prediction_pb2.CONFIDENCE_LOW
        assert "round 8 had too many pages" in predicted.predictions[0].confidence_reason
        assert predicted.basis.stretch_count == 5


def test_writers_are_counted(here: Here) -> None:
    """By thread, by function and by mapping; what is not known has no name."""
    addresses = [4096 * page for page in (1, 2, 3, 1, 40)]
    columns = types_pb2.EventColumns(
        address=packed(addresses, 8),
        thread_id=packed([7, 7, 8, 7, 7], 4),
        time_ns=packed([T0_NS + at for at in range(5)], 8),
        instruction_pointer=packed([0x500, 0x504, 0x900, 0x504, 0x504], 8),
        lost_count=3,
        threads=[types_pb2.ThreadName(thread_id=7, name="worker")],
        mappings=[
            types_pb2.MappingName(range=types_pb2.AddressRange(start_address=4096, size_bytes=2 * 4096), name="[heap]")
        ],
        code=[
            types_pb2.CodeName(instruction_pointer=0x500, symbol="fill", file="/bin/x", file_offset=0x100),
            types_pb2.CodeName(instruction_pointer=0x504, symbol="fill", file="/bin/x", file_offset=0x104),
        ],
    )
    with here as (agent, stub):
        agent.deliver(here.one, range(50))
        with_events = batch(here.one, 2, written=[1, 2, 3, 40])
        with_events.events.CopyFrom(columns)
        agent.say(with_events)
        agent.acknowledged(here.one, 2)
        answer = stub.GetWriters(pb.GetWritersRequest(target=here.name), timeout=20)
        later = stub.GetWriters(pb.GetWritersRequest(target=here.name, since_time_ns=T0_NS + 3), timeout=20)

    assert (answer.event_count, answer.lost_count, answer.first_round) == (5, 3, 2)
    assert [(one.thread_id, one.name, one.event_count, one.page_count) for one in answer.threads] == [
        (7, "worker", 4, 3),
        (8, "", 1, 1),
    ]
    assert [(one.symbol, one.instruction_pointer, one.event_count, one.page_count) for one in answer.code] == [
        ("fill", 0x504, 4, 3),
        ("", 0x900, 1, 1),
    ]
    assert [(one.name, one.event_count, one.page_count) for one in answer.mappings] == [("[heap]", 3, 2), ("", 2, 2)]
    assert later.event_count == 1


def packed(values: Iterable[int], size_bytes: int) -> bytes:
    """Give a column."""
    return b"".join(value.to_bytes(size_bytes, "little") for value in values)


CODE = grpc.StatusCode
UNKNOWN = dirty_pb2.Selection(targets=["host-1/77"])
NOBODY = dirty_pb2.Selection(labels={"a": "b"})
MALFORMED = (CODE.INVALID_ARGUMENT, "REQUEST_MALFORMED")
TOO_SHORT = (CODE.FAILED_PRECONDITION, "HISTORY_TOO_SHORT")

NEW = cast("pb.HotOrder.ValueType", 9)
"""An order of a later version."""

MISTAKES: Mapping[str, tuple[Callable[[Here], Message], tuple[grpc.StatusCode, str]]] = {
    "nothing selected": (lambda _: pb.GetWorkingSetRequest(), (CODE.INVALID_ARGUMENT, "SELECTION_MALFORMED")),
    "unknown target": (lambda _: pb.GetWorkingSetRequest(selection=UNKNOWN), (CODE.NOT_FOUND, "TARGET_UNKNOWN")),
    "labels of nobody": (lambda _: pb.GetWorkingSetRequest(selection=NOBODY), (CODE.NOT_FOUND, "TARGET_UNKNOWN")),
    "one round, working set": (lambda h: pb.GetWorkingSetRequest(selection=h.selection), TOO_SHORT),
    "one round, heatmap": (lambda h: pb.GetHeatmapRequest(target=h.name), TOO_SHORT),
    "one round, hot pages": (lambda h: pb.GetHotPagesRequest(selection=h.selection), TOO_SHORT),
    "no name": (lambda _: pb.GetHeatmapRequest(target="nonsense"), MALFORMED),
    "many rows": (lambda h: pb.GetHeatmapRequest(target=h.name, address_bin_count=1025), MALFORMED),
    "absurdly many columns": (
        lambda h: pb.GetHeatmapRequest(target=h.name, time_bin_count=4 * 10**9),
        MALFORMED,
    ),
    "end before start": (
        lambda h: pb.GetHeatmapRequest(target=h.name, start_address=2, end_address=1),
        MALFORMED,
    ),
    "many pages": (lambda h: pb.GetHotPagesRequest(selection=h.selection, limit=10_001), MALFORMED),
    "unknown order": (
        lambda h: pb.GetHotPagesRequest(selection=h.selection, order=NEW),
        MALFORMED,
    ),
    "no events": (lambda h: pb.GetWritersRequest(target=h.name), (CODE.FAILED_PRECONDITION, "EVENTS_MISSING")),
    "many writers": (lambda h: pb.GetWritersRequest(target=h.name, limit=1001), MALFORMED),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence(here: Here, mistake: str) -> None:
    """With the status that says whether to try again, and a reason for programs."""
    make, (code, reason) = MISTAKES[mistake]
    request_ = make(here)
    with here as (agent, stub):
        agent.deliver(here.one, range(10))
        with refused(code, reason) as refusal:
            getattr(stub, type(request_).__name__.removesuffix("Request"))(request_, timeout=20)

    assert refusal.message
    assert "\n" not in refusal.message


@pytest.mark.parametrize("class_count", [1, 257])
def test_classes_have_bounds(here: Here, class_count: int) -> None:
    """Two at least: what was written, and what was not."""
    with here as (agent, stub):
        agent.deliver(here.one, range(10), [1])
        with refused(CODE.INVALID_ARGUMENT, "REQUEST_MALFORMED"):
            list(stub.GetColdFirst(pb.GetColdFirstRequest(target=here.name, class_count=class_count), timeout=20))


def test_target_that_has_ended_is_still_told_of(here: Here) -> None:
    """And that it has."""
    with here as (agent, stub):
        agent.deliver(here.one, range(10), [1], [2])
        ended = ingest_pb2.TargetEnded(
            target=here.one, incarnation=1, reason=types_pb2.END_REASON_EXITED, message="exited", time_ns=T0_NS
        )
        agent.say(ended)
        agent.acknowledged(here.one, 3)
        answer = working_set(stub, here.name)

    (found,) = answer.targets
    assert not answer.complete
    assert found.history.end_reason == types_pb2.END_REASON_EXITED
    assert found.working_set.writable_page_count == 2


def test_next_incarnation_begins_a_history_of_its_own(here: Here) -> None:
    """What was written before an exec says nothing of what follows."""
    with here as (agent, stub):
        agent.deliver(here.one, range(10), [1], [2])
        agent.say(start(here.one, incarnation=2))
        agent.say(*(batch(here.one, number, written=[number], incarnation=2) for number in (1, 2)))
        agent.acknowledged(here.one, 2, incarnation=2)
        (found,) = working_set(stub, here.name).targets

    assert found.history.incarnation == 2
    assert found.working_set.writable_page_count == 1


def test_united_rounds_give_bounds(here: Here) -> None:
    """An agent that was cut off sends several rounds as one: what vanished in them may have been written."""
    with here as (agent, stub):
        agent.deliver(here.one, range(10))
        agent.say(batch(here.one, 2, 5, written=[1, 2], vanished=[3]))
        agent.acknowledged(here.one, 5)
        (found,) = working_set(stub, here.name).targets
        (point,) = found.working_set.points
        (hottest,) = stub.GetHotPages(pb.GetHotPagesRequest(selection=here.selection), timeout=20).targets

    assert not point.exact
    assert (point.pages_at_least.max, point.pages.max) == (2, 3)
    assert not found.history.exact
    assert [(one.round_count, one.round_count_max) for one in hottest.pages] == [(1, 4)]


def test_many_targets_do_not_wait_for_each_other(here: Here) -> None:
    """A hundred targets in one answer, each with its own."""
    with here as (agent, stub):
        for pid in range(1, 101):
            agent.say(start(here.target(pid)))
            agent.say(*(batch(here.target(pid), number, written=range(pid)) for number in (1, 2, 3)))
        agent.acknowledged(here.target(100), 3)
        answer = working_set(stub, hosts=[here.host])

    by_name = {one.history.name: one for one in answer.targets}
    assert len(by_name) == 100
    assert all(by_name[f"{here.host}/{pid}@100"].working_set.writable_page_count == pid for pid in range(1, 101))
    assert answer.group.working_set.writable_page_count == sum(range(101))
