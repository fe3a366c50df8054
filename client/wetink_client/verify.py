"""Compare a copy of a process's memory with the frozen process, byte by byte, by other means than the tracker's.

Which pages the process has comes from the bits of ``/proc/PID/pagemap`` read as a file, the contents from
``/proc/PID/mem``: nothing here knows of userfaultfd or PAGEMAP_SCAN, so that a mistake there cannot hide here.

Source: proc_pid_pagemap(5), proc_pid_maps(5).
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from wetink.pages import PAGE_SIZE

_PRESENT: Final = np.uint64(1 << 63)
_SWAPPED: Final = np.uint64(1 << 62)
_FILE_OR_SHARED: Final = np.uint64(1 << 61)
_PFN: Final = np.uint64((1 << 55) - 1)
_LINE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) (\S+) (\S+) (\d+) *(.*)")
_SHARED_MEMORY: Final = ("/dev/zero", "/memfd:", "/SYSV", "/dev/shm/")  # noqa: S108 - names to recognise, not to use
_KERNEL_MADE: Final = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")
_ENTRIES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One page in which copy and process differ, the mapping it lies in, and how."""

    page: int
    mapping: str
    how: str


def differences(pid: int, copy: Mapping[int, bytes]) -> tuple[int, list[Difference]]:
    """Compare a copy with a process that is stopped.

    Args:
        pid: The process; nothing may write to it meanwhile.
        copy: Page numbers and their contents.

    Returns:
        How many pages of the process were compared, and every page that differs: one that is not in the copy and
        not zero, one with other bytes, one that the copy has and the process has not.
    """
    found: list[Difference] = []
    seen: set[int] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for page, mapping in populated(pid):
            seen.add(page)
            truth, mine = _page(memory.fileno(), page), copy.get(page)
            if truth is None:
                continue  # a guard page: it has no content
            if mine is None:
                # To a reader the zero page and a hole are the same.
                if truth.strip(b"\0"):
                    found.append(Difference(page, mapping, "not in the copy"))
            elif mine != truth:
                found.append(Difference(page, mapping, "other bytes"))
        for page in sorted(copy.keys() - seen):
            truth = _page(memory.fileno(), page)
            if truth is None:
                found.append(Difference(page, "nothing", "in the copy, and not mapped"))
            elif truth != copy[page]:
                found.append(Difference(page, "a hole or a file", "in the copy with other bytes"))
    return len(seen), found


def populated(pid: int) -> Iterator[tuple[int, str]]:
    """Give each page that is a process's own or shared memory, with the name of its mapping, in ascending order."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            match = _LINE.fullmatch(line)
            assert match is not None, line
            start, end, permissions, name = int(match[1], 16), int(match[2], 16), match[3], match[7]
            is_shared = permissions.endswith("s")
            if name in _KERNEL_MADE or (is_shared and not name.startswith(_SHARED_MEMORY)):
                continue
            for first in range(start // PAGE_SIZE, end // PAGE_SIZE, _ENTRIES_MAX):
                count = min(_ENTRIES_MAX, end // PAGE_SIZE - first)
                entries = np.frombuffer(os.pread(pagemap.fileno(), count * 8, first * 8), dtype=np.uint64)
                here = (entries & (_PRESENT | _SWAPPED)) != 0
                if not is_shared:
                    here &= (entries & _FILE_OR_SHARED) == 0
                    # The marker of a page that was zapped looks swapped, and has no place in swap.
                    here &= (entries & (_PRESENT | _PFN)) != 0
                for offset in np.flatnonzero(here).tolist():
                    yield first + offset, name or "anonymous"


def _page(memory: int, page: int) -> bytes | None:
    try:
        return os.pread(memory, PAGE_SIZE, page * PAGE_SIZE)
    except OSError:
        return None
