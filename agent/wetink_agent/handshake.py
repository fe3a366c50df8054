"""The handshake socket: a process offers its own memory by sending its userfaultfd over a Unix socket.

One message: a body of UTF-8 JSON, and the descriptor as SCM_RIGHTS. The body is either Firecracker's array of regions,
``[{"base_host_virt_addr": u64, "size": usize, ...}, ...]``, or a versioned hello, ``{"wetink": 1, "regions": [...]}``
with regions of the same form, addresses and sizes in bytes; what else a region has is not looked at (``offset``,
``page_size``, and ``page_size_kib``, which is bytes too). No regions means all of the process's memory. The answer is
one line of JSON: ``{"target": "HOST/PID@START"}`` or ``{"error": "..."}``; Firecracker does not read it.

Source: the format is that of Firecracker's ``src/vmm/src/persist.rs``; unix(7), SCM_RIGHTS and SO_PEERCRED.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import structlog

from wetink.pages import PAGE_SIZE
from wetink_agent.errors import TrackingError, Untrackable

BODY_BYTES_MAX: Final = 64 << 10
"""Bound on an offer: a thousand regions."""

DESCRIPTORS_MAX: Final = 4
"""Descriptors taken from one message; the right number is one, and the others are closed."""

ANSWER_SECONDS_MAX: Final = 5.0
"""How long a process may take to send its offer once it has connected."""

OFFERS_MAX: Final = 8
"""Offers handled at once; further ones wait in the socket's queue."""

QUEUE_MAX: Final = 128
"""Connections that wait; a process with a time-out on its socket is refused at once where there is no room."""

VERSION: Final = 1

_ADDRESS_END: Final = 1 << 56
"""Where user memory ends with five levels of page tables, which is the most there is."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Offer:
    """What a process gave: its pid as the kernel vouches for it, its userfaultfd, and the memory it means."""

    pid: int
    uffd: int
    scope: tuple[tuple[int, int], ...]


class HandshakeServer:
    """Listens for offers."""

    def __init__(self, path: Path, accept: Callable[[Offer], Awaitable[str]]) -> None:
        """Prepare.

        Args:
            path: Of the socket; a stale socket there is replaced.
            accept: Tracks what is offered and gives the target's name; raises TrackingError. It keeps a copy of the
                descriptor where it needs it: the offer's own is closed afterwards.
        """
        self._path = path
        self._accept = accept
        self._places = asyncio.Semaphore(OFFERS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled; the socket is removed at the end.

        Raises:
            OSError: The socket cannot be made.
        """
        with listen(self._path) as listener:
            log.info("handshake_listening", path=str(self._path))
            try:
                while True:
                    await self._places.acquire()
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                    task = asyncio.create_task(self._serve(connection))
                    self._tasks.add(task)
                    task.add_done_callback(self._done)
            finally:
                self._path.unlink(missing_ok=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("offer_failed", why=repr(error))

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(ANSWER_SECONDS_MAX)
            try:
                offer = await asyncio.to_thread(receive, connection)
                try:
                    answer = {"target": await self._accept(offer)}
                finally:
                    os.close(offer.uffd)
            except TrackingError as error:
                log.warning("offer_refused", why=str(error))
                answer = {"error": str(error)}
            except (TimeoutError, ConnectionError):
                return
            with contextlib.suppress(OSError):
                await asyncio.to_thread(connection.sendall, json.dumps(answer).encode() + b"\n")


def listen(path: Path) -> socket.socket:
    """Make the listening socket, for its owner only.

    Raises:
        OSError: It cannot be made there.
    """
    if path.is_socket() and _is_stale(path):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Between bind and chmod nobody else may connect.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(QUEUE_MAX)
        listener.setblocking(False)  # noqa: FBT003 - the library's signature
    except BaseException:
        listener.close()
        raise
    return listener


def _is_stale(path: Path) -> bool:
    """Whether nobody listens there any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the library's signature
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def receive(connection: socket.socket) -> Offer:
    """Read one offer.

    Raises:
        Untrackable: It is malformed or has no descriptor.
        TimeoutError: It did not come in time.
    """
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    body, descriptors, _, _ = socket.recv_fds(connection, BODY_BYTES_MAX, DESCRIPTORS_MAX)
    try:
        # Firecracker sends one message and leaves the socket open. A large one may still come in pieces, and its own
        # example of a handler has seen the body arrive before the descriptor.
        while not (_is_whole(body) and descriptors) and len(body) < BODY_BYTES_MAX:
            # For the whole offer: byte by byte it would hold its place for days.
            connection.settimeout(_left_until(deadline))
            try:
                piece, more, _, _ = socket.recv_fds(connection, BODY_BYTES_MAX - len(body), DESCRIPTORS_MAX)
            except TimeoutError:
                if not _is_whole(body):
                    raise
                break  # what is whole but for its descriptor gets an answer
            descriptors += more
            if not piece:
                break
            # A descriptor needs some byte to come with.
            body += piece.strip(b"\0") if _is_whole(body) else piece
        connection.settimeout(ANSWER_SECONDS_MAX)
        _check_visible(pid)
        _check_one(descriptors, pid)
        return Offer(pid, descriptors[0], _scope(body, pid))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _left_until(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _check_visible(pid: int) -> None:
    if pid == 0:
        message = (
            "a process offered its memory that this agent's pid namespace does not show: run the agent with hostPID"
        )
        raise Untrackable(message)


def _check_one(descriptors: Sequence[int], pid: int) -> None:
    if len(descriptors) != 1:
        message = f"process {pid} offered {len(descriptors)} descriptors: send one, its userfaultfd"
        raise Untrackable(message)


def _is_whole(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    except RecursionError:
        pass  # too deep to be an offer, however it goes on
    return True


def _scope(body: bytes, pid: int) -> tuple[tuple[int, int], ...]:
    try:
        offer = json.loads(body)
        if isinstance(offer, dict):
            _check_version(offer["wetink"], pid)
            offer = offer["regions"]
        regions = sorted((int(region["base_host_virt_addr"]), int(region["size"])) for region in offer)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        message = f"process {pid} sent an offer that cannot be read: send a JSON array of regions, or a hello"
        raise Untrackable(message) from error
    if any(start < 0 or size <= 0 or start % PAGE_SIZE or size % PAGE_SIZE for start, size in regions):
        message = f"process {pid} offered a region that is not of whole pages"
        raise Untrackable(message)
    scope = tuple((start, start + size) for start, size in regions)
    if any(end > _ADDRESS_END for _, end in scope):
        message = f"process {pid} offered a region beyond the end of user memory"
        raise Untrackable(message)
    if any(end > start for (_, end), (start, _) in pairwise(scope)):
        message = f"process {pid} offered regions that overlap"
        raise Untrackable(message)
    return scope


def _check_version(version: object, pid: int) -> None:
    if version != VERSION:
        message = f"process {pid} speaks version {version!r} of the handshake, this agent {VERSION}"
        raise Untrackable(message)
