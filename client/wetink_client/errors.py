"""What can go wrong with a call, as exceptions a caller can act on, and the one table from gRPC to them."""

from collections.abc import Mapping
from typing import Final, cast

import grpc

from wetink.status import error_info


class WetinkError(Exception):
    """A call failed. The text is one sentence: what happened, to which object, what to do.

    Attributes:
        reason: The contract's name for it, such as ``TARGET_UNKNOWN``. Empty where gRPC itself speaks.
        metadata: Further facts the contract names at the call.
    """

    def __init__(self, message: str, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        """Keep the sentence and what a program needs of it."""
        super().__init__(message)
        self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})


class Unavailable(WetinkError):
    """Nobody answered. Ask again, with back-off; a cursor stays valid."""


class CollectorUnavailable(Unavailable):
    """The collector is not there, or did not answer before the deadline."""


class AgentUnavailable(Unavailable):
    """The collector is there and the host's agent is not, or does not answer."""


class ResynchronisationNeeded(WetinkError):
    """The cursor leads nowhere any more: drop all you hold of the targets, and ask again without a cursor."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets concerned, ``HOST/PID@START``. Empty means all of the selection."""
        names = tuple(name for name in self.metadata.get("targets", "").split(",") if name)
        # A list too long for a trailer is cut, and then no name in it can be told from a part of one.
        whole = self.metadata.get("target_count", "") in ("", str(len(names)))
        return names if whole else ()


class NotFound(WetinkError):
    """The host, target or process is not known."""


class InvalidRequest(WetinkError):
    """The call itself is wrong: a malformed name or cursor, or a cursor of other targets."""


class Refused(WetinkError):
    """The call is right and may not be done: the agent's sentence says why."""


class MappingsUnknown(WetinkError):
    """Nobody has told what the target has mapped. That says nothing of its mappings."""


class HistoryTooShort(WetinkError):
    """Of no selected target are there two rounds yet: ask again when more have come."""


class EventsMissing(WetinkError):
    """No single writes of the target are kept: its agent streams none, or none has come yet."""


class TooLarge(WetinkError):
    """The request or its answer is over a bound: select fewer targets."""


class CollectorFailed(WetinkError):
    """The collector could not do it, for a reason the contract has no name for: look into its log."""


class BrokenAnswer(WetinkError):
    """The answer is damaged or does not add up, and nothing of it may be used. The old cursor is still good."""


ERROR_OF: Final[Mapping[tuple[grpc.StatusCode, str], type[WetinkError]]] = {
    (grpc.StatusCode.UNAVAILABLE, ""): CollectorUnavailable,
    (grpc.StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED"): AgentUnavailable,
    (grpc.StatusCode.DEADLINE_EXCEEDED, ""): CollectorUnavailable,
    (grpc.StatusCode.DEADLINE_EXCEEDED, "AGENT_SILENT"): AgentUnavailable,
    (grpc.StatusCode.CANCELLED, ""): CollectorUnavailable,  # it stopped before it had answered
    (grpc.StatusCode.OUT_OF_RANGE, ""): ResynchronisationNeeded,
    (grpc.StatusCode.NOT_FOUND, ""): NotFound,
    (grpc.StatusCode.INVALID_ARGUMENT, ""): InvalidRequest,
    (grpc.StatusCode.PERMISSION_DENIED, ""): Refused,
    (grpc.StatusCode.UNAUTHENTICATED, ""): Refused,
    (grpc.StatusCode.FAILED_PRECONDITION, ""): Refused,
    (grpc.StatusCode.FAILED_PRECONDITION, "MAPPINGS_UNKNOWN"): MappingsUnknown,
    (grpc.StatusCode.FAILED_PRECONDITION, "HISTORY_TOO_SHORT"): HistoryTooShort,
    (grpc.StatusCode.FAILED_PRECONDITION, "EVENTS_MISSING"): EventsMissing,
    (grpc.StatusCode.RESOURCE_EXHAUSTED, ""): TooLarge,
}
"""The exception for a status and a reason; for a reason that is not here, the one for the status alone."""


def from_call(error: grpc.RpcError, address: str) -> WetinkError:
    """Turn a failed call into the exception to raise.

    Args:
        error: What a stub raised; sync and asyncio alike.
        address: The collector's, for the sentence.
    """
    call = cast("grpc.Call", error)  # what a stub raises is the failed call itself
    code, details = call.code(), call.details() or ""
    info = error_info(call)
    if info is None:
        kind = ERROR_OF.get((code, ""), CollectorFailed)
        return kind(_sentence(code, details, address))
    kind = ERROR_OF.get((code, info.reason)) or ERROR_OF.get((code, ""), CollectorFailed)
    if info.reason in _OF_THE_CALLER:
        # The sentence speaks of the caller, and may be of any collector.
        details = f"collector {address} refuses the call: {details}"
    return kind(details, info.reason, info.metadata)


def _sentence(code: grpc.StatusCode, details: str, address: str) -> str:
    """Say what gRPC itself reports, which does not name the collector and may take several lines."""
    cause = " ".join(details.split())
    if code is grpc.StatusCode.UNAVAILABLE:
        # The cause stands last, after the names of all that was tried; after a handshake there is an OK behind it.
        short = cause.removesuffix(": OK").rpartition(": ")[2].strip(" ]")
        remedy = next((remedy for part, remedy in _REMEDY_OF.items() if part in cause), "is it running there?")
        return f"collector {address} cannot be reached ({short or 'no reason given'}): {remedy}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"collector {address} did not answer in time"
    return f"collector {address} failed with {code.name}: {cause or 'no reason given'}"


_OF_THE_CALLER: Final = ("IDENTITY_UNKNOWN", "TOKEN_IN_CLEAR", "ROLE_LACKING")
"""Reasons that have to do with who calls, and with nothing that was asked for."""

_REMEDY_OF: Final[Mapping[str, str]] = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of an authority in --tls-ca, or not valid now",
    "Hostname Verification Check failed": "its certificate is of another name than this address",
    "WRONG_VERSION_NUMBER": "it does not speak TLS there, as --tls-ca asks for",
    ": Socket closed": "is it running there, and does it want TLS (--tls-ca), or another --tls-cert?",
}
"""What to do about a connection, by what gRPC or BoringSSL says of it."""
