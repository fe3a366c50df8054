"""RankCandidates and PlanDrain: which of many targets to move, and in which order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from wetink.names import NameMalformed, check_host_id
from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import prediction_pb2 as pb
from wetink_collector.catalog import TargetRecord
from wetink_collector.errors import HistoryTooShort, HostUnknown, MessageTooLarge, RequestMalformed, StoreUnavailable
from wetink_collector.insight import asked
from wetink_collector.insight.accuracy import Accuracy
from wetink_collector.insight.drain import Job, Schedule, all_at_once, lane_counts, one_by_one, plan_drain
from wetink_collector.insight.history import History
from wetink_collector.insight.inquiry import Inquiry, too_short
from wetink_collector.insight.migrations import CAUSE_OF, END_OF, bytes_of, no_time, too_few, why_ended, why_old
from wetink_collector.insight.policies import Cause
from wetink_collector.insight.prediction import Plan, Prediction, Writes, predict
from wetink_collector.insight.writes import STRETCHES_MIN, mean_writes_of, writes_of
from wetink_collector.selection import TARGETS_MAX

AT_ONCE: Final = 256
"""Histories that are looked at together: other calls have their turn on the threads after so many."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was looked up of one target among others."""

    record: TargetRecord
    writes: Writes
    dirty_pages_per_second: float


async def rank_candidates(
    inquiry: Inquiry, accuracy: Accuracy, request: pb.RankCandidatesRequest
) -> pb.RankCandidatesResponse:
    """Answer.

    Raises:
        RequestMalformed, PolicyUnknown: What is asked cannot be.
        SelectionMalformed, TargetUnknown: Nothing that is here is meant.
        MessageTooLarge: There are too many targets for one message.
    """
    over = asked.bandwidth(request.bandwidth_bytes_per_second)
    asked.policy(request.plan.policy)
    _, records = inquiry.chosen(request.selection)
    plans = _plans(accuracy, request.plan, records)
    found, left_out = await _look_at_all(inquiry, records, mean_writes_of)

    costs = _costs(accuracy, request.plan, records)

    def ranked() -> pb.RankCandidatesResponse:
        each = [
            (known, predict(known.writes, plans[known.record.target.host_id], over, in_full=False)) for known in found
        ]
        each.sort(key=lambda pair: (not pair[1].converges, bytes_of(pair[1].outcome), pair[0].record.order))
        first = each[: request.limit or None]
        # A thousand messages take as long to make as to fill: nobody who is to be acknowledged waits for that.
        candidates = [_candidate(known, prediction) for known, prediction in first]
        response = pb.RankCandidatesResponse(candidates=candidates, left_out=left_out, costs=costs)
        return _fitting(response, len(records))

    return await inquiry.on_thread(ranked)


async def plan_drain_of(inquiry: Inquiry, accuracy: Accuracy, request: pb.PlanDrainRequest) -> pb.PlanDrainResponse:
    """Answer.

    Raises:
        RequestMalformed, PolicyUnknown: What is asked cannot be.
        HostUnknown: No agent of the host was ever here.
        MessageTooLarge: It has too many targets for one message.
    """
    over = asked.bandwidth(request.link_bytes_per_second)
    try:
        host_id = check_host_id(request.host_id)
    except NameMalformed as error:
        raise RequestMalformed(str(error)) from error
    if host_id not in inquiry.catalog.hosts:
        message = f"host {host_id} is not known here; `wetink hosts` lists those that are"
        raise HostUnknown(message)
    learned = accuracy.costs(host_id)
    plan = asked.plan(request.plan, learned)
    records = sorted(
        (record for record in inquiry.catalog.on_host(host_id) if inquiry.catalog.may_live(record)),
        key=lambda record: record.order,
    )
    if len(records) > TARGETS_MAX:
        message = f"host {host_id} has {len(records)} targets, at most {TARGETS_MAX} go in one plan"
        raise RequestMalformed(message)
    found, left_out = await _look_at_all(inquiry, records, writes_of)
    drained = await inquiry.on_thread(_drain, found, plan, over, request.parallel_max)
    cannot_move = sorted([*left_out, *drained.cannot_move], key=lambda one: one.name)
    response = pb.PlanDrainResponse(
        moves=drained.moves,
        cannot_move=cannot_move,
        total_seconds=drained.schedule.total_seconds,
        one_by_one_seconds=drained.one_by_one_seconds,
        all_at_once_seconds=drained.all_at_once_seconds,
        parallel=drained.schedule.lanes,
        total_bytes=sum(move.total_bytes for move in drained.moves),
        costs=asked.costs(plan, request.plan, learned),
    )
    return _fitting(response, len(records))


@dataclass(frozen=True, slots=True)
class _Drained:
    schedule: Schedule
    moves: Sequence[pb.PlannedMove]
    cannot_move: Sequence[pb.LeftOut]
    one_by_one_seconds: float
    all_at_once_seconds: float


async def _look_at_all(
    inquiry: Inquiry, records: Sequence[TargetRecord], writes: Callable[[History, int], Writes]
) -> tuple[list[Known], list[pb.LeftOut]]:
    """Look at histories, many at once; say of which targets too little is known."""
    living = [record for record in records if not record.ended]
    looked = {}
    for start in range(0, len(living), AT_ONCE):
        some = living[start : start + AT_ONCE]
        old = {host_id: why_old(inquiry, host_id) for host_id in {record.target.host_id for record in some}}

        def look(record: TargetRecord, history: History, old: Mapping[str, str] = old) -> Known | str:
            return _known(record, history, writes, old[record.target.host_id])

        answers = await inquiry.look_at_many(some, look)
        looked.update({record.target: answer for record, answer in zip(some, answers, strict=True)})
    found: list[Known] = []
    left_out: list[pb.LeftOut] = []
    for record in records:
        match looked.get(record.target):
            case Known() as known:
                found.append(known)
            case StoreUnavailable() | HistoryTooShort() as error:
                left_out.append(pb.LeftOut(name=record.name, reason=str(error)))
            case reason:
                left_out.append(pb.LeftOut(name=record.name, reason=reason or _why_nothing(record)))
    return found, left_out


def _known(
    record: TargetRecord, history: History, writes: Callable[[History, int], Writes], old_because: str
) -> Known | str:
    """Give what is known of a target, or why that is too little."""
    if history.stretch_count < STRETCHES_MIN:
        return too_few(record)
    if not history.has_windows:
        return no_time(record)
    found = writes(history, record.started.page_size)
    return Known(record, replace(found, old_because=old_because or found.old_because), history.dirty_pages_per_second())


def _why_nothing(record: TargetRecord) -> str:
    return why_ended(record) if record.ended else too_short(record)


def _plans(accuracy: Accuracy, plan: pb.MigrationPlan, records: Sequence[TargetRecord]) -> Mapping[str, Plan]:
    """Give the plan for each host: costs are learned of hosts."""
    hosts = {record.target.host_id for record in records}
    return {host_id: asked.plan(plan, accuracy.costs(host_id)) for host_id in hosts}


def _costs(accuracy: Accuracy, plan: pb.MigrationPlan, records: Sequence[TargetRecord]) -> pb.MigrationCosts:
    hosts = {record.target.host_id for record in records}
    learned = max((accuracy.costs(host_id) for host_id in sorted(hosts)), key=lambda costs: costs.report_count)
    return asked.costs(asked.plan(plan, learned), plan, learned)


def _candidate(known: Known, prediction: Prediction) -> pb.Candidate:
    return pb.Candidate(
        name=known.record.name,
        converges=prediction.converges,
        end=END_OF[prediction.outcome.action],
        cause=CAUSE_OF[prediction.outcome.cause],
        total_bytes=bytes_of(prediction.outcome),
        total_seconds=prediction.outcome.total_seconds,
        downtime_seconds=prediction.outcome.downtime_seconds,
        dirty_pages_per_second=known.dirty_pages_per_second,
        populated_page_count=known.writes.populated_pages,
        confidence=pb.Confidence.ValueType(prediction.reliance.value),
    )


def _drain(found: Sequence[Known], plan: Plan, over: int, parallel_max: int) -> _Drained:
    """Predict every target in lanes of every width, and plan. Runs on a thread."""
    alone = {known.record.name: predict(known.writes, plan, over, in_full=False) for known in found}
    movable = [known for known in found if alone[known.record.name].converges]
    # A lane has a byte a second at least.
    counts = lane_counts(len(movable), min(parallel_max or over, over))
    predictions = {(name, 1): prediction for name, prediction in alone.items()}
    for known in movable:
        for lanes in counts:
            if lanes > 1:
                predictions[known.record.name, lanes] = predict(known.writes, plan, over // lanes, in_full=False)
    jobs = [
        Job(
            known.record.name,
            {
                lanes: predictions[known.record.name, lanes].outcome.total_seconds
                for lanes in sorted({1, *counts})
                if predictions[known.record.name, lanes].converges
            },
        )
        for known in movable
    ]
    schedule = plan_drain(jobs, counts)
    at_once = all_at_once(jobs, counts[-1]) if counts else None
    return _Drained(
        schedule=schedule,
        moves=[
            _move(placed.name, placed.start_seconds, placed.end_seconds, predictions[placed.name, placed.lanes])
            for placed in schedule.placed
        ],
        cannot_move=[
            pb.LeftOut(name=known.record.name, reason=_why_not(alone[known.record.name], plan, over))
            for known in found
            if not alone[known.record.name].converges
        ],
        one_by_one_seconds=one_by_one(jobs).total_seconds,
        all_at_once_seconds=at_once.total_seconds if at_once else 0.0,
    )


def _move(name: str, start_seconds: float, end_seconds: float, prediction: Prediction) -> pb.PlannedMove:
    return pb.PlannedMove(
        name=name,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        bandwidth_bytes_per_second=round(prediction.bytes_a_second),
        total_bytes=bytes_of(prediction.outcome),
        downtime_p50_seconds=prediction.downtime_p50_seconds,
        downtime_p95_seconds=prediction.downtime_p95_seconds,
        confidence=pb.Confidence.ValueType(prediction.reliance.value),
    )


def _why_not(prediction: Prediction, plan: Plan, over: int) -> str:
    outcome = prediction.outcome
    why = outcome.cause.value
    if outcome.cause is Cause.TARGET_MET:
        why = f"policy {plan.policy} does not count that {plan.fixed_seconds:.3g} s of it depend on no page"
    return (
        f"over {over} bytes a second its downtime would be {outcome.downtime_seconds:.3g} s, "
        f"and {plan.downtime_seconds:.3g} s are aimed at: {why}"
    )


_Answer = TypeVar("_Answer", pb.RankCandidatesResponse, pb.PlanDrainResponse)


def _fitting(response: _Answer, target_count: int) -> _Answer:
    if response.ByteSize() > MESSAGE_BYTES_MAX:
        message = f"an answer about {target_count} targets does not fit in one message; ask in several calls"
        raise MessageTooLarge(message)
    return response
