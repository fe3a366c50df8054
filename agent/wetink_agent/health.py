"""Health of the agent by ``grpc.health.v1``, on a plain port of its own: for probes, which have no certificate.

SERVING means that every process named is tracked and others have been looked for: what starts from now on is found. A
collector that is away changes nothing about that; the spool holds the rounds.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

CALLS_MAX: Final = 16
"""Bound on open calls: a kubelet has one."""

OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second agent on the port is told so
    ("grpc.max_receive_message_length", 4096),
)


class Health:
    """What probes are told."""

    def __init__(self) -> None:
        """Begin as NOT_SERVING."""
        self.servicer = health.aio.HealthServicer()

    async def set_serving(self, *, serving: bool) -> None:
        """Tell probes."""
        state = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        await self.servicer.set("", state)


@asynccontextmanager
async def served(address: str | None) -> AsyncIterator[Health]:
    """Answer probes while the body runs.

    Args:
        address: ``HOST:PORT`` or ``unix:PATH``; None means that nobody asks.

    Raises:
        OSError: The address cannot be listened on.
    """
    told = Health()
    await told.set_serving(serving=False)
    if address is None:
        yield told
        return
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
    add_HealthServicer_to_server(told.servicer, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        message = f"cannot answer health probes on {address}: stop what listens there, or give another --health"
        raise OSError(message) from error
    await server.start()
    try:
        yield told
    finally:
        await server.stop(None)
