"""The format of the SQLite file: which tables it has, how it says which format it is of, and how older ones become it.

Each format is made from the one before it by one function, an empty file being of format 0. So a file that was made
years ago and one that is made now have come the same way.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, TypeAlias
from uuid import uuid4
from zlib import crc32

import structlog

from wetink_collector.store.interface import StoreUnusable

APPLICATION_ID: Final = 0x7765746B
"""Kept in ``PRAGMA application_id``: "wetk". A file that is not ours is refused."""

Step: TypeAlias = Callable[[sqlite3.Connection], None]
"""Makes a format from the one before it. Runs in a transaction with all other steps that a file needs."""

log = structlog.get_logger()


def _format_1(connection: sqlite3.Connection) -> None:
    """Make the tables of 0.1.0 in an empty file."""
    connection.execute("CREATE TABLE store (store_id TEXT NOT NULL)")
    connection.execute(
        "CREATE TABLE host ("
        " host_id TEXT PRIMARY KEY, boot_id TEXT NOT NULL, agent_version TEXT NOT NULL, time_ns INTEGER NOT NULL)"
    )
    connection.execute(
        "CREATE TABLE incarnation ("
        " id INTEGER PRIMARY KEY AUTOINCREMENT,"
        " host_id TEXT NOT NULL, boot_id TEXT NOT NULL, pid INTEGER NOT NULL, start_time_ticks INTEGER NOT NULL,"
        " incarnation INTEGER NOT NULL, started BLOB NOT NULL,"
        " end_reason INTEGER, end_time_ns INTEGER, end_message TEXT,"
        " UNIQUE (host_id, boot_id, pid, start_time_ticks))"
    )
    connection.execute(
        "CREATE TABLE block ("
        " incarnation_id INTEGER NOT NULL,"
        " first_round INTEGER NOT NULL, last_round INTEGER NOT NULL, oldest_round INTEGER NOT NULL,"
        " level INTEGER NOT NULL,"
        " first_time_ns INTEGER NOT NULL, last_time_ns INTEGER NOT NULL, frozen INTEGER NOT NULL,"
        " written_page_count INTEGER NOT NULL, vanished_page_count INTEGER NOT NULL,"
        " populated_page_count INTEGER NOT NULL, cautious_page_count INTEGER NOT NULL,"
        " crc32 INTEGER NOT NULL, written BLOB NOT NULL, vanished BLOB NOT NULL,"
        " UNIQUE (incarnation_id, last_round))"
    )
    connection.execute(
        "CREATE TABLE wanted ("
        " host_id TEXT NOT NULL, boot_id TEXT NOT NULL, pid INTEGER NOT NULL, start_time_ticks INTEGER NOT NULL,"
        " PRIMARY KEY (host_id, boot_id, pid, start_time_ticks)) WITHOUT ROWID"
    )
    connection.execute("INSERT INTO store VALUES (?)", (uuid4().hex,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _format_2(_: sqlite3.Connection) -> None:
    """Change nothing: a log may have a base now (``round_log``), with which 0.1.0 would answer cursors too sparely."""


def _format_3(connection: sqlite3.Connection) -> None:
    """Keep which pages of a block are uncertain. Of what older formats kept, all are certain: that is never too few."""
    connection.execute("ALTER TABLE block ADD COLUMN uncertain BLOB NOT NULL DEFAULT x''")


def _format_4(connection: sqlite3.Connection) -> None:
    """Keep the sessions of orchestrators."""
    connection.execute(
        "CREATE TABLE session ("
        " owner TEXT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (owner, name)) WITHOUT ROWID"
    )


def _format_5(connection: sqlite3.Connection) -> None:
    """Keep a checksum with each session: of one that is not what was written, a round would end where it did not."""
    connection.execute("ALTER TABLE session ADD COLUMN crc32 INTEGER NOT NULL DEFAULT 0")
    for owner, name, data in connection.execute("SELECT owner, name, data FROM session").fetchall():
        checksum = crc32(data, crc32(f"{owner}\0{name}".encode()))
        connection.execute("UPDATE session SET crc32 = ? WHERE owner = ? AND name = ?", (checksum, owner, name))


STEPS: Final[Sequence[Step]] = (_format_1, _format_2, _format_3, _format_4, _format_5)
"""How each format is made. A step is never changed once it was released: files are about that it has made."""

FORMAT: Final = len(STEPS)
"""The format that this program reads and writes, kept in ``PRAGMA user_version``."""


def check_readable(path: Path) -> None:
    """Refuse a file that this program must not touch, without touching it. One that is not there is none of them.

    Raises:
        StoreUnusable: It is of a newer format, no store, or no database at all.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _check(connection, path, FORMAT)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_READONLY"):
            # A crash left it half made, before there was anything in it: who opens it for writing puts that in order.
            return
        raise unusable(path, error) from error


def prepare(connection: sqlite3.Connection, path: Path, steps: Sequence[Step] = STEPS) -> str:
    """Bring a file to the newest format, in one transaction; make it where it is empty.

    Args:
        connection: Open for writing, in autocommit mode.
        path: The file, for sentences.
        steps: How each format is made.

    Returns:
        The store's id.

    Raises:
        StoreUnusable: As ``check_readable``. The file is as it was.
        sqlite3.Error: It cannot be read or written. The file is as it was.
    """
    if _check(connection, path, len(steps)) < len(steps):
        connection.execute("BEGIN IMMEDIATE")
        try:
            before = _check(connection, path, len(steps))
            for step in steps[before:]:
                step(connection)
            connection.execute(f"PRAGMA user_version = {len(steps)}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if before:
            log.info("store_migrated", file=str(path), from_format=before, to_format=len(steps))
    store_id: str = connection.execute("SELECT store_id FROM store").fetchone()[0]
    return store_id


def _check(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    """Give the format of a file; 0 where it is empty."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not tables and not version and not application:
        return 0
    if application != APPLICATION_ID or version < 1:
        message = f"{path} is no store of wetink-collector; give another --data"
        raise StoreUnusable(message)
    if version > newest:
        message = (
            f"store {path} is of format {version}, and this collector knows {newest} at most: run the newer collector "
            "that made it, or give another --data"
        )
        raise StoreUnusable(message)
    return version


def unusable(path: Path, error: Exception) -> StoreUnusable:
    """Say that a file cannot be opened."""
    return StoreUnusable(f"store {path} cannot be opened: {error}; check the disk, or give another --data")
