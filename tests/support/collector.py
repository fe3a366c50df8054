"""A real ``wetink-collector`` in a process of its own, on a free port or a Unix socket, ready when it says SERVING.

``with running_collector() as collector:`` gives one; ``collector.address`` is what clients connect to.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

COMMAND: Final = (sys.executable, "-c", "from wetink_collector.command import main; main()")
"""The command, in the interpreter that runs the tests."""

PATIENCE_SECONDS: Final = 20.0
"""How long it may take to start or to end."""


class CollectorProcess:
    """A collector that was started, and what it has logged.

    Attributes:
        address: Where it listens, with the real port.
        metrics_address: Where it serves metrics, with the real port; None without ``--metrics``.
        data: Its data directory; None where it keeps everything in memory.
    """

    def __init__(self, process: "subprocess.Popen[str]", data: Path | None) -> None:
        """Wait until it says where it listens, then until it says SERVING."""
        self.process = process
        self.data = data
        self._lines: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="collector's log", daemon=True)
        self._reader.start()
        listening = self.wait_for_log("listening")
        self.address: str = listening["address"]
        self.metrics_address: str | None = listening["metrics"]
        self._wait_until_serving()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """All it has written to standard error."""
        with self._logged:
            return "".join(self._lines)

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """Give what it has logged under a name."""
        with self._logged:
            entries = [json.loads(line) for line in self._lines if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == name]

    def wait_for_log(self, name: str, count: int = 1) -> Mapping[str, Any]:
        """Wait until it has logged a name so many times, and give the last of them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.events(name)) < count:
            with self._logged:
                changed = self._logged.wait(timeout=0.1)
            if not changed and (self.process.poll() is not None or time.monotonic() > deadline):
                message = f"the collector did not log {name!r}; exit code {self.process.poll()}, log:\n{self.log}"
                raise AssertionError(message)
        return found[-1]

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to drain, wait until it is gone, and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.kill()
            message = f"the collector did not stop in {PATIENCE_SECONDS} s; log:\n{self.log}"
            raise AssertionError(message) from error

    def close(self) -> None:
        """Stop it where it still runs, and let go of its log."""
        if self.process.poll() is None:
            self.stop()
        self._reader.join(PATIENCE_SECONDS)
        if self.process.stderr:
            self.process.stderr.close()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            with self._logged:
                self._lines.append(line)
                self._logged.notify_all()

    def _wait_until_serving(self) -> None:
        with grpc.insecure_channel(self.address) as channel:
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
) -> Iterator[CollectorProcess]:
    """Run a collector while the body runs, and stop it afterwards as an operator would.

    Args:
        data: Its data directory; None keeps everything in memory.
        listen: Where it is to listen. To restart one in its place, give the address it had.
        options: Further options of the command.
        environment: Variables added to those of the tests.
    """
    process = start_collector(data, listen=listen, options=options, environment=environment)
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
) -> "subprocess.Popen[str]":
    """Start a collector and do not wait for anything. Its log is at the returned process's ``stderr``."""
    arguments = [*COMMAND, "--listen", listen, *(("--data", str(data)) if data else ()), *options]
    own = {name: value for name, value in os.environ.items() if not name.startswith("WETINK_COLLECTOR_")}
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env={**own, **(environment or {})})
