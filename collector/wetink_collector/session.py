"""One agent's stream, from Welcome to its end: what comes in is taken, what is durable is acknowledged, and what
orchestrators ask for is asked of the agent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from grpc.aio import EOF, ServicerContext

from wetink.later import unknown_fields
from wetink.v1.ingest_pb2 import (
    Ack,
    AgentMessage,
    Barrier,
    BarrierReached,
    CollectorMessage,
    CommandResult,
    Drain,
    Heartbeat,
    Hello,
    TargetEnded,
    TargetMappings,
    TargetRefused,
    TargetStarted,
    Thaw,
    Thawed,
    Track,
    Untrack,
    Welcome,
    WriteProtectBatch,
)
from wetink.v1.types_pb2 import (
    END_REASON_EXEC,
    END_REASON_EXITED,
    END_REASON_REFUSED,
    END_REASON_UNTRACKED,
    Freeze,
    TargetPosition,
)
from wetink_collector import metrics
from wetink_collector.catalog import Catalog
from wetink_collector.committer import Committer
from wetink_collector.errors import (
    RETRY_SECONDS_OF,
    STATUS_OF,
    AgentDisconnected,
    BatchCorrupt,
    MessageMalformed,
    PagesTooMany,
    Refusal,
    RoundGap,
    RoundTooLarge,
    StoreUnavailable,
    TargetRefusal,
    TargetsTooMany,
)
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.intake import AlreadyHere, Intake, Superseded
from wetink_collector.limits import REFUSED_MAX, Limits, Meter
from wetink_collector.message_checks import COMMAND_CHARACTERS_MAX
from wetink_collector.settlement import Settlement
from wetink_collector.store.interface import (
    Change,
    IncarnationEnded,
    IncarnationStarted,
    RoundsAppended,
    TargetUnwanted,
)

ACK_POSITIONS_MAX: Final = 2048
"""Bound on the positions of one Ack: at most 350 bytes each, so that it stays below the bound on a message."""

PATIENCE_SECONDS: Final = 5.0
"""How long an agent hears no Ack because it is read slowly, before it gets one that says no more than that: a third of
what it waits for one."""

REQUESTS_OPEN_MAX: Final = 1024
"""Bound on what one agent is asked and has not answered. Each is some orchestrator's open call."""

UNHEARD_MAX: Final = 32_768
"""Bound on what an agent is told and has not read, beyond which it is read no further: acknowledgements of twice as
many targets as it may have, in some ten megabytes."""

log = structlog.get_logger()


class Session:
    """A stream whose Hello was accepted. Its ``run`` ends when the stream is to end."""

    def __init__(
        self,
        hello: Hello,
        context: ServicerContext[Any, Any],
        committer: Committer,
        catalog: Catalog,
        limits: Limits,
    ) -> None:
        """Begin a session that nobody hears of before it runs."""
        self.hello = hello
        self.welcomed = False
        self._limits = limits
        self._meter = Meter(limits.bytes_per_second, time.monotonic())
        self._was_slowed = False
        self._acknowledged_at = time.monotonic()
        # The newest incarnation of each target of which the agent was told that it is refused.
        self._told: dict[TargetKey, IncarnationKey] = {}
        self._listens_since: float | None = None
        self._context = context
        self._committer = committer
        self._catalog = catalog
        self._intake = Intake(hello, (), limits)
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[None] = self._loop.create_future()
        self._closed = asyncio.Event()
        self._half_closed = False
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._commands: deque[CollectorMessage] = deque()
        self._acks: dict[IncarnationKey, int] = {}
        # Nothing came before.
        self._submitted = Settlement()
        self._submitted.settle()
        self._unsettled_count = 0
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._harvested: dict[int, Callable[[], None]] = {}
        self._request_id = 0
        self._has_ignored = False

    @property
    def host_id(self) -> str:
        """The host."""
        return self.hello.host_id

    def silent_seconds(self, now: float) -> float:
        """Say for how long the agent could have said something and has not: while it is not listened to, it could not.

        Args:
            now: As ``time.monotonic`` gives it.
        """
        return 0.0 if self._listens_since is None else now - self._listens_since

    async def welcome(self, welcome: Welcome) -> None:
        """Tell the agent where it goes on. From now on it can be asked for things."""
        self._intake = Intake(self.hello, self._catalog.on_host(self.host_id), self._limits)
        # First: who hears of the agent from the agent itself may ask for it at once. What is asked waits for ``run``.
        self.welcomed = True
        self._catalog.set_connected(self.host_id, connected=True)
        await self._context.write(CollectorMessage(welcome=welcome))

    async def run(self) -> None:
        """Speak with the agent until it half-closes and everything is acknowledged.

        Raises:
            Refusal: The agent broke the contract, or ``end`` was called.
        """
        receiving = self._loop.create_task(self._receive())
        sending = self._loop.create_task(self._send())
        try:
            waiting: set[asyncio.Future[None]] = {receiving, sending, self._ending}
            while not sending.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
        except Refusal as refusal:
            # It and the task it comes from hold each other, and may do so for long; not where it was raised as well,
            # and with that a message and half a round of megabytes.
            refusal.__context__ = None
            raise refusal.with_traceback(None) from None
        finally:
            receiving.cancel()
            sending.cancel()
            await asyncio.gather(receiving, sending, return_exceptions=True)

    def end(self, refusal: Refusal) -> None:
        """End the stream. Nothing that comes from now on is taken or acknowledged."""
        if not self._ending.done():
            self._ending.set_exception(refusal)
            # Somebody may end a session that never came to run.
            self._ending.exception()

    def check(self) -> None:
        """Raise what ``end`` was called with, if it was."""
        if self._ending.done():
            self._ending.result()

    def close(self) -> None:
        """Say that the stream has ended: whoever waits for the agent gets AgentDisconnected."""
        self.welcomed = False
        # What ended it holds it, in a cycle that may stay for long: not with half a round of megabytes.
        self._intake = Intake(self.hello, (), self._limits)
        for request in list(self._requests.values()):
            if not request.done():
                request.set_exception(disconnected(self.host_id))
        self._closed.set()

    async def closed(self) -> None:
        """Wait until the stream has ended, and nothing more of it can be submitted."""
        await self._closed.wait()

    def drain(self) -> None:
        """Ask the agent to half-close."""
        self._say(CollectorMessage(drain=Drain()))

    @property
    def can_freeze(self) -> bool:
        """Whether the agent understands a barrier that freezes, and Thaw."""
        return self.hello.can_freeze

    async def barrier(
        self, targets: Sequence[TargetKey], *, freeze: Freeze | None, harvested: Callable[[], None]
    ) -> BarrierReached:
        """Ask the agent to harvest.

        Args:
            targets: Of its host.
            freeze: How they are to be frozen; only for an agent that can.
            harvested: Called when it has answered, or never will.

        Returns:
            Its answer, once all batches before that are durable.

        Raises:
            AgentDisconnected: It went away.
        """
        request_id, future = self._open_request()
        self._harvested[request_id] = harvested
        message = Barrier(request_id=request_id, targets=[target.message() for target in targets], freeze=freeze)
        self._say(CollectorMessage(barrier=message))
        try:
            reached: BarrierReached = await future
            return reached
        finally:
            if self._harvested.pop(request_id, None):
                harvested()

    def thaw(self, hold: str, targets: Sequence[TargetKey]) -> asyncio.Future[Thawed]:
        """Ask the agent to end a hold. AgentDisconnected if it goes away."""
        request_id, future = self._open_request()
        message = Thaw(request_id=request_id, hold=hold, targets=[target.message() for target in targets])
        self._say(CollectorMessage(thaw=message))
        # Nobody need be waiting for it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def track(self, pid: int) -> asyncio.Future[CommandResult]:
        """Ask the agent to track a process. AgentDisconnected if it goes away."""
        request_id, future = self._open_request()
        self._say(CollectorMessage(track=Track(request_id=request_id, pid=pid)))
        return future

    def untrack(self, target: TargetKey) -> asyncio.Future[CommandResult]:
        """Ask the agent to stop tracking a process. AgentDisconnected if it goes away."""
        request_id, future = self._open_request()
        self._say(CollectorMessage(untrack=Untrack(request_id=request_id, target=target.message())))
        return future

    def _open_request(self) -> tuple[int, asyncio.Future[Any]]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._request_id += 1
        request_id = self._request_id
        if len(self._requests) >= REQUESTS_OPEN_MAX:
            message = f"the agent of host {self.host_id} has {REQUESTS_OPEN_MAX} unanswered requests; try again later"
            future.set_exception(AgentDisconnected(message))
        else:
            self._requests[request_id] = future
            future.add_done_callback(lambda _: self._requests.pop(request_id, None))
        return request_id, future

    def _say(self, message: CollectorMessage) -> None:
        self._commands.append(message)
        self._wake.set()

    async def _receive(self) -> None:
        while (message := await self._read()) is not EOF:
            self._catalog.hosts[self.host_id].last_seen_time_ns = time.time_ns()
            size_bytes = message.ByteSize()
            await self._take(message)
            await self._slow_down(self._meter.take(size_bytes, time.monotonic()))
            await self._until_heard()
        self._half_closed = True
        self._wake.set()

    async def _read(self) -> Any:  # noqa: ANN401 (a message, or what grpc.aio has for the end)
        self._listens_since = time.monotonic()
        try:
            return await self._context.read()
        finally:
            self._listens_since = None

    async def _slow_down(self, seconds: float) -> None:
        """Read no further for a while, because of the agent's rate. Acknowledgements and commands go out meanwhile."""
        if not seconds:
            return
        metrics.LIMITED.labels("bytes").inc()
        if not self._was_slowed:
            self._was_slowed = True
            log.warning(
                "agent_slowed",
                host=self.host_id,
                bytes_per_second=self._limits.bytes_per_second,
                why="it sends more than the collector's --agent-rate",
                consequence="its stream is read more slowly, and it keeps and unites rounds; none is lost",
            )
        await asyncio.sleep(seconds)
        # A large round in many parts, and nothing can be acknowledged before its last.
        if time.monotonic() - self._acknowledged_at > PATIENCE_SECONDS:
            self._acknowledged_at = time.monotonic()
            self._say(CollectorMessage(ack=Ack()))

    async def _until_heard(self) -> None:
        """Read no further while the agent does not read: what it is told by then would grow without a bound."""
        while len(self._commands) + len(self._acks) > UNHEARD_MAX:
            self._heard.clear()
            await self._heard.wait()

    async def _take(self, message: AgentMessage) -> None:
        kind = message.WhichOneof("message")
        if kind is None:
            self._ignore(message)
            return
        # Fields of a later version have no bound here, and some messages are kept for as long as their target.
        message.DiscardUnknownFields()
        match kind:
            case "write_protect_batch":
                await self._take_batch(message.write_protect_batch)
            case "target_started":
                await self._take_start(message.target_started)
            case "target_ended":
                await self._take_end(message.target_ended)
            case "barrier_reached":
                self._take_reached(message.barrier_reached)
            case "command_result" | "thawed":
                answer = getattr(message, kind)
                self._answer(answer.request_id, answer)
            case "target_mappings":
                self._take_mappings(message.target_mappings)
            case "heartbeat":
                self._take_heartbeat(message.heartbeat)
            case "hello":
                text = f"host {self.host_id} sent a second Hello; only the first message of a stream is one"
                raise MessageMalformed(text)

    def _take_heartbeat(self, heartbeat: Heartbeat) -> None:
        host = self._catalog.hosts[self.host_id]
        host.spool_bytes = heartbeat.spool_bytes
        # An agent that was started again counts from zero.
        more = heartbeat.rounds_united - host.rounds_united
        metrics.ROUNDS_UNITED.inc(more if more >= 0 else heartbeat.rounds_united)
        host.rounds_united = heartbeat.rounds_united

    def _ignore(self, message: AgentMessage) -> None:
        """Pass over a message of a later version, as the contract says.

        No page is missed by that: a round that came in it would be a gap before the next one, and a barrier is not
        reached before the round that its answer names is here.
        """
        if not self._has_ignored:
            self._has_ignored = True
            log.info(
                "message_ignored",
                host=self.host_id,
                fields=unknown_fields(message),
                why="of a kind that this version does not know",
            )

    async def _take_batch(self, message: WriteProtectBatch) -> None:
        try:
            taken = self._intake.batch(message)
        except TargetRefusal as refusal:
            metrics.BATCHES.labels("refused").inc()
            await self._refuse(_incarnation_of(message), refusal)
            return
        except Refusal as refusal:
            metrics.BATCHES.labels(_RESULT_OF.get(type(refusal), "refused")).inc()
            raise
        match taken:
            case RoundsAppended():
                _TAKEN.inc()
                _WRITTEN.inc(taken.block.written_page_count)
                _VANISHED.inc(taken.block.vanished_page_count)
                sets_bytes = len(taken.written) + len(taken.vanished) + len(taken.uncertain)
                events_bytes = sum(columns.ByteSize() for columns in taken.events)
                await self._submit(taken, size_bytes=sets_bytes + events_bytes)
            case AlreadyHere():
                metrics.BATCHES.labels("duplicate").inc()
                record = self._catalog.get(taken.incarnation.target)
                if record and record.incarnation == taken.incarnation:
                    self._acknowledge(taken.incarnation, record.round)
            case Superseded():
                metrics.BATCHES.labels("superseded").inc()
                self._acknowledge(taken.incarnation, taken.last_round)
                is_told = self._told.get(taken.incarnation.target) == taken.incarnation
                if self._intake.is_refused(taken.incarnation) and not is_told:
                    await self._refuse_again(taken.incarnation)
            case None:
                metrics.BATCHES.labels("part").inc()

    async def _take_start(self, message: TargetStarted) -> None:
        if self._intake.is_one_too_many(message):
            await self._forget_refused()
        try:
            started = self._intake.started(message)
        except TargetsTooMany as refusal:
            incarnation = _incarnation_of(message)
            await self._refuse(incarnation, refusal, IncarnationStarted(incarnation, message))
            return
        if started:
            await self._submit(started, size_bytes=message.ByteSize())

    async def _forget_refused(self) -> None:
        # The catalog knows those that were refused just now when that is durable.
        await self._submitted
        self._intake.forget_refused(lambda target: self._catalog.get(target) is not None)

    async def _refuse(self, incarnation: IncarnationKey, refusal: TargetRefusal, *before: Change) -> None:
        """Take no more of an incarnation, durably, and tell the agent.

        Raises:
            RoundTooLarge: The agent understands nothing else.
        """
        metrics.LIMITED.labels(_LIMIT_OF[type(refusal)]).inc()
        known = self._catalog.get(incarnation.target)
        if known is None or not known.is_refused:
            # Not each time its agent tries again.
            log.warning("target_refused", target=str(incarnation.target), why=str(refusal))
        message = str(refusal)[:COMMAND_CHARACTERS_MAX]
        await self._submit(*before, IncarnationEnded(incarnation, END_REASON_REFUSED, time.time_ns(), message))
        await self._tell_refused(incarnation, STATUS_OF[type(refusal)][1], refusal, RETRY_SECONDS_OF[type(refusal)])

    async def _refuse_again(self, incarnation: IncarnationKey) -> None:
        """Tell an agent that did not hear of it, or not before its last stream ended. Raises as ``_refuse``."""
        known = self._catalog.get(incarnation.target)
        why = known.ended.message if known and known.ended else f"{incarnation.target} was refused"
        metadata = {"target": str(incarnation.target), "incarnation": str(incarnation.incarnation), "round": "0"}
        await self._tell_refused(incarnation, "", TargetRefusal(why, **metadata), 0)

    async def _tell_refused(
        self, incarnation: IncarnationKey, reason: str, refusal: TargetRefusal, retry_seconds: float
    ) -> None:
        self._told.pop(incarnation.target, None)
        self._told[incarnation.target] = incarnation
        if len(self._told) > REFUSED_MAX:
            # Told again, should it come to that.
            del self._told[next(iter(self._told))]
        if not self.hello.can_be_refused:
            # What an older agent gives one target up for. First it must be known here: it comes back at once.
            await self._submitted
            raise RoundTooLarge(str(refusal), **refusal.metadata)
        told = TargetRefused(
            target=incarnation.target.message(),
            incarnation=incarnation.incarnation,
            reason=reason,
            message=str(refusal),
            retry_after_ms=round(retry_seconds * 1000),
        )
        self._when_durable(lambda: self._say(CollectorMessage(target_refused=told)))

    async def _take_end(self, message: TargetEnded) -> None:
        if ended := self._intake.ended(message, time.time_ns()):
            if ended.reason not in _ENDS_WITHOUT_GAP:
                metrics.RESYNCS.labels(ended.reason_name).inc()
            # A process that has exited cannot be wanted: its pid will mean another.
            exited = ended.reason == END_REASON_EXITED
            await self._submit(ended, *((TargetUnwanted(ended.incarnation.target),) if exited else ()))

    def _take_mappings(self, message: TargetMappings) -> None:
        if incarnation := self._intake.mappings(message):
            self._catalog.mappings.put(incarnation, message)

    def _take_reached(self, message: BarrierReached) -> None:
        self._intake.check_reached(message.positions)
        # Said at once, and not when it is durable: what is frozen need not wait for that.
        if harvested := self._harvested.pop(message.request_id, None):
            harvested()
        self._answer(message.request_id, message)

    async def _submit(self, change: Change, *more: Change, size_bytes: int = 0) -> None:
        # Between end() and the cancellation of this task one more message may be read.
        self.check()
        self._submitted = await self._committer.submit((change, *more), size_bytes=size_bytes)
        self._unsettled_count += 1
        self._submitted.then(lambda error: self._on_settled(error, change))

    def _on_settled(self, error: StoreUnavailable | None, change: Change) -> None:
        self._unsettled_count -= 1
        self._wake.set()
        if error:
            self.end(error)
        elif isinstance(change, RoundsAppended):
            self._on_appended(change)
        elif isinstance(change, IncarnationEnded):
            # The rounds were acknowledged before; said again, the agent knows that the end is durable too.
            record = self._catalog.get(change.incarnation.target)
            self._acknowledge(change.incarnation, record.round if record else 0)

    def _on_appended(self, change: RoundsAppended) -> None:
        """Acknowledge a round that is kept, or that a newer incarnation has superseded."""
        incarnation, last_round = change.incarnation, change.block.last_round
        record = self._catalog.get(incarnation.target)
        is_kept = record is not None and record.incarnation >= incarnation
        if is_kept and not (record and record.ended and self._intake.goes_on(incarnation)):
            self._acknowledge(incarnation, last_round)
            return
        # The store leaves out rounds of what it does not keep, and what was given up while its agent came back is soon
        # forgotten: the agent must not let go of them as if they were there for good.
        text = f"round {last_round} of {incarnation.target} is of an incarnation that is not known here any more"
        metadata = {"target": str(incarnation.target), "incarnation": str(incarnation.incarnation)}
        self.end(RoundGap(f"{text}; begin a new one", **metadata, round=str(last_round)))

    def _acknowledge(self, incarnation: IncarnationKey, last_round: int) -> None:
        # One that has not been sent yet may name more: of what was refused nothing is here any more when it has exited.
        self._acks[incarnation] = max(last_round, self._acks.get(incarnation, 0))
        self._wake.set()

    def _answer(self, request_id: int, answer: object) -> None:
        """Answer a request once everything the agent said before is durable."""
        request = self._requests.get(request_id)
        if request is None:
            # It came after its caller had given up.
            return
        self._when_durable(lambda: None if request.done() else request.set_result(answer))

    def _when_durable(self, action: Callable[[], None]) -> None:
        self._submitted.then(lambda error: None if error else action())

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._commands:
                await self._context.write(self._commands.popleft())
                self._heard.set()
            while self._acks:
                await self._context.write(CollectorMessage(ack=self._take_acks()))
                self._heard.set()
                self._acknowledged_at = time.monotonic()
            if self._half_closed and not self._unsettled_count:
                return

    def _take_acks(self) -> Ack:
        acks = list(self._acks.items())
        self._acks = dict(acks[ACK_POSITIONS_MAX:])
        return Ack(
            positions=[
                TargetPosition(
                    target=incarnation.target.message(), incarnation=incarnation.incarnation, round=last_round
                )
                for incarnation, last_round in acks[:ACK_POSITIONS_MAX]
            ]
        )


def disconnected(host_id: str) -> AgentDisconnected:
    """Say that a host has no stream."""
    return AgentDisconnected(f"the agent of host {host_id} is not connected; try again when it is")


def _incarnation_of(message: TargetStarted | WriteProtectBatch) -> IncarnationKey:
    return IncarnationKey(TargetKey.of(message.target), message.incarnation)


# With each batch, and to find a label takes as long as to count.
_TAKEN: Final = metrics.BATCHES.labels("taken")
_WRITTEN, _VANISHED = (metrics.PAGES.labels(kind) for kind in ("written", "vanished"))

_LIMIT_OF: Final = {TargetsTooMany: "targets", PagesTooMany: "pages", RoundTooLarge: "round"}
_RESULT_OF: Final[dict[type[Refusal], str]] = {BatchCorrupt: "corrupt", RoundGap: "gap"}
_ENDS_WITHOUT_GAP: Final = (END_REASON_EXITED, END_REASON_EXEC, END_REASON_UNTRACKED)
