"""A real collector for each module, and for each test a host of its own with an agent that has no kernel."""

import itertools
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.collector import running_collector
from tests.support.raw_agent import RawAgent

_HOST_NUMBERS: Final = itertools.count(1)


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    """Give a collector's address."""
    with running_collector() as running:
        yield running.address


@pytest.fixture
def host_id() -> str:
    """Give a host that no other test knows."""
    return f"host-{next(_HOST_NUMBERS)}"


@pytest.fixture
def agent(collector: str, host_id: str) -> Iterator[RawAgent]:
    """Give the agent of that host."""
    with RawAgent(collector, host_id) as agent:
        yield agent


@pytest.fixture
def name(host_id: str) -> str:
    """Give the name of its process 7, which the agent starts at 100."""
    return f"{host_id}/7@100"
