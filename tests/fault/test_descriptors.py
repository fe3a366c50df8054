"""No descriptors left: those who are served go on, what is kept stays whole, and it is over when the reason is."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, target
from tests.support.agent import HOST, worker_pid
from tests.support.collector import CollectorProcess, running_collector
from tests.support.service import PATIENCE_SECONDS, Service
from tests.support.service import start as start_service

pytestmark = pytest.mark.timeout(300)

DESCRIPTORS: Final = 160
"""What the service may have: its own, and some more."""

HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a client of HTTP/2 says first, with its empty settings: a connection that says it stays, without a call."""

PROCESSES: Final = 24
"""More than an agent with so few can track."""

ENDING: Final = 10
"""So many of those that are tracked end: there is room for all of the others then."""

AGAIN_SECONDS: Final = 1.5
"""By then those that were refused have been tried once more."""


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
def sleeping(count: int, name: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes that sleep, under a name of their own."""
    processes = [subprocess.Popen([name, "1000"], executable="/usr/bin/sleep") for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def agent_with_few(address: str, command: str) -> Iterator[Service]:
    """Run an agent that may have few descriptors, and tracks what is called so."""
    arguments = ["--collector", address, "--host-id", HOST, "--interval", "50ms", "--command", f"^{command} "]
    before = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    agent = Service(start_service("wetink_agent.entry", arguments, before=before), "agent")
    try:
        agent.wait_for_log("connected")
        yield agent
    finally:
        agent.close()


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


@pytest.mark.needs("kernel", "root")
def test_targets_take_no_descriptor_that_the_others_need(tmp_path: Path) -> None:
    """
    An agent with more processes than it has descriptors for tracks as many as it can, with some left for their rounds,
    and says of each of the others why it is not tracked, once. Barriers reach those that are; a worker that is killed
    is followed by one that goes on with all of them; and when some have ended, others take their places.
    """
    command = f"few-{os.getpid()}"
    with (
        running_collector(tmp_path / "data") as collector,
        sleeping(PROCESSES, command) as processes,
        agent_with_few(collector.address, command) as agent,
    ):
        reader = Reader(collector.address)
        until(lambda: bool(agent.events("target_refused")))
        until(lambda: len(agent.events("target_attached")) + len(agent.events("target_refused")) >= PROCESSES)
        # While many were being attached at once there was room for fewer than there is now.
        time.sleep(AGAIN_SECONDS)
        until(lambda: sum(info.live for info in reader.targets()) == len(agent.events("target_attached")))
        tracked = {info.name: info for info in reader.targets() if info.live}
        assert 4 < len(tracked) < PROCESSES
        assert all("RLIMIT_NOFILE" in event["why"] for event in agent.events("target_refused"))
        others = {process.pid for process in processes} - {info.target.pid for info in tracked.values()}
        refused = [event["pid"] for event in agent.events("target_refused")]
        assert others <= set(refused)
        # Apart from what a round that is under way has open for a moment.
        assert min(open_count(worker_pid(agent)) for _ in range(20)) <= DESCRIPTORS - 32

        answer = reader.dirty(hosts=[HOST], barrier=True)
        assert answer.summary.complete
        assert {part.name for part in answer.summary.targets} == tracked.keys()
        assert len(refused) == len(set(refused)) == len(agent.events("target_refused"))
        os.kill(worker_pid(agent), signal.SIGKILL)
        agent.wait_for_log("connected", 2)
        until(lambda: reader.dirty(hosts=[HOST], barrier=True).summary.complete)
        after = {info.name: info for info in reader.targets() if info.live}
        assert {name: info.incarnation for name, info in after.items() if name in tracked} == {
            name: info.incarnation for name, info in tracked.items()
        }

        # How many fit is a matter of how many were being attached at once: so many go that there is room for sure.
        ending = [process for process in processes if any(f"/{process.pid}@" in name for name in tracked)][:ENDING]
        for process in ending:
            process.kill()
            process.wait()
        until(lambda: others <= {info.target.pid for info in reader.targets() if info.live})
        reader.channel.close()
