"""Finds the processes to track, and goes on finding them: those named, those wanted, and what the rules select.

A look goes over all processes of the host. What it finds is attached to beside the next looks, some at once, so that a
process which does not let itself be stopped keeps nobody else waiting, nor the rounds of those that are tracked.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from functools import partial
from typing import Final

import structlog

from wetink_agent import discovery, procfs
from wetink_agent.errors import NoSuchProcess, TargetReplaced, TrackingError

LOOK_SECONDS: Final = 0.5
"""From look to look: a child is a target within a second of its fork. What it wrote before is in its first round."""

LOOK_SHARE_MAX: Final = 0.05
"""Part of a processor that looks may take; on a host with very many processes they come less often. For what a look has
to wait on a busy host it takes nothing, and who starts there is found as soon as elsewhere."""

ATTACH_AT_ONCE: Final = 8
"""Processes attached to at once: each may take five seconds to stop, and most a millisecond."""

RETRY_SECONDS_FIRST: Final = 1.0
RETRY_SECONDS_MAX: Final = 30.0
"""After how long a process that could not be tracked is tried again, doubling from the first of these to the second: it
may have been about to call execve(2), on memory that is another's, or a debugger may have left it."""

AGAIN_SECONDS: Final = 0.05
"""After how long one is looked for that called execve(2) while it was attached to: it is another program now."""

Identity = tuple[int, int]
"""Pid and start time."""

log = structlog.get_logger()


class Follower:
    """What is to be tracked on this host. Used on the event loop only.

    Attributes:
        named: Processes that were named by pid.
        wanted: Those that orchestrators want.
    """

    def __init__(
        self,
        selection: discovery.Selection,
        *,
        track: Callable[[int, int], Awaitable[object]],
        tracked: Collection[Identity],
        ourselves: Callable[[], set[int]],
        pool: Executor,
    ) -> None:
        """Prepare.

        Args:
            selection: The rules.
            track: Attaches to a process; raises TrackingError.
            tracked: What is tracked already, as it changes.
            ourselves: Gives the pids that are never selected, as they are now.
            pool: Runs the looks.
        """
        self.named: set[Identity] = set()
        self.wanted: set[Identity] = set()
        self._selection = selection
        self._track = track
        self._tracked = tracked
        self._ourselves = ourselves
        self._pool = pool
        self._look = asyncio.Event()
        self._is_blind = False
        self._look_seconds = 0.0
        self._retry_at: dict[Identity, float] = {}
        self._pauses: dict[Identity, float] = {}
        self._tasks: dict[Identity, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(ATTACH_AT_ONCE)

    async def run(self, on_looked: Callable[[], None]) -> None:
        """Look for processes for ever.

        Args:
            on_looked: Called when what the first look found is tracked, or cannot be.
        """
        try:
            while not await self._try_to_look():  # noqa: ASYNC110 (there is nobody who could say when it is worth it)
                await asyncio.sleep(LOOK_SECONDS)
            if self._tasks:
                await asyncio.wait(self._tasks.values())
            on_looked()
            while True:
                await self._try_to_look()
                self._look.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(LOOK_SECONDS, self._look_seconds / LOOK_SHARE_MAX)):
                        await self._look.wait()
        finally:
            for task in self._tasks.values():
                task.cancel()

    def look(self) -> None:
        """Look again at once."""
        self._look.set()

    def leave_alone(self, identity: Identity) -> None:
        """Do not track a process any more, whatever selects it."""
        self.named.discard(identity)
        self.wanted.discard(identity)
        self._retry_at[identity] = float("inf")

    def forgive(self, identity: Identity) -> None:
        """Take it that a process can be tracked."""
        self._retry_at.pop(identity, None)
        self._pauses.pop(identity, None)

    def forget(self, identity: Identity) -> None:
        """Take it that a process has exited."""
        self.named.discard(identity)
        self.wanted.discard(identity)

    def put_off(self, identity: Identity, seconds_min: float = 0.0) -> bool:
        """Leave a process for a while, and for so long at least; whether this is the first time."""
        is_first = identity not in self._pauses
        pause = self._pauses.get(identity, RETRY_SECONDS_FIRST)
        self._pauses[identity] = min(2 * pause, RETRY_SECONDS_MAX)
        self._retry_at[identity] = time.monotonic() + max(pause, seconds_min)
        return is_first

    async def _try_to_look(self) -> bool:
        """Look for processes; whether that was possible. What is tracked goes on where it was not."""
        try:
            await self._look_around()
        except OSError as error:
            if not self._is_blind:
                log.warning("processes_not_looked_at", why=str(error), consequence="what starts now is found later")
            self._is_blind = True
        else:
            self._is_blind = False
        return not self._is_blind

    async def _look_around(self) -> None:
        now = time.monotonic()
        for identity in await self._selected():
            if identity not in self._tracked and identity not in self._tasks and self._retry_at.get(identity, 0) <= now:
                task = asyncio.create_task(self._take(identity))
                self._tasks[identity] = task
                # Its second argument, the task, is what is given where there is none.
                task.add_done_callback(partial(self._tasks.pop, identity))

    async def _take(self, identity: Identity) -> None:
        async with self._places:
            try:
                await self._track(*identity)
            except NoSuchProcess:
                self.forget(identity)
            except TargetReplaced:
                # It may not match any more.
                asyncio.get_running_loop().call_later(AGAIN_SECONDS, self.look)
            except (TrackingError, OSError) as error:
                if self.put_off(identity):
                    log.warning("target_refused", pid=identity[0], why=str(error))
            else:
                self.forgive(identity)

    async def _selected(self) -> list[Identity]:
        identities = self.named | self.wanted
        if not self._selection.is_empty:
            # A look at every process takes milliseconds on a large host: not on the event loop.
            loop = asyncio.get_running_loop()
            found, self._look_seconds = await loop.run_in_executor(self._pool, _timed_look, self._selection)
            began = time.thread_time()
            # Also of those whose own parent has gone: they are no descendants of anybody's any more.
            roots = frozenset(pid for pid, _ in (*identities, *self._tracked))
            # Asked after the look: one of ours that it saw has begun before.
            for pid in self._selection.select(found, roots) - self._ourselves():
                with contextlib.suppress(NoSuchProcess):
                    identities.add((pid, procfs.stat(pid).start_time_ticks))
            self._look_seconds += time.thread_time() - began
        for kept in (self._retry_at, self._pauses):
            for identity in kept.keys() - identities:
                del kept[identity]
        return sorted(identities)


def _timed_look(selection: discovery.Selection) -> tuple[dict[int, discovery.Process], float]:
    """Look at every process; also gives the processor time that it took, in seconds."""
    began = time.thread_time()
    return discovery.processes(selection), time.thread_time() - began
