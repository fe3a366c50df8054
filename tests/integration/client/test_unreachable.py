import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration.client.command import failure
from tests.support.fake_dirty import fake_collector
from wetink_client import Collector, CollectorUnavailable, InvalidRequest


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address where nobody listens, and nobody can but who means to: other tests take the ports that are free."""
    with closing(socket.socket()) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


@pytest.fixture
def mute_port() -> Iterator[str]:
    """An address where a connection is taken and nothing is ever said."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address where not even a connection is taken: its queue is full."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"
        for one in waiting:
            one.close()


@pytest.mark.parametrize("where", ["closed_port", "mute_port", "black_hole"])
def test_unreachable_collector_is_told_within_seconds(where: str, request: pytest.FixtureRequest) -> None:
    """One sentence with the address, and exit code 3; gRPC alone would take 20 s for two of them."""
    address: str = request.getfixturevalue(where)

    began = time.monotonic()
    code, sentence = failure("--collector", address, "hosts")

    assert code == 3
    assert sentence.startswith(f"collector {address} cannot be reached (")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("address", ["collector.invalid:7419", "unix:/nosuch/socket"])
def test_collector_that_cannot_be_found_is_told(address: str) -> None:
    """A name that does not resolve, and a socket that is not there."""
    code, sentence = failure("--collector", address, "targets")

    assert code == 3
    assert sentence.startswith(f"collector {address} cannot be reached (")


def test_address_comes_from_the_environment(closed_port: str) -> None:
    """A person sets it once; the flag is stronger."""
    environment = {"WETINK_COLLECTOR": "unix:/nosuch/socket"}

    _, of_environment = failure("hosts", environment=environment)
    _, of_flag = failure("--collector", closed_port, "hosts", environment=environment)

    assert "unix:/nosuch/socket" in of_environment
    assert closed_port in of_flag


def test_proxy_of_the_environment_is_not_asked(closed_port: str) -> None:
    """Addresses reveal layout: they go to the collector alone."""
    with fake_collector() as address:
        environment = {"http_proxy": f"http://{closed_port}", "HTTP_PROXY": f"http://{closed_port}", "no_proxy": ""}
        code, sentence = failure("--collector", address, "watch", environment=environment)

    assert (code, sentence) == (4, "no host has an agent here yet, so there is nothing to watch")


def test_collector_that_comes_back_is_found_soon(closed_port: str) -> None:
    """One client outlives its collector, and need not be made again."""
    with Collector(closed_port) as collector:
        for _ in range(5):
            with pytest.raises(CollectorUnavailable):
                collector.hosts()
            time.sleep(0.5)  # so that the back-off would grow
        with fake_collector(address=closed_port):
            give_up = time.monotonic() + 20
            while True:
                try:
                    assert collector.hosts() == ()
                    break
                except CollectorUnavailable:
                    assert time.monotonic() < give_up
                    time.sleep(0.1)


@pytest.mark.parametrize("address", ["collector", "collector:0", "http://collector:7419"])
def test_malformed_address_is_a_mistake_of_the_caller(address: str) -> None:
    """Nobody is asked."""
    code, sentence = failure("--collector", address, "hosts")

    assert (code, sentence) == (2, f"{address!r} is no collector's address: write HOST:PORT or unix:PATH")
    with pytest.raises(InvalidRequest):
        Collector(address)
