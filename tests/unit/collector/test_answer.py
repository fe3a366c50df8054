"""What a cursor may be used for, and how an answer says that it falls short."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.collector.changes import appended, ended, incarnation, started
from wetink.names import TargetName
from wetink.v1.dirty_pb2 import DirtyPages, TargetStatus
from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.types_pb2 import (
    CONSISTENCY_FROZEN,
    CONSISTENCY_NONE,
    CONSISTENCY_PER_PROCESS,
    END_REASON_EXEC,
    END_REASON_EXITED,
    END_REASON_FAILED,
    END_REASON_LOST,
    END_REASON_RESYNCHRONISED,
    END_REASON_UNTRACKED,
    INCOMPLETE_REASON_AGENT_DISCONNECTED,
    INCOMPLETE_REASON_BARRIER_TIMEOUT,
    INCOMPLETE_REASON_NO_ROUND,
    INCOMPLETE_REASON_TARGET_ENDED,
    INCOMPLETE_REASON_UNSPECIFIED,
    EndReason,
    IncompleteReason,
)
from wetink_collector.answer import Answerer, Ending, check_cursor, consistency, status, without_pages
from wetink_collector.barrier import Reached
from wetink_collector.bookmarks import Bookmarks
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.cursor import Cursor, Position
from wetink_collector.errors import CursorForeign, CursorIncarnationEnded, CursorOtherStore
from wetink_collector.selection import Chosen
from wetink_collector.store.interface import Change, IncarnationEnded, RecordDamaged
from wetink_collector.store.memory import MemoryStore

ONE = incarnation(1, 7)
STORE_ID = "0" * 32


def record(last_round: int = 5, end: IncarnationEnded | None = None) -> TargetRecord:
    """Give a target that has come to a round."""
    last = appended(ONE, last_round).block if last_round else None
    return TargetRecord(ONE, started(ONE).started, last, ended=end)


def cursor(round_: int = 3, number: int = 7, store_id: str = STORE_ID) -> Cursor:
    """Give a cursor that names the target."""
    return Cursor(store_id, {ONE.target: Position(number, round_)})


@pytest.mark.parametrize("round_", [0, 3, 5])
def test_cursor_of_the_living_incarnation_goes_on(round_: int) -> None:
    """From any round up to the last."""
    assert check_cursor(cursor(round_), [record()], STORE_ID) == {ONE.target: Position(7, round_)}


def test_no_cursor_means_the_beginning() -> None:
    """As does one that an answer about nothing gave."""
    assert check_cursor(None, [record()], STORE_ID) == {}
    assert check_cursor(Cursor(STORE_ID, {}), [record()], STORE_ID) == {}


@pytest.mark.parametrize("number", [6, 8])
def test_cursor_of_another_incarnation_has_ended(number: int) -> None:
    """Of an older one, and of one that this store never had."""
    with pytest.raises(CursorIncarnationEnded):
        check_cursor(cursor(number=number), [record()], STORE_ID)


def test_cursor_beyond_the_last_round_has_ended() -> None:
    """This store has lost rounds, as when a backup was put back: an empty set would be a lie."""
    with pytest.raises(CursorIncarnationEnded):
        check_cursor(cursor(6), [record(5)], STORE_ID)


@pytest.mark.parametrize("reason", [END_REASON_EXEC, END_REASON_LOST, END_REASON_FAILED, END_REASON_RESYNCHRONISED])
def test_cursor_of_an_incarnation_that_ended_with_a_gap_has_ended(reason: EndReason.ValueType) -> None:
    """What was written since nobody knows."""
    with pytest.raises(CursorIncarnationEnded):
        check_cursor(cursor(), [record(end=ended(ONE, reason))], STORE_ID)


@pytest.mark.parametrize("reason", [END_REASON_EXITED, END_REASON_UNTRACKED])
def test_cursor_of_an_incarnation_that_ended_in_order_goes_on(reason: EndReason.ValueType) -> None:
    """Its last set is still to be had."""
    assert check_cursor(cursor(), [record(end=ended(ONE, reason))], STORE_ID)


def test_cursor_of_others_is_foreign_and_of_another_store_is_said_to_be() -> None:
    """The other store is told first: its targets say nothing here."""
    other = Cursor(STORE_ID, {incarnation(2).target: Position(1, 1)})

    with pytest.raises(CursorForeign):
        check_cursor(other, [record()], STORE_ID)
    with pytest.raises(CursorOtherStore):
        check_cursor(cursor(store_id="1" * 32), [record()], STORE_ID)


@pytest.mark.parametrize(
    "last_round, end, connected, reached, reason",
    [
        (5, None, True, True, INCOMPLETE_REASON_UNSPECIFIED),
        (5, None, True, False, INCOMPLETE_REASON_BARRIER_TIMEOUT),
        (5, None, False, True, INCOMPLETE_REASON_AGENT_DISCONNECTED),
        (5, None, False, False, INCOMPLETE_REASON_AGENT_DISCONNECTED),
        (0, None, True, True, INCOMPLETE_REASON_NO_ROUND),
        (0, None, False, False, INCOMPLETE_REASON_NO_ROUND),
        (0, ended(ONE), False, False, INCOMPLETE_REASON_TARGET_ENDED),
        (5, ended(ONE), True, True, INCOMPLETE_REASON_TARGET_ENDED),
    ],
)
def test_first_reason_that_holds_stands(
    last_round: int,
    end: IncarnationEnded | None,
    connected: bool,  # noqa: FBT001 (a column of the table)
    reached: bool,  # noqa: FBT001 (as above)
    reason: IncompleteReason.ValueType,
) -> None:
    """The end, no round, no agent, no barrier; and with each a sentence."""
    outcome = None if reached else Reached(message="it was not reached")

    said = status(without_pages(record(last_round, end)), connected=connected, reached=outcome)

    assert said.incomplete_reason == reason
    assert said.complete == (reason == INCOMPLETE_REASON_UNSPECIFIED) == (not said.incomplete_message)


@pytest.mark.parametrize(
    "frozen, all_reached, expected",
    [
        ([True, True], True, CONSISTENCY_FROZEN),
        ([True, False], True, CONSISTENCY_PER_PROCESS),
        ([True, True], False, CONSISTENCY_NONE),
    ],
)
def test_consistency_is_the_strongest_that_holds(
    frozen: list[bool],
    all_reached: bool,  # noqa: FBT001 (as above)
    expected: int,
) -> None:
    """Stopped targets without a barrier were stopped at any time."""
    assert consistency([TargetStatus(frozen=one) for one in frozen], all_reached=all_reached) == expected


def test_answer_does_not_run_ahead_of_what_is_known() -> None:
    """The store shows a round a moment before the catalog knows it; its cursor would be refused until then."""
    store = MemoryStore()
    catalog = Catalog(store.store_id, store.contents())
    known: list[Change] = [started(ONE), appended(ONE, 1, [1])]
    shown: list[Change] = [appended(ONE, 2, [2])]
    store.commit([*known, *shown])
    catalog.apply(known)

    async def scenario() -> tuple[bool, list[DirtyPages | Ending]]:
        with ThreadPoolExecutor(1) as threads:
            answerer = Answerer(store, catalog, threads, _never, Bookmarks())
            parts = answerer.answer(list(catalog.all()), {}, chosen=CHOSEN, reached=None)
            asked = asyncio.ensure_future(_all(parts))
            await asyncio.sleep(0.05)
            early = asked.done()
            catalog.apply(shown)
            return early, await asked

    early, parts = asyncio.run(scenario())

    assert not early
    ending = parts[-1]
    assert isinstance(ending, Ending)
    assert ending.cursor.positions[ONE.target] == Position(7, 2)
    assert check_cursor(ending.cursor, list(catalog.all()), store.store_id)


CHOSEN = Chosen((TargetName("host-1", 1),), frozenset(), frozenset())


async def _never(damage: RecordDamaged, _: TargetStarted) -> None:
    """Nothing is damaged here."""
    raise damage


async def _all(parts: AsyncIterator[DirtyPages | Ending]) -> list[DirtyPages | Ending]:
    """Read a whole answer."""
    return [part async for part in parts]
