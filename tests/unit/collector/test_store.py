"""What every store keeps to, and what only the one in a file must."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.unit.collector.changes import appended, ended, incarnation, pages_of_fates, started, target
from wetink.v1.types_pb2 import END_REASON_LOST
from wetink_collector.identity import IncarnationKey
from wetink_collector.round_log import (
    BASE_LEVEL,
    BLOCKS_A_LEVEL_MAX,
    RoundPages,
    fold,
    is_exact,
    is_expired,
    is_whole,
)
from wetink_collector.store import recent, sqlite
from wetink_collector.store.interface import (
    Change,
    HostForgotten,
    HostSeen,
    RecordDamaged,
    RoundsAppended,
    RoundsExpired,
    Store,
    StoreFailed,
    StoreUnusable,
    TargetForgotten,
    TargetUnwanted,
    TargetWanted,
)
from wetink_collector.store.memory import MemoryStore
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore

ONE = incarnation()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Give each store, empty."""
    with closing(MemoryStore() if request.param == "memory" else SqliteStore(tmp_path)) as store:
        yield store


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SqliteStore]:
    """Give the store in a file, empty."""
    with closing(SqliteStore(tmp_path)) as store:
        yield store


def settle(store: Store) -> None:
    """Let a store do all that nobody waits for."""
    while store.maintain():
        pass


def pages_since(store: Store, key: IncarnationKey, after_round: int = 0) -> RoundPages:
    """Give what an answer since a round is made of."""
    return fold(stored.pages for stored in store.read(key, after_round=after_round))


def kept(store: Store) -> list[IncarnationKey]:
    """Give the incarnations that a store has."""
    return sorted(stored.incarnation for stored in store.contents().incarnations)


def rounds(key: IncarnationKey, count: int) -> list[RoundsAppended]:
    """Give so many rounds: round n writes page n and lets page n - 1 vanish."""
    return [appended(key, number, [number], [number - 1]) for number in range(1, count + 1)]


def test_committed_rounds_are_read_back(store: Store) -> None:
    """Pages and all that is known of a block come back as they were written."""
    change = appended(ONE, 1, [1, 2, 1 << 40], [3])
    store.commit([started(ONE), change])

    (stored,) = store.read(ONE, after_round=0)

    assert stored.block == change.block
    assert stored.pages == RoundPages(BitMap64([1, 2, 1 << 40]), BitMap64([3]))


def test_only_rounds_after_the_cursor_are_read(store: Store) -> None:
    """A cursor in the middle leaves out what was before it."""
    store.commit([started(ONE), *rounds(ONE, 5)])

    assert [stored.block.last_round for stored in store.read(ONE, after_round=3)] == [4, 5]
    assert list(store.read(ONE, after_round=5)) == []


def test_sets_that_are_read_belong_to_the_reader(store: Store) -> None:
    """Changing them changes nothing in the store."""
    store.commit([started(ONE), appended(ONE, 1, [1])])
    for stored in store.read(ONE, after_round=0):
        stored.pages.written.clear()

    assert pages_since(store, ONE).written == BitMap64([1])


def test_contents_are_all_that_was_told(store: Store) -> None:
    """Hosts, incarnations with their blocks and ends, and what is wanted."""
    host = HostSeen("host-1", "boot-1", "1.0", 5)
    start, end = started(ONE), ended(ONE)
    other = target(2)
    store.commit([host, start, *rounds(ONE, 2), end, TargetWanted(other), TargetWanted(ONE.target)])
    store.commit([TargetUnwanted(ONE.target)])

    contents = store.contents()

    assert contents.hosts == [host]
    (stored,) = contents.incarnations
    assert (stored.incarnation, stored.started, stored.ended) == (ONE, start.started, end)
    assert [block.last_round for block in stored.blocks] == [1, 2]
    assert contents.wanted == [other]


def test_newer_incarnation_takes_the_place_of_the_older(store: Store) -> None:
    """Of a target the newest incarnation is kept; rounds and ends of the older are left out."""
    newer = IncarnationKey(ONE.target, 2)
    store.commit([started(ONE), appended(ONE, 1, [1]), started(newer), appended(newer, 1, [2])])
    store.commit([appended(ONE, 2, [3]), ended(ONE)])
    settle(store)

    assert kept(store) == [newer]
    assert list(store.read(ONE, after_round=0)) == []
    assert pages_since(store, newer).written == BitMap64([2])
    assert store.contents().incarnations[0].ended is None


def test_incarnation_that_starts_again_starts_afresh(store: Store) -> None:
    """Its end and its rounds are gone, and its rounds count from 1."""
    store.commit([started(ONE), *rounds(ONE, 3), ended(ONE, END_REASON_LOST)])
    store.commit([started(ONE), appended(ONE, 1, [9])])
    settle(store)

    assert pages_since(store, ONE).written == BitMap64([9])
    assert store.contents().incarnations[0].ended is None


def test_end_keeps_the_rounds(store: Store) -> None:
    """The last set of a process that exited can be asked for."""
    store.commit([started(ONE), *rounds(ONE, 2), ended(ONE)])

    assert pages_since(store, ONE).written == BitMap64([2])


def test_end_that_drops_rounds_keeps_the_end(store: Store) -> None:
    """Nothing of a damaged record is answered, and how it ended stays known."""
    store.commit([started(ONE), *rounds(ONE, 2)])
    store.commit([ended(ONE, END_REASON_LOST, rounds_dropped=True)])
    settle(store)

    (stored,) = store.contents().incarnations
    assert list(stored.blocks) == []
    assert list(store.read(ONE, after_round=0)) == []
    assert stored.ended is not None
    assert stored.ended.reason == END_REASON_LOST


def test_forgotten_target_is_gone(store: Store) -> None:
    """Nothing is left of it, and others stay."""
    other = incarnation(2)
    store.commit([started(ONE), *rounds(ONE, 100), started(other), appended(other, 1, [5])])
    store.commit([ended(ONE), TargetForgotten(ONE)])
    settle(store)

    assert kept(store) == [other]
    assert list(store.read(ONE, after_round=0)) == []
    assert pages_since(store, other).written == BitMap64([5])


def test_forgotten_host_is_gone_with_what_was_wanted_of_it(store: Store) -> None:
    """Others stay; and so does one that has been seen since that was decided."""
    other = target(2, host_id="host-2")
    seen = [HostSeen("host-1", "boot-1", "1.0", 5), HostSeen("host-2", "boot-1", "1.0", 6)]
    store.commit([*seen, TargetWanted(ONE.target), TargetWanted(other)])
    store.commit([HostForgotten("host-2", 5)])
    assert len(store.contents().hosts) == 2
    store.commit([HostForgotten("host-1", 5)])

    assert store.contents().hosts == [seen[1]]
    assert store.contents().wanted == [other]


@pytest.mark.parametrize("begun", [IncarnationKey(ONE.target, 2), ONE], ids=["another", "afresh"])
def test_forgetting_that_comes_late_leaves_what_has_begun(store: Store, begun: IncarnationKey) -> None:
    """
    Who decides to forget does not know what is on its way: an incarnation that has begun meanwhile keeps its rounds,
    and is wanted as before, also where it is the same that was lost and begins afresh.
    """
    store.commit([started(ONE), *rounds(ONE, 3), ended(ONE, END_REASON_LOST), TargetWanted(ONE.target)])
    store.commit([started(begun), TargetForgotten(ONE, unwanted=True), appended(begun, 1, [7])])
    settle(store)

    assert kept(store) == [begun]
    assert pages_since(store, begun).written == BitMap64([7])
    assert store.contents().wanted == [ONE.target]

    store.commit([ended(begun), TargetForgotten(begun, unwanted=True)])
    assert not kept(store)
    assert not store.contents().wanted


def test_round_out_of_order_is_a_bug_and_stops(store: Store) -> None:
    """A gap in a log would lose pages in silence; no caller may make one."""
    store.commit([started(ONE), appended(ONE, 1, [1])])

    with pytest.raises(AssertionError):
        store.commit([appended(ONE, 3, [3])])
    store.recover()

    assert [stored.block.last_round for stored in store.read(ONE, after_round=0)] == [1]


def test_maintenance_keeps_levels_in_their_bounds_and_changes_no_union(store: Store) -> None:
    """After 600 rounds: at most 15 blocks a level, the last 8 single, every answer whole."""
    store.commit([started(ONE)])
    for change in rounds(ONE, 600):
        store.commit([change])
        store.maintain()
    settle(store)

    blocks = store.contents().incarnations[0].blocks
    sizes = [block.last_round - block.first_round + 1 for block in blocks]
    assert max(sizes.count(size) for size in sizes) <= BLOCKS_A_LEVEL_MAX
    assert sizes[-8:] == [1] * 8
    assert is_whole(blocks, after_round=0, last_round=600)
    assert pages_since(store, ONE) == RoundPages(BitMap64([600]), BitMap64(range(600)))


def test_merging_leaves_the_end_of_a_block_where_a_reader_stands(store: Store) -> None:
    """Of 600 rounds, each reader's answer is exactly what came since; without them it would be more."""
    readers = {3, 4, 100, 250, 251, 591}
    store.commit([started(ONE)])
    for change in rounds(ONE, 600):
        store.commit([change])
        while store.maintain(lambda key: readers if key == ONE else ()):
            pass

    for cursor in readers:
        blocks = [stored.block for stored in store.read(ONE, after_round=cursor)]
        assert is_exact(blocks, cursor)
        assert pages_since(store, ONE, cursor) == RoundPages(BitMap64([600]), BitMap64(range(cursor, 600)))
    settle(store)
    assert is_whole(store.contents().incarnations[0].blocks, after_round=0, last_round=600)
    assert not is_exact([stored.block for stored in store.read(ONE, after_round=101)], 101)


def test_expired_rounds_become_a_base_of_what_is_written(store: Store) -> None:
    """It has no more than that, and every cursor from its end on is answered as before."""
    store.commit([started(ONE), *rounds(ONE, 40)])
    store.commit([RoundsExpired(ONE, 20)])
    settle(store)

    first, *others = store.read(ONE, after_round=0)
    assert (first.block.level, first.block.first_round, first.block.last_round) == (BASE_LEVEL, 1, 20)
    assert first.pages == RoundPages(BitMap64([20]), BitMap64())
    assert first.block.vanished_page_count == 0
    assert is_whole([first.block, *(stored.block for stored in others)], after_round=0, last_round=40)
    assert pages_since(store, ONE).written == BitMap64([40])
    for cursor in range(1, 41):
        blocks = [stored.block for stored in store.read(ONE, after_round=cursor)]
        assert is_expired(blocks, cursor) == (cursor < 20)
    assert pages_since(store, ONE, 20) == RoundPages(BitMap64([40]), BitMap64(range(20, 40)))


def test_base_grows_and_never_takes_the_last_rounds(store: Store) -> None:
    """However much is said to have expired, a reader that asks at every eighth round goes on."""
    store.commit([started(ONE)])
    for number in range(1, 101):
        store.commit([rounds(ONE, number)[-1], RoundsExpired(ONE, number)])
        settle(store)

    blocks = store.contents().incarnations[0].blocks
    assert [block.level for block in blocks] == [BASE_LEVEL, *[0] * 8]
    assert pages_since(store, ONE).written == BitMap64([100])
    assert pages_since(store, ONE, 92) == RoundPages(BitMap64([100]), BitMap64(range(92, 100)))


def test_usage_is_what_page_sets_take(store: Store) -> None:
    """Block by block; and it says when less is on its way."""
    store.commit([started(ONE), *rounds(ONE, 12)])
    sizes = [len(change.written) + len(change.vanished) for change in rounds(ONE, 12)]

    usage = store.usage()
    assert [size for _, size in usage.block_bytes[ONE]] == sizes
    assert [block for block, _ in usage.block_bytes[ONE]] == list(store.contents().incarnations[0].blocks)
    assert usage.size_bytes >= sum(sizes)
    assert not usage.shrinking
    store.commit([RoundsExpired(ONE, 12)])
    assert store.usage().shrinking
    settle(store)
    assert not store.usage().shrinking
    assert len(store.usage().block_bytes[ONE]) == 9


def test_reader_sees_one_moment_while_blocks_are_merged(store: Store) -> None:
    """A read that has begun goes on over the blocks as they were."""
    store.commit([started(ONE), *rounds(ONE, 40)])
    reading = store.read(ONE, after_round=0)
    first = next(reading)
    settle(store)

    blocks = [first.block, *(stored.block for stored in reading)]

    assert is_whole(blocks, after_round=0, last_round=40)


@dataclass
class Oracle:
    """The simplest possible store: every raw round of every incarnation, for ever."""

    raw: dict[IncarnationKey, list[RoundPages]] = field(default_factory=dict)

    def since(self, key: IncarnationKey, after_round: int) -> RoundPages:
        """Fold the raw rounds after one."""
        return fold(self.raw[key][after_round:])


_fates = st.lists(st.sampled_from("wuv-"), min_size=6, max_size=6)
_pids = st.sampled_from((1, 2))
_operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"), st.sampled_from((1, 2)), st.lists(_fates, min_size=1, max_size=3), st.integers(0, 2)
        ),
        st.tuples(st.just("start"), st.sampled_from((1, 2))),
        st.tuples(st.just("maintain"), st.integers(1, 4)),
        st.tuples(st.just("reopen")),
    ),
    max_size=80,
)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@settings(max_examples=60)
@given(operations=_operations)
def test_any_sequence_of_operations_answers_as_the_raw_rounds_do(
    kind: str, operations: Sequence[tuple[object, ...]]
) -> None:
    """
    After any batches, starts, merges and restarts: an exact answer is the fold of the raw rounds since the cursor, and
    an inexact one has at least their pages.
    """
    with TemporaryDirectory() as directory:
        _Run(kind, Path(directory)).play(operations)


class _Run:
    """Plays operations on a store and on the oracle, and compares."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.open: Callable[[], Store] = MemoryStore if kind == "memory" else lambda: SqliteStore(directory)
        self.durable = kind == "sqlite"
        self.store: Store = self.open()
        self.oracle = Oracle()
        self.now: dict[int, int] = {}

    def play(self, operations: Sequence[tuple[object, ...]]) -> None:
        for name, *arguments in operations:
            getattr(self, str(name))(*arguments)
            self.compare()
        self.store.close()

    def start(self, pid: int) -> None:
        self.now[pid] = self.now.get(pid, 0) + 1
        key = incarnation(pid, self.now[pid])
        self.oracle.raw[key] = []
        self.store.commit([started(key)])

    def append(self, pid: int, fates: list[list[str]], overlap: int) -> None:
        if pid not in self.now:
            self.start(pid)
        key = incarnation(pid, self.now[pid])
        raw = self.oracle.raw[key]
        first = len(raw) + 1
        raw += [pages_of_fates(one) for one in fates]
        oldest = max(1, first - overlap)
        pages = fold(raw[oldest - 1 :])
        self.store.commit(
            [
                appended(
                    key,
                    first,
                    pages.written,
                    pages.vanished,
                    uncertain=pages.uncertain,
                    last_round=len(raw),
                    oldest_round=oldest,
                )
            ]
        )

    def maintain(self, times: int) -> None:
        for _ in range(times):
            self.store.maintain()

    def reopen(self) -> None:
        if self.durable:
            self.store.close()
            self.store = self.open()

    def compare(self) -> None:
        assert kept(self.store) == sorted(incarnation(pid, number) for pid, number in self.now.items())
        for pid, number in self.now.items():
            self.compare_one(incarnation(pid, number))

    def compare_one(self, key: IncarnationKey) -> None:
        last_round = len(self.oracle.raw[key])
        for cursor in range(last_round + 1):
            stored = list(self.store.read(key, after_round=cursor))
            blocks = [one.block for one in stored]
            assert is_whole(blocks, after_round=cursor, last_round=last_round)
            answer, raw = fold(one.pages for one in stored), self.oracle.since(key, cursor)
            if is_exact(blocks, cursor):
                assert answer == raw
            assert raw.written <= answer.written
            assert raw.vanished <= answer.vanished
            assert raw.written - raw.uncertain <= answer.written - answer.uncertain


def test_file_that_was_not_closed_has_all_that_was_committed(file: SqliteStore, tmp_path: Path) -> None:
    """A second opening reads what is durable, whatever the first still has in memory."""
    file.commit([HostSeen("host-1", "boot-1", "1.0", 5), started(ONE), *rounds(ONE, 3), TargetWanted(ONE.target)])

    with closing(SqliteStore(tmp_path)) as again:
        assert again.store_id == file.store_id
        assert again.contents() == file.contents()
        assert pages_since(again, ONE) == pages_since(file, ONE)


def test_commit_ends_in_an_fsync(file: SqliteStore) -> None:
    """In WAL mode only FULL syncs at COMMIT; no test that kills a process would notice less."""
    assert file._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert file._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert file._connection.isolation_level is None


def block_count(directory: Path) -> int:
    """Count the blocks in a store's file, those that nobody can ask for included."""
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        count: int = connection.execute("SELECT count(*) FROM block").fetchone()[0]
        return count


def test_dropped_blocks_are_freed(file: SqliteStore, tmp_path: Path) -> None:
    """Of a target that was forgotten, of an incarnation that another followed, and of a damaged record."""
    second, third = incarnation(2), incarnation(3)
    for key in (ONE, second, third):
        file.commit([started(key), *rounds(key, 70)])
    file.commit([ended(ONE), TargetForgotten(ONE), started(IncarnationKey(second.target, 2))])
    file.commit([ended(third, END_REASON_LOST, rounds_dropped=True)])

    settle(file)

    assert block_count(tmp_path) == 0


def test_base_and_sizes_survive_a_restart(tmp_path: Path) -> None:
    """What has expired stays so."""
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([started(ONE), *rounds(ONE, 40), RoundsExpired(ONE, 20)])
        settle(store)
        before = store.usage()
    with closing(SqliteStore(tmp_path)) as store:
        assert store.usage().block_bytes == before.block_bytes
        store.commit([*rounds(ONE, 60)[40:], RoundsExpired(ONE, 50)])
        settle(store)

        assert pages_since(store, ONE).written == BitMap64([60])
        assert store.contents().incarnations[0].blocks[0].last_round == 50


def test_dropped_blocks_are_freed_after_a_restart_too(tmp_path: Path) -> None:
    """What was still to be freed when the collector went down is not left behind."""
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([started(ONE), *rounds(ONE, 200)])
        store.commit([ended(ONE), TargetForgotten(ONE)])
    with closing(SqliteStore(tmp_path)) as store:
        settle(store)

    assert block_count(tmp_path) == 0


def damage(directory: Path, statement: str) -> None:
    """Change a store's file behind its back."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount


@pytest.fixture
def nothing_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every merge read what it merges."""
    monkeypatch.setattr(recent, "RECENT_BYTES_MAX", 0)


@pytest.mark.usefixtures("nothing_recent")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block SET written = x'00' WHERE last_round = 2",
        "UPDATE block SET vanished = written, written = vanished WHERE last_round = 2",
        "UPDATE block SET written = (SELECT written FROM block WHERE last_round = 1) WHERE last_round = 2",
        "UPDATE block SET oldest_round = 1 WHERE last_round = 2",
        "UPDATE block SET crc32 = crc32 + 1 WHERE last_round = 2",
        "UPDATE block SET written = 5 WHERE last_round = 2",
    ],
)
def test_damaged_record_is_found_out_and_never_read(file: SqliteStore, tmp_path: Path, statement: str) -> None:
    """Neither a reader nor a merge takes it for what was written."""
    file.commit([started(ONE), *rounds(ONE, 20)])
    damage(tmp_path, statement)

    with pytest.raises(RecordDamaged) as reading:
        pages_since(file, ONE)
    with pytest.raises(RecordDamaged) as merging:
        settle(file)

    assert reading.value.incarnation == merging.value.incarnation == ONE


@pytest.mark.usefixtures("nothing_recent")
def test_record_that_is_not_there_is_found_out_by_a_merge(file: SqliteStore, tmp_path: Path) -> None:
    """The index says that there is a block, the file has none."""
    file.commit([started(ONE), *rounds(ONE, 20)])
    damage(tmp_path, "DELETE FROM block WHERE last_round = 3")

    with pytest.raises(RecordDamaged):
        settle(file)


def test_logs_that_are_due_together_are_merged_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one transaction as many as the bound lets, each in its turn; and each becomes what it becomes alone."""
    keys = [incarnation(pid) for pid in range(1, 8)]
    changes: list[Change] = [*map(started, keys)]
    changes += [change for key in keys for change in rounds(key, 40)]
    found: list[tuple[int, Any, list[RoundPages]]] = []
    for together in (1, 1 << 20):
        monkeypatch.setattr(sqlite, "MERGED_BYTES_MAX", together)
        directory = tmp_path / str(together)
        directory.mkdir()
        with closing(SqliteStore(directory)) as store:
            store.commit(changes)
            times = 0
            while store.maintain():
                times += 1
            blocks = {known.incarnation: known.blocks for known in store.contents().incarnations}
        with closing(SqliteStore(directory)) as store:
            assert {known.incarnation: known.blocks for known in store.contents().incarnations} == blocks
            found.append((times, blocks, [pages_since(store, key, 17) for key in keys]))

    (alone, *expected), (joined, *got) = found
    assert got == expected
    assert len(found[0][1][ONE]) < 40
    assert alone == joined * len(keys)


@pytest.mark.usefixtures("nothing_recent")
def test_damage_of_one_target_does_not_touch_others(file: SqliteStore, tmp_path: Path) -> None:
    """Maintenance reports it once and goes on with the rest."""
    other = incarnation(2)
    file.commit([started(ONE), *rounds(ONE, 20), started(other), *rounds(other, 20)])
    damage(tmp_path, "UPDATE block SET written = x'00' WHERE last_round = 2 AND incarnation_id = 1")

    damaged = 0
    while True:
        try:
            if not file.maintain():
                break
        except RecordDamaged:
            damaged += 1

    assert damaged == 1
    assert len(file.contents().incarnations[1].blocks) == 13
    assert pages_since(file, other).written == BitMap64([20])


def test_store_that_cannot_be_written_says_so_and_recovers(file: SqliteStore, tmp_path: Path) -> None:
    """Nothing of a group that failed is there afterwards, and the next group is."""
    file.commit([started(ONE), appended(ONE, 1, [1])])
    file._connection.execute("PRAGMA max_page_count = 1")

    with pytest.raises(StoreFailed, match="full"):
        file.commit([appended(ONE, 2, range(0, 1 << 20, 3))])
    contents = file.recover()
    assert [block.last_round for block in contents.incarnations[0].blocks] == [1]
    file.commit([appended(ONE, 2, [2])])

    with closing(SqliteStore(tmp_path)) as again:
        assert pages_since(again, ONE).written == BitMap64([1, 2])


def test_group_is_committed_whole_or_not_at_all(file: SqliteStore, tmp_path: Path) -> None:
    """When its last change fails, its first is not there either."""
    file.commit([started(ONE)])

    with pytest.raises(AssertionError):
        file.commit([appended(ONE, 1, [1]), appended(ONE, 5, [5])])
    file.recover()

    assert list(file.read(ONE, after_round=0)) == []
    with closing(SqliteStore(tmp_path)) as again:
        assert list(again.read(ONE, after_round=0)) == []


def test_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Another program's database is not written to."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("CREATE TABLE theirs (x)")

    with pytest.raises(StoreUnusable, match="no store of wetink-collector"):
        SqliteStore(tmp_path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """One sentence, no traceback of SQLite's."""
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 1000)

    with pytest.raises(StoreUnusable, match="cannot be opened"):
        SqliteStore(tmp_path)
