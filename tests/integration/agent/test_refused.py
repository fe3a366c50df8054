"""A real agent with more targets than its collector takes: it says so, goes on with the others, and tries again."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.agent import HOST, start_agent
from tests.support.collector import running_collector
from tests.support.hasty_collector import REFUSED_RETRY_SECONDS
from tests.support.service import PATIENCE_SECONDS
from wetink_client import Collector, Selection
from wetink_client.values import EndReason

pytestmark = pytest.mark.needs("kernel", "root")


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that sleeps."""
    process = subprocess.Popen(["sleep", "1000"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_agent_goes_on_without_the_target_that_is_not_taken_and_comes_back_to_it() -> None:
    """
    The agent logs which target the collector did not take and why, once; answers about the host are not complete. When
    another target has ended it is taken, and they are.
    """
    with (
        running_collector(module="tests.support.hasty_collector", options=["--agent-targets", "2"]) as service,
        Collector(service.address) as client,
        sleeping() as one,
        sleeping() as two,
        sleeping() as three,
    ):
        pids = [process.pid for process in (one, two, three)]
        agent = start_agent(service.address, *(word for pid in pids for word in ("--pid", str(pid))))
        try:
            refused = agent.wait_for_log("target_not_taken")
            assert "--agent-targets" in refused["why"]
            until(lambda: len(client.targets()) == len(pids))
            states = [target.end_reason for target in client.targets()]
            assert sorted(map(str, states)) == sorted(["None", "None", EndReason.REFUSED])
            rounds = {target.name: target.round for target in client.targets() if target.live}
            assert not client.dirty(Selection(hosts=(HOST,)), barrier=True).complete
            until(lambda: all(client.targets(name)[0].round > number for name, number in rounds.items()))
            time.sleep(2 * REFUSED_RETRY_SECONDS)
            assert len(agent.events("target_not_taken")) == 1

            first = next(process for process in (one, two, three) if str(process.pid) not in refused["target"])
            first.kill()
            first.wait()
            until(lambda: sum(target.live for target in client.targets()) == 2)
            until(lambda: client.dirty(Selection(hosts=(HOST,)), barrier=True).complete)
        finally:
            agent.close()
