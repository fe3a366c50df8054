"""How often each target is harvested: as often as a budget allows, between a shortest and a longest interval.

Tracking costs two parties. The agent spends processor time on each round, and that time is shared by all its targets.
A target spends a page fault on the first write to each page in a round. Both costs shrink with longer rounds: fewer
passes, and pages that are written again and again cost one fault a round.

The costs of the last rounds decide about the next, at most a factor of two at a time: with a longer interval a round
finds more pages, and by how much more nobody knows before it is tried.
"""

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

from wetink.v1 import types_pb2
from wetink_agent.backend import Harvest

STEP_MAX: Final = 2.0
"""How many times as long or as short as the interval before the next one may be."""

SMOOTHING: Final = 0.5
"""Weight of the newest round in what a round is taken to cost the agent."""

FIRST_WRITE_SECONDS: Final[Mapping[types_pb2.Backend.ValueType, float]] = {
    types_pb2.BACKEND_WP_ASYNC: 0.7e-6,
    types_pb2.BACKEND_WP_SYNC: 15e-6,
    types_pb2.BACKEND_SOFT_DIRTY: 1.0e-6,
}
"""What the first write to a page in a round costs a target's thread. An estimate: machines differ by a factor of two.

Source: our benchmark (docs/backends.md). With ``wp-sync`` it is 4 µs where the agent answers on the same core, and 70
where a sleeping virtual core has to be woken. With soft-dirty it is a guess: the fault is as with ``wp-async``.
"""

EVENT_SECONDS: Final = 0.2e-6
"""What the stream of events adds to it with ``wp-async``. Source: likewise."""

_CPU_WINDOW_SECONDS: Final = 5.0
_OVERHEAD_MAX: Final = 4.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What tracking may cost.

    ``agent_share`` is the agent's part of one processor for all targets together. ``target_share`` is the time that
    the threads of one target may lose to it, together, as a part of the time that passes. Both intervals alike mean
    that rounds keep to it whatever they cost.
    """

    interval_min_seconds: float = 1.0
    interval_max_seconds: float = 1.0
    agent_share: float = 0.02
    target_share: float = 0.02


class Load:
    """What the rounds of all targets cost the agent together. Used on the event loop only."""

    def __init__(self, agent_share: float) -> None:
        """Begin with no target."""
        self._agent_share = agent_share
        self._shares: dict[Hashable, float] = {}
        self._harvest_seconds = 0.0
        self._window = time.monotonic(), time.process_time(), 0.0
        self.overhead = 1.0
        """How much processor time the agent spends for each second of harvests: sending and the rest come on top."""

    @property
    def stretch(self) -> float:
        """How many times as long as each target by itself would have them intervals must be, for all to fit."""
        return max(1.0, self.overhead * sum(self._shares.values()) / self._agent_share)

    def add(self, target: Hashable, seconds: float, share: float) -> None:
        """Count rounds.

        Args:
            target: Whose.
            seconds: Processor time that its rounds took since the last call.
            share: Part of a processor that its rounds would take at the interval the target would have alone.
        """
        self._shares[target] = share
        self._harvest_seconds += seconds
        began, began_cpu, began_harvest = self._window
        now = time.monotonic()
        harvested = self._harvest_seconds - began_harvest
        if now - began >= _CPU_WINDOW_SECONDS and harvested > 0:
            spent = time.process_time() - began_cpu
            self.overhead = min(max(1.0, spent / harvested), _OVERHEAD_MAX)
            self._window = now, began_cpu + spent, self._harvest_seconds

    def drop(self, target: Hashable) -> None:
        """Forget a target."""
        self._shares.pop(target, None)


class Pacer:
    """Says when one target's next round is due."""

    def __init__(self, budget: Budget, load: Load) -> None:
        """Begin with the shortest interval."""
        self.interval_seconds = budget.interval_min_seconds
        self._budget = budget
        self._load = load
        self._alone_seconds = budget.interval_min_seconds
        self._cost_seconds: float | None = None
        self._spent_seconds = 0.0
        self._since = time.monotonic()
        self._first_write_seconds = 0.0
        self._target_share = 0.0

    def note(
        self, harvest: Harvest, backend: types_pb2.Backend.ValueType, cpu_seconds: float, *, is_first: bool
    ) -> None:
        """Take note of a round, and choose the next interval.

        Rounds that barriers asked for come early: they count, but it is not before most of an interval has passed that
        a new one is chosen.

        Args:
            harvest: What was found.
            backend: What found it.
            cpu_seconds: Processor time that this took in the agent.
            is_first: Whether it reported all there is, which says nothing about writes.
        """
        if is_first:
            self._since, self._first_write_seconds = time.monotonic(), 0.0
            return
        self._spent_seconds += cpu_seconds
        before = self._cost_seconds
        self._cost_seconds = cpu_seconds if before is None else before + SMOOTHING * (cpu_seconds - before)
        write_seconds = FIRST_WRITE_SECONDS.get(backend, 0.0)
        if harvest.events is not None and backend == types_pb2.BACKEND_WP_ASYNC:
            write_seconds += EVENT_SECONDS
        self._first_write_seconds += write_seconds * (len(harvest.written) - harvest.cautious_page_count)
        self._first_write_seconds += harvest.held_seconds
        now = time.monotonic()
        elapsed = now - self._since
        if elapsed >= self.interval_seconds / STEP_MAX:
            self._target_share = self._first_write_seconds / elapsed
            self._since, self._first_write_seconds = now, 0.0
            self._alone_seconds = self._bounded(
                self._alone_seconds * _step(self._target_share / self._budget.target_share)
            )
            self._load.add(self, self._spent_seconds, self._cost_seconds / self._alone_seconds)
            self._spent_seconds = 0.0
            wanted = self._bounded(self._alone_seconds * self._load.stretch)
            self.interval_seconds = self._bounded(self.interval_seconds * _step(wanted / self.interval_seconds))

    def close(self) -> None:
        """Forget the target."""
        self._load.drop(self)

    def to_message(self) -> types_pb2.Pace:
        """Give what travels."""
        cost = self._load.overhead * (self._cost_seconds or 0.0)
        return types_pb2.Pace(
            interval_ms=round(self.interval_seconds * 1000),
            agent_share=cost / self.interval_seconds,
            target_share=self._target_share,
        )

    def _bounded(self, seconds: float) -> float:
        return min(max(seconds, self._budget.interval_min_seconds), self._budget.interval_max_seconds)


def _step(ratio: float) -> float:
    return min(max(ratio, 1 / STEP_MAX), STEP_MAX)
