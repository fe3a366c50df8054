"""How many connections there may be, so that descriptors are left for what must go on: the store's files above all.

A process may have so many descriptors (``RLIMIT_NOFILE``), and each connection takes one. Without a reserve whoever
opens enough of them leaves none for a reader's first look into the store, for its recovery after a failure, or for the
page of metrics. Connections beyond the bound are closed at once, until another goes.
"""

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

OWN: Final = 64
"""What the collector itself has open at most: 20 when idle, and 12 more for each file of the store that is opened."""

HEALTH_SHARE: Final = 8
"""One in so many of the rest may go to probes, where those have a port of their own."""

LEAST: Final = 8
"""Connections there may be however few descriptors there are: below this nothing works, whatever is kept back."""

LOW: Final = 4
"""How many places may be left when it is said that there are none: some connections come and go between two looks."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shares:
    """How many connections there may be: of agents and orchestrators, each of which takes ``each``, and of probes."""

    connections: int
    probes: int
    each: int

    @classmethod
    def of(cls, limit: int, *, connections_max: int, probes_max: int, pages_max: int, each: int) -> "Shares":
        """Divide the descriptors of a process.

        Args:
            limit: How many it may have.
            connections_max: The bound on connections of agents and orchestrators, were there descriptors without end.
            probes_max: Likewise, on those to the port for health. 0 where there is none.
            pages_max: Bound on those to the page of metrics. 0 where there is none.
            each: Descriptors that a connection of an agent or orchestrator takes.
        """
        left = limit - OWN - pages_max
        probes = max(1, min(probes_max, left // HEALTH_SHARE))
        connections = (left - (probes if probes_max else 0)) // each
        return cls(max(LEAST, min(connections_max, connections)), probes, each)


def limit() -> int:
    """Give how many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_count() -> int:
    """Give how many it has. Takes one itself, which is not counted."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


class Watch:
    """Says in the log, once for each change, that there are as many connections as there may be."""

    def __init__(self, connections: int, each: int) -> None:
        """Begin, before there is any connection.

        Args:
            connections: How many there may be.
            each: Descriptors that one takes.
        """
        self._connections = connections
        self._full_from = open_count() + (connections - LOW) * each
        self._is_full = False

    def look(self) -> None:
        """Look how many descriptors there are."""
        is_full = open_count() >= self._full_from
        if is_full and not self._is_full:
            log.warning(
                "connections_full",
                connections_max=self._connections,
                descriptors_max=limit(),
                why="there are as many connections as there may be: new ones are closed until others go; the open ones "
                "go on",
                what_to_do="find out who connects; where all of them are meant, raise RLIMIT_NOFILE",
            )
        elif self._is_full and not is_full:
            log.info("connections_free")
        self._is_full = is_full
