"""The program ``obedient`` as a target: system calls and stores, one by one, of which each is the test's own.

Unlike ``tests.support.victim``, which is an interpreter, it writes nothing that it was not told to but its own stack
and the buffers of its input and output, so that what a whole process has written is known.
"""

import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support import programs
from tests.support.programs import Program

PAGE: Final = 4096
HUGE: Final = 2 << 20

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_RW: Final = 3
MAP_SHARED: Final = 1
MAP_PRIVATE: Final = 2
MAP_DROPPABLE: Final = 8
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_NORESERVE: Final = 0x4000
MAP_HUGETLB: Final = 0x40000
ANONYMOUS: Final = MAP_PRIVATE | MAP_ANONYMOUS

MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_POPULATE_WRITE: Final = 23
MADV_COLLAPSE: Final = 25
MADV_GUARD_INSTALL: Final = 102
MADV_GUARD_REMOVE: Final = 103

MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4

NUMBERS: Final = {
    "read": 0,
    "write": 1,
    "open": 2,
    "close": 3,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "ioctl": 16,
    "pread64": 17,
    "pwrite64": 18,
    "readv": 19,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "shmget": 29,
    "shmat": 30,
    "getpid": 39,
    "execve": 59,
    "exit": 60,
    "kill": 62,
    "ftruncate": 77,
    "shmctl": 31,
    "sigaltstack": 131,
    "mlock": 149,
    "munlock": 150,
    "gettid": 186,
    "io_setup": 206,
    "io_destroy": 207,
    "io_getevents": 208,
    "io_submit": 209,
    "set_tid_address": 218,
    "sched_setaffinity": 203,
    "set_robust_list": 273,
    "vmsplice": 278,
    "fallocate": 285,
    "pipe2": 293,
    "perf_event_open": 298,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "memfd_create": 319,
    "userfaultfd": 323,
    "rseq": 334,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "map_shadow_stack": 453,
}
"""System calls by name, on x86-64."""


class Obedient:
    """The process. Addresses are in bytes; ``room`` is two pages of its memory for what system calls point to."""

    def __init__(self, program: Program) -> None:
        """Take over a program that is ready."""
        self.program = program
        self.pid = program.pid
        self.room = 0
        self.room = self.map(2)

    def do(self, line: str) -> list[int]:
        """Have it obey a line of commands; gives their answers."""
        return [int(word) for word in self.program.ask(line).split()]

    def call(self, name: str, *arguments: int) -> int:
        """Have it make a system call; gives the result.

        Raises:
            OSError: The call failed.
        """
        (result,) = self.do(command(name, *arguments))
        if -4096 < result < 0:
            raise OSError(-result, f"{name}: {os.strerror(-result)}")
        return result

    def map(
        self,
        pages: int,
        *,
        at: int = 0,
        protection: int = PROT_RW,
        flags: int = ANONYMOUS,
        fd: int = -1,
        offset: int = 0,
        filled: bool = True,
    ) -> int:
        """Have it map memory and write to each page of it; gives the address."""
        fixed = MAP_FIXED if at else 0
        address = self.call("mmap", at, pages * PAGE, protection, flags | fixed, fd, offset)
        if filled:
            self.fill(address, pages)
        return address

    def map_aligned(self, pages: int, *, alignment: int = HUGE, advice: int = 0, filled: bool = True) -> int:
        """Have it map private anonymous memory that begins at a multiple, advised before it is filled."""
        around = self.map(pages + alignment // PAGE, filled=False)
        address = (around + alignment - 1) & -alignment
        if advice:
            self.call("madvise", address, pages * PAGE, advice)
        if filled:
            self.fill(address, pages)
        return address

    def fill(self, address: int, pages: int, value: int = 1 << 32) -> None:
        """Have it write a word to each page."""
        assert self.do(f"fill {address} {pages} {value}") == [0]

    def store(self, *addresses: int, value: int = 7) -> None:
        """Have it write a word to each address."""
        for first in range(0, len(addresses), 1000):
            words = addresses[first : first + 1000]
            assert not any(self.do(";".join(f"store {address} {value}" for address in words)))

    def advise(self, address: int, pages: int, advice: int) -> None:
        """Have it call madvise(2)."""
        self.call("madvise", address, pages * PAGE, advice)

    def poke(self, address: int, content: bytes) -> None:
        """Have it write bytes."""
        assert self.do(f"poke {address} {content.hex()}") == [0]

    def word(self, address: int) -> int:
        """Have it read a word."""
        return self.do(f"load {address}")[0] & ((1 << 64) - 1)

    def peek(self, address: int, size_bytes: int) -> bytes:
        """Read its memory without it."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size_bytes, address)

    def pointed(self, content: bytes, *, at: int = 0) -> int:
        """Have it put an argument of a system call into the room; gives the address."""
        self.poke(self.room + at, content)
        return self.room + at

    def vector(self, address: int, size_bytes: int, *, at: int = 2048) -> int:
        """Have it put a ``struct iovec`` into the room; gives the address."""
        return self.pointed(struct.pack("QQ", address, size_bytes), at=at)

    def open(self, path: Path, flags: int = os.O_RDWR) -> int:
        """Have it open a file."""
        return self.call("open", self.pointed(os.fsencode(path) + b"\0"), flags, 0o600)

    def memfd(self, pages: int, flags: int = 0) -> int:
        """Have it make an unnamed file in memory."""
        fd = self.call("memfd_create", self.pointed(b"x\0"), flags)
        self.call("ftruncate", fd, pages * PAGE)
        return fd

    def pipe(self, flags: int = 0) -> tuple[int, int]:
        """Have it make a pipe."""
        self.call("pipe2", self.pointed(bytes(8)), flags)
        reading, writing = struct.unpack("ii", self.peek(self.room, 8))
        return reading, writing

    def flags_of(self, address: int) -> set[str]:
        """Give the flags of the mapping that holds an address."""
        inside = False
        for line in Path(f"/proc/{self.pid}/smaps").read_text(encoding="utf-8").splitlines():
            first = line.split(maxsplit=1)[0]
            if "-" in first:
                start, end = (int(part, 16) for part in first.split("-"))
                inside = start <= address < end
            elif inside and first == "VmFlags:":
                return set(line.split()[1:])
        return set()

    def smaps(self, address: int, name: str) -> int:
        """Give a number of KiB of the mapping that holds an address."""
        inside = False
        for line in Path(f"/proc/{self.pid}/smaps").read_text(encoding="utf-8").splitlines():
            first = line.split(maxsplit=1)[0]
            if "-" in first:
                start, end = (int(part, 16) for part in first.split("-"))
                inside = start <= address < end
            elif inside and first == f"{name}:":
                return int(line.split()[1])
        return 0


def command(name: str, *arguments: int) -> str:
    """Give the command that makes a system call."""
    return f"call {NUMBERS[name]} {' '.join(map(str, arguments))}"


@contextmanager
def obedient() -> Iterator[Obedient]:
    """Start the program."""
    # Where its C library has registered threads for restartable sequences, a test cannot.
    with programs.running("obedient", environment={"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}) as program:
        yield Obedient(program)
        if program.alive():
            os.kill(program.pid, signal.SIGCONT)
