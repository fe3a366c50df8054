"""The calls of InsightService, for threads and for asyncio: what both clients have beside those of DirtyService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from wetink_client import insight, insight_requests
from wetink_client.transport import AsyncTransport, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from wetink_client.insight import ColdPages, Heatmap, TargetHotPages, WorkingSets, Writers
    from wetink_client.values import Selectable

INSIGHT_SECONDS_MAX: Final = 60.0
"""Deadline of an answer: after the collector was restarted it may read a whole history first."""

HotOrder: TypeAlias = Literal["rounds", "age"]


class InsightCalls(Transport):
    """What ``Collector`` asks of a collector's history. Each raises ``Refused`` where there is none yet."""

    def working_set(self, selection: Selectable) -> WorkingSets:
        """Ask how many pages targets write in windows of different lengths, each alone and all together.

        Args:
            selection: Must not be empty.

        Raises:
            NotFound: A named target is not known.
            HistoryTooShort: No target has two rounds yet.
        """
        request = insight_requests.working_set(selection)
        return insight.working_sets_of(
            self._ask(lambda stubs: stubs.insight.GetWorkingSet, request, INSIGHT_SECONDS_MAX)
        )

    def heatmap(
        self,
        target: str,
        *,
        rows: int = 0,
        columns: int = 0,
        since_time_ns: int = 0,
        start_address: int = 0,
        end_address: int = 0,
    ) -> Heatmap:
        """Ask which parts of a target's memory were written when.

        Args:
            target: ``HOST/PID@START`` or ``HOST/PID``.
            rows: Bins of addresses at most. 0 means 64.
            columns: Bins of time at most. 0 means 64.
            since_time_ns: Only rounds that began after this.
            start_address: Only addresses from here on.
            end_address: Only addresses below this. 0 means all.

        Raises:
            NotFound: The target is not known.
            HistoryTooShort: It has no two rounds yet.
        """
        request = insight_requests.heatmap(
            target,
            rows=rows,
            columns=columns,
            since_time_ns=since_time_ns,
            start_address=start_address,
            end_address=end_address,
        )
        return insight.heatmap_of(self._ask(lambda stubs: stubs.insight.GetHeatmap, request, INSIGHT_SECONDS_MAX))

    def hot_pages(
        self, selection: Selectable, *, limit: int = 0, order: HotOrder = "rounds"
    ) -> tuple[TargetHotPages, ...]:
        """Ask which pages are written in the most rounds, or last.

        Args:
            selection: Must not be empty.
            limit: How many of each target at most. 0 means 100.
            order: By ``rounds`` or by ``age``.

        Raises:
            NotFound: A named target is not known.
            HistoryTooShort: No target has two rounds yet.
        """
        request = insight_requests.hot_pages(selection, limit, order)
        return insight.hot_pages_of(self._ask(lambda stubs: stubs.insight.GetHotPages, request, INSIGHT_SECONDS_MAX))

    def cold_first(self, target: str, *, classes: int = 0) -> Generator[ColdPages]:
        """Ask in which order to send a target's pages: those that were written last come last.

        Args:
            target: ``HOST/PID@START`` or ``HOST/PID``.
            classes: Into how many classes at most. 0 means 16.

        Raises:
            NotFound: The target is not known.
            HistoryTooShort: It has no two rounds yet.
            BrokenAnswer: A part of the answer was damaged.
        """
        reader = insight.ColdReader()
        for message in self._listen(
            lambda stubs: stubs.insight.GetColdFirst, insight_requests.cold_first(target, classes), INSIGHT_SECONDS_MAX
        ):
            yield from reader.read(message)

    def writers(self, target: str, *, limit: int = 0, since_time_ns: int = 0) -> Writers:
        """Ask which threads and which code write the most. Needs an agent that streams events.

        Args:
            target: ``HOST/PID@START`` or ``HOST/PID``.
            limit: How many of each at most. 0 means 20.
            since_time_ns: Only events after this.

        Raises:
            NotFound: The target is not known.
            EventsMissing: No events of it are kept.
        """
        request = insight_requests.writers(target, limit, since_time_ns)
        return insight.writers_of(self._ask(lambda stubs: stubs.insight.GetWriters, request, INSIGHT_SECONDS_MAX))


class AsyncInsightCalls(AsyncTransport):
    """The same for asyncio: each method does what that of ``InsightCalls`` of the same name does."""

    async def working_set(self, selection: Selectable) -> WorkingSets:
        """As ``Collector.working_set``."""
        request = insight_requests.working_set(selection)
        return insight.working_sets_of(
            await self._ask(lambda stubs: stubs.insight.GetWorkingSet, request, INSIGHT_SECONDS_MAX)
        )

    async def heatmap(
        self,
        target: str,
        *,
        rows: int = 0,
        columns: int = 0,
        since_time_ns: int = 0,
        start_address: int = 0,
        end_address: int = 0,
    ) -> Heatmap:
        """As ``Collector.heatmap``."""
        request = insight_requests.heatmap(
            target,
            rows=rows,
            columns=columns,
            since_time_ns=since_time_ns,
            start_address=start_address,
            end_address=end_address,
        )
        return insight.heatmap_of(await self._ask(lambda stubs: stubs.insight.GetHeatmap, request, INSIGHT_SECONDS_MAX))

    async def hot_pages(
        self, selection: Selectable, *, limit: int = 0, order: HotOrder = "rounds"
    ) -> tuple[TargetHotPages, ...]:
        """As ``Collector.hot_pages``."""
        request = insight_requests.hot_pages(selection, limit, order)
        return insight.hot_pages_of(
            await self._ask(lambda stubs: stubs.insight.GetHotPages, request, INSIGHT_SECONDS_MAX)
        )

    async def cold_first(self, target: str, *, classes: int = 0) -> AsyncGenerator[ColdPages]:
        """As ``Collector.cold_first``."""
        reader = insight.ColdReader()
        async for message in self._listen(
            lambda stubs: stubs.insight.GetColdFirst, insight_requests.cold_first(target, classes), INSIGHT_SECONDS_MAX
        ):
            for pages in reader.read(message):
                yield pages

    async def writers(self, target: str, *, limit: int = 0, since_time_ns: int = 0) -> Writers:
        """As ``Collector.writers``."""
        request = insight_requests.writers(target, limit, since_time_ns)
        return insight.writers_of(await self._ask(lambda stubs: stubs.insight.GetWriters, request, INSIGHT_SECONDS_MAX))
