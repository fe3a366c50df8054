"""Rounds that adapt to what they cost, on a real process: what they cost is measured, and shown to whoever asks."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.collector import CollectorProcess, running_collector
from tests.support.victim import PAGE, victim
from wetink_client import Collector, TargetInfo

pytestmark = pytest.mark.needs("kernel", "root", "cc")

PATIENCE_SECONDS = 40.0
SHARE = 0.01
TARGET_MIB = 1024
MEASURED_SECONDS = 10.0


def cpu_seconds(pid: int) -> float:
    """Give the processor time that a process has spent."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(look: Callable[[], bool]) -> bool:
    """Wait until something holds; tell whether it came to."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if look():
            return True
        time.sleep(0.2)
    return False


def test_the_agent_keeps_to_its_budget_and_says_what_it_does() -> None:
    """Rounds of a gigabyte every 10 ms would take half a processor; with 1 % they come as seldom as that needs."""
    options = "--interval-min", "10ms", "--interval-max", "30s", "--agent-share", "1%"
    with (
        programs.running("scan", "victim", TARGET_MIB) as program,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(program.pid), *options) as agent,
        Collector(collector.address) as client,
    ):

        def info() -> TargetInfo:
            return client.targets(f"{HOST}/{program.pid}")[0]

        def has_settled() -> bool:
            pace = info().pace
            return pace is not None and pace.interval_ms > 100 and 0 < pace.agent_share < SHARE * 1.3

        assert wait_for(has_settled), info()
        time.sleep(6)
        before, began = cpu_seconds(worker_pid(agent)), time.monotonic()
        rounds = info().round
        intervals, pace = [], info().pace
        while time.monotonic() - began < MEASURED_SECONDS:
            pace = info().pace
            assert pace is not None
            intervals.append(pace.interval_ms / 1000)
            time.sleep(0.25)
        spent = (cpu_seconds(worker_pid(agent)) - before) / (time.monotonic() - began)
        per_round = (time.monotonic() - began) / max(1, info().round - rounds)
        table = subprocess.run(
            [sys.executable, "-c", "from wetink_client.command import main; main()", "targets"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "WETINK_COLLECTOR": collector.address},
        ).stdout

    print(f"spent {spent:.4f}, a round in {per_round:.2f} s, intervals {min(intervals)} to {max(intervals)} s")  # noqa: T201
    # Clock ticks of 10 ms are what the kernel tells of processor time: five of them are 0.5 % here.
    assert spent < SHARE * 1.5 + 0.005, (spent, pace)
    # It adapts meanwhile to what the machine has left for it, and a busy one may be late with each round.
    assert 0.3 * min(intervals) < per_round < 1.7 * max(intervals) + 0.5
    assert "EVERY" in table
    assert "a probe saw" in table


def test_a_target_that_writes_much_is_left_alone_longer() -> None:
    """First writes to 256 MiB, over and over, would cost it far more than 1 %: its rounds become longer."""
    options = "--interval-min", "50ms", "--interval-max", "20s", "--agent-share", "100%", "--target-share", "1%"
    with (
        programs.running("scan", "victim", 256) as program,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(program.pid), *options),
        Collector(collector.address) as client,
    ):
        seeds = iter(range(1 << 30))

        def is_left_alone() -> bool:
            program.ask(f"dirty 100 {next(seeds)}")
            pace = client.targets(f"{HOST}/{program.pid}")[0].pace
            return pace is not None and pace.interval_ms > 1000

        assert wait_for(is_left_alone)


def test_divergence_and_pace_are_metrics() -> None:
    """Ten pages written behind the target's back are in the page sets with no event, and are counted as just that."""
    with (
        victim() as target,
        running_collector(options=["--metrics", "127.0.0.1:0"]) as collector,
        running_agent(collector.address, "--pid", str(target.pid), "--events", interval="60s"),
        Collector(collector.address) as client,
    ):
        name = f"{HOST}/{target.pid}"
        first = target.map(20)
        cursor = client.dirty(name, barrier=True).cursor
        before = metrics(collector)
        with Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:
            for page in range(first, first + 10):
                memory.seek(page * PAGE)
                memory.write(b"x")
        written = set(client.dirty(name, since=cursor, barrier=True).written)
        after = metrics(collector)

    assert set(range(first, first + 10)) <= written
    assert after["wetink_events_census_only_pages_total"] - before["wetink_events_census_only_pages_total"] == 10
    assert "wetink_events_stream_only_pages_total" in after
    assert after["wetink_round_interval_seconds_count"] >= 2
    assert after["wetink_round_agent_share_ratio_count"] == after["wetink_round_target_share_ratio_count"]


def metrics(collector: CollectorProcess) -> dict[str, float]:
    """Scrape those without labels."""
    with urllib.request.urlopen(f"http://{collector.metrics_address}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in pairs}
