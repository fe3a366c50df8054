"""The page sets that a merge need not read back."""

import pytest

from tests.unit.collector.changes import appended, incarnation
from wetink_collector.round_log import Block
from wetink_collector.store import recent
from wetink_collector.store.recent import RecentSets


def block(number: int) -> Block:
    """Give a block of one round."""
    return appended(incarnation(), number).block


def sets(number: int, size: int = 10) -> tuple[bytes, ...]:
    """Give sets that are no others'."""
    return bytes([number]) * size, b"", b"\1"


def test_sets_are_those_of_the_log_and_the_rounds() -> None:
    """All of them in their order, or none."""
    kept = RecentSets()
    for row in (1, 2):
        for number in range(1, 5):
            kept.put(row, block(number), sets(10 * row + number))

    assert kept.of(1, [block(2), block(3)]) == [sets(12), sets(13)]
    assert kept.of(2, [block(4)]) == [sets(24)]
    assert kept.of(2, [block(4), block(5)]) == ()
    assert kept.of(3, [block(1)]) == ()


def test_no_more_than_the_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first; what is dropped makes room."""
    monkeypatch.setattr(recent, "RECENT_BYTES_MAX", 2500)
    kept = RecentSets()
    for number in range(1, 6):
        kept.put(1, block(number), sets(number, 400))  # 801 bytes with what it takes besides
    assert [bool(kept.of(1, [block(number)])) for number in range(1, 6)] == [False, False, True, True, True]

    kept.drop(1, [block(4), block(9)])
    kept.put(1, block(6), sets(6, 400))
    assert [bool(kept.of(1, [block(number)])) for number in range(3, 7)] == [True, False, True, True]

    kept.put(1, block(6), sets(7, 400))
    assert kept.of(1, [block(5), block(6)]) == [sets(5, 400), sets(7, 400)]
