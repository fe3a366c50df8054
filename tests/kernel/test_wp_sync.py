"""What ``wp-sync`` finds and says in real processes, on the real kernel."""

import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pyroaring import BitMap64

from tests.support import programs
from tests.support.copying import shadow_copy
from tests.support.needs import needs
from tests.support.programs import WRITER_PATTERNS, Program
from tests.support.victim import PAGE, Victim, victim, within
from wetink_agent import wp_sync
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Harvest
from wetink_agent.errors import TargetExited, TargetReplaced, Untrackable
from wetink_agent.events import EVENTS_MAX
from wetink_agent.resolver import Resolver
from wetink_agent.resolver_loop import CompiledResolver
from wetink_agent.runs import Runs
from wetink_agent.shared_memory import Range
from wetink_agent.uapi import userfaultfd as uf
from wetink_agent.wp_async import WpAsync
from wetink_agent.wp_sync import WpSync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

ROUNDS = 25
PR_SET_MEMORY_MERGE = 67
MAP_FIXED = 0x10
MADV_GUARD_INSTALL = 102
GUARD_SECONDS_MAX = 30
PATIENCE_SECONDS = 60.0


PATTERNS_IN_PYTHON = ("mapfixed", "threads")


@pytest.fixture(params=["python", "compiled"], autouse=True)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have messages answered by either loop: what holds for one holds for the other."""
    name = str(request.param)
    if name == "compiled":
        needs("loop")
    else:
        monkeypatch.setattr(wp_sync, "open_resolver", Resolver)
    return name


@contextmanager
def tracked(pid: int, *, span_bytes_max: int = PAGE) -> Iterator[WpSync]:
    """Attach to a process and track it, by default page by page; nothing is harvested yet."""
    tracker = WpSync(pid, take_userfaultfd(pid), span_bytes_max=span_bytes_max)
    try:
        yield tracker
    finally:
        tracker.close()


class Told:
    """What the program ``first_writes`` has just written, in its own words."""

    def __init__(self, program: Program, path: Path) -> None:
        """Ask it."""
        assert program.ask(f"tell {path}") == "told"
        self.first = int(program.ready[1]) // PAGE
        numbers = np.fromfile(path, dtype=np.uint32)
        self.by_thread = {}
        position = 0
        for tid in map(int, program.ready[3:]):
            count = int(numbers[position])
            self.by_thread[tid] = numbers[position + 1 : position + 1 + count]
            position += 1 + count

    def check(self, harvest: Harvest, page_count: int) -> None:
        """Compare with a round: of each thread exactly these pages, each once, in this order."""
        events = harvest.events
        assert events is not None
        assert events.lost_count == 0
        pages = events.addresses // PAGE
        ours = (pages >= self.first) & (pages < self.first + page_count)
        assert int(ours.sum()) == sum(map(len, self.by_thread.values()))
        for tid, told in self.by_thread.items():
            seen = pages[ours & (events.thread_ids == tid)] - self.first
            assert np.array_equal(seen, told), f"thread {tid}"
        assert set(events.uffd_flags[ours].tolist()) <= {uf.UFFD_PAGEFAULT_FLAG_WRITE | uf.UFFD_PAGEFAULT_FLAG_WP}
        assert (np.diff(events.times_ns.astype(np.int64)) >= 0).all()
        # The byte within the page is the access's own.
        assert len(set((events.addresses[ours] % PAGE).tolist())) > 1
        written = within_count(harvest, self.first, page_count)
        assert written == int(ours.sum())


def within_count(harvest: Harvest, first: int, page_count: int) -> int:
    """How many pages of a region a round has as written."""
    return harvest.written.range_cardinality(first, first + page_count)


@pytest.mark.parametrize("pattern", WRITER_PATTERNS)
def test_copy_of_a_frozen_writer_is_identical(pattern: str, loop: str) -> None:
    """After 25 rounds of copying what is written and dropping what vanished, every byte is the frozen process's."""
    if loop == "python" and pattern not in PATTERNS_IN_PYTHON:
        # All of them would be another minute, and the loop has no part in what is told from page tables.
        return
    outcome = shadow_copy(pattern, rounds=ROUNDS, seed=1, backend=WpSync)

    assert outcome.differences == []
    assert outcome.page_count > 500
    assert outcome.frozen
    assert outcome.again_page_count == 0, "a frozen process writes nothing, so nothing may be reported"


class WithoutTheScan(WpSync):
    """Takes for written what messages tell of, after the first round."""

    def _look(self) -> tuple[Runs, Runs]:
        populated, unprotected = super()._look()
        assert self._resolver is not None
        if self._known is None:
            return populated, unprotected
        log = self._resolver._log
        if isinstance(self._resolver, CompiledResolver):
            index = self._resolver._state.current
            log = self._resolver._logs[index]
            log.count = self._resolver._state.logs[index].count
        words = log.words[: log.count]
        pages = np.unique(words[:, 2] // PAGE)
        return populated, Runs(pages, pages + np.uint64(1))


def test_a_tracker_without_the_scan_is_found_out() -> None:
    """The same run by the messages alone fails within a few tries: the test above would see such a mistake."""
    outcomes = (
        shadow_copy("dontneed_pages", rounds=ROUNDS, seed=seed, backend=WithoutTheScan) for seed in range(1, 11)
    )
    assert any(outcome.differences for outcome in outcomes)


@pytest.mark.parametrize("fills_gaps", [False, True])
def test_what_is_filled_between_scan_and_protection_is_in_the_next_round(*, fills_gaps: bool) -> None:
    """A hole between two written pages is filled when the scan has passed; protecting it too would hide the write."""
    with victim() as target:
        first = target.map(3, filled=False)
        target.write(first, first + 2)

        class Slow(WpSync):
            def _protect_ours(self, pages: BitMap64) -> BitMap64:
                target.write(first + 1)
                if fills_gaps:
                    pages.add(first + 1)
                return super()._protect_ours(pages)

        tracker = Slow(target.pid, take_userfaultfd(target.pid), span_bytes_max=PAGE)
        try:
            tracker.harvest()
            target.do(f"checked(libc.madvise({(first + 1) * PAGE}, {PAGE}, 4))")
            target.write(first, first + 2)
            tracker.harvest()
            assert (1 in within(tracker.harvest(), first, 3)[0]) is not fills_gaps
        finally:
            tracker.close()


@pytest.mark.parametrize("backend", [WpSync, WpAsync])
@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED], ids=["private", "shared"])
def test_a_file_in_the_place_of_what_was_looked_at_holds_nobody_up(backend: type[WpAsync], flags: int) -> None:
    """Memory of a file takes a mapping's place just before that is registered, and then has guard pages installed."""
    with victim() as target:
        first = target.map(8)
        target.do("global file; file = os.memfd_create('it'); os.ftruncate(file, 8 * PAGE)")

        class Late(backend):  # type: ignore[valid-type, misc]  # a parameter
            is_late = True

            def _register_span(self, span: Range) -> None:
                if self.is_late and span[0] <= first * PAGE < span[1]:
                    self.is_late = False
                    target.do(f"fill(mmap(8, {first * PAGE}, 3, {MAP_FIXED | flags}, file), 8)")
                super()._register_span(span)

        tracker = Late(target.pid, take_userfaultfd(target.pid))
        try:
            tracker.harvest()
            assert not tracker.is_late
            line = json.dumps(f"checked(libc.madvise({first * PAGE}, {4 * PAGE}, {MADV_GUARD_INSTALL}))")
            assert target.program.process.stdin is not None
            target.program.process.stdin.write(f"{line}\n".encode())
            until = time.monotonic() + GUARD_SECONDS_MAX
            while not target.program.has_said(wait_seconds=0.05):
                tracker.harvest()
                assert time.monotonic() < until
            assert json.loads(target.program.read_line()) == {"result": None}
            target.write(first + 5)
            assert 5 in within(tracker.harvest(), first, 8)[0]
        finally:
            tracker.close()


@pytest.mark.parametrize("mib, rounds, share", [(16, 12, 40), (256, 4, 10)])
def test_every_first_write_of_a_round_is_one_event(tmp_path: Path, mib: int, rounds: int, share: int) -> None:
    """16 threads that write at once: of each its pages, each once, in its own order, with its thread id."""
    with programs.running("first_writes", 16, mib) as writer, tracked(writer.pid) as tracker:
        tracker.harvest()
        for turn in range(rounds):
            writer.ask(f"write {share} {turn}")
            harvest = tracker.harvest()
            Told(writer, tmp_path / "told").check(harvest, int(writer.ready[2]))
            assert harvest.cautious_page_count < 200


def test_events_of_sixteen_threads_on_a_gibibyte(tmp_path: Path) -> None:
    """On 1 GiB in which every tenth page is written, out of order and then in order, no event is missing."""
    with programs.running("first_writes", 16, 1024) as writer, tracked(writer.pid) as tracker:
        tracker.harvest()
        for turn in (1, 2):
            writer.ask(f"write 10 {turn}")
            Told(writer, tmp_path / "told").check(tracker.harvest(), int(writer.ready[2]))


def rounds_while_written(writer: Program, tracker: WpSync, seed: int) -> tuple[list[Harvest], int]:
    """Harvest without a pause while 16 threads write, and twice after it; return the rounds and the count of pages."""
    assert writer.process.stdin is not None
    with ThreadPoolExecutor(1) as reader:
        answer = reader.submit(writer.read_line)
        writer.process.stdin.write(b"write 90 %d\n" % seed)
        rounds = []
        while not answer.done():
            rounds.append(tracker.harvest())
        return [*rounds, tracker.harvest(), tracker.harvest()], int(answer.result().split()[1])


def test_rounds_while_threads_write_share_the_events_out() -> None:
    """With rounds in the middle of the writing, each event is in the round that has its page, and none is in two."""
    with programs.running("first_writes", 16, 64) as writer, tracked(writer.pid) as tracker:
        first, page_count = int(writer.ready[1]) // PAGE, int(writer.ready[2])
        tracker.harvest()
        # How many rounds fall into the writing is the scheduler's choice: often dozens, once in a while hardly any.
        for seed in itertools.count(1, 2):
            rounds, count = rounds_while_written(writer, tracker, seed)
            event_pages = []
            for harvest in rounds:
                assert harvest.events is not None
                pages = [page for page in (harvest.events.addresses // PAGE).tolist() if 0 <= page - first < page_count]
                assert set(pages) == {page for page in harvest.written if 0 <= page - first < page_count}
                event_pages += pages
            # A page whose two writes lie on both sides of a round is in both.
            assert len(set(event_pages)) == count
            assert len(event_pages) <= count + 16 * len(rounds)
            if sum(1 for harvest in rounds if within_count(harvest, first, page_count)) > 2:
                break


def test_a_harvester_that_stands_still_slows_no_write() -> None:
    """Nobody harvests for 3 s: the slowest of all writes takes as long as a busy machine makes it, and no longer."""
    with programs.running("first_writes", 4, 64) as writer, tracked(writer.pid) as tracker:
        tracker.harvest()
        _, count, _ = writer.ask("write 30 1").split()
        time.sleep(3)
        # More lots, of pages that are still protected for the most part: the best of them, for others run here too.
        slowest_ns = [int(writer.ask(f"write 10 {seed}").split()[2]) for seed in (3, 5, 7, 9)]
        assert min(slowest_ns) < 0.5e9
        assert len(tracker.harvest().written) > int(count)


def test_events_beyond_the_bound_are_counted_and_their_pages_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """More first writes in a round than are kept: the rest is counted as lost, and every page is there."""
    monkeypatch.setattr("wetink_agent.resolver.EVENTS_MAX", 1000)
    with programs.running("first_writes", 4, 64) as writer, tracked(writer.pid) as tracker:
        tracker.harvest()
        count = int(writer.ask("write 50 1").split()[1])
        harvest = tracker.harvest()
        assert harvest.events is not None
        assert len(harvest.events) == 1000
        assert harvest.events.lost_count >= count - 1000
        assert within_count(harvest, int(writer.ready[1]) // PAGE, int(writer.ready[2])) == count
        writer.ask("write 1 2")
        harvest = tracker.harvest()
        assert harvest.events is not None
        assert harvest.events.lost_count == 0
    assert EVENTS_MAX > 1000


def test_a_writer_in_order_is_let_on_in_growing_steps() -> None:
    """A writer of 4,096 pages in a row needs few messages; one that leaves gaps is let on page by page."""
    with victim() as target:
        first = target.map(8192)
        with tracked(target.pid, span_bytes_max=wp_sync.SPAN_BYTES_MAX) as tracker:
            tracker.harvest()
            target.do(f"fill({first * PAGE}, 4096)")
            harvest = tracker.harvest()
            assert harvest.events is not None
            in_region = within(harvest, first, 8192)[0]
            assert set(range(4096)) <= in_region
            assert len(in_region) <= 4096 + 512
            assert sum(1 for page in (harvest.events.addresses // PAGE).tolist() if 0 <= page - first < 8192) < 25
            # All but the pages of the messages were let through without one.
            assert harvest.cautious_page_count >= len(in_region) - 25
            target.write(*range(first, first + 8192, 64))
            assert within(tracker.harvest(), first, 8192)[0] == set(range(0, 8192, 64))
            # What was let through is protected again.
            assert within(tracker.harvest(), first, 8192)[0] == set()


def test_a_step_past_the_end_of_a_mapping_answers_all_the_same() -> None:
    """Writers in order up to the last page of a mapping, whose neighbour cannot be registered, are not held."""
    with victim() as target:
        first = target.map(1000)
        target.do(f"mmap(24, {(first + 976) * PAGE}, flags=0x31)")
        with tracked(target.pid, span_bytes_max=wp_sync.SPAN_BYTES_MAX) as tracker:
            tracker.harvest()
            target.do(f"fill({first * PAGE}, 1000)")
            assert set(range(976)) <= within(tracker.harvest(), first, 976)[0]


def test_a_thread_whose_mapping_goes_while_it_waits_goes_on() -> None:
    """A write that waits in a page that is unmapped meanwhile gets SIGSEGV at once, as without tracking."""
    with programs.running("unmapped_while_writing") as target, tracked(target.pid) as tracker:
        tracker.harvest()
        for _ in range(200):
            assert target.ask("again") == "done"
            tracker.harvest()


def test_holes_zaps_and_new_memory_need_no_message() -> None:
    """What is filled or refilled without a fault on protected memory is written; what is given back has vanished."""
    with victim() as target:
        first = target.map(100)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.do(f"checked(libc.madvise({(first + 10) * PAGE}, {5 * PAGE}, 4))")
            target.write(first + 12)
            assert within(tracker.harvest(), first, 100) == ({12}, {10, 11, 13, 14})
            target.map(100, filled=False, more=f"address={first * PAGE}, flags=0x32")
            target.write(first + 7)
            assert within(tracker.harvest(), first, 100) == ({7}, set(range(100)) - {7, 10, 11, 13, 14})
            target.write(first + 7)
            harvest = tracker.harvest()
            assert within(harvest, first, 100) == ({7}, set())
            assert harvest.events is not None
            assert first + 7 in (harvest.events.addresses // PAGE).tolist()


def test_marks_that_a_lost_registration_leaves_behind_hide_nothing() -> None:
    """A mapping to which another is moved back loses its registration, not its marks: what is written is seen."""
    with victim() as target:
        first = target.map(20)
        half, away = (first + 10) * PAGE, target.map(10, filled=False) * PAGE
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.do(f"checked(libc.mremap({half}, {10 * PAGE}, {10 * PAGE}, 3, {away}))")
            tracker.harvest()
            target.do(f"checked(libc.mremap({away}, {10 * PAGE}, {10 * PAGE}, 3, {half}))")
            target.write(first + 3, first + 13)
            assert {3, 13} <= within(tracker.harvest(), first, 20)[0]
            target.write(first + 4)
            assert within(tracker.harvest(), first, 20)[0] == {4}


def test_a_file_that_is_registered_by_chance_hides_nothing() -> None:
    """
    It takes the place of memory between our look at the mappings and its registration. The kernel takes it too, and
    what is zapped there looks protected from then on, while it holds what the file does.
    """
    with victim() as process:
        process.do("globals()['file'] = os.memfd_create('it'); os.ftruncate(file, 4 * PAGE)")
        first = process.map(4)

        class Late(WpSync):
            is_late = True

            def _register_span(self, span: Range) -> None:
                if self.is_late and span[0] <= first * PAGE < span[1]:
                    self.is_late = False
                    process.do(f"mmap(4, {first * PAGE}, flags=0x12, fd=file)")
                    process.write(*range(first, first + 4))
                super()._register_span(span)

        tracker = Late(process.pid, take_userfaultfd(process.pid), span_bytes_max=PAGE)
        try:
            for _ in range(3):
                tracker.harvest()
            assert not tracker.is_late
            process.do(f"checked(libc.madvise({first * PAGE}, PAGE, 4))")
            written, vanished = within(tracker.harvest(), first, 4)
        finally:
            tracker.close()

    assert 0 in written | vanished


def test_threads_of_another_pid_namespace_have_our_ids_and_names() -> None:
    """The kernel tells the ids that a container's threads have for themselves, which may be others' out here."""
    with victim() as target:
        target.do(
            "checked(libc.unshare(0x20000000))\n"  # CLONE_NEWPID
            "child = os.fork()\n"
            "if child: os.waitpid(child, 0); os._exit(0)"
        )
        child = int(Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text(encoding="ascii"))
        first = target.map(8)
        target.do(
            "global threading, gate, done, work\nimport threading\n"
            "gate, done = threading.Event(), threading.Event()\n"
            "def work():\n"
            "    gate.wait(); gate.clear()\n"
            f"    poke({first + 1} * PAGE, 9)\n"
            "    done.set(); gate.wait()\n"
            "threading.Thread(target=work, daemon=True).start()"
        )
        with tracked(child) as tracker:
            tracker.harvest()
            target.write(first)
            inside = target.number("os.getpid()")
            target.do("gate.set(); done.wait()")
            events = tracker.harvest().events

        assert events is not None
        assert inside == 1
        by_page = dict(zip((events.addresses // PAGE).tolist(), events.thread_ids.tolist(), strict=True))
        (other,) = {int(task.name) for task in Path(f"/proc/{child}/task").iterdir()} - {child}
        assert by_page[first] == child
        assert by_page[first + 1] == other
        assert {child, other} <= dict(events.threads).keys()
        assert any(start <= first * PAGE < end for start, end, _ in events.mappings)


def test_a_killed_agent_leaves_the_target_running() -> None:
    """SIGKILL while writers wait for answers: they go on, and nothing of the userfaultfd is left."""
    agent = (
        "import sys, time; from wetink_agent.attach import take_userfaultfd; from wetink_agent.wp_sync import WpSync\n"
        "pid = int(sys.argv[1]); tracker = WpSync(pid, take_userfaultfd(pid))\n"
        "print('ready', flush=True)\n"
        "while True: tracker.harvest(); time.sleep(0.002)"
    )
    with programs.running("writer", "threads", 1) as writer:
        for turn in range(5):
            with subprocess.Popen([sys.executable, "-c", agent, str(writer.pid)], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                time.sleep(0.2 + 0.013 * turn)
                if turn % 2:
                    # Stopped first, so that writers are sure to be waiting.
                    os.kill(process.pid, signal.SIGSTOP)
                    time.sleep(0.1)
                process.kill()
            before = cpu_ticks(writer.pid)
            until = time.monotonic() + PATIENCE_SECONDS
            while cpu_ticks(writer.pid) < before + 2:
                assert time.monotonic() < until, "the writer does not run"
                time.sleep(0.01)
        writer.stop()
        flags = [line for line in Path(f"/proc/{writer.pid}/smaps").read_text().splitlines() if line[:8] == "VmFlags:"]
        assert flags
        assert not [line for line in flags if " uw" in line]


def test_a_resolver_that_fails_lets_everybody_go(monkeypatch: pytest.MonkeyPatch, loop: str) -> None:
    """After a mistake in the resolver no writer waits, and the next harvest says what happened, as the one after."""
    with victim() as target:
        first = target.map(100)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            resolver = tracker._resolver
            if isinstance(resolver, CompiledResolver):
                # A page of 1 PiB: the kernel refuses the range, and says EINVAL.
                resolver._state.page_shift = 50
                target.write(*range(first, first + 100))
                for _ in range(2):
                    with pytest.raises(Untrackable, match="Invalid argument"):
                        tracker.harvest()
                return
            assert loop == "python"
            assert resolver is not None

            def fail(start: int, end: int) -> None:
                message = f"no answer for {end - start}"
                raise ValueError(message)

            monkeypatch.setattr(resolver, "_unprotect", fail)
            target.write(*range(first, first + 100))
            for _ in range(2):
                with pytest.raises(Untrackable, match="no answer for"):
                    tracker.harvest()


def test_exit_and_execve_end_tracking() -> None:
    """A target that exits or replaces its memory is never a target at rest."""
    with victim() as target, tracked(target.pid) as tracker:
        tracker.harvest()
        target.program.process.kill()
        target.program.process.wait()
        with pytest.raises(TargetExited):
            tracker.harvest()
    with victim("setarch", "-R") as target, tracked(target.pid) as tracker:
        tracker.harvest()
        assert target.program.process.stdin is not None
        target.program.process.stdin.write(b"\"os.execv(sys.executable, [sys.executable, '-c', 'input()'])\"\n")
        with pytest.raises(TargetReplaced):
            harvest_on(tracker)


def harvest_on(tracker: WpSync) -> None:
    """Harvest for as long as a busy machine may need to start a program."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        tracker.harvest()
        time.sleep(0.005)


def test_this_kernel_can() -> None:
    """The probe finds nothing missing here."""
    assert wp_sync.why_not_wp_sync() is None


def test_risky_targets_are_named() -> None:
    """Threads, merged memory, lack of a right, the agent itself, its parents and collectors: each is a sentence."""
    with victim() as target:
        assert wp_sync.why_risky(target.pid) is None
        target.do(f"checked(libc.prctl({PR_SET_MEMORY_MERGE}, 1, 0, 0, 0))")
        assert "KSM" in str(wp_sync.why_risky(target.pid))
    with victim() as target:
        address = target.map(16) * PAGE
        target.do(f"checked(libc.madvise({address}, {16 * PAGE}, 12))")
        assert "KSM" in str(wp_sync.why_risky(target.pid))
    with victim() as target:
        start_thread(target)
        assert "2 threads" in str(wp_sync.why_risky(target.pid))
    with victim("setpriv", "--reuid=65534", "--clear-groups") as target:
        assert "UFFD_USER_MODE_ONLY" in str(wp_sync.why_risky(target.pid))
    for pid in (os.getpid(), os.getppid(), 1):
        assert "wait for itself" in str(wp_sync.why_risky(pid))
    command = [sys.executable, "-c", "print(flush=True); input()", "wetink-collector"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "is a collector" in str(wp_sync.why_risky(process.pid))
        process.kill()


def start_thread(target: Victim) -> None:
    """Have it start a thread that sleeps."""
    target.do("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")


def cpu_ticks(pid: int) -> int:
    """Give the CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
