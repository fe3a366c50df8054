"""What several targets write together: their pages as keys, of which a shared page has one, whoever maps it.

A page of private memory is keyed by its target, also where a fork shares it until somebody writes: the copies may
differ by then. A page of shared memory is keyed by the object behind it, on its host.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wetink_collector.errors import MessageTooLarge
from wetink_collector.identity import IncarnationKey
from wetink_collector.insight.history import KeptRounds, page_numbers
from wetink_collector.insight.mapped import SharedRange
from wetink_collector.insight.page_index import PageIndex, row_count
from wetink_collector.insight.working_set import Stretch, WorkingSet
from wetink_collector.round_log import Block

SPACE_BITS: Final = 45
"""A key is the number of its space, and in it the page: addresses of 57 bits have pages of 45."""

SPACES_MAX: Final = 1 << (64 - SPACE_BITS)

ROUNDS_MAX: Final = 2048
"""Bound on the rounds that one answer about several targets merges: half a second's work."""

STILL_TICKS: Final = 3
"""A target of which nothing came for so many ticks has ended or is cut off: the others are not held up by it."""

PAGES_MAX: Final = 1 << 24
"""Bound on the pages that such an answer merges: some seconds' work. Of fewer rounds where they had more."""

ROWS_MAX: Final = 1 << 18
"""Bound on the rows of ``PageIndex`` that they are in: a gibibyte."""

TICKS_MAX: Final = 256
"""Bound on the ticks of one answer."""


class Spaces:
    """Gives keys to pages."""

    def __init__(self) -> None:
        """Know of no space."""
        self._numbers: dict[object, int] = {}

    def keys(
        self, incarnation: IncarnationKey, ranges: Sequence[SharedRange], pages: NDArray[np.uint64]
    ) -> NDArray[np.uint64]:
        """Give the keys of a target's pages, ascending and each once.

        Args:
            incarnation: Whose they are.
            ranges: Those that others may map too.
            pages: Page numbers, ascending.
        """
        keys = pages | self._base(incarnation.target)
        for one in ranges:
            low, high = np.searchsorted(pages, np.array([one.start, one.end], np.uint64))
            if low < high and one.first + one.end - one.start < 1 << SPACE_BITS:
                base = self._base((incarnation.target.host_id, incarnation.target.boot_id, one.behind))
                keys[low:high] = (pages[low:high] - np.uint64(one.start) + np.uint64(one.first)) | base
        return distinct(keys) if ranges else keys

    def _base(self, space: object) -> np.uint64:
        number = self._numbers.setdefault(space, len(self._numbers))
        assert number < SPACES_MAX, number
        return np.uint64(number << SPACE_BITS)


@dataclass(frozen=True, slots=True)
class Member:
    """One target of a group: its rounds, oldest first, and the pages that others may map too.

    ``since_ns`` is when the last of its rounds that are not there ended; 0 where it was not tracked before the others.
    """

    incarnation: IncarnationKey
    kept: Sequence[KeptRounds]
    ranges: Sequence[SharedRange]
    since_ns: int = 0


def together(members: Sequence[Member], spaces: Spaces) -> WorkingSet | None:
    """Give the working sets of targets together; None where there is no time in which the rounds of all are there.

    Time is cut into ticks, and a round counts in the tick in which it ends. A round that began before a window may have
    pages from before it, and one that goes on after its end has pages from in it: the bounds allow for both, and
    not for clocks of hosts that differ.

    Args:
        members: At least one has rounds.
        spaces: Gives the keys.

    Raises:
        RecordDamaged: A round's sets are none.
        MessageTooLarge: Their newest rounds alone had too many pages, or they are in too many places.
    """
    readers = [_Reader(member, spaces) for member in members]
    # What a target wrote in rounds that are not there, windows of that time would lack.
    ticks = _ticks(readers, max(member.since_ns for member in members))
    if len(ticks) < 2:  # noqa: PLR2004 (a window has two ends)
        return None
    index = PageIndex()
    found = WorkingSet(ticks[0], starts_max=TICKS_MAX + 1)
    for reader in readers:
        reader.begin(ticks[0])
    early, late = _under_way(readers, ticks[0])
    for number, end in enumerate(ticks[1:], 1):
        parts = [part for reader in readers for part in reader.until(end)]
        keys = distinct(np.concatenate([_NONE, *(part.keys for part in parts)]))
        if max(index.row_count, row_count(keys)) > ROWS_MAX:
            message = f"the pages of {len(members)} targets are in too many places to be merged; ask for fewer together"
            raise MessageTooLarge(message)
        before = index.write(keys, stretch=number, round_count=1)
        still, late = _under_way(readers, end)
        found.add(
            Stretch(
                first_round=number,
                until_ns=end,
                written=before,
                doubtful_count=sum(part.doubtful_count for part in parts),
                vanished_count=sum(part.vanished_count for part in parts),
                early_count=early,
                late_count=late,
            )
        )
        early = still
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    keys: NDArray[np.uint64]
    doubtful_count: int
    vanished_count: int


class _Reader:
    """Goes through the rounds of one target."""

    def __init__(self, member: Member, spaces: Spaces) -> None:
        self._member = member
        self._spaces = spaces
        # A clock that was set back does not run backwards here.
        self.ends = list(accumulate((one.until_ns for one in member.kept), max))
        self._place = 0

    def newest(self, count: int) -> Sequence[KeptRounds]:
        """Give the newest rounds, so many at most."""
        return self._member.kept[-count:]

    def since_ns(self, place: int) -> int:
        """Give the time after which a round's pages were written."""
        return self.ends[place - 1] if place else min(self.ends[0], self._member.kept[0].since_ns)

    def begin(self, begin_ns: int) -> None:
        """Go on with the first round that ends after a time."""
        self._place = bisect_right(self.ends, begin_ns)

    def until(self, end_ns: int) -> Iterator[_Part]:
        """Give the rounds that end by then."""
        kept = self._member.kept
        while self._place < len(kept) and self.ends[self._place] <= end_ns:
            one = kept[self._place]
            self._place += 1
            pages = one.pages(self._member.incarnation)
            written = page_numbers(pages.written)
            yield _Part(
                keys=self._spaces.keys(self._member.incarnation, self._member.ranges, written),
                doubtful_count=len(written) if one.repeats else 0,
                vanished_count=0 if one.single else len(pages.vanished),
            )

    def under_way(self, time_ns: int) -> Block | None:
        """Give the rounds that began before a time, up to which they were read, and go on."""
        kept = self._member.kept
        going_on = self._place < len(kept) and self.since_ns(self._place) < time_ns
        return kept[self._place].block if going_on else None


def _under_way(readers: Sequence[_Reader], time_ns: int) -> tuple[int, int]:
    """Give how many pages the rounds that go on at a time wrote, at least as far as is known and at most."""
    blocks = [block for reader in readers if (block := reader.under_way(time_ns))]
    written = sum(block.written_page_count for block in blocks)
    return written, written + sum(block.vanished_page_count for block in blocks)


def distinct(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Give keys in ascending order, each once."""
    # Not np.unique: it hashes, which takes ten times as long.
    ordered = np.sort(keys)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if ordered.size else ordered


def _ticks(readers: Sequence[_Reader], since_ns: int) -> list[int]:
    """Cut the time of the newest rounds into ticks of the length of the slowest target's rounds.

    The last one ends where every target that goes on is known up to, and none begins before ``since_ns``.
    """
    with_rounds = [reader for reader in readers if reader.ends]
    count = max(1, min(TICKS_MAX, ROUNDS_MAX // len(with_rounds)))
    while (page_count := _page_count(with_rounds, count)) > PAGES_MAX:
        if count == 1:
            message = (
                f"{page_count} pages are in the newest rounds of {len(readers)} targets, and at most {PAGES_MAX} can "
                "be merged; ask for fewer targets together"
            )
            raise MessageTooLarge(message)
        count //= 2
    counts = [min(count, len(reader.ends)) for reader in with_rounds]
    ends = [reader.ends[-1] for reader in with_rounds]
    begins = [reader.since_ns(len(reader.ends) - some) for reader, some in zip(with_rounds, counts, strict=True)]
    length = max(1, *((end - begin) // some for begin, end, some in zip(begins, ends, counts, strict=True)))
    end = min(one for one in ends if one >= max(ends) - STILL_TICKS * length)
    begin = min(begins)
    count = max(1, min(count, (end - begin) // length))
    count = min(count, max(0, (end - since_ns) // length))
    return [end - length * before for before in range(count, -1, -1)]


def _page_count(readers: Sequence[_Reader], count: int) -> int:
    """Give how many pages the newest rounds have, so many of each target at most."""
    return sum(one.block.written_page_count for reader in readers for one in reader.newest(count))


_NONE: Final = np.empty(0, np.uint64)
