"""Anything a process can do to its memory, at random, against a comparison of every byte at each freeze.

The seed is printed where it fails; ``WETINK_SEED=... make test ARGS='-k random_operations'`` does the same again.
"""

import contextlib
import os
import random
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tests.support import programs, truth
from tests.support.amounts import amount
from tests.support.ksm import NoKsm, ksm
from tests.support.obedient import PAGE, obedient
from tests.support.operations import FILE_PAGES, Operations
from tests.support.swap import NoSwap, swap_file
from tests.support.watched import Watched
from wetink.v1 import types_pb2
from wetink_agent.attach import take_userfaultfd
from wetink_agent.errors import TargetReplaced
from wetink_agent.runs import Runs
from wetink_agent.wp_async import WpAsync
from wetink_agent.wp_sync import WpSync
from wetink_client.shadow import ShadowCopy

pytestmark = pytest.mark.needs("kernel", "root", "cc")

SEED: Final = "WETINK_SEED"
SECONDS: Final = amount(gate=30.0, soak=600.0)
FOUND_SECONDS_MAX: Final = 60.0
ANSWER_SECONDS_MAX: Final = 60.0
ROUND_SECONDS: Final = 0.05
PLAYS_MAX: Final = 4
OPERATIONS_MAX: Final = 400
"""Between two freezes: what fits in the pipe to the target, so that nobody waits."""


@dataclass
class Run:
    """What a run has come to."""

    seed: int
    freezes: int = 0
    operations: int = 0
    execs: int = 0
    page_count: int = 0
    excused: int = 0
    differences: list[truth.Difference] = field(default_factory=list)


@pytest.mark.soak
@pytest.mark.timeout(amount(gate=300, soak=3600))
@pytest.mark.parametrize("backend, seconds", [(WpAsync, SECONDS), (WpSync, SECONDS / 4)])
def test_random_operations_leave_no_difference(
    backend: type[WpAsync], seconds: float, machine: None, tmp_path: Path
) -> None:
    """The copy is the target's memory at each freeze, but where wetink says that direct reads may overlap rounds."""
    run = Run(seed_of_this_run())
    for _ in range(PLAYS_MAX):
        play(run, tmp_path, backend, time.monotonic() + seconds)
        if run.differences or run.freezes > seconds / 5:
            break  # else the machine is busy with others' work

    sys.stdout.write(f"{run}\n")
    assert not run.differences, f"{SEED}={run.seed} does it again: {run.differences[:5]}"
    # About five freezes a second on a quiet machine.
    assert run.freezes > seconds / 5
    assert run.operations > 20 * seconds
    assert run.page_count > 100 * run.freezes
    assert machine is None


class WithoutAudit(WpAsync):
    """Finds no memory outside what is registered, after the first round."""

    def _audit(self) -> Runs:
        found = super()._audit()
        return found if self._known is None else Runs(found.starts[:0], found.ends[:0])


class WithStaleCensus(WpAsync):
    """Answers every third round with what the census found in the one before."""

    _count = 0
    _last: object = None

    def _census(self, flags: int = 1) -> object:  # type: ignore[override]
        self._count += 1
        if self._count % 3 or self._last is None:
            self._last = super()._census(flags)
        return self._last


@pytest.mark.parametrize("broken", [WithoutAudit, WithStaleCensus])
def test_a_planted_bug_is_found_within_a_minute(broken: type[WpAsync], machine: None, tmp_path: Path) -> None:
    """The same run with a step of the round broken fails soon: the test above would see such a mistake."""
    run = Run(seed_of_this_run())
    began = time.monotonic()
    play(run, tmp_path, broken, began + FOUND_SECONDS_MAX)

    assert run.differences, f"{broken.__name__} was not found in {FOUND_SECONDS_MAX:.0f} s, {SEED}={run.seed}"
    assert machine is None


def seed_of_this_run() -> int:
    """Give the seed that was asked for, or a new one, and print it."""
    seed = int(os.environ.get(SEED) or secrets.randbits(32))
    sys.stdout.write(f"{SEED}={seed}\n")
    return seed


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[None]:
    """Have a machine that swaps to a file and merges equal pages, as far as this one does."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoSwap):
            stack.enter_context(swap_file(tmp_path / "swap"))
        with contextlib.suppress(NoKsm):
            stack.enter_context(ksm())
        yield


def play(run: Run, directory: Path, backend: type[WpAsync], until: float) -> None:
    """Do operations and rounds, freeze and compare, until the time is over or something differs."""
    choose = random.Random(run.seed)  # noqa: S311 - repeatable, not secret
    file = directory / "file"
    file.write_bytes(np.random.default_rng(run.seed).bytes(FILE_PAGES * PAGE))
    with obedient() as target:
        while time.monotonic() < until and not run.differences:
            tracker = backend(target.pid, take_userfaultfd(target.pid))
            try:
                with ShadowCopy(target.pid) as copy:
                    here = Watched(target, tracker, copy)
                    operations = Operations(target, file, choose.randrange(1 << 32))
                    for _ in range(choose.randint(20, 60)):
                        play_to_a_freeze(run, here, operations, choose)
                        if time.monotonic() > until or run.differences:
                            return
                    be_replaced(here)
                    run.execs += 1
            finally:
                tracker.close()


def play_to_a_freeze(run: Run, here: Watched, operations: Operations, choose: random.Random) -> None:
    """Do operations, with rounds while the target is at it, and freeze it wherever it is."""
    operations.do_what_must_not_overlap_a_round()
    count = choose.randint(1, OPERATIONS_MAX)
    lines = operations.lines(count)
    told = "".join(f"{line}\n" for line in lines).encode()
    stream = here.target.program.process.stdin
    assert stream is not None
    at = 0
    for _ in range(choose.randint(1, 4)):
        step = choose.randint(0, len(told) // 2)
        stream.write(told[at : at + step])
        at = min(len(told), at + step)
        time.sleep(choose.uniform(0, 0.004))
        here.round()
    stream.write(told[at:])
    time.sleep(choose.uniform(0, 0.004))
    with programs.Stopped(here.target.pid):
        last = here.round()
        assert last.frozen
        page_count, differences = truth.differences(here.target.pid, here.copy.pages)
    answered(here, len(lines))
    run.differences = [difference for difference in differences if not is_told(here, operations, difference.page)]
    run.excused += len(differences) - len(run.differences)
    run.freezes += 1
    run.operations += count
    run.page_count += page_count


def answered(here: Watched, count: int) -> None:
    """Wait until so many lines are answered, with rounds meanwhile: there are calls that end only after one."""
    until = time.monotonic() + ANSWER_SECONDS_MAX
    for _ in range(count):
        while not here.target.program.has_said(wait_seconds=ROUND_SECONDS):
            assert time.monotonic() < until, "the target hangs"
            here.round()
        here.target.program.read_line()


def is_told(here: Watched, operations: Operations, page: int) -> bool:
    """Whether wetink has said that something may write unseen, of which it cannot tell where, and it was here."""
    return operations.is_direct(page) and types_pb2.UNCERTAINTY_DIRECT_IO in here.unseen_writers()


def be_replaced(here: Watched) -> None:
    """Have the target execute itself again: the next harvest must not be one."""
    assert here.target.program.ask("exec").startswith("ready")
    with pytest.raises(TargetReplaced):
        here.tracker.harvest()
    here.target.room = 0
    here.target.room = here.target.map(2)
