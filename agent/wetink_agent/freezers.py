"""The ways to freeze processes until somebody lets them go on, and which of them is taken. Used by the guard alone.

In this order, each where it is possible:

1. the freezer of a process's cgroup, version 2 and then version 1, where the cgroup holds nobody but those who are to
   be frozen, or it was said that it may; never one that holds the agent.
2. ptrace: the kernel lets go by itself when the guard dies, whatever else does.
3. SIGSTOP, where somebody else traces the process, or the agent may not.

What somebody else has frozen already is left to them. Children of a process that is frozen by itself go on.
"""

import errno
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from wetink_agent import procfs
from wetink_agent.cgroups import Freezer, hierarchies
from wetink_agent.errors import NoSuchProcess
from wetink_agent.freeze import FREEZE_SECONDS_MAX, NotFrozen, Still

Process = tuple[int, int]
"""Pid and start time."""

MARK: Final = "user.wetink.frozen_by"
"""The extended attribute of a cgroup's directory that names the guard that has frozen it."""

_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_PAUSE_SECONDS: Final = 0.0005


class NotPossible(Exception):
    """This way cannot be taken for this process; another may. The text says why."""


class Way(Protocol):
    """One way to keep something from running.

    Attributes:
        method: Its name in ``FreezeMethod``, without the prefix.
        what: What it keeps from running: a cgroup's directory, or a process as pid and start time.
    """

    method: str
    what: str

    def freeze(self) -> None:
        """Freeze, and wait until nothing of it runs.

        Raises:
            NotPossible: This way cannot be taken.
            NotFrozen: It did not stop in time; it runs.
            NoSuchProcess: It is gone.
        """

    def thaw(self) -> None:
        """Let it go on. What is gone needs nothing."""


class FoundFrozen:
    """Somebody else has frozen it, and lets it go on when they want."""

    method = "FOUND_FROZEN"

    def __init__(self, process: Process) -> None:
        """Take a process that is frozen."""
        self.what = _text(process)

    def freeze(self) -> None:
        """Do nothing; see ``Way``."""

    def thaw(self) -> None:
        """Do nothing; see ``Way``."""


class Cgroup:
    """A whole cgroup, with everything below it."""

    def __init__(self, freezer: Freezer) -> None:
        """Take its freezer."""
        self.method = f"CGROUP_V{freezer.version}"
        self.what = str(freezer.directory)
        self._freezer = freezer

    def freeze(self) -> None:
        """Freeze it; see ``Way``."""
        try:
            # Marked first: if all of us die at once, the next agent finds it by that.
            with suppress(OSError):
                os.setxattr(self._freezer.directory, MARK, _own_name().encode())
            self._freezer.ask(frozen=True)
        except OSError as error:
            self._unmark()
            message = f"cgroup {self.what} cannot be frozen: {error.strerror}"
            raise NotPossible(message) from error
        until = time.monotonic() + FREEZE_SECONDS_MAX
        while not self._freezer.is_frozen():
            if time.monotonic() > until:
                self.thaw()
                message = f"cgroup {self.what} did not freeze within {FREEZE_SECONDS_MAX:g} s"
                raise NotFrozen(message)
            time.sleep(_PAUSE_SECONDS)

    def thaw(self) -> None:
        """Let it go on; see ``Way``."""
        with suppress(FileNotFoundError):
            self._freezer.ask(frozen=False)
        self._unmark()

    def _unmark(self) -> None:
        with suppress(OSError):
            os.removexattr(self._freezer.directory, MARK)


class Traced:
    """Every thread of one process, by ptrace."""

    method = "PTRACE"

    def __init__(self, process: Process) -> None:
        """Take a process."""
        self.what = _text(process)
        self._process = process
        self._still = Still()

    def freeze(self) -> None:
        """Hold it; see ``Way``."""
        try:
            self._still.hold(self._process[0], descendants=False)
            _check_started(self._process)
        except BaseException as error:
            self.thaw()
            if isinstance(error, NotFrozen) and isinstance(error.__cause__, OSError):
                raise NotPossible(str(error)) from error
            raise

    def thaw(self) -> None:
        """Let it go on; see ``Way``."""
        self._still.let_go()


class Signalled:
    """One process, by SIGSTOP."""

    method = "SIGNAL"

    def __init__(self, process: Process) -> None:
        """Take a process."""
        self.what = _text(process)
        self._process = process

    def freeze(self) -> None:
        """Stop it; see ``Way``."""
        try:
            _signal(self._process, signal.SIGSTOP)
        except PermissionError as error:
            message = f"process {self._process[0]} cannot be stopped: {error.strerror}"
            raise NotPossible(message) from error
        until = time.monotonic() + FREEZE_SECONDS_MAX
        while not procfs.is_frozen(self._process[0]):
            _check_started(self._process)
            if time.monotonic() > until:
                self.thaw()
                message = f"process {self._process[0]} did not stop within {FREEZE_SECONDS_MAX:g} s"
                raise NotFrozen(message)
            time.sleep(_PAUSE_SECONDS)

    def thaw(self) -> None:
        """Let it go on; see ``Way``."""
        with suppress(NoSuchProcess):
            _signal(self._process, signal.SIGCONT)


def ways(process: Process, others: Collection[Process], *, whole_cgroups: bool) -> Iterator[Way]:
    """Give the ways to freeze a process, the best first.

    Args:
        process: The process.
        others: All that are to be frozen, this one too.
        whole_cgroups: Whether a cgroup may be frozen that holds others than those.

    Raises:
        NoSuchProcess: It is gone.
    """
    _check_started(process)
    if procfs.is_frozen(process[0]):
        yield FoundFrozen(process)
        return
    pids = {pid for pid, _ in others}
    for freezer in procfs.freezers(process[0]):
        with suppress(OSError):
            inside = freezer.processes()
            if (whole_cgroups or inside <= pids) and not inside & _ourselves():
                yield Cgroup(freezer)
    yield Traced(process)
    yield Signalled(process)


@cache
def _ourselves() -> frozenset[int]:
    """Give this process and all that it descends from: worker, keeper, and what started them."""
    pids = [os.getpid()]
    while pids[-1] > 1:
        pids.append(procfs.stat(pids[-1]).parent_pid)
    return frozenset(pids)


def thaw(method: str, what: str) -> None:
    """Let go what a guard that died had frozen; the kernel has let go what it traced."""
    if method == Signalled.method:
        pid, start = what.split("@")
        Signalled((int(pid), int(start))).thaw()
    elif method in {"CGROUP_V1", "CGROUP_V2"}:
        Cgroup(Freezer(int(method[-1]), Path(what))).thaw()


def thaw_left_behind() -> list[str]:
    """Let go every cgroup that a guard of this pid namespace had frozen which is dead; give their directories."""
    thawed = []
    for version, _, mounted_at in hierarchies():
        for directory, _, _ in os.walk(mounted_at):
            try:
                mark = os.getxattr(directory, MARK).decode(errors="replace")
            except OSError:
                continue  # not marked, or gone
            if _is_dead(mark):
                Cgroup(Freezer(version, Path(directory))).thaw()
                thawed.append(directory)
    return thawed


def _own_name() -> str:
    """Name this process for whoever may come after it: pid namespace, pid and start time."""
    return f"{_PID_NAMESPACE.readlink()} {os.getpid()} {procfs.stat(os.getpid()).start_time_ticks}"


def _is_dead(name: str) -> bool:
    """Whether a process of this pid namespace is gone. Of another one nobody can say."""
    namespace, pid, start = name.rsplit(" ", 2)
    if namespace != str(_PID_NAMESPACE.readlink()):
        return False
    try:
        found = procfs.stat(int(pid))
    except NoSuchProcess:
        return True
    # One that was killed is there until its parent has taken note.
    return found.is_gone or found.start_time_ticks != int(start)


def _check_started(process: Process) -> None:
    pid, start = process
    if procfs.stat(pid).start_time_ticks != start or procfs.stat(pid).is_gone:
        message = f"there is no process {pid} that started at tick {start}: it has exited"
        raise NoSuchProcess(message)


def _signal(process: Process, number: int) -> None:
    """Send a signal to a process and to no later one of its pid.

    Raises:
        NoSuchProcess: It is gone.
        PermissionError: Not permitted.
    """
    try:
        pidfd = os.pidfd_open(process[0])
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
        message = f"there is no process {process[0]}: it has exited"
        raise NoSuchProcess(message) from error
    try:
        _check_started(process)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _text(process: Process) -> str:
    return f"{process[0]}@{process[1]}"
