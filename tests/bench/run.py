"""What wetink costs, as ratios measured side by side in one run. One JSON object a line.

Each line has ``bench``, ``value`` and its ``unit``, what it is compared with, the ``limit`` it is held to, and whether
it ``holds``; or ``skipped``, with what this machine lacks. Two cores shared with other work move single figures by a
factor of two: trust the ratios.

``make bench``, which is ``python -m tests.bench [NAME...]``, runs these and those of the modules beside this one.
"""

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from pyroaring import BitMap64

from tests.support import programs
from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.collector import CollectorProcess, running_collector
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Harvest
from wetink_agent.rounds import round_of
from wetink_agent.runs import Runs
from wetink_agent.spool import Key, Spool, key_of
from wetink_agent.uplink import Uplink
from wetink_agent.wp_async import WpAsync
from wetink_client import Collector

TARGET_MIB: Final = 1024
REPETITIONS: Final = 25
ROUND_LIMITS: Final = {0: 1.25, 1: 1.25, 10: 1.5, 50: 2.0, 100: 1.25}
"""How many times as long as the bare ioctls a round may take, for each share of pages written in per cent."""

BATCH_PAGES: Final = 64 << 10
ADDRESS_SPACE_PAGES: Final = 1 << 24
BATCHES: Final = 200
DRAIN_SECONDS_MAX: Final = 30.0


def say(bench: str, value: float, unit: str, *, limit: float | None = None, **facts: object) -> bool:
    """Print one result; tell whether it holds."""
    holds = limit is None or value < limit
    line = {"bench": bench, "value": round(value, 3), "unit": unit, "limit": limit, "holds": holds, **facts}
    _print(line)
    return holds


def skip(bench: str, why: str, **facts: object) -> None:
    """Print that something is not measured, and what is lacking."""
    _print({"bench": bench, "skipped": why, **facts})


def _print(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def bench_round() -> Iterator[bool]:
    """Time a round, from the first ioctl to the page set in memory, against a C program doing the same ioctls.

    Both take turns on one target, which one of them arms and both find equally dirty.
    """
    with programs.running("scan", "victim", TARGET_MIB) as victim:
        # Both trackers on one core and the target on another: who runs where the target has just run finds its page
        # tables in the cache.
        target_core, *cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(victim.pid, {target_core})
        os.sched_setaffinity(0, cores or {target_core})
        tracker = Timed(victim.pid, take_userfaultfd(victim.pid))
        tracker.harvest()
        with programs.running("scan", "attach", victim.pid) as bare:
            os.sched_setaffinity(bare.pid, cores or {target_core})
            for share, limit in ROUND_LIMITS.items():
                ours, theirs = [], []
                for turn in range(REPETITIONS):
                    dirty(victim, share, 2 * turn)
                    tracker.harvest()
                    ours.append((tracker.ended - tracker.began) * 1e6)
                    dirty(victim, share, 2 * turn + 1)
                    theirs.append(float(json.loads(bare.ask("round"))["us"]))
                ratio = statistics.median(ours) / statistics.median(theirs)
                yield say(
                    f"round of {TARGET_MIB} MiB, {share} % of pages written",
                    ratio,
                    "times the bare ioctls",
                    limit=limit,
                    median_us=round(statistics.median(ours)),
                    bare_median_us=round(statistics.median(theirs)),
                    ratio_of_minima=round(min(ours) / min(theirs), 3),
                )
        tracker.close()
        os.sched_setaffinity(0, {target_core, *cores})


class Timed(WpAsync):
    """Notes when a round does its first ioctl, and when its page sets are in memory."""

    began = ended = 0.0

    def _look_at_maps(self) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        changes = super()._look_at_maps()
        self.began = time.perf_counter()
        return changes

    def _settle(self, populated: Runs, reported: BitMap64) -> tuple[BitMap64, int]:
        settled = super()._settle(populated, reported)
        self.ended = time.perf_counter()
        return settled


def dirty(victim: programs.Program, share: float, seed: int) -> None:
    """Make the victim write to so many per cent of its pages."""
    if share:
        victim.ask(f"dirty {share:.9g} {seed}")


def bench_barrier() -> Iterator[bool]:
    """Time from asking with a barrier to the whole answer in the client, 1 % of 1 GiB written, over loopback."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running_collector(Path(directory)) as collector,
        programs.running("scan", "victim", TARGET_MIB) as victim,
        running_agent(collector.address, "--pid", str(victim.pid), interval="1s"),
        Collector(collector.address) as client,
    ):
        name = f"{HOST}/{victim.pid}"
        cursor = client.dirty(name, barrier=True).cursor
        took = []
        for turn in range(2 * REPETITIONS):
            dirty(victim, 1, turn)
            began = time.perf_counter()
            answer = client.dirty(name, since=cursor, barrier=True)
            took.append((time.perf_counter() - began) * 1e3)
            assert answer.complete
            cursor = answer.cursor
        yield say(
            "barrier to answer, 1 % of 1 GiB written",
            statistics.median(took),
            "ms, median",
            limit=15,
            p90_ms=round(statistics.quantiles(took, n=10)[-1], 2),
        )


def bench_idle() -> Iterator[bool]:
    """Measure the agent's share of a core with one clean target of 1 GiB and a round a second."""
    seconds = 10
    with (
        running_collector() as collector,
        programs.running("scan", "victim", TARGET_MIB) as victim,
        running_agent(collector.address, "--pid", str(victim.pid), interval="1s") as agent,
    ):
        time.sleep(2)
        before = cpu_seconds(worker_pid(agent))
        time.sleep(seconds)
        share = (cpu_seconds(worker_pid(agent)) - before) / seconds
        yield say("agent at 1 s rounds on a clean 1 GiB", share * 100, "% of a core", limit=2)


def bench_pipeline() -> Iterator[bool]:
    """Measure the CPU of encode, send, merge and commit a page, in all processes, against the naive message."""
    random = np.random.default_rng(1)
    sets = [BitMap64(random.choice(ADDRESS_SPACE_PAGES, BATCH_PAGES, replace=False).tolist()) for _ in range(16)]
    with tempfile.TemporaryDirectory() as directory, running_collector(Path(directory)) as collector:
        ours = asyncio.run(stream(collector, sets, BATCHES))
    naive = naive_nanoseconds_a_page(sets[0], 10)
    yield say(
        "encode, send, merge and commit 64 Ki random pages",
        ours,
        "ns of CPU a page, all processes",
        limit=150,
        naive_ns=round(naive, 1),
        naive_is="a repeated message of address, flags and thread over plain gRPC, put into a set, not committed",
        ratio=round(ours / naive, 4),
    )


async def stream(collector: CollectorProcess, sets: list[BitMap64], count: int) -> float:
    """Send rounds of these sets with the agent's own spool and uplink until all are durable; CPU nanoseconds a page."""
    spool = Spool()
    target = types_pb2.Target(host_id=HOST, boot_id="bench", pid=1, start_time_ticks=1)
    spool.start(ingest_pb2.TargetStarted(target=target, incarnation=1, page_size=4096))
    uplink = Uplink(
        collector.address,
        ingest_pb2.Hello(protocol_version=1, host_id=HOST, boot_id="bench", agent_instance="bench"),
        spool=spool,
        commands=NoCommands(),
    )
    task = asyncio.create_task(uplink.run())
    number = await send_rounds(spool, uplink, target, sets, first=1, count=5)
    before = cpu_seconds(collector.pid) + own_cpu_seconds()
    await send_rounds(spool, uplink, target, sets, first=number, count=count)
    spent = cpu_seconds(collector.pid) + own_cpu_seconds() - before
    task.cancel()
    return spent / (count * BATCH_PAGES) * 1e9


async def send_rounds(
    spool: Spool, uplink: Uplink, target: types_pb2.Target, sets: list[BitMap64], *, first: int, count: int
) -> int:
    """Harvest, so to speak, and wait until it is durable; the next round's number."""
    for number in range(first, first + count):
        harvest = Harvest(
            began_time_ns=time.time_ns(),
            written=sets[number % len(sets)],
            vanished=BitMap64(),
            populated_page_count=ADDRESS_SPACE_PAGES,
        )
        backend = types_pb2.BACKEND_WP_ASYNC
        spool.add(key_of(target, 1), round_of(harvest, target=target, incarnation=1, number=number, backend=backend))
        uplink.changed()
        await drained(spool, to_bytes=4 << 20)
    await drained(spool, to_bytes=0)
    return first + count


async def drained(spool: Spool, *, to_bytes: int) -> None:
    """Wait until no more than so much waits for the collector."""
    async with asyncio.timeout(DRAIN_SECONDS_MAX):
        while spool.size_bytes > to_bytes:  # noqa: ASYNC110 - nobody tells, and the sleep costs nothing that is measured
            await asyncio.sleep(0.001)


class NoCommands:
    """The collector of a benchmark asks for nothing."""

    async def carry_out(self, message: ingest_pb2.CollectorMessage) -> ingest_pb2.AgentMessage | None:
        """Do nothing."""
        del message
        return None

    def set_wanted(self, wanted: list[ingest_pb2.Track]) -> None:
        """Do nothing."""

    def resynchronise(self, broken: list[Key]) -> None:
        """Say that the benchmark is broken."""
        message = f"the collector lost {broken}"
        raise AssertionError(message)

    def give_up(self, key: Key, why: str, retry_seconds: float = 0.0) -> None:  # noqa: ARG002 (as the uplink calls it)
        """Say that the benchmark is broken."""
        message = f"the collector cannot take {key}: {why}"
        raise AssertionError(message)


NAIVE: Final = """
syntax = "proto3";
message Event { uint64 address = 1; uint64 flags = 2; uint32 thread = 3; }
message Events { repeated Event events = 1; }
"""


def naive_nanoseconds_a_page(pages: BitMap64, count: int) -> float:
    """Do the same the obvious way: one message an event, sent over plain gRPC, put into a set by the server."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "naive.proto").write_text(NAIVE, encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"-I{directory}", f"--python_out={directory}", "naive.proto"],
            check=True,
        )
        sys.path.insert(0, directory)
        naive_pb2: Any = __import__("naive_pb2")
        merged: set[int] = set()

        def merge(request: Any, _: grpc.ServicerContext) -> bytes:  # noqa: ANN401 - made a moment ago
            merged.update(event.address >> 12 for event in request.events)
            return b""

        handler = grpc.unary_unary_rpc_method_handler(merge, naive_pb2.Events.FromString, bytes)
        options = [("grpc.max_receive_message_length", 16 << 20)]
        server = grpc.server(futures.ThreadPoolExecutor(1), options=options)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Naive", {"Send": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            send = channel.unary_unary("/Naive/Send", naive_pb2.Events.SerializeToString, bytes)
            before = own_cpu_seconds()
            for _ in range(count):
                events = [naive_pb2.Event(address=page << 12, flags=3, thread=1) for page in pages]
                send(naive_pb2.Events(events=events))
            spent = own_cpu_seconds() - before
        server.stop(None)
    assert len(merged) == len(pages)
    return spent / (count * len(pages)) * 1e9


def bench_memory() -> Iterator[bool]:
    """Measure how much the collector grows a dirty page: 16 Mi distinct pages at random, then as many in runs."""
    random = np.random.default_rng(2)
    everything = random.permutation(ADDRESS_SPACE_PAGES)
    scattered = [BitMap64(part.tolist()) for part in np.array_split(everything, ADDRESS_SPACE_PAGES // BATCH_PAGES)]
    contiguous = []
    for start in range(0, ADDRESS_SPACE_PAGES, BATCH_PAGES):
        pages = BitMap64()
        pages.add_range(start, start + BATCH_PAGES)
        contiguous.append(pages)
    for kind, sets, limit in (("at random", scattered, 1.0), ("in runs", contiguous, 0.1)):
        with tempfile.TemporaryDirectory() as directory, running_collector(Path(directory)) as collector:
            # What a first few rounds bring with them is the server, not its data.
            asyncio.run(stream(collector, sets[:1], 8))
            before = resident_bytes(collector.pid)
            asyncio.run(stream_other(collector, sets))
            grown = resident_bytes(collector.pid) - before
        yield say(
            f"collector memory, 16 Mi dirty pages {kind}",
            grown / ADDRESS_SPACE_PAGES,
            "bytes a dirty page",
            limit=limit,
            grown_mib=round(grown / (1 << 20), 1),
        )


async def stream_other(collector: CollectorProcess, sets: list[BitMap64]) -> None:
    """Send each of these sets once, as the rounds of another target."""
    spool = Spool()
    target = types_pb2.Target(host_id=HOST, boot_id="bench", pid=2, start_time_ticks=1)
    spool.start(ingest_pb2.TargetStarted(target=target, incarnation=1, page_size=4096))
    hello = ingest_pb2.Hello(protocol_version=1, host_id=HOST, boot_id="bench", agent_instance="other")
    uplink = Uplink(collector.address, hello, spool=spool, commands=NoCommands())
    task = asyncio.create_task(uplink.run())
    await send_rounds(spool, uplink, target, sets, first=1, count=len(sets))
    task.cancel()


def cpu_seconds(pid: int) -> float:
    """Give the CPU time a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own_cpu_seconds() -> float:
    """Give the CPU time this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_bytes(pid: int) -> int:
    """Give the memory that is a process's own."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError(pid)


BENCHES: Final[dict[str, Callable[[], Iterator[bool]]]] = {
    "round": bench_round,
    "barrier": bench_barrier,
    "idle": bench_idle,
    "pipeline": bench_pipeline,
    "memory": bench_memory,
}
