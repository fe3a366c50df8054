"""Whether one agent that replays stands for a fleet, in the manner of ``tests.bench.run``.

How far the slowest target's durable rounds fell behind its recording, with a real collector and its store on disk, and
the CPU of both processes.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from pyroaring import BitMap64

from tests.bench.run import cpu_seconds, say
from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.collector import running_collector
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.backend import Harvest
from wetink_agent.recording import RecordingWriter
from wetink_agent.rounds import round_of
from wetink_client import Collector

TARGET_COUNT: Final = 1000
SECONDS: Final = 60
ROUND_PAGES: Final = 1024
MAPPED_PAGES: Final = 64 << 10
WARM_SECONDS: Final = 6.0


def write_recording(path: Path, round_count: int) -> None:
    """Write a recording of a round a second, each of so many random pages of 256 MiB."""
    random = np.random.default_rng(1)
    target = types_pb2.Target(host_id=HOST, boot_id="bench", pid=1, start_time_ticks=1)
    with RecordingWriter(path, ingest_pb2.TargetStarted(target=target, incarnation=1, page_size=4096)) as writer:
        for number in range(1, round_count + 1):
            harvest = Harvest(
                began_time_ns=number * 1_000_000_000,
                written=BitMap64((random.choice(MAPPED_PAGES, ROUND_PAGES, replace=False) + (0x7F << 24)).tolist()),
                vanished=BitMap64(),
                populated_page_count=MAPPED_PAGES,
            )
            backend = types_pb2.BACKEND_WP_ASYNC
            writer.add(round_of(harvest, target=target, incarnation=1, number=number, backend=backend))
        writer.end(
            ingest_pb2.TargetEnded(target=target, incarnation=1, reason=types_pb2.END_REASON_UNTRACKED, time_ns=1)
        )


def bench_replay() -> Iterator[bool]:
    """Play a round a second of 1,024 pages to 1,000 targets; what counts is the target that is furthest behind."""
    with tempfile.TemporaryDirectory() as directory:
        recording = Path(directory, "recording")
        write_recording(recording, SECONDS + 60)
        options = ["--backend", f"replay:{recording}", "--targets", str(TARGET_COUNT)]
        with (
            running_collector(Path(directory, "data")) as collector,
            running_agent(collector.address, *options) as agent,
            Collector(collector.address) as client,
        ):
            time.sleep(WARM_SECONDS)
            before, began = rounds(client), time.monotonic()
            spent = -cpu_seconds(worker_pid(agent)), -cpu_seconds(collector.pid)
            time.sleep(SECONDS)
            spent = spent[0] + cpu_seconds(worker_pid(agent)), spent[1] + cpu_seconds(collector.pid)
            after, took = rounds(client), time.monotonic() - began
            waiting_bytes = sum(host.spool_bytes for host in client.hosts())
    made = sorted(after[name] - before[name] for name in before)
    assert len(made) == TARGET_COUNT, len(made)
    yield say(
        f"replay, {TARGET_COUNT} targets, 1 round a second of {ROUND_PAGES} pages each, for {SECONDS} s",
        took - made[0],
        "rounds that the slowest target is behind",
        # A round is under way at either end.
        limit=2 + 0.02 * SECONDS,
        rounds_a_second_and_target=round(sum(made) / took / TARGET_COUNT, 4),
        rounds_min=made[0],
        rounds_max=made[-1],
        spool_bytes=waiting_bytes,
        agent_cpu_percent=round(spent[0] / took * 100, 1),
        collector_cpu_percent=round(spent[1] / took * 100, 1),
    )


def rounds(client: Collector) -> Mapping[str, int]:
    """Give the last durable round of every target."""
    return {target.name: target.round for target in client.targets()}
