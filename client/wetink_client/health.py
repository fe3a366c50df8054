"""The gRPC health protocol, as far as a probe needs it: one question, one answer.

Source: ``grpc.health.v1.Health`` (https://github.com/grpc/grpc/blob/master/doc/health-checking.md). Its messages have
one field each and are written by hand: the client has no need of the package for them otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import grpc

from wetink.tls import Security, SecurityUnusable
from wetink_client.errors import InvalidRequest, NotFound, from_call
from wetink_client.requests import check_address

HEALTH_SECONDS_MAX: Final = 4.0
"""Deadline of the question: below the 5 s after which a health check is often given up."""

SERVING: Final = b"\x08\x01"
"""``HealthCheckResponse`` with ``status`` (field 1) SERVING (1)."""

SERVICE_CHARACTERS_MAX: Final = 127
"""Bound on a service's name: its length is one byte in the request."""


def check(address: str, service: str, files: Mapping[str, Path | None]) -> bool:
    """Ask whether a server serves.

    Args:
        address: ``HOST:PORT`` or ``unix:PATH``.
        service: Full name of one service; empty means the whole.
        files: As ``Security`` takes them.

    Raises:
        InvalidRequest: The address, the name or a file cannot be used.
        WetinkError: Nobody answered, or there is no such service.
    """
    name = service.encode("ascii", "replace")
    if len(name) > SERVICE_CHARACTERS_MAX:
        message = f"{service[:300]!r} is no service: write wetink.v1.DirtyService or wetink.v1.IngestService"
        raise InvalidRequest(message)
    try:
        credentials = Security(**files).credentials(check_address(address))
    except SecurityUnusable as error:
        raise InvalidRequest(str(error)) from error
    options = (("grpc.enable_http_proxy", 0),)
    with (
        grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
    ) as channel:
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = ask(b"\x0a" + bytes((len(name),)) + name, timeout=HEALTH_SECONDS_MAX)
        except grpc.RpcError as error:
            if service and cast("grpc.Call", error).code() is grpc.StatusCode.NOT_FOUND:
                message = (
                    f"{address} has no service {service}: the collector's are wetink.v1.DirtyService and IngestService"
                )
                raise NotFound(message) from error
            raise from_call(error, address) from error
    return answer == SERVING
