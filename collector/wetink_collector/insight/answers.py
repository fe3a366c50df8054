"""What is asked about single targets: heatmap, hot pages, the order of sending, and writers."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

from pyroaring import BitMap64

from wetink.pages import MESSAGE_BYTES_MAX, split
from wetink.v1 import insight_pb2 as pb
from wetink.v1.types_pb2 import AddressRange, PageSet
from wetink_collector.catalog import TargetRecord
from wetink_collector.errors import EventsMissing, HistoryTooShort, MessageTooLarge, RequestMalformed
from wetink_collector.event_history import Chunk
from wetink_collector.insight import heatmap as heat
from wetink_collector.insight import mapped
from wetink_collector.insight.history import History, KeptRounds, WrittenPages, written_in
from wetink_collector.insight.inquiry import Inquiry, check_any, describe, too_short, without_history
from wetink_collector.insight.ranking import ColdClass, HotRun, coldest_first, hottest
from wetink_collector.insight.writers import Writers
from wetink_collector.store.interface import RecordDamaged

BINS: Final = 64
BINS_MAX: Final = 1024
HOT: Final = 100
HOT_MAX: Final = 10_000
HOT_TOGETHER_MAX: Final = 20_000
CLASSES: Final = 16
CLASSES_MIN: Final = 2
CLASSES_MAX: Final = 256
WRITERS: Final = 20
WRITERS_MAX: Final = 1000
"""As the contract says."""

_ADDRESSES_END: Final = 1 << 64


async def heatmap(inquiry: Inquiry, request: pb.GetHeatmapRequest) -> pb.GetHeatmapResponse:
    """Draw one target's memory over time.

    Raises:
        RequestMalformed, TargetUnknown: No heatmap can be meant.
        HistoryTooShort: There are no rounds to draw.
        MessageTooLarge: It does not fit in one message.
        StoreUnavailable: Rounds cannot be read now.
    """
    row_count = _bounded("address_bin_count", request.address_bin_count, BINS, BINS_MAX)
    column_count = _bounded("time_bin_count", request.time_bin_count, BINS, BINS_MAX)
    if request.end_address and request.end_address <= request.start_address:
        message = f"end_address {request.end_address:#x} is not above start_address {request.start_address:#x}"
        raise RequestMalformed(message)
    record = inquiry.target(request.target)
    status = inquiry.status(record)

    def look(history: History) -> tuple[pb.HistoryStatus, Sequence[KeptRounds]]:
        return describe(status, history), [one for one in history.kept if one.since_ns >= request.since_time_ns]

    status, kept = await inquiry.look_at_one(record, look)
    if not kept:
        if not request.since_time_ns:
            raise HistoryTooShort(too_short(record))
        message = f"no round of {record.name} has come since that time; ask for an earlier one, or later"
        raise HistoryTooShort(message)
    populated = await inquiry.populated(record, status.last_round)
    names = mapped.names(inquiry.catalog.mappings.get(record.incarnation), record.started.page_size)
    answer = await inquiry.on_thread(_draw, request, record, kept, populated, names, row_count, column_count)
    answer.history.CopyFrom(_of_rounds(status, kept))
    if answer.ByteSize() > MESSAGE_BYTES_MAX:
        message = f"a heatmap of {row_count} by {column_count} bins does not fit in one message; ask for fewer bins"
        raise MessageTooLarge(message)
    return answer


async def hot_pages(inquiry: Inquiry, request: pb.GetHotPagesRequest) -> pb.GetHotPagesResponse:
    """Give the hottest pages of each target.

    Raises:
        RequestMalformed, SelectionMalformed, TargetUnknown: Nothing that is here is meant.
        HistoryTooShort: There is no history of any target.
        MessageTooLarge: So many do not fit in one message.
        StoreUnavailable: Rounds cannot be read now.
    """
    limit = _bounded("limit", request.limit, HOT, HOT_MAX)
    if request.order not in pb.HotOrder.values():
        message = f"order {request.order} is none that this collector knows; use HOT_ORDER_ROUNDS or HOT_ORDER_AGE"
        raise RequestMalformed(message)
    _, records = inquiry.chosen(request.selection)
    if limit * len(records) > HOT_TOGETHER_MAX:
        message = (
            f"{limit} pages of each of {len(records)} targets are more than {HOT_TOGETHER_MAX} in one answer; "
            f"ask for at most {HOT_TOGETHER_MAX // len(records)} of each"
        )
        raise RequestMalformed(message)
    found = [await _hot(inquiry, record, limit, by_age=request.order == pb.HOT_ORDER_AGE) for record in records]
    check_any(found)
    response = pb.GetHotPagesResponse(
        targets=[
            pb.TargetHotPages(history=without_history(inquiry.status(record), one))
            if isinstance(one, HistoryTooShort)
            else one
            for record, one in zip(records, found, strict=True)
        ]
    )
    if response.ByteSize() > MESSAGE_BYTES_MAX:
        message = f"{limit} pages of each of {len(records)} targets do not fit in one message; ask for fewer"
        raise MessageTooLarge(message)
    return response


async def cold_first(inquiry: Inquiry, request: pb.GetColdFirstRequest) -> AsyncIterator[pb.GetColdFirstResponse]:
    """Give the order of sending.

    Raises:
        RequestMalformed, TargetUnknown: No target that is here is meant.
        HistoryTooShort: There is no history.
        StoreUnavailable: Rounds cannot be read now.
    """
    class_count = _bounded("class_count", request.class_count, CLASSES, CLASSES_MAX)
    if class_count < CLASSES_MIN:
        message = f"class_count is {class_count}, at least {CLASSES_MIN} are needed: never written, and written"
        raise RequestMalformed(message)
    record = inquiry.target(request.target)
    status = inquiry.status(record)

    def look(history: History) -> tuple[pb.HistoryStatus, WrittenPages] | None:
        return None if history.forgot_all else (describe(status, history), history.written())

    status, written = await inquiry.look_at_one(record, look)
    populated = await inquiry.populated(record, status.last_round)
    classes = coldest_first(populated, written, class_count)
    is_first = True
    index = 0
    while found := await inquiry.on_thread(_next_class, classes):
        one, pages = found
        for part in pages:
            yield pb.GetColdFirstResponse(
                history=status if is_first else None,
                class_index=index,
                pages=part,
                last_written_time_ns=one.last_until_ns,
                mean_round_count=one.mean_rounds,
            )
            is_first = False
        index += 1
    if is_first:
        yield pb.GetColdFirstResponse(history=status)


async def writers(inquiry: Inquiry, request: pb.GetWritersRequest) -> pb.GetWritersResponse:
    """Give who writes.

    Raises:
        RequestMalformed, TargetUnknown: No target that is here is meant.
        EventsMissing: None of its events are kept.
    """
    limit = _bounded("limit", request.limit, WRITERS, WRITERS_MAX)
    record = inquiry.target(request.target)
    names = mapped.names(inquiry.catalog.mappings.get(record.incarnation), record.started.page_size)
    counted = Writers(record.started.page_size, names)
    number = 0
    first: Chunk | None = None
    last: Chunk | None = None
    while chunks := inquiry.catalog.events.since(record.target, number):
        number = chunks[-1].number + 1
        own = [one for one in chunks if one.incarnation == record.incarnation.incarnation]
        if own:
            first, last = first or own[0], own[-1]
            await inquiry.on_thread(_count, counted, own, request.since_time_ns)
    if first is None or last is None:
        known = inquiry.catalog.events.of(record.target)
        if known and known.end_index:
            message = f"the events that came of {record.name} are not kept any more: ask again when others have come"
            raise EventsMissing(message)
        message = (
            f"no events of {record.name} are kept here: run its agent with --events, "
            "and with a backend that streams them (wp-async or wp-sync)"
        )
        raise EventsMissing(message)
    return pb.GetWritersResponse(
        name=record.name,
        incarnation=record.incarnation.incarnation,
        first_round=first.first_round,
        last_round=last.last_round,
        since_time_ns=counted.since_ns,
        until_time_ns=counted.until_ns,
        event_count=counted.event_count,
        lost_count=counted.lost_count,
        forgotten_count=first.first_index,
        threads=counted.threads(limit),
        code=counted.code(limit),
        mappings=counted.mappings(limit),
    )


def _draw(
    request: pb.GetHeatmapRequest,
    record: TargetRecord,
    kept: Sequence[KeptRounds],
    populated: BitMap64,
    names: Sequence[heat.Mapping],
    row_count: int,
    column_count: int,
) -> pb.GetHeatmapResponse:
    """Make the message, without its status. Runs on a thread."""
    page_size = record.started.page_size
    columns = heat.columns(kept, column_count)
    try:
        written = [written_in(some, record.incarnation) for some in columns]
    except RecordDamaged as damage:
        raise HistoryTooShort(str(damage)) from damage
    known = heat.KnownPages(
        BitMap64.union(populated, *written),
        start=request.start_address // page_size,
        end=-(-(request.end_address or _ADDRESSES_END) // page_size),
    )
    rows = heat.rows(known, row_count, names)
    return pb.GetHeatmapResponse(
        rows=[
            pb.HeatmapRow(
                range=AddressRange(start_address=row.start * page_size, size_bytes=(row.end - row.start) * page_size),
                page_count=row.page_count,
                label=row.label,
            )
            for row in rows
        ],
        columns=[
            pb.HeatmapColumn(
                since_time_ns=some[0].since_ns,
                until_time_ns=some[-1].until_ns,
                first_round=some[0].block.first_round,
                last_round=some[-1].block.last_round,
                exact=all(one.single for one in some),
            )
            for some in columns
        ],
        page_counts=heat.counts(written, rows).reshape(-1).tolist(),
    )


def _of_rounds(status: pb.HistoryStatus, kept: Sequence[KeptRounds]) -> pb.HistoryStatus:
    """Say of an answer that it rests on these rounds alone."""
    status.first_round = kept[0].block.first_round
    status.since_time_ns = kept[0].since_ns
    status.stretch_count = len(kept)
    status.exact = all(one.single for one in kept)
    return status


async def _hot(
    inquiry: Inquiry, record: TargetRecord, limit: int, *, by_age: bool
) -> pb.TargetHotPages | HistoryTooShort:
    status = inquiry.status(record)
    labels = mapped.Labels(mapped.names(inquiry.catalog.mappings.get(record.incarnation), record.started.page_size))

    def look(history: History) -> tuple[pb.HistoryStatus, WrittenPages] | None:
        return None if history.forgot_all else (describe(status, history), history.written())

    found = await inquiry.look_at_each(record, look)
    if isinstance(found, HistoryTooShort):
        return found
    status, written = found
    runs = await inquiry.on_thread(lambda: hottest(written, limit, by_age=by_age))
    return pb.TargetHotPages(
        history=status,
        pages=[_hot_run(run, record.started.page_size, labels) for run in runs],
        written_page_count=written.pages.size,
    )


def _hot_run(run: HotRun, page_size: int, labels: mapped.Labels) -> pb.HotPages:
    return pb.HotPages(
        range=AddressRange(start_address=run.page * page_size, size_bytes=run.page_count * page_size),
        round_count=run.rounds_least,
        round_count_max=run.rounds_most,
        last_written_time_ns=run.last_until_ns,
        label=labels.of(run.page),
    )


def _next_class(classes: Iterator[ColdClass]) -> tuple[ColdClass, list[PageSet]] | None:
    one = next(classes, None)
    return (one, list(split(one.pages))) if one else None


def _count(counted: Writers, chunks: Sequence[Chunk], since_ns: int) -> None:
    for chunk in chunks:
        counted.add(chunk.columns, since_ns)


def _bounded(name: str, asked: int, otherwise: int, most: int) -> int:
    """Give a number that was asked for, or what 0 means.

    Raises:
        RequestMalformed: It is over its bound.
    """
    if asked > most:
        message = f"{name} is {asked}, at most {most} is possible"
        raise RequestMalformed(message)
    return asked or otherwise
