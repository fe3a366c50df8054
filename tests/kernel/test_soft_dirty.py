"""The soft-dirty backend on a kernel that has it: ``make test-kernels`` runs this where the machine's own has not."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from pyroaring import BitMap64

from tests.support import programs, truth
from tests.support.programs import WRITER_PATTERNS
from wetink import syscalls
from wetink_agent.backend import Harvest
from wetink_agent.backends import BackendName, choose
from wetink_agent.errors import NoSuchProcess, TargetExited, TargetReplaced, Untrackable
from wetink_agent.probe import why_not_wp_async
from wetink_agent.soft_dirty import SoftDirty, _Bits
from wetink_agent.uapi.ptrace import PTRACE_SEIZE
from wetink_client.shadow import ShadowCopy

pytestmark = pytest.mark.needs("root", "cc", "soft-dirty")

ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with; ``again_page_count`` is what a second harvest of the frozen target reports as written."""

    page_count: int
    differences: list[truth.Difference]
    again_page_count: int
    frozen: bool


def shadow_copy(pattern: str, *, seed: int = 1, backend: Callable[[int], SoftDirty] = SoftDirty) -> Outcome:
    """Copy a writer's memory round by round while it runs, then stop it and compare every byte."""
    pauses = random.Random(seed)  # noqa: S311 - repeatable, not secret
    with programs.running("writer", pattern, seed) as writer:
        tracker = backend(writer.pid)
        try:
            with ShadowCopy(writer.pid) as copy:
                for _ in range(ROUNDS):
                    harvest = tracker.harvest()
                    copy.apply(harvest.written, harvest.vanished)
                    time.sleep(pauses.uniform(0, 0.1))
                writer.stop()
                last = tracker.harvest()
                copy.apply(last.written, last.vanished)
                again = tracker.harvest()
                page_count, differences = truth.differences(writer.pid, copy.pages)
        finally:
            tracker.close()
        return Outcome(page_count, differences, len(again.written) - again.cautious_page_count, last.frozen)


def test_auto_picks_it_exactly_where_wp_async_does_not_work() -> None:
    """What is picked unasked is found out by probing, whatever kernel this is."""
    lacking = why_not_wp_async()

    picked = choose(BackendName.AUTO)

    assert picked.name is (BackendName.WP_ASYNC if lacking is None else BackendName.SOFT_DIRTY)
    assert (f"not wp-async: {lacking}; " in picked.reason) is (lacking is not None)


@pytest.mark.parametrize("pattern", WRITER_PATTERNS)
def test_copy_of_a_frozen_writer_is_identical(pattern: str) -> None:
    """After 20 rounds of copying what is written and dropping what vanished, every byte is the frozen process's."""
    outcome = shadow_copy(pattern)

    assert outcome.differences == []
    assert outcome.page_count > 500
    assert outcome.frozen
    assert outcome.again_page_count == 0, "a frozen process writes nothing, so nothing may be reported"


class WithoutFreeze(SoftDirty):
    """Reads and clears while the target runs."""

    def _look(self) -> _Bits:
        bits = self._read()
        time.sleep(0.2)  # as long as reading a large target takes, also where an emulated writer is slow
        self._clear()
        return bits


class WithoutClearing(SoftDirty):
    """Never clears."""

    def _clear(self) -> None:
        pass


class WithoutZeroPage(SoftDirty):
    """Takes the zero page for a page like others."""

    def __init__(self, pid: int) -> None:
        """Look for a frame that no page has, so that none is the zero page."""
        super().__init__(pid)
        self._zero_frame |= (1 << 55) - 1

    def harvest(self) -> Harvest:
        """Give the target time before its pages are copied: the zero page at both ends, and something between."""
        harvest = super().harvest()
        time.sleep(0.3)
        return harvest


@pytest.mark.parametrize(
    "broken,pattern",
    [(WithoutFreeze, "threads"), (WithoutClearing, "random"), (WithoutZeroPage, "dontneed_pages")],
)
def test_a_tracker_that_leaves_out_a_step_is_found_out(broken: type[SoftDirty], pattern: str) -> None:
    """The same run with one step switched off fails within a few tries: the tests above would see such a mistake."""
    outcomes = (shadow_copy(pattern, seed=seed, backend=broken) for seed in range(1, 6))

    assert any(outcome.differences or outcome.again_page_count for outcome in outcomes)


MOVER = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
size, first, second = 4 << 20, 0x7E0000000000, 0x7E0010000000
for address in (first, second):
    assert libc.mmap(address, size, 3, 0x32, -1, 0) == address
    ctypes.memset(address, address >> 28 & 1 | 2, size)
print("ready", flush=True)
input()
assert libc.mremap(first, size, size, 3, second) == second
print("moved", flush=True)
input()
"""


def test_pages_that_are_moved_with_their_table_are_reported() -> None:
    """Moving 2 MiB at a time the kernel sets no bit: what was moved over known pages shows by its frames alone."""
    with subprocess.Popen([sys.executable, "-c", MOVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mover:
        assert mover.stdin is not None
        assert mover.stdout is not None
        assert mover.stdout.readline() == b"ready\n"
        tracker = SoftDirty(mover.pid)
        try:
            tracker.harvest()
            mover.stdin.write(b"\n")
            mover.stdin.flush()
            assert mover.stdout.readline() == b"moved\n"
            harvest = tracker.harvest()
        finally:
            tracker.close()
            mover.kill()

    assert BitMap64(range(0x7E0010000, 0x7E0010400)) <= harvest.written
    assert BitMap64(range(0x7E0000000, 0x7E0000400)) <= harvest.vanished


@pytest.fixture
def writer() -> Iterator[programs.Program]:
    """A program with some memory of its own that writes at random."""
    with programs.running("writer", "random", 1) as program:
        yield program


def test_a_first_harvest_has_every_populated_page(writer: programs.Program) -> None:
    """Round 1 is a full copy's list."""
    tracker = SoftDirty(writer.pid)
    try:
        writer.stop()
        harvest = tracker.harvest()
        populated = BitMap64(page for page, _ in truth.populated(writer.pid))

        # The zero page is listed there, and here it is a hole.
        assert len(populated - harvest.written) < 16
        assert harvest.written >= BitMap64(page for page in populated if not is_zero(writer.pid, page))
        assert not harvest.vanished
        assert not tracker.harvest().written
        tracker.forget()
        assert tracker.harvest().written == harvest.written
    finally:
        tracker.close()


def test_a_target_that_cannot_be_frozen_is_reported_again(writer: programs.Program) -> None:
    """While somebody else traces it the bits are read and not cleared: too often, never too seldom."""
    tracker = SoftDirty(writer.pid)
    # It runs on; the thread that freezes is another one, and a thread of a target has one tracer.
    syscalls.ptrace(PTRACE_SEIZE, writer.pid, 0, 0, "PTRACE_SEIZE")
    try:
        first, second = tracker.harvest(), tracker.harvest()

        assert first.written <= second.written | second.vanished
    finally:
        tracker.close()


def test_a_second_agent_is_refused(writer: programs.Program) -> None:
    """Each would take the other's bits."""
    tracker = SoftDirty(writer.pid)
    try:
        with pytest.raises(Untrackable, match="another agent"):
            SoftDirty(writer.pid)
    finally:
        tracker.close()
    SoftDirty(writer.pid).close()


def test_an_exited_target_is_told(writer: programs.Program) -> None:
    """Its end is never an empty harvest."""
    tracker = SoftDirty(writer.pid)
    try:
        tracker.harvest()
        writer.process.kill()
        writer.process.wait()
        with pytest.raises(TargetExited):
            tracker.harvest()
    finally:
        tracker.close()
    with pytest.raises(NoSuchProcess):
        SoftDirty(writer.pid)


def test_a_replaced_target_is_told() -> None:
    """execve(2) is never an empty harvest."""
    script = "import os, sys; input(); os.execv(sys.executable, [sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        tracker = SoftDirty(process.pid)
        try:
            tracker.harvest()
            process.stdin.write(b"\n")
            process.stdin.flush()
            with pytest.raises(TargetReplaced):
                harvest_until_it_fails(tracker)
        finally:
            tracker.close()
            process.kill()


def harvest_until_it_fails(tracker: SoftDirty) -> None:
    """Harvest for some seconds."""
    for _ in range(1000):
        tracker.harvest()
        time.sleep(0.01)


def is_zero(pid: int, page: int) -> bool:
    """Whether a page of a stopped process is all zeros."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return not os.pread(memory, 4096, page * 4096).strip(b"\0")
    finally:
        os.close(memory)
