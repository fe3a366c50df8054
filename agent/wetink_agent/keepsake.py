"""What the next worker must know to go on with a target: kept in a memory file, for a worker that may end at any time.

The worker writes it, and the keeper holds its descriptor beside that of the target's userfaultfd. A worker that is
killed leaves marks that it has taken and pages that it never told. So before a round is harvested it is said here that
one is, and before it can be sent its number, and every page that a reader may hold a copy of. What follows from that
for the next worker is ``Kept.is_whole``, and in doubt a round that has everything.

A record is written beside the one that counts, and counts once its offset stands at the beginning of the file: one
system call of a few bytes, which a kill does not divide. The same is true of each number that changes in place.

Left out: the disk. A memory file lives as long as somebody holds its descriptor, and so does what it speaks of.
"""

import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError
from pyroaring import BitMap64

from wetink.v1 import ingest_pb2

MAGIC: Final = b"wetink\x001"
"""At the beginning; its last character is the version of what follows."""

SLACK_PAGES: Final = 1 << 16
"""How many pages more than it needs, over twice as many, a set may have before it is written afresh."""

_NUMBER: Final = struct.Struct("<Q")
_OFFSET_AT: Final = len(MAGIC)
_RECORDS_AT: Final = 64
# Begun, harvested, durable; the layout; sizes of the description and of the set, which follow.
_HEAD: Final = struct.Struct("<QQQ3QQQ")
_BEGUN, _HARVESTED, _DURABLE = (index * _NUMBER.size for index in range(3))


class KeepsakeUnusable(Exception):
    """A memory file that this version cannot read; what it stands for cannot be gone on with."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a worker has left.

    Attributes:
        started: The target and its incarnation, as the collector was told.
        layout: Of the target's memory, as ``procfs.layout`` gives it.
        begun: The last round whose harvest was begun.
        harvested: The last round that may have been sent.
        durable: The last round that the collector is known to have.
        pages: Every page that somebody who has the rounds from ``durable`` on may hold a copy of, and perhaps more.
        extent: Where in the file this stands: offsets of its first byte and of the one after its last.
    """

    started: ingest_pb2.TargetStarted
    layout: tuple[int, int, int]
    begun: int
    harvested: int
    durable: int
    pages: BitMap64
    extent: tuple[int, int] = (0, 0)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was lost with the worker: no harvest was under way, and each round had arrived."""
        return self.is_whole_with(self.durable)

    def is_whole_with(self, last: int) -> bool:
        """Whether nothing was lost that is not in the rounds up to this one."""
        return self.begun == self.harvested <= last


class Keepsake:
    """Writes for one target. The harvesting thread and the event loop may use it at once."""

    def __init__(self, fd: int, hold: Callable[[int], None] | None = None) -> None:
        """Take a memory file; nothing is written yet.

        Args:
            fd: Its descriptor, owned from now on.
            hold: Hands the descriptor to the keeper. Called once there is something to read in it.
        """
        self.fd = fd
        self._hold = hold
        self._lock = threading.Lock()
        self._start, self._end = _RECORDS_AT, _RECORDS_AT
        self._durable = 0
        self._harvested = 0
        self._written = BitMap64()
        # What vanished in rounds that may not be durable: up to the mark, and after it.
        self._vanished_before, self._vanished_after = BitMap64(), BitMap64()
        self._mark = 0
        self._description = b""
        self._layout = (0, 0, 0)

    def begin(self, started: ingest_pb2.TargetStarted, layout: tuple[int, int, int], kept: Kept | None = None) -> None:
        """Say that an incarnation begins, of which no round has been told; or goes on that another worker has left.

        A harvest counts as begun from now on.
        """
        self._description = started.SerializeToString()
        self._layout = layout
        if kept is not None:
            self._start, self._end = kept.extent
        self._durable = kept.durable if kept else 0
        self._harvested = self._mark = kept.harvested if kept else 0
        # What the other has kept may have vanished in a round that is on its way: until that is durable it stays.
        self._vanished_before, self._vanished_after = kept.pages if kept else BitMap64(), BitMap64()
        self._write(self._vanished_before, begun=self._harvested + 1)
        if self._hold is not None:
            self._hold(self.fd)
            self._hold = None

    def harvesting(self) -> None:
        """Say that marks are about to be taken, or that for another reason the next worker has to tell everything."""
        self._put(_BEGUN, self._harvested + 1)

    def harvested(self, known: BitMap64, vanished: BitMap64) -> None:
        """Take what the next round has; only then may it be sent.

        Args:
            known: Every page that is populated or was reported at its end.
            vanished: Of the round.
        """
        if self._durable >= self._mark:
            self._vanished_before, self._vanished_after = self._vanished_after, BitMap64()
            self._mark = self._harvested
        self._vanished_after |= vanished
        if vanished or not known.issubset(self._written):
            pages = known | self._vanished_before | self._vanished_after
            if not pages.issubset(self._written) or len(self._written) > 2 * len(pages) + SLACK_PAGES:
                self._write(pages, begun=self._harvested + 1)
        self._harvested += 1
        self._put(_HARVESTED, self._harvested)

    def durable(self, number: int) -> None:
        """Take it that the collector has this round and all before."""
        if number > self._durable:
            self._durable = number
            self._put(_DURABLE, number)

    def close(self) -> None:
        """Let go of the descriptor; whoever else has it can still read."""
        with self._lock:
            os.close(self.fd)
            self.fd = -1

    def _put(self, at: int, number: int) -> None:
        with self._lock:
            if self.fd >= 0:
                os.pwrite(self.fd, _NUMBER.pack(number), self._start + at)

    def _write(self, pages: BitMap64, *, begun: int) -> None:
        data = pages.serialize()
        size_bytes = _HEAD.size + len(self._description) + len(data)
        # Before the record that counts, where there is room, else after it: at most three of the largest there was.
        start = _RECORDS_AT if _RECORDS_AT + size_bytes <= self._start else self._end
        _write_all(self.fd, self._description + data, start + _HEAD.size)
        with self._lock:
            head = _HEAD.pack(begun, self._harvested, self._durable, *self._layout, len(self._description), len(data))
            os.pwrite(self.fd, head, start)
            os.pwrite(self.fd, MAGIC + _NUMBER.pack(start), 0)
            self._start, self._end = start, start + size_bytes
            os.ftruncate(self.fd, self._end)
        self._written = pages


def read(fd: int) -> Kept:
    """Read what a worker has left.

    Raises:
        KeepsakeUnusable: It is not finished, of another version, or no such thing.
    """
    try:
        beginning = os.pread(fd, _OFFSET_AT + _NUMBER.size, 0)
        if len(beginning) < _OFFSET_AT + _NUMBER.size or not beginning.startswith(MAGIC):
            message = "it is not finished, or of another version"
            raise KeepsakeUnusable(message)
        (start,) = _NUMBER.unpack_from(beginning, _OFFSET_AT)
        begun, harvested, durable, *layout, description_bytes, pages_bytes = _HEAD.unpack(
            os.pread(fd, _HEAD.size, start)
        )
        rest = _read_all(fd, description_bytes + pages_bytes, start + _HEAD.size)
        started = ingest_pb2.TargetStarted.FromString(rest[:description_bytes])
        pages = BitMap64.deserialize(rest[description_bytes:])
    except (OSError, OverflowError, ValueError, struct.error, DecodeError) as error:
        raise KeepsakeUnusable(str(error)) from error
    return Kept(
        started,
        (layout[0], layout[1], layout[2]),
        begun,
        harvested,
        durable,
        pages,
        extent=(start, start + _HEAD.size + len(rest)),
    )


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _read_all(fd: int, size_bytes: int, at: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        piece = os.pread(fd, size_bytes - len(data), at + len(data))
        if not piece:
            message = "it is cut short"
            raise KeepsakeUnusable(message)
        data += piece
    return data
