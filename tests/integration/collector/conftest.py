"""A real collector with an empty store, and both sides of it on the plain stubs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.collector.wire import Agent, Reader
from tests.support.collector import CollectorProcess, running_collector


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def shared_collector(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CollectorProcess]:
    """Give a collector that the tests of a module share, once with each store. Each test uses a host of its own."""
    data = tmp_path_factory.mktemp("data") if request.param == "sqlite" else None
    with running_collector(data) as collector:
        yield collector
        assert "Traceback" not in collector.log, collector.log


@pytest.fixture
def host(request: pytest.FixtureRequest) -> str:
    """Give a host that no other test uses."""
    return "".join(character if character.isalnum() else "-" for character in request.node.name)[:200]


@pytest.fixture
def agent(shared_collector: CollectorProcess, host: str) -> Iterator[Agent]:
    """Give a stream of the test's host, open and without a Hello."""
    with Agent(shared_collector.address, host) as agent:
        yield agent


@pytest.fixture
def reader(shared_collector: CollectorProcess) -> Iterator[Reader]:
    """Give an orchestrator."""
    reader = Reader(shared_collector.address)
    with reader.channel:
        yield reader


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[CollectorProcess]:
    """Give a collector of the test's own, with a store in a file."""
    with running_collector(tmp_path / "data") as collector:
        yield collector
