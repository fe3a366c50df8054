"""Mappings of shared memory: where they are, and what their objects hold.

All of it may have changed through another mapping or a descriptor, unseen by whatever watches one process. And it is
the object's: it has pages that this process has not touched yet, or not since they were taken from its page table.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from wetink.pages import PAGE_SIZE
from wetink_agent import procfs
from wetink_agent.runs import Runs, adjacent_runs

Range = tuple[int, int]
"""First address, and the address after the last."""

_SHARED_LINE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...s ([0-9a-f]+) ([0-9a-f:]+) [0-9]+ *(.*)$", re.MULTILINE)
# Of file systems that are mounted nowhere a process could see: shared anonymous memory, memfd, System V, hugetlb.
_NAMES: Final = ("/dev/zero (deleted)", "/dev/shm/", "/memfd:", "/SYSV", "/anon_hugepage")  # noqa: S108 - to recognise
_MEMORY_TYPES: Final = ("tmpfs", "ramfs", "hugetlbfs")
_DEVICE_NAMES: Final = ("/dev/", "anon_inode:", "/[aio]")


class Part(NamedTuple):
    """The part of a mapping of shared memory that is within the scope."""

    span: Range
    mapping: Range
    offset: int
    """Of the mapping's first byte in its object."""


def find(pid: int, maps: bytes, scope: Sequence[Range] = ()) -> list[Part]:
    """Find the mappings of shared memory: of files that are memory, or lie on no mount the process can see.

    Args:
        pid: The process.
        maps: What ``procfs.read_maps`` gave of it.
        scope: The parts of the address space that count; empty means all of it.

    Raises:
        NoSuchProcess: It is gone.
    """
    lines = _SHARED_LINE.findall(maps)
    mounts = procfs.mounts(pid) if lines else {}
    return [
        Part(span, (int(start, 16), int(end, 16)), int(offset, 16))
        for start, end, offset, device, name in lines
        if is_memory(os.fsdecode(name), mounts.get(device.decode()))
        for span in within(scope, int(start, 16), int(end, 16))
    ]


def is_memory(name: str, file_system: str | None) -> bool:
    """Whether a shared mapping is of memory.

    Args:
        name: As ``maps`` has it.
        file_system: The type of its mount; None where the process can see none of its device.
    """
    return name.startswith(_NAMES) or ((file_system or "ramfs") in _MEMORY_TYPES and not name.startswith(_DEVICE_NAMES))


def is_device(name: str) -> bool:
    """Whether a mapping is of a device, or of memory that the kernel shares with the process."""
    return name.startswith(_DEVICE_NAMES) and not name.startswith((*_NAMES, "/dev/zero"))


def within(scope: Sequence[Range], start: int, end: int) -> Iterator[Range]:
    """Give the parts of a range that are within a scope, of which an empty one means everything."""
    for scope_start, scope_end in scope or ((start, end),):
        if max(start, scope_start) < min(end, scope_end):
            yield max(start, scope_start), min(end, scope_end)


def object_pages(pid: int, part: Part) -> Runs | None:
    """Find which pages of shared memory its object has data for; None where we may not look at the object.

    Source: lseek(2), SEEK_DATA; /proc/PID/map_files needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    """
    mapping_start, mapping_end = part.mapping
    # From a place in the object to the address where it is mapped.
    shift = mapping_start - part.offset
    position, last = part.span[0] - shift, part.span[1] - shift
    starts, ends = [], []
    try:
        path = f"/proc/{pid}/map_files/{mapping_start:x}-{mapping_end:x}"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if os.fstatvfs(fd).f_bsize != PAGE_SIZE:
            return None  # hugetlbfs calls all of a file data, and reading a hole of it takes a huge page
        while position < last:
            data = os.lseek(fd, position, os.SEEK_DATA)
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), last)
            if data < hole:
                starts.append((data + shift) // PAGE_SIZE)
                ends.append((hole + shift + PAGE_SIZE - 1) // PAGE_SIZE)
            position = max(hole, data + PAGE_SIZE)
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that there is no data from here on
            return None
    finally:
        os.close(fd)
    return adjacent_runs(np.array(starts, dtype=np.uint64), np.array(ends, dtype=np.uint64))
