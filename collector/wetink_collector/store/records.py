"""Records in the SQLite file: how an incarnation's log is written down in rows, and read back."""

import sqlite3
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import chain
from operator import attrgetter
from typing import Any, Final
from zlib import crc32

from google.protobuf.message import DecodeError

from wetink.pages import PAGE_SIZE, checksum
from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.types_pb2 import EndReason
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import Block, RoundPages, is_whole
from wetink_collector.store.interface import (
    Change,
    HostSeen,
    IncarnationEnded,
    RecordDamaged,
    SessionForgotten,
    SessionKept,
    StoredBlock,
    TargetWanted,
    decode_stored,
)

BLOCK_COLUMNS: Final = ", ".join(column.name for column in fields(Block))
SETS: Final = "written, vanished, uncertain"
BLOCK_FIELD_COUNT: Final = len(fields(Block))
_block_values: Final = attrgetter(*(column.name for column in fields(Block)))
_FROZEN: Final = [column.name for column in fields(Block)].index("frozen")
_RECORD: Final = struct.Struct("<qqq")

_AT_ONCE: Final = (32, 4, 1)
"""How many rows one statement writes. Each gives the interpreter's lock away, and a busy event loop keeps it
for as long as some rows take. SQLite of before 3.32 takes at most 999 values in one."""

_ROW: Final = f"({', '.join('?' * (len(fields(Block)) + 5))})"
_INSERT: Final = {
    count: f"INSERT INTO block (incarnation_id, {BLOCK_COLUMNS}, crc32, {SETS}) VALUES {', '.join([_ROW] * count)}"  # noqa: S608 (our own column names)
    for count in _AT_ONCE
}


@dataclass(slots=True)
class Log:
    """What is known in memory of an incarnation's log. ``size_bytes`` is of each block's pages, by its last round."""

    row: int
    incarnation: IncarnationKey
    started: TargetStarted
    ended: IncarnationEnded | None = None
    blocks: list[Block] = field(default_factory=list)
    size_bytes: dict[int, int] = field(default_factory=dict)
    expired_round: int = 0

    def append(self, block: Block, size_bytes: int) -> None:
        """Take a block at the end."""
        self.blocks.append(block)
        self.size_bytes[block.last_round] = size_bytes

    def replace(self, blocks: Sequence[Block], block: Block, size_bytes: int) -> None:
        """Take one block in the place of several."""
        first = self.blocks.index(blocks[0])
        self.blocks[first : first + len(blocks)] = [block]
        for gone in blocks:
            del self.size_bytes[gone.last_round]
        self.size_bytes[block.last_round] = size_bytes


def rescued(connection: sqlite3.Connection) -> list[Change]:
    """Read from a damaged file what agents do not tell again, as far as that can be read.

    Of sessions only those that are whole: none of their rounds is answered from another store, but who goes on with one
    is told so, and which rounds it has.
    """
    found: list[Change] = []
    with suppress(sqlite3.Error):
        found += [
            HostSeen(*row) for row in connection.execute("SELECT host_id, boot_id, agent_version, time_ns FROM host")
        ]
    with suppress(sqlite3.Error):
        rows = connection.execute("SELECT host_id, boot_id, pid, start_time_ticks FROM wanted")
        found += [TargetWanted(TargetKey(*row)) for row in rows]
    with suppress(sqlite3.Error):
        for session in sessions(connection):
            if isinstance(session, SessionKept):
                # One by one: those that come before a page that cannot be read are had.
                found.append(session)
    return found


def sessions(connection: sqlite3.Connection) -> Iterator[SessionKept | SessionForgotten]:
    """Read the sessions; of one that is not what was written, only that nothing is known of it."""
    for owner, name, data, written_with in connection.execute("SELECT owner, name, data, crc32 FROM session"):
        whole = isinstance(data, bytes) and written_with == session_checksum(str(owner), str(name), data)
        yield SessionKept(owner, name, data) if whole else SessionForgotten(owner, name)


def apply_session(cursor: sqlite3.Cursor, change: SessionKept | SessionForgotten) -> None:
    """Write a session down, or remove it."""
    cursor.execute("DELETE FROM session WHERE owner = ? AND name = ?", (change.owner, change.name))
    if isinstance(change, SessionKept):
        row = (change.owner, change.name, change.data, session_checksum(change.owner, change.name, change.data))
        cursor.execute("INSERT INTO session (owner, name, data, crc32) VALUES (?, ?, ?, ?)", row)


def session_checksum(owner: str, name: str, data: bytes) -> int:
    """Sum up a session with whose it is, so that it cannot be taken for another's."""
    return crc32(data, crc32(f"{owner}\0{name}".encode()))


def load(connection: sqlite3.Connection) -> tuple[dict[TargetKey, Log], deque[int], deque[RecordDamaged]]:
    """Read the index.

    Returns:
        Every log that is kept, the rows of those whose blocks are still to be freed, and what is damaged as far as that
        can be seen without pages.
    """
    logs: dict[int, Log] = {}
    damaged: deque[RecordDamaged] = deque()
    for row in connection.execute(
        "SELECT id, host_id, boot_id, pid, start_time_ticks, incarnation, started, end_reason, end_time_ns, end_message"
        " FROM incarnation ORDER BY id"
    ):
        incarnation = IncarnationKey(TargetKey(*row[1:5]), row[5])
        ended = None if row[7] is None else IncarnationEnded(incarnation, EndReason.ValueType(row[7]), row[8], row[9])
        try:
            started = TargetStarted.FromString(row[6])
        except DecodeError:
            damaged.append(RecordDamaged(incarnation, "how it started cannot be read"))
            started = TargetStarted(target=incarnation.target.message(), incarnation=row[5], page_size=PAGE_SIZE)
        logs[row[0]] = Log(row[0], incarnation, started, ended)
    dropped: dict[int, None] = {}
    columns = f"incarnation_id, length(written) + length(vanished) + length(uncertain), {BLOCK_COLUMNS}"
    for row in connection.execute(f"SELECT {columns} FROM block ORDER BY last_round"):  # noqa: S608 (as above)
        if log := logs.get(row[0]):
            log.append(block_of(row[2:]), row[1])
        else:
            dropped[row[0]] = None
    for log in logs.values():
        if log.blocks and not is_whole(log.blocks, after_round=0, last_round=log.blocks[-1].last_round):
            damaged.append(RecordDamaged(log.incarnation, "there are rounds missing between those that are there"))
    return {log.incarnation.target: log for log in logs.values()}, deque(dropped), damaged


def insert(cursor: sqlite3.Cursor, blocks: Sequence[tuple[int, Block, tuple[bytes, ...]]]) -> None:
    """Write blocks down: the row of each one's log, what it is, and its sets."""
    rows = [(row, *_block_values(block), _checksum(block, sets), *sets) for row, block, sets in blocks]
    done = 0
    for count in _AT_ONCE:
        while len(rows) - done >= count:
            cursor.execute(_INSERT[count], list(chain.from_iterable(rows[done : done + count])))
            done += count


def stored_block(row: tuple[Any, ...], incarnation: IncarnationKey) -> StoredBlock:
    """Read a block: the columns of ``Block``, its checksum and its sets.

    Raises:
        RecordDamaged: It is not what was written.
    """
    block = block_of(row[:BLOCK_FIELD_COUNT])
    written_with, *sets = row[BLOCK_FIELD_COUNT:]
    rounds = f"rounds {block.first_round} to {block.last_round}"
    if not all(isinstance(data, bytes) for data in sets):
        raise RecordDamaged(incarnation, f"{rounds} have no page sets")
    if written_with != _checksum(block, sets):
        raise RecordDamaged(incarnation, f"{rounds} do not have the checksum they were written with")
    return StoredBlock(block, RoundPages(*(decode_stored(data, incarnation) for data in sets)))


def block_of(row: tuple[Any, ...]) -> Block:
    """Read the columns of ``Block``."""
    return Block(*(bool(value) if index == _FROZEN else value for index, value in enumerate(row)))


def _checksum(block: Block, sets: Iterable[bytes]) -> int:
    """Sum up a record: its rounds and its pages, so that neither can be taken for another's."""
    found = crc32(_RECORD.pack(block.first_round, block.last_round, block.oldest_round))
    for data in sets:
        found = checksum(data, found)
    return found
