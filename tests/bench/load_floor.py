"""A collector that does nothing with what it gets, to compare with: ``python -m tests.bench.load_floor``.

It reads each message as the collector does, and answers each with an acknowledgement: what is left is what gRPC costs.
Prints the address it listens on.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc.aio import EOF, ServicerContext

from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.ingest_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server
from wetink_collector.server import OPTIONS


class Nothing(IngestServiceServicer):
    """Acknowledges everything and keeps nothing."""

    async def Stream(  # type: ignore[override]  # noqa: N802 (named in the .proto)
        self,
        request_iterator: AsyncIterator[ingest_pb2.AgentMessage],  # noqa: ARG002 (as in wetink_collector.ingest)
        context: ServicerContext[Any, Any],
    ) -> None:
        """Serve one agent."""
        await context.read()
        await context.write(ingest_pb2.CollectorMessage(welcome=ingest_pb2.Welcome()))
        while (message := await context.read()) is not EOF:
            batch = message.write_protect_batch
            if message.WhichOneof("message") == "write_protect_batch":
                position = types_pb2.TargetPosition(target=batch.target, incarnation=1, round=batch.last_round)
                await context.write(ingest_pb2.CollectorMessage(ack=ingest_pb2.Ack(positions=[position])))


async def serve() -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=OPTIONS)
    add_IngestServiceServicer_to_server(Nothing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
