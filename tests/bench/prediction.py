"""Predictions of migrations against migrations: the mover over links of several bandwidths, on real processes.

Each process is watched for a while, a migration over each bandwidth is predicted, and then done: its memory is moved
round by round at that rate, and the process frozen for the last of them. What is held to a limit is how far the
prediction was off. The links are far slower than the machine, so that other work on it hardly matters.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.run import say, skip
from tests.support.agent import HOST, running_agent
from tests.support.collector import running_collector
from tests.support.needs import missing
from wetink_client import Collector, MigrationPlan, MigrationReport, Prediction
from wetink_client.link import Link, LinkRound, precopy_over
from wetink_client.shadow import ShadowCopy

MIB: Final = 1 << 20
BANDWIDTHS: Final = (16 * MIB, 32 * MIB, 64 * MIB)
DOWNTIME_SECONDS: Final = 0.3
WATCHED_SECONDS: Final = 20.0
START_SECONDS_MAX: Final = 20.0
INTERVAL: Final = "100ms"
"""Rounds as short as the shortest of a migration: what is written in less time than a round is not known."""

BYTES_LIMIT: Final = 0.15
DOWNTIME_LIMIT: Final = 0.25
DOWNTIME_NEAR_SECONDS: Final = 0.02
"""A downtime that is this near is right, whatever part of it that is."""

# Writes pages of so many MiB, some each hundredth of a second. Whoever was frozen does not catch up.
_WRITER: Final = """
import mmap, random, sys, time
size, each, kind = int(sys.argv[1]) << 20, int(sys.argv[2]), sys.argv[3]
span = int(sys.argv[4]) if len(sys.argv) > 4 else size // 4096
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(size // 4096):
    memory[page * 4096] = 1
made = random.Random(7)
print("ready", flush=True)
number, due = 0, time.monotonic()
while True:
    busy = kind != "bursts" or time.monotonic() % 2 < 0.5
    for _ in range(each if busy else each // 10):
        number += 1
        if kind == "skewed":
            page = made.randrange(span // 10) if made.random() < 0.75 else made.randrange(span)
        elif kind == "random":
            page = made.randrange(span)
        else:
            page = number % span
        memory[page * 4096 + 8] = number % 256
    due = max(due + 0.01, time.monotonic() - 0.02)
    time.sleep(max(0, due - time.monotonic()))
"""


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes: how much memory it has, how many pages it writes each 10 ms, and which."""

    name: str
    mebibytes: int
    each: int
    kind: str
    span: int


BURSTS: Final = "in bursts of half a second"

WRITERS: Final = (
    Writer("round and round, slowly", 96, 8, "round", 16_000),
    Writer("round and round, fast", 96, 40, "round", 6_000),
    Writer("round and round, too fast", 96, 200, "round", 12_000),
    Writer("at random", 96, 12, "random", 12_000),
    Writer("some pages more often", 96, 30, "skewed", 20_000),
    Writer(BURSTS, 96, 40, "bursts", 4_000),
    Writer("hardly at all", 64, 1, "round", 64),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One migration, beside what was predicted of it."""

    workload: str
    bytes_a_second: int
    predicted: Prediction
    rounds: tuple[LinkRound, ...]

    @property
    def sent_bytes(self) -> int:
        """Bytes in all."""
        return sum(one.sent_bytes for one in self.rounds)

    @property
    def downtime_seconds(self) -> float:
        """From the freeze to the last page."""
        return self.rounds[-1].seconds

    @property
    def converged(self) -> bool:
        """Whether what was left fitted into the downtime."""
        return self.rounds[-1].end == "target-met"

    @property
    def bytes_error(self) -> float:
        """How far the bytes were off, as a part of those sent."""
        return self.predicted.total_bytes / self.sent_bytes - 1

    @property
    def downtime_error(self) -> float:
        """How far the median of the downtime was off, as a part of what it was."""
        return self.predicted.downtime_p50_seconds / self.downtime_seconds - 1

    @property
    def downtime_near(self) -> bool:
        """Whether it was off by no more than a part, or by no more than a time.

        Whoever writes in bursts as long as a downtime is frozen in one or between two, by chance: the median says
        little of one migration then, and what counts is that it is below the 95th percentile.
        """
        off = self.downtime_seconds - self.predicted.downtime_p50_seconds
        if self.workload == BURSTS:
            off = max(0.0, self.downtime_seconds - self.predicted.downtime_p95_seconds)
        return abs(off) <= max(DOWNTIME_NEAR_SECONDS, DOWNTIME_LIMIT * self.downtime_seconds)


def bench_prediction() -> Iterator[bool]:
    """Predict and do, and say how far apart they are."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running_collector() as collector,
        contextlib.ExitStack() as started,
    ):
        pids = dict(_running_writers(started))
        lacking = missing("redis")
        if lacking is None:
            pids["redis-server under redis-benchmark SET"] = _running_redis(started, Path(directory))
        else:
            skip("prediction, redis", lacking, figure="prediction")
        selected = [option for pid in pids.values() for option in ("--pid", str(pid))]
        with running_agent(collector.address, *selected, interval=INTERVAL), Collector(collector.address) as client:
            _wait_for(client, len(pids))
            _watch()
            for bytes_a_second in BANDWIDTHS:
                for name, pid in pids.items():
                    yield from _say(_compare(client, name, pid, bytes_a_second))


def _compare(client: Collector, workload: str, pid: int, bytes_a_second: int) -> Compared:
    """Predict a migration, do it, and tell the collector how it went."""
    target = f"{HOST}/{pid}"
    said = client.predict(target, [bytes_a_second], MigrationPlan(downtime_target_seconds=DOWNTIME_SECONDS))
    link = Link(bytes_a_second, DOWNTIME_SECONDS, said.costs.fixed_seconds)
    try:
        with ShadowCopy(pid) as copy:
            rounds = tuple(precopy_over(link, client, target, pid, copy))
    finally:
        os.kill(pid, signal.SIGCONT)
    compared = Compared(workload, bytes_a_second, said.predictions[0], rounds)
    client.report_migration(
        MigrationReport(
            target=target,
            bandwidth_bytes_per_second=bytes_a_second,
            rounds=[(one.sent_bytes, one.seconds) for one in rounds[:-1]],
            final_bytes=rounds[-1].sent_bytes,
            downtime_seconds=rounds[-1].seconds,
            met_target=compared.converged,
            prediction_id=said.prediction_id,
        )
    )
    return compared


def _say(compared: Compared) -> Iterator[bool]:
    """Print one line; it holds where all three do."""
    predicted = compared.predicted
    right = predicted.converges == compared.converged
    yield say(
        f"prediction, {compared.workload}, {compared.bytes_a_second // MIB} MiB/s",
        abs(compared.bytes_error) if right and compared.downtime_near else max(1.0, abs(compared.bytes_error)),
        "of the bytes sent; 1 or more where downtime or verdict is wrong",
        limit=BYTES_LIMIT,
        figure="prediction",
        workload=compared.workload,
        bandwidth_mib=compared.bytes_a_second // MIB,
        predicted_mib=round(predicted.total_bytes / MIB, 1),
        measured_mib=round(compared.sent_bytes / MIB, 1),
        bytes_error=round(compared.bytes_error, 3),
        predicted_downtime_ms=round(1000 * predicted.downtime_p50_seconds),
        predicted_downtime_p95_ms=round(1000 * predicted.downtime_p95_seconds),
        measured_downtime_ms=round(1000 * compared.downtime_seconds),
        downtime_error=round(compared.downtime_error, 3),
        predicted_seconds=round(predicted.total_seconds, 2),
        measured_seconds=round(sum(one.seconds for one in compared.rounds), 2),
        predicted_rounds=predicted.round_count,
        measured_rounds=len(compared.rounds) - 1,
        predicted_converges=predicted.converges,
        measured_converges=compared.converged,
        verdict_right=right,
        downtime_near=compared.downtime_near,
        confidence=str(predicted.confidence),
        predicted_series_mib=[round(one.bytes / MIB, 2) for one in predicted.rounds[:10]],
        measured_series_mib=[round(one.sent_bytes / MIB, 2) for one in compared.rounds[:10]],
    )


def _running_writers(started: contextlib.ExitStack) -> Iterator[tuple[str, int]]:
    for writer in WRITERS:
        arguments = [writer.mebibytes, writer.each, writer.kind, writer.span]
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, *map(str, arguments)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        started.callback(_end, process)
        assert process.stdout is not None
        process.stdout.readline()
        started.callback(process.stdout.close)
        yield writer.name, process.pid


def _running_redis(started: contextlib.ExitStack, directory: Path) -> int:
    """Start redis-server, fill it, and put it under load; its pid."""
    socket = directory / "redis.sock"
    server = _spawn(
        started, ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(directory)]
    )
    until = time.monotonic() + START_SECONDS_MAX
    while not socket.exists():
        assert time.monotonic() < until, "redis-server made no socket"
        time.sleep(0.05)
    load = ["redis-benchmark", "-s", str(socket), "-t", "set", "-d", "512", "-q"]
    subprocess.run([*load, "-r", "120000", "-n", "200000", "-P", "16"], check=True, capture_output=True)
    _spawn(started, [*load, "-r", "2000", "-n", "1000000000", "-c", "1"])
    return server.pid


def _spawn(started: contextlib.ExitStack, command: list[str]) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [shutil.which(command[0]) or command[0], *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


def _wait_for(client: Collector, count: int) -> None:
    until = time.monotonic() + START_SECONDS_MAX
    while sum(1 for target in client.targets() if target.live and target.round > 1) < count:
        assert time.monotonic() < until, "the agent does not track every process"
        time.sleep(0.1)


def _watch() -> None:
    """Let the history grow."""
    time.sleep(WATCHED_SECONDS)
