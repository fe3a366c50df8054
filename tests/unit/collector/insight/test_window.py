"""When to migrate: periods, and quiet stretches to come."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetink_collector.insight.window import Period, Series, Stretch, Window, find_period, next_window, series_of


def stretches(values: list[float], seconds: float = 1.0) -> list[Stretch]:
    """Give rounds of equal length that wrote so many pages each."""
    return [Stretch(number * seconds, (number + 1) * seconds, round(pages)) for number, pages in enumerate(values)]


def square(period: int, quiet: int, count: int, *, noise: float = 0.0, seed: int = 1) -> list[float]:
    """Give pages a round of a target that writes 1000, and 100 in the last rounds of each cycle."""
    made = random.Random(seed)  # noqa: S311 (test data)
    return [
        (100 if number % period >= period - quiet else 1000) * (1 + noise * made.uniform(-1, 1))
        for number in range(count)
    ]


@given(st.integers(6, 40), st.integers(5, 12), st.integers(0, 100))
def test_period_of_a_cycle_is_found_under_noise(period: int, cycles: int, seed: int) -> None:
    """A third of each cycle is quiet, and every round is off by up to a fifth."""
    values = square(period, period // 3, period * cycles, noise=0.2, seed=seed)

    found = find_period(series_of(stretches(values)))

    assert found is not None
    assert found.seconds == pytest.approx(period, abs=1)
    assert found.strength >= 0.4


@given(st.integers(0, 1000))
def test_no_period_is_found_in_noise(seed: int) -> None:
    """What is written at random, or steadily, has none."""
    made = random.Random(seed)  # noqa: S311 (test data)

    noise = [made.uniform(0, 2000) for _ in range(300)]

    assert find_period(series_of(stretches(noise))) is None
    assert find_period(series_of(stretches([1000.0] * 300))) is None


def test_trend_is_no_period() -> None:
    """A target that writes more and more does not come back to where it was."""
    assert find_period(series_of(stretches([float(number) for number in range(300)]))) is None


def test_two_cycles_are_too_few() -> None:
    """What came twice may come by chance."""
    assert find_period(series_of(stretches(square(50, 20, 100)))) is None
    assert find_period(series_of(stretches(square(50, 20, 160)))) is not None


@given(
    st.lists(st.tuples(st.floats(0.05, 3), st.integers(0, 5000)), min_size=3, max_size=60),
)
def test_bins_hold_as_many_pages_as_the_rounds(rounds: list[tuple[float, int]]) -> None:
    """Rounds of any lengths are spread, and none is lost but what is beyond the last whole bin."""
    time, made = 5.0, []
    for seconds, pages in rounds:
        made.append(Stretch(time, time + seconds, pages))
        time += seconds

    series = series_of(made)

    kept = float(series.pages_a_second.sum() * series.bin_seconds)
    total = sum(pages for _, pages in rounds)
    most = max(pages / seconds for seconds, pages in rounds)
    assert kept <= total * (1 + 1e-9) + 1e-6
    assert total - kept <= most * series.bin_seconds + 1e-6


def test_next_window_is_the_next_quiet_stretch() -> None:
    """Cycles of 20 s with 6 quiet ones at the end, seen until second 107: the next is from 114 to 120."""
    series = series_of(stretches(square(20, 6, 107)))
    period = find_period(series)
    assert period is not None

    found = next_window(series, period, from_seconds=107, needed_seconds=5, horizon_seconds=3600)

    assert found is not None
    assert found.start_seconds == pytest.approx(114, abs=0.6)
    assert found.end_seconds == pytest.approx(120, abs=0.6)
    assert found.pages_a_second == pytest.approx(100, rel=0.2)


def test_window_that_runs_is_taken_for_what_is_left_of_it() -> None:
    """At second 115 there are 5 s left of it; who needs 5.5 s waits for the next."""
    series = series_of(stretches(square(20, 6, 115)))
    period = Period(20.0, 1.0)

    now = next_window(series, period, from_seconds=115, needed_seconds=4.5, horizon_seconds=3600)
    later = next_window(series, period, from_seconds=115, needed_seconds=5.5, horizon_seconds=3600)

    assert now is not None
    assert (now.start_seconds, now.end_seconds) == (115, 120)
    assert later is not None
    assert (later.start_seconds, later.end_seconds) == (134, 140)


def test_no_window_is_found_where_none_is_long_enough_or_near_enough() -> None:
    """Six quiet seconds are not seven, and a cycle of 20 s has nothing within 3 s of its beginning."""
    series = series_of(stretches(square(20, 6, 100)))
    period = Period(20.0, 1.0)

    assert next_window(series, period, from_seconds=100, needed_seconds=7, horizon_seconds=86400) is None
    assert next_window(series, period, from_seconds=100, needed_seconds=3, horizon_seconds=3) is None
    steady = Series(0, 1, np.full(100, 500.0))
    assert next_window(steady, period, from_seconds=100, needed_seconds=3, horizon_seconds=3600) is None


@given(st.integers(8, 30), st.integers(2, 5), st.floats(0, 60), st.floats(0.5, 8), st.floats(1, 500))
def test_a_window_is_what_it_says(period: int, quiet: int, later: float, needed: float, horizon: float) -> None:
    """It is long enough, in time, not in the past, and lies in what was quiet in the cycles before."""
    count = period * 6
    series = series_of(stretches(square(period, quiet, count)))
    begin = count + later

    found = next_window(
        series, Period(float(period), 1.0), from_seconds=begin, needed_seconds=needed, horizon_seconds=horizon
    )

    if found is None:
        assert needed > quiet - 1 or horizon < 2 * period
        return
    assert isinstance(found, Window)
    assert begin <= found.start_seconds <= begin + horizon
    assert found.end_seconds - found.start_seconds >= needed - 1e-9
    for time in np.linspace(found.start_seconds + 0.01, found.end_seconds - 0.01, 20):
        assert time % period >= period - quiet
