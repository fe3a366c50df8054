"""Cgroups of a test's own, in whatever hierarchies with a freezer are mounted here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wetink_agent.cgroups import hierarchies


@contextmanager
def cgroup(version: int, *pids: int) -> Iterator[Path]:
    """Put processes into a cgroup of their own while the body runs; a frozen one is thawed in the end."""
    (at,) = (place for kind, _, place in hierarchies() if kind == version)
    directory = Path(at, f"wetink-test-{os.getpid()}-{pids[0]}")
    directory.mkdir()
    try:
        for pid in pids:
            (directory / "cgroup.procs").write_text(str(pid))
        yield directory
    finally:
        thaw(directory)
        for process in (directory / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (Path(at) / "cgroup.procs").write_text(process)
        directory.rmdir()


def thaw(directory: Path) -> None:
    """Let a cgroup go on, as an operator would by hand."""
    for file, word in ((directory / "freezer.state", "THAWED"), (directory / "cgroup.freeze", "0")):
        if file.exists():
            file.write_text(word)
