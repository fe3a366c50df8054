"""An agent that says exactly what a test tells it to, right or wrong, on the plain stub; and the other side's stub."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, cast

import grpc
from pyroaring import BitMap64

from wetink.pages import decode, encode
from wetink.status import error_info
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2, session_pb2, types_pb2
from wetink.v1.dirty_pb2_grpc import DirtyServiceStub
from wetink.v1.ingest_pb2_grpc import IngestServiceStub

PATIENCE_SECONDS: Final = 50.0
"""How long anything may take before a test fails: less than a barrier may take that is not reached."""

T0_NS: Final = 1_700_000_000_000_000_000
"""When everything in these tests begins."""


def target(
    pid: int = 1, *, host_id: str = "host-1", start_time_ticks: int = 100, boot_id: str = "boot-1"
) -> types_pb2.Target:
    """Give a target."""
    return types_pb2.Target(host_id=host_id, boot_id=boot_id, pid=pid, start_time_ticks=start_time_ticks)


def position(of: types_pb2.Target, round_: int = 0, *, incarnation: int = 1) -> types_pb2.TargetPosition:
    """Give a position."""
    return types_pb2.TargetPosition(target=of, incarnation=incarnation, round=round_)


def durable(of: types_pb2.Target, round_: int) -> types_pb2.TargetPosition:
    """Give the position of a round that ``batch`` made, as Welcome tells it."""
    told = position(of, round_)
    told.last_time_ns = T0_NS + round_ * 10**9
    return told


def start(
    of: types_pb2.Target, *, incarnation: int = 1, cgroup: str = "/test", labels: Mapping[str, str] | None = None
) -> ingest_pb2.TargetStarted:
    """Give the start of an incarnation."""
    return ingest_pb2.TargetStarted(
        target=of,
        incarnation=incarnation,
        time_ns=T0_NS + incarnation,
        command="a command",
        cgroup=cgroup,
        page_size=4096,
        backend=types_pb2.BACKEND_REPLAY,
        backend_reason="there is no kernel",
        labels=labels,
    )


def batch(
    of: types_pb2.Target,
    first: int,
    last: int | None = None,
    written: Iterable[int] = (),
    vanished: Iterable[int] = (),
    *,
    incarnation: int = 1,
    part: int = 0,
    part_count: int = 1,
    frozen: bool = False,
) -> ingest_pb2.WriteProtectBatch:
    """Give a batch; its last harvest began as many seconds after the beginning as its last round says."""
    last = last or first
    return ingest_pb2.WriteProtectBatch(
        target=of,
        incarnation=incarnation,
        first_round=first,
        last_round=last,
        part=part,
        part_count=part_count,
        first_time_ns=T0_NS + first * 10**9,
        last_time_ns=T0_NS + last * 10**9,
        backend=types_pb2.BACKEND_REPLAY,
        frozen=frozen,
        written=encode(BitMap64(written)),
        vanished=encode(BitMap64(vanished)),
        populated_page_count=1000 + last,
    )


def channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, *options: tuple[str, int]
) -> grpc.Channel:
    """Make a connection that nobody else has; without credentials in the clear."""
    own = (("grpc.use_local_subchannel_pool", 1), *options)
    return grpc.secure_channel(address, credentials, own) if credentials else grpc.insecure_channel(address, own)


class Agent:
    """One stream. What the collector says waits until a test asks for it."""

    def __init__(
        self,
        address: str,
        host_id: str = "host-1",
        boot_id: str = "boot-1",
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Take the collector's address and the host; without credentials it speaks in the clear."""
        self._address = address
        self._credentials = credentials
        self._hello = ingest_pb2.Hello(
            protocol_version=1, host_id=host_id, boot_id=boot_id, agent_instance="wire", agent_version="1.2.3"
        )
        self._said: queue.SimpleQueue[ingest_pb2.AgentMessage | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Open the stream, and say nothing yet."""
        self._channel = channel(self._address, self._credentials)
        self.call = IngestServiceStub(self._channel).Stream(iter(self._said.get, None), timeout=PATIENCE_SECONDS * 3)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the stream, whatever state it is in."""
        self._said.put(None)
        self.call.cancel()
        self._channel.close()

    def hello(self, *positions: types_pb2.TargetPosition, **fields: object) -> ingest_pb2.Welcome:
        """Say Hello and give the Welcome."""
        self._hello.positions.extend(positions)
        for name, value in fields.items():
            setattr(self._hello, name, value)
        self.say(self._hello)
        return self.hear("welcome").welcome

    def say(
        self,
        *messages: ingest_pb2.Hello
        | ingest_pb2.TargetStarted
        | ingest_pb2.WriteProtectBatch
        | ingest_pb2.TargetEnded
        | ingest_pb2.BarrierReached
        | ingest_pb2.CommandResult
        | ingest_pb2.Heartbeat
        | ingest_pb2.TargetMappings
        | ingest_pb2.Thawed,
    ) -> None:
        """Say things, in order."""
        names = {one.message_type: one.name for one in ingest_pb2.AgentMessage.DESCRIPTOR.fields}
        for message in messages:
            said = ingest_pb2.AgentMessage()
            getattr(said, names[message.DESCRIPTOR]).CopyFrom(message)
            self._said.put(said)

    def half_close(self) -> None:
        """Say that nothing more comes."""
        self._said.put(None)

    def hear(self, kind: str) -> ingest_pb2.CollectorMessage:
        """Give the next thing the collector says; it must be of a kind. Acks are passed over where another is due."""
        message = next(self.call)
        while kind != "ack" and message.WhichOneof("message") == "ack":
            message = next(self.call)
        assert message.WhichOneof("message") == kind, message
        return message

    def acknowledged(self, of: types_pb2.Target, round_: int, *, incarnation: int = 1) -> None:
        """Wait until a round is acknowledged; the collector may say nothing else meanwhile."""
        while True:
            for one in self.hear("ack").ack.positions:
                if one.target == of and one.incarnation == incarnation and one.round >= round_:
                    return

    def deliver(
        self,
        of: types_pb2.Target,
        *rounds: Iterable[int],
        cgroup: str = "/test",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Start a target and deliver its first rounds, each a set of written pages, until they are durable."""
        self.say(start(of, cgroup=cgroup, labels=labels))
        for number, written in enumerate(rounds, 1):
            self.say(batch(of, number, written=written))
        if rounds:
            self.acknowledged(of, len(rounds))

    def harvest(self, asked: ingest_pb2.Barrier, *batches: ingest_pb2.WriteProtectBatch) -> None:
        """Answer a barrier with batches."""
        self.say(*batches)
        reached = [position(one.target, one.last_round, incarnation=one.incarnation) for one in batches]
        self.say(ingest_pb2.BarrierReached(request_id=asked.request_id, positions=reached))

    def error(self) -> tuple[grpc.StatusCode, str, dict[str, str]]:
        """Wait until the stream ends with an error; give its status, reason and metadata."""
        with refused() as refusal:
            for _ in self.call:
                pass
        return refusal.code, refusal.reason, refusal.metadata

    def end(self) -> list[ingest_pb2.CollectorMessage]:
        """Half-close, and give what the collector still says before it closes too."""
        self.half_close()
        rest = list(self.call)
        assert self.call.code() == grpc.StatusCode.OK
        return rest


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Do something on a thread while the body waits for it."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 (told to the test, on its own thread)
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


@dataclass
class Refused:
    """How a call failed."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@contextmanager
def refused(code: grpc.StatusCode | None = None, reason: str | None = None) -> Iterator[Refused]:
    """Expect the body to fail with a status, and with a reason of ours."""
    refusal = Refused()
    try:
        yield refusal
    except grpc.RpcError as error:
        call = cast("grpc.Call", error)  # every error of a stub is one; the stubs' types do not say so
        info = error_info(call)
        refusal.code = call.code()
        refusal.message = call.details() or ""
        refusal.reason = info.reason if info else ""
        refusal.metadata = dict(info.metadata) if info else {}
    assert refusal.code != grpc.StatusCode.OK, "the call succeeded"
    assert code in (None, refusal.code), refusal
    assert reason in (None, refusal.reason), refusal


@dataclass
class Answer:
    """One answer of GetDirty or Watch."""

    summary: pb.DirtySummary = field(default_factory=pb.DirtySummary)
    written: dict[str, set[int]] = field(default_factory=dict)
    vanished: dict[str, set[int]] = field(default_factory=dict)
    message_count: int = 0

    def add(self, pages: pb.DirtyPages) -> None:
        """Take some pages; no page may come twice."""
        for sets, message in ((self.written, pages.written), (self.vanished, pages.vanished)):
            some, before = set(decode(message)), sets.get(pages.name, set())
            assert before.isdisjoint(some)
            if some:
                sets[pages.name] = before | some
        self.message_count += 1


class Reader:
    """An orchestrator on the plain stub."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        """Connect. Without the probe a stream that is not read holds 64 KiB and not 4 MiB."""
        self.channel = channel(address, credentials, ("grpc.http2.bdp_probe", 0))
        self.stub = DirtyServiceStub(self.channel)

    def dirty(
        self,
        *targets: str,
        hosts: Sequence[str] = (),
        cgroups: Sequence[str] = (),
        cursor: str = "",
        barrier: bool = False,
        timeout_ms: int = 0,
        freeze: types_pb2.Freeze | None = None,
    ) -> Answer:
        """Ask for dirty pages."""
        request = pb.GetDirtyRequest(
            selection=pb.Selection(targets=targets, hosts=hosts, cgroups=cgroups),
            cursor=cursor,
            barrier=barrier,
            barrier_timeout_ms=timeout_ms,
            freeze=freeze,
        )
        (answer,) = answers(self.stub.GetDirty(request, timeout=PATIENCE_SECONDS))
        return answer

    def pages(self, target: str) -> BitMap64:
        """Give all pages of a target: of very many, a set of Python's takes longer than to ask for them."""
        pages = BitMap64()
        request = pb.GetDirtyRequest(selection=pb.Selection(targets=[target]))
        for part in self.stub.GetDirty(request, timeout=PATIENCE_SECONDS):
            if part.WhichOneof("part") == "pages":
                pages |= decode(part.pages.written)
        return pages

    def barrier(
        self, *targets: str, hosts: Sequence[str] = (), timeout_ms: int = 0, freeze: types_pb2.Freeze | None = None
    ) -> pb.BarrierResponse:
        """Ask for a barrier."""
        selection = pb.Selection(targets=targets, hosts=hosts)
        request = pb.BarrierRequest(selection=selection, timeout_ms=timeout_ms, freeze=freeze)
        return self.stub.Barrier(request, timeout=PATIENCE_SECONDS)

    def targets(self, *names: str, hosts: Sequence[str] = (), cgroups: Sequence[str] = ()) -> list[pb.TargetInfo]:
        """List targets."""
        request = pb.ListTargetsRequest(selection=pb.Selection(targets=names, hosts=hosts, cgroups=cgroups))
        return list(self.stub.ListTargets(request, timeout=PATIENCE_SECONDS).targets)

    def hosts(self) -> list[pb.Host]:
        """List hosts."""
        return list(self.stub.ListHosts(pb.ListHostsRequest(), timeout=PATIENCE_SECONDS).hosts)

    def target(self, name: str) -> pb.TargetInfo:
        """Give one target."""
        (info,) = self.targets(name)
        return info


def answers(
    parts: Iterable[pb.GetDirtyResponse] | Iterable[pb.WatchResponse] | Iterable[session_pb2.GetRoundResponse],
) -> Iterator[Answer]:
    """Put the parts of answers together; each ends with its summary."""
    answer = Answer()
    for part in parts:
        if part.WhichOneof("part") == "pages":
            answer.add(part.pages)
            continue
        answer.summary = part.summary
        yield answer
        answer = Answer()
    assert not answer.message_count, "a stream ended without a summary"
