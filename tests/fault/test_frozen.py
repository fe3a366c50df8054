"""SIGKILL of whoever takes part in a freeze, at any moment: the target runs again, as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import programs
from tests.support.agent import start_agent, worker_pid
from tests.support.amounts import amount
from tests.support.cgroups import cgroup
from tests.support.collector import CollectorProcess, start_collector
from wetink_agent import procfs
from wetink_agent.cgroups import hierarchies
from wetink_agent.errors import NoSuchProcess

if TYPE_CHECKING:
    from tests.support.service import Service

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(amount(gate=300, soak=3600))]

PATIENCE_SECONDS = 60.0
"""How long anything may take on a machine that is busy with others; most of it is the start of a process."""

KILLED = ("agent", "worker", "guard", "agent and guard", "collector", "caller")

CALLER = """
import sys
from wetink_client import Collector, Freeze, WetinkError

with Collector(sys.argv[1]) as collector:
    print("ready", flush=True)
    for turn in range(1_000_000):
        try:
            collector.dirty(sys.argv[2:], freeze=Freeze(0.5, f"turn-{turn}") if turn % 2 else True)
            if turn % 4 == 1:
                collector.thaw(sys.argv[2:], f"turn-{turn}")
        except WetinkError:
            pass
"""
"""Freezes again and again: for the barrier alone, held and let go, held and forgotten."""


@pytest.mark.soak
def test_whatever_is_killed_at_whatever_moment_the_targets_go_on(tmp_path: Path) -> None:
    """One is frozen by ptrace, the other by its cgroup. Both check all the while that they run as they should."""
    moments = random.Random(8)  # noqa: S311 - repeatable, not secret
    listen = f"unix:{tmp_path}/collector.sock"
    version = min(kind for kind, _, _ in hierarchies())
    with (
        programs.running("sleeper", "threads", tmp_path / "traced", 8) as traced,
        programs.running("sleeper", "threads", tmp_path / "grouped", 2) as grouped,
        cgroup(version, grouped.pid),
    ):
        pids = traced.pid, grouped.pid
        parts = _Parts(listen, pids)
        with parts.kept_up():
            for turn in range(amount(gate=6, soak=100)):
                what = KILLED[turn % len(KILLED)]
                parts.bring_up()
                eventually(lambda: any(procfs.is_frozen(pid) for pid in pids), "nobody was frozen")
                time.sleep(moments.uniform(0, 0.1))
                parts.kill(what)
                parts.let_caller_go()
                if what == "agent and guard":
                    # The cgroup stays frozen until there is an agent again; what ptrace holds goes on by itself.
                    eventually(lambda: not procfs.is_frozen(traced.pid), "ptrace held on")
                    parts.bring_up(caller=False)
                # Threads are let go one after the other, and the first that runs is not yet the last that was held.
                eventually(lambda: not any(is_held(pid) for pid in pids), f"frozen or traced after the {what}")
        for program, path in ((traced, "traced"), (grouped, "grouped")):
            programs.Progress(program, tmp_path / path).wait(more=2)
            assert program.terminate() == 0, program.errors


class _Parts:
    """Collector, agent and caller, each started again where it is gone."""

    def __init__(self, listen: str, pids: tuple[int, ...]) -> None:
        self._listen = listen
        self._pids = pids
        self._collector: CollectorProcess | None = None
        self._agent: Service | None = None
        self._caller: subprocess.Popen[bytes] | None = None

    @contextmanager
    def kept_up(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.let_caller_go()
            for service in (self._agent, self._collector):
                if service:
                    service.close()

    def bring_up(self, *, caller: bool = True) -> None:
        if self._collector is None:
            self._collector = CollectorProcess(start_collector(listen=self._listen), None)
        assert self._collector.process.poll() is None, self._collector.log
        if self._agent is None:
            named = [word for pid in self._pids for word in ("--pid", str(pid))]
            self._agent = start_agent(self._listen, *named)
            try:
                self._agent.wait_for_log("connected")
            except AssertionError:
                # It is looked at only here: that the agent says nothing of it would be the lesser news.
                assert self._collector.process.poll() is None, self._collector.log
                raise
        if caller and self._caller is None:
            names = [f"here/{pid}" for pid in self._pids]
            self._caller = subprocess.Popen(
                [sys.executable, "-c", CALLER, self._listen, *names], stdout=subprocess.PIPE
            )

    def kill(self, what: str) -> None:
        """Kill parts of what there is, together."""
        assert self._agent
        assert self._collector
        if what in {"guard", "agent and guard"}:
            os.kill(guard_of(self._agent.pid), signal.SIGKILL)
        if what == "worker":
            os.kill(worker_pid(self._agent), signal.SIGKILL)
        if what in {"agent", "agent and guard"}:
            self._agent.kill()
            self._agent.close()
            self._agent = None
        if what == "collector":
            self._collector.kill()
            self._collector.close()
            self._collector = None

    def let_caller_go(self) -> None:
        """Kill the caller: each turn ends with nobody who still wants anything frozen."""
        if self._caller and self._caller.stdout:
            self._caller.kill()
            self._caller.wait()
            self._caller.stdout.close()
            self._caller = None


def is_held(pid: int) -> bool:
    """Whether anything keeps a process from running, or could at once."""
    return procfs.is_frozen(pid) or bool(procfs.tracer_of(pid))


def guard_of(agent_pid: int) -> int:
    """Give the process that freezes for an agent: its worker's child, once there is one.

    A worker starts it when it is first asked to freeze, and a target may be seen stopped before that: to be attached.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while (guard := next(_guards_of(agent_pid), None)) is None:
        assert time.monotonic() < until, f"agent {agent_pid} has no guard"
        time.sleep(0.01)
    return guard


def _guards_of(agent_pid: int) -> Iterator[int]:
    for pid in procfs.pids():
        with suppress(OSError, NoSuchProcess):
            is_guard = b"wetink_agent.guard" in Path(f"/proc/{pid}/cmdline").read_bytes()
            worker = procfs.stat(pid).parent_pid
            if is_guard and agent_pid in {worker, procfs.stat(worker).parent_pid}:
                yield pid


def eventually(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait until something holds."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < until, otherwise
        time.sleep(0.002)
