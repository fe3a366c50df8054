"""InsightService at its edge: requests are checked, histories are asked, and answers are sent.

The rpcs are documented in ``wetink/v1/insight.proto``.
"""

from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

from grpc.aio import ServicerContext

from wetink.v1 import insight_pb2 as pb
from wetink_collector.edge import edge
from wetink_collector.insight import answers
from wetink_collector.insight.inquiry import Inquiry
from wetink_collector.insight.prediction_service import PredictionCalls
from wetink_collector.insight.working_sets import working_sets

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["InsightService"].full_name

_Context: TypeAlias = ServicerContext[Any, Any]


class InsightService(PredictionCalls):
    """The service that tells orchestrators what the rounds mean."""

    def __init__(self, inquiry: Inquiry) -> None:
        """Answer from what an inquiry finds."""
        super().__init__(inquiry)
        self._inquiry = inquiry

    async def GetWorkingSet(  # noqa: N802 (named in the .proto)
        self, request: pb.GetWorkingSetRequest, context: _Context
    ) -> pb.GetWorkingSetResponse:
        """Give W(T)."""
        async with edge(_SERVICE, "GetWorkingSet", context):
            return await working_sets(self._inquiry, request)

    async def GetHeatmap(  # noqa: N802 (as above)
        self, request: pb.GetHeatmapRequest, context: _Context
    ) -> pb.GetHeatmapResponse:
        """Give address by time."""
        async with edge(_SERVICE, "GetHeatmap", context):
            return await answers.heatmap(self._inquiry, request)

    async def GetHotPages(  # noqa: N802 (as above)
        self, request: pb.GetHotPagesRequest, context: _Context
    ) -> pb.GetHotPagesResponse:
        """Give the pages that are written most."""
        async with edge(_SERVICE, "GetHotPages", context):
            return await answers.hot_pages(self._inquiry, request)

    async def GetColdFirst(  # noqa: N802 (as above)
        self, request: pb.GetColdFirstRequest, context: _Context
    ) -> AsyncIterator[pb.GetColdFirstResponse]:
        """Give the order in which to send pages."""
        async with edge(_SERVICE, "GetColdFirst", context):
            async for part in answers.cold_first(self._inquiry, request):
                yield part

    async def GetWriters(  # noqa: N802 (as above)
        self, request: pb.GetWritersRequest, context: _Context
    ) -> pb.GetWritersResponse:
        """Give the threads and the code that write most."""
        async with edge(_SERVICE, "GetWriters", context):
            return await answers.writers(self._inquiry, request)
