"""Take a userfaultfd over the memory of an unmodified running process: ptrace, one borrowed thread, pidfd_getfd.

One thread is stopped for about a millisecond. It is made to call ``userfaultfd`` and ``close``; the agent takes the
descriptor in between and holds the only copy. Everything else about the thread is put back, with the kernel's own
restart of an interrupted system call.

**The borrowed thread does not need us to come back.** A tracer can be killed at any instruction, and then the thread
runs on with whatever registers it has. So what it is given to run is not a lone ``syscall`` instruction but a stub
which, left alone, closes the descriptor, restores the signal mask and every register it used, and jumps to where the
thread was. The stub lies in unused bytes at the end of the thread's vdso: executable, private, in every process, and
no stack is touched (a goroutine's has no room to spare). A living tracer takes the same path in steps, and in the end
puts back what it found itself.

Signals are blocked on the way, so that no handler ever sees the thread inside the stub; those that come stay pending
and are delivered afterwards with all they carry.

What depends on the processor is in ``machine``.

Source: ptrace(2), pidfd_getfd(2), vdso(7).
"""

import contextlib
import errno
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Self, TypeVar

import numpy as np

from wetink import syscalls
from wetink_agent import machine, procfs
from wetink_agent.errors import NoSuchProcess, NotPermitted, TargetReplaced, TrackingError, Untrackable
from wetink_agent.machine import SIGSET_SIZE_BYTES, Registers
from wetink_agent.uapi import ptrace as pt
from wetink_agent.uapi.userfaultfd import UFFD_USER_MODE_ONLY

ATTEMPTS_MAX: Final = 6
"""How often a process is attached that calls execve(2) meanwhile, or ends the thread that was borrowed."""

ATTEMPT_SECONDS: Final = 1e-3
"""How much longer each pause between attempts is: an execve(2) under way takes about as long."""

LOOKS_MAX: Final = 3
"""Looks at a process that seems to have ended while it was attached."""

LOOK_SECONDS: Final = 0.02
"""How often it is looked whether a thread that does not stop is still ours."""

STOP_SECONDS_MAX: Final = 5.0
"""How long a thread may take to stop: one that sleeps uninterruptibly for longer is left alone."""

ROOM_COUNT_MAX: Final = 8
"""Places for a stub that are looked at: each but the first holds one of an agent that was killed."""

STACK_BYTES_LOOKED_AT: Final = 256 << 10
"""How far above the stack pointer an interrupted stub is looked for: deeper than signal handlers go."""

_DISPATCH_CONFIG_SIZE_BYTES: Final = 32  # struct ptrace_sud_config
_WORD_SIZE_BYTES: Final = 8
_WALL: Final = 0x40000000
_GONE: Final = frozenset({errno.ESRCH, errno.ENOENT, errno.EIO, errno.ECHILD})

_Result = TypeVar("_Result")


def take_userfaultfd(pid: int, *, seccomp_allows: bool = False) -> int:
    """Give a new userfaultfd over the memory of a process, of which no copy is left in the process.

    Full mode where the process may have it, else UFFD_USER_MODE_ONLY: with WP_ASYNC both see the kernel's writes too.

    Args:
        pid: A process in this pid namespace.
        seccomp_allows: Somebody says that a seccomp filter of the process lets userfaultfd, rt_sigprocmask and close
            through, or refuses them with an error: where it cannot be suspended it is then left in force.

    Raises:
        NoSuchProcess: It is not there, or exits meanwhile.
        NotPermitted: The kernel forbids it, also to suspend its seccomp filter.
        TargetReplaced: It calls execve(2) again and again.
        Untrackable: It is a kernel thread, is traced by somebody else, is frozen, is no 64-bit process, or no thread of
            it stops in time.
    """
    reasons: list[TrackingError] = []
    while len(reasons) < ATTEMPTS_MAX:
        try:
            # A thread of its own: when it ends, for whatever reason, the kernel detaches from everything it traces.
            return _in_own_thread(lambda: _take(pid, seccomp_allows=seccomp_allows))
        except _Slipped as slipped:
            reasons.append(slipped.reason)
            _await_release(pid)
            time.sleep(ATTEMPT_SECONDS * len(reasons))
    # Not permitted is what it was if it was so each time.
    raise next((reason for reason in reasons if isinstance(reason, TargetReplaced)), reasons[-1])


def _await_release(pid: int) -> None:
    """Wait until none of our threads traces a process any more: the kernel detaches when the thread's end is over."""
    until = time.monotonic() + STOP_SECONDS_MAX
    with contextlib.suppress(NoSuchProcess):
        while procfs.tracer_of(pid) in procfs.threads(os.getpid()) and time.monotonic() < until:
            time.sleep(1e-3)


class _Slipped(Exception):
    """The thread that was borrowed has ended, or the memory it was to be attached in; the process has not.

    ``reason`` is what to tell when it is so every time.
    """

    def __init__(self, pid: int, reason: TrackingError | None = None) -> None:
        super().__init__()
        message = f"process {pid} called execve(2) or ended threads each of {ATTEMPTS_MAX} times that it was attached"
        self.reason = reason or TargetReplaced(message)


def _in_own_thread(work: Callable[[], _Result]) -> _Result:
    results: list[_Result] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread, whatever it is
            errors.append(error)

    thread = threading.Thread(target=body, name="attach")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _take(pid: int, *, seccomp_allows: bool) -> int:
    _refuse_the_unfit(pid)
    start_time_ticks = procfs.stat(pid).start_time_ticks
    try:
        return _borrow(pid, procfs.living_thread(pid), seccomp_allows=seccomp_allows)
    except (OSError, NoSuchProcess) as error:
        number = errno.ESRCH if isinstance(error, NoSuchProcess) else error.errno
        if number in _GONE and _lives(pid, start_time_ticks):
            raise _Slipped(pid) from error
        if isinstance(error, NoSuchProcess):
            raise
        explained = _explain(error, pid)
        if number == errno.EPERM and isinstance(explained, NotPermitted):
            # So it is as well while another thread of it is in execve(2) and has ended the first.
            raise _Slipped(pid, explained) from error
        raise explained from error


def _borrow(pid: int, tid: int, *, seccomp_allows: bool) -> int:
    suspend_seccomp = procfs.has_seccomp(pid, tid)
    # Strict mode kills for whatever is not read, write or exit, whoever says otherwise.
    seccomp_allows = seccomp_allows and not procfs.has_strict_seccomp(pid, tid)
    uffd = -1

    def take(number: int) -> int:
        nonlocal uffd
        uffd = syscalls.pidfd_getfd(pidfd, number)
        return uffd

    # Of a leader that has exited the descriptors are gone: then of the thread (PIDFD_THREAD, Linux 6.9).
    pidfd = os.pidfd_open(tid, 0 if tid == pid else os.O_EXCL)
    try:
        with _Borrowed(pid, tid, suspend_seccomp=suspend_seccomp, seccomp_allows=seccomp_allows) as thread:
            return thread.make_userfaultfd(take)
    except BaseException:
        # It may have died after we had taken it.
        if uffd >= 0:
            os.close(uffd)
        raise
    finally:
        os.close(pidfd)


def _lives(pid: int, start_time_ticks: int) -> bool:
    """Whether a process is the one that started then, and has a thread that has not ended."""
    for _ in range(LOOKS_MAX):
        try:
            return procfs.stat(pid).start_time_ticks == start_time_ticks and procfs.living_thread(pid) > 0
        except NoSuchProcess:
            # For a moment of an execve(2) by another thread than the first, none of its threads seems to live.
            time.sleep(ATTEMPT_SECONDS)
    return False


def _refuse_the_unfit(pid: int) -> None:
    if pid == os.getpid():
        message = f"process {pid} is this agent, which cannot borrow a thread of its own"
        raise Untrackable(message)
    if procfs.stat(pid).is_kernel_thread:
        message = f"process {pid} is a kernel thread and has no memory of its own to track"
        raise Untrackable(message)
    tracer = procfs.tracer_of(pid)
    # One of our own threads has it where an attempt is being explained.
    if tracer and tracer not in procfs.threads(os.getpid()):
        message = f"process {pid} is already traced by process {tracer}: detach that (a debugger, strace) and try again"
        raise Untrackable(message)
    if procfs.is_cgroup_frozen(pid):
        message = f"process {pid} is frozen by its cgroup, so that no thread can be borrowed: thaw it and try again"
        raise Untrackable(message)


def _explain(error: OSError, pid: int) -> TrackingError:
    match error.errno:
        case errno.ESRCH | errno.ENOENT:
            return NoSuchProcess(f"there is no process {pid}: it has exited, or the pid is wrong")
        case errno.EPERM | errno.EACCES:
            try:
                # One that has just exited, or has a tracer since we looked, gives EPERM too.
                _refuse_the_unfit(pid)
                procfs.living_thread(pid)
            except TrackingError as found:
                return found
            if procfs.user_of(pid) == os.geteuid():
                return NotPermitted(
                    f"not permitted to attach to process {pid} of the agent's own user ({error.strerror}): it has more "
                    "rights, or has set PR_SET_DUMPABLE to 0, or Yama's ptrace_scope forbids it; run the agent with "
                    "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
                )
            return NotPermitted(
                f"not permitted to attach to process {pid} ({error.strerror}): "
                "run the agent as its user, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
            )
        case _:
            return Untrackable(f"cannot attach to process {pid}: {error.strerror}")


class _Borrowed:
    """One thread of the target, seized. Use as a context manager; leaving it detaches."""

    def __init__(self, pid: int, tid: int, *, suspend_seccomp: bool, seccomp_allows: bool) -> None:
        """Seize the thread and stop it."""
        self._pid = pid
        self._tid = tid
        self._suspend_seccomp = suspend_seccomp
        self._seccomp_allows = seccomp_allows
        self._is_filtered = False
        self._memory = -1
        self._vdso = (0, 0)
        self._room = 0
        self._machine = machine.here()

    def __enter__(self) -> Self:
        """Seize the thread and stop it."""
        options = pt.PTRACE_O_TRACESYSGOOD | (pt.PTRACE_O_SUSPEND_SECCOMP if self._suspend_seccomp else 0)
        try:
            self._ptrace(pt.PTRACE_SEIZE, options, "PTRACE_SEIZE")
        except OSError as error:
            if not self._suspend_seccomp or error.errno not in {errno.EPERM, errno.EINVAL}:
                raise
            # Seized alone, nothing happens to it; where that is not permitted either, it is not about the filter. The
            # end of this thread of ours lets go again.
            self._ptrace(pt.PTRACE_SEIZE, pt.PTRACE_O_TRACESYSGOOD, "PTRACE_SEIZE")
            if not self._seccomp_allows:
                message = (
                    f"process {self._pid} has a seccomp filter that might kill it for a foreign system call: give the "
                    "agent CAP_SYS_ADMIN and no seccomp filter of its own, so that it can suspend the filter, say "
                    "--seccomp-allows if the filter allows userfaultfd, or let the process use the handshake"
                )
                raise NotPermitted(message) from error
            self._is_filtered = True
        try:
            # While the target still runs: only what must be done in the stop is done in the stop.
            # For reading alone: to open it for writing takes CAP_DAC_OVERRIDE where it is another user's.
            layout = procfs.layout(self._pid)
            self._memory = os.open(f"/proc/{self._pid}/task/{self._tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            self._vdso = procfs.vdso_range(self._pid)
            self._ptrace(pt.PTRACE_INTERRUPT, 0, "PTRACE_INTERRUPT")
            self._await_interruption()
            self._check_layout(layout)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Let the thread go on."""
        try:
            self._ptrace(pt.PTRACE_DETACH, 0, "PTRACE_DETACH")
        except OSError as error:
            # It died while it was borrowed, or never stopped; then the end of this thread of ours detaches.
            if error.errno != errno.ESRCH:
                raise
        finally:
            self._close()

    def make_userfaultfd(self, take: Callable[[int], int]) -> int:
        """Make the stopped thread open a userfaultfd, take it, and make the thread close its own copy.

        Args:
            take: Gives our copy of the target's descriptor.
        """
        own, mask = self._own_registers(), self._signal_mask()
        if self._machine.is_interrupted_for_good(own) and not procfs.has_deliverable_signal(self._pid, self._tid):
            # Some calls give EINTR for a mere stop. It was ours: let the thread call again.
            self._machine.call_again(own)
        if self._dispatches_system_calls():
            message = f"process {self._pid} dispatches system calls itself, as Wine does: let it use the handshake"
            raise Untrackable(message)
        self._room = self._find_room(own)
        self._write(_stub_words(self._machine.stub(own, mask, self._read_registers)))
        try:
            # In this order: from the moment the mask is ours, the stub is what the thread runs, and it restores it.
            self._lend(own, os.O_CLOEXEC | os.O_NONBLOCK)
            self._set_signal_mask(b"\xff" * SIGSET_SIZE_BYTES)
            number = self._finish_call()
            if number == -errno.EPERM:
                self._lend(own, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)
                number = self._finish_call()
            if number == -errno.EPERM and self._is_filtered:
                message = (
                    f"process {self._pid} has a seccomp filter that does not allow userfaultfd: run it with one that "
                    "does, or give the agent CAP_SYS_ADMIN and no seccomp filter of its own"
                )
                raise NotPermitted(message)
            if number < 0:
                raise OSError(-number, f"{os.strerror(-number)} (userfaultfd)")
            try:
                return take(number)
            finally:
                self._finish_call()  # the stub's own close
        finally:
            self._give_back(own, mask)

    def _check_layout(self, layout: tuple[int, ...]) -> None:
        """Make sure that what we know of its memory is not of the one that it had before execve(2)."""
        if procfs.layout(self._pid) != layout:
            raise _Slipped(self._pid)

    def _dispatches_system_calls(self) -> bool:
        """Whether syscall user dispatch is on: a call of ours would become a SIGSYS."""
        config = bytes(_DISPATCH_CONFIG_SIZE_BYTES)
        try:
            config = syscalls.ptrace_buffer(
                pt.PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, self._tid, len(config), config, "PTRACE_GET_..._CONFIG"
            )
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EIO}:
                return False  # older than Linux 6.4
            raise
        return any(config[:8])

    def _find_room(self, own: Registers) -> int:
        """Find room for the stub behind the image of the vdso; its address.

        An agent that was killed while it attached leaves its stub. The thread has run through it, unless it had no
        time yet, or a signal handler interrupted it there and will return to it: then the stack has its address, and
        other room is used. A stub may lead back to another one, of an agent that was killed before, and to which
        nothing else points: so while the thread is in any of them, none of them is written over.
        """
        start, end = self._vdso
        if not end:
            message = f"process {self._pid} has unmapped its vdso, where attaching needs room: let it use the handshake"
            raise Untrackable(message)
        room_count = min(ROOM_COUNT_MAX, (end - start) // self._machine.stub_size_bytes)
        first = end - room_count * self._machine.stub_size_bytes
        rooms = os.pread(self._memory, end - first, first)
        if len(rooms) < end - first:
            raise _Slipped(self._pid)  # without address randomisation, execve(2) gives the same addresses
        is_in_one = self._returns_to(first, end, own)
        for index in reversed(range(room_count)):
            address = first + index * self._machine.stub_size_bytes
            found = rooms[index * self._machine.stub_size_bytes :][: self._machine.stub_size_bytes]
            if not found.strip(b"\0"):
                return address
            # Of an agent that was killed while it wrote the stub, or took it away, only the beginning may be there.
            if not found.startswith(self._machine.stub_head) and not self._machine.stub_head.startswith(
                found.rstrip(b"\0")
            ):
                break
            if not is_in_one:
                return address
        if is_in_one:
            message = (
                f"process {self._pid} has not run since {room_count} agents were killed that were attaching to it, or "
                "is in a signal handler since then: try again later"
            )
            raise Untrackable(message)
        message = (
            f"process {self._pid} has a vdso with no {self._machine.stub_size_bytes} bytes of room for what attaching "
            "needs: let it use the handshake"
        )
        raise Untrackable(message)

    def _returns_to(self, start: int, end: int, own: Registers) -> bool:
        """Tell whether the thread is there or may return there; taken to be so where the stack merely looks so."""
        instruction, top = self._machine.places(own)
        stack = _read_up_to(self._memory, top & -8, STACK_BYTES_LOOKED_AT)
        words = np.frombuffer(stack[: len(stack) & -8], dtype=np.uint64)
        return bool(((words >= start) & (words < end)).any()) or start <= instruction < end

    def _write(self, words: Iterable[tuple[int, int]]) -> None:
        """Write words of the stub: each an offset and what goes there.

        The caller goes upwards to write and downwards to take away, so that what is there is at any time the beginning
        of a stub, which ``_find_room`` knows again.
        """
        for offset, word in words:
            syscalls.ptrace(pt.PTRACE_POKEDATA, self._tid, self._room + offset, word, "PTRACE_POKEDATA")

    def _lend(self, own: Registers, flags: int) -> None:
        self._set_registers(self._machine.lent(own, room=self._room, flags=flags))

    def _finish_call(self) -> int:
        """Run through the next system call of the stub; what it gave, where a negative number is an errno."""
        self._run_to_syscall_stop()
        self._run_to_syscall_stop()
        registers = self._machine.blank()
        self._read_registers(pt.NT_PRSTATUS, registers)
        return self._machine.result(registers)

    def _give_back(self, own: Registers, mask: bytes) -> None:
        try:
            # The kernel restarts an interrupted call only on its way out of a signal stop, so go through one.
            self._ptrace(pt.PTRACE_INTERRUPT, 0, "PTRACE_INTERRUPT")
            self._ptrace(pt.PTRACE_CONT, 0, "PTRACE_CONT")
            self._await_interruption()
            # In this order: while the mask is not yet the thread's own, the stub is what it would run.
            self._set_signal_mask(mask)
            self._set_registers(own)
            self._write(reversed(_stub_words(bytes(self._machine.stub_size_bytes))))
        except OSError as error:
            # It was killed while it was borrowed: nothing is left to be put back.
            if error.errno not in {errno.ESRCH, errno.EIO}:
                raise

    def _await_interruption(self) -> None:
        """Wait for the stop that PTRACE_INTERRUPT asked for; other stops are passed by.

        The kernel forgets the request where the thread was just about to stop for a signal ("any trap clears pending
        STOP trap", ptrace_stop in kernel/signal.c), so it is made again at each of those: it then comes before the
        next signal.
        """
        while not _is_event_stop(status := self._wait()):
            self._ptrace(pt.PTRACE_INTERRUPT, 0, "PTRACE_INTERRUPT")
            self._ptrace(pt.PTRACE_CONT, 0 if _is_syscall_stop(status) else status, "PTRACE_CONT")

    def _run_to_syscall_stop(self) -> None:
        """Resume until the thread enters or leaves a system call; other stops are passed by.

        Those are group stops, which go on when we detach, and the delivery of signals that cannot be blocked.
        """
        self._ptrace(pt.PTRACE_SYSCALL, 0, "PTRACE_SYSCALL")
        while not _is_syscall_stop(status := self._wait()):
            self._ptrace(pt.PTRACE_SYSCALL, 0 if _is_event_stop(status) else status, "PTRACE_SYSCALL")

    def _wait(self) -> int:
        """Wait until the thread stops; the signal it stopped with, and above that the event."""
        deadline = time.monotonic() + STOP_SECONDS_MAX
        look = time.monotonic() + LOOK_SECONDS
        pause = 0.0
        while True:
            # WNOWAIT: a report that was taken and not yet answered would take its signal with it if we were killed.
            report = os.waitid(os.P_PID, self._tid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG | _WALL)
            if report is not None:
                if report.si_code == os.CLD_TRAPPED:
                    return report.si_status
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            if time.monotonic() > deadline:
                state = procfs.thread_state(self._pid, self._tid)
                reason = "it sleeps uninterruptibly (state D)" if state == "D" else "it got no processor time"
                if procfs.is_cgroup_frozen(self._pid):
                    reason = "its cgroup is frozen"
                message = (
                    f"thread {self._tid} of process {self._pid} did not stop within {STOP_SECONDS_MAX:g} s: {reason}; "
                    "try again later"
                )
                raise Untrackable(message)
            if time.monotonic() > look:
                # execve(2) of another thread ends the one that was seized and takes its id, and tells no tracer.
                if procfs.tracer_of(self._pid, self._tid) != threading.get_native_id():
                    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
                look = time.monotonic() + LOOK_SECONDS
            # A stop comes within microseconds on an idle core; a target that shares ours needs us to sleep.
            time.sleep(pause)
            pause = min(pause + 20e-6, 1e-3)

    def _own_registers(self) -> Registers:
        registers: Registers = self._machine.blank()
        why = self._machine.why_not(registers, self._read_registers(pt.NT_PRSTATUS, registers))
        if why is not None:
            message = f"process {self._pid} {why}"
            raise Untrackable(message)
        return registers

    def _read_registers(self, note: int, registers: Registers) -> int:
        return syscalls.ptrace_regset(pt.PTRACE_GETREGSET, self._tid, note, registers, "PTRACE_GETREGSET")

    def _set_registers(self, registers: Registers) -> None:
        syscalls.ptrace_regset(pt.PTRACE_SETREGSET, self._tid, pt.NT_PRSTATUS, registers, "PTRACE_SETREGSET")

    def _signal_mask(self) -> bytes:
        return syscalls.ptrace_buffer(
            pt.PTRACE_GETSIGMASK, self._tid, SIGSET_SIZE_BYTES, bytes(SIGSET_SIZE_BYTES), "PTRACE_GETSIGMASK"
        )

    def _set_signal_mask(self, mask: bytes) -> None:
        syscalls.ptrace_buffer(pt.PTRACE_SETSIGMASK, self._tid, SIGSET_SIZE_BYTES, mask, "PTRACE_SETSIGMASK")

    def _ptrace(self, request: int, data: int, name: str) -> None:
        syscalls.ptrace(request, self._tid, 0, data, name)

    def _close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


def _is_event_stop(status: int) -> bool:
    return status >> 8 == pt.PTRACE_EVENT_STOP


def _is_syscall_stop(status: int) -> bool:
    return status == signal.SIGTRAP | 0x80


def _stub_words(code: bytes) -> list[tuple[int, int]]:
    """Cut what lies in a room into what PTRACE_POKEDATA takes, with its offset."""
    return [(index * _WORD_SIZE_BYTES, word) for index, (word,) in enumerate(struct.iter_unpack("=Q", code))]


def _read_up_to(memory: int, address: int, size_bytes: int) -> bytes:
    """Read as much as is mapped."""
    try:
        return os.pread(memory, size_bytes, address)
    except OSError:
        return b""
