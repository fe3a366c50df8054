"""W(T) against counting afresh: each window of each history, page by page."""

import tracemalloc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyroaring import BitMap64

from tests.support.histories import INCARNATION, Arrived, Batch, Truth, batches, block_of, taken
from wetink_collector.insight import history as module
from wetink_collector.insight import page_index, working_set
from wetink_collector.insight.history import History
from wetink_collector.insight.working_set import GRID_NS, Point, Statistics, statistics
from wetink_collector.insight.writes import mean_writes_of, writes_of
from wetink_collector.round_log import RoundPages
from wetink_collector.store.interface import encode_stored

EXAMPLES = settings(max_examples=40)


def windows(truth: Truth) -> Iterator[tuple[int, int, int]]:
    """Give each window of a history: the step of its T in the grid, its length, and the pages written in it."""
    stretches = truth.arrived[1:]
    for end, newest in enumerate(stretches):
        runs = [(newest.until_ns - oldest.since_ns, oldest) for oldest in stretches[: end + 1]]
        # No window is near to a T that no run is near to.
        for step in {step_of(length) for length, _ in runs}:
            wanted = int(GRID_NS[step])
            # Of two as near, the longer.
            length, oldest = min(runs, key=lambda run: (abs(run[0] - wanted), -run[0]))
            if 2 ** (-1 / 8) <= length / wanted < 2 ** (1 / 8):
                yield step, length, len(truth.written(oldest.first, newest.last))


def step_of(length: float) -> int:
    """Give the step of the grid to which a length is nearest, as far as doublings go."""
    return round(4 * log2(length / 1e6))


def expected(truth: Truth) -> list[tuple[float, int, Statistics]]:
    """Give W(T) by the book: mean length and number of the windows of each T, and what they hold."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for step, length, count in windows(truth):
        found[step].append((length, count))
    return [
        (sum(length for length, _ in some) / len(some), len(some), plain_statistics([count for _, count in some]))
        for _, some in sorted(found.items())
    ]


def plain_statistics(values: Sequence[int]) -> Statistics:
    """Give mean and percentiles by their definition."""
    ordered = sorted(values)

    def percentile(share: int) -> int:
        return next(value for value in ordered if sum(one <= value for one in ordered) * 100 >= share * len(ordered))

    return Statistics(sum(ordered) / len(ordered), percentile(50), percentile(95), ordered[-1])


def same(point: Point, length: float, count: int) -> bool:
    """Whether a point is about as many windows of the same mean length. Lengths are kept to seven digits."""
    return point.window_count == count and point.window_ns == pytest.approx(length, rel=1e-6)


@EXAMPLES
@given(batches(united=False))
def test_every_window_of_single_rounds_is_counted_exactly(some: list[Batch]) -> None:
    """Whatever is written when, and however long the rounds are."""
    history, truth = taken(some)
    points, book = history.points(), expected(truth)

    assert len(points) == len(book)
    for point, (length, count, pages) in zip(points, book, strict=True):
        assert same(point, length, count)
        assert point.exact
        assert point.most.mean == pytest.approx(pages.mean)
        assert (point.most.p50, point.most.p95, point.most.max) == (pages.p50, pages.p95, pages.max)
    assert history.exact
    assert history.writable() == (len(truth.written(2, len(truth.rounds))),) * 2


@EXAMPLES
@given(batches(united=True))
def test_windows_with_united_rounds_have_the_truth_between_their_bounds(some: list[Batch]) -> None:
    """What was written and then vanished within a stretch is not told; what came twice may be of either time."""
    history, truth = taken(some)
    points, book = history.points(), expected(truth)

    assert len(points) == len(book)
    for point, (length, count, pages) in zip(points, book, strict=True):
        assert same(point, length, count)
        for name in ("mean", "p50", "p95", "max"):
            least, most = getattr(point.least, name), getattr(point.most, name)
            assert least - 1e-9 <= getattr(pages, name) <= most + 1e-9, name
    least, most = history.writable()
    assert least <= len(truth.written(truth.numbers()[0], truth.numbers()[-1])) <= most
    assert history.exact == all(one.first == one.last and not batch.again for one, batch in later(truth, some))


def later(truth: Truth, some: Sequence[Batch]) -> list[tuple[Arrived, Batch]]:
    """Give the stretches after the first with their batches."""
    return list(zip(truth.arrived, some, strict=True))[1:]


@EXAMPLES
@given(batches(united=False, max_size=60), st.sampled_from((4, 6, 16)))
def test_windows_of_a_long_history_begin_at_fewer_places_and_stay_exact(some: list[Batch], starts_max: int) -> None:
    """Where beginnings are let go of, each window that is left is one of the history's."""
    history, truth = taken(some, History(INCARNATION, starts_max=starts_max))
    allowed: dict[int, set[int]] = defaultdict(set)
    for end, newest in enumerate(truth.arrived[1:], 1):
        for oldest in truth.arrived[1 : end + 1]:
            length = newest.until_ns - oldest.since_ns
            allowed[step_of(length)].add(len(truth.written(oldest.first, newest.last)))

    for point in history.points():
        assert point.exact
        assert {point.most.p50, point.most.p95, point.most.max} <= allowed[step_of(point.window_ns)]
    assert history.writable() == (len(truth.written(2, len(truth.rounds))),) * 2


@EXAMPLES
@given(batches(united=False, max_size=60), st.integers(1, 5))
def test_only_the_newest_windows_are_kept(some: list[Batch], ends_max: int) -> None:
    """As many as the bound says, of each T."""
    history, truth = taken(some, History(INCARNATION, ends_max=ends_max))
    newest: dict[int, list[int]] = defaultdict(list)
    for step, _, count in windows(truth):
        newest[step].append(count)

    book = [plain_statistics(counts[-ends_max:]) for _, counts in sorted(newest.items())]
    assert [point.most.max for point in history.points()] == [one.max for one in book]
    assert [point.most.p50 for point in history.points()] == [one.p50 for one in book]


@EXAMPLES
@given(batches(united=False, max_size=40), st.integers(1, 20), st.integers(1, 20))
def test_windows_are_let_go_of_until_it_is_something(some: list[Batch], ends_max: int, ends_min: int) -> None:
    """Or else it is said that there is nothing to gain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working_set, "ENDS_MIN", ends_min)
        found, _ = taken(some, History(INCARNATION, ends_max=ends_max * 16))
        assert found._working_set
        before = found._working_set.size_bytes
        while found._working_set.halve():
            assert found._working_set.size_bytes < before
            before = found._working_set.size_bytes
        assert found._working_set.size_bytes == before


@EXAMPLES
@given(batches(united=True))
def test_pages_that_are_looked_up_in_pieces_are_counted_alike(some: list[Batch]) -> None:
    """However small the pieces are."""
    whole, _ = taken(some)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_index, "_AT_ONCE", 2)
        pieces, _ = taken(some)

    assert pieces.points() == whole.points()
    for mine, other in zip(columns(pieces), columns(whole), strict=True):
        assert mine.tolist() == other.tolist()


def columns(history: History) -> tuple[NDArray[Any], ...]:
    """Give what is told of each page that was written."""
    written = history.written()
    return written.pages, written.last_until_ns, written.rounds_least, written.rounds_most


def round_of(number: int, written: BitMap64) -> Batch:
    """Give a round, a second after the one before."""
    return Batch([RoundPages(written, BitMap64())], [10**18 + number * 10**9])


@pytest.mark.parametrize("bounds", [(1 << 23, 1 << 15), (1 << 40, 100), (1 << 40, 1)])
def test_round_of_too_many_pages_begins_a_history_afresh(bounds: tuple[int, int]) -> None:
    """Four billion in a few bytes, or a few that take kilobytes each: what came later is told, and that."""
    large = BitMap64()
    if bounds[1] == 1 << 15:
        large.add_range(0, 1 << 32)
    else:
        large.update(range(0, 1000 << 12, 1 << 12))
    before = [round_of(number, BitMap64([1, 2, number])) for number in range(1, 7)]
    after = [round_of(number, BitMap64([1, 2])) for number in range(8, 12)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COUNTED_PAGES_MAX", bounds[0])
        patch.setattr(module, "COUNTED_ROWS_MAX", bounds[1])
        tracemalloc.start()
        history, _ = taken([*before, round_of(7, large)])
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (history.round, history.stretch_count, history.writable(), history.points()) == (7, 0, (0, 0), [])
        assert peak_bytes < 1 << 22
        for number, batch in enumerate(after, 8):
            one = block_of(number, number, batch.rounds[0], oldest_round=number, until_ns=batch.times_ns[0])
            history.append(one, encode_stored(batch.rounds[0].written), b"")

    assert (history.first_round, history.round, history.stretch_count) == (8, 11, 4)
    assert (history.writable(), history.written().pages.tolist(), len(history.kept)) == ((2, 2), [1, 2], 4)
    assert (history.exact, history.too_large_round) == (False, 7)
    assert "round 7 had too many pages" in writes_of(history, 4096).old_because
    assert "round 7 had too many pages" in mean_writes_of(history, 4096).old_because


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_percentiles_are_by_nearest_rank(values: list[int]) -> None:
    """The least number that so many do not exceed: one of those there are."""
    found, book = statistics(np.array(values, np.uint32)), plain_statistics(values)

    assert (found.p50, found.p95, found.max) == (book.p50, book.p95, book.max)
    assert found.mean == pytest.approx(book.mean)
