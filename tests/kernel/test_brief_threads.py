"""A target whose threads come and go by the hundreds each second, while it is attached, frozen and streamed.

That its copy is identical in every byte is tested with each backend beside the other patterns of ``writer``.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_freeze import held
from tests.kernel.test_page_faults import events_of, pages_of, streamed
from tests.support import programs
from tests.support.amounts import amount
from tests.support.programs import Program
from tests.support.watched import wait_until
from wetink_agent import procfs
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Harvest
from wetink_agent.errors import NoSuchProcess, TargetReplaced
from wetink_agent.wp_async import WpAsync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

TIMES = amount(gate=20, soak=500)
ROUNDS = amount(gate=10, soak=300)
RELAY_TIMES = amount(gate=30, soak=1000)
THREADS_MIN = 300
LIVING_TIMES = amount(gate=40_000, soak=1_000_000)


@pytest.fixture
def busy() -> Iterator[Program]:
    """Start it; it runs on afterwards, with all of its threads."""
    with programs.running("writer", "brief_threads", 11) as program:
        yield program
        wait_until(lambda: "T" not in states(program.pid) and "t" not in states(program.pid))
        wait_until_seen(program.pid, THREADS_MIN)


def states(pid: int) -> set[str]:
    """Give the states of its threads, of those that live."""
    found = set()
    for tid in procfs.threads(pid):
        with contextlib.suppress(NoSuchProcess):
            found.add(procfs.thread_state(pid, tid))
    return found


def wait_until_seen(pid: int, count: int) -> None:
    """Wait until so many threads have been seen."""
    seen: set[int] = set()

    def are_seen() -> bool:
        seen.update(procfs.threads(pid))
        return len(seen) >= count

    wait_until(are_seen)


def descriptor_count(pid: int | str) -> int:
    """Count the descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_it_is_attached_and_let_go_again_and_again(busy: Program) -> None:
    """Each time everything is there, and neither a descriptor nor a tracer nor a registration is left."""
    descriptors = descriptor_count(busy.pid)
    for _ in range(TIMES):
        tracker = WpAsync(busy.pid, take_userfaultfd(busy.pid))
        try:
            assert tracker.harvest().populated_page_count > 4000
            wait_until(lambda: bool(tracker.harvest().written))  # noqa: B023 - called here
        finally:
            tracker.close()
    assert busy.alive(), busy.errors
    assert procfs.tracer_of(busy.pid) == 0
    assert descriptor_count(busy.pid) == descriptors
    assert list(procfs.registered(busy.pid)) == []


def test_a_process_of_which_no_thread_stays_is_not_said_to_have_exited() -> None:
    """Its first thread has ended, and each other one ends while it is looked at: the next one shows the same memory.

    It may be impossible to hold one for long enough to borrow it; that is told as it is, and tried again.
    """
    tracked = 0
    with programs.running("odd", "relay") as program:
        for _ in range(RELAY_TIMES):
            with contextlib.suppress(TargetReplaced):
                tracker = WpAsync(program.pid, take_userfaultfd(program.pid))
                try:
                    for _ in range(5):
                        assert tracker.harvest().populated_page_count > 5
                finally:
                    tracker.close()
                tracked += 1
        assert program.ask("") == "here"
        program.process.kill()
        program.process.wait()
        with pytest.raises(NoSuchProcess):
            procfs.read_maps(program.pid)
    assert tracked > RELAY_TIMES // 10


def test_a_thread_that_lives_is_always_found() -> None:
    """A listing during which the only other thread ends has, once in thousands, the first alone, which has ended."""
    with programs.running("odd", "relay") as program:
        wait_until(lambda: procfs.stat(program.pid).is_gone)
        for _ in range(LIVING_TIMES):
            assert procfs.living_thread(program.pid) != program.pid
        program.process.kill()
        wait_until(lambda: procfs.stat(program.pid).is_gone and procfs.threads(program.pid) == [program.pid])
        with pytest.raises(NoSuchProcess):
            procfs.living_thread(program.pid)


def test_no_thread_of_it_runs_or_begins_while_it_is_frozen(busy: Program) -> None:
    """Those that were about to start or to end are held too: the same threads, and not a byte of memory is written."""
    tracker = WpAsync(busy.pid, take_userfaultfd(busy.pid))
    try:
        tracker.harvest()
        for _ in range(5):
            before, after, harvest = held(busy.pid, lambda: look_twice(busy.pid, tracker))
            assert before == after
            assert harvest.frozen
            assert len(harvest.written) == harvest.cautious_page_count
            wait_until_seen(busy.pid, THREADS_MIN)
    finally:
        tracker.close()


def look_twice(pid: int, tracker: WpAsync) -> tuple[set[int], set[int], Harvest]:
    """Give the threads, and again after longer than they live, with a harvest of what was written meanwhile."""
    before = set(procfs.threads(pid))
    for _ in range(2):
        tracker.harvest()
    time.sleep(0.05)
    return before, set(procfs.threads(pid)), tracker.harvest()


def test_events_name_hundreds_of_threads_and_miss_none(busy: Program) -> None:
    """What was written has an event, whichever thread has done it: those that began since the stream was opened too."""
    threads: set[int] = set()
    written = without = lost = 0
    with streamed(busy.pid) as backend:
        backend.harvest()
        opened = descriptor_count("self")
        for _ in range(ROUNDS):
            wait_until_seen(busy.pid, 60)
            harvest = backend.harvest()
            events = events_of(harvest)
            threads.update(events.thread_ids.tolist())
            written += len(harvest.written) - harvest.cautious_page_count
            without += events.census_only_count
            lost += events.lost_count
            assert pages_of(events) <= set(harvest.written)
        assert descriptor_count("self") <= opened

    assert len(threads) >= THREADS_MIN
    # A fault while a round is under way may be told by the next one.
    assert without <= lost + written // 10
