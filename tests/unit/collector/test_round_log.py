"""The merge rule and the exponentially merged log."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.unit.collector.changes import fate_of, pages_of_fates
from wetink_collector.round_log import (
    BLOCKS_A_LEVEL_MAX,
    BLOCKS_MERGED,
    Block,
    RoundPages,
    fold,
    is_exact,
    is_whole,
    merge,
    plan_merge,
    since,
    united,
)

PAGES = 12
"""Few pages, so that rounds speak of the same ones."""


@st.composite
def round_pages(draw: st.DrawFn) -> RoundPages:
    """Give a round: each page is written, written and uncertain, vanished or none of it."""
    return pages_of_fates(draw(st.lists(st.sampled_from("wuv-"), min_size=PAGES, max_size=PAGES)))


rounds = st.lists(round_pages(), min_size=1, max_size=60)


def block_of(first: int, last: int, oldest: int | None = None) -> Block:
    """Give a single block."""
    return Block(first, last, oldest or first, 0, first, last, last % 2 == 0, 0, 0, last, 0)


@dataclass
class Log:
    """A log over the pure functions, as a store keeps one; and every round that went in."""

    blocks: list[Block] = field(default_factory=list)
    pages: dict[Block, RoundPages] = field(default_factory=dict)
    raw: dict[int, RoundPages] = field(default_factory=dict)

    @property
    def last_round(self) -> int:
        """The last round in it."""
        return self.blocks[-1].last_round if self.blocks else 0

    def append(self, some: Sequence[RoundPages], *, overlap: int = 0) -> None:
        """Append one batch: rounds united, the first of them rounds that are here already."""
        first = self.last_round + 1
        again = [self.raw[number] for number in range(first - overlap, first)]
        block = block_of(first, first + len(some) - 1, first - overlap)
        self.raw |= dict(zip(range(first, block.last_round + 1), some, strict=True))
        self.blocks.append(block)
        self.pages[block] = fold([*again, *some])

    def settle(self, ends: Collection[int] = ()) -> None:
        """Merge until every level keeps its bound."""
        while blocks := plan_merge(self.blocks, ends):
            pages = fold(self.pages[block] for block in blocks)
            merged = united(blocks, pages)
            self.pages[merged] = pages
            first = self.blocks.index(blocks[0])
            self.blocks[first : first + len(blocks)] = [merged]


def log_of(some: Sequence[RoundPages]) -> Log:
    """Give a log of single rounds that was settled after each."""
    log = Log()
    for one in some:
        log.append([one])
        log.settle()
    return log


@given(round_pages(), round_pages())
def test_each_page_has_the_fate_its_later_round_gave_it(older: RoundPages, newer: RoundPages) -> None:
    """For each page alone: the newer round decides where it speaks of the page, the older one otherwise."""
    merged = merge(older, newer)

    for page in range(PAGES):
        spoken = newer if page in newer.written | newer.vanished else older
        assert (page in merged.written) == (page in spoken.written)
        assert (page in merged.vanished) == (page in spoken.vanished)


_THEN = {"u": {"-": "u", "u": "u", "w": "w", "v": "w"}}


@given(rounds)
def test_a_page_is_uncertain_only_where_no_round_is_certain_of_it(some: list[RoundPages]) -> None:
    """For each page alone, by a table: a reader that dropped it, or had it written to for sure, needs it."""
    merged = fold(some)

    for page in range(PAGES):
        fate = "-"
        for one in some:
            now = fate_of(one, page)
            fate = _THEN[now][fate] if now in _THEN else (fate if now == "-" else now)
        assert fate_of(merged, page) == fate


@given(rounds)
def test_who_knows_nothing_of_certainty_has_the_same_sets(some: list[RoundPages]) -> None:
    """Written and vanished are what they are without it."""
    plain = fold(RoundPages(one.written, one.vanished) for one in some)

    assert (fold(some).written, fold(some).vanished) == (plain.written, plain.vanished)
    assert not plain.uncertain
    assert fold(some).uncertain <= plain.written


@given(round_pages(), round_pages(), round_pages())
def test_merging_is_associative(one: RoundPages, two: RoundPages, three: RoundPages) -> None:
    """It does not matter which neighbours are merged first."""
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@given(round_pages(), round_pages())
def test_merging_a_round_again_changes_nothing(older: RoundPages, newer: RoundPages) -> None:
    """A duplicate is free of effect, at once and after older rounds."""
    merged = merge(older, newer)

    assert merge(newer, newer) == newer
    assert merge(merged, newer) == merged


@given(rounds)
def test_folding_is_merging_one_after_the_other_and_changes_no_operand(some: list[RoundPages]) -> None:
    """The fast fold is the rule; what it reads stays as it was."""
    copies = [RoundPages(BitMap64(one.written), BitMap64(one.vanished), BitMap64(one.uncertain)) for one in some]
    expected = RoundPages(BitMap64(), BitMap64())
    for one in some:
        expected = merge(expected, one)

    assert fold(some) == expected
    assert some == copies


@given(rounds)
def test_sets_of_a_fold_share_no_page(some: list[RoundPages]) -> None:
    """Written and vanished stay disjoint through any merge."""
    merged = fold(some)

    assert merged.written.isdisjoint(merged.vanished)


@given(rounds, st.data())
def test_answer_since_any_round_is_the_fold_of_raw_rounds(some: list[RoundPages], data: st.DataObject) -> None:
    """
    The blocks used for a cursor fold to what the raw rounds in them fold to: exactly those after the cursor where the
    answer says exact, and some before it where it does not.
    """
    log = log_of(some)
    cursor = data.draw(st.integers(0, len(some)))

    used = since(log.blocks, cursor)
    answer = fold(log.pages[block] for block in used)

    first = used[0].first_round if used else cursor + 1
    assert is_whole(used, after_round=cursor, last_round=len(some))
    assert answer == fold(log.raw[number] for number in range(first, len(some) + 1))
    assert is_exact(used, cursor) == (first == cursor + 1)


@given(rounds, st.data())
def test_inexact_answer_speaks_of_every_page_the_exact_one_does(some: list[RoundPages], data: st.DataObject) -> None:
    """Never fewer pages: what a raw fold since the cursor says of a page, the answer says of it too."""
    log = log_of(some)
    cursor = data.draw(st.integers(0, len(some)))

    answer = fold(log.pages[block] for block in since(log.blocks, cursor))
    exact = fold(log.raw[number] for number in range(cursor + 1, len(some) + 1))

    assert exact.written <= answer.written
    assert exact.vanished <= answer.vanished


@given(rounds)
def test_last_eight_rounds_are_exact(some: list[RoundPages]) -> None:
    """A reader that asks at least every eighth round never gets a page too many."""
    log = log_of(some)

    for cursor in range(max(0, len(some) - BLOCKS_MERGED), len(some) + 1):
        assert is_exact(since(log.blocks, cursor), cursor)


def test_blocks_grow_with_the_logarithm_of_rounds() -> None:
    """After each of 5000 rounds no level is over its bound, blocks touch, and older ones are not smaller."""
    log = Log()
    empty = RoundPages(BitMap64(), BitMap64())
    for _ in range(5000):
        log.append([empty])
        log.settle()
        sizes = [len(list(level)) for _, level in groupby(log.blocks, key=lambda block: block.level)]
        assert max(sizes) <= BLOCKS_A_LEVEL_MAX
        assert all(older.last_round + 1 == newer.first_round for older, newer in pairwise(log.blocks))
        assert all(older.level >= newer.level for older, newer in pairwise(log.blocks))

    assert len(log.blocks) <= BLOCKS_A_LEVEL_MAX * 5
    assert [block.last_round - block.first_round + 1 for block in log.blocks[-8:]] == [1] * 8
    assert {block.last_round - block.first_round + 1 for block in log.blocks} == {1, 8, 64, 512}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400))
def test_no_block_goes_across_a_round_that_a_reader_stands_at(steps: list[tuple[bool, bool]]) -> None:
    """
    Readers come to the last round and leave, oldest first, at any moments: each that has not left is answered exactly
    after however many rounds, every level keeps its bound, and the last 8 rounds are single.
    """
    log, empty = Log(), RoundPages(BitMap64(), BitMap64())
    readers: list[int] = []
    for comes, leaves in steps:
        log.append([empty])
        log.settle(readers)
        if comes:
            readers.append(log.last_round)
        if leaves:
            del readers[:1]

        assert all(is_exact(since(log.blocks, cursor), cursor) for cursor in readers)
        assert max(len(list(level)) for _, level in groupby(log.blocks, key=lambda block: block.level)) <= 15
        assert all(older.level >= newer.level for older, newer in pairwise(log.blocks))
        assert is_whole(log.blocks, after_round=0, last_round=log.last_round)
        assert [block.last_round - block.first_round for block in log.blocks[-8:]] == [0] * min(8, len(log.blocks))


def test_readers_that_never_leave_cost_a_block_each_at_most() -> None:
    """A cursor at each of 40 rounds among the first of 5000: the log is longer by no more than these."""
    log, alone = Log(), Log()
    empty = RoundPages(BitMap64(), BitMap64())
    readers = range(100, 140)
    for _ in range(5000):
        for one, ends in ((log, readers), (alone, ())):
            one.append([empty])
            one.settle(ends)
        assert len(log.blocks) <= len(alone.blocks) + len(readers) + BLOCKS_A_LEVEL_MAX

    assert all(is_exact(since(log.blocks, cursor), cursor) for cursor in readers)


@given(st.lists(st.tuples(st.lists(round_pages(), min_size=1, max_size=4), st.integers(0, 3)), min_size=1, max_size=40))
def test_united_and_overlapping_batches_lose_nothing(batches: list[tuple[list[RoundPages], int]]) -> None:
    """Whatever rounds an agent unites, and whatever of them are here already: every answer is the raw fold or more."""
    log = Log()
    for some, overlap in batches:
        log.append(some, overlap=min(overlap, log.last_round))
        log.settle()

    for cursor in range(log.last_round + 1):
        used = since(log.blocks, cursor)
        answer = fold(log.pages[block] for block in used)
        raw = fold(log.raw[number] for number in range(cursor + 1, log.last_round + 1))
        assert raw.written <= answer.written
        assert raw.vanished <= answer.vanished
        if is_exact(used, cursor):
            assert answer == raw


def test_cursor_inside_a_batch_that_overlaps_is_not_exact() -> None:
    """Rounds 1 to 3 are here, a batch brings 2 to 4: since 2 it may hold pages of round 2, since 1 it cannot."""
    blocks = [block_of(1, 1), block_of(2, 2), block_of(3, 3), block_of(4, 4, oldest=2)]

    assert not is_exact(since(blocks, 3), 3)
    assert not is_exact(since(blocks, 2), 2)
    assert is_exact(since(blocks, 1), 1)


def test_merged_block_remembers_the_oldest_round_in_it() -> None:
    """A batch that overlapped stays inexact for older cursors when it is merged with others."""
    blocks = [block_of(9, 9, oldest=5), *(block_of(number, number) for number in range(10, 16))]

    merged = united(blocks, RoundPages(BitMap64(), BitMap64()))

    assert (merged.first_round, merged.last_round, merged.oldest_round) == (9, 15, 5)
    assert not is_exact([merged], 8)
    assert is_exact([merged], 4)


def test_missing_block_is_found_out() -> None:
    """A hole anywhere between the cursor and the last round is no whole answer."""
    blocks = [block_of(number, number) for number in range(1, 6)]

    assert is_whole(blocks, after_round=0, last_round=5)
    assert is_whole(blocks[3:], after_round=3, last_round=5)
    assert not is_whole(blocks[3:], after_round=2, last_round=5)
    assert not is_whole(blocks[:2] + blocks[3:], after_round=0, last_round=5)
    assert not is_whole(blocks[:4], after_round=0, last_round=5)
    assert not is_whole([], after_round=4, last_round=5)
    assert is_whole([], after_round=5, last_round=5)
