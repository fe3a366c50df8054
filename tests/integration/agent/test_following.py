"""What starts, forks, calls execve(2) and ends under an agent that follows: found in time, and told as it was."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.agent.test_selection import cgroup_of, tracked
from tests.support import programs
from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.amounts import amount
from tests.support.collector import running_collector
from tests.support.watched import wait_until
from wetink_client import Collector
from wetink_client.values import EndReason, TargetInfo

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(300)]

PATIENCE_SECONDS = 30.0
STORM_SECONDS = amount(gate=6, soak=30)
STORM_RATE = amount(gate=100, soak=500)
LONG_EVERY = 50
LONG_SECONDS = 3.0
"""For how long those live: see storm.c."""

SHELL = (
    "import os, sys, time; print(os.getpid(), flush=True); sys.stdin.readline(); os.execvp('sleep', ['sleep', '3211'])"
)
ORPHAN = """
import os, sys, time
child = os.fork()
if child == 0:
    sys.stdin.readline()
    grandchild = os.fork()
    if grandchild == 0:
        time.sleep(60)
    print(grandchild, flush=True)
    os.wait()
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


@contextmanager
def python(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a few lines of Python."""
    command = [sys.executable, "-c", source, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> int:
    """Give the number that it prints next."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def say(process: subprocess.Popen[str]) -> None:
    """Let it go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def until(client: Collector, target: str, holds: Callable[[TargetInfo], bool]) -> TargetInfo:
    """Wait until something holds of a target."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds(info := client.targets(target)[0]):
        assert time.monotonic() < deadline, info
        time.sleep(0.02)
    return info


def test_execve_begins_an_incarnation_on_the_same_line() -> None:
    """One target, one name: the next incarnation has the command of the new program; its exit is told as one."""
    with (
        python(SHELL) as process,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(line_of(process))),
        Collector(collector.address) as client,
    ):
        target = f"{HOST}/{process.pid}"
        before = client.targets(target)[0]
        say(process)
        after = until(client, target, lambda info: info.incarnation != before.incarnation and info.round > 0)
        process.kill()
        process.wait()
        ended = until(client, target, lambda info: not info.live)

        assert after.name == before.name
        assert after.incarnation > before.incarnation
        assert after.command == "sleep 3211"
        assert ended.end_reason is EndReason.EXITED
        assert ended.round >= 1


def test_tree_goes_on_where_a_parent_has_gone() -> None:
    """A target whose own parent has exited is no descendant of anybody's any more; its children are targets still."""
    with (
        python(ORPHAN) as process,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(process.pid), "--tree"),
        Collector(collector.address) as client,
    ):
        child = line_of(process)
        assert child in tracked(client, {child})
        process.kill()
        process.wait()
        until(client, f"{HOST}/{process.pid}", lambda info: not info.live)
        say(process)
        grandchild = line_of(process)
        try:
            assert grandchild in tracked(client, {grandchild})
        finally:
            os.kill(grandchild, 9)


FORKS = """
import os, sys, time
memory = bytearray(1 << 20)
for line in sys.stdin:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        memory[::4096] = b"x" * 256
        time.sleep(60)
    print(child, flush=True)
    print(int((time.monotonic() - began) * 1000), flush=True)
"""


def test_child_is_a_target_at_once_with_fork_events() -> None:
    """Without a stop of its own, and its children too; the parent's fork waits for milliseconds at most."""
    with (
        python(FORKS) as process,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(process.pid), "--follow-fork", interval="200ms") as agent,
        Collector(collector.address) as client,
    ):
        waits = []
        for _ in range(5):
            say(process)
            child, waited = line_of(process), line_of(process)
            waits.append(waited)
            assert child in tracked(client, {child})
            assert client.dirty(f"{HOST}/{child}", barrier=True).complete
        agent.wait_for_log("target_attached", 6)
        attached = [entry["target"] for entry in agent.events("target_attached") if entry.get("forked")]

        assert len(attached) == 5
        assert min(waits) < 1000


def test_fork_goes_on_when_the_agent_is_killed() -> None:
    """Nobody reads the event any more: the kernel lets the parent go on, with nothing registered in either."""
    with (
        python(FORKS) as process,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(process.pid), "--follow-fork") as agent,
    ):
        worker = worker_pid(agent)
        # And wait: on a busy machine a thread of it goes on for a while, and may read the event.
        programs.stop(worker)
        say(process)
        until_waits(process.pid)
        os.kill(worker, signal.SIGKILL)

        assert line_of(process) > 0


def until_waits(pid: int) -> None:
    """Wait until a process waits for its fork event to be read."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "userfaultfd" not in Path(f"/proc/{pid}/stack").read_text(encoding="ascii"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def descriptor_count(pid: int) -> int:
    """Count a process's descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory_mib(pid: int) -> float:
    """Give how much memory a process has for itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


@pytest.mark.soak
def test_storm_of_short_lives_leaks_nothing_and_hides_nobody() -> None:
    """Who lived for over a second was a target; the others' barriers are reached; descriptors and memory come back."""
    with (
        programs.running("writer", "random", 3) as steady,
        programs.running("storm", STORM_RATE, LONG_EVERY) as storm,
        cgroup_of(storm.pid) as path,
        running_collector() as collector,
        Collector(collector.address) as client,
        running_agent(collector.address, "--cgroup", path, "--pid", str(steady.pid)) as agent,
    ):
        target = f"{HOST}/{steady.pid}"
        tracked(client, {storm.pid, steady.pid})
        # What began before the agent was there may have ended before it looked.
        before, ended = {int(line) for line in lines_of(storm)}, set[int]()
        began = time.monotonic()
        barriers = 0
        while time.monotonic() < began + STORM_SECONDS or barriers <= 5 or len(ended) <= 5:
            assert client.dirty(target, barrier=True, barrier_seconds=PATIENCE_SECONDS).complete
            barriers += 1
            lines = {int(line) for line in lines_of(storm)}
            (before if time.monotonic() < began + LONG_SECONDS else ended).update(lines)
        os.kill(storm.pid, 9)
        storm.process.wait()
        time.sleep(4)  # the last that live long
        long_lived = (ended | {int(line) for line in lines_of(storm)}) - before
        known = {info.pid for info in client.targets()}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while {info.pid for info in client.targets() if info.live} != {steady.pid}:
            assert time.monotonic() < deadline
            time.sleep(0.1)

        assert len(long_lived) > 5
        assert long_lived <= known
        # Ended incarnations are forgotten when their end has been sent for a while. Then there are the standard
        # streams, the loop's and gRPC's own, and four for the one target that is left.
        wait_until(lambda: descriptor_count(worker_pid(agent)) < 60, seconds_max=PATIENCE_SECONDS)
        wait_until(lambda: descriptor_count(agent.pid) < 20, seconds_max=PATIENCE_SECONDS)
        wait_until(lambda: memory_mib(worker_pid(agent)) < 120, seconds_max=PATIENCE_SECONDS)


def lines_of(storm: programs.Program) -> list[str]:
    """Give what it has printed so far."""
    assert storm.process.stdout is not None
    os.set_blocking(storm.process.stdout.fileno(), False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(storm.process.stdout.fileno(), 65536):
            text += piece
    return text.decode().split()
