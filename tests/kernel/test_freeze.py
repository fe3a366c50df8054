import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support import programs
from wetink_agent import procfs
from wetink_agent.errors import NoSuchProcess
from wetink_agent.freeze import NotFrozen, while_frozen
from wetink_agent.holds import Holds

pytestmark = pytest.mark.needs("root", "cc")

TRIES = 10
PATIENCE_SECONDS = 60.0

Result = TypeVar("Result")


@pytest.mark.parametrize("mode", programs.SLEEPER_MODES)
def test_no_thread_runs_meanwhile_and_all_go_on(tmp_path: Path, mode: str) -> None:
    """Whatever a program waits for, it is held for the work, and goes on afterwards as if nothing had been."""
    with programs.running("sleeper", mode, tmp_path / "count") as sleeper:
        progress = programs.Progress(sleeper, tmp_path / "count")
        progress.wait()
        for _ in range(20):
            count, later = held(sleeper.pid, lambda: (progress.count(), pause(progress)))
            assert count == later
        progress.wait(more=3)
        assert procfs.tracer_of(sleeper.pid) == 0


def held(pid: int, work: Callable[[], Result]) -> Result:
    """Do some work while a process is frozen; a busy machine may need more than one try."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(NotFrozen):
            return while_frozen(pid, work)
    return while_frozen(pid, work)


def pause(progress: programs.Progress) -> int:
    """Wait for longer than a turn takes, and give the count."""
    time.sleep(0.01)
    return progress.count()


def test_a_stopped_process_stays_stopped() -> None:
    """Who stopped it decides when it goes on."""
    with programs.running("writer", "random", 1) as writer:
        writer.stop()
        held(writer.pid, lambda: None)
        time.sleep(0.05)
        assert procfs.is_frozen(writer.pid)


def test_descendants_are_held_too() -> None:
    """A child may write the memory of its parent."""
    with programs.running("writer", "vm_writev", 1) as writer:
        assert held(writer.pid, lambda: [procfs.is_frozen(pid) for pid in family(writer.pid)]) == [True, True]


def family(pid: int) -> list[int]:
    """Give a process and its children."""
    listed = (Path(f"/proc/{pid}/task") / str(pid) / "children").read_text().split()
    return [pid, *map(int, listed)]


def test_a_signal_that_comes_meanwhile_arrives() -> None:
    """A stop delays a signal and never eats it."""
    with programs.running("writer", "random", 1) as writer:
        for _ in range(20):
            held(writer.pid, lambda: os.kill(writer.pid, signal.SIGWINCH))
        held(writer.pid, lambda: os.kill(writer.pid, signal.SIGTERM))
        assert writer.process.wait(PATIENCE_SECONDS) == -signal.SIGTERM


def test_the_guard_freezes_neither_itself_nor_the_agent(tmp_path: Path) -> None:
    """Whoever asks for it: who is frozen with them goes on when the hold's time is over."""
    target_is = ""
    with programs.running("sleeper", "threads", tmp_path / "target") as target:
        with programs.running("sleeper", "threads", tmp_path / "agent") as agent:
            for _ in range(TRIES):
                target_is, *others_are = asyncio.run(frozen_beside_the_guard(target.pid, agent.pid))
                assert others_are == ["", ""]
                if target_is:  # as in ``held``
                    break
        assert target_is == "PTRACE"
        programs.Progress(target, tmp_path / "target").wait(more=2)


async def frozen_beside_the_guard(*pids: int) -> list[str]:
    """Freeze processes and the guard for half a second; gives the methods, when the first process goes on.

    Args:
        pids: The processes; all but the first are said to be the agent's.
    """
    holds = Holds(pids[1:])
    await holds.freeze("begin", [], seconds=0.1, whole_cgroups=False)
    assert holds.guard_pid
    processes = [(pid, procfs.stat(pid).start_time_ticks) for pid in (*pids, holds.guard_pid)]
    try:
        outcomes = await holds.freeze("hold", processes, seconds=0.5, whole_cgroups=False)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while procfs.is_frozen(pids[0]):  # noqa: ASYNC110 (the kernel tells nobody)
                await asyncio.sleep(0.02)
        return [outcomes[process].method for process in processes]
    finally:
        os.kill(holds.guard_pid, signal.SIGKILL)
        await holds.close()


def test_what_is_traced_by_somebody_else_is_not_frozen() -> None:
    """Then the work is not done."""
    why = ""
    with programs.running("writer", "random", 1) as writer:

        def again() -> None:
            while_frozen(writer.pid, lambda: pytest.fail("two tracers at once"))

        for _ in range(TRIES):
            with pytest.raises(NotFrozen) as caught:
                while_frozen(writer.pid, again)
            why = str(caught.value)
            if "did not stop within" not in why:  # as in ``held``
                break
        assert "cannot be stopped" in why
        held(writer.pid, lambda: None)


def test_an_exited_process_is_told() -> None:
    """There is nothing to be frozen."""
    with programs.running("writer", "random", 1) as writer:
        writer.process.kill()
        writer.process.wait()
        with pytest.raises(NoSuchProcess):
            held(writer.pid, lambda: None)


def test_a_killed_agent_leaves_its_target_running() -> None:
    """SIGKILL in the middle of a freeze: every thread goes on at once."""
    script = """
import sys, time
from wetink_agent.freeze import while_frozen
while_frozen(int(sys.argv[1]), lambda: (print("held", flush=True), time.sleep(60)))
"""
    with (
        programs.running("writer", "threads", 1) as writer,
        subprocess.Popen([sys.executable, "-c", script, str(writer.pid)], stdout=subprocess.PIPE) as agent,
    ):
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"held\n"
        assert procfs.is_frozen(writer.pid)
        agent.kill()
        agent.wait()
        until = time.monotonic() + PATIENCE_SECONDS
        while procfs.tracer_of(writer.pid) or procfs.is_frozen(writer.pid):
            assert time.monotonic() < until
        assert writer.alive()
