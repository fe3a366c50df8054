"""What has been harvested and is not yet durable at the collector. Plain code: no clock, no socket, no thread.

The spool holds rounds until they are acknowledged. Over its bound it unites adjacent unsent rounds of a target:
time resolution is lost, pages never are. What remains then is one round a target, at most 2 bytes a page.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.rounds import Round, unite

SPOOL_BYTES_MAX: Final = 64 << 20
"""A minute of a target that dirties 512 Ki random pages a second, and hours of an ordinary one."""

ENDED_COUNT_MAX: Final = 4096
"""Ended incarnations that wait for a collector which is away, as many as that keeps; over it the oldest are dropped."""

Key = tuple[int, int, int]
"""Pid, start time and incarnation."""


def key_of(target: types_pb2.Target, incarnation: int) -> Key:
    """Give the key of an incarnation on this host."""
    return target.pid, target.start_time_ticks, incarnation


class Journal(Protocol):
    """Writes the spool down, for a worker that comes after this one. It never waits and never fails."""

    def write(self, messages: list[ingest_pb2.AgentMessage]) -> None:
        """Append a round's parts, or the start and the end of an incarnation that has ended."""
        ...

    def is_long(self, needed_bytes: int) -> bool:
        """Whether it has much more than these bytes of rounds that are still needed."""
        ...

    def rewrite(self, messages: list[ingest_pb2.AgentMessage]) -> None:
        """Begin afresh with what is still needed."""
        ...


@dataclass(slots=True)
class _Entry:
    """One incarnation: rounds not yet durable in their order, of which the first ``sent_count`` are on their way."""

    started: ingest_pb2.TargetStarted
    on_durable: Callable[[int], None] | None = None
    rounds: list[Round] = field(default_factory=list)
    sent_count: int = 0
    last_round: int = 0
    # What the collector is known to have, and which round of that number it is; 0 where another process knew that.
    durable_round: int = 0
    durable_time_ns: int = 0
    # Another process has begun it, and may have sent any of its rounds.
    is_taken_over: bool = False
    ended: ingest_pb2.TargetEnded | None = None
    mappings: ingest_pb2.TargetMappings | None = None
    mappings_sent: bool = False
    started_sent: bool = False
    ended_sent: bool = False
    ended_a_while_ago: bool = False
    # Its rounds from some point on are not here any more and never will be: all there is to say is its end.
    is_given_up: bool = False


class Spool:
    """Rounds of all targets of this host, bounded in bytes."""

    def __init__(self, bytes_max: int = SPOOL_BYTES_MAX, journal: Journal | None = None) -> None:
        """Begin empty.

        Args:
            bytes_max: Bound on the encoded rounds; over it unsent rounds are united.
            journal: Where all of it is written down too.
        """
        self._journal = journal
        self.size_bytes = 0
        self.in_flight_bytes = 0
        self.united_round_count = 0
        self._bytes_max = bytes_max
        self._entries: dict[Key, _Entry] = {}
        self._newest_incarnation = 0

    def next_incarnation(self, boot_us: int) -> int:
        """Give the number of an incarnation that begins now: above that of each that was before, here or before a host
        was put back to a snapshot, and its clock with it.

        Args:
            boot_us: Microseconds since boot. No step of the wall clock can make a later incarnation the smaller one.
        """
        return max(boot_us, self._newest_incarnation + 1)

    def start(
        self,
        started: ingest_pb2.TargetStarted,
        *,
        last_round: int = 0,
        on_durable: Callable[[int], None] | None = None,
    ) -> None:
        """Take up an incarnation.

        Args:
            started: Describes it.
            last_round: The last round that is here no longer, of one that another process has begun.
            on_durable: Called with the number of a round that is durable, with all before it.
        """
        entry = _Entry(
            started, on_durable, last_round=last_round, durable_round=last_round, is_taken_over=last_round > 0
        )
        self._entries[key_of(started.target, started.incarnation)] = entry
        self._newest_incarnation = max(self._newest_incarnation, started.incarnation)

    def restore(
        self,
        started: ingest_pb2.TargetStarted,
        rounds: Sequence[Round],
        *,
        last_round: int,
        on_durable: Callable[[int], None] | None = None,
    ) -> None:
        """Take up an incarnation that another process has begun.

        Args:
            started: Describes it.
            rounds: What is still here of it, without a gap.
            last_round: The last round that is not, where none is here.
            on_durable: See ``start``.
        """
        self.start(started, last_round=rounds[0].first - 1 if rounds else last_round, on_durable=on_durable)
        self._entries[key_of(started.target, started.incarnation)].is_taken_over = True
        for each in rounds:
            self.add(key_of(started.target, started.incarnation), each)

    def write_down_afresh(self) -> None:
        """Have the journal begin with what is here, and forget the rest."""
        if self._journal is not None:
            # Of what it has, most is durable by now.
            self._journal.rewrite([message for entry in self._entries.values() for message in _messages(entry)])

    def add(self, key: Key, harvested: Round) -> None:
        """Take a round of a started incarnation; its number follows the last.

        Of one that was dropped or given up it is ignored.
        """
        entry = self._entries.get(key)
        if entry is None or entry.is_given_up:
            return
        assert harvested.first == entry.last_round + 1, (harvested.first, entry.last_round)
        entry.rounds.append(harvested)
        entry.last_round = harvested.last
        self.size_bytes += harvested.size_bytes
        while self.size_bytes > self._bytes_max and (self._unite_largest() or self._drop_oldest_ended()):
            pass
        self._write_down([ingest_pb2.AgentMessage(write_protect_batch=part) for part in harvested.parts])

    def tell_mappings(self, key: Key, mappings: ingest_pb2.TargetMappings) -> None:
        """Take what an incarnation has mapped now: the newest is kept, sent once a stream, and not acknowledged.

        It is below a message's bound, and not among the rounds that ``bytes_max`` is for.
        """
        entry = self._entries.get(key)
        if entry is not None:
            entry.mappings = mappings
            entry.mappings_sent = False

    def end(self, ended: ingest_pb2.TargetEnded) -> None:
        """Take the end of an incarnation; it is kept until it has been sent behind its last round.

        Of very many the oldest is dropped: nobody can move a process that is gone. To a collector that knew it, its end
        is then END_REASON_LOST.
        """
        entry = self._entries.get(key_of(ended.target, ended.incarnation))
        if entry is not None:
            entry.ended = ended
            self._write_down(_end_of(entry))
            over = [key for key, entry in self._entries.items() if entry.ended is not None]
            if len(over) > ENDED_COUNT_MAX:
                self.drop(min(over, key=_incarnation))

    def drop(self, key: Key) -> None:
        """Forget an incarnation, sent or not: another has taken its place."""
        self.give_up(key)
        self._entries.pop(key, None)

    def give_up(self, key: Key) -> None:
        """Forget the rounds of an incarnation that the collector can never take; its end is still sent."""
        entry = self._entries.get(key)
        if entry is not None:
            self.size_bytes -= sum(waiting.size_bytes for waiting in entry.rounds)
            self.in_flight_bytes -= sum(waiting.size_bytes for waiting in entry.rounds[: entry.sent_count])
            # A sender may be in the middle of it: it finds nothing more.
            entry.rounds.clear()
            entry.sent_count = 0
            entry.is_given_up = True

    def positions(self) -> list[types_pb2.TargetPosition]:
        """Give every incarnation in the spool with its last round: what Hello says."""
        return [
            types_pb2.TargetPosition(
                target=entry.started.target, incarnation=entry.started.incarnation, round=entry.last_round
            )
            for entry in self._entries.values()
        ]

    def resume(self, durable: Iterable[types_pb2.TargetPosition]) -> list[Key]:
        """Begin a new stream where the collector's record ends; nothing counts as sent any more.

        Returns:
            The incarnations that live and cannot go on, because rounds the collector lacks are here no longer, or it
            has some that this host does not know of: it was put back to a snapshot. They are dropped. Those that have
            ended are given up: the collector is still told how they ended.
        """
        known = {key_of(position.target, position.incarnation): position for position in durable}
        broken = []
        self._newest_incarnation = max(
            self._newest_incarnation, *(position.newer_incarnation for position in known.values()), 0
        )
        self.in_flight_bytes = 0
        for key, entry in list(self._entries.items()):
            position = known.get(key, types_pb2.TargetPosition())
            # A newer one of a past that is gone is in the way of one that goes on.
            is_in_the_way = position.newer_incarnation > 0 and entry.ended is None
            is_ours = _is_ours(entry, position) and not is_in_the_way
            entry.sent_count = 0
            entry.started_sent = entry.mappings_sent = entry.ended_sent = entry.ended_a_while_ago = False
            has = position.round
            first_here = entry.rounds[0].first if entry.rounds else entry.last_round + 1
            # Of rounds it says it has beyond ours it would ignore what we have yet to harvest.
            if is_ours and first_here <= has + 1 <= entry.last_round + 1:
                self._forget_through(entry, has)
                entry.durable_round, entry.durable_time_ns = has, position.last_time_ns
                entry.is_taken_over = False
            elif entry.ended is not None or entry.is_given_up:
                self.give_up(key)
            else:
                broken.append(key)
                self.drop(key)
        return broken

    def acknowledge(self, positions: Iterable[types_pb2.TargetPosition]) -> None:
        """Let go of what is durable."""
        for position in positions:
            entry = self._entries.get(key_of(position.target, position.incarnation))
            if entry is not None:
                self._forget_through(entry, position.round)

    def unsent(self, in_flight_bytes_max: int) -> Iterator[ingest_pb2.AgentMessage]:
        """Give what is to be sent now, each target's in order, and count it as sent.

        The targets take turns, a round each, so that none waits for ever behind one that writes faster than the
        collector takes. A round goes while the bytes in flight stay within the bound, or alone. Ends when nothing may
        be sent; ask again after an acknowledgement or an addition.
        """
        turns = deque(self._entries)
        while turns:
            key = turns.popleft()
            entry = self._entries.get(key)
            if entry is None:
                continue
            if not entry.started_sent:
                entry.started_sent = True
                yield ingest_pb2.AgentMessage(target_started=entry.started)
            if entry.mappings is not None and not entry.mappings_sent:
                entry.mappings_sent = True
                yield ingest_pb2.AgentMessage(target_mappings=entry.mappings)
            if entry.sent_count < len(entry.rounds):
                waiting = entry.rounds[entry.sent_count]
                if self.in_flight_bytes and self.in_flight_bytes + waiting.size_bytes > in_flight_bytes_max:
                    return
                entry.sent_count += 1
                self.in_flight_bytes += waiting.size_bytes
                # Last in the order from now on, for this call and the next.
                self._entries[key] = self._entries.pop(key)
                turns.append(key)
                for part in waiting.parts:
                    yield ingest_pb2.AgentMessage(write_protect_batch=part)
            elif entry.ended is not None and not entry.ended_sent:
                entry.ended_sent = True
                yield ingest_pb2.AgentMessage(target_ended=entry.ended)

    def forget_ended(self) -> None:
        """Let go of incarnations whose end had been sent, and their rounds were durable, at the last call of this.

        Not at once: an end that was lost with its stream is sent again on the next.
        """
        for key, entry in list(self._entries.items()):
            if entry.ended_a_while_ago:
                del self._entries[key]
            entry.ended_a_while_ago = entry.ended_sent and not entry.rounds

    def has_sent(self, positions: Iterable[types_pb2.TargetPosition]) -> bool:
        """Whether none of these rounds still waits to be sent. Of what is not here, none does."""
        for position in positions:
            entry = self._entries.get(key_of(position.target, position.incarnation))
            if entry is not None and not entry.started_sent:
                return False
            if entry is not None and any(waits.first <= position.round for waits in entry.rounds[entry.sent_count :]):
                return False
        return True

    @property
    def is_empty(self) -> bool:
        """Whether everything has been sent and all rounds are durable."""
        return all(not entry.rounds and (entry.ended is None or entry.ended_sent) for entry in self._entries.values())

    def _write_down(self, messages: list[ingest_pb2.AgentMessage]) -> None:
        if self._journal is None:
            return
        self._journal.write(messages)
        if self._journal.is_long(self.size_bytes):
            self.write_down_afresh()

    def _forget_through(self, entry: _Entry, last: int) -> None:
        while entry.rounds and entry.rounds[0].last <= last:
            gone = entry.rounds.pop(0)
            entry.durable_round, entry.durable_time_ns = gone.last, gone.last_time_ns
            self.size_bytes -= gone.size_bytes
            if entry.sent_count:
                entry.sent_count -= 1
                self.in_flight_bytes -= gone.size_bytes
        if last and entry.on_durable is not None:
            entry.on_durable(last)

    def _drop_oldest_ended(self) -> bool:
        """Forget the incarnation that ended first: its memory is gone or has a newer one. Tell whether one had."""
        for key, entry in self._entries.items():
            if entry.ended is not None:
                self.drop(key)
                return True
        return False

    def _unite_largest(self) -> bool:
        """Make one round of the unsent ones of the target that has most to gain; tell whether there was one."""
        candidates = [entry for entry in self._entries.values() if len(entry.rounds) - entry.sent_count > 1]
        if not candidates:
            return False
        entry = max(candidates, key=_unsent_bytes)
        united, *others = entry.rounds[entry.sent_count :]
        for later in others:
            united = unite(united, later)
        self.size_bytes += united.size_bytes - _unsent_bytes(entry)
        self.united_round_count += len(others)
        entry.rounds[entry.sent_count :] = [united]
        return True


def _is_ours(entry: _Entry, position: types_pb2.TargetPosition) -> bool:
    """Whether the last round that the collector has is one that was sent from here, as far as both can tell.

    Of one that never was, or had another time here, it has the pages of a past that this host was put back from.
    """
    if not position.last_time_ns:
        return True
    may_be_there = entry.rounds if entry.is_taken_over else entry.rounds[: entry.sent_count]
    times_ns = {sent.last: sent.last_time_ns for sent in may_be_there}
    if entry.durable_time_ns:
        times_ns[entry.durable_round] = entry.durable_time_ns
    if position.round in times_ns:
        return times_ns[position.round] == position.last_time_ns
    return entry.is_taken_over or (not entry.durable_time_ns and position.round == entry.durable_round)


def _end_of(entry: _Entry) -> list[ingest_pb2.AgentMessage]:
    """Say how an incarnation has ended; with what it was, which nobody else knows any more."""
    if entry.ended is None:
        return []
    return [
        ingest_pb2.AgentMessage(target_started=entry.started),
        ingest_pb2.AgentMessage(target_ended=entry.ended),
    ]


def _messages(entry: _Entry) -> Iterator[ingest_pb2.AgentMessage]:
    for each in entry.rounds:
        for part in each.parts:
            yield ingest_pb2.AgentMessage(write_protect_batch=part)
    yield from _end_of(entry)


def _incarnation(key: Key) -> int:
    return key[2]


def _unsent_bytes(entry: _Entry) -> int:
    return sum(waiting.size_bytes for waiting in entry.rounds[entry.sent_count :])
