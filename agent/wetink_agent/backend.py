"""What every backend is to the rest of the agent: it harvests rounds over one process."""

from dataclasses import dataclass, field
from typing import Protocol

from pyroaring import BitMap64

from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.events import Events


@dataclass(frozen=True, slots=True)
class Harvest:
    """What one pass over a target found. The page sets share no page and are not changed any more.

    ``cautious_page_count`` is how many of ``written`` are there with no sign of a write, and ``uncertain`` are those of
    them that readers have had before: see ``certainty``. ``exposed`` is whether something can write unseen, until the
    next harvest, to memory that may then look like any other: registered buffers. ``mapped`` and ``unmapped`` are
    ``(start_address, end_address)`` pairs. ``frozen`` is whether the target was stopped throughout, and
    ``held_seconds`` how long this harvest itself had to stop it.
    ``table`` is what is mapped, without whose it is and of which round; None where it is as it was, or nobody looked.
    ``events`` are the single writes behind ``written``, where the backend has them. ``known`` is every page that is
    populated or was reported, where another process could go on with the target from it.
    """

    began_time_ns: int
    written: BitMap64
    vanished: BitMap64
    populated_page_count: int
    cautious_page_count: int = 0
    frozen: bool = False
    held_seconds: float = 0.0
    mapped: tuple[tuple[int, int], ...] = ()
    unmapped: tuple[tuple[int, int], ...] = ()
    uncertain: BitMap64 = field(default_factory=BitMap64)
    exposed: bool = False
    table: ingest_pb2.TargetMappings | None = None
    events: Events | None = None
    known: BitMap64 | None = None


@dataclass(frozen=True, slots=True)
class Handle:
    """What another process goes on with when this one has ended: a userfaultfd that can never make a target wait.

    ``layout`` is that of the memory which it is over, as ``procfs.layout`` gives it.
    """

    uffd: int
    layout: tuple[int, int, int]


class Backend(Protocol):
    """Finds out which pages of one process were written. Not safe for two threads at once."""

    kind: types_pb2.Backend.ValueType

    @property
    def handle(self) -> Handle | None:
        """What another process could go on with; None where there is nothing of the kind."""
        ...

    def harvest(self) -> Harvest:
        """Find what was written or vanished since the harvest before, and arm for the next.

        The first harvest has every populated page as written.

        Raises:
            TargetExited, TargetReplaced: There is nothing to harvest any more. Never an empty harvest.
            TrackingError: It cannot go on.
        """
        ...

    def forget(self) -> None:
        """Make the next harvest a first one."""
        ...

    def close(self) -> None:
        """Stop tracking; the target keeps nothing."""
        ...
