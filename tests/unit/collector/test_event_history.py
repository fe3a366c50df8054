"""The history of events: the newest are kept, within the bound, and indexes say what is missing."""

import asyncio
import time
from typing import Any, cast

from tests.unit.collector.changes import started
from wetink.v1.dirty_pb2 import StreamEventsRequest
from wetink.v1.types_pb2 import EventColumns
from wetink_collector.catalog import Catalog
from wetink_collector.dirty import DirtyService
from wetink_collector.event_history import AT_ONCE, Chunk, EventHistory
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.store.interface import Contents

ONE = IncarnationKey(TargetKey("host-1", "boot-1", 1, 100), 5)
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
