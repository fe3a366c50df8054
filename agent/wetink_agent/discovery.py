"""Which processes the agent was told to look for: by command line, by cgroup, and the descendants of targets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from wetink_agent import procfs
from wetink_agent.errors import NoSuchProcess


@dataclass(frozen=True, slots=True)
class Process:
    """What a selection looks at."""

    parent_pid: int
    command: str
    cgroup: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules. A process that matches any of them is selected; ``tree`` adds the descendants of all targets."""

    commands: tuple[re.Pattern[str], ...] = ()
    cgroups: tuple[str, ...] = ()
    tree: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether no process can ever match."""
        return not (self.commands or self.cgroups or self.tree)

    def select(self, processes: Mapping[int, Process], roots: frozenset[int] = frozenset()) -> set[int]:
        """Give the pids that are selected.

        Args:
            processes: The processes of the host, by pid.
            roots: Processes selected by other means, whose descendants count under ``tree``.
        """
        chosen = {pid for pid, process in processes.items() if self._matches(process)}
        if self.tree:
            children: dict[int, list[int]] = {}
            for pid, process in processes.items():
                children.setdefault(process.parent_pid, []).append(pid)
            waiting = [*chosen, *roots]
            while waiting:
                for child in children.get(waiting.pop(), ()):
                    if child not in chosen:
                        chosen.add(child)
                        waiting.append(child)
        return chosen

    def _matches(self, process: Process) -> bool:
        return any(pattern.search(process.command) for pattern in self.commands) or any(
            f"{process.cgroup}/".startswith(path.rstrip("/") + "/") for path in self.cgroups
        )


def processes(selection: Selection | None = None) -> dict[int, Process]:
    """Look at every process of this pid namespace that has memory of its own.

    Args:
        selection: What is asked of them: command lines and cgroups are left empty where it has no rule for them.
    """
    has_commands = selection is None or bool(selection.commands)
    has_cgroups = selection is None or bool(selection.cgroups)
    found = {}
    for pid in procfs.pids():
        try:
            stat = procfs.stat(pid)
            if not stat.is_kernel_thread and not stat.is_gone:
                found[pid] = Process(
                    stat.parent_pid,
                    procfs.command(pid, whole=True) if has_commands else "",
                    procfs.cgroup(pid) if has_cgroups else "",
                )
        except (NoSuchProcess, PermissionError):
            continue  # gone, or hidden from this user (hidepid)
    return found
