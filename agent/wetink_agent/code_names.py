"""What code addresses of a process are in: the file that is mapped there, the place in it, and the function.

Symbol tables are read on a thread of their own, so that no round waits for a disk: a function has its name in the
rounds after its file was read. Which file is mapped is told at once.
"""

import contextlib
import os
import queue
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wetink_agent import procfs
from wetink_agent.elf import Functions, NoElf

CODES_MAX: Final = 256
"""Addresses that are named in a round, the most frequent ones: bound of the contract."""

CODES_BYTES_MAX: Final = 64 << 10
"""Bound on what these take in a message, beside the events: 256 names of C++ of 200 characters with their files."""

FILE_CHARACTERS_MAX: Final = 256
"""Characters of a file's name that are kept: bound of the contract."""

FILES_MAX: Final = 32
"""Bound on the files whose functions are remembered; the one that was asked for longest ago goes first. A large program
and its libraries take some 50 MiB."""

WAITING_MAX: Final = 64
"""Bound on the files that wait to be read. What is beyond it is asked for again with the next round."""


_CODE_BYTES: Final = 40
"""What an entry takes beside its names, at most."""


class Code(NamedTuple):
    """What an address is: as in the contract."""

    instruction_pointer: int
    symbol: str
    file: str
    file_offset: int


def within_bounds(codes: Iterable[Code]) -> tuple[Code, ...]:
    """Give the first of them, as many as one message takes."""
    kept: list[Code] = []
    size_bytes = 0
    for code in islice(codes, CODES_MAX):
        size_bytes += len(code.symbol.encode()) + len(code.file.encode()) + _CODE_BYTES
        if size_bytes > CODES_BYTES_MAX:
            break
        kept.append(code)
    return tuple(kept)


class _File(NamedTuple):
    """A mapped file, as the kernel tells files apart."""

    device: str
    inode: int


class CodeNames:
    """Names code. Shared by all targets of an agent."""

    def __init__(self) -> None:
        """Know of no file; the thread begins with the first."""
        self._lock = threading.Lock()
        self._known: OrderedDict[_File, Functions | None] = OrderedDict()
        self._asked: set[_File] = set()
        self._waiting: queue.Queue[tuple[_File, int, procfs.Mapping]] = queue.Queue(WAITING_MAX)
        self._thread: threading.Thread | None = None

    def name(
        self, pid: int, instruction_pointers: NDArray[np.uint64], mappings: Sequence[procfs.Mapping]
    ) -> tuple[Code, ...]:
        """Name the most frequent addresses, those that lie in a file.

        Args:
            pid: The process.
            instruction_pointers: One for each event, in any order; 0 where it is the kernel's.
            mappings: Of the process, as they are now, ascending.
        """
        files = [mapping for mapping in mappings if mapping.inode]
        starts = np.array([mapping.start for mapping in files], np.uint64)
        found = []
        for address in _most_frequent(instruction_pointers):
            at = int(np.searchsorted(starts, np.uint64(address), side="right")) - 1
            if at >= 0 and address < files[at].end:
                offset = address - files[at].start + files[at].offset
                found.append(Code(address, self._symbol(pid, files[at], offset), _text(files[at].name), offset))
        return within_bounds(found)

    def _symbol(self, pid: int, mapping: procfs.Mapping, offset: int) -> str:
        file = _File(mapping.device, mapping.inode)
        with self._lock:
            if file in self._known:
                self._known.move_to_end(file)
                functions = self._known[file]
                return functions.name_at(offset) if functions else ""
            if file in self._asked:
                return ""
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait((file, pid, mapping))
                self._asked.add(file)
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_files, name="symbols", daemon=True)
                self._thread.start()
        return ""

    def _read_files(self) -> None:
        while True:
            file, pid, mapping = self._waiting.get()
            functions = functions_of(pid, mapping)
            with self._lock:
                self._asked.discard(file)
                self._known[file] = functions
                while len(self._known) > FILES_MAX:
                    self._known.popitem(last=False)


def functions_of(pid: int, mapping: procfs.Mapping) -> Functions | None:
    """Read the functions of the file behind a mapping of a process; None where it cannot be read, or has none.

    The process may have made the name lead anywhere: only the very file that is mapped is read, and only a regular one
    is opened.
    """
    # The first leads to the file itself, also where its name is gone; it takes CAP_CHECKPOINT_RESTORE.
    for path in (f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", f"/proc/{pid}/root{mapping.name}"):
        with contextlib.suppress(OSError, NoElf, ValueError):
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                status = os.fstat(handle)
                if stat.S_ISREG(status.st_mode) and status.st_ino == mapping.inode:
                    return _functions(handle)
            finally:
                os.close(handle)
    return None


def _functions(handle: int) -> Functions:
    descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return Functions(descriptor)
    finally:
        os.close(descriptor)


def _most_frequent(instruction_pointers: NDArray[np.uint64]) -> list[int]:
    # Sorted: numpy hashes to find what is unique, which takes thirty times as long.
    ordered = np.sort(instruction_pointers[instruction_pointers != 0])
    if not ordered.size:
        return []
    begins = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
    counts = np.diff(np.concatenate((begins, [ordered.size])))
    most = np.argsort(-counts, kind="stable")[:CODES_MAX]
    chosen: list[int] = ordered[begins[most]].tolist()
    return chosen


def _text(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name[:FILE_CHARACTERS_MAX])


NAMES: Final = CodeNames()
"""Those of this agent: a library that many targets map is read once."""
