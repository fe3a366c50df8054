"""What is damaged in a store's file is found at start or at work: it is never a smaller answer, and never the end."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pyroaring import BitMap64

from tests.unit.collector.changes import appended, ended, incarnation, started, target
from wetink.v1.types_pb2 import END_REASON_LOST
from wetink_collector.round_log import fold
from wetink_collector.store import care, connections
from wetink_collector.store.interface import (
    HostSeen,
    RecordDamaged,
    SessionKept,
    StoreFailed,
    StoreUnusable,
    TargetWanted,
)
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore

ONE, TWO = incarnation(1), incarnation(2)
HOST = HostSeen("host-1", "boot-1", "1.0", 5)
WANTED = TargetWanted(target(3))
SESSIONS = [SessionKept("mover", f"move-{number}", bytes([number]) * 3000) for number in range(1, 4)]


def fill(store: SqliteStore) -> None:
    """Give two targets thirty rounds each, of some pages of the file."""
    store.commit([HOST, WANTED, *SESSIONS])
    for key in (ONE, TWO):
        store.commit([started(key)])
        store.commit([appended(key, number, range(number, 100_000, 3)) for number in range(1, 31)])


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Give a directory with a store in it, closed."""
    with closing(SqliteStore(tmp_path)) as store:
        fill(store)
    return tmp_path


def overwrite(directory: Path, *, first_page: int, last_page: int | None = None) -> None:
    """Overwrite pages of the file, as a disk does that writes where it should not."""
    with (directory / FILE_NAME).open("r+b") as file:
        end = last_page or file.seek(0, 2) // connections.PAGE_BYTES
        file.seek(first_page * connections.PAGE_BYTES)
        file.write(b"\xa5" * ((end - first_page) * connections.PAGE_BYTES))


def damage(directory: Path, statement: str) -> None:
    """Change a store's file behind its back."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount


def found(store: SqliteStore) -> Iterator[RecordDamaged]:
    """Do all that nobody waits for, and give the damage that comes to light."""
    while True:
        try:
            if not store.maintain():
                return
        except RecordDamaged as one:
            yield one


def test_file_that_is_damaged_is_set_aside(full: Path) -> None:
    """It is found at start; what orchestrators wanted and said is rescued, and the new store works."""
    with closing(SqliteStore(full)) as store:
        before = store.store_id
    overwrite(full, first_page=12)

    with closing(SqliteStore(full)) as store:
        assert store.store_id != before
        assert store.contents().incarnations == []
        assert (store.contents().hosts, store.contents().wanted) == ([HOST], [WANTED.target])
        assert store.contents().sessions == SESSIONS
        fill(store)
    with closing(SqliteStore(full)) as store:
        assert len(store.contents().incarnations) == 2
    assert (full / f"{FILE_NAME}.damaged").stat().st_size > 0


CHANGES = {
    "byte": "UPDATE session SET data = substr(data, 1, 100) || x'07' || substr(data, 102) WHERE name = 'move-2'",
    "name": "UPDATE session SET name = 'move-9' WHERE name = 'move-2'",
    "owner": "UPDATE session SET owner = 'other' WHERE name = 'move-2'",
    "cut": "UPDATE session SET data = substr(data, 1, 100) WHERE name = 'move-2'",
    "data gone": "UPDATE session SET data = 'text' WHERE name = 'move-2'",
    "of another": "UPDATE session SET data = (SELECT data FROM session WHERE name = 'move-1') WHERE name = 'move-2'",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_session_that_is_not_what_was_written_is_not_there(full: Path, statement: str) -> None:
    """Neither in its own store nor rescued from it; the others are, and one of its name can be opened again."""
    damage(full, statement)

    with closing(SqliteStore(full)) as store:
        assert store.contents().sessions == [SESSIONS[0], SESSIONS[2]]
    assert [finding for finding in care.findings(full) if finding.startswith("session ")]
    overwrite(full, first_page=12)
    with closing(SqliteStore(full)) as store:
        assert store.contents().sessions == [SESSIONS[0], SESSIONS[2]]
        store.commit(SESSIONS)
    with closing(SqliteStore(full)) as store:
        assert store.contents().sessions == SESSIONS
    assert list(care.findings(full)) == []


def test_only_one_damaged_file_is_kept(full: Path) -> None:
    """However often that happens, the disk does not fill with them."""
    for _ in range(3):
        overwrite(full, first_page=12)
        with closing(SqliteStore(full)) as store:
            fill(store)

    assert sorted(file.name for file in full.iterdir()) == [FILE_NAME, f"{FILE_NAME}.damaged"]


def test_file_that_takes_too_long_is_not_read_through(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage to a record is then found when it is read: it has a checksum."""
    monkeypatch.setattr(connections, "CHECK_BYTES_MAX", 1 << 20)
    damage(full, "UPDATE block SET written = x'00' WHERE last_round = 2 AND incarnation_id = 1")

    with closing(SqliteStore(full)) as store:
        with pytest.raises(RecordDamaged):
            fold(stored.pages for stored in store.read(ONE, after_round=0))
        assert len(fold(stored.pages for stored in store.read(TWO, after_round=0)).written) > 90_000


def test_damage_that_is_met_at_work_is_recovered_from(tmp_path: Path) -> None:
    """The group that met it fails; recovering sets the file aside, and readers on other connections follow."""
    with closing(SqliteStore(tmp_path)) as store:
        fill(store)
        assert list(store.read(ONE, after_round=29))
        before = store.store_id
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # Its pages are in no cache: memory is as good as new.
        store._connection.execute("PRAGMA shrink_memory")
        overwrite(tmp_path, first_page=1)

        with pytest.raises(StoreFailed):
            store.commit([appended(ONE, number, range(number, 100_000, 3)) for number in range(31, 100)])
        contents = store.recover()

        assert store.store_id != before
        assert contents.incarnations == []
        store.commit([started(ONE), appended(ONE, 1, [7])])
        assert fold(stored.pages for stored in store.read(ONE, after_round=0)).written == BitMap64([7])


def test_log_with_a_gap_is_told_of_at_once(full: Path) -> None:
    """Nobody has to ask for it; the other log is not touched."""
    damage(full, "DELETE FROM block WHERE last_round = 5 AND incarnation_id = 1")

    with closing(SqliteStore(full)) as store:
        assert next(found(store)).incarnation == ONE
        store.commit([ended(ONE, END_REASON_LOST, rounds_dropped=True)])
        assert list(found(store)) == []
        assert [stored.incarnation for stored in store.contents().incarnations if stored.blocks] == [TWO]


def test_start_that_cannot_be_read_is_damage_to_its_target(full: Path) -> None:
    """What is known of it is not guessed at: the incarnation is to end, and the collector starts."""
    damage(full, "UPDATE incarnation SET started = x'ffff' WHERE id = 1")

    with closing(SqliteStore(full)) as store:
        assert [one.incarnation for one in found(store)] == [ONE]
        assert store.contents().incarnations[0].started.target == ONE.target.message()


def test_disk_that_cannot_be_read_is_no_damage(full: Path) -> None:
    """What is refused is not replaced: a directory in the file's place stays there."""
    (full / FILE_NAME).rename(full / "elsewhere")
    (full / FILE_NAME).mkdir()

    with pytest.raises(StoreUnusable, match="cannot be opened"):
        SqliteStore(full)
    assert (full / FILE_NAME).is_dir()
