"""Health of the agent: probes learn when tracking is on, with or without a collector."""

import contextlib
import random
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.support.agent import start_agent
from tests.support.service import PATIENCE_SECONDS

pytestmark = pytest.mark.needs("kernel", "root", "cc")


def free_port() -> int:
    """Give a port that is free, and not one of those that others are given by the kernel meanwhile."""
    given, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(given // 2, given)  # noqa: S311 (nothing secret)
            probe.bind(("127.0.0.1", port))
            return port


def asked(port: int) -> int:
    """Ask as a kubelet does; the status."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = check(HealthCheckRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS).status
            if answer == HealthCheckResponse.SERVING or time.monotonic() > until:
                return int(answer)
            time.sleep(0.05)


def test_agent_serves_once_tracking_is_on_though_no_collector_is_there() -> None:
    """A sidecar's startup probe lets the program start that it is to track."""
    port = free_port()
    with subprocess.Popen(["sleep", "4341.5"]) as target:
        agent = start_agent("127.0.0.1:1", "--pid", str(target.pid), "--health", f"127.0.0.1:{port}")
        try:
            assert asked(port) == HealthCheckResponse.SERVING
        finally:
            agent.close()
            target.kill()


def test_address_that_is_taken_is_told_at_the_start() -> None:
    """A probe that asks somebody else is worse than none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        agent = start_agent("127.0.0.1:1", "--command", "^no such$", "--health", address)
        try:
            assert agent.process.wait(PATIENCE_SECONDS) == 1
        finally:
            agent.close()

    assert f"cannot answer health probes on {address}" in agent.log


def test_address_that_is_none_is_refused() -> None:
    """With the option's name."""
    agent = start_agent("127.0.0.1:1", "--health", "everywhere")
    try:
        assert agent.process.wait(PATIENCE_SECONDS) == 2
    finally:
        agent.close()
    assert "(--health)" in agent.log
