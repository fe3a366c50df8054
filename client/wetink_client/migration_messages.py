"""Messages of the calls about migrations: requests made from values, and values read from answers. Nothing is sent."""

import math
from collections.abc import Sequence
from typing import Final

from wetink import names
from wetink.v1 import dirty_pb2
from wetink.v1 import prediction_pb2 as pb
from wetink_client.errors import InvalidRequest
from wetink_client.migrations import (
    Accuracy,
    Candidate,
    Confidence,
    DrainPlan,
    ErrorStatistics,
    HoldBack,
    LeftOut,
    MigrationCause,
    MigrationCosts,
    MigrationEnd,
    MigrationPlan,
    MigrationReport,
    PlannedMove,
    PredictedRounds,
    Prediction,
    PredictionBasis,
    PredictionError,
    Predictions,
    QuietWindow,
    Ranking,
    Reported,
    WindowFound,
)
from wetink_client.values import Selectable, Selection

_INT64_MAX: Final = (1 << 63) - 1
_UINT32_MAX: Final = (1 << 32) - 1


def predict_request(target: str, bandwidths: Sequence[int], plan: MigrationPlan) -> pb.PredictMigrationRequest:
    """Ask how a migration would go."""
    return pb.PredictMigrationRequest(
        target=_name(target),
        bandwidths_bytes_per_second=[_int64(bandwidth) for bandwidth in bandwidths],
        plan=_plan(plan),
    )


def window_request(
    target: str, bandwidth: int, plan: MigrationPlan, horizon_seconds: float | None
) -> pb.FindWindowRequest:
    """Ask when to begin."""
    return pb.FindWindowRequest(
        target=_name(target),
        bandwidth_bytes_per_second=_int64(bandwidth),
        plan=_plan(plan),
        horizon_seconds=_given(horizon_seconds, "horizon"),
    )


def rank_request(
    selection: Selectable, bandwidth: int, plan: MigrationPlan, limit: int | None
) -> pb.RankCandidatesRequest:
    """Ask which targets are the cheapest to move."""
    chosen = Selection.of(selection)
    return pb.RankCandidatesRequest(
        selection=dirty_pb2.Selection(
            targets=chosen.targets,
            hosts=chosen.hosts,
            cgroups=chosen.cgroups,
            labels=names.parse_labels(chosen.labels),
        ),
        bandwidth_bytes_per_second=_int64(bandwidth),
        plan=_plan(plan),
        limit=_count(limit, "limit"),
    )


def drain_request(host: str, link: int, plan: MigrationPlan, parallel_max: int | None) -> pb.PlanDrainRequest:
    """Ask how to empty a host."""
    (host_id,) = Selection(hosts=(host,)).hosts
    return pb.PlanDrainRequest(
        host_id=host_id,
        link_bytes_per_second=_int64(link),
        plan=_plan(plan),
        parallel_max=_count(parallel_max, "number of migrations at once"),
    )


def report_request(report: MigrationReport) -> pb.ReportMigrationRequest:
    """Say how a migration went."""
    return pb.ReportMigrationRequest(
        target=_name(report.target),
        prediction_id=report.prediction_id,
        bandwidth_bytes_per_second=_int64(report.bandwidth_bytes_per_second),
        policy=report.policy,
        round_bytes=[_natural(size_bytes) for size_bytes, _ in report.rounds],
        round_seconds=[seconds for _, seconds in report.rounds],
        final_bytes=_natural(report.final_bytes),
        downtime_seconds=report.downtime_seconds or 0.0,
        switched=report.downtime_seconds is not None,
        met_target=report.met_target,
    )


def accuracy_request(limit: int | None) -> pb.GetAccuracyRequest:
    """Ask how good predictions were."""
    return pb.GetAccuracyRequest(limit=_count(limit, "limit"))


def predictions_of(message: pb.PredictMigrationResponse) -> Predictions:
    """Read predictions."""
    return Predictions(
        prediction_id=message.prediction_id,
        basis=_basis(message.basis),
        costs=_costs(message.costs),
        predictions=tuple(_prediction(one) for one in message.predictions),
        smallest_bandwidth_bytes_per_second=message.smallest_bandwidth_bytes_per_second or None,
    )


def window_of(message: pb.FindWindowResponse) -> WindowFound:
    """Read when to begin."""
    found = message.window
    return WindowFound(
        basis=_basis(message.basis),
        period_seconds=message.period_seconds or None,
        period_strength=message.period_strength,
        migration_seconds=message.migration_seconds,
        window=QuietWindow(found.start_time_ns, found.end_time_ns, found.dirty_pages_per_second)
        if message.HasField("window")
        else None,
        reason=message.reason,
    )


def ranking_of(message: pb.RankCandidatesResponse) -> Ranking:
    """Read a ranking."""
    return Ranking(
        candidates=tuple(
            Candidate(
                name=one.name,
                converges=one.converges,
                end=_end(one.end),
                cause=_cause(one.cause),
                total_bytes=one.total_bytes,
                total_seconds=one.total_seconds,
                downtime_seconds=one.downtime_seconds,
                dirty_pages_per_second=one.dirty_pages_per_second,
                populated_page_count=one.populated_page_count,
                confidence=_confidence(one.confidence),
            )
            for one in message.candidates
        ),
        left_out=_left_out(message.left_out),
        costs=_costs(message.costs),
    )


def drain_plan_of(message: pb.PlanDrainResponse) -> DrainPlan:
    """Read a plan."""
    return DrainPlan(
        moves=tuple(
            PlannedMove(
                name=one.name,
                start_seconds=one.start_seconds,
                end_seconds=one.end_seconds,
                bandwidth_bytes_per_second=one.bandwidth_bytes_per_second,
                total_bytes=one.total_bytes,
                downtime_p50_seconds=one.downtime_p50_seconds,
                downtime_p95_seconds=one.downtime_p95_seconds,
                confidence=_confidence(one.confidence),
            )
            for one in message.moves
        ),
        cannot_move=_left_out(message.cannot_move),
        total_seconds=message.total_seconds,
        one_by_one_seconds=message.one_by_one_seconds,
        all_at_once_seconds=message.all_at_once_seconds or None,
        parallel=message.parallel,
        total_bytes=message.total_bytes,
        costs=_costs(message.costs),
    )


def reported_of(message: pb.ReportMigrationResponse) -> Reported:
    """Read what a report taught."""
    return Reported(
        error=_error(message.error) if message.scored else None,
        round_seconds=message.round_seconds,
        fixed_seconds=message.fixed_seconds,
    )


def accuracy_of(message: pb.GetAccuracyResponse) -> Accuracy:
    """Read how good predictions were."""
    return Accuracy(
        scored_count=message.scored_count,
        right_count=message.right_count,
        bytes=_statistics(message.bytes) if message.HasField("bytes") else None,
        downtime=_statistics(message.downtime) if message.HasField("downtime") else None,
        seconds=_statistics(message.seconds) if message.HasField("seconds") else None,
        errors=tuple(_error(one) for one in message.errors),
    )


def _prediction(message: pb.Prediction) -> Prediction:
    held = message.hold_back
    return Prediction(
        bandwidth_bytes_per_second=message.bandwidth_bytes_per_second,
        converges=message.converges,
        converges_when_busy=message.converges_when_busy,
        end=_end(message.end),
        cause=_cause(message.cause),
        rounds=tuple(PredictedRounds(one.bytes, one.seconds, one.count) for one in message.rounds),
        round_count=message.round_count,
        total_bytes=message.total_bytes,
        total_seconds=message.total_seconds,
        downtime_p50_seconds=message.downtime_p50_seconds,
        downtime_p95_seconds=message.downtime_p95_seconds,
        plateau_bytes=message.plateau_bytes,
        plateau_downtime_seconds=message.plateau_downtime_seconds,
        hold_back=HoldBack(
            page_count=held.page_count,
            written_share_min=held.written_share_min,
            total_bytes=held.total_bytes,
            total_seconds=held.total_seconds,
            downtime_seconds=held.downtime_seconds,
            saved_bytes=held.saved_bytes,
        )
        if message.HasField("hold_back")
        else None,
        confidence=_confidence(message.confidence),
        confidence_reason=message.confidence_reason,
    )


def _basis(message: pb.PredictionBasis) -> PredictionBasis:
    return PredictionBasis(
        name=message.name,
        incarnation=message.incarnation,
        as_of_time_ns=message.as_of_time_ns,
        history_seconds=message.history_seconds,
        stretch_count=message.stretch_count,
        exact=message.exact,
        populated_page_count=message.populated_page_count,
        writable_page_count=message.writable_page_count,
        dirty_pages_per_second=message.dirty_pages_per_second,
        page_size=message.page_size,
    )


def _costs(message: pb.MigrationCosts) -> MigrationCosts:
    return MigrationCosts(
        policy=message.policy,
        downtime_target_seconds=message.downtime_target_seconds,
        round_seconds=message.round_seconds,
        fixed_seconds=message.fixed_seconds,
        report_count=message.report_count,
    )


def _error(message: pb.PredictionError) -> PredictionError:
    return PredictionError(
        name=message.name,
        reported_time_ns=message.reported_time_ns,
        bandwidth_bytes_per_second=message.bandwidth_bytes_per_second,
        policy=message.policy,
        predicted_bytes=message.predicted_bytes,
        measured_bytes=message.measured_bytes,
        predicted_downtime_seconds=message.predicted_downtime_seconds,
        measured_downtime_seconds=message.measured_downtime_seconds,
        predicted_seconds=message.predicted_seconds,
        measured_seconds=message.measured_seconds,
        predicted_converges=message.predicted_converges,
        measured_converges=message.measured_converges,
    )


def _statistics(message: pb.ErrorStatistics) -> ErrorStatistics:
    return ErrorStatistics(message.median, message.p95, message.max)


def _left_out(messages: Sequence[pb.LeftOut]) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(one.name, one.reason) for one in messages)


# What a later version of the contract says, and this one does not know, is unknown.
def _end(value: pb.MigrationEnd.ValueType) -> MigrationEnd:
    return dict(enumerate(MigrationEnd)).get(value, MigrationEnd.UNKNOWN)


def _cause(value: pb.MigrationCause.ValueType) -> MigrationCause:
    return dict(enumerate(MigrationCause)).get(value, MigrationCause.UNKNOWN)


def _confidence(value: pb.Confidence.ValueType) -> Confidence:
    return dict(enumerate(Confidence)).get(value, Confidence.UNKNOWN)


def _plan(plan: MigrationPlan) -> pb.MigrationPlan:
    message = pb.MigrationPlan(
        policy=plan.policy,
        downtime_target_seconds=_given(plan.downtime_target_seconds, "downtime"),
        auto_converge=plan.auto_converge,
    )
    if plan.round_seconds is not None:
        message.round_seconds = plan.round_seconds
    if plan.fixed_seconds is not None:
        message.fixed_seconds = plan.fixed_seconds
    return message


def _name(target: str) -> str:
    (name,) = Selection(targets=(target,)).targets
    return name


def _given(seconds: float | None, what: str) -> float:
    """Give a time that was said; 0 would leave it to the collector."""
    if seconds is None:
        return 0.0
    if not 0 < seconds < math.inf:
        message = f"a {what} of {seconds:g} s cannot be: write a number above 0"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return seconds


def _count(value: int | None, what: str) -> int:
    if value is None:
        return 0
    if not 1 <= value <= _UINT32_MAX:
        message = f"{value} is no {what}: write a number from 1 on"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return value


def _int64(value: int) -> int:
    if not -_INT64_MAX <= value <= _INT64_MAX:
        message = f"a bandwidth of {value} bytes a second cannot be"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return value


def _natural(value: int) -> int:
    if not 0 <= value <= _INT64_MAX:
        message = f"{value} is no number of bytes: write one from 0 on"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return value
