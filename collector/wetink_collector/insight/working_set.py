"""W(T): how many unique pages are written in windows of length T, kept up with each round and never counted again.

The pages written in the window from a stretch to now are those whose last write is in it. So it is enough to count
pages by the stretch of their last write: with each new stretch its pages move to it, and the sums over the newest
stretches are the working sets of all windows that end now.

A window is a run of whole stretches. For each length of a grid and each end, it is the run that comes nearest to the
length, if any comes near: so a window has one end and one length, and rounds need not be equally long.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

GRID_STEPS_A_DOUBLING: Final = 4
"""From one T of the grid to the next it is a fifth more: a straight line between two is then a few per cent off."""

GRID_NS: Final = np.rint(1e6 * 2.0 ** (np.arange(140) / GRID_STEPS_A_DOUBLING)).astype(np.int64)
"""From a millisecond, below which no round lasts, to a year."""

_EDGES: Final = np.rint(1e6 * 2.0 ** ((np.arange(141) - 0.5) / GRID_STEPS_A_DOUBLING)).astype(np.int64)
SHORTEST_NS: Final = _EDGES[:-1]
"""A run is near to a T when it lasts no less than this, and less than the next T's."""

STARTS_MAX: Final = 4096
"""Bound on the places where a window may begin: each round of the last hour at one a second, and fewer older ones."""

ENDS_MAX: Final = 4096
"""Bound on the windows that are kept of each T: those that end in the last hour at a round a second. Some 40 lengths
take a megabyte and a half then."""

ENDS_MIN: Final = 256
"""So many are kept also where memory is short: a 95th percentile takes some."""

_FIRST: Final = 16

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Stretch:
    """One round, or several merged, after the first of an incarnation.

    Attributes:
        first_round: Its first round.
        until_ns: The as-of time of its last round.
        written: Its pages, by the stretch of their last write before it; 0 for none.
        doubtful_count: Pages of it that may have been written before it, and not in it.
        vanished_count: Pages that may have been written in it, and were gone at its end.
        early_count: Pages of it that may have been written before it began. Windows that begin earlier have them.
        late_count: Pages that may have been written in it, and come in the next one.
    """

    first_round: int
    until_ns: int
    written: NDArray[np.uint32]
    doubtful_count: int = 0
    vanished_count: int = 0
    early_count: int = 0
    late_count: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of numbers of pages, one for each window."""

    mean: float
    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class Point:
    """W(T) for one T: no window had more than ``most`` says, and none fewer than ``least``."""

    window_ns: int
    window_count: int
    most: Statistics
    least: Statistics

    @property
    def exact(self) -> bool:
        """Whether they are the same."""
        return self.most == self.least


class WorkingSet:
    """The working sets of one incarnation: of all windows that end with one of its last stretches."""

    def __init__(self, since_ns: int, *, starts_max: int = STARTS_MAX, ends_max: int = ENDS_MAX) -> None:
        """Begin before the first stretch.

        Args:
            since_ns: Writes after this are in the first stretch.
            starts_max: Bound on the beginnings of windows, at least 4.
            ends_max: Bound on the windows that are kept of each T.
        """
        self._starts_max = starts_max
        self._ends_max = ends_max
        self._until_ns = since_ns
        self._stretch = 0
        self._late_count = 0
        # One cell for each beginning: it holds what was written last from there to the next beginning.
        self._cells = _Cells()
        self._rings: dict[int, _Ring] = {}

    @property
    def stretch(self) -> int:
        """The number of the last stretch, from 1. 0 means none."""
        return self._stretch

    @property
    def forgot_all(self) -> bool:
        """Whether no window begins yet after what was forgotten: of single pages nothing is known then."""
        return self._stretch > 0 and not self._cells.size

    @property
    def since_ns(self) -> int:
        """Where the longest window begins."""
        return int(self._cells.begins_ns[0]) if self._cells.size else self._until_ns

    @property
    def first_round(self) -> int:
        """The first round of the longest window. 0 means that there is none."""
        return self._cells.first_round

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self._cells.size_bytes + sum(ring.size_bytes for ring in self._rings.values())

    def add(self, stretch: Stretch) -> None:
        """Take the next stretch."""
        self._stretch += 1
        # Clocks may be set back, and rounds may be asked for in one moment; a window has a length.
        until_ns = max(stretch.until_ns, self._until_ns + 1)
        if self._cells.size >= self._starts_max:
            self._cells.thin()
        self._cells.add(self._until_ns, self._stretch, stretch)
        self._until_ns = until_ns
        self._late_count = stretch.late_count
        self._measure()

    def forget(self, horizon: int) -> None:
        """Let no window begin at or before a stretch: of what was written then, not everything is known any more."""
        self._cells.forget(horizon)

    def halve(self) -> bool:
        """Keep half of the windows; say whether there was anything to gain."""
        before = self.size_bytes
        while self._ends_max > ENDS_MIN and self.size_bytes == before:
            self._ends_max = max(ENDS_MIN, self._ends_max // 2)
            for ring in self._rings.values():
                ring.limit(self._ends_max)
        return self.size_bytes < before

    @property
    def has_windows(self) -> bool:
        """Whether any window was as long as the shortest T."""
        return bool(self._rings)

    def points(self) -> list[Point]:
        """Give W(T), by ascending T."""
        return [ring.point() for _, ring in sorted(self._rings.items()) if ring.count]

    def means(self) -> list[tuple[float, float]]:
        """Give the mean of W(T), by ascending T in nanoseconds: the same as in ``points``, but much faster."""
        return [ring.mean() for _, ring in sorted(self._rings.items()) if ring.count]

    def writable(self) -> tuple[int, int]:
        """Give how many pages were written in the longest window, at least and at most.

        Where all windows were forgotten that might go on, it is the one that had most.
        """
        if not self._cells.size:
            points = self.points()
            return max((one.least.max for one in points), default=0), max((one.most.max for one in points), default=0)
        least, most = self._cells.sums(self._late_count)
        return int(least[0]), int(most[0])

    def _measure(self) -> None:
        """Note the windows that end now."""
        begins_ns = self._cells.begins_ns
        lengths_ns = self._until_ns - begins_ns
        nearest = _nearest(lengths_ns, GRID_NS)
        spans_ns = lengths_ns[nearest]
        grid = np.flatnonzero((spans_ns >= _EDGES[:-1]) & (spans_ns < _EDGES[1:]))
        least, most = self._cells.sums(self._late_count)
        at = nearest[grid]
        for place, span_ns, low, high in zip(
            grid.tolist(), spans_ns[grid].tolist(), least[at].tolist(), most[at].tolist(), strict=True
        ):
            ring = self._rings.get(place)
            if ring is None:
                ring = self._rings[place] = _Ring(self._ends_max)
            ring.add(span_ns, low, high)


class _Cells:
    """Pages by the stretch of their last write, in cells that each begin where a window may begin."""

    def __init__(self) -> None:
        self.size = 0
        self._begins_ns = np.zeros(_FIRST, np.int64)
        self._rounds = np.zeros(_FIRST, np.int64)
        self._stretches = np.zeros(_FIRST, np.int64)
        self._pages = np.zeros(_FIRST, np.int64)
        self._doubtful = np.zeros(_FIRST, np.int64)
        self._vanished = np.zeros(_FIRST, np.int64)
        self._early = np.zeros(_FIRST, np.int64)

    @property
    def begins_ns(self) -> NDArray[np.int64]:
        return self._begins_ns[: self.size]

    @property
    def first_round(self) -> int:
        return int(self._rounds[0]) if self.size else 0

    @property
    def size_bytes(self) -> int:
        return len(self._begins_ns) * 56

    def add(self, begin_ns: int, number: int, stretch: Stretch) -> None:
        if self.size == len(self._begins_ns):
            self._resize(slice(0, self.size), 2 * self.size)
        last = self.size
        self.size += 1
        self._begins_ns[last] = begin_ns
        self._rounds[last] = stretch.first_round
        self._stretches[last] = number
        self._pages[last] = len(stretch.written)
        self._doubtful[last] = stretch.doubtful_count
        self._vanished[last] = stretch.vanished_count
        self._early[last] = stretch.early_count
        # Pages that were last written before the first cell are in none.
        known = stretch.written[stretch.written >= self._stretches[0]]
        at = np.searchsorted(self._stretches[: self.size], known, side="right") - 1
        self._pages[: self.size] -= np.bincount(at, minlength=self.size)

    def sums(self, late_count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the pages written from each beginning to now, at least and at most."""
        pages, doubtful, vanished = (
            np.cumsum(array[: self.size][::-1])[::-1] for array in (self._pages, self._doubtful, self._vanished)
        )
        return np.maximum(pages - doubtful - self._early[: self.size], 0), pages + vanished + late_count

    def thin(self) -> None:
        """Join the cells of the older half in pairs."""
        older = self.size // 4 * 2
        for array in (self._pages, self._doubtful, self._vanished):
            array[: older // 2] = array[0:older:2] + array[1:older:2]
            array[older // 2 : self.size - older // 2] = array[older : self.size]
        for array in (self._begins_ns, self._rounds, self._stretches, self._early):
            array[: older // 2] = array[0:older:2]
            array[older // 2 : self.size - older // 2] = array[older : self.size]
        self.size -= older // 2

    def forget(self, horizon: int) -> None:
        first = int(np.searchsorted(self._stretches[: self.size], horizon, side="right"))
        self._resize(slice(first, self.size), max(_FIRST, self.size - first))
        self.size -= first

    def _resize(self, kept: slice, capacity: int) -> None:
        for name in ("_begins_ns", "_rounds", "_stretches", "_pages", "_doubtful", "_vanished", "_early"):
            setattr(self, name, _resized(getattr(self, name)[kept], capacity))


class _Ring:
    """The newest windows of one T."""

    def __init__(self, limit: int) -> None:
        self.count = 0
        self._limit = limit
        self._next = 0
        self._spans_sum_ns = 0.0
        self._most_sum = 0
        self._spans_ns = np.zeros(min(_FIRST, limit), np.float32)
        self._most = np.zeros(min(_FIRST, limit), np.uint32)
        # The same array while every window is exact.
        self._least = self._most

    @property
    def size_bytes(self) -> int:
        return len(self._spans_ns) * (8 if self._least is self._most else 12)

    def add(self, span_ns: int, least: int, most: int) -> None:
        if self.count == len(self._spans_ns) < self._limit:
            self._resize(min(self._limit, 2 * self.count))
        if least != most and self._least is self._most:
            self._least = self._most.copy()
        if self.count == len(self._spans_ns):
            self._spans_sum_ns -= float(self._spans_ns[self._next])
            self._most_sum -= int(self._most[self._next])
        self._spans_ns[self._next] = span_ns
        self._least[self._next] = min(least, _UINT32_MAX)
        self._most[self._next] = min(most, _UINT32_MAX)
        # As they are kept: what is taken away later is what was added.
        self._spans_sum_ns += float(self._spans_ns[self._next])
        self._most_sum += int(self._most[self._next])
        self._next = (self._next + 1) % min(self._limit, len(self._spans_ns))
        self.count = min(self.count + 1, len(self._spans_ns))

    def limit(self, count: int) -> None:
        """Keep the newest, so many at most."""
        self._limit = count
        if len(self._spans_ns) > count:
            self._resize(count)

    def mean(self) -> tuple[float, float]:
        """Give the mean length in nanoseconds, and the mean number of pages at most."""
        return self._spans_sum_ns / self.count, self._most_sum / self.count

    def point(self) -> Point:
        return Point(
            window_ns=round(self._spans_sum_ns / self.count),
            window_count=self.count,
            most=(most := statistics(self._most[: self.count])),
            least=most if self._least is self._most else statistics(self._least[: self.count]),
        )

    def _resize(self, capacity: int) -> None:
        # Oldest first from now on.
        order = np.arange(self._next - self.count, self._next)[-capacity:]
        self.count = len(order)
        self._spans_ns = _resized(self._spans_ns[order], capacity)
        exact = self._least is self._most
        least, self._most = self._least[order], _resized(self._most[order], capacity)
        self._least = self._most if exact else _resized(least, capacity)
        self._next = self.count % capacity
        self._spans_sum_ns = float(self._spans_ns.sum(dtype=np.float64))
        self._most_sum = int(self._most.sum(dtype=np.int64))


_UINT32_MAX: Final = (1 << 32) - 1


def statistics(values: NDArray[np.uint32]) -> Statistics:
    """Describe numbers, at least one: percentiles are the least that so many do not exceed."""
    ordered = np.sort(values)
    return Statistics(
        mean=float(ordered.mean()),
        p50=int(ordered[_rank(len(ordered), 50)]),
        p95=int(ordered[_rank(len(ordered), 95)]),
        max=int(ordered[-1]),
    )


def _rank(count: int, per_cent: int) -> int:
    return -(-count * per_cent // 100) - 1


def _nearest(lengths: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give for each wanted length the place of the one that is nearest; of two the longer.

    Args:
        lengths: Descending, at least one.
        wanted: In any order.
    """
    ascending = lengths[::-1]
    above = np.minimum(np.searchsorted(ascending, wanted), ascending.size - 1)
    below = np.maximum(above - 1, 0)
    nearer_below = wanted - ascending[below] < np.abs(ascending[above] - wanted)
    return ascending.size - 1 - np.where(nearer_below, below, above)


def _resized(array: NDArray[_Number], capacity: int) -> NDArray[_Number]:
    resized = np.zeros(capacity, array.dtype)
    resized[: len(array)] = array
    return resized
