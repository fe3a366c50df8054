"""The one writer: everything that is to be durable goes through it, in order, one transaction for all that waits.

The event loop submits changes and gets a future; a thread commits them in groups, and merges old blocks when nothing
waits. An fsync costs the same for one batch as for a thousand, so a busy collector writes larger groups, not more.

When the store fails, nothing is acknowledged: what waits fails with it, and nothing new is taken until the store has
recovered, so that no later round can become durable before one that failed.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final, Protocol, TypeVar

import structlog

from wetink_collector import metrics, tracing
from wetink_collector.catalog import Catalog
from wetink_collector.errors import RETRY_SECONDS_OF, StoreUnavailable
from wetink_collector.store.interface import Change, Contents, RecordDamaged, Store, StoreFailed, Usage

QUEUE_BYTES_MAX: Final = 64 << 20
"""Bound on the page sets that wait for the writer: half a second of it at its slowest. Streams are read no further
while it is reached, and their agents unite rounds."""

GROUP_BYTES_MAX: Final = 16 << 20
"""Bound on the page sets of one transaction, so that no acknowledgement waits long for its neighbours'."""

MAINTAIN_SECONDS_MAX: Final = 0.02
"""How long merging may go on before the writer looks whether somebody waits. One piece may take longer."""

RECOVER_SECONDS: Final = RETRY_SECONDS_OF[StoreUnavailable]
"""How often a store that failed is tried again: callers are told as much."""

STORE_SENTENCE: Final = "the collector cannot write to its store now; try again later, and see its log for the reason"

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Item:
    changes: Sequence[Change]
    size_bytes: int
    settled: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Recovery:
    done: asyncio.Future[Contents | None]


@dataclass(frozen=True, slots=True)
class _Question:
    answer: asyncio.Future[Usage | None]


class Committer:
    """Writes to a store from one thread of its own, and tells the catalog what is durable."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        """Write to a store, and tell a catalog."""
        self._store = store
        self._catalog = catalog
        self._listener: Listener
        self._queue: SimpleQueue[_Item | _Recovery | _Question | None] = SimpleQueue()
        self._held: list[_Item | _Recovery | _Question | None] = []
        self._loop = asyncio.get_running_loop()
        self._queued_bytes = 0
        self._room = asyncio.Event()
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
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    async def submit(self, changes: Sequence[Change], *, size_bytes: int = 0) -> asyncio.Future[None]:
        """Queue changes; wait only while the queue is over its bound.

        Args:
            changes: To be written in this order, all or none.
            size_bytes: Of the page sets in them.

        Returns:
            A future that is done when they are durable and the catalog has them. It fails with StoreUnavailable.

        Raises:
            StoreUnavailable: The store has failed and has not recovered.
        """
        while self._queued_bytes and self._queued_bytes + size_bytes > QUEUE_BYTES_MAX:
            self._room.clear()
            await self._room.wait()
        if self._failed:
            raise StoreUnavailable(STORE_SENTENCE)
        self._queued_bytes += size_bytes
        metrics.UNACKED_BYTES.set(self._queued_bytes)
        item = _Item(changes, size_bytes, self._loop.create_future())
        # A stream that has ended does not look at its futures any more; their failure has been told by then.
        item.settled.add_done_callback(_look_at)
        self._queue.put(item)
        return item.settled

    async def commit(self, changes: Sequence[Change]) -> None:
        """Write changes and wait until they are durable.

        Raises:
            StoreUnavailable: They could not be written.
        """
        await (await self.submit(changes))

    async def settle(self) -> None:
        """Wait until everything submitted before is durable or has failed."""
        with suppress(StoreUnavailable):
            await self.commit(())

    async def usage(self) -> Usage | None:
        """Give how much room the store takes; None while it has failed."""
        question = _Question(self._loop.create_future())
        self._queue.put(question)
        return await question.answer

    def _run(self) -> None:
        """Serve the queue until it says stop: the writer thread."""
        failed = False
        idle = False
        while (work := self._take(wait=idle or failed)) is not None:
            if isinstance(work, _Recovery):
                failed = not self._recover(work)
            elif isinstance(work, _Question):
                self._tell(_settle, work.answer, None if failed else self._usage())
            elif failed:
                self._tell(self._on_settled, work, STORE_SENTENCE)
            else:
                failed = bool(work) and not self._commit(work)
                if not failed:
                    failed, idle = self._maintain()

    def _take(self, *, wait: bool) -> "list[_Item] | _Recovery | _Question | None":
        """Take the items that wait, up to a group's bound, or what stands alone between them.

        Args:
            wait: Whether to sleep until there is something; without it the list may be empty.
        """
        group: list[_Item] = []
        size_bytes = 0
        while size_bytes < GROUP_BYTES_MAX:
            if not self._held:
                try:
                    self._held.append(self._queue.get(block=wait and not group))
                except Empty:
                    break
            work = self._held[0]
            if not isinstance(work, _Item) and group:
                return group
            self._held.clear()
            if not isinstance(work, _Item):
                return work
            group.append(work)
            size_bytes += work.size_bytes
        return group

    def _commit(self, group: list[_Item]) -> bool:
        began = time.perf_counter()
        try:
            changes = [change for item in group for change in item.changes]
            with tracing.of_commit(change_count=len(changes), size_bytes=sum(item.size_bytes for item in group)):
                self._store.commit(changes)
        except Exception as error:  # noqa: BLE001 (whatever it was, nothing of the group may be acknowledged)
            self._tell(self._on_settled, group, _sentence(error))
            return False
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - began)
        self._tell(self._on_settled, group, None)
        return True

    def _maintain(self) -> tuple[bool, bool]:
        """Merge for a while; say whether the store failed, and whether there is nothing left to do."""
        until = time.perf_counter() + MAINTAIN_SECONDS_MAX
        idle = False
        while not idle and (began := time.perf_counter()) < until:
            try:
                idle = not self._store.maintain()
            except RecordDamaged as damage:
                self._tell(self._listener.record_damaged, damage)
            except Exception as error:  # noqa: BLE001 (as in _commit)
                self._tell(self._on_settled, [], _sentence(error))
                return True, False
            metrics.MERGE_SECONDS.observe(time.perf_counter() - began)
        return False, idle

    def _recover(self, recovery: "_Recovery") -> bool:
        try:
            contents: Contents | None = self._store.recover()
        except StoreFailed:
            contents = None
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

    def _on_settled(self, group: list[_Item], error: str | None) -> None:
        if error is not None:
            self._fail(error)
        for item in group:
            self._queued_bytes -= item.size_bytes
            if error is None:
                self._catalog.apply(item.changes)
            # Whoever waited may have been cancelled meanwhile; the changes are durable all the same.
            if item.settled.done():
                continue
            if error is None:
                item.settled.set_result(None)
            else:
                item.settled.set_exception(StoreUnavailable(STORE_SENTENCE))
        metrics.UNACKED_BYTES.set(self._queued_bytes)
        self._room.set()

    def _fail(self, error: str) -> None:
        if self._failed:
            return
        self._failed = True
        metrics.COMMITS_FAILED.inc()
        log.error("store_failed", error=error)
        self._listener.store_failed()
        self._recovering = self._loop.create_task(self._try_to_recover())

    async def _try_to_recover(self) -> None:
        contents = None
        while contents is None:
            await asyncio.sleep(RECOVER_SECONDS)
            recovery = _Recovery(self._loop.create_future())
            self._queue.put(recovery)
            contents = await recovery.done
        # It is another one where what is there was damaged and set aside.
        self._catalog.store_id = self._store.store_id
        self._catalog.load(contents)
        self._failed = False
        log.info("store_recovered")
        self._listener.store_recovered()


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


def _look_at(settled: asyncio.Future[None]) -> None:
    if not settled.cancelled():
        settled.exception()


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, StoreFailed) else repr(error)
