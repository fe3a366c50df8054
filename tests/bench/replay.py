"""Whether one agent that replays stands for a fleet: ``python -m tests.bench.replay [TARGETS [SECONDS]]``.

One JSON line: rounds of 1,024 pages a second and target that were durable at a real collector with its store on disk,
the slowest target's, and the CPU of both processes. It holds when no target fell behind its recording by 2 % and two
rounds.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from pyroaring import BitMap64

from tests.bench.run import cpu_seconds
from tests.support.agent import HOST, running_agent
from tests.support.collector import running_collector
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.backend import Harvest
from wetink_agent.recording import RecordingWriter
from wetink_agent.rounds import round_of
from wetink_client import Collector

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


def main() -> int:
    """Measure."""
    target_count, seconds = (int(text) for text in (*sys.argv[1:], *("1000", "60")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as directory:
        recording = Path(directory, "recording")
        write_recording(recording, seconds + 60)
        options = ["--backend", f"replay:{recording}", "--targets", str(target_count)]
        with (
            running_collector(Path(directory, "data")) as collector,
            running_agent(collector.address, *options) as agent,
            Collector(collector.address) as client,
        ):
            time.sleep(WARM_SECONDS)
            before, began = rounds(client), time.monotonic()
            spent = -cpu_seconds(agent.pid), -cpu_seconds(collector.pid)
            time.sleep(seconds)
            spent = spent[0] + cpu_seconds(agent.pid), spent[1] + cpu_seconds(collector.pid)
            after, took = rounds(client), time.monotonic() - began
            waiting_bytes = sum(host.spool_bytes for host in client.hosts())
    made = sorted(after[name] - before[name] for name in before)
    holds = len(made) == target_count and made[0] >= took * 0.98 - 2
    line = {
        "bench": f"replay, {target_count} targets, 1 round a second of {ROUND_PAGES} pages each",
        "value": round(sum(made) / took / target_count, 4),
        "unit": "durable rounds a second and target",
        "holds": holds,
        "seconds": round(took, 2),
        "targets": len(made),
        "rounds_min": made[0],
        "rounds_max": made[-1],
        "spool_bytes": waiting_bytes,
        "agent_cpu_percent": round(spent[0] / took * 100, 1),
        "collector_cpu_percent": round(spent[1] / took * 100, 1),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if holds else 1


def rounds(client: Collector) -> Mapping[str, int]:
    """Give the last durable round of every target."""
    return {target.name: target.round for target in client.targets()}


if __name__ == "__main__":
    sys.exit(main())
