"""A store's file says its format: an older one becomes the present one whole, a newer one is refused untouched."""

import gc
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest
from pyroaring import BitMap64

from tests.unit.collector.changes import appended, incarnation, started, target
from wetink.v1.types_pb2 import END_REASON_EXITED
from wetink_collector.round_log import RoundPages, fold
from wetink_collector.store.interface import HostSeen, IncarnationEnded, SessionKept, StoreUnusable
from wetink_collector.store.schema import FORMAT, STEPS, prepare
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore

ONE, TWO = incarnation(1), incarnation(2)

FORMAT_1 = """
CREATE TABLE store (store_id TEXT NOT NULL);
CREATE TABLE host (
    host_id TEXT PRIMARY KEY, boot_id TEXT NOT NULL, agent_version TEXT NOT NULL, time_ns INTEGER NOT NULL
);
CREATE TABLE incarnation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    host_id TEXT NOT NULL, boot_id TEXT NOT NULL, pid INTEGER NOT NULL, start_time_ticks INTEGER NOT NULL,
    incarnation INTEGER NOT NULL, started BLOB NOT NULL,
    end_reason INTEGER, end_time_ns INTEGER, end_message TEXT,
    UNIQUE (host_id, boot_id, pid, start_time_ticks)
);
CREATE TABLE block (
    incarnation_id INTEGER NOT NULL,
    first_round INTEGER NOT NULL, last_round INTEGER NOT NULL, oldest_round INTEGER NOT NULL, level INTEGER NOT NULL,
    first_time_ns INTEGER NOT NULL, last_time_ns INTEGER NOT NULL, frozen INTEGER NOT NULL,
    written_page_count INTEGER NOT NULL, vanished_page_count INTEGER NOT NULL,
    populated_page_count INTEGER NOT NULL, cautious_page_count INTEGER NOT NULL,
    crc32 INTEGER NOT NULL, written BLOB NOT NULL, vanished BLOB NOT NULL,
    UNIQUE (incarnation_id, last_round)
);
CREATE TABLE wanted (
    host_id TEXT NOT NULL, boot_id TEXT NOT NULL, pid INTEGER NOT NULL, start_time_ticks INTEGER NOT NULL,
    PRIMARY KEY (host_id, boot_id, pid, start_time_ticks)
) WITHOUT ROWID;
PRAGMA application_id = 2003137643;
PRAGMA user_version = 1;
"""
"""What 0.1.0 made, as it made it. It is never changed: it stands for the files that are about."""

STORE_ID = "0123456789abcdef" * 2


def _record(incarnation_id: int, number: int, written: list[int], vanished: list[int]) -> tuple[object, ...]:
    """Give a row of ``block`` as 0.1.0 wrote it."""
    pages = [BitMap64(numbers).serialize() if numbers else b"" for numbers in (written, vanished)]
    rounds = b"".join(value.to_bytes(8, "little") for value in (number, number, number))
    checksum = crc32(pages[1], crc32(pages[0], crc32(rounds)))
    times = (number * 1000, number * 1000 + 1)
    return (incarnation_id, number, number, number, 0, *times, 0, len(written), len(vanished), 9, 0, checksum, *pages)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Give a directory with a store of format 1: two targets, one ended, and twenty rounds."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 16384")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(FORMAT_1)
        connection.execute("INSERT INTO store VALUES (?)", (STORE_ID,))
        connection.execute("INSERT INTO host VALUES ('host-1', 'boot-1', '0.1.0', 5)")
        for key, end in ((ONE, (None, None, None)), (TWO, (END_REASON_EXITED, 7, "a sentence"))):
            names = (key.target.host_id, key.target.boot_id, key.target.pid, key.target.start_time_ticks)
            row = (key.target.pid, *names, 1, started(key).started.SerializeToString(), *end)
            connection.execute("INSERT INTO incarnation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        for number in range(1, 21):
            row = _record(1, number, [number], [number - 1])
            connection.execute(f"INSERT INTO block VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 (question marks)
        connection.execute("INSERT INTO wanted VALUES ('host-1', 'boot-1', 3, 100)")
    return tmp_path


def _format_of(directory: Path) -> int:
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version


def _schema_of(path: Path) -> list[tuple[str, list[tuple[object, ...]]]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return sorted((table, connection.execute(f"PRAGMA table_xinfo({table})").fetchall()) for table in tables)


def test_store_of_the_first_format_is_taken_over_whole(old: Path) -> None:
    """Every host, target, end, round and wish of it is there, and it is a store of the present format afterwards."""
    with closing(SqliteStore(old)) as store:
        contents = store.contents()
        assert store.store_id == STORE_ID
        assert contents.hosts == [HostSeen("host-1", "boot-1", "0.1.0", 5)]
        assert contents.wanted == [target(3)]
        assert [stored.incarnation for stored in contents.incarnations] == [ONE, TWO]
        assert [stored.started for stored in contents.incarnations] == [started(ONE).started, started(TWO).started]
        assert contents.incarnations[0].ended is None
        assert contents.incarnations[1].ended == IncarnationEnded(TWO, END_REASON_EXITED, 7, "a sentence")
        assert [block.last_round for block in contents.incarnations[0].blocks] == list(range(1, 21))
        pages = fold(stored.pages for stored in store.read(ONE, after_round=15))
        assert pages == RoundPages(BitMap64([20]), BitMap64(range(15, 20)))
        store.commit([appended(ONE, 21, [21], [20])])
        while store.maintain():
            pass

    with closing(SqliteStore(old)) as store:
        assert fold(stored.pages for stored in store.read(ONE, after_round=0)).written == BitMap64([21])
    assert _format_of(old) == FORMAT


def test_new_store_and_old_one_end_in_the_same_tables(old: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whichever way a file came, it has the same columns."""
    new = tmp_path_factory.mktemp("new")
    SqliteStore(new).close()
    SqliteStore(old).close()

    assert _schema_of(old / FILE_NAME) == _schema_of(new / FILE_NAME)


def test_sessions_of_format_4_are_taken_over(old: Path) -> None:
    """They have a checksum from now on, with which they are what they were."""
    sessions = [SessionKept("mover", f"move-{number}", bytes([number]) * 300) for number in range(3)]
    with closing(sqlite3.connect(old / FILE_NAME, isolation_level=None)) as connection:
        prepare(connection, old / FILE_NAME, STEPS[:4])
        for one in sessions:
            connection.execute("INSERT INTO session VALUES (?, ?, ?)", (one.owner, one.name, one.data))

    with closing(SqliteStore(old)) as store:
        assert store.contents().sessions == sessions
    assert _format_of(old) == FORMAT


def test_first_step_still_makes_what_the_first_release_made(
    old: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A step that was released is never changed."""
    path = tmp_path_factory.mktemp("first") / FILE_NAME
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        prepare(connection, path, STEPS[:1])

    assert _schema_of(path) == _schema_of(old / FILE_NAME)


def _add_column(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE host ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'")


def _fill_column(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE host SET colour = 'green'")


def _fail(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT * FROM nowhere")


def _prepare(directory: Path, *more: Callable[[sqlite3.Connection], None]) -> str:
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as connection:
        return prepare(connection, directory / FILE_NAME, (*STEPS, *more))


def test_each_step_is_taken_once_and_in_order(old: Path) -> None:
    """A file goes through the steps that it lacks, and through none again."""
    assert _prepare(old, _add_column, _fill_column) == STORE_ID
    assert _prepare(old, _add_column, _fill_column) == STORE_ID

    assert _format_of(old) == FORMAT + 2
    with closing(sqlite3.connect(old / FILE_NAME)) as connection:
        assert connection.execute("SELECT colour FROM host").fetchall() == [("green",)]


def test_step_that_fails_leaves_the_file_as_it_was(old: Path) -> None:
    """All steps are one transaction: what the first has done is not there when the second fails."""
    before = _schema_of(old / FILE_NAME)

    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        _prepare(old, _add_column, _fail)

    assert _format_of(old) == 1
    assert _schema_of(old / FILE_NAME) == before
    assert _prepare(old, _add_column) == STORE_ID


def test_newer_store_is_refused_and_not_touched(old: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One sentence names both formats; not a byte of the file is different, and its log was not folded into it."""
    left = tmp_path_factory.mktemp("left")
    with closing(sqlite3.connect(old / FILE_NAME, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
        # As after a crash of the newer collector: what is new stands in the write-ahead log alone.
        before = {name: (old / name).read_bytes() for name in (FILE_NAME, f"{FILE_NAME}-wal")}
    assert all(before.values())
    for name, data in before.items():
        (left / name).write_bytes(data)

    with pytest.raises(StoreUnusable, match=rf"format {FORMAT + 1}.*knows {FORMAT} at most") as refusal:
        SqliteStore(left)

    assert "\n" not in str(refusal.value)
    del refusal
    gc.collect()
    assert {name: (left / name).read_bytes() for name in before} == before
