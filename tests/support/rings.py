"""io_uring and AIO, driven in a target that has neither a library for them nor a mind of its own.

Source: io_uring_setup(2), io_uring_enter(2), include/uapi/linux/io_uring.h; io_submit(2), include/uapi/linux/aio_abi.h.
"""

import struct
from typing import Final

from tests.support.obedient import MAP_SHARED, PAGE, Obedient, command

READ: Final = 22
READ_FIXED: Final = 4

_PARAMS_BYTES: Final = 120
_SQ_OFFSETS_AT: Final = 40
_CQ_OFFSETS_AT: Final = 80
_SQE_BYTES: Final = 64
_SQES_OFFSET: Final = 0x10000000
_GETEVENTS: Final = 1
_REGISTER_BUFFERS: Final = 0
_IOCB_BYTES: Final = 64
_EVENT_BYTES: Final = 32
_PREAD: Final = 0


class Ring:
    """An io_uring of the target. One operation at a time."""

    def __init__(self, target: Obedient) -> None:
        """Have the target make it and map its rings.

        Raises:
            OSError: There is no io_uring, or none for it.
        """
        self._target = target
        at = target.pointed(bytes(_PARAMS_BYTES))
        self._fd = target.call("io_uring_setup", 4, at)
        params = target.peek(at, _PARAMS_BYTES)
        self._sq = struct.unpack_from("8I", params, _SQ_OFFSETS_AT)
        self._cq = struct.unpack_from("8I", params, _CQ_OFFSETS_AT)
        # With IORING_FEAT_SINGLE_MMAP, as all kernels have it now, one mapping holds both.
        self.rings = target.map(1, flags=MAP_SHARED, fd=self._fd, filled=False)
        self.entries = target.map(1, flags=MAP_SHARED, fd=self._fd, offset=_SQES_OFFSET, filled=False)
        self._submitted = 0

    def register(self, address: int, size_bytes: int) -> None:
        """Have it register a buffer, which the kernel pins."""
        self._target.call("io_uring_register", self._fd, _REGISTER_BUFFERS, self._target.vector(address, size_bytes), 1)

    def read(self, fd: int, address: int, size_bytes: int, *, operation: int = READ, waits: bool = True) -> int:
        """Have it read a file from its beginning; gives the result, or 0 where it does not wait for it."""
        target = self._target
        entry = struct.pack("BBHiQQIIQ", operation, 0, 0, fd, 0, address, size_bytes, 0, 1)
        target.poke(self.entries, entry.ljust(_SQE_BYTES, b"\0"))
        (_, tail, _, _, _, _, array, _) = self._sq
        position = self._submitted % 4
        target.poke(self.rings + array + 4 * position, struct.pack("I", 0))
        self._submitted += 1
        target.poke(self.rings + tail, struct.pack("I", self._submitted))
        assert target.call("io_uring_enter", self._fd, 1, int(waits), _GETEVENTS if waits else 0, 0, 0) == 1
        return self._result() if waits else 0

    def wait(self) -> int:
        """Have it wait for the operation; gives the result."""
        self._target.call("io_uring_enter", self._fd, 0, 1, _GETEVENTS, 0, 0)
        return self._result()

    def _result(self) -> int:
        (head, _, mask, _, _, events, _, _) = self._cq
        (position,) = struct.unpack("I", self._target.peek(self.rings + head, 4))
        (masked,) = struct.unpack("I", self._target.peek(self.rings + mask, 4))
        event = self._target.peek(self.rings + events + (position & masked) * 16, 16)
        self._target.poke(self.rings + head, struct.pack("I", position + 1))
        (_, result, _) = struct.unpack("QiI", event)
        return int(result)


class Aio:
    """An AIO context of the target. One operation at a time."""

    def __init__(self, target: Obedient) -> None:
        """Have the target make it."""
        self._target = target
        at = target.pointed(bytes(8))
        target.call("io_setup", 8, at)
        self.context = target.word(at)
        """Where the kernel has mapped its ring."""

    def read(self, fd: int, address: int, size_bytes: int) -> None:
        """Have it begin to read a file from its beginning."""
        target = self._target
        block = target.pointed(
            struct.pack("QIiHhIQQqQII", 1, 0, 0, _PREAD, 0, fd, address, size_bytes, 0, 0, 0, 0), at=128
        )
        pointer = target.pointed(struct.pack("Q", block), at=256)
        assert target.call("io_submit", self.context, 1, pointer) == 1

    def wait(self) -> int:
        """Have it wait for the operation; gives the result."""
        target = self._target
        event = target.pointed(bytes(_EVENT_BYTES), at=512)
        assert target.do(command("io_getevents", self.context, 1, 1, event, 0)) == [1]
        return int(struct.unpack("QQqq", target.peek(event, _EVENT_BYTES))[2])


assert struct.calcsize("QIiHhIQQqQII") == _IOCB_BYTES
assert PAGE >= _EVENT_BYTES
