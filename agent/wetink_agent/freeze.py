"""Hold a process and its descendants still for one piece of work: ptrace, every thread, for milliseconds.

Descendants too, since they may write memory that they share with it, or reach into it. Parents come first: a thread
that waits for its vfork child stops only when that has ended, so the child has to go on.

Nothing is left behind. All tracing is done in a thread of its own, and the kernel detaches from everything a thread
traces when that thread ends, for whatever reason: what was stopped goes on, and a signal that was on its way is
delivered. A process that was stopped by a signal before stays stopped. A thread in ``epoll_wait``, ``semop`` or
``sigtimedwait`` may see EINTR, as signal(7) allows for any stop.

Processes that are no descendants and write through ``process_vm_writev`` or ``/proc/PID/mem``, and devices, go on.

Source: ptrace(2), proc_tid_children(5).
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from wetink import syscalls
from wetink_agent import procfs
from wetink_agent.errors import NoSuchProcess
from wetink_agent.uapi import ptrace as pt

FREEZE_SECONDS_MAX: Final = 0.5
"""How long stopping may take, while what has stopped waits: a thread stops when it next gets a processor."""

_WALL: Final = 0x40000000
_PAUSE_SECONDS_MAX: Final = 1e-3

_Result = TypeVar("_Result")


class NotFrozen(Exception):
    """A thread could not be stopped. The text says which and why; all that were stopped go on."""


def while_frozen(pid: int, work: Callable[[], _Result]) -> _Result:
    """Do some work while no thread of a process or of its descendants runs.

    Raises:
        NotFrozen: It cannot be frozen now; the work was not done.
        NoSuchProcess: It is gone.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="freeze") as tracer:
        return tracer.submit(_work_frozen, pid, work).result()


def _work_frozen(pid: int, work: Callable[[], _Result]) -> _Result:
    still = Still()
    try:
        still.hold(pid, descendants=True)
        return work()
    finally:
        still.let_go()


class Still:
    """The threads that are held, and what each stopped with. Used by one thread alone: it is their tracer."""

    def __init__(self) -> None:
        """Begin with none; they have ``FREEZE_SECONDS_MAX`` from now to stop."""
        self._deadline = time.monotonic() + FREEZE_SECONDS_MAX
        self._statuses: dict[int, int] = {}

    def hold(self, pid: int, *, descendants: bool) -> None:
        """Stop a process, and then its descendants where they are meant too.

        Raises:
            NotFrozen: A thread cannot be stopped. Those that were are held until ``let_go``.
            NoSuchProcess: It is gone.
        """
        # Only its own threads make new ones: what a look finds after all were stopped is all there is.
        while fresh := [tid for tid in procfs.threads(pid) if tid not in self._statuses]:
            seized = [tid for tid in fresh if self._seize(tid)]
            for tid in seized:
                self._wait(tid)
            if not seized:
                break
        for child in _children(pid) if descendants else ():
            try:
                self.hold(child, descendants=True)
            except NoSuchProcess:
                continue

    def let_go(self) -> None:
        """Let all threads go on, each with the signal it was about to be given."""
        for tid, status in self._statuses.items():
            is_signal = status >> 8 == 0  # else the stop is ours, or a signal's that stops the whole process
            try:
                syscalls.ptrace(pt.PTRACE_DETACH, tid, 0, status if is_signal else 0, "PTRACE_DETACH")
            except OSError as error:
                if error.errno != errno.ESRCH:  # it was killed meanwhile
                    raise

    def _seize(self, tid: int) -> bool:
        """Begin to stop a thread; False where it has ended."""
        try:
            syscalls.ptrace(pt.PTRACE_SEIZE, tid, 0, 0, "PTRACE_SEIZE")
            syscalls.ptrace(pt.PTRACE_INTERRUPT, tid, 0, 0, "PTRACE_INTERRUPT")
        except OSError as error:
            if error.errno == errno.ESRCH or _has_ended(tid):
                return False
            message = f"thread {tid} cannot be stopped: {error}"
            raise NotFrozen(message) from error
        return True

    def _wait(self, tid: int) -> None:
        """Wait until a thread has stopped or ended."""
        pause = 0.0
        while True:
            try:
                # WNOWAIT: a report that was taken would take its signal with it if we were killed.
                report = os.waitid(os.P_PID, tid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG | _WALL)
            except ChildProcessError:
                return  # it has ended, and another thread's execve(2) has taken its place
            if report is not None:
                if report.si_code == os.CLD_TRAPPED:
                    self._statuses[tid] = report.si_status
                return
            if time.monotonic() > self._deadline:
                message = f"thread {tid} did not stop within {FREEZE_SECONDS_MAX:g} s"
                raise NotFrozen(message)
            time.sleep(pause)
            pause = min(pause + 20e-6, _PAUSE_SECONDS_MAX)


def _has_ended(tid: int) -> bool:
    try:
        return procfs.stat(tid).is_gone
    except NoSuchProcess:
        return True


def _children(pid: int) -> Iterator[int]:
    """Give the children of a process, without this one: whoever freezes has to run."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            listed = task.read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended, and its children are another thread's
        yield from (child for child in map(int, listed) if child != os.getpid())
