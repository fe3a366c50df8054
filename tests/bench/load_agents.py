"""The agents of ``tests.bench.load``, many in one process: ``python -m tests.bench.load_agents``.

They are ``wetink-agent --backend replay`` without the process around each. Prints one JSON object when it is over: the
times from a round's being in the spool to its acknowledgement, and how far each target came.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from wetink import logs
from wetink.v1 import types_pb2
from wetink_agent.agent import Settings
from wetink_agent.discovery import Selection
from wetink_agent.recording import Recording
from wetink_agent.replay import Pace, ReplayAgent, Score
from wetink_agent.rounds import Round
from wetink_agent.spool import Key, Spool, key_of

THREADS: Final = 2
SPREAD_SECONDS: Final = 5.0
"""Over how long they start."""


class TimedSpool(Spool):
    """A spool that takes note of how long each round waits for its acknowledgement."""

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__()
        self.seconds: list[float] = []
        self.size_bytes_max = 0
        self.acknowledged: dict[Key, int] = {}
        self._since: dict[tuple[Key, int], float] = {}

    def add(self, key: Key, harvested: Round) -> None:
        """Take a round; see ``Spool``."""
        super().add(key, harvested)
        self._since[key, harvested.last] = time.monotonic()
        self.size_bytes_max = max(self.size_bytes_max, self.size_bytes)

    def acknowledge(self, positions: Iterable[types_pb2.TargetPosition]) -> None:
        """Let go of what is durable; see ``Spool``."""
        now = time.monotonic()
        positions = list(positions)
        for position in positions:
            key = key_of(position.target, position.incarnation)
            for number in range(self.acknowledged.get(key, 0) + 1, position.round + 1):
                if since := self._since.pop((key, number), None):
                    self.seconds.append(now - since)
            self.acknowledged[key] = position.round
        super().acknowledge(positions)


async def play(address: str, recording: Recording, first: int, count: int, seconds: float) -> dict[str, object]:
    """Run agents for a while, then stop them as an operator would."""
    # Decoded once for all, as the recording is one: what counts is what the collector does.
    score = Score(recording, 1.0)
    pool = ThreadPoolExecutor(THREADS)
    stop = asyncio.Event()
    agents, running = [], []
    for number in range(first, first + count):
        settings = Settings(collector=address, host_id=f"load-{number}", pids=(), selection=Selection())
        agent: Any = ReplayAgent(settings, recording, Pace())
        spool = TimedSpool()
        agent._score, agent._pool = score, pool
        agent._spool = agent._uplink._spool = spool
        agents.append(spool)
        running.append(asyncio.create_task(agent.run(stop)))
        await asyncio.sleep(SPREAD_SECONDS / count)
    await asyncio.sleep(seconds)
    lasting = [len(spool.seconds) for spool in agents]
    stop.set()
    done = await asyncio.gather(*running, return_exceptions=True)
    return {
        "seconds": [
            round(one, 4) for spool, number in zip(agents, lasting, strict=True) for one in spool.seconds[:number]
        ],
        "rounds": [max(spool.acknowledged.values(), default=0) for spool in agents],
        "united": sum(spool.united_round_count for spool in agents),
        "spool_bytes_max": max(spool.size_bytes_max for spool in agents),
        "failed": [repr(one) for one in done if isinstance(one, BaseException)],
    }


def main() -> None:
    """Take address, recording, first number, count and seconds as arguments."""
    address, path, first, count, seconds = sys.argv[1:]
    logs.configure()
    with Recording(Path(path)) as recording:
        found = asyncio.run(play(address, recording, int(first), int(count), float(seconds)))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
