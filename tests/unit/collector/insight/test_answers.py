"""Answers about several targets, one of which is not as it should be; and about rounds that were merged meanwhile."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from tests.integration.collector.wire import PATIENCE_SECONDS, Agent, target
from tests.unit.collector.changes import incarnation, started
from tests.unit.collector.insight.kept import ONE, Kept, kept, own, round_
from wetink.v1 import dirty_pb2, insight_pb2, prediction_pb2
from wetink.v1.dirty_pb2_grpc import DirtyServiceStub
from wetink.v1.insight_pb2_grpc import InsightServiceStub
from wetink_collector.address import UnixAddress
from wetink_collector.errors import HistoryTooShort
from wetink_collector.insight.accuracy import Accuracy
from wetink_collector.insight.answers import cold_first, heatmap, hot_pages
from wetink_collector.insight.candidates import plan_drain_of, rank_candidates
from wetink_collector.insight.histories import Histories
from wetink_collector.insight.inquiry import Inquiry
from wetink_collector.insight.working_sets import working_sets
from wetink_collector.server import READERS, Settings, serve
from wetink_collector.store.interface import HostSeen

TWO = incarnation(2)
DAMAGED, WHOLE = str(ONE.target), str(TWO.target)
BOTH = dirty_pb2.Selection(targets=[DAMAGED, WHOLE])
ALONE = dirty_pb2.Selection(targets=[DAMAGED])
SPEED = 10**9


@asynccontextmanager
async def asked(bytes_max: int = 1 << 30) -> AsyncIterator[tuple[Kept, Inquiry]]:
    """Run histories, and somebody who asks."""
    with ThreadPoolExecutor(1) as threads:
        async with kept(bytes_max=bytes_max) as one:
            yield one, Inquiry(one.catalog, one.store, one.histories, threads)


def test_damaged_target_spoils_no_answer_about_others() -> None:
    """It is in each with the reason, and only who asks for it alone gets none."""

    async def run() -> None:
        async with asked() as (one, inquiry):
            one.commit(HostSeen(ONE.target.host_id, ONE.target.boot_id, "1.2.3", 1))
            for key in (ONE, TWO):
                one.commit(started(key), *(round_(number, own(number), key) for number in range(1, 9)))
            one.commit(replace(round_(9, own(9)), written=b"no bitmap"), round_(9, own(9), TWO))

            sets = await working_sets(inquiry, insight_pb2.GetWorkingSetRequest(selection=BOTH))
            hot = await hot_pages(inquiry, insight_pb2.GetHotPagesRequest(selection=BOTH))
            ranking = await rank_candidates(
                inquiry,
                Accuracy(),
                prediction_pb2.RankCandidatesRequest(selection=BOTH, bandwidth_bytes_per_second=SPEED),
            )
            drain = await plan_drain_of(
                inquiry,
                Accuracy(),
                prediction_pb2.PlanDrainRequest(host_id=ONE.target.host_id, link_bytes_per_second=SPEED),
            )
            with pytest.raises(HistoryTooShort, match="no bitmap"):
                await working_sets(inquiry, insight_pb2.GetWorkingSetRequest(selection=ALONE))

        for status in (sets.targets[0].history, hot.targets[0].history):
            assert (status.name, status.complete, status.last_round) == (DAMAGED, False, 0)
        for status in (sets.targets[1].history, hot.targets[1].history):
            assert (status.name, status.last_round) == (WHOLE, 9)
        for left_out in (ranking.left_out, drain.cannot_move):
            assert [one.name for one in left_out] == [DAMAGED]
            assert "no bitmap" in left_out[0].reason
        assert [one.name for one in ranking.candidates] == [one.name for one in drain.moves] == [WHOLE]

    asyncio.run(run())


def test_what_is_populated_is_told_also_when_its_round_was_merged_meanwhile() -> None:
    """With newer ones; where a round is really missing, that is damage."""

    async def run() -> None:
        async with asked() as (one, inquiry):
            one.commit(started(ONE), *(round_(number, own(number)) for number in range(1, 10)))
            record = one.catalog.get(ONE.target)
            assert record
            one.commit(*(round_(number, own(number)) for number in range(10, 40)))
            while one.store.maintain():
                pass
            ends = {stored.block.last_round for stored in one.store.read(ONE, after_round=0)}
            populated = await inquiry.populated(record, 9)
            with pytest.raises(HistoryTooShort, match="round 40 is missing"):
                await inquiry.populated(record, 40)

        assert 9 not in ends
        assert set(populated) >= set().union(*(own(number) for number in range(1, 10)))

    asyncio.run(run())


def test_group_whose_rounds_were_all_let_go_of_has_what_else_is_known() -> None:
    """No curve then."""

    async def run() -> insight_pb2.GetWorkingSetResponse:
        async with asked(bytes_max=1) as (one, inquiry):
            for key in (ONE, TWO):
                one.commit(started(key), *(round_(number, [1, 2, 3], key) for number in range(1, 9)))
            return await working_sets(inquiry, insight_pb2.GetWorkingSetRequest(selection=BOTH))

    answer = asyncio.run(run())
    assert not answer.group.working_set.points
    assert answer.group.working_set.writable_page_count == 6


HEAVY = range(3000)
"""Pages of six rows: so few that they are counted, and more than are kept where memory is short."""


def sets_of_both(bytes_max: int, rounds: int, rounds_of_two: int) -> insight_pb2.GetWorkingSetResponse:
    """Ask of one that writes 3000 other pages each second and one that writes 3; afresh where that one ended before."""

    async def run() -> insight_pb2.GetWorkingSetResponse:
        made = Random(3)  # noqa: S311 (test data)
        async with asked(bytes_max=bytes_max) as (one, inquiry):
            one.commit(started(ONE), started(TWO))
            for number in range(1, rounds + 1):
                one.commit(round_(number, made.sample(range(1 << 16), 3000)))
                if number <= rounds_of_two:
                    one.commit(round_(number, [1, 2, 3], TWO))
            while one.store.maintain():
                pass
            if rounds_of_two < rounds:
                one.histories.loaded()
            return await working_sets(inquiry, insight_pb2.GetWorkingSetRequest(selection=BOTH))

    return asyncio.run(run())


def test_no_window_of_a_group_lacks_rounds_that_memory_was_too_short_for() -> None:
    """Those of who writes most are let go of first. Windows of the time before would tell of the others alone."""
    answer = sets_of_both(bytes_max=80_000, rounds=59, rounds_of_two=59)

    assert answer.targets[0].working_set.points[0].pages.p50 == 3000
    assert answer.group.working_set.points
    assert min(point.pages.p50 for point in answer.group.working_set.points) >= 3000


def test_no_window_of_a_group_lacks_rounds_that_the_store_has_merged_into_the_first() -> None:
    """After a restart: of the other, which ended long ago, all are there."""
    answer = sets_of_both(bytes_max=1 << 30, rounds=139, rounds_of_two=8)

    history = answer.targets[0].history
    shortest = answer.group.working_set.points[0]
    assert history.first_round > 50
    assert 0 < shortest.window_count * shortest.window_ns <= 1.001 * (history.as_of_time_ns - history.since_time_ns)


def test_no_window_of_a_group_lacks_what_a_target_wrote_before_it_was_tracked_afresh() -> None:
    """In its incarnation before, of which nothing is known any more, it wrote as well."""
    again = incarnation(1, 2)

    async def run() -> insight_pb2.GetWorkingSetResponse:
        async with asked() as (one, inquiry):
            one.commit(started(ONE), started(TWO), *(round_(number, [1, 2, 3], TWO) for number in range(1, 41)))
            one.commit(*(round_(number, own(number)) for number in range(1, 31)), started(again))
            for number in range(1, 11):
                some = round_(number, own(number), again)
                one.commit(replace(some, block=replace(some.block, last_time_ns=(30 + number) * 10**9)))
            return await working_sets(inquiry, insight_pb2.GetWorkingSetRequest(selection=BOTH))

    shortest = asyncio.run(run()).group.working_set.points[0]
    assert (shortest.window_ns, shortest.window_count) == (10**9, 9)
    assert shortest.pages.p50 == 5 + 3


def test_pages_that_memory_was_too_short_for_are_not_called_unwritten() -> None:
    """Every row was written in the last round, so that all of them were let go of: what they were is not known."""

    async def run() -> insight_pb2.GetWorkingSetResponse:
        async with asked(bytes_max=1) as (one, inquiry):
            one.commit(started(ONE), *(round_(number, HEAVY) for number in range(1, 9)))
            with pytest.raises(HistoryTooShort, match="memory is short"):
                await hot_pages(inquiry, insight_pb2.GetHotPagesRequest(selection=ALONE))
            with pytest.raises(HistoryTooShort, match="memory is short"):
                async for _ in cold_first(inquiry, insight_pb2.GetColdFirstRequest(target=DAMAGED)):
                    pass
            with pytest.raises(HistoryTooShort, match="memory is short"):
                await heatmap(inquiry, insight_pb2.GetHeatmapRequest(target=DAMAGED))
            return await working_sets(inquiry, insight_pb2.GetWorkingSetRequest(selection=ALONE))

    (found,) = asyncio.run(run()).targets
    assert (found.history.first_round, found.history.last_round, found.history.exact) == (8, 8, False)
    assert found.working_set.writable_page_count == found.working_set.points[-1].pages.max == 3000


def test_dirty_pages_do_not_wait_for_insight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask for what takes long."""
    reading: Any = Histories.read
    began, may_go_on = threading.Semaphore(0), threading.Event()

    def read(self: Histories, *arguments: object) -> object:
        began.release()
        may_go_on.wait(3 * PATIENCE_SECONDS)
        return reading(self, *arguments)

    monkeypatch.setattr(Histories, "read", read)
    address = UnixAddress(str(tmp_path / "socket"))

    def deliver() -> None:
        with Agent(str(address)) as agent:
            agent.hello()
            agent.deliver(target(), *([number] for number in range(1, 9)))

    async def run() -> None:
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(Settings(listen=address, data=None, metrics=None), stop))
        async with grpc.aio.insecure_channel(str(address)) as connection:
            await asyncio.wait_for(connection.channel_ready(), PATIENCE_SECONDS)
            await asyncio.to_thread(deliver)
            asking = insight_pb2.GetWorkingSetRequest(selection=ALONE)
            calls = [InsightServiceStub(connection).GetWorkingSet(asking) for _ in range(2 * READERS)]
            for _ in range(READERS):
                assert await asyncio.to_thread(began.acquire, timeout=PATIENCE_SECONDS)
            dirty = DirtyServiceStub(connection).GetDirty(dirty_pb2.GetDirtyRequest(selection=ALONE))
            assert [part async for part in dirty]
            assert not may_go_on.is_set()
            may_go_on.set()
            for call in calls:
                await call
            stop.set()
            await serving

    switching_seconds = sys.getswitchinterval()
    try:
        asyncio.run(asyncio.wait_for(run(), 2 * PATIENCE_SECONDS))
    finally:
        may_go_on.set()
        sys.setswitchinterval(switching_seconds)
