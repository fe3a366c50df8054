import pytest

from tests.bench.crossing import MESSAGES_AND_WRITES, RING, RING_AND_WRITES, Curve, crossing, event_costs


def test_a_curve_goes_straight_between_points_and_beyond_them() -> None:
    """What lies beyond the last point is what the last two promise."""
    curve = Curve.through([(10, 4), (0, 0), (20, 5)])

    assert [curve(x) for x in (0, 5, 10, 15, 20, 40)] == pytest.approx([0, 2, 4, 4.5, 5, 7])


def test_costs_cross_where_they_are_equal() -> None:
    """A cost in proportion to what is written exceeds one that does not depend on it."""
    assert crossing(lambda x: x / 100, lambda _: 5, 1, 1e6) == pytest.approx(500, rel=1e-4)


def test_only_the_first_crossing_counts() -> None:
    """A cost that falls again later is dearer from the first place on, and cheaper again beyond."""
    assert crossing(Curve.through([(0, 0), (100, 10), (200, 0)]), lambda _: 5, 1, 200) == pytest.approx(50, rel=1e-4)


def test_a_cost_that_is_higher_from_the_start_crosses_there() -> None:
    """There is no place before the first."""
    assert crossing(lambda _: 6, lambda _: 5, 1, 100) == 1


def test_costs_that_never_cross() -> None:
    """It is not made up."""
    assert crossing(lambda _: 4, lambda _: 5, 1, 100) is None


def test_what_is_added_to_writes_counts_for_each() -> None:
    """1,000 pages at 500 ns more are half a millisecond more."""
    costs = event_costs({1000.0: 2.0}, ring_added_ns=500, messages_added_ns=10_000)

    assert [costs[way](1000) for way in (RING, RING_AND_WRITES, MESSAGES_AND_WRITES)] == pytest.approx([2, 2.5, 12])
