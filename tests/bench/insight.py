"""What insight costs: how soon a working set is answered, and what an acknowledgement waits for it.

In the manner of ``tests.bench.run``. The agent is the plain stub, so that the collector is all that is measured; its
store is on disk.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from pyroaring import BitMap64

from tests.bench.run import say
from tests.integration.collector.wire import Agent, batch, start, target
from tests.support.collector import CollectorProcess, running_collector
from tests.support.collector_without_histories import WITHOUT_HISTORIES
from wetink.v1 import ingest_pb2, types_pb2
from wetink_client import Collector

ROUND_COUNT: Final = 3600
"""An hour at a round a second."""

ROUND_PAGES: Final = 10 << 10
MAPPED_PAGES: Final = 256 << 10
"""A GiB: a page is written every 26 seconds."""

ASKED_TIMES: Final = 20
WARM_MS_MAX: Final = 20.0

ACKNOWLEDGED_TIMES: Final = 1500
READERS: Final = 2
WORKING_SET_SECONDS: Final = 0.1
HEATMAP_SECONDS: Final = 1.0
"""How often each asks. A heatmap of the hour merges all of its rounds."""

SLOWER_MAX: Final = 2.0

FED_AT_ONCE: Final = 200
"""Rounds that are on their way together: their bytes are below what the collector takes unacknowledged."""


def bench_insight() -> Iterator[bool]:
    """Time GetWorkingSet on an hour of rounds, and acknowledgements while nobody and while somebody asks."""
    rounds = [random_round(number) for number in range(64)]
    with tempfile.TemporaryDirectory() as directory:
        with running_collector(Path(directory, "without"), module=WITHOUT_HISTORIES) as collector:
            alone = acknowledgements(collector, rounds, pid=2)
        with running_collector(Path(directory, "data")) as collector:
            feed(collector, rounds)
            with Collector(collector.address) as client:
                took = asked(client)
            yield say(
                f"working set of {ROUND_COUNT} rounds of {ROUND_PAGES} random pages each, warm",
                statistics.median(took) * 1e3,
                "ms",
                limit=WARM_MS_MAX,
                ms_max=round(max(took) * 1e3, 3),
                rss_mib=rss_mib(collector),
            )
            kept = acknowledgements(collector, rounds, pid=2)
            with asking(collector, lambda client: client.working_set("host-1/1"), WORKING_SET_SECONDS) as counts:
                disturbed = acknowledgements(collector, rounds, pid=3)
            with asking(collector, lambda client: client.heatmap("host-1/1"), HEATMAP_SECONDS) as drawn:
                strained = acknowledgements(collector, rounds, pid=4)
            yield slower("that keeps histories", alone, kept)
            yield slower(f"while {READERS} ask for working sets", kept, disturbed, answers=sum(counts))
            yield slower(f"while {READERS} ask for heatmaps", kept, strained, answers=sum(drawn))


def random_round(number: int) -> BitMap64:
    """Give the pages of a round."""
    random = np.random.default_rng(number)
    return BitMap64((random.choice(MAPPED_PAGES, ROUND_PAGES, replace=False) + (0x7F << 24)).tolist())


def feed(collector: CollectorProcess, rounds: list[BitMap64]) -> None:
    """Deliver an hour of rounds of process 1."""
    one = target(1)
    for first in range(1, ROUND_COUNT + 1, FED_AT_ONCE):
        last = min(ROUND_COUNT, first + FED_AT_ONCE - 1)
        # A stream of the plain stub lives for a minute.
        with Agent(collector.address) as agent:
            if first == 1:
                agent.hello()
            else:
                agent.hello(types_pb2.TargetPosition(target=one, incarnation=1, round=first - 1))
            agent.say(start(one))
            agent.say(*(made(one, number, rounds) for number in range(first, last + 1)))
            agent.acknowledged(one, last)


def made(one: types_pb2.Target, number: int, rounds: list[BitMap64]) -> ingest_pb2.WriteProtectBatch:
    """Give a round: the first has every page."""
    pages = BitMap64(range(0x7F << 24, (0x7F << 24) + MAPPED_PAGES)) if number == 1 else rounds[number % len(rounds)]
    return batch(one, number, written=pages)


def asked(client: Collector) -> list[float]:
    """Give how long each of some answers took; the first, which waits until all is counted, is none of them."""
    client.working_set("host-1/1")
    took = []
    for _ in range(ASKED_TIMES):
        began = time.perf_counter()
        answer = client.working_set("host-1/1")
        took.append(time.perf_counter() - began)
        assert answer.targets[0].history.last_round == ROUND_COUNT
    return took


def acknowledgements(collector: CollectorProcess, rounds: list[BitMap64], *, pid: int) -> list[float]:
    """Give how long each of some rounds of another host took to be durable, each sent when the one before was."""
    one = target(pid, host_id=f"host-{pid}")
    took = []
    with Agent(collector.address, f"host-{pid}") as agent:
        agent.hello()
        agent.say(start(one))
        for number in range(1, ACKNOWLEDGED_TIMES + 1):
            message = made(one, number + 1, rounds)
            message.first_round = message.last_round = number
            began = time.perf_counter()
            agent.say(message)
            agent.acknowledged(one, number)
            took.append(time.perf_counter() - began)
    return took


@contextmanager
def asking(
    collector: CollectorProcess, question: Callable[[Collector], object], every_seconds: float
) -> Iterator[list[int]]:
    """Have some readers ask again and again while the body runs; gives how many answers each got."""
    stopped = threading.Event()
    counts = [0] * READERS

    def ask(number: int) -> None:
        with Collector(collector.address) as client:
            while not stopped.is_set():
                question(client)
                counts[number] += 1
                stopped.wait(every_seconds)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def slower(what: str, before: list[float], after: list[float], **facts: object) -> bool:
    """Say how many times as long the slowest hundredth of acknowledgements takes."""
    p99_before, p99_after = (statistics.quantiles(took, n=100)[98] for took in (before, after))
    return say(
        f"acknowledgement of {ROUND_PAGES} random pages by a collector {what}, p99",
        p99_after / p99_before,
        "times as long",
        limit=SLOWER_MAX,
        p99_ms_before=round(p99_before * 1e3, 3),
        p99_ms_after=round(p99_after * 1e3, 3),
        p50_ms_before=round(statistics.median(before) * 1e3, 3),
        p50_ms_after=round(statistics.median(after) * 1e3, 3),
        **facts,
    )


def rss_mib(collector: CollectorProcess) -> int:
    """Give the memory that a collector takes."""
    status = Path(f"/proc/{collector.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10
