"""The ``soft-dirty`` backend, as CRIU tracks: freeze, read the bits in pagemap, clear them, let go.

For kernels without asynchronous write-protection. The bit of a page is set by its first write after it was cleared;
reading and clearing are two steps, so the target and its descendants are frozen (``freeze``) for both. **That is
downtime in each round**: some 10 ms for each GiB that is mapped, holes included, and as much again for clearing; a
thread that waits for something may see EINTR, as signal(7) allows; other threads of the agent that hold the interpreter
add to it. Where the freeze fails, the bits are read and not cleared: then the next round has them once more, which is
too often and never too seldom.

The bits alone would lose pages. What is added:

- A page that is there and is the zero page has lost its content (zapped, then read): it counts as not populated, and so
  as vanished.
- A page that lies in another frame than before is reported, as *cautious*. mremap(2) moves whole page tables where it
  can, and sets no bit then; merging equal pages (KSM) drops bits. Pages that were only migrated or swapped come along.
- Shared memory, huge pages of hugetlbfs, and what looks swapped in a private file mapping are reported in every round,
  for the reasons that ``wp_async`` gives.

New pages and those of joined huge pages come with the bit set. execve(2) needs no care beyond telling: all of a new
memory is dirty by itself. Telling frames takes CAP_SYS_ADMIN.

The bits are one for all: whoever else clears them, CRIU for one, takes them from us unseen. Two agents exclude each
other.

Not seen, besides what no backend sees: writes from outside the frozen family (process_vm_writev, /proc/PID/mem) between
the reading of a bit and its clearing.

Source: Linux Documentation/admin-guide/mm/soft-dirty.rst; proc_pid_pagemap(5).
"""

import fcntl
import mmap
import os
import re
import select
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink.pages import PAGE_SIZE
from wetink.v1 import types_pb2
from wetink_agent import procfs, shared_memory
from wetink_agent.backend import Harvest
from wetink_agent.certainty import Certainty
from wetink_agent.errors import NoSuchProcess, NotPermitted, TargetExited, TargetReplaced, Untrackable
from wetink_agent.freeze import FREEZE_SECONDS_MAX, NotFrozen, while_frozen
from wetink_agent.runs import Runs, adjacent_runs, joined_runs
from wetink_agent.shared_memory import Range
from wetink_agent.unseen import Unseen

ENTRIES_AT_ONCE: Final = 1 << 17
"""Pages whose bits are read at once, 1 MiB: what the processor's cache holds."""

HAZARDS: Final = (
    "Each round stops the target and its descendants: some 20 ms for each GiB mapped, and at most 0.5 s to stop them.",
    "A thread that waits in epoll_wait, semop or sigtimedwait may see EINTR in each round.",
    "Whoever else clears soft-dirty bits, CRIU for one, takes them from the agent unseen.",
)
"""What can happen to a target or to its answers, one sentence each: printed where this backend is chosen."""

# Of a pagemap entry, proc_pid_pagemap(5).
_PRESENT: Final = np.uint64(1 << 63)
_SWAPPED: Final = np.uint64(1 << 62)
_FILE_OR_SHARED: Final = np.uint64(1 << 61)
_SOFT_DIRTY: Final = np.uint64(1 << 55)
_FRAME: Final = np.uint64((1 << 55) - 1)
_ENTRY_BYTES: Final = 8

_STOPPING_PAUSE_SECONDS: Final = 1e-3
_CLEAR_SOFT_DIRTY: Final = b"4"
_KERNEL_MADE: Final = re.compile(r"\[(?:vdso|vvar\w*|vsyscall|uprobes)\]")
_ANY_LINE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


def why_not_soft_dirty() -> str | None:
    """Say what ``soft-dirty`` lacks here, as the end of a sentence, or None where it lacks nothing.

    Looks at the bit of a page of its own: where the kernel has none, clearing succeeds and every bit stays 0.
    """
    lacking = "its page map does not report a write that happened (CONFIG_MEM_SOFT_DIRTY is off)"
    with _page_of_our_own() as page:
        page[0] = 1
        # First without clearing: this process may itself be somebody's target.
        if not _entry(page) & _SOFT_DIRTY:
            return lacking
        try:
            Path("/proc/self/clear_refs").write_bytes(_CLEAR_SOFT_DIRTY)
        except OSError as error:
            return f"soft-dirty bits cannot be cleared here: {error.strerror}"
        seen = [bool(_entry(page) & _SOFT_DIRTY)]
        page[0] = 2
        seen.append(bool(_entry(page) & _SOFT_DIRTY))
    return None if seen == [False, True] else lacking


@dataclass(slots=True)
class _Bits:
    """What one look at private memory found: all that is populated, in ascending order, and what of it was written.

    ``places`` has for each page in which frame, or where in swap, it lies.
    """

    maps: bytes
    pages: list[NDArray[np.uint64]] = field(default_factory=list)
    places: list[NDArray[np.uint64]] = field(default_factory=list)
    written: list[Runs] = field(default_factory=list)
    cautious: list[Runs] = field(default_factory=list)


class SoftDirty:
    """Tracks one process. Stops it and its descendants in each harvest; see the module."""

    kind: types_pb2.Backend.ValueType = types_pb2.BACKEND_SOFT_DIRTY

    def __init__(self, pid: int, scope: Sequence[Range] = ()) -> None:
        """Begin; nothing is cleared before the first harvest.

        Args:
            pid: The process.
            scope: The parts of the address space to track; empty means all of it.

        Raises:
            NoSuchProcess, NotPermitted, Untrackable: As they say.
        """
        self._pid = pid
        self._scope = tuple(sorted(scope))
        self._pidfd = -1
        self._clear_refs = -1
        self._maps = b""
        self._known: BitMap64 | None = None
        self._unseen = Unseen(pid)
        self._certainty = Certainty()
        self._zero_frame = _zero_frame()
        self._pages, self._places = _NOTHING, _NOTHING
        self._entries = np.empty(ENTRIES_AT_ONCE, dtype=np.uint64)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def handle(self) -> None:
        """See ``Backend.handle``: there is no descriptor that keeps anything."""

    def harvest(self) -> Harvest:
        """Do one round; see ``Backend.harvest``."""
        frozen = procfs.is_frozen(self._pid)
        began_time_ns = time.time_ns()
        try:
            began = time.monotonic()
            bits = self._look()
            held_seconds = time.monotonic() - began
            # Not in the freeze: it is reported whatever it holds.
            shared = self._shared(bits.maps)
            self._unseen.look(bits.maps, frozen=frozen)
            buffers = self._unseen.buffer_pages()
        except (NoSuchProcess, FileNotFoundError, ProcessLookupError) as error:
            raise _exited(self._pid) from error
        self._check_alive()

        mapped, unmapped = self._compare_maps(bits.maps)
        written, moved = joined_runs(bits.written).to_set(), self._moved(bits)
        populated = _as_runs(self._pages).to_set()
        if self._known is None:
            written |= populated
            self._known = BitMap64()
        evident_page_count = len(written)
        written |= joined_runs(bits.cautious).to_set()
        written |= moved
        # Moved pages may have changed, and are not in the next round for that.
        certain = BitMap64(written)
        written |= shared
        known = populated | written
        vanished = self._known - known
        self._known = known
        uncertain = self._certainty.settle(shared | buffers, certain=certain, reported=written, known=known)
        return Harvest(
            began_time_ns=began_time_ns,
            written=written,
            vanished=vanished,
            populated_page_count=len(known),
            cautious_page_count=len(written) - evident_page_count,
            frozen=frozen and self._is_frozen_again(),
            held_seconds=held_seconds,
            mapped=mapped,
            unmapped=unmapped,
            uncertain=uncertain,
            table=self._unseen.table(frozen=frozen),
        )

    def forget(self) -> None:
        """Make the next harvest a first one: everything populated will be written in it."""
        self._known = None
        self._certainty = Certainty()

    def close(self) -> None:
        """Let go. The bits stay as they are: they stand in nobody's way."""
        for fd in (self._clear_refs, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._clear_refs = self._pidfd = -1

    def _open(self) -> None:
        if not self._zero_frame:
            message = f"not permitted to track process {self._pid} with soft-dirty: give the agent CAP_SYS_ADMIN"
            raise NotPermitted(message)
        try:
            if procfs.stat(self._pid).is_kernel_thread:
                message = f"process {self._pid} is a kernel thread and has no memory of its own to track"
                raise Untrackable(message)
            self._pidfd = os.pidfd_open(self._pid)
            self._layout = procfs.layout(self._pid)
            self._clear_refs = os.open(f"/proc/{self._pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            os.close(self._open_pagemap())
            # Now, and not in the first round, it shows whether it may be frozen at all.
            self._refuse_the_unstoppable()
        except PermissionError as error:
            message = (
                f"not permitted to read and clear the page map of process {self._pid}: "
                "run the agent as its user, or with CAP_SYS_PTRACE and CAP_DAC_OVERRIDE"
            )
            raise NotPermitted(message) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            message = f"there is no process {self._pid}: it has exited, or the pid is wrong"
            raise NoSuchProcess(message) from error
        try:
            fcntl.flock(self._clear_refs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another agent tracks process {self._pid} with soft-dirty: only one can"
            raise Untrackable(message) from error

    def _refuse_the_unstoppable(self) -> None:
        tracer = procfs.tracer_of(self._pid)
        if tracer:
            message = (
                f"process {self._pid} is already traced by process {tracer}: "
                "detach that (a debugger, strace) and try again"
            )
            raise Untrackable(message)
        try:
            while_frozen(self._pid, lambda: None)
        except NotFrozen as error:
            # Everything else may be better the next time, and costs accuracy only.
            if isinstance(error.__cause__, PermissionError):
                raise error.__cause__ from error

    def _is_frozen_again(self) -> bool:
        """Whether a target that was stopped is so now. Let go by us, its threads wake up and stop again, first."""
        until = time.monotonic() + FREEZE_SECONDS_MAX
        while not (is_frozen := procfs.is_frozen(self._pid)) and time.monotonic() < until:
            time.sleep(_STOPPING_PAUSE_SECONDS)
        return is_frozen

    # The steps of a round, in their order.

    def _look(self) -> _Bits:
        """Read the bits and clear them while nothing runs; where it cannot be stopped, read them only."""
        try:
            return while_frozen(self._pid, self._read_and_clear)
        except NotFrozen:
            return self._read()

    def _read_and_clear(self) -> _Bits:
        bits = self._read()
        self._clear()
        return bits

    def _clear(self) -> None:
        os.pwrite(self._clear_refs, _CLEAR_SOFT_DIRTY, 0)

    def _read(self) -> _Bits:
        bits = _Bits(maps=procfs.read_maps(self._pid))
        hugetlb = procfs.memory_devices(self._pid, "hugetlbfs")
        pagemap = self._open_pagemap()
        try:
            for mapping in procfs.parse_maps(bits.maps):
                if mapping.shared or (not mapping.inode and _KERNEL_MADE.fullmatch(mapping.name)):
                    continue
                is_untold = procfs.is_hugetlb(mapping, hugetlb)
                for start, end in shared_memory.within(self._scope, mapping.start, mapping.end):
                    for page, entries in self._entries_in(pagemap, start, end):
                        self._tell(bits, page, entries, is_file=bool(mapping.inode), is_untold=is_untold)
        finally:
            os.close(pagemap)
        return bits

    def _tell(self, bits: _Bits, page: int, entries: NDArray[np.uint64], *, is_file: bool, is_untold: bool) -> None:
        """Tell of some pages of a private mapping which are populated, written, or cannot be told of."""
        present = (entries & _PRESENT) != 0
        populated = (present | ((entries & _SWAPPED) != 0)) & ((entries & _FILE_OR_SHARED) == 0)
        if not populated.any():
            return
        populated &= ~(present & ((entries & _FRAME) == self._zero_frame))
        indexes = np.flatnonzero(populated)
        bits.pages.append(indexes.astype(np.uint64) + np.uint64(page))
        bits.places.append(entries[indexes] & (_FRAME | _PRESENT))
        written = populated & ((entries & _SOFT_DIRTY) != 0)
        bits.written.append(_runs(written, page))
        if is_untold:
            bits.cautious.append(_runs(populated, page))
        elif is_file:
            # The marker that a zap leaves where userfaultfd was at work looks like a page in swap.
            bits.cautious.append(_runs(populated & ~present, page))

    def _entries_in(self, pagemap: int, start: int, end: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Read the entries of addresses; each array, with its first page, is gone when the next is asked for."""
        for page in range(start // PAGE_SIZE, end // PAGE_SIZE, ENTRIES_AT_ONCE):
            entries = self._entries[: min(ENTRIES_AT_ONCE, end // PAGE_SIZE - page)]
            # Short where the memory is a dead one, which the look at its end finds out.
            size_bytes = os.preadv(pagemap, [entries.data], page * _ENTRY_BYTES)
            yield page, entries[: size_bytes // _ENTRY_BYTES]

    def _moved(self, bits: _Bits) -> BitMap64:
        """Find the pages that lie elsewhere than in the round before, and remember where all lie now."""
        pages, places = (np.concatenate([_NOTHING, *parts]) for parts in (bits.pages, bits.places))
        found = np.ones(pages.size, dtype=np.bool_)
        if self._pages.size:
            before = np.minimum(np.searchsorted(self._pages, pages), self._pages.size - 1)
            found = (self._pages[before] != pages) | (self._places[before] != places)
        self._pages, self._places = pages, places
        return _as_runs(pages[found]).to_set()

    def _shared(self, maps: bytes) -> BitMap64:
        """Find what there is of shared memory."""
        found = BitMap64()
        for part in shared_memory.find(self._pid, maps, self._scope):
            pages = shared_memory.object_pages(self._pid, part)
            found |= self._mapped_pages(part.span) if pages is None else pages.to_set()
        return found

    def _mapped_pages(self, span: Range) -> BitMap64:
        """Find what a process's own page table shows of shared memory, and what was reported of it before.

        So that what was reported is at least not said to have vanished.
        """
        start, end = span
        known = BitMap64()
        known.add_range(start // PAGE_SIZE, end // PAGE_SIZE)
        known &= self._known or BitMap64()
        pagemap = self._open_pagemap()
        try:
            for page, entries in self._entries_in(pagemap, start, end):
                known |= _runs((entries & (_PRESENT | _SWAPPED)) != 0, page).to_set()
        finally:
            os.close(pagemap)
        return known

    def _check_alive(self) -> None:
        """Make sure that what was read is the memory of the process, which may have exited or called execve(2).

        Raises:
            TargetExited, TargetReplaced: As they say.
        """
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        try:
            is_same = not poll.poll(0) and procfs.layout(self._pid) == self._layout
        except NoSuchProcess as error:
            raise _exited(self._pid) from error
        if poll.poll(0):
            raise _exited(self._pid)
        if not is_same:
            message = f"process {self._pid} replaced its memory with execve(2)"
            raise TargetReplaced(message)

    def _compare_maps(self, maps: bytes) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
        """Tell which mappings came and which went since the last look."""
        before, self._maps = self._maps, maps
        if before in {b"", maps}:
            return (), ()
        old, new = (set(_ANY_LINE.findall(text)) for text in (before, maps))
        return _addresses(new - old), _addresses(old - new)

    def _open_pagemap(self) -> int:
        # Anew in each round: after execve(2) it would still be that of the old memory, and clear_refs of the new one.
        return procfs.open_pagemap(self._pid)


def _page_of_our_own() -> mmap.mmap:
    return mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _entry(page: mmap.mmap) -> np.uint64:
    """Read the page map's entry of a page of this process."""
    view = np.frombuffer(page, dtype=np.uint8)
    address = view.ctypes.data
    del view  # or the page could not be closed
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return np.uint64(int.from_bytes(os.pread(fd, _ENTRY_BYTES, address // PAGE_SIZE * _ENTRY_BYTES), "little"))
    finally:
        os.close(fd)


def _zero_frame() -> np.uint64:
    """Give the frame of the zero page, which is the same in all processes; 0 where we may not know."""
    with _page_of_our_own() as page:
        page[:1]  # a read makes it the zero page
        return _entry(page) & _FRAME


def _runs(pages: NDArray[np.bool_], first: int) -> Runs:
    """Give the runs of pages that are marked, counted from the first."""
    edges = np.flatnonzero(np.diff(pages, prepend=False, append=False)).astype(np.uint64) + np.uint64(first)
    return Runs(edges[::2], edges[1::2])


_NOTHING: Final = np.empty(0, dtype=np.uint64)


def _as_runs(pages: NDArray[np.uint64]) -> Runs:
    """Give the runs of ascending pages."""
    return adjacent_runs(pages, pages + np.uint64(1))


def _addresses(lines: set[tuple[bytes, bytes]]) -> tuple[Range, ...]:
    return tuple(sorted((int(start, 16), int(end, 16)) for start, end in lines))


def _exited(pid: int) -> TargetExited:
    return TargetExited(f"process {pid} exited")
