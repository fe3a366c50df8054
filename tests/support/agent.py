"""A real ``wetink-agent`` in a process of its own.

``with running_agent(collector.address, "--pid", str(pid)) as agent:`` gives one that is connected.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from tests.support.service import Service, start
from wetink_client import Collector
from wetink_client.errors import NotFound, WetinkError

KNOWN_SECONDS_MAX = 60.0

HOST = "here"
"""The host id of agents in tests."""


def start_agent(
    address: str,
    *options: str,
    interval: str = "50ms",
    module: str = "wetink_agent.entry",
    environment: Mapping[str, str] | None = None,
) -> Service:
    """Start an agent; it may not be connected yet.

    Args:
        address: Of the collector.
        options: Of the command.
        interval: From round to round; short, so that tests see many.
        module: Has the ``main`` that is run.
        environment: Variables added to those of the tests.
    """
    arguments = ["--collector", address, "--host-id", HOST, "--interval", interval, *options]
    return Service(start(module, arguments, environment), "agent")


def worker_pid(agent: Service) -> int:
    """Give the process that does the work of an agent, its keeper's child, once there is one."""
    until = time.monotonic() + KNOWN_SECONDS_MAX
    while time.monotonic() < until:
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text(encoding="ascii").split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    message = f"the agent has no worker; log:\n{agent.log}"
    raise AssertionError(message)


@contextmanager
def running_agent(
    address: str,
    *options: str,
    interval: str = "50ms",
    module: str = "wetink_agent.entry",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """Run an agent while the body runs, once it is connected, and stop it afterwards as an operator would."""
    agent = start_agent(address, *options, interval=interval, module=module, environment=environment)
    try:
        agent.wait_for_log("connected")
        _wait_until_known(address, [pid for name, pid in pairwise(options) if name == "--pid"])
        yield agent
    finally:
        agent.close()


def _wait_until_known(address: str, pids: Sequence[str]) -> None:
    """Wait until the collector has taken what the agent began with: it is connected a moment before that."""
    until = time.monotonic() + KNOWN_SECONDS_MAX
    with Collector(address) as client:
        for pid in pids:
            while time.monotonic() < until:
                try:
                    if any(target.round for target in client.targets(f"{HOST}/{pid}")):
                        break
                except NotFound:
                    pass
                except WetinkError:
                    return  # what the test is about
                time.sleep(0.01)
