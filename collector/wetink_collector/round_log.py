"""The rule by which rounds merge, and the log that merges them exponentially with age. Pure: no store, no clock.

A log is a sequence of blocks, oldest first, that touch without overlap. A block is one batch as it came (level 0),
or several older blocks merged into one (a higher level). ``protos/README.md`` states the promises: the last 8 batches
are always single, older ones stand in blocks of 8, 64, 512 and so on, at most 15 of a size. Where a reader stands a
block ends, and may be smaller therefore.

Retention makes one block of all that is older than it keeps: the *base*. It has what is written and nothing that
vanished, so that it takes no more room than what is populated: enough for a reader that begins, and for no cursor.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Final

from pyroaring import BitMap64

from wetink.pages import uncertain_of_both

BLOCKS_A_LEVEL_MAX: Final = 15
"""Bound on the blocks of one level: a log of n rounds has at most 15 log8(n) blocks, and a reader merges no more."""

BLOCKS_MERGED: Final = 8
"""How many blocks become one. Merging the oldest 8 of 16 leaves 8 single, so a reader that asks at least every eighth
round always gets an exact answer."""

_FEW_PAGES: Final = 1 << 16
"""Up to so many, a union that makes a new set takes half of the time of one in place."""

BASE_LEVEL: Final = 255
"""The level of a log's *base*: what its oldest rounds came to, which retention has let go of. No merge gets there."""


@dataclass(frozen=True, slots=True)
class RoundPages:
    """What rounds say about pages: two sets that share no page. Whoever holds one does not change its sets.

    ``uncertain`` are those of ``written`` that no round has with a sign of a write.
    """

    written: BitMap64
    vanished: BitMap64
    uncertain: BitMap64 = field(default_factory=BitMap64)


@dataclass(frozen=True, slots=True)
class Block:
    """What is known of adjacent rounds without looking at their pages.

    ``oldest_round`` is the oldest round whose pages are in it: less than ``first_round`` where an agent had united
    rounds that were here already with newer ones. ``first_time_ns`` is of the first batch in it, the page counts are
    those of its sets, and all else is of the last batch.
    """

    first_round: int
    last_round: int
    oldest_round: int
    level: int
    first_time_ns: int
    last_time_ns: int
    frozen: bool
    written_page_count: int
    vanished_page_count: int
    populated_page_count: int
    cautious_page_count: int


def merge(older: RoundPages, newer: RoundPages) -> RoundPages:
    """Merge two adjacent stretches of rounds: the later round decides.

    Associative; and merging the same stretch again changes nothing.
    """
    return RoundPages(
        (older.written - newer.vanished) | newer.written,
        (older.vanished - newer.written) | newer.vanished,
        _uncertain_of(older, newer),
    )


def fold(stretches: Iterable[RoundPages]) -> RoundPages:
    """Merge any number of adjacent stretches, oldest first. None of them is changed."""
    written, vanished, uncertain = BitMap64(), BitMap64(), BitMap64()
    for newer in stretches:
        uncertain = _uncertain_of(RoundPages(written, vanished, uncertain), newer)
        # Not `-=`: in place, the library takes ten times as long.
        if newer.vanished:
            written = written - newer.vanished
        if newer.written:
            vanished = vanished - newer.written
        if len(written) <= _FEW_PAGES:
            written = written | newer.written
        else:
            written |= newer.written
        vanished |= newer.vanished
    written.run_optimize()
    vanished.run_optimize()
    uncertain.run_optimize()
    return RoundPages(written, vanished, uncertain)


def united(blocks: Sequence[Block], pages: RoundPages) -> Block:
    """Describe the block that takes the place of several.

    Args:
        blocks: Adjacent blocks, oldest first.
        pages: What they fold to.
    """
    oldest, newest = blocks[0], blocks[-1]
    return Block(
        first_round=oldest.first_round,
        last_round=newest.last_round,
        oldest_round=min(block.oldest_round for block in blocks),
        level=newest.level + 1,
        first_time_ns=oldest.first_time_ns,
        last_time_ns=newest.last_time_ns,
        frozen=newest.frozen,
        written_page_count=len(pages.written),
        vanished_page_count=len(pages.vanished),
        populated_page_count=newest.populated_page_count,
        cautious_page_count=newest.cautious_page_count,
    )


def based(blocks: Sequence[Block], pages: RoundPages) -> tuple[Block, RoundPages]:
    """Describe the base that takes the place of several blocks, and give its pages.

    Args:
        blocks: The oldest blocks of a log, oldest first.
        pages: What they fold to.
    """
    kept = RoundPages(pages.written, BitMap64(), pages.uncertain)
    return replace(united(blocks, kept), level=BASE_LEVEL), kept


def check_follows(block: Block, last_round: int) -> None:
    """Assert that a block begins where a log ends: only a bug can break it, and it would lose pages in silence."""
    assert block.oldest_round <= block.first_round == last_round + 1 <= block.last_round, (block, last_round)


def plan_merge(blocks: Sequence[Block], ends: Collection[int] = ()) -> Sequence[Block]:
    """Say which blocks are to become one now: the oldest 8 of the lowest level that is over its bound.

    Args:
        blocks: A whole log, oldest first.
        ends: Rounds after which readers go on. No block goes across one: those up to it become one, however few they
            are, or the one goes to the next level as it is. So every level keeps its bound.

    Returns:
        The blocks, oldest first; none when every level keeps its bound.
    """
    levels = [list(level) for _, level in groupby(blocks, key=lambda block: block.level)]
    oldest = next((level[:BLOCKS_MERGED] for level in reversed(levels) if len(level) > BLOCKS_A_LEVEL_MAX), [])
    end = next((place for place, block in enumerate(oldest, start=1) if block.last_round in ends), len(oldest))
    return oldest[:end]


def plan_base(blocks: Sequence[Block], expired_round: int) -> Sequence[Block]:
    """Say which blocks are to become the base now: the oldest ones, at most 8, that end before what is kept.

    The last 8 blocks stay as they are, whatever retention says.

    Args:
        blocks: A whole log, oldest first.
        expired_round: The last round that retention lets go of.

    Returns:
        The blocks, oldest first; none when the base is where it is to be.
    """
    old = [block for block in blocks[:-BLOCKS_MERGED] if block.last_round <= expired_round][:BLOCKS_MERGED]
    return () if len(old) == 1 and old[0].level == BASE_LEVEL else old


def since(blocks: Sequence[Block], after_round: int) -> Sequence[Block]:
    """Give the blocks that hold every round after a cursor's."""
    return [block for block in blocks if block.last_round > after_round]


def is_expired(used: Sequence[Block], after_round: int) -> bool:
    """Whether a cursor cannot be answered, because what vanished since then is not known any more.

    Args:
        used: What ``since`` gave.
        after_round: The cursor's round. From the beginning (0) nothing is needed but what is written.
    """
    return after_round > 0 and any(block.level == BASE_LEVEL for block in used)


def is_exact(used: Sequence[Block], after_round: int) -> bool:
    """Whether blocks hold no page only because of a round that the cursor had already.

    Args:
        used: What ``since`` gave.
        after_round: The cursor's round. From the beginning (0) every answer is exact.
    """
    return all(block.oldest_round > after_round for block in used)


def is_whole(used: Sequence[Block], *, after_round: int, last_round: int) -> bool:
    """Whether blocks leave out no round from after a cursor's up to at least another.

    Args:
        used: What ``since`` gave.
        after_round: The cursor's round.
        last_round: A round that must be there.
    """
    if not used:
        return last_round <= after_round
    return (
        used[0].first_round <= after_round + 1
        and used[-1].last_round >= last_round
        and all(older.last_round + 1 == newer.first_round for older, newer in pairwise(used))
    )


def _uncertain_of(older: RoundPages, newer: RoundPages) -> BitMap64:
    then = newer.written, newer.vanished, newer.uncertain
    return uncertain_of_both(older.written, older.vanished, older.uncertain, then)
