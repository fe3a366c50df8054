"""How long predictions take, and whether they keep an agent waiting.

A collector has the history of an hour of one target, and of a thousand others that have a few rounds each. Agents go on
delivering meanwhile, one alone or a fleet: how long their rounds take to be acknowledged is compared with what they
take when nobody asks.
"""

import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from tests.bench.run import cpu_seconds, say
from tests.integration.collector.wire import Agent, batch, start, target
from tests.support.collector import CollectorProcess, running_collector
from wetink_client import Collector, MigrationPlan, Selection, WetinkError

HOST: Final = "speed"
LONG_ROUNDS: Final = 3600
LONG_PAGES: Final = 256
SPAN: Final = 20_000
TARGETS: Final = 1000
TARGETS_A_HOST: Final = 250
OTHERS: Final = [f"{HOST}-{number}" for number in range(TARGETS // TARGETS_A_HOST)]
FEW_ROUNDS: Final = 20
FEW_PAGES: Final = 100
MIB: Final = 1 << 20
BANDWIDTHS: Final = [(1 << shift) * MIB for shift in range(10)]
REPETITIONS: Final = 20
PLAN: Final = MigrationPlan(round_seconds=0.01, fixed_seconds=0.02)
PREDICT_MS_MAX: Final = 20.0
RANK_MS_MAX: Final = 300.0
ACK_RATIO_MAX: Final = 2.0
FLEET_AGENTS: Final = 50
DELIVERED_SECONDS: Final = 5.0
IN_FLIGHT: Final = 64
"""Batches that are sent before the first is waited for, while histories are filled."""


def bench_prediction_speed() -> Iterator[bool]:
    """Time PredictMigration, RankCandidates, and acknowledgements beside them."""
    made = random.Random(11)  # noqa: S311 (to be the same each time)
    with (
        tempfile.TemporaryDirectory() as directory,
        running_collector(Path(directory, "data")) as collector,
        Collector(collector.address) as client,
    ):
        with _streaming(collector, HOST) as agent:
            _fill(agent, HOST, 1, LONG_ROUNDS, lambda: made.sample(range(SPAN), LONG_PAGES))
        for host in OTHERS:
            with _streaming(collector, host) as agent:
                for pid in range(1, TARGETS_A_HOST + 1):
                    _fill(agent, host, pid, FEW_ROUNDS, lambda: made.sample(range(SPAN), FEW_PAGES))
        for name, ask, limit in (
            (f"PredictMigration, {len(BANDWIDTHS)} bandwidths, an hour of history", _predict, PREDICT_MS_MAX),
            (f"RankCandidates, {TARGETS + 1:,} targets", _rank, RANK_MS_MAX),
        ):
            used = cpu_seconds(collector.pid)
            took = [_timed(ask, client) for _ in range(REPETITIONS)]
            used = cpu_seconds(collector.pid) - used
            yield say(
                name,
                statistics.median(took),
                "ms, median",
                limit=limit,
                figure="prediction-speed",
                slowest_ms=round(max(took), 1),
                collector_cpu_ms=round(1000 * used / REPETITIONS, 1),
            )
        for whose, delivered in ((f"of {FLEET_AGENTS} agents", _of_fleet), ("of one agent", _of_one)):
            alone = delivered(collector, "alone", None)
            for name, ask in (("PredictMigration", _predict), ("RankCandidates", _rank)):
                asked = delivered(collector, f"beside-{name}", ask)
                yield say(
                    f"acknowledgements {whose} beside {name} without a pause, 99th percentile",
                    _percentile(asked) / _percentile(alone),
                    "times as long as with no call",
                    limit=ACK_RATIO_MAX,
                    figure="prediction-speed",
                    alone_ms=round(_percentile(alone), 2),
                    asked_ms=round(_percentile(asked), 2),
                )


def _fill(agent: Agent, host: str, pid: int, round_count: int, pages: Callable[[], list[int]]) -> None:
    of = target(pid, host_id=host)
    agent.say(start(of))
    agent.say(batch(of, 1, written=range(SPAN)))
    for number in range(2, round_count + 1):
        agent.say(batch(of, number, written=pages()))
        if number % IN_FLIGHT == 0:
            agent.acknowledged(of, number - IN_FLIGHT // 2)
    agent.acknowledged(of, round_count)


def _predict(client: Collector) -> None:
    client.predict(f"{HOST}/1", BANDWIDTHS, PLAN)


def _rank(client: Collector) -> None:
    client.rank(Selection(hosts=(HOST, *OTHERS)), 64 * MIB, PLAN)


def _of_fleet(collector: CollectorProcess, _: str, ask: Callable[[Collector], None] | None) -> list[float]:
    """Have agents deliver ten rounds a second each while somebody asks; how long each took, in milliseconds."""
    arguments = [collector.address, "0", str(FLEET_AGENTS), str(DELIVERED_SECONDS)]
    with _asking(collector.address, ask):
        command = [sys.executable, "-m", "tests.bench.load_agents", *arguments]
        played = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert not played["failed"], played["failed"]
    return [1000 * seconds for seconds in played["seconds"]]


def _of_one(collector: CollectorProcess, host: str, ask: Callable[[Collector], None] | None) -> list[float]:
    """Deliver round after round while somebody asks; how long each took, in milliseconds."""
    of = target(1, host_id=host)
    took = []
    with _streaming(collector, host) as agent, _asking(collector.address, ask):
        agent.say(start(of))
        until = time.perf_counter() + DELIVERED_SECONDS
        number = 0
        while time.perf_counter() < until:
            number += 1
            pages = range(number % 100, 2000)
            began = time.perf_counter()
            agent.say(batch(of, number, written=pages))
            agent.acknowledged(of, number)
            took.append(1000 * (time.perf_counter() - began))
            time.sleep(0.005)
    return took


@contextmanager
def _asking(address: str, ask: Callable[[Collector], None] | None) -> Iterator[None]:
    """Ask without a pause, in a process of its own: to read an answer takes this one's interpreter's lock too."""
    if ask is None:
        yield
        return
    spawning = multiprocessing.get_context("spawn")
    answered = spawning.Event()
    asker = spawning.Process(target=_ask_on, args=(address, ask, answered), daemon=True)
    asker.start()
    try:
        assert answered.wait(60)
        yield
        assert asker.is_alive()
    finally:
        asker.terminate()
        asker.join()


def _ask_on(address: str, ask: Callable[[Collector], None], answered: Event) -> None:
    with Collector(address) as client:
        while True:
            with suppress(WetinkError):
                ask(client)
                answered.set()


@contextmanager
def _streaming(collector: CollectorProcess, host: str) -> Iterator[Agent]:
    """Give a stream of a host's agent; each has a deadline, so that none has all of the work."""
    with Agent(collector.address, host) as agent:
        agent.hello()
        yield agent


def _timed(ask: Callable[[Collector], None], client: Collector) -> float:
    began = time.perf_counter()
    ask(client)
    return 1000 * (time.perf_counter() - began)


def _percentile(values: list[float]) -> float:
    return sorted(values)[-(-99 * len(values) // 100) - 1]
