"""The freezers of cgroups, version 2 and version 1: where they are, what they hold, and how they are asked.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (``cgroup.freeze``, ``cgroup.events``) and
cgroup-v1/freezer-subsystem.rst; proc_pid_mountinfo(5).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Freezer:
    """One cgroup's freezer; ``version`` is 2 or 1. The root of a hierarchy has none."""

    version: int
    directory: Path

    def is_frozen(self) -> bool:
        """Whether nothing in it runs, by this freezer or by one above it."""
        if self.version == 2:  # noqa: PLR2004 (as the kernel counts them)
            return "frozen 1" in _text(self.directory / "cgroup.events").splitlines()
        return _text(self.directory / "freezer.state").strip() == "FROZEN"

    def ask(self, *, frozen: bool) -> None:
        """Ask for it to freeze, or to let go; it takes a while to freeze.

        Raises:
            OSError: Not permitted, or the cgroup is gone.
        """
        if self.version == 2:  # noqa: PLR2004 (as above)
            (self.directory / "cgroup.freeze").write_text("1" if frozen else "0", encoding="ascii")
        else:
            (self.directory / "freezer.state").write_text("FROZEN" if frozen else "THAWED", encoding="ascii")

    def processes(self) -> set[int]:
        """Give the processes in it and below it; 0 stands for those of a pid namespace that we cannot see into.

        Raises:
            OSError: It cannot be told: the cgroup is gone, or is a threaded one.
        """
        files = (self.directory / "cgroup.procs", *self.directory.glob("**/cgroup.procs"))
        return {int(pid) for file in files for pid in file.read_text(encoding="ascii").split()}


def freezers(lines: Iterable[str]) -> list[Freezer]:
    """Give the freezers of a process: version 2 before version 1.

    Args:
        lines: Of its ``/proc/PID/cgroup``.
    """
    paths = {}
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            paths[2] = path
        elif "freezer" in controllers.split(","):
            paths[1] = path
    found = []
    for version, root, mounted_at in hierarchies():
        path = paths.get(version, "/")
        top = root.rstrip("/") + "/"
        if path.startswith(top) and len(path) > len(top):
            found.append(Freezer(version, Path(mounted_at, path.removeprefix(top))))
    return sorted(found, key=lambda freezer: -freezer.version)


@cache
def hierarchies() -> tuple[tuple[int, str, str], ...]:
    """Give version, root and place of each hierarchy with a freezer that is mounted here, each version once."""
    text = _text(Path("/proc/self/mountinfo"))
    return tuple({mount[0]: mount for mount in reversed(list(_parse_mounts(text)))}.values())


def _parse_mounts(text: str) -> Iterator[tuple[int, str, str]]:
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, mounted_at, *_ = before.split()
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            yield 2, root, mounted_at
        elif kind == "cgroup" and "freezer" in options.split(","):
            yield 1, root, mounted_at


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
