"""The resolver whose loop is compiled: ``resolver_loop.c``, where it was built, in place of the loop in Python.

It is built with the package where there is a C compiler (``hatch_build.py``), and needs nothing of Python's interface.
Source: our benchmark (``make bench ARGS=sync-write``): with writer and resolver on one core, a first write
takes twice as long with the loop in Python.
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from wetink_agent.resolver import MESSAGES_AT_ONCE, Log, Resolver

LIBRARY: Final = Path(__file__).with_name("_resolver_loop.so")
"""What ``hatch_build.py`` makes."""

BEYOND_MAX: Final = 1 << 16
"""Runs of pages un-protected without a message that a log has room for, 1 MiB: beyond that it goes page by page."""

_PAGE_SHIFT: Final = 12


class _log(ctypes.Structure):  # noqa: N801 - as in the C source
    _fields_ = (
        ("messages", ctypes.c_void_p),
        ("times_ns", ctypes.c_void_p),
        ("beyond", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("answered_count", ctypes.c_uint64),
        ("lost_count", ctypes.c_uint64),
        ("beyond_count", ctypes.c_uint64),
    )


class _wetink_resolver(ctypes.Structure):  # noqa: N801 - as in the C source
    _fields_ = (
        ("uffd", ctypes.c_int32),
        ("bell", ctypes.c_int32),
        ("handed", ctypes.c_int32),
        ("closing", ctypes.c_int32),
        ("messages_max", ctypes.c_uint64),
        ("beyond_max", ctypes.c_uint64),
        ("span_pages_max", ctypes.c_uint64),
        ("page_shift", ctypes.c_uint64),
        ("current", ctypes.c_uint64),
        ("logs", _log * 2),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Load the loop; None where it was not built, or from another version of its source."""
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    loaded.wetink_resolver_size_bytes.restype = ctypes.c_uint64
    loaded.wetink_resolve.argtypes = (ctypes.POINTER(_wetink_resolver),)
    return loaded if loaded.wetink_resolver_size_bytes() == ctypes.sizeof(_wetink_resolver) else None


def open_resolver(uffd: int, *, span_pages_max: int) -> Resolver:
    """Give the compiled resolver where there is one, else that in Python; see ``Resolver``."""
    kind = Resolver if library() is None else CompiledResolver
    return kind(uffd, span_pages_max=span_pages_max)


class CompiledResolver(Resolver):
    """Answers without Python: its thread holds no lock of the interpreter and waits for none."""

    def __init__(self, uffd: int, *, span_pages_max: int) -> None:
        """Start answering; see ``Resolver``."""
        self._logs = Log(), Log()
        self._runs = [np.empty((BEYOND_MAX, 2), dtype=np.uint64) for _ in self._logs]
        self._handed_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._state = _wetink_resolver(
            uffd=uffd,
            handed=self._handed_fd,
            messages_max=self._logs[0].messages.size - MESSAGES_AT_ONCE,
            beyond_max=BEYOND_MAX,
            span_pages_max=span_pages_max,
            page_shift=_PAGE_SHIFT,
        )
        for ours, log, runs in zip(self._state.logs, self._logs, self._runs, strict=True):
            ours.messages, ours.times_ns = log.messages.ctypes.data, log.times_ns.ctypes.data
            ours.beyond = runs.ctypes.data
        super().__init__(uffd, span_pages_max=span_pages_max)

    @property
    def answered_count(self) -> int:
        """See ``Resolver``."""
        return int(self._state.logs[self._state.current].answered_count)

    def take(self) -> Log | None:
        """See ``Resolver``."""
        if self._has_failed():
            return None
        index = self._state.current  # it changes only when the bell rings
        spare = self._state.logs[1 - index]
        spare.count = spare.answered_count = spare.lost_count = spare.beyond_count = 0
        os.eventfd_write(self._bell, 1)
        os.eventfd_read(self._handed_fd)
        if self._has_failed():
            return None
        ours, log = self._state.logs[index], self._logs[index]
        log.clear()
        log.count, log.answered_count, log.lost_count = ours.count, ours.answered_count, ours.lost_count
        for start, end in self._runs[index][: ours.beyond_count].tolist():
            log.beyond.add_range(start, end)
        return log

    def _has_failed(self) -> bool:
        return self.error is not None

    def close(self) -> None:
        """See ``Resolver``."""
        self._state.closing = 1
        super().close()
        os.close(self._handed_fd)

    def _serve(self) -> None:
        loop = library()
        assert loop is not None
        self._state.bell = self._bell
        code = loop.wetink_resolve(ctypes.byref(self._state))
        if code:
            raise OSError(-code, f"{os.strerror(-code)} (while messages were answered)")

    def _hand_nothing(self) -> None:
        os.eventfd_write(self._handed_fd, 1)
