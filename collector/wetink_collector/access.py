"""Who may call what: one table, one interceptor, and a line in the log for what was changed and what was refused.

A method that is not in the table is refused, whoever calls it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import structlog
from grpc.aio import EOF, ServicerContext

from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import session_pb2
from wetink_collector import metrics
from wetink_collector.caller import CALLER, EVERYBODY, Caller, Role, Tokens, expiry_of, of_certificate
from wetink_collector.errors import (
    STATUS_OF,
    IdentityUnknown,
    ProbesTooMany,
    Refusal,
    RequestMalformed,
    RoleLacking,
    TokenInClear,
    abort,
)
from wetink_collector.lasting import held_to
from wetink_collector.trail import Allowance

if TYPE_CHECKING:
    from wetink_collector.unix_peers import UnixPeers

ANYBODY: Final = None
"""For methods that tell nothing of targets: who calls them need not be known."""

_AGENTS: Final = frozenset((Role.AGENT,))
_READERS: Final = frozenset((Role.READER, Role.ADMIN))
_ADMINS: Final = frozenset((Role.ADMIN,))

ROLES_OF: Final[Mapping[str, frozenset[Role] | None]] = {
    "/wetink.v1.IngestService/Stream": _AGENTS,
    "/wetink.v1.DirtyService/ListHosts": _READERS,
    "/wetink.v1.DirtyService/ListTargets": _READERS,
    "/wetink.v1.DirtyService/ListMappings": _READERS,
    "/wetink.v1.DirtyService/Track": _ADMINS,
    "/wetink.v1.DirtyService/Untrack": _ADMINS,
    "/wetink.v1.DirtyService/Barrier": _READERS,
    "/wetink.v1.DirtyService/Thaw": _ADMINS,
    "/wetink.v1.DirtyService/GetDirty": _READERS,
    "/wetink.v1.DirtyService/Watch": _READERS,
    "/wetink.v1.DirtyService/StreamEvents": _READERS,
    "/wetink.v1.SessionService/OpenSession": _READERS,
    "/wetink.v1.SessionService/CloseSession": _READERS,
    "/wetink.v1.SessionService/BeginRound": _READERS,
    "/wetink.v1.SessionService/CloseRound": _READERS,
    "/wetink.v1.SessionService/GetRound": _READERS,
    "/wetink.v1.InsightService/GetWorkingSet": _READERS,
    "/wetink.v1.InsightService/GetHeatmap": _READERS,
    "/wetink.v1.InsightService/GetHotPages": _READERS,
    "/wetink.v1.InsightService/GetColdFirst": _READERS,
    "/wetink.v1.InsightService/GetWriters": _READERS,
    "/wetink.v1.InsightService/PredictMigration": _READERS,
    "/wetink.v1.InsightService/FindWindow": _READERS,
    "/wetink.v1.InsightService/RankCandidates": _READERS,
    "/wetink.v1.InsightService/PlanDrain": _READERS,
    "/wetink.v1.InsightService/ReportMigration": _READERS,
    "/wetink.v1.InsightService/GetAccuracy": _READERS,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": frozenset(Role),
    "/grpc.health.v1.Health/Check": ANYBODY,  # a probe has no certificate of its own
    "/grpc.health.v1.Health/List": frozenset(Role),
    "/grpc.health.v1.Health/Watch": frozenset(Role),  # stays open: strangers could use up the bound on calls
}
"""The roles that may call a method. To freeze is for admins, whichever method does it: see ``freezes``."""

REQUEST_SECONDS_MAX: Final = 10.0
"""How long a caller may take to say what is asked: a call that never says it would otherwise be held for ever."""

PROBES_WAITING_MAX: Final = 64
"""Bound on the calls of nobody in particular whose request is still to come: more would take the places of those who
are known. A probe says what it asks in the packet it calls with."""

AUDITED_CHARACTERS_MAX: Final = 256
"""Bound on what a peer's words take in a line of the audit log."""

_DENIED: Final = frozenset((grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED))
_BLAMED: Final = _DENIED | {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}
"""The statuses of an agent's stream for which it or whoever is between may be to blame."""

_CUT_OFF: Final = f"the peer went away, or sent a message of over {MESSAGE_BYTES_MAX} bytes: gRPC tells us no more"
_BEARER: Final = "bearer "

_Context: TypeAlias = ServicerContext[Any, Any]
_Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

log = structlog.get_logger()


class Gate(grpc.aio.ServerInterceptor):
    """Lets a call through when the table says so, and keeps who makes it in ``CALLER``."""

    def __init__(
        self,
        *,
        certificates: bool = False,
        trust_domains: Collection[str] = (),
        tokens: Tokens | None = None,
        peers: UnixPeers | None = None,
    ) -> None:
        """Say what identifies a peer. Where nothing does, everybody is everything.

        Args:
            certificates: Whether the port asks for clients' certificates and verifies them.
            trust_domains: Those of which a certificate's SPIFFE id must be; none means any.
            tokens: The bearer tokens that are known.
            peers: Who is at the other end of the Unix socket, as the kernel says.
        """
        self._certificates = certificates
        self._trust_domains = trust_domains
        self._tokens = tokens
        self._peers = peers
        self.allowance = Allowance()
        self.probes = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Put the check around a method."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None  # there is no such method: UNIMPLEMENTED
        guarded = _Guarded(self, handler_call_details.method, tuple(handler_call_details.invocation_metadata or ()))
        return guarded.wrap(handler)

    def identify(self, method: str, metadata: _Metadata, context: _Context) -> Caller:
        """Give who calls.

        Raises:
            TokenInClear, IdentityUnknown: That cannot be told, or must not be told like that.
        """
        if method in ROLES_OF and ROLES_OF[method] is ANYBODY:
            return EVERYBODY
        proofs, tokens = context.auth_context(), _tokens_in(metadata)
        if (
            tokens
            and b"ssl" not in proofs.get("transport_security_type", ())
            and not context.peer().startswith("unix:")
        ):
            message = (
                "a token came over TCP without TLS, where everybody on the way could read it: "
                "replace it, and connect with TLS or to unix:PATH"
            )
            raise TokenInClear(message)
        if not self._certificates and self._tokens is None and self._peers is None:
            return EVERYBODY
        if self._certificates:
            _check_current(proofs)
        caller = of_certificate(proofs, self._trust_domains) if self._certificates else None
        if caller is None and self._tokens is not None and len(tokens) == 1:
            caller = self._tokens.caller(tokens[0])
        # Who sends a token means that one, and hears that it is not known.
        if caller is None and self._peers is not None and not tokens:
            caller = self._peers.caller(context.peer())
        if caller is None:
            raise IdentityUnknown(self._unknown(tokens))
        return caller

    def lasts(self, method: str, metadata: _Metadata, context: _Context, caller: Caller) -> Callable[[], None]:
        """Give what raises a refusal once a caller, who was let in, is not who they were."""
        tokens = self._tokens.version() if self._tokens else None

        def check() -> None:
            nonlocal tokens
            if self._certificates:
                _check_current(context.auth_context())
            # To compare a token with all that are known takes a while, for each of some thousand streams.
            if self._tokens and (now := self._tokens.version()) != tokens:
                if self.identify(method, metadata, context) != caller:
                    message = "the token is another's by now: call again"
                    raise IdentityUnknown(message)
                tokens = now

        return check

    def name_of(self, peer: str) -> str:
        """Give a peer for the audit: at a Unix socket its user and process, elsewhere its address."""
        known = self._peers.peer(peer) if self._peers else None
        return str(known or peer)

    def _unknown(self, tokens: Sequence[str]) -> str:
        if self._peers is not None and not tokens:
            return "this user may do nothing here: its operator names those who may with --unix-allow"
        if self._tokens is None and self._certificates:
            domains = " or ".join(sorted(self._trust_domains))
            return (
                "the certificate names no role here: it needs the URI spiffe://DOMAIN/wetink/ROLE/NAME, "
                + (f"where DOMAIN is {domains}, and " if domains else "or the common name ROLE:NAME, where ")
                + "ROLE is agent, reader or admin"
            )
        if self._tokens is None:
            return "this collector takes no tokens: leave --token-file out"
        if not tokens:
            return "this collector wants to know who calls: give a token with --token-file"
        return "the token is not one of those that this collector knows: ask its operator for another"


def _check_current(proofs: Mapping[str, Iterable[bytes]]) -> None:
    """Accept a certificate that has not expired since its connection began.

    Raises:
        IdentityUnknown: It has.
    """
    expiry = expiry_of(proofs)
    if expiry and expiry < datetime.now(UTC):
        message = f"the certificate expired on {expiry:%Y-%m-%d %H:%M} UTC: renew it, and connect again"
        raise IdentityUnknown(message)


def freezes(request: object) -> bool:
    """Whether a request asks that targets are frozen."""
    kinds = pb.BarrierRequest | pb.GetDirtyRequest | session_pb2.CloseRoundRequest
    return isinstance(request, kinds) and request.HasField("freeze")


def check_role(method: str, caller: Caller, request: object = None) -> None:
    """Accept a caller of a method, with what is asked.

    Raises:
        RoleLacking: The table does not let them, or does not know the method.
    """
    if method not in ROLES_OF:
        message = f"{_short(method)} is not in the collector's table of roles, so nobody may call it"
        raise RoleLacking(message)
    is_freezing = freezes(request)
    roles = _ADMINS if is_freezing else ROLES_OF[method]
    if roles is not ANYBODY and roles.isdisjoint(caller.roles):
        what = f"{_short(method)} to freeze" if is_freezing else _short(method)
        message = (
            f"{caller.role} {caller.name} may not call {what}, which takes the certificate or token of "
            f"{' or '.join(sorted(roles))}"
        )
        raise RoleLacking(message)


class _Guarded:
    """One call of a method, with the check before it and the audit after it."""

    def __init__(self, gate: Gate, method: str, metadata: _Metadata) -> None:
        self._gate = gate
        self._is_asked_once = False
        self._peer = ""
        self._method = method
        self._metadata = metadata

    def wrap(self, handler: Any) -> _Handler:  # noqa: ANN401 (types-grpcio knows no attribute of a handler)
        """Give the same method, guarded. To gRPC its requests are streams: else it waits for one before it asks us."""
        inner = next(behaviour for name in _KINDS if (behaviour := getattr(handler, name)) is not None)
        self._is_asked_once = not handler.request_streaming
        guarded = self._writing(inner) if inspect.isasyncgenfunction(inner) else self._returning(inner)
        make: Callable[..., Any] = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        wrapped: _Handler = make(
            guarded, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
        return wrapped

    def _returning(self, inner: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def call(requests: Any, context: _Context) -> Any:  # noqa: ANN401 (of any method)
            async with self._admitted(requests, context) as request:
                return await inner(request, context)

        return call

    def _writing(self, inner: Callable[[Any, _Context], Any]) -> Callable[[Any, _Context], Awaitable[None]]:
        """Write what a method yields. A generator that gRPC cannot write for is left to the garbage collector.

        That closes it when there is no call any more, and what then asks the call for anything ends the process.
        """

        async def call(requests: Any, context: _Context) -> None:  # noqa: ANN401 (as above)
            async with self._admitted(requests, context) as request, aclosing(inner(request, context)) as parts:
                async for part in parts:
                    await context.write(part)

        return call

    @asynccontextmanager
    async def _admitted(self, requests: object, context: _Context) -> AsyncIterator[object]:
        caller, request = None, None
        self._peer = self._gate.name_of(context.peer())
        try:
            caller = self._gate.identify(self._method, self._metadata, context)
            request = await self._request(requests, context)
            check_role(self._method, caller, request)
        except Refusal as refusal:
            code, reason = STATUS_OF[type(refusal)]
            metrics.REFUSED.labels(reason).inc()
            self._audit(caller, request, code.name, str(refusal))
            await abort(context, refusal)
        # Each call is a task of its own, so that nothing has to put the caller back.
        CALLER.set(caller)
        result = grpc.StatusCode.CANCELLED
        try:
            async with held_to(self._gate.lasts(self._method, self._metadata, context, caller)):
                yield request
            result = grpc.StatusCode.OK
        except Refusal as refusal:
            result, reason = STATUS_OF[type(refusal)]
            metrics.REFUSED.labels(reason).inc()
            await abort(context, refusal)
        except grpc.aio.InternalError:
            # What was written did not get through, which can be heard before the cancellation.
            result = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            result = _code(context)
            raise
        finally:
            audited = _BLAMED if ROLES_OF.get(self._method) is _AGENTS else _DENIED
            if self._target(request) is not None or result in audited:
                why = _words(context) or (_CUT_OFF if result is grpc.StatusCode.CANCELLED else "")
                self._audit(caller, request, result.name, why)

    async def _request(self, requests: object, context: _Context) -> object:
        """Wait for what is asked.

        Raises:
            RequestMalformed, ProbesTooMany: It did not come, or too many are waited for.
        """
        if not self._is_asked_once:
            return requests
        if ROLES_OF.get(self._method, _AGENTS) is not ANYBODY:
            return await _one_request(context)
        if self._gate.probes >= PROBES_WAITING_MAX:
            message = f"over {PROBES_WAITING_MAX} probes have called and not said what they ask; try again later"
            raise ProbesTooMany(message)
        self._gate.probes += 1
        try:
            return await _one_request(context)
        finally:
            self._gate.probes -= 1

    def _target(self, request: object) -> str | None:
        """Give what a request changes or holds up; None where it only reads, or was never heard."""
        names_target = _TARGET_IN.get(self._method)
        return names_target(request) if names_target and request else None

    def _audit(self, caller: Caller | None, request: object, result: str, why: str) -> None:
        # What was let through has a role; what was not, anybody can cause.
        left_out_count = 0 if result == "OK" else self._gate.allowance.take()
        if left_out_count is None:
            return
        target = self._target(request)
        write = log.info if result == "OK" else log.warning
        write(
            "audit",
            caller=caller.name if caller else None,
            role=caller.role if caller else None,
            peer=self._peer,
            method=_short(self._method),
            target=target[:AUDITED_CHARACTERS_MAX] if target is not None else None,
            freezes=True if freezes(request) else None,
            result=result,
            why=why[:AUDITED_CHARACTERS_MAX] or None,
            left_out_count=left_out_count,
        )


async def _one_request(context: _Context) -> object:
    """Wait for the one request of a call.

    Raises:
        RequestMalformed: None came, or not in its time.
    """
    try:
        async with asyncio.timeout(REQUEST_SECONDS_MAX):
            request: object = await context.read()
    except TimeoutError as error:
        message = f"the call's request did not come whole in {REQUEST_SECONDS_MAX:.0f} s"
        raise RequestMalformed(message) from error
    if request is EOF:
        message = f"the call came without a request, or with one of over {MESSAGE_BYTES_MAX} bytes"
        raise RequestMalformed(message)
    return request


def _tokens_in(metadata: _Metadata) -> Sequence[str]:
    """Give the bearer tokens that came with a call; of anything else after ``authorization`` an empty one."""
    values = [value if isinstance(value, str) else "" for key, value in metadata if key == "authorization"]
    return [value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else "" for value in values]


def _short(method: str) -> str:
    return method.rpartition("/")[2]


def _code(context: _Context) -> grpc.StatusCode:
    """Give the status that a call was ended with; anything else is a failure of ours."""
    code: object = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code and code), grpc.StatusCode.UNKNOWN)


def _words(context: _Context) -> str:
    details: object = context.details()
    return details if isinstance(details, str) else ""


def _selected(selection: pb.Selection) -> str:
    labels = (f"{key}={value}" for key, value in sorted(selection.labels.items()))
    return _joined((*selection.targets, *selection.hosts, *selection.cgroups, *labels))


def _joined(names: Iterable[str]) -> str:
    return ",".join(names)


_TARGET_IN: Final[Mapping[str, Callable[[Any], str | None]]] = {
    "/wetink.v1.DirtyService/Track": lambda request: f"{request.host_id}/{request.pid}",
    "/wetink.v1.DirtyService/Untrack": lambda request: str(request.target),
    "/wetink.v1.DirtyService/Barrier": lambda request: _selected(request.selection),
    "/wetink.v1.DirtyService/Thaw": lambda request: _selected(request.selection),
    "/wetink.v1.SessionService/CloseRound": lambda request: f"session {request.session}, round {request.round}",
    "/wetink.v1.DirtyService/GetDirty": lambda request: _selected(request.selection) if request.barrier else None,
}
"""The methods that change something or hold a target up, audited also where they succeed, and what they name. None is
said of a request that does neither."""

_KINDS: Final = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
"""The attributes of a handler, one of which holds its function."""
