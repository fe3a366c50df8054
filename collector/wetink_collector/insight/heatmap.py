"""Address by time: how many unique pages of which part of memory were written when. Pure.

Columns are runs of whole rounds, so that no write is drawn at a time that nobody knows. Rows are parts of the memory
that is populated or was written; wide holes between them are folded away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink_collector.errors import MessageTooLarge
from wetink_collector.insight.history import KeptRounds, page_numbers

HOLE_PAGES_MIN: Final = 64
"""A hole of fewer pages is drawn as what it is, memory that nobody writes: 256 KiB."""

RUNS_MAX: Final = 1 << 22
"""Bound on the runs of adjacent pages that are looked at together: each takes some tens of bytes."""

LABELS_MAX: Final = 4
"""Bound on the mappings that one row names."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """What lies at some pages, from ``start`` to before ``end``."""

    start: int
    end: int
    name: str


@dataclass(frozen=True, slots=True)
class Row:
    """Some pages, from ``start`` to before ``end``, of which ``page_count`` are populated or were written."""

    start: int
    end: int
    page_count: int
    label: str


class KnownPages:
    """The pages that are drawn: those that are populated, or were written."""

    def __init__(self, pages: BitMap64, *, start: int, end: int) -> None:
        """Take those from ``start`` to before ``end``.

        Raises:
            MessageTooLarge: They lie in too many places.
        """
        starts, ends = _runs(pages)
        inside = (ends > np.uint64(start)) & (starts < np.uint64(end))
        self.starts = np.maximum(starts[inside], np.uint64(start)).astype(np.int64)
        self.ends = np.minimum(ends[inside], np.uint64(end)).astype(np.int64)
        self._counts = np.concatenate(([0], np.cumsum(self.ends - self.starts)))

    def below(self, page: int) -> int:
        """Give how many are below a page."""
        at = int(np.searchsorted(self.starts, page, side="right")) - 1
        return int(self._counts[at] + min(page, int(self.ends[at])) - self.starts[at]) if at >= 0 else 0


def columns(kept: Sequence[KeptRounds], count_max: int) -> list[Sequence[KeptRounds]]:
    """Put rounds into at most so many columns, as near to the same length of time as whole rounds allow.

    Args:
        kept: Adjacent, oldest first, at least one.
        count_max: At least 1.
    """
    begin, length = kept[0].since_ns, max(1, kept[-1].until_ns - kept[0].since_ns)
    found: dict[int, list[KeptRounds]] = {}
    for one in kept:
        # The middle of a long stretch is where it counts.
        middle = (one.since_ns + one.until_ns) // 2 - begin
        found.setdefault(min(count_max - 1, max(0, middle * count_max // length)), []).append(one)
    return [some for _, some in sorted(found.items())]


def rows(known: KnownPages, count_max: int, mappings: Sequence[Mapping] = ()) -> list[Row]:
    """Cut memory into at most so many rows, as near to the same size as holes and mappings allow.

    Args:
        known: What is drawn.
        count_max: At least 1.
        mappings: What lies where, ascending; none where that is not known.

    Returns:
        The rows, ascending; none where nothing is drawn.
    """
    if not known.starts.size:
        return []
    regions = _regions(known, count_max, mappings)
    room = count_max - len(regions)
    total = sum(end - start for start, end in regions)
    found: list[Row] = []
    for start, end in regions:
        size = -(-(end - start) // (1 + room * (end - start) // total))
        for first in range(start, end, size):
            last = min(end, first + size)
            count = known.below(last) - known.below(first)
            if count:
                found.append(Row(first, last, count, _label(mappings, first, last)))
    return found


def counts(columns: Iterable[BitMap64], rows: Sequence[Row]) -> NDArray[np.uint32]:
    """Give how many of each column's pages are in each row, as far as the contract counts: an array of rows by columns.

    Raises:
        MessageTooLarge: They lie in too many places.
    """
    starts = np.array([row.start for row in rows], np.uint64)
    ends = np.array([row.end for row in rows], np.uint64)
    found = []
    for pages in columns:
        runs = _runs(pages)
        found.append(np.minimum(_below(runs, ends) - _below(runs, starts), _UINT32_MAX))
    return np.array(found, np.uint32).reshape(len(found), len(rows)).T


_UINT32_MAX: Final = (1 << 32) - 1

_Runs: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint64]]


def _runs(pages: BitMap64) -> _Runs:
    """Give the first page of each run, and the page after its last, both ascending; in memory by them, not by pages."""
    moved = pages.shift(1)
    firsts, ends = pages - moved, moved - pages
    if len(firsts) > RUNS_MAX:
        message = (
            f"the pages to be drawn lie in {len(firsts)} places, and at most {RUNS_MAX} can be looked at; "
            "ask for a shorter time, or draw another target"
        )
        raise MessageTooLarge(message)
    return page_numbers(firsts), page_numbers(ends)


def _below(runs: _Runs, pages: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Give for each of some pages how many in runs are below it."""
    starts, ends = runs
    if not starts.size:
        return np.zeros(pages.size, np.uint64)
    before = np.concatenate((np.zeros(1, np.uint64), np.cumsum(ends - starts)))
    begun = np.searchsorted(starts, pages)
    last = np.maximum(begun - 1, 0)
    return np.where(begun > 0, before[last] + np.minimum(pages, ends[last]) - starts[last], np.uint64(0))


def _regions(known: KnownPages, count_max: int, mappings: Sequence[Mapping]) -> list[tuple[int, int]]:
    """Cut at the widest holes, and where mappings begin if that leaves room."""
    holes = known.starts[1:] - known.ends[:-1]
    wide = np.flatnonzero(holes >= HOLE_PAGES_MIN)
    if wide.size >= count_max:
        widest = np.argsort(holes[wide], kind="stable")[wide.size - count_max + 1 :]
        wide = np.sort(wide[widest])
    firsts = known.starts[np.concatenate(([0], wide + 1))]
    lasts = known.ends[np.concatenate((wide, [known.ends.size - 1]))]
    regions = list(zip(firsts.tolist(), lasts.tolist(), strict=True))
    cut = [part for region in regions for part in _cut(region, mappings)]
    return cut if len(cut) <= count_max // 2 else regions


def _cut(region: tuple[int, int], mappings: Sequence[Mapping]) -> list[tuple[int, int]]:
    """Cut a region where what lies there gets another name."""
    start, end = region
    edges = [start]
    before = None
    for mapping in mappings:
        if mapping.start < end and mapping.end > start:
            if before is not None and mapping.name != before:
                edges.append(max(start, mapping.start))
            before = mapping.name
    edges = sorted({*edges, end})
    return list(pairwise(edges))


def _label(mappings: Sequence[Mapping], start: int, end: int) -> str:
    names = dict.fromkeys(
        mapping.name for mapping in mappings if mapping.name and mapping.start < end and mapping.end > start
    )
    some = list(names)[:LABELS_MAX]
    return ", ".join(some if len(some) == len(names) else [*some, "..."])
