"""One target from its first round to its end: incarnations, rounds on a period and at once, and barriers.

The harvest runs on a thread of a pool; everything else runs on the event loop.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Final

import structlog

from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.backend import Backend, Harvest
from wetink_agent.errors import TargetExited, TargetReplaced, TrackingError
from wetink_agent.keepsake import Keepsake, Kept
from wetink_agent.pace import Pacer
from wetink_agent.rounds import Round, round_of
from wetink_agent.spool import Key, Spool, key_of

log = structlog.get_logger()

COMMAND_WAIT_SECONDS_MAX: Final = 60.0
"""How long a barrier may wait for its round: the contract's bound on a barrier."""

NEVER_SECONDS: Final = 1e9


class Tracker:
    """Tracks one process with one backend, and puts its rounds into the spool."""

    def __init__(
        self,
        backend: Backend,
        started: ingest_pb2.TargetStarted,
        first: Harvest,
        *,
        spool: Spool,
        pool: Executor,
        pacer: Pacer | None,
        on_change: Callable[[], None],
        keepsake: Keepsake | None = None,
        kept: Kept | None = None,
        rounds: Sequence[Round] = (),
    ) -> None:
        """Put the first round into the spool; the next one is harvested by ``run``.

        Args:
            backend: Owned from now on.
            started: Describes the target; its incarnation and time are set here, but where it goes on.
            first: The first harvest of the backend.
            spool: Takes the rounds.
            pool: Runs the harvests.
            pacer: Says when rounds are due. None: only barriers do.
            on_change: Called when the spool has something new.
            keepsake: Told what the next worker must know. Owned from now on.
            kept: What another worker left, where this goes on with its incarnation. The keepsake has begun with it.
            rounds: What is still here of its rounds, without a gap.
        """
        self._backend = backend
        self._started = started
        self._spool = spool
        self._pool = pool
        self._pacer = pacer
        self._on_change = on_change
        self._keepsake = keepsake
        self._round = 0
        self._frozen = False
        self._waiting: list[asyncio.Future[types_pb2.TargetPosition | None]] = []
        self._wake = asyncio.Event()
        self._stopping: tuple[types_pb2.EndReason.ValueType | None, str] | None = None
        self._resynchronise = False
        self._is_over = False
        self._table: ingest_pb2.TargetMappings | None = None
        if kept is None:
            self._begin_incarnation()
            self._keep(self._round_of(first, self._pace), first)
        else:
            self._round = kept.harvested
            on_durable = keepsake.durable if keepsake else None
            spool.restore(self._started, rounds, last_round=kept.durable, on_durable=on_durable)
            # Rounds that were lost with the other worker are in this one, which has everything: see ``Kept``.
            last_here = rounds[-1].last if rounds else kept.durable
            self._keep(self._round_of(first, self._pace, stands_for=last_here + 1), first)

    @property
    def target(self) -> types_pb2.Target:
        """The process."""
        return self._started.target

    @property
    def position(self) -> types_pb2.TargetPosition:
        """The incarnation and its last round."""
        return types_pb2.TargetPosition(
            target=self.target, incarnation=self._started.incarnation, round=self._round, frozen=self._frozen
        )

    @property
    def key(self) -> Key:
        """The incarnation's key in the spool."""
        return key_of(self._started.target, self._started.incarnation)

    @property
    def is_kept(self) -> bool:
        """Whether another worker can go on with it."""
        return self._keepsake is not None

    async def run(self) -> types_pb2.EndReason.ValueType | None:
        """Do rounds until the target ends, cannot be tracked any more, or ``stop`` is called; tell which it was.

        None after ``leave``: the incarnation goes on, with another worker.
        """
        try:
            reason, message = await self._rounds()
        finally:
            # Closing makes the kernel walk all that is registered: not on the event loop.
            await asyncio.get_running_loop().run_in_executor(self._pool, self._backend.close)
            self._is_over = True
            if self._pacer is not None:
                self._pacer.close()
            _answer(self._take_waiting(), None)
        if reason is None:
            # Open still: which rounds become durable from now on is for the next worker to know.
            return None
        if self._keepsake is not None:
            self._keepsake.close()
        self._spool.end(
            ingest_pb2.TargetEnded(
                target=self.target,
                incarnation=self._started.incarnation,
                reason=reason,
                time_ns=time.time_ns(),
                message=message,
            )
        )
        self._on_change()
        return reason

    @property
    def _interval_seconds(self) -> float:
        return NEVER_SECONDS if self._pacer is None else self._pacer.interval_seconds

    @property
    def _pace(self) -> types_pb2.Pace | None:
        return None if self._pacer is None else self._pacer.to_message()

    async def barrier(self) -> types_pb2.TargetPosition | None:
        """Harvest at once, and give the round that holds every write from before this call; None where it ended."""
        if self._is_over:
            return None
        waiter: asyncio.Future[types_pb2.TargetPosition | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wake.set()
        try:
            async with asyncio.timeout(COMMAND_WAIT_SECONDS_MAX):
                return await waiter
        except TimeoutError:
            return None

    def stop(self, reason: types_pb2.EndReason.ValueType, message: str = "") -> None:
        """End tracking after the round that is under way."""
        self._stopping = (reason, message)
        self._wake.set()

    def leave(self) -> None:
        """Leave the target, after the round that is under way, to another worker that has the same keepsake."""
        self._stopping = (None, "")
        self._wake.set()

    def resynchronise(self) -> None:
        """Begin a new incarnation over the same memory: the collector's record of this one has a gap."""
        self._resynchronise = True
        self._wake.set()

    async def _rounds(self) -> tuple[types_pb2.EndReason.ValueType | None, str]:
        loop = asyncio.get_running_loop()
        await self._until(loop.time() + self._interval_seconds)
        while True:
            self._wake.clear()
            if self._stopping is not None:
                return self._stopping
            if self._resynchronise:
                self._resynchronise = False
                self._backend.forget()
                self._begin_incarnation()
            began = loop.time()
            # Who waits now is served by this round; who comes while it runs, by the next.
            waiting = self._take_waiting()
            try:
                harvested, harvest, cpu_seconds = await loop.run_in_executor(self._pool, self._harvest, self._pace)
            except (TrackingError, OSError) as error:
                end = end_reason_of(error), str(error)
            except Exception as error:  # a mistake of ours must not look like a target at rest
                log.exception("harvest_failed", pid=self.target.pid)
                end = types_pb2.END_REASON_FAILED, f"the agent failed: {error!r}"
            else:
                if self._resynchronise:
                    # Its incarnation has no record any more; the first round of the next one serves who waits.
                    self._waiting[:0] = waiting
                    continue
                self._keep(harvested, harvest)
                _answer(waiting, self.position)
                self._note(harvest, cpu_seconds)
                # A target so large that a round takes longer than the interval gets as long a rest.
                now = loop.time()
                await self._until(max(began + self._interval_seconds, now + (now - began)))
                continue
            _answer(waiting, None)
            return end

    def _harvest(self, pace: types_pb2.Pace | None) -> tuple[Round, Harvest, float]:
        """Harvest; the round, what it was made of, and the processor time that took."""
        began = time.thread_time()
        if self._keepsake is not None:
            self._keepsake.harvesting()
        harvest = self._backend.harvest()
        harvested = self._round_of(harvest, pace)
        return harvested, harvest, time.thread_time() - began

    def _round_of(self, harvest: Harvest, pace: types_pb2.Pace | None, *, stands_for: int | None = None) -> Round:
        if self._keepsake is not None:
            assert harvest.known is not None, "there is a keepsake for a backend that nobody can go on with"
            # Before it can be sent: whoever has it holds pages that the next worker must know of.
            self._keepsake.harvested(harvest.known, harvest.vanished)
            if harvest.cautious_page_count or harvest.exposed:
                # What may be written unseen is told once more when it no longer can be, which only this worker knows.
                self._keepsake.harvesting()
        return round_of(
            harvest,
            target=self.target,
            incarnation=self._started.incarnation,
            number=self._round + 1,
            backend=self._backend.kind,
            pace=pace,
            first=stands_for,
        )

    def _note(self, harvest: Harvest, cpu_seconds: float) -> None:
        if self._pacer is not None:
            self._pacer.note(harvest, self._backend.kind, cpu_seconds, is_first=self._round == 1)

    def _keep(self, harvested: Round, harvest: Harvest) -> None:
        is_first = not self._round
        self._round = harvested.last
        self._frozen = harvested.parts[0].frozen
        self._spool.add(self.key, harvested)
        if harvest.table is not None:
            self._table = harvest.table
        # Those who hear of an incarnation hear of its mappings too, though they are those of the one before.
        if self._table is not None and (is_first or harvest.table is not None):
            told = ingest_pb2.TargetMappings()
            told.CopyFrom(self._table)
            told.target.CopyFrom(self.target)
            told.incarnation, told.round = self._started.incarnation, self._round
            self._spool.tell_mappings(self.key, told)
        self._on_change()

    async def _until(self, due: float) -> None:
        """Wait until a round is due or somebody wants something."""
        delay = due - asyncio.get_running_loop().time()
        if delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    def _begin_incarnation(self) -> None:
        self._spool.drop(self.key)
        boot_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        self._started.incarnation = self._spool.next_incarnation(boot_us)
        self._started.time_ns = time.time_ns()
        self._round = 0
        if self._keepsake is not None:
            assert self._backend.handle is not None
            self._keepsake.begin(self._started, self._backend.handle.layout)
        started = ingest_pb2.TargetStarted()
        started.CopyFrom(self._started)
        self._spool.start(started, on_durable=self._keepsake.durable if self._keepsake else None)

    def _take_waiting(self) -> list[asyncio.Future[types_pb2.TargetPosition | None]]:
        waiting, self._waiting = self._waiting, []
        return waiting


def end_reason_of(error: Exception) -> types_pb2.EndReason.ValueType:
    """Give how an incarnation has ended whose harvest raised this."""
    match error:
        case TargetExited():
            return types_pb2.END_REASON_EXITED
        case TargetReplaced():
            return types_pb2.END_REASON_EXEC
        case _:
            return types_pb2.END_REASON_FAILED


def _answer(
    waiting: Iterable[asyncio.Future[types_pb2.TargetPosition | None]], position: types_pb2.TargetPosition | None
) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(position)
