"""A barrier of the collector: the targets are harvested now, and frozen for it where that was asked for."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.freezers import Process
from wetink_agent.holds import GuardDied, Holds, Outcome
from wetink_agent.tracker import Tracker

HOLD_MS_MAX: Final = 60_000
"""How long a hold may last: the contract's bound. What is frozen for the barrier alone goes on after as long, whatever
happens to us meanwhile."""


async def reach(barrier: ingest_pb2.Barrier, trackers: Sequence[Tracker], holds: Holds) -> ingest_pb2.BarrierReached:
    """Harvest targets, and give the rounds that hold every write from before.

    Args:
        barrier: Says how they are frozen meanwhile, if they are to be.
        trackers: Of its targets.
        holds: Freezes.
    """
    reached = ingest_pb2.BarrierReached(request_id=barrier.request_id)
    if not barrier.HasField("freeze"):
        reached.positions.extend(await _harvest(trackers))
        return reached
    asked = barrier.freeze
    # None that a caller could give.
    hold = asked.hold if asked.hold_ms else f"barrier/{uuid.uuid4()}"
    try:
        outcomes = await _freeze(asked, hold, [_process(tracker.target) for tracker in trackers], holds)
        positions = await _harvest(trackers)
    finally:
        if not asked.hold_ms:
            await holds.thaw(hold)
    now_ns = time.monotonic_ns()
    reached.positions.extend(positions)
    reached.freezes.extend(_outcome(position, outcomes[_process(position.target)], now_ns) for position in positions)
    return reached


async def thaw(asked: ingest_pb2.Thaw, holds: Holds) -> ingest_pb2.Thawed:
    """End a hold, and say of which of the targets."""
    meant = {_process(target): target for target in asked.targets}
    thawed = await holds.thaw(asked.hold, meant.keys())
    return ingest_pb2.Thawed(
        request_id=asked.request_id, targets=[meant[process] for process in sorted(thawed) if process in meant]
    )


async def _harvest(trackers: Sequence[Tracker]) -> list[types_pb2.TargetPosition]:
    positions = await asyncio.gather(*(tracker.barrier() for tracker in trackers))
    return [position for position in positions if position is not None]


async def _freeze(
    asked: types_pb2.Freeze, hold: str, processes: Sequence[Process], holds: Holds
) -> Mapping[Process, Outcome]:
    seconds = min(asked.hold_ms or HOLD_MS_MAX, HOLD_MS_MAX) / 1000
    try:
        return await holds.freeze(hold, processes, seconds=seconds, whole_cgroups=asked.whole_cgroups)
    except GuardDied as error:
        return dict.fromkeys(processes, Outcome("", str(error), 0))


def _outcome(position: types_pb2.TargetPosition, outcome: Outcome, now_ns: int) -> types_pb2.FreezeOutcome:
    if not outcome.method:
        return types_pb2.FreezeOutcome(target=position.target, message=outcome.message)
    if not position.frozen:
        # Somebody has let it go on, or its time was over: what it wrote then is in the next round.
        message = f"process {position.target.pid} was frozen, and ran again before it was harvested"
        return types_pb2.FreezeOutcome(target=position.target, message=message)
    return types_pb2.FreezeOutcome(
        target=position.target,
        method=types_pb2.FreezeMethod.Value(f"FREEZE_METHOD_{outcome.method}"),
        frozen_ns=max(1, now_ns - outcome.since_ns),
    )


def _process(target: types_pb2.Target) -> Process:
    return target.pid, target.start_time_ticks
