"""Rows of the kernel matrix: who writes, from the processor itself to a debugger, and what a fork does to it."""

import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.support import programs, truth
from tests.support.copying import shadow_copy
from tests.support.obedient import MADV_DONTNEED, MREMAP_MAYMOVE, PAGE, command, obedient
from tests.support.victim import victim, within
from tests.support.watched import BACKENDS, Watched, async_only, sync_only, wait_until, watched
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Backend
from wetink_agent.backends import Choice, open_forked
from wetink_agent.errors import TargetExited, TargetReplaced
from wetink_agent.forks import ForkReader, WithForks, child_over
from wetink_agent.wp_async import WpAsync
from wetink_agent.wp_sync import HAZARDS, WpSync, why_risky
from wetink_client.shadow import ShadowCopy

pytestmark = pytest.mark.needs("kernel", "root", "cc")

EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
"""UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE and _UNMAP."""


def test_row_01_write_and_read(row: Watched) -> None:
    """Of eight pages one is written and all are read: that one is written."""
    memory = row.target.map(8)
    row.settle()
    row.target.store(memory + 3 * PAGE)
    row.target.do(f"touch {memory} 8")
    row.expect(memory, 8, written={3})
    row.expect(memory, 8)
    row.check()


def test_row_02_first_write_to_an_unpopulated_page(row: Watched) -> None:
    """A page that was never touched is written once it is."""
    memory = row.target.map(8, filled=False)
    row.settle()
    row.target.store(memory + 5 * PAGE)
    row.expect(memory, 8, written={5})
    row.check()


def test_row_03_write_after_a_read_of_the_zero_page(row: Watched) -> None:
    """Pages that were only read are the kernel's zero page; the write that replaces it is seen."""
    memory = row.target.map(8, filled=False)
    row.target.do(f"touch {memory} 8")
    row.settle()
    row.target.store(memory + 2 * PAGE)
    assert 2 in within(row.round(), memory // PAGE, 8)[0]
    row.check()


def test_row_21_the_parent_writes_after_a_fork(row: Watched) -> None:
    """Copy-on-write on either side leaves the parent's record exact; the child is no part of this target."""
    memory = row.target.map(8)
    row.settle()
    row.target.do(f"spawn fill {memory} 8 99")
    row.target.store(memory + 6 * PAGE)
    row.expect(memory, 8, written={6})
    assert row.target.word(memory) == 1 << 32
    row.check()


def test_row_22_a_child_writes_after_a_fork(row: Watched) -> None:
    """Without EVENT_FORK a child is no part of its parent's record: it is a target of its own, whole in its round 1."""
    assert not row.tracker.features & EVENTS
    memory = row.target.map(8)
    row.settle()
    (child,) = row.target.do(f"spawn fill {memory} 4 99")
    wait_until(lambda: word_of(child, memory + 3 * PAGE) == 102)
    tracker = type(row.tracker)(child, take_userfaultfd(child))
    try:
        with ShadowCopy(child) as copy:
            for _ in range(2):
                harvest = tracker.harvest()
                copy.apply(harvest.written, harvest.vanished)
            with programs.Stopped(child):
                harvest = tracker.harvest()
                copy.apply(harvest.written, harvest.vanished)
                assert truth.differences(child, copy.pages)[1] == []
    finally:
        tracker.close()
    assert struct.unpack("Q", copy.pages[memory // PAGE + 1][:8]) == (100,)
    row.expect(memory, 8)


def word_of(pid: int, address: int) -> int:
    """Read a word of a process's memory."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        return int.from_bytes(os.pread(memory.fileno(), 8, address), sys.byteorder)


@async_only
def test_row_22_a_child_writes_after_a_fork_that_is_told(backend: str) -> None:
    """With EVENT_FORK the child's pages are protected from its first instruction on: only its own writes show.

    And what was written in the parent since its last round, as it is in no copy either.
    """
    children: SimpleQueue[tuple[int, int]] = SimpleQueue()
    reader = ForkReader(lambda parent_pid, uffd: children.put((parent_pid, uffd)))
    with closing(reader), obedient() as target:
        uffd = take_userfaultfd(target.pid)
        tracker = BACKENDS[backend](target.pid, uffd, follow_fork=True)
        assert tracker.has_fork_events
        with closing(WithForks(tracker, reader, target.pid, uffd)), ShadowCopy(target.pid) as copy:
            row = Watched(target, tracker, copy)
            memory = target.map(16)
            row.settle()
            target.store(memory + 9 * PAGE)
            (child,) = target.do(f"spawn fill {memory + 2 * PAGE} 3 99")
            parent_pid, childs = children.get(timeout=60)
            assert parent_pid == target.pid
            assert child_over(parent_pid, childs, ()) == child
            wait_until(lambda: word_of(child, memory + 4 * PAGE) == 101)
            row.expect(memory, 16, written={9})
            row.check()
            with closing(open_forked(Choice(follow_fork=True), child, childs, (), reader)) as followed:
                assert isinstance(followed, WithForks)
                own = _is_written(followed, memory // PAGE, 16)
                assert own == {2, 3, 4, 9}
                _check_copy(child, followed)


def _is_written(followed: WithForks, first: int, count: int) -> set[int]:
    """Give which pages, counted from the first, the kernel says are written."""
    tracker = followed._backend
    assert isinstance(tracker, WpAsync)
    tracker._look_at_maps()
    _, written = tracker._census(flags=0)
    return {page - first for page in written if first <= page < first + count}


def _check_copy(pid: int, backend: Backend) -> None:
    """Copy a process by two harvests, freeze it, and compare every byte."""
    with ShadowCopy(pid) as copy:
        for _ in range(2):
            harvest = backend.harvest()
            copy.apply(harvest.written, harvest.vanished)
        with programs.Stopped(pid):
            harvest = backend.harvest()
            copy.apply(harvest.written, harvest.vanished)
            assert truth.differences(pid, copy.pages)[1] == []


def test_row_23_a_vfork_child_writes_and_calls_execve(row: Watched) -> None:
    """The new program has a memory of its own; the parent's is the same as before, with the child's write in it."""
    memory = row.target.map(8)
    path = row.target.pointed(b"/proc/self/exe\0", at=64)
    arguments = row.target.pointed(struct.pack("QQ", path, 0), at=128)
    row.settle()
    # The program that is executed reads the end of its input, and ends.
    done = row.target.do(
        f"vfork store {memory + 4 * PAGE} 99; {command('close', 0)}; {command('close', 1)}; "
        f"{command('execve', path, arguments, arguments + 8)}"
    )
    assert done == [0]
    row.expect(memory, 8, written={4})
    assert row.target.word(memory + 4 * PAGE) == 99
    row.check()


def test_row_23_posix_spawn(backend: str) -> None:
    """It runs its child in the parent's memory, on a stack of its own, until that is another program: thirty times."""
    with victim() as target:
        tracker = BACKENDS[backend](target.pid, take_userfaultfd(target.pid))
        with closing(tracker), ShadowCopy(target.pid) as copy:
            memory = target.map(30)
            for turn in range(30):
                harvest = tracker.harvest()
                copy.apply(harvest.written, harvest.vanished)
                target.do(
                    f"poke({memory + turn} * PAGE, {turn + 2})\n"
                    "status = os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)[1]; assert status == 0"
                )
            with programs.Stopped(target.pid):
                harvest = tracker.harvest()
                copy.apply(harvest.written, harvest.vanished)
                assert truth.differences(target.pid, copy.pages)[1] == []


def test_row_23_a_vfork_child_writes(row: Watched) -> None:
    """A child that shares the memory writes the parent's page."""
    memory = row.target.map(8)
    row.settle()
    assert row.target.do(f"vfork store {memory + 4 * PAGE} 99") == [0]
    row.expect(memory, 8, written={4})
    assert row.target.word(memory + 4 * PAGE) == 99
    row.check()


def test_row_24_exec(row: Watched, says: Callable[[str], None]) -> None:
    """New memory is another incarnation: the harvest is refused with that reason, and never empty."""
    row.target.map(8)
    row.settle()
    assert row.target.program.ask("exec").startswith("ready")
    for _ in range(2):
        with pytest.raises(TargetReplaced, match="execve"):
            row.tracker.harvest()
    says("the incarnation ends, with the reason; the next one begins with everything")


def test_row_25_exit_and_then_a_scan(row: Watched, says: Callable[[str], None]) -> None:
    """A target that is gone, reaped or not, ends with that reason, and never with an empty harvest."""
    row.settle()
    os.kill(row.target.pid, signal.SIGKILL)
    os.waitid(os.P_PID, row.target.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TargetExited):
        row.tracker.harvest()
    row.target.program.process.wait()
    with pytest.raises(TargetExited):
        row.tracker.harvest()
    says("the target ends, with the reason")


def test_row_26_writes_of_other_processes(row: Watched, says: Callable[[str], None]) -> None:
    """What process_vm_writev(2), /proc/PID/mem and PTRACE_POKEDATA write into the target is written.

    In ``wp-sync`` the kernel refuses the latter two on a protected page: they cannot wait for an answer.
    """
    memory = row.target.map(8)
    row.settle()
    # By a child of the target, from what was the same memory before it became its own.
    source = row.target.pointed(struct.pack("QQQ", 1, 2, 3))
    local, remote = row.target.vector(source, 24), row.target.vector(memory + PAGE, 24, at=2064)
    write = command("process_vm_writev", row.target.pid, local, 1, remote, 1, 0)
    assert row.target.do(f"fork {write}") == [0]
    with Path(f"/proc/{row.target.pid}/mem").open("r+b", buffering=0) as file:
        number = _errno_of(lambda: os.pwrite(file.fileno(), b"x", memory + 3 * PAGE))
    poked = [sys.executable, "-c", POKE, str(row.target.pid), str(memory + 5 * PAGE)]
    numbers = [number, subprocess.run(poked, check=False).returncode]
    if isinstance(row.tracker, WpSync):
        assert numbers == [errno.EIO, errno.EIO]
        assert any("debugger's write" in hazard for hazard in HAZARDS)
        says("`wp-sync` warns: a debugger's write to protected memory fails with EIO")
    else:
        assert numbers == [0, 0]
        assert row.target.word(memory + 5 * PAGE) == 77
    row.expect(memory, 8, written={1} if any(numbers) else {1, 3, 5})
    assert row.target.word(memory + PAGE) == 1
    row.check()


def _errno_of(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


POKE = """
import os, sys
from wetink import syscalls
from wetink_agent.uapi import ptrace as pt
pid, address = map(int, sys.argv[1:])
syscalls.ptrace(pt.PTRACE_SEIZE, pid, 0, 0, "PTRACE_SEIZE")
syscalls.ptrace(pt.PTRACE_INTERRUPT, pid, 0, 0, "PTRACE_INTERRUPT")
os.waitpid(pid, 0x40000000)
try:
    syscalls.ptrace(pt.PTRACE_POKEDATA, pid, address, 77, "PTRACE_POKEDATA")
except OSError as error:
    sys.exit(error.errno)
"""


def test_row_43_what_the_kernel_writes_when_a_thread_exits(row: Watched, says: Callable[[str], None]) -> None:
    """The owner bit of a robust futex and a cleared thread id, in protected memory: both are written, and seen.

    ``wp-sync`` cannot: the kernel's writes fail while a thread exits. It refuses targets with threads, unless told to
    accept the risk.
    """
    memory = row.target.map(8)
    if isinstance(row.tracker, WpSync):
        row.target.do(f"thread {command('read', row.target.pipe()[0], row.target.room, 1)}")
        assert "threads" in (why_risky(row.target.pid) or "")
        says("`wp-sync` refuses a target with threads, unless told `--accept-risk`")
        return
    head, lock, tid_word = memory + PAGE, memory + 3 * PAGE, memory + 5 * PAGE
    # struct robust_list_head: the list, with one entry at the lock's own address less an offset; then that offset.
    entry = lock + 64
    row.target.poke(head, struct.pack("QqQ", entry, -64, 0))
    row.target.poke(entry, struct.pack("Q", head))
    reading, writing = row.target.pipe()
    wait = command("read", reading, row.target.room, 1)
    row.target.do(
        f"thread {command('set_robust_list', head, 24)}; {command('set_tid_address', tid_word)}; {wait}; "
        f"{command('exit', 0)}"
    )
    tid = _the_other_thread(row.target.pid)
    row.target.store(lock, value=tid)
    row.target.store(tid_word, value=tid)
    row.settle()
    row.target.call("write", writing, row.target.room, 1)
    wait_until(lambda: not Path(f"/proc/{row.target.pid}/task/{tid}").exists())
    written = within(row.round(), memory // PAGE, 8)[0]
    assert row.target.word(lock) & 0xFFFFFFFF == 0x40000000, "no FUTEX_OWNER_DIED"
    assert row.target.word(tid_word) & 0xFFFFFFFF == 0
    assert written == {3, 5}
    row.check()


def _the_other_thread(pid: int) -> int:
    (tid,) = (int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid))
    return tid


def test_row_44_a_signal_on_a_protected_stack(row: Watched) -> None:
    """The kernel writes the frame to the alternative stack: its page is written, and the handler runs."""
    memory = row.target.map(32)
    row.target.call("sigaltstack", row.target.pointed(struct.pack("QiiQ", memory, 0, 0, 32 * PAGE)), 0)
    row.settle()
    row.target.call("kill", row.target.pid, signal.SIGUSR1)
    assert row.target.do("signals") == [1]
    written = within(row.round(), memory // PAGE, 32)[0]
    assert 31 in written
    assert written <= set(range(24, 32))
    row.check()


def test_row_48_writers_during_scan_and_copy(backend: str) -> None:
    """47 threads of all the writers' patterns (in ``wp-sync`` those of one) write while rounds go on: no difference."""
    if backend == "wp-sync":
        outcome = shadow_copy("threads", rounds=15, seed=48, backend=WpSync)
    else:
        outcome = shadow_copy("mixed", rounds=8, seed=48, backend=WpAsync)
    assert outcome.differences == []
    assert outcome.page_count > 500


@sync_only
def test_row_45_the_agent_is_killed(backend: str) -> None:
    """In ``wp-sync`` a writer waits for the agent: when that is killed it goes on at once, for it has the only copy."""
    with watched(backend) as here:
        assert not [path for path in _descriptors(here.target.pid) if "userfaultfd" in path]
    with obedient() as target:
        memory = target.map(8)
        with silent_agent(target.pid, "WpSync") as agent:
            assert target.program.process.stdin is not None
            target.program.process.stdin.write(f"store {memory} 5\n".encode())
            wait_until(lambda: _waits_for_an_answer(target.pid))
            agent.kill()
            agent.wait()
        assert target.program.read_line().split() == ["0"]
        assert target.word(memory) == 5
        assert "uw" not in target.flags_of(memory)


@contextmanager
def silent_agent(pid: int, backend: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process track a target, and stop that process after the first round."""
    with subprocess.Popen(
        [sys.executable, "-c", SILENT_AGENT, str(pid), backend], stdout=subprocess.PIPE, text=True
    ) as agent:
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "armed\n"
            agent.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, agent.pid, os.WSTOPPED)
            yield agent
        finally:
            agent.kill()


SILENT_AGENT = """
import sys, time
from wetink_agent.attach import take_userfaultfd
from wetink_agent.wp_async import WpAsync
from wetink_agent.wp_sync import WpSync
pid = int(sys.argv[1])
tracker = {"WpAsync": WpAsync, "WpSync": WpSync}[sys.argv[2]](pid, take_userfaultfd(pid))
tracker.harvest()
print("armed", flush=True)
time.sleep(60)
"""


def _descriptors(pid: int) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def _waits_for_an_answer(pid: int) -> bool:
    return any(
        "userfault" in (task / "wchan").read_text(encoding="ascii") for task in Path(f"/proc/{pid}/task").iterdir()
    )


@async_only
def test_row_46_an_agent_that_stops_reading(row: Watched) -> None:
    """No backend asks for EVENT_*, for which the target would wait: a stopped agent holds up no fork, zap or unmap."""
    assert not row.tracker.features & EVENTS
    assert not WpSync.features & EVENTS
    with obedient() as target:
        memory = target.map(8)
        with silent_agent(target.pid, "WpAsync"):
            assert target.do(f"fork store {memory} 1") == [0]
            target.advise(memory, 4, MADV_DONTNEED)
            target.call("mremap", memory + 4 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE, 0)
            target.call("munmap", memory, 8 * PAGE)


def test_row_47_a_freeze_while_the_kernel_writes_to_protected_memory(row: Watched) -> None:
    """read(2) into protected pages, again and again: the target stops all the same, since answers need no harvest."""
    memory = row.target.map(64)
    reading = row.target.open(Path("/dev/zero"), os.O_RDONLY)
    row.settle()
    read = command("read", reading, memory, 64 * PAGE)
    for _ in range(10):
        row.target.do("thread " + ";".join([read] * 50))
        row.check()
    # read_iter_zero() gives what it has so far, in whole pages, where the freezer wakes it in the middle of its work.
    whole_pages = range(PAGE, 65 * PAGE, PAGE)
    for number in range(10):
        (size_bytes,) = row.target.do(f"join {number}")
        assert size_bytes in whole_pages
    row.check()
