"""gRPC statuses with a reason a program can act on: ``google.rpc.ErrorInfo`` of domain ``wetink``.

Source: AIP-193 (errors); ``grpcio-status`` for the trailer ``grpc-status-details-bin``.
"""

from collections.abc import Mapping
from typing import Final, cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN: Final = "wetink"


def status_with_reason(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    metadata: Mapping[str, str] | None = None,
    retry_seconds: float | None = None,
) -> grpc.Status:
    """Make a status to abort a call with.

    Args:
        code: The gRPC status code.
        reason: UPPER_SNAKE_CASE, as the .proto names it at the call.
        message: One sentence: what happened, to which object, what to do.
        metadata: Further facts for programs. Keys are named in the .proto.
        retry_seconds: When it is worth trying again at the earliest, as ``google.rpc.RetryInfo``; None says nothing.
    """
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    told: list[Message] = [info]
    if retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_seconds * 10**9))
        told.append(retry)
    details = [any_pb2.Any() for _ in told]
    for detail, message_of_ours in zip(details, told, strict=True):
        detail.Pack(message_of_ours)
    number: int = code.value[0]
    return rpc_status.to_status(status_pb2.Status(code=number, message=message, details=details))


def error_info(error: grpc.Call | grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    """Give the reason a failed call came with, or None where it came with none of ours that can be read."""
    try:
        # An AioRpcError has what this reads of a call, though not the rest of one.
        status = rpc_status.from_call(cast("grpc.Call", error))
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    except (ValueError, DecodeError):
        pass  # the trailer is damaged, or of another status: a proxy may answer in the collector's place
    return None
