"""What a caller of the services can act on, and the one table that gives each its status and reason."""

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from grpc import StatusCode
from grpc.aio import ServicerContext

from wetink.status import status_with_reason


class Refusal(Exception):
    """Ends a call. The sentence says what happened, to which object, and what to do."""

    def __init__(self, message: str, **metadata: str) -> None:
        """Keep the sentence, and further facts for programs."""
        super().__init__(message)
        self.metadata = metadata


class SelectionMalformed(Refusal):
    """A selection is empty where it must not be, too wide, or has a name that cannot be one."""


class RequestMalformed(Refusal):
    """A field of a request is out of its bounds."""


class CursorMalformed(Refusal):
    """A cursor was not made by a collector, or was cut short."""


class CursorForeign(Refusal):
    """A cursor names none of the targets."""


class CursorIncarnationEnded(Refusal):
    """The incarnation that a cursor names does not go on."""


class CursorExpired(Refusal):
    """A cursor is older than what is kept."""


class CursorOtherStore(Refusal):
    """A cursor was made by a collector with another store."""


class PageTokenMalformed(Refusal):
    """A page token was not made for this list and selection, or was cut short."""


class HostUnknown(Refusal):
    """No agent of the host was ever here."""


class TargetUnknown(Refusal):
    """No such target is kept."""


class MappingsUnknown(Refusal):
    """Nobody has told what a target has mapped."""


class ProcessUnknown(Refusal):
    """The agent finds no such process."""


class TrackForbidden(Refusal):
    """The agent may not track the process."""


class TrackRefused(Refusal):
    """The agent cannot track the process as it is."""


class AgentDisconnected(Refusal):
    """No stream of the host's agent is open."""


class AgentSilent(Refusal):
    """The agent did not answer in time."""


class MessageMalformed(Refusal):
    """An agent said something the contract does not allow."""


class BatchCorrupt(Refusal):
    """The page sets of a batch are not what the agent sent."""


class RoundGap(Refusal):
    """A round is missing before the one that came."""


class TargetRefusal(Refusal):
    """A target is over a limit: no more is taken of it. Its metadata names it as a batch's does."""


class RoundTooLarge(TargetRefusal):
    """A round in parts is over the collector's bound."""


class PagesTooMany(TargetRefusal):
    """A target, or a round of it, has more pages than one may."""


class TargetsTooMany(TargetRefusal):
    """An agent has as many targets as one may."""


class RefusedTooMany(Refusal):
    """An agent has even more targets than can be refused one by one."""


class HostsTooMany(Refusal):
    """A host is new, and there are as many as there may be."""


class TargetRefused(Refusal):
    """A limit of the collector or of the agent keeps a process from being tracked."""


class MessageTooLarge(Refusal):
    """A list does not fit in one message."""


class Deposed(Refusal):
    """A newer stream of the same host has taken over."""


class Draining(Refusal):
    """The collector is going down."""


class IdentityUnknown(Refusal):
    """Neither a certificate nor a token says who calls."""


class ProbesTooMany(Refusal):
    """Too many callers who need no role are yet to say what they ask."""


class TokenInClear(Refusal):
    """A bearer token came where others could read it."""


class RoleLacking(Refusal):
    """The caller is known, and may not call the method."""


class HostForbidden(Refusal):
    """An agent wants to write for another host than its own."""


class HistoryTooShort(Refusal):
    """There are not enough rounds of any selected target to say anything."""


class PolicyUnknown(Refusal):
    """No stop policy has the name."""


class TargetEnded(Refusal):
    """The target has ended: it will not be migrated."""


class EventsMissing(Refusal):
    """No single writes of the target are kept."""


class SessionUnknown(Refusal):
    """No such session of the caller's is kept."""


class RoundUnknown(Refusal):
    """The session has no such round."""


class SessionDiffers(Refusal):
    """There is a session of that name, over other targets."""


class RoundDiffers(Refusal):
    """There is a round of that name, with another parent."""


class RoundOpen(Refusal):
    """The round has to be closed first."""


class SessionsTooMany(Refusal):
    """Too many sessions are open."""


class NotFrozen(Refusal):
    """A target could not be frozen."""


class StoreUnavailable(Refusal):
    """The collector cannot write now."""


STATUS_OF: Final[Mapping[type[Refusal], tuple[StatusCode, str]]] = {
    SelectionMalformed: (StatusCode.INVALID_ARGUMENT, "SELECTION_MALFORMED"),
    RequestMalformed: (StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"),
    CursorMalformed: (StatusCode.INVALID_ARGUMENT, "CURSOR_MALFORMED"),
    CursorForeign: (StatusCode.INVALID_ARGUMENT, "CURSOR_FOREIGN"),
    PageTokenMalformed: (StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_MALFORMED"),
    CursorIncarnationEnded: (StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"),  # ask without a cursor
    CursorExpired: (StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"),  # ask without a cursor
    CursorOtherStore: (StatusCode.OUT_OF_RANGE, "CURSOR_OTHER_STORE"),  # ask without a cursor
    HostUnknown: (StatusCode.NOT_FOUND, "HOST_UNKNOWN"),
    TargetUnknown: (StatusCode.NOT_FOUND, "TARGET_UNKNOWN"),
    MappingsUnknown: (StatusCode.FAILED_PRECONDITION, "MAPPINGS_UNKNOWN"),
    ProcessUnknown: (StatusCode.NOT_FOUND, "PROCESS_UNKNOWN"),
    TrackForbidden: (StatusCode.PERMISSION_DENIED, "TRACK_REFUSED"),
    TrackRefused: (StatusCode.FAILED_PRECONDITION, "TRACK_REFUSED"),
    AgentDisconnected: (StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED"),  # try again
    AgentSilent: (StatusCode.DEADLINE_EXCEEDED, "AGENT_SILENT"),  # try again
    MessageMalformed: (StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED"),
    BatchCorrupt: (StatusCode.INVALID_ARGUMENT, "BATCH_CORRUPT"),  # reconnect and send it again
    RoundGap: (StatusCode.FAILED_PRECONDITION, "ROUND_GAP"),  # reconnect: Welcome says what is there
    RoundTooLarge: (StatusCode.RESOURCE_EXHAUSTED, "ROUND_TOO_LARGE"),
    PagesTooMany: (StatusCode.RESOURCE_EXHAUSTED, "PAGES_TOO_MANY"),
    TargetsTooMany: (StatusCode.RESOURCE_EXHAUSTED, "TARGETS_TOO_MANY"),  # when others have ended
    RefusedTooMany: (StatusCode.RESOURCE_EXHAUSTED, "TARGETS_TOO_MANY"),  # as above
    HostsTooMany: (StatusCode.RESOURCE_EXHAUSTED, "HOSTS_TOO_MANY"),  # when others are forgotten
    TargetRefused: (StatusCode.RESOURCE_EXHAUSTED, "TARGET_REFUSED"),
    PolicyUnknown: (StatusCode.INVALID_ARGUMENT, "POLICY_UNKNOWN"),
    TargetEnded: (StatusCode.FAILED_PRECONDITION, "TARGET_ENDED"),
    HistoryTooShort: (StatusCode.FAILED_PRECONDITION, "HISTORY_TOO_SHORT"),  # wait for rounds
    EventsMissing: (StatusCode.FAILED_PRECONDITION, "EVENTS_MISSING"),  # the agent was not told to stream them
    MessageTooLarge: (StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
    Deposed: (StatusCode.ABORTED, "DEPOSED"),
    ProbesTooMany: (StatusCode.RESOURCE_EXHAUSTED, "PROBES_TOO_MANY"),
    IdentityUnknown: (StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN"),
    TokenInClear: (StatusCode.UNAUTHENTICATED, "TOKEN_IN_CLEAR"),
    RoleLacking: (StatusCode.PERMISSION_DENIED, "ROLE_LACKING"),
    HostForbidden: (StatusCode.PERMISSION_DENIED, "HOST_FORBIDDEN"),
    SessionUnknown: (StatusCode.NOT_FOUND, "SESSION_UNKNOWN"),  # open it again
    RoundUnknown: (StatusCode.NOT_FOUND, "ROUND_UNKNOWN"),
    SessionDiffers: (StatusCode.FAILED_PRECONDITION, "SESSION_DIFFERS"),
    RoundDiffers: (StatusCode.FAILED_PRECONDITION, "ROUND_DIFFERS"),
    RoundOpen: (StatusCode.FAILED_PRECONDITION, "ROUND_OPEN"),
    SessionsTooMany: (StatusCode.RESOURCE_EXHAUSTED, "SESSIONS_TOO_MANY"),
    NotFrozen: (StatusCode.FAILED_PRECONDITION, "NOT_FROZEN"),
    Draining: (StatusCode.UNAVAILABLE, "COLLECTOR_DRAINING"),  # reconnect with back-off
    StoreUnavailable: (StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),  # reconnect with back-off
}


RETRY_SECONDS_OF: Final[Mapping[type[Refusal], float]] = {
    StoreUnavailable: 1.0,
    RoundTooLarge: 300.0,
    PagesTooMany: 300.0,
    TargetsTooMany: 30.0,
    RefusedTooMany: 30.0,
    HostsTooMany: 300.0,
}
"""When it is worth trying again, where the collector knows: a store that failed is tried as often, another target may
have ended soon, and a target that is too large seldom becomes small."""


async def abort(context: ServicerContext[Any, Any], refusal: Refusal) -> NoReturn:
    """End a call with the status of a refusal."""
    code, reason = STATUS_OF[type(refusal)]
    retry_seconds = RETRY_SECONDS_OF.get(type(refusal))
    await context.abort_with_status(status_with_reason(code, reason, str(refusal), refusal.metadata, retry_seconds))
