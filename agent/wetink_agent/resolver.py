"""The thread that answers write-protect messages of one userfaultfd: the target's writers wait for nobody else.

It never waits for anything but the kernel: no lock, no queue that can fill, no other part of the agent. Who harvests
rings a bell and gets what was recorded; between two bells the resolver needs nobody.

A message is answered by taking the protection away. Where the faults of a writer follow each other, more than the page
at hand is un-protected, up to a bound: a page beyond it may then be written without a message, and counts as written.

Source: ioctl_userfaultfd(2), UFFDIO_WRITEPROTECT; include/uapi/linux/userfaultfd.h.
"""

import errno
import os
import queue
import select
import sys
import threading
import time
from typing import Final

import numpy as np
from pyroaring import BitMap64

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink_agent.events import EVENTS_MAX
from wetink_agent.uapi import userfaultfd as uf

MESSAGE: Final = np.dtype(uf.uffd_msg)
"""``struct uffd_msg`` for numpy."""

MESSAGES_AT_ONCE: Final = 1024
"""Messages one read takes: as many as threads can be waiting, in most programs."""

STREAM_COUNT_MAX: Final = 64
"""Places where the next fault would continue a sequence: one for each thread that writes in order, and some."""

SWITCH_SECONDS: Final = 0.0005
"""How long another thread of the agent may keep the interpreter when a writer waits. Python's own 5 ms would be added
to the write."""

_PAGE_SHIFT: Final = PAGE_SIZE.bit_length() - 1
_ADDRESS_WORD: Final = uf.uffd_msg.arg.offset // 8 + 1
_WORDS: Final = MESSAGE.itemsize // 8


class Log:
    """What was recorded between two bells: the first ``count`` messages, and when each was read.

    ``answered_count`` of them have been answered. ``lost_count`` is how many more there were. ``beyond`` has the pages
    that were un-protected without a message.
    """

    def __init__(self) -> None:
        """Make an empty log. Its memory is taken only as it is filled."""
        # One read more than what is kept: what is not kept is answered all the same.
        self.messages = np.empty(EVENTS_MAX + MESSAGES_AT_ONCE, dtype=MESSAGE)
        self.words = self.messages.view(np.uint64).reshape(-1, _WORDS)
        self.room = self.messages.view(np.uint8).data
        self.times_ns = np.empty(EVENTS_MAX + MESSAGES_AT_ONCE, dtype=np.uint64)
        self.beyond = BitMap64()
        self.count = self.answered_count = self.lost_count = 0

    def clear(self) -> None:
        """Make it empty again."""
        self.beyond = BitMap64()
        self.count = self.answered_count = self.lost_count = 0


class Resolver:
    """Answers the messages of a userfaultfd until it is closed."""

    def __init__(self, uffd: int, *, span_pages_max: int) -> None:
        """Start answering.

        Args:
            uffd: Non-blocking, and not closed by anybody before ``close`` has returned. When the resolver fails, it
                puts another file in its place, so that the kernel unregisters everything and nobody waits for good.
            span_pages_max: The most pages that one message un-protects.
        """
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        self._uffd = uffd
        self._span_pages_max = span_pages_max
        self._log = Log()
        self._spare = Log()
        self._streams: dict[int, int] = {}
        self._argument = uf.uffdio_writeprotect()
        self._range = self._argument.range
        self._handed: queue.SimpleQueue[Log | None] = queue.SimpleQueue()
        self._closing = False
        self.error: Exception | None = None
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
        self._thread.start()

    @property
    def answered_count(self) -> int:
        """How many messages have been answered of those that ``take`` would give: an index into its log."""
        return self._log.answered_count

    def take(self) -> Log | None:
        """Give what was recorded since the last time; None when the resolver has failed.

        Every message of it has been answered. It is the caller's until the next call.
        """
        if self.error is not None:
            return None
        self._spare.clear()
        os.eventfd_write(self._bell, 1)
        return self._handed.get()

    def close(self) -> None:
        """Stop answering. The userfaultfd must be closed next: until then writers wait."""
        self._closing = True
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        os.close(self._bell)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting
            self.error = error
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, self._uffd, inheritable=False)
            os.close(null)
            self._hand_nothing()

    def _hand_nothing(self) -> None:
        """Let go who waits for a log that will not come."""
        self._handed.put(None)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._uffd, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        uffd = self._uffd
        while True:
            for fd, _ in poll.poll():
                if fd == uffd:
                    self._answer()
                elif self._closing:
                    return
                else:
                    os.eventfd_read(self._bell)
                    taken, self._log, self._spare = self._log, self._spare, self._log
                    self._handed.put(taken)

    def _answer(self) -> None:
        """Read what there is, record it and answer it."""
        log = self._log
        first = log.count
        try:
            size_bytes = os.readv(
                self._uffd, [log.room[first * MESSAGE.itemsize : (first + MESSAGES_AT_ONCE) * MESSAGE.itemsize]]
            )
        except BlockingIOError:
            return  # who waited has been woken by the answer to another, or killed
        last = first + size_bytes // MESSAGE.itemsize
        # Recorded before it is answered: a page that is found un-protected has its message in the log.
        log.times_ns[first:last] = time.time_ns()
        log.count = min(last, EVENTS_MAX)
        log.lost_count += last - log.count
        if last - first == 1:
            page = int(log.words[first, _ADDRESS_WORD]) >> _PAGE_SHIFT
            self._unprotect(page, page + 1)
        else:
            pages = np.unique(log.words[first:last, _ADDRESS_WORD] >> np.uint64(_PAGE_SHIFT))
            for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
                self._unprotect(int(run[0]), int(run[-1]) + 1)
        log.answered_count = log.count

    def _unprotect(self, start: int, end: int) -> None:
        """Answer for a run of pages, and for more where it continues one before."""
        streams = self._streams
        span = min(2 * streams.pop(start, 0), self._span_pages_max)
        reach = max(end, start + span)
        streams[reach] = max(span, 1)
        if len(streams) > STREAM_COUNT_MAX:
            del streams[next(iter(streams))]
        if reach > end:
            self._log.beyond.add_range(end, reach)
            if self._write_protect_off(start, reach):
                return
            # What lies beyond may be no memory of ours.
        if not self._write_protect_off(start, end):
            # Let who waits try again: a thread whose mapping has gone is not woken by the kernel.
            syscalls.ioctl(self._uffd, uf.UFFDIO_WAKE, self._range, "UFFDIO_WAKE")

    def _write_protect_off(self, start: int, end: int) -> bool:
        """Take the protection away and wake who waits; tell whether there was anything to take it from."""
        self._range.start = start << _PAGE_SHIFT
        self._range.len = (end - start) << _PAGE_SHIFT
        try:
            syscalls.ioctl(self._uffd, uf.UFFDIO_WRITEPROTECT, self._argument, "UFFDIO_WRITEPROTECT")
        except OSError as error:
            # The mapping has gone or is another's; the layout is being changed; the whole memory has gone.
            if error.errno not in {errno.ENOENT, errno.EAGAIN, errno.ESRCH}:
                raise
            return False
        return True
