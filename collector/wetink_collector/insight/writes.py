"""What a history says of how its target writes, as predictions want it."""

from typing import Final

import numpy as np

from wetink_collector.insight.curve import Curve
from wetink_collector.insight.history import COUNTED_PAGES_MAX, History
from wetink_collector.insight.prediction import Hits, Writes

STRETCHES_MIN: Final = 4
"""So many stretches are needed before anything is predicted: of fewer, half of the windows may be one chance."""


def writes_of(history: History, page_size: int) -> Writes:
    """Give the curves of a history, with their percentiles, and how often pages are written.

    Args:
        history: Has windows.
        page_size: Bytes a page.
    """
    points = history.points()
    seconds = [point.window_ns / 1e9 for point in points]
    _, writable = history.writable()
    mean, p50, p95 = (
        Curve.measured(zip(seconds, pages, strict=True), working_set_pages=writable)
        for pages in (
            [point.most.mean for point in points],
            [float(point.most.p50) for point in points],
            [float(point.most.p95) for point in points],
        )
    )
    return Writes(
        populated_pages=_populated(history),
        page_size=page_size,
        mean=mean,
        p50=p50,
        p95=p95,
        shortest_seconds=seconds[0],
        history_seconds=history_seconds(history),
        hits=_hits(history),
        old_because=_left_out(history),
    )


def mean_writes_of(history: History, page_size: int) -> Writes:
    """Give the same without percentiles and hits, in a twentieth of the time: for many targets at once."""
    points = history.means()
    _, writable = history.writable()
    mean = Curve.measured([(window_ns / 1e9, pages) for window_ns, pages in points], working_set_pages=writable)
    return Writes(
        populated_pages=_populated(history),
        page_size=page_size,
        mean=mean,
        p50=mean,
        p95=mean,
        shortest_seconds=points[0][0] / 1e9,
        history_seconds=history_seconds(history),
        old_because=_left_out(history),
    )


def history_seconds(history: History) -> float:
    """Give how long a history is, as far as the clock that it is told by was not set back."""
    return max(0, history.last.last_time_ns - history.since_ns) / 1e9 if history.last else 0.0


def _populated(history: History) -> int:
    return history.last.populated_page_count if history.last else 0


def _left_out(history: History) -> str:
    """Say what is not in a history that may come again."""
    if not history.too_large_round:
        return ""
    return (
        f"round {history.too_large_round} had too many pages to be counted ({COUNTED_PAGES_MAX} are the most), "
        "and only what was written after it is known"
    )


def _hits(history: History) -> Hits:
    """Count pages by the rounds that they were written in; nothing where that is known only within bounds."""
    count = history.stretch_count
    seconds = history_seconds(history)
    if not history.exact or seconds <= 0:
        return Hits()
    rounds, pages = np.unique(history.written().rounds_least, return_counts=True)
    return Hits(dict(zip(rounds.tolist(), pages.tolist(), strict=True)), count, seconds / count)
