"""Lines for the program ``obedient`` that do anything a process can do to its memory, drawn from a seed.

What they do is chosen without looking at what came of it: calls that fail and stores to nothing are part of the game.
Everything happens in an arena of addresses, so that the program's own memory stays whole. Two buffers lie outside: one
that is registered with an io_uring, and one that direct reads go to while rounds go on, which nothing can tell of.
"""

import contextlib
import os
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support import obedient as ob
from tests.support.obedient import PAGE, Obedient, command
from tests.support.rings import READ, READ_FIXED, Ring

if TYPE_CHECKING:
    from collections.abc import Callable

ARENA_PAGES: Final = 3072
FILE_PAGES: Final = 512
BUFFER_PAGES: Final = 64
HUGE_PAGES: Final = 512
HEAP_PAGES_MAX: Final = 256

GUARDED: Final = 0.03
"""Share of guard regions in advices."""

COMMANDS_A_LINE: Final = 12

_ADVICE: Final = (
    *(ob.MADV_DONTNEED,) * 6,
    *(ob.MADV_FREE, ob.MADV_PAGEOUT, ob.MADV_PAGEOUT, ob.MADV_COLD, ob.MADV_REMOVE, ob.MADV_POPULATE_WRITE),
    *(ob.MADV_HUGEPAGE, ob.MADV_HUGEPAGE, ob.MADV_NOHUGEPAGE, ob.MADV_COLLAPSE, ob.MADV_MERGEABLE),
    *(ob.MADV_UNMERGEABLE,),
)


class Operations:
    """The operations on one target, from its start or from an exec to the next. Two of a seed are the same."""

    def __init__(self, target: Obedient, file: Path, seed: int) -> None:
        """Have the target make what the operations need.

        Args:
            target: Fresh.
            file: Of FILE_PAGES, on a disk.
            seed: Of all that is chosen.
        """
        self._choose = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._value = 1
        self._target = target
        self._arena = target.map_aligned(ARENA_PAGES, filled=False)
        self._file = target.open(file)
        self._memfd = target.memfd(FILE_PAGES)
        self._pipe = target.pipe(os.O_NONBLOCK)
        self._heap = target.call("brk", 0)
        self._heap_pages = 0
        self._direct_buffer = target.map(BUFFER_PAGES)
        self._registered_buffer = target.map(BUFFER_PAGES)
        self._direct = -1
        with contextlib.suppress(OSError):  # then these operations fail, as others do
            self._direct = target.open(file, os.O_RDONLY | os.O_DIRECT)
        self._ring: Ring | None = None
        try:
            self._ring = Ring(target)
            self._ring.register(self._registered_buffer, BUFFER_PAGES * PAGE)
        except OSError:
            self._ring = None
        kinds: dict[Callable[[], str], int] = {
            self._store: 30,
            self._fill: 12,
            self._touch: 6,
            self._map: 8,
            self._unmap: 3,
            self._protect: 6,
            self._advise: 16,
            self._move: 6,
            self._resize: 3,
            self._read: 6,
            self._readv: 3,
            self._through_pipe: 3,
            self._read_directly: 1,
            self._write_to_file: 3,
            self._change_object: 3,
            self._fork: 2,
            self._lock: 1,
            self._grow_heap: 2,
            self._grow_stack: 1,
        }
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def lines(self, count: int) -> list[str]:
        """Give lines of so many operations, for the target to obey whenever it comes to them."""
        lines: list[list[str]] = [[]]
        for kind in self._choose.choices(self._kinds, self._weights, k=count):
            lines[-1].append(kind())
            # A child does all that follows in its line.
            if kind == self._fork or len(lines[-1]) == COMMANDS_A_LINE:
                lines.append([])
        return [";".join(line) for line in lines if line]

    def do_what_must_not_overlap_a_round(self) -> None:
        """Have what writes past the page table write to the arena: it begins and ends between two rounds."""
        for _ in range(self._choose.randrange(3)):
            address, pages = self._run(64)
            self._target.do(self._direct_read(address, pages))
        for _ in range(self._choose.randrange(12)):
            self._target.do(self._vm_writev())
        if self._ring is not None:
            pages = self._choose.randint(1, 16)
            to_buffer = self._choose.random() < 0.5
            address = self._registered_buffer if to_buffer else self._arena + self._choose.randrange(1024) * PAGE
            operation = READ_FIXED if to_buffer else READ
            self._ring.read(self._file, address, pages * PAGE, operation=operation)

    def is_direct(self, page: int) -> bool:
        """Whether a page is of the buffer that direct reads go to while rounds go on."""
        return 0 <= page - self._direct_buffer // PAGE < BUFFER_PAGES

    # Each gives one or more commands.

    def _page(self, page: int) -> int:
        return self._arena + page * PAGE

    def _run(self, pages_max: int) -> tuple[int, int]:
        """Choose a run of pages: mostly short ones, and sometimes whole huge pages."""
        if self._choose.random() < 0.1:
            return self._page(self._choose.randrange(ARENA_PAGES // HUGE_PAGES) * HUGE_PAGES), HUGE_PAGES
        pages = min(int(self._choose.paretovariate(0.7)), pages_max)
        return self._page(self._choose.randrange(ARENA_PAGES - pages)), pages

    def _next_value(self, count: int = 1) -> int:
        self._value += count
        return self._value << 8

    def _store(self) -> str:
        address = self._page(self._choose.randrange(ARENA_PAGES)) + self._choose.randrange(PAGE // 8) * 8
        return f"store {address} {self._next_value()}"

    def _fill(self) -> str:
        address, pages = self._run(128)
        return f"fill {address} {pages} {self._next_value(pages)}"

    def _touch(self) -> str:
        address, pages = self._run(64)
        return f"touch {address} {pages}"

    def _map(self) -> str:
        address, pages = self._run(256)
        offset = self._choose.randrange(FILE_PAGES - min(pages, FILE_PAGES - 1)) * PAGE
        flags, fd = self._choose.choice(
            (
                *((ob.ANONYMOUS, -1),) * 4,
                (ob.MAP_SHARED | ob.MAP_ANONYMOUS, -1),
                (ob.MAP_SHARED, self._memfd),
                (ob.MAP_PRIVATE, self._memfd),
                (ob.MAP_PRIVATE, self._file),
                (ob.MAP_SHARED, self._file),
            )
        )
        mapped = command("mmap", address, pages * PAGE, ob.PROT_RW, flags | ob.MAP_FIXED, fd, offset if fd >= 0 else 0)
        return f"{mapped};fill {address} {self._choose.randint(1, pages)} {self._next_value(pages)}"

    def _unmap(self) -> str:
        address, pages = self._run(64)
        return command("munmap", address, pages * PAGE)

    def _protect(self) -> str:
        address, pages = self._run(64)
        protection = self._choose.choice((ob.PROT_NONE, ob.PROT_READ, ob.PROT_RW, ob.PROT_RW, ob.PROT_RW))
        return command("mprotect", address, pages * PAGE, protection)

    def _advise(self) -> str:
        address, pages = self._run(256)
        if self._choose.random() < GUARDED:
            # Where copies of a file's pages are armed, this lasts until the next round.
            advice = self._choose.choice((ob.MADV_GUARD_INSTALL, ob.MADV_GUARD_REMOVE))
            return command("madvise", address, min(pages, 8) * PAGE, advice)
        return command("madvise", address, pages * PAGE, self._choose.choice(_ADVICE))

    def _move(self) -> str:
        address, pages = self._run(64)
        to, _ = self._run(1)
        to = min(to, self._page(ARENA_PAGES - pages))
        flags = ob.MREMAP_MAYMOVE | ob.MREMAP_FIXED
        if self._choose.random() < 0.25:
            flags |= ob.MREMAP_DONTUNMAP
        return command("mremap", address, pages * PAGE, pages * PAGE, flags, to)

    def _resize(self) -> str:
        address, pages = self._run(64)
        return command("mremap", address, pages * PAGE, self._choose.randint(1, 2 * pages) * PAGE, 0, 0)

    def _offset(self, pages: int) -> int:
        return self._choose.randrange(FILE_PAGES - min(pages, FILE_PAGES - 1)) * PAGE

    def _read(self) -> str:
        address, pages = self._run(64)
        return command("pread64", self._file, address + self._choose.randrange(PAGE), pages * PAGE, self._offset(pages))

    def _vectors(self, count: int) -> str:
        """Give the command that puts a ``struct iovec`` of each of so many runs into the room."""
        runs = [self._run(8) for _ in range(count)]
        vectors = b"".join(struct.pack("QQ", address + 100, pages * PAGE) for address, pages in runs)
        return f"poke {self._target.room} {vectors.hex()}"

    def _readv(self) -> str:
        return f"{self._vectors(3)};{command('readv', self._file, self._target.room, 3)};call 8 {self._file} 0 0"

    def _through_pipe(self) -> str:
        address, _ = self._run(1)
        size_bytes = self._choose.randint(1, PAGE)
        written = command("write", self._pipe[1], self._target.room, size_bytes)
        read = command("read", self._pipe[0], address + self._choose.randrange(PAGE), size_bytes)
        # Where the read failed, there is something left, and else this one does: neither waits.
        rest = command("read", self._pipe[0], self._target.room + PAGE, PAGE)
        return f"{written};{read};{rest}"

    def _direct_read(self, address: int, pages: int) -> str:
        return command("pread64", self._direct, address, pages * PAGE, self._offset(pages))

    def _read_directly(self) -> str:
        return self._direct_read(self._direct_buffer, self._choose.randint(1, BUFFER_PAGES))

    def _vm_writev(self) -> str:
        room = self._target.room
        address, pages = self._run(16)
        source, _ = self._run(1)
        vectors = struct.pack("QQQQ", source, pages * PAGE, address, pages * PAGE)
        write = command("process_vm_writev", self._target.pid, room, 1, room + 16, 1, 0)
        return f"poke {room} {vectors.hex()};{write}"

    def _write_to_file(self) -> str:
        address, pages = self._run(16)
        fd = self._choose.choice((self._file, self._memfd))
        return command("pwrite64", fd, address, pages * PAGE, self._offset(pages))

    def _change_object(self) -> str:
        """Take pages out of the memfd, through its descriptor."""
        pages = self._choose.randint(1, 64)
        if self._choose.random() < 0.5:
            return command("fallocate", self._memfd, 3, self._offset(pages), pages * PAGE)
        shorter = command("ftruncate", self._memfd, (FILE_PAGES - pages) * PAGE)
        return f"{shorter};{command('ftruncate', self._memfd, FILE_PAGES * PAGE)}"

    def _fork(self) -> str:
        address, pages = self._run(16)
        return f"{self._choose.choice(('fork', 'vfork'))} fill {address} {pages} {self._next_value(pages)}"

    def _lock(self) -> str:
        address, pages = self._run(64)
        return f"{command('mlock', address, pages * PAGE)};{command('munlock', address, pages * PAGE)}"

    def _grow_heap(self) -> str:
        self._heap_pages = min(self._heap_pages + self._choose.randint(0, 4), HEAP_PAGES_MAX)
        grown = command("brk", self._heap + self._heap_pages * PAGE)
        place = self._heap + self._choose.randrange(max(1, self._heap_pages * PAGE - 8))
        return f"{grown};store {place} {self._next_value()}"

    def _grow_stack(self) -> str:
        return f"stack {self._choose.randint(1, 100)}"
