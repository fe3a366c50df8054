"""Where one cost comes to exceed another: curves through measured points, and the places where two of them cross.

No process is measured here: what is, comes from ``backends`` and ``first_writes``.
"""

import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

STEPS: Final = 400
"""Places at which two costs are compared, evenly by ratio, before the crossing between two of them is made exact."""


Cost: TypeAlias = Callable[[float], float]
"""Milliseconds of a round, by the number of pages that were written in it, or by the size of the target in MiB."""

RING: Final = "the ring"
RING_AND_WRITES: Final = "the ring, and what it adds to the writes"
MESSAGES_AND_WRITES: Final = "uffd_msg, and what it adds to the writes"


@dataclass(frozen=True, slots=True)
class Curve:
    """Straight lines through at least two points in ascending order, the first and last one prolonged."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> Self:
        """Make one of points in any order."""
        ordered = tuple(sorted(points))
        assert len(ordered) > 1, ordered
        return cls(ordered)

    def __call__(self, x: float) -> float:
        """Give the height at a place."""
        after = min(max(bisect.bisect_left(self.points, (x, 0.0)), 1), len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[after - 1 : after + 1]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def event_costs(stream: Mapping[float, float], *, ring_added_ns: float, messages_added_ns: float) -> Mapping[str, Cost]:
    """Give what a round from events alone costs by the pages written, for each way of counting.

    Args:
        stream: What the agent does in it, in milliseconds, by pages written: reading, decoding, arming again.
        ring_added_ns: What the ring of page faults adds to each first write, over one that the kernel resolves alone.
        messages_added_ns: What it adds that the write waits for the answer to a message, over the same.
    """
    agent = Curve.through({0.0: 0.0, **stream}.items())
    return {
        RING: agent,
        RING_AND_WRITES: lambda count: agent(count) + count * ring_added_ns / 1e6,
        MESSAGES_AND_WRITES: lambda count: agent(count) + count * messages_added_ns / 1e6,
    }


def crossing(lower: Cost, upper: Cost, low: float, high: float) -> float | None:
    """Give the first place from which on one cost, which began as the lower, exceeds the other.

    Returns:
        ``low`` where it exceeds it from the start; None where it never does.
    """
    if lower(low) >= upper(low):
        return low
    before = low
    for step in range(1, STEPS + 1):
        here = low * (high / low) ** (step / STEPS)
        if lower(here) >= upper(here):
            return _between(lower, upper, before, here)
        before = here
    return None


def _between(lower: Cost, upper: Cost, low: float, high: float) -> float:
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if lower(middle) >= upper(middle) else (middle, high)
    return high
