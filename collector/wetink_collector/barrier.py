"""The barrier: what was written before a call is harvested on the hosts and durable here before it is answered.

Where the targets are to be frozen for it, none goes on before the last was harvested: then their sets are one cut.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from wetink.v1.types_pb2 import (
    INCOMPLETE_REASON_AGENT_DISCONNECTED,
    INCOMPLETE_REASON_BARRIER_TIMEOUT,
    INCOMPLETE_REASON_NOT_FROZEN,
    INCOMPLETE_REASON_UNSPECIFIED,
    Freeze,
    FreezeOutcome,
    IncompleteReason,
    TargetPosition,
)
from wetink_collector.agents import Agents
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.cursor import Position
from wetink_collector.errors import AgentDisconnected
from wetink_collector.identity import TargetKey
from wetink_collector.session import Session

OWN_HOLDS: Final = "barrier/"
"""What stands before the name of a hold of ours: no caller can give such a one."""

MESSAGE_CHARACTERS_MAX: Final = 256
"""Bound on an agent's sentence about one target: an answer may have 4096 of them."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How the barrier of one target went.

    Attributes:
        position: The round that holds every write from before; None where it was not reached.
        reason: Why it was not, or was not frozen; unspecified where all is well.
        message: The same in a sentence.
        freeze: How freezing it went; None where nobody asked, or nobody could be asked.
        pinned: Whether an answer is to end with that round also where the target ran.
    """

    position: Position | None = None
    reason: IncompleteReason.ValueType = INCOMPLETE_REASON_BARRIER_TIMEOUT
    message: str = ""
    freeze: FreezeOutcome | None = None
    pinned: bool = False

    @property
    def pinned_round(self) -> int | None:
        """The round that an answer ends with, where a later one would not be of the time that was asked for."""
        is_frozen = self.freeze is not None and bool(self.freeze.method)
        return self.position.round if self.position and (self.pinned or is_frozen) else None


async def reach(
    records: Iterable[TargetRecord],
    agents: Agents,
    catalog: Catalog,
    *,
    timeout_seconds: float,
    freeze: Freeze | None = None,
) -> Mapping[TargetKey, Reached]:
    """Ask agents to harvest targets, each host once, and wait until the rounds they name are durable.

    Does not wait for targets that have ended, nor for hosts that are not connected.

    Args:
        records: The targets.
        agents: Who is asked.
        catalog: What is durable.
        timeout_seconds: How long to wait.
        freeze: How the targets are to be frozen; None lets them run.

    Returns:
        Each target that was to be harvested.
    """
    by_host: defaultdict[str, list[TargetRecord]] = defaultdict(list)
    for record in records:
        if not record.ended:
            by_host[record.target.host_id].append(record)
    reached = {record.target: _not_in_time(record) for one in by_host.values() for record in one}
    hosts = []
    for host_id, here in by_host.items():
        if session := agents.session(host_id):
            hosts.append(_Host(session, here, catalog, reached))
        else:
            reached.update((record.target, _gone(record, "is not connected")) for record in here)
    if not hosts:
        return reached
    freezing = _Freezing(hosts, freeze, timeout_seconds)
    waits = [asyncio.ensure_future(host.reach(freezing)) for host in hosts]
    try:
        await asyncio.wait(waits, timeout=timeout_seconds)
    finally:
        freezing.let_go()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    return reached


class _Freezing:
    """How the hosts of one barrier freeze, so that none of them lets go before the last has harvested."""

    def __init__(self, hosts: "Sequence[_Host]", asked: Freeze | None, timeout_seconds: float) -> None:
        self.request = asked
        self._is_ours = asked is not None and not asked.hold_ms and len(hosts) > 1
        self._holding = [host.session for host in hosts] if self._is_ours else []
        self._waited_for = len(hosts)
        if asked and self._is_ours:
            # Should the word to let go be lost, with its stream or with us, the agents do so by themselves.
            self.request = Freeze(
                hold=f"{OWN_HOLDS}{uuid4()}",
                hold_ms=max(1, round(timeout_seconds * 1000)),
                whole_cgroups=asked.whole_cgroups,
            )

    def answered(self) -> None:
        """Take note that a host has harvested, or never will."""
        self._waited_for -= 1
        if not self._waited_for:
            self.let_go()

    def let_go(self) -> None:
        """Let all targets go on, where nobody asked for more than the barrier."""
        assert self.request is not None or not self._holding
        for session in self._holding:
            if session.welcomed and session.can_freeze:
                session.thaw(self.request.hold if self.request else "", ())
        self._holding = []


class _Host:
    """The targets of one host."""

    def __init__(
        self,
        session: Session,
        records: Sequence[TargetRecord],
        catalog: Catalog,
        reached: dict[TargetKey, Reached],
    ) -> None:
        self.session = session
        self._records = {record.target: record for record in records}
        self._catalog = catalog
        self._reached = reached

    async def reach(self, freezing: _Freezing) -> None:
        """Say of each target when its barrier is reached, or why it will not be."""
        if freezing.request and not self.session.can_freeze:
            freezing.answered()
            for record in self._records.values():
                message = f"the agent of host {self.session.host_id} is older than freezing: {record.name} runs"
                self._reached[record.target] = Reached(None, INCOMPLETE_REASON_NOT_FROZEN, message)
            return
        with self._catalog.bell(list(self._records)) as bell:
            try:
                answer = await self.session.barrier(
                    list(self._records), freeze=freezing.request, harvested=freezing.answered
                )
            except AgentDisconnected:
                self._reached.update((target, _gone(record, "went away")) for target, record in self._records.items())
                return
            freezes = {TargetKey.of(outcome.target): outcome for outcome in answer.freezes}
            waiting = {TargetKey.of(position.target): position for position in answer.positions}
            while True:
                for target in [target for target, position in waiting.items() if _is_durable(position, self._catalog)]:
                    outcome = freezes.get(target) if freezing.request else None
                    self._reached[target] = _reached(waiting.pop(target), outcome, asked=freezing.request is not None)
                # Of what is refused nothing more will be durable; its part of the answer says why.
                waiting = {target: at for target, at in waiting.items() if not _is_refused(target, self._catalog)}
                if not waiting:
                    return
                await bell.wait()


def _reached(position: TargetPosition, outcome: FreezeOutcome | None, *, asked: bool) -> Reached:
    at = Position(position.incarnation, position.round)
    if not asked:
        return Reached(at, INCOMPLETE_REASON_UNSPECIFIED)
    if outcome is None or not outcome.method:
        why = outcome.message[:MESSAGE_CHARACTERS_MAX] if outcome else "its agent did not say"
        message = f"process {position.target.pid} of host {position.target.host_id} was not frozen: {why}"
        return Reached(at, INCOMPLETE_REASON_NOT_FROZEN, message, outcome)
    return Reached(at, INCOMPLETE_REASON_UNSPECIFIED, "", outcome)


def _not_in_time(record: TargetRecord) -> Reached:
    message = f"the agent did not harvest {record.name} in time: writes since the as-of time are not known"
    return Reached(None, INCOMPLETE_REASON_BARRIER_TIMEOUT, message)


def _gone(record: TargetRecord, what: str) -> Reached:
    message = f"the agent of host {record.target.host_id} {what}: writes since the as-of time are not known"
    return Reached(None, INCOMPLETE_REASON_AGENT_DISCONNECTED, message)


def _is_refused(target: TargetKey, catalog: Catalog) -> bool:
    record = catalog.get(target)
    return record is not None and record.is_refused


def _is_durable(position: TargetPosition, catalog: Catalog) -> bool:
    """Whether a round is durable. One of an incarnation that was followed by another never will be."""
    record = catalog.get(TargetKey.of(position.target))
    return (
        record is not None
        and record.incarnation.incarnation == position.incarnation
        and 0 < position.round <= record.round
    )
