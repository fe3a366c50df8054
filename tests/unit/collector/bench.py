"""A committer with everything around it, and a store that does as a test tells it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from wetink_collector.bookmarks import Bookmarks
from wetink_collector.catalog import Catalog
from wetink_collector.committer import Committer
from wetink_collector.store.interface import Change, Contents, Ends, RecordDamaged, StoredBlock, StoreFailed, nowhere
from wetink_collector.store.memory import MemoryStore


class Stubborn(MemoryStore):
    """A store that waits for its gate, and fails while it is told to."""

    def __init__(self) -> None:
        """Let everything through."""
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.failing: Exception | None = None
        self.fails_once = False
        self.recovering_fails = False
        self.groups: list[int] = []
        self.damage: list[RecordDamaged] = []
        self.recovered = 0

    def commit(self, changes: Sequence[Change]) -> None:
        """Wait, then fail or commit."""
        assert self.gate.wait(20)
        if failing := self.failing:
            if self.fails_once:
                self.failing = None
            raise failing
        self.groups.append(len(changes))
        super().commit(changes)

    def maintain(self, ends: Ends = nowhere) -> bool:
        """Report damage where there is some."""
        if self.damage:
            raise self.damage.pop()
        return super().maintain(ends)

    def recover(self) -> Contents:
        """Fail, or start afresh."""
        self.recovered += 1
        if self.recovering_fails:
            message = "still full"
            raise StoreFailed(message)
        self.failing = None
        return super().recover()

    def read(self, *_: object, **__: object) -> Iterator[StoredBlock]:
        """Nobody reads in these tests."""
        raise NotImplementedError


@dataclass
class Heard:
    """Keeps what a listener was told."""

    told: list[str] = field(default_factory=list)
    damage: list[RecordDamaged] = field(default_factory=list)

    def store_failed(self) -> None:
        """Keep it."""
        self.told.append("failed")

    def store_recovered(self) -> None:
        """Keep it."""
        self.told.append("recovered")

    def record_damaged(self, damage: RecordDamaged) -> None:
        """Keep it."""
        self.damage.append(damage)


@dataclass
class Bench:
    """A committer with everything around it."""

    store: Stubborn
    catalog: Catalog
    committer: Committer
    heard: Heard


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """Give one that runs."""
    store = Stubborn()
    catalog = Catalog(store.store_id, store.contents())
    committer = Committer(store, catalog, Bookmarks())
    heard = Heard()
    async with committer.running(heard):
        yield Bench(store, catalog, committer, heard)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 (what is waited for happens on another thread)
            await asyncio.sleep(0.005)


def runs(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    """Make a test of one that takes a bench."""

    def run() -> None:
        async def within() -> None:
            async with bench() as one:
                await test(one)

        asyncio.run(within())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
