"""What becomes of each message of an agent's stream, by the rules of delivery in ``protos/README.md``. Pure.

An ``Intake`` knows how far each incarnation has come in its stream: what is durable, and what of it is on its way.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyroaring import BitMap64

from wetink.pages import CONTAINERS_MAX, container_count
from wetink.v1.ingest_pb2 import Hello, TargetEnded, TargetMappings, TargetStarted, WriteProtectBatch
from wetink.v1.types_pb2 import (
    END_REASON_EXITED,
    END_REASON_LOST,
    END_REASON_REFUSED,
    END_REASON_UNSPECIFIED,
    EventColumns,
    Pace,
    TargetPosition,
)
from wetink_collector.catalog import TargetRecord
from wetink_collector.errors import (
    BatchCorrupt,
    MessageMalformed,
    PagesTooMany,
    RefusedTooMany,
    RoundGap,
    RoundTooLarge,
    TargetsTooMany,
)
from wetink_collector.event_history import count
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.limits import DEFAULTS, REFUSED_MAX, Limits
from wetink_collector.message_checks import (
    COMMAND_CHARACTERS_MAX,
    NUMBER_MAX,
    check_batch,
    check_mappings,
    check_sets,
    check_started,
    key_of,
    metadata,
    pages_of,
)
from wetink_collector.round_log import Block, RoundPages
from wetink_collector.store.interface import IncarnationEnded, IncarnationStarted, RoundsAppended, encode_stored

ROUND_BYTES_MAX: Final = 64 << 20
"""Bound on the page sets of a round in parts: half of the pages of a terabyte at random take as much."""

EVENTS_BYTES_MAX: Final = 40 << 20
"""Bound on the events of a round in parts: a million. What is beyond it counts as lost; the page sets are whole."""

HALF_ROUNDS_BYTES_MAX: Final = ROUND_BYTES_MAX + EVENTS_BYTES_MAX
"""Bound on all that a stream holds of rounds that are not whole yet: an agent has one of them at a time."""

CONTAINER_BYTES: Final = 256
"""What a container of a set counts for there: it takes as much memory, however few bytes it came in."""

HALF_ROUND_BYTES_MIN: Final = 256 << 10
"""What each of them counts for at least, so that they are no more than some hundred."""

ENDED_KNOWN_MAX: Final = 4096
"""Bound on ended incarnations that a stream knows of: an agent keeps as many, and sends no more of one that ended."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a stream begins with: the incarnations that have ended without it, and where the others go on."""

    lost: Sequence[IncarnationEnded]
    positions: Sequence[TargetPosition]


@dataclass(frozen=True, slots=True)
class AlreadyHere:
    """A batch that has come before. It is acknowledged when it is durable."""

    incarnation: IncarnationKey


@dataclass(frozen=True, slots=True)
class Superseded:
    """A batch that needs no keeping: a newer incarnation has begun, or the collector takes no more of this one."""

    incarnation: IncarnationKey
    last_round: int


def open_stream(hello: Hello, records: Iterable[TargetRecord], now_ns: int) -> Opening:
    """Compare what an agent says it has with what is kept of its host.

    Args:
        hello: Accepted by ``check_hello``.
        records: Every target of the host.
        now_ns: In nanoseconds since the Unix epoch.
    """
    said = {key_of(position.target, position.incarnation, hello): position for position in hello.positions}
    kept = {record.target: record for record in records}
    lost = [
        IncarnationEnded(record.incarnation, END_REASON_LOST, now_ns, "the agent came back without it")
        for record in kept.values()
        if record.ended is None and record.incarnation not in said
    ]
    known = (_known(incarnation, position, kept.get(incarnation.target)) for incarnation, position in said.items())
    return Opening(lost, [position for position in known if position])


class Intake:
    """How far each incarnation of one stream has come."""

    def __init__(self, hello: Hello, records: Collection[TargetRecord], limits: Limits = DEFAULTS) -> None:
        """Begin where what is durable ends.

        Args:
            hello: The stream's first message.
            records: Every target of the host.
            limits: What the agent may take.
        """
        self._hello = hello
        self._limits = limits
        self._tracks: dict[TargetKey, _Track] = {
            record.target: _Track(record.incarnation, record.round, _end_of(record))
            for record in records
            if record.target.boot_id == hello.boot_id
        }
        self._living = {target for target, track in self._tracks.items() if not track.end}
        self._refused = {target for target, track in self._tracks.items() if track.end == END_REASON_REFUSED}
        # Those of which half a round is here.
        self._in_parts: list[_Track] = []
        # Of whom no more comes, in the order of their ends.
        ends = {record.target: record.ended.time_ns for record in records if record.ended}
        self._ended = dict.fromkeys(sorted(self._tracks.keys() - self._living - self._refused, key=ends.__getitem__))

    def started(self, message: TargetStarted) -> IncarnationStarted | None:
        """Take the start of an incarnation; None where it is known.

        An incarnation that the collector itself has ended begins afresh: its agent has not heard of that.

        Raises:
            MessageMalformed: It breaks the contract.
            TargetsTooMany: There are as many as there may be. From now on it is known, as refused.
            RefusedTooMany: There are even too many that are refused.
        """
        incarnation = key_of(message.target, message.incarnation, self._hello)
        check_started(message)
        track = self._tracks.get(incarnation.target)
        if track and incarnation.incarnation < track.incarnation.incarnation:
            return None
        if track and incarnation == track.incarnation and track.end != END_REASON_LOST:
            return None
        self._check_room(incarnation)
        self._tracks[incarnation.target] = _Track(incarnation)
        self._living.add(incarnation.target)
        self._refused.discard(incarnation.target)
        self._ended.pop(incarnation.target, None)
        return IncarnationStarted(incarnation, message)

    def batch(self, message: WriteProtectBatch) -> RoundsAppended | AlreadyHere | Superseded | None:
        """Take a batch; None where more parts are to come.

        Raises:
            MessageMalformed, BatchCorrupt, RoundGap: As ``Stream`` documents them.
            RoundTooLarge, PagesTooMany: It is over a limit. From now on its target is known as refused.
            RefusedTooMany: As ``started``.
        """
        incarnation = key_of(message.target, message.incarnation, self._hello)
        check_batch(message)
        track = self._tracks.get(incarnation.target)
        if track is None or incarnation.incarnation > track.incarnation.incarnation:
            text = f"a batch of {incarnation.target} came before its TargetStarted"
            raise MessageMalformed(text, **metadata(message))
        if incarnation != track.incarnation or track.end == END_REASON_REFUSED:
            return Superseded(incarnation, message.last_round)
        if message.last_round <= track.last_round:
            track.parts = None
            return AlreadyHere(incarnation)
        if track.end or message.first_round > track.last_round + 1:
            text = (
                f"rounds {message.first_round} to {message.last_round} of {incarnation.target} cannot be taken: "
                + ("its incarnation has ended" if track.end else f"the last one here is {track.last_round}")
                + "; reconnect, and go on where Welcome says"
            )
            raise RoundGap(text, **metadata(message))
        try:
            pages = pages_of(message)
            self._check_pages(message, track.page_count(message, pages))
            taken = track.take(message, pages)
            if taken is None:
                self._check_half_rounds(message, track)
        except (PagesTooMany, RoundTooLarge):
            self._refuse(track.incarnation)
            raise
        return taken

    def is_refused(self, incarnation: IncarnationKey) -> bool:
        """Whether no more is taken of an incarnation, because of a limit."""
        track = self._tracks.get(incarnation.target)
        return track is not None and track.incarnation == incarnation and track.end == END_REASON_REFUSED

    def goes_on(self, incarnation: IncarnationKey) -> bool:
        """Whether an incarnation has not ended, as far as its agent has said."""
        track = self._tracks.get(incarnation.target)
        return track is not None and track.incarnation == incarnation and not track.end

    def is_one_too_many(self, message: TargetStarted) -> bool:
        """Whether a target that is new could not even be refused, since too many others are."""
        target = TargetKey.of(message.target)
        return target not in self._living and self._is_one_too_many(target)

    def forget_refused(self, is_known: Callable[[TargetKey], bool]) -> None:
        """Forget those refused targets that nobody knows any more: their agent has not tried for very long."""
        for target in [target for target in self._refused if not is_known(target)]:
            self._refused.discard(target)
            del self._tracks[target]

    def mappings(self, message: TargetMappings) -> IncarnationKey | None:
        """Take a table of mappings: whose it is; None where its incarnation is not the one that goes on here.

        Raises:
            MessageMalformed: It breaks the contract.
        """
        incarnation = key_of(message.target, message.incarnation, self._hello)
        check_mappings(message)
        track = self._tracks.get(incarnation.target)
        return incarnation if track and track.incarnation == incarnation else None

    def check_reached(self, positions: Iterable[TargetPosition]) -> None:
        """Check that what an answer to a command says is of this stream's own host: nobody vouches for another's.

        Raises:
            MessageMalformed: It is of another host, or names no target.
        """
        for position in positions:
            key_of(position.target, position.incarnation, self._hello)

    def ended(self, message: TargetEnded, now_ns: int) -> IncarnationEnded | None:
        """Take the end of an incarnation; None where it is known or nobody asks any more.

        Raises:
            MessageMalformed: It breaks the contract.
        """
        incarnation = key_of(message.target, message.incarnation, self._hello)
        if message.reason == END_REASON_UNSPECIFIED:
            text = f"the end of {incarnation.target} has no reason"
            raise MessageMalformed(text)
        track = self._tracks.get(incarnation.target)
        if track is None or track.incarnation != incarnation:
            return None
        if message.reason == END_REASON_EXITED and incarnation.target in self._refused:
            # It need not be remembered as one that would be missing from answers. No cursor of it goes on all the same.
            self._refused.discard(incarnation.target)
            self._put_ended(incarnation.target)
            return _ended(incarnation, message, now_ns, rounds_dropped=True)
        if track.end:
            return None
        track.end = message.reason
        self._living.discard(incarnation.target)
        self._put_ended(incarnation.target)
        return _ended(incarnation, message, now_ns)

    def _put_ended(self, target: TargetKey) -> None:
        self._ended[target] = None
        if len(self._ended) > ENDED_KNOWN_MAX:
            oldest = next(iter(self._ended))
            del self._ended[oldest], self._tracks[oldest]

    def _check_room(self, incarnation: IncarnationKey) -> None:
        target = incarnation.target
        if target in self._living or len(self._living) < self._limits.targets:
            return
        self._refuse(incarnation)
        text = (
            f"{target} is not covered: an agent may have {self._limits.targets} targets (--agent-targets of the "
            "collector), and this one has as many; let it track fewer"
        )
        raise TargetsTooMany(text, target=str(target), incarnation=str(incarnation.incarnation), round="0")

    def _check_pages(self, message: WriteProtectBatch, round_count: int) -> None:
        page_count = max(message.populated_page_count, round_count)
        if page_count > self._limits.pages:
            text = (
                f"{TargetKey.of(message.target)} is not covered: it has {page_count} pages, and a target may have "
                f"{self._limits.pages} (--target-pages of the collector)"
            )
            raise PagesTooMany(text, **metadata(message))

    def _check_half_rounds(self, message: WriteProtectBatch, newest: "_Track") -> None:
        others = (track for track in self._in_parts if track is not newest)
        self._in_parts = [
            track for track in (*others, newest) if track.parts and self._tracks.get(track.incarnation.target) is track
        ]
        held_bytes = sum(max(track.parts.held_bytes, HALF_ROUND_BYTES_MIN) for track in self._in_parts if track.parts)
        # One alone has bounds of its own.
        if held_bytes > HALF_ROUNDS_BYTES_MAX and len(self._in_parts) > 1:
            text = (
                f"{newest.incarnation.target} is not covered: the rounds of host {self._hello.host_id} of which some "
                f"parts have come, and others not, have over {HALF_ROUNDS_BYTES_MAX} bytes together; its agent must "
                "send the parts of a round one after the other"
            )
            raise RoundTooLarge(text, **metadata(message))

    def _is_one_too_many(self, target: TargetKey) -> bool:
        return target not in self._refused and len(self._refused) >= REFUSED_MAX

    def _refuse(self, incarnation: IncarnationKey) -> None:
        """Take no more of an incarnation.

        Raises:
            RefusedTooMany: Too many are refused already.
        """
        target = incarnation.target
        if self._is_one_too_many(target):
            text = (
                f"{target} is over a limit, and the agent of host {target.host_id} has {REFUSED_MAX} targets that are "
                "refused already: nothing of the host is covered until it tracks fewer"
            )
            raise RefusedTooMany(text)
        known = self._tracks.get(target)
        last_round = known.last_round if known and known.incarnation == incarnation else 0
        self._tracks[target] = _Track(incarnation, last_round, END_REASON_REFUSED)
        self._living.discard(target)
        self._ended.pop(target, None)
        self._refused.add(target)


@dataclass(slots=True)
class _Parts:
    """A round in parts, as far as it has come."""

    rounds: tuple[int, int, int]
    next_part: int = 0
    size_bytes: int = 0
    page_count: int = 0
    container_count: int = 0
    written: BitMap64 = field(default_factory=BitMap64)
    vanished: BitMap64 = field(default_factory=BitMap64)
    uncertain: BitMap64 = field(default_factory=BitMap64)
    events: list[EventColumns] = field(default_factory=list)
    events_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        return self.size_bytes + min(self.events_bytes, EVENTS_BYTES_MAX) + CONTAINER_BYTES * self.container_count

    def add(self, message: WriteProtectBatch, pages: RoundPages) -> None:
        if message.part != self.next_part:
            text = f"part {message.part} of a round of {message.target.pid} came where part {self.next_part} was due"
            raise MessageMalformed(text, **metadata(message))
        self.size_bytes += _size_bytes(message)
        if self.size_bytes > ROUND_BYTES_MAX:
            text = f"round {message.last_round} has page sets of over {ROUND_BYTES_MAX} bytes; track less of it"
            raise RoundTooLarge(text, **metadata(message))
        if not (self.written.isdisjoint(pages.written) and self.vanished.isdisjoint(pages.vanished)):
            text = f"parts of round {message.last_round} share pages"
            raise BatchCorrupt(text, **metadata(message))
        self.page_count += len(pages.written) + len(pages.vanished)
        self.written |= pages.written
        self.vanished |= pages.vanished
        self.uncertain |= pages.uncertain
        self.container_count = sum(map(container_count, (self.written, self.vanished)))
        if self.container_count > CONTAINERS_MAX:
            text = f"round {message.last_round} has pages in over {CONTAINERS_MAX} places; track less of it"
            raise RoundTooLarge(text, **metadata(message))
        self.next_part += 1
        for kept in _events(message):
            self.events_bytes += kept.ByteSize()
            if self.events_bytes <= EVENTS_BYTES_MAX:
                self.events.append(kept)
            else:
                last = self.events[-1]
                last.lost_count = min(last.lost_count + kept.lost_count + count(kept), NUMBER_MAX)


@dataclass(slots=True)
class _Track:
    """How far one incarnation has come; ``end`` is 0 while it lives."""

    incarnation: IncarnationKey
    last_round: int = 0
    end: int = END_REASON_UNSPECIFIED
    parts: _Parts | None = None

    def page_count(self, message: WriteProtectBatch, pages: RoundPages) -> int:
        """Say how many pages have come of a batch's round, with its own."""
        before = self.parts.page_count if self.parts and message.part else 0
        return before + len(pages.written) + len(pages.vanished)

    def take(self, message: WriteProtectBatch, pages: RoundPages) -> RoundsAppended | None:
        if message.part_count == 1:
            self.parts = None
            check_sets(message, pages)
            return self._append(message, pages, _encoded(message), tuple(_events(message)))
        rounds = (message.first_round, message.last_round, message.part_count)
        if self.parts is None or self.parts.rounds != rounds or message.part == 0:
            self.parts = _Parts(rounds)
        self.parts.add(message, pages)
        if self.parts.next_part < message.part_count:
            return None
        parts, self.parts = self.parts, None
        pages = RoundPages(parts.written, parts.vanished, parts.uncertain)
        check_sets(message, pages)
        sets = encode_stored(pages.written), encode_stored(pages.vanished), encode_stored(pages.uncertain)
        return self._append(message, pages, sets, tuple(parts.events))

    def _append(
        self,
        message: WriteProtectBatch,
        pages: RoundPages,
        sets: tuple[bytes, bytes, bytes],
        events: tuple[EventColumns, ...],
    ) -> RoundsAppended:
        # What is said beside the page sets is said of the round, in each of its parts alike.
        block = Block(
            first_round=self.last_round + 1,
            last_round=message.last_round,
            oldest_round=message.first_round,
            level=0,
            # An agent's clock may say anything: it orders nothing, so no round is refused for it.
            first_time_ns=min(message.first_time_ns, NUMBER_MAX),
            last_time_ns=min(message.last_time_ns, NUMBER_MAX),
            frozen=message.frozen,
            written_page_count=len(pages.written),
            vanished_page_count=len(pages.vanished),
            populated_page_count=message.populated_page_count,
            cautious_page_count=message.cautious_page_count,
        )
        self.last_round = message.last_round
        pace = Pace() if message.HasField("pace") else None
        if pace:
            pace.CopyFrom(message.pace)
        written, vanished, uncertain = sets
        return RoundsAppended(self.incarnation, block, written, vanished, events, pace, uncertain)


def _known(incarnation: IncarnationKey, position: TargetPosition, record: TargetRecord | None) -> TargetPosition | None:
    """Say where an incarnation goes on; None where the collector has nothing it could go on from."""
    if record is None or record.incarnation.incarnation < incarnation.incarnation:
        return None
    if record.incarnation != incarnation:
        # A newer one has taken its place: whatever the agent has of the old one is as good as delivered.
        return TargetPosition(
            target=position.target,
            incarnation=position.incarnation,
            round=position.round,
            newer_incarnation=record.incarnation.incarnation,
        )
    if _end_of(record) == END_REASON_LOST:
        return None
    return TargetPosition(
        target=position.target,
        incarnation=position.incarnation,
        round=record.round,
        # One that was cut to the bound is none that the agent knows.
        last_time_ns=record.last.last_time_ns % NUMBER_MAX if record.last else 0,
    )


def _ended(
    incarnation: IncarnationKey, message: TargetEnded, now_ns: int, *, rounds_dropped: bool = False
) -> IncarnationEnded:
    # Our clock, not the agent's: retention counts from it.
    return IncarnationEnded(
        incarnation, message.reason, now_ns, message.message[:COMMAND_CHARACTERS_MAX], rounds_dropped
    )


def _end_of(record: TargetRecord) -> int:
    return record.ended.reason if record.ended else END_REASON_UNSPECIFIED


def _events(message: WriteProtectBatch) -> list[EventColumns]:
    """Give a copy of what is worth keeping, if anything is: the message it came in has the page sets beside it."""
    if not message.HasField("events"):
        return []
    columns = message.events
    counts = columns.lost_count, columns.stream_only_count, columns.census_only_count
    if not columns.address and not any(counts):
        return []
    copy = EventColumns()
    copy.CopyFrom(columns)
    return [copy]


def _encoded(message: WriteProtectBatch) -> tuple[bytes, bytes, bytes]:
    return message.written.roaring64, message.vanished.roaring64, message.uncertain.roaring64


def _size_bytes(message: WriteProtectBatch) -> int:
    return sum(map(len, _encoded(message)))
