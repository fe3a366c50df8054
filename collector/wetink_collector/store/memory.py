"""A store in memory, for tests and as the oracle of the others. It survives nothing."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from uuid import uuid4

from wetink.v1.ingest_pb2 import TargetStarted
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import (
    Block,
    RoundPages,
    based,
    check_follows,
    fold,
    plan_base,
    plan_merge,
    united,
)
from wetink_collector.store.interface import (
    Change,
    Contents,
    Ends,
    HostForgotten,
    HostSeen,
    IncarnationEnded,
    IncarnationStarted,
    RoundsAppended,
    RoundsExpired,
    SessionForgotten,
    SessionKept,
    StoredBlock,
    StoredIncarnation,
    TargetForgotten,
    TargetUnwanted,
    TargetWanted,
    Usage,
    decode_stored,
    encode_stored,
    nowhere,
)


class MemoryStore:
    """Keeps rounds until the process ends, as the bytes they came in."""

    def __init__(self) -> None:
        """Start empty."""
        self.store_id = uuid4().hex
        self._lock = Lock()
        self._hosts: dict[str, HostSeen] = {}
        self._logs: dict[TargetKey, _Log] = {}
        self._wanted: set[TargetKey] = set()
        self._sessions: dict[tuple[str, str], SessionKept] = {}
        self._grown: dict[IncarnationKey, None] = {}

    def contents(self) -> Contents:
        """Give what is in the store."""
        return Contents(
            hosts=list(self._hosts.values()),
            incarnations=[
                StoredIncarnation(log.incarnation, log.started, [record.block for record in log.records], log.ended)
                for log in self._logs.values()
            ],
            wanted=list(self._wanted),
            sessions=list(self._sessions.values()),
        )

    def commit(self, changes: Sequence[Change]) -> None:
        """Write changes, in order."""
        with self._lock:
            for change in changes:
                self._apply(change)

    def maintain(self, ends: Ends = nowhere) -> bool:
        """Merge old blocks of one log."""
        while self._grown:
            incarnation = next(iter(self._grown))
            if (log := self._kept(incarnation)) and self._merge(log, ends(incarnation)):
                return True
            del self._grown[incarnation]
        return False

    def usage(self) -> Usage:
        """Say how much room the page sets take."""
        block_bytes = {
            log.incarnation: [(record.block, len(record.written) + len(record.vanished)) for record in log.records]
            for log in self._logs.values()
        }
        size_bytes = sum(size for blocks in block_bytes.values() for _, size in blocks)
        return Usage(size_bytes, block_bytes, any(log.is_to_expire for log in self._logs.values()))

    def read(self, incarnation: IncarnationKey, *, after_round: int) -> Iterator[StoredBlock]:
        """Give the blocks that hold every round after one."""
        with self._lock:
            log = self._kept(incarnation)
            records = [record for record in log.records if record.block.last_round > after_round] if log else []
        for record in records:
            yield StoredBlock(record.block, record.pages(incarnation))

    def recover(self) -> Contents:
        """Start afresh; memory does not fail."""
        return self.contents()

    def close(self) -> None:
        """Let go of nothing."""

    def _kept(self, incarnation: IncarnationKey) -> "_Log | None":
        log = self._logs.get(incarnation.target)
        return log if log is not None and log.incarnation == incarnation else None

    def _apply(self, change: Change) -> None:
        match change:
            case HostSeen():
                self._hosts[change.host_id] = change
            case IncarnationStarted():
                self._logs[change.incarnation.target] = _Log(change.incarnation, change.started)
            case RoundsAppended() | IncarnationEnded() | RoundsExpired():
                if log := self._kept(change.incarnation):
                    log.apply(change)
                    self._grown[change.incarnation] = None
            case HostForgotten():
                self._forget_host(change)
            case TargetForgotten():
                self._forget(change)
            case TargetWanted():
                self._wanted.add(change.target)
            case TargetUnwanted():
                self._wanted.discard(change.target)
            case SessionKept() | SessionForgotten():
                self._apply_session(change)

    def _apply_session(self, change: SessionKept | SessionForgotten) -> None:
        key = change.owner, change.name
        if isinstance(change, SessionKept):
            self._sessions[key] = change
        else:
            self._sessions.pop(key, None)

    def _forget_host(self, change: HostForgotten) -> None:
        if (seen := self._hosts.get(change.host_id)) and seen.time_ns == change.time_ns:
            del self._hosts[change.host_id]
            self._wanted = {target for target in self._wanted if target.host_id != change.host_id}

    def _forget(self, change: TargetForgotten) -> None:
        if (log := self._kept(change.incarnation)) and log.ended:
            del self._logs[change.incarnation.target]
            if change.unwanted:
                self._wanted.discard(change.incarnation.target)

    def _merge(self, log: "_Log", ends: Collection[int]) -> bool:
        """Make one block of several where some are due; say whether there were any."""
        kept = [record.block for record in log.records]
        oldest = plan_base(kept, log.expired_round)
        blocks = oldest or plan_merge(kept, ends)
        if not blocks:
            return False
        first = kept.index(blocks[0])
        slots = slice(first, first + len(blocks))
        pages = fold(record.pages(log.incarnation) for record in log.records[slots])
        block, pages = based(blocks, pages) if oldest else (united(blocks, pages), pages)
        sets = (encode_stored(some) for some in (pages.written, pages.vanished, pages.uncertain))
        with self._lock:
            log.records[slots] = [_Record(block, *sets)]
        return True


@dataclass(frozen=True, slots=True)
class _Record:
    block: Block
    written: bytes
    vanished: bytes
    uncertain: bytes

    def pages(self, incarnation: IncarnationKey) -> RoundPages:
        sets = self.written, self.vanished, self.uncertain
        return RoundPages(*(decode_stored(data, incarnation) for data in sets))


@dataclass(slots=True)
class _Log:
    incarnation: IncarnationKey
    started: TargetStarted
    records: list[_Record] = field(default_factory=list)
    ended: IncarnationEnded | None = None
    expired_round: int = 0

    @property
    def is_to_expire(self) -> bool:
        return bool(plan_base([record.block for record in self.records], self.expired_round))

    def apply(self, change: RoundsAppended | IncarnationEnded | RoundsExpired) -> None:
        match change:
            case RoundsAppended():
                check_follows(change.block, self.records[-1].block.last_round if self.records else 0)
                self.records.append(_Record(change.block, change.written, change.vanished, change.uncertain))
            case IncarnationEnded():
                self.ended = change
                if change.rounds_dropped:
                    self.records.clear()
            case RoundsExpired():
                self.expired_round = max(self.expired_round, change.last_round)
