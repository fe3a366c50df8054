"""Programs that others wrote, under load, copied by dirty sets alone: identical when they are frozen.

All of them are targets of one agent and one collector at the same time, for one stretch of time.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, truth
from tests.support.agent import HOST, running_agent
from tests.support.amounts import amount
from tests.support.applications import APPLICATIONS, descendants
from tests.support.collector import running_collector
from tests.support.needs import missing, needs
from wetink_client import Collector, Strictness
from wetink_client.errors import NotFound, WetinkError
from wetink_client.shadow import ShadowCopy

pytestmark = [pytest.mark.needs("kernel", "root"), pytest.mark.timeout(amount(gate=900, soak=1800))]

SECONDS: Final = amount(gate=30.0, soak=300.0)
BARRIER_SECONDS: Final = 60.0
"""So many processes on two cores: nobody has promised when a round comes."""

LAST_ROUNDS_MAX: Final = 5
"""A loaded machine may be late with a barrier; each of these has waited for one."""

SETTLING_SECONDS: Final = 2.0
"""How old a child must be to be a target: some live for a moment only."""


@dataclass
class Target:
    """A process, and the copy a reader makes of it."""

    pid: int
    copy: ShadowCopy
    cursor: str | None = None
    rounds: int = 0

    def finish(self, collector: Collector) -> None:
        """Copy what is dirty of a frozen process, for as long as an answer says that it is not all there is."""
        messages = iter(lambda: self.take(collector, frozen=True), None)
        told = list(itertools.islice(messages, LAST_ROUNDS_MAX))
        assert len(told) < LAST_ROUNDS_MAX, told

    def take(self, collector: Collector, *, frozen: bool) -> str | None:
        """Ask for what is dirty, and copy it; gives why that is not all of it, where it is not."""
        answer = collector.dirty(
            f"{HOST}/{self.pid}",
            since=self.cursor,
            barrier=frozen,
            barrier_seconds=BARRIER_SECONDS,
            strictness=Strictness.STRICT if frozen else Strictness.LENIENT,
        )
        self.copy.apply(answer.written, answer.vanished)
        self.cursor = answer.cursor
        self.rounds += 1
        return None if answer.complete else answer.target.incomplete_message


@dataclass
class Outcome:
    """What a program's copies came to, over all of its processes that lived to the end."""

    processes: int = 0
    ended: int = 0
    rounds: int = 0
    page_count: int = 0
    differences: list[truth.Difference] = field(default_factory=list)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Give what came of each program that is here."""
    found: dict[str, Outcome] = {}
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(running_collector())
        client = stack.enter_context(Collector(collector.address))
        stack.enter_context(running_agent(collector.address, interval="1s"))
        roots = {}
        for name, application in APPLICATIONS.items():
            if name == "python" or missing(name) is None:
                roots[name] = stack.enter_context(application(tmp_path_factory.mktemp(name)))
        time.sleep(SETTLING_SECONDS)
        pids = {name: [root, *descendants(root)] for name, root in roots.items()}
        time.sleep(SETTLING_SECONDS)
        pids = {name: [pid for pid in known if Path(f"/proc/{pid}/maps").exists()] for name, known in pids.items()}
        targets = {name: stack.enter_context(copies(client, known)) for name, known in pids.items()}
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for living in targets.values():
                living[:] = [target for target in living if lives(client, target)]
        for name, root in roots.items():
            found[name] = freeze_and_compare(client, root, targets[name])
            found[name].ended = len(pids[name]) - found[name].processes
    return found


@contextlib.contextmanager
def copies(client: Collector, pids: list[int]) -> Iterator[list[Target]]:
    """Have each process that is still there tracked, and begin a copy of it."""
    with contextlib.ExitStack() as stack:
        targets = []
        for pid in pids:
            with contextlib.suppress(OSError, NotFound):
                client.track(HOST, pid)
                targets.append(Target(pid, stack.enter_context(ShadowCopy(pid))))
        yield targets


def lives(client: Collector, target: Target) -> bool:
    """Copy a round; False once the process has ended."""
    try:
        target.take(client, frozen=False)
    except (WetinkError, OSError):
        if has_memory(target.pid):
            raise
        return False
    return True


def has_memory(pid: int) -> bool:
    """Whether a process is there and has not exited."""
    maps = Path(f"/proc/{pid}/maps")
    return maps.exists() and bool(maps.read_bytes())


def freeze_and_compare(client: Collector, root: int, targets: list[Target]) -> Outcome:
    """Freeze a program with all its children, copy the last round of each, and compare."""
    outcome = Outcome()
    with programs.Stopped(root):
        # What had exited before it could be frozen may not be known to have.
        for target in [target for target in targets if has_memory(target.pid) and lives(client, target)]:
            target.finish(client)
            page_count, differences = truth.differences(target.pid, target.copy.pages)
            outcome.processes += 1
            outcome.rounds += target.rounds
            outcome.page_count += page_count
            outcome.differences += differences
    return outcome


@pytest.mark.soak
@pytest.mark.parametrize("name", APPLICATIONS)
def test_copy_of_a_program_under_load_is_identical(name: str, request: pytest.FixtureRequest) -> None:
    """After half a minute of load, in rounds of all of them, every byte of the copy is the frozen program's."""
    if name != "python":
        needs(name)
    outcomes: dict[str, Outcome] = request.getfixturevalue("outcomes")
    outcome = outcomes[name]

    assert outcome.differences == []
    assert outcome.processes >= (len(APPLICATIONS) if name == "stress-ng" else 1), outcome
    assert outcome.rounds >= 3 * outcome.processes
    assert outcome.page_count > 500
