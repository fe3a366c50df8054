"""When known orchestrators stop copying and switch over: each a small state machine, with the constants of its source.

A machine is asked once a round, when the round is sent and what was written meanwhile is known. It gives what to do,
and itself as it is from then on. It knows nothing of curves and links: a real mover could ask it as well.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Protocol, Self

DOWNTIME_SECONDS: Final = 0.3
"""What is aimed at where nobody says: QEMU's and Cloud Hypervisor's default."""


class Cause(Enum):
    """Why a migration stops copying."""

    TARGET_MET = "what is left fits into the downtime aimed at"
    FEW_LEFT = "so little is left that another round is not worth it"
    GROWING = "more was written than in the round before"
    STALLED = "what is left does not get less"
    ROUNDS_MAX = "the policy makes no more rounds"
    TIMEOUT = "the policy waits no longer"
    HOPELESS = "what is left is far over the downtime that is allowed"
    ENDLESS = "it went on for as many rounds as a prediction follows"


class Action(Enum):
    """What a policy has done with the target."""

    CONTINUE = "send another round"
    SWITCH = "stop the target, send the rest, go on at the other side"
    ABORT = "give up: the target stays where it is"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why where copying ends. ``throttle`` is the part of the target's time that is taken from it."""

    action: Action
    cause: Cause | None = None
    throttle: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a migration stands when a round is sent. Pages are unique ones.

    ``left_seconds`` is the time to send what is left; the fixed part of a downtime, which most policies do not look
    at, is ``fixed_seconds``.
    """

    rounds: int
    sent_pages: float
    left_pages: float
    populated_pages: float
    elapsed_seconds: float
    left_seconds: float
    fixed_seconds: float


class Policy(Protocol):
    """A stop policy in the state it is in after some rounds."""

    def step(self, now: Progress) -> "tuple[Decision, Policy]":
        """Decide after a round, and give the policy for the next one."""


CONTINUE: Final = Decision(Action.CONTINUE)


def _switch(cause: Cause) -> Decision:
    return Decision(Action.SWITCH, cause)


def _abort(cause: Cause) -> Decision:
    return Decision(Action.ABORT, cause)


@dataclass(frozen=True, slots=True)
class Downtime:
    """This project's own, which ``wetink_client.precopy`` keeps over a link: until what is left fits, while it helps.

    It gives up waiting, and switches over all the same, when three rounds brought the least number of pages left down
    by less than a tenth.
    """

    target_seconds: float
    least_pages: float = math.inf
    rounds_in_vain: int = 0

    ROUNDS_MAX = 30
    ROUNDS_IN_VAIN_MAX = 3
    GAIN = 0.1

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        gained = now.left_pages <= self.least_pages * (1 - self.GAIN)
        later = replace(
            self,
            least_pages=now.left_pages if gained else self.least_pages,
            rounds_in_vain=0 if gained else self.rounds_in_vain + 1,
        )
        if now.left_seconds + now.fixed_seconds <= self.target_seconds:
            return _switch(Cause.TARGET_MET), later
        if later.rounds_in_vain >= self.ROUNDS_IN_VAIN_MAX:
            return _switch(Cause.STALLED), later
        if now.rounds >= self.ROUNDS_MAX:
            return _switch(Cause.ROUNDS_MAX), later
        return CONTINUE, later


@dataclass(frozen=True, slots=True)
class Phaul:
    """P.Haul: the final dump follows a round that was small or that grew, or the ninth. Source: phaul/iters.py."""

    sent_before: float | None = None

    MAX_ITERS_COUNT = 8
    MIN_ITER_PAGES_COUNT = 64
    MAX_ITER_GROW_RATE = 10

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        later = replace(self, sent_before=now.sent_pages)
        if now.sent_pages <= self.MIN_ITER_PAGES_COUNT:
            return _switch(Cause.FEW_LEFT), later
        if self.sent_before and (now.sent_pages - self.sent_before) * 100 / self.sent_before > self.MAX_ITER_GROW_RATE:
            return _switch(Cause.GROWING), later
        # Its index begins at 0.
        if now.rounds - 1 >= self.MAX_ITERS_COUNT:
            return _switch(Cause.ROUNDS_MAX), later
        return CONTINUE, later


@dataclass(frozen=True, slots=True)
class GoPhaul:
    """go-criu's phaul: growth is counted in pages. Source: phaul/client.go, isLastIter, at 90cc986.

    What was sent before the first round is 0 there, so that every target of 64 pages or more "grows" in its first
    round and is dumped for good after it: with these constants no second round is ever made.
    """

    sent_before: float = 0.0

    MIN_PAGES_WRITTEN = 64
    MAX_ITERS = 8
    MAX_GROW_DELTA = 32

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        later = replace(self, sent_before=now.sent_pages)
        if now.rounds >= self.MAX_ITERS:
            return _switch(Cause.ROUNDS_MAX), later
        if now.sent_pages < self.MIN_PAGES_WRITTEN:
            return _switch(Cause.FEW_LEFT), later
        if now.sent_pages - self.sent_before >= self.MAX_GROW_DELTA:
            return _switch(Cause.GROWING), later
        return CONTINUE, later


@dataclass(frozen=True, slots=True)
class Incus:
    """Incus and LXD: the final dump follows a round that skipped over 70 % of the memory, or the tenth.

    Source: ``preDumpLoop``, and the options migration.incremental.memory.goal and .iterations.
    """

    GOAL_PERCENT = 70
    ITERATIONS = 10

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        skipped_percent = int(100 - 100 * now.sent_pages / max(now.populated_pages, now.sent_pages, 1))
        if skipped_percent > self.GOAL_PERCENT:
            return _switch(Cause.FEW_LEFT), self
        if now.rounds >= self.ITERATIONS:
            return _switch(Cause.ROUNDS_MAX), self
        return CONTINUE, self


@dataclass(frozen=True, slots=True)
class Xen:
    """libxc's simple_precopy_policy: fewer than 50 dirty pages, or five rounds."""

    SPP_MAX_ITERATIONS = 5
    SPP_TARGET_DIRTY_COUNT = 50

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        if now.left_pages < self.SPP_TARGET_DIRTY_COUNT:
            return _switch(Cause.FEW_LEFT), self
        if now.rounds >= self.SPP_MAX_ITERATIONS:
            return _switch(Cause.ROUNDS_MAX), self
        return CONTINUE, self


@dataclass(frozen=True, slots=True)
class CloudHypervisor:
    """Cloud Hypervisor's is_precopy_converged, with its timeout_strategy "cancel"; fixed costs are not looked at."""

    downtime_seconds: float
    auto_converge: bool = False

    TIMEOUT_SECONDS = 3600
    THROTTLE_STEP = 0.1
    THROTTLE_ROUNDS = 2
    THROTTLE_MAX = 0.99

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``. Its auto-converge is that of cyberus PR 13: 10 % more every second round."""
        if now.left_seconds <= self.downtime_seconds:
            return _switch(Cause.TARGET_MET), self
        if now.elapsed_seconds >= self.TIMEOUT_SECONDS:
            return _abort(Cause.TIMEOUT), self
        steps = now.rounds // self.THROTTLE_ROUNDS if self.auto_converge else 0
        return Decision(Action.CONTINUE, throttle=min(self.THROTTLE_MAX, steps * self.THROTTLE_STEP)), self


@dataclass(frozen=True, slots=True)
class Qemu:
    """QEMU: until what is left fits into downtime-limit, without an end of its own.

    Its auto-converge takes 20 % of the time, then 10 % more, each time that more than half of what was sent was
    written again in two rounds. Source: migration/ram.c, migration_trigger_throttle.
    """

    limit_seconds: float
    auto_converge: bool = False
    throttle: float = 0.0
    high_rounds: int = 0

    TRIGGER = 0.5
    TRIGGER_ROUNDS = 2
    THROTTLE_INITIAL = 0.2
    THROTTLE_INCREMENT = 0.1
    THROTTLE_MAX = 0.99

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        if now.left_seconds <= self.limit_seconds:
            return _switch(Cause.TARGET_MET), self
        later = self._throttled(now) if self.auto_converge else self
        return Decision(Action.CONTINUE, throttle=later.throttle), later

    def _throttled(self, now: Progress) -> Self:
        # The bulk round is no measure of what a target writes: QEMU begins with the second.
        high = now.rounds > 1 and now.left_pages > self.TRIGGER * now.sent_pages
        if not high or self.high_rounds + 1 < self.TRIGGER_ROUNDS:
            return replace(self, high_rounds=self.high_rounds + high)
        more = self.throttle + self.THROTTLE_INCREMENT if self.throttle else self.THROTTLE_INITIAL
        return replace(self, high_rounds=0, throttle=min(self.THROTTLE_MAX, more))


@dataclass(frozen=True, slots=True)
class Ovirt:
    """oVirt: QEMU's limit is raised with the rounds, and then the migration aborted ("Minimal downtime").

    Source: the engine's MigrationPolicies, and vdsm's ``_next_action``: an action is taken in the first iteration
    whose number is over its stallingLimit, one in an iteration.
    """

    actions_taken: int = 0

    INITIAL_SECONDS = 0.1
    SCHEDULE = ((1, 0.15), (2, 0.2), (3, 0.3), (4, 0.4), (6, 0.5))

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        later = self
        if self.actions_taken == len(self.SCHEDULE):
            if now.left_seconds <= self.SCHEDULE[-1][1]:
                return _switch(Cause.TARGET_MET), self
            return _abort(Cause.STALLED), self
        if self.SCHEDULE[self.actions_taken][0] < now.rounds:
            later = replace(self, actions_taken=self.actions_taken + 1)
        limit = self.SCHEDULE[later.actions_taken - 1][1] if later.actions_taken else self.INITIAL_SECONDS
        return (_switch(Cause.TARGET_MET) if now.left_seconds <= limit else CONTINUE), later


@dataclass(frozen=True, slots=True)
class KubevirtRamp:
    """KubeVirt VEP 291: QEMU's limit rises from 150 ms to a maximum in seven levels, one each 10 s from iteration 3 on.

    The timeouts that KubeVirt has besides end nothing here: they depend on the machine's size.
    """

    max_seconds: float
    started_seconds: float | None = None

    INITIAL_SECONDS = 0.15
    MAX_SECONDS = 1.05
    LEVELS = 7
    START_AFTER_ITERATION = 3
    COOLDOWN_SECONDS = 10

    def step(self, now: Progress) -> tuple[Decision, Self]:
        """As in ``Policy``."""
        later = self
        # The iteration that runs now: QEMU's first is the bulk round.
        if self.started_seconds is None and now.rounds + 1 >= self.START_AFTER_ITERATION:
            later = replace(self, started_seconds=now.elapsed_seconds)
        fits = now.left_seconds <= later.limit_seconds(now.elapsed_seconds)
        return (_switch(Cause.TARGET_MET) if fits else CONTINUE), later

    def limit_seconds(self, elapsed_seconds: float) -> float:
        """Give the limit at a time."""
        first = min(self.INITIAL_SECONDS, self.max_seconds)
        if self.started_seconds is None:
            return first
        raised = min(self.LEVELS - 1, int((elapsed_seconds - self.started_seconds) / self.COOLDOWN_SECONDS))
        return first + raised * (self.max_seconds - first) / (self.LEVELS - 1)
