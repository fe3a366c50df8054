"""IngestService at its edge. ``intake`` has the rules for messages, ``agents`` and ``session`` those for streams."""

from collections.abc import AsyncIterator

import structlog
from grpc.aio import ServicerContext

from wetink.v1.ingest_pb2 import AgentMessage, CollectorMessage
from wetink.v1.ingest_pb2_grpc import IngestServiceServicer
from wetink_collector import metrics
from wetink_collector.agents import Agents
from wetink_collector.committer import Committer
from wetink_collector.errors import STATUS_OF, Refusal, RoundGap, abort

log = structlog.get_logger()


class IngestService(IngestServiceServicer):
    """The service that agents speak with."""

    def __init__(self, agents: Agents, committer: Committer) -> None:
        """Serve streams into a committer."""
        self._agents = agents
        self._committer = committer

    # The reader API (read, write) lets both directions run on their own; a method that uses it returns nothing, where
    # the generated type speaks of an iterator.
    async def Stream(  # type: ignore[override]  # noqa: N802 (named in the .proto)
        self,
        request_iterator: AsyncIterator[AgentMessage],  # noqa: ARG002 (as above)
        context: ServicerContext[AgentMessage, CollectorMessage],
    ) -> None:
        """Serve one agent's stream."""
        try:
            await self._agents.serve(context, self._committer)
        except Refusal as refusal:
            reason = STATUS_OF[type(refusal)][1]
            metrics.STREAMS_REFUSED.labels(reason).inc()
            if isinstance(refusal, RoundGap):
                metrics.GAPS.labels("ingest").inc()
            log.warning("stream_refused", reason=reason, error=str(refusal))
            await abort(context, refusal)
