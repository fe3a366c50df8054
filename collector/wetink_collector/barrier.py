"""The barrier: what was written before a call is harvested on the hosts and durable here before it is answered."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from wetink.v1.types_pb2 import TargetPosition
from wetink_collector.agents import Agents
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.errors import AgentDisconnected
from wetink_collector.identity import TargetKey
from wetink_collector.session import Session


async def reach(
    records: Iterable[TargetRecord], agents: Agents, catalog: Catalog, *, timeout_seconds: float
) -> Collection[TargetKey]:
    """Ask agents to harvest targets, each host once, and wait until the rounds they name are durable.

    Does not wait for targets that have ended, nor for hosts that are not connected.

    Returns:
        The targets whose barrier was reached in time.
    """
    by_host: defaultdict[str, list[TargetKey]] = defaultdict(list)
    for record in records:
        if not record.ended:
            by_host[record.target.host_id].append(record.target)
    reached: set[TargetKey] = set()
    waits = [
        asyncio.ensure_future(_reach_host(session, targets, catalog, reached))
        for host_id, targets in by_host.items()
        if (session := agents.session(host_id))
    ]
    if not waits:
        return reached
    try:
        await asyncio.wait(waits, timeout=timeout_seconds)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    return reached


async def _reach_host(
    session: Session, targets: Sequence[TargetKey], catalog: Catalog, reached: set[TargetKey]
) -> None:
    """Add to ``reached`` each target of a host when its barrier is."""
    with catalog.bell(targets) as bell:
        try:
            waiting = {TargetKey.of(position.target): position for position in await session.barrier(targets)}
        except AgentDisconnected:
            return
        while True:
            for target in [target for target, position in waiting.items() if _is_durable(position, catalog)]:
                del waiting[target]
                reached.add(target)
            if not waiting:
                return
            await bell.wait()


def _is_durable(position: TargetPosition, catalog: Catalog) -> bool:
    """Whether a round is durable. One of an incarnation that was followed by another never will be."""
    record = catalog.get(TargetKey.of(position.target))
    return (
        record is not None
        and record.incarnation.incarnation == position.incarnation
        and 0 < position.round <= record.round
    )
