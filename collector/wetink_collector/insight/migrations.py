"""PredictMigration and FindWindow: what the history of one target says about a migration of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from wetink.v1 import prediction_pb2 as pb
from wetink_collector.catalog import TargetRecord
from wetink_collector.errors import HistoryTooShort, TargetEnded
from wetink_collector.insight import asked
from wetink_collector.insight.accuracy import Accuracy, Expected
from wetink_collector.insight.history import History
from wetink_collector.insight.inquiry import Inquiry
from wetink_collector.insight.policies import Action, Cause
from wetink_collector.insight.precopy_model import Outcome
from wetink_collector.insight.prediction import Held, Plan, Prediction, Writes, predict, smallest_bandwidth
from wetink_collector.insight.window import Stretch, find_period, next_window, series_of
from wetink_collector.insight.writes import STRETCHES_MIN, history_seconds, writes_of

ROUNDS_GIVEN_MAX: Final = 256
"""As the contract says."""

END_OF: Final = {
    Action.SWITCH: pb.MIGRATION_END_SWITCHED,
    Action.ABORT: pb.MIGRATION_END_ABORTED,
    Action.CONTINUE: pb.MIGRATION_END_ENDLESS,
}
"""How the contract says that copying ends."""

CAUSE_OF: Final = {cause: pb.MigrationCause.Value(f"MIGRATION_CAUSE_{cause.name}") for cause in Cause}
"""How it says why."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was looked up of one target."""

    writes: Writes
    basis: pb.PredictionBasis
    stretches: Sequence[Stretch]


async def predict_migration(
    inquiry: Inquiry, accuracy: Accuracy, request: pb.PredictMigrationRequest
) -> pb.PredictMigrationResponse:
    """Answer.

    Raises:
        RequestMalformed, PolicyUnknown: What is asked cannot be.
        TargetUnknown, TargetEnded: It cannot be migrated.
        HistoryTooShort: Too little is known of it.
        StoreUnavailable: Rounds cannot be read now.
    """
    over = asked.bandwidths(request.bandwidths_bytes_per_second)
    record = living(inquiry, request.target)
    learned = accuracy.costs(record.target.host_id)
    plan = asked.plan(request.plan, learned)
    known = await look(inquiry, record)
    predictions, smallest = await inquiry.on_thread(_predict_all, known.writes, plan, over)
    expected = [expected_of(each) for each in predictions]
    return pb.PredictMigrationResponse(
        prediction_id=accuracy.keep(record.target, plan.policy, expected),
        basis=known.basis,
        costs=asked.costs(plan, request.plan, learned),
        predictions=[_message(each) for each in predictions],
        smallest_bandwidth_bytes_per_second=smallest,
    )


async def find_window(inquiry: Inquiry, accuracy: Accuracy, request: pb.FindWindowRequest) -> pb.FindWindowResponse:
    """Answer. It raises what ``predict_migration`` does."""
    over = asked.bandwidth(request.bandwidth_bytes_per_second)
    horizon_seconds = asked.horizon(request.horizon_seconds)
    record = living(inquiry, request.target)
    plan = asked.plan(request.plan, accuracy.costs(record.target.host_id))
    known = await look(inquiry, record)
    away_seconds = _away_seconds(inquiry, record.target.host_id, time.time_ns())
    return await inquiry.on_thread(_find_window, known, plan, over, away_seconds, horizon_seconds)


def living(inquiry: Inquiry, text: str) -> TargetRecord:
    """Give the target with a name, if it has not ended.

    Raises:
        RequestMalformed, TargetUnknown: As ``Inquiry.target``.
        TargetEnded: It has.
    """
    record = inquiry.target(text)
    if record.ended:
        message = f"{why_ended(record)}: nothing can be said of a migration of it"
        raise TargetEnded(message)
    return record


async def look(inquiry: Inquiry, record: TargetRecord) -> Known:
    """Look up what is known of a target.

    Raises:
        HistoryTooShort: It is too little.
        StoreUnavailable: Rounds cannot be read now.
    """
    old_because = why_old(inquiry, record.target.host_id)

    def known(history: History) -> Known | str:
        if history.stretch_count < STRETCHES_MIN:
            return too_few(record)
        if not history.has_windows:
            return no_time(record)
        writes = writes_of(history, record.started.page_size)
        writes = replace(writes, old_because=old_because or writes.old_because)
        stretches = [
            Stretch(rate.since_ns / 1e9, rate.until_ns / 1e9, rate.written_page_count) for rate in history.rates()
        ]
        return Known(writes, basis_of(record, history), stretches)

    found: Known | str = await inquiry.look_at_one(record, known)
    if isinstance(found, str):
        raise HistoryTooShort(found)
    return found


def why_old(inquiry: Inquiry, host_id: str) -> str:
    """Say why the histories of a host's targets are not about now; nothing where they are."""
    if inquiry.catalog.connected(host_id):
        return ""
    return f"the agent of host {host_id} is not connected: what was written since the as-of time is not known"


def why_ended(record: TargetRecord) -> str:
    """Say why a target is not tracked any more; the process itself may well go on."""
    assert record.ended
    return f"tracking of {record.name} has ended ({record.ended.reason_name})"


def too_few(record: TargetRecord) -> str:
    """Say that there are too few rounds to predict from."""
    return (
        f"of {record.name} fewer than {STRETCHES_MIN} rounds after the first are known: ask again when they have come"
    )


def no_time(record: TargetRecord) -> str:
    """Say that rounds have come, and that they are of no time."""
    return (
        f"by the clock of its host no time passed in the rounds of {record.name}, as where it was set back: "
        "ask again when it is later than it was before"
    )


def basis_of(record: TargetRecord, history: History) -> pb.PredictionBasis:
    """Say what a prediction rests on."""
    assert history.last is not None
    return pb.PredictionBasis(
        name=record.name,
        incarnation=record.incarnation.incarnation,
        as_of_time_ns=history.last.last_time_ns,
        history_seconds=history_seconds(history),
        stretch_count=history.stretch_count,
        exact=history.exact,
        populated_page_count=history.last.populated_page_count,
        writable_page_count=history.writable()[1],
        dirty_pages_per_second=history.dirty_pages_per_second(),
        page_size=record.started.page_size,
    )


def expected_of(prediction: Prediction) -> Expected:
    """Give what a report is to be compared with."""
    return Expected(
        bytes_a_second=round(prediction.bytes_a_second),
        total_bytes=bytes_of(prediction.outcome),
        total_seconds=prediction.outcome.total_seconds,
        downtime_seconds=prediction.downtime_p50_seconds,
        converges=prediction.converges,
    )


def bytes_of(outcome: Outcome) -> int:
    """Give the bytes that a migration sends."""
    return round(outcome.sent_pages * outcome.link.page_size)


def _predict_all(writes: Writes, plan: Plan, over: Sequence[int]) -> tuple[list[Prediction], int]:
    return [predict(writes, plan, value) for value in over], smallest_bandwidth(writes, plan)


def _message(prediction: Prediction) -> pb.Prediction:
    outcome = prediction.outcome
    page_size = outcome.link.page_size
    return pb.Prediction(
        bandwidth_bytes_per_second=round(prediction.bytes_a_second),
        converges=prediction.converges,
        converges_when_busy=prediction.converges_when_busy,
        end=END_OF[outcome.action],
        cause=CAUSE_OF[outcome.cause],
        rounds=[
            pb.PredictedRounds(bytes=round(one.pages * page_size), seconds=one.seconds, count=one.count)
            for one in outcome.rounds[:ROUNDS_GIVEN_MAX]
        ],
        round_count=outcome.round_count,
        total_bytes=bytes_of(outcome),
        total_seconds=outcome.total_seconds,
        downtime_p50_seconds=prediction.downtime_p50_seconds,
        downtime_p95_seconds=prediction.downtime_p95_seconds,
        plateau_bytes=round(prediction.plateau_pages * page_size),
        plateau_downtime_seconds=prediction.plateau_pages / outcome.link.pages_a_second + outcome.link.fixed_seconds,
        hold_back=_hold_back(prediction.held, outcome) if prediction.held else None,
        confidence=pb.Confidence.ValueType(prediction.reliance.value),
        confidence_reason=prediction.reliance_reason,
    )


def _hold_back(held: Held, without: Outcome) -> pb.HoldBack:
    return pb.HoldBack(
        page_count=held.pages,
        written_share_min=held.share_min,
        total_bytes=bytes_of(held.outcome),
        total_seconds=held.outcome.total_seconds,
        downtime_seconds=held.outcome.downtime_seconds,
        saved_bytes=bytes_of(without) - bytes_of(held.outcome),
    )


def _away_seconds(inquiry: Inquiry, host_id: str, now_ns: int) -> float:
    """Give how long nothing has been heard of a host whose agent is not connected: its clock has gone on meanwhile."""
    host = inquiry.catalog.hosts.get(host_id)
    if host is None or host.connected:
        return 0.0
    return max(0, now_ns - host.last_seen_time_ns) / 1e9


def _find_window(
    known: Known, plan: Plan, over: int, away_seconds: float, horizon_seconds: float
) -> pb.FindWindowResponse:
    needed_seconds = predict(known.writes, plan, over, in_full=False).outcome.total_seconds
    response = pb.FindWindowResponse(basis=known.basis, migration_seconds=needed_seconds)
    ends = [stretch.end_seconds for stretch in known.stretches]
    if not ends or max(ends) <= known.stretches[0].start_seconds:
        response.reason = "the rounds that are kept took no time"
        return response
    series = series_of(known.stretches)
    period = find_period(series)
    if period is None:
        response.reason = (
            f"no period was found in {series.end_seconds - series.start_seconds:.0f} s of history: "
            "one that was not seen three times, or not clearly, cannot be told from chance"
        )
        return response
    response.period_seconds, response.period_strength = period.seconds, period.strength
    if away_seconds > series.end_seconds - series.start_seconds:
        response.reason = (
            f"nothing was heard of its host for {away_seconds:.0f} s, longer than the history is: "
            "where in its cycle the target is now cannot be told"
        )
        return response
    window = next_window(
        series,
        period,
        # A time that is over is none to begin at.
        from_seconds=series.end_seconds + away_seconds,
        needed_seconds=needed_seconds,
        horizon_seconds=horizon_seconds,
    )
    if window is None:
        response.reason = (
            f"no quiet stretch of {needed_seconds:.3g} s begins within {horizon_seconds:.0f} s: "
            f"of each {period.seconds:.3g} s too few have at most half of the mean written"
        )
        return response
    response.window.CopyFrom(
        pb.QuietWindow(
            start_time_ns=round(window.start_seconds * 1e9),
            end_time_ns=round(window.end_seconds * 1e9),
            dirty_pages_per_second=window.pages_a_second,
        )
    )
    return response
