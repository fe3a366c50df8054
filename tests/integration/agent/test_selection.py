"""Which processes an agent finds by itself: by command line, by cgroup, and the descendants of those."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.collector import running_collector
from tests.support.watched import wait_until
from wetink_client import Collector
from wetink_client.errors import Refused

pytestmark = pytest.mark.needs("kernel", "root", "cc")

PATIENCE_SECONDS = 60
ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/pids")

PARENT = "import subprocess, sys; print(subprocess.Popen(['sleep', '3210']).pid, flush=True); sys.stdin.read()"


@contextmanager
def sleeping(seconds: str) -> Iterator[int]:
    """Run a process whose command line nobody else has."""
    with subprocess.Popen(["sleep", seconds]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def cgroup_of(pid: int) -> Iterator[str]:
    """Put a process into a cgroup of its own, in any hierarchy there is; gives its path as /proc/PID/cgroup has it."""
    root = next((path for path in map(Path, ROOTS) if os.access(path / "cgroup.procs", os.W_OK)), None)
    if root is None:
        pytest.skip(f"none of {', '.join(ROOTS)} is a cgroup hierarchy that may be written")
    directory = root / f"wetink-test-{os.getpid()}"
    directory.mkdir()
    try:
        (directory / "cgroup.procs").write_text(str(pid), encoding="ascii")
        yield f"/{directory.name}"
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            (root / "cgroup.procs").write_text(str(pid), encoding="ascii")
        until = time.monotonic() + PATIENCE_SECONDS
        while (directory / "cgroup.procs").read_text(encoding="ascii") and time.monotonic() < until:
            time.sleep(0.05)  # what it has started ends by itself
    finally:
        directory.rmdir()


def tracked(client: Collector, expected: set[int]) -> set[int]:
    """Wait until these processes are tracked; gives all that are then."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = {info.pid for info in client.targets() if info.live}
        if expected <= found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def test_by_command_line_also_what_starts_later() -> None:
    """Every process whose command line matches, those there and those that come, and no other."""
    with (
        sleeping("4321.25") as there,
        sleeping("4322.25"),
        running_collector() as collector,
        running_agent(collector.address, "--command", r"^sleep 4321\."),
        Collector(collector.address) as client,
    ):
        assert tracked(client, {there}) == {there}
        with sleeping("4321.5") as later:
            assert tracked(client, {there, later}) == {there, later}


def test_by_cgroup() -> None:
    """What is in the cgroup, and nothing beside it."""
    with (
        sleeping("4323.25") as inside,
        sleeping("4323.5"),
        cgroup_of(inside) as path,
        running_collector() as collector,
        running_agent(collector.address, "--cgroup", path),
        Collector(collector.address) as client,
    ):
        assert tracked(client, {inside}) == {inside}


def test_the_tree_of_a_target() -> None:
    """Descendants are targets of their own with --tree, and are not without."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            with running_collector() as collector, Collector(collector.address) as client:
                with running_agent(collector.address, "--pid", str(parent.pid)):
                    assert tracked(client, {parent.pid}) == {parent.pid}
                with running_agent(collector.address, "--pid", str(parent.pid), "--tree"):
                    assert tracked(client, {parent.pid, child}) == {parent.pid, child}
        finally:
            os.kill(child, 9)
            parent.kill()


def test_the_agent_in_its_targets_cgroup_is_no_target_nor_is_its_guard() -> None:
    """Were the guard one, the next freeze would stop it, and nobody would let the targets go on."""
    with (
        sleeping("4326.25") as first,
        cgroup_of(first) as path,
        running_collector() as collector,
        running_agent(collector.address, "--cgroup", path) as agent,
        Collector(collector.address) as client,
    ):
        for pid in (agent.pid, worker_pid(agent)):
            join(path, pid)
        assert tracked(client, {first}) == {first}
        # The guard begins with the first freeze, and stays.
        assert client.dirty(f"{HOST}/{first}", freeze=True).complete
        guard = guard_of(worker_pid(agent))
        for seconds in ("4326.5", "4326.75"):
            with sleeping(seconds) as later:
                join(path, later)
                assert tracked(client, {first, later}) == {first, later}
            wait_until(partial(has_ended, client, later), seconds_max=PATIENCE_SECONDS)
        assert not agent.events("target_refused")
        with pytest.raises(Refused, match="cannot track itself"):
            client.track(HOST, guard)


def has_ended(client: Collector, pid: int) -> bool:
    """Whether a process is no target any more."""
    return not client.targets(f"{HOST}/{pid}")[0].live


def join(path: str, pid: int) -> None:
    """Put a process into the cgroup of ``cgroup_of`` that has a path."""
    directory = next(found for root in ROOTS if (found := Path(root, path.lstrip("/"))).is_dir())
    (directory / "cgroup.procs").write_text(str(pid), encoding="ascii")


def guard_of(worker: int) -> int:
    """Give the guard of an agent, its worker's only child."""
    (guard,) = Path(f"/proc/{worker}/task/{worker}/children").read_text(encoding="ascii").split()
    return int(guard)
