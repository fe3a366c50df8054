"""The backends that are compared, under the names that the results have them by, and on which cores that is done."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from tests.bench.run import skip
from wetink_agent.backend import Backend
from wetink_agent.backends import BackendName, Choice, choose, open_backend
from wetink_agent.errors import KernelLacks

RING_BYTES: Final = 512 << 10
"""What ``--events-ring`` is unless told."""

WP_ASYNC: Final = "wp-async"
EVENTS: Final = "wp-async --events"
WP_SYNC: Final = "wp-sync"

_ASKED: Final[Mapping[str, Choice]] = {
    WP_ASYNC: Choice(BackendName.WP_ASYNC),
    EVENTS: Choice(BackendName.WP_ASYNC, events_ring_bytes=RING_BYTES),
    WP_SYNC: Choice(BackendName.WP_SYNC, accept_risk=True),
    "soft-dirty": Choice(BackendName.SOFT_DIRTY),
}


@cache
def choices() -> Mapping[str, Choice]:
    """Give the backends that this kernel has; one it lacks is said once, and left out."""
    found = {}
    for name, asked in _ASKED.items():
        try:
            found[name] = choose(asked.name, events_ring_bytes=asked.events_ring_bytes, accept_risk=asked.accept_risk)
        except KernelLacks as error:
            skip(f"backend {name}", str(error), backend=name)
    return found


@contextlib.contextmanager
def tracking(name: str, pid: int) -> Iterator[Backend]:
    """Track a process with a backend of this name while the body runs; nothing is armed before the first harvest."""
    tracker = open_backend(choices()[name], pid, None, ())
    try:
        yield tracker
    finally:
        tracker.close()


@contextlib.contextmanager
def together(pid: int) -> Iterator[None]:
    """Run this thread, and those it starts, on the core of a process."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, os.sched_getaffinity(pid))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def apart(*pids: int) -> Iterator[None]:
    """Run these processes on the first core, and this thread and those it starts on the others, if there are others."""
    cores = sorted(os.sched_getaffinity(0))
    for pid in pids:
        os.sched_setaffinity(pid, {cores[0]})
    os.sched_setaffinity(0, set(cores[1:]) or {cores[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
