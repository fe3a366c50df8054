"""Sessions of orchestrators: rounds with names, so that a call that is said again gets the answer it got before.

What a session has come to is one message, kept in the store as bytes. It is changed here only after the change is
durable; what nobody was told before a crash is found out anew.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
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
from wetink_collector import metrics
from wetink_collector.agents import Agents
from wetink_collector.answer import Answerer, are_all_reached, consistency
from wetink_collector.asked import barrier_seconds, check_name, chosen_now, freeze_of, positions_of
from wetink_collector.barrier import Reached, reach
from wetink_collector.caller import CALLER
from wetink_collector.catalog import MAY_LIVE, Catalog, TargetRecord
from wetink_collector.committer import Committer
from wetink_collector.cursor import Cursor, Position, decode, encode
from wetink_collector.edge import edge
from wetink_collector.errors import (
    AgentDisconnected,
    AgentSilent,
    CursorIncarnationEnded,
    CursorOtherStore,
    NotFrozen,
    Refusal,
    RequestMalformed,
    RoundDiffers,
    SessionDiffers,
    SessionsTooMany,
    SessionUnknown,
    StoreUnavailable,
)
from wetink_collector.identity import IncarnationKey
from wetink_collector.selection import Chosen, parse_non_empty
from wetink_collector.session_state import SessionState, earlier, restored, stored
from wetink_collector.store.interface import SessionForgotten, SessionKept

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
        self._opening = asyncio.Lock()
        self._sessions: dict[_Key, SessionState] = {(one.owner, one.name): restored(one.data) for one in kept}

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
            # It goes on where the caller goes away: what is known here no more would be there again after a restart.
            await asyncio.shield(self._forget((CALLER.get().name, request.session)))
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
            with session.called():
                async for part in self._carried(session, session.closed(request.round)):
                    if isinstance(part, DirtySummary):
                        yield pb.GetRoundResponse(summary=part)
                    else:
                        yield pb.GetRoundResponse(pages=part)

    async def needed(self) -> Mapping[IncarnationKey, int]:
        """Give the round of each target after which a session whose lease lives must still be answered.

        As ``needed_after`` gives it, for all sessions together.
        """
        found: dict[IncarnationKey, int] = {}
        for session in list(self._sessions.values()):
            if not session.is_over(time.monotonic()):
                for key, after in session.needed().items():
                    found[key] = earlier(found.get(key, 0), after)
            # Each may be over thousands of targets: nobody else waits for all of them.
            await asyncio.sleep(0)
        return found

    def expired(self, incarnation: IncarnationKey, last_round: int | None) -> Sequence[str]:
        """Take it that rounds up to one have gone, needed or not, or all (None); give the sessions that needed them."""
        return [name for (_, name), session in self._sessions.items() if session.expire(incarnation, last_round)]

    async def _open(self, request: pb.OpenSessionRequest) -> pb.OpenSessionResponse:
        check_name(request.session, "session")
        if request.lease_ms > LEASE_MS_MAX:
            message = f"lease_ms is {request.lease_ms}, at most {LEASE_MS_MAX} is possible; renew it instead"
            raise RequestMalformed(message)
        parse_non_empty(request.selection)
        key = (CALLER.get().name, request.session)
        asked = _copy_of_open(request)
        # It goes on where the caller goes away: what is durable is known here too, and is forgotten with its lease.
        session = await asyncio.shield(self._opened(key, asked))
        if session.open.selection != asked.selection:
            message = f"there is a session {request.session} over other targets: close it, or take another name"
            raise SessionDiffers(message)
        if session.open != asked:
            async with self._held(request.session) as session:
                # With the rounds as they are now: a call that was under way may have closed one.
                await self._committer.commit([SessionKept(*key, stored(asked, session.rounds))])
                session.open = asked
        session.renew()
        return pb.OpenSessionResponse(rounds=[_without_targets(one) for one in session.rounds.values()])

    async def _opened(self, key: _Key, asked: pb.OpenSessionRequest) -> SessionState:
        async with self._opening:
            return self._living(key) or await self._open_new(key, asked)

    async def _open_new(self, key: _Key, asked: pb.OpenSessionRequest) -> SessionState:
        if key not in self._sessions and len(self._sessions) >= SESSIONS_MAX:
            message = f"there are {SESSIONS_MAX} sessions already; close those that are done, or try again later"
            raise SessionsTooMany(message)
        session = SessionState(asked, {})
        # Before it is durable: one of that name whose lease is over is not to be forgotten behind it.
        self._sessions[key] = session
        with session.called():
            try:
                await self._committer.commit([SessionKept(*key, stored(session.open, session.rounds))])
            except StoreUnavailable:
                # It may be there all the same: it is forgotten like one whose lease is over, and in nobody's hands.
                self._sessions[key] = SessionState(session.open, {})
                raise
        return session

    async def _forget(self, key: _Key) -> None:
        # First from memory: a call that is under way must not keep it once more behind this.
        gone = self._sessions.pop(key, None)
        try:
            await self._committer.commit([SessionForgotten(*key)])
        except StoreUnavailable:
            if gone:
                # As one that could not be opened. Where another of that name was opened meanwhile, that one counts.
                self._sessions.setdefault(key, SessionState(gone.open, {}))
            raise

    async def _begin(self, session: SessionState, request: pb.BeginRoundRequest) -> pb.SessionRound:
        check_name(request.round, "round")
        begun = session.rounds.get(request.round)
        if begun and begun.parent != request.parent:
            parent = f"with the parent {begun.parent!r}" if begun.parent else "without a parent"
            message = f"round {request.round} was begun {parent}: take another name"
            raise RoundDiffers(message)
        if begun:
            return begun
        if request.parent:
            session.closed(request.parent)
        begun = pb.SessionRound(round=request.round, parent=request.parent)
        await self._keep(session, begun)
        return begun

    async def _close(
        self, session: SessionState, found: pb.SessionRound, request: pb.CloseRoundRequest
    ) -> pb.SessionRound:
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
        for record, status in zip(now, statuses, strict=True):
            self._answerer.expect(record, status.round)
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

    async def _carried(self, session: SessionState, found: pb.SessionRound) -> AsyncIterator[DirtyPages | DirtySummary]:
        cursor = self._cursor_of_parent(session, found)
        before = cursor.positions if cursor else {}
        held = {str(target) for target in (*before, *self._cursor_of(found).positions)}
        statuses = []
        for status in found.targets:
            if status.end_reason in MAY_LIVE and status.name not in held:
                # As in an answer about its host: told as not covered, and its pages to nobody who cannot go on.
                statuses.append(status)
                continue
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

    def _cursor_of_parent(self, session: SessionState, found: pb.SessionRound) -> Cursor | None:
        return self._cursor_of(session.closed(found.parent)) if found.parent else None

    def _cursor_of(self, closed: pb.SessionRound) -> Cursor:
        """Give where a round ends.

        Raises:
            CursorOtherStore: It was closed before the store was lost, and was rescued from what is left of that.
        """
        cursor = decode(closed.cursor)
        if cursor.store_id != self._catalog.store_id:
            message = f"round {closed.round} was closed before the collector lost its store; begin one without a parent"
            raise CursorOtherStore(message)
        return cursor

    async def _keep(self, session: SessionState, changed: pb.SessionRound) -> None:
        """Take over a round, once it is durable; the oldest go where there are too many."""
        rounds = {**session.rounds, changed.round: changed}
        needed = {one.parent for one in rounds.values() if not one.closed} | {changed.round, changed.parent}
        for name in list(rounds):
            if len(rounds) <= ROUNDS_MAX and sum(one.ByteSize() for one in rounds.values()) <= SESSION_BYTES_MAX:
                break
            if name not in needed:
                del rounds[name]
        key = (CALLER.get().name, session.open.session)
        if self._sessions.get(key) is not session:
            raise _unknown(session.open.session)
        await self._committer.commit([SessionKept(*key, stored(session.open, rounds))])
        session.take(rounds)

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[SessionState]:
        """Give a session to one call at a time: who repeats a call that is under way waits for its answer.

        Raises:
            SessionUnknown: There is none.
        """
        session = self._find(name)
        with session.called():
            async with session.lock:
                if self._find(name) is not session:
                    # It was closed while we waited, and another one opened.
                    raise _unknown(name)
                yield session

    def _find(self, name: str) -> SessionState:
        session = self._living((CALLER.get().name, name))
        if session is None:
            raise _unknown(name)
        return session

    def _living(self, key: _Key) -> SessionState | None:
        session = self._sessions.get(key)
        return None if session is None or session.is_over(time.monotonic()) else session

    async def _expire(self) -> None:
        while True:
            metrics.SESSIONS.set(len(self._sessions))
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            over = {key: one for key, one in self._sessions.items() if one.is_over(now)}
            for key in over:
                # Before the store forgets it: whoever opens it meanwhile opens another.
                del self._sessions[key]
            try:
                if over:
                    await self._committer.commit([SessionForgotten(*key) for key in over])
            except StoreUnavailable:
                self._sessions = {**over, **self._sessions}


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


def _unknown(name: str) -> SessionUnknown:
    message = f"there is no session {name[:64]!r} of yours, or its lease is over: open it again"
    return SessionUnknown(message)


def _positions(
    records: Iterable[TargetRecord], statuses: Iterable[TargetStatus], chosen: Chosen
) -> dict[Any, Position]:
    """Give where a round ends. What has ended, and is not meant by its name, is told once and then left out."""
    return {
        record.target: Position(status.incarnation, status.round)
        for record, status in zip(records, statuses, strict=True)
        if not record.ended or chosen.names_target(record.target)
    }


def _copy_of_open(request: pb.OpenSessionRequest) -> pb.OpenSessionRequest:
    """Give what is known here of it: with fields of a later version, it would not be what was asked for before."""
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
