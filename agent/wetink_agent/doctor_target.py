"""What one process allows: whether it can be attached, and what of its memory can change unseen.

Nothing is stopped, and no thread is seized: what only attaching can tell is not told here.
"""

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wetink import syscalls
from wetink.v1 import types_pb2
from wetink_agent import descriptors, doctor, offered, procfs
from wetink_agent.doctor import Finding, State
from wetink_agent.errors import NoSuchProcess
from wetink_agent.mappings import table_of

ELF_CLASS_AT: Final = 4
ELF_CLASS_64: Final = 2

MAPPINGS_SHARE_MAX: Final = 0.9
"""Part of vm.max_map_count from which on registering may split more mappings than there may be."""

USERFAULTFD: Final = "anon_inode:[userfaultfd]"

_NO_DESCRIPTOR: Final = (1 << 31) - 1
_REMEDY_OF_RIGHTS: Final = "run the agent as its user, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"


def target(pid: int) -> Iterator[Finding]:
    """Look at a process; after what makes all else meaningless nothing more is said.

    Raises:
        NoSuchProcess: It is not there, or exits meanwhile.
    """
    kind = _kind(pid)
    yield kind
    if kind.state is State.MISSING:
        return
    yield _readable(pid)
    yield _attachable(pid)
    yield _tracer(pid)
    yield _frozen(pid)
    yield _seccomp(pid)
    yield _namespaces(pid)
    try:
        yield _vdso(pid)
        yield _userfaultfd(pid)
        yield _descriptors(pid)
        yield _mappings(pid)
        yield _unseen(pid)
    except PermissionError:
        return  # what may not be read was told above


def _kind(pid: int) -> Finding:
    stat = procfs.stat(pid)
    why = ""
    if pid == os.getpid():
        why = "it is this agent, which cannot track itself"
    elif stat.is_kernel_thread:
        why = "a kernel thread, which has no memory of its own"
    elif not _has_living_thread(pid):
        why = "it has exited, and waits to be reaped"
    if why:
        return Finding("process", State.MISSING, why, "name another process")
    try:
        with Path(f"/proc/{pid}/exe").open("rb") as program:
            head = program.read(ELF_CLASS_AT + 1)
    except OSError as error:
        return Finding(
            "process", State.UNKNOWN, f"what it runs cannot be looked at: {error.strerror}", _REMEDY_OF_RIGHTS
        )
    if head[ELF_CLASS_AT:] != bytes([ELF_CLASS_64]):
        found = "a 32-bit program: only 64-bit ones can be attached"
        return Finding("process", State.MISSING, found, "let it offer its memory (--handshake)")
    return Finding("process", State.OK, f"a 64-bit program of user {procfs.user_of(pid)}")


def _has_living_thread(pid: int) -> bool:
    try:
        return procfs.living_thread(pid) > 0
    except NoSuchProcess:
        return False


def _readable(pid: int) -> Finding:
    try:
        os.close(os.open(f"/proc/{pid}/task/{procfs.living_thread(pid)}/pagemap", os.O_RDONLY | os.O_CLOEXEC))
        procfs.read_maps(pid)
    except PermissionError as error:
        return Finding("page-map", State.MISSING, f"it may not be read: {error.strerror}", _REMEDY_OF_RIGHTS)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _gone(pid) from error
    return Finding("page-map", State.OK, "it may be read")


def _attachable(pid: int) -> Finding:
    """Ask for a descriptor that cannot be there: the kernel looks first whether we may attach."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise _gone(pid) from error
    try:
        os.close(syscalls.pidfd_getfd(pidfd, _NO_DESCRIPTOR))
    except OSError as error:
        if error.errno == errno.EBADF:
            return Finding("attach", State.OK, "the agent may attach, and take a descriptor")
        if error.errno == errno.ESRCH:
            # Of a leader that has exited.
            return Finding(
                "attach", State.UNKNOWN, "its first thread has ended: whether the agent may attach shows then"
            )
        found = f"the agent may not attach: {error.strerror}"
        return Finding("attach", State.MISSING, found, _change_of_attach(pid))
    finally:
        os.close(pidfd)
    return Finding("attach", State.OK, "the agent may attach, and take a descriptor")


def _change_of_attach(pid: int) -> str:
    held = doctor.capabilities()
    if doctor.CAP_SYS_PTRACE in held:
        if doctor.is_filtered():
            return "let the agent's own seccomp filter pass pidfd_getfd"
        return (
            "look for a security module that forbids it (AppArmor, SELinux), or let it offer its memory (--handshake)"
        )
    if doctor.yama_scope() and procfs.user_of(pid) == os.geteuid():
        return "give the agent CAP_SYS_PTRACE, or set kernel.yama.ptrace_scope to 0"
    return _REMEDY_OF_RIGHTS


def _tracer(pid: int) -> Finding:
    tracer = procfs.tracer_of(pid)
    if tracer:
        found = f"process {tracer} traces it: only one can"
        return Finding("tracer", State.MISSING, found, f"detach process {tracer} (a debugger, strace)")
    return Finding("tracer", State.OK, "nobody traces it")


def _frozen(pid: int) -> Finding:
    if procfs.is_cgroup_frozen(pid):
        found = "its cgroup is frozen, so that no thread can be borrowed"
        return Finding("frozen", State.MISSING, found, "thaw the cgroup while it is attached")
    state = procfs.thread_state(pid, procfs.living_thread(pid))
    if state == "D":
        found = "the thread to be borrowed sleeps uninterruptibly: attaching waits for it, and gives up after a while"
        return Finding("frozen", State.LIMITED, found, "let what it waits for come: a disk, a file server")
    return Finding("frozen", State.OK, "its threads can be stopped")


def _seccomp(pid: int) -> Finding:
    thread = procfs.living_thread(pid)
    if not procfs.has_seccomp(pid, thread):
        return Finding("seccomp", State.OK, "no filter is over it")
    if doctor.is_filtered():
        found = "a seccomp filter is over it, and one over the agent, which therefore cannot suspend it"
        return Finding("seccomp", State.MISSING, found, "run the agent without one")
    if doctor.CAP_SYS_ADMIN not in doctor.capabilities():
        found = "a seccomp filter is over it, which might kill it for a foreign system call"
        change = "give the agent CAP_SYS_ADMIN, to suspend it"
        if not procfs.has_strict_seccomp(pid, thread):
            change += "; or say --seccomp-allows, where it allows userfaultfd"
        return Finding("seccomp", State.MISSING, found, change)
    return Finding("seccomp", State.OK, "a filter is over it, which the agent may suspend")


def _namespaces(pid: int) -> Finding:
    try:
        apart = [
            kind
            for kind in ("pid", "user", "mnt")
            if Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
        ]
    except PermissionError:
        return Finding("namespaces", State.UNKNOWN, "they may not be looked at", _REMEDY_OF_RIGHTS)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _gone(pid) from error
    if apart:
        return Finding("namespaces", State.OK, f"others than the agent's: {', '.join(apart)}; that is no hindrance")
    return Finding("namespaces", State.OK, "the agent's own")


def _vdso(pid: int) -> Finding:
    if procfs.vdso_range(pid)[1]:
        return Finding("vdso", State.OK, "it has one, where attaching finds room")
    found = "it has unmapped its vdso, where attaching needs room"
    return Finding("vdso", State.MISSING, found, "let it offer its memory (--handshake)")


def _userfaultfd(pid: int) -> Finding:
    pagemap = os.open(f"/proc/{pid}/task/{procfs.living_thread(pid)}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_registered = offered.has_registered(pagemap)
    except OSError:
        return Finding("userfaultfd", State.UNKNOWN, "the kernel does not tell whether its memory is registered", "")
    finally:
        os.close(pagemap)
    if is_registered:
        found = "some of its memory is registered with a userfaultfd for write-protection: its own, or another agent's"
        return Finding("userfaultfd", State.MISSING, found, "stop the agent that tracks it, or the use of its own")
    if USERFAULTFD in _open(pid).values():
        found = "it has a userfaultfd of its own open: memory that it registers later cannot be tracked"
        return Finding("userfaultfd", State.LIMITED, found, "have it not use userfaultfd while it is tracked")
    return Finding("userfaultfd", State.OK, "it uses none")


def _open(pid: int) -> dict[int, str]:
    """Give the descriptors of a process, and what each is of."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[int(path.name)] = str(path.readlink())
    return found


def _descriptors(pid: int) -> Finding:
    limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    soft = next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files"))
    if soft.isdecimal() and _open(pid).keys() >= set(range(int(soft))):
        found = f"it has {soft} descriptors open, and may have no more: attaching needs one for a moment"
        return Finding("descriptors", State.MISSING, found, f"raise its RLIMIT_NOFILE (prlimit --pid {pid} --nofile)")
    return Finding("descriptors", State.OK, "it may open one more, for a moment")


def _mappings(pid: int) -> Finding:
    count = procfs.read_maps(pid).count(b"\n")
    most = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
    if count > most * MAPPINGS_SHARE_MAX:
        found = f"{count} mappings of at most {most}: what would have to be split is reported in every round instead"
        return Finding("mappings", State.LIMITED, found, "raise vm.max_map_count")
    return Finding("mappings", State.OK, f"{count} mappings")


def _unseen(pid: int) -> Finding:
    """Say what of its memory can change with no sign of it."""
    found = descriptors.look(pid)
    buffers, _ = descriptors.buffers_of(found)
    table = table_of(procfs.read_maps(pid), procfs.mounts(pid), buffers, found.writers)
    sizes: Counter[str] = Counter()
    for mapping in table.mappings:
        if mapping.uncertainty in _TOLD:
            sizes[_TOLD[mapping.uncertainty]] += mapping.range.size_bytes
    told = [f"{size >> 10} KiB of {what}" for what, size in sizes.items()]
    told += [f"{writer.what}" for writer in table.unseen_writers]
    if not told:
        return Finding("unseen", State.OK, "nothing is known that could change its memory unseen")
    text = f"may change unseen: {'; '.join(told)}"
    return Finding("unseen", State.LIMITED, text, "drain its I/O before the last round, and ask for that one strictly")


def _gone(pid: int) -> NoSuchProcess:
    return NoSuchProcess(f"there is no process {pid}: it has exited, or the pid is wrong")


_TOLD: Final = {
    types_pb2.UNCERTAINTY_SHARED: "shared memory",
    types_pb2.UNCERTAINTY_HUGE_PAGES: "huge pages",
    types_pb2.UNCERTAINTY_REGISTERED_BUFFER: "buffers registered with an io_uring",
}
