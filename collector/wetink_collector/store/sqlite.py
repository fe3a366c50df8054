"""A store in one SQLite file: write-ahead log, one transaction a group, on disk before it is said to be.

Page sets live in the file only. In memory is, for each log, what its blocks are (``round_log.Block``), so that the
collector's memory does not grow with the number of dirty pages.

Source: sqlite.org/wal.html and sqlite.org/pragma.html; with ``synchronous=FULL`` a COMMIT in WAL mode ends in an fsync,
with ``NORMAL`` it does not.
"""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Final

import structlog

from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import (
    Block,
    RoundPages,
    based,
    check_follows,
    fold,
    plan_base,
    plan_merge,
    united,
)
from wetink_collector.store.connections import (
    PAGE_BYTES,
    FileDamaged,
    Readers,
    check_pages,
    connect,
    failing_as_store,
    set_aside,
    write_log_again,
)
from wetink_collector.store.interface import (
    Change,
    Contents,
    Ends,
    HostForgotten,
    HostSeen,
    IncarnationEnded,
    IncarnationStarted,
    RecordDamaged,
    RoundsAppended,
    RoundsExpired,
    SessionForgotten,
    SessionKept,
    StoredBlock,
    StoredIncarnation,
    StoreFailed,
    TargetForgotten,
    TargetUnwanted,
    TargetWanted,
    Usage,
    decode_stored,
    encode_stored,
    nowhere,
)
from wetink_collector.store.recent import RecentSets
from wetink_collector.store.records import (
    BLOCK_COLUMNS,
    BLOCK_FIELD_COUNT,
    SETS,
    Log,
    apply_session,
    block_of,
    insert,
    load,
    rescued,
    sessions,
    stored_block,
)
from wetink_collector.store.schema import check_readable, prepare, unusable

FILE_NAME: Final = "wetink.sqlite3"

ROWS_FREED_MAX: Final = 64
"""Bound on the blocks freed in one piece of maintenance: a commit waits for one piece at most."""

MERGED_BYTES_MAX: Final = 1 << 20
"""Bound on the page sets that are merged in one transaction: some ten milliseconds. One log alone may have more. A
transaction costs hardly more for ten logs than for one, and those of a fleet are due together."""

log = structlog.get_logger()

_TARGET: Final = "host_id = ? AND boot_id = ? AND pid = ? AND start_time_ticks = ?"
_host_values: Final = attrgetter(*(column.name for column in fields(HostSeen)))
_target_values: Final = attrgetter(*(column.name for column in fields(TargetKey)))


@dataclass(frozen=True, slots=True)
class _Merged:
    """A block of a log that is to take the place of several."""

    log: Log
    blocks: Sequence[Block]
    block: Block
    sets: tuple[bytes, ...]


class SqliteStore:
    """Keeps rounds in a directory of its own. The caller makes sure that no other collector uses it."""

    def __init__(self, directory: Path) -> None:
        """Open the store, or make it. One whose file is damaged is set aside, and an empty one takes its place.

        Raises:
            StoreUnusable: There is something that is no store, or one of a newer format, or it cannot be opened.
        """
        self._path = directory / FILE_NAME
        check_readable(self._path)
        self._readers = Readers(self._path)
        try:
            write_log_again(self._path)
            self._connection = connect(self._path)
        except (StoreFailed, sqlite3.Error) as error:
            raise unusable(self._path, error) from error
        self._damage: FileDamaged | None = None
        try:
            self._begin(read_through=True)
        except StoreFailed as error:
            self._connection.close()
            raise unusable(self._path, error) from error

    def contents(self) -> Contents:
        """Give what is in the store."""
        with failing_as_store(), closing(self._connection.cursor()) as cursor:
            hosts = cursor.execute("SELECT host_id, boot_id, agent_version, time_ns FROM host").fetchall()
            wanted = cursor.execute("SELECT host_id, boot_id, pid, start_time_ticks FROM wanted").fetchall()
            kept = [session for session in sessions(self._connection) if isinstance(session, SessionKept)]
        return Contents(
            hosts=[HostSeen(*row) for row in hosts],
            incarnations=[
                StoredIncarnation(log.incarnation, log.started, list(log.blocks), log.ended)
                for log in self._logs.values()
            ],
            wanted=[TargetKey(*row) for row in wanted],
            sessions=kept,
        )

    def commit(self, changes: Sequence[Change]) -> None:
        """Write changes in one transaction, and in the index in memory when they are on disk."""
        with self._transaction() as cursor:
            rounds: list[RoundsAppended] = []
            for change in changes:
                if isinstance(change, RoundsAppended):
                    rounds.append(change)
                    continue
                self._append(cursor, rounds)
                rounds.clear()
                self._apply(cursor, change)
            self._append(cursor, rounds)

    def maintain(self, ends: Ends = nowhere) -> bool:
        """Tell of a log that was found damaged, free some of what was dropped, or merge old blocks of some logs."""
        if self._damaged:
            raise self._damaged.popleft()
        if self._dropped:
            self._free(self._dropped[0])
            return True
        return self._merge_some(ends)

    def usage(self) -> Usage:
        """Say how much of the file is in use."""
        with failing_as_store(), closing(self._connection.cursor()) as cursor:
            pages, free = (cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        logs = self._logs.values()
        return Usage(
            size_bytes=(pages - free) * PAGE_BYTES,
            block_bytes={
                log.incarnation: [(block, log.size_bytes[block.last_round]) for block in log.blocks] for log in logs
            },
            shrinking=bool(self._dropped) or any(plan_base(log.blocks, log.expired_round) for log in logs),
        )

    def read(self, incarnation: IncarnationKey, *, after_round: int) -> Iterator[StoredBlock]:
        """Give the blocks that hold every round after one: one statement, hence one moment."""
        target = incarnation.target
        with failing_as_store(incarnation), closing(self._readers.connection().cursor()) as cursor:
            cursor.execute(
                f"SELECT {BLOCK_COLUMNS}, crc32, {SETS} FROM block"  # noqa: S608 (our own column names)
                " WHERE last_round > ? AND incarnation_id ="
                f" (SELECT id FROM incarnation WHERE {_TARGET} AND incarnation = ?) ORDER BY last_round",
                (after_round, *_target_values(target), incarnation.incarnation),
            )
            for row in cursor:
                yield stored_block(row, incarnation)

    def recover(self) -> Contents:
        """Open the file again: what it says is what is durable. One that is damaged is set aside."""
        self._connection.close()
        write_log_again(self._path)
        with failing_as_store():
            self._connection = connect(self._path)
        self._begin()
        # A write is the only proof that writing works again.
        with self._transaction() as cursor:
            cursor.execute("UPDATE store SET store_id = store_id")
        return self.contents()

    def close(self) -> None:
        """Write the log back into the file and close every connection."""
        self._readers.close()
        with suppress(sqlite3.Error):
            self._connection.close()

    def _begin(self, *, read_through: bool = False) -> None:
        """Read the index of a file that was just opened; take an empty file where this one is damaged."""
        if self._damage is None:
            try:
                self._read_index(read_through=read_through)
            except FileDamaged as damage:
                self._damage = damage
        if self._damage is not None:
            self._set_aside(self._damage)

    def _read_index(self, *, read_through: bool = False) -> None:
        with failing_as_store():
            self.store_id = prepare(self._connection, self._path)
            if read_through:
                check_pages(self._connection, self._path)
            self._logs, self._dropped, self._damaged = load(self._connection)
            damaged = [session.name for session in sessions(self._connection) if isinstance(session, SessionForgotten)]
        if damaged:
            # They stay where they are until one of that name is opened: who starts on a full disk can write nothing.
            log.error("sessions_damaged", sessions=damaged, consequence="who goes on with one is told to open it again")
        self._recent = RecentSets()
        self._grown = dict.fromkeys(log.incarnation for log in self._logs.values())

    def _set_aside(self, damage: FileDamaged) -> None:
        """Begin with an empty file. Agents begin new incarnations, and cursors are those of another store."""
        told_again_by_nobody = rescued(self._connection)
        self._connection.close()
        self._readers.renew()
        set_aside(self._path, str(damage))
        with failing_as_store():
            self._connection = connect(self._path)
        self._read_index()
        self.commit(told_again_by_nobody)
        self._damage = None

    def _kept(self, incarnation: IncarnationKey) -> Log | None:
        log = self._logs.get(incarnation.target)
        return log if log is not None and log.incarnation == incarnation else None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        try:
            with failing_as_store(), closing(self._connection.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                cursor.execute("COMMIT")
        except FileDamaged as damage:
            self._damage = damage
            raise

    def _apply(self, cursor: sqlite3.Cursor, change: Change) -> None:
        match change:
            case HostSeen():
                cursor.execute("INSERT OR REPLACE INTO host VALUES (?, ?, ?, ?)", _host_values(change))
            case HostForgotten():
                self._forget_host(cursor, change)
            case IncarnationStarted():
                self._start(cursor, change)
            case IncarnationEnded():
                self._end(cursor, change)
            case RoundsExpired():
                self._expire(change)
            case TargetForgotten():
                self._forget(cursor, change)
            case TargetWanted():
                cursor.execute("INSERT OR REPLACE INTO wanted VALUES (?, ?, ?, ?)", _target_values(change.target))
            case SessionKept() | SessionForgotten():
                apply_session(cursor, change)
            case TargetUnwanted():
                self._unwant(cursor, change.target)

    def _start(self, cursor: sqlite3.Cursor, change: IncarnationStarted) -> None:
        target = change.incarnation.target
        self._drop(cursor, target)
        cursor.execute(
            "INSERT INTO incarnation (host_id, boot_id, pid, start_time_ticks, incarnation, started)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*_target_values(target), change.incarnation.incarnation, change.started.SerializeToString()),
        )
        assert cursor.lastrowid is not None
        self._logs[target] = Log(cursor.lastrowid, change.incarnation, change.started)

    def _forget_host(self, cursor: sqlite3.Cursor, change: HostForgotten) -> None:
        cursor.execute("DELETE FROM host WHERE host_id = ? AND time_ns = ?", (change.host_id, change.time_ns))
        if cursor.rowcount:
            cursor.execute("DELETE FROM wanted WHERE host_id = ?", (change.host_id,))

    def _forget(self, cursor: sqlite3.Cursor, change: TargetForgotten) -> None:
        if (log := self._kept(change.incarnation)) and log.ended:
            self._drop(cursor, change.incarnation.target)
            if change.unwanted:
                self._unwant(cursor, change.incarnation.target)

    def _drop(self, cursor: sqlite3.Cursor, target: TargetKey) -> None:
        if log := self._logs.pop(target, None):
            cursor.execute("DELETE FROM incarnation WHERE id = ?", (log.row,))
            # The blocks go later, in pieces: freeing them takes time in proportion to their size.
            self._dropped.append(log.row)

    def _unwant(self, cursor: sqlite3.Cursor, target: TargetKey) -> None:
        cursor.execute(f"DELETE FROM wanted WHERE {_TARGET}", _target_values(target))  # noqa: S608 (as above)

    def _append(self, cursor: sqlite3.Cursor, changes: Sequence[RoundsAppended]) -> None:
        rows = []
        for change in changes:
            if log := self._kept(change.incarnation):
                check_follows(change.block, log.blocks[-1].last_round if log.blocks else 0)
                sets = change.written, change.vanished, change.uncertain
                rows.append((log.row, change.block, sets))
                log.append(change.block, sum(map(len, sets)))
                self._grown[change.incarnation] = None
        insert(cursor, rows)
        for row in rows:
            self._recent.put(*row)

    def _expire(self, change: RoundsExpired) -> None:
        if log := self._kept(change.incarnation):
            log.expired_round = max(log.expired_round, change.last_round)
            self._grown[change.incarnation] = None

    def _end(self, cursor: sqlite3.Cursor, change: IncarnationEnded) -> None:
        log = self._kept(change.incarnation)
        if log is None:
            return
        ended = (change.reason, change.time_ns, change.message)
        if change.rounds_dropped:
            self._drop(cursor, log.incarnation.target)
            self._start(cursor, IncarnationStarted(log.incarnation, log.started))
            log = self._logs[log.incarnation.target]
        cursor.execute(
            "UPDATE incarnation SET end_reason = ?, end_time_ns = ?, end_message = ? WHERE id = ?", (*ended, log.row)
        )
        log.ended = change

    def _free(self, row: int) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "DELETE FROM block WHERE rowid IN (SELECT rowid FROM block WHERE incarnation_id = ? LIMIT ?)",
                (row, ROWS_FREED_MAX),
            )
            done = cursor.rowcount < ROWS_FREED_MAX
        if done:
            self._dropped.popleft()

    def _merge_some(self, ends: Ends) -> bool:
        """Make one block of several in some logs where that is due; say whether there were any."""
        merged: list[_Merged] = []
        size_bytes = 0
        for incarnation in list(self._grown):
            del self._grown[incarnation]
            if not (log := self._kept(incarnation)):
                continue
            try:
                one = self._merged(log, ends(incarnation))
            except RecordDamaged as damage:
                # Whoever hears of it drops the log; until then it is not tried again.
                self._damaged.append(damage)
                continue
            if one is None:
                continue
            # More of it may be due when its turn comes again.
            self._grown[incarnation] = None
            merged.append(one)
            size_bytes += sum(log.size_bytes[block.last_round] for block in one.blocks)
            if size_bytes >= MERGED_BYTES_MAX:
                break
        if merged:
            self._replace(merged)
        elif self._damaged:
            raise self._damaged.popleft()
        return bool(merged)

    def _merged(self, log: Log, ends: Collection[int]) -> _Merged | None:
        """Make one block of several of a log, if that is due. Nothing is written."""
        oldest = plan_base(log.blocks, log.expired_round)
        blocks = oldest or plan_merge(log.blocks, ends)
        if not blocks:
            return None
        pages = fold(self._pages(log, blocks))
        block, pages = based(blocks, pages) if oldest else (united(blocks, pages), pages)
        return _Merged(
            log, blocks, block, tuple(encode_stored(some) for some in (pages.written, pages.vanished, pages.uncertain))
        )

    def _replace(self, merged: Sequence[_Merged]) -> None:
        """Write blocks in the place of those they are made of, in one transaction."""
        with self._transaction() as cursor:
            for one in merged:
                cursor.execute(
                    "DELETE FROM block WHERE incarnation_id = ? AND last_round BETWEEN ? AND ?",
                    (one.log.row, one.block.first_round, one.block.last_round),
                )
            insert(cursor, [(one.log.row, one.block, one.sets) for one in merged])
        for one in merged:
            self._recent.drop(one.log.row, one.blocks)
            one.log.replace(one.blocks, one.block, sum(map(len, one.sets)))

    def _pages(self, log: Log, blocks: Sequence[Block]) -> Iterator[RoundPages]:
        if recent := self._recent.of(log.row, blocks):
            for sets in recent:
                yield RoundPages(*(decode_stored(data, log.incarnation) for data in sets))
            return
        with failing_as_store(log.incarnation), closing(self._connection.cursor()) as cursor:
            cursor.execute(
                f"SELECT {BLOCK_COLUMNS}, crc32, {SETS} FROM block"  # noqa: S608 (our own column names)
                " WHERE incarnation_id = ? AND last_round BETWEEN ? AND ? ORDER BY last_round",
                (log.row, blocks[0].first_round, blocks[-1].last_round),
            )
            for block in blocks:
                row = cursor.fetchone()
                if row is None or block_of(row[:BLOCK_FIELD_COUNT]) != block:
                    raise RecordDamaged(log.incarnation, f"rounds up to {block.last_round} are not there")
                yield stored_block(row, log.incarnation).pages
