"""A fleet against one collector, in the manner of ``tests.bench.run``: what is lost, how long answers and
acknowledgements take, and how much memory it all needs.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from pyroaring import BitMap64

from tests.bench.load_agents import ROUND_PAGES, ROUNDS_A_SECOND, SPREAD_SECONDS, page_sets
from tests.bench.run import cpu_seconds, say
from tests.support.collector import CollectorProcess, running_collector
from wetink_client import Collector, WetinkError

AGENTS: Final = int(os.environ.get("WETINK_LOAD_AGENTS", "200"))
SECONDS: Final = float(os.environ.get("WETINK_LOAD_SECONDS", "60"))
FLOOR_SECONDS: Final = min(SECONDS, 15.0)
PROCESSES: Final = 2
"""Processes with agents: as many as there are processors."""

NICE: Final = 15
"""What an agent costs is its own host's affair. Here they have what the collector and who asks it leave of the
processors, which is enough: none falls behind."""

QUERY_SECONDS: Final = 0.05
"""A query is asked so long after the one before."""

SAMPLE_TARGETS: Final = 8
"""Targets whose pages are compared with what was played."""

MEMORY_MIB_MAX: Final = 1024
"""What 200 agents may have in flight at most is more: it is the queue before the store that bounds it, and the sets of
what is being answered."""


def bench_load() -> Iterator[bool]:
    """Play ten rounds a second of 4 Ki random pages from each of 200 agents, and ask all the while."""
    what = f"load, {AGENTS} agents, {ROUNDS_A_SECOND} rounds a second of {ROUND_PAGES} random pages each, {SECONDS:g} s"
    with _floor() as (pid, address):
        floor = _play(pid, address, FLOOR_SECONDS)
    with tempfile.TemporaryDirectory() as directory, running_collector(Path(directory, "data")) as collector:
        with _Asking(collector) as asking:
            played = _play(collector.pid, collector.address, SECONDS)
        lost = _lost(collector)
    yield say(
        what, lost, f"pages missing or too many, of {SAMPLE_TARGETS} targets", limit=1, rounds=sum(played["rounds"])
    )
    yield say(
        what,
        _percentile(played["seconds"], 0.99) * 1000,
        "ms to the acknowledgement, p99",
        limit=250,
        p50=round(_percentile(played["seconds"], 0.5) * 1000, 1),
        acknowledged_a_second=round(len(played["seconds"]) / played["took"]),
        rounds_waiting_max=played["behind_max"],
    )
    yield say(
        what,
        _percentile(asking.seconds, 0.99) * 1000,
        "ms to an answer, p99",
        limit=50,
        p50=round(_percentile(asking.seconds, 0.5) * 1000, 1),
        answers=len(asking.seconds),
        failed=asking.failed,
        pages_an_answer=round(statistics.mean(asking.page_counts or [0])),
    )
    yield say(what, asking.memory_bytes_max / (1 << 20), "MiB of the collector, at most", limit=MEMORY_MIB_MAX)
    yield say(
        what,
        played["cpu"] / floor["cpu"],
        "times as much processor time a round as a service that acknowledges and keeps nothing",
        us_a_round=round(played["cpu"] * 1e6),
        us_a_round_of_nothing=round(floor["cpu"] * 1e6),
        us_a_round_of_the_agents=round(played["agents_cpu"] * 1e6),
        acknowledgement_of_nothing_p99_ms=round(_percentile(floor["seconds"], 0.99) * 1000, 1),
    )


def _play(pid: int, address: str, seconds: float) -> dict[str, Any]:
    """Play all agents against a service, and say what came of it and what it cost."""
    used, began = cpu_seconds(pid), time.monotonic()
    share = AGENTS // PROCESSES
    agents = [_start_agents(address, first, share, seconds) for first in range(0, AGENTS, share)]
    found: list[dict[str, Any]] = [json.loads(agent.communicate()[0]) for agent in agents]
    used = cpu_seconds(pid) - used
    failed = [one for part in found for one in part["failed"]]
    assert not failed, failed[0]
    rounds = [one for part in found for one in part["rounds"]]
    assert len(rounds) == AGENTS, found
    return {
        "rounds": rounds,
        "seconds": sorted(one for part in found for one in part["seconds"]),
        "behind_max": max(part["behind_max"] for part in found),
        "took": time.monotonic() - began - SPREAD_SECONDS / 2,
        "cpu": used / sum(rounds),
        "agents_cpu": sum(part["cpu_seconds"] for part in found) / sum(rounds),
    }


def _start_agents(address: str, first: int, count: int, seconds: float) -> "subprocess.Popen[bytes]":
    """Start a process with some of the agents."""
    arguments = [address, str(first), str(count), str(seconds)]
    command = ["nice", "-n", str(NICE), sys.executable, "-m", "tests.bench.load_agents", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@contextmanager
def _floor() -> Iterator[tuple[int, str]]:
    """Run the service that does nothing: its process, and where it listens."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.load_floor"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.kill()


def _lost(collector: CollectorProcess) -> int:
    """Count the pages by which answers differ from what was played up to their rounds."""
    played = list(page_sets())
    with Collector(collector.address) as client:
        targets = client.targets()
        assert len(targets) == AGENTS, len(targets)
        wrong = 0
        for target in random.Random(1).sample(targets, min(SAMPLE_TARGETS, len(targets))):  # noqa: S311 (repeatable)
            answer = client.dirty(target.name)
            expected = BitMap64()
            for written in played[: answer.target.round]:
                expected |= written
            wrong += len(expected ^ answer.written)
    return wrong


class _Asking:
    """An orchestrator that goes from target to target, each with a cursor, and a look at the collector's memory."""

    def __init__(self, collector: CollectorProcess) -> None:
        self.seconds: list[float] = []
        self.page_counts: list[int] = []
        self.failed = 0
        self.memory_bytes_max = 0
        self._collector = collector
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.seconds.sort()

    def _ask(self) -> None:
        cursors: dict[str, str] = {}
        with Collector(self._collector.address) as client:
            names: list[str] = []
            turn = 0
            while not self._over.wait(QUERY_SECONDS):
                turn += 1
                if turn % 40 == 1:
                    with suppress(WetinkError):
                        names = [target.name for target in client.targets() if target.round and target.live]
                if not names:
                    continue
                name = names[turn % len(names)]
                began = time.monotonic()
                try:
                    answer = client.dirty(name, since=cursors.get(name))
                except WetinkError:
                    self.failed += 1
                    cursors.pop(name, None)
                    continue
                self.seconds.append(time.monotonic() - began)
                self.page_counts.append(len(answer.written))
                cursors[name] = answer.cursor
                memory = Path(f"/proc/{self._collector.pid}/statm").read_text(encoding="ascii").split()[1]
                self.memory_bytes_max = max(self.memory_bytes_max, int(memory) * 4096)


def _percentile(ascending: list[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))] if ascending else float("inf")
