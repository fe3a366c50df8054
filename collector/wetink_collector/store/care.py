"""What an operator can do to a store's file: look at every record of it, and make it small."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from wetink_collector.round_log import BASE_LEVEL
from wetink_collector.store.connections import connect
from wetink_collector.store.interface import RecordDamaged, SessionForgotten, StoredBlock, StoreUnusable
from wetink_collector.store.records import BLOCK_COLUMNS, SETS, Log, load, sessions, stored_block
from wetink_collector.store.schema import FORMAT, check_readable
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore


def findings(directory: Path) -> Iterator[str]:
    """Look at everything in a store, as it is at one moment, and give what is wrong, a sentence each.

    A collector may be using it meanwhile. Nothing is changed.

    Raises:
        StoreUnusable: There is no store, or none that this program can read.
    """
    path = directory / FILE_NAME
    if not path.exists():
        message = f"there is no store in {directory}: give the directory that a collector has as --data"
        raise StoreUnusable(message)
    check_readable(path)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version < FORMAT:
            message = f"store {path} is of format {version}, and is brought to {FORMAT} when a collector starts on it"
            raise StoreUnusable(message)
        try:
            yield from _findings(connection)
        except sqlite3.DatabaseError as error:
            yield f"the file cannot be read on: {error}"


def compact(directory: Path) -> tuple[int, int]:
    """Do all merging that is due, and write the file anew without what is free in it. The caller holds the directory.

    A crash at any point leaves the store as it was or as it will be.

    Returns:
        The file's size in bytes before and after.

    Raises:
        StoreUnusable: There is no store that can be used, its disk has no room for a second copy, or a record of it is
            damaged.
    """
    path = directory / FILE_NAME
    if not path.exists():
        message = f"there is no store in {directory}: give the directory that a collector has as --data"
        raise StoreUnusable(message)
    before = path.stat().st_size
    try:
        with closing(SqliteStore(directory)) as store:
            while store.maintain():
                pass
        with closing(connect(path)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except RecordDamaged as damage:
        message = f"{damage}; start the collector on it, which ends that incarnation, and compact it then"
        raise StoreUnusable(message) from damage
    except sqlite3.Error as error:
        message = f"store {path} cannot be compacted: {error}; it is as it was"
        raise StoreUnusable(message) from error
    return before, path.stat().st_size


def _findings(connection: sqlite3.Connection) -> Iterator[str]:
    for (line,) in connection.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield " ".join(f"the file is damaged: {line}".split())
    logs, _, damaged = load(connection)
    yield from map(str, damaged)
    for session in sessions(connection):
        if isinstance(session, SessionForgotten):
            yield f"session {session.name!r} of {session.owner!r} does not have the checksum it was written with"
    for log in logs.values():
        rows = connection.execute(
            f"SELECT {BLOCK_COLUMNS}, crc32, {SETS} FROM block WHERE incarnation_id = ? ORDER BY last_round",  # noqa: S608 (our own column names)
            (log.row,),
        )
        for row in rows:
            yield from _wrong_with(row, log)


def _wrong_with(row: tuple[object, ...], log: Log) -> Iterator[str]:
    try:
        stored = stored_block(row, log.incarnation)
    except RecordDamaged as damage:
        yield str(damage)
        return
    if what := _contradiction(stored):
        block = stored.block
        yield str(RecordDamaged(log.incarnation, f"rounds {block.first_round} to {block.last_round} {what}"))


def _contradiction(stored: StoredBlock) -> str:
    """Say what in a block that has its checksum cannot be; empty where nothing is wrong."""
    block, pages = stored.block, stored.pages
    if (block.written_page_count, block.vanished_page_count) != (len(pages.written), len(pages.vanished)):
        return "have other numbers of pages than they say"
    if not pages.written.isdisjoint(pages.vanished):
        return "have pages that are written and vanished"
    if not 0 < block.oldest_round <= block.first_round <= block.last_round:
        return "do not follow each other"
    if block.level == BASE_LEVEL and (block.first_round != 1 or pages.vanished):
        return "are no base"
    return ""
