"""Run the ``wetink`` command as a person or a program does, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

WETINK: Final = Path(sys.executable).with_name("wetink")


def wetink(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end, without a terminal.

    Args:
        arguments: What follows the command's name.
        environment: Set beside what the test itself has.
    """
    return subprocess.run(
        [WETINK, *arguments],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def failure(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run it where it must fail: nothing on standard output, and one sentence in one line on standard error.

    Returns:
        The exit code, and the sentence without the command's name.
    """
    ended = wetink(*arguments, environment=environment)
    lines = ended.stderr.splitlines()

    assert ended.stdout == ""
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("wetink: ")
    assert ended.returncode != 0
    return ended.returncode, lines[0].removeprefix("wetink: ")
