"""Predictions by a real collector, asked for with the SDK and on the plain stub; each mistake is one sentence."""

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, TypeAlias

import grpc
import pytest
from google.protobuf.message import Message

from tests.integration.collector.wire import T0_NS, Agent, batch, channel, refused, start, target
from tests.support.collector import CollectorProcess
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1 import prediction_pb2 as pb
from wetink.v1.insight_pb2_grpc import InsightServiceStub
from wetink_client import (
    AsyncCollector,
    Collector,
    HistoryTooShort,
    InvalidRequest,
    MigrationPlan,
    MigrationReport,
    Refused,
    Selection,
)

PAGE: Final = 4096
SPEED: Final = 100 * PAGE
"""A hundred pages a second."""

FREE: Final = MigrationPlan(round_seconds=0.0, fixed_seconds=0.0)
"""Without fixed costs: what other tests have reported to the collector that they share does not count then."""

CODE: TypeAlias = grpc.StatusCode


def round_and_round(each: int, span: int, count: int) -> list[list[int]]:
    """Give rounds of a second: all of 1000 pages, then so many a round, in turn, of a part of them."""
    rounds = [list(range(1000))]
    written = 0
    for _ in range(count):
        rounds.append([(written + number) % span for number in range(each)])
        written += each
    return rounds


def in_cycles(period: int, quiet: int, count: int) -> list[list[int]]:
    """Give rounds that write 300 pages, and 3 in the last few of each cycle."""
    made = [list(range(1000))]
    for number in range(count):
        pages = 3 if number % period >= period - quiet else 300
        made.append([(number * 300 + page) % 1000 for page in range(pages)])
    return made


@pytest.fixture
def name(host: str) -> str:
    """Give the name of the test's target."""
    return f"{host}/1@100"


@pytest.fixture
def one(host: str) -> types_pb2.Target:
    """Give the test's target."""
    return target(1, host_id=host)


@pytest.fixture
def connected(agent: Agent) -> Agent:
    """Give a stream that has said Hello."""
    agent.hello()
    return agent


def by_hand(each: float, span: float, populated: float, *, downtime: float) -> tuple[list[float], float]:
    """Follow V' = min(r V / B, w) until it fits; the rounds in pages, and what is left."""
    rounds, pages = [], populated
    while True:
        rounds.append(pages)
        pages = min(each * pages / 100, span)
        if pages / 100 <= downtime:
            return rounds, pages


def test_prediction_is_the_recursion_over_what_was_written(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """50 pages a second, round and round over 200, over 100 pages a second: each round sends half of the one before."""
    connected.deliver(one, *round_and_round(50, 200, 60))
    plan = MigrationPlan(downtime_target_seconds=0.6, round_seconds=0.0, fixed_seconds=0.0)
    rounds, left = by_hand(50, 200, 1061, downtime=0.6)

    with Collector(shared_collector.address) as collector:
        said = collector.predict(name, [SPEED, SPEED // 4], plan)

    fast, slow = said.predictions
    assert [one.bytes / PAGE for one in fast.rounds] == pytest.approx(rounds, rel=0.03)
    assert fast.downtime_p50_seconds == pytest.approx(left / 100, rel=0.05)
    assert fast.total_bytes / PAGE == pytest.approx(sum(rounds) + left, rel=0.02)
    assert (fast.converges, fast.end, fast.cause) == (True, "switched", "target-met")
    assert (fast.plateau_bytes, fast.hold_back) == (0, None)
    # A quarter of that carries 25 pages a second: all 200 stay dirty.
    assert (slow.converges, slow.cause) == (False, "stalled")
    assert slow.plateau_bytes / PAGE == pytest.approx(200, abs=1)
    assert slow.plateau_downtime_seconds == pytest.approx(8, rel=0.01)
    assert said.smallest_bandwidth_bytes_per_second is not None
    assert SPEED // 4 < said.smallest_bandwidth_bytes_per_second <= SPEED
    assert (said.basis.name, said.basis.stretch_count, said.basis.exact) == (name, 60, True)
    assert said.basis.populated_page_count == 1061
    assert said.basis.history_seconds == pytest.approx(60)
    assert said.costs.report_count == 0


def test_target_whose_clock_was_set_back_spoils_no_other_s_answer(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str, host: str
) -> None:
    """Of it nothing is predicted until its clock is where it was; the others are ranked, and the host is drained."""
    other = target(2, host_id=host)
    connected.deliver(one, range(10))
    for number in range(2, 9):
        later = batch(one, number, written=[number])
        later.last_time_ns = later.first_time_ns = T0_NS - (100 - number) * 10**9
        connected.say(later)
    connected.acknowledged(one, 8)
    connected.deliver(other, *round_and_round(50, 200, 10))

    with Collector(shared_collector.address) as collector:
        with pytest.raises(HistoryTooShort, match="no time passed"):
            collector.predict(name, [SPEED], FREE)
        ranking = collector.rank(Selection(hosts=(host,)), SPEED, FREE)
        drain = collector.plan_drain(host, SPEED, FREE)

    for left_out in (ranking.left_out, drain.cannot_move):
        assert [one.name for one in left_out] == [name]
        assert "no time passed" in left_out[0].reason
    assert [one.name for one in ranking.candidates] == [one.name for one in drain.moves] == [f"{host}/2@100"]


def test_prediction_says_what_it_cannot_know(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """Rounds of a second say little of a tenth of one, and ten seconds of history little of twenty."""
    connected.deliver(one, *round_and_round(50, 200, 10))

    with Collector(shared_collector.address) as collector:
        shortest, longest = collector.predict(name, [100 * SPEED, SPEED // 4], FREE).predictions

    assert (shortest.confidence, longest.confidence) == ("low", "low")
    assert "is not known" in shortest.confidence_reason
    assert "history" in longest.confidence_reason


def test_report_is_scored_and_learned_from(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """What rounds took beyond their bytes is in the next prediction; how far off the last was, in the accuracy."""
    connected.deliver(one, *round_and_round(50, 200, 60))
    with Collector(shared_collector.address) as collector:
        before = collector.accuracy()
        said = collector.predict(name, [SPEED], MigrationPlan(downtime_target_seconds=0.6))
        predicted = said.predictions[0]
        report = MigrationReport(
            target=name,
            bandwidth_bytes_per_second=SPEED,
            rounds=[(1000 * PAGE, 10.25), (200 * PAGE, 2.25), (100 * PAGE, 1.25)],
            final_bytes=50 * PAGE,
            downtime_seconds=0.9,
            met_target=True,
            prediction_id=said.prediction_id,
        )
        told = collector.report_migration(report)
        again = collector.report_migration(report)
        after = collector.accuracy(limit=1)
        learned = collector.predict(name, [SPEED]).costs

    assert told.error is not None
    assert told.error.measured_bytes == 1350 * PAGE
    assert told.error.predicted_bytes == predicted.total_bytes
    assert told.error.predicted_converges is told.error.measured_converges is True
    assert again.error is None
    assert after.scored_count == before.scored_count + 1
    assert after.right_count == before.right_count + 1
    assert after.errors == (told.error,)
    assert after.bytes is not None
    assert learned.round_seconds == pytest.approx(0.25)
    assert learned.fixed_seconds == pytest.approx(0.4)
    assert learned.report_count == 2, "of this host"


def test_window_is_the_next_quiet_stretch(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """Cycles of 20 s that are quiet for 8, seen up to second 101 + 1: the next such stretch begins at second 113."""
    connected.deliver(one, *in_cycles(20, 8, 100))

    with Collector(shared_collector.address) as collector:
        found = collector.find_window(name, 10 * SPEED, FREE)

    assert found.period_seconds == pytest.approx(20, abs=0.5)
    assert found.window is not None
    # Round n ends n seconds after the beginning, and round 2 is the first of the cycles.
    assert (found.window.start_time_ns - T0_NS) / 1e9 == pytest.approx(113, abs=1)
    assert (found.window.end_time_ns - T0_NS) / 1e9 == pytest.approx(121, abs=1)
    assert found.window.dirty_pages_per_second < 50
    assert found.reason == ""


def test_no_window_is_in_the_past_while_its_agent_is_away(
    shared_collector: CollectorProcess, one: types_pb2.Target, name: str, host: str
) -> None:
    """The cycles go on meanwhile, and a stretch that has begun begins now, not when the last round came."""
    with Agent(shared_collector.address, host) as agent, Collector(shared_collector.address) as collector:
        agent.hello()
        agent.deliver(one, *in_cycles(20, 8, 74))
        connected = collector.find_window(name, 10 * SPEED, FREE)
        agent.half_close()
        while any(found.host_id == host and found.connected for found in collector.hosts()):
            pass
        gone = time.monotonic()
        time.sleep(0.2)
        passed_seconds = time.monotonic() - gone
        away = collector.find_window(name, 10 * SPEED, FREE)

    assert connected.window is not None
    assert away.window is not None
    assert connected.window.start_time_ns - connected.basis.as_of_time_ns < 1e6
    assert (away.window.start_time_ns - away.basis.as_of_time_ns) / 1e9 > 0.9 * passed_seconds


def test_no_window_is_told_once_an_agent_was_away_for_longer_than_was_seen(
    shared_collector: CollectorProcess, one: types_pb2.Target, name: str, host: str
) -> None:
    """A hundred rounds of a millisecond: after a tenth of a second nobody knows where in its cycle the target is."""
    with Agent(shared_collector.address, host) as agent, Collector(shared_collector.address) as collector:
        agent.hello()
        agent.say(start(one))
        for number, written in enumerate(in_cycles(20, 8, 100), 1):
            some = batch(one, number, written=written)
            some.last_time_ns = T0_NS + number * 10**6
            agent.say(some)
        agent.acknowledged(one, 101)
        agent.half_close()
        while any(found.host_id == host and found.connected for found in collector.hosts()):
            pass
        time.sleep(0.2)
        found = collector.find_window(name, 10**9, FREE)

    assert found.period_seconds == pytest.approx(0.02, rel=0.1)
    assert (found.window, "nothing was heard" in found.reason) == (None, True)


def test_no_window_is_an_answer_with_its_reason(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str, host: str
) -> None:
    """Neither a target without cycles nor one whose quiet stretches are too short has a best time."""
    made = Random(5)  # noqa: S311 (test data)
    noise = [range(1000), *(made.sample(range(1000), made.randrange(10, 300)) for _ in range(90))]
    connected.deliver(one, *noise)
    connected.deliver(target(2, host_id=host), *in_cycles(20, 5, 100))

    with Collector(shared_collector.address) as collector:
        without = collector.find_window(name, 10 * SPEED, FREE)
        short = collector.find_window(f"{host}/2", SPEED, FREE)

    assert (without.window, without.period_seconds) == (None, None)
    assert "no period" in without.reason
    assert short.window is None
    assert short.period_seconds == pytest.approx(20, abs=0.5)
    assert "quiet" in short.reason


def test_candidates_come_by_what_they_cost(connected: Agent, shared_collector: CollectorProcess, host: str) -> None:
    """Those that converge first, by their bytes; those of which nothing is known last, with the reason."""
    for pid, each in enumerate((5, 60, 20, 300), 1):
        connected.deliver(target(pid, host_id=host), *round_and_round(each, 800, 20), labels={"of": host})
    connected.deliver(target(9, host_id=host), range(10), labels={"of": host})

    with Collector(shared_collector.address) as collector:
        labelled = Selection(labels=(f"of={host}",))
        ranking = collector.rank(labelled, SPEED, FREE)
        two = collector.rank(labelled, SPEED, FREE, limit=2)

    assert [one.name for one in ranking.candidates] == [f"{host}/{pid}@100" for pid in (1, 3, 2, 4)]
    assert [one.converges for one in ranking.candidates] == [True, True, True, False]
    sizes = [one.total_bytes for one in ranking.candidates[:3]]
    assert sizes == sorted(sizes)
    assert [one.name for one in ranking.left_out] == [f"{host}/9@100"]
    assert "first round" in ranking.left_out[0].reason
    assert two.candidates == ranking.candidates[:2]


def test_drain_of_fifty_targets_is_no_worse_than_the_naive_ones_and_keeps_to_the_link(
    connected: Agent, shared_collector: CollectorProcess, host: str
) -> None:
    """Who cannot be moved is said with the reason; everybody else is moved once."""
    made = Random(3)  # noqa: S311 (test data)
    heavy = {7, 23}
    for pid in range(1, 51):
        each = 600 if pid in heavy else made.randrange(1, 40)
        connected.say(start(target(pid, host_id=host)))
        for number, written in enumerate(round_and_round(each, 900, 8), 1):
            connected.say(batch(target(pid, host_id=host), number, written=written))
    waiting = set(range(1, 51))
    while waiting:
        waiting -= {one.target.pid for one in connected.hear("ack").ack.positions if one.round == 9}
    link = 4 * SPEED
    plan = MigrationPlan(downtime_target_seconds=1.0, round_seconds=0.5, fixed_seconds=0.3)

    with Collector(shared_collector.address) as collector:
        found = collector.plan_drain(host, link, plan)
        few = collector.plan_drain(host, link, plan, parallel_max=2)

    assert {one.name for one in found.cannot_move} == {f"{host}/{pid}@100" for pid in heavy}
    assert all("downtime" in one.reason for one in found.cannot_move)
    assert sorted(one.name for one in found.moves) == sorted(
        f"{host}/{pid}@100" for pid in range(1, 51) if pid not in heavy
    )
    for plan_found in (found, few):
        assert plan_found.total_seconds <= plan_found.one_by_one_seconds
        assert plan_found.all_at_once_seconds is None or plan_found.total_seconds <= plan_found.all_at_once_seconds
        assert plan_found.total_seconds == max(one.end_seconds for one in plan_found.moves)
        for begun in plan_found.moves:
            used = [one for one in plan_found.moves if one.start_seconds <= begun.start_seconds < one.end_seconds]
            assert sum(one.bandwidth_bytes_per_second for one in used) <= link
            assert len(used) <= plan_found.parallel
        assert all(one.downtime_p50_seconds <= 1.0 for one in plan_found.moves)
    assert few.parallel <= 2
    assert found.total_seconds < found.one_by_one_seconds, "waiting half a second a round leaves the link to others"


def test_drain_over_hardly_any_link_keeps_to_it(
    connected: Agent, shared_collector: CollectorProcess, host: str
) -> None:
    """Three that write nothing, over two bytes a second: no three lanes of a byte each."""
    for pid in (1, 2, 3):
        connected.deliver(target(pid, host_id=host), range(1000), *([()] * 8))

    with Collector(shared_collector.address) as collector:
        found = collector.plan_drain(host, 2, FREE)

    assert len(found.moves) == 3
    for begun in found.moves:
        used = [one for one in found.moves if one.start_seconds <= begun.start_seconds < one.end_seconds]
        assert sum(one.bandwidth_bytes_per_second for one in used) <= 2


def test_plan_says_what_a_policy_does_not_count(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, host: str
) -> None:
    """QEMU stops when the pages fit into its limit; with what a downtime takes besides, it is over it."""
    connected.deliver(one, *round_and_round(5, 50, 30))

    with Collector(shared_collector.address) as collector:
        (left,) = collector.plan_drain(host, SPEED, MigrationPlan("qemu", 1.0, fixed_seconds=1.0)).cannot_move

    assert left.reason.endswith("policy qemu does not count that 1 s of it depend on no page")


def test_drain_of_a_host_without_targets_is_an_empty_plan(
    connected: Agent, shared_collector: CollectorProcess, host: str
) -> None:
    """There is nothing to be done, which takes no time."""
    assert connected.call.is_active()
    with Collector(shared_collector.address) as collector:
        found = collector.plan_drain(host, SPEED)

    assert (found.moves, found.cannot_move, found.total_seconds, found.parallel) == ((), (), 0, 0)


def test_both_clients_say_the_same(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str, host: str
) -> None:
    """Each call of the one is a call of the other."""
    connected.deliver(one, *in_cycles(20, 8, 70))
    report = MigrationReport(name, SPEED, [(PAGE, 1.0)])

    async def ask() -> Sequence[object]:
        async with AsyncCollector(shared_collector.address) as collector:
            return (
                (await collector.predict(name, [SPEED])).predictions,
                await collector.find_window(name, SPEED),
                await collector.rank(name, SPEED),
                await collector.plan_drain(host, SPEED),
                (await collector.accuracy(limit=1)).right_count,
                (await collector.report_migration(report)).round_seconds,
            )

    with Collector(shared_collector.address) as collector:
        said = (
            collector.predict(name, [SPEED]).predictions,
            collector.find_window(name, SPEED),
            collector.rank(name, SPEED),
            collector.plan_drain(host, SPEED),
            collector.accuracy(limit=1).right_count,
            collector.report_migration(report).round_seconds,
        )
    # The report teaches, so that what is asked after it is counted with other costs.
    found = asyncio.run(ask())
    assert [type(one) for one in found] == [type(one) for one in said]
    assert found[5] == said[5]


def plan(**fields: object) -> pb.MigrationPlan:
    """Give a plan."""
    return pb.MigrationPlan(**fields)  # type: ignore[arg-type]


MISTAKES: Final[dict[str, tuple[CODE, str, Callable[[InsightServiceStub, str], Message]]]] = {
    "negative bandwidth": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.PredictMigration(
            pb.PredictMigrationRequest(target=name, bandwidths_bytes_per_second=[SPEED, -5])
        ),
    ),
    "absurd bandwidth": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.FindWindow(pb.FindWindowRequest(target=name, bandwidth_bytes_per_second=10**15)),
    ),
    "no bandwidth": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.PredictMigration(pb.PredictMigrationRequest(target=name)),
    ),
    "too many bandwidths": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.PredictMigration(
            pb.PredictMigrationRequest(target=name, bandwidths_bytes_per_second=[SPEED] * 65)
        ),
    ),
    "unknown policy": (
        CODE.INVALID_ARGUMENT,
        "POLICY_UNKNOWN",
        lambda stub, name: stub.PredictMigration(
            pb.PredictMigrationRequest(target=name, bandwidths_bytes_per_second=[SPEED], plan=plan(policy="hope" * 100))
        ),
    ),
    "policy that cannot throttle": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.PredictMigration(
            pb.PredictMigrationRequest(
                target=name, bandwidths_bytes_per_second=[SPEED], plan=plan(policy="xen", auto_converge=True)
            )
        ),
    ),
    "negative downtime": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.PredictMigration(
            pb.PredictMigrationRequest(
                target=name, bandwidths_bytes_per_second=[SPEED], plan=plan(downtime_target_seconds=-1)
            )
        ),
    ),
    "cost that is no number": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.PredictMigration(
            pb.PredictMigrationRequest(
                target=name, bandwidths_bytes_per_second=[SPEED], plan=plan(fixed_seconds=float("nan"))
            )
        ),
    ),
    "empty selection": (
        CODE.INVALID_ARGUMENT,
        "SELECTION_MALFORMED",
        lambda stub, _: stub.RankCandidates(pb.RankCandidatesRequest(bandwidth_bytes_per_second=SPEED)),
    ),
    "unknown target": (
        CODE.NOT_FOUND,
        "TARGET_UNKNOWN",
        lambda stub, name: stub.FindWindow(
            pb.FindWindowRequest(target=f"{name.split('/')[0]}/77", bandwidth_bytes_per_second=SPEED)
        ),
    ),
    "unknown host": (
        CODE.NOT_FOUND,
        "HOST_UNKNOWN",
        lambda stub, _: stub.PlanDrain(pb.PlanDrainRequest(host_id="nobody", link_bytes_per_second=SPEED)),
    ),
    "no host": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, _: stub.PlanDrain(pb.PlanDrainRequest(link_bytes_per_second=SPEED)),
    ),
    "horizon of years": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.FindWindow(
            pb.FindWindowRequest(target=name, bandwidth_bytes_per_second=SPEED, horizon_seconds=1e8)
        ),
    ),
    "no history": (
        CODE.FAILED_PRECONDITION,
        "HISTORY_TOO_SHORT",
        lambda stub, name: stub.PredictMigration(
            pb.PredictMigrationRequest(target=name, bandwidths_bytes_per_second=[SPEED])
        ),
    ),
    "report without rounds": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.ReportMigration(
            pb.ReportMigrationRequest(target=name, bandwidth_bytes_per_second=SPEED)
        ),
    ),
    "report of unequal columns": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.ReportMigration(
            pb.ReportMigrationRequest(
                target=name, bandwidth_bytes_per_second=SPEED, round_bytes=[1, 2], round_seconds=[1.0]
            )
        ),
    ),
    "report of more bytes than there are": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.ReportMigration(
            pb.ReportMigrationRequest(
                target=name, bandwidth_bytes_per_second=SPEED, round_bytes=[1 << 62, 1], round_seconds=[1.0, 1.0]
            )
        ),
    ),
    "report of a downtime that was not": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, name: stub.ReportMigration(
            pb.ReportMigrationRequest(
                target=name,
                bandwidth_bytes_per_second=SPEED,
                round_bytes=[1],
                round_seconds=[1.0],
                downtime_seconds=1.0,
            )
        ),
    ),
    "more scores than there can be": (
        CODE.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
        lambda stub, _: stub.GetAccuracy(pb.GetAccuracyRequest(limit=1001)),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str, mistake: str
) -> None:
    """The right status, the contract's reason, and what to do."""
    code, reason, ask = MISTAKES[mistake]
    connected.deliver(one, *round_and_round(5, 50, 3))

    with channel(shared_collector.address) as connection, refused(code, reason) as refusal:
        ask(InsightServiceStub(connection), name)

    assert 10 < len(refusal.message) < 500
    assert "\n" not in refusal.message


def test_target_that_has_ended_is_not_predicted(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str, host: str
) -> None:
    """It cannot be migrated, and says so; a ranking and a plan of others leave it out, a report on it is welcome."""
    connected.deliver(one, *round_and_round(5, 50, 30))
    connected.say(
        ingest_pb2.TargetEnded(target=one, incarnation=1, reason=types_pb2.END_REASON_EXITED, time_ns=T0_NS + 10**12)
    )
    with channel(shared_collector.address) as connection, Collector(shared_collector.address) as collector:
        while not collector.targets(name)[0].end_reason:
            pass
        with refused(CODE.FAILED_PRECONDITION, "TARGET_ENDED"):
            InsightServiceStub(connection).PredictMigration(
                pb.PredictMigrationRequest(target=name, bandwidths_bytes_per_second=[SPEED])
            )
        with pytest.raises(Refused, match="has ended"):
            collector.find_window(name, SPEED)
        ranking = collector.rank(name, SPEED)
        assert ranking.candidates == ()
        assert "has ended" in ranking.left_out[0].reason
        assert collector.plan_drain(host, SPEED).moves == ()
        assert collector.report_migration(MigrationReport(name, SPEED, [(PAGE, 1.0)])).error is None


def test_history_of_an_agent_that_is_away_is_told_to_be_old(
    shared_collector: CollectorProcess, one: types_pb2.Target, name: str, host: str
) -> None:
    """What it knew still gives an answer, which says that nothing is known since."""
    with Agent(shared_collector.address, host) as agent, Collector(shared_collector.address) as collector:
        agent.hello()
        agent.deliver(one, *round_and_round(50, 200, 60))
        (connected,) = collector.predict(name, [SPEED], FREE).predictions
        agent.half_close()
        while any(found.host_id == host and found.connected for found in collector.hosts()):
            pass
        (away,) = collector.predict(name, [SPEED], FREE).predictions
        ranking = collector.rank(name, SPEED, FREE)

    assert "not connected" not in connected.confidence_reason
    assert away.confidence == "low"
    assert "not connected" in away.confidence_reason
    assert away.total_bytes == connected.total_bytes
    assert ranking.candidates[0].confidence == "low"


def test_sdk_refuses_what_can_never_be_right(shared_collector: CollectorProcess) -> None:
    """Without asking anybody."""
    with Collector(shared_collector.address) as collector:
        for wrong in (
            lambda: collector.predict("no name", [SPEED]),
            lambda: collector.predict("host-1/1", [1 << 70]),
            lambda: collector.predict("host-1/1", [SPEED], MigrationPlan(downtime_target_seconds=0)),
            lambda: collector.plan_drain("host-1", SPEED, parallel_max=0),
            lambda: collector.accuracy(limit=0),
            lambda: collector.report_migration(MigrationReport("host-1/1", SPEED, [(-1, 1.0)])),
        ):
            with pytest.raises(InvalidRequest):
                wrong()
