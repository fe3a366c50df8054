"""The agents of ``tests.bench.load``, many in one process: ``python -m tests.bench.load_agents``.

What an agent costs is its own host's affair, and here they all share the collector's processors: so these have encoded
everything before, and only send it and hear what is acknowledged. Prints one JSON object when it is over: the times
from when a round was due to its acknowledgement, and how far each agent came.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import grpc
import numpy as np
from pyroaring import BitMap64

from wetink.pages import encode
from wetink.v1 import ingest_pb2, types_pb2

STREAM: Final = "/wetink.v1.IngestService/Stream"

ROUNDS_A_SECOND: Final = 10
ROUND_PAGES: Final = 4096
MAPPED_PAGES: Final = 1 << 20
SETS: Final = 512
"""So many sets of pages are there; every agent plays them again and again."""

IN_FLIGHT_MAX: Final = 100
"""Rounds that an agent has sent and that are not acknowledged, ten seconds of them. It sends no more meanwhile, as an
agent whose spool is full; here the rounds come late, and their time counts from when they were due."""

SPREAD_SECONDS: Final = 5.0
"""Over how long they start."""

SETTLE_SECONDS_MAX: Final = 60.0
"""How long what was sent may take to be acknowledged when all is over."""

T0_NS: Final = 1_700_000_000_000_000_000
_Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
_BATCH: Final = ingest_pb2.AgentMessage.DESCRIPTOR.fields_by_name["write_protect_batch"].number << 3 | 2


def page_sets() -> Iterator[BitMap64]:
    """Give the sets: random pages of 4 GiB."""
    random = np.random.default_rng(1)
    for _ in range(SETS):
        yield BitMap64((random.integers(0, MAPPED_PAGES, ROUND_PAGES) + (0x7F << 24)).tolist())


def target_of(number: int) -> types_pb2.Target:
    """Give the one target of an agent."""
    return types_pb2.Target(host_id=f"load-{number}", boot_id="bench", pid=1, start_time_ticks=1)


@dataclass(slots=True)
class Agent:
    """One agent, and what it has seen."""

    number: int
    due: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    acknowledged: int = 0
    behind_max: int = 0

    async def play(self, channel: grpc.aio.Channel, sets: list[bytes], until: float, begin: float) -> None:
        """Send rounds at their times, then wait until all are acknowledged."""
        call: _Call = channel.stream_stream(STREAM)()
        target = target_of(self.number)
        hello = ingest_pb2.Hello(protocol_version=1, host_id=target.host_id, boot_id="bench", agent_version="bench")
        await call.write(ingest_pb2.AgentMessage(hello=hello).SerializeToString())
        welcome = ingest_pb2.CollectorMessage.FromString(await _read(call))
        assert welcome.WhichOneof("message") == "welcome", welcome
        started = ingest_pb2.TargetStarted(target=target, incarnation=1, time_ns=T0_NS, page_size=4096)
        await call.write(ingest_pb2.AgentMessage(target_started=started).SerializeToString())
        room = asyncio.Event()
        hearing = asyncio.create_task(self._hear(call, room))
        while (at := begin + len(self.due) / ROUNDS_A_SECOND) < until:
            if (wait := at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            while len(self.due) - self.acknowledged >= IN_FLIGHT_MAX and not hearing.done():
                room.clear()
                await room.wait()
            if hearing.done():
                break
            self.due.append(at)
            self.behind_max = max(self.behind_max, len(self.due) - self.acknowledged)
            await call.write(message_of(target, len(self.due), sets))
        await call.done_writing()
        await asyncio.wait_for(hearing, SETTLE_SECONDS_MAX)
        assert self.acknowledged == len(self.due), f"{self.acknowledged} of {len(self.due)} rounds are acknowledged"

    async def _hear(self, call: _Call, room: asyncio.Event) -> None:
        try:
            while data := await _read(call):
                now = time.monotonic()
                for position in ingest_pb2.CollectorMessage.FromString(data).ack.positions:
                    self.seconds += [now - at for at in self.due[self.acknowledged : position.round]]
                    self.acknowledged = max(self.acknowledged, position.round)
                room.set()
        finally:
            room.set()


async def _read(call: _Call) -> bytes:
    """Give the next message; nothing at the end."""
    data = await call.read()
    return data if isinstance(data, bytes) else b""


def message_of(target: types_pb2.Target, number: int, sets: list[bytes]) -> bytes:
    """Give a round as it goes over the wire; its pages are encoded already."""
    head = ingest_pb2.WriteProtectBatch(
        target=target,
        incarnation=1,
        first_round=number,
        last_round=number,
        part_count=1,
        first_time_ns=T0_NS + number * 100_000_000,
        last_time_ns=T0_NS + number * 100_000_000,
        backend=types_pb2.BACKEND_REPLAY,
        populated_page_count=MAPPED_PAGES,
    ).SerializeToString()
    pages = sets[(number - 1) % len(sets)]
    # Fields that stand one after the other are one message.
    return b"".join((bytes((_BATCH,)), _varint(len(head) + len(pages)), head, pages))


def encoded_sets() -> list[bytes]:
    """Give the field with the pages of each set."""
    return [ingest_pb2.WriteProtectBatch(written=encode(pages)).SerializeToString() for pages in page_sets()]


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


async def play(address: str, first: int, count: int, seconds: float) -> dict[str, object]:
    """Run agents for a while."""
    sets = encoded_sets()
    agents = [Agent(number) for number in range(first, first + count)]
    began, used = time.monotonic(), -time.process_time()
    # A channel each, as from a host each; without the option they would share a connection.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in agents]
    playing = [
        agent.play(channel, sets, began + SPREAD_SECONDS + seconds, began + place * SPREAD_SECONDS / count)
        for place, (agent, channel) in enumerate(zip(agents, channels, strict=True))
    ]
    done = await asyncio.gather(*playing, return_exceptions=True)
    used += time.process_time()
    for channel in channels:
        await channel.close()
    return {
        "seconds": [round(one, 4) for agent in agents for one in agent.seconds],
        "rounds": [agent.acknowledged for agent in agents],
        "behind_max": max(agent.behind_max for agent in agents),
        "cpu_seconds": used,
        "failed": [repr(one) for one in done if one is not None],
    }


def main() -> None:
    """Take address, first number, count and seconds as arguments."""
    address, first, count, seconds = sys.argv[1:]
    found = asyncio.run(play(address, int(first), int(count), float(seconds)))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
