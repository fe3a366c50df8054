"""The pace of rounds against targets that are made up: what they cost is known, and time is the test's."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from wetink.v1 import types_pb2
from wetink_agent import pace
from wetink_agent.backend import Harvest
from wetink_agent.pace import FIRST_WRITE_SECONDS, Budget, Load, Pacer

WP_ASYNC = types_pb2.BACKEND_WP_ASYNC
BUDGET = Budget(0.1, 30.0, 0.02, 0.02)
TOLERANCE = 1.15


class Clock:
    """What the module takes for the time."""

    def __init__(self) -> None:
        """Begin at an odd time."""
        self.now = 1000.0
        self.cpu = 0.0

    def monotonic(self) -> float:
        """Give the time."""
        return self.now

    def process_time(self) -> float:
        """Give what the agent has spent."""
        return self.cpu


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock in place of the real ones."""
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


@dataclass(frozen=True)
class Writer:
    """A target: it writes at random to so many pages, at a rate; a scan of it takes a time, and so does each page."""

    pages: int
    writes_per_second: float
    scan_seconds: float
    page_seconds: float = 20e-9

    def written(self, seconds: float) -> int:
        """Give how many different pages it writes to in a time."""
        return round(self.pages * -math.expm1(-self.writes_per_second * seconds / self.pages))

    def cost_seconds(self, seconds: float) -> float:
        """Give what a round of a length costs the agent."""
        return self.scan_seconds + self.page_seconds * self.written(seconds)

    def agent_share(self, seconds: float) -> float:
        """Give what it costs at rounds of a length."""
        return self.cost_seconds(seconds) / seconds

    def target_share(self, seconds: float) -> float:
        """Give what the target loses."""
        return FIRST_WRITE_SECONDS[WP_ASYNC] * self.written(seconds) / seconds


def harvest_of(page_count: int, *, cautious: int = 0, held_seconds: float = 0.0) -> Harvest:
    """Give a harvest with so many pages."""
    written = BitMap64()
    written.add_range(0, page_count)
    return Harvest(
        began_time_ns=0,
        written=written,
        vanished=BitMap64(),
        populated_page_count=page_count,
        cautious_page_count=cautious,
        held_seconds=held_seconds,
    )


def live(clock: Clock, load: Load, writers: list[Writer], seconds: float, budget: Budget = BUDGET) -> list[Pacer]:
    """Let targets be harvested when they are due, for a time."""
    pacers = [Pacer(budget, load) for _ in writers]
    go_on(clock, pacers, writers, seconds)
    return pacers


def go_on(
    clock: Clock, pacers: list[Pacer], writers: list[Writer], seconds: float, look: Callable[[], None] = lambda: None
) -> None:
    """Go on for a time; each round covers what its target has written since the one before."""
    until = clock.now + seconds
    last = [clock.now] * len(pacers)
    due = [clock.now + pacer.interval_seconds for pacer in pacers]
    while (first := min(due)) < until:
        index = due.index(first)
        clock.now = first
        elapsed = first - last[index]
        cost_seconds = writers[index].cost_seconds(elapsed)
        clock.cpu += cost_seconds
        pacers[index].note(harvest_of(writers[index].written(elapsed)), WP_ASYNC, cost_seconds, is_first=False)
        last[index], due[index] = first, first + pacers[index].interval_seconds
        look()


def test_a_quiet_target_is_harvested_as_often_as_may_be(clock: Clock) -> None:
    """Nothing costs enough to wait longer."""
    (pacer,) = live(clock, Load(0.02), [Writer(1000, 10, 50e-6)], 60)

    assert pacer.interval_seconds == BUDGET.interval_min_seconds


def test_what_costs_too_much_is_harvested_as_seldom_as_may_be(clock: Clock) -> None:
    """A budget that cannot be kept does not stop tracking."""
    (pacer,) = live(clock, Load(0.02), [Writer(1 << 40, 1e6, 2.0)], 600)

    assert pacer.interval_seconds == BUDGET.interval_max_seconds


@pytest.mark.parametrize(
    "writer",
    [
        pytest.param(Writer(1 << 18, 1000, 10e-3), id="the agent's scans"),
        pytest.param(Writer(1 << 15, 1e6, 1e-3), id="the target's faults"),
        pytest.param(Writer(1 << 18, 1e5, 5e-3), id="both"),
    ],
)
def test_a_budget_is_kept_and_used(writer: Writer, clock: Clock) -> None:
    """The interval settles where the dearer of the two costs what it may, and no more."""
    (pacer,) = live(clock, Load(0.02), [writer], 600)

    interval = pacer.interval_seconds
    dearer = max(writer.agent_share(interval) / 0.02, writer.target_share(interval) / 0.02)
    assert 1 / TOLERANCE <= dearer <= TOLERANCE
    assert pacer.to_message().target_share == pytest.approx(writer.target_share(interval), rel=0.2)
    assert pacer.to_message().agent_share == pytest.approx(writer.agent_share(interval), rel=0.2)


def test_targets_share_the_agents_budget_and_get_it_back(clock: Clock) -> None:
    """Fifty targets together cost what one may; when all but one have gone, that one has it to itself."""
    load, writers = Load(0.02), [Writer(1 << 18, 100, 2e-3)] * 50
    pacers = live(clock, load, writers, 300)

    together = sum(writers[0].agent_share(pacer.interval_seconds) for pacer in pacers)
    assert 0.02 / TOLERANCE <= together <= 0.02 * TOLERANCE
    assert max(pacer.interval_seconds for pacer in pacers) <= 2 * min(pacer.interval_seconds for pacer in pacers)

    for pacer in pacers[1:]:
        pacer.close()
    go_on(clock, pacers[:1], writers[:1], 300)
    assert pacers[0].interval_seconds == pytest.approx(BUDGET.interval_min_seconds, rel=1e-3)


def test_what_the_agent_does_besides_harvesting_counts(clock: Clock) -> None:
    """Where half of its time goes into sending, harvests have the other half of the budget."""
    load, writer = Load(0.02), Writer(1 << 18, 100, 4e-3)
    (pacer,) = pacers = live(clock, load, [writer], 100)
    alone = pacer.interval_seconds

    def spend() -> None:
        clock.cpu += writer.cost_seconds(pacer.interval_seconds)

    go_on(clock, pacers, [writer], 300, spend)

    assert pacer.interval_seconds == pytest.approx(2 * alone, rel=0.15)


def test_barriers_do_not_lengthen_the_interval(clock: Clock) -> None:
    """Ten rounds in a row, each with next to nothing in it, are taken for what they are."""
    writer = Writer(1 << 15, 1e6, 1e-3)
    load = Load(0.02)
    (pacer,) = live(clock, load, [writer], 600)
    settled = pacer.interval_seconds
    for _ in range(10):
        clock.now += 1e-3
        pacer.note(harvest_of(writer.written(1e-3)), WP_ASYNC, writer.cost_seconds(1e-3), is_first=False)

    assert pacer.interval_seconds == settled


def test_cautious_pages_are_no_faults_and_stopping_counts(clock: Clock) -> None:
    """Shared memory is reported without a write; a target that is stopped loses that time."""
    pacer = Pacer(BUDGET, Load(1.0))
    clock.now += 1.0
    pacer.note(harvest_of(100_000, cautious=100_000), WP_ASYNC, 0, is_first=False)
    assert pacer.to_message().target_share == 0

    clock.now += 1.0
    pacer.note(harvest_of(0, held_seconds=0.25), types_pb2.BACKEND_SOFT_DIRTY, 0, is_first=False)
    assert pacer.to_message().target_share == pytest.approx(0.25)


def test_the_first_round_says_nothing(clock: Clock) -> None:
    """It reports all there is, and nobody has written that."""
    pacer = Pacer(BUDGET, Load(0.02))
    clock.now += 1.0
    pacer.note(harvest_of(1_000_000), WP_ASYNC, 5.0, is_first=True)

    assert pacer.interval_seconds == BUDGET.interval_min_seconds
    assert pacer.to_message().agent_share == 0


def test_both_ends_alike_mean_a_fixed_interval(clock: Clock) -> None:
    """Whatever rounds cost."""
    fixed = Budget(1.0, 1.0)
    (pacer,) = live(clock, Load(0.02), [Writer(1 << 30, 1e6, 0.5)], 60, fixed)

    assert pacer.interval_seconds == 1.0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            Writer,
            st.integers(1, 1 << 22),
            st.floats(0, 1e6),
            st.floats(1e-5, 0.1),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_intervals_stay_within_bounds_and_settle_within_the_budget(clock: Clock, writers: list[Writer]) -> None:
    """Any mixture of targets: each is within its budget or as slow as may be, and so are all together."""
    load = Load(0.02)
    pacers = [Pacer(BUDGET, load) for _ in writers]

    def look() -> None:
        assert all(0.1 <= pacer.interval_seconds <= 30.0 for pacer in pacers)

    go_on(clock, pacers, writers, 900, look)
    intervals = [pacer.interval_seconds for pacer in pacers]

    slowest = [interval > 30.0 / 1.01 for interval in intervals]
    together = sum(writer.agent_share(interval) for writer, interval in zip(writers, intervals, strict=True))
    assert together <= 0.02 * 1.3 or any(slowest)
    for writer, interval, is_slowest in zip(writers, intervals, slowest, strict=True):
        assert is_slowest or writer.target_share(interval) <= 0.02 * 1.3 + 1e-4
