"""``wetink health``, as a container's health check runs it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from tests.integration.client.command import failure, wetink


@pytest.fixture
def standing_still() -> Iterator[str]:
    """Give the address of a server that is there and does not serve."""
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        health = HealthServicer()
        health.set("", HealthCheckResponse.NOT_SERVING)
        add_HealthServicer_to_server(health, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize("service", [[], ["--service", "wetink.v1.DirtyService"]])
def test_serving_collector(collector: str, service: list[str]) -> None:
    """One sentence and 0, wherever the address stands."""
    after = wetink("health", "--collector", collector, *service)
    before = wetink("--collector", collector, "health", *service)

    assert (after.returncode, after.stderr) == (0, "")
    assert after.stdout == before.stdout
    assert after.stdout.startswith(collector)
    assert after.stdout.endswith(" serves\n")


def test_collector_that_does_not_serve(standing_still: str) -> None:
    """1, so that it is not taken for one that is away."""
    code, sentence = failure("health", "--collector", standing_still)

    assert code == 1
    assert sentence.startswith(f"{standing_still} is there and does not serve now")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "unix:/nosuch/socket"])
def test_nobody_there(address: str) -> None:
    """3, with the address."""
    code, sentence = failure("health", "--collector", address)

    assert code == 3
    assert sentence.startswith(f"collector {address} cannot be reached (")


def test_service_that_is_not_there(collector: str) -> None:
    """4, and which one it is."""
    code, sentence = failure("health", "--collector", collector, "--service", "other.Service")

    assert code == 4
    assert "other.Service" in sentence
