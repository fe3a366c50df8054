"""A real ``wetink-collector`` in a process of its own, on a free port or a Unix socket, ready when it says SERVING.

``with running_collector() as collector:`` gives one; ``collector.address`` is what clients connect to.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.support.service import PATIENCE_SECONDS, Service, start

COMMAND: Final = "wetink_collector.command"

HASTY: Final = "tests.support.hasty_collector"
"""The same with bounds on time that a test can wait for."""


class CollectorProcess(Service):
    """A collector that was started, and what it has logged.

    Attributes:
        address: Where it listens, with the real port.
        metrics_address: Where it serves metrics, with the real port; None without ``--metrics``.
        health_address: Where it serves health in the clear, with the real port; None without ``--health``.
        data: Its data directory; None where it keeps everything in memory.
    """

    def __init__(self, process: subprocess.Popen[str], data: Path | None) -> None:
        """Wait until it says where it listens, then until it says SERVING."""
        super().__init__(process, "collector")
        self.data = data
        listening = self.wait_for_log("listening")
        self.address: str = listening["address"]
        self.metrics_address: str | None = listening["metrics"]
        self.health_address: str | None = listening.get("health")
        self._wait_until_serving()

    def _wait_until_serving(self) -> None:
        with grpc.insecure_channel(self.health_address or self.address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            answer = check(HealthCheckRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS)
        assert answer.status == HealthCheckResponse.SERVING, answer


@contextmanager
def running_collector(
    data: Path | None = None,
    *,
    listen: str = "127.0.0.1:0",
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    module: str = COMMAND,
) -> Iterator[CollectorProcess]:
    """Run a collector while the body runs, and stop it afterwards as an operator would.

    Args:
        data: Its data directory; None keeps everything in memory.
        listen: Where it is to listen. To restart one in its place, give the address it had.
        options: Further options of the command.
        environment: Variables added to those of the tests.
        module: Has the ``main`` that is run.
    """
    process = start_collector(data, listen=listen, options=options, environment=environment, module=module)
    try:
        collector = CollectorProcess(process, data)
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        yield collector
    finally:
        collector.close()


def start_collector(
    data: Path | None = None,
    *,
    listen: str = "127.0.0.1:0",
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    module: str = COMMAND,
) -> subprocess.Popen[str]:
    """Start a collector and do not wait for anything. Its log is at the returned process's ``stderr``."""
    arguments = ["--listen", listen, *(("--data", str(data)) if data else ()), *options]
    return start(module, arguments, environment)
