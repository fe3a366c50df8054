"""PAGEMAP_SCAN over spans of addresses of another process, however long: what the kernel answers, all of it.

Source: Linux kernel commit 52526ca7fdb9 ("fs/proc/task_mmu: implement IOCTL to get and optionally clear info about
PTEs") (in v6.7).
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink_agent.runs import Runs, adjacent_runs
from wetink_agent.shared_memory import Range
from wetink_agent.uapi import fs

POPULATED: Final = fs.PAGE_IS_PRESENT | fs.PAGE_IS_SWAPPED

REGION_COUNT: Final = 1 << 16
"""Regions that one scan can answer with, 1.5 MiB a harvesting thread: more than ``wp_async.CHUNK_BYTES`` can hold."""

REGIONS_AT_ONCE: Final = 1 << 12
"""Regions from which on they are looked at before the next scan, while they are in the cache."""

_PAGE_SHIFT: Final = np.uint64(PAGE_SIZE.bit_length() - 1)

_buffers: Final = threading.local()


def scan(
    pagemap: int,
    spans: Iterable[Range],
    *,
    mask: int,
    inverted: int,
    anyof: int = POPULATED,
    returned: int = POPULATED,
    flags: int = 0,
) -> Iterator[NDArray[np.uint64]]:
    """Scan spans of addresses, unless told otherwise for populated pages.

    The kernel may say that it stopped before the end, though it went on and answered beyond that place too: its
    ``walk_end`` is then of the last time it emptied its own buffer. What lies beyond is scanned again, as the
    interface asks for, and both answers count: the first one has armed what it reported.

    Args:
        pagemap: Descriptor of the process's page map.
        spans: In bytes, each from its start up to before its end.
        mask: Categories that a page must have, or lack where they are in ``inverted`` too.
        inverted: See there.
        anyof: Categories of which it must have one.
        returned: Categories that are told of it.
        flags: Of the scan: whether it arms what was written.

    Returns:
        The kernel's ``page_region`` answers, ascending within each array; each is gone when the next is asked for.

    Raises:
        OSError: The kernel refused.
    """
    regions = _region_buffer()
    address, region_bytes = regions.ctypes.data, regions.strides[0]
    argument = fs.pm_scan_arg(
        size=syscalls.size_bytes(fs.pm_scan_arg),
        flags=flags,
        category_mask=mask,
        category_inverted=inverted,
        category_anyof_mask=anyof,
        return_mask=returned,
    )
    filled = 0
    again = []
    for start, end in spans:
        argument.end = end
        argument.walk_end = start
        is_again = False
        while argument.walk_end < end:
            argument.start = argument.walk_end
            argument.vec = address + filled * region_bytes
            argument.vec_len = REGION_COUNT - filled
            found = syscalls.ioctl(pagemap, fs.PAGEMAP_SCAN, argument, "PAGEMAP_SCAN")
            if is_again:
                again.append(regions[filled : filled + found].copy())
                continue
            filled += found
            is_again = found > 0 and int(regions[filled - 1, 1]) > argument.walk_end
            if filled > REGIONS_AT_ONCE:
                yield regions[:filled]
                filled = 0
    if filled:
        yield regions[:filled]
    yield from _ascending(again)


def region_runs(regions: NDArray[np.uint64]) -> Runs:
    """Give the pages of regions, which are ascending."""
    runs = adjacent_runs(regions[:, 0], regions[:, 1])
    return Runs(runs.starts >> _PAGE_SHIFT, runs.ends >> _PAGE_SHIFT)


def _region_buffer() -> NDArray[np.uint64]:
    """Give this thread's buffer for the answers of a scan: fresh pages would cost more than the scan."""
    if not hasattr(_buffers, "regions"):
        _buffers.regions = np.empty((REGION_COUNT, 3), dtype=np.uint64)
    regions: NDArray[np.uint64] = _buffers.regions
    return regions


def _ascending(pieces: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
    """Put pieces of an answer together as far as each begins where the one before has ended.

    Those of one span may not: the memory changes meanwhile, and what came later can begin before what came earlier.
    """
    together: list[NDArray[np.uint64]] = []
    for piece in pieces:
        if not piece.size:
            continue
        if together and piece[0, 0] < together[-1][-1, 1]:
            yield np.concatenate(together)
            together = []
        together.append(piece)
    if together:
        yield np.concatenate(together)
