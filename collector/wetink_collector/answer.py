"""One answer of DirtyService: what each target's part is, whether it is complete and exact, and where it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate, islice, zip_longest
from typing import Final, TypeVar

from pyroaring import BitMap64

from wetink.pages import PART_BYTES_MAX, PART_OF_THREE_BYTES_MAX, split
from wetink.v1.dirty_pb2 import DirtyPages, DirtySummary, TargetStatus
from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.types_pb2 import (
    CONSISTENCY_FROZEN,
    CONSISTENCY_NONE,
    CONSISTENCY_PER_PROCESS,
    END_REASON_EXITED,
    END_REASON_UNSPECIFIED,
    END_REASON_UNTRACKED,
    INCOMPLETE_REASON_AGENT_DISCONNECTED,
    INCOMPLETE_REASON_NO_ROUND,
    INCOMPLETE_REASON_TARGET_ENDED,
    INCOMPLETE_REASON_UNSPECIFIED,
    STRICTNESS_LENIENT,
    STRICTNESS_STRICT,
    STRICTNESS_STRICT_WHEN_FROZEN,
    Consistency,
    FreezeOutcome,
    IncompleteReason,
    Strictness,
)
from wetink_collector.barrier import Reached
from wetink_collector.bookmarks import Bookmarks
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.cursor import Cursor, Position, encode
from wetink_collector.errors import (
    CursorExpired,
    CursorForeign,
    CursorIncarnationEnded,
    CursorOtherStore,
    StoreUnavailable,
    TargetUnknown,
)
from wetink_collector.identity import TargetKey
from wetink_collector.round_log import Block, RoundPages, fold, is_exact, is_expired, is_whole
from wetink_collector.selection import Chosen
from wetink_collector.store.interface import RecordDamaged, Store, StoreFailed

TARGETS_CHARACTERS_MAX: Final = 2048
"""Bound on the names in an error: statuses travel as headers, of which transports take some 8 KiB."""

FIRST_MESSAGES: Final = 2
"""Messages made together with the pages: most answers have one, and each way to a thread and back costs its time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One target's part of an answer. Where it is lenient, uncertain pages do not count as written.

    ``last`` is the last batch in it, and None where none is durable; ``after_round`` is the round that it begins after.
    ``first_messages`` are at most two; only where they are two may ``more_messages`` give any, which takes time.
    """

    record: TargetRecord
    last: Block | None
    after_round: int
    exact: bool
    written_page_count: int
    vanished_page_count: int
    first_messages: Sequence[DirtyPages]
    more_messages: Iterator[DirtyPages]
    uncertain_page_count: int = 0
    lenient: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends an answer."""

    summary: DirtySummary
    cursor: Cursor


def check_cursor(cursor: Cursor | None, records: Sequence[TargetRecord], store_id: str) -> Mapping[TargetKey, Position]:
    """Give the positions of a cursor among some targets.

    Raises:
        CursorOtherStore: It was made by a collector with another store.
        CursorForeign: It names targets, but none of these.
        CursorIncarnationEnded: What it names of them does not go on.
    """
    if cursor is None:
        return {}
    if cursor.store_id != store_id:
        message = "the cursor was made by a collector with another store; ask without a cursor, and copy afresh"
        raise CursorOtherStore(message)
    named = {record.target: cursor.positions[record.target] for record in records if record.target in cursor.positions}
    if cursor.positions and records and not named:
        message = "the cursor names none of the selected targets; pass one from an answer about them, or none"
        raise CursorForeign(message)
    check_going_on(named, records)
    return named


def check_remembered(cursor: Cursor, find: Callable[[TargetKey], TargetRecord | None]) -> None:
    """Accept a cursor of which no target has been forgotten: what was written last in that would be told nobody.

    Args:
        cursor: Of this store, and of a selection of which nobody else knows which targets it meant.
        find: Gives what is remembered of a target.

    Raises:
        CursorIncarnationEnded: One has.
    """
    if gone := [key for key in cursor.positions if find(key) is None]:
        message = (
            f"{len(gone)} targets of the cursor ended so long ago that they are forgotten; "
            "drop the copies and ask without a cursor"
        )
        raise CursorIncarnationEnded(message, targets="", target_count=str(len(gone)))


def check_going_on(positions: Mapping[TargetKey, Position], records: Iterable[TargetRecord]) -> None:
    """Accept positions from which every target goes on, or has come to its known end.

    A position after the last durable round is one that this store has lost, as when a backup was restored.

    Raises:
        CursorIncarnationEnded: Some do not.
    """
    gone = [
        record.name
        for record in records
        if (position := positions.get(record.target)) and not _goes_on(position, record)
    ]
    if gone:
        message = (
            f"tracking of {gone[0]}" + (f" and {len(gone) - 1} others" if len(gone) > 1 else "") + " did not go on from"
            " the cursor; drop the copy and ask without a cursor"
        )
        raise CursorIncarnationEnded(message, targets=_joined(gone), target_count=str(len(gone)))


def is_unbroken(record: TargetRecord) -> bool:
    """Whether an incarnation goes on, or has come to its known end: a copy of it stays good."""
    return record.ended is None or record.ended.reason in (END_REASON_EXITED, END_REASON_UNTRACKED)


def status(part: Part, *, connected: bool, reached: Reached | None) -> TargetStatus:
    """Say how far a target's part goes.

    Args:
        part: The part.
        connected: Whether the stream of the host's agent is open.
        reached: How its barrier went; None where none was asked for.
    """
    record, last = part.record, part.last
    reason, message = _incomplete(record, last, connected=connected, reached=reached)
    freeze = reached.freeze if reached and reached.freeze else FreezeOutcome()
    return TargetStatus(
        name=record.name,
        incarnation=record.incarnation.incarnation,
        round=last.last_round if last else 0,
        as_of_time_ns=last.last_time_ns if last else 0,
        complete=reason == INCOMPLETE_REASON_UNSPECIFIED,
        incomplete_reason=reason,
        incomplete_message=message,
        end_reason=record.ended.reason if record.ended else END_REASON_UNSPECIFIED,
        exact=part.exact,
        frozen=last.frozen if last else False,
        written_page_count=part.written_page_count,
        vanished_page_count=part.vanished_page_count,
        populated_page_count=last.populated_page_count if last else 0,
        page_size=record.started.page_size,
        uncertain_page_count=part.uncertain_page_count,
        lenient=part.lenient,
        freeze_method=freeze.method,
        frozen_ns=freeze.frozen_ns,
        after_round=part.after_round,
    )


def without_pages(record: TargetRecord) -> Part:
    """Give a part that speaks of a target's last round and has no pages."""
    return Part(
        record=record,
        last=record.last,
        after_round=0,
        exact=True,
        written_page_count=0,
        vanished_page_count=0,
        first_messages=(),
        more_messages=iter(()),
    )


def are_all_reached(records: Iterable[TargetRecord], reached: Mapping[TargetKey, Reached]) -> bool:
    """Whether the barrier of every target was reached."""
    return all((outcome := reached.get(record.target)) and outcome.position for record in records)


def consistency(statuses: Sequence[TargetStatus], *, all_reached: bool) -> Consistency.ValueType:
    """Say how the parts fit together in time.

    Args:
        statuses: The parts.
        all_reached: Whether a barrier was asked for and reached by every target.
    """
    if not all_reached:
        return CONSISTENCY_NONE
    return CONSISTENCY_FROZEN if all(part.frozen for part in statuses) else CONSISTENCY_PER_PROCESS


class Answerer:
    """Reads parts of answers from a store, on threads of their own."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        threads: Executor,
        drop: Callable[[RecordDamaged, TargetStarted], Awaitable[None]],
        bookmarks: Bookmarks,
    ) -> None:
        """Answer from a store.

        Args:
            store: Where the pages are.
            catalog: What there is.
            threads: Where pages are read and merged.
            drop: Ends the incarnation of a record that is damaged, durably, if it is still the one that started so.
            bookmarks: Where readers stand.
        """
        self._store = store
        self._catalog = catalog
        self._threads = threads
        self._drop = drop
        self._bookmarks = bookmarks

    async def answer(
        self,
        records: Sequence[TargetRecord],
        positions: Mapping[TargetKey, Position],
        *,
        chosen: Chosen,
        reached: Mapping[TargetKey, Reached] | None,
        strictness: Strictness.ValueType = STRICTNESS_STRICT,
    ) -> AsyncIterator[DirtyPages | Ending]:
        """Give one answer: pages, and at last its ending.

        Args:
            records: The targets, in the order of their names.
            positions: Where the reader stands with them; a target that is not there is answered from its beginning.
            chosen: The selection they come from.
            reached: How the barrier of each went that has not ended; None where none was asked for.
            strictness: Whether uncertain pages count as written.

        Raises:
            CursorIncarnationEnded: A position does not go on.
            CursorExpired: A position is older than what is kept.
            StoreUnavailable: Pages cannot be read now.
        """
        statuses: list[TargetStatus] = []
        held: dict[TargetKey, Position] = {}
        for target in [record.target for record in records]:
            outcome = reached.get(target) if reached is not None else None
            pinned = outcome.pinned_round if outcome else None
            record = self._catalog.get(target)
            if record and self._is_uncovered(record) and target not in positions and not chosen.names_target(target):
                # Its cursor cannot be held: it would come whole with each answer, and be of no use without the rest.
                statuses.append(status(without_pages(record), connected=True, reached=None))
                continue
            part = await self._part(target, positions.get(target), pinned, strictness)
            if part.last and not part.record.ended:
                # Now, and not when all of it is taken: rounds merge meanwhile.
                self.expect(part.record, part.last.last_round, left=part.after_round)
            for message in part.first_messages:
                yield message
            if len(part.first_messages) == FIRST_MESSAGES:
                while more := await self._on_thread(next, part.more_messages, None):
                    yield more
            connected = self._catalog.connected(target.host_id)
            statuses.append(status(part, connected=connected, reached=outcome))
            if not part.record.ended or chosen.names_target(target):
                held[target] = Position(statuses[-1].incarnation, statuses[-1].round)
        cursor = Cursor(self._catalog.store_id, held)
        all_reached = reached is not None and are_all_reached(records, reached)
        yield Ending(
            DirtySummary(
                cursor=encode(cursor),
                complete=all(part.complete for part in statuses),
                exact=all(part.exact for part in statuses),
                consistency=consistency(statuses, all_reached=all_reached),
                as_of_time_ns=min((part.as_of_time_ns for part in statuses), default=0),
                targets=statuses,
            ),
            cursor,
        )

    def expect(self, record: TargetRecord, round_number: int, *, left: int = 0) -> None:
        """Take note that a reader goes on from a round of a target, where it was before, if anywhere."""
        self._bookmarks.note(record.incarnation, round_number=round_number, left=left)

    async def status_at(self, record: TargetRecord, reached: Reached | None) -> TargetStatus:
        """Say how far a target has come at a barrier, without its pages.

        Raises:
            StoreUnavailable: That cannot be read now.
        """
        part = without_pages(record)
        if reached and reached.position and reached.pinned_round:
            before = Position(reached.position.incarnation, reached.pinned_round - 1)
            part = await self._part(record.target, before, reached.pinned_round, STRICTNESS_STRICT)
        found = status(part, connected=self._catalog.connected(record.target.host_id), reached=reached)
        found.written_page_count = found.vanished_page_count = found.uncertain_page_count = 0
        found.populated_page_count = found.after_round = 0
        found.exact = True
        return found

    async def fixed(
        self, record: TargetRecord, position: Position | None, until_round: int, told: TargetStatus
    ) -> AsyncIterator[DirtyPages]:
        """Give what a target's rounds carry from a position until one of them; say in its status how much that is.

        Raises:
            CursorIncarnationEnded: The position does not go on, or that round is not here any more.
            CursorExpired, StoreUnavailable: As ``answer``.
        """
        part = await self._part(record.target, position, until_round, STRICTNESS_STRICT)
        if part.last is None or part.last.last_round < until_round:
            # Its record was damaged: it has none, or has begun afresh. Fewer pages would be taken for all.
            text = f"the rounds of {record.name} up to {until_round} are not here any more; begin without a parent"
            raise CursorIncarnationEnded(text, targets=record.name, target_count="1")
        for message in part.first_messages:
            yield message
        if len(part.first_messages) == FIRST_MESSAGES:
            while more := await self._on_thread(next, part.more_messages, None):
                yield more
        told.exact = part.exact
        told.after_round = part.after_round
        told.written_page_count, told.vanished_page_count = part.written_page_count, part.vanished_page_count
        told.uncertain_page_count = part.uncertain_page_count
        told.populated_page_count = part.last.populated_page_count

    def _is_uncovered(self, record: TargetRecord) -> bool:
        return record.ended is not None and self._catalog.may_live(record)

    async def _part(
        self,
        target: TargetKey,
        position: Position | None,
        until_round: int | None,
        strictness: Strictness.ValueType,
    ) -> Part:
        """Read one target's part; again where its incarnation was followed by another meanwhile."""
        while True:
            record = self._catalog.get(target)
            if record is None:
                message = f"target {target} was forgotten while the call was answered"
                raise TargetUnknown(message)
            if position:
                check_going_on({target: position}, [record])
            if not record.round:
                return without_pages(record)
            try:
                part: Part = await self._on_thread(self._read, record, position, until_round, strictness)
                await self._known(target, part)
            except StoreFailed as error:
                raise StoreUnavailable(str(error)) from error
            except RecordDamaged as damage:
                await self._drop(damage, record.started)
            else:
                return part

    async def _known(self, target: TargetKey, part: Part) -> None:
        """Wait until the catalog knows the last round of a part: the store shows a commit a moment before.

        Otherwise a reader that comes back at once would hold a cursor that nothing is known of.
        """
        with self._catalog.bell((target,)) as bell:
            while (
                part.last
                and (record := self._catalog.get(target))
                and record.incarnation == part.record.incarnation
                and record.round < part.last.last_round
            ):
                await bell.wait()

    def _read(
        self,
        record: TargetRecord,
        position: Position | None,
        until_round: int | None,
        strictness: Strictness.ValueType,
    ) -> Part:
        """Read and merge what one target's part needs. Runs on a thread.

        What comes after ``until_round`` is left out, but for what has been merged with it.
        """
        after_round = position.round if position else 0
        until = record.round if until_round is None else min(until_round, record.round)
        blocks: list[Block] = []
        pages = fold(self._pages(record, after_round, until_round, blocks))
        if not is_whole(blocks, after_round=after_round, last_round=until):
            raise RecordDamaged(record.incarnation, f"rounds after {after_round} are missing")
        # Who has nothing yet is told everything, and needs all of it.
        vanished, uncertain = (pages.vanished, pages.uncertain) if after_round else (BitMap64(), BitMap64())
        last = blocks[-1] if blocks else record.last
        lenient = is_lenient(strictness, frozen=last is not None and last.frozen)
        written = pages.written - uncertain if lenient else pages.written
        has_later = until_round is not None and bool(blocks) and blocks[-1].last_round > until_round
        messages = _messages(record.name, RoundPages(written, vanished, uncertain))
        return Part(
            record=record,
            last=last,
            after_round=after_round,
            exact=(not after_round or is_exact(blocks, after_round)) and not has_later,
            written_page_count=len(written),
            vanished_page_count=len(vanished),
            first_messages=tuple(islice(messages, FIRST_MESSAGES)),
            more_messages=messages,
            uncertain_page_count=len(uncertain),
            lenient=lenient,
        )

    def _pages(
        self, record: TargetRecord, after_round: int, until_round: int | None, blocks: list[Block]
    ) -> Iterator[RoundPages]:
        for stored in self._store.read(record.incarnation, after_round=after_round):
            if until_round is not None and stored.block.first_round > until_round:
                return
            blocks.append(stored.block)
            if is_expired(blocks, after_round):
                message = (
                    f"the cursor is from round {after_round} of {record.name}, and of the rounds up to "
                    f"{stored.block.last_round} only their sum is kept; drop the copy and ask without a cursor"
                )
                raise CursorExpired(message, targets=record.name, target_count="1")
            yield stored.pages

    async def _on_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def is_lenient(strictness: Strictness.ValueType, *, frozen: bool) -> bool:
    """Whether uncertain pages are left out. What a later version asks for besides is not known here: strict."""
    return strictness == STRICTNESS_LENIENT or (strictness == STRICTNESS_STRICT_WHEN_FROZEN and not frozen)


def _messages(name: str, pages: RoundPages) -> Iterator[DirtyPages]:
    bytes_max = PART_OF_THREE_BYTES_MAX if pages.uncertain else PART_BYTES_MAX
    sets = [split(some, bytes_max) for some in (pages.written, pages.vanished, pages.uncertain)]
    # As in `split`: who waits for a reader holds only what that has not got.
    del pages
    for written, vanished, uncertain in zip_longest(*sets):
        yield DirtyPages(name=name, written=written, vanished=vanished, uncertain=uncertain)


def _joined(names: Sequence[str]) -> str:
    """Join names with commas, as many as the bound allows, each whole."""
    sizes = accumulate(len(name) + 1 for name in names)
    return ",".join(name for name, size in zip(names, sizes, strict=True) if size <= TARGETS_CHARACTERS_MAX)


def _goes_on(position: Position, record: TargetRecord) -> bool:
    if position.incarnation != record.incarnation.incarnation or position.round > record.round:
        return False
    return is_unbroken(record)


def _incomplete(
    record: TargetRecord, last: Block | None, *, connected: bool, reached: Reached | None
) -> tuple[IncompleteReason.ValueType, str]:
    """Say why a part is not complete, and that in a sentence."""
    if record.ended:
        said, more = record.ended.reason_name, record.ended.message or "no more is known of it"
        message = f"tracking of {record.name} has ended ({said}): {more}"
        return INCOMPLETE_REASON_TARGET_ENDED, message
    if last is None:
        return INCOMPLETE_REASON_NO_ROUND, f"no round of {record.name} is here yet: every page may be dirty"
    if not connected:
        host_id = record.target.host_id
        message = f"the agent of host {host_id} is not connected: writes since the as-of time are not known"
        return INCOMPLETE_REASON_AGENT_DISCONNECTED, message
    return (reached.reason, reached.message) if reached else (INCOMPLETE_REASON_UNSPECIFIED, "")
