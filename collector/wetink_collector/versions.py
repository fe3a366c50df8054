"""Which agents belong to this collector: those whose version is at most one minor version from its own."""

import re
from importlib.metadata import version
from typing import Final

OWN: Final = version("wetink")
"""This collector's version."""

_MAJOR_MINOR: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})(?![0-9])")


def are_apart(one: str, other: str) -> bool:
    """Whether two versions have different majors, or minors more than one apart.

    A version that has none of these is of nobody's release, and far from nothing.
    """
    found, other_found = _MAJOR_MINOR.match(one), _MAJOR_MINOR.match(other)
    if found is None or other_found is None:
        return False
    return found[1] != other_found[1] or abs(int(found[2]) - int(other_found[2])) > 1


def printable(text: str) -> str:
    """Give what an agent calls its version as a log on a terminal can show it."""
    return "".join(character if character.isprintable() else "?" for character in text)
