"""The spool on a real disk: what is found there after any end, and what a full one does."""

import os
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harvests import ended_of, make_round, position_of, sets_of, started_of, target_of
from wetink_agent import journal as journal_module
from wetink_agent.journal import JournalOnDisk, SpoolUnusable, Stored
from wetink_agent.rounds import Round, unite
from wetink_agent.spool import Key, Spool, key_of

BOOT = "boot-1"
KEY = key_of(target_of(), started_of().incarnation)
PATIENCE_SECONDS = 60.0


def loaded(directory: Path) -> dict[Key, Stored]:
    """Give what the next worker finds."""
    journal = JournalOnDisk(directory, BOOT)
    with journal:
        return journal.load()


def spooled(directory: Path, rounds: int, *, acknowledged: int = 0) -> None:
    """Have a spool with a journal take rounds, each of a page of its number."""
    with JournalOnDisk(directory, BOOT) as journal:
        spool = Spool(journal=journal)
        spool.start(started_of())
        for number in range(1, rounds + 1):
            spool.add(KEY, make_round(number, [number]))
        spool.acknowledge([position_of(last=acknowledged)])


def test_rounds_are_found_again(tmp_path: Path) -> None:
    """All of them, from the first one that is asked for; nobody else can read the files."""
    spooled(tmp_path, 5)
    found = loaded(tmp_path)[KEY].following(2)

    assert [(each.first, each.last) for each in found] == [(3, 3), (4, 4), (5, 5)]
    assert sets_of(found[0].parts)[0].to_array().tolist() == [3]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_torn_tail_is_cut_off_wherever_it_is_torn(tmp_path: Path) -> None:
    """Of a segment that ends at any byte, the whole rounds are found, and no other."""
    spooled(tmp_path, 3)
    (segment,) = tmp_path.glob("*.segment")
    data = segment.read_bytes()
    counts = set()
    for end in range(len(data)):
        segment.write_bytes(data[:end])
        found = loaded(tmp_path).get(KEY, Stored()).following(0)
        assert [each.last for each in found] == list(range(1, len(found) + 1))
        counts.add(len(found))

    assert counts == {0, 1, 2}


def test_damaged_record_ends_its_segment(tmp_path: Path) -> None:
    """What stands behind it may be anything."""
    spooled(tmp_path, 3)
    (segment,) = tmp_path.glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[-len(data) // 3] ^= 1
    segment.write_bytes(data)

    assert len(loaded(tmp_path)[KEY].following(0)) < 3


def test_disk_has_no_more_than_twice_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledged rounds go from there, and those that are not stay, also across a rewrite."""
    monkeypatch.setattr(journal_module, "SLACK_BYTES", 20_000)
    with JournalOnDisk(tmp_path, BOOT) as journal:
        spool = Spool(journal=journal)
        spool.start(started_of())
        for number in range(1, 2000):
            spool.add(KEY, make_round(number, [number]))
            if number > 20:
                spool.acknowledge([position_of(last=number - 20)])
    size_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())

    assert size_bytes < 2 * spool.size_bytes + 40_000
    assert [each.last for each in loaded(tmp_path)[KEY].following(1979)] == list(range(1980, 2000))


def test_ended_incarnation_is_found_with_how_it_ended(tmp_path: Path) -> None:
    """Its last rounds too: nobody else knows of it any more."""
    with JournalOnDisk(tmp_path, BOOT) as journal:
        spool = Spool(journal=journal)
        spool.start(started_of())
        spool.add(KEY, make_round(1, [1]))
        spool.end(ended_of())
        spool.write_down_afresh()
    found = loaded(tmp_path)[KEY]

    assert (found.started, found.ended) == (started_of(), ended_of())
    assert [each.last for each in found.following(0)] == [1]


@given(spans=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), max_size=12), durable=st.integers(0, 12))
def test_what_follows_has_no_gap_and_nothing_twice(spans: list[tuple[int, int]], durable: int) -> None:
    """Whatever is found, in whatever order: a chain of rounds, of which the first may begin before what is durable."""
    stored = Stored(rounds=[united(first, first + more) for first, more in spans])
    found = stored.following(durable)

    assert all(later.first == earlier.last + 1 for earlier, later in pairwise(found))
    assert not found or found[0].first <= durable + 1 <= found[0].last


def united(first: int, last: int) -> Round:
    """Make one round of several."""
    whole = make_round(first, [first])
    for number in range(first + 1, last + 1):
        whole = unite(whole, make_round(number, [number]))
    return whole


def test_second_agent_is_refused(tmp_path: Path) -> None:
    """In one sentence that names the directory."""
    with JournalOnDisk(tmp_path, BOOT), pytest.raises(SpoolUnusable, match=str(tmp_path)):
        JournalOnDisk(tmp_path, BOOT)


def test_what_another_boot_left_is_nothing(tmp_path: Path) -> None:
    """No incarnation outlives the host's."""
    spooled(tmp_path, 3)
    journal = JournalOnDisk(tmp_path, "another")
    with journal:
        assert journal.load() == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.needs("root")
def test_full_disk_is_told_once_and_tried_again(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounds stay in memory, nobody waits, and when there is room again the next worker finds them."""
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.05)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(200 << 10))
    with JournalOnDisk(small_disk, BOOT) as journal:
        spool = Spool(journal=journal)
        spool.start(started_of())
        number = 0
        while spool.size_bytes < 300 << 10:
            number += 1
            spool.add(KEY, make_round(number, range(number * 1000, number * 1000 + 1000, 2)))
            time.sleep(0.002)
        until = time.monotonic() + PATIENCE_SECONDS
        said = ""
        while "spool_in_memory_only" not in said:
            assert time.monotonic() < until
            time.sleep(0.01)
            said += capsys.readouterr().out
        assert said.count("spool_in_memory_only") == 1
        durable = number - 10
        spool.acknowledge([position_of(last=durable)])
        filler.unlink()
        while journal._has_told:
            assert time.monotonic() < until
            time.sleep(0.01)
            number += 1
            spool.add(KEY, make_round(number, [1]))
    found = loaded(small_disk)[KEY].following(durable)

    assert [each.last for each in found] == list(range(durable + 1, number + 1))
    assert os.statvfs(small_disk).f_bavail > 0
