"""Everything that happens between an agent's rounds and a reader's copy, in any order, against plain sets.

An agent makes rounds and says them: united, in parts, twice, late, out of order, half of one and half of another. The
collector takes, commits, dies before or after it has acknowledged, starts again, is put back to an older copy of its
store, merges and lets go. Readers come when they like, each with a cursor of its own, and copy; so does a mover, by the
rounds of its session. After every answer a copy must be what the target holds at that round, page by page.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

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
from tests.unit.collector.changes import pages_of_fates
from wetink.pages import decode, encode
from wetink.v1.ingest_pb2 import Hello, TargetEnded, TargetStarted, WriteProtectBatch
from wetink.v1.session_pb2 import OpenSessionRequest, SessionRound
from wetink.v1.types_pb2 import END_REASON_EXITED, STRICTNESS_STRICT, Target, TargetPosition
from wetink_collector import cursor
from wetink_collector.answer import Answerer, Part, check_cursor
from wetink_collector.bookmarks import Bookmarks
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.errors import CursorExpired, CursorIncarnationEnded, MessageMalformed, RoundGap
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.intake import Intake, open_stream
from wetink_collector.retention import NEEDED_SIZE, Ages, beyond_size
from wetink_collector.round_log import RoundPages, fold, is_exact, is_expired, is_whole
from wetink_collector.session_state import SessionState, restored, stored
from wetink_collector.store.interface import (
    Change,
    RoundsAppended,
    RoundsExpired,
    SessionForgotten,
    SessionKept,
    Store,
    Usage,
    nowhere,
)
from wetink_collector.store.memory import MemoryStore
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore

HOST, BOOT = "host-1", "boot-1"
PIDS: Final = (1, 2)
PAGES: Final = 8
READERS: Final = 3
LIVES: Final = 4
AGE: Final = 100.0

_pids = st.sampled_from(PIDS)
# Most pages are left alone in most rounds: what was said of one long ago must still hold.
_fates = st.lists(st.sampled_from("wuv---------"), min_size=PAGES, max_size=PAGES)


@dataclass
class Process:
    """A target as its agent has it: every round of the incarnation it is in, and what it holds after each."""

    incarnation: int = 0
    rounds: list[RoundPages] = field(default_factory=list)
    holds: list[dict[int, int]] = field(default_factory=list)
    acknowledged: int = 0
    has_ended: bool = False

    def write(self, fates: Sequence[str]) -> None:
        """Do one round: page n is written, perhaps written (u), vanishes, or neither."""
        pages = pages_of_fates(fates)
        self.rounds.append(pages)
        now = {page: round_ for page, round_ in self.holds[-1].items() if page not in pages.vanished}
        self.holds.append(now | dict.fromkeys(pages.written, len(self.rounds)))


@dataclass
class Reader:
    """A copy of each target: which round's content it has of each page; and where it goes on."""

    cursor: str = ""
    copies: dict[int, dict[int, int]] = field(default_factory=dict)

    def copy(self) -> "Reader":
        """Give one that stands where this does, and goes its own way."""
        return Reader(self.cursor, {pid: dict(copy) for pid, copy in self.copies.items()})


class Machine(RuleBasedStateMachine):
    """One host with two processes, one collector, three readers."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.processes = {pid: Process() for pid in PIDS}
        self.said: list[WriteProtectBatch] = []
        self.readers = [Reader() for _ in range(READERS)]
        self.pending: list[Change] = []
        self.is_put_back = False
        self.session: SessionState | None = None
        # What the mover holds that has copied what a round of its session carries.
        self.moved: dict[str, Reader] = {}
        self.lost: set[str] = set()
        self.round_count = 0
        self.now = 0.0

    def opened(self) -> Store:
        """Open the store."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        """Start the collector, and both processes."""
        self.store = self.opened()
        self.begin_collector()
        self.connect()
        for pid in PIDS:
            self.start(pid)

    def begin_collector(self) -> None:
        """Start on what the store has."""
        contents = self.store.contents()
        self.catalog = Catalog(self.store.store_id, contents)
        self.ages = Ages(AGE)
        self.session = restored(contents.sessions[0].data) if contents.sessions else None

    @rule(pid=_pids)
    def start(self, pid: int) -> None:
        """Begin a new incarnation: exec, or a gap."""
        if self.processes[pid].incarnation < LIVES:
            self.begin_incarnation(pid)

    def begin_incarnation(self, pid: int) -> None:
        """Track a process anew: nothing that was said of it before counts any more."""
        self.processes[pid] = Process(self.processes[pid].incarnation + 1, [], [{}])
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

    @rule(pid=_pids, fates=st.lists(_fates, min_size=1, max_size=3), data=st.data())
    def say_half_and_another(self, pid: int, fates: list[list[str]], data: st.DataObject) -> None:
        """Say the first parts of some rounds that are due, and then others, or the last of as many parts of others."""
        process = self.processes[pid]
        if process.has_ended:
            return
        self.commit()
        for one in fates:
            process.write(one)
        due, last = process.acknowledged + 1, st.integers(process.acknowledged + 1, len(process.rounds))
        parts = data.draw(st.integers(2, 3), label="parts")
        some, others = (
            self.messages(pid, data.draw(st.integers(max(1, due - 1), due), label="first"), data.draw(last), parts)
            for _ in range(2)
        )
        cut = data.draw(st.integers(1, parts - 1), label="cut")
        self.deliver(*some[:cut], *others[data.draw(st.sampled_from((0, cut)), label="from") :])
        self.commit()

    @rule(pid=_pids, fates=_fates, data=st.data())
    def say_otherwise(self, pid: int, fates: list[str], data: st.DataObject) -> None:
        """Say other content of rounds that were acknowledged: what is durable stands."""
        acknowledged = self.processes[pid].acknowledged
        if acknowledged:
            last = data.draw(st.integers(1, acknowledged), label="last round")
            first = data.draw(st.integers(1, last), label="first round")
            self.deliver(self.message(pid, first, last, pages_of_fates(fates)))

    @rule(reader=st.integers(0, READERS - 1), pid=_pids, fates=_fates, data=st.data())
    def overlap(self, reader: int, pid: int, fates: list[str], data: st.DataObject) -> None:
        """Say a new round united with some that are durable, to a reader who has those, or only some of them."""
        process = self.processes[pid]
        if process.has_ended:
            return
        self.commit()
        self.ask(self.readers[reader])
        process.write(fates)
        first = data.draw(st.integers(max(1, process.acknowledged - 2), process.acknowledged + 1), label="first round")
        self.deliver(*self.messages(pid, first, len(process.rounds), 1))
        self.commit()
        self.ask(self.readers[reader])

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
        self.begin_collector()
        self.connect()

    @rule()
    def back_up(self) -> None:
        """Make a copy of the store, as it is now."""
        self.save()

    @rule()
    def put_back(self) -> None:
        """Start the collector on the copy: it has none of the rounds that were acknowledged since."""
        if self.load():
            self.pending = []
            self.is_put_back = True
            self.begin_collector()
            self.connect()

    def save(self) -> None:
        """Keep a copy of the store."""
        raise NotImplementedError

    def load(self) -> bool:
        """Put it in the place of the store; say whether there is one."""
        raise NotImplementedError

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
                if durable.get(pid, 0) < process.acknowledged:
                    # The agent has let go of what was acknowledged.
                    assert self.is_put_back, "an acknowledged round is gone"
                    self.begin_incarnation(pid)
                elif started := self.intake.started(self.started(pid)):
                    self.pending.append(started)
        self.is_put_back = False

    @rule(times=st.integers(1, 5), leaves_ends=st.booleans())
    def maintain(self, times: int, *, leaves_ends: bool = False) -> None:
        """Merge with age, and with or without regard to where readers stand."""
        for _ in range(times):
            self.store.maintain(self.ends if leaves_ends else nowhere)

    def ends(self, key: IncarnationKey) -> set[int]:
        """Give where readers stand."""
        cursors = [cursor.decode(reader.cursor) for reader in self.readers if reader.cursor]
        positions = [one.positions[key.target] for one in cursors if key.target in one.positions]
        return {position.round for position in positions if position.incarnation == key.incarnation}

    @rule(pid=_pids, share=st.floats(0, 1))
    def expire(self, pid: int, share: float) -> None:
        """Let go of some of the rounds that are durable, and that the mover does not need."""
        if record := self.catalog.get(TargetKey.of(target(pid))):
            after = self.needed().get(record.incarnation) or record.round
            self.store.commit([RoundsExpired(record.incarnation, min(after, int(share * record.round)))])
            self.maintain(20)

    @rule(seconds=st.floats(0, 2 * AGE))
    def pass_time(self, seconds: float) -> None:
        """Let go of what is old by now."""
        self.now += seconds
        self.store.commit([*self.ages.look(self.catalog.all(), self.now, self.needed())])
        self.maintain(20)

    @rule(size_bytes=st.integers(1, 2000))
    def shrink(self, size_bytes: int) -> None:
        """Let go of what takes too much room; of what the mover needs, beyond the bound."""
        usage, needed = self.store.usage(), self.needed()
        taken = sum(size for blocks in usage.block_bytes.values() for _, size in blocks)
        # A file has overhead; what counts is what could go.
        usage = Usage(taken, usage.block_bytes, usage.shrinking)
        for change in beyond_size(usage, size_bytes, [], needed):
            assert isinstance(change, RoundsExpired)
            if 0 < needed.get(change.incarnation, 0) < change.last_round:
                assert taken > NEEDED_SIZE * size_bytes
                assert self.session
                assert self.session.expire(change.incarnation, change.last_round)
                self.lost |= {*self.session.rounds}
            self.store.commit([change])
        self.maintain(20)

    def needed(self) -> Mapping[IncarnationKey, int]:
        """Give what the mover needs."""
        return self.session.needed() if self.session else {}

    @rule(begins_anew=st.booleans())
    def close_round(self, *, begins_anew: bool) -> None:
        """Let the mover close a round of its session, which goes on from the last one it has copied, or from none."""
        rounds = dict(self.session.rounds) if self.session else {}
        copied = [name for name in rounds if name in self.moved]
        parent = copied[-1] if copied and not begins_anew else ""
        records = sorted(self.catalog.all(), key=lambda record: record.order)
        try:
            check_cursor(cursor.decode(rounds[parent].cursor) if parent else None, records, self.store.store_id)
        except CursorIncarnationEnded:
            parent = ""
        self.round_count += 1
        name = f"round-{self.round_count}"
        ends = {one.target: cursor.Position(one.incarnation.incarnation, one.round) for one in records}
        text = cursor.encode(cursor.Cursor(self.store.store_id, ends))
        rounds[name] = SessionRound(round=name, parent=parent, closed=True, cursor=text)
        if parent in self.lost:
            # It goes on from where nothing is kept any more: who asks for it is told so.
            self.lost.add(name)
        opened = OpenSessionRequest(session="move-7")
        self.store.commit([SessionKept("mover", "move-7", stored(opened, rounds))])
        if self.session is None:
            self.session = SessionState(opened, {})
        self.session.take(rounds)

    @rule()
    def end_session(self) -> None:
        """Let the mover's lease be over."""
        self.store.commit([SessionForgotten("mover", "move-7")])
        self.session = None

    @precondition(lambda self: self.session)
    @rule()
    def get_rounds(self) -> None:
        """Let the mover copy what each round carries that it may ask for; again, where it has."""
        assert self.session
        acknowledged = {one.parent for one in self.session.rounds.values() if one.closed}
        for one in self.session.rounds.values():
            if one.round not in acknowledged:
                self.get(one)

    def get(self, one: SessionRound) -> None:
        """Copy what a round carries, on what its parent left, and compare that with the truth."""
        assert self.session
        # Its threads and what it does about damage are not needed for what one answer is made of.
        answerer = Answerer(self.store, self.catalog, cast("Any", None), cast("Any", None), Bookmarks())
        held = Reader(one.cursor)
        parent = self.session.rounds.get(one.parent)
        if one.parent and (parent is None or one.parent not in self.moved):
            return
        before = cursor.decode(parent.cursor).positions if parent else {}
        for key, end in cursor.decode(one.cursor).positions.items():
            record = self.catalog.get(key)
            if record is None or record.incarnation.incarnation != end.incarnation or record.round < end.round:
                return
            copy = dict(self.moved[one.parent].copies.get(key.pid, {})) if parent else {}
            if not end.round:
                continue
            try:
                part = answerer._read(record, before.get(key), end.round, STRICTNESS_STRICT)
            except CursorExpired:
                assert one.round in self.lost, "a round that the mover needs was let go of"
                return
            held.copies[key.pid] = self.copied(record, before.get(key), end.round, part, copy)
        self.moved[one.round] = held

    def copied(
        self, record: TargetRecord, before: cursor.Position | None, end_round: int, part: Part, copy: dict[int, int]
    ) -> dict[int, int]:
        """Give a copy after a part of an answer, which is as it should be."""
        process = self.processes[record.target.pid]
        messages = [*part.first_messages, *part.more_messages]
        written = BitMap64().union(*(decode(message.written) for message in messages))
        vanished = BitMap64().union(*(decode(message.vanished) for message in messages))
        if process.incarnation != record.incarnation.incarnation:
            return copy
        after = before.round if before else 0
        raw = fold(process.rounds[after:end_round])
        assert part.last
        assert part.last.last_round >= end_round
        if after:
            assert raw.written | raw.vanished <= written | vanished
        else:
            # What is merged with later rounds need not tell of what vanished in those.
            assert raw.written <= written | fold(process.rounds[end_round : part.last.last_round]).vanished
        if part.exact:
            assert written == raw.written
            assert vanished == (raw.vanished if after else BitMap64())
        now = process.holds[record.round]
        copy = {page: round_ for page, round_ in copy.items() if page not in vanished} if after else {}
        # Read now: a page that is not there any more is told of by the next round.
        copy |= {page: now.get(page, 0) for page in written}
        if end_round == record.round:
            assert copy == now, (record.incarnation, after, end_round)
        return copy

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
        self.readers[reader] = self.readers[other].copy()

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
        if process.incarnation == key.incarnation and after:
            raw = fold(process.rounds[after : blocks[-1].last_round if blocks else after])
            assert answer == raw or not is_exact(blocks, after)
            assert answer.uncertain.isdisjoint(raw.written - raw.uncertain)
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
        return [self.message(pid, first, last, pages, part, parts) for part in range(parts)]

    def message(
        self, pid: int, first: int, last: int, pages: RoundPages, part: int = 0, part_count: int = 1
    ) -> WriteProtectBatch:
        """Give one part of a message about some rounds: every so many pages are in it."""
        written, vanished, uncertain = (
            encode(BitMap64(page for page in some if page % part_count == part))
            for some in (pages.written, pages.vanished, pages.uncertain)
        )
        return WriteProtectBatch(
            target=target(pid),
            incarnation=self.processes[pid].incarnation,
            first_round=first,
            last_round=last,
            part=part,
            part_count=part_count,
            written=written,
            vanished=vanished,
            uncertain=uncertain,
        )

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

    def save(self) -> None:
        """Copy what it has."""
        self.saved = deepcopy({name: value for name, value in vars(self.store).items() if name != "_lock"})

    def load(self) -> bool:
        """Make another one that has that."""
        if not hasattr(self, "saved"):
            return False
        self.store = MemoryStore()
        vars(self.store).update(deepcopy(self.saved))
        return True


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

    def save(self) -> None:
        """Copy the file, with the write-ahead log where it has one."""
        self.saved = {
            path.name: path.read_bytes()
            for path in Path(self.directory.name).glob(f"{FILE_NAME}*")
            if not path.name.endswith("-shm")
        }

    def load(self) -> bool:
        """Put the copy there."""
        if not hasattr(self, "saved"):
            return False
        self.store.close()
        for left in self.left:
            # Else it would write back what it has, into a file that is another.
            left.close()
        for path in Path(self.directory.name).glob(f"{FILE_NAME}*"):
            path.unlink()
        for name, content in self.saved.items():
            (Path(self.directory.name) / name).write_bytes(content)
        self.store = SqliteStore(Path(self.directory.name))
        return True

    def teardown(self) -> None:
        """Remove the file."""
        super().teardown()
        for store in getattr(self, "left", ()):
            with suppress(Exception):
                store.close()
        if hasattr(self, "directory"):
            self.directory.cleanup()


@pytest.mark.soak
@pytest.mark.timeout(amount(gate=600, soak=3600))  # seconds, for a machine that is busy
@pytest.mark.parametrize(
    "machine, examples",
    [(InMemory, amount(gate=100, soak=16_000)), (InFile, amount(gate=30, soak=7_000))],
    ids=["memory", "file"],
)
def test_every_copy_is_what_its_target_holds(machine: type[Machine], examples: int) -> None:
    """After any order of what agents, collectors, time and readers do."""
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=40))
