"""Run the ``wetink`` command as a person or a program does, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

WETINK: Final = Path(sys.executable).with_name("wetink")

ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "WETINK_COLLECTOR")
}
"""The environment of the tests, without what would hide a mistake of the command."""


def wetink(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end, without a terminal.

    Args:
        arguments: What follows the command's name.
        environment: Set beside what the test itself has.
    """
    return subprocess.run(
        [WETINK, *arguments],
        env={**ENVIRONMENT, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def running(*arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run it beside the test, with its output in pipes, and kill it where the test leaves it running."""
    with subprocess.Popen(
        [WETINK, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


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
