"""What the copies that a process has of pages of private files held when they were told last.

The first store after the zap of a protected copy faults twice: the first fault takes the file's content again, and the
page is protected from birth, as the marker was; the second lets the store through and shows it. Whoever is stopped in
between, or in a signal handler there, has other content than was told, and no sign of it. While it runs the store
follows; of a target that is frozen this may be the last look. So the copies of a frozen target are compared with what
they held: a process has some hundred of them, and to send them all would cost a megabyte of downtime.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink_agent.shared_memory import Range

COPIES_MAX: Final = 2048
"""Of a process with more copies than this nothing is remembered, and all are told when it is frozen: to look at so many
takes some 15 ms."""

_AT_ONCE: Final = 256
_DIGEST_BYTES: Final = 8
_HELD_BYTES: Final = 1024
_IOVEC: Final = np.dtype([("base", np.uint64), ("size_bytes", np.uint64)])


class Copies:
    """Digests of one process's copies, by page."""

    def __init__(self, pid: int) -> None:
        """Begin with nothing known."""
        self._pid = pid
        self._files = BitMap64()
        self._digests: dict[int, bytes] = {}
        self._known = BitMap64()

    def cover(self, private_files: Iterable[Range]) -> None:
        """Say where the private mappings of files are, also those that cannot be written to now."""
        self._files = BitMap64()
        for start, end in private_files:
            self._files.add_range(start // PAGE_SIZE, end // PAGE_SIZE)

    def told(self, written: BitMap64, populated: BitMap64, unprotected: BitMap64) -> None:
        """Remember what copies hold that are told now; with every round, since what vanishes is known no more.

        Args:
            written: The pages of a round that is over.
            populated: Those that are there, and protected: what is written from now on is told again.
            unprotected: Those of them that are not protected all the same.
        """
        copies = populated & self._files
        told = written & copies
        if len(copies) > COPIES_MAX:
            copies, told = BitMap64(), BitMap64()
        for page in self._known - (copies - told):
            del self._digests[page]
        self._known &= copies - told
        told -= unprotected
        for page, digest in zip(told, self._look(told), strict=True):
            if digest is not None:
                self._digests[page] = digest
                self._known.add(page)

    def changed(self, populated: BitMap64, told: BitMap64) -> BitMap64:
        """Give the copies that may hold something else than when they were told. The process is frozen.

        Args:
            populated: As for ``told``.
            told: Pages that are told anyway.
        """
        suspects = (populated & self._files) - told
        if len(suspects) > COPIES_MAX or not self._known:
            return suspects
        known = suspects & self._known
        same = (
            page
            for page, digest in zip(known, self._look(known), strict=True)
            if digest is not None and digest == self._digests[page]
        )
        return suspects - BitMap64(same)

    def _look(self, pages: BitMap64) -> list[bytes | None]:
        """Give the digest of each page; None of what cannot be read."""
        numbers = np.frombuffer(pages.to_array(), dtype=np.uint64)
        found: list[bytes | None] = []
        for at in range(0, numbers.size, _AT_ONCE):
            found += self._look_at_some(numbers[at : at + _AT_ONCE])
        return found

    def _look_at_some(self, numbers: NDArray[np.uint64]) -> list[bytes | None]:
        pieces = np.empty(numbers.size, dtype=_IOVEC)
        pieces["base"], pieces["size_bytes"] = numbers * np.uint64(PAGE_SIZE), PAGE_SIZE
        content = np.empty(numbers.size * PAGE_SIZE, dtype=np.uint8)
        try:
            count = syscalls.process_vm_readv(self._pid, pieces, content) // PAGE_SIZE
        except OSError:
            # Not permitted, or gone: whoever harvests finds out, and what is not known is told.
            count = 0
        found: list[bytes | None] = [
            _digest(content.data[at : at + PAGE_SIZE]) for at in range(0, count * PAGE_SIZE, PAGE_SIZE)
        ]
        return found + [None] * (numbers.size - count)


def _digest(page: memoryview) -> bytes:
    """Sum a page up with the interpreter's lock held. For 2 KiB at a time hashlib would let go of it, and a busy agent
    takes twenty times as long to have it back as for the page, while the process stands still.
    """
    state = blake2b(digest_size=_DIGEST_BYTES)
    for at in range(0, PAGE_SIZE, _HELD_BYTES):
        state.update(page[at : at + _HELD_BYTES])
    return state.digest()
