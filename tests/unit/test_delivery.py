"""The agent's spool against the collector's intake, catalog and store: every round has its effect once.

Between them is a wire that is cut at any message, between the parts of a round too; acknowledgements that are lost; a
collector that dies before or after it has committed, and one that is put back to an older copy of its store; and a host
that is put back to a snapshot, agent, processes and all. What each side does is tried against models elsewhere; here it
is tried whether they mean the same.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.amounts import amount
from tests.support.harvests import ended_of, harvest_of, make_round, started_of, target_of, tiny_parts
from wetink.v1.ingest_pb2 import AgentMessage, Hello
from wetink.v1.types_pb2 import END_REASON_EXEC, END_REASON_LOST, TargetPosition
from wetink_agent.spool import Spool, key_of
from wetink_collector.answer import check_cursor
from wetink_collector.catalog import Catalog
from wetink_collector.cursor import Cursor, Position
from wetink_collector.errors import CursorIncarnationEnded
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.intake import AlreadyHere, Intake, Superseded, open_stream
from wetink_collector.round_log import fold, is_whole
from wetink_collector.store.interface import Change, IncarnationEnded, RoundsAppended
from wetink_collector.store.memory import MemoryStore

HOST: Final = "host-1"
PIDS: Final = (1, 2)
PAGES: Final = 200
READERS: Final = 2

_pids = st.sampled_from(PIDS)
_pages = st.frozensets(st.integers(0, PAGES), max_size=40)


@dataclass
class Process:
    """A process, and what each of its pages holds: the number of the write it has from."""

    incarnation: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    holds: list[dict[int, int]] = field(default_factory=list)


class Delivery(RuleBasedStateMachine):
    """One agent, one collector, two readers with cursors of their own."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.processes = {pid: Process() for pid in PIDS}
        self.clock = 0
        self.now_ns = 0
        self.pending: list[Change] = []
        self.acknowledgements: list[TargetPosition] = []
        self.readers: list[tuple[Cursor | None, dict[int, dict[int, int]]]] = [(None, {}) for _ in range(READERS)]
        self.small = tiny_parts()
        self.small.__enter__()

    @initialize(bytes_max=st.sampled_from([0, 300, 1 << 20]))
    def begin(self, bytes_max: int) -> None:
        """Start both sides, with two processes."""
        self.spool = Spool(bytes_max)
        self.store = MemoryStore()
        self.saved: dict[str, object] | None = None
        self.boot_us = 0
        self.snapshot: tuple[Spool, dict[int, Process], int] | None = None
        self.begin_collector()
        for pid in PIDS:
            self.begin_incarnation(pid)

    @rule(pid=_pids, written=_pages, vanished=_pages)
    def harvest(self, pid: int, written: frozenset[int], vanished: frozenset[int]) -> None:
        """Let a process write, and take a round of that."""
        process = self.processes[pid]
        self.clock += 1
        gone = (vanished - written) & process.pages.keys()
        process.pages = {page: at for page, at in process.pages.items() if page not in gone}
        process.pages |= dict.fromkeys(written, self.clock)
        self.tell(pid, written, gone)

    @rule(pid=_pids)
    def execute(self, pid: int) -> None:
        """Let a process end as with execve(2), and be tracked anew."""
        self.spool.end(ended_of(pid, self.processes[pid].incarnation, reason=END_REASON_EXEC))
        self.processes[pid].pages = {}
        self.begin_incarnation(pid)

    @rule(window=st.sampled_from([0, 300, 1 << 20]), count=st.integers(1, 40))
    def send(self, window: int, count: int) -> None:
        """Let so many messages come over; where more were to come, the stream is cut there."""
        sent = 0
        for message in islice(self.spool.unsent(window), count):
            self.take(message)
            sent += 1
        if sent == count:
            self.connect()

    @rule()
    def commit(self) -> None:
        """Let what was taken become durable, and be acknowledged: who sends that has not come."""
        self.store.commit(self.pending)
        self.catalog.apply(self.pending)
        for change in self.pending:
            if isinstance(change, RoundsAppended):
                self.acknowledge(change.incarnation, change.block.last_round)
            elif isinstance(change, IncarnationEnded):
                record = self.catalog.get(change.incarnation.target)
                self.acknowledge(change.incarnation, record.round if record else 0)
        self.pending = []

    @rule(count=st.integers(1, 10))
    def hear(self, count: int) -> None:
        """Let some acknowledgements come over."""
        self.spool.acknowledge(self.acknowledgements[:count])
        del self.acknowledgements[:count]
        self.spool.forget_ended()

    @rule()
    def connect(self) -> None:
        """Open a new stream: what was on the wire is lost, what was queued at the collector is not."""
        self.commit()
        self.acknowledgements = []
        hello = Hello(protocol_version=1, host_id=HOST, boot_id="boot-1", positions=self.spool.positions())
        opening = open_stream(hello, self.catalog.on_host(HOST), 0)
        self.store.commit(opening.lost)
        self.catalog.apply(opening.lost)
        self.intake = Intake(hello, self.catalog.on_host(HOST))
        for pid, _, incarnation in self.spool.resume(opening.positions):
            if self.processes[pid].incarnation == incarnation:
                self.begin_incarnation(pid)

    @rule(commits=st.booleans())
    def die(self, *, commits: bool) -> None:
        """Let the collector die before it has committed, or before it has told anybody; and start again."""
        if commits:
            self.store.commit(self.pending)
        self.pending = []
        self.begin_collector()

    @rule()
    def back_up(self) -> None:
        """Copy the store."""
        self.saved = deepcopy({name: value for name, value in vars(self.store).items() if name != "_lock"})

    @rule()
    def put_back(self) -> None:
        """Start the collector on the copy, which lacks rounds that were acknowledged since."""
        if self.saved is not None:
            self.pending = []
            self.store = MemoryStore()
            vars(self.store).update(deepcopy(self.saved))
            self.begin_collector()

    @rule()
    def take_snapshot(self) -> None:
        """Copy the host: what its processes hold, and what its agent knows."""
        self.snapshot = deepcopy((self.spool, self.processes, self.boot_us))

    @rule(then=st.lists(st.tuples(_pids, _pages, _pages), max_size=5))
    def put_host_back(self, then: list[tuple[int, frozenset[int], frozenset[int]]]) -> None:
        """Let the host go on from the copy, with its numbers: some rounds pass before its agent has a stream again."""
        self.commit()
        # What has ended since goes on in the same incarnation as if it had not: the collector begins that afresh.
        if self.snapshot is None or any(
            record.ended and self.snapshot[1][record.target.pid].incarnation == record.incarnation.incarnation
            for record in self.catalog.all()
        ):
            return
        self.spool, self.processes, self.boot_us = deepcopy(self.snapshot)
        for write in then:
            self.harvest(*write)
        self.connect()

    @rule(pid=_pids)
    def damage(self, pid: int) -> None:
        """Find that a record is damaged: nothing of it is kept, and its agent comes back to begin again."""
        self.commit()
        record = self.catalog.get(TargetKey.of(target_of(pid)))
        if record and record.ended is None:
            dropped = IncarnationEnded(record.incarnation, END_REASON_LOST, 0, "damaged", rounds_dropped=True)
            self.store.commit([dropped])
            self.catalog.apply([dropped])
            self.connect()

    @rule()
    def maintain(self) -> None:
        """Merge with age."""
        while self.store.maintain():
            pass

    @rule(reader=st.integers(0, READERS - 1))
    def read(self, reader: int) -> None:
        """Ask since a reader's cursor, and compare its copy with the process as it was then."""
        self.readers[reader] = self.ask(*self.readers[reader])

    @invariant()
    def new_reader_gets_everything(self) -> None:
        """Whatever was cut, sent twice or lost."""
        if hasattr(self, "catalog"):
            self.ask(None, {})

    def teardown(self) -> None:
        """Let everything arrive: nothing may be left behind for ever, and each process is known as it is."""
        try:
            if hasattr(self, "intake"):
                self.everything_arrives()
        finally:
            self.small.__exit__(None, None, None)

    def everything_arrives(self) -> None:
        """Over a wire that holds."""
        self.connect()
        for _ in range(1000):
            for message in self.spool.unsent(1 << 20):
                self.take(message)
            self.commit()
            self.hear(1000)
            if self.spool.is_empty:
                break
        assert self.spool.is_empty
        _, copies = self.ask(None, {})
        for pid, process in self.processes.items():
            record = self.catalog.get(TargetKey.of(target_of(pid)))
            assert record
            assert (record.incarnation.incarnation, record.round) == (process.incarnation, len(process.holds) - 1)
            assert record.ended is None
            assert copies[pid] == process.pages

    def begin_collector(self) -> None:
        """Start on what the store has; the agent comes to it."""
        self.catalog = Catalog(self.store.store_id, self.store.contents())
        self.connect()

    def begin_incarnation(self, pid: int) -> None:
        """Track a process from now on: its first round has every page it holds."""
        process = self.processes[pid]
        if not self.has_ended(pid):
            self.spool.drop(key_of(target_of(pid), process.incarnation))
        self.boot_us += 1
        process.incarnation, process.holds = self.spool.next_incarnation(self.boot_us), [{}]
        started = started_of(pid, process.incarnation)
        started.page_size = 4096
        self.spool.start(started)
        self.tell(pid, frozenset(process.pages), frozenset())

    def has_ended(self, pid: int) -> bool:
        """Whether the incarnation that a process is in was told to have ended: what it had is still sent."""
        entry = self.spool._entries.get(key_of(target_of(pid), self.processes[pid].incarnation))
        return entry is not None and entry.ended is not None

    def tell(self, pid: int, written: frozenset[int], vanished: frozenset[int]) -> None:
        """Put a round into the spool."""
        process = self.processes[pid]
        number = len(process.holds)
        process.holds.append(dict(process.pages))
        self.now_ns += 1
        harvest = harvest_of(written, vanished, time_ns=self.now_ns)
        told = make_round(number, pid=pid, incarnation=process.incarnation, harvest=harvest)
        self.spool.add(key_of(target_of(pid), process.incarnation), told)

    def take(self, message: AgentMessage) -> None:
        """Take a message as the collector does; no refusal is due, since the agent keeps to the contract."""
        match message.WhichOneof("message"):
            case "target_started":
                taken: object = self.intake.started(message.target_started)
            case "target_ended":
                taken = self.intake.ended(message.target_ended, 0)
            case _:
                taken = self.intake.batch(message.write_protect_batch)
        if isinstance(taken, AlreadyHere):
            record = self.catalog.get(taken.incarnation.target)
            if record and record.incarnation == taken.incarnation:
                self.acknowledge(taken.incarnation, record.round)
        elif isinstance(taken, Superseded):
            self.acknowledge(taken.incarnation, taken.last_round)
        elif taken is not None:
            assert isinstance(taken, Change)
            self.pending.append(taken)

    def acknowledge(self, incarnation: IncarnationKey, last_round: int) -> None:
        """Put an acknowledgement on the wire."""
        position = TargetPosition(
            target=incarnation.target.message(), incarnation=incarnation.incarnation, round=last_round
        )
        self.acknowledgements.append(position)

    def ask(
        self, cursor: Cursor | None, copies: dict[int, dict[int, int]]
    ) -> tuple[Cursor | None, dict[int, dict[int, int]]]:
        """Do what a reader does, and compare each copy with what its process held at that round."""
        records = sorted(self.catalog.all(), key=lambda record: record.order)
        try:
            positions = check_cursor(cursor, records, self.store.store_id)
        except CursorIncarnationEnded:
            positions = {}
        held, told = {}, {}
        for record in records:
            position, process = positions.get(record.target), self.processes[record.target.pid]
            after = position.round if position else 0
            stored = list(self.store.read(record.incarnation, after_round=after))
            blocks = [one.block for one in stored]
            assert is_whole(blocks, after_round=after, last_round=record.round)
            answer = fold(one.pages for one in stored)
            told[record.target] = Position(record.incarnation.incarnation, record.round)
            if process.incarnation != record.incarnation.incarnation:
                continue
            now = process.holds[record.round]
            copy = copies.get(record.target.pid, {}) if after else {}
            copy = {page: at for page, at in copy.items() if page not in answer.vanished}
            copy |= {page: now[page] for page in answer.written}
            assert copy == now, (record.incarnation, after, record.round)
            held[record.target.pid] = copy
        return Cursor(self.store.store_id, told), held


@pytest.mark.soak
@pytest.mark.timeout(amount(gate=600, soak=3600))  # seconds, for a machine that is busy
def test_every_round_has_its_effect_once() -> None:
    """Whatever is cut, lost, said twice, forgotten, or put back."""
    run_state_machine_as_test(
        Delivery, settings=settings(max_examples=amount(gate=50, soak=5000), stateful_step_count=50)
    )
