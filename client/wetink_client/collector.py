"""The two clients of a collector: ``Collector`` for threads, ``AsyncCollector`` for asyncio."""

from wetink_client.dirty_calls import AsyncDirtyCalls, DirtyCalls
from wetink_client.insight_calls import AsyncInsightCalls, InsightCalls
from wetink_client.migration_calls import AsyncMigrationCalls, MigrationCalls
from wetink_client.session_calls import AsyncSessionCalls, SessionCalls


class Collector(DirtyCalls, MigrationCalls, InsightCalls, SessionCalls):
    """A connection to a collector. It connects at the first call, and again by itself after a failure.

    May be shared by threads. Every call has a deadline and raises a ``WetinkError``: ``CollectorUnavailable`` when
    nobody answers, ``InvalidRequest`` for what can never be right, and what else each method names.
    """


class AsyncCollector(AsyncDirtyCalls, AsyncMigrationCalls, AsyncInsightCalls, AsyncSessionCalls):
    """The same for asyncio: each method does what ``Collector``'s of the same name does. Make it inside the loop."""
