"""The spool against the simplest model of a collector: it folds what it takes and may forget what is not durable."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from tests.support.harvests import (
    INCARNATION,
    Fold,
    ended_of,
    harvest_of,
    make_round,
    position_of,
    sets_of,
    started_of,
    target_of,
    tiny_parts,
    uncertain_of,
)
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent import spool as spool_module
from wetink_agent.rounds import unite
from wetink_agent.spool import Key, Spool, key_of

PIDS = (1, 2, 3)
PAGES = st.frozensets(st.integers(0, 30) | st.integers(0, 1 << 20), max_size=6)
WINDOW = 1 << 20
UNCERTAIN_EACH = 3
"""Which of the written pages are uncertain."""


@dataclass
class Record:
    """What the collector has of one incarnation: the fold after each batch it took, by last round, from 0 on."""

    folds: dict[int, Fold] = field(default_factory=lambda: {0: Fold()})
    parts: list[ingest_pb2.WriteProtectBatch] = field(default_factory=list)
    ended: bool = False
    table_round: int = 0

    @property
    def last(self) -> int:
        """The last round it took."""
        return max(self.folds)


class ModelCollector:
    """Takes messages by the rules of delivery, and asserts that the agent keeps them."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.records: dict[Key, Record] = {}

    def take(self, message: ingest_pb2.AgentMessage) -> None:
        """Take one message of the stream."""
        match message.WhichOneof("message"):
            case "target_started":
                started = message.target_started
                self.records.setdefault(key_of(started.target, started.incarnation), Record())
            case "write_protect_batch":
                self._take_batch(message.write_protect_batch)
            case "target_ended":
                ended = message.target_ended
                record = self.records[key_of(ended.target, ended.incarnation)]
                assert not record.parts, "the end comes behind the last part"
                record.ended = True
            case "target_mappings":
                table = message.target_mappings
                self.records[key_of(table.target, table.incarnation)].table_round = table.round
            case other:
                raise AssertionError(other)

    def _take_batch(self, batch: ingest_pb2.WriteProtectBatch) -> None:
        record = self.records[key_of(batch.target, batch.incarnation)]
        record.parts.append(batch)
        assert [part.part for part in record.parts] == list(range(len(record.parts)))
        assert len({(part.first_round, part.last_round, part.part_count) for part in record.parts}) == 1
        if len(record.parts) < batch.part_count:
            return
        (written, vanished), uncertain = sets_of(record.parts), uncertain_of(record.parts)
        record.parts = []
        assert batch.first_round <= record.last + 1, "ROUND_GAP"
        if batch.last_round > record.last:
            record.folds[batch.last_round] = record.folds[record.last].then(written, vanished, uncertain)

    def cut(self) -> None:
        """Lose the stream: parts of a round that is not whole are discarded."""
        for record in self.records.values():
            record.parts = []

    def lose_after(self, key: Key, last: int) -> None:
        """Come back from a crash in which everything after a durable round of an incarnation was lost."""
        if last == 0:
            self.records.pop(key, None)
            return
        record = self.records[key]
        record.folds = {number: fold for number, fold in record.folds.items() if number <= last}

    def positions(self) -> list[types_pb2.TargetPosition]:
        """Say what it has, as in Welcome."""
        return [position_of(key[0], key[2], last=record.last) for key, record in self.records.items() if record.last]


class SpoolMachine(RuleBasedStateMachine):
    """Random operations on a spool whose rounds travel in tiny parts."""

    incarnations = Bundle("incarnations")

    def __init__(self) -> None:
        """Begin with a stream just opened."""
        super().__init__()
        self.truth: dict[Key, Fold] = {}
        self.last: dict[Key, int] = {}
        self.ended: set[Key] = set()
        self.given_up: set[Key] = set()
        self.tables: dict[Key, int] = {}
        self.living: dict[int, Key] = {}
        self.collector = ModelCollector()
        self.clock = 0
        self.small = tiny_parts()
        self.small.__enter__()

    def teardown(self) -> None:
        """Let everything arrive, and look whether the collector has what was harvested."""
        try:
            if hasattr(self, "spool"):
                self.everything_arrives()
        finally:
            self.small.__exit__(None, None, None)

    @initialize(bytes_max=st.sampled_from([0, 150, 600, 100_000]), data=st.data())
    def begin(self, bytes_max: int, data: st.DataObject) -> None:
        """Make the spool, with two targets."""
        self.spool = Spool(bytes_max)
        self.bytes_max = bytes_max
        for pid in PIDS[:2]:
            self.start(pid, data.draw(PAGES))

    @rule(pid=st.sampled_from(PIDS), populated=PAGES)
    def start(self, pid: int, populated: frozenset[int]) -> None:
        """Begin an incarnation, after the end of the one before, as when a process called execve(2)."""
        if pid in self.living:
            self.end(pid)
        self._begin(pid, populated)

    def _begin(self, pid: int, populated: frozenset[int]) -> None:
        self.clock += 1
        key = key_of(target_of(pid), self.clock)
        self.spool.start(started_of(pid, self.clock))
        self.truth[key], self.last[key] = Fold(), 0
        self.living[pid] = key
        self.add(pid, populated, frozenset())

    @rule(pid=st.sampled_from(PIDS), rounds=st.lists(st.tuples(PAGES, PAGES), min_size=2, max_size=5))
    def add_several(self, pid: int, rounds: list[tuple[frozenset[int], frozenset[int]]]) -> None:
        """Harvest rounds faster than they are sent, after some have been sent."""
        self.send(WINDOW, 1000)
        for written, vanished in rounds:
            self.add(pid, written, vanished)

    @rule(pid=st.sampled_from(PIDS), written=PAGES, vanished=PAGES)
    def add(self, pid: int, written: frozenset[int], vanished: frozenset[int]) -> None:
        """Harvest a round."""
        key = self.living.get(pid)
        if key is None:
            return
        vanished -= written
        uncertain = frozenset(page for page in written if page % UNCERTAIN_EACH == 0)
        self.last[key] += 1
        self.truth[key] = self.truth[key].then(written, vanished, uncertain)
        harvest = harvest_of(written, vanished, uncertain=uncertain)
        self.spool.add(key, make_round(self.last[key], harvest=harvest, pid=pid, incarnation=key[2]))
        unsent = [len(entry.rounds) - entry.sent_count for entry in self.spool._entries.values()]
        assert self.spool.size_bytes <= self.bytes_max or max(unsent) <= 1

    @rule(pid=st.sampled_from(PIDS))
    def end(self, pid: int) -> None:
        """End a target."""
        key = self.living.pop(pid, None)
        if key is not None:
            self.spool.end(ended_of(pid, key[2]))
            self.ended.add(key)

    @rule(pid=st.sampled_from(PIDS), populated=PAGES)
    def resynchronise(self, pid: int, populated: frozenset[int]) -> None:
        """Put a new incarnation in the place of one whose rounds nobody needs any more."""
        key = self.living.pop(pid, None)
        if key is not None:
            self.spool.drop(key)
            self._gone(key)
            self._begin(pid, populated)

    @rule(window=st.sampled_from([0, 1, 120, 500, WINDOW]), count=st.sampled_from([1000, 1000, 1, 2, 3, 5, 8]))
    def send(self, window: int, count: int) -> None:
        """Let messages go, all that may or only so many; a stream that is left in the middle is lost."""
        messages = self.spool.unsent(window)
        for _ in range(count):
            message = next(messages, None)
            if message is None:
                return
            self.collector.take(message)
        self.reconnect(self.collector.positions())

    @rule(pid=st.sampled_from(PIDS), populated=PAGES, count=st.integers(1, 6))
    def drop_while_sending(self, pid: int, populated: frozenset[int], count: int) -> None:
        """Resynchronise in the middle of a target's messages: what still comes is whole or of nobody."""
        messages = self.spool.unsent(WINDOW)
        for _ in range(count):
            message = next(messages, None)
            if message is None:
                break
            self.collector.take(message)
        self.resynchronise(pid, populated)
        for message in messages:
            self.collector.take(message)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """Say that a round the collector has taken is durable."""
        if self.collector.records:
            key = data.draw(st.sampled_from(sorted(self.collector.records)))
            last = data.draw(st.sampled_from(sorted(self.collector.records[key].folds)))
            self.spool.acknowledge([position_of(key[0], key[2], last=last)])

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """Reconnect to a collector whose record ends anywhere, even before what it has acknowledged."""
        for key, record in list(self.collector.records.items()):
            self.collector.lose_after(key, data.draw(st.sampled_from(sorted(record.folds))))
        self.reconnect(self.collector.positions())

    @rule(pid=st.sampled_from(PIDS), number=st.integers(1, 9))
    def tell_mappings(self, pid: int, number: int) -> None:
        """Say what a target has mapped, in place of what was said before."""
        if key := self.living.get(pid):
            table = ingest_pb2.TargetMappings(target=target_of(pid), incarnation=key[2], round=number)
            self.spool.tell_mappings(key, table)
            self.tables[key] = number

    @rule()
    def forget_ended(self) -> None:
        """Tidy up."""
        self.spool.forget_ended()

    def reconnect(self, durable: list[types_pb2.TargetPosition]) -> None:
        """Open a new stream; incarnations that cannot go on begin anew with all their pages, as the tracker does it."""
        self.collector.cut()
        said = {key_of(position.target, position.incarnation) for position in self.spool.positions()}
        known = [position for position in durable if key_of(position.target, position.incarnation) in said]
        for key in self.spool.resume(known):
            self._gone(key)
            if self.living.get(key[0]) == key:
                del self.living[key[0]]
                self._begin(key[0], frozenset({key[0]}))
        for key, entry in self.spool._entries.items():
            if entry.is_given_up:
                assert key in self.ended, "only what has ended may miss rounds"
                self.given_up.add(key)
        for key in [key for key in self.collector.records if key not in said]:
            # Not in Hello: to the collector it has ended.
            self.collector.records[key].ended = True

    def _gone(self, key: Key) -> None:
        self.tables.pop(key, None)
        self.truth.pop(key, None)
        self.last.pop(key, None)
        self.ended.discard(key)

    @invariant()
    def sizes_are_right_and_bounded(self) -> None:
        """Sizes are sums, and never negative."""
        if not hasattr(self, "spool"):
            return
        entries = self.spool._entries.values()
        assert self.spool.size_bytes == sum(waiting.size_bytes for entry in entries for waiting in entry.rounds) >= 0
        sent = sum(waiting.size_bytes for entry in entries for waiting in entry.rounds[: entry.sent_count])
        assert self.spool.in_flight_bytes == sent >= 0

    def everything_arrives(self) -> None:
        """With a collector that takes and keeps everything, each incarnation arrives whole, with its end."""
        self.reconnect(self.collector.positions())
        for _ in range(200):
            for message in self.spool.unsent(300):
                self.collector.take(message)
            self.spool.acknowledge(self.collector.positions())
        assert self.spool.is_empty
        for key in self.truth:
            if key in self.ended and key not in {key_of(p.target, p.incarnation) for p in self.spool.positions()}:
                continue  # tidied up after all of it had been durable, before the collector lost it
            record = self.collector.records[key]
            if key in self.given_up:
                assert record.ended
                continue
            assert record.last == self.last[key]
            assert record.folds[record.last] == self.truth[key]
            assert record.ended == (key in self.ended)
            assert record.table_round == self.tables.get(key, 0)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def pids_of(messages: Iterable[ingest_pb2.AgentMessage]) -> list[int]:
    """Give whose rounds were sent, in order."""
    return [message.write_protect_batch.target.pid for message in messages if message.HasField("write_protect_batch")]


def spool_of(*pids: int) -> Spool:
    """Make a spool in which each of these targets has begun."""
    spool = Spool()
    for pid in pids:
        spool.start(started_of(pid))
    return spool


def test_the_end_of_an_incarnation_is_told_even_where_its_rounds_are_lost() -> None:
    """The collector came back without rounds of a process that is gone: it does not look alive for ever."""
    spool = spool_of(7)
    key = key_of(target_of(7), INCARNATION)
    spool.add(key, make_round(1, [1]))
    list(spool.unsent(1 << 20))
    spool.acknowledge([position_of(7, last=1)])
    spool.add(key, make_round(2, [2]))
    spool.end(ended_of(7))

    assert spool.resume([]) == []
    assert [message.WhichOneof("message") for message in spool.unsent(1 << 20)] == ["target_started", "target_ended"]
    assert spool.size_bytes == 0
    assert spool.is_empty


def test_an_incarnation_the_collector_has_more_rounds_of_cannot_go_on() -> None:
    """Rounds numbered like those the collector has already would be ignored there: a new incarnation must begin."""
    spool = spool_of(7)
    key = key_of(target_of(7), INCARNATION)
    spool.add(key, make_round(1, [1]))

    assert spool.resume([position_of(7, last=2)]) == [key]
    assert spool.positions() == []


def at(time_ns: int, position: types_pb2.TargetPosition) -> types_pb2.TargetPosition:
    """Say which round of its number is meant."""
    position.last_time_ns = time_ns
    return position


def test_rounds_of_a_past_that_this_host_was_put_back_from_are_not_its_own() -> None:
    """
    Put back to a snapshot, an agent counts the same numbers again. The collector would ignore what has a number it has,
    and its copies hold writes that were undone: a new incarnation must begin, whatever of it waits or is united.
    """
    for acknowledged, united in product((0, 1), (False, True)):
        spool = spool_of(7)
        key = key_of(target_of(7), INCARNATION)
        spool.add(key, make_round(1, harvest=harvest_of([1], time_ns=101)))
        list(spool.unsent(1 << 20))
        spool.acknowledge([position_of(7, last=acknowledged)])
        snapshot = deepcopy(spool)
        for put_back in (spool, snapshot):
            first, second = (
                make_round(number, harvest=harvest_of([number], time_ns=time_ns + (put_back is snapshot)))
                for number, time_ns in ((2, 102), (3, 103))
            )
            for waiting in (unite(first, second),) if united else (first, second):
                put_back.add(key, waiting)
        list(spool.unsent(1 << 20))

        for told in (at(103, position_of(7, last=3)), at(102, position_of(7, last=2))):
            assert deepcopy(snapshot).resume([told]) == [key]
            if not united:
                assert deepcopy(spool).resume([told]) == []
        assert deepcopy(spool).resume([at(103, position_of(7, last=3))]) == []
        assert deepcopy(snapshot).resume([at(101, position_of(7, last=1))]) == []
        # One that is older than that time does not tell it.
        assert deepcopy(snapshot).resume([position_of(7, last=3)]) == []


def test_incarnation_that_a_newer_one_of_a_gone_past_is_in_the_way_of_begins_anew() -> None:
    """Its rounds would be thrown away for good. The new one's number is above that, whatever the clock says by then."""
    spool = spool_of(7, 8)
    key, ended = (key_of(target_of(pid), INCARNATION) for pid in (7, 8))
    spool.end(ended_of(8))
    told = [position_of(pid, last=0) for pid in (7, 8)]
    for position in told:
        position.newer_incarnation = INCARNATION + 50

    assert spool.resume(told) == [key]
    assert [key_of(position.target, position.incarnation) for position in spool.positions()] == [ended]
    assert spool.next_incarnation(INCARNATION + 10) == INCARNATION + 51
    assert spool.next_incarnation(INCARNATION + 90) == INCARNATION + 90


def test_incarnations_go_up_where_the_clock_does_not() -> None:
    """Those of the same microsecond, and those of a clock that was set back."""
    spool = Spool()
    spool.start(started_of(7))

    assert spool.next_incarnation(0) == spool.next_incarnation(INCARNATION) == INCARNATION + 1


def test_rounds_that_another_process_has_sent_are_taken_for_this_host_s_own() -> None:
    """A worker that has taken over does not know what was sent before it. From the first Welcome on it does."""
    spool = Spool()
    rounds = [make_round(number, harvest=harvest_of([1], time_ns=100 + number)) for number in (5, 6)]
    spool.restore(started_of(7), rounds, last_round=0)
    key = key_of(target_of(7), INCARNATION)
    spool.start(started_of(8), last_round=9)
    ninth = at(999, position_of(8, last=9))

    assert deepcopy(spool).resume([at(104, position_of(7, last=4)), ninth]) == []
    assert deepcopy(spool).resume([at(555, position_of(7, last=5)), ninth]) == [key]
    assert spool.resume([at(105, position_of(7, last=5)), ninth]) == []
    assert spool.resume([at(106, position_of(7, last=5)), ninth]) == [key]
    # What is united here may have been sent apart.
    spool.restore(started_of(7), [unite(*rounds)], last_round=0)
    assert spool.resume([at(105, position_of(7, last=5)), ninth]) == []


def test_a_busy_target_does_not_keep_others_from_being_sent() -> None:
    """Where the window lets one round go at a time, each target has its turn, however much the first one writes."""
    spool = spool_of(1, 2, 3)
    sent = []
    for number in range(1, 9):
        for pid in (1, 2, 3) if number == 1 else (1, 1):
            key = key_of(target_of(pid), INCARNATION)
            last = next(p.round for p in spool.positions() if p.target.pid == pid)
            spool.add(key, make_round(last + 1, range(number), pid=pid))
        messages = list(spool.unsent(1))
        sent += pids_of(messages)
        for message in messages:
            if message.HasField("write_protect_batch"):
                batch = message.write_protect_batch
                spool.acknowledge([position_of(batch.target.pid, last=batch.last_round)])

    assert {1, 2, 3} <= set(sent)


def test_processes_that_come_and_go_while_the_collector_is_away_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the ended incarnations the youngest are kept, of the living all: Hello stays small, and so does memory."""
    monkeypatch.setattr(spool_module, "ENDED_COUNT_MAX", 50)
    spool = spool_of(1)
    for number in range(500):
        spool.start(started_of(2, number))
        spool.add(key_of(target_of(2), number), make_round(1, [1], pid=2, incarnation=number))
        spool.end(ended_of(2, number))
    kept = spool.positions()

    assert sorted(position.incarnation for position in kept if position.target.pid == 2) == list(range(450, 500))
    assert [position.target.pid for position in kept][:1] == [1]
    assert spool.size_bytes == sum(w.size_bytes for entry in spool._entries.values() for w in entry.rounds)
