"""A target, a tracker over it and a reader's copy of it: what the rows of the kernel matrix are told with."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, truth
from tests.support.obedient import PAGE, Obedient, obedient
from tests.support.victim import within
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Harvest
from wetink_agent.wp_async import WpAsync
from wetink_agent.wp_sync import WpSync
from wetink_client.shadow import ShadowCopy

BACKENDS: Final[dict[str, Callable[..., WpAsync]]] = {
    "wp-async": WpAsync,
    "wp-sync": partial(WpSync, span_bytes_max=PAGE),
}
"""What tracks, by name. ``wp-sync`` lets writers on page by page, so that it says exactly what was written."""

async_only: Final = pytest.mark.parametrize("backend", ["wp-async"], indirect=True)
sync_only: Final = pytest.mark.parametrize("backend", ["wp-sync"], indirect=True)
"""For rows that say nothing of the other backend."""


class Watched:
    """The three. ``round`` is what a reader does again and again."""

    def __init__(self, target: Obedient, tracker: WpAsync, copy: ShadowCopy) -> None:
        """Take them over; nothing is harvested yet."""
        self.target = target
        self.tracker = tracker
        self.copy = copy
        self.table = ingest_pb2.TargetMappings()

    def round(self) -> Harvest:
        """Harvest, and copy what the harvest says."""
        harvest = self.tracker.harvest()
        if harvest.table is not None:
            self.table = harvest.table
        self.copy.apply(harvest.written, harvest.vanished)
        return harvest

    def settle(self) -> None:
        """Do rounds until what was done before is behind: of the memory that a test has made nothing is reported."""
        self.round()
        self.round()

    def expect(self, address: int, pages: int, *, written: Iterable[int] = (), vanished: Iterable[int] = ()) -> Harvest:
        """Do a round, which must say exactly this of the pages from an address on, counted from there."""
        harvest = self.round()
        assert within(harvest, address // PAGE, pages) == (set(written), set(vanished))
        return harvest

    def uncertainties(self, address: int) -> set[types_pb2.Uncertainty.ValueType]:
        """Give how the content at an address can change unseen, as wetink says; what is certain is left out."""
        return {
            mapping.uncertainty
            for mapping in self.table.mappings
            if 0 <= address - mapping.range.start_address < mapping.range.size_bytes and mapping.uncertainty
        }

    def unseen_writers(self) -> set[types_pb2.Uncertainty.ValueType]:
        """Give in which ways something may write unseen, wetink says, of which nobody can tell where."""
        return {writer.uncertainty for writer in self.table.unseen_writers}

    def differences(self) -> list[truth.Difference]:
        """Freeze the target, do the last round, and compare every byte of the copy with it."""
        with programs.Stopped(self.target.pid):
            last = self.round()
            assert last.frozen
            return truth.differences(self.target.pid, self.copy.pages)[1]

    def check(self) -> None:
        """Make sure that the copy is the target's memory."""
        assert self.differences() == []


@contextmanager
def watched(backend: str) -> Iterator[Watched]:
    """Start a target and track it."""
    with obedient() as target:
        tracker = BACKENDS[backend](target.pid, take_userfaultfd(target.pid))
        try:
            with ShadowCopy(target.pid) as copy:
                yield Watched(target, tracker, copy)
        finally:
            tracker.close()


def status_kib(pid: int, name: str) -> int:
    """Give a number from ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def wait_until(holds: Callable[[], bool], *, seconds_max: float = 60.0) -> None:
    """Wait for something that a target does in its own time."""
    until = time.monotonic() + seconds_max
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.002)
