"""A file whose reads last until the test lets them end: a file system of one file, in user space.

With O_DIRECT the kernel pins the reader's pages when the read begins, and writes to them when the answer comes: that is
direct I/O in flight for as long as one likes, on any machine that has FUSE.

Source: include/uapi/linux/fuse.h; fuse(4).
"""

import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Final

NAME: Final = "held"
SIZE_BYTES: Final = 1 << 20
BYTE: Final = 0xA5
"""What the file consists of."""

_ROOT: Final = 1
_FILE: Final = 2
_REQUEST_BYTES_MAX: Final = SIZE_BYTES + 4096
_MNT_DETACH: Final = 2
_WAIT_SECONDS_MAX: Final = 20.0

_LOOKUP, _GETATTR, _READ, _INIT = 1, 3, 15, 26
_ANSWERS: Final = {
    14: struct.pack("=QII", 0, 0, 0),  # OPEN
    17: struct.pack("=QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),  # STATFS
    18: b"",  # RELEASE
    25: b"",  # FLUSH
    38: b"",  # DESTROY
}
_UNANSWERED: Final = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET: nobody waits
_ASYNC_READ: Final = 1
_ASYNC_DIO: Final = 1 << 15


class HeldFile:
    """The file; ``path`` is where it is mounted."""

    def __init__(self, directory: Path) -> None:
        """Mount it and begin to serve."""
        self.path = directory / NAME
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._directory = directory
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self._device},rootmode=40755,user_id=0,group_id=0,allow_other"
        if self._libc.mount(b"wetink-test", os.fsencode(directory), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            os.close(self._device)
            raise OSError(number, os.strerror(number), "mount of fuse")
        self._changed = threading.Condition()
        self._held: list[tuple[int, int]] = []
        self._holding = False
        self._over = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="held-file", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Let no read end from now on."""
        self._holding = True

    def wait_for_reads(self, count: int = 1) -> None:
        """Wait until so many reads wait."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._held) >= count, _WAIT_SECONDS_MAX), "nobody reads"

    def release(self) -> None:
        """Let all reads end."""
        with self._changed:
            self._holding = False
            held, self._held = self._held, []
        for unique, size_bytes in held:
            self._answer(unique, bytes([BYTE]) * size_bytes)

    def close(self) -> None:
        """Let go of everybody and unmount it."""
        self.release()
        self._libc.umount2(os.fsencode(self._directory), _MNT_DETACH)
        # Who still has the file open goes on asking. The numbers may be others' as soon as they are closed.
        os.eventfd_write(self._over, 1)
        self._thread.join()
        os.close(self._device)
        os.close(self._over)

    def _serve(self) -> None:
        poll = select.poll()
        for fd in (self._device, self._over):
            poll.register(fd, select.POLLIN)
        while self._over not in dict(poll.poll()):
            try:
                request = os.read(self._device, _REQUEST_BYTES_MAX)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno not in {errno.EINTR, errno.ENOENT, errno.EAGAIN}:
                    raise
                continue
            _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
            self._take(opcode, unique, node, request[40:])

    def _take(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        if opcode == _READ:
            _, offset, size_bytes = struct.unpack_from("=QQI", body)
            size_bytes = max(0, min(size_bytes, SIZE_BYTES - offset))
            with self._changed:
                is_held = self._holding
                if is_held:
                    self._held.append((unique, size_bytes))
                    self._changed.notify_all()
            if not is_held:
                self._answer(unique, bytes([BYTE]) * size_bytes)
        elif opcode == _LOOKUP and body.rstrip(b"\0") == NAME.encode():
            self._answer(unique, struct.pack("=QQQQII", _FILE, 0, 0, 0, 0, 0) + _attributes(_FILE))
        elif opcode == _LOOKUP:
            self._answer(unique, error=errno.ENOENT)
        elif opcode == _INIT:
            flags = struct.unpack_from("=IIII", body)[3] & (_ASYNC_READ | _ASYNC_DIO)
            self._answer(unique, struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, flags, 16, 12, SIZE_BYTES, 1, 256, 0, 0))
        elif opcode == _GETATTR:
            self._answer(unique, struct.pack("=QII", 0, 0, 0) + _attributes(node))
        elif opcode in _ANSWERS:
            self._answer(unique, _ANSWERS[opcode])
        elif opcode not in _UNANSWERED:
            self._answer(unique, error=errno.ENOSYS)

    def _answer(self, unique: int, body: bytes = b"", *, error: int = 0) -> None:
        try:
            os.write(self._device, struct.pack("=IiQ", 16 + len(body), -error, unique) + body)
        except OSError as failed:
            if failed.errno not in {errno.ENOENT, errno.ENODEV}:  # who asked is gone
                raise


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
    now = int(time.time())
    return struct.pack(
        "=QQQQQQIIIIIIIIII",
        *(node, SIZE_BYTES, SIZE_BYTES // 512, now, now, now),
        *(0, 0, 0, mode, 1, 0, 0, 0, 4096, 0),
    )
