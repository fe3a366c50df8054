"""An agent without a kernel, on the plain stub: it says what a test tells it to, in the order of the contract."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import grpc
from google.rpc import code_pb2
from pyroaring import BitMap64

from wetink.pages import PAGE_SIZE, encode
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.ingest_pb2_grpc import IngestServiceStub

PATIENCE_SECONDS: Final = 60.0
"""How long it waits for anything before the test fails."""

HEARTBEAT_SECONDS: Final = 5.0
"""After so long without a word it gives a sign, as the contract asks: on a busy machine a test may take its time."""


@dataclass
class Tracked:
    """One incarnation, as this agent knows it."""

    target: types_pb2.Target
    incarnation: int
    round: int = 0
    written: BitMap64 = field(default_factory=BitMap64)
    vanished: BitMap64 = field(default_factory=BitMap64)
    frozen: bool = False

    @property
    def name(self) -> str:
        """The printed name of the target."""
        return f"{self.target.host_id}/{self.target.pid}@{self.target.start_time_ticks}"

    @property
    def position(self) -> types_pb2.TargetPosition:
        """How far it has come."""
        return types_pb2.TargetPosition(
            target=self.target, incarnation=self.incarnation, round=self.round, frozen=self.frozen
        )


class RawAgent:
    """One host's agent. A barrier is answered with a round of what ``write`` and ``vanish`` have gathered since.

    Attributes:
        answers_barriers: Whether it does. Otherwise it is silent, and lives.
        track_code: What it answers to Track, a ``google.rpc.Code``; with 0 it begins to track.
        track_message: The sentence beside it.
    """

    def __init__(self, address: str, host_id: str, boot_id: str = "boot-1") -> None:
        """Take the collector's address and this host's name."""
        self.host_id = host_id
        self.answers_barriers = True
        self.track_code = int(code_pb2.OK)
        self.track_message = ""
        self._boot_id = boot_id
        self._address = address
        self._tracked: dict[int, Tracked] = {}
        self._durable: dict[tuple[int, int], int] = {}
        self._changed = threading.Condition(threading.RLock())
        self._said: queue.SimpleQueue[ingest_pb2.AgentMessage | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Open the stream and wait for the welcome."""
        self._channel = grpc.insecure_channel(self._address)
        self._stream = IngestServiceStub(self._channel).Stream(self._speech())
        self._say(
            hello=ingest_pb2.Hello(
                protocol_version=1,
                host_id=self.host_id,
                boot_id=self._boot_id,
                agent_instance=f"raw-{time.monotonic_ns()}",
                agent_version="raw",
            )
        )
        if next(self._stream).WhichOneof("message") != "welcome":
            message = "the collector did not begin with Welcome"
            raise AssertionError(message)
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Half-close, and wait until the collector has closed."""
        self._said.put(None)
        self._listener.join(PATIENCE_SECONDS)
        self._channel.close()

    def start(
        self,
        pid: int,
        written: Iterable[int] = (),
        *,
        start_time_ticks: int = 100,
        incarnation: int = 1,
        cgroup: str = "/test",
    ) -> Tracked:
        """Begin an incarnation, and deliver its first round."""
        tracked = self._start(pid, start_time_ticks, incarnation, cgroup)
        self.round(tracked, written)
        return tracked

    def round(self, tracked: Tracked, written: Iterable[int] = (), vanished: Iterable[int] = ()) -> None:
        """Deliver a round, and wait until it is durable."""
        with self._changed:
            tracked.written |= BitMap64(written)
            tracked.vanished |= BitMap64(vanished)
            self._harvest(tracked)
            key = (tracked.target.pid, tracked.incarnation)
            if not self._changed.wait_for(lambda: self._durable.get(key, 0) >= tracked.round, PATIENCE_SECONDS):
                message = f"round {tracked.round} of {tracked.name} was not acknowledged"
                raise AssertionError(message)

    def tell_mappings(
        self,
        tracked: Tracked,
        *mappings: types_pb2.Mapping,
        writers: Iterable[types_pb2.UnseenWriter] = (),
    ) -> None:
        """Say what a target has mapped; it is known once the next round is durable."""
        self._say(
            target_mappings=ingest_pb2.TargetMappings(
                target=tracked.target,
                incarnation=tracked.incarnation,
                round=tracked.round,
                mappings=mappings,
                unseen_writers=writers,
            )
        )

    def write(self, tracked: Tracked, pages: Iterable[int]) -> None:
        """Let pages be written; the next round has them."""
        with self._changed:
            tracked.written |= BitMap64(pages)

    def end(self, tracked: Tracked, reason: types_pb2.EndReason.ValueType, text: str = "") -> None:
        """End an incarnation."""
        with self._changed:
            self._tracked.pop(tracked.target.pid, None)
        self._say(
            target_ended=ingest_pb2.TargetEnded(
                target=tracked.target,
                incarnation=tracked.incarnation,
                reason=reason,
                time_ns=time.time_ns(),
                message=text,
            )
        )

    def _start(self, pid: int, start_time_ticks: int, incarnation: int, cgroup: str) -> Tracked:
        target = types_pb2.Target(
            host_id=self.host_id, boot_id=self._boot_id, pid=pid, start_time_ticks=start_time_ticks
        )
        tracked = Tracked(target, incarnation)
        with self._changed:
            self._tracked[pid] = tracked
        self._say(
            target_started=ingest_pb2.TargetStarted(
                target=target,
                incarnation=incarnation,
                time_ns=time.time_ns(),
                command="raw",
                cgroup=cgroup,
                page_size=PAGE_SIZE,
                backend=types_pb2.BACKEND_REPLAY,
                backend_reason="there is no kernel",
            )
        )
        return tracked

    def _harvest(self, tracked: Tracked) -> None:
        """Say one round of what was gathered."""
        tracked.round += 1
        now_ns = time.time_ns()
        self._say(
            write_protect_batch=ingest_pb2.WriteProtectBatch(
                target=tracked.target,
                incarnation=tracked.incarnation,
                first_round=tracked.round,
                last_round=tracked.round,
                part_count=1,
                first_time_ns=now_ns,
                last_time_ns=now_ns,
                backend=types_pb2.BACKEND_REPLAY,
                frozen=tracked.frozen,
                written=encode(tracked.written),
                vanished=encode(tracked.vanished),
                populated_page_count=len(tracked.written),
            )
        )
        tracked.written, tracked.vanished = BitMap64(), BitMap64()

    def _speech(self) -> Iterator[ingest_pb2.AgentMessage]:
        """Give what is to be said, until the end."""
        while True:
            try:
                message = self._said.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                message = ingest_pb2.AgentMessage(heartbeat=ingest_pb2.Heartbeat(time_ns=time.time_ns()))
            if message is None:
                return
            yield message

    def _listen(self) -> None:
        for message in self._stream:
            match message.WhichOneof("message"):
                case "ack":
                    with self._changed:
                        for position in message.ack.positions:
                            self._durable[position.target.pid, position.incarnation] = position.round
                        self._changed.notify_all()
                case "barrier" if self.answers_barriers:
                    self._reach(message.barrier)
                case "track" if message.track.request_id:
                    self._track(message.track)
                case "untrack":
                    self._untrack(message.untrack)

    def _reach(self, barrier: ingest_pb2.Barrier) -> None:
        with self._changed:
            tracked = [self._tracked[target.pid] for target in barrier.targets if target.pid in self._tracked]
            for one in tracked:
                self._harvest(one)
            self._say(
                barrier_reached=ingest_pb2.BarrierReached(
                    request_id=barrier.request_id, positions=[one.position for one in tracked]
                )
            )

    def _track(self, track: ingest_pb2.Track) -> None:
        result = ingest_pb2.CommandResult(request_id=track.request_id, code=self.track_code, message=self.track_message)
        if not self.track_code:
            with self._changed:
                tracked = self._tracked.get(track.pid) or self._start(track.pid, 100, 1, "/test")
                result.position.CopyFrom(tracked.position)
        self._say(command_result=result)

    def _untrack(self, untrack: ingest_pb2.Untrack) -> None:
        tracked = self._tracked[untrack.target.pid]
        self.end(tracked, types_pb2.END_REASON_UNTRACKED)
        self._say(command_result=ingest_pb2.CommandResult(request_id=untrack.request_id, position=tracked.position))

    def _say(self, **message: object) -> None:
        self._said.put(ingest_pb2.AgentMessage(**message))  # type: ignore[arg-type]
