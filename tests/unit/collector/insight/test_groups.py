"""What several targets write together, against when each page was really written."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.support.histories import PAGES, Batch, batches, taken
from wetink_collector.errors import MessageTooLarge
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.insight import groups
from wetink_collector.insight.groups import Member, Spaces, distinct, together
from wetink_collector.insight.mapped import SharedRange
from wetink_collector.insight.working_set import WorkingSet
from wetink_collector.round_log import RoundPages

OBJECT = (5, 7, False)
ELSEWHERE = (5, 8, False)


def of(pid: int, host_id: str = "host-1") -> IncarnationKey:
    """Give an incarnation."""
    return IncarnationKey(TargetKey(host_id, "boot-1", pid, 100), 1)


def windows(members: Sequence[Member]) -> WorkingSet:
    """Give the working sets of targets whose rounds are all there."""
    found = together(members, Spaces())
    assert found
    return found


@dataclass(frozen=True)
class Write:
    """When a page was written, by its key."""

    time_ns: int
    key: object


def writes(pid: int, some: Sequence[Batch], random: Random, shared: range) -> list[Write]:
    """Say when in its round each page was written: at any time after the round before."""
    found = []
    before = some[0].times_ns[-1]
    for batch in some[1:]:
        for one, until_ns in zip(batch.rounds, batch.times_ns, strict=True):
            for page in one.written:
                key = ("shared", page) if page in shared else (pid, page)
                found.append(Write(random.randint(before + 1, until_ns), key))
            before = until_ns
    return found


@settings(max_examples=40)
@given(
    st.lists(batches(united=True, max_size=12), min_size=1, max_size=3),
    st.lists(st.integers(0, 3 * 10**9), min_size=3, max_size=3),
    st.integers(0, 1 << 30),
)
def test_every_window_has_the_truth_between_its_bounds(
    several: list[list[Batch]], delays: list[int], seed: int
) -> None:
    """Whenever in its round a page was written, and however the rounds of the targets lie to each other."""
    random = Random(seed)  # noqa: S311 (to be the same each time)
    shared = range(512)
    members, truth = [], []
    for pid, (some, delay) in enumerate(zip(several, delays, strict=False), 1):
        # What came again may be of before the first round that counts.
        moved = [Batch(batch.rounds, [time_ns + delay for time_ns in batch.times_ns]) for batch in some]
        history, _ = taken(moved)
        members.append(Member(of(pid), history.kept, [SharedRange(0, 512, OBJECT, 0)]))
        truth += writes(pid, moved, random, shared)
    found = windows(members)

    least, most = found._cells.sums(found._late_count)
    for begin_ns, low, high in zip(found._cells.begins_ns.tolist(), least.tolist(), most.tolist(), strict=True):
        true = len({one.key for one in truth if begin_ns < one.time_ns <= found._until_ns})
        assert low <= true <= high


def test_round_that_goes_on_at_the_end_of_a_window_may_be_in_it() -> None:
    """One target has a round a second, the other a long one: what that wrote was written before or after the end."""
    second = 10**9
    quick = [Batch([RoundPages(BitMap64([1]), BitMap64())], [10**18 + number * second]) for number in range(9)]
    ends = (0, 1, 9)
    slow = [Batch([RoundPages(BitMap64([5 + at]), BitMap64())], [10**18 + at * second]) for at in ends]
    members = [Member(of(pid), taken(some)[0].kept, []) for pid, some in ((1, quick), (2, slow))]

    least, most = windows(members).writable()
    # Page 1 of the one, and what the other wrote in its last round, which may be of after the window's end.
    assert least <= 1
    assert most == 2


def keys(spaces: Spaces, pid: int, ranges: Sequence[SharedRange], *pages: int, host_id: str = "host-1") -> list[int]:
    """Give the keys of some pages."""
    return list(spaces.keys(of(pid, host_id), ranges, np.array(pages, np.uint64)).tolist())


def test_rounds_after_a_clock_was_set_back_are_in_the_windows() -> None:
    """All of them, though they are said to have ended before others that came earlier."""
    times_ns = [number * 10**9 for number in (*range(1, 10), 3, 4, 5)]
    some = [
        Batch([RoundPages(BitMap64([page]), BitMap64())], [until_ns]) for page, until_ns in enumerate(times_ns, 10**6)
    ]
    history, _ = taken(some)

    assert windows([Member(of(1), history.kept, [])]).writable()[1] == 11


def test_pages_that_are_too_many_together_are_of_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the newest; where that is too much as well, or they are in too many places, it is told."""
    some = [Batch([RoundPages(BitMap64([number, 999]), BitMap64())], [number * 10**9]) for number in range(1, 10)]
    history, _ = taken(some)
    members = [Member(of(pid), history.kept, []) for pid in (1, 2)]

    assert windows(members).stretch == 8
    monkeypatch.setattr(groups, "PAGES_MAX", 8)
    assert windows(members).stretch == 2
    monkeypatch.setattr(groups, "PAGES_MAX", 3)
    with pytest.raises(MessageTooLarge, match="4 pages are in the newest rounds of 2 targets"):
        together(members, Spaces())
    monkeypatch.setattr(groups, "PAGES_MAX", 8)
    monkeypatch.setattr(groups, "ROWS_MAX", 1)
    with pytest.raises(MessageTooLarge, match="too many places"):
        together(members, Spaces())


def test_page_of_an_object_has_one_key_wherever_it_is_mapped() -> None:
    """By any process of its host, at any address; and twice by one process, too."""
    spaces = Spaces()
    here, there = [SharedRange(100, 200, OBJECT, 10)], [SharedRange(5000, 5200, OBJECT, 0)]

    assert keys(spaces, 1, here, 150) == keys(spaces, 2, there, 5060)
    assert len(keys(spaces, 1, [*here, *there], 150, 5060)) == 1


def test_other_pages_have_keys_of_their_own() -> None:
    """Private memory of two processes, another object, another host, and what lies beside a shared range."""
    spaces = Spaces()
    ranges = [SharedRange(100, 200, OBJECT, 0)]
    other = [SharedRange(100, 200, ELSEWHERE, 0)]
    found = [
        *keys(spaces, 1, ranges, 99, 100, 199, 200),
        *keys(spaces, 2, other, 99, 100, 199, 200),
        *keys(spaces, 1, ranges, 99, 100, 199, 200, host_id="host-2"),
    ]

    assert len(set(found)) == len(found)


@given(st.lists(st.sampled_from(PAGES)))
def test_distinct_keys(pages: list[int]) -> None:
    """Ascending, each once."""
    assert distinct(np.array(pages, np.uint64)).tolist() == sorted(set(pages))


def test_rounds_that_are_not_there_leave_their_time_out() -> None:
    """Also where nothing is left of it."""
    some = [Batch([RoundPages(BitMap64([number]), BitMap64())], [number * 10**9]) for number in range(1, 10)]
    history, _ = taken(some)
    whole = Member(of(1), history.kept, [])

    assert windows([whole, Member(of(2), history.kept[3:], [], since_ns=5 * 10**9)]).stretch == 4
    assert together([whole, Member(of(2), (), [], since_ns=9 * 10**9)], Spaces()) is None
