"""The agent of one host: attaches to the processes it is to track, and joins trackers, spool and uplink."""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import grpc
import structlog

from wetink.names import name_of
from wetink.pages import PAGE_SIZE
from wetink.tls import Security
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent import barriers, discovery, freezers, headroom, procfs
from wetink_agent.backend import Backend, Harvest
from wetink_agent.backends import Choice, open_backend, open_forked
from wetink_agent.errors import (
    DescriptorsFew,
    KernelLacks,
    NoSuchProcess,
    NotPermitted,
    TargetExited,
    TargetReplaced,
    TrackingError,
    Untrackable,
)
from wetink_agent.following import ATTACH_AT_ONCE, Follower
from wetink_agent.forks import ForkReader, child_over
from wetink_agent.handshake import HandshakeServer, Offer
from wetink_agent.health import Health, served
from wetink_agent.holds import Holds
from wetink_agent.journal import JournalOnDisk, Stored
from wetink_agent.keeping import Keeping, Left
from wetink_agent.keepsake import Keepsake, Kept
from wetink_agent.labels import Labeller
from wetink_agent.mandate import LEFT_OUT, Identity, Mandate, Rules, selected
from wetink_agent.pace import Budget, Load, Pacer
from wetink_agent.pods import PodList, PodSource
from wetink_agent.rounds import Round
from wetink_agent.spool import Key, Spool, key_of
from wetink_agent.succession import take_over
from wetink_agent.tracker import Tracker, end_reason_of
from wetink_agent.uplink import Deposed, Uplink

EXEC_ATTEMPTS_MAX: Final = 5
"""How often a process that was named is attached which calls execve(2) meanwhile, each time that it was looked at."""

FLUSH_SECONDS: Final = 2.0
"""How long a stopping agent waits for its last rounds to be durable."""

HAND_OVER_SECONDS: Final = 6.0
"""Likewise of one that leaves its targets to the next worker: a round that is not durable makes that one tell all."""

HARVEST_THREADS: Final = 4
"""Harvests at once: most of each is one system call, and more would only wait for the processors."""

GIVEN_UP_MAX: Final = 4096
"""Bound on the processes that are remembered as not taken by the collector, so that it is logged once of each."""

FORKS_AT_ONCE: Final = 256
"""Children that are looked for at once after their fork events; further ones are found like other processes."""

CODE_OF: Final[Mapping[type[Exception], grpc.StatusCode]] = {
    NoSuchProcess: grpc.StatusCode.NOT_FOUND,
    TargetExited: grpc.StatusCode.NOT_FOUND,
    NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    Untrackable: grpc.StatusCode.FAILED_PRECONDITION,
    DescriptorsFew: grpc.StatusCode.RESOURCE_EXHAUSTED,
    KernelLacks: grpc.StatusCode.FAILED_PRECONDITION,
}
"""What a CommandResult says for each way tracking can fail; anything else is FAILED_PRECONDITION."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the agent was told at its start."""

    collector: str
    host_id: str
    pids: tuple[int, ...]
    selection: discovery.Selection
    budget: Budget = field(default_factory=Budget)
    backend: Choice = field(default_factory=Choice)
    handshake: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    security: Security = field(default_factory=Security)
    pods: PodSource | None = None
    health: str | None = None
    spool: Path | None = None


@dataclass(slots=True)
class _Tracked:
    tracker: Tracker
    task: asyncio.Task[types_pb2.EndReason.ValueType | None]


class Agent:
    """Tracks processes and streams what gets dirty, until ``run`` is cancelled."""

    def __init__(self, settings: Settings, keeping: Keeping | None = None) -> None:
        """Prepare; nothing is attached yet.

        Args:
            settings: What is to be done.
            keeping: The keeper, and what an earlier worker left with it.

        Raises:
            SpoolUnusable: The directory for the spool cannot be used.
        """
        self._settings = settings
        self._keeping = keeping or Keeping()
        self._boot_id = procfs.boot_id()
        self._journal = JournalOnDisk(settings.spool, self._boot_id) if settings.spool else None
        self._spool = Spool(journal=self._journal)
        self._load = Load(settings.budget.agent_share)
        self._labeller = Labeller(settings.labels, PodList(settings.pods) if settings.pods else None)
        self._pool = ThreadPoolExecutor(HARVEST_THREADS, thread_name_prefix="harvest")
        # Threads of their own: rounds do not wait for a process that takes its time to stop.
        self._attach_pool = ThreadPoolExecutor(ATTACH_AT_ONCE, thread_name_prefix="attach")
        self._tracked: dict[tuple[int, int], _Tracked] = {}
        self._attaching: dict[tuple[int, int], asyncio.Task[Tracker]] = {}
        self._given_up: dict[tuple[int, int], float] = {}
        self._always_ours = {os.getpid()} | ({os.getppid()} if self._keeping.is_there else set())
        self._holds = Holds(self._always_ours)
        self._rules = Rules.of(settings.pids, settings.selection, offers=settings.handshake is not None)
        self._offered: set[Identity] = set()
        self._untracked: set[Identity] = set()
        self._mandate: Mandate | None = None
        self._looked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forks = ForkReader(self._on_fork) if settings.backend.follow_fork else None
        self._following: set[asyncio.Task[None]] = set()
        self._follower = Follower(
            settings.selection,
            track=self._track,
            tracked=self._tracked.keys(),
            ourselves=self._ourselves,
            pool=self._attach_pool,
        )
        self._uplink = Uplink(
            settings.collector,
            ingest_pb2.Hello(
                protocol_version=1,
                host_id=settings.host_id,
                boot_id=self._boot_id,
                agent_instance=str(uuid.uuid4()),
                agent_version=version("wetink"),
                can_freeze=True,
                can_be_refused=True,
            ),
            spool=self._spool,
            commands=self,
            security=settings.security,
        )

    async def run(self, stop: asyncio.Event, leave: asyncio.Event | None = None) -> None:
        """Track what was selected, and what the collector asks for, until it is told to stop.

        Args:
            stop: Tells it to end what it tracks, and to stop.
            leave: Tells it to leave what it tracks to the next worker, and to stop.

        Raises:
            TrackingError: A process named by pid cannot be tracked. Raised before anything else happens.
            Deposed: Another agent serves this host.
        """
        async with served(self._settings.health) as health:
            with self._journal or contextlib.nullcontext():
                await self._run(stop, leave or asyncio.Event(), health)

    async def _run(self, stop: asyncio.Event, leave: asyncio.Event, health: Health) -> None:
        tasks: list[asyncio.Task[object]] = []
        # After what nobody foresaw, the next worker goes on.
        is_left = True
        try:
            if frozen := await asyncio.get_running_loop().run_in_executor(self._pool, freezers.thaw_left_behind):
                log.warning("cgroups_thawed", cgroups=frozen, why="who had frozen them was killed")
            # Before the collector hears of us: of what it is not told then, it takes it that it is lost.
            self._loop = asyncio.get_running_loop()
            named = self._keeping.named()
            await self._take_over(named)
            await self._track_named(named)
            self._keeping.ready()
            works = (self._discover(), self._uplink.run(), stop.wait(), leave.wait())
            tasks = [asyncio.create_task(work) for work in works]
            if self._settings.handshake is not None:
                server = HandshakeServer(self._settings.handshake, self._accept)
                tasks.append(asyncio.create_task(server.run()))
            telling = asyncio.create_task(self._tell_when_looked(health))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            for task in (tasks[0], telling, *self._attaching.values()):
                task.cancel()
            await self._holds.close()
            is_left = leave.is_set()
            await self._end_targets(are_left=is_left)
            await self._uplink.flush(HAND_OVER_SECONDS if is_left else FLUSH_SECONDS)
        except (TrackingError, Deposed):
            is_left = False
            raise
        finally:
            await self._end_targets(are_left=is_left)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._holds.close()
            self._attach_pool.shutdown()
            if self._forks is not None:
                self._forks.close()
            self._pool.shutdown()

    async def carry_out(self, message: ingest_pb2.CollectorMessage) -> ingest_pb2.AgentMessage | None:
        """Carry out a command of the collector; see ``Commands``."""
        match message.WhichOneof("message"):
            case "track":
                return await self._carry_out_track(message.track)
            case "untrack":
                return await self._carry_out_untrack(message.untrack)
            case "barrier":
                return await self._carry_out_barrier(message.barrier)
            case "thaw":
                return ingest_pb2.AgentMessage(thawed=await barriers.thaw(message.thaw, self._holds))
            case _:
                return None

    def set_wanted(self, wanted: list[ingest_pb2.Track]) -> None:
        """Learn what orchestrators want tracked; see ``Commands``."""
        self._follower.wanted = {(track.pid, track.start_time_ticks) for track in wanted}
        self._hold_mandate()
        self._follower.look()

    def resynchronise(self, broken: list[Key]) -> None:
        """Begin new incarnations; see ``Commands``."""
        for pid, start, incarnation in broken:
            tracked = self._tracked.get((pid, start))
            if tracked is not None and tracked.tracker.key[2] == incarnation:
                tracked.tracker.resynchronise()

    def give_up(self, key: Key, why: str, retry_seconds: float = 0.0) -> None:
        """End an incarnation that the collector does not take; see ``Commands``."""
        identity = key[:2]
        tracked = self._tracked.get(identity)
        if tracked is None or tracked.tracker.key != key:
            return
        if identity not in self._given_up:
            name = name_of(tracked.tracker.target)
            log.warning("target_not_taken", target=name, why=why, consequence="it is not tracked; it is tried again")
        self._given_up[identity] = retry_seconds
        if len(self._given_up) > GIVEN_UP_MAX:
            del self._given_up[next(iter(self._given_up))]
        tracked.tracker.stop(types_pb2.END_REASON_FAILED, why)

    async def _carry_out_track(self, track: ingest_pb2.Track) -> ingest_pb2.AgentMessage | None:
        result = ingest_pb2.CommandResult(request_id=track.request_id)
        try:
            tracker = await self._track_through_exec(track.pid, track.start_time_ticks)
        except (TrackingError, OSError) as error:
            code = CODE_OF.get(type(error), grpc.StatusCode.FAILED_PRECONDITION)
            result.code, result.message = code.value[0], str(error)
        else:
            identity = track.pid, tracker.target.start_time_ticks
            self._follower.wanted.add(identity)
            self._follower.forgive(identity)
            self._untracked.discard(identity)
            self._hold_mandate()
            result.position.CopyFrom(tracker.position)
        return ingest_pb2.AgentMessage(command_result=result) if track.request_id else None

    async def _carry_out_untrack(self, untrack: ingest_pb2.Untrack) -> ingest_pb2.AgentMessage:
        result = ingest_pb2.CommandResult(request_id=untrack.request_id)
        identity = untrack.target.pid, untrack.target.start_time_ticks
        # What the agent itself was told to track would come back with the next look around.
        self._follower.leave_alone(identity)
        self._untracked.add(identity)
        self._hold_mandate()
        if identity in self._attaching:
            await asyncio.wait({self._attaching[identity]})
        tracked = self._tracked.get(identity)
        if tracked is None:
            result.code = grpc.StatusCode.NOT_FOUND.value[0]
            result.message = f"{name_of(untrack.target)} is not tracked"
        else:
            tracked.tracker.stop(types_pb2.END_REASON_UNTRACKED)
            await asyncio.wait({tracked.task})
            result.position.CopyFrom(tracked.tracker.position)
        return ingest_pb2.AgentMessage(command_result=result)

    async def _carry_out_barrier(self, barrier: ingest_pb2.Barrier) -> ingest_pb2.AgentMessage:
        trackers = [
            tracked.tracker
            for target in barrier.targets
            if (tracked := self._tracked.get((target.pid, target.start_time_ticks))) is not None
        ]
        return ingest_pb2.AgentMessage(barrier_reached=await barriers.reach(barrier, trackers, self._holds))

    async def _track(self, pid: int, start_time_ticks: int, offer: Offer | None = None) -> Tracker:
        """Track a process; one that is tracked already is left as it is.

        Args:
            pid: The process.
            start_time_ticks: If not 0, only the process that started then is meant.
            offer: What the process gave of its own memory; without it the agent attaches.

        Raises:
            TrackingError: It cannot be tracked.
        """
        if pid in self._ourselves():
            message = f"process {pid} is this agent, which cannot track itself"
            raise Untrackable(message)
        start = procfs.stat(pid).start_time_ticks
        if start_time_ticks:
            _check_started(pid, start_time_ticks)
        identity = pid, start
        if offer is not None:
            await self._end_of_replaced(identity)
        if identity in self._tracked:
            return self._tracked[identity].tracker
        if identity not in self._attaching:
            headroom.check(pid)
            uffd = os.dup(offer.uffd) if offer else None
            scope = offer.scope if offer else ()
            opener = partial(open_backend, self._settings.backend, pid, uffd, scope, self._forks)
            self._begin_attaching(identity, self._attach(pid, start, opener, scope))
        # Who asks may be gone before it is done, with the stream it came by; then it is done for the others.
        return await asyncio.shield(self._attaching[identity])

    def _ourselves(self) -> set[int]:
        """Give the pids that are never targets: worker, keeper, and the guard that there is now."""
        guard = self._holds.guard_pid
        return self._always_ours if guard is None else self._always_ours | {guard}

    async def _end_of_replaced(self, identity: tuple[int, int]) -> None:
        """Let what is known of a process end where the memory is not its own any more: it offers that after execve(2).

        A round finds that out; without it the offer would be taken for one of memory that is tracked already.
        """
        if identity in self._attaching:
            await asyncio.wait({self._attaching[identity]})
        tracked = self._tracked.get(identity)
        if tracked is not None and await tracked.tracker.barrier() is None:
            await asyncio.wait({tracked.task}, timeout=FLUSH_SECONDS)

    async def _track_through_exec(self, pid: int, start_time_ticks: int) -> Tracker:
        """Track a process that somebody named; again, where it calls execve(2) before its first round is done."""
        for _ in range(EXEC_ATTEMPTS_MAX - 1):
            with contextlib.suppress(TargetReplaced):
                return await self._track(pid, start_time_ticks)
        return await self._track(pid, start_time_ticks)

    def _begin_attaching(self, identity: tuple[int, int], work: Coroutine[object, object, Tracker]) -> None:
        attaching = asyncio.create_task(work)
        self._attaching[identity] = attaching
        attaching.add_done_callback(lambda task: self._attached(identity, task))

    def _on_fork(self, parent_pid: int, uffd: int) -> None:
        """Take up a child of a target; called by the thread that reads fork events, which must not wait."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._begin_following, parent_pid, uffd)
        except RuntimeError:  # the loop is closed
            self._let_child_go(uffd)

    def _begin_following(self, parent_pid: int, uffd: int) -> None:
        if len(self._following) >= FORKS_AT_ONCE:
            self._let_child_go(uffd)
            return
        task = asyncio.create_task(self._follow_child(parent_pid, uffd))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow_child(self, parent_pid: int, uffd: int) -> None:
        """Track a child from its first instruction on; one that cannot be told from others is found as they are."""
        assert self._forks is not None
        loop = asyncio.get_running_loop()
        known = {pid for pid, _ in (*self._tracked, *self._attaching)}
        pid = await loop.run_in_executor(self._attach_pool, child_over, parent_pid, uffd, known)
        identity = None
        if pid is not None:
            with contextlib.suppress(NoSuchProcess):
                identity = pid, procfs.stat(pid).start_time_ticks
        if identity is None or identity in self._tracked or identity in self._attaching:
            self._let_child_go(uffd)
            return
        try:
            headroom.check(identity[0])
        except DescriptorsFew:
            # It is found like other processes, and refused then.
            self._let_child_go(uffd)
            return
        opener = partial(open_forked, self._settings.backend, identity[0], uffd, (), self._forks)
        self._begin_attaching(identity, self._attach(*identity, opener, (), is_forked=True))
        with contextlib.suppress(TrackingError, OSError):
            await asyncio.shield(self._attaching[identity])

    def _let_child_go(self, uffd: int) -> None:
        assert self._forks is not None
        self._forks.remove(uffd)
        os.close(uffd)

    def _attached(self, identity: tuple[int, int], task: asyncio.Task[Tracker]) -> None:
        del self._attaching[identity]
        if not task.cancelled():
            task.exception()  # looked at: nobody else need be waiting for it

    async def _attach(
        self,
        pid: int,
        start: int,
        opener: Callable[[], Backend],
        scope: tuple[tuple[int, int], ...],
        *,
        is_forked: bool = False,
    ) -> Tracker:
        loop = asyncio.get_running_loop()
        backend = await loop.run_in_executor(self._attach_pool, opener)
        try:
            # The first round before success is told: it finds what only arming can find, another userfaultfd say.
            first = await loop.run_in_executor(self._attach_pool, backend.harvest)
            labels = await loop.run_in_executor(self._attach_pool, self._labeller.labels_of, pid)
            # Once more: the pid may have been used again while we attached.
            _check_started(pid, start)
            started = ingest_pb2.TargetStarted(
                target=types_pb2.Target(
                    host_id=self._settings.host_id, boot_id=self._boot_id, pid=pid, start_time_ticks=start
                ),
                command=procfs.command(pid),
                cgroup=procfs.cgroup(pid),
                page_size=PAGE_SIZE,
                backend=backend.kind,
                backend_reason=self._settings.backend.reason,
                scope=[types_pb2.AddressRange(start_address=a, size_bytes=b - a) for a, b in scope],
                labels=labels,
                ancestors=procfs.ancestors(pid),
            )
        except BaseException:
            backend.close()
            raise
        keepsake = None
        if self._keeping.is_there and backend.handle is not None:
            keepsake = self._keeping.keepsake(pid, start, backend.handle.uffd)
        tracker, _ = self._begin(backend, started, first, Pacer(self._settings.budget, self._load), keepsake)
        log.info(
            "target_attached",
            target=name_of(tracker.target),
            command=started.command,
            backend=str(self._settings.backend.name),
            why=started.backend_reason,
            forked=is_forked,
        )
        return tracker

    async def _track_named(self, before: Mapping[int, int]) -> None:
        """Track the processes named by pid.

        Args:
            before: Those that an earlier worker was told, and when each started: still the ones that they were then.
        """
        for pid in self._settings.pids:
            start = before.get(pid)
            if start is None:
                start = (await self._track_through_exec(pid, 0)).target.start_time_ticks
            self._follower.named.add((pid, start))
        self._keeping.hold_named(self._follower.named)
        for identity in self._untracked:
            self._follower.leave_alone(identity)
        self._hold_mandate()
        self._keeping.let_go_of_the_rest()

    async def _take_over(self, named: Mapping[int, int]) -> None:
        """Go on where an earlier worker left off: with its targets, in the same incarnations, and with its rounds.

        Where this one was told other rules than that, with those targets alone that are selected by them.
        """
        stored = self._journal.load() if self._journal is not None else {}
        before = self._keeping.mandate() or Mandate(self._rules)
        self._follower.wanted |= before.wanted
        self._offered |= before.offered
        left = list(self._keeping.left())
        if before.rules == self._rules:
            self._untracked |= before.untracked
        elif left:
            find = partial(selected, self._rules, self._settings.selection, before, named)
            chosen = await asyncio.get_running_loop().run_in_executor(self._pool, find)
            for each in left.copy():
                if _is_there(each.identity) and not chosen.has(each.identity, each.kept.started.ancestors):
                    left.remove(each)
                    os.close(each.uffd)
                    os.close(each.keepsake)
                    self._end_left(each, _pop_rounds(stored, each.kept), types_pb2.END_REASON_UNTRACKED, LEFT_OUT)
        await asyncio.gather(*(self._go_on(each, _pop_rounds(stored, each.kept)) for each in left))
        for ended in stored.values():
            if ended.started is not None and ended.ended is not None:
                first = ended.rounds[0].first if ended.rounds else 1
                self._spool.restore(ended.started, ended.following(first - 1), last_round=0)
                self._spool.end(ended.ended)
        self._spool.write_down_afresh()

    def _hold_mandate(self) -> None:
        """Have the keeper know what this agent is told to track, where that is something new."""
        self._untracked = set(filter(_is_there, self._untracked))
        mandate = Mandate(
            self._rules,
            wanted=frozenset(self._follower.wanted),
            offered=frozenset(self._offered & self._tracked.keys()),
            untracked=frozenset(self._untracked),
        )
        if mandate != self._mandate:
            self._mandate = mandate
            self._keeping.hold_mandate(mandate)

    async def _go_on(self, left: Left, rounds: Sequence[Round]) -> None:
        kept = left.kept
        try:
            taken = await asyncio.get_running_loop().run_in_executor(
                self._pool, take_over, left, rounds, self._settings.backend
            )
        except (TrackingError, OSError) as error:
            self._end_left(left, rounds, end_reason_of(error), str(error))
            return
        self._begin(
            taken.backend,
            kept.started,
            taken.first,
            Pacer(self._settings.budget, self._load),
            taken.keepsake,
            kept,
            rounds,
        )
        target = name_of(kept.started.target)
        log.info("target_continued", target=target, whole=taken.is_whole, rounds=kept.harvested)

    def _end_left(
        self, left: Left, rounds: Sequence[Round], reason: types_pb2.EndReason.ValueType, message: str
    ) -> None:
        """Tell of a target that an earlier worker left, and that is not gone on with, how it has ended."""
        kept = left.kept
        target = kept.started.target
        self._spool.restore(kept.started, rounds, last_round=kept.harvested)
        self._spool.end(
            ingest_pb2.TargetEnded(
                target=target,
                incarnation=kept.started.incarnation,
                reason=reason,
                time_ns=time.time_ns(),
                message=message,
            )
        )
        self._keeping.drop(target.pid, target.start_time_ticks)
        log.warning("target_not_continued", target=name_of(target), why=message)

    def _begin(
        self,
        backend: Backend,
        started: ingest_pb2.TargetStarted,
        first: Harvest,
        pacer: Pacer | None,
        keepsake: Keepsake | None = None,
        kept: Kept | None = None,
        rounds: Sequence[Round] = (),
    ) -> tuple[Tracker, asyncio.Task[types_pb2.EndReason.ValueType | None]]:
        tracker = Tracker(
            backend,
            started,
            first,
            spool=self._spool,
            pool=self._pool,
            pacer=pacer,
            on_change=self._uplink.changed,
            keepsake=keepsake,
            kept=kept,
            rounds=rounds,
        )
        task = asyncio.create_task(tracker.run())
        pid, start = tracker.target.pid, tracker.target.start_time_ticks
        self._tracked[pid, start] = _Tracked(tracker, task)
        task.add_done_callback(lambda task: self._ended(pid, start, task))
        return tracker, task

    def _ended(self, pid: int, start: int, task: asyncio.Task[types_pb2.EndReason.ValueType | None]) -> None:
        del self._tracked[pid, start]
        if task.cancelled():
            return
        reason = task.result()
        if reason is None:
            return
        self._keeping.drop(pid, start)
        self._offered.discard((pid, start))
        log.info(
            "target_ended", target=f"{self._settings.host_id}/{pid}@{start}", reason=types_pb2.EndReason.Name(reason)
        )
        if reason != types_pb2.END_REASON_FAILED:
            self._given_up.pop((pid, start), None)
        if reason == types_pb2.END_REASON_EXITED:
            self._follower.forget((pid, start))
        elif reason == types_pb2.END_REASON_EXEC:
            self._follower.look()
        elif reason == types_pb2.END_REASON_FAILED:
            self._follower.put_off((pid, start), self._given_up.get((pid, start), 0.0))

    async def _accept(self, offer: Offer) -> str:
        """Track what a process offers; its name."""
        tracker = await self._track(offer.pid, 0, offer)
        self._offered.add((tracker.target.pid, tracker.target.start_time_ticks))
        self._hold_mandate()
        return name_of(tracker.target)

    async def _discover(self) -> None:
        """Look for processes to track, for ever."""
        await self._follower.run(self._looked.set)

    async def _tell_when_looked(self, health: Health) -> None:
        await self._looked.wait()
        await health.set_serving(serving=True)

    async def _end_targets(self, *, are_left: bool) -> None:
        for tracked in self._tracked.values():
            if are_left and tracked.tracker.is_kept:
                tracked.tracker.leave()
            else:
                tracked.tracker.stop(types_pb2.END_REASON_UNTRACKED, "the agent was stopped")
        if self._tracked:
            await asyncio.wait([tracked.task for tracked in self._tracked.values()])


def _check_started(pid: int, start_time_ticks: int) -> None:
    if procfs.stat(pid).start_time_ticks != start_time_ticks:
        message = f"there is no process {pid} that started at tick {start_time_ticks}: the pid is another's now"
        raise NoSuchProcess(message)


def _is_there(identity: Identity) -> bool:
    try:
        return procfs.stat(identity[0]).start_time_ticks == identity[1]
    except NoSuchProcess:
        return False


def _pop_rounds(stored: dict[Key, Stored], kept: Kept) -> Sequence[Round]:
    """Take what the disk has of a target, behind what is durable."""
    return stored.pop(key_of(kept.started.target, kept.started.incarnation), Stored()).following(kept.durable)
