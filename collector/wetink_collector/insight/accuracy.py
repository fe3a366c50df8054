"""What became of predictions: how far they were off, and what rounds and downtimes cost besides pages.

All of it is kept in memory and bounded. It is no part of what is durable: a report is a few numbers that an
orchestrator says once, nothing else depends on them, and after a restart the next reports teach the same again.
"""

import secrets
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from wetink_collector import metrics
from wetink_collector.identity import TargetKey

PREDICTIONS_KEPT_MAX: Final = 4096
"""Bound on predictions that wait for a report: one for each target of the widest selection."""

SCORES_KEPT_MAX: Final = 1000
"""Bound on what became of predictions, as the contract says: the newest are kept."""

REPORTS_OF_HOST_MAX: Final = 32
"""Bound on the reports that a host's costs are learned from: what was so last month is so no more."""

HOSTS_MAX: Final = 4096
"""Bound on hosts of which costs are known; the one that was reported on longest ago goes."""

ROUND_SECONDS_DEFAULT: Final = 0.01
"""Before any report, as the contract says: a harvest and its way here took 3 to 20 ms with this project's own mover."""

FIXED_SECONDS_DEFAULT: Final = 0.02
"""Before any report, as the contract says: freezing and the last harvest, likewise."""

BANDWIDTH_NEAR: Final = 0.1
"""A report over a bandwidth within a tenth of a prediction's is about it."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What is not in the pages, in seconds: of each round, and of each downtime; and how many reports said so."""

    round_seconds: float = ROUND_SECONDS_DEFAULT
    fixed_seconds: float = FIXED_SECONDS_DEFAULT
    report_count: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """What was predicted for one bandwidth."""

    bytes_a_second: int
    total_bytes: int
    total_seconds: float
    downtime_seconds: float
    converges: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What really happened. Rounds are those while the target ran; without a switch-over ``downtime_seconds`` is 0."""

    bytes_a_second: int
    policy: str
    round_bytes: tuple[int, ...]
    round_seconds: tuple[float, ...]
    final_bytes: int
    downtime_seconds: float
    switched: bool
    met_target: bool

    @property
    def total_bytes(self) -> int:
        """Bytes in all."""
        return sum(self.round_bytes) + self.final_bytes

    @property
    def total_seconds(self) -> float:
        """Time in all."""
        return sum(self.round_seconds) + self.downtime_seconds

    @property
    def converged(self) -> bool:
        """Whether it switched over with the downtime aimed at."""
        return self.switched and self.met_target

    @property
    def costs(self) -> tuple[float, float | None]:
        """What a round and a downtime took besides their bytes; the latter is None where there was no downtime."""
        rounds = [
            max(0.0, seconds - size_bytes / self.bytes_a_second)
            for size_bytes, seconds in zip(self.round_bytes, self.round_seconds, strict=True)
        ]
        fixed = max(0.0, self.downtime_seconds - self.final_bytes / self.bytes_a_second) if self.switched else None
        return median(rounds) if rounds else 0.0, fixed


@dataclass(frozen=True, slots=True)
class Score:
    """One prediction beside what came."""

    name: str
    time_ns: int
    expected: Expected
    report: Report

    @property
    def bytes_error(self) -> float:
        """How far the bytes are off, as a part of those that came."""
        return _error(self.expected.total_bytes, self.report.total_bytes)

    @property
    def seconds_error(self) -> float:
        """How far the time in all is off."""
        return _error(self.expected.total_seconds, self.report.total_seconds)

    @property
    def downtime_error(self) -> float | None:
        """How far the downtime is off; None where there was none."""
        if not self.report.switched:
            return None
        return _error(self.expected.downtime_seconds, self.report.downtime_seconds)

    @property
    def right(self) -> bool:
        """Whether it was right that it converges, or that it does not."""
        return self.expected.converges == self.report.converged


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of many predictions, each as a part of what came."""

    median: float
    p95: float
    max: float

    @classmethod
    def of(cls, errors: Iterable[float]) -> "Errors | None":
        """Sum them up; None where there are none."""
        found = sorted(errors)
        if not found:
            return None
        return cls(median(found), found[-(-95 * len(found) // 100) - 1], found[-1])


@dataclass(frozen=True, slots=True)
class _Kept:
    target: TargetKey
    policy: str
    expected: Sequence[Expected]


class Accuracy:
    """Keeps predictions until they are reported on, scores them, and learns costs. Used on the event loop only."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self.scored_count = 0
        self.right_count = 0
        self.scores: deque[Score] = deque(maxlen=SCORES_KEPT_MAX)
        self._predictions: OrderedDict[str, _Kept] = OrderedDict()
        self._costs: OrderedDict[str, deque[tuple[float, float | None]]] = OrderedDict()
        self._newest: deque[tuple[float, float | None]] = deque(maxlen=REPORTS_OF_HOST_MAX)
        self._ids: defaultdict[TargetKey, list[str]] = defaultdict(list)

    def keep(self, target: TargetKey, policy: str, expected: Sequence[Expected]) -> str:
        """Keep a prediction, and give the name under which it can be reported on."""
        prediction_id = secrets.token_urlsafe(12)
        self._predictions[prediction_id] = _Kept(target, policy, expected)
        self._ids[target].append(prediction_id)
        while len(self._predictions) > PREDICTIONS_KEPT_MAX:
            oldest = next(iter(self._predictions))
            self._drop(oldest)
        return prediction_id

    def costs(self, host_id: str) -> Costs:
        """Give what is learned of a host; where that is nothing, of the newest of all, and the defaults before any."""
        reports = self._costs.get(host_id) or self._newest
        if not reports:
            return Costs()
        fixed = [seconds for _, seconds in reports if seconds is not None]
        return Costs(
            round_seconds=median(seconds for seconds, _ in reports),
            fixed_seconds=median(fixed) if fixed else FIXED_SECONDS_DEFAULT,
            report_count=len(reports),
        )

    def report(self, target: TargetKey, prediction_id: str, report: Report, time_ns: int) -> Score | None:
        """Take a report: score the prediction that it is about, if one is kept, and learn.

        Args:
            target: What was moved.
            prediction_id: The prediction's name; empty means the newest that fits.
            report: What happened.
            time_ns: Now.
        """
        self._learn(target.host_id, report)
        found = self._about(target, prediction_id, report)
        if found is None:
            return None
        score = Score(str(target), time_ns, found, report)
        self.scores.append(score)
        self.scored_count += 1
        self.right_count += score.right
        _count(score)
        return score

    def _learn(self, host_id: str, report: Report) -> None:
        known = self._costs.setdefault(host_id, deque(maxlen=REPORTS_OF_HOST_MAX))
        known.append(report.costs)
        self._newest.append(report.costs)
        self._costs.move_to_end(host_id)
        while len(self._costs) > HOSTS_MAX:
            self._costs.popitem(last=False)

    def _about(self, target: TargetKey, prediction_id: str, report: Report) -> Expected | None:
        """Find what was predicted of a migration, and keep it no longer: each is scored once."""
        ids = [prediction_id] if prediction_id else reversed(self._ids.get(target, []))
        for one in ids:
            kept = self._predictions.get(one)
            if kept is None or kept.target != target or kept.policy != report.policy:
                continue
            nearest = min(kept.expected, key=lambda guess: abs(guess.bytes_a_second - report.bytes_a_second))
            if abs(nearest.bytes_a_second - report.bytes_a_second) <= BANDWIDTH_NEAR * nearest.bytes_a_second:
                self._drop(one)
                return nearest
        return None

    def _drop(self, prediction_id: str) -> None:
        target = self._predictions.pop(prediction_id).target
        self._ids[target].remove(prediction_id)
        if not self._ids[target]:
            del self._ids[target]


def _count(score: Score) -> None:
    metrics.PREDICTIONS_SCORED.labels("right" if score.right else "wrong").inc()
    metrics.PREDICTION_ERROR.labels("bytes").observe(score.bytes_error)
    metrics.PREDICTION_ERROR.labels("seconds").observe(score.seconds_error)
    if score.downtime_error is not None:
        metrics.PREDICTION_ERROR.labels("downtime").observe(score.downtime_error)


def _error(predicted: float, measured: float) -> float:
    if measured:
        return abs(predicted - measured) / measured
    return 0.0 if not predicted else 1.0
