"""What every answer of insight begins with: which targets are meant, their histories, and what is populated."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from pyroaring import BitMap64

from wetink.names import NameMalformed, parse_target
from wetink.v1.dirty_pb2 import Selection
from wetink.v1.insight_pb2 import HistoryStatus
from wetink_collector.answer import status, without_pages
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.errors import HistoryTooShort, RequestMalformed, StoreUnavailable, TargetUnknown
from wetink_collector.insight.histories import Histories
from wetink_collector.insight.history import COUNTED_PAGES_MAX, History
from wetink_collector.round_log import RoundPages, fold
from wetink_collector.selection import Chosen, parse_non_empty, resolve
from wetink_collector.store.interface import RecordDamaged, Store, StoreFailed

T = TypeVar("T")


class Inquiry:
    """Finds targets, and looks at their histories on threads."""

    def __init__(self, catalog: Catalog, store: Store, histories: Histories, threads: Executor) -> None:
        """Look at what is there."""
        self.catalog = catalog
        self._store = store
        self._histories = histories
        self._threads = threads

    def chosen(self, selection: Selection) -> tuple[Chosen, list[TargetRecord]]:
        """Give the targets of a selection, at least one.

        Raises:
            SelectionMalformed: It is none, or empty.
            TargetUnknown: A named target is not there, or nothing is meant.
        """
        chosen = parse_non_empty(selection)
        records = resolve(chosen, self.catalog)
        if not records:
            message = "the selection means no target that is tracked now; `wetink targets` lists those that are"
            raise TargetUnknown(message)
        return chosen, records

    def target(self, text: str) -> TargetRecord:
        """Give the target with a name.

        Raises:
            RequestMalformed: It is no name.
            TargetUnknown: There is none.
        """
        try:
            name = parse_target(text)
        except NameMalformed as error:
            raise RequestMalformed(str(error)) from error
        record = self.catalog.find(name)
        if record is None:
            message = f"target {name} is not known here; `wetink targets` lists those that are"
            raise TargetUnknown(message)
        return record

    async def look(self, record: TargetRecord, function: Callable[[History], T | None]) -> T | None:
        """Look at a target's history once every round that is committed by now is in it.

        Args:
            record: The target.
            function: Runs on a thread; it may not keep the history.

        Returns:
            What the function gives, None also where there is no round yet after the first, or all were lost.

        Raises:
            StoreUnavailable: The history cannot be read now.
            HistoryTooShort: The record of its rounds is damaged, or they cannot be counted.
        """
        await self._histories.current(record)

        def look(history: History) -> T | None:
            return function(history) if history.stretch_count else None

        return await self.on_thread(self._histories.read, record.incarnation, look)

    async def look_at_many(
        self, records: Sequence[TargetRecord], function: Callable[[TargetRecord, History], T]
    ) -> list[T | StoreUnavailable | HistoryTooShort | None]:
        """Look at the histories of many targets, in one go on a thread: a way there and back for each takes longer.

        Args:
            records: The targets.
            function: Runs on a thread, for one target at a time; it may not keep the history.

        Returns:
            For each target what the function gives. None where there is no round yet after the first, or all were lost;
            an exception where the history cannot be read now, or the record of its rounds is damaged.
        """
        behind = [record for record in records if not self._histories.is_current(record)]
        waited = await asyncio.gather(*(self._histories.current(record) for record in behind), return_exceptions=True)
        failures = dict(zip((record.target for record in behind), waited, strict=True))
        for failed in failures.values():
            if failed is not None and not isinstance(failed, StoreUnavailable | HistoryTooShort):
                raise failed

        def look() -> list[T | StoreUnavailable | HistoryTooShort | None]:
            found: list[T | StoreUnavailable | HistoryTooShort | None] = []
            for record in records:
                failed = failures.get(record.target)
                if isinstance(failed, StoreUnavailable | HistoryTooShort):
                    found.append(failed)
                else:
                    found.append(self._look_now(record, function))
            return found

        return await self.on_thread(look)

    def _look_now(self, record: TargetRecord, function: Callable[[TargetRecord, History], T]) -> T | None:
        return self._histories.read(
            record.incarnation, lambda history: function(record, history) if history.stretch_count else None
        )

    async def look_at_each(self, record: TargetRecord, function: Callable[[History], T | None]) -> T | HistoryTooShort:
        """Look at the history of one target among others.

        Returns:
            What the function gives, or why there is no history: that spoils no answer about the others.

        Raises:
            StoreUnavailable: As ``look``.
        """
        try:
            return await self.look_at_one(record, function)
        except HistoryTooShort as error:
            return error

    async def look_at_one(self, record: TargetRecord, function: Callable[[History], T | None]) -> T:
        """Look at the history of the one target that is asked for.

        Raises:
            HistoryTooShort: There is none, or the function gives None for what is left of it.
            StoreUnavailable: As ``look``.
        """
        found = await self.look(record, function)
        if found is None:
            raise HistoryTooShort(too_short(record))
        return found

    async def populated(self, record: TargetRecord, last_round: int) -> BitMap64:
        """Give the pages that were populated at the end of a round, or of one that the store has merged it with.

        Raises:
            HistoryTooShort: The record of its rounds is damaged or gone.
            StoreUnavailable: It cannot be read now.
        """
        try:
            return await self.on_thread(self._fold, record, last_round)
        except StoreFailed as error:
            raise StoreUnavailable(str(error)) from error
        except RecordDamaged as damage:
            raise HistoryTooShort(str(damage)) from damage

    async def on_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Run something that takes time."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def status(self, record: TargetRecord) -> HistoryStatus:
        """Say whether an answer about a target is about now. What it rests on is for ``describe`` to add."""
        now = self.catalog.get(record.target) or record
        connected = self.catalog.connected(record.target.host_id)
        base = status(without_pages(now), connected=connected, reached=None)
        return HistoryStatus(
            name=record.name,
            incarnation=record.incarnation.incarnation,
            complete=base.complete,
            incomplete_reason=base.incomplete_reason,
            incomplete_message=base.incomplete_message,
            end_reason=base.end_reason,
            page_size=record.started.page_size,
        )

    def _fold(self, record: TargetRecord, last_round: int) -> BitMap64:
        reached = 0

        def pages() -> Iterator[RoundPages]:
            nonlocal reached
            for stored in self._store.read(record.incarnation, after_round=0):
                # More rounds may have come, and been merged with it: what is populated at their end is newer.
                if stored.block.first_round > last_round:
                    return
                reached = stored.block.last_round
                yield stored.pages

        written = fold(pages()).written
        if reached < last_round:
            raise RecordDamaged(record.incarnation, f"round {last_round} is missing")
        return written


def describe(message: HistoryStatus, history: History) -> HistoryStatus:
    """Add what a history says of itself."""
    assert history.last is not None
    message.first_round = history.first_round
    message.last_round = history.round
    message.since_time_ns = history.since_ns
    message.as_of_time_ns = history.last.last_time_ns
    message.stretch_count = history.stretch_count
    message.exact = history.exact
    return message


def without_history(message: HistoryStatus, why: HistoryTooShort) -> HistoryStatus:
    """Say that there is none."""
    message.complete = False
    message.incomplete_message = message.incomplete_message or str(why)
    return message


def too_short(record: TargetRecord) -> str:
    """Say that there is no history, and why."""
    if record.round:
        return (
            f"of {record.name} there is only the first round yet, or the last had too many pages to be counted "
            f"({COUNTED_PAGES_MAX} are the most, and fewer where memory is short): ask again when the next has come"
        )
    return f"no round of {record.name} is here yet: ask again when two have come"


def check_any(found: Sequence[object]) -> None:
    """Accept what was found of some targets, if it is anything.

    Raises:
        HistoryTooShort: Nothing was, of any of them.
    """
    if all(isinstance(one, HistoryTooShort) for one in found):
        others = f", and none of {len(found) - 1} others has more" if len(found) > 1 else ""
        message = f"{found[0]}{others}"
        raise HistoryTooShort(message)
