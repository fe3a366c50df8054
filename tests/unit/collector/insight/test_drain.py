"""Plans that empty a host, against enumeration."""

from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetink_collector.insight.drain import (
    EXACT_MAX,
    Job,
    Schedule,
    all_at_once,
    lane_counts,
    one_by_one,
    plan_drain,
)

LANES_TRIED = (1, 2, 3, 5)


@st.composite
def job(draw: st.DrawFn, number: int) -> Job:
    """Give a migration that takes longer in a lane than alone, and may not converge in narrow ones."""
    size, fixed = draw(st.floats(0.1, 50)), draw(st.floats(0, 20))
    narrowest = draw(st.sampled_from([1, 2, 3, 5]))
    return Job(f"job{number}", {lanes: fixed + size * lanes for lanes in LANES_TRIED if lanes <= narrowest})


def jobs(count_max: int) -> st.SearchStrategy[list[Job]]:
    """Give some migrations."""
    return st.integers(0, count_max).flatmap(lambda count: st.tuples(*(job(n) for n in range(count)))).map(list)


def every_plan(some: Sequence[Job], lanes: int) -> Iterator[float]:
    """Give how long each plan takes: every job in any lane, or (-1) alone after all lanes are done."""
    for places in product(range(-1, lanes), repeat=len(some)):
        if any(place >= 0 and lanes not in one.seconds_of_lanes for one, place in zip(some, places, strict=True)):
            continue
        loads = [0.0] * lanes
        alone = 0.0
        for one, place in zip(some, places, strict=True):
            if place < 0:
                alone += one.seconds_of_lanes[1]
            else:
                loads[place] += one.seconds_of_lanes[lanes]
        yield max(loads) + alone


@settings(deadline=None, max_examples=60)
@given(jobs(5))
def test_plan_for_few_is_the_best_there_is(some: list[Job]) -> None:
    """No assignment of migrations to lanes, with whatever number of lanes, is shorter."""
    found = plan_drain(some, (1, 2, 3))

    assert found.total_seconds == pytest.approx(min(min(every_plan(some, lanes)) for lanes in (1, 2, 3)))


@settings(deadline=None)
@given(jobs(40), st.integers(0, 8))
def test_plan_is_never_worse_than_the_naive_ones_and_keeps_to_the_link(some: list[Job], parallel_max: int) -> None:
    """Nor does it leave anyone out, move anyone twice, or run more at once than it may."""
    counts = [lanes for lanes in LANES_TRIED if lanes <= (parallel_max or len(some))]

    found = plan_drain(some, counts)

    assert sorted(one.name for one in found.placed) == sorted(one.name for one in some)
    assert found.total_seconds <= one_by_one(some).total_seconds
    for lanes in counts:
        naive = all_at_once(some, lanes)
        assert naive is None or found.total_seconds <= naive.total_seconds
    keeps_to_the_link(found)
    for one in found.placed:
        (job,) = [job for job in some if job.name == one.name]
        assert one.end_seconds - one.start_seconds == pytest.approx(job.seconds_of_lanes[one.lanes])


def keeps_to_the_link(schedule: Schedule) -> None:
    """Assert that the parts of the link that are in use never come to more than it."""
    for begun in schedule.placed:
        time = begun.start_seconds
        used = sum(1 / one.lanes for one in schedule.placed if one.start_seconds <= time < one.end_seconds)
        assert used <= 1 + 1e-9


def test_fixed_costs_make_lanes_pay() -> None:
    """Ten targets of which each takes a second of link and ten of waiting: all at once."""
    some = [Job(f"job{number}", {lanes: 10.0 + lanes for lanes in range(1, 11)}) for number in range(10)]

    found = plan_drain(some, range(1, 11))

    assert one_by_one(some).total_seconds == 110
    assert found.total_seconds == 20
    assert found.lanes == 10


def test_who_needs_the_whole_link_has_it_after_the_others() -> None:
    """One does not converge over half of the link; the others wait for most of their time."""
    heavy = Job("heavy", {1: 30.0})
    light = [Job(f"light{number}", {1: 6.0, 2: 7.0}) for number in range(2)]

    found = plan_drain([heavy, *light], (1, 2))

    assert found.total_seconds == 37
    assert [(one.name, one.lanes) for one in found.placed] == [("light0", 2), ("light1", 2), ("heavy", 1)]


def test_numbers_of_lanes_that_are_tried() -> None:
    """Up to as many as there are targets, or as may run at once."""
    assert lane_counts(0, 0) == []
    assert lane_counts(1, 0) == [1]
    assert lane_counts(6, 0) == [1, 2, 3, 4, 5, 6]
    assert lane_counts(50, 0)[-3:] == [32, 48, 50]
    assert lane_counts(50, 4) == [1, 2, 3, 4]
    assert EXACT_MAX >= 5


def test_the_order_of_names_is_taken_where_it_is_the_better_one() -> None:
    """The longest first leaves 3 + 2 + 2 against 3 + 2 here; in the order of their names both lanes are full."""
    sizes = (100, 100, 50, 50, 3, 2, 2, 3, 2)
    some = [Job(f"job{number}", {1: 1000.0, 2: float(size)}) for number, size in enumerate(sizes)]

    assert len(some) > EXACT_MAX
    assert plan_drain(some, (1, 2)).total_seconds == 156
