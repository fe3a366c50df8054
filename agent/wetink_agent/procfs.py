"""What ``/proc`` tells about processes and their memory, parsed once and here only.

Source: proc_pid_maps(5), proc_pid_stat(5), proc_pid_status(5), proc_pid_cgroup(5).
"""

import contextlib
import errno
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from wetink_agent import cgroups
from wetink_agent.cgroups import Freezer
from wetink_agent.errors import NoSuchProcess

COMMAND_CHARACTERS_MAX: Final = 256
"""Characters of a command line that are kept: bound of the contract."""

ANCESTORS_MAX: Final = 64
"""Generations that are told: bound of the contract."""

LIVING_LOOKS_MAX: Final = 50
"""Looks for a thread that lives, where each may end while it is looked at: they all do where the process does."""

LISTINGS_MAX: Final = 50
"""Listings of threads that are made again, since threads began or ended meanwhile."""

_READ_BYTES: Final = 64 << 10
_ADDR_NO_RANDOMIZE: Final = 0x0040000  # linux/personality.h
_PF_KTHREAD: Final = 0x00200000
_STATE_STOPPED: Final = frozenset("Tt")
_STATE_GONE: Final = frozenset("ZX")
_USERFAULTFD_FLAGS: Final = frozenset({"um", "uw", "ui"})
_SECCOMP_MODE_DISABLED: Final = "0"
_SECCOMP_MODE_STRICT: Final = "1"

_Found = TypeVar("_Found")

_MAPPING: Final = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([ps]) ([0-9a-f]+) ([0-9a-f:]+) ([0-9]+)[ ]*(.*)$", re.MULTILINE
)
_NAMED_MAPPING: Final = re.compile(_MAPPING.pattern.replace(rb"[ ]*(.*)$", rb"[ ]+(\S.*)$"), re.MULTILINE)
# With inode 0: a file may have such a name too.
_VDSO: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ [0-9a-f]+ 00:00 0 +\[vdso\]$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of ``/proc/PID/maps``."""

    start: int
    end: int
    writable: bool
    shared: bool
    device: str
    inode: int
    name: str
    offset: int
    protection: int
    """PROT_READ, PROT_WRITE and PROT_EXEC of mmap(2)."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``/proc/PID/stat`` tells."""

    state: str
    parent_pid: int
    flags: int
    thread_count: int
    """Of the process, with those that have ended and are not reaped yet."""
    start_time_ticks: int
    layout: tuple[int, int, int]
    """Where program text and stack begin: execve(2) sets them anew."""

    @property
    def is_kernel_thread(self) -> bool:
        """Whether it is a thread of the kernel, which has no memory of its own."""
        return bool(self.flags & _PF_KTHREAD)

    @property
    def is_gone(self) -> bool:
        """Whether it has exited and waits to be reaped."""
        return self.state in _STATE_GONE


def read_maps(pid: int) -> bytes:
    """Give ``/proc/PID/maps`` as it is; empty for a process without memory, a kernel thread or a zombie.

    Raises:
        NoSuchProcess: It is gone.
        PermissionError: It belongs to somebody else.
    """
    # Where the first thread has ended and others live, only they still show the memory.
    return _read(pid, "maps") or _of_living_thread(pid, "maps", bool)


def parse_maps(maps: bytes, *, named: bool = False) -> Iterator[Mapping]:
    """Parse what ``read_maps`` gave, in ascending order; ``named`` leaves out what has no name, which is not shared."""
    for match in (_NAMED_MAPPING if named else _MAPPING).finditer(maps):
        start, end, readable, writable, executable, shared, offset, device, inode, name = match.groups()
        yield Mapping(
            start=int(start, 16),
            end=int(end, 16),
            writable=writable == b"w",
            shared=shared == b"s",
            device=device.decode(),
            inode=int(inode),
            name=os.fsdecode(name),
            offset=int(offset, 16),
            protection=(readable == b"r") * mmap.PROT_READ
            | (writable == b"w") * mmap.PROT_WRITE
            | (executable == b"x") * mmap.PROT_EXEC,
        )


def is_hugetlb(mapping: Mapping, devices: frozenset[str]) -> bool:
    """Whether a mapping is of huge pages; ``devices`` are those of hugetlbfs, as ``memory_devices`` gives them."""
    return mapping.name.startswith("/anon_hugepage") or mapping.device in devices


def vdso_range(pid: int) -> tuple[int, int]:
    """Give the first address of a process's vdso and the one after its last; two zeros where it has none."""
    match = _VDSO.search(read_maps(pid))
    return (int(match[1], 16), int(match[2], 16)) if match else (0, 0)


def registered(pid: int) -> Iterator[tuple[int, int, frozenset[str]]]:
    """Give the mappings of a process that are registered with a userfaultfd, each with its flags, as in ``VmFlags``.

    Those are ``um`` for missing pages, ``uw`` for write-protection, ``ui`` for minor faults. The kernel walks all of
    the memory for the answer: not for every round.

    Raises:
        NoSuchProcess: It is gone.
        PermissionError: It belongs to somebody else.
    """
    start = end = 0
    for line in _of_living_thread(pid, "smaps", bool).split(b"\n"):
        if (match := _MAPPING.match(line)) is not None:
            start, end = int(match[1], 16), int(match[2], 16)
        elif line.startswith(b"VmFlags:"):
            flags = frozenset(line.decode().split()[1:]) & _USERFAULTFD_FLAGS
            if flags:
                yield start, end, flags


def stat(pid: int) -> Stat:
    """Give what ``/proc/PID/stat`` tells.

    Raises:
        NoSuchProcess: It is gone.
    """
    return parse_stat(_read(pid, "stat"))


def ancestors(pid: int) -> list[int]:
    """List the parent of a process, that one's parent and so on, as far as they are known; without the init process."""
    found: list[int] = []
    with contextlib.suppress(NoSuchProcess):
        while len(found) < ANCESTORS_MAX and (pid := stat(pid).parent_pid) > 1:
            found.append(pid)
    return found


def is_frozen(pid: int) -> bool:
    """Whether every thread of a process is stopped, by a signal, a tracer or its cgroup's freezer."""
    try:
        return _is_every_thread_stopped(pid) or is_cgroup_frozen(pid)
    except NoSuchProcess:
        return False


def tracer_of(pid: int, tid: int = 0) -> int:
    """Give the id of the thread that traces a process, or one thread of it, or 0."""
    return int(_status_field(pid, "TracerPid", task=f"task/{tid}/" if tid else "") or 0)


def user_of(pid: int) -> int:
    """Give the effective user of a process."""
    return int(_status_field(pid, "Uid").split()[1])


def has_seccomp(pid: int, tid: int) -> bool:
    """Whether seccomp, strict or with a filter, watches the system calls of a thread."""
    return _status_field(pid, "Seccomp", task=f"task/{tid}/") not in {"", _SECCOMP_MODE_DISABLED}


def has_strict_seccomp(pid: int, tid: int) -> bool:
    """Whether seccomp kills a thread for all but read, write, exit and sigreturn."""
    return _status_field(pid, "Seccomp", task=f"task/{tid}/") == _SECCOMP_MODE_STRICT


def has_deliverable_signal(pid: int, tid: int) -> bool:
    """Whether a signal waits for a thread that it does not block."""
    fields = dict(line.split(":", 1) for line in _lines(pid, f"task/{tid}/status"))
    thread, process, blocked = (int(fields[name], 16) for name in ("SigPnd", "ShdPnd", "SigBlk"))
    return bool((thread | process) & ~blocked)


def living_thread(pid: int) -> int:
    """Give a thread of a process that has not ended: the leader, or the first that lives where that has exited.

    Always the same one, so that of two agents that attach only one can have it.

    Raises:
        NoSuchProcess: It has none.
    """
    if not stat(pid).is_gone:
        return pid
    for _ in range(LIVING_LOOKS_MAX):
        found = sorted(threads(pid))
        for tid in found:
            with contextlib.suppress(NoSuchProcess):
                if not parse_stat(_read(pid, f"task/{tid}/stat")).is_gone:
                    return tid
        if found == [pid]:
            break
    message = f"process {pid} has exited and waits to be reaped"
    raise NoSuchProcess(message)


def open_pagemap(pid: int) -> int:
    """Open the page map of a process, also of one whose first thread has ended.

    Raises:
        NoSuchProcess: It is gone.
        PermissionError: It may not be read.
    """
    return _with_living_thread(pid, lambda name: os.open(f"{name}/pagemap", os.O_RDONLY | os.O_CLOEXEC))


def _of_living_thread(pid: int, name: str, is_whole: Callable[[bytes], bool]) -> bytes:
    """Read a file of a thread that lives.

    Args:
        pid: The process.
        name: Of the file.
        is_whole: Whether it shows the process's memory: a thread that is about to end has given it up.
    """

    def read(directory: str) -> bytes:
        try:
            text = _read_file(f"{directory}/{name}")
        except OSError as error:
            # The mounts of one that has given up its namespaces.
            if error.errno == errno.EINVAL:
                raise ProcessLookupError from error
            raise
        # The first thread is the process's own: a thread of the kernel has no memory, and shows none.
        if not is_whole(text) and not directory.endswith(f"/task/{pid}"):
            raise ProcessLookupError
        return text

    return _with_living_thread(pid, read)


def _with_living_thread(pid: int, look: Callable[[str], _Found]) -> _Found:
    """Look at the directory of a thread that lives, and at another's where that has ended meanwhile.

    Threads may come and go all the while, and the end of one says nothing of the process.
    """
    for _ in range(LIVING_LOOKS_MAX):
        tid = living_thread(pid)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return look(f"/proc/{pid}/task/{tid}")
    raise _gone(pid)


def command(pid: int, *, whole: bool = False) -> str:
    """Give the command line of a process, cut at its bound or whole; its name in brackets where it has none."""
    words = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    if not words:
        words = f"[{_read(pid, 'comm').decode(errors='replace').strip()}]"
    return _printable(words if whole else words[:COMMAND_CHARACTERS_MAX])


def thread_name(pid: int, tid: int) -> str:
    """Give the name of a thread.

    Raises:
        NoSuchProcess: It is gone.
    """
    return _printable(_read(pid, f"task/{tid}/comm").decode(errors="replace").strip())


def thread_ids_inside(pid: int) -> dict[int, int]:
    """Give the threads of a process in a pid namespace of its own: the id of each there, and here. Else nothing.

    Raises:
        NoSuchProcess: It is gone.
    """
    if len(_status_field(pid, "NSpid").split()) < 2:  # noqa: PLR2004 - one for each namespace from ours down
        return {}
    ids = {}
    for tid in threads(pid):
        with contextlib.suppress(NoSuchProcess):
            ids[int(_status_field(pid, "NSpid", task=f"task/{tid}/").split()[-1])] = tid
    return ids


def cgroup(pid: int) -> str:
    """Give the cgroup path of a process: of the unified hierarchy unless that is the root, else the longest."""
    paths = cgroup_paths(pid)
    return paths[0] if paths[0] not in {"", "/"} else max(paths, key=len)


def cgroup_paths(pid: int) -> list[str]:
    """Give the cgroup path of a process in each hierarchy: first in the unified one, empty where there is none."""
    return cgroup_paths_of(_lines(pid, "cgroup"))


def cgroup_paths_of(lines: Iterable[str]) -> list[str]:
    """Give what ``cgroup_paths`` does, of the lines of ``/proc/PID/cgroup``."""
    unified, paths = "", []
    for line in lines:
        number, _, path = line.split(":", 2)
        if number == "0":
            unified = path
        else:
            paths.append(path)
    return [unified, *paths]


def freezers(pid: int) -> list[Freezer]:
    """Give the freezers of the cgroups that a process is in; see ``cgroups.freezers``."""
    return cgroups.freezers(_lines(pid, "cgroup"))


def pids() -> list[int]:
    """Give every process of this pid namespace."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def boot_id() -> str:
    """Give the id of this boot of this host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def memory_devices(pid: int, *types: str) -> frozenset[str]:
    """Give the device numbers, as ``maps`` writes them, of the mounts a process sees whose files are memory.

    Args:
        pid: The process.
        types: Names of file systems; none means tmpfs and hugetlbfs.
    """
    wanted = types or ("tmpfs", "hugetlbfs")
    devices = set()
    for device, kind in mounts(pid).items():
        if kind in wanted:
            devices.add(device)
    return frozenset(devices)


def mounts(pid: int) -> dict[str, str]:
    """Give the file system of each mount a process sees, by its device number as ``maps`` writes it."""
    found = {}
    for line in lines_of(_of_living_thread(pid, "mountinfo", bool)):
        fields, _, rest = line.partition(" - ")
        major, minor = fields.split()[2].split(":")
        found[f"{int(major):02x}:{int(minor):02x}"] = rest.split(" ", 1)[0]
    return found


def layout(pid: int) -> tuple[int, int, int]:
    """Give where program text and stack of a process begin: execve(2) sets them anew."""
    leader = stat(pid)
    if not leader.is_gone:
        return leader.layout
    # The first thread has none of them when it has ended and others live.
    return parse_stat(_of_living_thread(pid, "stat", lambda text: any(parse_stat(text).layout))).layout


def has_random_layout(pid: int) -> bool:
    """Whether execve(2) would give a process another layout by chance; False where that cannot be found out."""
    try:
        personality = int(_read(pid, "personality"), 16)
    except PermissionError:
        return False
    sysctl = Path("/proc/sys/kernel/randomize_va_space").read_text(encoding="ascii").strip()
    return sysctl != "0" and not personality & _ADDR_NO_RANDOMIZE


def threads(pid: int) -> list[int]:
    """Give the ids of a process's threads, those that have ended too while it lives.

    A listing may lack threads that live, where one ends while the kernel is at it: so it is made again until it has as
    many as there are. Where threads come and go all the while, it has all that were seen.

    Raises:
        NoSuchProcess: It is gone.
    """
    seen: dict[int, None] = {}
    for _ in range(LISTINGS_MAX):
        try:
            found = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        except (FileNotFoundError, ProcessLookupError) as error:
            raise _gone(pid) from error
        if len(found) == stat(pid).thread_count:
            return found
        seen |= dict.fromkeys(found)
    return list(seen)


def _is_every_thread_stopped(pid: int) -> bool:
    # Asked twice a round of each target: as a rule the first thread runs, and the others need not even be listed.
    if thread_state(pid, pid) not in _STATE_STOPPED | _STATE_GONE:
        return False
    is_one_stopped = False
    for tid in threads(pid):
        state = thread_state(pid, tid)
        if state in _STATE_STOPPED:
            is_one_stopped = True
        elif state not in _STATE_GONE:
            return False
    return is_one_stopped


def thread_state(pid: int, tid: int) -> str:
    """Give the state letter of a thread, as in proc_pid_stat(5).

    Raises:
        NoSuchProcess: It is gone.
    """
    return parse_stat(_read(pid, f"task/{tid}/stat")).state


def is_cgroup_frozen(pid: int) -> bool:
    """Whether the freezer of a process's cgroup, of either version, holds it.

    Raises:
        NoSuchProcess: It is gone.
    """
    return any(freezer.is_frozen() for freezer in freezers(pid))


def parse_stat(text: bytes) -> Stat:
    """Parse what ``/proc/PID/stat`` holds."""
    # The name stands in parentheses and may hold anything, parentheses too: the fields begin after the last one.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(
        state=fields[0].decode(),
        parent_pid=int(fields[1]),
        flags=int(fields[6]),
        thread_count=int(fields[17]),
        start_time_ticks=int(fields[19]),
        layout=(int(fields[23]), int(fields[24]), int(fields[25])),
    )


def _printable(text: str) -> str:
    # As a rule all of it is: character by character, a look at every process would take twice as long.
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _status_field(pid: int, name: str, task: str = "") -> str:
    for line in _lines(pid, f"{task}status"):
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _lines(pid: int, name: str) -> list[str]:
    return lines_of(_read(pid, name))


def lines_of(text: bytes) -> list[str]:
    """Give a file's lines: names in it may hold anything but a line feed, and ``splitlines`` takes more for an end.

    A program may have a carriage return in its name, and something behind it that looks like a field.
    """
    return text.decode(errors="replace").removesuffix("\n").split("\n") if text else []


def _read(pid: int, name: str) -> bytes:
    try:
        return _read_file(f"/proc/{pid}/{name}")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _gone(pid) from error


def _read_file(path: str) -> bytes:
    # Several reads a round of each target: a third of the time that a file object takes.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, _READ_BYTES), b""))
    finally:
        os.close(fd)


def _gone(pid: int) -> NoSuchProcess:
    return NoSuchProcess(f"there is no process {pid}: it has exited, or the pid is wrong")
