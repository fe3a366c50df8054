"""W(T): how many unique pages a target writes in a window of T seconds. Pure: no store, no clock.

A dirty *rate* is no number: the same target writes 25 MiB/s seen for one second and 5 MiB/s seen for five, because it
writes the same pages again. Every prediction here is made from such a curve and from nothing else.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

HALVINGS: Final = 8
"""So many times the shortest measured time is halved on the way to 0; before that, the curve is a line."""

SECOND_RATIO: Final = 1.5
"""A point of so much longer a time than the first says how the curve begins."""

Point = tuple[float, float]
"""Seconds, and the unique pages written in a window of so many."""

GRID_RATIO: Final = math.sqrt(2)
"""From one knot to the next of a tabulated curve: with it the table is within 1 % of its formula."""

GRID_FRACTION: Final = 64
"""A table begins at a 64th of the shortest time in which a page is written again: up to there the curve is a line."""

GRID_END: Final = 8
"""It ends after so many of the longest of these times: 1 - e^-8 is 99.97 % of what it tends to."""

GRID_KNOTS_MAX: Final = 256
"""Bound on the knots of a table: with the ratio above it covers 38 orders of magnitude."""


@dataclass(frozen=True, slots=True)
class Curve:
    """An immutable W(T): straight between knots, from (0, 0), never falling, flat after the last knot.

    ``pages[-1]`` is the most the curve ever says: the writable working set, as far as it is known.
    """

    seconds: tuple[float, ...]
    pages: tuple[float, ...]

    def __post_init__(self) -> None:
        """Assert what makes it a curve; the constructors see to it."""
        assert len(self.seconds) == len(self.pages) >= 1, self
        assert (self.seconds[0], self.pages[0]) == (0, 0), self
        assert all(earlier < later for earlier, later in pairwise(self.seconds)), self
        assert all(fewer <= more for fewer, more in pairwise(self.pages)), self
        assert math.isfinite(self.seconds[-1]), self
        assert math.isfinite(self.pages[-1]), self

    @classmethod
    def measured(cls, points: Iterable[Point], *, working_set_pages: float | None = None) -> Self:
        """Give the curve through measured points.

        Between two points where the measured ones bend down, as means over all starting points do, the truth lies
        above the straight line and below the continued slopes of both neighbours: the curve takes the middle. Before
        the first point it goes on as a power of T, as from there to twice that time: of what writes some pages more
        often than others that is too much rather than too little. After the last one it goes on with the last slope.

        Args:
            points: At least one, in any order, at times above 0. A later one that is lower than an earlier one is
                raised to it, and of two at the same time the higher counts.
            working_set_pages: What the curve does not go over, if more is known than the points: the pages written in
                all the time that is known. None means the highest point.
        """
        rising = _rising(points)
        assert len(rising) > 1, "a curve takes at least one point"
        limit = max(rising[-1][1], working_set_pages if working_set_pages is not None else 0.0)
        return cls._of(_begun(_bounded(_rounded(rising), limit), rising[1:]))

    @classmethod
    def saturating(cls, *, pages_a_second: float, working_set_pages: float) -> Self:
        """Give min(r T, w): a writer that goes round in its working set, each page once before any twice."""
        if not pages_a_second or not working_set_pages:
            return cls.nothing()
        return cls._of([(0.0, 0.0), (working_set_pages / pages_a_second, working_set_pages)])

    @classmethod
    def poisson(cls, page_count_of_rate: Mapping[float, float]) -> Self:
        """Give sum n (1 - e^(-r T)): pages that are written at random, some more often than others.

        Args:
            page_count_of_rate: How many pages are written how often, in writes of one page a second. Infinite means
                that they are always dirty again.
        """
        always = sum(count for rate, count in page_count_of_rate.items() if math.isinf(rate) and count > 0)
        random = [(rate, count) for rate, count in page_count_of_rate.items() if 0 < rate < math.inf and count > 0]
        knots: list[Point] = []
        if random:
            rates = [rate for rate, _ in random]
            grid = _grid(max(_AT_ONCE_SECONDS, 1 / max(rates) / GRID_FRACTION), GRID_END / min(rates))
            knots += [(time, -sum(count * math.expm1(-rate * time) for rate, count in random)) for time in grid]
            knots.append((2 * knots[-1][0], sum(count for _, count in random)))
        knots = _rounded(_rising(knots))
        if always:
            # Put below the others when those are rounded: what comes at once says nothing of how they bend.
            later = [(time, always + pages) for time, pages in knots if time > _AT_ONCE_SECONDS]
            knots = [knots[0], (_AT_ONCE_SECONDS, always + cls._of(knots).at(_AT_ONCE_SECONDS)), *later]
        return cls._of(knots)

    @classmethod
    def of_hits(cls, page_count_of_hits: Mapping[int, int], *, round_count: int, round_seconds: float) -> Self:
        """Give the Poisson curve of pages by how many of some equally long rounds they were written in.

        A page that was written in k of n rounds of h seconds is written at -ln(1 - k/n)/h; one that was written in
        every round may be written at any rate above, and counts as always dirty.

        Args:
            page_count_of_hits: How many pages were written in how many rounds; 0 rounds may be there or not.
            round_count: n, at least 1.
            round_seconds: h, above 0.
        """
        assert round_count >= 1, round_count
        assert round_seconds > 0, round_seconds
        counts: dict[float, float] = {}
        for hits, count in page_count_of_hits.items():
            rate = math.inf if hits >= round_count else -math.log1p(-hits / round_count) / round_seconds
            counts[rate] = counts.get(rate, 0) + count
        return cls.poisson(counts)

    @classmethod
    def nothing(cls) -> Self:
        """Give the curve of a target that writes nothing."""
        return cls((0.0,), (0.0,))

    @property
    def working_set_pages(self) -> float:
        """The most pages that a window of any length has."""
        return self.pages[-1]

    def at(self, seconds: float) -> float:
        """Give the pages written in a window of a length; none where it is not above 0."""
        if seconds <= 0:
            return 0.0
        place = bisect_right(self.seconds, seconds)
        if place == len(self.seconds):
            return self.pages[-1]
        before, after = self.seconds[place - 1], self.seconds[place]
        low, high = self.pages[place - 1], self.pages[place]
        return low + (high - low) * ((seconds - before) / (after - before))

    def pages_a_second(self, seconds: float) -> float:
        """Give the mean rate over a window of a length, above 0."""
        assert seconds > 0, seconds
        return self.at(seconds) / seconds

    @classmethod
    def _of(cls, knots: Sequence[Point]) -> Self:
        return cls(tuple(time for time, _ in knots), tuple(pages for _, pages in knots))


_AT_ONCE_SECONDS: Final = 1e-6
"""After so short a time, shorter than any copy, pages that are always dirty count in full: W(0) is 0."""


def _rising(points: Iterable[Point]) -> list[Point]:
    """Put points in order, from (0, 0), one for each time, none lower than the one before."""
    rising: list[Point] = [(0.0, 0.0)]
    for time, pages in sorted(points):
        assert time > 0, time
        highest = max(pages, rising[-1][1])
        if time == rising[-1][0]:
            rising[-1] = (time, highest)
        else:
            rising.append((time, highest))
    return rising


def _rounded(points: Sequence[Point]) -> list[Point]:
    """Add a knot between each two points that a bend lies between, in the middle of what concavity allows.

    Below a concave curve lies its chord; above it lie the chords of both neighbours, continued. The two continued
    chords meet at the knot's time, and the mean of both bounds is concave again.
    """
    knots: list[Point] = [points[0]]
    slopes = [_slope(one, other) for one, other in pairwise(points)]
    for place, (one, other) in enumerate(pairwise(points)):
        if 0 < place < len(slopes) - 1 and slopes[place - 1] > slopes[place] > slopes[place + 1]:
            before, after = slopes[place - 1], slopes[place + 1]
            width = other[0] - one[0]
            offset = (other[1] - one[1] - after * width) / (before - after)
            highest, lowest = one[1] + before * offset, one[1] + slopes[place] * offset
            knot = (one[0] + offset, (highest + lowest) / 2)
            # Where the slopes differ by no more than rounding, the knot would fall on a point.
            if one[0] < knot[0] < other[0] and one[1] <= knot[1] <= other[1]:
                knots.append(knot)
        knots.append(other)
    return knots


def _begun(knots: Sequence[Point], points: Sequence[Point]) -> list[Point]:
    """Add knots before the first of some measured points, on the power of T that leads from it to twice its time."""
    first_time, first_pages = points[0]
    second = next((point for point in points if point[0] >= SECOND_RATIO * first_time), None)
    if second is None or first_pages <= 0:
        return list(knots)
    exponent = min(1.0, math.log(second[1] / first_pages) / math.log(second[0] / first_time))
    earlier = [
        (first_time * 2.0**-halving, first_pages * 2.0 ** (-exponent * halving)) for halving in range(HALVINGS, 0, -1)
    ]
    return [knots[0], *earlier, *knots[1:]]


def _bounded(knots: list[Point], limit: float) -> list[Point]:
    """Continue with the last slope to a limit."""
    slope = _slope(knots[-2], knots[-1])
    if slope > 0 and knots[-1][1] < limit:
        reached = knots[-1][0] + (limit - knots[-1][1]) / slope
        if knots[-1][0] < reached < math.inf:
            knots.append((reached, limit))
    return knots


def _grid(first: float, last: float) -> Iterator[float]:
    """Give times from one to at least another, each so many times the one before that they are not too many."""
    ratio = max(GRID_RATIO, (last / first) ** (1 / (GRID_KNOTS_MAX - 4)))
    time = first
    while time < last * ratio:
        yield time
        time *= ratio


def _slope(one: Point, other: Point) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])
