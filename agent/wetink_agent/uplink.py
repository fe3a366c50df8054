"""The agent's stream to the collector: connects, resumes, sends what the spool holds, and passes commands on.

It reconnects for ever, with exponential back-off and full jitter; a collector that is away costs time resolution and
nothing else. ``write`` returning says nothing about delivery: only an acknowledgement does.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import grpc
import structlog

from wetink.later import unknown_fields
from wetink.pages import MESSAGE_BYTES_MAX
from wetink.status import error_info
from wetink.tls import Security, SecurityUnusable
from wetink.v1 import ingest_pb2, ingest_pb2_grpc, types_pb2
from wetink_agent.spool import Key, Spool, key_of

BACKOFF_SECONDS_FIRST: Final = 0.2
BACKOFF_SECONDS_MAX: Final = 30.0
"""Each wait is drawn from zero to a bound that doubles from the first of these to the second; a stream that has worked,
and got an acknowledgement, takes it back to the first."""

WELCOME_SECONDS_MAX: Final = 10.0
"""How long the collector may take to connect and answer Hello."""

ACK_SECONDS_MAX: Final = 15.0
"""How long batches may be out with no acknowledgement before the stream counts as dead (``protos/README.md``)."""

CAREFUL_SECONDS: Final = 60.0
CAREFUL_PAUSE_SECONDS: Final = 0.1
"""For how long a stream waits after each message until something is acknowledged, and how long at most, where the two
before ended with nothing but INTERNAL, the later within that time of the earlier. grpc.aio gives that in place of the
collector's reason when a message was being written at that moment: a refused round would be sent for ever, and nobody
would know why. One such end alone is what any collector leaves that was restarted."""

ANSWERS_MAX: Final = 4096
"""Answers to commands that wait to be sent; over it the oldest is dropped, and the collector's deadline passes."""

CHANNEL_OPTIONS: Final = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without it a peer that hangs while its kernel still answers is found after 70 s.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + (64 << 10)),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

log = structlog.get_logger()


class Deposed(Exception):
    """Another agent has taken over this host. The text says what to do."""


class Commands(Protocol):
    """What the collector may ask of the agent."""

    async def carry_out(self, message: ingest_pb2.CollectorMessage) -> ingest_pb2.AgentMessage | None:
        """Carry out Track, Untrack, Barrier or Thaw; give the answer, where one is expected."""
        ...

    def set_wanted(self, wanted: list[ingest_pb2.Track]) -> None:
        """Learn what orchestrators want tracked on this host, beside what the agent was told."""
        ...

    def resynchronise(self, broken: list[Key]) -> None:
        """Begin new incarnations for those whose record at the collector has a gap."""
        ...

    def give_up(self, key: Key, why: str, retry_seconds: float = 0.0) -> None:
        """End an incarnation of which the collector takes no more; one may begin anew after so many seconds."""
        ...


class Uplink:
    """One agent's connection, kept up until ``run`` is cancelled."""

    def __init__(
        self,
        address: str,
        hello: ingest_pb2.Hello,
        *,
        spool: Spool,
        commands: Commands,
        security: Security | None = None,
    ) -> None:
        """Prepare.

        Args:
            address: HOST:PORT or unix:PATH.
            hello: Said at each connect, with the spool's positions.
            spool: What to send.
            commands: Carries out what the collector asks.
            security: Certificates and token, read again at each connect; None speaks in the clear.
        """
        self._address = address
        self._hello = hello
        self._spool = spool
        self._commands = commands
        self._security = security or Security()
        self._changed = asyncio.Event()
        self._progress = asyncio.Event()
        self._answers: deque[ingest_pb2.AgentMessage] = deque(maxlen=ANSWERS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: Key | None = None
        self._told = ""
        self._draining = False
        self._is_careful = False
        self._internal_at = float("-inf")
        self._closing = False
        self._is_open = False
        self._acknowledged_at = 0.0
        self._acknowledged = False
        self._acknowledging = asyncio.Event()
        self._has_ignored = False

    def changed(self) -> None:
        """Say that the spool has something new."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the connection up; ends when ``flush`` was called and there is nothing left to say.

        Raises:
            Deposed: Another agent serves this host.
        """
        bound = BACKOFF_SECONDS_FIRST
        while not (self._closing and self._spool.is_empty):
            self._acknowledged = False
            try:
                await self._connect()
            except grpc.aio.AioRpcError as error:
                self._note(error)
            except (TimeoutError, ConnectionError, SecurityUnusable) as error:
                self._tell(str(error) or "no answer in time")
            if self._acknowledged:
                bound = BACKOFF_SECONDS_FIRST
            # Full jitter, so that agents which lost one collector together do not come back together.
            await asyncio.sleep(random.uniform(0, bound))  # noqa: S311 - nothing secret is drawn
            bound = min(bound * 2, BACKOFF_SECONDS_MAX)

    async def flush(self, seconds: float) -> None:
        """Wait until everything is durable at the collector and the stream has ended in good order, or so long."""
        self._closing = True
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # To cancel a stream is to lose what was written to it last: the ends of the targets.
                while self._is_open or not self._spool.is_empty:
                    self._progress.clear()
                    await self._progress.wait()

    async def _connect(self) -> None:
        """Serve one stream until it ends."""
        async with self._channel() as channel:
            call = ingest_pb2_grpc.IngestServiceStub(channel).Stream()
            try:
                welcome = await self._greet(call)
                self._told = ""
                log.info("connected", collector=self._address, version=welcome.collector_version or "not told")
                self._resume(welcome)
                self._is_open = True
                await self._serve(call, welcome)
            finally:
                self._is_open = False
                self._progress.set()
                for task in self._tasks:
                    task.cancel()
                call.cancel()

    def _channel(self) -> grpc.aio.Channel:
        credentials = self._security.credentials(self._address)
        if credentials is None:
            return grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self._address, credentials, options=CHANNEL_OPTIONS)

    async def _greet(self, call: "_Call") -> ingest_pb2.Welcome:
        hello = ingest_pb2.Hello()
        hello.CopyFrom(self._hello)
        hello.positions.extend(self._spool.positions())
        async with asyncio.timeout(WELCOME_SECONDS_MAX):
            await call.write(ingest_pb2.AgentMessage(hello=hello))
            message = await call.read()
            while isinstance(message, ingest_pb2.CollectorMessage) and not message.HasField("welcome"):
                self._ignore(message)
                message = await call.read()
        if message is grpc.aio.EOF:
            await _raise_status(call)
        assert isinstance(message, ingest_pb2.CollectorMessage)
        return message.welcome

    def _resume(self, welcome: ingest_pb2.Welcome) -> None:
        broken = self._spool.resume(welcome.positions)
        if broken:
            log.warning("resynchronising", targets=len(broken))
            self._commands.resynchronise(broken)
        self._commands.set_wanted(list(welcome.wanted))
        self._answers.clear()
        self._draining = False
        self._acknowledged_at = time.monotonic()

    async def _serve(self, call: "_Call", welcome: ingest_pb2.Welcome) -> None:
        """Send and receive until the stream ends."""
        receiver = asyncio.create_task(self._receive(call))
        others = [asyncio.create_task(self._send(call, welcome)), asyncio.create_task(self._watch())]
        try:
            waiting = {receiver, *others}
            while receiver in waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task is not receiver):
                    # A write fails when the stream has ended: then the receiver knows how.
                    if task is receiver or not isinstance(task.exception(), grpc.RpcError | asyncio.InvalidStateError):
                        task.result()
        finally:
            for task in (receiver, *others):
                task.cancel()
            await asyncio.gather(receiver, *others, return_exceptions=True)

    async def _watch(self) -> None:
        """Notice a collector that takes batches and acknowledges none; forget targets that ended a while ago.

        Beside the receiver and not a deadline on its reads: cancelling a read cancels the whole stream.
        """
        while True:
            await asyncio.sleep(1)
            self._spool.forget_ended()
            if not self._spool.in_flight_bytes:
                self._acknowledged_at = time.monotonic()
            elif time.monotonic() - self._acknowledged_at > ACK_SECONDS_MAX:
                text = f"it acknowledged nothing for {ACK_SECONDS_MAX:g} s"
                raise TimeoutError(text)

    async def _receive(self, call: "_Call") -> None:
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                if not self._draining:
                    await _raise_status(call)
                return
            assert isinstance(message, ingest_pb2.CollectorMessage)
            match message.WhichOneof("message"):
                case "ack":
                    self._acknowledged_at = time.monotonic()
                    self._acknowledged = True
                    self._acknowledging.set()
                    positions = message.ack.positions
                    if any(key_of(position.target, position.incarnation) == self._refused for position in positions):
                        self._refused = None
                    self._spool.acknowledge(positions)
                    self._progress.set()
                    self._changed.set()
                case "drain":
                    log.info("collector_drains", collector=self._address)
                    self._draining = True
                    self._changed.set()
                case "target_refused":
                    refused = message.target_refused
                    key = key_of(refused.target, refused.incarnation)
                    self._give_up(key, refused.message, refused.retry_after_ms / 1000)
                case "track" | "untrack" | "barrier" | "thaw":
                    self._start_command(message)
                case _:
                    self._ignore(message)

    def _ignore(self, message: ingest_pb2.CollectorMessage) -> None:
        """Pass over what only a later version of the contract says: it asks nothing that must be done."""
        if not self._has_ignored:
            self._has_ignored = True
            log.info("message_ignored", fields=unknown_fields(message), why="of a kind that this version does not know")

    def _start_command(self, message: ingest_pb2.CollectorMessage) -> None:
        async def carry_out() -> None:
            answer = await self._commands.carry_out(message)
            if answer is not None:
                self._answers.append(answer)
                self._changed.set()

        task = asyncio.create_task(carry_out())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, call: "_Call", welcome: ingest_pb2.Welcome) -> None:
        heartbeat_seconds = (welcome.heartbeat_interval_ms or 5000) / 1000
        said_at = time.monotonic()
        careful_until = said_at + CAREFUL_SECONDS if self._is_careful else 0.0
        while not self._draining:
            self._changed.clear()
            # Answers that are here now speak of rounds that are in the spool: those go first.
            answers = len(self._answers)
            for message in self._spool.unsent(welcome.in_flight_bytes_max):
                self._acknowledging.clear()
                await call.write(message)
                said_at = time.monotonic()
                if said_at < careful_until:
                    # No longer than it takes: networks that break leave such ends too, and a backlog behind them.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(CAREFUL_PAUSE_SECONDS):
                            await self._acknowledging.wait()
            for answer in [self._answers.popleft() for _ in range(min(answers, len(self._answers)))]:
                if self._spool.has_sent(_positions(answer)):
                    await call.write(answer)
                    said_at = time.monotonic()
                else:
                    self._answers.append(answer)
            self._progress.set()
            if self._changed.is_set():
                continue
            if self._closing and self._spool.is_empty:
                self._draining = True
                break
            try:
                async with asyncio.timeout(said_at + heartbeat_seconds - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                await call.write(ingest_pb2.AgentMessage(heartbeat=self._heartbeat()))
                said_at = time.monotonic()
        await call.done_writing()

    def _heartbeat(self) -> ingest_pb2.Heartbeat:
        return ingest_pb2.Heartbeat(
            time_ns=time.time_ns(),
            spool_bytes=self._spool.size_bytes,
            rounds_united=self._spool.united_round_count,
        )

    def _note(self, error: grpc.aio.AioRpcError) -> None:
        """Say why the stream ended; act on the reasons the contract names."""
        if error.code() is grpc.StatusCode.INTERNAL:
            self._is_careful = time.monotonic() - self._internal_at < CAREFUL_SECONDS
            self._internal_at = time.monotonic()
        else:
            self._is_careful = False
        info = error_info(error)
        reason = info.reason if info else ""
        if reason == "DEPOSED":
            message = (
                f"another agent has taken over host {self._hello.host_id!r} at collector {self._address}: "
                "run one agent a host, or give each a --host-id of its own"
            )
            raise Deposed(message) from error
        if info and reason in {"BATCH_CORRUPT", "ROUND_GAP"}:
            self._count_refusal(dict(info.metadata))
        if info and reason == "ROUND_TOO_LARGE":
            key = _key_in(dict(info.metadata))
            if key is not None:
                self._give_up(key, error.details() or reason)
        self._tell(f"{error.code().name.lower()}: {error.details()}")

    def _count_refusal(self, metadata: dict[str, str]) -> None:
        """Begin anew where the same incarnation was refused twice with no acknowledgement between."""
        key = _key_in(metadata)
        if key is not None and self._refused == key:
            self._spool.drop(key)
            self._commands.resynchronise([key])
        self._refused = key

    def _give_up(self, key: Key, why: str, retry_seconds: float = 0.0) -> None:
        """End what would be refused again however often it is sent, so that the others' rounds get through."""
        self._spool.give_up(key)
        self._commands.give_up(key, why, retry_seconds)
        self._progress.set()
        self._changed.set()

    def _tell(self, why: str) -> None:
        """Log once for each change of reason, not once for each attempt."""
        if why != self._told:
            self._told = why
            log.warning("collector_unreachable", collector=self._address, why=why, consequence="rounds are kept here")


def _key_in(metadata: dict[str, str]) -> Key | None:
    """Give the incarnation that a refusal names, if it names one."""
    try:
        pid, start = metadata["target"].rpartition("/")[2].split("@")
        return int(pid), int(start), int(metadata["incarnation"])
    except (KeyError, ValueError):
        return None


def _positions(answer: ingest_pb2.AgentMessage) -> Sequence[types_pb2.TargetPosition]:
    """Give the rounds that an answer speaks of."""
    if answer.HasField("barrier_reached"):
        return answer.barrier_reached.positions
    return [answer.command_result.position] if answer.HasField("command_result") else []


_Call = grpc.aio.StreamStreamCall[ingest_pb2.AgentMessage, ingest_pb2.CollectorMessage]


async def _raise_status(call: _Call) -> None:
    """Turn the end of a stream into the error it ended with."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        message = "the collector closed the stream"
        raise ConnectionError(message)
    raise grpc.aio.AioRpcError(
        code, await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
    )
