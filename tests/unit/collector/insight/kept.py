"""Histories of a store in memory, and rounds to be told of."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from pyroaring import BitMap64

from tests.unit.collector.changes import incarnation
from wetink_collector.catalog import Catalog
from wetink_collector.identity import IncarnationKey
from wetink_collector.insight.histories import Histories
from wetink_collector.round_log import Block
from wetink_collector.store.interface import Change, RoundsAppended, encode_stored
from wetink_collector.store.memory import MemoryStore

ONE = incarnation(1)
PATIENCE_SECONDS = 60


class Kept:
    """A store, what is known of it, and histories of it."""

    def __init__(self, store: MemoryStore, bytes_max: int) -> None:
        """Begin with what the store has."""
        self.store = store
        self.catalog = Catalog(store.store_id, store.contents())
        self.histories = Histories(store, self.catalog, bytes_max)

    def commit(self, *changes: Change) -> None:
        """Make changes durable, then known."""
        self.store.commit(changes)
        self.catalog.apply(changes)

    async def look(self, key: IncarnationKey = ONE) -> tuple[int, int, bool, tuple[int, int]] | None:
        """Give first and last round of a history, whether it is exact, and how many pages were written."""
        record = self.catalog.get(key.target)
        assert record
        await asyncio.wait_for(self.histories.current(record), PATIENCE_SECONDS)
        return await asyncio.to_thread(
            self.histories.read,
            key,
            lambda history: (history.first_round, history.round, history.exact, history.writable()),
        )


@asynccontextmanager
async def kept(store: MemoryStore | None = None, bytes_max: int = 1 << 30) -> AsyncIterator[Kept]:
    """Run histories."""
    one = Kept(store or MemoryStore(), bytes_max)
    async with one.histories.running():
        yield one


def round_(number: int, pages: Iterable[int], key: IncarnationKey = ONE) -> RoundsAppended:
    """Give a round, a second after the one before."""
    written = BitMap64(pages)
    block = Block(number, number, number, 0, number * 10**9, number * 10**9, False, len(written), 0, 100, 0)  # noqa: FBT003
    return RoundsAppended(key, block, encode_stored(written), b"")


def own(number: int) -> list[int]:
    """Give the pages of a round: two that come again, and three of its own."""
    return [1, 2, *range(1000 * number, 1000 * number + 3)]
