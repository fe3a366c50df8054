"""A worker that is told to track other processes than the one before it: the new options hold."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fault.test_worker_killed import is_registered
from tests.integration.agent.test_following import ORPHAN, line_of, python, say, until
from tests.integration.agent.test_selection import sleeping, tracked
from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.collector import running_collector
from tests.support.service import Service
from tests.support.watched import wait_until
from wetink_client import Collector
from wetink_client.values import EndReason, IncompleteReason, TargetInfo

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(600)]

START_SECONDS_MAX = 120.0
"""A worker is a second of work, which a busy machine may take a minute to do."""

FAMILY = ORPHAN.replace("sleep(60)", "sleep(600)")
OFFERS = """
import sys, time
from wetink_agent.offer import offer_memory
print(offer_memory(sys.argv[1]), flush=True)
time.sleep(600)
"""


@pytest.fixture
def options(tmp_path: Path) -> "Options":
    """Give the file that an agent has its options from."""
    return Options(tmp_path / "agent.toml")


class Options:
    """A file of options."""

    def __init__(self, path: Path) -> None:
        """Name it; it is not there yet."""
        self.path = path

    def write(self, *, pids: Sequence[int] = (), command: str = "", tree: bool = False, handshake: str = "") -> None:
        """Say what is to be tracked."""
        lines = [f"pid = [{', '.join(map(str, pids))}]", f"tree = {str(tree).lower()}"]
        lines += [f"command = ['{command}']"] * bool(command) + [f"handshake = '{handshake}'"] * bool(handshake)
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def served(options: Options) -> Iterator[tuple[Collector, Service]]:
    """Run a collector and an agent with these options."""
    with (
        running_collector() as collector,
        running_agent(collector.address, "--config", str(options.path)) as agent,
        Collector(collector.address) as client,
    ):
        yield client, agent


def start_again(agent: Service, *, signal_number: int = signal.SIGHUP) -> None:
    """Have another worker begin, which reads the options again, and wait until it is connected."""
    before = len(agent.events("connected"))
    os.kill(agent.pid if signal_number == signal.SIGHUP else worker_pid(agent), signal_number)
    wait_until(lambda: len(agent.events("connected")) > before, seconds_max=START_SECONDS_MAX)


def target(client: Collector, pid: int) -> TargetInfo:
    """Give what is known of a process."""
    return client.targets(f"{HOST}/{pid}")[0]


def wait_until_ended(client: Collector, pid: int) -> EndReason | None:
    """Wait until a process is no target any more; gives why."""
    return until(client, f"{HOST}/{pid}", lambda info: info.end_reason is not None).end_reason


def check_not_registered(pid: int) -> None:
    """Make sure that nothing of a process is registered any more, once the keeper has heard of it too."""
    wait_until(lambda: not is_registered(pid))


def check_left_out(client: Collector, pid: int, cursor: str | None = None) -> None:
    """Make sure that a process is tracked no more, that nothing of that is left in it, and that readers are told."""
    assert wait_until_ended(client, pid) is EndReason.UNTRACKED
    check_not_registered(pid)
    answer = client.dirty(f"{HOST}/{pid}", since=cursor, barrier=True)
    assert not answer.complete
    assert answer.target.incomplete_reason is IncompleteReason.TARGET_ENDED
    assert answer.target.incomplete_message.endswith("the agent was started again with options that leave it out")


def test_the_next_worker_tracks_what_it_is_told(options: Options, tmp_path: Path) -> None:
    """With the same options all that the one before tracked, and no more; with others what these mean."""
    with ExitStack() as stack:
        sleepers = [stack.enter_context(sleeping(f"434{number}.75")) for number in range(6)]
        stays, goes, matched, comes, wanted, unwanted = sleepers
        parent = stack.enter_context(python(FAMILY))
        child = line_of(parent)
        handshake = str(tmp_path / "offers")
        pids = [stays, goes, parent.pid, unwanted]
        options.write(pids=pids, command=r"^sleep 4342\.", tree=True, handshake=handshake)
        client, agent = stack.enter_context(served(options))
        agent.wait_for_log("handshake_listening")
        offering = stack.enter_context(python(OFFERS, handshake))
        assert offering.stdout is not None
        assert offering.stdout.readline().startswith(f"{HOST}/{offering.pid}")
        client.track(HOST, wanted)
        say(parent)
        grandchild = line_of(parent)
        stack.callback(os.kill, grandchild, signal.SIGKILL)
        known = {stays, goes, matched, wanted, unwanted, parent.pid, child, grandchild, offering.pid}
        assert tracked(client, known) == known
        # What nobody selects but that it once was in the tree.
        os.kill(child, signal.SIGKILL)
        wait_until_ended(client, child)
        client.untrack(f"{HOST}/{unwanted}")
        known -= {child, unwanted}
        incarnations = {pid: target(client, pid).incarnation for pid in known}

        start_again(agent, signal_number=signal.SIGKILL)
        # One that is found only by a look that came after the start.
        later = stack.enter_context(sleeping("4342.5"))
        assert tracked(client, {later}) == known | {later}
        assert {pid: target(client, pid).incarnation for pid in known} == incarnations
        client.untrack(f"{HOST}/{later}")
        check_not_registered(later)
        assert client.track(HOST, unwanted).live
        assert not agent.events("target_not_continued")

        cursors = {pid: client.dirty(f"{HOST}/{pid}", barrier=True).cursor for pid in known}
        options.write(pids=[stays, parent.pid], command=r"^sleep 4343\.", tree=True, handshake=handshake)
        start_again(agent)
        for pid in (goes, matched):
            check_left_out(client, pid, cursors[pid])
        stayed = {stays, wanted, parent.pid, grandchild, offering.pid}
        assert tracked(client, {comes, unwanted}) == stayed | {comes, unwanted}
        for pid in stayed:
            since = client.dirty(f"{HOST}/{pid}", since=cursors[pid], barrier=True)
            assert since.complete
            assert since.target.incarnation == incarnations[pid]

        # No tree, and nobody may offer any more: what had been offered is left out too.
        options.write(pids=[stays, parent.pid])
        start_again(agent)
        for pid in (grandchild, offering.pid, comes):
            check_left_out(client, pid)
        left = {stays, wanted, parent.pid, unwanted}
        assert tracked(client, left) == left
