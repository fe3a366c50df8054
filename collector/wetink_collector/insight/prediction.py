"""How migrations of one target would go, over several bandwidths: what follows from W(T). Pure: no store, no clock."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from wetink_collector.insight.curve import Curve
from wetink_collector.insight.policies import Policy
from wetink_collector.insight.policy_names import POLICIES
from wetink_collector.insight.precopy_model import Link, Outcome, follow, plateau_pages

BANDWIDTH_MAX: Final = 10**13
"""As the contract says, in bytes a second: a hundred times the fastest link there is."""

BANDWIDTH_PRECISION: Final = 1.02
"""How near the smallest bandwidth is found: within 2 % of where it does not converge any more."""

HELD_SHARES: Final = (1.0, 0.9, 0.75, 0.5)
"""Parts of the rounds from which on a page may be held back: below a half, sending it early is not in vain."""

WINDOWS_FEW: Final = 4
"""A window that the history holds fewer times than this is known from hardly more than one run."""

WINDOWS_MANY: Final = 20
"""One that it holds so often has a median and a twentieth that mean something."""


class Reliance(Enum):
    """How much a prediction can be relied on; the values are the contract's."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


@dataclass(frozen=True, slots=True)
class Hits:
    """In how many of some rounds the pages were written: how many pages for each number of rounds.

    ``round_seconds`` is how long one is. Without rounds nothing is known.
    """

    page_count_of_hits: Mapping[int, int] = field(default_factory=dict)
    round_count: int = 0
    round_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Writes:
    """What is known of how a target writes.

    ``mean``, ``p50`` and ``p95`` are W(T) over the starting points of windows. They are measured from
    ``shortest_seconds`` on, the length of a round, to ``history_seconds``, and continued beyond. ``old_because`` says
    why the history is not about now, or not about everything, and is empty where it is.
    """

    populated_pages: int
    page_size: int
    mean: Curve
    p50: Curve
    p95: Curve
    shortest_seconds: float
    history_seconds: float
    hits: Hits = Hits()
    old_because: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a migration is like, whatever goes over which link. The policy is one of ``POLICIES``."""

    policy: str
    downtime_seconds: float
    auto_converge: bool
    round_seconds: float
    fixed_seconds: float

    def link(self, bytes_a_second: float, page_size: int) -> Link:
        """Give the link of a bandwidth."""
        return Link(bytes_a_second, page_size, self.round_seconds, self.fixed_seconds)

    def make(self) -> Policy:
        """Give the policy as it is before the first round."""
        return POLICIES[self.policy].make(self.downtime_seconds, self.auto_converge)

    def meets(self, outcome: Outcome) -> bool:
        """Whether a migration switches over with the downtime aimed at. A millionth of a second is none."""
        return outcome.switched and outcome.downtime_seconds <= self.downtime_seconds + 1e-6


@dataclass(frozen=True, slots=True)
class Held:
    """What holding back would do. ``share_min`` is the part of the rounds from which on a page is held back."""

    pages: int
    share_min: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Prediction:
    """How one migration goes. ``outcome`` is with the mean of W(T), ``busy`` with its p95."""

    bytes_a_second: float
    outcome: Outcome
    busy: Outcome
    downtime_p50_seconds: float
    downtime_p95_seconds: float
    plateau_pages: float
    converges: bool
    converges_when_busy: bool
    held: Held | None
    reliance: Reliance
    reliance_reason: str


def predict(writes: Writes, plan: Plan, bytes_a_second: float, *, in_full: bool = True) -> Prediction:
    """Say how a migration over one bandwidth goes.

    Args:
        writes: How the target writes.
        plan: What the migration is like.
        bytes_a_second: The bandwidth, above 0.
        in_full: Whether to look for the plateau, and what holding back saves; without, they are 0 and None.
    """
    link = plan.link(bytes_a_second, writes.page_size)
    outcome = follow(writes.mean, writes.populated_pages, link, plan.make())
    # Where percentiles are not asked for, the mean is all there is.
    busy = outcome if writes.p95 is writes.mean else follow(writes.p95, writes.populated_pages, link, plan.make())
    median_seconds = _downtime_seconds(writes.p50, outcome)
    reliance, reason = _reliance(writes, outcome)
    return Prediction(
        bytes_a_second=bytes_a_second,
        outcome=outcome,
        busy=busy,
        downtime_p50_seconds=median_seconds,
        # Who writes more may be stopped a round later, with less left than in the mean.
        downtime_p95_seconds=max(median_seconds, busy.downtime_seconds),
        plateau_pages=plateau_pages(writes.mean, writes.populated_pages, link) if in_full else 0.0,
        converges=plan.meets(outcome),
        converges_when_busy=plan.meets(outcome) and plan.meets(busy),
        held=_held(writes, plan, outcome) if in_full else None,
        reliance=reliance,
        reliance_reason=reason,
    )


def smallest_bandwidth(writes: Writes, plan: Plan) -> int:
    """Give the least bandwidth found with which a migration converges, in bytes a second; 0 where none does.

    With 2 % less it does not converge. Policies that stop for other reasons than downtime may have other such places.
    """

    def converges(bytes_a_second: float) -> bool:
        link = plan.link(bytes_a_second, writes.page_size)
        return plan.meets(follow(writes.mean, writes.populated_pages, link, plan.make()))

    low, high = 1.0, float(BANDWIDTH_MAX)
    if not converges(high):
        return 0
    if converges(low):
        return 1
    while high / low > BANDWIDTH_PRECISION and high - low > 1:
        middle = math.sqrt(low * high)
        if converges(middle):
            high = middle
        else:
            low = middle
    return _rounded_up(high, converges)


def _rounded_up(bytes_a_second: float, converges: Callable[[float], bool]) -> int:
    """Give whole bytes that do as well: where a policy counts, a byte more may be a round less."""
    whole = math.ceil(bytes_a_second)
    return whole if converges(whole) else math.ceil(bytes_a_second * BANDWIDTH_PRECISION)


def _downtime_seconds(curve: Curve, outcome: Outcome) -> float:
    """Give the downtime where the last window was one of a curve's."""
    left = curve.at(outcome.window_seconds)
    return left / outcome.link.pages_a_second + outcome.link.fixed_seconds


def _held(writes: Writes, plan: Plan, outcome: Outcome) -> Held | None:
    """Find from which share of rounds on it pays most to hold pages back, within the downtime aimed at.

    A page that is sent at time s and switched over at S is sent in vain with probability 1 - e^(-rate (S - s)). Its
    rate is told by the rounds it was written in. Source: Clark'05, which skips what is dirty again.
    """
    if not outcome.switched:
        return None
    best: Held | None = None
    for share, pages, cold in _cold_curves(writes.hits):
        tried = follow(cold, writes.populated_pages, outcome.link, plan.make(), held_pages=pages)
        if plan.meets(tried) and tried.sent_pages < (best.outcome if best else outcome).sent_pages:
            best = Held(pages, share, tried)
    return best


def _cold_curves(hits: Hits) -> Iterator[tuple[float, int, Curve]]:
    """Give, for each share, how many pages are written in as many of the rounds, and W(T) of all others."""
    before = 0
    for share in HELD_SHARES:
        held = {count: pages for count, pages in hits.page_count_of_hits.items() if count >= share * hits.round_count}
        pages = sum(held.values())
        # Also where nothing is known at all.
        if pages == before:
            continue
        before = pages
        others = {count: pages for count, pages in hits.page_count_of_hits.items() if count not in held}
        cold = Curve.of_hits(others, round_count=hits.round_count, round_seconds=hits.round_seconds)
        yield share, pages, cold


def _reliance(writes: Writes, outcome: Outcome) -> tuple[Reliance, str]:
    """Say how much to rely on a prediction, by the windows that it comes from: those of its first and last round."""
    if writes.old_because:
        return Reliance.LOW, writes.old_because
    longest, last = outcome.rounds[0].seconds, outcome.window_seconds
    if last < writes.shortest_seconds / 2:
        reason = (
            f"its last round takes {last:.3g} s and what is written in so short a time is not known: "
            f"the target is harvested every {writes.shortest_seconds:.3g} s"
        )
        return Reliance.LOW, reason
    if longest > writes.history_seconds:
        reason = f"its first round takes {longest:.3g} s, and the history is {writes.history_seconds:.3g} s long"
        return Reliance.LOW, reason
    windows = writes.history_seconds / longest
    if windows < WINDOWS_FEW:
        return Reliance.MEDIUM, f"the history holds its first round, of {longest:.3g} s, only {windows:.1f} times"
    if writes.history_seconds < WINDOWS_MANY * last:
        reason = f"the history holds its last round, of {last:.3g} s, only {writes.history_seconds / last:.1f} times"
        return Reliance.MEDIUM, reason
    return Reliance.HIGH, ""
