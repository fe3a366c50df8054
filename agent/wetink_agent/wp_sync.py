"""The ``wp-sync`` backend: the kernel sends a message for each first write and holds the writer until it is answered.

The messages say who wrote, where, when and in which order. What is dirty is decided by the page tables all the same: a
populated page without protection is *written*, whatever has taken the protection away (an answered message, a
zap and a refill, a new mapping, a merge by KSM), so that what no message tells of is never missed. Each round:

1. one scan gives what is populated and which of it is unprotected.
2. the messages recorded so far are taken: they are of this round where their page was unprotected in the scan.
3. each mapping is asked whether it is registered; all that is populated in one that is not is written, and it is
   registered.
4. exactly the written pages are protected, no page between them: it may be filled meanwhile, unnoticed.
5. what was known and is not populated has vanished.

One scan serves where ``wp-async`` needs two audits beside it, because it does not skip what is not registered: there is
no time between two looks. Written after the scan and before step 4 means reported in this round; written after
step 4 means a message, or memory that the next scan finds unprotected.

No EVENT_* feature is asked for: their events would make the target wait in fork, madvise and munmap too.

What the kernel does not protect in this mode is reported in every round, as *cautious*: shared memory, hugetlb, and the
process's own pages of private file mappings. Holes are not protected, so that their first write makes no message.

Source: ioctl_userfaultfd(2); Linux kernel commit 52526ca7fdb9 ("fs/proc/task_mmu: implement IOCTL to get and optionally
clear info about PTEs") (in v6.7).
"""

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink.pages import runs as runs_of
from wetink.v1 import types_pb2
from wetink_agent import procfs, shared_memory
from wetink_agent.backend import Harvest
from wetink_agent.errors import Untrackable
from wetink_agent.events import Events, joined, named, translated
from wetink_agent.pagemap_scan import POPULATED, region_runs
from wetink_agent.resolver import MESSAGE, Log, Resolver
from wetink_agent.resolver_loop import open_resolver
from wetink_agent.runs import Runs, adjacent_runs, joined_runs
from wetink_agent.shared_memory import Range
from wetink_agent.uapi import fs
from wetink_agent.uapi import userfaultfd as uf
from wetink_agent.wp_async import WpAsync

FEATURES: Final = uf.UFFD_FEATURE_PAGEFAULT_FLAG_WP | uf.UFFD_FEATURE_THREAD_ID | uf.UFFD_FEATURE_EXACT_ADDRESS
"""What ``wp-sync`` asks the kernel for."""

SPAN_BYTES_MAX: Final = 2 << 20
"""The most memory that one message un-protects: about 40 µs in the kernel."""

ARM_BYTES: Final = 64 << 20
"""Memory that one ioctl protects: the kernel holds the target's mmap_lock for about 2 ms."""

HAZARDS: Final = (
    "Each first write to a page waits for the agent's answer: some 10 to 20 µs, and longer while the agent is busy.",
    "A stopped agent (SIGSTOP, a debugger) stops every thread that writes; a killed one does not.",
    "A thread that exits may leave its thread id in a protected page: pthread_join(3) can then wait for ever.",
    "A robust mutex whose owner is killed may not become EOWNERDEAD when it lies in a protected page.",
    "A thread whose system call writes to protected memory cannot be stopped before the agent has answered.",
    "A debugger's write to protected memory fails with EIO (PTRACE_POKEDATA, /proc/PID/mem): a breakpoint, say.",
    "KSM takes the protection from pages that it merges: they are reported, but their next writes make no events.",
    "With UFFD_USER_MODE_ONLY, read(2) into protected memory fails, and a signal on a protected stack kills.",
    "A process that the agent waits for (its collector, a proxy, a FUSE server) may come to wait for the agent.",
)
"""What can happen to a target, one sentence each: printed where this backend is chosen."""

_WRITTEN: Final = np.uint64(fs.PAGE_IS_WRITTEN)
_PAGE_SHIFT: Final = np.uint64(PAGE_SIZE.bit_length() - 1)
_ADDRESS_END: Final = 0x7FFFFFFFF000
_CAP_SYS_PTRACE: Final = 1 << 19


class WpSync(WpAsync):
    """Tracks one process. It owns the userfaultfd, of which there is no other copy."""

    kind: types_pb2.Backend.ValueType = types_pb2.BACKEND_WP_SYNC
    features: int = FEATURES
    features_forbidden: int = uf.UFFD_FEATURE_WP_ASYNC | uf.UFFD_FEATURE_SIGBUS
    newest_feature: str = "UFFD_FEATURE_EXACT_ADDRESS (Linux 5.18 has it)"
    # The kernel takes those of tmpfs and memfd, and a zap leaves a marker there that looks like a protected page.
    registers_files: bool = False

    def __init__(
        self, pid: int, uffd: int, scope: Sequence[Range] = (), *, span_bytes_max: int = SPAN_BYTES_MAX
    ) -> None:
        """Take over a userfaultfd; nothing is protected before the first harvest.

        Args:
            pid: The process it is over.
            uffd: The descriptor, owned from now on, also when this fails.
            scope: The parts of the address space to track; empty means all of it.
            span_bytes_max: The most memory that one message un-protects. One page gives an event for each page.

        Raises:
            KernelLacks: Its kernel has no synchronous write-protection with thread ids, or no scan.
            NoSuchProcess, NotPermitted, Untrackable: As they say.
        """
        self._resolver: Resolver | None = None
        self._fresh: list[Range] = []
        self._refused = BitMap64()
        self._refused_in = b""
        self._carried = _NO_EVENTS
        super().__init__(pid, uffd, scope)
        self._resolver = open_resolver(uffd, span_pages_max=max(1, span_bytes_max // PAGE_SIZE))

    @property
    def handle(self) -> None:
        """See ``Backend.handle``: a target would wait for the next process at its next write."""

    def harvest(self) -> Harvest:
        """Do one round; see ``Backend.harvest``."""
        assert self._resolver is not None
        frozen = procfs.is_frozen(self._pid)
        began_time_ns = time.time_ns()
        mapped, unmapped = self._look_at_maps()
        answered_count = self._resolver.answered_count
        populated, unprotected = self._look()
        log = self._resolver.take()
        if log is None:
            message = f"process {self._pid} is not tracked any more: {self._resolver.error}"
            raise Untrackable(message) from self._resolver.error
        events = self._events(log, answered_count, unprotected)
        self._look_at_registration(populated)
        pages = populated.to_set()
        reported = unprotected.to_set() | (pages - self._ours)
        unprotectable = self._protect(reported)
        self._unseen.look(self._maps, frozen=frozen)
        buffers = self._unseen.buffer_pages()
        shared = self._shared().to_set()
        self._check_alive()

        # Un-protected together with a page that was written, and perhaps not written themselves.
        beyond = (log.beyond & reported) - _pages(events)
        evident_page_count = len(reported) - len(beyond) - len(unprotectable)
        # All others may have been written to, and are not in the next round for that.
        certain = BitMap64(reported)
        reported |= shared
        cautious_page_count = len(reported) - evident_page_count
        vanished, known_page_count = self._compare(pages, reported)
        assert self._known is not None
        uncertain = self._certainty.settle(shared | buffers, certain=certain, reported=reported, known=self._known)
        return Harvest(
            began_time_ns=began_time_ns,
            written=reported,
            vanished=vanished,
            populated_page_count=known_page_count,
            cautious_page_count=max(cautious_page_count, len(uncertain)),
            frozen=frozen and procfs.is_frozen(self._pid),
            mapped=mapped,
            unmapped=unmapped,
            uncertain=uncertain,
            table=self._unseen.table(frozen=frozen),
            events=named(translated(events, self._pid), self._pid),
        )

    def close(self) -> None:
        """Let go: the kernel unregisters everything and wakes who waits."""
        # In this order: while the resolver still reads it, the descriptor must not become another file's.
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None
        super().close()

    # The steps of a round, in their order.

    def _look(self) -> tuple[Runs, Runs]:
        """Find what is populated, and what of it is unprotected."""
        populated, unprotected = [], []
        # Pages of a file are left out, as in ``WpAsync``.
        spans = [
            (max(start, first), min(end, last))
            for start, end in self._plan
            for first, last in self._audited
            if max(start, first) < min(end, last)
        ]
        for regions in self._scan(
            spans, mask=fs.PAGE_IS_FILE, inverted=fs.PAGE_IS_FILE, returned=fs.PAGE_IS_WRITTEN | POPULATED
        ):
            populated.append(region_runs(regions))
            unprotected.append(region_runs(regions[(regions[:, 2] & _WRITTEN) != 0]))
        return joined_runs(populated), joined_runs(unprotected)

    def _events(self, log: Log, answered_count: int, unprotected: Runs) -> Events:
        """Give the events of this round, one a page, and keep those of the next.

        A message that was answered during the scan is of this round where the scan found its page unprotected already.
        """
        messages, times_ns = log.messages[: log.count], log.times_ns[: log.count]
        pages = messages["arg"]["pagefault"]["address"] >> _PAGE_SHIFT
        is_now = np.ones(log.count, dtype=bool)
        is_now[answered_count:] = _are_in(pages[answered_count:], unprotected)
        carried, self._carried = self._carried, decoded(messages[~is_now], times_ns[~is_now])
        now = decoded(messages[is_now], times_ns[is_now], log.lost_count)
        return first_of_each_page(joined([carried, now]))

    def _look_at_registration(self, populated: Runs) -> None:
        """Find out which mappings are registered now: neither their list nor what we did before tells.

        mremap(2) can take the registration from a whole mapping with which what it moves is joined, and leave the marks
        of protection on its pages, which then mean nothing: "mm/vma: avoid broken uffd merge on mremap", in v7.3.4.
        """
        starts, ends = populated.starts << _PAGE_SHIFT, populated.ends << _PAGE_SHIFT
        for mapping in procfs.parse_maps(self._maps):
            if mapping.shared:
                continue
            if mapping.inode:
                # Registered by us all the same, where it took the place of other memory just before that was: a zap
                # leaves marks of protection on its pages, under which is what the file holds.
                self._ours.remove_range(mapping.start // PAGE_SIZE, mapping.end // PAGE_SIZE)
                continue
            index = int(np.searchsorted(ends, mapping.start, side="right"))
            if index == ends.size or int(starts[index]) >= mapping.end:
                continue
            first, last = mapping.start // PAGE_SIZE, mapping.end // PAGE_SIZE
            if not self._is_registered(max(mapping.start, int(starts[index]))):
                self._ours.remove_range(first, last)
            elif self._ours.range_cardinality(first, last) < last - first:
                # It has grown, or been joined with another of ours; or it is the target's own, as this finds out.
                for span in shared_memory.within(self._scope, mapping.start, mapping.end):
                    super()._register_span(span)

    def _is_registered(self, address: int) -> bool:
        """Whether a populated page is registered: the kernel says that it is filled only where it is."""
        argument = uf.uffdio_zeropage(range=uf.uffdio_range(start=address, len=PAGE_SIZE))
        try:
            syscalls.ioctl(self._uffd, uf.UFFDIO_ZEROPAGE, argument, "UFFDIO_ZEROPAGE")
        except OSError as error:
            return error.errno == errno.EEXIST
        return True  # it was given back a moment ago, and holds zeros as it would have

    def _register_span(self, span: Range) -> None:
        super()._register_span(span)
        self._fresh.append(span)

    def _register_what_is_not(self, reported: BitMap64) -> None:
        """Register what lies under no registration; what the kernel refuses, once for each list of mappings.

        What is registered now may bear marks of protection that mean nothing: all of it is written.
        """
        if self._refused_in != self._maps:
            self._refused.clear()
        if found := reported - self._ours - self._refused:
            self._fresh.clear()
            self._register(Runs(*runs_of(found)))
            self._refused |= found - self._ours
            for span in self._fresh:
                reported |= self._populated_in([span], mask=fs.PAGE_IS_FILE, inverted=fs.PAGE_IS_FILE).to_set()
        self._refused_in = self._maps

    def _protect(self, reported: BitMap64) -> BitMap64:
        """Protect pages again, and register what they lie in where it is not; give those that cannot be."""
        self._register_what_is_not(reported)
        if lost := self._protect_ours(reported & self._ours):
            # New mappings in the place of ours, which look the same in the list of mappings.
            self._ours -= lost
            self._register_what_is_not(reported)
            self._protect_ours(reported & self._ours)
        return reported - self._ours

    def _protect_ours(self, pages: BitMap64) -> BitMap64:
        """Protect pages; give those that are not registered any more. What stays unprotected the next scan finds."""
        lost = BitMap64()
        argument = uf.uffdio_writeprotect(mode=uf.UFFDIO_WRITEPROTECT_MODE_WP)
        span = argument.range
        starts, ends = runs_of(pages)
        for start, end in zip((starts << _PAGE_SHIFT).tolist(), (ends << _PAGE_SHIFT).tolist(), strict=True):
            for at in range(start, end, ARM_BYTES):
                span.start = at
                span.len = min(ARM_BYTES, end - at)
                try:
                    syscalls.ioctl(self._uffd, uf.UFFDIO_WRITEPROTECT, argument, "UFFDIO_WRITEPROTECT")
                except OSError as error:
                    if error.errno == errno.ESRCH:
                        self._check_alive()
                    elif error.errno == errno.ENOENT:
                        lost.add_range(at // PAGE_SIZE, (at + span.len) // PAGE_SIZE)
                    elif error.errno != errno.EAGAIN:
                        raise
        return lost

    def _compare(self, populated: BitMap64, reported: BitMap64) -> tuple[BitMap64, int]:
        """Compare with what was known and remember what is; give what vanished, and how much is known now."""
        if self._known is None:
            reported |= populated
            self._known = BitMap64()
        known = populated | reported
        vanished = self._known - known
        self._known = known
        return vanished, len(known)

    def _has_our_registration(self) -> bool:
        """Whether the memory that the process runs on now has something protected, where the one we scan has."""
        try:
            pagemap = self._open_pagemap()
        except PermissionError:
            return True  # as in ``WpAsync``
        try:
            return _has_protected(pagemap) or not _has_protected(self._pagemap)
        except ProcessLookupError:
            return False
        finally:
            os.close(pagemap)


def why_risky(pid: int) -> str | None:
    """Say which of the hazards bites a process, as a sentence, or None where none is known to.

    Raises:
        NoSuchProcess: It is not there.
    """
    if pid in _line_of(os.getpid()):
        return f"process {pid} is the agent or started it: the agent would come to wait for itself"
    if "wetink-collector" in (command := procfs.command(pid, whole=True)) or "wetink_collector" in command:
        return f"process {pid} is a collector: the agent would come to wait for itself"
    thread_count = len(procfs.threads(pid))
    if thread_count > 1:
        return (
            f"process {pid} has {thread_count} threads: one that exits while its memory is protected may leave another "
            "waiting for ever"
        )
    if _merges(pid):
        return f"process {pid} has memory that KSM merges: writes to it make no events"
    if _may_not_have_full_mode(pid):
        return (
            f"process {pid} may have only UFFD_USER_MODE_ONLY: read(2) into protected memory fails there, and a signal "
            "can kill it"
        )
    return None


def why_not_wp_sync() -> str | None:
    """Say which feature ``wp-sync`` lacks here, as the end of a sentence, or None where it lacks nothing."""
    try:
        uffd = syscalls.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | uf.UFFD_USER_MODE_ONLY)
    except OSError as error:
        return f"userfaultfd(2) fails here: {error.strerror}"
    try:
        syscalls.ioctl(uffd, uf.UFFDIO_API, uf.uffdio_api(api=uf.UFFD_API, features=FEATURES), "UFFDIO_API")
    except OSError:
        return "it lacks UFFD_FEATURE_EXACT_ADDRESS (Linux 5.18 and later have it)"
    finally:
        os.close(uffd)
    return _why_not_scan()


def decoded(messages: NDArray[np.void], times_ns: NDArray[np.uint64], lost_count: int = 0) -> Events:
    """Turn messages into columns."""
    page_fault = messages["arg"]["pagefault"]
    return Events(
        addresses=np.ascontiguousarray(page_fault["address"]),
        uffd_flags=np.ascontiguousarray(page_fault["flags"]),
        thread_ids=np.ascontiguousarray(page_fault["feat"]["ptid"]),
        times_ns=times_ns,
        instruction_pointers=np.empty(0, dtype=np.uint64),
        lost_count=lost_count,
    )


def first_of_each_page(events: Events) -> Events:
    """Leave out what is not the first of its page: threads that write to a page at once fault on it together."""
    pages = events.addresses >> _PAGE_SHIFT
    _, indexes = np.unique(pages, return_index=True)
    if indexes.size == pages.size:
        return events
    indexes.sort()
    return Events(
        events.addresses[indexes],
        events.uffd_flags[indexes],
        events.thread_ids[indexes],
        events.times_ns[indexes],
        events.instruction_pointers,
        events.lost_count,
    )


def _pages(events: Events) -> BitMap64:
    pages = np.unique(events.addresses >> _PAGE_SHIFT)
    return adjacent_runs(pages, pages + np.uint64(1)).to_set()


def _are_in(pages: NDArray[np.uint64], runs: Runs) -> NDArray[np.bool_]:
    """Tell which pages are in runs."""
    if not runs.starts.size:
        return np.zeros(pages.size, dtype=bool)
    index = np.searchsorted(runs.ends, pages, side="right")
    inside = index < runs.ends.size
    inside &= runs.starts[np.minimum(index, runs.ends.size - 1)] <= pages
    return inside


def _has_protected(pagemap: int) -> bool:
    """Whether anything in a memory is protected; looks no further than the first."""
    region = np.empty(3, dtype=np.uint64)
    outside = fs.PAGE_IS_WRITTEN | fs.PAGE_IS_FILE
    argument = fs.pm_scan_arg(
        size=syscalls.size_bytes(fs.pm_scan_arg),
        start=PAGE_SIZE,
        end=_ADDRESS_END,
        vec=region.ctypes.data,
        vec_len=1,
        max_pages=1,
        category_inverted=outside,
        category_mask=outside,
        category_anyof_mask=POPULATED,
        return_mask=POPULATED,
    )
    return syscalls.ioctl(pagemap, fs.PAGEMAP_SCAN, argument, "PAGEMAP_SCAN") > 0


def _why_not_scan() -> str | None:
    """Say what the scan lacks, tried on nothing."""
    argument = fs.pm_scan_arg(size=syscalls.size_bytes(fs.pm_scan_arg), start=PAGE_SIZE, end=PAGE_SIZE)
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.ioctl(fd, fs.PAGEMAP_SCAN, argument, "PAGEMAP_SCAN")
        finally:
            os.close(fd)
    except OSError:
        return "it lacks PAGEMAP_SCAN (Linux 6.7 and later have it)"
    return None


def _line_of(pid: int) -> set[int]:
    """Give a process and those that it descends from."""
    line = set()
    while pid:
        line.add(pid)
        pid = procfs.stat(pid).parent_pid
    return line


def _merges(pid: int) -> bool:
    """Whether KSM merges memory of a process, or has been asked to."""
    for line in _lines(pid, "ksm_stat"):
        name, _, value = line.partition(b":" if b":" in line else b" ")
        if (name, value.strip()) in {(b"ksm_merge_any", b"yes"), (b"ksm_mergeable", b"yes")}:
            return True
        if name == b"ksm_merging_pages" and int(value):
            return True
    # Of mappings that were advised, where the kernel does not say it of the process.
    return any(line.startswith(b"VmFlags:") and b" mg" in line for line in _lines(pid, "smaps"))


def _may_not_have_full_mode(pid: int) -> bool:
    """Whether a process may make a userfaultfd only for faults in user mode."""
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_bytes().strip() == b"1":
        return False
    capabilities = next(int(line.split()[1], 16) for line in _lines(pid, "status") if line.startswith(b"CapEff:"))
    # Capabilities count in the first user namespace only; the agent is taken to be in it.
    is_ours = Path(f"/proc/{pid}/ns/user").readlink() == Path("/proc/self/ns/user").readlink()
    return not (is_ours and capabilities & _CAP_SYS_PTRACE)


def _lines(pid: int, name: str) -> list[bytes]:
    """Read a file of a process; none where this kernel has no such file or does not let us read it."""
    try:
        # Not splitlines(): a program with a carriage return in its name would speak for itself.
        return Path(f"/proc/{pid}/{name}").read_bytes().split(b"\n")
    except OSError:
        procfs.stat(pid)
        return []


_NO_EVENTS: Final = decoded(np.empty(0, dtype=MESSAGE), np.empty(0, dtype=np.uint64))
