"""Tracking that begins and ends, again and again, leaves a busy program of sixteen threads untouched."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.amounts import amount
from tests.support.programs import Program, Progress
from wetink_agent.attach import take_userfaultfd
from wetink_agent.wp_async import WpAsync

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(amount(gate=300, soak=1800))]

THREADS: Final = 16
TIMES: Final = amount(gate=50, soak=1000)

LOOKS: Final = 5
SETTLE_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True)
class Facts:
    """What /proc shows of a process that tracking could change."""

    descriptors: dict[str, str]
    threads: int
    masks: Counter[tuple[str, ...]]
    limits: str
    tracked_mappings: int
    traced_or_stopped: int


@contextmanager
def sleeper(directory: Path) -> Iterator[tuple[Program, Progress]]:
    """Run threads that sleep, block, call, compute, and count the signals and timers they get; each checks itself."""
    directory.mkdir()
    with programs.running("sleeper", "threads", directory / "progress", THREADS) as program:
        yield program, Progress(program, directory / "progress")


def facts(pid: int) -> Facts:
    """Give them."""
    process = Path(f"/proc/{pid}")
    statuses = [(task / "status").read_text(encoding="utf-8") for task in (process / "task").iterdir()]
    masks = Counter(
        tuple(re.findall(r"^(?:SigBlk|SigIgn|SigCgt):\t(\w+)", status, re.MULTILINE)) for status in statuses
    )
    smaps = (process / "smaps").read_text(encoding="utf-8")
    return Facts(
        descriptors=dict(_descriptors(process / "fd")),
        threads=len(statuses),
        masks=masks,
        limits=(process / "limits").read_text(encoding="utf-8"),
        tracked_mappings=len(re.findall(r"^VmFlags:.* u[mw]\b", smaps, re.MULTILINE)),
        traced_or_stopped=sum(
            bool(re.search(r"^(?:State:\t[Tt]|TracerPid:\t[1-9])", s, re.MULTILINE)) for s in statuses
        ),
    )


def _descriptors(directory: Path) -> Iterator[tuple[str, str]]:
    for path in directory.iterdir():
        # One of its threads opens and closes some all the while.
        with suppress(FileNotFoundError):
            yield path.name, str(path.readlink())


def settled_facts(pid: int) -> Facts:
    """Give what is seen several times in a row: a thread in a signal handler has that signal blocked meanwhile."""
    until = time.monotonic() + SETTLE_SECONDS_MAX
    seen = [facts(pid)]
    while len(seen) < LOOKS:
        assert time.monotonic() < until, seen
        time.sleep(0.003)
        seen = [*seen, now] if (now := facts(pid)) == seen[-1] else [now]
    return seen[-1]


def alike(pid: int, other_pid: int) -> Facts:
    """Give the facts of one process once another has the same, for one that waits in its handler looks settled too."""
    until = time.monotonic() + SETTLE_SECONDS_MAX
    while shape(one := settled_facts(pid)) != shape(other := settled_facts(other_pid)):
        assert time.monotonic() < until, (one, other)
    return one


def shape(seen: Facts) -> tuple[object, ...]:
    """Give what two processes have in common that do the same."""
    return seen.threads, seen.masks, seen.limits, len(seen.descriptors)


@pytest.mark.soak
def test_nothing_differs_from_a_run_that_nobody_tracked(tmp_path: Path) -> None:
    """Attached, harvested twice and let go, again and again: what it counts, has open and has mapped is as it was."""
    with sleeper(tmp_path / "alone") as (alone, its_progress), sleeper(tmp_path / "tracked") as (tracked, progress):
        its_progress.wait()
        progress.wait()
        before = alike(tracked.pid, alone.pid)
        assert before.tracked_mappings == 0
        for _ in range(TIMES):
            tracker = WpAsync(tracked.pid, take_userfaultfd(tracked.pid))
            try:
                assert tracker.harvest().written
                assert facts(tracked.pid).tracked_mappings
                tracker.harvest()
            finally:
                tracker.close()
            assert tracked.alive(), tracked.errors
            time.sleep(0.002)
        progress.wait(more=100)

        assert alike(tracked.pid, alone.pid) == before
        # Both check their signals, timers, sleeps, calls and registers at every turn, and their descriptors at the end.
        assert tracked.terminate() == 0, tracked.errors
        assert alone.terminate() == 0, alone.errors
