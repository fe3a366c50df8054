"""Events from a real process to the command: who wrote, where and when."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.support.agent import HOST, running_agent
from tests.support.collector import running_collector
from tests.support.victim import PAGE, victim
from wetink_client import Collector

pytestmark = pytest.mark.needs("kernel", "root", "cc")

COMMAND = [sys.executable, "-c", "from wetink_client.command import main; main()"]


def test_a_write_is_shown_with_its_thread_and_place() -> None:
    """One thread's writes to known pages come out of ``wetink events`` as JSON, each page once, and for people."""
    with (
        victim() as target,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(target.pid), "--events", interval="60s"),
        Collector(collector.address) as client,
    ):
        name = f"{HOST}/{target.pid}"
        first = target.map(50)
        cursor = client.dirty(name, barrier=True).cursor
        before = time.time_ns()
        target.write(*range(first, first + 50))
        written = client.dirty(name, since=cursor, barrier=True).written
        after = time.time_ns()
        environment = {**os.environ, "WETINK_COLLECTOR": collector.address}
        lines, table = (
            subprocess.run(
                [*COMMAND, "events", name, *more], check=True, capture_output=True, text=True, env=environment
            )
            for more in (["--json"], [])
        )
        info = client.targets(name)[0]

    events = [json.loads(line) for line in lines.stdout.splitlines()]
    ours = [
        event
        for event in events
        if event.get("time_ns", 0) >= before and first <= event["address"] // PAGE < first + 50
    ]
    assert [event["address"] // PAGE for event in ours] == list(range(first, first + 50))
    assert set(range(first, first + 50)) <= set(written)
    assert {event["thread_id"] for event in ours} == {target.pid}
    assert all(event["thread_name"].startswith("python") for event in ours)
    assert all(event["time_ns"] <= after and event["code_address"] for event in ours)
    assert {event["mapping"] for event in ours} == {""}
    assert f"{first * PAGE:#x}" in table.stdout
    assert "with the stream of events" in info.backend_reason
