"""What this host allows the agent, each missing thing with the one change that would give it: ``wetink-agent doctor``.

Found out by doing where that does no harm, and by asking where it would. ``doctor_target`` looks at one process.
"""

import errno
import json
import os
import platform
import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from wetink_agent import probe, procfs, soft_dirty, wp_sync
from wetink_agent.errors import TrackingError
from wetink_agent.page_faults import PageFaults

CAP_DAC_READ_SEARCH: Final = 2
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_PERFMON: Final = 38
CAP_CHECKPOINT_RESTORE: Final = 40

EVENTS_RING_BYTES: Final = 512 << 10
"""What ``--events`` takes for each processor and target unless told otherwise."""

_YAMA_CAPABLE: Final = 2
_YAMA_NOBODY: Final = 3
_FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"
_FIRST_USER_NAMESPACE: Final = "user:[4026531837]"


class State(StrEnum):
    """How a thing is."""

    OK = "ok"
    MISSING = "missing"
    LIMITED = "limited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What, in a word.
        state: How it is. What is limited keeps nobody from tracking: it says what there would be with the change.
        found: What was found, a sentence.
        change: The one change that would give it; empty where nothing is missing.
    """

    name: str
    state: State
    found: str
    change: str = ""


def would_track(findings: Iterable[Finding]) -> bool:
    """Whether wp-async would work as far as can be told: nothing is missing."""
    return all(finding.state is not State.MISSING for finding in findings)


def lines(findings: Sequence[Finding], pid: int | None, *, as_json: bool) -> Iterator[str]:
    """Print findings, and what they come to.

    Args:
        findings: Of the host, and of a process.
        pid: Of that; None where none was looked at.
        as_json: One object for each, the last of which says what they come to.
    """
    about = "here" if pid is None else f"for process {pid}"
    if as_json:
        yield from (json.dumps(asdict(finding)) for finding in findings)
        yield json.dumps({"wp_async": would_track(findings), "pid": pid})
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        yield f"{finding.state:<8} {finding.name:<{width}}  {finding.found}"
        if finding.change:
            yield f"{'':<8} {'':<{width}}  -> {finding.change}"
    yield f"\nwp-async would {'' if would_track(findings) else 'not '}work {about}"


def capabilities() -> frozenset[int]:
    """Give the numbers of this process's effective capabilities."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    mask = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def host() -> Iterator[Finding]:
    """Look at this host, and at what the agent may do on it."""
    held = capabilities()
    yield _processor()
    yield _wp_async()
    yield _yama(held)
    yield _other_users(held)
    yield _filters(held)
    yield _shared_memory(held)
    yield _namespaces()
    yield _events()
    yield _memlock()
    yield _wp_sync()
    yield _soft_dirty()


def is_filtered() -> bool:
    """Whether a seccomp filter watches this process itself."""
    return procfs.has_seccomp(os.getpid(), os.getpid())


def yama_scope() -> int:
    """Give Yama's ``ptrace_scope``; 0 where the kernel has no Yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _processor() -> Finding:
    machine = platform.machine()
    if machine == "x86_64":
        return Finding("processor", State.OK, "x86-64")
    change = "track x86-64 hosts, or let processes offer their memory (--handshake)"
    return Finding("processor", State.MISSING, f"{machine}: attaching is for x86-64 alone", change)


def _wp_async() -> Finding:
    why = probe.why_not_wp_async()
    if why is None:
        found = "a probe saw the kernel report a write to a page armed with UFFD_FEATURE_WP_ASYNC"
        return Finding("kernel", State.OK, found)
    if probe.is_forbidden_by_own_filter():
        found = "a seccomp filter of the agent's own keeps it from the probe; targets tell when they are attached"
        return Finding("kernel", State.UNKNOWN, found, "run doctor without that filter, on the host")
    return Finding("kernel", State.MISSING, f"wp-async does not work: {why}", _change_of_kernel(why))


def _change_of_kernel(why: str) -> str:
    if os.strerror(errno.ENOSYS) in why:
        return "run a kernel with CONFIG_USERFAULTFD"
    return "run Linux 6.9 or newer"


def _yama(held: frozenset[int]) -> Finding:
    scope = yama_scope()
    if not scope:
        return Finding("yama", State.OK, "ptrace_scope is 0, or the kernel has no Yama")
    if scope >= _YAMA_NOBODY:
        change = "boot without kernel.yama.ptrace_scope=3, or let processes offer their memory (--handshake)"
        return Finding("yama", State.MISSING, f"ptrace_scope is {scope}: nobody may attach until the next boot", change)
    if CAP_SYS_PTRACE in held:
        return Finding("yama", State.OK, f"ptrace_scope is {scope}, and the agent has CAP_SYS_PTRACE")
    found = f"ptrace_scope is {scope}: who has no CAP_SYS_PTRACE attaches to " + (
        "nobody" if scope >= _YAMA_CAPABLE else "its own children alone"
    )
    return Finding("yama", State.MISSING, found, "give the agent CAP_SYS_PTRACE, or set kernel.yama.ptrace_scope to 0")


def _other_users(held: frozenset[int]) -> Finding:
    lacking = [name for name, bit in _FOR_OTHERS.items() if bit not in held]
    if not lacking:
        return Finding("users", State.OK, "processes of any user: it has CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH")
    found = f"processes of user {os.geteuid()} alone, and those that have no more rights than the agent"
    return Finding("users", State.LIMITED, found, f"give the agent {' and '.join(lacking)}")


def _filters(held: frozenset[int]) -> Finding:
    if is_filtered():
        found = "the agent is under a seccomp filter itself, so that it cannot suspend that of a target"
        change = "run the agent without one (Docker: --security-opt seccomp=unconfined), or with --seccomp-allows"
        return Finding("seccomp", State.LIMITED, found, change)
    if CAP_SYS_ADMIN not in held:
        found = "targets under a seccomp filter are refused: only CAP_SYS_ADMIN may suspend it"
        return Finding("seccomp", State.LIMITED, found, "give the agent CAP_SYS_ADMIN, or say --seccomp-allows")
    return Finding("seccomp", State.OK, "targets under a seccomp filter are tracked: it has CAP_SYS_ADMIN")


def _shared_memory(held: frozenset[int]) -> Finding:
    if held & {CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE}:
        return Finding("shared-memory", State.OK, "all pages of shared memory are seen")
    found = "of shared memory, only pages that the target itself has touched are seen"
    return Finding("shared-memory", State.LIMITED, found, "give the agent CAP_CHECKPOINT_RESTORE")


def _namespaces() -> Finding:
    try:
        pid, user = (str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "user"))
    except OSError as error:
        return Finding("namespaces", State.UNKNOWN, f"cannot be looked at: {error.strerror}", "mount /proc")
    if pid != _FIRST_PID_NAMESPACE:
        found = "a pid namespace of its own: processes outside of it are not seen"
        return Finding("namespaces", State.LIMITED, found, "run it in the host's (Docker: --pid host, a pod: hostPID)")
    if user != _FIRST_USER_NAMESPACE:
        found = "a user namespace of its own: its capabilities count within that alone"
        return Finding("namespaces", State.LIMITED, found, "run it in the host's (a pod: hostUsers: true)")
    return Finding("namespaces", State.OK, "the host's pid and user namespaces")


def _events() -> Finding:
    try:
        PageFaults(os.getpid(), EVENTS_RING_BYTES).close()
    except (TrackingError, OSError) as error:
        change = "give the agent CAP_PERFMON, or set kernel.perf_event_paranoid to 1"
        return Finding("events", State.LIMITED, f"--events does not work: {error}", change)
    return Finding("events", State.OK, "--events works: a stream of page faults could be opened")


def _memlock() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    wanted = EVENTS_RING_BYTES * (os.cpu_count() or 1)
    if soft == resource.RLIM_INFINITY or soft >= wanted or CAP_PERFMON in capabilities():
        return Finding("memlock", State.OK, "the rings of --events have room")
    found = f"RLIMIT_MEMLOCK is {soft} bytes, and the rings of one target with --events take {wanted}"
    return Finding("memlock", State.LIMITED, found, "raise it (LimitMEMLOCK=), or give --events-ring a smaller size")


def _wp_sync() -> Finding:
    why = wp_sync.why_not_wp_sync()
    if why is not None:
        return Finding("wp-sync", State.LIMITED, f"--backend wp-sync does not work: {why}", _change_of_kernel(why))
    sysctl = Path("/proc/sys/vm/unprivileged_userfaultfd")
    if sysctl.exists() and sysctl.read_text(encoding="ascii").strip() == "0":
        found = "--backend wp-sync works for targets with CAP_SYS_PTRACE alone"
        return Finding("wp-sync", State.LIMITED, found, "set vm.unprivileged_userfaultfd to 1")
    return Finding("wp-sync", State.OK, "--backend wp-sync works")


def _soft_dirty() -> Finding:
    why = soft_dirty.why_not_soft_dirty()
    if why is None:
        return Finding("soft-dirty", State.OK, "--backend soft-dirty works")
    change = "none is needed where wp-async works; else a kernel with CONFIG_MEM_SOFT_DIRTY"
    return Finding("soft-dirty", State.LIMITED, f"--backend soft-dirty does not work: {why}", change)


_FOR_OTHERS: Final = {"CAP_SYS_PTRACE": CAP_SYS_PTRACE, "CAP_DAC_READ_SEARCH": CAP_DAC_READ_SEARCH}
