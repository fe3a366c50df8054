"""No descriptors left: those who are served go on, what is kept stays whole, and it is over when the reason is."""

import contextlib
import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, target
from tests.support.collector import CollectorProcess
from tests.support.service import PATIENCE_SECONDS
from tests.support.service import start as start_service

pytestmark = pytest.mark.timeout(300)

DESCRIPTORS: Final = 160
"""What the service may have: its own, and some more."""

HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a client of HTTP/2 says first, with its empty settings: a connection that says it stays, without a call."""


def open_count(pid: int) -> int:
    """Give how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (one call, so that it is of one moment)


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def collector_with_few(data: Path) -> Iterator[CollectorProcess]:
    """Run a collector that may have few descriptors; it looks around often."""
    arguments = ["--listen", "127.0.0.1:0", "--data", str(data), "--metrics", "127.0.0.1:0"]
    process = start_service(
        "tests.support.hasty_collector", arguments, before=("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    )
    collector = CollectorProcess(process, data)
    try:
        yield collector
        assert "Traceback" not in collector.log, collector.log
    finally:
        collector.close()


def scrape(collector: CollectorProcess) -> str:
    """Read the page of metrics, by a connection of its own."""
    with urllib.request.urlopen(f"http://{collector.metrics_address}/metrics", timeout=PATIENCE_SECONDS) as response:
        return str(response.read().decode())


def test_connections_take_no_descriptor_that_the_collector_needs(tmp_path: Path) -> None:
    """
    With as many connections as it takes, and as many more that knock, rounds are acknowledged, threads open the store
    to read it for the first time, and metrics are served; new callers are told UNAVAILABLE, and the log says it once.
    When the others have gone, it says that too.
    """
    one = target(host_id="well")
    with collector_with_few(tmp_path / "data") as collector, Agent(collector.address, "well") as agent:
        agent.hello()
        agent.deliver(one, [1])
        asking = Reader(collector.address)
        asking.hosts()
        host, _, port = collector.address.rpartition(":")
        with contextlib.ExitStack() as hoard:
            for _ in range(2 * DESCRIPTORS):
                with contextlib.suppress(OSError):  # closed already
                    knocking = hoard.enter_context(socket.create_connection((host, int(port)), PATIENCE_SECONDS))
                    knocking.sendall(HELLO)
            collector.wait_for_log("connections_full")

            for number in range(2, 22):
                agent.say(batch(one, number, written=[number]))
                agent.acknowledged(one, number)
                assert asking.dirty("well/1").written == {"well/1@100": set(range(1, number + 1))}
            assert "wetink_streams 1.0" in scrape(collector)
            assert open_count(collector.pid) < DESCRIPTORS - 16
            late = Reader(collector.address)
            with late.channel, pytest.raises(grpc.RpcError) as refused:
                late.hosts()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

        collector.wait_for_log("connections_free")
        late = Reader(collector.address)
        with late.channel:
            assert [known.host_id for known in late.hosts()] == ["well"]
        asking.channel.close()
        assert len(collector.events("connections_full")) == 1
        assert "descriptor limit" not in collector.log
