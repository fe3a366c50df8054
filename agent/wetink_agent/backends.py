"""Which backend tracks the targets of this agent, why, and how one is opened over a process."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from wetink_agent import probe, resolver_loop, soft_dirty, wp_sync
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Backend
from wetink_agent.errors import KernelLacks, Untrackable
from wetink_agent.page_faults import PageFaults, WithEvents
from wetink_agent.shared_memory import Range
from wetink_agent.soft_dirty import SoftDirty
from wetink_agent.wp_async import WpAsync
from wetink_agent.wp_sync import WpSync, why_not_wp_sync, why_risky


class BackendName(StrEnum):
    """What can be asked for with ``--backend``."""

    AUTO = "auto"
    WP_ASYNC = "wp-async"
    WP_SYNC = "wp-sync"
    SOFT_DIRTY = "soft-dirty"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that was picked, and what was asked of it."""

    name: BackendName = BackendName.WP_ASYNC
    reason: str = ""
    """Why it is this one: shown wherever targets are listed."""

    events_ring_bytes: int = 0
    """Ring of each CPU for the stream of events; 0 for no stream. ``wp-sync`` has its events without."""

    accept_risk: bool = False
    """Whether targets are tracked that ``wp-sync`` can harm."""

    seccomp_allows: bool = False
    """See ``take_userfaultfd``."""


def choose(asked: BackendName, *, events_ring_bytes: int = 0, accept_risk: bool = False) -> Choice:
    """Probe this kernel and pick.

    Args:
        asked: What the user wants; AUTO picks what no target ever waits for, ``wp-async``, or says what else works.
        events_ring_bytes: See ``Choice``.
        accept_risk: See ``Choice``.

    Raises:
        KernelLacks: This kernel cannot.
    """
    name = BackendName.WP_ASYNC if asked is BackendName.AUTO else asked
    lacking = _PROBES[name]()
    unknown = lacking is not None and name is BackendName.WP_ASYNC and probe.is_forbidden_by_own_filter()
    if lacking is not None and not unknown:
        message = f"this kernel cannot track with {name}: {lacking}"
        if asked is BackendName.AUTO and _PROBES[BackendName.SOFT_DIRTY]() is None:
            message += "; it can with --backend soft-dirty, which stops the target for a while in each round"
        raise KernelLacks(message)
    reason = _UNSEEN if unknown else _SEEN[name]
    if name is BackendName.WP_SYNC:
        reason += "; the compiled loop answers" if resolver_loop.library() else "; Python answers, no loop was compiled"
    if events_ring_bytes and name is BackendName.WP_ASYNC:
        reason += "; with the stream of events"
    return Choice(name, reason, events_ring_bytes, accept_risk)


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
    if choice.name is BackendName.WP_SYNC:
        return _open_wp_sync(choice, pid, uffd, scope)
    if choice.name is BackendName.SOFT_DIRTY:
        if uffd is not None:
            os.close(uffd)  # it is not what finds the pages, but it says who offered them and which
        return SoftDirty(pid, scope)
    tracker = WpAsync(pid, _userfaultfd(choice, pid) if uffd is None else uffd, scope)
    if not choice.events_ring_bytes:
        return tracker
    try:
        return WithEvents(tracker, PageFaults(pid, choice.events_ring_bytes))
    except BaseException:
        tracker.close()
        raise


def _userfaultfd(choice: Choice, pid: int) -> int:
    return take_userfaultfd(pid, seccomp_allows=choice.seccomp_allows)


def _open_wp_sync(choice: Choice, pid: int, uffd: int | None, scope: Sequence[Range]) -> WpSync:
    risk = None if choice.accept_risk else why_risky(pid)
    if risk is not None:
        if uffd is not None:
            os.close(uffd)
        message = f"{risk}; use --backend wp-async, or --accept-risk if that may happen"
        raise Untrackable(message)
    return WpSync(pid, _userfaultfd(choice, pid) if uffd is None else uffd, scope)


_PROBES: Final[Mapping[BackendName, Callable[[], str | None]]] = {
    # Looked up when it is called: the probe is what tests replace.
    BackendName.WP_ASYNC: lambda: probe.why_not_wp_async(),  # noqa: PLW0108
    BackendName.WP_SYNC: why_not_wp_sync,
    BackendName.SOFT_DIRTY: lambda: soft_dirty.why_not_soft_dirty(),  # noqa: PLW0108
}
HAZARDS: Final[Mapping[BackendName, tuple[str, ...]]] = {
    BackendName.WP_ASYNC: (),
    BackendName.WP_SYNC: wp_sync.HAZARDS,
    BackendName.SOFT_DIRTY: soft_dirty.HAZARDS,
}
"""What each backend can do to a target."""

_SEEN: Final = {
    BackendName.WP_ASYNC: "a probe saw the kernel report a write to a page armed with UFFD_FEATURE_WP_ASYNC",
    BackendName.WP_SYNC: "asked for, and a probe found the features it needs",
    BackendName.SOFT_DIRTY: "a probe saw the soft-dirty bit set by a write and cleared by clear_refs",
}

_UNSEEN: Final = "the agent's own seccomp filter forbids the probe, so it shows at each target whether the kernel can"
