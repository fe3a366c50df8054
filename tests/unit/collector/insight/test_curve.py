"""W(T) as everything that is predicted is made from."""

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wetink_collector.insight.curve import GRID_KNOTS_MAX, Curve

times = st.floats(0.001, 1e6)
counts = st.floats(0, 1e9)
points = st.lists(st.tuples(times, counts), min_size=1, max_size=12)
rates = st.dictionaries(st.floats(1e-4, 1e4) | st.just(math.inf), st.integers(1, 10**6), min_size=1, max_size=6)


@given(points, counts | st.none(), st.lists(st.floats(-1, 1e7), min_size=2, max_size=20))
def test_measured_curve_keeps_its_bounds(
    given_points: list[tuple[float, float]], working_set: float | None, windows: list[float]
) -> None:
    """It is 0 at 0, never falls, is never below a point it goes through, and never above the working set."""
    curve = Curve.measured(given_points, working_set_pages=working_set)

    assert curve.at(0) == curve.at(-1) == 0
    values = [curve.at(window) for window in sorted(windows)]
    assert all(fewer <= more for fewer, more in pairwise(values))
    assert all(curve.at(time) >= pages * (1 - 1e-9) for time, pages in given_points)
    most = max([pages for _, pages in given_points] + ([working_set] if working_set is not None else []))
    assert curve.working_set_pages <= most
    assert values[-1] <= most


@given(st.floats(0.01, 1e6), st.floats(1, 1e7), st.lists(st.floats(0, 1e6), min_size=1))
def test_saturating_curve_is_its_formula(rate: float, working_set: float, windows: list[float]) -> None:
    """A cyclic writer writes min(r T, w) unique pages."""
    curve = Curve.saturating(pages_a_second=rate, working_set_pages=working_set)

    for window in windows:
        assert curve.at(window) == pytest.approx(min(rate * window, working_set), rel=1e-9, abs=1e-6)


@given(rates, st.lists(st.floats(1e-5, 1e6), min_size=1, max_size=20))
@example({math.inf: 1, 0.0001: 121}, [1.0])
@example({math.inf: 1, 0.0001: 10_000}, [1e-5, 1.0, 10.0])
@example({math.inf: 1, 15.0: 1_000_000}, [1e-5, 5e-5])
def test_poisson_curve_is_its_formula(page_count_of_rate: dict[float, float], windows: list[float]) -> None:
    """The table is within 1 % of the sum it stands for, at whatever time it is read."""
    curve = Curve.poisson(page_count_of_rate)

    assert len(curve.seconds) <= 2 * GRID_KNOTS_MAX
    for window in windows:
        exact = sum(-count * math.expm1(-rate * window) for rate, count in page_count_of_rate.items())
        assert curve.at(window) == pytest.approx(exact, rel=1e-2)
    assert curve.working_set_pages == pytest.approx(sum(page_count_of_rate.values()))


@given(st.floats(0.1, 10), st.floats(1e3, 1e5), st.floats(1e3, 1e6))
def test_points_of_a_concave_curve_give_it_back_between_them(step: float, rate: float, working_set: float) -> None:
    """Through W at 1, 2, 4, 8, ... rounds goes a curve that lies nearer to the truth than the straight lines do."""
    exact = Curve.poisson({rate / working_set: working_set})
    grid = [step * 2**power for power in range(10)]

    curve = Curve.measured([(time, exact.at(time)) for time in grid])

    for time in grid[1:-2]:
        between = 1.4 * time
        assert curve.at(between) == pytest.approx(exact.at(between), rel=0.03)


def test_knee_between_two_points_is_met_halfway() -> None:
    """A cyclic writer whose working set is reached between two points is not under-said by the whole chord."""
    curve = Curve.measured([(1, 5000), (2, 10000), (4, 15000), (8, 15000)])

    assert curve.at(1.5) == 7500
    assert curve.at(3) == (12500 + 15000) / 2
    assert curve.at(5) == 15000


def test_curve_goes_on_with_its_last_slope_to_the_working_set() -> None:
    """What is beyond the longest window is not said to be nothing."""
    curve = Curve.measured([(1, 100), (2, 150)], working_set_pages=250)

    assert curve.at(3) == 200
    assert curve.at(4) == curve.at(1e9) == 250


def test_hits_of_rounds_give_the_rates_that_made_them() -> None:
    """Pages written in k of n rounds of h seconds have the rate -ln(1 - k/n)/h; those in all n are always dirty."""
    curve = Curve.of_hits({0: 500, 5: 100, 10: 7}, round_count=10, round_seconds=0.5)

    rate = -math.log(1 - 5 / 10) / 0.5
    for window in (0.01, 0.3, 2, 10):
        assert curve.at(window) == pytest.approx(7 + 100 * (1 - math.exp(-rate * window)), rel=5e-3)


@given(rates, st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_longer_window_has_no_more_than_its_parts(
    page_count_of_rate: dict[float, float], one: float, other: float
) -> None:
    """W(s + t) <= W(s) + W(t): the union of two windows holds no page that neither does."""
    curve = Curve.poisson(page_count_of_rate)

    assert curve.at(one + other) <= (curve.at(one) + curve.at(other)) * (1 + 1e-3)


def test_nothing_is_written_by_who_writes_nothing() -> None:
    """All ways to say that nothing is written give the same curve."""
    assert Curve.nothing().at(1e9) == 0
    assert Curve.saturating(pages_a_second=0, working_set_pages=100) == Curve.nothing()
    assert Curve.saturating(pages_a_second=100, working_set_pages=0) == Curve.nothing()
    assert Curve.poisson({}) == Curve.poisson({0.0: 100}) == Curve.nothing()
