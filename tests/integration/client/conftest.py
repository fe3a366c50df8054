"""A real collector with an empty store, and an agent without a kernel."""

from collections.abc import Iterator

import pytest

from tests.support.collector import running_collector
from tests.support.raw_agent import RawAgent


@pytest.fixture
def collector() -> Iterator[str]:
    """Give a collector's address."""
    with running_collector() as running:
        yield running.address


@pytest.fixture
def agent(collector: str) -> Iterator[RawAgent]:
    """Give the agent of ``host-1``."""
    with RawAgent(collector) as agent:
        yield agent
