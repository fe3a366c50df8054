"""Everything that happens between an agent's rounds and a reader's copy, in any order, against plain sets.

An agent makes rounds and says them: united, in parts, twice, late, out of order. The collector takes, commits, dies
before or after it has acknowledged, starts again, merges and lets go. Readers come when they like, each with a cursor
of its own, and copy. After every answer a reader's copy must be what the target holds at that round, page by page.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pyroaring import BitMap64

from tests.support.amounts import amount
from wetink.pages import encode
from wetink.v1.ingest_pb2 import Hello, TargetEnded, TargetStarted, WriteProtectBatch
from wetink.v1.types_pb2 import END_REASON_EXITED, Target, TargetPosition
from wetink_collector import cursor
from wetink_collector.answer import check_cursor
from wetink_collector.catalog import Catalog
from wetink_collector.errors import CursorIncarnationEnded, MessageMalformed, RoundGap
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.intake import Intake, open_stream
from wetink_collector.round_log import RoundPages, fold, is_exact, is_expired, is_whole
from wetink_collector.store.interface import Change, RoundsAppended, RoundsExpired, Store
from wetink_collector.store.memory import MemoryStore
from wetink_collector.store.sqlite import SqliteStore

HOST, BOOT = "host-1", "boot-1"
PIDS: Final = (1, 2)
PAGES: Final = 8
READERS: Final = 3
LIVES: Final = 4

_pids = st.sampled_from(PIDS)
# Most pages are left alone in most rounds: what was said of one long ago must still hold.
_fates = st.lists(st.sampled_from("wv--------"), min_size=PAGES, max_size=PAGES)


@dataclass
class Process:
    """A target as its agent has it: every round of the incarnation it is in, and what it holds after each."""

    incarnation: int = 0
    rounds: list[RoundPages] = field(default_factory=list)
    holds: list[dict[int, int]] = field(default_factory=list)
    acknowledged: int = 0
    has_ended: bool = False

    def write(self, fates: Sequence[str]) -> None:
        """Do one round: page n is written, vanishes, or neither."""
        written, vanished = (BitMap64(page for page, fate in enumerate(fates) if fate == which) for which in "wv")
        self.rounds.append(RoundPages(written, vanished))
        now = {page: round_ for page, round_ in self.holds[-1].items() if page not in vanished}
        self.holds.append(now | dict.fromkeys(written, len(self.rounds)))


@dataclass
class Reader:
    """A copy of each target: which round's content it has of each page; and where it goes on."""

    cursor: str = ""
    copies: dict[int, dict[int, int]] = field(default_factory=dict)


class Machine(RuleBasedStateMachine):
    """One host with two processes, one collector, three readers."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.processes = {pid: Process() for pid in PIDS}
        self.said: list[WriteProtectBatch] = []
        self.readers = [Reader() for _ in range(READERS)]
        self.pending: list[Change] = []

    def opened(self) -> Store:
        """Open the store."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        """Start the collector, and both processes."""
        self.store = self.opened()
        self.catalog = Catalog(self.store.store_id, self.store.contents())
        self.connect()
        for pid in PIDS:
            self.start(pid)

    @rule(pid=_pids)
    def start(self, pid: int) -> None:
        """Begin a new incarnation: exec, or a gap."""
        number = self.processes[pid].incarnation + 1
        if number > LIVES:
            return
        self.processes[pid] = Process(number, [], [{}])
        if started := self.intake.started(self.started(pid)):
            self.pending.append(started)

    @rule(pid=_pids, fates=_fates)
    def write(self, pid: int, fates: list[str]) -> None:
        """Let a process write."""
        if not self.processes[pid].has_ended:
            self.processes[pid].write(fates)

    @rule(pid=_pids, data=st.data())
    def say(self, pid: int, data: st.DataObject) -> None:
        """Say some rounds, as one message or in parts; they may have been said before, and rounds before them not."""
        process = self.processes[pid]
        if process.rounds:
            first = data.draw(st.integers(1, len(process.rounds)), label="first round")
            last = data.draw(st.integers(first, len(process.rounds)), label="last round")
            parts = data.draw(st.integers(1, 3), label="parts")
            said = self.messages(pid, first, last, parts)
            self.deliver(
                *(said if data.draw(st.booleans(), label="whole") else said[data.draw(st.integers(0, parts - 1)) :][:1])
            )

    @rule(pid=_pids, fates=st.lists(_fates, min_size=1, max_size=24))
    def go_on(self, pid: int, fates: list[list[str]]) -> None:
        """Let a process write, and say each round until it is acknowledged, as when nothing is wrong."""
        process = self.processes[pid]
        if process.has_ended:
            return
        for one in fates:
            process.write(one)
        self.deliver(
            *(
                one
                for n in range(process.acknowledged + 1, len(process.rounds) + 1)
                for one in self.messages(pid, n, n, 1)
            )
        )
        self.commit()

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def say_again(self, data: st.DataObject) -> None:
        """Say something that was said at any time, also of an incarnation that is over."""
        self.deliver(data.draw(st.sampled_from(self.said[-30:]), label="said before"))

    @rule(pid=_pids)
    def end(self, pid: int) -> None:
        """Let a process exit, with all its rounds said; only one does, so that there is something to look at."""
        process = self.processes[pid]
        if any(one.has_ended for one in self.processes.values()):
            return
        self.deliver(*(one for n in range(1, len(process.rounds) + 1) for one in self.messages(pid, n, n, 1)))
        message = TargetEnded(target=target(pid), incarnation=process.incarnation, reason=END_REASON_EXITED)
        if ended := self.intake.ended(message, 0):
            self.pending.append(ended)
            process.has_ended = True

    @rule()
    def commit(self) -> None:
        """Commit what waits, and acknowledge it."""
        self.store.commit(self.pending)
        self.catalog.apply(self.pending)
        for change in self.pending:
            if isinstance(change, RoundsAppended):
                process = self.processes[change.incarnation.target.pid]
                if process.incarnation == change.incarnation.incarnation:
                    process.acknowledged = max(process.acknowledged, change.block.last_round)
        self.pending = []

    @rule(commits=st.booleans(), closes=st.booleans())
    def die(self, *, commits: bool, closes: bool) -> None:
        """End the collector: before it has committed, or after that and before anybody was told. Start it again."""
        if commits:
            self.store.commit(self.pending)
        self.pending = []
        self.reopen(closes=closes)
        self.catalog = Catalog(self.store.store_id, self.store.contents())
        self.connect()

    def reopen(self, *, closes: bool) -> None:
        """Open the store again, after it was closed or was not."""
        raise NotImplementedError

    @rule()
    def connect(self) -> None:
        """Open a new stream: the agent says what it has, and starts again what the collector does not have."""
        if self.pending:
            self.commit()
        hello = Hello(protocol_version=1, host_id=HOST, boot_id=BOOT)
        for pid, process in self.processes.items():
            if process.incarnation:
                position = TargetPosition(
                    target=target(pid), incarnation=process.incarnation, round=len(process.rounds)
                )
                hello.positions.append(position)
        opening = open_stream(hello, self.catalog.on_host(HOST), 0)
        # What the collector has and the agent does not name: its start in another incarnation was never committed.
        self.store.commit(opening.lost)
        self.catalog.apply(opening.lost)
        durable = {position.target.pid: position.round for position in opening.positions}
        self.intake = Intake(hello, self.catalog.on_host(HOST))
        for pid, process in self.processes.items():
            if process.incarnation:
                assert durable.get(pid, 0) >= process.acknowledged
                if started := self.intake.started(self.started(pid)):
                    self.pending.append(started)

    @rule(times=st.integers(1, 5))
    def maintain(self, times: int) -> None:
        """Merge with age."""
        for _ in range(times):
            self.store.maintain()

    @rule(pid=_pids, share=st.floats(0, 1))
    def expire(self, pid: int, share: float) -> None:
        """Let go of some of the rounds that are durable."""
        if record := self.catalog.get(TargetKey.of(target(pid))):
            self.store.commit([RoundsExpired(record.incarnation, int(share * record.round))])
            self.maintain(20)

    @rule(reader=st.integers(0, READERS - 1))
    def read(self, reader: int) -> None:
        """Ask since a reader's cursor, copy, and compare the copy with the truth."""
        self.ask(self.readers[reader])

    @rule(reader=st.integers(0, READERS - 1), pid=_pids, fates=st.lists(_fates, min_size=10, max_size=24))
    def fall_behind(self, reader: int, pid: int, fates: list[list[str]]) -> None:
        """Let a reader ask again only when its rounds have become old, and some of them have been let go of."""
        self.ask(self.readers[reader])
        self.go_on(pid, fates)
        self.expire(pid, 0.8)
        self.ask(self.readers[reader])

    @rule(reader=st.integers(0, READERS - 1), other=st.integers(0, READERS - 1))
    def go_back(self, reader: int, other: int) -> None:
        """Let a reader take the place of another: its cursor and copy, of whatever time."""
        self.readers[reader] = Reader(
            self.readers[other].cursor, {pid: dict(copy) for pid, copy in self.readers[other].copies.items()}
        )

    @invariant()
    def a_new_reader_gets_everything(self) -> None:
        """Whatever has happened, who asks without a cursor holds what is durable."""
        if hasattr(self, "catalog"):
            self.ask(Reader())

    def teardown(self) -> None:
        """Let go of the store."""
        if hasattr(self, "store"):
            self.store.close()

    def ask(self, reader: Reader) -> None:
        """Do what an orchestrator does: from the start where the cursor does not hold any more."""
        records = sorted((record for record in self.catalog.all()), key=lambda record: record.order)
        held = cursor.decode(reader.cursor) if reader.cursor else None
        try:
            positions = check_cursor(held, records, self.store.store_id)
        except CursorIncarnationEnded:
            positions = {}
        told = {}
        for record in records:
            position = positions.get(record.target)
            after = position.round if position else 0
            copy = dict(reader.copies.get(record.target.pid, {})) if after else {}
            answer = self.answer(record.incarnation, after, record.round)
            if answer is None:
                after, copy = 0, {}
                answer = self.answer(record.incarnation, 0, record.round)
            assert answer is not None
            process = self.processes[record.target.pid]
            if process.incarnation == record.incarnation.incarnation:
                now = process.holds[record.round]
                assert set(answer.written) <= set(now), "a page that the target does not hold is to be copied"
                copy = {page: round_ for page, round_ in copy.items() if page not in answer.vanished}
                copy |= {page: now[page] for page in answer.written}
                assert copy == now, (record.incarnation, after, record.round)
            reader.copies[record.target.pid] = copy
            told[record.target] = cursor.Position(record.incarnation.incarnation, record.round)
        reader.cursor = cursor.encode(cursor.Cursor(self.store.store_id, told))

    def answer(self, key: IncarnationKey, after: int, last_round: int) -> RoundPages | None:
        """Give what is dirty since a round; None where the cursor has expired."""
        stored = list(self.store.read(key, after_round=after))
        blocks = [one.block for one in stored]
        assert is_whole(blocks, after_round=after, last_round=last_round)
        if is_expired(blocks, after):
            assert after < last_round - 8
            return None
        answer = fold(one.pages for one in stored)
        process = self.processes[key.target.pid]
        if process.incarnation == key.incarnation and after and is_exact(blocks, after):
            assert answer == fold(process.rounds[after : blocks[-1].last_round if blocks else after])
        return answer if after else RoundPages(answer.written, BitMap64())

    def deliver(self, *messages: WriteProtectBatch) -> None:
        """Say messages; a gap ends the stream, and a new one begins."""
        for message in messages:
            self.said.append(message)
            try:
                taken = self.intake.batch(message)
            except (RoundGap, MessageMalformed):
                # Of a round that is not due, or a part out of its order: the agent connects again.
                self.connect()
                return
            if isinstance(taken, RoundsAppended):
                self.pending.append(taken)

    def messages(self, pid: int, first: int, last: int, parts: int) -> list[WriteProtectBatch]:
        """Give the message of some rounds, or its parts."""
        process = self.processes[pid]
        pages = fold(process.rounds[first - 1 : last])
        return [
            WriteProtectBatch(
                target=target(pid),
                incarnation=process.incarnation,
                first_round=first,
                last_round=last,
                part=part,
                part_count=parts,
                written=encode(BitMap64(page for page in pages.written if page % parts == part)),
                vanished=encode(BitMap64(page for page in pages.vanished if page % parts == part)),
            )
            for part in range(parts)
        ]

    def started(self, pid: int) -> TargetStarted:
        """Give the start of the incarnation that a process is in."""
        return TargetStarted(target=target(pid), incarnation=self.processes[pid].incarnation, page_size=4096)


def target(pid: int) -> Target:
    """Give a process."""
    return Target(host_id=HOST, boot_id=BOOT, pid=pid, start_time_ticks=100)


class InMemory(Machine):
    """With the store in memory, which outlives its collector here, so that all else is the same."""

    def opened(self) -> Store:
        """Make it."""
        return MemoryStore()

    def reopen(self, *, closes: bool) -> None:
        """Leave it as it is."""


class InFile(Machine):
    """With the store in a file."""

    def opened(self) -> Store:
        """Make it."""
        memory = Path("/dev/shm")  # noqa: S108 (a directory of our own in it; nothing there waits for a disk)
        self.directory = TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.left: list[Store] = []
        return SqliteStore(Path(self.directory.name))

    def reopen(self, *, closes: bool) -> None:
        """Open it again; where the collector was killed, its connections are closed only at the very end."""
        if closes:
            self.store.close()
        else:
            self.left.append(self.store)
        self.store = SqliteStore(Path(self.directory.name))

    def teardown(self) -> None:
        """Remove the file."""
        super().teardown()
        for store in getattr(self, "left", ()):
            with suppress(Exception):
                store.close()
        if hasattr(self, "directory"):
            self.directory.cleanup()


@pytest.mark.soak
@pytest.mark.parametrize(
    "machine, examples",
    [(InMemory, amount(gate=150, soak=10_000)), (InFile, amount(gate=40, soak=4_000))],
    ids=["memory", "file"],
)
def test_every_copy_is_what_its_target_holds(machine: type[Machine], examples: int) -> None:
    """After any order of what agents, collectors, time and readers do."""
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=40))
