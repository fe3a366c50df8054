"""The one writer: everything that is to be durable goes through it, in groups, one transaction each.

The event loop submits changes and hears when they are settled; a thread commits them in groups, and merges old blocks
when nothing waits. An fsync costs the same for one batch as for a thousand, so a busy collector writes larger groups,
not more.

What is about one host stays in its order. Hosts take turns, so that one that sends as fast as it can delays the others
by no more than their number says, and cannot take all of the room before the writer either.

When the store fails, nothing is acknowledged: what waits fails with it, and nothing new is taken until the store has
recovered, so that no later round can become durable before one that failed.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import structlog

from wetink_collector import metrics, tracing
from wetink_collector.bookmarks import Bookmarks
from wetink_collector.catalog import Catalog
from wetink_collector.errors import RETRY_SECONDS_OF, StoreUnavailable
from wetink_collector.fair_queue import FairQueue
from wetink_collector.room import Place, Room
from wetink_collector.settlement import Settlement
from wetink_collector.store.interface import Change, Contents, RecordDamaged, Store, StoreFailed, Usage, host_of

GROUP_BYTES_MAX: Final = 4 << 20
"""Bound on the page sets of one transaction: what comes while it is written waits for that and for its own, some 30 ms
each. An fsync takes a tenth of it, so that larger groups would gain little."""

TURN_BYTES: Final = 256 << 10
"""What a host may write before it is another's turn: two rounds of 64 Ki random pages; 16 hosts have one in a group."""

CHANGE_BYTES: Final = 1 << 10
"""What each change counts for beside its page sets, so that very many small ones are no way round the bounds."""

MAINTAIN_SECONDS_MAX: Final = 0.02
"""How long merging may go on before the writer looks whether somebody waits. One piece may take longer."""

SETTLED_AT_ONCE: Final = 16
"""Of how many items of a group it is told at a time: some two milliseconds of the event loop with their
acknowledgements, where all of a group were thirty."""

RECOVER_SECONDS: Final = RETRY_SECONDS_OF[StoreUnavailable]
"""How often a store that failed is tried again: callers are told as much."""

STORE_SENTENCE: Final = "the collector cannot write to its store now; try again later, and see its log for the reason"

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Item:
    changes: Sequence[Change]
    place: Place
    settled: Settlement


@dataclass(frozen=True, slots=True)
class _Recovery:
    done: asyncio.Future[Contents | None]


@dataclass(frozen=True, slots=True)
class _Question:
    answer: asyncio.Future[Usage | None]


class Committer:
    """Writes to a store from one thread of its own, and tells the catalog what is durable."""

    def __init__(self, store: Store, catalog: Catalog, bookmarks: Bookmarks) -> None:
        """Write to a store, and tell a catalog. Merging leaves bookmarks in their places."""
        self._bookmarks = bookmarks
        self._store = store
        self._catalog = catalog
        self._listener: Listener
        self._work = _Work()
        self._loop = asyncio.get_running_loop()
        self._room = Room()
        # Written, and not yet told of, in the order in which it was.
        self._durable: deque[_Item] = deque()
        self._failed = False
        self._recovering: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self, listener: "Listener") -> AsyncIterator[None]:
        """Write while the body runs; at its end, commit what waits."""
        self._listener = listener
        thread = threading.Thread(target=self._run, name="committer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            if self._recovering:
                self._recovering.cancel()
            self._work.put_last(None)
            await asyncio.to_thread(thread.join)
            self._settle_all()

    async def submit(self, changes: Sequence[Change], *, size_bytes: int = 0) -> Settlement:
        """Queue changes; wait only while what waits is over its bounds.

        Args:
            changes: At least one, all of one host or of none; to be written in this order, all or none, and behind
                those of the host that were submitted before.
            size_bytes: Of the page sets, and whatever else is large, in them.

        Returns:
            What is settled when they are durable and the catalog has them, or fails with StoreUnavailable.

        Raises:
            StoreUnavailable: The store has failed and has not recovered.
        """
        return await self._submit(host_of(changes[0]), changes, size_bytes)

    async def commit(self, changes: Sequence[Change]) -> None:
        """Write changes and wait until they are durable: those of one host all or none.

        Raises:
            StoreUnavailable: They could not be written.
        """
        by_host: dict[str, list[Change]] = {}
        for change in changes:
            by_host.setdefault(host_of(change), []).append(change)
        for settled in [await self.submit(some) for some in by_host.values()]:
            await settled

    async def settle(self, host_id: str) -> None:
        """Wait until everything about a host that was submitted before is durable or has failed."""
        with suppress(StoreUnavailable):
            await (await self._submit(host_id, (), 0))

    async def usage(self) -> Usage | None:
        """Give how much room the store takes; None while it has failed."""
        question = _Question(self._loop.create_future())
        self._work.put_first(question)
        return await question.answer

    async def _submit(self, host_id: str, changes: Sequence[Change], size_bytes: int) -> Settlement:
        place = Place(host_id, size_bytes + CHANGE_BYTES * max(1, len(changes)))
        await self._room.enter(place)
        if self._failed:
            self._room.leave([place])
            raise StoreUnavailable(STORE_SENTENCE)
        metrics.UNACKED_BYTES.set(self._room.size_bytes)
        item = _Item(changes, place, Settlement())
        self._work.put(item)
        return item.settled

    def _run(self) -> None:
        """Serve the queue until it says stop: the writer thread."""
        failed = False
        idle = False
        while (work := self._work.take(wait=idle or failed)) is not None:
            if isinstance(work, _Recovery):
                failed = not self._recover(work)
            elif isinstance(work, _Question):
                self._tell(_settle, work.answer, None if failed else self._usage())
            elif failed:
                self._tell(self._on_failed, work, STORE_SENTENCE)
            else:
                failed = bool(work) and not self._commit(work)
                if not failed:
                    failed, idle = self._maintain()

    def _commit(self, group: list[_Item]) -> bool:
        began = time.perf_counter()
        try:
            changes = [change for item in group for change in item.changes]
            with tracing.of_commit(change_count=len(changes), size_bytes=sum(item.place.size_bytes for item in group)):
                self._store.commit(changes)
        except Exception as error:  # noqa: BLE001 (whatever it was, nothing of the group may be acknowledged)
            self._tell(self._on_failed, group, _sentence(error))
            return False
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - began)
        self._tell(self._on_durable, group)
        return True

    def _maintain(self) -> tuple[bool, bool]:
        """Merge for a while; say whether the store failed, and whether there is nothing left to do."""
        until = time.perf_counter() + MAINTAIN_SECONDS_MAX
        idle = False
        while not idle and (began := time.perf_counter()) < until:
            try:
                idle = not self._store.maintain(self._bookmarks.rounds)
            except RecordDamaged as damage:
                self._tell(self._listener.record_damaged, damage)
            except Exception as error:  # noqa: BLE001 (as in _commit)
                self._tell(self._on_failed, [], _sentence(error))
                return True, False
            metrics.MERGE_SECONDS.observe(time.perf_counter() - began)
        return False, idle

    def _recover(self, recovery: "_Recovery") -> bool:
        try:
            contents: Contents | None = self._store.recover()
        except StoreFailed:
            contents = None
        except Exception as bug:  # noqa: BLE001 (it is tried again, and this thread has more to do)
            contents = None
            self._tell(self._report, "the store cannot be recovered", bug)
        self._tell(_settle, recovery.done, contents)
        return contents is not None

    def _usage(self) -> Usage | None:
        try:
            return self._store.usage()
        except StoreFailed:
            # The next commit will say so too.
            return None

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(callback, *arguments)

    def _on_durable(self, group: list[_Item]) -> None:
        is_told_of = bool(self._durable)
        self._durable.extend(group)
        if not is_told_of:
            self._settle_some()

    def _on_failed(self, group: list[_Item], error: str) -> None:
        try:
            self._settle_all()
            self._fail(error)
        finally:
            for item in group:
                item.settled.settle(StoreUnavailable(STORE_SENTENCE))
            self._leave(group)

    def _settle_some(self) -> None:
        """Tell of what is durable, some at a time: readers wait for the event loop too."""
        told: list[_Item] = []
        while self._durable and len(told) < SETTLED_AT_ONCE:
            told.append(item := self._durable.popleft())
            try:
                self._catalog.apply(item.changes)
            except Exception as bug:  # noqa: BLE001 (whatever it was, the item is durable, and so are those after it)
                self._report("the catalog cannot take a change; it is in the store, and there after a restart", bug)
            item.settled.settle()
        self._leave(told)
        if self._durable:
            self._loop.call_soon(self._settle_some)

    def _settle_all(self) -> None:
        while self._durable:
            self._settle_some()

    def _report(self, message: str, bug: Exception) -> None:
        self._loop.call_exception_handler({"message": message, "exception": bug})

    def _leave(self, items: list[_Item]) -> None:
        self._room.leave(item.place for item in items)
        metrics.UNACKED_BYTES.set(self._room.size_bytes)

    def _fail(self, error: str) -> None:
        if self._failed:
            return
        self._failed = True
        metrics.COMMITS_FAILED.inc()
        log.error("store_failed", error=error)
        self._listener.store_failed()
        self._recovering = self._loop.create_task(self._try_to_recover())

    async def _try_to_recover(self) -> None:
        is_loaded = False
        while not is_loaded:
            await asyncio.sleep(RECOVER_SECONDS)
            recovery = _Recovery(self._loop.create_future())
            self._work.put_last(recovery)
            if (contents := await recovery.done) is None:
                continue
            # It is another one where what is there was damaged and set aside.
            self._catalog.store_id = self._store.store_id
            try:
                self._catalog.load(contents)
                is_loaded = True
            except Exception as bug:  # noqa: BLE001 (tried again: without it nothing would be taken for good)
                self._report("what the store has cannot be loaded", bug)
        self._failed = False
        log.info("store_recovered")
        self._listener.store_recovered()


class _Work:
    """What there is to do for the writer. Filled on the event loop, taken by the thread."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._first: deque[_Question] = deque()
        self._items: FairQueue[str, _Item] = FairQueue(TURN_BYTES)
        self._last: deque[_Recovery | None] = deque()

    def put(self, item: _Item) -> None:
        with self._arrived:
            self._items.put(item.place.stream, item, item.place.size_bytes)
            self._arrived.notify()

    def put_first(self, question: _Question) -> None:
        """Ask before anything else is written: the answer waits for nobody."""
        with self._arrived:
            self._first.append(question)
            self._arrived.notify()

    def put_last(self, work: _Recovery | None) -> None:
        """Say what is to be done when no item is left: none is to be written after a recovery that was before it."""
        with self._arrived:
            self._last.append(work)
            self._arrived.notify()

    def take(self, *, wait: bool) -> list[_Item] | _Question | _Recovery | None:
        """Take what is to be done next: of the items, up to a group's bound.

        Args:
            wait: Whether to sleep until there is something; without it the list may be empty.
        """
        with self._arrived:
            while wait and not (self._first or self._items or self._last):
                self._arrived.wait()
            if self._first:
                return self._first.popleft()
            if self._items or not self._last:
                return self._items.take(GROUP_BYTES_MAX)
            return self._last.popleft()


class Listener(Protocol):
    """Who acts when the store fails, recovers, or finds a damaged record. Called on the event loop."""

    def store_failed(self) -> None:
        """Nothing can be written any more; what waited has not been."""

    def store_recovered(self) -> None:
        """It can be written again."""

    def record_damaged(self, damage: RecordDamaged) -> None:
        """An incarnation cannot be answered any more."""


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, StoreFailed) else repr(error)
