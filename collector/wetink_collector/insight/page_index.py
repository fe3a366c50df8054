"""When each page was written last, and how often: what a working set is counted from, page by page.

Pages are kept in rows of 512 that lie beside each other in memory, so that a round of ten thousand pages is a few
operations on arrays. A page that was never written has no entry, unless a neighbour has one.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

ROW_BITS: Final = 9
"""A row is 512 pages, 2 MiB of a target's memory: writers seldom touch one page alone of so many."""

ROW_PAGES: Final = 1 << ROW_BITS

_ROWS_KEPT: Final = 4
"""So few rows are not worth forgetting any: 16 KiB. Of thousands of targets most have no more."""

_AT_ONCE: Final = 1 << 16
"""So many pages are looked up together: what is needed besides for each of them takes four times as much as it."""


class PageIndex:
    """Stretches of rounds are numbered from 1; a page that was written in none has 0."""

    def __init__(self) -> None:
        """Know of no page."""
        # Chunks of the address space in ascending order, and the row that each has.
        self._chunks = np.empty(0, np.uint64)
        self._rows = np.empty(0, np.int64)
        self._last = np.zeros((0, ROW_PAGES), np.uint32)
        self._least = np.zeros((0, ROW_PAGES), np.uint32)
        # The same array while every stretch is one round.
        self._most = self._least

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return self._rows.size

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        columns = 2 if self._most is self._least else 3
        return len(self._last) * ROW_PAGES * 4 * columns + len(self._chunks) * 16

    def write(self, pages: NDArray[np.uint64], *, stretch: int, round_count: int) -> NDArray[np.uint32]:
        """Note that pages were written in a stretch.

        Args:
            pages: Page numbers, ascending, each once.
            stretch: Its number, above those of all before.
            round_count: How many rounds it has: each page was written in at least one of them, and at most in all.

        Returns:
            In which stretch each page was written last before this; 0 for none.
        """
        if round_count > 1:
            self._tell_apart()
        before = np.empty(pages.size, np.uint32)
        for begin in range(0, pages.size, _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            places = self._places(pages[some])
            before[some] = self._last.reshape(-1)[places]
            self._last.reshape(-1)[places] = stretch
            self._least.reshape(-1)[places] += np.uint32(1)
            if self._most is not self._least:
                self._most.reshape(-1)[places] += np.uint32(round_count)
        return before

    def maybe_write(self, pages: NDArray[np.uint64], *, round_count: int) -> None:
        """Note that pages may have been written in some rounds, and were gone after them."""
        self._tell_apart()
        for begin in range(0, pages.size, _AT_ONCE):
            places = self._places(pages[begin : begin + _AT_ONCE])
            self._most.reshape(-1)[places] += np.uint32(round_count)

    def written(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
        """Give each page that was written, ascending: its last stretch, and in how many rounds at least and at most."""
        rows = self._last[self._rows]
        row, column = np.nonzero(rows)
        pages = (self._chunks[row] << np.uint64(ROW_BITS)) + column.astype(np.uint64)
        at = self._rows[row], column
        return pages, rows[row, column], self._least[at], self._most[at]

    def forget_coldest(self) -> int:
        """Free the half of the rows that were written longest ago, if it is worth it.

        Returns:
            The stretch up to which nothing may be concluded any more from a page that is not here. 0 where none was
            freed.
        """
        if self._rows.size <= _ROWS_KEPT:
            return 0
        newest = self._last[self._rows].max(axis=1)
        middle = (newest.size - 1) // 2
        horizon = int(np.partition(newest, middle)[middle])
        kept = newest > horizon
        rows = self._rows[kept]
        self._take(rows, rows.size)
        self._chunks, self._rows = self._chunks[kept], np.arange(rows.size)
        return horizon

    def _tell_apart(self) -> None:
        if self._most is self._least:
            self._most = self._least.copy()

    def _take(self, rows: NDArray[np.int64], capacity: int) -> None:
        """Move rows to the beginning of arrays with another capacity."""
        is_same = self._most is self._least
        self._last, self._least, most = (
            _grown(array, rows, capacity) for array in (self._last, self._least, self._most)
        )
        self._most = self._least if is_same else most

    def _places(self, pages: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Give where pages, at least one, are in the flat arrays; rows are made for those that have none."""
        chunks = pages >> np.uint64(ROW_BITS)
        begins = np.concatenate(([0], np.flatnonzero(chunks[1:] != chunks[:-1]) + 1))
        lengths = np.diff(np.concatenate((begins, [chunks.size])))
        rows = self._rows_of(chunks[begins])
        return np.repeat(rows << ROW_BITS, lengths) + (pages & np.uint64(ROW_PAGES - 1)).astype(np.int64)

    def _rows_of(self, chunks: NDArray[np.uint64]) -> NDArray[np.int64]:
        at = np.searchsorted(self._chunks, chunks)
        known = np.zeros(chunks.size, np.bool_)
        inside = at < self._chunks.size
        known[inside] = self._chunks[at[inside]] == chunks[inside]
        if not known.all():
            fresh = chunks[~known]
            self._chunks, self._rows = self._with(fresh, at[~known])
            at = np.searchsorted(self._chunks, chunks)
        return self._rows[at]

    def _with(self, fresh: NDArray[np.uint64], at: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        used = self._rows.size
        needed = used + fresh.size
        if needed > len(self._last):
            self._take(np.arange(used), max(needed, 2 * len(self._last)))
        return np.insert(self._chunks, at, fresh), np.insert(self._rows, at, np.arange(used, needed))


def row_count(pages: NDArray[np.uint64]) -> int:
    """Give in how many rows pages are, which ascend."""
    rows = pages >> np.uint64(ROW_BITS)
    return int(np.count_nonzero(rows[1:] != rows[:-1])) + min(1, rows.size)


def _grown(array: NDArray[np.uint32], rows: NDArray[np.int64], capacity: int) -> NDArray[np.uint32]:
    # Zeroed pages come from the kernel when they are touched: what is not used yet costs nothing.
    grown = np.zeros((capacity, ROW_PAGES), array.dtype)
    grown[: rows.size] = array[rows]
    return grown
