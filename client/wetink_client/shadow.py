"""A copy of a process's memory, made from dirty sets alone: the reader's side of the contract, and its rule in code.

Copy what is written, drop what vanished, finish, and only then ask for the next set. This is what the destination of
a live migration holds; the demonstration and the tests compare it with the frozen process, byte by byte.
"""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink import syscalls
from wetink.pages import PAGE_SIZE, runs

READ_PAGES_MAX: Final = 1024
"""Pages one read takes, 4 MiB: enough to hide the call, small enough to stay in the processor's cache."""

_IOVEC: Final = np.dtype([("base", np.uint64), ("size_bytes", np.uint64)])
"""``struct iovec``."""


class ShadowCopy:
    """A copy of one process's memory. Use as a context manager; reading needs ptrace rights over the process."""

    def __init__(self, pid: int) -> None:
        """Start with an empty copy.

        Raises:
            OSError: The process is not there, or the caller may not read its memory.
        """
        self.pages: dict[int, bytes] = {}
        self._pid = pid
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        """Give the copy itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading; the pages stay."""
        os.close(self._memory)

    def apply(self, written: BitMap64, vanished: BitMap64, *, sent: Callable[[int], None] | None = None) -> int:
        """Take over one dirty set; gives the bytes that were copied.

        A written page that cannot be read any more has been unmapped since; the next set says so too.

        Args:
            written: To be copied.
            vanished: To be dropped.
            sent: Is told of each page's bytes as it is copied, and may wait: a link carries only so much.
        """
        for page in vanished:
            self.pages.pop(page, None)
        size_bytes = 0
        for page, content in read_pages(self._pid, self._memory, written):
            if content is None:
                self.pages.pop(page, None)
            else:
                self.pages[page] = content
                size_bytes += PAGE_SIZE
                if sent:
                    sent(PAGE_SIZE)
        return size_bytes


def read_pages(pid: int, memory: int, pages: BitMap64) -> Iterator[tuple[int, bytes | None]]:
    """Read pages of another process, many in one call.

    Args:
        pid: The process.
        memory: Its ``/proc/PID/mem``, open for reading: for pages that may not be read the ordinary way (PROT_NONE).
        pages: Page numbers.

    Returns:
        Each page with its content, in ascending order; None where nothing is mapped.
    """
    starts, ends = runs(pages)
    buffer = np.empty(READ_PAGES_MAX * PAGE_SIZE, dtype=np.uint8)
    for numbers in _batches(starts, ends):
        done = 0
        while done < numbers.size:
            got = _read(pid, _pieces(numbers[done:]), buffer) // PAGE_SIZE
            for index, page in enumerate(numbers[done : done + got].tolist()):
                yield page, buffer[index * PAGE_SIZE : (index + 1) * PAGE_SIZE].tobytes()
            done += got
            if done < numbers.size:
                page = int(numbers[done])
                yield page, _read_forced(memory, page)
                done += 1


def _batches(starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Cut runs into reads of bounded size: the pages of each."""
    waiting: list[NDArray[np.uint64]] = []
    count = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        position = start
        while position < end:
            size = min(end - position, READ_PAGES_MAX - count)
            waiting.append(np.arange(position, position + size, dtype=np.uint64))
            position += size
            count += size
            if count == READ_PAGES_MAX:
                yield np.concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _pieces(numbers: NDArray[np.uint64]) -> NDArray[np.void]:
    """Give the vectors that read these ascending pages, at least one: one for each run."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    firsts = np.concatenate(([0], breaks)).astype(np.intp)
    sizes = np.diff(np.concatenate((firsts, [numbers.size])))
    pieces = np.empty(firsts.size, dtype=_IOVEC)
    pieces["base"] = numbers[firsts] * np.uint64(PAGE_SIZE)
    pieces["size_bytes"] = sizes * PAGE_SIZE
    return pieces


def _read(pid: int, pieces: NDArray[np.void], buffer: NDArray[np.uint8]) -> int:
    try:
        return syscalls.process_vm_readv(pid, pieces, buffer[: int(pieces["size_bytes"].sum())])
    except OSError as error:
        if error.errno == errno.EFAULT:
            return 0
        raise


def _read_forced(memory: int, page: int) -> bytes | None:
    try:
        content = os.pread(memory, PAGE_SIZE, page * PAGE_SIZE)
    except OSError as error:
        if error.errno in {errno.EIO, errno.EFAULT}:
            return None
        raise
    return content if len(content) == PAGE_SIZE else None
