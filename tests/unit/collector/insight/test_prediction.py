"""Predictions for one target, from W(T)."""

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetink_collector.insight.curve import Curve
from wetink_collector.insight.policies import Action, Cause
from wetink_collector.insight.policy_names import POLICIES
from wetink_collector.insight.precopy_model import Link, follow, plateau_pages
from wetink_collector.insight.prediction import Hits, Plan, Reliance, Writes, predict, smallest_bandwidth

PAGE = 4096
MIB = 1 << 20

curves = st.one_of(
    st.builds(
        lambda rate, pages: Curve.saturating(pages_a_second=rate, working_set_pages=pages),
        st.floats(1, 1e5),
        st.floats(1, 1e5),
    ),
    st.builds(Curve.poisson, st.dictionaries(st.floats(0.001, 100), st.integers(1, 10**5), min_size=1, max_size=4)),
)
bandwidths = st.floats(1 * MIB, 1024 * MIB)
costs = st.floats(0, 0.1)


def plan(policy: str = "downtime", *, downtime: float = 0.3, costs: Sequence[float] = (0.0, 0.0)) -> Plan:
    """Give a plan."""
    return Plan(policy, downtime, auto_converge=False, round_seconds=costs[0], fixed_seconds=costs[1])


def writes(mean: Curve, *, p95: Curve | None = None, populated: int = 100_000, hits: Hits | None = None) -> Writes:
    """Give what is known of a target whose history holds everything."""
    return Writes(
        populated_pages=populated,
        page_size=PAGE,
        mean=mean,
        p50=mean,
        p95=p95 or mean,
        shortest_seconds=0.01,
        history_seconds=3600,
        hits=hits or Hits(),
    )


@given(curves, bandwidths, costs, costs)
def test_plateau_is_where_endless_rounds_end(curve: Curve, bandwidth: float, each: float, fixed: float) -> None:
    """The exact fixed point is what the recursion itself comes down to, from above."""
    link = Link(bandwidth, PAGE, each, fixed)
    populated = curve.working_set_pages + 1000

    found = plateau_pages(curve, populated, link)

    pages = populated
    for _ in range(2000):
        pages = curve.at(pages / link.pages_a_second + link.round_seconds)
        assert pages >= found * (1 - 1e-6) - 1e-6
    # It is a fixed point, and no larger one lies on the way.
    assert curve.at(found / link.pages_a_second + link.round_seconds) == pytest.approx(found, rel=1e-6, abs=1e-6)
    again = curve.at((found * 1.01 + 1) / link.pages_a_second + link.round_seconds)
    assert again <= found * 1.01 + 1


@given(curves, bandwidths, st.floats(1.01, 8), st.floats(0.01, 1))
def test_more_bandwidth_never_leaves_more(curve: Curve, bandwidth: float, factor: float, each: float) -> None:
    """What is left after as many rounds, and the plateau, only fall with the bandwidth."""
    populated = curve.working_set_pages + 1000
    slow, fast = Link(bandwidth, PAGE, each), Link(bandwidth * factor, PAGE, each)

    slower = follow(curve, populated, slow, POLICIES["xen"].make(0.3, False))  # noqa: FBT003
    faster = follow(curve, populated, fast, POLICIES["xen"].make(0.3, False))  # noqa: FBT003

    for one, other in zip(slower.rounds, faster.rounds, strict=False):
        assert other.pages <= one.pages * (1 + 1e-9)
    assert plateau_pages(curve, populated, fast) <= plateau_pages(curve, populated, slow) * (1 + 1e-6)


@given(curves, bandwidths, costs, costs, st.sampled_from(sorted(POLICIES)))
def test_what_is_sent_is_what_the_rounds_say(
    curve: Curve, bandwidth: float, each: float, fixed: float, policy: str
) -> None:
    """Each round sends what was written in the one before; the times add up; a target that met is a target met."""
    populated = 50_000
    link = Link(bandwidth, PAGE, each, fixed)
    outcome = follow(curve, populated, link, POLICIES[policy].make(0.3, False))  # noqa: FBT003

    assert outcome.rounds[0].pages == populated
    assert all(one.seconds == pytest.approx(one.pages * PAGE / bandwidth + each) for one in outcome.rounds)
    assert outcome.downtime_seconds == pytest.approx(outcome.left_pages * PAGE / bandwidth + fixed)
    assert outcome.copy_seconds == pytest.approx(sum(one.seconds * one.count for one in outcome.rounds))
    assert outcome.left_pages <= curve.working_set_pages
    assert outcome.sent_pages >= populated
    if outcome.cause is Cause.TARGET_MET and policy == "downtime":
        assert outcome.downtime_seconds <= 0.3 + 1e-9
    if outcome.action is Action.CONTINUE:
        assert outcome.cause is Cause.ENDLESS


@given(curves, st.floats(0.05, 2), st.sampled_from(["downtime", "qemu", "xen", "cloud-hypervisor"]))
def test_smallest_bandwidth_does_and_two_percent_less_does_not(curve: Curve, downtime: float, policy: str) -> None:
    """It is where the verdict changes. Policies that look at no fixed part are asked without one."""
    known, asked = writes(curve), plan(policy, downtime=downtime, costs=(0.001, 0.01 if policy == "downtime" else 0.0))

    found = smallest_bandwidth(known, asked)

    assert found >= 1
    assert predict(known, asked, found, in_full=False).converges
    if found > 100:
        assert not predict(known, asked, found / 1.03, in_full=False).converges


def test_no_bandwidth_does_where_the_fixed_part_is_over_the_target() -> None:
    """A restore of a second leaves nothing of 300 ms."""
    assert smallest_bandwidth(writes(Curve.nothing()), plan(costs=(0, 1.0))) == 0


def test_percentiles_of_downtime_come_from_their_curves() -> None:
    """In half of the windows 1000 pages are written, in a twentieth 3000; over 10,000 pages a second."""
    usual = Curve.saturating(pages_a_second=1e6, working_set_pages=1000)
    busy = Curve.saturating(pages_a_second=1e6, working_set_pages=3000)

    found = predict(writes(usual, p95=busy), plan(costs=(0.0, 0.01)), 10_000 * PAGE)

    assert found.downtime_p50_seconds == pytest.approx(0.11)
    assert found.downtime_p95_seconds == pytest.approx(0.31)
    assert found.converges
    assert not found.converges_when_busy
    assert found.plateau_pages == pytest.approx(1000)


def test_holding_back_sends_hot_pages_once() -> None:
    """2000 pages written in every round go only in the end; 5000 that are written slowly go as before."""
    hits = Hits({100: 2000, 10: 5000}, round_count=100, round_seconds=0.1)
    curve = Curve.of_hits(hits.page_count_of_hits, round_count=100, round_seconds=0.1)

    found = predict(writes(curve, hits=hits), plan(downtime=1.0), 10_000 * PAGE)

    assert found.held is not None
    assert (found.held.pages, found.held.share_min) == (2000, 1.0)
    assert found.held.outcome.rounds[0].pages == 98_000
    assert found.held.outcome.downtime_seconds <= 1.0
    assert found.held.outcome.sent_pages <= found.outcome.sent_pages - 2000


def test_holding_back_is_not_advised_where_it_breaks_the_downtime() -> None:
    """20,000 hot pages over 10,000 a second are two seconds, however little is sent in vain."""
    hits = Hits({100: 20_000}, round_count=100, round_seconds=0.1)
    curve = Curve.of_hits(hits.page_count_of_hits, round_count=100, round_seconds=0.1)

    assert predict(writes(curve, hits=hits), plan(downtime=1.0), 10_000 * PAGE).held is None


@pytest.mark.parametrize(
    "shortest, history, reliance",
    [(0.01, 3600, Reliance.HIGH), (0.01, 30, Reliance.MEDIUM), (0.01, 5, Reliance.LOW), (1.0, 3600, Reliance.LOW)],
)
def test_reliance_is_that_of_the_windows_it_rests_on(shortest: float, history: float, reliance: Reliance) -> None:
    """The first round takes 10 s, and the last one, on a plateau, 0.1 s."""
    known = writes(Curve.saturating(pages_a_second=1e6, working_set_pages=1000))
    known = dataclasses.replace(known, shortest_seconds=shortest, history_seconds=history)

    found = predict(known, plan(downtime=0.05), 10_000 * PAGE)

    assert found.reliance is reliance, found.reliance_reason
    assert bool(found.reliance_reason) == (reliance is not Reliance.HIGH)
