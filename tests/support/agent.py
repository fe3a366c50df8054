"""A real ``wetink-agent`` in a process of its own.

``with running_agent(collector.address, "--pid", str(pid)) as agent:`` gives one that is connected.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.service import Service, start

HOST = "here"
"""The host id of agents in tests."""


def start_agent(address: str, *options: str, interval: str = "50ms") -> Service:
    """Start an agent; it may not be connected yet.

    Args:
        address: Of the collector.
        options: Of the command.
        interval: From round to round; short, so that tests see many.
    """
    arguments = ["--collector", address, "--host-id", HOST, "--interval", interval, *options]
    return Service(start("wetink_agent.command", arguments), "agent")


@contextmanager
def running_agent(address: str, *options: str, interval: str = "50ms") -> Iterator[Service]:
    """Run an agent while the body runs, once it is connected, and stop it afterwards as an operator would."""
    agent = start_agent(address, *options, interval=interval)
    try:
        agent.wait_for_log("connected")
        yield agent
    finally:
        agent.close()
