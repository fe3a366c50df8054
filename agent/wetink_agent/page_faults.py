"""The stream of page faults of one process: who first wrote to each page of a round, when, and from which code.

Every first write to an armed page is a page fault, and the kernel puts page faults into a ring for whoever asks:
address, thread, time and code address. The census decides what is dirty; this adds to it, and may lose without harm: a
write that the kernel made without a fault of its own (process_vm_writev(2), direct I/O) has no sample, and a ring that
ran full says how many are missing.

Source: perf_event_open(2); kernel facts are measured in ``tests/kernel/test_page_faults.py``.
"""

import errno
import fcntl
import mmap
import os
import select
import threading
import time
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink_agent import procfs
from wetink_agent.backend import Backend, Handle, Harvest
from wetink_agent.errors import KernelLacks, NotPermitted, Untrackable
from wetink_agent.events import EVENTS_MAX, Events, monotonic_offset_ns, named
from wetink_agent.uapi import perf

THREAD_LOOKS_MAX: Final = 16
"""Looks at the threads of a process that starts new ones all the while; later ones inherit the stream anyway."""

_SAMPLE: Final = np.dtype(
    [
        ("type", "<u4"),
        ("misc", "<u2"),
        ("size", "<u2"),
        ("ip", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("time", "<u8"),
        ("address", "<u8"),
    ]
)
_PENDING_BYTES_MAX: Final = EVENTS_MAX * _SAMPLE.itemsize
# Of struct perf_event_mmap_page, where its reserved part ends.
_DATA_HEAD: Final = 1024
_PAGE_SHIFT: Final = np.uint64(PAGE_SIZE.bit_length() - 1)


class WithEvents:
    """A backend whose harvests carry the events behind what was written."""

    def __init__(self, backend: Backend, stream: "PageFaults") -> None:
        """Own both from now on."""
        self.kind = backend.kind
        self.stream = stream
        self._backend = backend
        self._is_first = True

    @property
    def handle(self) -> Handle | None:
        """See ``Backend.handle``; the stream begins anew."""
        return self._backend.handle

    def harvest(self) -> Harvest:
        """Do one round; see ``Backend.harvest``."""
        began_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        harvest = self._backend.harvest()
        events = self.stream.take(harvest.written, began_ns)
        if not self._is_first:
            # The first round is all that was populated, and says nothing of writes.
            evident = len(harvest.written) - harvest.cautious_page_count
            events = replace(events, census_only_count=max(0, evident - len(events)))
        self._is_first = False
        return replace(harvest, events=events)

    def forget(self) -> None:
        """Make the next harvest a first one."""
        self._is_first = True
        self._backend.forget()

    def close(self) -> None:
        """Let go of both."""
        self.stream.close()
        self._backend.close()


class PageFaults:
    """The page faults of one process, all its threads, those to come too."""

    def __init__(self, pid: int, ring_bytes: int) -> None:
        """Open the stream.

        Args:
            pid: The process.
            ring_bytes: Size of the ring of each CPU, a power of two of pages.

        Raises:
            NoSuchProcess, NotPermitted, KernelLacks, Untrackable: As they say.
        """
        self._pid = pid
        self._ring_bytes = ring_bytes
        self._lock = threading.Lock()
        self._rings: list[_Ring] = []
        self._fds: list[int] = []
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._lost = 0
        self._carried = np.empty(0, dtype=_SAMPLE)
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        _drainer.add(self)

    @property
    def ring_fds(self) -> list[int]:
        """Descriptors that become readable when a ring is half full."""
        return [ring.fd for ring in self._rings]

    def drain(self) -> None:
        """Empty the rings into memory."""
        with self._lock:
            for ring in self._rings:
                data = ring.read()
                if self._pending_bytes + len(data) > _PENDING_BYTES_MAX:
                    self._lost += len(data) // _SAMPLE.itemsize
                elif data:
                    self._pending.append(data)
                    self._pending_bytes += len(data)

    def take(self, written: BitMap64, began_ns: int) -> Events:
        """Give the event of each written page that has one: its last fault before the round began, or the first since.

        A fault while the round was under way may belong to it or to the next one: what this round has no use for is
        kept for the next.

        Args:
            written: The pages that the round found written.
            began_ns: When the round began, by CLOCK_MONOTONIC.
        """
        self.drain()
        with self._lock:
            data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
            lost, self._lost = self._lost, 0
        samples, more_lost = parse(data)
        lost += more_lost
        samples = np.concatenate((self._carried, samples[samples["pid"] == self._pid]))
        samples = samples.take(np.argsort(samples["time"], kind="stable"))
        pages = samples["address"] >> _PAGE_SHIFT
        distinct, of_page = np.unique(pages, return_inverse=True)
        faulted = BitMap64(array("Q", distinct.tobytes()))
        matched = np.zeros(distinct.size, dtype=np.bool_)
        matched[np.searchsorted(distinct, np.array((faulted & written).to_array(), dtype=np.uint64))] = True

        is_late = samples["time"] >= began_ns
        early, late = np.flatnonzero(~is_late), np.flatnonzero(is_late)
        chosen = np.full(distinct.size, -1, dtype=np.intp)
        # Of several assignments to one place the last one stays: first the first of the late ones, then the last early.
        chosen[of_page[late[::-1]]] = late[::-1]
        chosen[of_page[early]] = early
        chosen = np.sort(chosen[matched])

        is_left = is_late.copy()
        is_left[chosen] = False
        self._carried = samples[is_left]
        # Read only, as a rule.
        unwritten = np.unique(of_page[early][~matched[of_page[early]]])
        events = samples.take(chosen)
        by_user = events["misc"] & perf.PERF_RECORD_MISC_CPUMODE_MASK == perf.PERF_RECORD_MISC_USER
        found = Events(
            addresses=np.ascontiguousarray(events["address"]),
            uffd_flags=np.empty(0, dtype=np.uint64),
            thread_ids=np.ascontiguousarray(events["tid"]),
            times_ns=events["time"] + np.uint64(monotonic_offset_ns()),
            # Where the kernel wrote on the thread's behalf, read(2) say, the code is the kernel's: not to be told.
            instruction_pointers=np.where(by_user, events["ip"], np.uint64(0)),
            lost_count=lost,
            stream_only_count=int(unwritten.size),
        )
        return named(found, self._pid)

    def close(self) -> None:
        """Let go of the rings."""
        _drainer.remove(self)
        with self._lock:
            for ring in self._rings:
                ring.close()
            for fd in self._fds:
                os.close(fd)
            self._rings, self._fds = [], []

    def _open(self) -> None:
        leaders: dict[int, int] = {}
        covered: set[int] = set()
        for _ in range(THREAD_LOOKS_MAX):
            fresh = set(procfs.threads(self._pid)) - covered
            if not fresh:
                return
            for tid in sorted(fresh):
                for cpu in _online_cpus():
                    self._open_one(tid, cpu, leaders)
            covered |= fresh

    def _open_one(self, tid: int, cpu: int, leaders: dict[int, int]) -> None:
        attribute = perf.perf_event_attr(
            type=perf.PERF_TYPE_SOFTWARE,
            size=syscalls.size_bytes(perf.perf_event_attr),
            config=perf.PERF_COUNT_SW_PAGE_FAULTS,
            sample_period=1,
            sample_type=perf.PERF_SAMPLE_IP | perf.PERF_SAMPLE_TID | perf.PERF_SAMPLE_TIME | perf.PERF_SAMPLE_ADDR,
            disabled=1,
            inherit=1,
            inherit_thread=1,
            watermark=1,
            wakeup_watermark=self._ring_bytes // 2,
            use_clockid=1,
            clockid=time.CLOCK_MONOTONIC,
        )
        try:
            fd = syscalls.perf_event_open(attribute, tid, cpu, perf.PERF_FLAG_FD_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ESRCH:
                return  # the thread has ended
            raise self._refusal(error) from error
        self._fds.append(fd)
        # One ring for each CPU, shared by all threads: they are the memory that counts.
        if cpu in leaders:
            fcntl.ioctl(fd, perf.PERF_EVENT_IOC_SET_OUTPUT, leaders[cpu])
        else:
            try:
                self._rings.append(_Ring(fd, self._ring_bytes))
            except OSError as error:
                if error.errno != errno.EPERM:
                    raise
                message = (
                    f"cannot stream the events of process {self._pid}: a ring of {self._ring_bytes >> 10} KiB for each "
                    "CPU is over the memory that may be locked: choose a smaller --events-ring, raise "
                    "kernel.perf_event_mlock_kb, or give the agent CAP_IPC_LOCK"
                )
                raise NotPermitted(message) from error
            leaders[cpu] = fd
        fcntl.ioctl(fd, perf.PERF_EVENT_IOC_ENABLE, 0)

    def _refusal(self, error: OSError) -> Exception:
        about = f"cannot stream the events of process {self._pid}: "
        if error.errno in {errno.EACCES, errno.EPERM}:
            return NotPermitted(f"{about}give the agent CAP_PERFMON, or leave out --events")
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return Untrackable(f"{about}each of its threads takes a descriptor for each CPU: raise RLIMIT_NOFILE")
        if error.errno in {errno.ENOSYS, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL}:
            return KernelLacks(f"{about}this kernel has no perf events of software page faults")
        return Untrackable(f"{about}{error.strerror}")


def parse(data: bytes) -> tuple[NDArray[np.void], int]:
    """Read records of a ring; give the samples, in the order of the records, and how many the kernel says are lost."""
    parts, lost, position = [], 0, 0
    while position < len(data):
        count = (len(data) - position) // _SAMPLE.itemsize
        rows = np.frombuffer(data, dtype=_SAMPLE, count=count, offset=position)
        others = np.flatnonzero((rows["type"] != perf.PERF_RECORD_SAMPLE) | (rows["size"] != _SAMPLE.itemsize))
        good = int(others[0]) if others.size else count
        parts.append(rows[:good])
        position += good * _SAMPLE.itemsize
        if position < len(data):
            header = perf.perf_event_header.from_buffer_copy(data, position)
            if header.type == perf.PERF_RECORD_LOST:
                lost += int.from_bytes(data[position + 16 : position + 24], "little")
            position += max(header.size, 8)
    return np.concatenate([np.empty(0, dtype=_SAMPLE), *parts]), lost


class _Ring:
    """The ring of one CPU, which we are the only reader of."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self._size_bytes = size_bytes
        self._memory = mmap.mmap(fd, PAGE_SIZE + size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._positions = np.frombuffer(self._memory, dtype=np.uint64, count=2, offset=_DATA_HEAD)

    def read(self) -> bytes:
        """Take what is there."""
        head, tail = int(self._positions[0]), int(self._positions[1])
        first, last = tail % self._size_bytes, head % self._size_bytes
        if head == tail:
            return b""
        if first < last:
            data = self._memory[PAGE_SIZE + first : PAGE_SIZE + last]
        else:
            data = self._memory[PAGE_SIZE + first :] + self._memory[PAGE_SIZE : PAGE_SIZE + last]
        self._positions[1] = head
        return data

    def close(self) -> None:
        """Unmap it; the descriptor is its owner's."""
        del self._positions  # or the memory could not be unmapped
        self._memory.close()


class _Drainer:
    """The thread that empties rings which are half full between two rounds, for all targets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[int, PageFaults] = {}
        self._poll: select.epoll | None = None

    def add(self, stream: PageFaults) -> None:
        """See to a stream from now on."""
        with self._lock:
            if self._poll is None:
                self._poll = select.epoll()
                threading.Thread(target=self._run, args=(self._poll,), name="page-faults", daemon=True).start()
            for fd in stream.ring_fds:
                self._streams[fd] = stream
                self._poll.register(fd, select.EPOLLIN | select.EPOLLET)

    def remove(self, stream: PageFaults) -> None:
        """Forget a stream, whose descriptors are still open."""
        with self._lock:
            for fd in stream.ring_fds:
                if self._streams.pop(fd, None) is not None and self._poll is not None:
                    self._poll.unregister(fd)

    def _run(self, poll: select.epoll) -> None:
        while True:
            ready = poll.poll()
            with self._lock:
                streams = {self._streams[fd] for fd, _ in ready if fd in self._streams}
            for stream in streams:
                stream.drain()


def _online_cpus() -> list[int]:
    """Give the CPUs that are online; the file reads like ``0-3,6``."""
    spans = Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip().split(",")
    bounds = [[int(number) for number in span.split("-")] for span in spans]
    return [cpu for span in bounds for cpu in range(span[0], span[-1] + 1)]


_drainer: Final = _Drainer()
