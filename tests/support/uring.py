"""io_uring for a victim, in its own Python: buffers that are registered, and reads into them, on the bare system calls.

Source: include/uapi/linux/io_uring.h.
"""

from typing import Final

RING: Final = """
import struct

def ring():
    # io_uring_setup, nothing mapped
    return checked(libc.syscall(425, 8, ctypes.create_string_buffer(120)))

def register(fd, *ranges):
    # IORING_REGISTER_BUFFERS
    vectors = b"".join(struct.pack("QQ", *one) for one in ranges)
    checked(libc.syscall(427, fd, 0, vectors, len(ranges)))

def unregister(fd):
    # IORING_UNREGISTER_BUFFERS
    checked(libc.syscall(427, fd, 1, None, 0))

class MappedRing:
    def __init__(self):
        params = ctypes.create_string_buffer(120)
        self.fd = checked(libc.syscall(425, 8, params))
        self.tail, self.mask, self.array = (struct.unpack_from("I", params, 40 + n * 4)[0] for n in (1, 2, 6))
        self.cq_head, self.cq_tail, self.cq_mask, self.cqes = (
            struct.unpack_from("I", params, 80 + n * 4)[0] for n in (0, 1, 2, 5)
        )
        self.rings = mmap(16, flags=0x8001, fd=self.fd)
        self.sqes = mmap(1, flags=0x8001, fd=self.fd, offset=0x10000000)

    def word(self, offset):
        return ctypes.c_uint32.from_address(self.rings + offset)

    def read_fixed(self, fd, address, size, buffer=0):
        # IORING_OP_READ_FIXED; waits for its end and gives its result
        sqe = struct.pack("BBHiQQIIQHHiQQ", 4, 0, 0, fd, 0, address, size, 0, 0, buffer, 0, 0, 0, 0)
        ctypes.memmove(self.sqes, sqe, 64)
        self.word(self.array).value = 0
        self.word(self.tail).value += 1
        checked(libc.syscall(426, self.fd, 1, 1, 1, None, 0))
        head = self.word(self.cq_head)
        assert head.value != self.word(self.cq_tail).value, "no completion"
        cqe = self.rings + self.cqes + (head.value & self.word(self.cq_mask).value) * 16
        result = ctypes.c_int32.from_address(cqe + 8).value
        head.value += 1
        return result

globals().update(ring=ring, register=register, unregister=unregister, MappedRing=MappedRing, struct=struct)
"""
"""What the victim runs once. ``MappedRing`` is one that can read; of ``ring()`` nothing is mapped."""
