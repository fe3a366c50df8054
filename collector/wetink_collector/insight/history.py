"""What is kept in memory of one incarnation's rounds: their page sets as they came, and what is counted from them.

The store merges rounds from the ninth on. Here they stay single for as long as memory lets them, so that an answer
about the last hour is about its rounds. What is merged all the same (a store gave it so, memory was short) is told.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink_collector.identity import IncarnationKey
from wetink_collector.insight.page_index import PageIndex, row_count
from wetink_collector.insight.working_set import ENDS_MAX, STARTS_MAX, Point, Stretch, WorkingSet
from wetink_collector.round_log import BLOCKS_A_LEVEL_MAX, BLOCKS_MERGED, Block, RoundPages, fold, united
from wetink_collector.store.interface import decode_stored, encode_stored

ROUNDS_MAX: Final = 4096
"""Bound on the stretches that are kept apart: the rounds of an hour, at one a second. Older ones are merged."""

COUNTED_PAGES_MAX: Final = 1 << 23
"""Bound on the pages of a round that is counted: 32 GiB of memory, and most of a second's work. A few bytes can say
that all the memory of a host was written, and to count a page takes some twenty."""

COUNTED_ROWS_MAX: Final = 1 << 15
"""Bound on the rows of ``PageIndex`` that they are in: each takes some kilobytes, for one page as for all of it."""

TIME_NS_MAX: Final = 1 << 62
"""Bound on the times of rounds, a century from now: an agent's clock may say anything, and what is counted from times
is to stay a number of 64 bits."""

_KEPT_BYTES: Final = 400
"""What a stretch takes beside its sets."""


@dataclass(frozen=True, slots=True)
class KeptRounds:
    """One round, or several merged. The sets are in the encoding of ``PageSet.roaring64``.

    ``since_ns`` is the as-of time of the round before: writes after it are in this one.
    """

    block: Block
    since_ns: int
    written: bytes
    vanished: bytes

    @property
    def until_ns(self) -> int:
        """Writes before this are in it."""
        return self.block.last_time_ns

    @property
    def round_count(self) -> int:
        """How many rounds it has."""
        return self.block.last_round - self.block.first_round + 1

    @property
    def single(self) -> bool:
        """Whether it is one round, and says of each page whether it was written in it."""
        return self.block.first_round == self.block.last_round == self.block.oldest_round

    @property
    def repeats(self) -> bool:
        """Whether pages of rounds before it are in it, too."""
        return self.block.oldest_round < self.block.first_round

    def pages(self, incarnation: IncarnationKey) -> RoundPages:
        """Give its sets.

        Raises:
            RecordDamaged: They are none.
        """
        return RoundPages(decode_stored(self.written, incarnation), decode_stored(self.vanished, incarnation))

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.written) + len(self.vanished) + _KEPT_BYTES


@dataclass(frozen=True, slots=True)
class Rate:
    """How many pages one round, or several merged, wrote, and in what time."""

    since_ns: int
    until_ns: int
    written_page_count: int
    single: bool


@dataclass(frozen=True, slots=True)
class WrittenPages:
    """Every page that was written, ascending, as columns.

    Attributes:
        pages: Page numbers.
        last_until_ns: The end of the rounds in which each was written last.
        rounds_least: In how many rounds each was written at least.
        rounds_most: And at most.
    """

    pages: NDArray[np.uint64]
    last_until_ns: NDArray[np.int64]
    rounds_least: NDArray[np.uint32]
    rounds_most: NDArray[np.uint32]


class History:
    """One incarnation. Used by one thread at a time."""

    def __init__(
        self,
        incarnation: IncarnationKey,
        *,
        follows: bool = False,
        starts_max: int = STARTS_MAX,
        ends_max: int = ENDS_MAX,
    ) -> None:
        """Begin with nothing.

        Args:
            incarnation: Whose rounds come.
            follows: Whether there was another one of the target before it, of which nothing is known any more.
            starts_max: As in ``WorkingSet``.
            ends_max: Likewise.
        """
        self.incarnation = incarnation
        self._follows = follows
        self._starts_max = starts_max
        self._ends_max = ends_max
        self._last: Block | None = None
        self._working_set: WorkingSet | None = None
        self._index = PageIndex()
        # When the stretches of the working set ended, but for the oldest.
        self._ends_ns: list[int] = []
        self._ends_dropped = 0
        self._kept: list[KeptRounds] = []
        self._kept_bytes = 0
        self._kept_since_ns = 0
        self._uncounted_round_count = 0
        self._single_pages = 0
        self._single_ns = 0
        self._exact = True
        self._too_large_round = 0

    @property
    def last(self) -> Block | None:
        """The last rounds that are in it, also where they are the first of the incarnation. None before them."""
        return self._last

    @property
    def round(self) -> int:
        """The last round that is in it; 0 means none."""
        return self._last.last_round if self._last else 0

    @property
    def kept(self) -> Sequence[KeptRounds]:
        """The rounds that are kept apart, oldest first. The first of the incarnation is not among them."""
        return tuple(self._kept)

    @property
    def kept_since_ns(self) -> int:
        """What was written before this, the rounds that are kept apart do not tell. 0 means that it was not tracked."""
        return self._kept_since_ns

    @property
    def exact(self) -> bool:
        """Whether every round came here single, and the counts of none were let go of."""
        return self._exact

    @property
    def too_large_round(self) -> int:
        """The last round that had too many pages to be counted: it all begins afresh after it. 0 means none."""
        return self._too_large_round

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        counted = self._working_set.size_bytes if self._working_set else 0
        return self._kept_bytes + self._index.size_bytes + counted + 8 * len(self._ends_ns)

    @property
    def since_ns(self) -> int:
        """Writes after this are in its working sets."""
        return self._working_set.since_ns if self._working_set else 0

    @property
    def first_round(self) -> int:
        """The first round of its working sets. 0 means that there is none yet."""
        if self.forgot_all:
            return self.round
        return self._working_set.first_round if self._working_set else 0

    @property
    def forgot_all(self) -> bool:
        """Whether memory was so short that all counts of pages were let go of, and no round has come since."""
        return self._working_set is not None and self._working_set.forgot_all

    @property
    def stretch_count(self) -> int:
        """How many stretches came, but for the first of the incarnation."""
        return self._working_set.stretch if self._working_set else 0

    def append(self, block: Block, written: bytes, vanished: bytes) -> None:
        """Take the next rounds. Those of too many pages are not counted: what is told begins after them.

        Raises:
            RecordDamaged: The sets are none.
        """
        assert block.first_round == self.round + 1, (block, self.round)
        if block.last_time_ns > TIME_NS_MAX:
            block = replace(block, last_time_ns=TIME_NS_MAX)
        if self._working_set is None:
            # When the pages of the first round were written nobody knows.
            self._begin(block)
        else:
            assert self._last is not None
            kept = KeptRounds(block, self._last.last_time_ns, written, vanished)
            pages = _counted(kept, kept.pages(self.incarnation))
            if pages is None:
                self._too_large_round = block.last_round
                self._exact = False
                self._begin(block)
            else:
                self._count(kept, *pages, self._working_set)
                self._kept.append(kept)
                self._kept_bytes += kept.size_bytes
                if len(self._kept) > ROUNDS_MAX:
                    self._merge_kept()
        self._last = block

    @property
    def has_windows(self) -> bool:
        """Whether there is any W(T). There is none where no time passed on the host's clock, which may be set back."""
        return self._working_set is not None and self._working_set.has_windows

    def points(self) -> list[Point]:
        """Give W(T), by ascending T."""
        return self._working_set.points() if self._working_set else []

    def means(self) -> list[tuple[float, float]]:
        """Give the mean of W(T), by ascending T in nanoseconds, at most: what ``points`` says, and much faster."""
        return self._working_set.means() if self._working_set else []

    def writable(self) -> tuple[int, int]:
        """Give how many pages were written since ``since_ns``, at least and at most."""
        return self._working_set.writable() if self._working_set else (0, 0)

    def dirty_pages_per_second(self) -> float:
        """Give how many pages the rounds that came single wrote, over their time. Of merged ones nobody knows that."""
        if not self._single_ns:
            rates = self.rates()
            seconds = sum(rate.until_ns - rate.since_ns for rate in rates) / 1e9
            return sum(rate.written_page_count for rate in rates) / seconds if seconds else 0.0
        return self._single_pages * 1e9 / self._single_ns

    def rates(self) -> list[Rate]:
        """Give what each of the rounds that are kept apart wrote, oldest first."""
        return [Rate(kept.since_ns, kept.until_ns, kept.block.written_page_count, kept.single) for kept in self._kept]

    def written(self) -> WrittenPages:
        """Give every page that was written, and is remembered."""
        pages, last, least, most = self._index.written()
        # What was written before all ends that are remembered was not written after the first of them either.
        at = np.maximum(last.astype(np.int64) - self._ends_dropped - 1, 0)
        ends = np.array(self._ends_ns or [0], np.int64)
        return WrittenPages(pages, ends[at], least, most + np.uint32(self._uncounted_round_count))

    def shrink(self) -> bool:
        """Let go of something, of whatever takes most; say whether that was possible."""
        counted = self._working_set.size_bytes if self._working_set else 0
        ways = [
            (self._kept_bytes, self._merge_kept),
            (counted, self._halve_windows),
            (self._index.size_bytes, self._forget_coldest),
        ]
        return any(shrink() for _, shrink in sorted(ways, key=lambda way: way[0], reverse=True))

    def _begin(self, block: Block) -> None:
        """Count from the end of some rounds on."""
        self._working_set = WorkingSet(block.last_time_ns, starts_max=self._starts_max, ends_max=self._ends_max)
        self._index = PageIndex()
        self._ends_ns, self._ends_dropped = [], 0
        self._kept, self._kept_bytes = [], 0
        self._kept_since_ns = block.last_time_ns if block.last_round > 1 or self._follows else 0
        self._uncounted_round_count = 0
        self._single_pages = self._single_ns = 0

    def _count(
        self, kept: KeptRounds, written: NDArray[np.uint64], vanished: NDArray[np.uint64], working_set: WorkingSet
    ) -> None:
        number = working_set.stretch + 1
        before = self._index.write(written, stretch=number, round_count=kept.round_count)
        gone = 0
        if kept.single:
            self._single_pages += len(written)
            self._single_ns += max(1, kept.until_ns - kept.since_ns)
        else:
            self._exact = False
            gone = len(vanished)
            self._index.maybe_write(vanished, round_count=kept.round_count)
        working_set.add(
            Stretch(
                first_round=kept.block.first_round,
                until_ns=kept.until_ns,
                written=before,
                doubtful_count=len(written) if kept.repeats else 0,
                vanished_count=gone,
            )
        )
        # A clock that was set back makes no page that is written now older than those before.
        self._ends_ns.append(max(kept.until_ns, self._ends_ns[-1] + 1) if self._ends_ns else kept.until_ns)
        if len(self._ends_ns) > 2 * ROUNDS_MAX:
            del self._ends_ns[:ROUNDS_MAX]
            self._ends_dropped += ROUNDS_MAX

    def _merge_kept(self) -> bool:
        """Merge the oldest eight of the lowest level that has enough; where none has, drop the oldest of all."""
        for level in sorted({kept.block.level for kept in self._kept}):
            same = [place for place, kept in enumerate(self._kept) if kept.block.level == level]
            if len(same) > BLOCKS_A_LEVEL_MAX:
                self._merge(same[0])
                return True
        if not self._kept:
            return False
        dropped = self._kept.pop(0)
        self._kept_bytes -= dropped.size_bytes
        self._kept_since_ns = dropped.until_ns
        return True

    def _merge(self, first: int) -> None:
        slots = slice(first, first + BLOCKS_MERGED)
        several = self._kept[slots]
        pages = fold(kept.pages(self.incarnation) for kept in several)
        merged = KeptRounds(
            united([kept.block for kept in several], pages),
            several[0].since_ns,
            encode_stored(pages.written),
            encode_stored(pages.vanished),
        )
        self._kept_bytes += merged.size_bytes - sum(kept.size_bytes for kept in several)
        self._kept[slots] = [merged]

    def _halve_windows(self) -> bool:
        return self._working_set is not None and self._working_set.halve()

    def _forget_coldest(self) -> bool:
        horizon = self._index.forget_coldest()
        if not horizon:
            return False
        assert self._working_set is not None
        self._working_set.forget(horizon)
        self._uncounted_round_count = self.round
        self._exact = False
        return True


def _counted(kept: KeptRounds, pages: RoundPages) -> tuple[NDArray[np.uint64], NDArray[np.uint64]] | None:
    """Give the pages of rounds that are counted: written ones, and vanished ones. None where they are too many."""
    sets = pages.written, BitMap64() if kept.single else pages.vanished
    if sum(map(len, sets)) > COUNTED_PAGES_MAX:
        return None
    written, vanished = map(page_numbers, sets)
    # Few pages are in few rows.
    rows = written.size + vanished.size
    if rows > COUNTED_ROWS_MAX:
        rows = row_count(written) + row_count(vanished)
    return (written, vanished) if rows <= COUNTED_ROWS_MAX else None


def written_in(some: Iterable[KeptRounds], incarnation: IncarnationKey) -> BitMap64:
    """Give the pages that were written in rounds. Takes time.

    Raises:
        RecordDamaged: Sets are none.
    """
    found = BitMap64()
    for one in some:
        found |= decode_stored(one.written, incarnation)
    return found


def page_numbers(pages: BitMap64) -> NDArray[np.uint64]:
    """Give the pages of a set, ascending."""
    return np.frombuffer(pages.to_array(), np.uint64)
