"""Health of the agent by ``grpc.health.v1``, on a plain port of its own: for probes, which have no certificate.

SERVING means that every process named is tracked and others have been looked for: what starts from now on is found. A
collector that is away changes nothing about that; the spool holds the rounds.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

_Context: TypeAlias = grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]

CALLS_MAX: Final = 16
"""Bound on open calls: a kubelet has one."""

CONNECTIONS_MAX: Final = 32
"""Bound on connections: whoever can reach the port must not take the descriptors that rounds need."""

CONNECTION_SECONDS_MAX: Final = 5
"""How long a connection lives, with a second more for what it has just asked."""

OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second agent on the port is told so
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_connection_age_ms", CONNECTION_SECONDS_MAX * 1000),
    ("grpc.max_connection_age_grace_ms", 1000),
)


class _Checked(health.aio.HealthServicer):
    """Check alone: a watch would stay open, and a few of them leave no call for the kubelet."""

    async def Watch(self, request: HealthCheckRequest, context: _Context) -> None:  # noqa: N802, ARG002 (as the base)
        """Refuse, as the protocol lets a server do."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the agent answers Check alone: ask again instead")


class Health:
    """What probes are told."""

    def __init__(self) -> None:
        """Begin as NOT_SERVING."""
        self.servicer = _Checked()

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
