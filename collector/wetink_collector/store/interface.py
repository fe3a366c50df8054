"""The interface of a store: what is written, what is read back, and how it fails.

A store keeps, of each target, the newest incarnation only: no cursor of an older one can be answered. It knows the
rules of the round log, but not those of delivery; whoever writes has checked what agents said.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pyroaring import BitMap64

from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.types_pb2 import EndReason, EventColumns, Pace
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import Block, RoundPages


class StoreFailed(Exception):
    """The store could not read or write: full disk, input or output error. The sentence says which."""


class StoreUnusable(Exception):
    """The store cannot be opened at all. The sentence says why, and what to do."""


class RecordDamaged(Exception):
    """A block is not what was written. Nothing of its incarnation can be answered any more."""

    def __init__(self, incarnation: IncarnationKey, reason: str) -> None:
        """Keep whose record it is."""
        super().__init__(f"the collector's record of {incarnation.target} is damaged: {reason}")
        self.incarnation = incarnation


@dataclass(frozen=True, slots=True)
class HostSeen:
    """An agent has opened a stream, or closed it."""

    host_id: str
    boot_id: str
    agent_version: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class HostForgotten:
    """Nothing is kept of a host any more, nor which of its processes are wanted, where it has not been seen since.

    ``time_ns`` is that of its last HostSeen: its agent may come back while this is on its way.
    """

    host_id: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class IncarnationStarted:
    """An incarnation takes the place of whatever is kept of its target, even of itself."""

    incarnation: IncarnationKey
    started: TargetStarted


@dataclass(frozen=True, slots=True)
class RoundsAppended:
    """A batch goes to the end of its incarnation's log. The sets are in the encoding of ``PageSet.roaring64``.

    ``events`` and ``pace`` are not for the store: they are kept in memory, once the rounds are durable.
    """

    incarnation: IncarnationKey
    block: Block
    written: bytes
    vanished: bytes
    events: tuple[EventColumns, ...] = ()
    pace: Pace | None = None
    uncertain: bytes = b""


@dataclass(frozen=True, slots=True)
class IncarnationEnded:
    """An incarnation has ended. Its log stays, unless nothing of it may be answered any more."""

    incarnation: IncarnationKey
    reason: EndReason.ValueType
    time_ns: int
    message: str
    rounds_dropped: bool = False

    @property
    def reason_name(self) -> str:
        """The reason in a word; "unknown" where it is one of a later version of the contract."""
        known = EndReason.DESCRIPTOR.values_by_number.get(self.reason)
        return known.name.removeprefix("END_REASON_").lower() if known else "unknown"


@dataclass(frozen=True, slots=True)
class RoundsExpired:
    """No cursor of a living incarnation before a round needs an answer any more: ``maintain`` makes these rounds its
    base.

    That they are to go is not kept: it is said again after ``recover`` and after a restart. That they have gone is.
    """

    incarnation: IncarnationKey
    last_round: int


@dataclass(frozen=True, slots=True)
class TargetForgotten:
    """All that is kept of a target goes, where that is an incarnation that has ended.

    Who decides it does not know what is on its way: where another incarnation has begun meanwhile, or this one afresh,
    it changes nothing. ``unwanted`` says that nobody wants the process tracked any more either.
    """

    incarnation: IncarnationKey
    unwanted: bool = False


@dataclass(frozen=True, slots=True)
class TargetWanted:
    """An orchestrator wants a process tracked, whatever restarts."""

    target: TargetKey


@dataclass(frozen=True, slots=True)
class TargetUnwanted:
    """Nobody does any more."""

    target: TargetKey


@dataclass(frozen=True, slots=True)
class SessionKept:
    """A session of an orchestrator, in the place of what is kept of it. ``data`` means nothing to a store."""

    owner: str
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SessionForgotten:
    """Nobody asks for a session any more."""

    owner: str
    name: str


Change = (
    HostSeen
    | HostForgotten
    | IncarnationStarted
    | RoundsAppended
    | IncarnationEnded
    | RoundsExpired
    | TargetForgotten
    | TargetWanted
    | TargetUnwanted
    | SessionKept
    | SessionForgotten
)
"""One thing to be written."""


def host_of(change: Change) -> str:
    """Say which host a change is about; empty where it is about none. What is about one is written in its order."""
    match change:
        case HostSeen() | HostForgotten():
            return change.host_id
        case IncarnationStarted() | RoundsAppended() | IncarnationEnded() | RoundsExpired() | TargetForgotten():
            return change.incarnation.target.host_id
        case TargetWanted() | TargetUnwanted():
            return change.target.host_id
        case SessionKept() | SessionForgotten():
            return ""


@dataclass(frozen=True, slots=True)
class StoredIncarnation:
    """What a store knows of an incarnation when it is opened. The blocks are the whole log, oldest first."""

    incarnation: IncarnationKey
    started: TargetStarted
    blocks: Sequence[Block]
    ended: IncarnationEnded | None


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything in a store but the pages."""

    hosts: Sequence[HostSeen]
    incarnations: Sequence[StoredIncarnation]
    wanted: Sequence[TargetKey]
    sessions: Sequence[SessionKept] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """How much room a store takes.

    ``size_bytes`` is all of it, ``block_bytes`` what the page sets of each log take, block by block, oldest first.
    ``shrinking`` says that ``maintain`` is still to free some of it.
    """

    size_bytes: int
    block_bytes: Mapping[IncarnationKey, Sequence[tuple[Block, int]]]
    shrinking: bool


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block with its pages."""

    block: Block
    pages: RoundPages


Ends = Callable[[IncarnationKey], Collection[int]]
"""Gives the rounds of an incarnation after which readers go on."""


def nowhere(_: IncarnationKey) -> Collection[int]:
    """Give none: nobody reads."""
    return ()


class Store(Protocol):
    """Keeps rounds. ``read`` may be called from any thread at any time; everything else from one thread at a time."""

    @property
    def store_id(self) -> str:
        """Random, made once for this store: 32 hexadecimal digits."""

    def contents(self) -> Contents:
        """Give what is in the store.

        Raises:
            StoreFailed: It cannot be read.
        """

    def commit(self, changes: Sequence[Change]) -> None:
        """Write changes, in order, all or none. When it returns, no crash can lose them.

        Rounds and ends of an incarnation that is not kept are left out.

        Raises:
            StoreFailed: They could not be written, or it is not known whether they were. Call ``recover`` before
                anything else.
        """

    def maintain(self, ends: Ends = nowhere) -> bool:
        """Do one small piece of the work that nobody waits for: merge old blocks of a log, or its oldest ones with its
        base, or free what was dropped.

        Args:
            ends: Gives the rounds of an incarnation that no merged block may go across. The base takes them all.

        Returns:
            Whether there was something to do.

        Raises:
            RecordDamaged: A block that was to be merged is damaged. Its log is left as it is until it is dropped.
            StoreFailed: As in ``commit``.
        """

    def usage(self) -> Usage:
        """Say how much room is taken.

        Raises:
            StoreFailed: It cannot be read.
        """

    def read(self, incarnation: IncarnationKey, *, after_round: int) -> Iterator[StoredBlock]:
        """Give the blocks that hold every round after one, oldest first, as they are at one moment.

        Nothing is given where the incarnation is not kept. The sets belong to the caller.

        Raises:
            RecordDamaged: A block is not what was written.
            StoreFailed: It cannot be read.
        """

    def recover(self) -> Contents:
        """Start afresh after StoreFailed, from what is durable.

        Raises:
            StoreFailed: It still cannot be written.
        """

    def close(self) -> None:
        """Let go of everything. Nothing may be called afterwards."""


def decode_stored(data: bytes, incarnation: IncarnationKey) -> BitMap64:
    """Turn stored bytes into a set. Their checksum has been looked at already.

    Raises:
        RecordDamaged: They are no bitmap.
    """
    if not data:
        return BitMap64()
    try:
        return BitMap64.deserialize(data)
    except (ValueError, MemoryError) as error:
        raise RecordDamaged(incarnation, "its bytes are no bitmap") from error


def encode_stored(pages: BitMap64) -> bytes:
    """Turn a set into the bytes that are stored: those of ``PageSet.roaring64``."""
    return pages.serialize() if pages else b""
