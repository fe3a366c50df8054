"""What of this process's descriptors tests of tracking make: others, gRPC's say, come and go as they like."""

from contextlib import suppress
from pathlib import Path

_OTHERS = ("socket:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]")
"""Of threads that tests before this one may have left behind."""


def own_descriptors() -> list[str]:
    """Give what this process has open, in an order that can be compared, without what belongs to other threads."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return sorted(link for link in found if not link.startswith(_OTHERS))
