"""Histories keep up with what is committed, also where too much waits, after a restart, and where memory is short."""

import asyncio
import threading
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.collector.changes import incarnation, started
from tests.unit.collector.insight.kept import ONE, PATIENCE_SECONDS, kept, own, round_
from wetink.v1.types_pb2 import END_REASON_LOST, Pace
from wetink_collector.catalog import ENDED_KEPT_MAX
from wetink_collector.errors import HistoryTooShort, StoreUnavailable
from wetink_collector.identity import IncarnationKey
from wetink_collector.insight import histories as module
from wetink_collector.insight import share
from wetink_collector.insight.history import History
from wetink_collector.insight.share import Share
from wetink_collector.store.interface import (
    IncarnationEnded,
    StoreFailed,
    TargetForgotten,
)
from wetink_collector.store.memory import MemoryStore


def test_what_is_committed_is_in_the_history_when_somebody_asks() -> None:
    """At once: nobody waits for a time."""

    async def run() -> None:
        async with kept() as one:
            one.commit(started(ONE), round_(1, range(50)))
            assert (await one.look()) == (0, 1, True, (0, 0))
            for number in range(2, 300):
                one.commit(round_(number, own(number)))
                if number % 50 == 0:
                    written = 2 + 3 * (number - 1)
                    assert (await one.look()) == (2, number, True, (written, written))

    asyncio.run(run())


def test_after_a_restart_the_store_is_read() -> None:
    """With the rounds that it has merged, as bounds; those that come later are single again."""

    async def run() -> None:
        store = MemoryStore()
        async with kept(store) as one:
            one.commit(started(ONE), *(round_(number, own(number)) for number in range(1, 101)))
            while store.maintain():
                pass
            exact = await one.look()
        async with kept(store) as one:
            again = await one.look()
            one.commit(round_(101, [7]))
            later = await one.look()
        assert exact == (2, 100, True, (2 + 3 * 99, 2 + 3 * 99))
        assert again
        assert (again[1], again[2]) == (100, False)
        assert later
        assert later[1] == 101
        assert later[3][1] == again[3][1] + 1

    asyncio.run(run())


def test_too_much_that_waits_is_read_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost by that but what the store has merged."""
    monkeypatch.setattr(module, "BACKLOG_BYTES_MAX", 20_000)

    async def run() -> None:
        async with kept() as one:
            one.commit(started(ONE), round_(1, range(50)))
            # The event loop is not let go of, so that the thread has it all at once.
            for number in range(2, 400):
                one.commit(round_(number, own(number)))
            assert one.histories._backlog_bytes <= 20_000
            assert (await one.look()) == (2, 399, True, (2 + 3 * 398,) * 2)

    asyncio.run(run())


@given(st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 1), st.floats(0, 2)), max_size=50))
def test_share_is_kept(pieces: list[tuple[float, float, float]]) -> None:
    """Whoever rests as told takes no more than its share, what may be taken in advance, and one piece."""
    now = used = others = 0.0
    kept = Share(now, used, used + others)
    for piece, late, other in pieces:
        now, used, others = now + piece, used + piece, others + piece * other
        assert used <= share.SHARE_MAX * now + 2 * share.SPARED_SECONDS_MAX + piece + 1e-9
        while rest := kept.excess_seconds(now, used, used + others):
            # Nobody wakes up in time.
            now, others = now + rest + late, others + (rest + late) * other


@pytest.mark.parametrize(
    "others, least, most", [(0.0, 0.24, 0.26), (0.6, 0.09, 0.12), (0.9, 0.005, 0.03), (1.9, 0.005, 0.03)]
)
def test_share_is_what_the_rest_of_the_collector_leaves(others: float, least: float, most: float) -> None:
    """Counted over a minute, pieces of half a millisecond: rounds that come in do not wait for what nobody asks for."""
    now = used = 0.0
    kept = Share(now, used, used)
    while now < 60:
        now, used = now + 0.0005, used + 0.0005
        while rest := kept.excess_seconds(now, used, used + others * now):
            now += rest

    assert least < used / now < most


def test_what_was_done_in_a_hurry_keeps_nothing_waiting_for_long() -> None:
    """A minute for a reader is not made up for by minutes in which nothing is counted."""
    kept = Share(0.0, 0.0, 0.0)
    now, rested = 75.0, 0.0
    while rest := kept.excess_seconds(now, 75.0, 75.0):
        now, rested = now + rest, rested + rest
    assert rested <= 1.01 * share.OWED_SECONDS_MAX / share.SHARE_MAX


def test_rounds_without_pages_wait_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of idle targets as of others; and what insight does not count is not kept for it."""
    monkeypatch.setattr(module, "BACKLOG_BYTES_MAX", 100_000)
    monkeypatch.setattr(share, "SHARE_MIN", 1e-9)
    monkeypatch.setattr(share, "SHARE_MAX", 1e-9)
    keys = [incarnation(pid) for pid in range(1, 21)]

    async def run() -> None:
        async with kept() as one:
            for number in range(1, 50):
                for key in keys:
                    begins = [started(key)] if number == 1 else []
                    one.commit(*begins, replace(round_(number, [], key), uncertain=bytes(1000), pace=Pace()))
                    with one.histories._lock:
                        waiting = [change for work in one.histories._kept.values() for change in work.waiting]
                    assert len(waiting) * 1000 <= 100_000
                    assert not any(change.uncertain or change.pace for change in waiting)
            for key in keys:
                found = await one.look(key)
                assert found
                assert found[1] == 49

    asyncio.run(run())


def test_counting_rests_while_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """When its share of a processor is used, whatever waits; who asks then waits for no rest."""
    monkeypatch.setattr(share, "SHARE_MIN", 1e-9)
    monkeypatch.setattr(share, "SHARE_MAX", 1e-9)  # it rests for months
    monkeypatch.setattr(module, "WAIT_SECONDS_MAX", 60.0)

    async def run() -> None:
        async with kept() as one:
            one.commit(started(ONE), *(round_(number, own(number)) for number in range(1, 500)))
            await asyncio.sleep(0.5)
            assert one.histories._kept[ONE.target].history.round < 499
            assert (await one.look()) == (2, 499, True, (2 + 3 * 498,) * 2)
            one.commit(*(round_(number, own(number)) for number in range(500, 700)))
            await asyncio.sleep(0.1)
            assert (await one.look()) == (2, 699, True, (2 + 3 * 698,) * 2)

    asyncio.run(run())


def test_targets_that_are_too_many_are_counted_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not wait long enough is read from the store; each history is of the same pages as what was committed."""
    monkeypatch.setattr(module, "BACKLOG_BYTES_MAX", 20_000)
    monkeypatch.setattr(share, "SHARE_MIN", 1e-9)
    monkeypatch.setattr(share, "SHARE_MAX", 1e-9)
    monkeypatch.setattr(module, "WAIT_SECONDS_MAX", 60.0)
    keys = [incarnation(pid) for pid in range(1, 9)]
    written = {key: set[int]() for key in keys}
    random = Random(1)  # noqa: S311 (to be the same each time)

    async def run() -> None:
        async with kept() as one:
            for key in keys:
                one.commit(started(key), round_(1, range(50), key))
            for number in range(2, 100):
                for key in keys:
                    pages = random.sample(range(3000), 5)
                    written[key].update(pages)
                    one.commit(round_(number, pages, key))
                if number % 20 == 0:
                    key = random.choice(keys)
                    assert (await one.look(key)) == (2, number, True, (len(written[key]),) * 2)
            for key in keys:
                assert (await one.look(key)) == (2, 99, True, (len(written[key]),) * 2)
            assert one.histories._reader_count == 0

    asyncio.run(run())


def test_memory_keeps_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes, of however many targets; what is left is right, and says that it is not all."""

    async def run() -> None:
        keys = [incarnation(pid) for pid in range(1, 6)]
        async with kept(bytes_max=1 << 20) as one:
            for key in keys:
                one.commit(started(key), round_(1, range(50), key))
            for number in range(2, 1500):
                for key in keys:
                    one.commit(round_(number, own(number), key))
                if number % 100 == 0:
                    for key in keys:
                        await one.look(key)
                    assert one.histories._size_bytes <= 1 << 20
            for key in keys:
                found = await one.look(key)
                assert found
                first, last, _, (least, most) = found
                assert last == 1499
                # Two that come again, and three of each round since the history's first.
                assert least == most == 2 + 3 * (last - first + 1)

    monkeypatch.setattr(module, "WAIT_SECONDS_MAX", 60.0)
    asyncio.run(run())


def test_thousands_of_targets_that_write_little_have_room() -> None:
    """As many as are kept that have ended, in a part of what all may take."""
    some = [History(incarnation(pid)) for pid in range(1, 101)]
    for one in some:
        for number in range(1, 5):
            change = round_(number, own(number))
            one.append(change.block, change.written, change.vanished)

    assert sum(one.size_bytes for one in some) * ENDED_KEPT_MAX / len(some) < module.HISTORIES_BYTES_MAX / 2


def test_who_has_nothing_to_let_go_of_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often another one has to."""
    shrinking: Any = History.shrink
    asked: list[IncarnationKey] = []

    def shrink(self: History) -> bool:
        asked.append(self.incarnation)
        return bool(self.incarnation == ONE and shrinking(self))

    monkeypatch.setattr(History, "shrink", shrink)
    others = [incarnation(pid) for pid in range(2, 6)]

    async def run() -> None:
        async with kept(bytes_max=1_000_000) as one:
            one.commit(started(ONE))
            for key in others:
                one.commit(started(key), round_(1, [], key), round_(2, range(0, 50 << 9, 1 << 9), key))
                await one.look(key)
            for number in range(1, 500):
                one.commit(round_(number, [number % 7]))
            await one.look()
            assert one.histories._size_bytes <= 1_000_000

    asyncio.run(run())
    assert len(asked) - asked.count(ONE) <= len(others)
    assert asked.count(ONE) > 10


def test_nobody_is_asked_again_at_each_round_where_none_can_let_go_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """But when they have grown by some part."""
    asked: list[IncarnationKey] = []

    def shrink(self: History) -> bool:
        asked.append(self.incarnation)
        return False

    monkeypatch.setattr(History, "shrink", shrink)

    async def run() -> None:
        async with kept(bytes_max=100_000) as one:
            one.commit(started(ONE))
            for number in range(1, 1000):
                one.commit(round_(number, [number % 7]))
            await one.look()
            assert one.histories._size_bytes > 400_000

    asyncio.run(run())
    assert 10 < len(asked) < 200


def test_an_incarnation_that_is_over_leaves_nothing() -> None:
    """Another one, a damaged record, and a target that is forgotten."""

    async def run() -> None:
        second = IncarnationKey(ONE.target, 2)
        async with kept() as one:
            one.commit(started(ONE), *(round_(number, own(number)) for number in (1, 2, 3)))
            assert (await one.look()) == (2, 3, True, (5 + 3, 5 + 3))
            one.commit(started(second), round_(1, [9], second))
            assert (await one.look(second)) == (0, 1, True, (0, 0))
            assert one.histories.read(ONE, lambda history: history) is None
            one.commit(TargetForgotten(ONE))
            assert (await one.look(second)) == (0, 1, True, (0, 0))
            one.commit(IncarnationEnded(second, END_REASON_LOST, 1, "damaged", rounds_dropped=True))
            assert (await one.look(second)) == (0, 0, True, (0, 0))
            one.commit(TargetForgotten(second))
            assert one.histories.read(second, lambda history: history) is None
            assert one.histories._size_bytes == 0

    asyncio.run(run())


def test_store_that_cannot_be_read_is_told_to_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And read again when it can."""

    async def run() -> None:
        store = MemoryStore()
        store.commit([started(ONE), *(round_(number, own(number)) for number in (1, 2, 3))])
        reading: Any = store.read
        fails = True

        def read(*arguments: object, **options: object) -> object:
            if fails:
                message = "the disk is gone"
                raise StoreFailed(message)
            return reading(*arguments, **options)

        monkeypatch.setattr(store, "read", read)
        async with kept(store) as one:
            record = one.catalog.get(ONE.target)
            assert record
            with pytest.raises(StoreUnavailable, match="disk is gone"):
                await asyncio.wait_for(one.histories.current(record), PATIENCE_SECONDS)
            one.commit(round_(4, own(4)))
            fails = False
            assert (await one.look()) == (2, 4, True, (2 + 9, 2 + 9))

    asyncio.run(run())


def test_one_target_that_cannot_be_counted_is_no_other_s_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong: who asks for it is told, its log is not read each time, and it is tried again later."""
    other = incarnation(2)
    appending: Any = History.append
    reading: Any = MemoryStore.read
    fails = True
    reads = []

    def append(self: History, *arguments: object) -> None:
        if fails and self.incarnation == ONE:
            raise MemoryError
        appending(self, *arguments)

    def read(self: MemoryStore, key: IncarnationKey, **options: object) -> object:
        reads.append(key)
        return reading(self, key, **options)

    monkeypatch.setattr(History, "append", append)
    monkeypatch.setattr(MemoryStore, "read", read)

    async def run() -> None:
        nonlocal fails
        async with kept() as one:
            for key in (ONE, other):
                one.commit(started(key), *(round_(number, own(number), key) for number in (1, 2, 3)))
            for _ in range(3):
                with pytest.raises(HistoryTooShort, match="could not be counted"):
                    await one.look()
                assert (await one.look(other)) == (2, 3, True, (5 + 3, 5 + 3))
            assert len(reads) <= 1
            fails = False
            monkeypatch.setattr(module, "FAILED_SECONDS", 0.0)
            assert (await one.look()) == (2, 3, True, (5 + 3, 5 + 3))

    asyncio.run(run())


def test_whatever_a_clock_says_rounds_are_counted() -> None:
    """Also the latest time that there is a number for, again and again; a moment later it is the year it was."""

    async def run() -> None:
        async with kept() as one:
            one.commit(started(ONE), round_(1, range(50)))
            for number, time_ns in enumerate([(1 << 63) - 1, (1 << 63) - 1, (1 << 63) - 1, 10**9, 2 * 10**9], 2):
                change = round_(number, own(number))
                one.commit(replace(change, block=replace(change.block, last_time_ns=time_ns)))
            assert (await one.look()) == (2, 6, True, (2 + 15, 2 + 15))

    asyncio.run(run())


def test_who_waits_no_longer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after the time that a reader waits at most, nor when it has gone away."""
    may_read = threading.Event()
    reading: Any = MemoryStore.read

    def read(self: MemoryStore, *arguments: object, **options: object) -> object:
        may_read.wait(PATIENCE_SECONDS)
        return reading(self, *arguments, **options)

    monkeypatch.setattr(MemoryStore, "read", read)

    async def run() -> None:
        store = MemoryStore()
        store.commit([started(ONE), *(round_(number, own(number)) for number in (1, 2, 3))])
        async with kept(store) as one:
            record = one.catalog.get(ONE.target)
            assert record
            gone = asyncio.create_task(one.histories.current(record))
            await asyncio.sleep(0)
            assert one.histories._reader_count == 1
            gone.cancel()
            await asyncio.wait([gone])
            with monkeypatch.context() as patch:
                patch.setattr(module, "WAIT_SECONDS_MAX", 0.01)
                with pytest.raises(StoreUnavailable, match="still being read"):
                    await one.look()
            assert one.histories._reader_count == 0
            assert not one.histories._kept[ONE.target].readers
            may_read.set()
            assert (await one.look()) == (2, 3, True, (5 + 3, 5 + 3))

    asyncio.run(run())


def test_history_is_what_a_plain_one_is() -> None:
    """The thread adds nothing and leaves nothing out."""

    async def run() -> None:
        plain = History(ONE)
        async with kept() as one:
            one.commit(started(ONE))
            for number in range(1, 60):
                change = round_(number, own(number))
                one.commit(change)
                plain.append(change.block, change.written, change.vanished)
            await one.look()
            found = one.histories.read(ONE, History.points)
        assert found == plain.points()

    asyncio.run(run())
