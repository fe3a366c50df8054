"""The rules of delivery, message by message."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.unit.collector.changes import appended, ended, incarnation, pages_of_fates, started, target
from wetink.pages import encode
from wetink.v1.ingest_pb2 import Hello, TargetEnded, TargetStarted, WriteProtectBatch
from wetink.v1.types_pb2 import (
    END_REASON_EXEC,
    END_REASON_EXITED,
    END_REASON_LOST,
    AddressRange,
    EndReason,
    EventColumns,
    TargetPosition,
    ThreadName,
)
from wetink_collector import intake
from wetink_collector.catalog import TargetRecord
from wetink_collector.errors import BatchCorrupt, MessageMalformed, Refusal, RoundGap, RoundTooLarge
from wetink_collector.identity import IncarnationKey
from wetink_collector.intake import AlreadyHere, Intake, Superseded, open_stream
from wetink_collector.message_checks import check_hello
from wetink_collector.round_log import RoundPages, merge
from wetink_collector.store.interface import IncarnationEnded, IncarnationStarted, RoundsAppended, decode_stored

ONE = incarnation()
NEWER = IncarnationKey(ONE.target, 2)


Message = TypeVar("Message", Hello, TargetStarted, TargetEnded, WriteProtectBatch)


def with_fields(message: Message, fields: Mapping[str, object]) -> Message:
    """Give a message further fields, in place of those it has."""
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def hello(*positions: tuple[IncarnationKey, int], **fields: object) -> Hello:
    """Give the Hello of ``host-1``."""
    message = Hello(
        protocol_version=1,
        host_id="host-1",
        boot_id="boot-1",
        positions=[
            TargetPosition(target=key.target.message(), incarnation=key.incarnation, round=number)
            for key, number in positions
        ],
    )
    return with_fields(message, fields)


def record(key: IncarnationKey = ONE, last_round: int = 0, end: IncarnationEnded | None = None) -> TargetRecord:
    """Give what is kept of an incarnation."""
    last = appended(key, last_round).block if last_round else None
    return TargetRecord(key, started(key).started, last, ended=end)


def batch(
    first: int,
    last: int | None = None,
    written: Iterable[int] = (),
    vanished: Iterable[int] = (),
    *,
    key: IncarnationKey = ONE,
    part: int = 0,
    part_count: int = 1,
    **fields: object,
) -> WriteProtectBatch:
    """Give a batch."""
    message = WriteProtectBatch(
        target=key.target.message(),
        incarnation=key.incarnation,
        first_round=first,
        last_round=last or first,
        part=part,
        part_count=part_count,
        written=encode(BitMap64(written)),
        vanished=encode(BitMap64(vanished)),
    )
    return with_fields(message, fields)


def end(key: IncarnationKey = ONE, **fields: object) -> TargetEnded:
    """Give an end."""
    message = TargetEnded(target=key.target.message(), incarnation=key.incarnation, reason=END_REASON_EXITED)
    return with_fields(message, fields)


def pages_of(taken: object) -> RoundPages:
    """Give the pages of a batch that was taken."""
    assert isinstance(taken, RoundsAppended)
    sets = taken.written, taken.vanished, taken.uncertain
    return RoundPages(*(decode_stored(data, taken.incarnation) for data in sets))


@pytest.fixture
def stream() -> Intake:
    """Give the stream of a host whose target has come to round 5."""
    return Intake(hello(), [record(last_round=5)])


def test_next_round_is_taken(stream: Intake) -> None:
    """With its pages, and all that is said about it."""
    taken = stream.batch(
        batch(
            6,
            written=[1, 2],
            vanished=[3],
            first_time_ns=10,
            last_time_ns=11,
            frozen=True,
            populated_page_count=9,
            cautious_page_count=1,
        )
    )

    assert isinstance(taken, RoundsAppended)
    block = taken.block
    assert (block.first_round, block.last_round, block.oldest_round, block.level) == (6, 6, 6, 0)
    assert (block.first_time_ns, block.last_time_ns, block.frozen) == (10, 11, True)
    assert (block.written_page_count, block.vanished_page_count) == (2, 1)
    assert (block.populated_page_count, block.cautious_page_count) == (9, 1)
    assert pages_of(taken) == RoundPages(BitMap64([1, 2]), BitMap64([3]))


def test_round_may_follow_one_that_is_not_durable_yet(stream: Intake) -> None:
    """The stream goes on without waiting for the disk."""
    stream.batch(batch(6))

    assert isinstance(stream.batch(batch(7)), RoundsAppended)


def test_round_after_a_gap_is_refused(stream: Intake) -> None:
    """It names the target, the incarnation and the round."""
    with pytest.raises(RoundGap, match="the last one here is 5") as refusal:
        stream.batch(batch(7))

    assert refusal.value.metadata == {"target": "host-1/1@100", "incarnation": "1", "round": "7"}


@pytest.mark.parametrize("first, last", [(1, 1), (5, 5), (1, 5), (3, 4)])
def test_rounds_that_are_here_are_ignored(stream: Intake, first: int, last: int) -> None:
    """A duplicate changes nothing."""
    assert stream.batch(batch(first, last, written=[1])) == AlreadyHere(ONE)


def test_batch_that_overlaps_is_taken_whole(stream: Intake) -> None:
    """It ends the log at its last round, and what it has of older ones is known."""
    taken = stream.batch(batch(4, 8, written=[1]))

    assert isinstance(taken, RoundsAppended)
    assert (taken.block.first_round, taken.block.last_round, taken.block.oldest_round) == (6, 8, 4)
    assert isinstance(stream.batch(batch(9)), RoundsAppended)


def test_parts_become_one_round_when_the_last_has_come(stream: Intake) -> None:
    """Nothing counts before; then all pages do."""
    assert stream.batch(batch(6, written=[1], vanished=[7], part=0, part_count=3, cautious_page_count=2)) is None
    assert stream.batch(batch(6, written=[2], part=1, part_count=3)) is None
    taken = stream.batch(batch(6, written=[3], vanished=[8], part=2, part_count=3, cautious_page_count=2))

    assert pages_of(taken) == RoundPages(BitMap64([1, 2, 3]), BitMap64([7, 8]))
    assert isinstance(taken, RoundsAppended)
    assert (taken.block.written_page_count, taken.block.vanished_page_count) == (3, 2)
    assert taken.block.cautious_page_count == 2


def test_events_over_the_bound_are_lost_and_counted(stream: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names without events are not kept and take no room; the page sets are whole, and no number overflows."""
    monkeypatch.setattr(intake, "EVENTS_BYTES_MAX", 100)
    names = EventColumns(threads=[ThreadName(thread_id=1, name="x" * 150)])
    parts = [names, names, EventColumns(address=bytes(40)), EventColumns(address=bytes(160), lost_count=2**63 - 1)]
    taken = None
    for number, columns in enumerate(parts):
        message = batch(6, written=[number], part=number, part_count=len(parts))
        message.events.CopyFrom(columns)
        taken = stream.batch(message)

    assert isinstance(taken, RoundsAppended)
    assert [len(kept.address) for kept in taken.events] == [40]
    assert taken.events[0].lost_count == 2**63 - 1
    assert pages_of(taken).written == BitMap64(range(4))


def test_pace_is_that_of_the_round_and_within_reason(stream: Intake) -> None:
    """What no processor can spend, and what is no number, is refused; counts of divergence are kept without events."""
    message = batch(6, written=[1])
    message.pace.interval_ms, message.pace.agent_share, message.pace.target_share = 500, 0.25, 3.5
    message.events.census_only_count = 7
    taken = stream.batch(message)

    assert isinstance(taken, RoundsAppended)
    assert taken.pace == message.pace
    assert [kept.census_only_count for kept in taken.events] == [7]
    for share in (-0.1, math.nan, math.inf):
        broken = batch(7, written=[1])
        broken.pace.target_share = share
        with pytest.raises(MessageMalformed, match="shares"):
            stream.batch(broken)


def test_parts_of_another_round_discard_what_came(stream: Intake) -> None:
    """The agent united more rounds before it sent the last part."""
    stream.batch(batch(6, written=[1], part=0, part_count=2))
    stream.batch(batch(6, 7, written=[2], part=0, part_count=2))

    assert pages_of(stream.batch(batch(6, 7, written=[3], part=1, part_count=2))).written == BitMap64([2, 3])


def test_whole_batch_discards_parts(stream: Intake) -> None:
    """A round that came in one piece is not added to pieces of another."""
    stream.batch(batch(6, written=[1], part=0, part_count=2))

    assert pages_of(stream.batch(batch(6, written=[2]))).written == BitMap64([2])
    with pytest.raises(MessageMalformed):
        stream.batch(batch(7, written=[3], part=1, part_count=2))


def test_half_rounds_of_many_targets_are_bounded_together(stream: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins rounds of many targets and ends none would fill the memory; those that are whole count no more."""
    monkeypatch.setattr(intake, "HALF_ROUNDS_BYTES_MAX", 4 * intake.HALF_ROUND_BYTES_MIN)
    others = [incarnation(pid) for pid in range(2, 7)]
    for other in others:
        stream.started(started(other).started)
    for _ in range(9):
        for other in others[:3]:
            assert stream.batch(batch(1, written=[1], part=0, part_count=2, key=other)) is None
        assert stream.batch(batch(6, written=[1], part=0, part_count=3)) is None
    with pytest.raises(RoundTooLarge, match="one after the other") as refusal:
        stream.batch(batch(1, written=[1], part=0, part_count=2, key=others[3]))
    assert refusal.value.metadata["target"] == str(others[3].target)
    assert stream.is_refused(others[3])

    assert isinstance(stream.batch(batch(1, written=[2], part=1, part_count=2, key=others[0])), RoundsAppended)
    assert stream.batch(batch(1, written=[1], part=0, part_count=2, key=others[4])) is None
    # Bytes count, and what pages far from each other take in memory.
    large = batch(6, written=range(1 << 17, 1 << 28, 1 << 16), part=1, part_count=3)
    with pytest.raises(RoundTooLarge, match="one after the other"):
        stream.batch(large)


def test_half_a_round_alone_has_bounds_of_its_own(stream: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that sends the parts of a round one after the other is never refused for what waits of others."""
    monkeypatch.setattr(intake, "HALF_ROUNDS_BYTES_MAX", 1)
    for number in range(6, 9):
        parts = [batch(number, written=[part], part=part, part_count=3) for part in range(3)]
        assert [stream.batch(part) for part in parts[:2]] == [None, None]
        assert isinstance(stream.batch(parts[2]), RoundsAppended)


def test_first_part_again_begins_again(stream: Intake) -> None:
    """Parts are not counted twice."""
    stream.batch(batch(6, written=[1], part=0, part_count=2))
    stream.batch(batch(6, written=[1], part=0, part_count=2))

    assert pages_of(stream.batch(batch(6, written=[2], part=1, part_count=2))).written == BitMap64([1, 2])


@pytest.mark.parametrize("part", [1, 3])
def test_part_out_of_order_is_refused(stream: Intake, part: int) -> None:
    """The transport keeps the order: who breaks it has lost something."""
    stream.batch(batch(6, written=[1], part=0, part_count=4))
    stream.batch(batch(6, written=[2], part=1, part_count=4))

    with pytest.raises(MessageMalformed, match="where part 2 was due"):
        stream.batch(batch(6, written=[3], part=part, part_count=4))


def test_parts_that_share_pages_are_corrupt(stream: Intake) -> None:
    """Their counts would not add up."""
    stream.batch(batch(6, written=[1, 2], part=0, part_count=2))

    with pytest.raises(BatchCorrupt, match="share pages"):
        stream.batch(batch(6, written=[2], part=1, part_count=2))


def test_round_over_the_bound_is_refused(stream: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts cannot be used to fill the memory."""
    monkeypatch.setattr(intake, "ROUND_BYTES_MAX", 100)
    stream.batch(batch(6, written=range(0, 100, 3), part=0, part_count=9))

    with pytest.raises(RoundTooLarge, match="track less"):
        stream.batch(batch(6, written=range(100, 200, 3), part=1, part_count=9))


def corrupt_checksum(message: WriteProtectBatch) -> None:
    """Change a byte that the checksum covers."""
    message.written.crc32 ^= 1


def corrupt_count(message: WriteProtectBatch) -> None:
    """Claim a page more."""
    message.vanished.page_count += 1


def corrupt_bytes(message: WriteProtectBatch) -> None:
    """Send no bitmap at all."""
    message.written.roaring64 = b""


def corrupt_sets(message: WriteProtectBatch) -> None:
    """Let a page be written and vanished."""
    message.vanished.CopyFrom(message.written)


@pytest.mark.parametrize("corrupt", [corrupt_checksum, corrupt_count, corrupt_bytes, corrupt_sets])
def test_corrupt_page_sets_are_refused_and_the_round_may_come_again(
    stream: Intake, corrupt: Callable[[WriteProtectBatch], None]
) -> None:
    """It names the target, the incarnation and the round, and nothing of it counts."""
    message = batch(6, written=[1, 2], vanished=[3])
    corrupt(message)

    with pytest.raises(BatchCorrupt) as refusal:
        stream.batch(message)

    assert refusal.value.metadata == {"target": "host-1/1@100", "incarnation": "1", "round": "6"}
    assert isinstance(stream.batch(batch(6, written=[1, 2])), RoundsAppended)


BROKEN_BATCHES = {
    "round 0": batch(0, 1),
    "last round before first": batch(7, 6),
    "part beyond count": batch(6, part=1, part_count=1),
    "no parts": batch(6, part_count=0),
    "huge round": batch(6, 1 << 63),
    "huge populated count": batch(6, populated_page_count=1 << 63),
    "huge cautious count": batch(6, cautious_page_count=1 << 63),
    "too many mapped": batch(6, mapped=[AddressRange(start_address=4096, size_bytes=4096)] * 1025),
    "too many unmapped": batch(6, unmapped=[AddressRange(start_address=4096, size_bytes=4096)] * 1025),
    "another host": batch(6, key=IncarnationKey(target(host_id="host-2"), 1)),
    "another boot": batch(6, key=IncarnationKey(target(boot_id="boot-2"), 1)),
    "no pid": batch(6, key=IncarnationKey(target(0), 1)),
    "huge start time": batch(6, key=IncarnationKey(target(start_time_ticks=1 << 63), 1)),
    "huge incarnation": batch(6, key=IncarnationKey(target(), 1 << 63)),
    "target not started": batch(1, key=IncarnationKey(target(2), 1)),
    "incarnation not started": batch(1, key=NEWER),
}


@pytest.mark.parametrize("message", BROKEN_BATCHES.values(), ids=BROKEN_BATCHES.keys())
def test_batch_that_breaks_the_contract_is_refused(stream: Intake, message: WriteProtectBatch) -> None:
    """Rounds, parts, bounds, the stream's own host, and a start that was never said."""
    with pytest.raises(MessageMalformed):
        stream.batch(message)


def test_start_is_idempotent(stream: Intake) -> None:
    """Said again, it changes nothing; said newer, the rounds count from 1."""
    assert stream.started(started(ONE).started) is None
    assert stream.started(started(NEWER).started) == IncarnationStarted(NEWER, started(NEWER).started)
    assert stream.started(started(NEWER).started) is None
    assert stream.started(started(ONE).started) is None
    assert isinstance(stream.batch(batch(1, key=NEWER)), RoundsAppended)


@pytest.mark.parametrize(
    "fields",
    [
        {"page_size": 0},
        {"command": "x" * 257},
        {"cgroup": "/" * 4097},
        {"backend_reason": "x" * 4097},
        {"scope": [AddressRange(start_address=4096, size_bytes=4096)] * 1025},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_start_that_breaks_the_contract_is_refused(stream: Intake, fields: dict[str, object]) -> None:
    """Each field has its bound."""
    message = with_fields(TargetStarted(target=target(9).message(), incarnation=1, page_size=4096), fields)

    with pytest.raises(MessageMalformed):
        stream.started(message)


@pytest.mark.parametrize(
    "labels",
    [{"pod": "x" * 254}, {"x" * 64: ""}, {"": "x"}, {"pod": "two\nlines"}, {f"k{number}": "" for number in range(33)}],
    ids=["value", "key", "no key", "lines", "number"],
)
def test_label_that_breaks_the_contract_is_refused(stream: Intake, labels: dict[str, str]) -> None:
    """Labels are bounded, and none can speak to a terminal."""
    message = TargetStarted(target=target(9).message(), incarnation=1, page_size=4096, labels=labels)

    with pytest.raises(MessageMalformed):
        stream.started(message)


def test_labels_within_their_bounds_are_taken(stream: Intake) -> None:
    """As many, and as long, as the contract allows."""
    labels = {f"{number:02}".rjust(63, "k"): "x" * 253 for number in range(32)}
    message = TargetStarted(target=target(9).message(), incarnation=1, page_size=4096, labels=labels)

    assert stream.started(message) is not None


def test_batch_of_an_older_incarnation_is_as_good_as_delivered(stream: Intake) -> None:
    """No reader can ask for it, so the agent may let go of it."""
    stream.started(started(NEWER).started)

    assert stream.batch(batch(77)) == Superseded(ONE, 77)


def test_end_is_taken_once(stream: Intake) -> None:
    """With our time: retention counts from it. Said again, it changes nothing."""
    taken = stream.ended(end(message="killed", time_ns=1), now_ns=42)

    assert taken == IncarnationEnded(ONE, END_REASON_EXITED, 42, "killed")
    assert stream.ended(end(), now_ns=43) is None


def test_end_of_what_is_not_kept_is_ignored(stream: Intake) -> None:
    """Of a target never heard of, and of an older incarnation."""
    assert stream.ended(end(incarnation(2)), now_ns=1) is None
    stream.started(started(NEWER).started)
    assert stream.ended(end(ONE), now_ns=1) is None


def test_end_without_a_reason_is_refused(stream: Intake) -> None:
    """A reader must be told how it ended."""
    with pytest.raises(MessageMalformed):
        stream.ended(end(reason=0), now_ns=1)


def test_batch_after_the_end_is_refused_and_a_duplicate_is_not(stream: Intake) -> None:
    """The end comes after the last batch."""
    stream.ended(end(), now_ns=1)

    assert stream.batch(batch(5)) == AlreadyHere(ONE)
    with pytest.raises(RoundGap, match="has ended"):
        stream.batch(batch(6))


def test_of_very_many_ended_targets_the_oldest_is_unknown(stream: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may last for months: what it knows of targets that are gone has a bound, and those that live stay."""
    monkeypatch.setattr(intake, "ENDED_KNOWN_MAX", 2)
    keys = [incarnation(pid) for pid in (2, 3, 4, 5)]
    for key in keys:
        stream.started(started(key).started)
        stream.batch(batch(1, key=key))
    for key in keys[:3]:
        stream.ended(end(key), now_ns=1)

    assert [stream.batch(batch(1, key=key)) for key in keys[1:]] == [AlreadyHere(key) for key in keys[1:]]
    assert stream.batch(batch(6)) is not None
    with pytest.raises(MessageMalformed, match="before its TargetStarted"):
        stream.batch(batch(1, key=keys[0]))


def test_the_oldest_is_the_one_that_ended_first_also_before_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order those that ended before are told in."""
    monkeypatch.setattr(intake, "ENDED_KNOWN_MAX", 20)
    keys = [incarnation(pid) for pid in range(2, 22)]
    records = [record(key, 1, ended(key, time_ns=number)) for number, key in enumerate(keys)]
    stream = Intake(hello(), [record(ONE), *reversed(records)])
    stream.ended(end(), now_ns=100)

    assert [stream.batch(batch(1, key=key)) for key in keys[1:]] == [AlreadyHere(key) for key in keys[1:]]
    with pytest.raises(MessageMalformed, match="before its TargetStarted"):
        stream.batch(batch(1, key=keys[0]))


def test_hello_of_another_version_is_refused() -> None:
    """An agent that speaks otherwise is not half understood."""
    with pytest.raises(MessageMalformed, match="version 2"):
        check_hello(hello(protocol_version=2))


BROKEN_HELLOS = {
    "no host": hello(host_id=""),
    "no host name": hello(host_id="a b"),
    "no boot": hello(boot_id=""),
    "long boot": hello(boot_id="x" * 65),
    "long version": hello(agent_version="x" * 257),
    "target of another host": hello((IncarnationKey(target(host_id="host-2"), 1), 1)),
    "target of another boot": hello((IncarnationKey(target(boot_id="boot-2"), 1), 1)),
    "huge round": hello((ONE, 1 << 63)),
}


@pytest.mark.parametrize("message", BROKEN_HELLOS.values(), ids=BROKEN_HELLOS.keys())
def test_hello_that_breaks_the_contract_is_refused(message: Hello) -> None:
    """A host writes for itself only."""
    with pytest.raises(MessageMalformed):
        check_hello(message)


def test_welcome_names_the_last_durable_round_of_each_that_is_known() -> None:
    """Whatever the agent says it has; with the time by which that knows which round of the number it is."""
    known = record(last_round=5)
    opening = open_stream(hello((ONE, 9), (incarnation(2), 3)), [known], 1)

    assert known.last
    assert [
        (position.target.pid, position.incarnation, position.round, position.last_time_ns)
        for position in opening.positions
    ] == [(1, 1, 5, known.last.last_time_ns)]
    assert known.last.last_time_ns
    assert opening.lost == []


def test_what_lives_here_and_is_not_in_hello_is_lost() -> None:
    """Of this boot and of earlier ones; what has ended stays as it ended."""
    earlier = IncarnationKey(target(7, boot_id="boot-0"), 1)
    exited = record(incarnation(3), 2, ended(incarnation(3)))

    opening = open_stream(
        hello((incarnation(2), 1)), [record(), record(incarnation(2), 1), exited, record(earlier)], 42
    )

    assert [(lost.incarnation, lost.reason, lost.time_ns) for lost in opening.lost] == [
        (ONE, END_REASON_LOST, 42),
        (earlier, END_REASON_LOST, 42),
    ]


def test_newer_incarnation_in_hello_means_the_older_is_lost() -> None:
    """What was written between the two nobody knows."""
    opening = open_stream(hello((NEWER, 1)), [record(last_round=5)], 1)

    assert [lost.incarnation for lost in opening.lost] == [ONE]
    assert opening.positions == []


def test_rounds_of_an_older_incarnation_count_as_delivered() -> None:
    """The agent still has rounds of it to send; it need not."""
    opening = open_stream(hello((ONE, 9), (NEWER, 2)), [record(NEWER, 1)], 1)

    assert [(position.incarnation, position.round, position.newer_incarnation) for position in opening.positions] == [
        (1, 9, 2),
        (2, 1, 0),
    ]


def test_lost_incarnation_that_comes_back_begins_afresh() -> None:
    """
    The collector has ended it, and readers may have been told: it does not go on from where it was. If its agent still
    holds round 1, it is taken from there; otherwise the gap makes it begin a new one.
    """
    records = [record(last_round=5, end=ended(ONE, END_REASON_LOST))]
    assert open_stream(hello((ONE, 9)), records, 1).positions == []
    stream = Intake(hello((ONE, 9)), records)

    with pytest.raises(RoundGap):
        stream.batch(batch(6))
    assert stream.started(started(ONE).started) == IncarnationStarted(ONE, started(ONE).started)
    with pytest.raises(RoundGap):
        stream.batch(batch(6))
    assert isinstance(stream.batch(batch(1, 6)), RoundsAppended)


@pytest.mark.parametrize("reason", [END_REASON_EXITED, END_REASON_EXEC])
def test_incarnation_that_its_agent_ended_is_known_and_stays_ended(reason: EndReason.ValueType) -> None:
    """After a reconnect the agent learns that its last rounds are durable."""
    records = [record(last_round=5, end=ended(ONE, reason))]

    assert [position.round for position in open_stream(hello((ONE, 5)), records, 1).positions] == [5]
    assert Intake(hello((ONE, 5)), records).started(started(ONE).started) is None


def test_targets_of_an_earlier_boot_are_not_of_this_stream() -> None:
    """The same pid and start time on another boot is another process."""
    earlier = IncarnationKey(target(boot_id="boot-0"), 1)
    stream = Intake(hello(), [record(earlier, 5)])

    with pytest.raises(MessageMalformed):
        stream.batch(batch(6))


_fates = st.lists(st.sampled_from("wuv-"), min_size=5, max_size=5)


@given(
    raw=st.lists(_fates, min_size=1, max_size=12),
    sent=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=40),
)
def test_any_delivery_ends_in_the_same_sets(raw: list[list[str]], sent: list[tuple[int, int]]) -> None:
    """After duplicates, overlaps and gaps in any order, what was taken folds to what the raw rounds do."""
    rounds = [pages_of_fates(one) for one in raw]
    stream = Intake(hello(), [record()])
    union = RoundPages(BitMap64(), BitMap64())
    last = 0
    everything = [(min(pair), max(pair)) for pair in sent] + [(number, number) for number in range(1, len(rounds) + 1)]
    for first, end_round in everything:
        if end_round > len(rounds):
            continue
        pages = RoundPages(BitMap64(), BitMap64())
        for number in range(first, end_round + 1):
            pages = merge(pages, rounds[number - 1])
        try:
            said = batch(first, end_round, pages.written, pages.vanished)
            said.uncertain.CopyFrom(encode(pages.uncertain))
            taken = stream.batch(said)
        except Refusal:
            assert first > last + 1
            continue
        if isinstance(taken, RoundsAppended):
            union = merge(union, pages_of(taken))
            last = taken.block.last_round

    expected = RoundPages(BitMap64(), BitMap64())
    for one in rounds:
        expected = merge(expected, one)
    assert last == len(rounds)
    assert union == expected


def test_uncertain_pages_are_written_ones(stream: Intake) -> None:
    """They may come in any part of the round; one that no part has as written breaks the contract."""
    parts = [batch(6, part=0, part_count=2, written=[1]), batch(6, part=1, part_count=2, written=[2])]
    parts[0].uncertain.CopyFrom(encode(BitMap64([2])))

    assert [stream.batch(part) for part in parts[:1]] == [None]
    assert pages_of(stream.batch(parts[1])) == RoundPages(BitMap64([1, 2]), BitMap64(), BitMap64([2]))

    alone = batch(7, written=[1])
    alone.uncertain.CopyFrom(encode(BitMap64([2])))
    with pytest.raises(BatchCorrupt, match="uncertain pages that are not written"):
        stream.batch(alone)
