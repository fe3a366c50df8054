"""Sessions of orchestrators: rounds with names, so that a call that is said again gets the answer it got before.

What a session has come to is one message, kept in the store as bytes. It is changed here only after the change is
durable; what nobody was told before a crash is found out anew.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from grpc.aio import ServicerContext

from wetink.names import parse_target
from wetink.v1 import session_pb2 as pb
from wetink.v1.dirty_pb2 import DirtyPages, DirtySummary, Selection, TargetStatus
from wetink.v1.session_pb2_grpc import SessionServiceServicer
from wetink.v1.types_pb2 import (
    INCOMPLETE_REASON_AGENT_DISCONNECTED,
    INCOMPLETE_REASON_NOT_FROZEN,
    INCOMPLETE_REASON_UNSPECIFIED,
)
from wetink_collector.agents import Agents
from wetink_collector.answer import Answerer, are_all_reached, consistency
from wetink_collector.asked import barrier_seconds, check_name, chosen_now, freeze_of, positions_of
from wetink_collector.barrier import Reached, reach
from wetink_collector.caller import CALLER
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.committer import Committer
from wetink_collector.cursor import Cursor, Position, decode, encode
from wetink_collector.edge import edge
from wetink_collector.errors import (
    AgentDisconnected,
    AgentSilent,
    CursorIncarnationEnded,
    NotFrozen,
    Refusal,
    RequestMalformed,
    RoundDiffers,
    RoundOpen,
    RoundUnknown,
    SessionDiffers,
    SessionsTooMany,
    SessionUnknown,
    StoreUnavailable,
)
from wetink_collector.selection import Chosen, parse_non_empty
from wetink_collector.store.interface import SessionForgotten, SessionKept

LEASE_MS_DEFAULT: Final = 60_000
LEASE_MS_MAX: Final = 3_600_000
"""As the contract says: after an hour an ended target is forgotten, too."""

SESSIONS_MAX: Final = 1024
"""Bound on sessions: as many moves at once, each with a megabyte of what it was answered."""

ROUNDS_MAX: Final = 64
"""Bound on the rounds of a session that are kept: twice as many as movers make."""

SESSION_BYTES_MAX: Final = 4 << 20
"""Bound on what is kept of a session: six rounds over 4096 targets."""

LOOK_SECONDS: Final = 1.0
"""How often leases are looked at."""

_Context: TypeAlias = ServicerContext[Any, Any]
_Key: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Session:
    """One session: what is durable of it, and until when its lease goes (``time.monotonic``)."""

    open: pb.OpenSessionRequest
    rounds: dict[str, pb.SessionRound]
    until: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def renew(self) -> None:
        self.until = time.monotonic() + (self.open.lease_ms or LEASE_MS_DEFAULT) / 1000

    def is_over(self, now: float) -> bool:
        """Whether nobody has asked for it for as long as its lease; a call that is under way counts as asking."""
        return self.until < now and not self.lock.locked()

    def closed(self, name: str) -> pb.SessionRound:
        """Give a round that has an end.

        Raises:
            RoundUnknown, RoundOpen: It has none.
        """
        found = self.round(name)
        if not found.closed:
            message = f"round {name} of session {self.open.session} is still open: close it first"
            raise RoundOpen(message)
        return found

    def round(self, name: str) -> pb.SessionRound:
        """Give a round.

        Raises:
            RoundUnknown: It was not begun, or is forgotten.
        """
        if name not in self.rounds:
            message = f"session {self.open.session} has no round {name[:64]!r}, or not any more: begin it"
            raise RoundUnknown(message)
        return self.rounds[name]


class SessionService(SessionServiceServicer):
    """The service for orchestrators that may say everything twice."""

    def __init__(
        self,
        catalog: Catalog,
        agents: Agents,
        committer: Committer,
        answerer: Answerer,
        kept: Iterable[SessionKept],
    ) -> None:
        """Go on with what a store has kept; the time while nobody could call counts for no lease."""
        self._catalog = catalog
        self._agents = agents
        self._committer = committer
        self._answerer = answerer
        self._sessions: dict[_Key, _Session] = {}
        for one in kept:
            self._sessions[one.owner, one.name] = _restored(one.data)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forget sessions whose lease is over, while the body runs."""
        task = asyncio.create_task(self._expire())
        try:
            yield
        finally:
            task.cancel()

    async def OpenSession(  # noqa: N802 (named in the .proto)
        self, request: pb.OpenSessionRequest, context: _Context
    ) -> pb.OpenSessionResponse:
        """Open a session, or renew it."""
        async with edge(_SERVICE, "OpenSession", context):
            return await self._open(request)

    async def CloseSession(  # noqa: N802 (as above)
        self, request: pb.CloseSessionRequest, context: _Context
    ) -> pb.CloseSessionResponse:
        """Forget a session."""
        async with edge(_SERVICE, "CloseSession", context):
            key = (CALLER.get().name, request.session)
            if key in self._sessions:
                await self._committer.commit([SessionForgotten(*key)])
                self._sessions.pop(key, None)
            return pb.CloseSessionResponse()

    async def BeginRound(  # noqa: N802 (as above)
        self, request: pb.BeginRoundRequest, context: _Context
    ) -> pb.BeginRoundResponse:
        """Begin a round."""
        async with edge(_SERVICE, "BeginRound", context), self._held(request.session) as session:
            return pb.BeginRoundResponse(round=await self._begin(session, request))

    async def CloseRound(  # noqa: N802 (as above)
        self, request: pb.CloseRoundRequest, context: _Context
    ) -> pb.CloseRoundResponse:
        """Close a round."""
        async with edge(_SERVICE, "CloseRound", context), self._held(request.session) as session:
            found = session.round(request.round)
            if not found.closed:
                found = await self._close(session, found, request)
            return pb.CloseRoundResponse(round=found)

    async def GetRound(  # noqa: N802 (as above)
        self, request: pb.GetRoundRequest, context: _Context
    ) -> AsyncIterator[pb.GetRoundResponse]:
        """Give what a closed round carries."""
        async with edge(_SERVICE, "GetRound", context):
            session = self._find(request.session)
            async for part in self._carried(session, session.closed(request.round)):
                if isinstance(part, DirtySummary):
                    yield pb.GetRoundResponse(summary=part)
                else:
                    yield pb.GetRoundResponse(pages=part)
            session.renew()

    async def _open(self, request: pb.OpenSessionRequest) -> pb.OpenSessionResponse:
        check_name(request.session, "session")
        if request.lease_ms > LEASE_MS_MAX:
            message = f"lease_ms is {request.lease_ms}, at most {LEASE_MS_MAX} is possible; renew it instead"
            raise RequestMalformed(message)
        parse_non_empty(request.selection)
        key = (CALLER.get().name, request.session)
        session = self._sessions.get(key)
        if session and session.open.selection != request.selection:
            message = f"there is a session {request.session} over other targets: close it, or take another name"
            raise SessionDiffers(message)
        if session is None and len(self._sessions) >= SESSIONS_MAX:
            message = f"there are {SESSIONS_MAX} sessions already; close those that are done, or try again later"
            raise SessionsTooMany(message)
        if session is None or session.open != request:
            kept = _Session(_copy_of_open(request), session.rounds if session else {}, 0.0)
            await self._committer.commit([SessionKept(*key, _stored(kept))])
            session = self._sessions.setdefault(key, kept)
            session.open = kept.open
        session.renew()
        return pb.OpenSessionResponse(rounds=[_without_targets(one) for one in session.rounds.values()])

    async def _begin(self, session: _Session, request: pb.BeginRoundRequest) -> pb.SessionRound:
        check_name(request.round, "round")
        begun = session.rounds.get(request.round)
        if begun and begun.parent != request.parent:
            message = f"round {request.round} was begun with the parent {begun.parent or 'none'!r}: take another name"
            raise RoundDiffers(message)
        if begun:
            return begun
        if request.parent:
            session.closed(request.parent)
        begun = pb.SessionRound(round=request.round, parent=request.parent)
        await self._keep(session, begun)
        return begun

    async def _close(self, session: _Session, found: pb.SessionRound, request: pb.CloseRoundRequest) -> pb.SessionRound:
        timeout_seconds, freeze = barrier_seconds(request.timeout_ms), freeze_of(request)
        chosen = parse_non_empty(session.open.selection)
        cursor = self._cursor_of_parent(session, found)
        records = chosen_now(self._catalog, chosen, cursor)
        positions_of(self._catalog, cursor, chosen, records)
        reached = await reach(records, self._agents, self._catalog, timeout_seconds=timeout_seconds, freeze=freeze)
        reached = {target: replace(outcome, pinned=True) for target, outcome in reached.items()}
        now = [self._catalog.get(record.target) or record for record in records]
        _check_reached(now, reached)
        statuses = [await self._answerer.status_at(record, reached.get(record.target)) for record in now]
        closed = pb.SessionRound(
            round=found.round,
            parent=found.parent,
            closed=True,
            cursor=encode(Cursor(self._catalog.store_id, _positions(now, statuses, chosen))),
            consistency=consistency(statuses, all_reached=are_all_reached(now, reached)),
            closed_time_ns=time.time_ns(),
            targets=statuses,
        )
        await self._keep(session, closed)
        return closed

    async def _carried(self, session: _Session, found: pb.SessionRound) -> AsyncIterator[DirtyPages | DirtySummary]:
        cursor = self._cursor_of_parent(session, found)
        before = cursor.positions if cursor else {}
        statuses = []
        for status in found.targets:
            record = self._catalog.find(parse_target(status.name))
            if record is None or record.incarnation.incarnation != status.incarnation:
                message = f"tracking of {status.name} did not go on from round {found.round}; begin without a parent"
                raise CursorIncarnationEnded(message, targets=status.name, target_count="1")
            told = TargetStatus()
            told.CopyFrom(status)
            if status.round:
                async for pages in self._answerer.fixed(record, before.get(record.target), status.round, told):
                    yield pages
            statuses.append(told)
        yield DirtySummary(
            cursor=found.cursor,
            complete=all(one.complete for one in statuses),
            exact=all(one.exact for one in statuses),
            consistency=found.consistency,
            as_of_time_ns=min((one.as_of_time_ns for one in statuses), default=0),
            targets=statuses,
        )

    def _cursor_of_parent(self, session: _Session, found: pb.SessionRound) -> Cursor | None:
        return decode(session.closed(found.parent).cursor) if found.parent else None

    async def _keep(self, session: _Session, changed: pb.SessionRound) -> None:
        """Take over a round, once it is durable; the oldest go where there are too many."""
        rounds = {**session.rounds, changed.round: changed}
        needed = {one.parent for one in rounds.values() if not one.closed} | {changed.round, changed.parent}
        for name in list(rounds):
            if len(rounds) <= ROUNDS_MAX and sum(one.ByteSize() for one in rounds.values()) <= SESSION_BYTES_MAX:
                break
            if name not in needed:
                del rounds[name]
        owner = next(key[0] for key, one in self._sessions.items() if one is session)
        kept = _Session(session.open, rounds, session.until)
        await self._committer.commit([SessionKept(owner, session.open.session, _stored(kept))])
        session.rounds = rounds

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[_Session]:
        """Give a session to one call at a time: who repeats a call that is under way waits for its answer.

        Raises:
            SessionUnknown: There is none.
        """
        async with self._find(name).lock:
            # It may have been closed while we waited.
            session = self._find(name)
            session.renew()
            try:
                yield session
            finally:
                session.renew()

    def _find(self, name: str) -> _Session:
        session = self._sessions.get((CALLER.get().name, name))
        if session is None or session.is_over(time.monotonic()):
            message = f"there is no session {name[:64]!r} of yours, or its lease is over: open it again"
            raise SessionUnknown(message)
        return session

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            over = [key for key, one in self._sessions.items() if one.is_over(now)]
            with suppress(StoreUnavailable):
                await self._committer.commit([SessionForgotten(*key) for key in over])
                for key in over:
                    if self._sessions[key].is_over(now):
                        del self._sessions[key]


def _check_reached(records: Iterable[TargetRecord], reached: dict[Any, Reached]) -> None:
    """Accept a barrier that was reached by every target that has not ended.

    Raises:
        AgentDisconnected, AgentSilent, NotFrozen: It was not, and why.
    """
    for record in records:
        outcome = reached.get(record.target)
        if record.ended or outcome is None or outcome.reason == INCOMPLETE_REASON_UNSPECIFIED:
            continue
        kinds: dict[int, type[Refusal]] = {
            INCOMPLETE_REASON_AGENT_DISCONNECTED: AgentDisconnected,
            INCOMPLETE_REASON_NOT_FROZEN: NotFrozen,
        }
        raise kinds.get(outcome.reason, AgentSilent)(outcome.message)


def _positions(
    records: Iterable[TargetRecord], statuses: Iterable[TargetStatus], chosen: Chosen
) -> dict[Any, Position]:
    """Give where a round ends. What has ended, and is not meant by its name, is told once and then left out."""
    return {
        record.target: Position(status.incarnation, status.round)
        for record, status in zip(records, statuses, strict=True)
        if not record.ended or chosen.names_target(record.target)
    }


def _stored(session: _Session) -> bytes:
    """Turn what is durable of a session into bytes: how it was opened, then its rounds, each with its length."""
    messages = [session.open.SerializeToString(), *(one.SerializeToString() for one in session.rounds.values())]
    return b"".join(len(one).to_bytes(4, "little") + one for one in messages)


def _restored(data: bytes) -> _Session:
    messages = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        messages.append(data[4:end])
        data = data[end:]
    rounds = [pb.SessionRound.FromString(one) for one in messages[1:]]
    session = _Session(pb.OpenSessionRequest.FromString(messages[0]), {one.round: one for one in rounds}, 0.0)
    session.renew()
    return session


def _copy_of_open(request: pb.OpenSessionRequest) -> pb.OpenSessionRequest:
    selection = Selection()
    selection.CopyFrom(request.selection)
    selection.DiscardUnknownFields()
    return pb.OpenSessionRequest(session=request.session, selection=selection, lease_ms=request.lease_ms)


def _without_targets(found: pb.SessionRound) -> pb.SessionRound:
    copy = pb.SessionRound()
    copy.CopyFrom(found)
    copy.ClearField("targets")
    return copy


_SERVICE: Final = pb.DESCRIPTOR.services_by_name["SessionService"].full_name
