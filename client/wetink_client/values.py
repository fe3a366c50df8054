"""Values that go into calls and come out of them, apart from page sets: frozen, and free of protobuf.

What a field means is said in ``dirty.proto``; names and units are the same. What is absent there is None here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from wetink.names import NameMalformed, TargetName, check_host_id, parse_labels, parse_target
from wetink.v1 import dirty_pb2, types_pb2
from wetink_client.errors import BrokenAnswer, InvalidRequest, NotFound, Refused

NANOSECONDS_A_SECOND: Final = 1_000_000_000


class Backend(StrEnum):
    """What finds out which pages were written."""

    UNKNOWN = "unknown"
    WP_ASYNC = "wp-async"
    WP_SYNC = "wp-sync"
    SOFT_DIRTY = "soft-dirty"
    REPLAY = "replay"


class EndReason(StrEnum):
    """Why an incarnation ended."""

    UNKNOWN = "unknown"
    EXITED = "exited"
    EXEC = "exec"
    UNTRACKED = "untracked"
    LOST = "lost"
    FAILED = "failed"
    RESYNCHRONISED = "resynchronised"
    REFUSED = "refused"


class IncompleteReason(StrEnum):
    """Why a target's part of an answer is not complete."""

    UNKNOWN = "unknown"
    AGENT_DISCONNECTED = "agent-disconnected"
    BARRIER_TIMEOUT = "barrier-timeout"
    TARGET_ENDED = "target-ended"
    NO_ROUND = "no-round"
    NOT_FROZEN = "not-frozen"


class FreezeMethod(StrEnum):
    """What keeps a target from running."""

    UNKNOWN = "unknown"
    CGROUP_V2 = "cgroup-v2"
    CGROUP_V1 = "cgroup-v1"
    PTRACE = "ptrace"
    SIGNAL = "signal"
    FOUND_FROZEN = "found-frozen"


class Uncertainty(StrEnum):
    """How memory can change with no sign of it in the page tables of the process that maps it."""

    UNKNOWN = "unknown"
    SHARED = "shared"
    HUGE_PAGES = "huge-pages"
    REGISTERED_BUFFER = "registered-buffer"
    FILE = "file"
    DEVICE = "device"
    DIRECT_IO = "direct-io"


class Strictness(StrEnum):
    """What becomes of uncertain pages in an answer, which are reported with no sign of a write.

    Attributes:
        STRICT: They are written like all others.
        STRICT_WHEN_FROZEN: Strict for a target that is stopped, lenient for one that runs.
        LENIENT: They are not among the written: do not finish a migration on that.
    """

    STRICT = "strict"
    STRICT_WHEN_FROZEN = "strict-when-frozen"
    LENIENT = "lenient"


class Consistency(StrEnum):
    """How the sets of the targets of one answer fit together in time."""

    UNKNOWN = "unknown"
    NONE = "none"
    PER_PROCESS = "per-process"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Freeze:
    """How targets are to be frozen for a barrier. Without anything: until the last of them was harvested.

    Args:
        hold_seconds: How long they then stay frozen at most, up to 60: until ``thaw``, or until that time is over. Ask
            again by the same name and it begins anew.
        hold: What the hold is called; needed with ``hold_seconds``, 1 to 64 of ``[A-Za-z0-9._-]``. A target goes on
            when no hold is left on it.
        whole_cgroups: Whether a cgroup may be frozen that holds other processes beside the targets.
    """

    hold_seconds: float = 0.0
    hold: str = ""
    whole_cgroups: bool = False

    @classmethod
    def of(cls, freeze: "Freeze | bool") -> "Freeze | None":
        """Take one, or whether to freeze at all."""
        return freeze if isinstance(freeze, Freeze) else cls() if freeze else None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which targets a call means: those named, on a named host, in a named cgroup, or with all of some labels.

    Each target is ``HOST/PID@START``, or ``HOST/PID`` for the youngest process with that pid; each label is
    ``KEY=VALUE``. Hosts, cgroups and labels mean every target there that has not ended. Names have their form, or the
    value does not come to be.

    Raises:
        InvalidRequest: A name cannot be one, or a label's key is there with two values, which nothing can have.
    """

    targets: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check each name, so that a mistake is told before anything is sent."""
        try:
            for target in self.targets:
                parse_target(target)
            for host in self.hosts:
                check_host_id(host)
            labels = parse_labels(self.labels)
        except NameMalformed as error:
            raise InvalidRequest(str(error), "SELECTION_MALFORMED") from error
        for text in self.labels:
            key, _, value = text.partition("=")
            if value != labels[key]:
                message = f"label {key} is given twice, as {value!r} and {labels[key]!r}: a target has one value of it"
                raise InvalidRequest(message, "SELECTION_MALFORMED")

    def __bool__(self) -> bool:
        """Whether it names anything."""
        return bool(self.targets or self.hosts or self.cgroups or self.labels)

    @classmethod
    def of(cls, selection: "Selectable") -> "Selection":
        """Take a selection, one target's name, or the names of several."""
        if isinstance(selection, Selection):
            return selection
        return cls(targets=(selection,) if isinstance(selection, str) else tuple(selection))


Selectable: TypeAlias = str | Iterable[str] | Selection
"""What a call takes: one target's name, the names of several, or a ``Selection``."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host that has, or had, an agent."""

    host_id: str
    boot_id: str
    connected: bool
    last_seen_time_ns: int
    agent_version: str
    target_count: int
    spool_bytes: int
    rounds_united: int = 0
    """Rounds that the agent united since it started, because its spool was full."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a target is harvested, and what that costs.

    Args:
        interval_ms: From round to round, where no barrier comes between, in milliseconds.
        agent_share: Part of one processor that the agent spends on it: 0.01 is 1 %.
        target_share: Time that the target's threads lose to it, as a part of the time that passes; an estimate.
    """

    interval_ms: int
    agent_share: float
    target_share: float


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """One target, with its newest incarnation."""

    name: str
    host_id: str
    boot_id: str
    pid: int
    start_time_ticks: int
    incarnation: int
    round: int
    as_of_time_ns: int | None
    live: bool
    end_reason: EndReason | None
    end_message: str
    command: str
    cgroup: str
    page_size: int
    backend: Backend
    backend_reason: str
    populated_page_count: int
    last_written_page_count: int
    last_window_ns: int
    cautious_page_count: int
    scope: tuple[tuple[int, int], ...]
    """``(start_address, length_bytes)`` of the parts that are tracked. Empty means all of the address space."""
    pace: Pace | None
    """As of the last round since the collector started; None before that, and where nothing is harvested."""
    labels: Mapping[str, str] = field(hash=False)
    """What the process belongs to, in the order of keys: ``pod``, ``namespace``, ``container`` where they are known."""
    ancestors: tuple[int, ...] = ()
    """Process ids of its parent, of that one's parent and so on, as they were when tracking began."""

    @property
    def pages_per_second(self) -> float | None:
        """Written pages a second over the last committed round; None until there are two rounds."""
        if not self.last_window_ns:
            return None
        return self.last_written_page_count * NANOSECONDS_A_SECOND / self.last_window_ns


@dataclass(frozen=True, slots=True)
class TargetMapping:
    """One mapping of a target, or the part of it that something can change unseen.

    Attributes:
        start_address: Its first byte.
        length_bytes: A multiple of the page size.
        name: As ``/proc/PID/maps`` has it; empty for anonymous memory.
        shared: Whether it is MAP_SHARED.
        device: Of the object, as major and minor number; None for private anonymous memory.
        inode: Of the object; None for private anonymous memory.
        offset_bytes: Where in the object the range begins.
        protection: PROT_READ, PROT_WRITE and PROT_EXEC of mmap(2).
        uncertainty: How its content can change unseen; None where it cannot.
    """

    start_address: int
    length_bytes: int
    name: str
    shared: bool
    device: tuple[int, int] | None
    inode: int | None
    offset_bytes: int
    protection: int
    uncertainty: Uncertainty | None


@dataclass(frozen=True, slots=True)
class UnseenWriter:
    """Something that may write into a target's memory unseen, and of which nobody can tell where."""

    uncertainty: Uncertainty
    what: str


@dataclass(frozen=True, slots=True)
class TargetMappings:
    """What a target has mapped: with a name, shared, of a file, or uncertain.

    Attributes:
        name: The target's.
        incarnation: The stretch of tracking it is of.
        round: The last round that the target had then.
        mappings: In the order of their addresses. A registered buffer lies in the mapping that holds it.
        cut: Whether there are more than the contract allows to be told.
        unseen_writers: What may write unseen, it cannot be told where.
    """

    name: str
    incarnation: int
    round: int
    mappings: tuple[TargetMapping, ...]
    cut: bool
    unseen_writers: tuple[UnseenWriter, ...]


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """One target's part of an answer, without its pages."""

    name: str
    incarnation: int
    round: int
    as_of_time_ns: int | None
    complete: bool
    incomplete_reason: IncompleteReason | None
    incomplete_message: str
    end_reason: EndReason | None
    exact: bool
    frozen: bool
    written_page_count: int
    vanished_page_count: int
    populated_page_count: int
    page_size: int
    uncertain_page_count: int
    lenient: bool
    freeze_method: FreezeMethod | None = field(default=None, kw_only=True)
    """By what it was frozen, where the call asked for that; None where it was not."""
    frozen_ns: int = field(default=0, kw_only=True)
    """For how long it was then, until it went on or, where it is held, until its agent answered. In nanoseconds."""
    after_round: int = field(default=0, kw_only=True)
    """The round that the answer begins after: what lies between that and ``round`` is merged in it."""

    @property
    def as_of(self) -> datetime | None:
        """Writes before this are in the answer. None while no round is committed."""
        return moment(self.as_of_time_ns)


@dataclass(frozen=True, slots=True)
class BarrierResult:
    """How far each target has come.

    Attributes:
        cursor: "From now on": pass it to ``dirty`` or ``watch``.
        consistency: How the rounds reached fit together in time.
        targets: By name. Their page counts are 0.
    """

    cursor: str
    consistency: Consistency
    targets: Mapping[str, TargetStatus]

    @property
    def complete(self) -> bool:
        """Whether every target was reached, so that every write from before the call is known."""
        return all(status.complete for status in self.targets.values())


@dataclass(frozen=True, slots=True)
class Thawed:
    """What became of one target's hold.

    Attributes:
        name: The target.
        held: Whether the hold kept it frozen until now.
        message: Why its agent could not be asked; empty where it was. It goes on when the hold's time is over.
    """

    name: str
    held: bool
    message: str


@dataclass(frozen=True, slots=True)
class DirtyCounts:
    """How much is dirty since a cursor, without the pages.

    Attributes:
        cursor: Where this answer ends; opaque. Pass it to the next call.
        complete: Whether every target's part is complete. Where it is not, ``targets`` say why.
        exact: Whether no page is there only because old rounds were merged. False never means that pages are missing.
        consistency: How the parts fit together in time.
        as_of_time_ns: The earliest as-of of the parts, in nanoseconds since the Unix epoch. None while one has none.
        targets: Each target of the selection by its full name, in the order of names.
    """

    cursor: str
    complete: bool
    exact: bool
    consistency: Consistency
    as_of_time_ns: int | None
    targets: Mapping[str, TargetStatus]

    @property
    def as_of(self) -> datetime | None:
        """Writes before this are in the answer. None while a target has no round."""
        return moment(self.as_of_time_ns)


def moment(time_ns: int | None) -> datetime | None:
    """Give a count of nanoseconds since the Unix epoch as a time in UTC, cut to microseconds."""
    return None if time_ns is None else datetime.fromtimestamp(time_ns / NANOSECONDS_A_SECOND, UTC)


def host_of(message: dirty_pb2.Host) -> Host:
    """Read a host."""
    return Host(
        host_id=message.host_id,
        boot_id=message.boot_id,
        connected=message.connected,
        last_seen_time_ns=message.last_seen_time_ns,
        agent_version=message.agent_version,
        target_count=message.target_count,
        spool_bytes=message.spool_bytes,
        rounds_united=message.rounds_united,
    )


def target_of(message: dirty_pb2.TargetInfo) -> TargetInfo:
    """Read a target."""
    return TargetInfo(
        name=message.name,
        host_id=message.target.host_id,
        boot_id=message.target.boot_id,
        pid=message.target.pid,
        start_time_ticks=message.target.start_time_ticks,
        incarnation=message.incarnation,
        round=message.round,
        as_of_time_ns=message.as_of_time_ns or None,
        live=message.live,
        end_reason=end_reason_of(message.end_reason),
        end_message=message.end_message,
        command=message.command,
        cgroup=message.cgroup,
        page_size=message.page_size,
        backend=_BACKENDS.get(message.backend, Backend.UNKNOWN),
        backend_reason=message.backend_reason,
        populated_page_count=message.populated_page_count,
        last_written_page_count=message.last_written_page_count,
        last_window_ns=message.last_window_ns,
        cautious_page_count=message.cautious_page_count,
        scope=tuple((part.start_address, part.size_bytes) for part in message.scope),
        pace=Pace(message.pace.interval_ms, message.pace.agent_share, message.pace.target_share)
        if message.HasField("pace")
        else None,
        labels=dict(sorted(message.labels.items())),
        ancestors=tuple(message.ancestors),
    )


def tree_of(targets: Iterable[TargetInfo], root: TargetName) -> Selection:
    """Select those that are a process, or descend from it, and may well live.

    Args:
        targets: Those of its host.
        root: The process. With a start time it must itself be a target: ancestors are told by their pids alone.

    Raises:
        NotFound: None is.
    """
    living = [
        target
        for target in targets
        if target.host_id == root.host_id and (target.end_reason is None or target.end_reason in _MAY_LIVE)
    ]
    is_there = root.start_time_ticks is None or any(
        (target.pid, target.start_time_ticks) == (root.pid, root.start_time_ticks) for target in living
    )
    found = tuple(target.name for target in living if root.pid in (target.pid, *target.ancestors))
    if not found or not is_there:
        message = f"no target is process {root} or descends from it: `wetink targets` lists those that are tracked"
        raise NotFound(message, "TARGET_UNKNOWN")
    return Selection(found)


_MAY_LIVE: Final = (EndReason.REFUSED, EndReason.FAILED, EndReason.LOST)
"""Why tracking ends of processes that may well write on."""


def mappings_of(message: dirty_pb2.ListMappingsResponse) -> TargetMappings:
    """Read what a target has mapped."""
    return TargetMappings(
        name=message.name,
        incarnation=message.incarnation,
        round=message.round,
        mappings=tuple(_mapping_of(mapping) for mapping in message.mappings),
        cut=message.cut,
        unseen_writers=tuple(
            UnseenWriter(_UNCERTAINTIES.get(writer.uncertainty, Uncertainty.UNKNOWN), writer.what)
            for writer in message.unseen_writers
        ),
    )


def _mapping_of(message: types_pb2.Mapping) -> TargetMapping:
    is_object = bool(message.device or message.inode)
    return TargetMapping(
        start_address=message.range.start_address,
        length_bytes=message.range.size_bytes,
        name=message.name,
        shared=message.shared,
        device=divmod(message.device, 1 << 32) if is_object else None,
        inode=message.inode if is_object else None,
        offset_bytes=message.offset_bytes,
        protection=message.protection,
        uncertainty=_UNCERTAINTIES.get(message.uncertainty, Uncertainty.UNKNOWN) if message.uncertainty else None,
    )


def end_reason_of(number: int) -> EndReason | None:
    """Read why an incarnation ended; None where it has not."""
    return _END_REASONS.get(number, EndReason.UNKNOWN) if number else None


def incomplete_reason_of(number: int) -> IncompleteReason:
    """Read why an answer is not complete."""
    return _INCOMPLETE_REASONS.get(number, IncompleteReason.UNKNOWN)


def status_of(message: dirty_pb2.TargetStatus) -> TargetStatus:
    """Read one target's part of an answer."""
    reason = incomplete_reason_of(message.incomplete_reason)
    return TargetStatus(
        name=message.name,
        incarnation=message.incarnation,
        round=message.round,
        as_of_time_ns=message.as_of_time_ns or None,
        complete=message.complete,
        incomplete_reason=None if message.complete else reason,
        incomplete_message=message.incomplete_message,
        end_reason=end_reason_of(message.end_reason),
        exact=message.exact,
        frozen=message.frozen,
        written_page_count=message.written_page_count,
        vanished_page_count=message.vanished_page_count,
        populated_page_count=message.populated_page_count,
        page_size=message.page_size,
        uncertain_page_count=message.uncertain_page_count,
        lenient=message.lenient,
        freeze_method=_FREEZE_METHODS.get(message.freeze_method, FreezeMethod.UNKNOWN)
        if message.freeze_method
        else None,
        frozen_ns=message.frozen_ns,
        after_round=message.after_round,
    )


def thawed_of(message: dirty_pb2.ThawResponse) -> Mapping[str, "Thawed"]:
    """Read what became of a hold."""
    return MappingProxyType({one.name: Thawed(one.name, one.held, one.message) for one in message.targets})


def check_frozen(statuses: Iterable[TargetStatus], freeze: Freeze | None, address: str) -> None:
    """Accept an answer to a call that asked to freeze.

    Raises:
        Refused: The collector has not understood that, so that the targets ran.
    """
    if freeze and (names := [one.name for one in statuses if one.complete and not one.freeze_method]):
        message = f"collector {address} is older than freezing, and {names[0]} ran: upgrade it, or ask without freezing"
        raise Refused(message, "NOT_FROZEN")


def consistency_of(number: int) -> Consistency:
    """Read how parts fit together in time."""
    return _CONSISTENCIES.get(number, Consistency.UNKNOWN)


def barrier_of(message: dirty_pb2.BarrierResponse) -> BarrierResult:
    """Read the answer to a barrier."""
    return BarrierResult(
        cursor=message.cursor,
        consistency=_CONSISTENCIES.get(message.consistency, Consistency.UNKNOWN),
        targets=MappingProxyType({status.name: status_of(status) for status in message.targets}),
    )


def counts_of(summary: dirty_pb2.DirtySummary) -> DirtyCounts:
    """Read the end of an answer.

    Raises:
        BrokenAnswer: It names a target twice, or says that it is complete and that one of its targets is not.
    """
    if summary.complete and not all(status.complete for status in summary.targets):
        message = "answer says that it is complete and that one of its targets is not"
        raise BrokenAnswer(message)
    targets = {status.name: status_of(status) for status in summary.targets}
    if len(targets) != len(summary.targets):
        message = "answer names a target twice"
        raise BrokenAnswer(message)
    return DirtyCounts(
        cursor=summary.cursor,
        complete=summary.complete,
        exact=summary.exact,
        consistency=_CONSISTENCIES.get(summary.consistency, Consistency.UNKNOWN),
        as_of_time_ns=summary.as_of_time_ns or None,
        targets=MappingProxyType(targets),
    )


def all_ended(selection: Selection, answer: DirtyCounts) -> bool:
    """Whether nothing can follow an answer of a watch: its targets are named, and each has exited or was untracked.

    One that ended otherwise may come back, and the collector says how to go on.
    """
    is_by_names = not (selection.hosts or selection.cgroups or selection.labels)
    reasons = {status.end_reason for status in answer.targets.values()}
    return is_by_names and bool(reasons) and reasons <= {EndReason.EXITED, EndReason.UNTRACKED}


def watched_counts_of(part: dirty_pb2.WatchResponse) -> DirtyCounts:
    """Read one answer of a watch without pages.

    Raises:
        BrokenAnswer: It has pages all the same, or its summary contradicts itself.
    """
    if part.WhichOneof("part") != "summary":
        message = "answer has pages, though only counts were asked for"
        raise BrokenAnswer(message)
    return counts_of(part.summary)


_Named = TypeVar("_Named", bound=StrEnum)


def _by_number(kind: type[_Named], numbers: Iterable[tuple[str, int]], prefix: str) -> Mapping[int, _Named]:
    """Pair the contract's numbers with the members of the same name. Its UNSPECIFIED, which is 0, has none."""
    return {number: kind[name.removeprefix(prefix)] for name, number in numbers if number}


_BACKENDS: Final = _by_number(Backend, types_pb2.Backend.items(), "BACKEND_")
_END_REASONS: Final = _by_number(EndReason, types_pb2.EndReason.items(), "END_REASON_")
_INCOMPLETE_REASONS: Final = _by_number(IncompleteReason, types_pb2.IncompleteReason.items(), "INCOMPLETE_REASON_")
_FREEZE_METHODS: Final = _by_number(FreezeMethod, types_pb2.FreezeMethod.items(), "FREEZE_METHOD_")
_CONSISTENCIES: Final = _by_number(Consistency, types_pb2.Consistency.items(), "CONSISTENCY_")
_UNCERTAINTIES: Final = _by_number(Uncertainty, types_pb2.Uncertainty.items(), "UNCERTAINTY_")
