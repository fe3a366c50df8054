"""Heat and rankings against counting afresh, page by page, on random histories; and what is right when they merge."""

import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.support.histories import INCARNATION, PAGES, Batch, Truth, batches, block_of, taken
from wetink_collector.errors import MessageTooLarge
from wetink_collector.insight import heatmap as heat
from wetink_collector.insight.history import History
from wetink_collector.insight.ranking import coldest_first, hottest
from wetink_collector.round_log import RoundPages
from wetink_collector.store.interface import encode_stored

EXAMPLES = settings(max_examples=40)


def written_last(truth: Truth, page: int) -> int | None:
    """Give the end of the batch in which a page was written last; None where it was in none but the first."""
    return max((one.until_ns for one in truth.arrived[1:] if page in truth.written(one.first, one.last)), default=None)


@EXAMPLES
@given(batches(united=False), st.booleans(), st.integers(1, 12))
def test_hottest_pages_are_those_that_counting_gives(some: list[Batch], by_age: bool, limit: int) -> None:  # noqa: FBT001
    """In their order, each once, and with the numbers that are true of each."""
    history, truth = taken(some)
    count = {page: truth.count(page) for page in PAGES if truth.count(page)}
    last = {page: written_last(truth, page) or 0 for page in count}
    found = [
        (run.page + more, run.rounds_least, run.rounds_most, run.last_until_ns)
        for run in hottest(history.written(), limit, by_age=by_age)
        for more in range(run.page_count)
    ]

    def rank(page: int) -> tuple[int, int, int]:
        first, second = (last, count) if by_age else (count, last)
        return -first[page], -second[page], page

    order = sorted(count, key=rank)

    assert found == [(page, count[page], count[page], last[page]) for page in order[:limit]]


@EXAMPLES
@given(batches(united=True, max_size=16))
def test_counts_of_united_rounds_have_the_truth_between_them(some: list[Batch]) -> None:
    """A page of a batch was written in one of its rounds at least, and in all of them at most; no later than said."""
    history, truth = taken(some)
    written = history.written()
    found = {
        int(page): (int(least), int(most), int(last))
        for page, least, most, last in zip(
            written.pages, written.rounds_least, written.rounds_most, written.last_until_ns, strict=True
        )
    }

    sets = [one.pages(INCARNATION) for one in history.kept if not one.single]
    for page, (least, most, last) in found.items():
        # What a batch says again may have been written before the first batch that counts.
        if not any(batch.again for batch in some):
            assert least <= truth.count(page)
        assert truth.count(page) <= most
        # Of what was gone at the end of several rounds nobody knows whether they wrote it.
        gone = any(page in merged.vanished for merged in sets)
        assert gone or (written_last(truth, page) or 0) <= last


@EXAMPLES
@given(batches(united=True, max_size=16), st.integers(2, 6))
def test_coldest_pages_come_first(some: list[Batch], class_count: int) -> None:
    """Each populated page once, in no more classes than asked for, and never after one that was written later."""
    history, _ = taken(some)
    populated = BitMap64([*PAGES, 5000, 5001])
    classes = list(coldest_first(populated, history.written(), class_count))
    written = history.written()
    last = dict(zip(written.pages.tolist(), written.last_until_ns.tolist(), strict=True))

    assert len(classes) <= class_count
    assert sorted(page for one in classes for page in one.pages) == sorted(populated)
    ends = [[last.get(page, 0) for page in one.pages] for one in classes]
    for one, mine in zip(classes, ends, strict=True):
        assert one.last_until_ns == max(mine)
    for earlier, later in pairwise(ends):
        assert max(earlier) < min(later)


@st.composite
def page_sets(draw: st.DrawFn) -> BitMap64:
    """Give pages in clumps, near to each other and far apart."""
    starts = draw(st.lists(st.sampled_from((0, 3, 70, 200, 5000, 1 << 20, (1 << 20) + 90, 1 << 40)), min_size=1))
    found = BitMap64()
    for start in starts:
        found.add_range(start, start + draw(st.integers(1, 40)))
    return found


@EXAMPLES
@given(page_sets(), st.lists(page_sets(), max_size=4), st.integers(1, 12), st.booleans())
def test_rows_cover_each_page_once_and_cells_count_them(
    known: BitMap64,
    columns: list[BitMap64],
    row_count: int,
    named: bool,  # noqa: FBT001
) -> None:
    """Whatever the holes; and no row is empty, or more than asked for."""
    known = BitMap64.union(known, *columns)
    names = [heat.Mapping(0, 64, "[heap]"), heat.Mapping(64, 300, "lib"), heat.Mapping(1 << 20, (1 << 20) + 200, "")]
    found = heat.rows(heat.KnownPages(known, start=0, end=1 << 52), row_count, names if named else ())

    assert 1 <= len(found) <= row_count
    assert [row.start for row in found] == sorted(row.start for row in found)
    assert all(row.end <= after.start for row, after in pairwise(found))
    assert sum(row.page_count for row in found) == len(known)
    numbers = sorted(known)
    wide = [after for before, after in pairwise(numbers) if after - before > heat.HOLE_PAGES_MIN]
    if len(wide) < row_count:
        # Every wide hole is folded away: a row begins behind it.
        assert set(wide) <= {row.start for row in found}
    cells = heat.counts(columns, found)
    for row, counts in zip(found, cells, strict=True):
        assert row.page_count == len([page for page in known if row.start <= page < row.end]) > 0
        assert [len([page for page in pages if row.start <= page < row.end]) for pages in columns] == counts.tolist()
        if named and row.end <= 64:
            assert row.label == "[heap]"


def test_memory_of_a_whole_host_takes_no_memory_page_by_page() -> None:
    """Four billion of them in a few bytes: what is told of them is counted, and they are not."""
    history, _ = taken([Batch([RoundPages(BitMap64([number, 7]), BitMap64())], [number * 10**9]) for number in (1, 2)])
    populated = BitMap64()
    populated.add_range(0, 1 << 32)
    tracemalloc.start()
    try:
        never, last = coldest_first(populated, history.written(), 4)
        known = heat.KnownPages(populated, start=10, end=1 << 52)
        rows = heat.rows(known, 4)
        cells = heat.counts([populated, BitMap64([1 << 30])], rows)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 1 << 20
    assert (len(never.pages), list(last.pages)) == ((1 << 32) - 2, [2, 7])
    assert [row.page_count for row in rows] == cells[:, 0].tolist()
    assert sum(cells[:, 0].tolist()) == (1 << 32) - 10
    assert cells[:, 1].tolist() == [1, 0, 0, 0]


def test_page_that_was_written_last_is_the_last_whatever_the_clock_says() -> None:
    """It was set back after the third round, and is not yet where it was."""
    times_ns = [10**9, 101 * 10**9, 102 * 10**9, 50 * 10**9, 51 * 10**9]
    history, _ = taken(
        [Batch([RoundPages(BitMap64([page]), BitMap64())], [until_ns]) for page, until_ns in enumerate(times_ns)]
    )
    written = history.written()
    classes = coldest_first(BitMap64(range(5)), written, 10)

    assert [run.page for run in hottest(written, 4, by_age=True)] == [4, 3, 2, 1]
    assert [list(one.pages) for one in classes] == [[0], [1], [2], [3], [4]]


def test_part_without_pages_has_no_rows() -> None:
    """Nothing is drawn, of no column."""
    found = heat.rows(heat.KnownPages(BitMap64([1, 5000]), start=10, end=1000), 4, [heat.Mapping(0, 64, "[heap]")])

    assert found == []
    assert heat.counts([BitMap64([1]), BitMap64()], found).size == 0


def test_memory_in_too_many_places_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that is told."""
    monkeypatch.setattr(heat, "RUNS_MAX", 3)
    with pytest.raises(MessageTooLarge, match="in 4 places"):
        heat.KnownPages(BitMap64([1, 3, 5, 7]), start=0, end=100)


@EXAMPLES
@given(batches(united=True, max_size=16), st.integers(1, 9))
def test_columns_are_all_rounds_in_their_order(some: list[Batch], column_count: int) -> None:
    """Each in one column, and no column without any."""
    history, _ = taken(some)
    found = heat.columns(history.kept, column_count)

    assert len(found) <= column_count
    assert all(found)
    assert [one for column in found for one in column] == list(history.kept)


@EXAMPLES
@given(batches(united=False, max_size=60), st.integers(1, 60))
def test_rounds_that_were_merged_to_save_memory_say_so(some: list[Batch], times: int) -> None:
    """Pages written in a stretch are in its set, or vanished in it; curve and counts stay what they were."""
    history, truth = taken(some)
    points, counts = history.points(), history.written().rounds_least.tolist()
    for _ in range(times):
        history._merge_kept()

    assert history.points() == points
    assert history.written().rounds_least.tolist() == counts
    for one in history.kept:
        pages = one.pages(INCARNATION)
        written = truth.written(one.block.first_round, one.block.last_round)
        assert set(pages.written) <= written <= set(pages.written | pages.vanished)
        assert one.single == (one.block.first_round == one.block.last_round)
        if one.single:
            assert set(pages.written) == written


@EXAMPLES
@given(batches(united=False, max_size=40), st.integers(0, 40))
def test_pages_let_go_of_leave_windows_right(some: list[Batch], after: int) -> None:
    """What is forgotten is not counted in any window that begins before; those that are counted stay exact."""
    spread = [
        Batch(
            [RoundPages(BitMap64(page * 512 for page in one.written), one.vanished) for one in batch.rounds],
            batch.times_ns,
        )
        for batch in some
    ]
    wide = BitMap64(range(0, 512 * 40, 512))
    first = Batch([RoundPages(wide, BitMap64())], [spread[0].times_ns[0] - 10**9])
    second = Batch([RoundPages(wide, BitMap64())], [spread[0].times_ns[0] - 10**8])
    history = History(INCARNATION)
    everything = [first, second, *spread]
    taken(everything[: after + 2], history)
    if not history._forget_coldest():
        return
    assert not history.exact
    rest = everything[after + 2 :]
    known = {page for batch in everything[1:] for one in batch.rounds for page in one.written}
    assert history.writable()[1] <= len(known)
    continue_with(history, rest, everything[: after + 2])
    since = [batch for batch in everything[1:] if batch.times_ns[-1] > history.since_ns]
    expected = {page for batch in since for one in batch.rounds for page in one.written}
    assert history.writable() == (len(expected), len(expected))


def continue_with(history: History, rest: Sequence[Batch], before: Sequence[Batch]) -> None:
    """Give a history that has some batches the rest of them."""
    for number, batch in enumerate(rest, len(before) + 1):
        (pages,) = batch.rounds
        block = block_of(number, number, pages, oldest_round=number, until_ns=batch.times_ns[-1])
        history.append(block, encode_stored(pages.written), encode_stored(pages.vanished))


def test_shrinking_ends() -> None:
    """Whatever is asked for, there is a least that a history takes."""
    some = [Batch([taken_pages(number)], [10**18 + number * 10**9]) for number in range(200)]
    history, _ = taken(some)
    before = history.size_bytes
    times = 0
    while history.shrink():
        times += 1
        assert times < 5000
    assert history.size_bytes < before
    assert history.points()
    assert history.writable()[1] >= 1


def taken_pages(number: int) -> RoundPages:
    """Give the pages of a round: a few that come again, and one of its own."""
    return RoundPages(BitMap64([1, 2, 3, 5000 + number * 512]), BitMap64())
