"""Which pages are hot, and in which order to send all of them. Pure."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink_collector.insight.history import WrittenPages, page_numbers


@dataclass(frozen=True, slots=True)
class HotRun:
    """Adjacent pages that were written in as many rounds each, and last in the same."""

    page: int
    page_count: int
    rounds_least: int
    rounds_most: int
    last_until_ns: int


@dataclass(frozen=True, slots=True)
class ColdClass:
    """Pages to be sent before those of all later classes.

    ``last_until_ns`` is the end of the rounds in which the last of them was written; 0 where none was.
    """

    pages: BitMap64
    last_until_ns: int
    mean_rounds: float


def hottest(written: WrittenPages, limit: int, *, by_age: bool) -> list[HotRun]:
    """Give the hottest pages, the hottest first; adjacent ones of which the same is true together.

    Args:
        written: Every page that was written.
        limit: How many pages at most.
        by_age: Whether by the time of the last write, and not by the number of rounds.
    """
    age, often = written.last_until_ns, written.rounds_least.astype(np.int64)
    first, second = (age, often) if by_age else (often, age)
    candidates = _not_below_rank(first, limit)
    order = np.lexsort((written.pages[candidates], -second[candidates], -first[candidates]))[:limit]
    chosen = candidates[order]
    pages, most = written.pages[chosen].astype(np.int64), written.rounds_most[chosen]
    columns = (pages - np.arange(pages.size), often[chosen], most, age[chosen])
    return [
        HotRun(
            page=int(pages[begin]),
            page_count=end - begin,
            rounds_least=int(often[chosen[begin]]),
            rounds_most=int(most[begin]),
            last_until_ns=int(age[chosen[begin]]),
        )
        for begin, end in _runs(columns)
    ]


def coldest_first(populated: BitMap64, written: WrittenPages, class_count: int) -> Iterator[ColdClass]:
    """Put populated pages into classes, in the order of sending.

    Args:
        populated: All pages that are to be sent.
        written: Every page that was written, also those that are not populated any more.
        class_count: How many classes at most, at least 2.
    """
    # Page by page only those that were written: of the others there may be as many as a host has memory.
    known = _bitmap(written.pages)
    if never := populated - known:
        yield ColdClass(never, 0, 0.0)
    pages = page_numbers(populated & known)
    at = np.searchsorted(written.pages, pages)
    times = written.last_until_ns[at]
    for low, high in _classes(times, class_count - 1):
        inside = (times >= low) & (times <= high)
        rounds = written.rounds_least[at[inside]]
        yield ColdClass(_bitmap(pages[inside]), high, float(rounds.mean()))


def _not_below_rank(values: NDArray[np.int64], rank: int) -> NDArray[np.int64]:
    """Give the places of the largest values: no fewer than the rank, and with all that are like the last of these."""
    if values.size <= rank:
        return np.arange(values.size)
    least = np.partition(values, values.size - rank)[values.size - rank]
    return np.flatnonzero(values >= least)


def _runs(columns: tuple[NDArray[np.int64] | NDArray[np.uint32], ...]) -> Iterator[tuple[int, int]]:
    """Give the runs in which no column changes."""
    size = columns[0].size
    if not size:
        return
    changes = np.zeros(size - 1, np.bool_)
    for column in columns:
        changes |= column[1:] != column[:-1]
    edges = np.concatenate(([0], np.flatnonzero(changes) + 1, [size])).tolist()
    yield from pairwise(edges)


def _classes(times: NDArray[np.int64], count: int) -> Iterator[tuple[int, int]]:
    """Cut times into ranges that hold about as many each; equal times are never parted."""
    if not times.size:
        return
    ordered = np.sort(times)
    before = np.concatenate(([0], np.flatnonzero(np.diff(ordered)) + 1))
    distinct = ordered[before]
    # What is before a time, in shares of all, says which class the time is in.
    number = before * count // times.size
    edges = np.concatenate(([0], np.flatnonzero(np.diff(number)) + 1, [distinct.size]))
    for begin, end in pairwise(edges.tolist()):
        yield int(distinct[begin]), int(distinct[end - 1])


def _bitmap(pages: NDArray[np.uint64]) -> BitMap64:
    # An array of the standard library is taken many times faster than one of numpy.
    return BitMap64(array("Q", pages.tobytes()))
