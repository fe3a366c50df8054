"""Which backend tracks the targets of this agent, why, and how one is opened over a process."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from wetink_agent import probe
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Backend
from wetink_agent.errors import KernelLacks
from wetink_agent.page_faults import PageFaults, WithEvents
from wetink_agent.wp_async import Range, WpAsync


class BackendName(StrEnum):
    """What can be asked for with ``--backend``."""

    AUTO = "auto"
    WP_ASYNC = "wp-async"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that was picked, and what was asked of it."""

    name: BackendName = BackendName.WP_ASYNC
    reason: str = ""
    """Why it is this one: shown wherever targets are listed."""

    events_ring_bytes: int = 0
    """Ring of each CPU for the stream of events; 0 for no stream."""


def choose(asked: BackendName, *, events_ring_bytes: int = 0) -> Choice:
    """Probe this kernel and pick.

    Args:
        asked: What the user wants; AUTO picks the best that works here.
        events_ring_bytes: See ``Choice``.

    Raises:
        KernelLacks: This kernel cannot.
    """
    lacking = probe.why_not_wp_async()
    if lacking is not None:
        message = f"this kernel cannot track with wp-async: {lacking}"
        raise KernelLacks(message)
    reason = _SEEN if asked is BackendName.AUTO else "asked for"
    if events_ring_bytes:
        reason += "; with the stream of events"
    return Choice(BackendName.WP_ASYNC, reason, events_ring_bytes)


def open_backend(choice: Choice, pid: int, uffd: int | None, scope: Sequence[Range]) -> Backend:
    """Open a backend over a process. Takes milliseconds: not for an event loop.

    Args:
        choice: What ``choose`` gave.
        pid: The process.
        uffd: A userfaultfd that the process offered, owned from now on; without it the agent attaches.
        scope: The parts of the address space to track; empty means all of it.

    Raises:
        TrackingError: It cannot be tracked.
    """
    tracker = WpAsync(pid, take_userfaultfd(pid) if uffd is None else uffd, scope)
    if not choice.events_ring_bytes:
        return tracker
    try:
        return WithEvents(tracker, PageFaults(pid, choice.events_ring_bytes))
    except BaseException:
        tracker.close()
        raise


_SEEN: Final = "a probe saw the kernel report a write to a page armed with UFFD_FEATURE_WP_ASYNC"
