"""Where readers stand: as long as anybody is expected there, and within bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.collector.changes import incarnation
from wetink_collector.bookmarks import INCARNATIONS_MAX, ROUNDS_MAX, SECONDS_MAX, Bookmarks

ONE, TWO = incarnation(1), incarnation(2)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=60))
def test_a_round_is_kept_while_a_reader_is_there(moves: list[tuple[int, int]]) -> None:
    """Readers that go on with each answer, however they meet: where they are is what is kept, and nothing else."""
    bookmarks = Bookmarks()
    standing: dict[int, int] = {}
    for reader, forward in moves:
        now = standing.get(reader, 0) + forward
        bookmarks.note(ONE, round_number=now, left=standing.get(reader, 0))
        standing[reader] = now

        assert bookmarks.rounds(ONE) == set(standing.values()) - {0}
    assert bookmarks.rounds(TWO) == frozenset()


def test_the_first_of_many_go() -> None:
    """Of one incarnation, and of incarnations."""
    bookmarks = Bookmarks()
    for number in range(1, ROUNDS_MAX + 3):
        bookmarks.note(ONE, round_number=number)
    assert bookmarks.rounds(ONE) == frozenset(range(3, ROUNDS_MAX + 3))

    for pid in range(2, INCARNATIONS_MAX + 1):
        bookmarks.note(incarnation(pid), round_number=1)
    assert len(bookmarks.rounds(ONE)) == ROUNDS_MAX
    bookmarks.note(incarnation(INCARNATIONS_MAX + 1), round_number=1)
    assert bookmarks.rounds(ONE) == frozenset()
    assert bookmarks.rounds(TWO) == frozenset([1])


def test_who_does_not_come_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour; one that came in between stays."""
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    bookmarks = Bookmarks()
    bookmarks.note(ONE, round_number=5)
    now += SECONDS_MAX / 2
    bookmarks.note(ONE, round_number=9)
    now += SECONDS_MAX / 2 + 1

    assert bookmarks.rounds(ONE) == frozenset([9])
