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
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from pyroaring import BitMap64

from tests.bench.run import cpu_seconds, say
from tests.support.collector import CollectorProcess, running_collector
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.backend import Harvest
from wetink_agent.recording import RecordingWriter
from wetink_agent.rounds import round_of
from wetink_client import Collector, WetinkError

AGENTS: Final = int(os.environ.get("WETINK_LOAD_AGENTS", "200"))
SECONDS: Final = float(os.environ.get("WETINK_LOAD_SECONDS", "60"))
ROUNDS_A_SECOND: Final = 10
ROUND_PAGES: Final = 4096
MAPPED_PAGES: Final = 1 << 20
PROCESSES: Final = 4
"""Processes with agents: one alone could not keep up with its own."""

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
    with tempfile.TemporaryDirectory() as directory:
        recording = Path(directory, "recording")
        played = _write_recording(recording, round(ROUNDS_A_SECOND * (SECONDS + 90)))
        with running_collector(Path(directory, "data")) as collector:
            share = AGENTS // PROCESSES
            agents = [_start_agents(collector.address, recording, first, share) for first in range(0, AGENTS, share)]
            with _Asking(collector) as asking:
                spent = -cpu_seconds(collector.pid)
                began = time.monotonic()
                found: list[dict[str, Any]] = [json.loads(agent.communicate()[0]) for agent in agents]
                spent, took = spent + cpu_seconds(collector.pid), time.monotonic() - began
            failed = [one for part in found for one in part["failed"]]
            assert not failed, failed[0]
            lost = _lost(collector, played)
    waits = sorted(one for part in found for one in part["seconds"])
    rounds = [one for part in found for one in part["rounds"]]
    assert len(rounds) == AGENTS, found
    cpu = round(spent / took * 100, 1)
    yield say(what, lost, f"pages missing or too many, of {SAMPLE_TARGETS} targets", limit=1, rounds=sum(rounds))
    yield say(
        what,
        _percentile(waits, 0.99) * 1000,
        "ms to the acknowledgement, p99",
        limit=250,
        p50=round(_percentile(waits, 0.5) * 1000, 1),
        acknowledged_a_second=round(len(waits) / SECONDS),
        rounds_united=sum(part["united"] for part in found),
        spool_bytes_max=max(part["spool_bytes_max"] for part in found),
        collector_cpu_percent=cpu,
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


def _start_agents(address: str, recording: Path, first: int, count: int) -> "subprocess.Popen[bytes]":
    """Start a process with some of the agents."""
    arguments = [address, str(recording), str(first), str(count), str(SECONDS)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.load_agents", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _write_recording(path: Path, round_count: int) -> list[BitMap64]:
    """Write rounds of random pages of 4 GiB, and give them."""
    pages = np.random.default_rng(1)
    target = types_pb2.Target(host_id="load", boot_id="bench", pid=1, start_time_ticks=1)
    played = []
    with RecordingWriter(path, ingest_pb2.TargetStarted(target=target, incarnation=1, page_size=4096)) as writer:
        for number in range(1, round_count + 1):
            written = BitMap64((pages.integers(0, MAPPED_PAGES, ROUND_PAGES) + (0x7F << 24)).tolist())
            harvest = Harvest(
                began_time_ns=number * 1_000_000_000 // ROUNDS_A_SECOND,
                written=written,
                vanished=BitMap64(),
                populated_page_count=MAPPED_PAGES,
            )
            backend = types_pb2.BACKEND_WP_ASYNC
            writer.add(round_of(harvest, target=target, incarnation=1, number=number, backend=backend))
            played.append(written)
        writer.end(
            ingest_pb2.TargetEnded(target=target, incarnation=1, reason=types_pb2.END_REASON_UNTRACKED, time_ns=1)
        )
    return played


def _lost(collector: CollectorProcess, played: list[BitMap64]) -> int:
    """Count the pages by which answers differ from what was played up to their rounds."""
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
