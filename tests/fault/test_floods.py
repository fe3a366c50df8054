"""One agent sends as fast as it can, and the others hardly notice: what waits before the writer is fair among hosts."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from pyroaring import BitMap64

from tests.integration.collector.wire import Agent, Reader, batch, target
from tests.support.amounts import amount
from tests.support.collector import running_collector
from tests.support.flooding_agent import PAGES, flooding
from wetink_collector.committer import GROUP_BYTES_MAX

pytestmark = pytest.mark.timeout(300)

AGENTS: Final = 7

ROUNDS: Final = amount(gate=8, soak=100)
"""Rounds that each ordinary agent delivers, one after the other, with the flood and without it."""


@dataclass
class Ordinary:
    """An agent with small rounds, each sent when the one before is acknowledged."""

    agent: Agent
    host_id: str
    delivered: int = 0
    seconds: list[float] = field(default_factory=list)
    flooded_bytes: list[int] = field(default_factory=list)

    def deliver(self, reader: Reader | None) -> None:
        """Deliver some rounds. With a reader, look how far the flood came between a round and its acknowledgement."""
        one = target(host_id=self.host_id)
        for _ in range(ROUNDS):
            self.delivered += 1
            before = _flood_round(reader)
            began = time.monotonic()
            self.agent.say(batch(one, self.delivered, written=[self.delivered]))
            self.agent.acknowledged(one, self.delivered)
            self.seconds.append(time.monotonic() - began)
            self.flooded_bytes.append((_flood_round(reader) - before) * 2 * len(PAGES))
            time.sleep(0.01)


def test_flood_of_one_agent_does_not_delay_the_others(tmp_path: Path) -> None:
    """
    On a slow disk a round of an ordinary agent is acknowledged after the group that is being written and the next one,
    however much of the flood waits: bytes of it that went first are counted, which a busy machine does not change.
    Nothing is lost.
    """
    with ExitStack() as stack:
        collector = stack.enter_context(running_collector(tmp_path / "data", module="tests.support.slow_collector"))
        reader = Reader(collector.address)
        stack.callback(reader.channel.close)
        ordinary = [
            Ordinary(stack.enter_context(Agent(collector.address, f"host-{n}")), f"host-{n}") for n in range(AGENTS)
        ]
        for one in ordinary:
            one.agent.hello()
            one.agent.deliver(target(host_id=one.host_id), [0])
            one.delivered = 1
        alone = delivered(ordinary, None)
        with flooding(collector.address, "flood"):
            flooded = delivered(ordinary, reader)
        for one in ordinary:
            answer = reader.dirty(f"{one.host_id}/1")
            assert answer.written == {f"{one.host_id}/1@100": {0, *range(2, one.delivered + 1)}}
        assert reader.pages("flood/1") == BitMap64(PAGES)

    went_first = [number for one in ordinary for number in one.flooded_bytes]
    first, before, beside = (statistics.median(numbers) for numbers in (went_first, alone, flooded))
    print(  # noqa: T201 (figures, for pytest -s)
        f"acknowledged after {1000 * before:.1f} ms alone, {1000 * beside:.1f} ms beside a flood, at most "
        f"{1000 * max(flooded):.1f}; of the flood {first / 2**20:.1f} MiB went first, at most {max(went_first) >> 20}"
    )
    assert first <= 2 * GROUP_BYTES_MAX
    assert beside < 10 * before + 5


def delivered(ordinary: Sequence[Ordinary], reader: Reader | None) -> list[float]:
    """Let all of them deliver at once; how long each round took."""
    with ThreadPoolExecutor(AGENTS) as pool:
        list(pool.map(lambda one: one.deliver(reader), ordinary))
    seconds = [second for one in ordinary for second in one.seconds]
    for one in ordinary:
        one.seconds.clear()
    return seconds


def _flood_round(reader: Reader | None) -> int:
    return reader.target("flood/1").round if reader else 0
