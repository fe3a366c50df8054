"""Children as targets from their first instruction on: the fork events of userfaultfds, and whose child each is.

A target that forks waits until its event is read. So one thread reads those of all targets and waits for nothing else;
a child's userfaultfd, which comes with the event, is read there too from that moment on. Everything else happens
elsewhere, and whatever fails lets go of the child's descriptor: then nothing of the child is registered any more, and
it is found like any other process.

Source: ioctl_userfaultfd(2), UFFD_FEATURE_EVENT_FORK; Linux fs/userfaultfd.c: the event has no pid in it.
"""

import contextlib
import errno
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

import numpy as np
import structlog

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink_agent import procfs
from wetink_agent.backend import Backend, Harvest
from wetink_agent.errors import NoSuchProcess
from wetink_agent.offered import ADDRESS_END, ADDRESS_MIN
from wetink_agent.uapi import fs
from wetink_agent.uapi import userfaultfd as uf

CHILD_SECONDS_MAX: Final = 0.5
"""How long a child may take to appear after its event: it is made just then."""

_LOOK_SECONDS: Final = 0.002
_MESSAGE: Final = struct.Struct("<B7xI20x")
_MESSAGES_AT_ONCE: Final = 16

log = structlog.get_logger()


class ForkReader:
    """Reads the fork events of all targets, in a thread of its own."""

    def __init__(self, on_fork: Callable[[int, int], None]) -> None:
        """Begin with no target.

        Args:
            on_fork: Called in the thread with the parent's pid and the child's userfaultfd, which is the callee's, and
                must not wait. It is read here until ``remove``.
        """
        self._on_fork = on_fork
        self._epoll = select.epoll()
        self._pids: dict[int, int] = {}
        # Held while one is read, which does not wait: a descriptor that is closed may be another's a moment later.
        self._lock = threading.Lock()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._has_told = False
        self._thread = threading.Thread(target=self._serve, name="forks", daemon=True)
        self._thread.start()

    def add(self, pid: int, uffd: int) -> None:
        """Read the events of a process; of one that is read already, it is now known whose it is."""
        with self._lock:
            if uffd not in self._pids:
                self._epoll.register(uffd, select.EPOLLIN)
            self._pids[uffd] = pid

    def tell_refused(self) -> None:
        """Log, once, that the kernel gives this agent no fork events."""
        if not self._has_told:
            self._has_told = True
            log.warning(
                "fork_events_refused",
                why="they take CAP_SYS_PTRACE in the host's user namespace: children are found as with --tree",
            )

    def remove(self, uffd: int) -> None:
        """Read a descriptor no more: it is about to be closed, and must be at once."""
        with self._lock:
            if self._pids.pop(uffd, None) is not None:
                self._epoll.unregister(uffd)

    def close(self) -> None:
        """End, once nobody forks any more who would wait."""
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._bell)

    def _serve(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._bell:
                    return
                for parent_pid, child in self._read(fd):
                    # Whose child that is of which nobody knows yet who it is cannot be found out.
                    if parent_pid:
                        self._on_fork(parent_pid, child)
                    else:
                        self.remove(child)
                        os.close(child)

    def _read(self, fd: int) -> list[tuple[int, int]]:
        with self._lock:
            if fd not in self._pids:
                return []
            try:
                data = os.read(fd, _MESSAGE.size * _MESSAGES_AT_ONCE)
            except BlockingIOError:
                return []
            except OSError:
                self._epoll.unregister(fd)
                del self._pids[fd]
                return []
            children = []
            for event, child in _MESSAGE.iter_unpack(data):
                if event == uf.UFFD_EVENT_FORK:
                    self._epoll.register(child, select.EPOLLIN)
                    self._pids[child] = 0
                    children.append((self._pids[fd], child))
            return children


class WithForks:
    """A backend whose target's fork events are read."""

    handle = None  # in a keeper nobody would read them, and the target would wait

    def __init__(self, backend: Backend, reader: ForkReader, pid: int, uffd: int) -> None:
        """Own the backend from now on, which owns the descriptor."""
        self.kind = backend.kind
        self._backend = backend
        self._reader = reader
        self._uffd = uffd
        reader.add(pid, uffd)

    def harvest(self) -> Harvest:
        """Do one round; see ``Backend.harvest``."""
        return self._backend.harvest()

    def forget(self) -> None:
        """Make the next harvest a first one."""
        self._backend.forget()

    def close(self) -> None:
        """Let go: whoever forks at this moment goes on when the descriptor is closed."""
        self._reader.remove(self._uffd)
        self._backend.close()


def child_over(parent_pid: int, uffd: int, known: Collection[int]) -> int | None:
    """Find the child of a process that a userfaultfd is over; waits a little for it to appear.

    Args:
        parent_pid: The process that forked.
        uffd: Came with the event.
        known: Pids that it cannot be.

    Returns:
        Its pid. None where it has gone, or no child of this process is surely the one.
    """
    until = time.monotonic() + CHILD_SECONDS_MAX
    looked_at = set(known)
    while time.monotonic() < until and _is_alive(uffd):
        for pid in _children(parent_pid):
            if pid not in looked_at:
                with contextlib.suppress(OSError, NoSuchProcess):
                    if _is_over(pid, uffd):
                        return pid
        time.sleep(_LOOK_SECONDS)
    return None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for tid in procfs.threads(pid):
            with open(f"/proc/{pid}/task/{tid}/children", encoding="ascii") as file:  # noqa: PTH123 - asked every 2 ms
                found += map(int, file.read().split())
    except (OSError, NoSuchProcess):
        return []
    return found


def _is_alive(uffd: int) -> bool:
    """Whether the memory that a userfaultfd is over is still there: as ``WpAsync`` finds out."""
    nowhere = uf.uffdio_range(start=ADDRESS_END - PAGE_SIZE, len=PAGE_SIZE)
    try:
        syscalls.ioctl(uffd, uf.UFFDIO_WRITEPROTECT, uf.uffdio_writeprotect(range=nowhere), "UFFDIO_WRITEPROTECT")
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def _is_over(pid: int, uffd: int) -> bool:
    """Whether a userfaultfd is over the memory of a process: marks a page as written, and looks whether it is there.

    What registration alone would show, a sibling shows as well, with the same layout.
    """
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        page = _unwritten_page(pagemap, ADDRESS_MIN, ADDRESS_END)
        if page is None:
            return False
        marked = uf.uffdio_writeprotect(range=uf.uffdio_range(start=page, len=PAGE_SIZE))
        syscalls.ioctl(uffd, uf.UFFDIO_WRITEPROTECT, marked, "UFFDIO_WRITEPROTECT")
        return _unwritten_page(pagemap, page, page + PAGE_SIZE) is None
    finally:
        os.close(pagemap)


def _unwritten_page(pagemap: int, start: int, end: int) -> int | None:
    region = np.empty(3, dtype=np.uint64)
    argument = fs.pm_scan_arg(
        size=syscalls.size_bytes(fs.pm_scan_arg),
        start=start,
        end=end,
        vec=region.ctypes.data,
        vec_len=1,
        max_pages=1,
        category_mask=fs.PAGE_IS_WPALLOWED | fs.PAGE_IS_PRESENT | fs.PAGE_IS_WRITTEN,
        category_inverted=fs.PAGE_IS_WRITTEN,
        return_mask=fs.PAGE_IS_PRESENT,
    )
    return int(region[0]) if syscalls.ioctl(pagemap, fs.PAGEMAP_SCAN, argument, "PAGEMAP_SCAN") > 0 else None
