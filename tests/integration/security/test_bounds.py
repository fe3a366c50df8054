"""Peers that take what others need: messages over the bound, streams and connections that say nothing."""

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, refused, target
from tests.integration.security.audit import Audit
from tests.integration.security.conftest import wanting_certificates
from tests.integration.security.test_strangers import HEADERS, PING, PREFACE, SETTINGS, frame, headers
from tests.support import hasty_collector
from tests.support.certificates import Authority
from tests.support.collector import HASTY, CollectorProcess, running_collector
from wetink.v1 import dirty_pb2 as pb
from wetink_collector import server
from wetink_collector.server import CONNECTIONS_MAX

Start = Callable[..., CollectorProcess]

FRAME_HEADER = 9
"""Bytes of one: RFC 9113, section 4.1."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process open as many connections as a collector takes, and some more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + 500
    if before[1] < wanted:
        pytest.skip(f"needs {wanted} descriptors, and the limit is {before[1]}: raise it with ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connect(collector: CollectorProcess) -> socket.socket:
    """Open a connection that says nothing."""
    host, _, port = collector.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def seconds_until_closed(collector: CollectorProcess, *, calls: bool) -> float:
    """Speak HTTP/2 as a client does that asks for health now and then, or for nothing, until it is hung up on."""
    began, stream, heard = time.monotonic(), 1, b""
    with connect(collector) as connection:
        connection.settimeout(0.1)
        connection.sendall(PREFACE)
        while (passed := time.monotonic() - began) < 20:
            try:
                part = connection.recv(65536)
                if not part:
                    break
                heard += part
            except TimeoutError:
                pass
            except ConnectionResetError:
                break
            while len(heard) >= FRAME_HEADER and len(heard) >= (
                size := FRAME_HEADER + int.from_bytes(heard[:3], "big")
            ):
                if heard[3] in {SETTINGS, PING} and not heard[4]:
                    connection.sendall(frame(heard[3], 1, 0, heard[FRAME_HEADER:size] if heard[3] == PING else b""))
                heard = heard[size:]
            if calls:
                asks = frame(HEADERS, 4, stream, headers("/grpc.health.v1.Health/Check"))
                with suppress(BrokenPipeError):
                    connection.sendall(asks + frame(0, 1, stream, bytes(5)))
                stream += 2
    return passed


@pytest.mark.parametrize(
    "option, calls", [("grpc.max_connection_idle_ms", False), ("grpc.max_connection_age_ms", True)]
)
def test_connection_of_nobody_is_closed(option: str, *, calls: bool) -> None:
    """Whether it asks for nothing, or for what everybody may; an agent's stream goes on over its own."""
    options = dict(server.OPTIONS)
    assert options["grpc.max_connection_idle_ms"] <= options["grpc.max_connection_age_ms"] <= 60_000
    environment = {hasty_collector.OPTIONS: json.dumps({option: 1000})}
    with running_collector(module=HASTY, environment=environment) as collector, Agent(collector.address) as agent:
        agent.hello()
        assert 0.5 < seconds_until_closed(collector, calls=calls) < 20
        agent.deliver(target(), [1])


def test_oversize_message_ends_its_call_alone(start: Start) -> None:
    """RESOURCE_EXHAUSTED for who sent it, and an audit line; others go on."""
    collector = start()
    audit = Audit(collector)
    with Agent(collector.address, "host-2") as other, Agent(collector.address) as agent:
        other.hello()
        agent.hello()
        agent.say(batch(target(), 1, written=range(0, 16_000_000, 2)))
        assert agent.error()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            Reader(collector.address).stub.ListTargets(
                pb.ListTargetsRequest(selection=pb.Selection(cgroups=["x" * (2 << 20)])), timeout=20
            )
        other.deliver(target(host_id="host-2"), [1])

    assert "a message of over 1048576 bytes" in audit.wait_for(method="Stream", result="CANCELLED")["why"]
    assert "one of over 1048576 bytes" in audit.wait_for(method="ListTargets", result="INVALID_ARGUMENT")["why"]


def test_stream_that_never_says_hello_ends(start: Start) -> None:
    """After its time, with a reason and an audit line."""
    collector = start()
    audit = Audit(collector)
    began = time.monotonic()
    with Agent(collector.address) as agent:
        assert agent.error()[:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "AGENT_SILENT")
        assert 9 < time.monotonic() - began < 50
    assert "without a Hello" in audit.wait_for(method="Stream", result="DEADLINE_EXCEEDED")["why"]


@pytest.mark.parametrize("tls", [False, True])
def test_connection_that_says_nothing_is_closed(start: Start, authority: Authority, *, tls: bool) -> None:
    """Before TLS as after it there is a time in which a peer must have said what it is."""
    collector = start(*(wanting_certificates(authority) if tls else ()))
    began = time.monotonic()
    with connect(collector) as silent, connect(collector) as slow:
        slow.sendall(b"\x16\x03\x01" if tls else b"PRI * HTTP/2")
        for connection in (silent, slow):
            connection.settimeout(60)
            while connection.recv(4096):
                pass
        assert 8 < time.monotonic() - began < 60


@pytest.mark.usefixtures("many_descriptors")
def test_connections_are_bounded(start: Start) -> None:
    """Those over the bound are closed at once, streams that are open go on, and there is room again afterwards."""
    collector = start()
    with Agent(collector.address) as agent, ExitStack() as opened:
        agent.hello()
        crowd = [opened.enter_context(connect(collector)) for _ in range(CONNECTIONS_MAX + 50)]
        crowd[-1].settimeout(60)
        assert crowd[-1].recv(4096) == b""
        agent.deliver(target(), [1])
    until = time.monotonic() + 60
    while True:
        try:
            assert [host.host_id for host in Reader(collector.address).hosts()] == ["host-1"]
            break
        except grpc.RpcError:
            assert time.monotonic() < until
            time.sleep(0.2)
