"""The worker's side of its keeper: what was handed on to this worker, and what it hands on. See ``keeper``."""

import os
import signal
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from wetink import syscalls
from wetink_agent import keepsake
from wetink_agent.keeper import SOCKET_VARIABLE
from wetink_agent.keepsake import Keepsake, KeepsakeUnusable, Kept
from wetink_agent.mandate import Identity, Mandate

BEGIN_SECONDS_MAX: Final = 10.0
"""How long a keeper may take to give everything back."""

SEND_SECONDS_MAX: Final = 1.0
"""How long it may take to have room for a message: it does nothing but make room."""

_MESSAGE_BYTES_MAX: Final = 512
_UFFD: Final = "uffd-"
_KEEPSAKE: Final = "keepsake-"
_NAMED: Final = "named"
_MANDATE: Final = "mandate"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Left:
    """A target that an earlier worker left: its userfaultfd and its keepsake, owned by whoever takes this."""

    uffd: int
    keepsake: int
    kept: Kept

    @property
    def identity(self) -> Identity:
        """Pid and start time of the process."""
        return self.kept.started.target.pid, self.kept.started.target.start_time_ticks


@dataclass(slots=True)
class Keeping:
    """A keeper, or none: then nothing is kept, and nothing was.

    Attributes:
        inherited: Descriptors that an earlier worker left, by name. Whoever takes one out owns it.
        count: Which worker of its keeper this is, from 1.
        why: How the one before it ended.
    """

    inherited: dict[str, int] = field(default_factory=dict)
    count: int = 1
    why: str = ""
    _socket: socket.socket | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a keeper."""
        return self._socket is not None

    def left(self) -> Iterator[Left]:
        """Give every target that an earlier worker left; what cannot be gone on with is let go, and the log says so."""
        for uffd_name in sorted(name for name in self.inherited if name.startswith(_UFFD)):
            uffd = self.inherited.pop(uffd_name)
            name = uffd_name.removeprefix(_UFFD)
            # Where it is not there, neither is anything to read.
            fd = self.inherited.pop(_KEEPSAKE + name, -1)
            try:
                left = Left(uffd, fd, keepsake.read(fd))
            except KeepsakeUnusable as error:
                log.warning("target_not_continued", target=name, why=str(error))
                for each in (uffd, fd):
                    if each >= 0:
                        os.close(each)
                self._drop_target(name)
            else:
                yield left

    def keepsake(self, pid: int, start_time_ticks: int, uffd: int) -> Keepsake:
        """Make a keepsake for a target, which is held together with its userfaultfd as soon as it says something."""
        name = f"{pid}-{start_time_ticks}"

        def hold(fd: int) -> None:
            self._say(f"hold {_UFFD}{name}", uffd)
            self._say(f"hold {_KEEPSAKE}{name}", fd)

        return Keepsake(os.memfd_create("wetink-keepsake", os.MFD_CLOEXEC), hold)

    def drop(self, pid: int, start_time_ticks: int) -> None:
        """Let go of a target that has ended."""
        self._drop_target(f"{pid}-{start_time_ticks}")

    def named(self) -> dict[int, int]:
        """Give the processes that earlier workers were told to track by pid, and when each started."""
        return {int(pid): int(start) for pid, start in map(str.split, self._text(_NAMED).decode("ascii").splitlines())}

    def hold_named(self, identities: Iterable[tuple[int, int]]) -> None:
        """Have it kept which processes they are: the next worker must not take another for one of them."""
        self._hold_text(_NAMED, "".join(f"{pid} {start}\n" for pid, start in identities).encode())

    def mandate(self) -> Mandate | None:
        """Give what the worker before was told to track; None where there was none, or it did not say."""
        return Mandate.from_bytes(self._text(_MANDATE))

    def hold_mandate(self, mandate: Mandate) -> None:
        """Have it kept what this worker is told to track."""
        self._hold_text(_MANDATE, mandate.to_bytes())

    def let_go_of_the_rest(self) -> None:
        """Let go of what an earlier worker left, or systemd gave, and nobody has taken."""
        for name, fd in self.inherited.items():
            os.close(fd)
            self._say(f"drop {name}")
        self.inherited.clear()

    def ready(self) -> None:
        """Say that this worker has gone on with everything: from now on only an end that is meant ends the keeper."""
        self._say("ready")

    def leave(self) -> None:
        """Say that the end of this worker is meant to be that of the keeper."""
        self._say("leave")

    def again(self) -> None:
        """Say that this worker ends to make room for the next."""
        self._say("again")

    def _text(self, name: str) -> bytes:
        """Take a text that an earlier worker left; empty where it left none."""
        fd = self.inherited.pop(name, None)
        if fd is None:
            return b""
        with open(fd, "rb") as file:  # noqa: PTH123 - what is open already
            file.seek(0)
            return file.read()

    def _hold_text(self, name: str, text: bytes) -> None:
        if not self.is_there:
            return
        fd = os.memfd_create(f"wetink-{name}", os.MFD_CLOEXEC)
        try:
            with open(os.dup(fd), "wb") as file:  # noqa: PTH123 - as above
                file.write(text)
            self._say(f"hold {name}", fd)
        finally:
            os.close(fd)

    def _drop_target(self, name: str) -> None:
        # The keepsake first: without it the other is nothing to the next worker.
        self._say(f"drop {_KEEPSAKE}{name}")
        self._say(f"drop {_UFFD}{name}")

    def _say(self, message: str, *fds: int) -> None:
        if self._socket is None:
            return
        try:
            if fds:
                socket.send_fds(self._socket, [message.encode()], fds)
            else:
                self._socket.send(message.encode())
        except OSError as error:
            # The next worker attaches again then, and begins a new incarnation.
            log.warning("keeper_unreachable", why=str(error), message=message)


def keeping() -> Keeping:
    """Take over what the keeper of this process has, if it has a keeper."""
    number = os.environ.pop(SOCKET_VARIABLE, None)
    if number is None:
        return Keeping()
    # Its end is ours: what it held is unregistered then, and nobody would start the next worker.
    syscalls.die_with_parent(signal.SIGKILL)
    keeper = socket.socket(fileno=int(number))
    keeper.set_inheritable(False)
    keeper.settimeout(BEGIN_SECONDS_MAX)
    inherited: dict[str, int] = {}
    what, rest = "", ""
    while what != "begin":
        message, fds, _, _ = socket.recv_fds(keeper, _MESSAGE_BYTES_MAX, 1)
        if not message:
            text = "the keeper ended"
            raise ConnectionError(text)
        what, _, rest = message.decode().partition(" ")
        if fds:
            os.set_inheritable(fds[0], False)  # noqa: FBT003 - the library's signature, which has no flags
            inherited[rest] = fds[0]
    keeper.settimeout(SEND_SECONDS_MAX)
    # Fails where the keeper ended before the kernel was asked to tell of it.
    keeper.send(b"here")
    count, _, why = rest.partition(" ")
    return Keeping(inherited, int(count), why, keeper)
