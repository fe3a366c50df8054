"""Lets go of what is kept no longer, by the rules of ``retention``: asks what there is and who needs it, and acts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import structlog

from wetink.v1.types_pb2 import END_REASON_LOST
from wetink_collector import metrics
from wetink_collector.catalog import Catalog
from wetink_collector.committer import Committer
from wetink_collector.identity import IncarnationKey
from wetink_collector.retention import Ages, Retention, beyond_size
from wetink_collector.store.interface import (
    Change,
    HostForgotten,
    IncarnationEnded,
    RoundsExpired,
    TargetForgotten,
    Usage,
)

SESSIONS_NAMED_MAX: Final = 16
"""Bound on the sessions that one line of the log names: all that need a target are more than anybody reads."""

GONE_SENTENCE: Final = "the agent of its host has been away for a day"

log = structlog.get_logger()


class Needy(Protocol):
    """Who still needs rounds: the sessions."""

    async def needed(self) -> Mapping[IncarnationKey, int]:
        """Give the round of each target after which everything is needed; 0 where only all it comes to is."""

    def expired(self, incarnation: IncarnationKey, last_round: int | None) -> Sequence[str]:
        """Take it that rounds up to one have gone, needed or not, or all (None); give the names of who needed them."""


class Housekeeping:
    """Lets go, each time it is asked to."""

    def __init__(self, catalog: Catalog, committer: Committer, sessions: Needy, retention: Retention) -> None:
        """Begin; ages count from now on."""
        self._catalog = catalog
        self._committer = committer
        self._sessions = sessions
        self._size_bytes_max = retention.size_bytes
        self._ages = Ages(retention.age_seconds) if retention.age_seconds is not None else None
        self._is_too_large = False

    async def let_go(self) -> None:
        """Forget what ended long ago and hosts that are gone, and let go of rounds that are old or take too much room.

        Raises:
            StoreUnavailable: That could not be written. It is said again the next time.
        """
        usage = await self._committer.usage()
        needed = await self._sessions.needed()
        changes = [
            *self._forgetting(needed),
            *self._giving_up(),
            *self._expiring(needed),
            *self._shrinking(usage, needed),
        ]
        lost = [*self._lost(changes, needed)]
        await self._committer.commit(changes)
        for incarnation, last_round in lost:
            self._tell_of_loss(incarnation, last_round)

    def _forgetting(self, needed: Mapping[IncarnationKey, int]) -> Iterator[Change]:
        for incarnation in self._catalog.to_forget(time.monotonic(), needed):
            # An agent that is there was told that it is wanted and has not found it for as long.
            yield TargetForgotten(incarnation, unwanted=self._catalog.connected(incarnation.target.host_id))

    def _giving_up(self) -> Iterator[Change]:
        """Take what a host left that is gone for lost, so that it is forgotten as all that ended is; then the host."""
        for host in self._catalog.hosts_gone(time.monotonic()):
            records = self._catalog.on_host(host.host_id)
            if not records:
                log.info("host_forgotten", host=host.host_id, why="its agent has been away for a day")
                yield HostForgotten(host.host_id, host.durable_time_ns)
            for record in records:
                # Of those refused nobody tries again, either.
                if record.ended is None or record.is_refused:
                    yield IncarnationEnded(record.incarnation, END_REASON_LOST, time.time_ns(), GONE_SENTENCE)

    def _expiring(self, needed: Mapping[IncarnationKey, int]) -> Iterator[Change]:
        if self._ages:
            yield from self._ages.look(self._catalog.all(), time.monotonic(), needed)

    def _shrinking(self, usage: Usage | None, needed: Mapping[IncarnationKey, int]) -> Sequence[Change]:
        if usage is None:
            return ()
        metrics.STORE_BYTES.set(usage.size_bytes)
        if self._size_bytes_max is None:
            return ()
        changes = beyond_size(usage, self._size_bytes_max, self._catalog.ended(), needed)
        if usage.size_bytes <= self._size_bytes_max:
            self._is_too_large = False
        elif not (self._is_too_large or usage.shrinking or changes):
            self._is_too_large = True
            log.warning(
                "store_too_large",
                size_bytes=usage.size_bytes,
                size_bytes_max=self._size_bytes_max,
                why="what living targets have populated, their last rounds and what sessions need take more than that",
            )
        return changes

    def _lost(
        self, changes: Sequence[Change], needed: Mapping[IncarnationKey, int]
    ) -> Iterator[tuple[IncarnationKey, int | None]]:
        """Give what goes though it is needed: whose it is, and its last round where not all goes."""
        for change in changes:
            if isinstance(change, RoundsExpired) and 0 < needed.get(change.incarnation, 0) < change.last_round:
                yield change.incarnation, change.last_round
            elif isinstance(change, TargetForgotten) and change.incarnation in needed:
                yield change.incarnation, None

    def _tell_of_loss(self, incarnation: IncarnationKey, last_round: int | None) -> None:
        names = self._sessions.expired(incarnation, last_round)
        if names:
            metrics.SESSION_ROUNDS_EXPIRED.inc(len(names))
            log.warning(
                "session_rounds_expired",
                target=str(incarnation.target),
                last_round=last_round,
                sessions=list(names[:SESSIONS_NAMED_MAX]),
                session_count=len(names),
                why="the store takes so much over --retention-size that what sessions need has to go too",
                consequence="they are told that their cursor is over, and begin a round without a parent",
            )
