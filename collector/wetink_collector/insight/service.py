"""InsightService at its edge: requests are checked, histories are asked, and answers are sent.

The rpcs are documented in ``wetink/v1/insight.proto``.
"""

from typing import Final

from wetink.v1 import insight_pb2
from wetink.v1.insight_pb2_grpc import InsightServiceServicer
from wetink_collector.catalog import Catalog

SERVICE: Final = insight_pb2.DESCRIPTOR.services_by_name["InsightService"].full_name


class InsightService(InsightServiceServicer):
    """The service that tells orchestrators what the rounds mean."""

    def __init__(self, catalog: Catalog) -> None:
        """Answer about what a catalog has."""
        self._catalog = catalog
