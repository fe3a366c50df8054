"""Runs of pages as numpy arrays, and their way into page sets: the step between the kernel's answer and a bitmap.

Source of the choice between runs and single pages: our benchmark ``tests/bench``.
"""

from array import array
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

_PAGES_PER_RUN_MIN: Final = 8
"""From this many pages a run on, adding runs one by one beats handing over single pages in bulk."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Ascending runs of pages, ``starts`` and ``ends`` (the page after the last), that neither overlap nor touch."""

    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]

    def same_as(self, other: "Runs") -> bool:
        """Whether both hold the same pages."""
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.ends, other.ends)

    def page_count(self) -> int:
        """How many pages they hold."""
        return int((self.ends - self.starts).sum())

    def to_set(self) -> BitMap64:
        """Make the set of their pages."""
        sizes = self.ends - self.starts
        count = int(sizes.sum())
        if self.starts.size * _PAGES_PER_RUN_MIN <= count:
            pages = BitMap64()
            for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
                pages.add_range(start, end)
            return pages
        numbers = array("Q")
        numbers.frombytes(_expand(self.starts, sizes, count).tobytes())
        return BitMap64(numbers)


def adjacent_runs(starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Runs:
    """Join runs that touch.

    Args:
        starts: Ascending first pages.
        ends: The page after each last one; no run overlaps the next.
    """
    if not starts.size:
        return Runs(starts, ends)
    breaks = starts[1:] != ends[:-1]
    return Runs(starts[np.concatenate(([True], breaks))], ends[np.concatenate((breaks, [True]))])


def _expand(starts: NDArray[np.uint64], sizes: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """List every page of the runs."""
    if count == starts.size:
        return starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes.astype(np.intp)) + np.arange(count, dtype=np.uint64)
