"""KubeVirt's stall detection (VEP 248) as a stop policy: it switches over at a local minimum of what is left."""

import math
from dataclasses import dataclass, replace

from wetink_collector.insight.policies import CONTINUE, Action, Cause, Decision, Progress


@dataclass(frozen=True, slots=True)
class KubevirtStall:
    """Pre-copy alone, with no disruption of the workload allowed. Bandwidth is constant here, so that its EWMA is too.

    Source: KubeVirt enhancements, veps/sig-compute/248-migration-convergence/vep.md, "Core algorithm" and "Switchover
    policy". ``minima`` are records that were lower than all before them: no other can ever be the least of those that
    are old enough.
    """

    max_seconds: float
    minima: tuple[tuple[float, float], ...] = ()
    outside_pages: float = math.inf
    best_pages: float = math.inf
    stalled: bool = False
    since_stall: tuple[float, ...] = ()
    patience_seconds: float = 0.0
    relaxed_at_seconds: float = math.inf
    limit_seconds: float | None = None
    deadline_seconds: float = math.inf

    MAX_SECONDS = 0.9
    LIMIT_SECONDS = 0.3
    PROGRESS_TIMEOUT_SECONDS = 40
    STALL_MARGIN = 0.04
    POSSIBLE_FACTOR = 1.5
    PATIENCE_DECAY = 0.5
    SWITCHOVER_TIMEOUT_SECONDS = 60
    SINCE_STALL_MAX = 256
    """Bound on the levels remembered since the stall: relaxing takes the lowest, so the highest are left out."""

    def step(self, now: Progress) -> "tuple[Decision, KubevirtStall]":
        """As in ``Policy``."""
        limit = self.limit_seconds or min(self.max_seconds, self.LIMIT_SECONDS)
        if now.left_seconds <= limit:
            return Decision(Action.SWITCH, Cause.TARGET_MET), self
        if now.elapsed_seconds > self.deadline_seconds:
            return Decision(Action.ABORT, Cause.TIMEOUT), self
        later = self._seen(now)
        if self.limit_seconds is not None:
            return CONTINUE, later
        if not self.stalled:
            if now.left_pages < later.outside_pages * (1 - self.STALL_MARGIN) or math.isinf(later.outside_pages):
                return CONTINUE, later
            later = replace(
                later,
                stalled=True,
                patience_seconds=float(self.PROGRESS_TIMEOUT_SECONDS),
                relaxed_at_seconds=now.elapsed_seconds + self.PROGRESS_TIMEOUT_SECONDS,
            )
        else:
            later = _relaxed(later, now)
        if now.left_pages > later.best_pages * (1 + self.STALL_MARGIN):
            return CONTINUE, later
        return _at_minimum(later, now)

    def _seen(self, now: Progress) -> "KubevirtStall":
        """Take a record, and move those that are old enough out of the window."""
        minima = self.minima
        if not minima or now.left_pages < minima[-1][1]:
            minima = (*minima, (now.elapsed_seconds, now.left_pages))
        outside = self.outside_pages
        while len(minima) > 1 and minima[0][0] <= now.elapsed_seconds - self.PROGRESS_TIMEOUT_SECONDS:
            outside = minima[0][1]
            minima = minima[1:]
        if minima[0][0] <= now.elapsed_seconds - self.PROGRESS_TIMEOUT_SECONDS:
            outside = minima[0][1]
        best = self.best_pages if self.stalled else min(self.best_pages, now.left_pages)
        return replace(self, minima=minima, outside_pages=outside, best_pages=best)


def _relaxed(policy: KubevirtStall, now: Progress) -> KubevirtStall:
    """Take the lowest level since the stall for the best one, where that does not come back."""
    history = tuple(sorted((*policy.since_stall, now.left_pages)))[: policy.SINCE_STALL_MAX]
    if now.elapsed_seconds < policy.relaxed_at_seconds:
        return replace(policy, since_stall=history)
    patience_seconds = policy.patience_seconds * policy.PATIENCE_DECAY
    return replace(
        policy,
        best_pages=history[0],
        since_stall=history[1:],
        patience_seconds=patience_seconds,
        relaxed_at_seconds=now.elapsed_seconds + patience_seconds,
    )


def _at_minimum(policy: KubevirtStall, now: Progress) -> tuple[Decision, KubevirtStall]:
    if now.left_seconds > policy.max_seconds * policy.POSSIBLE_FACTOR:
        return Decision(Action.ABORT, Cause.HOPELESS), policy
    if now.left_seconds <= policy.max_seconds:
        return Decision(Action.SWITCH, Cause.STALLED), policy
    deadline_seconds = now.elapsed_seconds + policy.SWITCHOVER_TIMEOUT_SECONDS
    return CONTINUE, replace(policy, limit_seconds=policy.max_seconds, deadline_seconds=deadline_seconds)
