"""What became of predictions, and what is learned from it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetink_collector.identity import TargetKey
from wetink_collector.insight.accuracy import (
    FIXED_SECONDS_DEFAULT,
    PREDICTIONS_KEPT_MAX,
    REPORTS_OF_HOST_MAX,
    ROUND_SECONDS_DEFAULT,
    SCORES_KEPT_MAX,
    Accuracy,
    Errors,
    Expected,
    Report,
)

TARGET = TargetKey("node1", "boot", 7, 100)
OTHER = TargetKey("node2", "boot", 8, 100)
SPEED = 1_000_000


def report(*, round_cost: float = 0.02, fixed_cost: float = 0.05, speed: int = SPEED, **changes: object) -> Report:
    """Give a report of three rounds and a downtime, each with a cost besides its bytes."""
    sizes = (10_000_000, 1_000_000, 300_000)
    said: dict[str, object] = {
        "bytes_a_second": speed,
        "policy": "downtime",
        "round_bytes": sizes,
        "round_seconds": tuple(size / speed + round_cost for size in sizes),
        "final_bytes": 100_000,
        "downtime_seconds": 100_000 / speed + fixed_cost,
        "switched": True,
        "met_target": True,
    }
    return Report(**(said | changes))  # type: ignore[arg-type]


def expected(*, speed: int = SPEED, converges: bool = True) -> Expected:
    """Give a prediction."""
    return Expected(speed, total_bytes=12_540_000, total_seconds=12.0, downtime_seconds=0.12, converges=converges)


def test_costs_are_what_is_over_the_bytes() -> None:
    """The median of what rounds took beyond their bytes, and of what downtimes did."""
    accuracy = Accuracy()
    assert accuracy.costs("node1").round_seconds == ROUND_SECONDS_DEFAULT
    assert accuracy.costs("node1").fixed_seconds == FIXED_SECONDS_DEFAULT

    for cost in (0.01, 0.02, 0.9):
        accuracy.report(TARGET, "", report(round_cost=cost, fixed_cost=2 * cost), 1)

    learned = accuracy.costs("node1")
    assert learned.round_seconds == pytest.approx(0.02)
    assert learned.fixed_seconds == pytest.approx(0.04)
    assert learned.report_count == 3
    assert accuracy.costs("node9") == learned, "of a host that nobody reported on, what the newest of all say"


def test_costs_of_a_host_are_its_own_and_its_newest() -> None:
    """What was learned long ago is forgotten."""
    accuracy = Accuracy()
    accuracy.report(OTHER, "", report(round_cost=5.0), 1)
    accuracy.report(TARGET, "", report(round_cost=9.0), 1)
    for _ in range(REPORTS_OF_HOST_MAX):
        accuracy.report(TARGET, "", report(round_cost=0.01), 1)

    assert accuracy.costs("node1").round_seconds == pytest.approx(0.01)
    assert accuracy.costs("node1").report_count == REPORTS_OF_HOST_MAX
    assert accuracy.costs("node2").round_seconds == pytest.approx(5.0)


def test_report_is_scored_by_its_prediction_once() -> None:
    """By its name, and only where target, policy and bandwidth are those of the prediction."""
    accuracy = Accuracy()
    name = accuracy.keep(TARGET, "downtime", [expected(), expected(speed=5 * SPEED, converges=False)])

    assert accuracy.report(OTHER, name, report(), 1) is None
    assert accuracy.report(TARGET, name, report(policy="xen"), 1) is None
    assert accuracy.report(TARGET, name, report(speed=2 * SPEED), 1) is None
    score = accuracy.report(TARGET, name, report(), 2)
    assert score is not None
    assert score.right
    assert score.bytes_error == pytest.approx(abs(12_540_000 - 11_400_000) / 11_400_000)
    assert score.downtime_error == pytest.approx(abs(0.12 - 0.15) / 0.15)
    assert accuracy.report(TARGET, name, report(), 3) is None
    assert (accuracy.scored_count, accuracy.right_count) == (1, 1)


def test_report_without_a_name_is_about_the_newest_prediction_that_fits() -> None:
    """Of the same target and policy, and a bandwidth within a tenth."""
    accuracy = Accuracy()
    accuracy.keep(TARGET, "downtime", [expected(converges=False)])
    accuracy.keep(TARGET, "downtime", [expected()])
    accuracy.keep(TARGET, "xen", [expected()])
    accuracy.keep(OTHER, "downtime", [expected()])

    found = [accuracy.report(TARGET, "", report(speed=round(1.05 * SPEED)), 1) for _ in range(3)]

    assert [score.right if score else None for score in found] == [True, False, None]


def test_downtime_that_did_not_happen_has_no_error() -> None:
    """A migration that was given up says whether it was right that it does not converge."""
    accuracy = Accuracy()
    accuracy.keep(TARGET, "downtime", [expected(converges=False)])

    given_up = report(switched=False, downtime_seconds=0.0, final_bytes=0)
    score = accuracy.report(TARGET, "", given_up, 1)

    assert score is not None
    assert score.right
    assert score.downtime_error is None
    assert accuracy.costs("node1").fixed_seconds == FIXED_SECONDS_DEFAULT


def test_everything_is_bounded() -> None:
    """Predictions that nobody reports on, and scores, give way to newer ones."""
    accuracy = Accuracy()
    first = accuracy.keep(TARGET, "downtime", [expected()])
    for _ in range(PREDICTIONS_KEPT_MAX):
        accuracy.keep(OTHER, "downtime", [expected()])
    assert accuracy.report(TARGET, first, report(), 1) is None

    for _ in range(SCORES_KEPT_MAX + 5):
        accuracy.keep(TARGET, "downtime", [expected()])
        accuracy.report(TARGET, "", report(), 1)
    assert len(accuracy.scores) == SCORES_KEPT_MAX
    assert accuracy.scored_count == SCORES_KEPT_MAX + 5
    assert len(accuracy._predictions) <= PREDICTIONS_KEPT_MAX
    assert sum(map(len, accuracy._ids.values())) == len(accuracy._predictions)


@given(st.lists(st.floats(0, 10), max_size=50))
def test_errors_are_summed_up(errors: Sequence[float]) -> None:
    """No more than a twentieth is above the 95th percentile."""
    found = Errors.of(errors)

    if not errors:
        assert found is None
        return
    assert found is not None
    assert found.median <= found.p95 <= found.max == max(errors)
    assert sum(1 for error in errors if error > found.p95) <= 0.05 * len(errors)
