"""Cursors: where an answer ended, as opaque text that its holder keeps.

Layout, before base64url without padding: a version byte, the store's id (16 bytes), the number of boots, each boot as
host id and boot id (each a length and UTF-8), the number of positions, each position as index of its boot, pid, start
time, incarnation and round, and at the end CRC-32 of all that. Numbers are LEB128 varints, as in protobuf. A cursor of
some thousand targets takes some 20 bytes a target.
"""

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from wetink_collector.errors import CursorMalformed
from wetink_collector.identity import TargetKey

VERSION: Final = 1

CURSOR_CHARACTERS_MAX: Final = 512 * 1024
"""Bound on a cursor that is looked at: more than the largest selection needs, and it leaves room in its message."""

_CRC_BYTES: Final = 4
_STORE_BYTES: Final = 16
_VARINT_BYTES_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Position:
    """How far a cursor has come with one target."""

    incarnation: int
    round: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where an answer ended, target by target."""

    store_id: str
    positions: Mapping[TargetKey, Position]


def encode(cursor: Cursor) -> str:
    """Turn a cursor into its text. Equal cursors give equal text."""
    boots: dict[tuple[str, str], int] = {}
    body = bytearray()
    for target, position in sorted(cursor.positions.items()):
        boot = boots.setdefault((target.host_id, target.boot_id), len(boots))
        for number in (boot, target.pid, target.start_time_ticks, position.incarnation, position.round):
            body += _varint(number)
    head = bytearray([VERSION]) + bytes.fromhex(cursor.store_id) + _varint(len(boots))
    for names in boots:
        for name in names:
            text = name.encode()
            head += _varint(len(text)) + text
    data = bytes(head + _varint(len(cursor.positions)) + body)
    return urlsafe_b64encode(data + crc32(data).to_bytes(_CRC_BYTES, "little")).rstrip(b"=").decode()


def decode(text: str) -> Cursor:
    """Turn text from anybody into a cursor.

    Raises:
        CursorMalformed: It is none.
    """
    if len(text) > CURSOR_CHARACTERS_MAX:
        raise CursorMalformed(_sentence(f"it has {len(text)} characters"))
    try:
        data = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise CursorMalformed(_sentence("it is not base64url")) from error
    if len(data) <= 1 + _STORE_BYTES + _CRC_BYTES or data[0] != VERSION:
        raise CursorMalformed(_sentence("it is too short, or of another version"))
    data, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if crc32(data) != int.from_bytes(checksum, "little"):
        raise CursorMalformed(_sentence("its checksum does not match"))
    try:
        return _parse(_Reader(data[1:]))
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise CursorMalformed(_sentence("its fields do not fit")) from error


class _Reader:
    """Takes bytes from the front; IndexError where there are none left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, size_bytes: int) -> bytes:
        end = self._offset + size_bytes
        if end > len(self._data):
            raise IndexError
        taken, self._offset = self._data[self._offset : end], end
        return taken

    def varint(self) -> int:
        number = 0
        for shift in range(0, 7 * _VARINT_BYTES_MAX, 7):
            byte = self._data[self._offset]
            self._offset += 1
            number |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return number
        raise ValueError

    def text(self) -> str:
        return self.take(self.varint()).decode()

    def at_end(self) -> bool:
        return self._offset == len(self._data)


def _parse(reader: _Reader) -> Cursor:
    store_id = reader.take(_STORE_BYTES).hex()
    boots = [(reader.text(), reader.text()) for _ in range(reader.varint())]
    positions: dict[TargetKey, Position] = {}
    for _ in range(reader.varint()):
        host_id, boot_id = boots[reader.varint()]
        target = TargetKey(host_id, boot_id, reader.varint(), reader.varint())
        positions[target] = Position(reader.varint(), reader.varint())
    if not reader.at_end():
        raise ValueError
    return Cursor(store_id, positions)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _sentence(reason: str) -> str:
    return f"the cursor is malformed: {reason}; pass one exactly as an answer gave it, or none"
