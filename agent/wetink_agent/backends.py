"""Which backend tracks the targets of this agent, why, and how one is opened over a process."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from wetink_agent import offered, probe, procfs, resolver_loop, soft_dirty, wp_sync
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Backend
from wetink_agent.errors import KernelLacks, Untrackable
from wetink_agent.forks import ForkReader, WithForks
from wetink_agent.page_faults import PageFaults, WithEvents
from wetink_agent.shared_memory import Range
from wetink_agent.soft_dirty import SoftDirty
from wetink_agent.wp_async import Continued, WpAsync
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

    follow_fork: bool = False
    """Whether children are targets from their first instruction on: their parents wait in fork(2) for us."""


def choose(asked: BackendName, *, events_ring_bytes: int = 0, accept_risk: bool = False) -> Choice:
    """Probe this kernel and pick.

    Args:
        asked: What the user wants; AUTO picks the best that works here, and says what better ones lack.
        events_ring_bytes: See ``Choice``; only ``wp-async`` has such a stream, so AUTO picks nothing else then.
        accept_risk: See ``Choice``.

    Raises:
        KernelLacks: This kernel cannot.
    """
    by_itself = _BY_ITSELF[:1] if events_ring_bytes else _BY_ITSELF
    lacking: dict[BackendName, str] = {}
    for name in by_itself if asked is BackendName.AUTO else (asked,):
        why = _PROBES[name]()
        if why is None or (name is BackendName.WP_ASYNC and probe.is_forbidden_by_own_filter()):
            seen = _SEEN[name] if why is None else _UNSEEN
            reason = "; ".join([*(f"not {other}: {text}" for other, text in lacking.items()), seen])
            return Choice(name, reason + _more(name, events_ring_bytes), events_ring_bytes, accept_risk)
        lacking[name] = why
    message = "; ".join(f"this kernel cannot track with {name}: {why}" for name, why in lacking.items())
    raise KernelLacks(message)


def open_backend(
    choice: Choice, pid: int, uffd: int | None, scope: Sequence[Range], forks: ForkReader | None = None
) -> Backend:
    """Open a backend over a process. Takes milliseconds: not for an event loop.

    Args:
        choice: What ``choose`` gave.
        pid: The process.
        uffd: A userfaultfd that the process offered, owned from now on; without it the agent attaches.
        scope: The parts of the address space to track; empty means all of it.
        forks: Reads the fork events of a process that is attached to; without it there are none.

    Raises:
        TrackingError: It cannot be tracked.
    """
    if choice.name is BackendName.WP_SYNC:
        return _open_wp_sync(choice, pid, uffd, scope)
    if choice.name is BackendName.SOFT_DIRTY:
        if uffd is not None:
            os.close(uffd)  # it is not what finds the pages, but it says who offered them and which
        return SoftDirty(pid, scope)
    if uffd is None:
        taken = _userfaultfd(choice, pid)
        return _with_forks(choice, pid, taken, WpAsync(pid, taken, scope, follow_fork=forks is not None), forks)
    tracker = WpAsync(pid, uffd, scope)
    try:
        offered.check_is_over(pid, uffd)
    except BaseException:
        tracker.close()
        raise
    return _with_events(choice, pid, tracker)


def open_forked(choice: Choice, pid: int, uffd: int, scope: Sequence[Range], forks: ForkReader) -> Backend:
    """Open a backend over the child of a target, with the userfaultfd that came with the fork event.

    Args:
        choice: What ``choose`` gave.
        pid: The child.
        uffd: Owned from now on.
        scope: As the parent's.
        forks: Reads the descriptor.

    Raises:
        TrackingError: It cannot be tracked.
    """
    # Until it is read again: where this fails it is closed at once.
    forks.remove(uffd)
    try:
        continued = Continued(procfs.layout(pid), None, is_whole=False)
    except BaseException:
        os.close(uffd)
        raise
    tracker = WpAsync(pid, uffd, scope, continued=continued, follow_fork=True)
    return _with_forks(choice, pid, uffd, tracker, forks)


def _with_forks(choice: Choice, pid: int, uffd: int, tracker: WpAsync, forks: ForkReader | None) -> Backend:
    if forks is None:
        return _with_events(choice, pid, tracker)
    if not tracker.has_fork_events:
        forks.tell_refused()
        return _with_events(choice, pid, tracker)
    # Read before anything is registered: no fork waits for longer than that takes.
    followed = WithForks(tracker, forks, pid, uffd)
    return _with_events(choice, pid, followed)


def go_on(choice: Choice, pid: int, uffd: int, scope: Sequence[Range], continued: Continued) -> Backend:
    """Go on with the backend of another process. Takes milliseconds: not for an event loop.

    Args:
        choice: What ``choose`` gave.
        pid: The process.
        uffd: The userfaultfd that the other one tracked with, owned from now on.
        scope: The parts of the address space that are tracked; empty means all of it.
        continued: What the other one left.

    Raises:
        TargetExited, TargetReplaced: There is nothing to go on with.
        TrackingError: It cannot be tracked.
    """
    if choice.name is not BackendName.WP_ASYNC:
        os.close(uffd)
        message = f"process {pid} was tracked with wp-async before, and this agent tracks with {choice.name}"
        raise Untrackable(message)
    return _with_events(choice, pid, WpAsync(pid, uffd, scope, continued=continued))


def _with_events(choice: Choice, pid: int, tracker: Backend) -> Backend:
    if not choice.events_ring_bytes:
        return tracker
    try:
        return WithEvents(tracker, PageFaults(pid, choice.events_ring_bytes))
    except BaseException:
        tracker.close()
        raise


def _more(name: BackendName, events_ring_bytes: int) -> str:
    """Say what belongs to a backend here, as the end of its reason."""
    if name is BackendName.WP_SYNC:
        return "; the compiled loop answers" if resolver_loop.library() else "; Python answers, no loop was compiled"
    return "; with the stream of events" if events_ring_bytes and name is BackendName.WP_ASYNC else ""


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


_BY_ITSELF: Final = (BackendName.WP_ASYNC, BackendName.SOFT_DIRTY)
"""What AUTO tries, best first. Never ``wp-sync``, which can harm a target; ``soft-dirty`` stops one for a while in each
round, which the log says and its pace counts."""

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
