"""The ``replay`` backend: the rounds of a recording in place of a kernel, so that one machine can stand for a fleet.

The targets are made up: pids that no process can have. Each plays the whole file at its own pace; what they read and
decode they share.
"""

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NoReturn

import numpy as np
from pyroaring import BitMap64

from wetink import pages
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.agent import Agent, Settings
from wetink_agent.backend import Harvest
from wetink_agent.errors import TargetExited, TargetReplaced, TrackingError, Untrackable
from wetink_agent.events import Events, joined
from wetink_agent.keeping import Keeping
from wetink_agent.recording import Recording, RecordingUnusable
from wetink_agent.rounds import MAPPING_CHANGES_MAX
from wetink_agent.tracker import Tracker

TARGETS_MAX: Final = 4096
"""Targets at once: as many as one selection can mean."""

SPEED_MIN: Final = 0.001
SPEED_MAX: Final = 1000.0

PID_FIRST: Final = (1 << 22) + 1
"""Above the kernel's PID_MAX_LIMIT."""

ROUNDS_KEPT: Final = 8
"""Decoded rounds that the targets share. They are at most one interval apart, but for barriers and loops."""

GAP_SECONDS: Final = 1.0
"""The interval of a recording that has one round only."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a recording is played: how many times as fast, over and over or once, by how many targets."""

    speed: float = 1.0
    loop: bool = False
    target_count: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: One sentence about the option.
        """
        if not SPEED_MIN <= self.speed <= SPEED_MAX or math.isnan(self.speed):
            message = f"--speed {self.speed:g} is no speed from {SPEED_MIN:g} to {SPEED_MAX:g}"
            raise ValueError(message)
        if not 1 <= self.target_count <= TARGETS_MAX:
            message = f"--targets {self.target_count} is no number of targets from 1 to {TARGETS_MAX}"
            raise ValueError(message)


class Score:
    """A recording as harvests, and when each is due; shared by all who play it."""

    def __init__(self, recording: Recording, speed: float) -> None:
        """Play a recording, so many times as fast."""
        self.recording = recording
        self._speed = speed
        # Bounds what is held however long the file is.
        self.harvest = lru_cache(ROUNDS_KEPT)(self._harvest)

    def __len__(self) -> int:
        """How many rounds there are."""
        return len(self.recording)

    @property
    def gap_seconds(self) -> float:
        """The first interval, which stands for the one after the last round too."""
        times_ns = self.recording.times_ns
        return max(0, times_ns[1] - times_ns[0]) / 1e9 / self._speed if len(times_ns) > 1 else GAP_SECONDS / self._speed

    def due_seconds(self, index: int) -> float:
        """Give when a round is due, after the first; of the one behind the last, when the recording is over."""
        times_ns = self.recording.times_ns
        if index == len(self):
            return self.due_seconds(index - 1) + self.gap_seconds
        return (times_ns[index] - times_ns[0]) / 1e9 / self._speed

    def end(self) -> NoReturn:
        """Say that the recording is over, in the way in which its target ended."""
        recording = self.recording
        text = f"recording {recording.path.name} ends here, after {len(self)} rounds"
        if recording.damage is not None:
            raise TrackingError(recording.damage)
        assert recording.ended is not None
        if recording.ended.message:
            text += f": {recording.ended.message}"
        if recording.ended.reason == types_pb2.END_REASON_EXEC:
            raise TargetReplaced(text)
        if recording.ended.reason == types_pb2.END_REASON_FAILED:
            raise TrackingError(text)
        raise TargetExited(text)

    def _harvest(self, index: int) -> Harvest:
        try:
            parts = self.recording.parts(index)
        except RecordingUnusable as error:
            raise TrackingError(str(error)) from error
        return _harvest_of(parts)


class Replay:
    """Plays a recording to one tracker."""

    kind: types_pb2.Backend.ValueType = types_pb2.BACKEND_REPLAY

    def __init__(self, score: Score) -> None:
        """Begin now, before the first round."""
        self._score = score
        self._next = 0
        self._began = time.monotonic()

    @property
    def handle(self) -> None:
        """See ``Backend.handle``: there is no process."""

    @property
    def due(self) -> float:
        """When the next round, or the end, is due, in seconds of the monotonic clock."""
        return self._began + self._score.due_seconds(self._next)

    @property
    def is_over(self) -> bool:
        """Whether the last round has been played."""
        return self._next == len(self._score)

    def harvest(self) -> Harvest:
        """Give the next recorded round as of now; see ``Backend``."""
        if self.is_over:
            self._score.end()
        recorded = self._score.harvest(self._next)
        self._next += 1
        now_ns = time.time_ns()
        events = recorded.events
        if events is not None:
            moved = events.times_ns.astype(np.int64) + (now_ns - recorded.began_time_ns)
            events = replace(events, times_ns=moved.astype(np.uint64))
        return replace(recorded, began_time_ns=now_ns, events=events)

    def forget(self) -> None:
        """Begin again with the first round, now."""
        self._next = 0
        self._began = time.monotonic()

    def close(self) -> None:
        """Do nothing: the file is everybody's."""


class ReplayAgent(Agent):
    """An agent whose targets are those of a recording, and no others. It is over when all of them have ended."""

    def __init__(self, settings: Settings, recording: Recording, pace: Pace, keeping: Keeping | None = None) -> None:
        """Prepare.

        Args:
            settings: Of any agent; what they say of processes and backends means nothing here.
            recording: Open until ``run`` has ended.
            pace: How it is played.
            keeping: The keeper. It has nothing to hold: what is made up begins anew.
        """
        super().__init__(settings, keeping)
        self._score = Score(recording, pace.speed)
        self._pace = pace

    async def _track(self, pid: int, start_time_ticks: int, offer: object = None) -> Tracker:
        """Refuse real processes: what they write would stand beside what nobody has written."""
        del offer
        message = f"this agent replays a recording and tracks no process, so not {pid} at {start_time_ticks} either"
        raise Untrackable(message)

    async def _discover(self) -> None:
        """Play the recording to every target, until all have ended."""
        now_ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        self._looked.set()
        count = self._pace.target_count
        async with asyncio.TaskGroup() as group:
            for index in range(count):
                # Spread over an interval, as hosts that do not know of each other are.
                group.create_task(self._play(index, now_ticks, index * self._score.gap_seconds / count))

    async def _play(self, index: int, now_ticks: int, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        backend = Replay(self._score)
        recorded = self._score.recording.started
        started = ingest_pb2.TargetStarted()
        started.CopyFrom(recorded)
        started.target.host_id, started.target.boot_id = self._settings.host_id, self._boot_id
        started.target.pid, started.target.start_time_ticks = PID_FIRST + index, now_ticks + index
        started.labels.update(self._settings.labels)
        started.backend = backend.kind
        started.backend_reason = (
            f"asked for: plays {self._score.recording.path.name}, recorded of process {recorded.target.pid} "
            f"of host {recorded.target.host_id}"
        )
        first = await asyncio.get_running_loop().run_in_executor(self._pool, backend.harvest)
        tracker, task = self._begin(backend, started, first, pacer=None)
        while not task.done():
            await asyncio.sleep(backend.due - time.monotonic())
            # A barrier of the collector may have had this round meanwhile.
            if backend.due <= time.monotonic():
                if self._pace.loop and backend.is_over:
                    tracker.resynchronise()
                await tracker.barrier()


def _harvest_of(parts: Sequence[ingest_pb2.WriteProtectBatch]) -> Harvest:
    """Make a harvest of the messages of a round again."""
    first = parts[0]
    written, vanished, uncertain = BitMap64(), BitMap64(), BitMap64()
    for part in parts:
        written |= pages.decode(part.written)
        vanished |= pages.decode(part.vanished)
        uncertain |= pages.decode(part.uncertain)
    events = [Events.from_message(part.events) for part in parts if part.HasField("events")]
    return Harvest(
        began_time_ns=first.first_time_ns,
        written=written,
        vanished=vanished,
        uncertain=uncertain,
        populated_page_count=first.populated_page_count,
        cautious_page_count=first.cautious_page_count,
        frozen=first.frozen,
        mapped=_spans(first.mapped, were_cut=first.mappings_cut),
        unmapped=_spans(first.unmapped, were_cut=first.mappings_cut),
        events=joined(events) if events else None,
    )


def _spans(ranges: Sequence[types_pb2.AddressRange], *, were_cut: bool) -> tuple[tuple[int, int], ...]:
    spans = tuple((each.start_address, each.start_address + each.size_bytes) for each in ranges)
    # One more than fits where it was cut, so that it is cut again and says so.
    return spans + spans[-1:] if were_cut and len(spans) == MAPPING_CHANGES_MAX else spans
