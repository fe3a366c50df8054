"""The calls of SessionService, for threads and for asyncio: rounds with names, which may be asked for again.

Who moves a target and may die in the middle opens a session by a name that it knows again, and says everything again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from wetink.v1 import session_pb2
from wetink_client.dirty_calls import one_answer
from wetink_client.errors import InvalidRequest
from wetink_client.requests import (
    BARRIER_SECONDS,
    LIST_SECONDS_MAX,
    MARGIN_SECONDS,
    TRANSFER_SECONDS_MAX,
    barrier_milliseconds,
    freeze_message,
    selected,
)
from wetink_client.transport import AsyncTransport, Transport
from wetink_client.values import Consistency, Freeze, Selectable, TargetStatus, consistency_of, moment, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from wetink_client.answers import DirtySet

LEASE_SECONDS: Final = 60.0
"""How long a session lives without a call, unless said otherwise: the contract's default."""

LEASE_SECONDS_MAX: Final = 3600.0
"""The contract's bound on it."""


@dataclass(frozen=True, slots=True)
class SessionRound:
    """A round of a session.

    Attributes:
        round: Its name.
        parent: The round it goes on from; None means from the beginning.
        closed: Whether it has an end. What follows is None or empty while it has not.
        cursor: Where it ends. It may be used with ``dirty`` and ``watch`` too.
        consistency: How its targets' parts fit together in time.
        closed_time_ns: When it was closed, by the collector's clock, in nanoseconds since the Unix epoch.
        targets: By name, as they were then. Their page counts are 0. Empty in what ``open_session`` gives.
    """

    round: str
    parent: str | None
    closed: bool
    cursor: str | None
    consistency: Consistency
    closed_time_ns: int | None
    targets: Mapping[str, TargetStatus]

    @property
    def closed_at(self) -> datetime | None:
        """When it was closed."""
        return moment(self.closed_time_ns)


class SessionCalls(Transport):
    """What ``Collector`` asks of sessions. What failed with ``Unavailable`` may be asked again, in the same words."""

    def open_session(
        self, session: str, selection: Selectable, *, lease_seconds: float = LEASE_SECONDS
    ) -> tuple[SessionRound, ...]:
        """Open a session, or renew its lease, and give the rounds it has, oldest first.

        Args:
            session: Its name, 1 to 64 of ``[A-Za-z0-9._-]``. Nobody else sees it.
            selection: Must not be empty, and is the same each time.
            lease_seconds: How long it lives without a call, at most 3600.

        Raises:
            Refused: There is one of that name over other targets.
        """
        request = _open(session, selection, lease_seconds)
        response = self._ask(lambda stubs: stubs.session.OpenSession, request, LIST_SECONDS_MAX)
        return tuple(_round_of(one) for one in response.rounds)

    def close_session(self, session: str) -> None:
        """Forget a session, also one that is not there."""
        request = session_pb2.CloseSessionRequest(session=session)
        self._ask(lambda stubs: stubs.session.CloseSession, request, LIST_SECONDS_MAX)

    def begin_round(self, session: str, round_: str, parent: str | None = None) -> SessionRound:
        """Begin a round, or give it as it is.

        Args:
            session: The session.
            round_: Its name, 1 to 64 of ``[A-Za-z0-9._-]``.
            parent: The closed round it goes on from. None means from the beginning: every populated page.

        Raises:
            NotFound: No such session, or parent.
            Refused: It has another parent, or the parent is still open.
        """
        request = session_pb2.BeginRoundRequest(session=session, round=round_, parent=parent or "")
        return _round_of(self._ask(lambda stubs: stubs.session.BeginRound, request, LIST_SECONDS_MAX).round)

    def close_round(
        self,
        session: str,
        round_: str,
        *,
        barrier_seconds: float = BARRIER_SECONDS,
        freeze: Freeze | bool = False,
    ) -> SessionRound:
        """Make every write from before the call known and fix where the round ends; or give it as it was closed.

        Args:
            session: The session.
            round_: A round that was begun.
            barrier_seconds: How long to wait for the agents, at most 60.
            freeze: As for ``barrier``.

        Raises:
            AgentUnavailable: A target was not reached; the round is still open.
            Refused: A target was not frozen; the round is still open, and what was frozen is held.
            ResynchronisationNeeded: The parent leads nowhere any more: begin a round without one.
            NotFound: No such session or round.
        """
        request = _close(session, round_, barrier_seconds, Freeze.of(freeze))
        seconds = barrier_seconds + MARGIN_SECONDS
        return _round_of(self._ask(lambda stubs: stubs.session.CloseRound, request, seconds).round)

    def round_dirty(self, session: str, round_: str) -> DirtySet:
        """Ask what a closed round carries, as often as you like. Copy, drop, finish, as ever.

        Raises:
            Refused: It is still open.
            ResynchronisationNeeded: Tracking has not gone on since: begin a round without a parent.
            NotFound: No such session or round.
            BrokenAnswer: The answer was cut off or damaged. It is never a smaller set.
        """
        request = session_pb2.GetRoundRequest(session=session, round=round_)
        answer = one_answer()
        for part in self._listen(lambda stubs: stubs.session.GetRound, request, TRANSFER_SECONDS_MAX):
            answer.take(part)
        return answer.finish()


class AsyncSessionCalls(AsyncTransport):
    """The same for asyncio: each method does what that of ``SessionCalls`` of the same name does."""

    async def open_session(
        self, session: str, selection: Selectable, *, lease_seconds: float = LEASE_SECONDS
    ) -> tuple[SessionRound, ...]:
        """As ``Collector.open_session``."""
        request = _open(session, selection, lease_seconds)
        response = await self._ask(lambda stubs: stubs.session.OpenSession, request, LIST_SECONDS_MAX)
        return tuple(_round_of(one) for one in response.rounds)

    async def close_session(self, session: str) -> None:
        """As ``Collector.close_session``."""
        request = session_pb2.CloseSessionRequest(session=session)
        await self._ask(lambda stubs: stubs.session.CloseSession, request, LIST_SECONDS_MAX)

    async def begin_round(self, session: str, round_: str, parent: str | None = None) -> SessionRound:
        """As ``Collector.begin_round``."""
        request = session_pb2.BeginRoundRequest(session=session, round=round_, parent=parent or "")
        return _round_of((await self._ask(lambda stubs: stubs.session.BeginRound, request, LIST_SECONDS_MAX)).round)

    async def close_round(
        self,
        session: str,
        round_: str,
        *,
        barrier_seconds: float = BARRIER_SECONDS,
        freeze: Freeze | bool = False,
    ) -> SessionRound:
        """As ``Collector.close_round``."""
        request = _close(session, round_, barrier_seconds, Freeze.of(freeze))
        seconds = barrier_seconds + MARGIN_SECONDS
        return _round_of((await self._ask(lambda stubs: stubs.session.CloseRound, request, seconds)).round)

    async def round_dirty(self, session: str, round_: str) -> DirtySet:
        """As ``Collector.round_dirty``."""
        request = session_pb2.GetRoundRequest(session=session, round=round_)
        answer = one_answer()
        async for part in self._listen(lambda stubs: stubs.session.GetRound, request, TRANSFER_SECONDS_MAX):
            answer.take(part)
        return answer.finish()


def _open(session: str, selection: Selectable, lease_seconds: float) -> session_pb2.OpenSessionRequest:
    if not 0 < lease_seconds <= LEASE_SECONDS_MAX:
        message = (
            f"a session cannot live {lease_seconds:g} s without a call: more than 0, and at most {LEASE_SECONDS_MAX:g}"
        )
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return session_pb2.OpenSessionRequest(
        session=session, selection=selected(selection), lease_ms=math.ceil(lease_seconds * 1000)
    )


def _close(session: str, round_: str, barrier_seconds: float, freeze: Freeze | None) -> session_pb2.CloseRoundRequest:
    return session_pb2.CloseRoundRequest(
        session=session,
        round=round_,
        timeout_ms=barrier_milliseconds(barrier_seconds),
        freeze=freeze_message(freeze),
    )


def _round_of(message: session_pb2.SessionRound) -> SessionRound:
    return SessionRound(
        round=message.round,
        parent=message.parent or None,
        closed=message.closed,
        cursor=message.cursor or None,
        consistency=consistency_of(message.consistency),
        closed_time_ns=message.closed_time_ns or None,
        targets=MappingProxyType({one.name: status_of(one) for one in message.targets}),
    )
