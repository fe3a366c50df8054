"""A file that the machine swaps to, for the length of a test.

Source: swapon(2); the header is that of mkswap(8).
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_BYTES = 256 << 20
_PAGE = 4096


class NoSwap(Exception):
    """The machine takes no such file. The text says why."""


@contextmanager
def swap_file(path: Path, size_bytes: int = SIZE_BYTES) -> Iterator[None]:
    """Make the file, have the machine swap to it, and take it away again.

    Raises:
        NoSwap: It cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        # struct swap_info: the version and the last page after 1 KiB, and the magic at the end of the first page.
        os.pwrite(file.fileno(), struct.pack("III", 1, size_bytes // _PAGE - 1, 0), 1024)
        os.pwrite(file.fileno(), b"SWAPSPACE2", _PAGE - 10)
        os.fsync(file.fileno())
    path.chmod(0o600)
    if libc.swapon(os.fsencode(path), 0):
        path.unlink()
        raise NoSwap(os.strerror(ctypes.get_errno()))
    try:
        yield
    finally:
        if libc.swapoff(os.fsencode(path)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "swapoff")
        path.unlink()
