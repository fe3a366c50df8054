"""The keeper: a small parent process that holds descriptors, so that the worker may end and another one go on.

A userfaultfd lives as long as somebody has its descriptor. The worker, which does all the work, hands over what the
next one needs; whatever ends it, the keeper starts another and gives it everything back. What it holds it does not
look at: descriptors by name, and no other state. Where systemd lends a descriptor store, the same goes there, and
outlives the keeper too. When keeper and worker end and nobody else has a copy, the kernel unregisters everything.

It is run as a script of its own, ``python -I -S keeper.py COMMAND...``, and imports nothing but the standard library:
a fresh and small process that hardly ever changes, while what it starts may be another version each time.

The worker finds its end of a socket in ``WETINK_AGENT_KEEPER``. Messages, one a datagram:

======================  ===================================================================================
``held NAME``           to the worker, with the descriptor; all of them first
``begin COUNT WHY``     to the worker: that was all. Its number from 1, and how the one before it ended
``hold NAME``           from the worker, with the descriptor; one of the same name is replaced
``drop NAME``           from the worker: it is not needed any more
``here``                from the worker: it has taken them
``ready``               from the worker: it has gone on with everything
``leave``               from the worker: its end is meant, and so is the keeper's
``again``               from the worker: its end is meant, and the next one goes on at once
======================  ===================================================================================

Source: unix(7), SCM_RIGHTS; sd_pid_notify_with_fds(3) and sd_listen_fds_with_names(3) for the store's protocol.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque

SOCKET_VARIABLE = "WETINK_AGENT_KEEPER"

HELD_MAX = 16384
"""Descriptors held: two for each of twice as many targets as one selection can mean. More are not kept."""

PAUSE_SECONDS_FIRST = 0.1
PAUSE_SECONDS_MAX = 5.0
"""Between the end of a worker and the start of the next: doubles from the first of these to the second."""

STEADY_SECONDS = 10.0
"""A worker that has lived so long takes the pause back to the first."""

LEAVE_SECONDS_MAX = 15.0
"""How long a worker may take to leave for the next one. What it has not done by then, the next one does."""

STORE_RETRY_SECONDS = 0.1
"""After how long systemd is asked again that had no room for a message."""

_MESSAGE_BYTES_MAX = 512
_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)
_SYSTEMD_VARIABLES = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "FDSTORE")


class Store:
    """systemd's descriptor store, where this service has one: what is put there comes back at the next start."""

    def __init__(self, address: str) -> None:
        """Use the socket that systemd named, if it named one."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._waiting: deque[tuple[str, int]] = deque(maxlen=4 * HELD_MAX)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def put(self, name: str, fd: int) -> None:
        """Put a copy of a descriptor there, now or as soon as systemd takes it."""
        # Not polled: one with an error would be thrown out, and what is to be thrown out is said here.
        self._add(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd)

    def remove(self, name: str) -> None:
        """Take out what has this name."""
        self._add(f"FDSTOREREMOVE=1\nFDNAME={name}", -1)

    def _add(self, message: str, fd: int) -> None:
        if not self._address:
            return
        try:
            # A copy of its own: it may have been dropped before systemd takes it.
            self._waiting.append((message, os.dup(fd) if fd >= 0 else -1))
        except OSError as error:
            tell("descriptor_store_unreachable", why=str(error))
        self.send()

    def send(self) -> bool:
        """Send what waits, in its order, as far as it goes without waiting; whether all has gone."""
        while self._waiting:
            message, fd = self._waiting[0]
            try:
                # Not socket.send_fds, which leaves out the address.
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder, signed=True))
                self._socket.sendmsg([message.encode()], [rights] if fd >= 0 else [], 0, self._address)
            except BlockingIOError:
                return False
            except OSError as error:
                tell("descriptor_store_unreachable", why=str(error))
            self._waiting.popleft()
            if fd >= 0:
                os.close(fd)
        return True


class Keeper:
    """Holds descriptors by name, and keeps one worker running."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        """Prepare.

        Args:
            command: Starts a worker.
            environment: Of this process, with what systemd may have said in it.
        """
        self._command = command
        self._environment = {name: value for name, value in environment.items() if name not in _SYSTEMD_VARIABLES}
        self._store = Store(environment.get("NOTIFY_SOCKET", ""))
        self._held: dict[str, int] = _listen_fds(environment)
        self._ends_at_hangup = _has_terminal()
        self._poll = select.poll()
        self._pid = 0
        self._socket: socket.socket | None = None
        self._unsent: list[str] = []
        self._count = 0
        self._why = "-"
        self._said = ""
        self._has_been_ready = False
        self._is_stopping = False
        self._started_at = 0.0
        self._pause = PAUSE_SECONDS_FIRST
        self._start_at: float | None = 0.0
        self._leave_by: float | None = None

    def run(self) -> int:
        """Keep a worker running until one ends that was meant to; the exit code is its own."""
        wake, wake_sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        signal.set_wakeup_fd(wake_sender.fileno(), warn_on_full_buffer=False)
        for heard in (signal.SIGCHLD, signal.SIGHUP, *_PASSED_ON):
            signal.signal(heard, lambda *_: None)
        self._poll.register(wake, select.POLLIN)
        while True:
            self._start_if_due()
            self._kill_if_due()
            has_stored = self._store.send()
            for fd, events in self._poll.poll(self._wait_ms(has_stored=has_stored)):
                if fd == wake.fileno():
                    with contextlib.suppress(BlockingIOError):
                        for number in wake.recv(4096):
                            self._on_signal(number)
                elif self._socket is not None and fd == self._socket.fileno():
                    self._on_socket(self._socket, events)
            code = self._reap()
            if code is not None:
                return code
            if self._is_stopping and not self._pid:
                return 0

    def _start_if_due(self) -> None:
        if self._start_at is None or time.monotonic() < self._start_at:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        theirs.set_inheritable(True)
        environment = {**self._environment, SOCKET_VARIABLE: str(theirs.fileno())}
        self._start_at = None
        self._started_at, self._said = time.monotonic(), ""
        self._count += 1
        try:
            self._pid = os.posix_spawn(
                self._command[0],
                self._command,
                environment,
                setsigmask=(),
                setsigdef=(signal.SIGCHLD, signal.SIGHUP, *_PASSED_ON),
            )
        except OSError as error:
            ours.close()
            self._again_after_a_pause(f"not-started:{error.strerror}")
        else:
            self._socket = ours
            self._unsent = list(self._held)
            self._poll.register(ours, select.POLLIN | select.POLLOUT)
        finally:
            theirs.close()

    def _kill_if_due(self) -> None:
        if self._leave_by is not None and time.monotonic() >= self._leave_by:
            self._leave_by = None
            self._signal(signal.SIGKILL)

    def _wait_ms(self, *, has_stored: bool) -> int | None:
        times = [at for at in (self._start_at, self._leave_by) if at is not None]
        if not has_stored:
            times.append(time.monotonic() + STORE_RETRY_SECONDS)
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and not self._ends_at_hangup:
            # One that is not ready is as new as the next one would be.
            if self._said == "ready":
                self._leave_by = time.monotonic() + LEAVE_SECONDS_MAX
                self._signal(signal.SIGHUP)
        elif number != signal.SIGCHLD:
            self._is_stopping = True
            self._signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def _signal(self, number: int) -> None:
        if self._pid:
            # It is ours until it is reaped: the pid is no other's.
            os.kill(self._pid, number)

    def _on_socket(self, worker: socket.socket, events: int) -> None:
        if events & select.POLLOUT:
            self._give_back(worker)
        if events & ~select.POLLOUT and not self._take(worker):
            self._poll.unregister(worker)

    def _give_back(self, worker: socket.socket) -> None:
        """Send what is held, as far as it goes without waiting, and that it was all."""
        try:
            while self._unsent:
                fd = self._held.get(self._unsent[-1])
                if fd is not None:
                    socket.send_fds(worker, [f"held {self._unsent[-1]}".encode()], [fd])
                self._unsent.pop()
            worker.send(f"begin {self._count} {self._why}".encode())
        except BlockingIOError:
            return
        except OSError:
            pass  # it has ended, and is about to be reaped
        self._poll.modify(worker, select.POLLIN)

    def _take(self, worker: socket.socket) -> bool:
        """Take what the worker has said so far; whether it may say more."""
        try:
            while True:
                message, fds, flags, _ = socket.recv_fds(worker, _MESSAGE_BYTES_MAX, 1)
                for fd in fds:
                    # The library passes over MSG_CMSG_CLOEXEC. The next worker gets its own: a copy besides would
                    # keep the target's memory registered when that has let go of it.
                    os.set_inheritable(fd, False)  # noqa: FBT003 - the library's signature
                if not message:
                    return False
                self._hear(message.decode(), [] if flags & socket.MSG_CTRUNC else fds, fds)
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _hear(self, message: str, whole: list[int], fds: list[int]) -> None:
        """Do what one message says, with the descriptors that came with it: ``whole`` where none was left out."""
        what, _, name = message.partition(" ")
        if what == "hold" and len(whole) == 1:
            self._hold(name, whole[0])
            return
        for fd in fds:
            os.close(fd)
        if what == "hold":
            # There was no descriptor left here to receive it with. The next worker begins that target anew.
            self._drop(name)
            tell("descriptor_not_held", name=name, what_to_do="raise RLIMIT_NOFILE of the agent")
        elif what == "drop":
            self._drop(name)
        else:
            self._said = what
            self._has_been_ready |= what == "ready"

    def _hold(self, name: str, fd: int) -> None:
        self._drop(name)
        if len(self._held) >= HELD_MAX:
            os.close(fd)
            return
        self._held[name] = fd
        self._store.put(name, fd)

    def _drop(self, name: str) -> None:
        fd = self._held.pop(name, None)
        if fd is not None:
            os.close(fd)
            self._store.remove(name)

    def _reap(self) -> int | None:
        """Take note of processes that have ended; the exit code where the worker's end is also this one's."""
        with contextlib.suppress(ChildProcessError):
            # Any of them: as the first process of a container it inherits others.
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._pid:
                    return self._on_end(os.waitstatus_to_exitcode(ended[1]))
        return None

    def _on_end(self, code: int) -> int | None:
        assert self._socket is not None
        # What it has handed over and is still on the way.
        if self._take(self._socket):
            self._poll.unregister(self._socket)
        self._socket.close()
        self._pid, self._socket, self._leave_by = 0, None, None
        is_meant = self._said == "leave" or self._is_stopping or (code >= 0 and not self._has_been_ready)
        if is_meant:
            return code if code >= 0 else 128 - code
        why = "upgrade" if self._said == "again" else f"signal:{-code}" if code < 0 else f"exit:{code}"
        self._again_after_a_pause(why)
        return None

    def _again_after_a_pause(self, why: str) -> None:
        self._why = why
        now = time.monotonic()
        if now - self._started_at > STEADY_SECONDS:
            self._pause = PAUSE_SECONDS_FIRST
        self._start_at = now if why == "upgrade" else now + self._pause
        self._pause = min(2 * self._pause, PAUSE_SECONDS_MAX)


def tell(event: str, **fields: str) -> None:
    """Write a line into the log, in the form that the worker's lines have where nobody reads them on a terminal."""
    sys.stderr.write(json.dumps({**fields, "event": event, "level": "warning"}) + "\n")
    sys.stderr.flush()


def _listen_fds(environment: dict[str, str]) -> dict[str, int]:
    """Give what systemd hands over at the start, by name."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    held: dict[str, int] = {}
    for fd, name in enumerate(names[: int(environment.get("LISTEN_FDS", "0"))], _LISTEN_FDS_START):
        os.set_inheritable(fd, False)  # noqa: FBT003 - the library's signature
        if name in held:
            os.close(held[name])
        held[name] = fd
    return held


def _has_terminal() -> bool:
    """Whether a hang-up is that of somebody's terminal, and not a word from an operator."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def main() -> int:
    """Run a command under a keeper; the exit code."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return Keeper(sys.argv[1:], dict(os.environ)).run()


if __name__ == "__main__":
    sys.exit(main())
