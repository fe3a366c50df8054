"""Histories of rounds as a collector gets them, and what is true of them page by page and round by round."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st
from pyroaring import BitMap64

from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.insight.history import History
from wetink_collector.round_log import Block, RoundPages, fold
from wetink_collector.store.interface import encode_stored

INCARNATION = IncarnationKey(TargetKey("host-1", "boot-1", 1, 100), 1)

PAGES = (0, 1, 2, 7, 511, 512, 513, 1024, 1 << 20, (1 << 20) + 1, 1 << 35)
"""Few pages, so that rounds speak of the same ones, on both sides of the borders of rows, and far apart."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Adjacent rounds as they arrive together: ``rounds`` are new, ``again`` of the ones before are in it once more."""

    rounds: Sequence[RoundPages]
    times_ns: Sequence[int]
    again: int = 0


@dataclass(frozen=True, slots=True)
class Arrived:
    """A batch that was taken: rounds ``first`` to ``last``, of the time from ``since_ns`` to ``until_ns``."""

    first: int
    last: int
    since_ns: int
    until_ns: int


@dataclass(slots=True)
class Truth:
    """What was written in each round, and in which stretches they came."""

    rounds: list[RoundPages]
    arrived: list[Arrived]

    def written(self, first: int, last: int) -> set[int]:
        """Give the pages written in some rounds."""
        return set().union(*(self.rounds[number - 1].written for number in range(first, last + 1)))

    def count(self, page: int) -> int:
        """Give in how many rounds after the first stretch a page was written."""
        return sum(page in self.rounds[number - 1].written for number in self.numbers())

    def numbers(self) -> range:
        """Give the rounds after the first stretch."""
        return range(self.arrived[0].last + 1, self.arrived[-1].last + 1)


@st.composite
def round_pages(draw: st.DrawFn) -> RoundPages:
    """Give a round: each page is written, vanished or neither."""
    # One number and not a list of fates: it is drawn ten times as fast.
    fates = draw(st.integers(0, 4 ** len(PAGES) - 1))
    written, vanished = (
        BitMap64(page for place, page in enumerate(PAGES) if fates >> 2 * place & 3 == fate) for fate in (1, 2)
    )
    return RoundPages(written, vanished)


@st.composite
def batches(draw: st.DrawFn, *, united: bool, max_size: int = 40) -> list[Batch]:
    """Give what arrives of an incarnation, at least two batches.

    Args:
        draw: Of hypothesis.
        united: Whether some batches are of several rounds, or say again what was said.
        max_size: How many at most.
    """
    found: list[Batch] = []
    now, number = 10**18, 0
    for _ in range(draw(st.integers(2, max_size))):
        count = draw(st.sampled_from((1, 1, 1, 2, 5))) if united else 1
        gaps = [draw(st.sampled_from((10**7, 10**9, 10**9 + 12345, 2 * 10**9, 10**10))) for _ in range(count)]
        times = []
        for gap in gaps:
            now += gap
            times.append(now)
        again = draw(st.sampled_from((0, 0, 0, 1, 2))) if united and number > 2 else 0
        found.append(Batch([draw(round_pages()) for _ in range(count)], times, again))
        number += count
    return found


def taken(some: Sequence[Batch], history: History | None = None) -> tuple[History, Truth]:
    """Give batches to a history, one after another."""
    history = history or History(INCARNATION)
    truth = Truth([], [])
    since_ns = some[0].times_ns[0]
    for batch in some:
        first = len(truth.rounds) + 1
        again = truth.rounds[first - 1 - batch.again :]
        truth.rounds += batch.rounds
        last = len(truth.rounds)
        pages = fold([*again, *batch.rounds])
        until_ns = batch.times_ns[-1]
        history.append(
            block_of(first, last, pages, oldest_round=first - batch.again, until_ns=until_ns),
            encode_stored(pages.written),
            encode_stored(pages.vanished),
        )
        truth.arrived.append(Arrived(first, last, since_ns, until_ns))
        since_ns = until_ns
    return history, truth


def block_of(first: int, last: int, pages: RoundPages, *, oldest_round: int, until_ns: int) -> Block:
    """Describe a batch."""
    return Block(
        first_round=first,
        last_round=last,
        oldest_round=oldest_round,
        level=0,
        first_time_ns=until_ns - 1,
        last_time_ns=until_ns,
        frozen=False,
        written_page_count=len(pages.written),
        vanished_page_count=len(pages.vanished),
        populated_page_count=len(PAGES),
        cautious_page_count=0,
    )
