"""System calls that Python's ``os`` does not have: thin, typed, and raising ``OSError`` with the call's name.

Besides the agent's ``uapi`` and its compiled loop this is the only module that uses ctypes. Every call gives up the
interpreter lock.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    # Not at run time: the agent's guard needs none of it, and would be three times its size with it.
    import numpy as np
    from numpy.typing import NDArray

IOVEC_COUNT_MAX: Final = 1024
"""Vectors one ``process_vm_readv`` takes: IOV_MAX of ``limits.h``."""

NUMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": {"perf_event_open": 298, "process_vm_readv": 310, "userfaultfd": 323, "pidfd_getfd": 438},
    "aarch64": {"perf_event_open": 241, "process_vm_readv": 270, "userfaultfd": 282, "pidfd_getfd": 438},
}
"""Numbers of the system calls of each machine; on any other none of them is called in earnest."""

_numbers: Final = NUMBERS.get(os.uname().machine, NUMBERS["x86_64"])
_PR_SET_PDEATHSIG: Final = 1
_NR_PERF_EVENT_OPEN: Final = _numbers["perf_event_open"]
_NR_PROCESS_VM_READV: Final = _numbers["process_vm_readv"]
_NR_USERFAULTFD: Final = _numbers["userfaultfd"]
_NR_PIDFD_GETFD: Final = _numbers["pidfd_getfd"]

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class iovec(ctypes.Structure):  # noqa: N801 - the kernel's name
    """``struct iovec``, for calls that take one or two."""

    _fields_ = (("base", ctypes.c_void_p), ("size_bytes", ctypes.c_size_t))


def size_bytes(structure: type[ctypes.Structure]) -> int:
    """Give the size of a kernel structure."""
    return ctypes.sizeof(structure)


def ioctl(fd: int, request: int, argument: ctypes.Structure, name: str) -> int:
    """Do an ioctl.

    Args:
        fd: The descriptor.
        request: The ioctl's number.
        argument: Read and written by the kernel in place.
        name: The ioctl's name, for the error.

    Returns:
        What the ioctl gives, not negative.

    Raises:
        OSError: Any errno, with ``name`` as its text's end.
    """
    return _checked(_libc.ioctl(fd, request, ctypes.byref(argument)), name)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent ends. Called on its first thread.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "PR_SET_PDEATHSIG")


def userfaultfd(flags: int) -> int:
    """Make a userfaultfd over the memory of this process.

    Args:
        flags: O_CLOEXEC, O_NONBLOCK, UFFD_USER_MODE_ONLY.

    Source: userfaultfd(2).
    """
    return _checked(_libc.syscall(_NR_USERFAULTFD, ctypes.c_long(flags)), "userfaultfd")


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Take a copy of another process's descriptor; it is close-on-exec here.

    Source: pidfd_getfd(2), since Linux 5.6.
    """
    return _checked(
        _libc.syscall(_NR_PIDFD_GETFD, ctypes.c_long(pidfd), ctypes.c_long(target_fd), ctypes.c_long(0)), "pidfd_getfd"
    )


def perf_event_open(attribute: ctypes.Structure, pid: int, cpu: int, flags: int) -> int:
    """Open a performance event over one thread on one CPU, in no group.

    Source: perf_event_open(2).
    """
    return _checked(
        _libc.syscall(
            _NR_PERF_EVENT_OPEN,
            ctypes.byref(attribute),
            ctypes.c_long(pid),
            ctypes.c_long(cpu),
            ctypes.c_long(-1),
            ctypes.c_ulong(flags),
        ),
        "perf_event_open",
    )


def ptrace(request: int, tid: int, address: int, data: int, name: str) -> None:
    """Do a ptrace request that answers with nothing but success.

    Source: ptrace(2). All requests for one thread must come from the thread that seized it.
    """
    _checked(_libc.ptrace(request, tid, address, data), name)


def ptrace_regset(request: int, tid: int, note: int, registers: ctypes.Structure, name: str) -> int:
    """Read or write a register set of a stopped thread.

    Args:
        request: PTRACE_GETREGSET or PTRACE_SETREGSET.
        tid: The thread.
        note: Which set: NT_PRSTATUS.
        registers: Filled, or written, in place.
        name: The request's name, for the error.

    Returns:
        The bytes read or written: fewer where the set is smaller, as that of a 32-bit thread.

    Source: ptrace(2).
    """
    vector = iovec(ctypes.addressof(registers), ctypes.sizeof(registers))
    _checked(_libc.ptrace(request, tid, note, ctypes.addressof(vector)), name)
    return int(vector.size_bytes)


def ptrace_buffer(request: int, tid: int, address: int, data: bytes, name: str) -> bytes:
    """Do a ptrace request that reads or writes a small buffer of the caller; give the buffer as it is afterwards.

    Source: ptrace(2).
    """
    buffer = ctypes.create_string_buffer(data, len(data))
    _checked(_libc.ptrace(request, tid, address, ctypes.addressof(buffer)), name)
    return buffer.raw


def process_vm_readv(pid: int, remote: NDArray[np.void], into: NDArray[np.uint8]) -> int:
    """Read memory of another process, many pieces in one call.

    Args:
        pid: The process.
        remote: The pieces, each a ``struct iovec``, at most ``IOVEC_COUNT_MAX``.
        into: Where they go, one after the other; contiguous, as long as all pieces together.

    Returns:
        Bytes read. Fewer than asked for means that the next byte cannot be read: it is not mapped.

    Raises:
        OSError: EFAULT when not even the first byte can be read; ESRCH, EPERM.

    Source: process_vm_readv(2).
    """
    local = iovec(into.ctypes.data, into.nbytes)
    return _checked(
        _libc.syscall(
            _NR_PROCESS_VM_READV,
            ctypes.c_long(pid),
            ctypes.byref(local),
            ctypes.c_ulong(1),
            ctypes.c_void_p(remote.ctypes.data),
            ctypes.c_ulong(len(remote)),
            ctypes.c_ulong(0),
        ),
        "process_vm_readv",
    )


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({name})")
    return result
