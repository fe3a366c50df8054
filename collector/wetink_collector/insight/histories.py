"""Keeps the history of every target up with what is committed, on a thread of its own.

The event loop only hands over what was committed, as the bytes it came in; nothing waits for this thread but a reader
who asks for a history. It works in pieces of one round, and whoever waits for the interpreter's lock gets it soon
(``server.SWITCH_SECONDS``). While nobody waits for it, it takes a quarter of a processor, and next to nothing where the
rest of the collector has much to do: what it cannot count in that time it counts when somebody asks. After a restart,
and where too much waits, it reads the store instead.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Final, TypeVar

import structlog

from wetink_collector import metrics
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.errors import HistoryTooShort, StoreUnavailable
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.insight.history import History
from wetink_collector.insight.share import Share
from wetink_collector.store.interface import (
    Change,
    IncarnationEnded,
    IncarnationStarted,
    RecordDamaged,
    RoundsAppended,
    Store,
    StoredBlock,
    StoreFailed,
    TargetForgotten,
    encode_stored,
)

HISTORIES_BYTES_MAX: Final = 256 << 20
"""Bound on all histories together: an hour of a round a second for ten targets that write a few thousand pages in each.
What takes most gives way: old rounds are merged, then windows and pages of long ago are let go of."""

_FREED_SHARE: Final = 1 / 256
"""What is let go of at a time, as a part of that: to find who takes most takes a look at all."""

_STUCK_SHARE: Final = 1 / 64
"""Where nobody can let go of anything, they are asked again when they take so much more, as a part of it."""

BACKLOG_BYTES_MAX: Final = 64 << 20
"""Bound on the rounds that wait to be counted. Beyond it they are dropped here, and read from the store later."""

BACKLOG_KEPT: Final = 0.75
"""What is left of them then: to find who has most of it takes a look at all targets, too long to be done each round."""

_WAITING_BYTES: Final = 1024
"""What a round that waits takes beside its sets, also where it has none."""

WAIT_SECONDS_MAX: Final = 20.0
"""How long a reader waits for a history: after a restart a target's whole log is read first, which takes seconds."""

FAILED_SECONDS: Final = 30.0
"""How long a target whose rounds could not be counted, and nobody foresaw why, is not tried again: its whole log is
read each time, and mostly comes to the same."""

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(slots=True)
class _Work:
    """What is kept of one target, and what is still to be done for it. Under the lock but for ``history``."""

    incarnation: IncarnationKey
    history: History
    # Whether the target had another incarnation before.
    follows: bool = False
    waiting: deque[RoundsAppended] = field(default_factory=deque)
    waiting_bytes: int = 0
    reload: bool = False
    # Why it could not be counted, and when that was, where nobody foresaw it.
    failure: str = ""
    failed_seconds: float = 0.0
    readers: list[asyncio.Future[None]] = field(default_factory=list)
    # What the history took when it could let go of nothing more.
    least_bytes: int = -1


class Histories:
    """The histories of all targets. Used on the event loop, but for its own thread."""

    def __init__(self, store: Store, catalog: Catalog, bytes_max: int = HISTORIES_BYTES_MAX) -> None:
        """Follow a catalog from now on, and read what it has from a store."""
        self._store = store
        self._catalog = catalog
        self._bytes_max = bytes_max
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        # Tells the thread that it is to rest no longer.
        self._hurry = threading.Condition(self._lock)
        self._reader_count = 0
        self._kept: dict[TargetKey, _Work] = {}
        # Targets with something to do, in the order of their turn.
        self._turns: OrderedDict[TargetKey, None] = OrderedDict()
        # Those that are to be read from the store when nothing else is to be done, or somebody asks.
        self._rereads: OrderedDict[TargetKey, None] = OrderedDict()
        self._backlog_bytes = 0
        self._stopped = False
        # Held while a history is changed or read. Nothing of the event loop waits for it.
        self._using = threading.Lock()
        self._sizes: dict[TargetKey, int] = {}
        self._size_bytes = 0
        # What all took when none could let go of anything; 0 where they could.
        self._stuck_bytes = 0
        catalog.follow(self)
        self.loaded()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep up while the body runs."""
        thread = threading.Thread(target=self._run, name="insight", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._stopped = True
                self._news.notify()
                self._hurry.notify()
            await asyncio.to_thread(thread.join)

    def loaded(self) -> None:
        """Begin afresh with what the catalog has."""
        with self._lock:
            for target in list(self._kept):
                self._drop(target)
            for record in self._catalog.all():
                self._begin(record.incarnation, reload=True)

    def took(self, change: Change) -> None:
        """Hear of a change that is durable."""
        match change:
            case RoundsAppended():
                with self._lock:
                    self._append(change)
            case IncarnationStarted():
                with self._lock:
                    follows = change.incarnation.target in self._kept
                    self._drop(change.incarnation.target)
                    self._begin(change.incarnation, reload=False, follows=follows)
            case IncarnationEnded(rounds_dropped=True):
                with self._lock:
                    self._drop(change.incarnation.target)
                    self._begin(change.incarnation, reload=False)
            case TargetForgotten() if self._catalog.get(change.incarnation.target) is None:
                with self._lock:
                    self._drop(change.incarnation.target)
            case _:
                pass

    def is_current(self, record: TargetRecord) -> bool:
        """Whether the rounds that are committed now are in a target's history, so that nobody need wait for it."""
        work = self._kept.get(record.target)
        # A round is the last in a history when everything is counted that it brought.
        return work is not None and work.incarnation == record.incarnation and work.history.round >= record.round

    async def current(self, record: TargetRecord) -> None:
        """Wait until the rounds that are committed now are in a target's history.

        Raises:
            StoreUnavailable: That takes too long, or the store cannot be read now.
            HistoryTooShort: The record of its rounds is damaged, or they cannot be counted.
        """
        if self.is_current(record):
            return
        caught_up: asyncio.Future[None] = self._loop.create_future()
        with self._lock:
            work = self._kept.get(record.target)
            if work is None or work.incarnation != record.incarnation:
                return
            if work.failure and time.monotonic() < work.failed_seconds + FAILED_SECONDS:
                raise HistoryTooShort(work.failure)
            work.readers.append(caught_up)
            self._reader_count += 1
            self._queue(work)
            self._hurry.notify()
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await caught_up
        except TimeoutError as error:
            message = f"the rounds of {record.name} are still being read from the store; ask again in some seconds"
            raise StoreUnavailable(message) from error
        finally:
            # Who goes on waiting no longer is nobody that the thread has to hurry for.
            with self._lock:
                if caught_up in work.readers:
                    work.readers.remove(caught_up)
                    self._reader_count -= 1

    def read(self, incarnation: IncarnationKey, function: Callable[[History], T]) -> T | None:
        """Look at a history, for a moment: nothing is added to any meanwhile. From any thread but the event loop's.

        Returns:
            What the function gives; None where the incarnation is not kept any more.
        """
        with self._using:
            work = self._kept.get(incarnation.target)
            return function(work.history) if work and work.incarnation == incarnation else None

    def _begin(self, incarnation: IncarnationKey, *, reload: bool, follows: bool = False) -> None:
        history = History(incarnation, follows=follows)
        work = self._kept[incarnation.target] = _Work(incarnation, history, follows=follows, reload=reload)
        if reload:
            self._queue(work)

    def _queue(self, work: _Work) -> None:
        """Let the thread come to a target: at once where somebody waits for it, else in its turn."""
        target = work.incarnation.target
        turns, others = (
            (self._rereads, self._turns) if work.reload and not work.readers else (self._turns, self._rereads)
        )
        others.pop(target, None)
        turns.setdefault(target)
        if work.readers:
            turns.move_to_end(target, last=False)
        self._news.notify()

    def _append(self, change: RoundsAppended) -> None:
        target = change.incarnation.target
        work = self._kept.get(target)
        if work is None or work.incarnation != change.incarnation or work.reload:
            return
        # Its events are kept elsewhere, and as long as they are to be.
        waiting = RoundsAppended(change.incarnation, change.block, change.written, change.vanished)
        work.waiting.append(waiting)
        work.waiting_bytes += _size(waiting)
        self._backlog_bytes += _size(waiting)
        self._queue(work)
        if self._backlog_bytes > BACKLOG_BYTES_MAX:
            self._give_up()

    def _give_up(self) -> None:
        """Drop what waits of the targets that have most of it: their rounds are read from the store, merged by then."""
        works = sorted((work for work in self._kept.values() if work.waiting), key=lambda work: -work.waiting_bytes)
        count = 0
        while self._backlog_bytes > BACKLOG_KEPT * BACKLOG_BYTES_MAX:
            self._reread(works[count])
            self._queue(works[count])
            count += 1
        log.info(
            "histories_reread",
            target=str(works[0].incarnation.target),
            others=count - 1,
            why="too many rounds wait to be counted",
        )

    def _reread(self, work: _Work) -> None:
        self._backlog_bytes -= work.waiting_bytes
        work.waiting.clear()
        work.waiting_bytes = 0
        work.reload = True

    def _drop(self, target: TargetKey) -> None:
        if work := self._kept.pop(target, None):
            self._backlog_bytes -= work.waiting_bytes
            work.waiting_bytes = 0
            work.waiting.clear()
            self._turns.pop(target, None)
            self._rereads.pop(target, None)
            self._size_bytes -= self._sizes.pop(target, 0)
            self._release(work)

    def _release(self, work: _Work, error: Exception | None = None) -> None:
        """Let readers go on. Under the lock, from any thread."""
        self._reader_count -= len(work.readers)
        for reader in work.readers:
            self._loop.call_soon_threadsafe(_settle, reader, error)
        work.readers.clear()

    def _run(self) -> None:
        """Count what waits: the thread."""
        self._share = Share(time.monotonic(), time.thread_time(), time.process_time())
        while (work := self._next()) is not None:
            try:
                for may_rest in self._pieces(work):
                    if may_rest:
                        self._rest()
                    if self._stopped:
                        return
                    if may_rest and self._reader_count and not work.readers:
                        # What is left of it has another turn.
                        break
            except RecordDamaged as damage:
                # Who asks for its pages finds out as well, and has it dropped.
                log.warning("history_damaged", target=str(work.incarnation.target), error=str(damage))
                self._fail(work, HistoryTooShort(str(damage)))
            except StoreFailed as error:
                self._fail(work, StoreUnavailable(str(error)))
            except Exception as error:  # it is of one target, and the thread is of all
                log.exception("history_failed", target=str(work.incarnation.target))
                self._fail_unforeseen(work, error)
            else:
                self._finish(work)
            self._rest()

    def _rest(self) -> None:
        """Rest from what was done beyond the thread's share, unless somebody waits."""
        while seconds := self._share.excess_seconds(time.monotonic(), time.thread_time(), time.process_time()):
            with self._lock:
                if self._hurry.wait_for(lambda: self._reader_count or self._stopped, seconds):
                    return

    def _next(self) -> _Work | None:
        with self._lock:
            while True:
                while not self._turns and not self._rereads and not self._stopped:
                    self._news.wait()
                if self._stopped:
                    return None
                target, _ = (self._turns or self._rereads).popitem(last=False)
                if work := self._kept.get(target):
                    return work

    def _pieces(self, work: _Work) -> Iterator[bool]:
        """Do what is to be done for one target, piece by piece: what was there when its turn came.

        Yields:
            Whether one may rest after the piece. While the store is read, its log cannot be cut.
        """
        with self._lock:
            reload, work.reload = work.reload, False
            count = len(work.waiting)
        if reload:
            with self._using:
                work.history = History(work.incarnation, follows=work.follows)
            for stored in self._store.read(work.incarnation, after_round=0):
                self._count(work, _appended(work.incarnation, stored))
                yield False
        for _ in range(count):
            with self._lock:
                if not work.waiting:
                    return
                change = work.waiting.popleft()
                work.waiting_bytes -= _size(change)
                self._backlog_bytes -= _size(change)
            self._count(work, change)
            yield True

    def _count(self, work: _Work, change: RoundsAppended) -> None:
        block = change.block
        if block.last_round <= work.history.round:
            return
        if block.first_round != work.history.round + 1:
            with self._lock:
                self._reread(work)
            return
        with self._using:
            work.history.append(block, change.written, change.vanished)
            self._account(work)
        metrics.HISTORY_BYTES.set(self._size_bytes)

    def _account(self, work: _Work) -> None:
        self._note_size(work)
        self._stuck_bytes = min(self._stuck_bytes, self._size_bytes)
        if self._size_bytes > max(self._bytes_max, self._stuck_bytes * (1 + _STUCK_SHARE)):
            self._shrink()

    def _shrink(self) -> None:
        """Let what takes most give way, until there is room again or nobody can."""
        with self._lock:
            heaviest = [
                (-size, number, work)
                for number, (target, size) in enumerate(self._sizes.items())
                if (work := self._kept[target]).least_bytes != size
            ]
        heapify(heaviest)
        while heaviest and self._size_bytes > self._bytes_max * (1 - _FREED_SHARE):
            _, number, work = heaviest[0]
            if work.history.shrink():
                heapreplace(heaviest, (-self._note_size(work), number, work))
            else:
                work.least_bytes = work.history.size_bytes
                heappop(heaviest)
        self._stuck_bytes = self._size_bytes if self._size_bytes > self._bytes_max else 0

    def _note_size(self, work: _Work) -> int:
        target = work.incarnation.target
        size_bytes = work.history.size_bytes
        with self._lock:
            if self._kept.get(target) is work:
                self._size_bytes += size_bytes - self._sizes.get(target, 0)
                self._sizes[target] = size_bytes
        return size_bytes

    def _fail(self, work: _Work, error: Exception) -> None:
        """Tell who waits, and read it all again when somebody asks the next time."""
        with self._lock:
            if self._kept.get(work.incarnation.target) is work:
                self._reread(work)
                self._release(work, error)

    def _fail_unforeseen(self, work: _Work, error: Exception) -> None:
        """Let go of a history that may be half counted. It is tried again later, not each time that somebody asks."""
        name = str(work.incarnation.target)
        message = f"the rounds of {name} could not be counted ({type(error).__name__}): the collector's log says why"
        with self._using:
            work.history = History(work.incarnation, follows=work.follows)
            self._note_size(work)
        with self._lock:
            work.failure, work.failed_seconds = message, time.monotonic()
        self._fail(work, HistoryTooShort(message))

    def _finish(self, work: _Work) -> None:
        with self._lock:
            if self._kept.get(work.incarnation.target) is not work:
                return
            if work.waiting or work.reload:
                # Whoever waits for it still waits.
                self._queue(work)
                return
            work.failure = ""
            self._release(work)


def _settle(reader: "asyncio.Future[None]", error: Exception | None) -> None:
    if reader.done():
        return
    if error:
        reader.set_exception(error)
    else:
        reader.set_result(None)


def _appended(incarnation: IncarnationKey, stored: StoredBlock) -> RoundsAppended:
    pages = stored.pages
    return RoundsAppended(incarnation, stored.block, encode_stored(pages.written), encode_stored(pages.vanished))


def _size(change: RoundsAppended) -> int:
    return len(change.written) + len(change.vanished) + _WAITING_BYTES
