"""ReportMigration and GetAccuracy: what really happened, and how far predictions were off."""

import time
from collections.abc import Iterable
from itertools import islice
from typing import Final

from wetink.v1 import prediction_pb2 as pb
from wetink_collector.errors import RequestMalformed
from wetink_collector.insight import asked
from wetink_collector.insight.accuracy import SCORES_KEPT_MAX, Accuracy, Errors, Score
from wetink_collector.insight.inquiry import Inquiry

LIMIT_DEFAULT: Final = 100
"""As the contract says."""


def report_migration(
    inquiry: Inquiry, accuracy: Accuracy, request: pb.ReportMigrationRequest
) -> pb.ReportMigrationResponse:
    """Answer.

    Raises:
        RequestMalformed, PolicyUnknown: What is reported cannot be.
        TargetUnknown: There is no such target.
    """
    record = inquiry.target(request.target)
    report = asked.report(request)
    score = accuracy.report(record.target, request.prediction_id, report, time.time_ns())
    learned = accuracy.costs(record.target.host_id)
    return pb.ReportMigrationResponse(
        scored=score is not None,
        error=_message(score) if score else None,
        round_seconds=learned.round_seconds,
        fixed_seconds=learned.fixed_seconds,
    )


def get_accuracy(accuracy: Accuracy, request: pb.GetAccuracyRequest) -> pb.GetAccuracyResponse:
    """Answer.

    Raises:
        RequestMalformed: More is asked for than is kept.
    """
    if request.limit > SCORES_KEPT_MAX:
        message = f"limit is {request.limit}, and at most {SCORES_KEPT_MAX} are kept"
        raise RequestMalformed(message)
    scores = accuracy.scores
    return pb.GetAccuracyResponse(
        scored_count=accuracy.scored_count,
        right_count=accuracy.right_count,
        bytes=_statistics(score.bytes_error for score in scores),
        downtime=_statistics(score.downtime_error for score in scores if score.downtime_error is not None),
        seconds=_statistics(score.seconds_error for score in scores),
        errors=[_message(score) for score in islice(reversed(scores), request.limit or LIMIT_DEFAULT)],
    )


def _statistics(errors: Iterable[float]) -> pb.ErrorStatistics | None:
    found = Errors.of(errors)
    return pb.ErrorStatistics(median=found.median, p95=found.p95, max=found.max) if found else None


def _message(score: Score) -> pb.PredictionError:
    expected, report = score.expected, score.report
    return pb.PredictionError(
        name=score.name,
        reported_time_ns=score.time_ns,
        bandwidth_bytes_per_second=report.bytes_a_second,
        policy=report.policy,
        predicted_bytes=expected.total_bytes,
        measured_bytes=report.total_bytes,
        predicted_downtime_seconds=expected.downtime_seconds,
        measured_downtime_seconds=report.downtime_seconds,
        predicted_seconds=expected.total_seconds,
        measured_seconds=report.total_seconds,
        predicted_converges=expected.converges,
        measured_converges=report.converged,
    )
