"""Barriers that freeze, with real agents, targets and cgroups: consistent, reported, and thawed whatever dies."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.client.command import wetink
from tests.support import programs
from tests.support.agent import HOST, running_agent
from tests.support.cgroups import cgroup
from tests.support.collector import running_collector
from wetink_agent import procfs
from wetink_agent.cgroups import hierarchies
from wetink_client import Collector, Consistency, Freeze, FreezeMethod
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(300)]

PATIENCE_SECONDS = 10.0

HOLD = Freeze(hold_seconds=30, hold="test")


@pytest.fixture(scope="module")
def client() -> Iterator[Collector]:
    """Run a collector and an agent for all of these tests, and give a client."""
    with (
        running_collector() as collector,
        running_agent(collector.address),
        Collector(collector.address) as one,
    ):
        yield one


@contextmanager
def tracked(client: Collector, *pids: int) -> Iterator[list[str]]:
    """Track processes while the body runs; gives the targets' names."""
    names = [client.track(HOST, pid).name for pid in pids]
    yield names
    for name in names:
        client.untrack(name)


def eventually(holds: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("pattern", ["threads", "mixed"])
def test_a_frozen_barrier_is_one_cut_and_the_target_goes_on(client: Collector, pattern: str) -> None:
    """What is copied of a held target is what it holds, byte by byte; thawed, it runs."""
    with (
        programs.running("writer", pattern, 3) as writer,
        tracked(client, writer.pid) as (name,),
        ShadowCopy(writer.pid) as copy,
    ):
        first = client.dirty(name, barrier=True)
        copy.apply(first.written, first.vanished)
        last = client.dirty(name, since=first.cursor, freeze=HOLD)
        copy.apply(last.written, last.vanished)

        assert last.complete, last.target.incomplete_message
        assert last.consistency == Consistency.FROZEN
        assert last.target.freeze_method == FreezeMethod.PTRACE
        assert differences(writer.pid, copy.pages)[1] == []
        assert client.thaw(name, "test")[name].held
        assert not procfs.is_frozen(writer.pid)
        assert client.dirty(name, since=last.cursor, barrier=True).consistency == Consistency.PER_PROCESS


@pytest.mark.parametrize(
    "version, method", [(2, FreezeMethod.CGROUP_V2), (1, FreezeMethod.CGROUP_V1)], ids=["v2", "v1"]
)
def test_a_cgroup_of_the_targets_alone_is_frozen_whole(client: Collector, version: int, method: FreezeMethod) -> None:
    """Both of its processes by one freezer; with a stranger in it, each by itself, but where the caller consents."""
    if version not in {kind for kind, _, _ in hierarchies()}:
        pytest.skip(f"no freezer of cgroup version {version} is mounted here")
    with (
        programs.running("writer", "random", 1) as one,
        programs.running("writer", "random", 2) as two,
        cgroup(version, one.pid, two.pid) as directory,
        tracked(client, one.pid, two.pid) as names,
    ):
        both = client.barrier(names, freeze=HOLD)
        assert both.complete
        assert both.consistency == Consistency.FROZEN
        assert {status.freeze_method for status in both.targets.values()} == {method}
        assert procfs.is_frozen(one.pid)
        assert client.thaw(names[:1], "test")[names[0]].held
        assert procfs.is_frozen(one.pid), "the other's hold is on the cgroup too"
        client.thaw(names, "test")
        assert not procfs.is_frozen(one.pid)

        alone = client.barrier(names[0], freeze=HOLD)
        assert alone.targets[names[0]].freeze_method == FreezeMethod.PTRACE
        assert not procfs.is_frozen(two.pid)
        client.thaw(names[0], "test")

        consented = client.barrier(names[0], freeze=Freeze(30, "test", whole_cgroups=True))
        assert consented.targets[names[0]].freeze_method == method
        assert procfs.is_frozen(two.pid)
        client.thaw(names[0])
        assert not procfs.is_frozen(two.pid)
        assert directory.exists()


def test_what_somebody_else_traces_is_stopped_by_a_signal(client: Collector, tmp_path: Path) -> None:
    """A debugger has the one place that a tracer can have."""
    with (
        programs.running("sleeper", "threads", tmp_path / "count") as target,
        tracked(client, target.pid) as (name,),
    ):
        client.barrier(name)
        with traced_by_somebody(target.pid):
            held = client.barrier(name, freeze=HOLD)
            assert held.targets[name].freeze_method == FreezeMethod.SIGNAL, held.targets[name].incomplete_message
            assert held.consistency == Consistency.FROZEN
            client.thaw(name, "test")
            programs.Progress(target, tmp_path / "count").wait(more=2)


@contextmanager
def traced_by_somebody(pid: int) -> Iterator[None]:
    """Trace a process and let it run, and its stops too, as strace does."""
    script = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
tids = [int(tid) for tid in os.listdir(f"/proc/{sys.argv[1]}/task")]
assert all(libc.ptrace(0x4206, tid, None, None) == 0 for tid in tids)
print("traced", flush=True)
while True:
    tid, status = os.waitpid(-1, 0x40000000)
    if os.WIFSTOPPED(status):
        group = status >> 16 == 128 and os.WSTOPSIG(status) in (19, 20, 21, 22)
        signal = 0 if status >> 16 else os.WSTOPSIG(status)
        libc.ptrace(0x4208 if group else 7, tid, None, signal)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(pid)], stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"traced\n"
        yield
        tracer.kill()


def test_a_target_that_was_stopped_before_stays_so(client: Collector) -> None:
    """Whoever stopped it lets it go on, not a barrier that found it like that."""
    with programs.running("writer", "random", 1) as writer, tracked(client, writer.pid) as (name,):
        writer.stop()
        answer = client.dirty(name, freeze=True)
        time.sleep(0.1)

        assert answer.target.freeze_method == FreezeMethod.FOUND_FROZEN
        assert answer.consistency == Consistency.FROZEN
        assert procfs.is_frozen(writer.pid)


def test_a_hold_ends_by_itself_and_is_renewed_by_its_name(client: Collector) -> None:
    """The caller is gone: the target goes on when the time is over, and not before the time asked for last."""
    with programs.running("writer", "random", 1) as writer, tracked(client, writer.pid) as (name,):
        client.barrier(name, freeze=Freeze(0.5, "short"))
        # Its time is counted from when it is frozen: after this, and before we hear of it.
        renewed = time.monotonic()
        client.barrier(name, freeze=Freeze(2.0, "short"))
        eventually(lambda: not procfs.is_frozen(writer.pid))
        assert time.monotonic() - renewed > 2.0


def test_a_target_goes_on_when_no_hold_is_left_on_it(client: Collector) -> None:
    """Two orchestrators hold the same: the one that is done first does not let the other's go."""
    with programs.running("writer", "random", 1) as writer, tracked(client, writer.pid) as (name,):
        client.barrier(name, freeze=Freeze(20, "one"))
        client.barrier(name, freeze=Freeze(20, "two"))
        assert client.dirty(name, freeze=True).complete
        assert procfs.is_frozen(writer.pid)
        client.thaw(name, "one")
        assert procfs.is_frozen(writer.pid)
        command = ("--collector", client.address, "thaw", name, "--hold", "two")
        assert wetink(*command).returncode == 0
        assert not procfs.is_frozen(writer.pid)
        # A script must hear that it had run before, by itself say.
        again = wetink(*command)
        assert (again.returncode, again.stderr) == (
            4,
            f"wetink: hold 'two' was not on {name}: it may have run before\n",
        )
        assert wetink(*command[:-2]).returncode == 0


def test_a_held_target_that_is_killed_is_gone_for_its_parent_too(client: Collector) -> None:
    """Who holds it by ptrace takes note of its end; otherwise its parent would wait for that."""
    with programs.running("writer", "threads", 1) as writer, tracked(client, writer.pid) as (name,):
        assert client.barrier(name, freeze=HOLD).targets[name].freeze_method == FreezeMethod.PTRACE
        writer.process.kill()
        assert writer.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_with_wp_sync_writers_that_wait_in_the_kernel_are_answered_until_all_are_frozen() -> None:
    """A thread that waits for the resolver inside read(2) cannot be stopped before it has its answer."""
    with (
        programs.running("writer", "read_syscall", 1) as writer,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(writer.pid), "--backend", "wp-sync", "--accept-risk"),
        Collector(collector.address) as client,
    ):
        name = f"{HOST}/{writer.pid}"
        for _ in range(5):
            answer = client.dirty(name, freeze=True)
            assert answer.consistency == Consistency.FROZEN, answer.target.incomplete_message
        assert not procfs.is_frozen(writer.pid)
