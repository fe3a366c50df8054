"""How the conventions run the tools that judge, and which files they judge."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
"""The repository."""

BIN: Final = Path(sys.executable).parent
"""Where this environment has its commands."""

PACKAGES: Final = {
    "wetink": ROOT / "protos/wetink",
    "wetink_agent": ROOT / "agent/wetink_agent",
    "wetink_collector": ROOT / "collector/wetink_collector",
    "wetink_client": ROOT / "client/wetink_client",
}
"""Each package of ours and its folder."""


def judge(tool: str, *arguments: str) -> None:
    """Run a tool in the repository, and fail the test with the tool's own words when it complains."""
    verdict = subprocess.run(
        [BIN / tool, *arguments],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},  # protoc looks for its plugins there
        capture_output=True,
        text=True,
        check=False,
    )
    if verdict.returncode:
        pytest.fail(f"{tool} {' '.join(arguments)}\n{verdict.stdout}{verdict.stderr}", pytrace=False)


def complain(found: Iterable[str]) -> None:
    """Fail the test with everything that was found, a line each."""
    if lines := sorted(set(found)):
        pytest.fail("\n".join(lines), pytrace=False)


def sources(*suffixes: str) -> Iterator[Path]:
    """Give the repository's files with one of these suffixes, except what tools left behind and what is generated."""
    for path in sorted(ROOT.rglob("*")):
        hidden = any(part.startswith(".") and part != ".ci" for part in path.relative_to(ROOT).parts)
        if path.is_file() and path.suffix in suffixes and not hidden and "_pb2" not in path.name:
            yield path


def named(path: Path) -> str:
    """Give a file's path as a person writes it."""
    return path.relative_to(ROOT).as_posix()
