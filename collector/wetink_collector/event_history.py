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
class _Kept:
    """The chunks of a target by their numbers, which follow each other."""

    chunks: dict[int, Chunk] = field(default_factory=dict)
    first_number: int = 0
    end_number: int = 0
    end_index: int = 0


class EventHistory:
    """Keeps the newest events of all targets. Used on the event loop only."""

    def __init__(self, bytes_max: int = HISTORY_BYTES_MAX) -> None:
        """Begin with none, and keep no more than so many bytes."""
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._kept: defaultdict[TargetKey, _Kept] = defaultdict(_Kept)
        self._order: deque[TargetKey] = deque()

    def add(self, incarnation: IncarnationKey, rounds: tuple[int, int], columns: Sequence[EventColumns]) -> None:
        """Take the events of rounds, first and last, message by message."""
        for column in columns:
            kept = self._kept[incarnation.target]
            chunk = Chunk(kept.end_number, incarnation.incarnation, *rounds, kept.end_index, column)
            kept.chunks[chunk.number] = chunk
            kept.end_number, kept.end_index = chunk.number + 1, chunk.end_index
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

    def since(self, target: TargetKey, number: int) -> list[Chunk]:
        """Give the next few chunks of a target from a number on: a reader that is slow holds no more than these."""
        kept = self._kept.get(target)
        if kept is None:
            return []
        first = max(number, kept.first_number)
        return [kept.chunks[one] for one in range(first, min(first + AT_ONCE, kept.end_number))]

    def _drop(self, target: TargetKey) -> None:
        # What came first of all came first of its target too.
        kept = self._kept[target]
        self._size_bytes -= kept.chunks.pop(kept.first_number).columns.ByteSize()
        kept.first_number += 1


def count(columns: EventColumns) -> int:
    """Give how many events columns hold."""
    return len(columns.address) // 8
