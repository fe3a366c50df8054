"""The calls of InsightService about migrations, at their edge.

The rpcs are documented in ``wetink/v1/insight.proto``.
"""

from typing import Any, Final, TypeAlias

from grpc.aio import ServicerContext

from wetink.v1 import insight_pb2
from wetink.v1 import prediction_pb2 as pb
from wetink.v1.insight_pb2_grpc import InsightServiceServicer
from wetink_collector.edge import edge
from wetink_collector.insight.accuracy import Accuracy
from wetink_collector.insight.candidates import plan_drain_of, rank_candidates
from wetink_collector.insight.inquiry import Inquiry
from wetink_collector.insight.migrations import find_window, predict_migration
from wetink_collector.insight.reports import get_accuracy, report_migration

_SERVICE: Final = insight_pb2.DESCRIPTOR.services_by_name["InsightService"].full_name

_Context: TypeAlias = ServicerContext[Any, Any]


class PredictionCalls(InsightServiceServicer):
    """Those calls of the service; the others are its own."""

    def __init__(self, inquiry: Inquiry) -> None:
        """Answer from what an inquiry finds; of predictions nothing is known yet."""
        self._inquiry = inquiry
        self._accuracy = Accuracy()

    async def PredictMigration(  # noqa: N802 (named in the .proto)
        self, request: pb.PredictMigrationRequest, context: _Context
    ) -> pb.PredictMigrationResponse:
        """Say how a migration would go."""
        async with edge(_SERVICE, "PredictMigration", context):
            return await predict_migration(self._inquiry, self._accuracy, request)

    async def FindWindow(  # noqa: N802 (as above)
        self, request: pb.FindWindowRequest, context: _Context
    ) -> pb.FindWindowResponse:
        """Say when to begin."""
        async with edge(_SERVICE, "FindWindow", context):
            return await find_window(self._inquiry, self._accuracy, request)

    async def RankCandidates(  # noqa: N802 (as above)
        self, request: pb.RankCandidatesRequest, context: _Context
    ) -> pb.RankCandidatesResponse:
        """Say which targets are the cheapest to move."""
        async with edge(_SERVICE, "RankCandidates", context):
            return await rank_candidates(self._inquiry, self._accuracy, request)

    async def PlanDrain(  # noqa: N802 (as above)
        self, request: pb.PlanDrainRequest, context: _Context
    ) -> pb.PlanDrainResponse:
        """Say how to empty a host."""
        async with edge(_SERVICE, "PlanDrain", context):
            return await plan_drain_of(self._inquiry, self._accuracy, request)

    async def ReportMigration(  # noqa: N802 (as above)
        self, request: pb.ReportMigrationRequest, context: _Context
    ) -> pb.ReportMigrationResponse:
        """Take what happened."""
        async with edge(_SERVICE, "ReportMigration", context):
            return report_migration(self._inquiry, self._accuracy, request)

    async def GetAccuracy(  # noqa: N802 (as above)
        self, request: pb.GetAccuracyRequest, context: _Context
    ) -> pb.GetAccuracyResponse:
        """Say how good predictions were."""
        async with edge(_SERVICE, "GetAccuracy", context):
            return get_accuracy(self._accuracy, request)
