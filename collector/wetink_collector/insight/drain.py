"""In which order, and how many at once, to move targets over one link in the shortest time. Pure: no store, no clock.

A plan has two stages: some migrations in lanes, each with an equal part of the link, then the others one by one over
the whole of it. Alone, a migration sends the fewest bytes; in lanes, one sends while others only wait (for a harvest, a
freeze, a restore). What pays depends on the targets, so every number of lanes is tried.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Final

EXACT_MAX: Final = 7
"""So many migrations are placed in the best way there is; of more, the number of ways is too large."""

REFINED_MAX: Final = 32
"""So many of the longest migrations are tried in the other stage: each costs a plan."""

LANES: Final = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of lanes that are tried, besides all at once."""


@dataclass(frozen=True, slots=True)
class Job:
    """A migration: how long it takes over a part of the link, in seconds, for each number of lanes.

    A number at which it does not converge is not there; 1 always is.
    """

    name: str
    seconds_of_lanes: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Placed:
    """A migration in a plan. It has the link divided by ``lanes``."""

    name: str
    start_seconds: float
    end_seconds: float
    lanes: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A plan: the migrations in the order of their beginning."""

    placed: tuple[Placed, ...]

    @property
    def total_seconds(self) -> float:
        """When the last is done."""
        return max((one.end_seconds for one in self.placed), default=0.0)

    @property
    def lanes(self) -> int:
        """How many run at once at most."""
        return max((one.lanes for one in self.placed), default=0)


def lane_counts(count: int, parallel_max: int) -> list[int]:
    """Give the numbers of lanes that are tried for so many migrations.

    Args:
        count: Of migrations.
        parallel_max: How many may run at once; 0 means any number.
    """
    most = min(count, parallel_max or count)
    return sorted({lanes for lanes in LANES if lanes < most} | {most}) if most else []


def plan_drain(jobs: Sequence[Job], counts: Iterable[int]) -> Schedule:
    """Find the shortest plan: the best of all for few migrations, a good one for many.

    It is never longer than one by one, nor than all at once where that is among the counts and they converge so.

    Args:
        jobs: The migrations, in the order of their names.
        counts: Numbers of lanes to be tried.
    """
    best = one_by_one(jobs)
    for lanes in counts:
        for tried in _with_lanes(jobs, lanes):
            if tried.total_seconds < best.total_seconds:
                best = tried
    return best


def one_by_one(jobs: Sequence[Job]) -> Schedule:
    """Give the plan in which each has the whole link, the shortest first."""
    return _schedule([], sorted(jobs, key=lambda job: job.seconds_of_lanes[1]), 1)


def all_at_once(jobs: Sequence[Job], lanes: int) -> Schedule | None:
    """Give the plan that takes whatever comes next by name into the lane that is free first; None if one cannot."""
    if not jobs or any(lanes not in job.seconds_of_lanes for job in jobs):
        return None
    return _schedule(_in_turn(jobs, lanes), [], lanes)


def _with_lanes(jobs: Sequence[Job], lanes: int) -> Iterator[Schedule]:
    if lanes == 1:
        return
    if schedule := all_at_once(jobs, lanes):
        yield schedule
    in_lanes = [job for job in jobs if lanes in job.seconds_of_lanes]
    alone = [job for job in jobs if lanes not in job.seconds_of_lanes]
    if len(jobs) <= EXACT_MAX:
        yield _best(in_lanes, alone, lanes)
    else:
        yield _good(in_lanes, alone, lanes)


def _best(in_lanes: Sequence[Job], alone: Sequence[Job], lanes: int) -> Schedule:
    """Try every way to give migrations to lanes or to the second stage; cut what cannot be better."""
    order = sorted(in_lanes, key=lambda job: job.seconds_of_lanes[lanes], reverse=True)
    loads: list[list[Job]] = [[] for _ in range(lanes)]
    lengths = [0.0] * lanes
    found = one_by_one([*order, *alone])

    def place(number: int, later: list[Job], later_seconds: float) -> None:
        nonlocal found
        if max(lengths) + later_seconds >= found.total_seconds:
            return
        if number == len(order):
            found = _schedule(loads, later, lanes)
            return
        job = order[number]
        # Two lanes that are as long are the same lane to whatever comes.
        for lane in {length: lane for lane, length in enumerate(lengths)}.values():
            before = lengths[lane]
            lengths[lane] = before + job.seconds_of_lanes[lanes]
            loads[lane].append(job)
            place(number + 1, later, later_seconds)
            loads[lane].pop()
            lengths[lane] = before
        place(number + 1, [*later, job], later_seconds + job.seconds_of_lanes[1])

    place(0, list(alone), _length(alone, 1))
    return found


def _good(in_lanes: Sequence[Job], alone: Sequence[Job], lanes: int) -> Schedule:
    """Give the longest to the lane that is free first, and take those out of the lanes that are better off alone."""
    later = list(alone)
    staying = list(in_lanes)
    schedule = _longest_first(staying, later, lanes)
    longest = sorted(in_lanes, key=lambda job: job.seconds_of_lanes[lanes], reverse=True)[:REFINED_MAX]
    for job in longest:
        without = [one for one in staying if one is not job]
        tried = _longest_first(without, [*later, job], lanes)
        if tried.total_seconds < schedule.total_seconds:
            staying, later, schedule = without, [*later, job], tried
    return schedule


def _longest_first(in_lanes: Sequence[Job], alone: Sequence[Job], lanes: int) -> Schedule:
    order = sorted(in_lanes, key=lambda one: one.seconds_of_lanes[lanes], reverse=True)
    return _schedule(_in_turn(order, lanes), alone, lanes)


def _in_turn(jobs: Iterable[Job], lanes: int) -> list[list[Job]]:
    """Give each migration to the lane that is free first."""
    loads: list[list[Job]] = [[] for _ in range(lanes)]
    free = [(0.0, lane) for lane in range(lanes)]
    for job in jobs:
        seconds, lane = free[0]
        loads[lane].append(job)
        heapreplace(free, (seconds + job.seconds_of_lanes[lanes], lane))
    return loads


def _schedule(loads: Sequence[Sequence[Job]], alone: Sequence[Job], lanes: int) -> Schedule:
    """Lay out both stages in time, in each lane the shortest first: it is done with the most targets the soonest."""
    placed = []
    for load in loads:
        start = 0.0
        for job in sorted(load, key=lambda one: one.seconds_of_lanes[lanes]):
            end = start + job.seconds_of_lanes[lanes]
            placed.append(Placed(job.name, start, end, lanes))
            start = end
    start = max((one.end_seconds for one in placed), default=0.0)
    for job in sorted(alone, key=lambda one: one.seconds_of_lanes[1]):
        end = start + job.seconds_of_lanes[1]
        placed.append(Placed(job.name, start, end, 1))
        start = end
    return Schedule(tuple(sorted(placed, key=lambda one: (one.start_seconds, one.name))))


def _length(load: Iterable[Job], lanes: int) -> float:
    return sum(job.seconds_of_lanes[lanes] for job in load)
