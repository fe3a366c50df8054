"""An IngestService in the test's own event loop, of which the test plays the collector, stream by stream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import grpc

from tests.support.harvests import sets_of
from wetink.status import status_with_reason
from wetink.v1 import ingest_pb2, types_pb2

PATIENCE_SECONDS: Final = 50.0
"""How long it waits for anything before the test fails."""

WINDOW: Final = 8 << 20


class Peer:
    """One stream, seen from the collector."""

    def __init__(self, stream: "_Stream") -> None:
        """Take the server's side of a call."""
        self._stream = stream
        self._incoming: asyncio.Queue[ingest_pb2.AgentMessage | None] = asyncio.Queue()
        self.half_closed = False

    async def read(self) -> None:
        """Take in what comes until the agent half-closes."""
        message: object = await self._stream.read()
        while isinstance(message, ingest_pb2.AgentMessage):
            self._incoming.put_nowait(message)
            message = await self._stream.read()
        self.half_closed = True
        self._incoming.put_nowait(None)

    async def hear(self) -> ingest_pb2.AgentMessage | None:
        """Give the agent's next message, or None where it has half-closed."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._incoming.get()

    async def hear_rounds(self, *, quiet_seconds: float) -> list[ingest_pb2.WriteProtectBatch]:
        """Give the rounds that come until nothing has come for so long; all are of one part."""
        batches = []
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(quiet_seconds):
                    message = await self._incoming.get()
                if message is not None and message.HasField("write_protect_batch"):
                    batches.append(message.write_protect_batch)
        return batches

    async def hear_until(self, field: str) -> ingest_pb2.AgentMessage:
        """Give the next message of a kind, passing over others."""
        while (message := await self.hear()) is not None:
            if message.WhichOneof("message") == field:
                return message
        text = f"the agent half-closed before {field}"
        raise AssertionError(text)

    async def hear_round(self, pid: int = 7) -> ingest_pb2.WriteProtectBatch:
        """Give the last part of a target's next round, passing over everything else."""
        while True:
            batch = (await self.hear_until("write_protect_batch")).write_protect_batch
            if batch.target.pid == pid and batch.part + 1 == batch.part_count:
                return batch

    async def welcome(
        self, *durable: types_pb2.TargetPosition, window_bytes: int = WINDOW, heartbeat_ms: int = 5000
    ) -> ingest_pb2.Hello:
        """Hear Hello and answer it."""
        hello = (await self.hear_until("hello")).hello
        await self.say(
            welcome=ingest_pb2.Welcome(
                positions=durable,
                in_flight_bytes_max=window_bytes,
                message_bytes_max=1 << 20,
                heartbeat_interval_ms=heartbeat_ms,
                store_id="store",
            )
        )
        return hello

    async def say(
        self,
        *,
        welcome: ingest_pb2.Welcome | None = None,
        ack: ingest_pb2.Ack | None = None,
        drain: ingest_pb2.Drain | None = None,
        barrier: ingest_pb2.Barrier | None = None,
    ) -> None:
        """Say one thing, or something of a later version where nothing is given."""
        message = ingest_pb2.CollectorMessage(welcome=welcome, ack=ack, drain=drain, barrier=barrier)
        await self._stream.write(message)

    async def acknowledge(self, batch: ingest_pb2.WriteProtectBatch) -> None:
        """Say that a round is durable."""
        position = types_pb2.TargetPosition(target=batch.target, incarnation=batch.incarnation, round=batch.last_round)
        await self.say(ack=ingest_pb2.Ack(positions=[position]))

    async def refuse(self, reason: str, batch: ingest_pb2.WriteProtectBatch | None = None) -> None:
        """End the stream with one of the contract's reasons, about a round where there is one."""
        metadata = {}
        if batch is not None:
            target = batch.target
            metadata = {
                "target": f"{target.host_id}/{target.pid}@{target.start_time_ticks}",
                "incarnation": str(batch.incarnation),
                "round": str(batch.first_round),
            }
        code = grpc.StatusCode.ABORTED if reason == "DEPOSED" else grpc.StatusCode.INVALID_ARGUMENT
        status = status_with_reason(code, reason, f"refused: {reason}", metadata)
        await self._stream.abort(status.code, status.details, status.trailing_metadata)

    async def abort_with(self, code: grpc.StatusCode, trailer: tuple[tuple[str, bytes], ...]) -> None:
        """End the stream with any trailer."""
        await self._stream.abort(code, "refused", trailer)


Script = Callable[[Peer], Awaitable[None]]
"""What the collector does on one stream; its end is the stream's end."""


@asynccontextmanager
async def fake_ingest(script: Script, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve a script to every stream, and give the address. An error of the script is raised at the end.

    Args:
        script: The collector on each stream.
        address: Where it listens.
    """
    failures: list[AssertionError | TimeoutError] = []

    async def stream(_requests: object, context: _Stream) -> None:
        peer = Peer(context)
        reading = asyncio.create_task(peer.read())
        try:
            await script(peer)
        except (AssertionError, TimeoutError) as error:
            failures.append(error)
            raise
        finally:
            reading.cancel()

    handler = grpc.stream_stream_rpc_method_handler(
        stream,
        request_deserializer=ingest_pb2.AgentMessage.FromString,
        response_serializer=ingest_pb2.CollectorMessage.SerializeToString,
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler("wetink.v1.IngestService", {"Stream": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
    if failures:
        raise failures[0]


def pages_of(batch: ingest_pb2.WriteProtectBatch) -> set[int]:
    """Give the written pages of a round that has one part."""
    assert batch.part_count == 1
    return set(sets_of([batch])[0])


_Stream = grpc.aio.ServicerContext[ingest_pb2.AgentMessage, ingest_pb2.CollectorMessage]
