"""A store in memory, for tests and as the oracle of the others. It survives nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from uuid import uuid4

from wetink.v1.ingest_pb2 import TargetStarted
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import Block, RoundPages, check_follows, fold, plan_merge, united
from wetink_collector.store.interface import (
    Change,
    Contents,
    HostSeen,
    IncarnationEnded,
    IncarnationStarted,
    RoundsAppended,
    StoredBlock,
    StoredIncarnation,
    TargetForgotten,
    TargetUnwanted,
    TargetWanted,
    decode_stored,
    encode_stored,
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
        )

    def commit(self, changes: Sequence[Change]) -> None:
        """Write changes, in order."""
        with self._lock:
            for change in changes:
                self._apply(change)

    def maintain(self) -> bool:
        """Merge old blocks of one log."""
        while self._grown:
            incarnation = next(iter(self._grown))
            log = self._kept(incarnation)
            blocks = plan_merge([record.block for record in log.records]) if log else ()
            if log and blocks:
                self._merge(log, blocks)
                return True
            del self._grown[incarnation]
        return False

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
            case RoundsAppended():
                if log := self._kept(change.incarnation):
                    log.append(_Record(change.block, change.written, change.vanished))
                    self._grown[change.incarnation] = None
            case IncarnationEnded():
                if log := self._kept(change.incarnation):
                    log.end(change)
            case TargetForgotten():
                self._logs.pop(change.target, None)
            case TargetWanted():
                self._wanted.add(change.target)
            case TargetUnwanted():
                self._wanted.discard(change.target)

    def _merge(self, log: "_Log", blocks: Sequence[Block]) -> None:
        first = next(index for index, record in enumerate(log.records) if record.block == blocks[0])
        slots = slice(first, first + len(blocks))
        pages = fold(record.pages(log.incarnation) for record in log.records[slots])
        merged = _Record(united(blocks, pages), encode_stored(pages.written), encode_stored(pages.vanished))
        with self._lock:
            log.records[slots] = [merged]


@dataclass(frozen=True, slots=True)
class _Record:
    block: Block
    written: bytes
    vanished: bytes

    def pages(self, incarnation: IncarnationKey) -> RoundPages:
        return RoundPages(decode_stored(self.written, incarnation), decode_stored(self.vanished, incarnation))


@dataclass(slots=True)
class _Log:
    incarnation: IncarnationKey
    started: TargetStarted
    records: list[_Record] = field(default_factory=list)
    ended: IncarnationEnded | None = None

    def append(self, record: _Record) -> None:
        check_follows(record.block, self.records[-1].block.last_round if self.records else 0)
        self.records.append(record)

    def end(self, ended: IncarnationEnded) -> None:
        self.ended = ended
        if ended.rounds_dropped:
            self.records.clear()
