"""What the memory of a frozen process really holds, read by other means than the tracker's, to compare a copy with.

The populated pages come from the bits of ``/proc/PID/pagemap`` read as a file, the contents from ``/proc/PID/mem``.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

PAGE_SIZE: Final = 4096
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
    """One page in which copy and process differ."""

    page: int
    mapping: str
    why: str


def differences(pid: int, copy: Mapping[int, bytes]) -> tuple[int, list[Difference]]:
    """Compare a copy with a frozen process.

    Returns:
        How many populated pages were compared, and where they differ: a page that is not in the copy, one with other
        bytes, and one in the copy that the process does not have.
    """
    found: list[Difference] = []
    seen: set[int] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for page, mapping in populated(pid):
            seen.add(page)
            try:
                truth = os.pread(memory.fileno(), PAGE_SIZE, page * PAGE_SIZE)
            except OSError:
                continue  # a guard page: it has no content
            mine = copy.get(page)
            if mine is None:
                # The zero page and nothing are the same to a reader.
                if truth.strip(b"\0"):
                    found.append(Difference(page, mapping, "not in the copy"))
            elif mine != truth:
                found.append(Difference(page, mapping, "other bytes"))
        for page in copy.keys() - seen:
            try:
                truth = os.pread(memory.fileno(), PAGE_SIZE, page * PAGE_SIZE)
            except OSError:
                found.append(Difference(page, "nothing", "in the copy, and not mapped"))
                continue
            if truth != copy[page]:
                found.append(Difference(page, "a hole or a file", "in the copy with other bytes"))
    return len(seen), found


def populated(pid: int) -> Iterator[tuple[int, str]]:
    """Give each page that is the process's own or shared memory, with the name of its mapping."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            match = _LINE.fullmatch(line)
            assert match is not None, line
            start, end, permissions, name = int(match[1], 16), int(match[2], 16), match[3], match[7]
            if name in _KERNEL_MADE:
                continue
            is_shared = permissions.endswith("s")
            if is_shared and not name.startswith(_SHARED_MEMORY):
                continue
            for first in range(start // PAGE_SIZE, end // PAGE_SIZE, _ENTRIES_MAX):
                count = min(_ENTRIES_MAX, end // PAGE_SIZE - first)
                entries = np.frombuffer(os.pread(pagemap.fileno(), count * 8, first * 8), dtype=np.uint64)
                here = (entries & (_PRESENT | _SWAPPED)) != 0
                if not is_shared:
                    here &= (entries & _FILE_OR_SHARED) == 0
                    # A marker where a page was zapped looks swapped and has no swap entry in it.
                    here &= (entries & (_PRESENT | _PFN)) != 0
                for offset in np.flatnonzero(here).tolist():
                    yield first + offset, name or "anonymous"
