"""Offer this process's own memory to the agent of its host, from within: no ptrace, no right over the process.

    from wetink_agent.offer import offer_memory
    print(offer_memory("/run/wetink/handshake.sock"))

The agent still needs to read ``/proc/PID/pagemap`` of this process: run it as the same user, or with
CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wetink import syscalls
from wetink_agent.uapi.userfaultfd import UFFD_USER_MODE_ONLY, USERFAULTFD_IOC_NEW

DEVICE: Final = Path("/dev/userfaultfd")
"""Gives userfaultfds to whoever may open it (Linux 6.1)."""

_ANSWER_BYTES_MAX: Final = 64 << 10


class OfferRefused(Exception):
    """The agent did not take the offer; the text says why."""


def offer_memory(path: str | Path, regions: Sequence[tuple[int, int]] = (), *, seconds: float = 30.0) -> str:
    """Let the agent track this process from now on.

    A userfaultfd is made, sent, and closed here: the agent has the only copy, so that its end can never hang this
    process. With asynchronous write-protection the kernel resolves every fault itself.

    Args:
        path: The agent's handshake socket.
        regions: ``(start_address, size_bytes)`` of the memory that is meant, in whole pages; none means all of it.
        seconds: How long to wait for the answer.

    Returns:
        The target's name, ``HOST/PID@START``.

    Raises:
        OfferRefused: The agent refused, or answered nothing.
        OSError: No agent listens there, or userfaultfd(2) is forbidden and there is no /dev/userfaultfd to use instead.
    """
    uffd = _own_userfaultfd()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(seconds)
            connection.connect(str(path))
            hello = {"wetink": 1, "regions": [{"base_host_virt_addr": a, "size": size} for a, size in regions]}
            socket.send_fds(connection, [json.dumps(hello).encode()], [uffd])
        finally:
            os.close(uffd)
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < _ANSWER_BYTES_MAX:
            piece = connection.recv(_ANSWER_BYTES_MAX)
            if not piece:
                message = f"the agent at {path} closed the connection without an answer"
                raise OfferRefused(message)
            answer += piece
    told: dict[str, str] = json.loads(answer)
    if "target" not in told:
        raise OfferRefused(told.get("error", f"the agent at {path} gave no reason"))
    return told["target"]


def _own_userfaultfd() -> int:
    """Make a userfaultfd over this process; from the device where the system call is forbidden.

    Full mode where this process may have it: ``wp-sync`` needs it, and nobody can see which of the two it is. The
    seccomp filters that container runtimes put over every container forbid the call and allow ioctl.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    for mode in (0, UFFD_USER_MODE_ONLY):
        with contextlib.suppress(PermissionError):
            return syscalls.userfaultfd(flags | mode)
    forbidden = PermissionError(errno.EPERM, f"{os.strerror(errno.EPERM)} (userfaultfd)")
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise forbidden from None
    try:
        return fcntl.ioctl(device, USERFAULTFD_IOC_NEW, flags)
    finally:
        os.close(device)
