import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from wetink_agent.runs import Runs, adjacent_runs

# Gap before each run (0: it touches the one before) and length.
PIECES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), max_size=30)
SINGLES = st.lists(st.tuples(st.integers(0, 3), st.just(1)), max_size=200)
ORIGIN = st.sampled_from([0, 1, (1 << 32) - 20, (1 << 36) - 30, (1 << 51) - 7])


def spread(origin: int, pieces: list[tuple[int, int]]) -> tuple[list[int], list[int], set[int]]:
    """Give the starts, the ends and the pages of pieces laid out one after the other."""
    starts: list[int] = []
    ends: list[int] = []
    pages: set[int] = set()
    position = origin
    for gap, length in pieces:
        starts.append(position + gap)
        position += gap + length
        ends.append(position)
        pages.update(range(position - length, position))
    return starts, ends, pages


def runs_of(starts: list[int], ends: list[int]) -> Runs:
    """Join pieces."""
    return adjacent_runs(np.array(starts, dtype=np.uint64), np.array(ends, dtype=np.uint64))


@given(origin=ORIGIN, pieces=PIECES | SINGLES)
def test_runs_hold_the_pages_they_were_made_of(origin: int, pieces: list[tuple[int, int]]) -> None:
    """Joined runs neither overlap nor touch, and their set, however it is built, has exactly the pages."""
    starts, ends, pages = spread(origin, pieces)
    runs = runs_of(starts, ends)

    assert (runs.starts[1:] > runs.ends[:-1]).all()
    assert (runs.starts < runs.ends).all()
    assert runs.page_count() == len(pages)
    assert runs.to_set() == BitMap64(pages)


@given(pieces=PIECES, other=PIECES)
def test_runs_are_the_same_when_their_pages_are(pieces: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    """Two joined lists compare equal exactly when they hold the same pages, however they were cut."""
    mine, theirs = spread(5, pieces), spread(5, other)

    assert runs_of(*mine[:2]).same_as(runs_of(*theirs[:2])) == (mine[2] == theirs[2])


def test_a_run_of_terabytes_is_made_without_listing_its_pages() -> None:
    """Both ways to a set are taken: long runs as runs, scattered pages in bulk, beside each other at the switch."""
    tebibyte = 1 << 28
    assert len(runs_of([0], [tebibyte]).to_set()) == tebibyte
    for length in range(1, 12):
        starts = list(range(0, 2000, 20))
        ends = [start + length for start in starts]
        expected = {page for start in starts for page in range(start, start + length)}
        assert set(runs_of(starts, ends).to_set()) == expected


def test_no_runs() -> None:
    """Nothing is an empty set."""
    runs = runs_of([], [])

    assert runs.page_count() == 0
    assert not runs.to_set()
