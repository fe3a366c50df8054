"""What of the machine belongs to nobody: tests run in several processes at once, and take their turns here.

A lock is a file beside the programs that tests build; it goes with whoever holds it.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from tests.support.programs import build_directory


@contextmanager
def alone(name: str) -> Iterator[IO[str]]:
    """Be the only one that does something, of all tests that run on this machine; gives the lock's file."""
    with (build_directory() / f"{name}.lock").open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
