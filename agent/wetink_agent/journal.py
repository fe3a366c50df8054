"""The spool on disk: what a worker that was killed had in its memory, the next one finds here.

Segments of records, each begun by one worker and never written by another. What is torn at the end of one is left out.
When there is much more in them than is still needed, a new one begins with all that is, and the others are removed.
Nothing is synced: the file system remembers over the end of a process, and no incarnation outlives the host's.

A thread of its own writes; what it cannot write is not on the disk, and rounds that are missing here are covered by the
round that has everything, with which the next worker then goes on. It is told once, and tried again after a while.
"""

import contextlib
import fcntl
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog

from wetink.v1 import ingest_pb2
from wetink_agent.framing import Damage, record, records
from wetink_agent.rounds import Round
from wetink_agent.spool import SPOOL_BYTES_MAX, Key, key_of

SLACK_BYTES: Final = 4 << 20
"""How many bytes more than twice what is needed are on the disk before it is written afresh."""

WAITING_BYTES_MAX: Final = SPOOL_BYTES_MAX
"""Bound on what waits to be written: a disk that is slower than the targets for so long is taken for one that fails."""

RETRY_SECONDS: Final = 30.0
"""After how long a disk that failed is tried again."""

CLOSE_SECONDS_MAX: Final = 2.0
"""How long the end of the agent waits for the disk."""

_MAGIC: Final = b"\x89wetspl\n1"
_SUFFIX: Final = ".segment"

log = structlog.get_logger()


class SpoolUnusable(Exception):
    """A directory that cannot be the spool. The sentence names it and says what to do."""


@dataclass(slots=True)
class Stored:
    """What the disk has of one incarnation: rounds in their order, and how it ended where it did."""

    rounds: list[Round] = field(default_factory=list)
    started: ingest_pb2.TargetStarted | None = None
    ended: ingest_pb2.TargetEnded | None = None

    def following(self, durable: int) -> list[Round]:
        """Give the rounds from the one after a durable one on, as far as they are without a gap."""
        found: list[Round] = []
        for stored in self.rounds:
            last = found[-1].last if found else durable
            if stored.last > last:
                if stored.first > last + 1:
                    break
                # One that has several may stand behind the single ones it was made of.
                while found and found[-1].first >= stored.first:
                    found.pop()
                if not found or found[-1].last + 1 == stored.first:
                    found.append(stored)
        return found


class JournalOnDisk:
    """Writes the spool of one agent into a directory. Use as a context manager."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        """Lock the directory; it is made, for its owner only, where it is not there.

        Raises:
            SpoolUnusable: It cannot be used, or another agent does.
        """
        self._directory = directory
        self._preamble = _MAGIC + boot_id.encode() + b"\n"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            message = f"the spool directory {directory} cannot be used: {error.strerror}"
            raise SpoolUnusable(message) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            message = f"another agent spools into {directory}: give each a directory of its own"
            raise SpoolUnusable(message) from error
        self._file = -1
        self._written_bytes = 0
        self._waiting_bytes = 0
        self._retry_at: float | None = None
        self._has_told = False
        self._number = max((_number(path) for path in self._segments()), default=0)
        self._queue: queue.SimpleQueue[tuple[bool, list[ingest_pb2.AgentMessage], int] | None] = queue.SimpleQueue()
        self._count_lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="spool", daemon=True)

    def __enter__(self) -> Self:
        """Start writing."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what waits, if the disk lets that be done soon."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS_MAX)
        os.close(self._lock)

    def load(self) -> dict[Key, Stored]:
        """Give what earlier workers left. Called before anything is written.

        Rounds of incarnations that nobody goes on with are among it, until the journal is written afresh.
        """
        found: dict[Key, Stored] = {}
        for path in self._segments():
            try:
                with path.open("rb") as file:
                    if file.read(len(self._preamble)) == self._preamble:
                        size_bytes = os.fstat(file.fileno()).st_size
                        messages = (message for _, message in records(file, len(self._preamble), size_bytes))
                        _take(messages, found)
            except Damage as damage:
                log.warning("spool_segment_torn", path=str(path), at=damage.offset, why=damage.what)
            except OSError as error:
                log.warning("spool_segment_unreadable", path=str(path), why=str(error))
        return found

    def write(self, messages: list[ingest_pb2.AgentMessage]) -> None:
        """See ``Journal``."""
        self._put(messages)

    def is_long(self, needed_bytes: int) -> bool:
        """See ``Journal``; also when a disk that failed is to be tried again."""
        if self._retry_at is not None:
            return time.monotonic() >= self._retry_at
        return self._written_bytes > 2 * needed_bytes + SLACK_BYTES

    def rewrite(self, messages: list[ingest_pb2.AgentMessage]) -> None:
        """See ``Journal``."""
        # What is counted from now on is what the new one has: it is not asked for twice.
        self._written_bytes = 0
        self._retry_at = None
        self._put(messages, is_afresh=True)

    def _put(self, messages: list[ingest_pb2.AgentMessage], *, is_afresh: bool = False) -> None:
        size_bytes = sum(message.ByteSize() for message in messages)
        self._written_bytes += size_bytes
        with self._count_lock:
            # Of rounds that are in the spool only one copy is in memory: they count once they are gone from there.
            fits = is_afresh or self._waiting_bytes + size_bytes <= WAITING_BYTES_MAX
            if fits:
                self._waiting_bytes += size_bytes
        if fits:
            self._queue.put((is_afresh, messages, size_bytes))
        else:
            self._tell(f"it is slower than the targets: {WAITING_BYTES_MAX >> 20} MiB wait")

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            is_afresh, messages, size_bytes = work
            try:
                if is_afresh:
                    self._begin_afresh(messages)
                elif self._file < 0 and self._retry_at is None:
                    self._begin_segment(messages)
                elif self._file >= 0:
                    self._append(messages)
            except OSError as error:
                # What is on the disk ends with a gap, behind which nothing is read.
                self._close_segment()
                self._tell(error.strerror or str(error))
            else:
                self._has_told &= not is_afresh
            finally:
                with self._count_lock:
                    self._waiting_bytes -= size_bytes
        self._close_segment()

    def _begin_afresh(self, messages: Sequence[ingest_pb2.AgentMessage]) -> None:
        before = self._segments()
        try:
            self._begin_segment(messages)
        except OSError:
            # Without the old ones there may be room; they have a gap by now.
            for old in self._segments():
                old.unlink(missing_ok=True)
            self._begin_segment(messages)
        # Only now: a kill in between leaves some of it twice, which is once.
        for old in before:
            old.unlink(missing_ok=True)

    def _begin_segment(self, messages: Sequence[ingest_pb2.AgentMessage]) -> None:
        self._close_segment()
        self._number += 1
        path = self._directory / f"{self._number:016x}{_SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(self._file, self._preamble)
            self._append(messages)
        except OSError:
            path.unlink()
            raise

    def _append(self, messages: Sequence[ingest_pb2.AgentMessage]) -> None:
        _write_all(self._file, b"".join(map(record, messages)))

    def _close_segment(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _tell(self, why: str) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if not self._has_told:
            self._has_told = True
            log.warning(
                "spool_in_memory_only",
                directory=str(self._directory),
                why=why,
                consequence="a worker that is killed now makes the next one tell everything",
            )

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob(f"*{_SUFFIX}"), key=_number)


def _take(messages: Iterator[ingest_pb2.AgentMessage], found: dict[Key, Stored]) -> None:
    parts: list[ingest_pb2.WriteProtectBatch] = []
    for message in messages:
        match message.WhichOneof("message"):
            case "write_protect_batch":
                part = message.write_protect_batch
                if part.part != len(parts):
                    parts.clear()
                parts.append(part)
                if len(parts) == part.part_count:
                    whole = Round(tuple(parts), sum(each.ByteSize() for each in parts))
                    found.setdefault(key_of(part.target, part.incarnation), Stored()).rounds.append(whole)
                    parts = []
            case "target_started":
                started = message.target_started
                found.setdefault(key_of(started.target, started.incarnation), Stored()).started = started
            case "target_ended":
                ended = message.target_ended
                found.setdefault(key_of(ended.target, ended.incarnation), Stored()).ended = ended


def _number(path: Path) -> int:
    with contextlib.suppress(ValueError):
        return int(path.stem, 16)
    return 0


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
