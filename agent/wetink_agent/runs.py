"""Runs of pages as numpy arrays, and their way into page sets: the step between the kernel's answer and a bitmap.

Handing single pages to the bitmap library costs 14 to 44 ns each, several times what the kernel takes to find them. So
the containers of the portable serialization are laid out here, by numpy and all at once, and the library reads them.

Source: the RoaringFormatSpec; our benchmark ``tests/bench``.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

_PAGES_PER_RUN_MIN: Final = 8
"""From this many pages a run on, adding runs one by one beats laying out containers."""

# Of the RoaringFormatSpec: a container holds the pages that share all but the low 16 bits, as a sorted array of those
# bits or, from so many pages on, as a bitset; a bucket holds the containers that share the high 32 bits.
_CONTAINER_BITS: Final = np.uint64(16)
_CONTAINER_PAGES: Final = 1 << 16
_ARRAY_PAGES_MAX: Final = 4096
_COOKIE_NO_RUNS: Final = 12346

_BITSETS_AT_ONCE: Final = 16
"""Bitsets that are made together, 1 MiB of numpy's bools: few calls, and all of it in the cache."""


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
        if self.starts.size * _PAGES_PER_RUN_MIN <= self.page_count():
            pages, by_run = BitMap64(), np.arange(self.starts.size)
        else:
            across = self.starts >> _CONTAINER_BITS != (self.ends - _ONE) >> _CONTAINER_BITS
            by_run = np.flatnonzero(across)
            if by_run.size:
                within = np.flatnonzero(~across)
                pages = _lay_out(self.starts.take(within), self.ends.take(within))
            else:
                pages = _lay_out(self.starts, self.ends)
        for start, end in zip(self.starts[by_run].tolist(), self.ends[by_run].tolist(), strict=True):
            pages.add_range(start, end)
        return pages


def adjacent_runs(starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Runs:
    """Join runs that touch.

    Args:
        starts: Ascending first pages.
        ends: The page after each last one; no run overlaps the next.
    """
    if not starts.size:
        return Runs(starts, ends)
    breaks = np.flatnonzero(starts[1:] != ends[:-1])
    if breaks.size == starts.size - 1:
        return Runs(starts, ends)
    # By index: selecting by a mask takes three times as long.
    return Runs(starts[np.concatenate(([0], breaks + 1))], ends[np.concatenate((breaks, [ends.size - 1]))])


def joined_runs(parts: Sequence[Runs]) -> Runs:
    """Make one of ascending runs of pages, which may overlap from part to part."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Runs(_NO_PAGES, _NO_PAGES)
    starts = np.concatenate([part.starts for part in parts])
    ends = np.concatenate([part.ends for part in parts])
    if (starts[1:] >= ends[:-1]).all():
        return adjacent_runs(starts, ends)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    # A run that begins within what came before adds nothing to it but its end.
    starts[1:] = np.maximum(starts[1:], ends[:-1])
    filled = np.flatnonzero(starts < ends)
    return adjacent_runs(starts[filled], ends[filled])


_ONE: Final = np.uint64(1)
_NO_PAGES: Final = np.empty(0, dtype=np.uint64)


def _lay_out(starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> BitMap64:
    """Make the set of runs of which each lies within one container."""
    sizes = ends - starts
    if int(sizes.sum()) <= _ARRAY_PAGES_MAX:
        return BitMap64(array("Q", _expand(starts, sizes).tobytes()))
    keys = starts >> _CONTAINER_BITS
    heads = _heads(keys)
    run_counts = np.diff(np.append(heads, starts.size))
    page_counts = np.add.reduceat(sizes, heads)
    is_bitset = page_counts > _ARRAY_PAGES_MAX
    in_array = np.flatnonzero(np.repeat(~is_bitset, run_counts))
    arrays = _expand(starts.take(in_array), sizes.take(in_array)).astype("<u2").tobytes()
    bitsets = iter(_bitsets(starts, ends, heads[is_bitset], run_counts[is_bitset]))

    contents, position = [], 0
    for page_count, bitset in zip(page_counts.tolist(), is_bitset.tolist(), strict=True):
        if bitset:
            contents.append(next(bitsets))
        else:
            contents.append(arrays[position : position + 2 * page_count])
            position += 2 * page_count
    return BitMap64.deserialize(_serialize(keys[heads], page_counts, contents))


def _bitsets(
    starts: NDArray[np.uint64], ends: NDArray[np.uint64], heads: NDArray[np.intp], run_counts: NDArray[np.intp]
) -> Iterator[bytes]:
    """Give the bits of each container whose first run and number of runs are given."""
    for first in range(0, heads.size, _BITSETS_AT_ONCE):
        heads_now, counts_now = (array[first : first + _BITSETS_AT_ONCE] for array in (heads, run_counts))
        # One place more than pages, for the end of a run that reaches the last one.
        turns = np.zeros((heads_now.size, _CONTAINER_PAGES + 64), dtype=np.bool_)
        for row, head, count in zip(turns, heads_now.tolist(), counts_now.tolist(), strict=True):
            base = starts[head] >> _CONTAINER_BITS << _CONTAINER_BITS
            # Where a run begins and where it has ended; runs do not touch, so that no page is both.
            row[(starts[head : head + count] - base).view(np.intp)] = True
            row[(ends[head : head + count] - base).view(np.intp)] = True
        words = np.packbits(turns, axis=1, bitorder="little").view("<u8")
        # A page is in a run when an odd number of turns came before it: a running XOR, first in each word, then from
        # word to word.
        for shift in (1, 2, 4, 8, 16, 32):
            words ^= words << np.uint64(shift)
        last = words >> np.uint64(63)
        words ^= np.uint64(0) - ((np.cumsum(last, axis=1) - last) & _ONE)
        yield from (row[: _CONTAINER_PAGES // 64].tobytes() for row in words)


def _serialize(keys: NDArray[np.uint64], page_counts: NDArray[np.uint64], contents: list[bytes]) -> bytes:
    """Write containers in the portable format."""
    buckets = keys >> _CONTAINER_BITS
    heads = _heads(buckets)
    pieces = [struct.pack("<Q", heads.size)]
    bounds = [*heads.tolist(), keys.size]
    for first, last in pairwise(bounds):
        descriptions = np.empty((last - first, 2), dtype="<u2")
        descriptions[:, 0] = keys[first:last] & np.uint64(_CONTAINER_PAGES - 1)
        descriptions[:, 1] = page_counts[first:last] - _ONE
        lengths = np.fromiter(map(len, contents[first:last]), dtype="<u4", count=last - first)
        offsets = np.cumsum(lengths, dtype="<u4") - lengths + np.uint32(8 + 8 * (last - first))
        pieces += (
            struct.pack("<III", int(buckets[first]), _COOKIE_NO_RUNS, last - first),
            descriptions.tobytes(),
            offsets.astype("<u4").tobytes(),
            *contents[first:last],
        )
    return b"".join(pieces)


def _heads(values: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Give where each new value of an ascending array begins."""
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))


def _expand(starts: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """List every page of the runs."""
    count = int(sizes.sum())
    if count == starts.size:
        return starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes.astype(np.intp)) + np.arange(count, dtype=np.uint64)
