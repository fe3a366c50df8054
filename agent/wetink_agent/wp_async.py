"""The ``wp-async`` backend: the kernel resolves write-protect faults itself, the agent harvests with PAGEMAP_SCAN.

Each round does five steps in this order, and each is needed (kernel facts are measured in ``tests/kernel``):

1. audit: find populated anonymous memory under no registration. All of it is written.
2. register the mappings it lies in.
3. census: one scan gives what is populated and what was written, and arms what was written again.
4. audit again: what appeared unregistered meanwhile is written too.
5. what was known and is neither populated nor written has vanished.

Holes are never armed: that would cost page tables and make them look like swapped pages. What cannot be protected is
reported in every round, as *cautious*: shared memory, which other mappings and descriptors change unseen; hugetlb,
whose zaps leave no trace; and memory the kernel will not register. Pages of a private file mapping count as populated
only while they are the process's own copies: before that they are the file's, and the file is not ours to move.

Source: Linux kernel commit 52526ca7fdb9 ("fs/proc/task_mmu: implement IOCTL to get and optionally clear info about
PTEs") (in v6.7); ioctl_userfaultfd(2).
"""

import errno
import os
import re
import select
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink.pages import runs as runs_of
from wetink.v1 import types_pb2
from wetink_agent import offered, procfs, shared_memory
from wetink_agent.backend import Handle, Harvest
from wetink_agent.certainty import Certainty
from wetink_agent.copies import Copies
from wetink_agent.errors import KernelLacks, NoSuchProcess, NotPermitted, TargetExited, TargetReplaced, Untrackable
from wetink_agent.offered import ADDRESS_END, ADDRESS_MIN
from wetink_agent.pagemap_scan import POPULATED, region_runs, scan
from wetink_agent.probe import FEATURES
from wetink_agent.runs import Runs, joined_runs
from wetink_agent.shared_memory import Range
from wetink_agent.uapi import fs
from wetink_agent.uapi import userfaultfd as uf
from wetink_agent.unseen import Unseen

CHUNK_BYTES: Final = 128 << 20
"""Mapped memory that one scan covers: the kernel holds the target's mmap_lock for at most about 2 ms."""

CHUNK_COUNT_MAX: Final = 512
"""Scans over one mapping: a sparse one of many TiB is mostly holes, which cost little to pass."""

RUNS_AT_ONCE: Final = 1 << 15
"""Runs of written pages from which on they are put into the set."""

PIECES_MAX: Final = 64
"""Pieces of one read-only file mapping that are registered one by one."""

DISARMED_MAX: Final = 1 << 10
DISARMED_GAP_BYTES: Final = 16 * PAGE_SIZE
"""Runs of what looks swapped in one private file mapping that are seen to one by one: of more, those with so little
between them are taken together, and with what is between. A mapping of 1 GiB takes 25 ms at most."""

EXIT_MILLISECONDS_MAX: Final = 200
"""How long a process may take to exit that has given up its memory: until then it looks as if it had another one."""

GROWN_LOOKS_MAX: Final = 2
"""Looks at the mappings of a target that maps all the while; what they miss is seen to in the next round."""

_KERNEL_START: Final = 1 << 63
_ANY_LINE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)
_PRIVATE_FILE_LINE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...p [0-9a-f]+ [0-9a-f:]+ [1-9]", re.MULTILINE)
_KERNEL_MADE: Final = re.compile(r"\[(?:vdso|vvar\w*|vsyscall|uprobes)\]")
# With inode 0: a file may have such a name too.
_KERNEL_MADE_LINE: Final = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) \S+ [0-9a-f]+ 00:00 0 +\[(?:vdso|vvar\w*|vsyscall|uprobes)\]$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Continued:
    """What a tracker left of a target: the layout of its memory, and every page that may have been told of.

    ``is_whole`` is whether all that it found out was told: then the next harvest has what was written since, else
    everything that is populated. Without pages nothing was told: the next harvest is the first.
    """

    layout: tuple[int, int, int]
    known: BitMap64 | None
    is_whole: bool


class WpAsync:
    """Tracks one process. It owns the userfaultfd, of which there is no other copy."""

    kind: types_pb2.Backend.ValueType = types_pb2.BACKEND_WP_ASYNC
    features: int = FEATURES
    features_forbidden: int = 0
    newest_feature: str = "UFFD_FEATURE_WP_ASYNC (Linux 6.7 has it)"
    registers_files: bool = True
    """Whether private mappings of files are registered."""

    def __init__(
        self,
        pid: int,
        uffd: int,
        scope: Sequence[Range] = (),
        *,
        continued: "Continued | None" = None,
        follow_fork: bool = False,
    ) -> None:
        """Take over a userfaultfd; nothing is armed before the first harvest.

        Args:
            pid: The process it is over.
            uffd: The descriptor, owned from now on, also when this fails.
            scope: The parts of the address space to track; empty means all of it.
            continued: What another tracker over the same descriptor left; without it nobody has tracked with it.
            follow_fork: Whether the descriptor is to have fork events, which somebody then must read.

        Raises:
            KernelLacks: Its kernel has no UFFD_FEATURE_WP_ASYNC.
            NoSuchProcess, NotPermitted, Untrackable: As they say.
        """
        self._pid = pid
        self._uffd = uffd
        self._pidfd = -1
        self._pagemap = -1
        self._is_second_hand = False
        self._scope = tuple(scope)
        self._plan: list[Range] = []
        self._address_end = ADDRESS_END
        self._maps = b""
        self._maps_told = b""
        self._ours = BitMap64()
        self._registered: list[Range] = []
        self._audited: list[Range] = []
        self._shared_memory: list[shared_memory.Part] = []
        self._private_files = np.empty((0, 2), dtype=np.uint64)
        self._copies = Copies(pid)
        self._disarmed = BitMap64()
        self._populated_runs: Runs | None = None
        self._populated = BitMap64()
        self._known: BitMap64 | None = None
        self._unseen = Unseen(pid)
        self._is_in_doubt = False
        self._certainty = Certainty()
        self.has_fork_events = follow_fork
        try:
            self._open(continued)
        except BaseException:
            self.close()
            raise

    @property
    def handle(self) -> Handle | None:
        """See ``Backend.handle``."""
        return Handle(self._uffd, self._layout)

    def harvest(self) -> Harvest:
        """Do one round; see ``Backend.harvest``."""
        frozen = procfs.is_frozen(self._pid)
        began_time_ns = time.time_ns()
        mapped, unmapped = self._look_at_maps()
        found = self._audit()
        if found.starts.size:
            self._register(found)
        # Before the census and after it: a buffer may be registered or given back meanwhile.
        self._unseen.look(self._maps, frozen=frozen)
        populated, written = self._census()
        buffers = self._unseen.buffer_pages()
        shared = self._shared()
        late = self._audit()
        self._check_alive()

        reported = written
        unregistered = [audit.to_set() for audit in (found, late) if audit.starts.size]
        for pages in unregistered:
            reported |= pages
        # What is still unregistered cannot be registered: huge pages, say.
        cautious = unregistered[0] & unregistered[1] if len(unregistered) > 1 else BitMap64()
        certain = reported - cautious if cautious else BitMap64(reported)
        if shared.starts.size:
            cautious |= shared.to_set()
            reported |= cautious
        if frozen:
            reported |= self._copies.changed(populated.to_set(), reported)
        told_page_count = len(reported)
        vanished, known_page_count = self._settle(populated, reported)
        cautious_page_count = told_page_count - len(certain)
        if self._is_in_doubt:
            # Whoever tracked before may have seen them written, or not.
            cautious_page_count += len(reported) - told_page_count
            self._is_in_doubt = False
        assert self._known is not None
        uncertain = self._certainty.settle(cautious | buffers, certain=certain, reported=reported, known=self._known)
        self._copies.told(reported, self._populated, self._disarmed)
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
            exposed=bool(buffers),
            table=self._unseen.table(frozen=frozen),
            known=self._known,
        )

    def forget(self) -> None:
        """Make the next harvest a first one: everything populated will be written in it."""
        self._known = None
        self._certainty = Certainty()

    def close(self) -> None:
        """Let go: the kernel unregisters everything and forgets what was armed."""
        for fd in (self._pagemap, self._uffd, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._pagemap = self._uffd = self._pidfd = -1

    def _open(self, continued: "Continued | None") -> None:
        if continued is None:
            self._negotiate()
        try:
            self._pidfd = os.pidfd_open(self._pid)
            self._layout = procfs.layout(self._pid) if continued is None else continued.layout
            self._is_layout_random = procfs.has_random_layout(self._pid)
            self._pagemap = self._open_pagemap()
        except PermissionError as error:
            message = (
                f"not permitted to read the page map of process {self._pid}: "
                "run the agent as its user, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
            )
            raise NotPermitted(message) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            message = f"there is no process {self._pid}: it has exited, or the pid is wrong"
            raise NoSuchProcess(message) from error
        if continued is None:
            self._refuse_a_second_reader()
            return
        # What is registered is looked up by registering it again, which changes nothing where it is ours.
        self._known = continued.known
        self._is_in_doubt = continued.known is not None and not continued.is_whole
        self._check_alive()

    def _negotiate(self) -> None:
        """Agree with the kernel on what the descriptor is for."""
        more = uf.UFFD_FEATURE_EVENT_FORK if self.has_fork_events else 0
        argument = uf.uffdio_api(api=uf.UFFD_API, features=self.features | more)
        try:
            syscalls.ioctl(self._uffd, uf.UFFDIO_API, argument, "UFFDIO_API")
        except OSError as error:
            if more:
                # It takes CAP_SYS_PTRACE in the host's user namespace. Nothing is agreed on yet.
                self.has_fork_events = False
                self._negotiate()
                return
            if error.errno != errno.EINVAL:
                message = f"cannot track process {self._pid}: what it offered is no userfaultfd"
                raise Untrackable(message) from error
            features = offered.features_of(self._uffd)
            if features is None:
                message = f"cannot track process {self._pid}: this kernel lacks {self.newest_feature}"
                raise KernelLacks(message) from error
            self._is_second_hand = True
            # PAGEFAULT_FLAG_WP is what the kernel says of itself: nothing depends on who asked for it.
            needed = self.features & ~uf.UFFD_FEATURE_PAGEFAULT_FLAG_WP
            offered.check(self._pid, features, self._scope, needed=needed, forbidden=self.features_forbidden)

    def _refuse_a_second_reader(self) -> None:
        """Make sure that nobody else reads the marks of asynchronous write-protection: reading takes them away.

        Our descriptor is fresh and has nothing registered yet, so that whatever is registered is somebody else's. One
        that was offered after UFFDIO_API may have memory of its own; where any of it is armed, somebody reads it.
        """
        self._look_at_maps()
        allowed = fs.PAGE_IS_WPALLOWED
        for regions in self._scan(self._whole(), mask=allowed, inverted=0, anyof=0, returned=allowed):
            for start, end in regions[:, :2].tolist():
                if not (self._is_second_hand and offered.take_over(self._uffd, start, end)):
                    raise _uses_userfaultfd(self._pid, start, end)
        armed = allowed | fs.PAGE_IS_WRITTEN
        for regions in self._scan(self._whole(), mask=armed, inverted=fs.PAGE_IS_WRITTEN):
            raise _uses_userfaultfd(self._pid, int(regions[0, 0]), int(regions[0, 1]))

    # The steps of a round, in their order.

    def _look_at_maps(self) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
        """Read the mappings; tell which came and which went since the last look."""
        before, self._maps_told = self._maps_told, self._read_maps()
        if self._maps != self._maps_told:
            self._maps = self._maps_told
            self._make_plan()
        self._unregister_what_came_between()
        # Not by a set: to hash what was read anew takes many times as long as to compare it.
        if before == b"" or before == self._maps:  # noqa: PLR1714
            return (), ()
        old, new = (set(_ANY_LINE.findall(maps)) for maps in (before, self._maps))
        unmapped = _addresses(old - new)
        for start, end in unmapped:
            self._ours.remove_range(start // PAGE_SIZE, end // PAGE_SIZE)
        return _addresses(new - old), unmapped

    def _unregister_what_came_between(self) -> None:
        """Unregister what is not ours to register: it took a mapping's place between our look and its registration.

        MADV_GUARD_INSTALL never ends in a protected mapping of a file, as ``_disarm`` says.
        """
        registered, self._registered = self._registered, []
        for mapping in procfs.parse_maps(self._maps) if registered else ():
            if not (mapping.shared or (mapping.inode and not self.registers_files)):
                continue
            for start, end in shared_memory.within(registered, mapping.start, mapping.end):
                argument = uf.uffdio_range(start=start, len=end - start)
                try:
                    syscalls.ioctl(self._uffd, uf.UFFDIO_UNREGISTER, argument, "UFFDIO_UNREGISTER")
                except OSError as error:
                    # It is of a kind that cannot be registered; the mapping, or the whole memory, has gone.
                    if error.errno not in {errno.EINVAL, errno.ENOMEM, errno.ESRCH}:
                        raise
                self._ours.remove_range(start // PAGE_SIZE, end // PAGE_SIZE)

    def _audit(self) -> Runs:
        """Find populated anonymous memory under no registration; it skips what is registered as a whole."""
        outside = fs.PAGE_IS_WPALLOWED | fs.PAGE_IS_FILE | fs.PAGE_IS_PFNZERO
        return self._populated_in(self._audited, mask=outside, inverted=outside)

    def _register(self, found: Runs) -> None:
        """Register the mappings that hold unregistered populated memory, and their neighbours.

        A mapping is registered whole, and what lies beside it too: the kernel joins neighbours only when both are
        registered or neither is, and a program may take what it mapped side by side for one piece (mremap(2) does).
        """
        self._register_mappings(found)
        # A mapping that grew between our look and its registration is in two pieces now: see to the rest.
        for _ in range(GROWN_LOOKS_MAX):
            if self._read_maps() == self._maps:
                break
            self._register_mappings(_NO_RUNS)

    def _register_mappings(self, found: Runs, *, neighbours: bool = True) -> None:
        # The audit came after the maps: a mapping it found may be younger than they are.
        self._maps = self._read_maps()
        self._make_plan()
        hugetlb = procfs.memory_devices(self._pid, "hugetlbfs")
        page_starts, page_ends = found.starts * np.uint64(PAGE_SIZE), found.ends * np.uint64(PAGE_SIZE)
        for mapping in procfs.parse_maps(self._maps):
            first = int(np.searchsorted(page_ends, mapping.start, side="right"))
            last = int(np.searchsorted(page_starts, mapping.end, side="left"))
            if mapping.shared or procfs.is_hugetlb(mapping, hugetlb):
                continue
            if not mapping.inode:
                whole = first < last or (neighbours and self._is_beside_ours(mapping))
                spans: Iterable[Range] = ((mapping.start, mapping.end),) if whole else ()
            elif not self.registers_files:
                continue
            elif mapping.writable and first < last:
                spans = ((mapping.start, mapping.end),)
            else:
                # Program text and constants with a few pages of their own, as relocation leaves them: registering all
                # of it would take the kernel's read-around from the rest.
                # Many of them stay unregistered, and are reported in each round: each would take two of the mappings
                # the target may have (vm.max_map_count).
                few = last - first <= PIECES_MAX
                spans = (
                    zip(page_starts[first:last].tolist(), page_ends[first:last].tolist(), strict=True) if few else ()
                )
            for start, end in spans:
                for span in shared_memory.within(self._scope, max(start, mapping.start), min(end, mapping.end)):
                    self._register_span(span)

    def _is_beside_ours(self, mapping: procfs.Mapping) -> bool:
        """Whether a mapping of nobody's touches one that is registered, and is not so itself."""
        first, last = mapping.start // PAGE_SIZE, mapping.end // PAGE_SIZE
        if first in self._ours and last - 1 in self._ours:
            return False
        return (first - 1 in self._ours or last in self._ours) and not _KERNEL_MADE.fullmatch(mapping.name)

    def _register_span(self, span: Range) -> None:
        start, end = span
        argument = uf.uffdio_register(
            range=uf.uffdio_range(start=start, len=end - start), mode=uf.UFFDIO_REGISTER_MODE_WP
        )
        try:
            syscalls.ioctl(self._uffd, uf.UFFDIO_REGISTER, argument, "UFFDIO_REGISTER")
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise _uses_userfaultfd(self._pid, start, end) from error
            if error.errno in {errno.ESRCH, errno.ENOMEM}:
                self._check_alive()
            elif error.errno not in {errno.EINVAL, errno.EPERM}:
                raise
            # Either the mapping has just gone, or it is of a kind the kernel does not protect. Both are safe: the
            # audit finds it in every round for as long as it holds anything.
        else:
            self._ours.add_range(start // PAGE_SIZE, end // PAGE_SIZE)
            self._registered.append(span)

    def _census(self, flags: int = fs.PM_SCAN_WP_MATCHING) -> tuple[Runs, BitMap64]:
        """Find what is populated under registration, and what of it was written; arm the latter again."""
        populated, written, runs, replaced = [], BitMap64(), [], []
        # Pages of a file are left out: in a private mapping, a page that is not the process's own copy is the file's,
        # and it stays unarmed, so that the copy a write makes shows as written.
        for regions in self._scan(
            self._plan,
            flags=flags,
            mask=fs.PAGE_IS_WPALLOWED | fs.PAGE_IS_FILE,
            inverted=fs.PAGE_IS_FILE,
            returned=fs.PAGE_IS_WRITTEN | POPULATED,
        ):
            populated.append(region_runs(regions))
            if int(np.bitwise_or.reduce(regions[:, 2])) & fs.PAGE_IS_SWAPPED:
                replaced += self._swapped_of_files(regions)
            indexes = np.flatnonzero((regions[:, 2] & _WRITTEN) != 0)
            if indexes.size:
                runs.append(region_runs(regions.take(indexes, axis=0)))
            if sum(part.starts.size for part in runs) > RUNS_AT_ONCE:
                written |= joined_runs(runs).to_set()
                runs.clear()
        self._disarmed = BitMap64()
        for start, end in replaced:
            self._disarmed.add_range(start // PAGE_SIZE, end // PAGE_SIZE)
        written |= self._disarmed
        self._disarm(replaced)
        return joined_runs(populated), written | joined_runs(runs).to_set()

    def _disarm(self, ranges: Iterable[Range]) -> None:
        """Take protection, and the markers that a zap leaves of it, from pages of private file mappings.

        MADV_GUARD_INSTALL zaps until it finds nothing, and there a zap of protected pages never leaves nothing: the
        target would be in that call for as long as it is tracked. So it is there until the next round, at most.
        """
        for start, end in ranges:
            argument = uf.uffdio_writeprotect(range=uf.uffdio_range(start=start, len=end - start))
            try:
                syscalls.ioctl(self._uffd, uf.UFFDIO_WRITEPROTECT, argument, "UFFDIO_WRITEPROTECT")
            except OSError as error:
                # The mapping has gone or is another's; the layout is being changed; the whole memory has gone.
                if error.errno not in {errno.ENOENT, errno.EAGAIN, errno.ESRCH}:
                    raise

    def _shared(self) -> Runs:
        """Find what there is of shared memory: all of it may have changed through another mapping or a descriptor.

        Not what this process's page table shows alone: the memory is the object's, and it has pages that this process
        has not touched yet, or not since they were taken from its table.
        """
        if not self._shared_memory:
            return _NO_RUNS
        parts = [self._populated_in([part.span for part in self._shared_memory], mask=0, inverted=0)]
        for part in self._shared_memory:
            pages = shared_memory.object_pages(self._pid, part)
            if pages is None:
                # What was reported once is at least not said to have vanished.
                start, end = part.span
                known = BitMap64()
                known.add_range(start // PAGE_SIZE, end // PAGE_SIZE)
                pages = Runs(*runs_of(known & (self._known or BitMap64())))
            parts.append(pages)
        return joined_runs([part for part in parts if part.starts.size])

    def _populated_in(self, spans: Iterable[Range], *, mask: int, inverted: int) -> Runs:
        return joined_runs([region_runs(regions) for regions in self._scan(spans, mask=mask, inverted=inverted)])

    def _settle(self, populated: Runs, reported: BitMap64) -> tuple[BitMap64, int]:
        """Compare with what was known and remember what is; give what vanished, and how much is known now."""
        if self._populated_runs is None or not populated.same_as(self._populated_runs):
            self._populated_runs = populated
            self._populated = populated.to_set()
            # Registered, and not by us: a mapping that has grown, for which this changes nothing, or the target's own
            # use of userfaultfd, which this finds out. No neighbours now: the census is over for this round.
            if foreign := self._populated - self._ours:
                self._register_mappings(Runs(*runs_of(foreign)), neighbours=False)
        if self._known is None or self._is_in_doubt:
            reported |= self._populated
            self._known = self._known or BitMap64()
        known = self._populated | reported
        vanished = self._known - known
        self._known = known
        return vanished, len(known)

    # What the steps are made of.

    def _scan(
        self,
        spans: Iterable[Range],
        *,
        mask: int,
        inverted: int,
        anyof: int = POPULATED,
        returned: int = POPULATED,
        flags: int = 0,
    ) -> Iterator[NDArray[np.uint64]]:
        """Scan the target's memory as ``pagemap_scan.scan`` does."""
        try:
            yield from scan(
                self._pagemap, spans, mask=mask, inverted=inverted, anyof=anyof, returned=returned, flags=flags
            )
        except OSError as error:
            self._check_alive()
            message = f"cannot scan the memory of process {self._pid}: {error}"
            raise Untrackable(message) from error

    def _swapped_of_files(self, regions: NDArray[np.uint64]) -> list[Range]:
        """Give what looks swapped in private file mappings.

        There a zap of the process's own copy leaves a marker that looks like the copy in swap: unwritten, though the
        content is the file's again. So what looks swapped there counts as written in every round. A region may begin
        in the mapping before: the kernel joins what is alike, whatever it lies in.
        """
        swapped = regions[(regions[:, 2] & _SWAPPED) != 0]
        files = self._private_files
        firsts = np.searchsorted(swapped[:, 1], files[:, 0], side="right")
        lasts = np.searchsorted(swapped[:, 0], files[:, 1], side="left")
        found = []
        for index in np.flatnonzero(firsts < lasts).tolist():
            start, end = files[index].tolist()
            inside = swapped[firsts[index] : lasts[index], :2]
            if len(inside) > DISARMED_MAX:
                breaks = np.flatnonzero(inside[1:, 0] - inside[:-1, 1] > DISARMED_GAP_BYTES)
                inside = np.column_stack((inside[np.append(0, breaks + 1), 0], inside[np.append(breaks, -1), 1]))
            found += [(max(start, first), min(end, last)) for first, last in inside.tolist()]
        return found

    def _whole(self) -> tuple[Range, ...]:
        return self._scope or ((ADDRESS_MIN, self._address_end),)

    def _make_plan(self) -> None:
        """Cut the address space into scans of bounded work. They leave no address out, mapped or not."""
        mappings = [(int(start, 16), int(end, 16)) for start, end in _ANY_LINE.findall(self._maps)]
        # Above the usual end only where five-level paging lets a process map there; the vsyscall page is the kernel's.
        self._address_end = max([ADDRESS_END, *(end for start, end in mappings if start < _KERNEL_START)])
        self._audited = _without(
            self._whole(), [(int(a, 16), int(b, 16)) for a, b in _KERNEL_MADE_LINE.findall(self._maps)]
        )
        self._shared_memory = shared_memory.find(self._pid, self._maps, self._scope)
        private_files = [(int(start, 16), int(end, 16)) for start, end in _PRIVATE_FILE_LINE.findall(self._maps)]
        self._copies.cover(private_files)
        self._private_files = np.array(private_files, dtype=np.uint64).reshape(-1, 2)
        plan: list[Range] = []
        for scope_start, scope_end in self._whole():
            position, mapped = scope_start, 0
            for mapping_start, mapping_end in mappings:
                start, end = max(mapping_start, scope_start), min(mapping_end, scope_end)
                step = max(CHUNK_BYTES, (end - start) // CHUNK_COUNT_MAX & -CHUNK_BYTES)
                while mapped + (end - start) > step:
                    cut = start + step - min(mapped, step)
                    plan.append((position, cut))
                    position = start = cut
                    mapped = 0
                mapped += max(0, end - start)
            if position < scope_end:
                plan.append((position, scope_end))
        self._plan = plan

    def _read_maps(self) -> bytes:
        try:
            return procfs.read_maps(self._pid)
        except (NoSuchProcess, PermissionError):
            self._check_alive()
            raise

    def _check_alive(self) -> None:
        """Make sure that the memory we scan is still what the process runs on.

        A dead memory answers like a clean one on some kernels: nothing found must never be taken for nothing written.

        Raises:
            TargetExited: The process has exited.
            TargetReplaced: It has called execve(2).
        """
        self._check_not_exited(0)
        # The highest page of user memory, where nothing lies: ENOENT in a live memory, ESRCH in a dead one. Were
        # something there, it would count as written.
        nowhere = uf.uffdio_range(start=ADDRESS_END - PAGE_SIZE, len=PAGE_SIZE)
        try:
            syscalls.ioctl(
                self._uffd, uf.UFFDIO_WRITEPROTECT, uf.uffdio_writeprotect(range=nowhere), "UFFDIO_WRITEPROTECT"
            )
        except OSError as error:
            if error.errno == errno.ESRCH:
                self._check_not_exited(EXIT_MILLISECONDS_MAX)
                raise _replaced(self._pid) from error
        # A memory can outlive the execve(2) of our process when another shares it (CLONE_VM), and without address
        # randomisation the new one can have the same layout; but it has nothing registered.
        try:
            is_same = procfs.layout(self._pid) == self._layout and (
                self._is_layout_random or self._has_our_registration()
            )
        except NoSuchProcess as error:
            message = f"process {self._pid} exited"
            raise TargetExited(message) from error
        if not is_same:
            self._check_not_exited(EXIT_MILLISECONDS_MAX)
            raise _replaced(self._pid)

    def _check_not_exited(self, milliseconds: int) -> None:
        """Make sure that the process has not exited, nor does so within a time.

        Raises:
            TargetExited: It has.
        """
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(milliseconds):
            message = f"process {self._pid} exited"
            raise TargetExited(message)

    def _has_our_registration(self) -> bool:
        """Whether the memory that the process runs on now has something registered, where the one we scan has."""
        try:
            pagemap = self._open_pagemap()
        except PermissionError:
            return True  # it has become undumpable; a layout that we may not read any more tells of execve(2)
        try:
            return offered.has_registered(pagemap) or not offered.has_registered(self._pagemap)
        except ProcessLookupError:
            return False
        finally:
            os.close(pagemap)

    def _open_pagemap(self) -> int:
        return procfs.open_pagemap(self._pid)


_WRITTEN: Final = np.uint64(fs.PAGE_IS_WRITTEN)
_SWAPPED: Final = np.uint64(fs.PAGE_IS_SWAPPED)
_NO_PAGES: Final = np.empty(0, dtype=np.uint64)
_NO_RUNS: Final = Runs(_NO_PAGES, _NO_PAGES)


def _uses_userfaultfd(pid: int, start: int, end: int) -> Untrackable:
    return Untrackable(
        f"process {pid} uses userfaultfd itself at {start:#x}-{end:#x}: "
        "only one can, so it cannot be tracked while it does"
    )


def _replaced(pid: int) -> TargetReplaced:
    return TargetReplaced(f"process {pid} replaced its memory with execve(2)")


def _without(spans: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """Take ranges of addresses out of others."""
    for hole_start, hole_end in holes:
        spans = [
            (start, end)
            for first, last in spans
            for start, end in ((first, min(last, hole_start)), (max(first, hole_end), last))
            if start < end
        ]
    return list(spans)


def _addresses(lines: Iterable[tuple[bytes, bytes]]) -> tuple[Range, ...]:
    return tuple(sorted((int(start, 16), int(end, 16)) for start, end in lines))
