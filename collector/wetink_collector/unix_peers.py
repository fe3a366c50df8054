"""Who is at the other end of a Unix socket, as the kernel says: gRPC does not tell.

The collector itself accepts the connections, asks the kernel for the peer's user and groups (``SO_PEERCRED``), and
joins each to gRPC's own socket, which lies in a directory that nobody else can enter. Each connection comes to gRPC
from a name of its own, by which its calls are told apart (``ServicerContext.peer``). A connection that did not come
this way has no name here, and its calls are refused.
"""

import asyncio
import contextlib
import grp
import itertools
import os
import pwd
import re
import shutil
import socket
import stat
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

import structlog

from wetink.names import HOST_ID
from wetink_collector.address import AddressUnusable, UnixAddress
from wetink_collector.caller import Caller, Role

CONNECTIONS_MAX: Final = 256
"""Bound on the connections of those who are allowed: an agent and its orchestrators have a handful."""

STRANGERS_MAX: Final = 16
"""Bound on those of everybody else. They are let in to be told so, and only that many at once."""

CHUNK_BYTES: Final = 64 << 10
"""What is held of a connection in each direction, at most; also gRPC's window, so that larger ones gain nothing."""

STALL_SECONDS_MAX: Final = 30.0
"""How long one side may take nothing while the other has something for it; gRPC's own pings give up after 15 s."""

BACKLOG: Final = 128
"""Connections that wait to be accepted."""

ACCEPT_PAUSE_SECONDS: Final = 0.1
"""How long nothing is accepted when there are no descriptors left."""

PATH_BYTES_MAX: Final = 107
"""``sun_path`` without its end: unix(7)."""

GROUPS_BYTES_MAX: Final = 1024
"""What Python's ``getsockopt`` takes: 256 groups. Of a process in more, only the first of all counts."""

_SO_PEERGROUPS: Final = 59
"""Linux kernel commit 28b5ba2aa0f5 ("net: introduce SO_PEERGROUPS getsockopt") (in v4.13), in no module of Python."""

_CREDENTIALS: Final = struct.Struct("iII")
"""``struct ucred``: pid, uid, gid; unix(7)."""

_ENTRY: Final = re.compile(r"(?P<group>@?)(?P<who>[^:@]+):(?P<role>agent|reader|admin)(?::(?P<name>.+))?")
_ID_MAX: Final = (1 << 32) - 2

log = structlog.get_logger()


class PeersMalformed(ValueError):
    """An entry that allows nobody. The sentence says of what form it should be."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """One user or group, and what it is.

    Attributes:
        number: User id, or group id where ``is_group``.
        host_id: Which host an agent may speak for.
    """

    number: int
    is_group: bool
    role: Role
    host_id: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel knew it then."""

    pid: int
    uid: int
    gids: frozenset[int]

    def __str__(self) -> str:
        """Give it for logs."""
        return f"unix uid {self.uid} pid {self.pid}"


def parse_allowed(texts: Iterable[str]) -> tuple[Allowed, ...]:
    """Read ``USER:ROLE`` or ``@GROUP:ROLE`` of each entry, by name or number; an agent's has ``:HOST`` besides.

    Raises:
        PeersMalformed: One is none of these, or names nobody of this host.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Allowed:
    match = _ENTRY.fullmatch(text)
    if match is None or (match["name"] is not None) != (match["role"] == Role.AGENT):
        message = f"{text[:300]!r} is none of USER:reader, USER:admin and USER:agent:HOST; of a group, @GROUP:..."
        raise PeersMalformed(message)
    if match["name"] and not HOST_ID.fullmatch(match["name"]):
        message = f"{text[:300]!r} has no host id: use 1 to 253 of letters, digits, dot, underscore and hyphen"
        raise PeersMalformed(message)
    is_group = bool(match["group"])
    number = _number(match["who"], is_group=is_group)
    if number == _overflow(is_group=is_group):
        message = (
            f"{text[:300]!r} means everybody whom this user namespace has no number for: "
            "name somebody else, or run the collector in the namespace of its peers (systemd: PrivateUsers=no)"
        )
        raise PeersMalformed(message)
    return Allowed(number, is_group, Role(match["role"]), match["name"])


def _overflow(*, is_group: bool) -> int:
    """Give the number that the kernel puts for users it cannot name here; user_namespaces(7)."""
    path = Path(f"/proc/sys/kernel/overflow{'gid' if is_group else 'uid'}")
    try:
        return int(path.read_text(encoding="ascii"))
    except OSError:
        return 65534


def _number(who: str, *, is_group: bool) -> int:
    if who.isascii() and who.isdigit() and int(who) <= _ID_MAX:
        return int(who)
    try:
        return grp.getgrnam(who).gr_gid if is_group else pwd.getpwnam(who).pw_uid
    except KeyError as error:
        message = f"there is no {'group' if is_group else 'user'} {who[:300]!r} on this host: write its number"
        raise PeersMalformed(message) from error


class UnixPeers:
    """A Unix socket whose peers are known by user and group."""

    def __init__(self, address: UnixAddress, allowed: Sequence[Allowed]) -> None:
        """Prepare; nothing listens yet.

        Args:
            address: Where peers connect.
            allowed: Who they may be. Entries for a user come before those for its groups.
        """
        self._path = Path(address.path)
        self._private = self._path.with_name(f".{self._path.name}.private")
        self._allowed = tuple(allowed)
        self._peers: dict[str, Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._told_full = False

    @property
    def address(self) -> UnixAddress:
        """Where gRPC is to listen."""
        return UnixAddress(str(self._private / "grpc"))

    def peer(self, name: str) -> Peer | None:
        """Give the process behind a call.

        Args:
            name: As ``ServicerContext.peer`` gives it.
        """
        # gRPC writes it with escapes, as in a URI.
        return self._peers.get(os.fsdecode(unquote_to_bytes(name)))

    def caller(self, name: str) -> Caller | None:
        """Give what the process behind a call is; None where it is not allowed to be anything.

        Args:
            name: As ``ServicerContext.peer`` gives it.
        """
        peer = self.peer(name)
        return self.of(peer) if peer else None

    def of(self, peer: Peer) -> Caller | None:
        """Give what a process is: all that its user's entries say, or else its groups'."""
        of_user = [one for one in self._allowed if not one.is_group and one.number == peer.uid]
        of_group = [one for one in self._allowed if one.is_group and one.number in peer.gids]
        entries = of_user or of_group
        host_id = next((one.host_id for one in entries if one.host_id), None)
        return Caller(f"uid-{peer.uid}", frozenset(one.role for one in entries), host_id) if entries else None

    def prepare(self) -> None:
        """Make the directory for gRPC's own socket, and take what an earlier run left.

        Raises:
            AddressUnusable: It cannot be made, or is somebody else's.
        """
        if len(os.fsencode(self._private)) + len("/grpc") > PATH_BYTES_MAX:
            message = f"cannot listen on unix:{self._path} with --unix-allow: the path is too long; use a shorter one"
            raise AddressUnusable(message)
        try:
            with contextlib.suppress(FileExistsError):
                self._private.mkdir(mode=0o700)
            found = self._private.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                message = f"cannot listen on unix:{self._path}: {self._private} is not this collector's; remove it"
                raise AddressUnusable(message)
            self._private.chmod(0o700)
            for left in self._private.iterdir():
                left.unlink()
        except OSError as error:
            message = f"cannot listen on unix:{self._path}: {self._private} cannot be made: {error.strerror}"
            raise AddressUnusable(message) from error

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Accept connections while the body runs; gRPC listens on ``address`` already.

        Raises:
            AddressUnusable: The socket cannot be listened on.
        """
        listener = self._listener()
        accepting = asyncio.create_task(self._accept(listener))
        try:
            yield
        finally:
            for task in (accepting, *self._tasks):
                task.cancel()
            await asyncio.gather(accepting, *self._tasks, return_exceptions=True)
            listener.close()
            with contextlib.suppress(OSError):
                self._path.unlink()
            shutil.rmtree(self._private, ignore_errors=True)

    def _listener(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Left by a run that was killed: nobody listens on it, as `check_free` has found.
            if stat.S_ISSOCK(_mode(self._path)):
                self._path.unlink()
            listener.bind(str(self._path))
            # Everybody may connect, since it is the peer that is asked for and not the file.
            self._path.chmod(0o666)
            listener.listen(BACKLOG)
            listener.setblocking(False)  # noqa: FBT003 (Python's own)
        except OSError as error:
            listener.close()
            message = f"cannot listen on unix:{self._path}: {error.strerror}"
            raise AddressUnusable(message) from error
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("accept_failed", error=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            task = asyncio.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        """Join one connection to gRPC, until either side closes it."""
        with connection, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inner:
            try:
                peer = _peer(connection)
                if self._is_full(peer):
                    return
                inner.setblocking(False)  # noqa: FBT003 (Python's own)
                own = self._private / str(next(self._numbers))
                inner.bind(str(own))
                name = f"unix:{own}"
                self._peers[name] = peer
            except OSError as error:
                log.warning("connection_refused", peer=None, why=error.strerror)
                return
            try:
                await asyncio.get_running_loop().sock_connect(inner, self.address.path)
                own.unlink()
                await _join(connection, inner)
            except OSError:
                pass  # one of the two has gone
            finally:
                del self._peers[name]

    def _is_full(self, peer: Peer) -> bool:
        """Whether there is no room for one more of its kind. That is told once, until there is again."""
        is_known = self.of(peer) is not None
        alike = sum(1 for other in self._peers.values() if (self.of(other) is not None) == is_known)
        is_full = alike >= (CONNECTIONS_MAX if is_known else STRANGERS_MAX)
        if is_full and not self._told_full:
            log.warning("connections_refused", peer=str(peer), why=f"{alike} connections of its kind are open")
        self._told_full = is_full
        return is_full


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0


def _peer(connection: socket.socket) -> Peer:
    """Ask the kernel who connected.

    Source: unix(7), SO_PEERCRED; socket(7), SO_PEERGROUPS.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, GROUPS_BYTES_MAX)
    except OSError:
        groups = b""
    return Peer(pid, uid, frozenset((gid, *struct.unpack(f"{len(groups) // 4}I", groups))))


async def _join(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until one side has closed."""
    copying = [asyncio.create_task(_copy(*ends)) for ends in ((one, other), (other, one))]
    try:
        await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in copying:
            task.cancel()
        await asyncio.gather(*copying, return_exceptions=True)


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    chunk = memoryview(bytearray(CHUNK_BYTES))
    while size := await loop.sock_recv_into(source, chunk):
        async with asyncio.timeout(STALL_SECONDS_MAX):
            await loop.sock_sendall(sink, chunk[:size])
