"""The single writes that agents told of lately: in memory, within a bound, for whoever wants to see who writes.

Nothing depends on them: they are not durable, and the oldest go first where they are too many. A reader is told how
many it has missed.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
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
    """Events of one message. ``first_index`` is how many events of the target came before it, since the start."""

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
    chunks: deque[Chunk] = field(default_factory=deque)
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
            chunk = Chunk(incarnation.incarnation, *rounds, kept.end_index, column)
            kept.chunks.append(chunk)
            kept.end_index = chunk.end_index
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
            self._size_bytes -= sum(chunk.columns.ByteSize() for chunk in kept.chunks)
            self._order = deque(key for key in self._order if key != target)

    def since(self, target: TargetKey, index: int) -> list[Chunk]:
        """Give the next few chunks of a target from an index on: a reader that is slow holds no more than these."""
        kept = self._kept.get(target)
        return list(islice((chunk for chunk in kept.chunks if chunk.first_index >= index), AT_ONCE)) if kept else []

    def _drop(self, target: TargetKey) -> None:
        # What came first of all came first of its target too.
        self._size_bytes -= self._kept[target].chunks.popleft().columns.ByteSize()


def count(columns: EventColumns) -> int:
    """Give how many events columns hold."""
    return len(columns.address) // 8
