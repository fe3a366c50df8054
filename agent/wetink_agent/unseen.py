"""How the memory of one target can change unseen: looked at when its mappings or descriptors may have changed.

A target that has nothing of the kind pays for a search in the text of its mappings in each round, and for a look at its
descriptors now and then.
"""

import contextlib
import time
from typing import TYPE_CHECKING, Final

from pyroaring import BitMap64

from wetink.pages import PAGE_SIZE
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent import descriptors, procfs
from wetink_agent.descriptors import Descriptors
from wetink_agent.errors import NoSuchProcess
from wetink_agent.mappings import Writer, merged, table_of

if TYPE_CHECKING:
    from wetink_agent.shared_memory import Range

TABLE_SECONDS: Final = 1.0
"""From one table of mappings to the next, at least: a program that maps all the while would have one in each round."""

LOOK_SECONDS: Final = 1.0
LOOK_COST_MAX: Final = 200
"""From one look at the descriptors to the next: so long, or so many times as long as the look took. An io_uring whose
rings are mapped, as they all are but with IORING_SETUP_NO_MMAP, is found at once."""

_RING_MAPPED: Final = descriptors.RING.encode()
_AIO_MAPPED: Final = b" /[aio]"


class Unseen:
    """Keeps what is known of one target. It never fails: what it cannot look at it says to be unknown."""

    def __init__(self, pid: int) -> None:
        """Begin with nothing known."""
        self.buffers: tuple[Range, ...] = ()
        self._pid = pid
        self._maps: bytes | None = None
        self._is_ring_mapped = False
        self._is_aio_mapped = False
        self._found = Descriptors()
        self._silent: tuple[int, ...] = ()
        self._look_at = 0.0
        self._table_at = 0.0
        self._tabled: tuple[bytes, tuple[Range, ...], tuple[Writer, ...]] | None = None
        self._table: ingest_pb2.TargetMappings | None = None

    def look(self, maps: bytes, *, frozen: bool) -> None:
        """Find what is registered and open now.

        Args:
            maps: What ``procfs.read_maps`` gave; the same object where nothing has changed.
            frozen: Whether the target is stopped, so that this look may be the last: then it is a whole one.
        """
        has_changed = maps is not self._maps and maps != self._maps
        if has_changed:
            self._maps = maps
            self._is_ring_mapped = _RING_MAPPED in maps
            self._is_aio_mapped = _AIO_MAPPED in maps
        began = time.monotonic()
        try:
            if frozen or began >= self._look_at or (has_changed and self._is_ring_mapped):
                self._found = descriptors.look(self._pid)
                done = time.monotonic()
                self._look_at = done + max(LOOK_SECONDS, (done - began) * LOOK_COST_MAX)
            self._ask_rings()
        except (FileNotFoundError, ProcessLookupError, NoSuchProcess):
            return  # gone: whoever harvests finds out
        except OSError as error:
            # We have no descriptor left, say. What was found stands, what may have come is not known, and the next look
            # is at the next round.
            what = f"its descriptors could not be looked at: {error.strerror}"
            unknown = Writer(types_pb2.UNCERTAINTY_REGISTERED_BUFFER, what)
            self._found = Descriptors(self._found.where, self._found.rings, (unknown,))
            self._look_at = 0.0

    def buffer_pages(self) -> BitMap64:
        """Give the pages that are or were registered since the last look, and look at what is."""
        if not self._found.rings and not self.buffers:
            return BitMap64()
        pages = BitMap64()
        before = self.buffers
        with contextlib.suppress(OSError):  # gone: whoever harvests finds out
            self._ask_rings()
        for start, end in (*before, *self.buffers):
            pages.add_range(start // PAGE_SIZE, end // PAGE_SIZE)
        return pages

    def _ask_rings(self) -> None:
        if self._found.rings:
            found, self._silent = descriptors.buffers_of(self._found)
            # One that does not answer has at least what it had.
            self.buffers = tuple(merged((*found, *self.buffers))) if self._silent else found
        elif not self._is_ring_mapped:
            self.buffers, self._silent = (), ()

    def table(self, *, frozen: bool) -> ingest_pb2.TargetMappings | None:
        """Give the table of mappings where it is another than it was; None where it is not, or not yet looked at.

        Args:
            frozen: As for ``look``: this table may be the last, and what came within the second must be in it.
        """
        now = time.monotonic()
        if self._maps is None or (now < self._table_at and not frozen):
            return None
        made_of = (self._maps, self.buffers, self._writers())
        if made_of == self._tabled:
            return None
        try:
            table = table_of(self._maps, procfs.mounts(self._pid), self.buffers, made_of[2])
        except NoSuchProcess:
            return None
        self._tabled = made_of
        self._table_at = now + TABLE_SECONDS
        before, self._table = self._table, table
        return None if table == before else table

    def _writers(self) -> tuple[Writer, ...]:
        writers = []
        if self._is_aio_mapped:
            writers.append(Writer(types_pb2.UNCERTAINTY_DIRECT_IO, "an AIO context: reads may be in flight"))
        if self._is_ring_mapped and not self._found.rings:
            what = "an io_uring whose descriptor is closed: which buffers are registered with it is not known"
            writers.append(Writer(types_pb2.UNCERTAINTY_REGISTERED_BUFFER, what))
        for fd in self._silent:
            what = f"descriptor {fd}: an io_uring that is too busy to tell its registered buffers"
            writers.append(Writer(types_pb2.UNCERTAINTY_REGISTERED_BUFFER, what))
        return (*writers, *self._found.writers)
