"""The history of events: the newest are kept, within the bound, and indexes say what is missing."""

from wetink.v1.types_pb2 import EventColumns
from wetink_collector.event_history import AT_ONCE, Chunk, EventHistory
from wetink_collector.identity import IncarnationKey, TargetKey

ONE = IncarnationKey(TargetKey("host-1", "boot-1", 1, 100), 5)
TWO = IncarnationKey(TargetKey("host-1", "boot-1", 2, 100), 5)


def columns(count: int) -> EventColumns:
    """Give so many events."""
    return EventColumns(address=bytes(8 * count))


def everything(history: EventHistory, of: IncarnationKey, index: int = 0) -> list[Chunk]:
    """Give all chunks of a target from an index on."""
    chunks: list[Chunk] = []
    while more := history.since(of.target, index):
        assert len(more) <= AT_ONCE
        chunks += more
        index = more[-1].end_index
    return chunks


def test_chunks_come_in_order_and_from_an_index_on() -> None:
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


def test_a_forgotten_target_leaves_nothing() -> None:
    """Its room is there for others, and the others keep theirs."""
    history = EventHistory(bytes_max=2 * columns(100).ByteSize())
    history.add(ONE, (1, 1), [columns(100)])
    history.add(TWO, (1, 1), [columns(100)])
    history.forget(ONE.target)
    history.add(TWO, (2, 2), [columns(100)])

    assert everything(history, ONE) == []
    assert [chunk.last_round for chunk in everything(history, TWO)] == [1, 2]
