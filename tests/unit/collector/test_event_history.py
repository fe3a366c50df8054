"""The history of events: the newest are kept, within the bound, and indexes say what is missing."""

import asyncio
import time
from typing import Any, cast

from tests.unit.collector.changes import started
from wetink.v1.dirty_pb2 import StreamEventsRequest
from wetink.v1.types_pb2 import END_REASON_LOST, EventColumns
from wetink_collector.catalog import Catalog
from wetink_collector.dirty import DirtyService
from wetink_collector.event_history import AT_ONCE, Chunk, EventHistory, EventReader
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.store.interface import Contents, IncarnationEnded, TargetForgotten

ONE = IncarnationKey(TargetKey("host-1", "boot-1", 1, 100), 5)
AGAIN = IncarnationKey(ONE.target, 6)
TWO = IncarnationKey(TargetKey("host-1", "boot-1", 2, 100), 5)


def columns(count: int) -> EventColumns:
    """Give so many events."""
    return EventColumns(address=bytes(8 * count))


def everything(history: EventHistory, of: IncarnationKey, number: int = 0) -> list[Chunk]:
    """Give all chunks of a target from a number on."""
    chunks: list[Chunk] = []
    while more := history.since(of.target, number):
        assert len(more) <= AT_ONCE
        assert more[0].number >= number, "it is told again and again"
        chunks += more
        number = more[-1].number + 1
    return chunks


def test_chunks_come_in_order_and_from_a_number_on() -> None:
    """Each target has its own, in the order they were added."""
    history = EventHistory()
    for number in range(1, 21):
        history.add(ONE, (number, number), [columns(number)])
        history.add(TWO, (number, number), [columns(1)])

    assert [chunk.last_round for chunk in everything(history, ONE)] == list(range(1, 21))
    assert [chunk.first_index for chunk in everything(history, TWO)] == list(range(20))
    assert [chunk.last_round for chunk in everything(history, TWO, 15)] == [16, 17, 18, 19, 20]


def test_the_oldest_of_all_go_first() -> None:
    """Over the bound, what came first goes, of whichever target; what is left says how many came before it."""
    history = EventHistory(bytes_max=10 * columns(100).ByteSize())
    history.add(ONE, (1, 1), [columns(100)])
    for number in range(1, 11):
        history.add(TWO, (number, number), [columns(100)])
    history.add(ONE, (2, 2), [columns(100)])

    assert [(chunk.last_round, chunk.first_index) for chunk in everything(history, ONE)] == [(2, 100)]
    assert [chunk.last_round for chunk in everything(history, TWO)] == list(range(2, 11))
    assert everything(history, TWO)[0].first_index == 100


def test_chunk_without_events_is_told_once() -> None:
    """It says how many are missing; those after it have indexes as if it were not there."""
    history = EventHistory()
    for number, one in enumerate((columns(2), EventColumns(lost_count=3), columns(1), EventColumns(lost_count=4)), 1):
        history.add(ONE, (number, number), [one])

    assert [chunk.columns.lost_count for chunk in everything(history, ONE)] == [0, 3, 0, 4]
    assert [chunk.first_index for chunk in everything(history, ONE)] == [0, 2, 2, 3]


def test_very_many_small_chunks_are_read_in_no_more_time_than_they_are_many() -> None:
    """It is done on the event loop: from the first of them each time, these would take ten seconds."""
    history = EventHistory()
    history.add(ONE, (1, 1), [columns(1)] * 60_000)

    began = time.process_time()
    assert len(everything(history, ONE)) == 60_000
    assert time.process_time() - began < 2


def test_others_are_served_while_chunks_are_passed_over() -> None:
    """A reader that goes on after a round has many of them before it."""

    async def run() -> int:
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        catalog = Catalog("0" * 32, Contents([], [], []))
        catalog.apply([started(ONE)])
        catalog.events.add(ONE, (1, 1), [columns(1)] * (100 * AT_ONCE))
        service = DirtyService(catalog, *cast("tuple[Any, Any, Any]", (None, None, None)))
        other = asyncio.create_task(take_turns())
        request = StreamEventsRequest(target=str(ONE.target), after_incarnation=ONE.incarnation, after_round=1)
        assert [chunk async for chunk in service._stream_events(request)] == []
        other.cancel()
        return turns

    assert asyncio.run(run()) > 50


def test_a_forgotten_target_leaves_nothing() -> None:
    """Its room is there for others, and the others keep theirs."""
    history = EventHistory(bytes_max=2 * columns(100).ByteSize())
    history.add(ONE, (1, 1), [columns(100)])
    history.add(TWO, (1, 1), [columns(100)])
    history.forget(ONE.target)
    history.add(TWO, (2, 2), [columns(100)])

    assert everything(history, ONE) == []
    assert [chunk.last_round for chunk in everything(history, TWO)] == [1, 2]


def read(reader: EventReader) -> list[tuple[int, int, int]]:
    """Give all that a reader takes: last rounds, how many events are there, and how many are missing before them."""
    found = []
    while taken := reader.take():
        found += [(chunk.last_round, len(chunk.columns.address) // 8, missing) for chunk, missing in taken]
    return found


def test_a_reader_goes_on_where_its_target_comes_back() -> None:
    """The numbers of its chunks begin again: those below where the reader stood were left out."""
    history = EventHistory()
    reader = EventReader(history, ONE.target)
    assert read(reader) == []
    history.add(ONE, (1, 1), [columns(2)])
    history.add(ONE, (2, 2), [columns(3)])
    assert read(reader) == [(1, 2, 0), (2, 3, 0)]
    history.add(ONE, (3, 3), [columns(4)])
    history.forget(ONE.target)
    history.add(ONE, (1, 1), [columns(5)])

    assert read(reader) == [(3, 0, 4), (1, 5, 0)]
    history.forget(ONE.target)
    assert read(reader) == []
    history.add(ONE, (1, 1), [columns(6)])
    assert read(reader) == [(1, 6, 0)]
    assert read(EventReader(history, ONE.target)) == [(1, 6, 0)]


def test_a_reader_is_told_of_what_is_forgotten_where_nothing_comes_after_it() -> None:
    """Whether it had begun before or after that, and once; to say nothing would be to say that nobody wrote."""
    history = EventHistory(bytes_max=columns(100).ByteSize())
    before = EventReader(history, ONE.target)
    history.add(ONE, (1, 1), [columns(1)])
    assert read(before) == [(1, 1, 0)]
    history.add(ONE, (2, 3), [columns(99)])
    history.add(TWO, (1, 1), [columns(100)])

    assert read(before) == [(3, 0, 99)]
    assert read(EventReader(history, ONE.target)) == [(3, 0, 100)]
    history.add(ONE, (4, 4), [columns(100)])
    assert read(before) == [(4, 100, 0)]
    assert read(EventReader(history, ONE.target)) == [(4, 100, 100)]


def test_a_follower_hears_of_its_target_that_was_forgotten_and_has_come_back() -> None:
    """It was asleep for all of that, and no event is missing."""

    async def run() -> tuple[int, int]:
        catalog = Catalog("0" * 32, Contents([], [], []))
        catalog.apply([started(ONE)])
        catalog.events.add(ONE, (1, 1), [columns(1)] * 9)
        service = DirtyService(catalog, *cast("tuple[Any, Any, Any]", (None, None, None)))
        stream = service._stream_events(StreamEventsRequest(target=str(ONE.target), follow=True))
        for _ in range(9):
            await anext(stream)
        following = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        ended = IncarnationEnded(ONE, END_REASON_LOST, 1, "")
        catalog.apply([ended, TargetForgotten(ONE), started(AGAIN)])
        catalog.events.add(AGAIN, (1, 1), [columns(2)])
        async with asyncio.timeout(20):
            told = await following
        return told.incarnation, told.forgotten_count

    assert asyncio.run(run()) == (AGAIN.incarnation, 0)
