"""Connections to the SQLite file: how they are opened, what their errors mean, and whether the file is whole."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from wetink_collector.data_directory import sync_directory
from wetink_collector.identity import IncarnationKey
from wetink_collector.store.interface import RecordDamaged, StoreFailed

PAGE_BYTES: Final = 16 * 1024
"""SQLite's page: a round of 64 Ki random pages is 128 KiB, which makes 8 overflow pages and not 32."""

CHECKPOINT_PAGES: Final = 1024
"""The write-ahead log goes back into the file when it has this many pages (16 MiB): seldom enough to cost little, and
often enough that it is read back in well under a second at start."""

CHECK_BYTES_MAX: Final = 1 << 30
"""Bound on a file that is read through at start: a cold disk takes seconds for as much. In a larger one, as in each,
a block is looked at when it is read: it has a checksum."""

_COPY_BYTES: Final = 1 << 20

SET_ASIDE: Final = ".damaged"
"""What is put behind the name of a file that is damaged: one is kept, for whoever wants to know what happened."""

log = structlog.get_logger()


class FileDamaged(StoreFailed):
    """The file is not well formed. Which records that touches nobody can say."""


class Readers:
    """A connection for each thread that reads: in WAL mode they neither wait for the writer nor delay it."""

    def __init__(self, path: Path) -> None:
        """Open none yet."""
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[sqlite3.Connection] = []

    def connection(self) -> sqlite3.Connection:
        """Give the calling thread's own."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self._path)
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            with self._lock:
                self._all.append(connection)
        return connection

    def renew(self) -> None:
        """Let every thread open another file the next time. A read that is under way ends in the old one."""
        self._local = threading.local()

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for connection in self._all:
                connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """Open a file for reading and writing, and make it where it is not there."""
    # No transaction is opened behind our back (isolation_level), and close() may come from another thread.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {4 * CHECKPOINT_PAGES * PAGE_BYTES}")
    return connection


def write_log_again(path: Path) -> None:
    """Write the bytes of a write-ahead log over themselves, so that they are on the disk before anybody reads them.

    After an fsync that failed, Linux shows what was to be written and holds it for clean: it may be in memory only, and
    no later fsync brings it down. A collector that comes back would find it, take it for durable and say so. Nobody may
    write to the file meanwhile.

    Raises:
        StoreFailed: It cannot be written.

    Source: LWN, "PostgreSQL's fsync() surprise" (2018); fsync(2), ERRORS.
    """
    try:
        with Path(f"{path}-wal").open("r+b", buffering=0) as log_file:
            at = 0
            while data := os.pread(log_file.fileno(), _COPY_BYTES, at):
                at += os.pwrite(log_file.fileno(), data, at)
            os.fsync(log_file.fileno())
    except FileNotFoundError:
        pass  # it was closed as it should be, or is new
    except OSError as error:
        message = f"the store failed: its write-ahead log cannot be written: {error.strerror}"
        raise StoreFailed(message) from error


def check_pages(connection: sqlite3.Connection, path: Path) -> None:
    """Read a file through, if that takes no longer than a start may, and see that its pages fit together.

    Raises:
        FileDamaged: They do not.
    """
    size_bytes = path.stat().st_size
    if size_bytes > CHECK_BYTES_MAX:
        log.info("store_not_read_through", file=str(path), size_bytes=size_bytes, size_bytes_max=CHECK_BYTES_MAX)
        return
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise FileDamaged(" ".join(found.split()))


def set_aside(path: Path, why: str) -> None:
    """Give a file and its write-ahead log another name, in the place of what was set aside before.

    Raises:
        StoreFailed: The directory cannot be written.
    """
    kept_as = path.with_name(path.name + SET_ASIDE)
    try:
        # The log first: left behind alone it might be taken for that of the next file.
        for suffix in ("-wal", ""):
            source = Path(f"{path}{suffix}")
            if source.exists():
                source.replace(f"{kept_as}{suffix}")
        Path(f"{path}-shm").unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        message = f"the store is damaged and cannot be set aside: {error.strerror}"
        raise StoreFailed(message) from error
    log.error("store_set_aside", file=str(path), kept_as=str(kept_as), error=why)


@contextmanager
def failing_as_store(incarnation: IncarnationKey | None = None) -> Iterator[None]:
    """Turn SQLite's errors into the store's. A file that is not well formed is damage to whose record is read."""
    try:
        yield
    except sqlite3.Error as error:
        malformed = getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
        if incarnation is not None and malformed:
            raise RecordDamaged(incarnation, str(error)) from error
        message = f"the store failed: {error}"
        raise (FileDamaged if malformed else StoreFailed)(message) from error
