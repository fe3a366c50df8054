"""Values of the calls about migrations: what is asked, and what a collector says. Frozen, and free of protobuf.

What a field means is said in ``prediction.proto``; names and units are the same. What is absent there is None here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Confidence(StrEnum):
    """How much a prediction can be relied on."""

    UNKNOWN = "unknown"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class MigrationEnd(StrEnum):
    """How copying ends."""

    UNKNOWN = "unknown"
    SWITCHED = "switched"
    ABORTED = "aborted"
    ENDLESS = "endless"


class MigrationCause(StrEnum):
    """Why copying ends."""

    UNKNOWN = "unknown"
    TARGET_MET = "target-met"
    FEW_LEFT = "few-left"
    GROWING = "growing"
    STALLED = "stalled"
    ROUNDS_MAX = "rounds-max"
    TIMEOUT = "timeout"
    HOPELESS = "hopeless"
    ENDLESS = "endless"


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """What a migration is like. None means the policy's own downtime, and costs as learned from reports."""

    policy: str = "downtime"
    downtime_target_seconds: float | None = None
    auto_converge: bool = False
    round_seconds: float | None = None
    fixed_seconds: float | None = None


PLAN_DEFAULT: Final = MigrationPlan()
"""Until what is left fits into 300 ms, or nothing is gained any more."""


@dataclass(frozen=True, slots=True)
class MigrationCosts:
    """What migrations were counted with."""

    policy: str
    downtime_target_seconds: float
    round_seconds: float
    fixed_seconds: float
    report_count: int


@dataclass(frozen=True, slots=True)
class PredictionBasis:
    """What a prediction knows of its target."""

    name: str
    incarnation: int
    as_of_time_ns: int
    history_seconds: float
    stretch_count: int
    exact: bool
    populated_page_count: int
    writable_page_count: int
    dirty_pages_per_second: float
    page_size: int


@dataclass(frozen=True, slots=True)
class PredictedRounds:
    """Rounds that are alike."""

    bytes: int
    seconds: float
    count: int


@dataclass(frozen=True, slots=True)
class HoldBack:
    """What holding back hot pages would do."""

    page_count: int
    written_share_min: float
    total_bytes: int
    total_seconds: float
    downtime_seconds: float
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a migration over one bandwidth would go."""

    bandwidth_bytes_per_second: int
    converges: bool
    converges_when_busy: bool
    end: MigrationEnd
    cause: MigrationCause
    rounds: tuple[PredictedRounds, ...]
    round_count: int
    total_bytes: int
    total_seconds: float
    downtime_p50_seconds: float
    downtime_p95_seconds: float
    plateau_bytes: int
    plateau_downtime_seconds: float
    hold_back: HoldBack | None
    confidence: Confidence
    confidence_reason: str


@dataclass(frozen=True, slots=True)
class Predictions:
    """How a migration would go, for each bandwidth. ``smallest_bandwidth_bytes_per_second`` is None where none does."""

    prediction_id: str
    basis: PredictionBasis
    costs: MigrationCosts
    predictions: tuple[Prediction, ...]
    smallest_bandwidth_bytes_per_second: int | None


@dataclass(frozen=True, slots=True)
class QuietWindow:
    """A stretch in which a target writes less."""

    start_time_ns: int
    end_time_ns: int
    dirty_pages_per_second: float


@dataclass(frozen=True, slots=True)
class WindowFound:
    """When to begin; ``window`` is None where there is no better time than now, and ``reason`` says why."""

    basis: PredictionBasis
    period_seconds: float | None
    period_strength: float
    migration_seconds: float
    window: QuietWindow | None
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One target among others."""

    name: str
    converges: bool
    end: MigrationEnd
    cause: MigrationCause
    total_bytes: int
    total_seconds: float
    downtime_seconds: float
    dirty_pages_per_second: float
    populated_page_count: int
    confidence: Confidence


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A target of which nothing can be said, or that cannot be moved."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """Targets by what it costs to move them, the cheapest first."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    costs: MigrationCosts


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """One migration of a plan."""

    name: str
    start_seconds: float
    end_seconds: float
    bandwidth_bytes_per_second: int
    total_bytes: int
    downtime_p50_seconds: float
    downtime_p95_seconds: float
    confidence: Confidence


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """How to empty a host. ``all_at_once_seconds`` is None where some would not converge so."""

    moves: tuple[PlannedMove, ...]
    cannot_move: tuple[LeftOut, ...]
    total_seconds: float
    one_by_one_seconds: float
    all_at_once_seconds: float | None
    parallel: int
    total_bytes: int
    costs: MigrationCosts


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """How a migration went. ``rounds`` are bytes and seconds of each while the target ran.

    Without a switch-over ``downtime_seconds`` is None. An empty ``prediction_id`` means the newest one that fits.
    """

    target: str
    bandwidth_bytes_per_second: int
    rounds: Sequence[tuple[int, float]]
    final_bytes: int = 0
    downtime_seconds: float | None = None
    met_target: bool = False
    policy: str = "downtime"
    prediction_id: str = ""


@dataclass(frozen=True, slots=True)
class PredictionError:
    """What was predicted, and what came."""

    name: str
    reported_time_ns: int
    bandwidth_bytes_per_second: int
    policy: str
    predicted_bytes: int
    measured_bytes: int
    predicted_downtime_seconds: float
    measured_downtime_seconds: float
    predicted_seconds: float
    measured_seconds: float
    predicted_converges: bool
    measured_converges: bool


@dataclass(frozen=True, slots=True)
class Reported:
    """What a report taught. ``error`` is None where there was no prediction to be scored."""

    error: PredictionError | None
    round_seconds: float
    fixed_seconds: float


@dataclass(frozen=True, slots=True)
class ErrorStatistics:
    """How far predictions are off, as parts of what was measured."""

    median: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good predictions were. Statistics are None before the first report."""

    scored_count: int
    right_count: int
    bytes: ErrorStatistics | None
    downtime: ErrorStatistics | None
    seconds: ErrorStatistics | None
    errors: tuple[PredictionError, ...]
