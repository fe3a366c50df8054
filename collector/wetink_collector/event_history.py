"""The single writes that agents told of lately: in memory, within a bound, for whoever wants to see who writes.

Nothing depends on them: they are not durable, and the oldest go first where they are too many. A reader is told how
many it has missed.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from wetink.v1.types_pb2 import EventColumns
from wetink_collector import metrics
from wetink_collector.identity import IncarnationKey, TargetKey

HISTORY_BYTES_MAX: Final = 128 << 20
"""Bound on what is kept of all targets together: three to four million events."""

AT_ONCE: Final = 8
"""Chunks that are handed to a reader at once, each below a message's bound."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events of one message.

    ``number`` is how many chunks of the target came before it, since the start, and ``first_index`` how many events:
    some have none, and only say how many are missing.
    """

    number: int
    incarnation: int
    first_round: int
    last_round: int
    first_index: int
    columns: EventColumns

    @property
    def end_index(self) -> int:
        """Index of the event after its last."""
        return self.first_index + count(self.columns)


@dataclass(slots=True)
class Kept:
    """The chunks of a target by their numbers, which follow each other, until it is forgotten. Should it come back, it
    has others, with numbers from 0.

    ``last`` is of the newest, whether that is still kept or not: its incarnation, first and last round.
    """

    chunks: dict[int, Chunk] = field(default_factory=dict)
    first_number: int = 0
    end_number: int = 0
    end_index: int = 0
    last: tuple[int, int, int] = (0, 0, 0)

    def since(self, number: int) -> list[Chunk]:
        """Give the next few chunks from a number on: a reader that is slow holds no more than these."""
        first = max(number, self.first_number)
        return [self.chunks[one] for one in range(first, min(first + AT_ONCE, self.end_number))]


class EventHistory:
    """Keeps the newest events of all targets. Used on the event loop only."""

    def __init__(self, bytes_max: int = HISTORY_BYTES_MAX) -> None:
        """Begin with none, and keep no more than so many bytes."""
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._kept: defaultdict[TargetKey, Kept] = defaultdict(Kept)
        self._order: deque[TargetKey] = deque()

    def add(self, incarnation: IncarnationKey, rounds: tuple[int, int], columns: Sequence[EventColumns]) -> None:
        """Take the events of rounds, first and last, message by message."""
        for column in columns:
            kept = self._kept[incarnation.target]
            chunk = Chunk(kept.end_number, incarnation.incarnation, *rounds, kept.end_index, column)
            kept.chunks[chunk.number] = chunk
            kept.end_number, kept.end_index = chunk.number + 1, chunk.end_index
            kept.last = (chunk.incarnation, chunk.first_round, chunk.last_round)
            self._order.append(incarnation.target)
            self._size_bytes += column.ByteSize()
            metrics.EVENTS.inc(count(column))
            metrics.EVENTS_LOST.inc(column.lost_count)
            metrics.EVENTS_STREAM_ONLY.inc(column.stream_only_count)
            metrics.EVENTS_CENSUS_ONLY.inc(column.census_only_count)
        while self._size_bytes > self._bytes_max:
            self._drop(self._order.popleft())
        metrics.EVENTS_BYTES.set(self._size_bytes)

    def forget(self, target: TargetKey) -> None:
        """Drop what is kept of a target."""
        if kept := self._kept.pop(target, None):
            self._size_bytes -= sum(chunk.columns.ByteSize() for chunk in kept.chunks.values())
            self._order = deque(key for key in self._order if key != target)
            # Who reads them is still to hear how many there were.
            kept.chunks.clear()
            kept.first_number = kept.end_number

    def of(self, target: TargetKey) -> Kept | None:
        """Give what is kept of a target; None where nothing has come since it was forgotten, if it was."""
        return self._kept.get(target)

    def since(self, target: TargetKey, number: int) -> list[Chunk]:
        """Give the next few chunks of a target from a number on."""
        kept = self.of(target)
        return kept.since(number) if kept else []

    def _drop(self, target: TargetKey) -> None:
        # What came first of all came first of its target too.
        kept = self._kept[target]
        self._size_bytes -= kept.chunks.pop(kept.first_number).columns.ByteSize()
        kept.first_number += 1


class EventReader:
    """Reads the events of a target, also those after it was forgotten and has come back, and counts what it missed."""

    def __init__(self, history: EventHistory, target: TargetKey) -> None:
        """Begin with the oldest that is kept."""
        self._history = history
        self._target = target
        self._kept: Kept | None = None
        self._number = 0
        self._index = 0

    def take(self) -> list[tuple[Chunk, int]]:
        """Give the next few chunks, each with how many events before it, since the chunk before, are not kept any more.

        Where these are the last that came, they are told with a chunk that has no events. None where all is told.
        """
        kept = self._history.of(self._target)
        if kept is not self._kept and self._is_all_told():
            self._kept, self._number, self._index = kept, 0, 0
        if self._kept is None:
            return []
        chunks = self._kept.since(self._number)
        if not chunks and not self._is_all_told():
            chunks = [Chunk(self._kept.end_number - 1, *self._kept.last, self._kept.end_index, EventColumns())]
        told = []
        for chunk in chunks:
            told.append((chunk, chunk.first_index - self._index))
            self._number, self._index = chunk.number + 1, chunk.end_index
        return told

    def _is_all_told(self) -> bool:
        return self._kept is None or self._index == self._kept.end_index


def count(columns: EventColumns) -> int:
    """Give how many events columns hold."""
    return len(columns.address) // 8
