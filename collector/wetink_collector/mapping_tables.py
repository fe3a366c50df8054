"""What targets have mapped, as their agents said last: in memory, within a bound, for who wants names for addresses.

Nothing depends on it: a table that is not here means that it is not known. Where they take too much room, those that
were told longest ago go first.
"""

from typing import Final

from wetink.v1.ingest_pb2 import TargetMappings
from wetink_collector.identity import IncarnationKey, TargetKey

TABLES_BYTES_MAX: Final = 64 << 20
"""Bound on the tables of all targets together: those of 4096 ordinary processes, of some 15 KiB each."""


class MappingTables:
    """Keeps the newest table of each target. Used on the event loop only."""

    def __init__(self, bytes_max: int = TABLES_BYTES_MAX) -> None:
        """Begin with none, and keep no more than so many bytes."""
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._tables: dict[TargetKey, TargetMappings] = {}

    def put(self, incarnation: IncarnationKey, table: TargetMappings) -> None:
        """Take a table in place of the one before; of an incarnation that is over it is ignored."""
        before = self._tables.get(incarnation.target)
        if before and before.incarnation > incarnation.incarnation:
            return
        self.forget(incarnation.target)
        kept = TargetMappings()
        kept.CopyFrom(table)
        self._tables[incarnation.target] = kept
        self._size_bytes += kept.ByteSize()
        while self._size_bytes > self._bytes_max:
            self.forget(next(iter(self._tables)))

    def get(self, incarnation: IncarnationKey) -> TargetMappings | None:
        """Give the table of an incarnation; None where it is not known."""
        table = self._tables.get(incarnation.target)
        return table if table and table.incarnation == incarnation.incarnation else None

    def forget(self, target: TargetKey) -> None:
        """Drop what is kept of a target."""
        if table := self._tables.pop(target, None):
            self._size_bytes -= table.ByteSize()
