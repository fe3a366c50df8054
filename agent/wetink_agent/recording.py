"""Recordings: the rounds of one target in a file, as messages of the contract. The bytes: ``docs/recording-format.md``.

Nothing here knows what a round means beyond the contract's own rules: rounds in their order, parts in theirs, page sets
that are sound. Who writes is ``recorder``, who plays is ``replay``.
"""

import os
import stat
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import BinaryIO, Final, Self

from wetink import pages
from wetink.v1 import ingest_pb2
from wetink_agent.framing import Damage, record, records
from wetink_agent.rounds import Round

MAGIC: Final = b"\x89wetink\n"
"""A byte that no text has, and a line end: a copy that treats the file as text breaks it at once."""

VERSION: Final = 1

_PREAMBLE: Final = Struct("<8sI")


class RecordingUnusable(Exception):
    """A file from which no round can be read. The sentence names it and says what is wrong."""


class RecordingWriter:
    """Writes one recording. What ``add`` has returned from survives the end of this process."""

    def __init__(self, path: Path, started: ingest_pb2.TargetStarted, *, overwrite: bool = False) -> None:
        """Create the file; only its owner can read it, since addresses reveal layout.

        Args:
            path: Of the file.
            started: Describes the target and its incarnation.
            overwrite: Whether a file that is there may be lost.

        Raises:
            FileExistsError: A file is there, and is left as it is.
            OSError: It cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if overwrite else os.O_EXCL)
        self._file = open(os.open(path, flags, 0o600), "wb")  # noqa: SIM115, PTH123 - closed by __exit__; mode of its own
        try:
            self._write(_PREAMBLE.pack(MAGIC, VERSION) + record(ingest_pb2.AgentMessage(target_started=started)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Give this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, as far as it has come."""
        self._file.close()

    def add(self, harvested: Round) -> None:
        """Write a round.

        Raises:
            OSError: It may be there in part; a reader leaves that out.
        """
        self._write(b"".join(record(ingest_pb2.AgentMessage(write_protect_batch=part)) for part in harvested.parts))

    def end(self, ended: ingest_pb2.TargetEnded) -> None:
        """Write the end, and have all of it on the disk.

        Raises:
            OSError: It may not be.
        """
        self._write(record(ingest_pb2.AgentMessage(target_ended=ended)))
        os.fsync(self._file.fileno())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()


class Recording:
    """A recording that can be read: at least one whole round. Safe for several threads at once.

    Attributes:
        path: Of the file.
        started: Of the target that was recorded.
        times_ns: When each round began, in nanoseconds since the Unix epoch.
        ended: How it ended; None where the file does not say.
        damage: One sentence where the file does not end as it should: from where on, what is wrong, what is left.
    """

    def __init__(self, path: Path) -> None:
        """Look at every record once.

        Raises:
            RecordingUnusable: There is no such file, it is no recording, is of another version, or has no whole round.
        """
        self.path = path
        self.started = ingest_pb2.TargetStarted()
        self.ended: ingest_pb2.TargetEnded | None = None
        self.damage: str | None = None
        # Sixteen bytes a round: a day of a hundred rounds a second is 138 MiB.
        self.times_ns = array("Q")
        self._offsets = array("Q")
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(_open(path))
                self._index()
            except OSError as error:
                message = f"recording {path} cannot be read: {error.strerror}"
                raise RecordingUnusable(message) from error
            opened.pop_all()

    def __enter__(self) -> Self:
        """Give this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        """How many whole rounds there are."""
        return len(self.times_ns)

    def parts(self, index: int) -> Sequence[ingest_pb2.WriteProtectBatch]:
        """Give the messages of a round, counted from 0.

        Raises:
            RecordingUnusable: The file has changed since it was opened.
        """
        start, end = self._offsets[index], self._offsets[index + 1]
        try:
            data = os.pread(self._file.fileno(), end - start, start)
            parts = [message.write_protect_batch for _, message in records(BytesIO(data), 0, end - start)]
        except (Damage, OSError) as error:
            message = f"recording {self.path} has changed since it was opened"
            raise RecordingUnusable(message) from error
        return parts

    def _index(self) -> None:
        """Find the rounds, up to the first record that is not what it should be."""
        size_bytes = os.fstat(self._file.fileno()).st_size
        _check_preamble(self.path, self._file.read(_PREAMBLE.size))
        try:
            self._takerecords(size_bytes)
        except Damage as damage:
            self.damage = f"recording {self.path} is damaged at byte {damage.offset}: {damage.what}"
        if not self:
            message = f"{self.damage or f'recording {self.path} has an end and no rounds'}; there is nothing to replay"
            raise RecordingUnusable(message)
        if self.damage is not None:
            self.damage += f"; rounds 1 to {len(self)} are whole"

    def _takerecords(self, size_bytes: int) -> None:
        parts: list[ingest_pb2.WriteProtectBatch] = []
        for begin, message in records(self._file, _PREAMBLE.size, size_bytes):
            self._take(begin, message, parts)
            if not parts:
                self._offsets.append(self._file.tell())
        if self.ended is None:
            raise Damage(size_bytes, "it stops without an end record, as if its recorder had been killed")

    def _take(self, begin: int, message: ingest_pb2.AgentMessage, parts: list[ingest_pb2.WriteProtectBatch]) -> None:
        """Take the next record; ``parts`` are those of a round that is not whole yet."""
        kind = message.WhichOneof("message")
        if self.ended is not None:
            raise Damage(begin, "something follows its end record")
        if not self._offsets:
            if kind != "target_started":
                raise Damage(begin, "its first record describes no target")
            self.started = message.target_started
        elif kind == "write_protect_batch":
            self._check_part(begin, message.write_protect_batch, parts)
            parts.append(message.write_protect_batch)
            if len(parts) == parts[0].part_count:
                self.times_ns.append(parts[0].first_time_ns)
                parts.clear()
        elif kind == "target_ended" and not parts:
            self.ended = message.target_ended
        else:
            raise Damage(begin, f"round {len(self) + 1} was due, and {kind or 'something unknown'} stands there")

    def _check_part(
        self, begin: int, part: ingest_pb2.WriteProtectBatch, before: Sequence[ingest_pb2.WriteProtectBatch]
    ) -> None:
        due = len(self) + 1
        count = before[0].part_count if before else part.part_count
        if (part.first_round, part.last_round, part.part, part.part_count) != (due, due, len(before), count):
            what = f"rounds {part.first_round} to {part.last_round}, part {part.part} of {part.part_count}"
            raise Damage(begin, f"part {len(before)} of round {due} was due, and {what} stands there")
        if (part.target, part.incarnation) != (self.started.target, self.started.incarnation):
            raise Damage(begin, f"round {due} is of another process or incarnation than the recording")
        try:
            sets = [pages.decode(each) for each in (part.written, part.vanished)]
        except pages.CorruptPageSet as error:
            raise Damage(begin, str(error)) from error
        if not sets[0].isdisjoint(sets[1]):
            raise Damage(begin, f"round {due} has pages that are written and vanished")


def _open(path: Path) -> BinaryIO:
    """Open a regular file; to open anything else could wait for ever, and nothing else can be read twice."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")  # noqa: PTH123 - what is open already
    os.close(descriptor)
    raise OSError(0, "it is no file")


def _check_preamble(path: Path, data: bytes) -> None:
    if len(data) < _PREAMBLE.size or not data.startswith(MAGIC):
        message = f"{path} is no recording: make one with `wetink-agent record FILE --pid N`"
        raise RecordingUnusable(message)
    _, version = _PREAMBLE.unpack(data)
    if version != VERSION:
        message = f"recording {path} has version {version} of the format, and this agent reads version {VERSION}"
        raise RecordingUnusable(message)
