"""What a prediction is counted with: policies by name, costs that are given or learned, pages that are held back."""

import urllib.request
from typing import Final

import pytest

from tests.integration.collector.wire import Agent, batch, target
from tests.support.collector import CollectorProcess, running_collector
from wetink.v1 import types_pb2
from wetink_client import Collector, HistoryTooShort, MigrationPlan, MigrationReport
from wetink_collector.insight.policy_names import POLICIES

PAGE: Final = 4096
SPEED: Final = 100 * PAGE
"""A hundred pages a second."""

PAGES: Final = 1000
FREE: Final = MigrationPlan(round_seconds=0.0, fixed_seconds=0.0)


@pytest.fixture
def one(host: str) -> types_pb2.Target:
    """Give the test's target."""
    return target(1, host_id=host)


@pytest.fixture
def name(host: str) -> str:
    """Give its name."""
    return f"{host}/1@100"


@pytest.fixture
def connected(agent: Agent) -> Agent:
    """Give a stream that has said Hello."""
    agent.hello()
    return agent


def in_turn(each: int, span: int, count: int = 60) -> list[list[int]]:
    """Give rounds of a second: all pages, then so many a round, in turn, of a part of them."""
    rounds = [list(range(PAGES))]
    rounds += [[(number * each + at) % span for at in range(each)] for number in range(count)]
    return rounds


ENDS: Final = {
    "downtime": (5, "switched", "target-met"),
    "phaul": (5, "switched", "few-left"),
    "go-phaul": (1, "switched", "growing"),
    "incus": (2, "switched", "few-left"),
    "xen": (4, "switched", "few-left"),
    "cloud-hypervisor": (5, "switched", "target-met"),
    "qemu": (5, "switched", "target-met"),
    "ovirt": (5, "switched", "target-met"),
    "kubevirt-stall": (5, "switched", "target-met"),
    "kubevirt-ramp": (7, "switched", "target-met"),
}
"""By hand. 60 pages a second of 200, over 100 a second: rounds send 1061, 200, 120, 72, 43, 26, 16 and 9 pages.

300 ms are 30 pages, the ramp's 150 ms are 15; P.Haul stops after it sent 64 pages at most, Incus after 30 % of 1061,
Xen where fewer than 50 are left. oVirt allows 400 ms after the fifth round, and go-phaul makes only one.
"""


def test_every_policy_ends_where_its_rule_says(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """Each of the contract's names is known, and each ends the same rounds in its own way."""
    connected.deliver(one, *in_turn(60, 200))

    found = {}
    with Collector(shared_collector.address) as collector:
        for policy in POLICIES:
            said = collector.predict(name, [SPEED], MigrationPlan(policy=policy, round_seconds=0.0, fixed_seconds=0.0))
            (predicted,) = said.predictions
            assert said.costs.policy == policy
            found[policy] = (predicted.round_count, predicted.end, predicted.cause)

    assert found == ENDS


def test_costs_that_are_given_count_and_those_that_were_learned_where_none_are(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """They are in each round's time, in what is written meanwhile, and in the downtime."""
    connected.deliver(one, *in_turn(60, 800))
    report = MigrationReport(
        name, SPEED, [(PAGES * PAGE, PAGES / 100 + 0.5)] * 3, final_bytes=10 * PAGE, downtime_seconds=0.1 + 0.4
    )
    with Collector(shared_collector.address) as collector:
        (free,) = collector.predict(name, [SPEED], FREE).predictions
        given = collector.predict(name, [SPEED], MigrationPlan(round_seconds=0.25, fixed_seconds=0.125))
        collector.report_migration(report)
        learned = collector.predict(name, [SPEED])
        again = collector.predict(name, [SPEED], FREE)

    assert (given.costs.round_seconds, given.costs.fixed_seconds, given.costs.report_count) == (0.25, 0.125, 0)
    assert learned.costs.round_seconds == pytest.approx(0.5)
    assert learned.costs.fixed_seconds == pytest.approx(0.4)
    assert learned.costs.report_count == 1
    assert again.predictions == (free,)
    for said, each, fixed in ((given, 0.25, 0.125), (learned, 0.5, 0.4)):
        (predicted,) = said.predictions
        pages = [one.bytes / PAGE for one in predicted.rounds]
        assert [one.seconds for one in predicted.rounds] == pytest.approx(
            [sent / 100 + each for sent in pages], abs=1e-4
        )
        # The second round has what was written in the first, at 60 pages a second.
        assert pages[1] == pytest.approx(60 * predicted.rounds[0].seconds, rel=0.02)
        left = 60 * predicted.rounds[-1].seconds
        assert predicted.downtime_p50_seconds == pytest.approx(left / 100 + fixed, rel=0.05)


def test_pages_that_are_always_written_are_held_back(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """A hundred pages of each round go once, at the end, where two seconds of downtime allow that."""
    rounds = [list(range(PAGES))]
    rounds += [[*range(100), *((100 + number * 20 + at) % 900 + 100 for at in range(20))] for number in range(60)]
    connected.deliver(one, *rounds)
    plan = MigrationPlan(downtime_target_seconds=2.0, round_seconds=0.0, fixed_seconds=0.0)

    with Collector(shared_collector.address) as collector:
        (allowed,) = collector.predict(name, [SPEED], plan).predictions
        (short,) = collector.predict(name, [SPEED], FREE).predictions

    held = allowed.hold_back
    assert held is not None
    assert (held.page_count, held.written_share_min) == (100, 1.0)
    assert held.saved_bytes == allowed.total_bytes - held.total_bytes
    # They are sent in every round but are left behind by none.
    assert held.saved_bytes >= 100 * PAGE
    assert held.downtime_seconds <= 2.0
    assert short.hold_back is None, "a second is more than 300 ms"


def test_four_rounds_are_enough_and_three_are_too_few(
    connected: Agent, shared_collector: CollectorProcess, one: types_pb2.Target, name: str
) -> None:
    """The refusal says what to do, and the next round is the end of it."""
    connected.deliver(one, *in_turn(60, 200, count=3))
    with Collector(shared_collector.address) as collector:
        with pytest.raises(
            HistoryTooShort, match="fewer than 4 rounds after the first are known: ask again when they have"
        ):
            collector.predict(name, [SPEED])
        connected.say(batch(one, 5, written=[5]))
        connected.acknowledged(one, 5)

        assert collector.predict(name, [SPEED]).basis.stretch_count == 4


def metrics_of(collector: CollectorProcess) -> dict[str, float]:
    """Give the samples about predictions."""
    with urllib.request.urlopen(f"http://{collector.metrics_address}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name.startswith("wetink_prediction")
    }


def test_what_became_of_a_prediction_is_a_metric() -> None:
    """One report that is scored adds one to each error and to the verdict; one that nobody predicted adds nothing."""
    one, name = target(1, host_id="host-1"), "host-1/1@100"
    with (
        running_collector(options=["--metrics", "127.0.0.1:0"]) as service,
        Agent(service.address, "host-1") as agent,
        Collector(service.address) as collector,
    ):
        agent.hello()
        agent.deliver(one, *in_turn(60, 200))
        said = collector.predict(name, [SPEED], FREE)
        before = metrics_of(service)
        sent = round(said.predictions[0].total_bytes / 1.25)
        report = MigrationReport(name, SPEED, [(sent, 20.0)], prediction_id=said.prediction_id)
        collector.report_migration(report)
        collector.report_migration(report)
        after = metrics_of(service)

    assert not any(value for sample, value in before.items() if sample.endswith("_total") or "_count" in sample)
    assert after['wetink_prediction_error_ratio_count{quantity="bytes"}'] == 1
    assert after['wetink_prediction_error_ratio_sum{quantity="bytes"}'] == pytest.approx(0.25, abs=1e-3)
    assert after['wetink_prediction_error_ratio_count{quantity="seconds"}'] == 1
    assert after['wetink_predictions_scored_total{verdict="wrong"}'] == 1
