"""Messages of the contract in files: each a record with its length and a checksum, so that a torn one is known.

The bytes are those of ``docs/recording-format.md``.
"""

from collections.abc import Iterator
from struct import Struct
from typing import BinaryIO, Final
from zlib import crc32

from google.protobuf.message import DecodeError

from wetink import pages
from wetink.v1 import ingest_pb2

RECORD_BYTES_MAX: Final = pages.MESSAGE_BYTES_MAX
"""Bound on a record's message: the contract's own, since it is one of its messages."""

_LENGTH: Final = Struct("<I")
_RECORD: Final = Struct("<II")


class Damage(Exception):
    """A record that is not what it should be: where it begins, and what is wrong."""

    def __init__(self, offset: int, what: str) -> None:
        """Say where and what."""
        super().__init__(what)
        self.offset = offset
        self.what = what


def record(message: ingest_pb2.AgentMessage) -> bytes:
    """Give a message as a record."""
    data = message.SerializeToString()
    assert 0 < len(data) <= RECORD_BYTES_MAX, len(data)
    return _RECORD.pack(len(data), _checksum(data)) + data


def _checksum(data: bytes) -> int:
    # Over the length too: a record of zeros, as a crash may leave behind, is then damaged and not empty.
    return crc32(data, crc32(_LENGTH.pack(len(data))))


def records(file: BinaryIO, offset: int, end: int) -> Iterator[tuple[int, ingest_pb2.AgentMessage]]:
    """Give each record between two offsets, with where it begins.

    Raises:
        Damage: A record is cut short or is not what was written.
    """
    while offset < end:
        head = file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            raise Damage(offset, "its last record is cut short")
        size_bytes, checksum = _RECORD.unpack(head)
        if not 0 < size_bytes <= RECORD_BYTES_MAX:
            raise Damage(offset, f"a record says it has {size_bytes} bytes")
        data = file.read(size_bytes)
        if len(data) < size_bytes:
            raise Damage(offset, "its last record is cut short")
        if _checksum(data) != checksum:
            raise Damage(offset, "a record does not match its checksum")
        try:
            message = ingest_pb2.AgentMessage.FromString(data)
        except DecodeError as error:
            raise Damage(offset, "a record is no message of the contract") from error
        yield offset, message
        offset += _RECORD.size + size_bytes
