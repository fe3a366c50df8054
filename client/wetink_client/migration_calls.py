"""The calls about migrations, for both clients: ``MigrationCalls`` for threads, ``AsyncMigrationCalls`` for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wetink_client import migration_messages as messages
from wetink_client.migrations import PLAN_DEFAULT
from wetink_client.transport import AsyncTransport, Transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wetink_client.migrations import (
        Accuracy,
        DrainPlan,
        MigrationPlan,
        MigrationReport,
        Predictions,
        Ranking,
        Reported,
        WindowFound,
    )
    from wetink_client.values import Selectable

PREDICTION_SECONDS_MAX: Final = 60.0
"""Deadline of a prediction: after a restart the collector reads its store first, and plans may have many targets."""


class MigrationCalls(Transport):
    """Predict migrations, find times and orders for them, and say how they went."""

    def predict(self, target: str, bandwidths: Sequence[int], plan: MigrationPlan = PLAN_DEFAULT) -> Predictions:
        """Say how a migration of a target would go, for each bandwidth.

        Args:
            target: ``HOST/PID@START`` or ``HOST/PID``.
            bandwidths: In bytes a second, at least one.
            plan: What the migration is like.

        Raises:
            NotFound: The target is not known.
            Refused: It has ended, or too little is known of it yet.
        """
        request = messages.predict_request(target, bandwidths, plan)
        response = self._ask(lambda stubs: stubs.insight.PredictMigration, request, PREDICTION_SECONDS_MAX)
        return messages.predictions_of(response)

    def find_window(
        self,
        target: str,
        bandwidth: int,
        plan: MigrationPlan = PLAN_DEFAULT,
        *,
        horizon_seconds: float | None = None,
    ) -> WindowFound:
        """Say when a target that writes in cycles will next write little for long enough to migrate it.

        Args:
            target: ``HOST/PID@START`` or ``HOST/PID``.
            bandwidth: In bytes a second.
            plan: What the migration is like.
            horizon_seconds: How far to look ahead; None means an hour.

        Raises:
            NotFound: The target is not known.
            Refused: It has ended, or too little is known of it yet.
        """
        request = messages.window_request(target, bandwidth, plan, horizon_seconds)
        return messages.window_of(self._ask(lambda stubs: stubs.insight.FindWindow, request, PREDICTION_SECONDS_MAX))

    def rank(
        self, selection: Selectable, bandwidth: int, plan: MigrationPlan = PLAN_DEFAULT, *, limit: int | None = None
    ) -> Ranking:
        """Say which of some targets are the cheapest to move.

        Args:
            selection: Must not be empty.
            bandwidth: In bytes a second.
            plan: What each migration is like.
            limit: How many to give at most; None means all.

        Raises:
            NotFound: A named target is not known, or nothing is meant.
        """
        request = messages.rank_request(selection, bandwidth, plan, limit)
        response = self._ask(lambda stubs: stubs.insight.RankCandidates, request, PREDICTION_SECONDS_MAX)
        return messages.ranking_of(response)

    def plan_drain(
        self, host: str, link: int, plan: MigrationPlan = PLAN_DEFAULT, *, parallel_max: int | None = None
    ) -> DrainPlan:
        """Say in which order, and how many at once, to move every target off a host.

        Args:
            host: Host id, as ``hosts()`` lists it.
            link: What the link carries for all migrations together, in bytes a second.
            plan: What each migration is like.
            parallel_max: How many migrations may run at once; None means any number.

        Raises:
            NotFound: The host is not known.
        """
        request = messages.drain_request(host, link, plan, parallel_max)
        return messages.drain_plan_of(self._ask(lambda stubs: stubs.insight.PlanDrain, request, PREDICTION_SECONDS_MAX))

    def report_migration(self, report: MigrationReport) -> Reported:
        """Say how a migration went: the prediction is scored by it, and its costs are learned from.

        Raises:
            NotFound: The target is not known.
        """
        request = messages.report_request(report)
        return messages.reported_of(
            self._ask(lambda stubs: stubs.insight.ReportMigration, request, PREDICTION_SECONDS_MAX)
        )

    def accuracy(self, *, limit: int | None = None) -> Accuracy:
        """Say how good the predictions were that were reported on.

        Args:
            limit: How many of them to give at most; None means 100.
        """
        request = messages.accuracy_request(limit)
        return messages.accuracy_of(self._ask(lambda stubs: stubs.insight.GetAccuracy, request, PREDICTION_SECONDS_MAX))


class AsyncMigrationCalls(AsyncTransport):
    """The same for asyncio."""

    async def predict(self, target: str, bandwidths: Sequence[int], plan: MigrationPlan = PLAN_DEFAULT) -> Predictions:
        """As ``Collector.predict``."""
        request = messages.predict_request(target, bandwidths, plan)
        response = await self._ask(lambda stubs: stubs.insight.PredictMigration, request, PREDICTION_SECONDS_MAX)
        return messages.predictions_of(response)

    async def find_window(
        self,
        target: str,
        bandwidth: int,
        plan: MigrationPlan = PLAN_DEFAULT,
        *,
        horizon_seconds: float | None = None,
    ) -> WindowFound:
        """As ``Collector.find_window``."""
        request = messages.window_request(target, bandwidth, plan, horizon_seconds)
        return messages.window_of(
            await self._ask(lambda stubs: stubs.insight.FindWindow, request, PREDICTION_SECONDS_MAX)
        )

    async def rank(
        self, selection: Selectable, bandwidth: int, plan: MigrationPlan = PLAN_DEFAULT, *, limit: int | None = None
    ) -> Ranking:
        """As ``Collector.rank``."""
        request = messages.rank_request(selection, bandwidth, plan, limit)
        response = await self._ask(lambda stubs: stubs.insight.RankCandidates, request, PREDICTION_SECONDS_MAX)
        return messages.ranking_of(response)

    async def plan_drain(
        self, host: str, link: int, plan: MigrationPlan = PLAN_DEFAULT, *, parallel_max: int | None = None
    ) -> DrainPlan:
        """As ``Collector.plan_drain``."""
        request = messages.drain_request(host, link, plan, parallel_max)
        response = await self._ask(lambda stubs: stubs.insight.PlanDrain, request, PREDICTION_SECONDS_MAX)
        return messages.drain_plan_of(response)

    async def report_migration(self, report: MigrationReport) -> Reported:
        """As ``Collector.report_migration``."""
        request = messages.report_request(report)
        response = await self._ask(lambda stubs: stubs.insight.ReportMigration, request, PREDICTION_SECONDS_MAX)
        return messages.reported_of(response)

    async def accuracy(self, *, limit: int | None = None) -> Accuracy:
        """As ``Collector.accuracy``."""
        request = messages.accuracy_request(limit)
        response = await self._ask(lambda stubs: stubs.insight.GetAccuracy, request, PREDICTION_SECONDS_MAX)
        return messages.accuracy_of(response)
