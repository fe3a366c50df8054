"""What one agent may take: its rate, and which targets are refused, alone and once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.integration.collector.wire import batch, start, target
from tests.unit.collector.changes import appended
from wetink.v1.ingest_pb2 import Hello, TargetEnded
from wetink.v1.types_pb2 import END_REASON_EXITED, END_REASON_REFUSED
from wetink_collector.catalog import TargetRecord
from wetink_collector.errors import PagesTooMany, RefusedTooMany, TargetsTooMany
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.intake import Intake, Superseded
from wetink_collector.limits import BURST_SECONDS, Limits, Meter
from wetink_collector.store.interface import IncarnationEnded, IncarnationStarted, RoundsAppended

RATE = 1000

SLACK_SECONDS = 1e-6
"""What floating point may lose."""

HELLO = Hello(protocol_version=1, host_id="host-1", boot_id="boot-1")


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 10)), min_size=1, max_size=50))
def test_rate_is_kept_over_every_stretch_and_nobody_waits_for_more(said: list[tuple[int, float]]) -> None:
    """
    Whoever waits as told, and longer where they like, never has more taken in any stretch of time than the rate and the
    burst allow, and one message beyond; and waits no longer than what was taken takes at the rate.
    """
    now = 100.0
    meter = Meter(RATE, now)
    taken = []
    for size_bytes, pause in said:
        taken.append((now, size_bytes))
        wait = meter.take(size_bytes, now)
        assert 0 <= wait <= size_bytes / RATE + SLACK_SECONDS
        now += wait + pause
    for first in range(len(taken)):
        total = 0
        for when, size_bytes in taken[first:]:
            assert total <= RATE * (when - taken[first][0] + BURST_SECONDS + SLACK_SECONDS)
            total += size_bytes


def started(pid: int, incarnation: int = 1) -> IncarnationKey:
    """Give the key of a target's incarnation."""
    return IncarnationKey(TargetKey.of(target(pid)), incarnation)


def test_target_over_the_number_is_refused_alone_until_another_ends() -> None:
    """The others' rounds are taken; what comes of the one that was refused is thrown away, until it begins anew."""
    stream = Intake(HELLO, (), Limits(targets=2))
    for pid in (1, 2):
        assert isinstance(stream.started(start(target(pid))), IncarnationStarted)
    with pytest.raises(TargetsTooMany):
        stream.started(start(target(3)))

    assert stream.is_refused(started(3))
    assert stream.started(start(target(3))) is None
    assert stream.batch(batch(target(3), 1, written=[1])) == Superseded(started(3), 1)
    assert isinstance(stream.batch(batch(target(1), 1, written=[1])), RoundsAppended)
    # One that lives may begin anew.
    assert isinstance(stream.started(start(target(2), incarnation=2)), IncarnationStarted)
    with pytest.raises(TargetsTooMany):
        stream.started(start(target(3), incarnation=2))

    stream.ended(TargetEnded(target=target(1), incarnation=1, reason=END_REASON_EXITED), 1)
    assert isinstance(stream.started(start(target(3), incarnation=3)), IncarnationStarted)
    assert isinstance(stream.batch(batch(target(3), 1, written=[1], incarnation=3)), RoundsAppended)


def test_more_than_can_be_refused_end_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody could remember would be missing from answers unseen."""
    monkeypatch.setattr("wetink_collector.intake.REFUSED_MAX", 2)
    stream = Intake(HELLO, (), Limits(targets=1))
    stream.started(start(target(1)))
    for pid in (2, 3):
        with pytest.raises(TargetsTooMany):
            stream.started(start(target(pid)))
    with pytest.raises(RefusedTooMany):
        stream.started(start(target(4)))
    # Of those that are remembered one may try again.
    with pytest.raises(TargetsTooMany):
        stream.started(start(target(3), incarnation=2))


@pytest.mark.parametrize("gone", ["exited", "forgotten"])
def test_refused_targets_that_are_gone_are_not_remembered(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    """Else a stream that lives for long would end because of processes that do not."""
    monkeypatch.setattr("wetink_collector.intake.REFUSED_MAX", 2)
    stream = Intake(HELLO, (), Limits(targets=1))
    stream.started(start(target(1)))
    for pid in range(2, 10):
        with pytest.raises(TargetsTooMany):
            stream.started(start(target(pid)))
        assert stream.is_refused(started(pid))
        if gone == "exited":
            message = TargetEnded(target=target(pid), incarnation=1, reason=END_REASON_EXITED)
            # Told once: for whoever asks about its host it is no longer one that lives and is not covered.
            told = IncarnationEnded(started(pid), END_REASON_EXITED, 1, "", rounds_dropped=True)
            assert stream.ended(message, 1) == told
            assert stream.ended(message, 1) is None
            assert stream.batch(batch(target(pid), 1, written=[1])) == Superseded(started(pid), 1)
        elif stream.is_one_too_many(start(target(pid + 1))):
            stream.forget_refused(lambda key: key.pid == 1)
    assert isinstance(stream.batch(batch(target(1), 1, written=[1])), RoundsAppended)


def test_target_with_too_many_pages_is_no_way_round_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could remember that it is refused."""
    monkeypatch.setattr("wetink_collector.intake.REFUSED_MAX", 1)
    stream = Intake(HELLO, (), Limits(pages=2))
    for pid in (1, 2):
        stream.started(start(target(pid)))
    with pytest.raises(PagesTooMany):
        stream.batch(batch(target(1), 1, written=range(3)))
    with pytest.raises(RefusedTooMany):
        stream.batch(batch(target(2), 1, written=range(3)))


@pytest.mark.parametrize("counted", ["populated", "written", "vanished", "parts"])
def test_target_with_too_many_pages_is_refused(counted: str) -> None:
    """Whether it says so, or its round has them, in one part or in several."""
    stream = Intake(HELLO, (), Limits(pages=1100))
    stream.started(start(target(1)))
    assert isinstance(stream.batch(batch(target(1), 1, written=range(1000))), RoundsAppended)
    many = BitMap64(range(1101))
    said = {
        "populated": batch(target(1), 2, written=[1]),
        "written": batch(target(1), 2, written=many),
        "vanished": batch(target(1), 2, vanished=many),
        "parts": batch(target(1), 2, written=range(700), part_count=2),
    }[counted]
    if counted == "populated":
        said.populated_page_count = 1101
    if counted == "parts":
        assert stream.batch(said) is None
        said = batch(target(1), 2, written=range(1000, 1401), part=1, part_count=2)
    with pytest.raises(PagesTooMany):
        stream.batch(said)

    assert stream.is_refused(started(1))
    assert stream.batch(batch(target(1), 3)) == Superseded(started(1), 3)


def test_refusal_is_remembered_by_the_next_stream() -> None:
    """Of the targets that a record calls refused; they do not count as living."""
    ended = IncarnationEnded(started(1), END_REASON_REFUSED, 1, "too many")
    refused = TargetRecord(started(1), start(target(1)), appended(started(1), 5).block, ended=ended)
    stream = Intake(HELLO, [refused], Limits(targets=1))

    assert stream.is_refused(started(1))
    assert stream.batch(batch(target(1), 6)) == Superseded(started(1), 6)
    assert isinstance(stream.started(start(target(1), incarnation=2)), IncarnationStarted)
