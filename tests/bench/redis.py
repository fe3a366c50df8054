"""What tracking costs redis-server under redis-benchmark, run by run: no agent, ``wp-async``, ``--events``.

The server has the first core. The second is shared by redis-benchmark, agent and collector, none of which is favoured:
on a machine with a core to spare for the agent, tracking costs less. Nothing is written to disk.
"""

import contextlib
import csv
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.run import cpu_seconds, say, skip
from tests.bench.trackers import EVENTS, WP_ASYNC
from tests.support.agent import HOST, running_agent
from tests.support.collector import CollectorProcess, running_collector
from tests.support.needs import missing
from wetink_client import Collector

PAIRS: Final = 10
RUN_SECONDS: Final = 3.0
LIMITS: Final = {WP_ASYNC: 1.05, EVENTS: 1.10}
OPTIONS: Final = {WP_ASYNC: (), EVENTS: ("--events",)}
INTERVAL: Final = "1s"

KEYS: Final = (100_000, 1_000_000)
"""Keys of the load: those of redis's own example, ``redis-benchmark -t set -r 100000 -n 1000000``, and ten times as
many, 0.1 GiB of memory of which every page is written in every round."""

PIPELINE: Final = 16
UNTRACKED: Final = "no agent"
START_SECONDS_MAX: Final = 10.0


def bench_redis() -> Iterator[bool]:
    """Compare requests a second in runs that take turns, and the processor time of the server for each request."""
    lacking = missing("redis")
    if lacking is not None:
        skip("redis-benchmark SET", lacking, figure="redis")
        return
    cores = sorted(os.sched_getaffinity(0))
    # What is started is beside the server, which is moved.
    os.sched_setaffinity(0, {cores[-1]})
    try:
        for keys in KEYS:
            with _running_server(cores[0]) as server, running_collector() as collector:
                yield from _compare(server, collector, keys)
    finally:
        os.sched_setaffinity(0, cores)


def _compare(server: "_Server", collector: CollectorProcess, keys: int) -> Iterator[bool]:
    # All keys are there, and the heap has its size, before anything is measured.
    rate = server.load(keys, 10 * keys).requests_a_second
    request_count = int(rate * RUN_SECONDS)
    runs: dict[str, list[_Run]] = {name: [] for name in (UNTRACKED, *LIMITS)}
    for turn in range(PAIRS):
        # Who comes first is not always the same.
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            with _tracked(name, server, collector):
                runs[name].append(server.load(keys, request_count))
    for name, limit in LIMITS.items():
        pairs = list(zip(runs[name], runs[UNTRACKED], strict=True))
        ratios = [untracked.requests_a_second / tracked.requests_a_second for tracked, untracked in pairs]
        yield say(
            f"redis-benchmark SET, {keys:,} keys, pipeline of {PIPELINE}, {name} at rounds of {INTERVAL}",
            statistics.median(ratios),
            f"times as long, median of {PAIRS} pairs",
            limit=limit,
            figure="redis",
            backend=name,
            keys=keys,
            ratio_min=round(min(ratios), 4),
            ratio_max=round(max(ratios), 4),
            requests_a_second=round(statistics.median(run.requests_a_second for run in runs[name])),
            untracked_requests_a_second=round(statistics.median(run.requests_a_second for run in runs[UNTRACKED])),
            server_cpu_ratio=round(
                statistics.median(tracked.cpu_seconds / untracked.cpu_seconds for tracked, untracked in pairs), 4
            ),
            first_writes_a_second=round(statistics.median(run.minor_faults_a_second for run in runs[name])),
        )


@contextlib.contextmanager
def _tracked(name: str, server: "_Server", collector: CollectorProcess) -> Iterator[None]:
    """Track the server in this way while the body runs; its first round is done by then."""
    if name == UNTRACKED:
        yield
        return
    with (
        running_agent(collector.address, "--pid", str(server.pid), *OPTIONS[name], interval=INTERVAL),
        Collector(collector.address) as client,
    ):
        name = f"{HOST}/{server.pid}"
        until = time.monotonic() + START_SECONDS_MAX
        while not any(target.name.startswith(name) and target.live for target in client.targets()):
            assert time.monotonic() < until, f"{name} is not tracked"
            time.sleep(0.05)
        client.dirty(name, barrier=True)
        yield


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of redis-benchmark, and what the server used meanwhile."""

    requests_a_second: float
    cpu_seconds: float
    minor_faults_a_second: float


class _Server:
    """A redis-server that listens."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self._port = port

    def load(self, keys: int, request_count: int) -> _Run:
        """Run redis-benchmark against it."""
        cpu, faults, began = cpu_seconds(self.pid), _minor_faults(self.pid), time.monotonic()
        command = ["redis-benchmark", "-p", self._port, "-t", "set", "-r", keys, "-n", request_count, "-P", PIPELINE]
        done = subprocess.run([*map(str, command), "--csv"], check=True, capture_output=True, text=True)
        took = time.monotonic() - began
        _, row = csv.reader(done.stdout.splitlines())
        return _Run(
            requests_a_second=float(row[1]),
            cpu_seconds=(cpu_seconds(self.pid) - cpu) / request_count,
            minor_faults_a_second=(_minor_faults(self.pid) - faults) / took,
        )


@contextlib.contextmanager
def _running_server(core: int) -> Iterator[_Server]:
    """Run a redis-server that keeps everything in memory, on a free port and a core of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"]
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen([*map(str, command), "--dir", directory], stdout=subprocess.DEVNULL) as process,
    ):
        try:
            for tid in _threads_when_listening(process.pid, port):
                os.sched_setaffinity(tid, {core})
            yield _Server(process.pid, port)
        finally:
            process.terminate()


def _threads_when_listening(pid: int, port: int) -> list[int]:
    """Wait until a server answers, and give its threads: all that it makes it has made by then."""
    until = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _minor_faults(pid: int) -> int:
    """Give the page faults of a process that needed no device: first writes to armed pages are such."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[7])
