"""When to migrate: the period of a series of dirty pages, and the next quiet stretch. Pure: no store, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS_MAX: Final = 4096
"""Bound on the bins of a series: an autocorrelation of so many takes under a millisecond."""

CYCLES_MIN: Final = 3
"""A cycle is one when it was seen three times: what came twice may come by chance."""

STRENGTH_MIN: Final = 0.4
"""The least autocorrelation at a period. Of noise of a hundred bins, 0.2 is common and 0.35 hardly ever seen."""

QUIET_SHARE: Final = 0.5
"""A time is quiet where at most half of the mean is written."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole rounds: pages written from one time to another, in seconds."""

    start_seconds: float
    end_seconds: float
    pages: int


@dataclass(frozen=True, slots=True)
class Period:
    """After how many seconds a target writes alike, and how much alike: the autocorrelation."""

    seconds: float
    strength: float


@dataclass(frozen=True, slots=True)
class Window:
    """A quiet stretch to come, on the clock of the series."""

    start_seconds: float
    end_seconds: float
    pages_a_second: float


@dataclass(frozen=True, slots=True)
class Series:
    """Pages a second in bins of equal length; the first begins at ``start_seconds``."""

    start_seconds: float
    bin_seconds: float
    pages_a_second: NDArray[np.float64]

    @property
    def end_seconds(self) -> float:
        """Where the last bin ends."""
        return self.start_seconds + self.bin_seconds * self.pages_a_second.size


def series_of(stretches: Sequence[Stretch]) -> Series:
    """Spread stretches over bins as long as the median stretch.

    Args:
        stretches: Adjacent, oldest first, at least one of which takes some time.
    """
    lengths = np.array([stretch.end_seconds - stretch.start_seconds for stretch in stretches])
    start, end = stretches[0].start_seconds, max(stretch.end_seconds for stretch in stretches)
    bin_seconds = max(float(np.median(lengths[lengths > 0])), (end - start) / BINS_MAX)
    edges = start + bin_seconds * np.arange(int((end - start) / bin_seconds + 0.5) + 1)
    # A clock that was set back in between does not run backwards here.
    times = np.maximum.accumulate(np.array([start, *(stretch.end_seconds for stretch in stretches)]))
    pages = np.concatenate(([0.0], np.cumsum([stretch.pages for stretch in stretches])))
    return Series(start, bin_seconds, np.diff(np.interp(edges, times, pages)) / bin_seconds)


def find_period(series: Series) -> Period | None:
    """Find the shortest period after which a target writes alike; None where it does not.

    Source: the autocorrelation about the mean, each distance by as many products as it has.
    """
    values = series.pages_a_second - series.pages_a_second.mean()
    count = values.size
    variance = float(values @ values) / count if count else 0.0
    longest = count // CYCLES_MIN
    # A writer whose rounds differ by a hundredth has no cycle that anybody could use.
    if longest < CYCLES_MIN or variance <= (0.01 * float(series.pages_a_second.mean())) ** 2:
        return None
    spectrum = np.fft.rfft(values, 2 * count)
    products = np.fft.irfft(spectrum * np.conj(spectrum), 2 * count)[: longest + 2]
    correlation = products / (count - np.arange(longest + 2)) / variance
    peaks = [
        lag
        for lag in range(2, longest + 1)
        if correlation[lag] >= STRENGTH_MIN
        and correlation[lag - 1] <= correlation[lag] >= correlation[lag + 1]
        # Before it the series must have been unlike itself: else it is only slow.
        and correlation[1 : lag + 1].min() < correlation[lag] / 2
    ]
    if not peaks:
        return None
    strongest = max(float(correlation[lag]) for lag in peaks)
    lag = next(lag for lag in peaks if correlation[lag] >= 0.8 * strongest)
    return Period(_vertex(correlation, lag) * series.bin_seconds, min(1.0, float(correlation[lag])))


def next_window(
    series: Series, period: Period, *, from_seconds: float, needed_seconds: float, horizon_seconds: float
) -> Window | None:
    """Find the first quiet stretch that is long enough, as the cycles so far tell; None where there is none.

    Args:
        series: The past.
        period: Its period.
        from_seconds: Nothing before this counts.
        needed_seconds: How long it must be.
        horizon_seconds: It must begin before ``from_seconds`` and so much.
    """
    expected = _folded(series, period)
    quiet = expected <= QUIET_SHARE * expected.mean()
    if not quiet.any() or quiet.all():
        return None
    step = period.seconds / expected.size
    # From the bin that runs at from_seconds on, one cycle more than the horizon has.
    first = int((from_seconds - series.start_seconds) / step)
    count = int(min(horizon_seconds, CYCLES_AHEAD_MAX * period.seconds) / step) + 2 * expected.size
    run: list[int] = []
    for number in range(first, first + count + 1):
        if number < first + count and quiet[number % expected.size]:
            run.append(number)
            continue
        if run:
            start = max(from_seconds, series.start_seconds + run[0] * step)
            end = series.start_seconds + (run[-1] + 1) * step
            if start > from_seconds + horizon_seconds:
                return None
            if end - start >= needed_seconds:
                mean = float(np.mean([expected[one % expected.size] for one in run]))
                return Window(start, end, mean)
        run = []
    return None


CYCLES_AHEAD_MAX: Final = 2
"""Every cycle is expected to be like the others: what two of them do not have, no further one has."""


def _folded(series: Series, period: Period) -> NDArray[np.float64]:
    """Give what is written at each phase of a cycle: the mean over all cycles seen."""
    phases = max(1, round(period.seconds / series.bin_seconds))
    middles = (np.arange(series.pages_a_second.size) + 0.5) * series.bin_seconds
    phase = np.minimum((middles % period.seconds) / period.seconds * phases, phases - 1).astype(np.intp)
    sums = np.bincount(phase, weights=series.pages_a_second, minlength=phases)
    counts = np.bincount(phase, minlength=phases)
    overall = float(series.pages_a_second.mean())
    return np.where(counts > 0, sums / np.maximum(counts, 1), overall)


def _vertex(correlation: NDArray[np.float64], lag: int) -> float:
    """Give where the parabola through a peak and its neighbours is highest: periods are no whole number of bins."""
    before, peak, after = (float(correlation[place]) for place in (lag - 1, lag, lag + 1))
    bend = before - 2 * peak + after
    return lag if bend >= 0 else lag + (before - after) / (2 * bend)
