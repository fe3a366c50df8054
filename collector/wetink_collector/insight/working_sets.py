"""GetWorkingSet: the working set of each target of a selection, and of all together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import insight_pb2 as pb
from wetink_collector.catalog import TargetRecord
from wetink_collector.errors import HistoryTooShort, MessageTooLarge
from wetink_collector.insight import mapped
from wetink_collector.insight.groups import Member, Spaces, distinct, together
from wetink_collector.insight.history import History, page_numbers
from wetink_collector.insight.inquiry import Inquiry, check_any, describe, without_history
from wetink_collector.insight.mapped import SharedRange
from wetink_collector.insight.working_set import Point, Statistics
from wetink_collector.selection import Chosen
from wetink_collector.store.interface import RecordDamaged

POPULATED_READ_MAX: Final = 64
"""Bound on the targets whose populated pages are read to count shared ones once: some milliseconds each."""


POPULATED_PAGES_MAX: Final = 1 << 24
"""Bound on the pages that are read for that, of all targets: each takes some tens of bytes."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What one target's history said."""

    record: TargetRecord
    message: pb.TargetWorkingSet
    member: Member
    written: "np.typing.NDArray[np.uint64]"
    last_round: int


async def working_sets(inquiry: Inquiry, request: pb.GetWorkingSetRequest) -> pb.GetWorkingSetResponse:
    """Answer.

    Raises:
        SelectionMalformed, TargetUnknown: Nothing that is here is meant.
        HistoryTooShort: There is no history of any target.
        MessageTooLarge: There are too many targets for one message.
        StoreUnavailable: Rounds cannot be read now.
    """
    chosen, records = inquiry.chosen(request.selection)
    looked = [await _look(inquiry, record, alone=len(records) == 1) for record in records]
    check_any(looked)
    there = [found for found in looked if isinstance(found, _Found)]
    response = pb.GetWorkingSetResponse(
        targets=[
            found.message
            if isinstance(found, _Found)
            else pb.TargetWorkingSet(history=without_history(inquiry.status(record), found))
            for record, found in zip(records, looked, strict=True)
        ],
        missing=_missing(inquiry, chosen, records),
    )
    response.complete = all(target.history.complete for target in response.targets) and not response.missing
    if len(records) > 1:
        response.group.CopyFrom(await _group(inquiry, there))
    if response.ByteSize() > MESSAGE_BYTES_MAX:
        message = f"the working sets of {len(records)} targets do not fit in one message; ask in several calls"
        raise MessageTooLarge(message)
    return response


async def _look(inquiry: Inquiry, record: TargetRecord, *, alone: bool) -> _Found | HistoryTooShort:
    status = inquiry.status(record)
    table = inquiry.catalog.mappings.get(record.incarnation)
    ranges = mapped.shared(table, record.started.page_size)

    def look(history: History) -> _Found:
        return _Found(
            record=record,
            message=pb.TargetWorkingSet(history=describe(status, history), working_set=_working_set(history)),
            member=Member(record.incarnation, () if alone else history.kept, ranges, history.kept_since_ns),
            written=np.empty(0, np.uint64) if alone else history.written().pages,
            last_round=history.round,
        )

    return await inquiry.look_at_each(record, look)


def _working_set(history: History) -> pb.WorkingSet:
    assert history.last is not None
    least, most = history.writable()
    newest = history.kept[-1:] or ()
    return pb.WorkingSet(
        points=[_point(point, exact=point.exact) for point in history.points()],
        dirty_pages_per_second=history.dirty_pages_per_second(),
        dirty_pages_per_second_now=sum(
            one.block.written_page_count * 1e9 / max(1, one.until_ns - one.since_ns) for one in newest
        ),
        writable_page_count=most,
        writable_page_count_at_least=least,
        populated_page_count=history.last.populated_page_count,
    )


def _point(point: Point, *, exact: bool) -> pb.WorkingSetPoint:
    return pb.WorkingSetPoint(
        window_ns=point.window_ns,
        window_count=point.window_count,
        pages=_statistics(point.most),
        pages_at_least=None if exact else _statistics(point.least),
        exact=exact,
    )


def _statistics(statistics: Statistics) -> pb.PageStatistics:
    return pb.PageStatistics(mean=statistics.mean, p50=statistics.p50, p95=statistics.p95, max=statistics.max)


async def _group(inquiry: Inquiry, found: Sequence[_Found]) -> pb.GroupWorkingSet:
    unknown = [one.record.name for one in found if inquiry.catalog.mappings.get(one.record.incarnation) is None]
    spaces = Spaces()
    try:
        working_set = await inquiry.on_thread(_together, found, spaces)
    except RecordDamaged as damage:
        raise HistoryTooShort(str(damage)) from damage
    populated = sum(one.message.working_set.populated_page_count for one in found)
    sharing = _sharing(found)
    if len(sharing) > POPULATED_READ_MAX:
        unknown += [one.record.name for one in sharing[POPULATED_READ_MAX:]]
    twice, unread = await _counted_twice(inquiry, sharing[:POPULATED_READ_MAX])
    unknown += unread
    working_set.populated_page_count = populated - twice
    return pb.GroupWorkingSet(
        working_set=working_set, targets_without_mappings=sorted(set(unknown)), shared_page_count=twice
    )


def _together(found: Sequence[_Found], spaces: Spaces) -> pb.WorkingSet:
    members = [one.member for one in found]
    # Where memory is short, rounds that are kept apart are the first to be let go of.
    curve = together(members, spaces) if any(member.kept for member in members) else None
    keys = [spaces.keys(one.member.incarnation, one.member.ranges, one.written) for one in found]
    written = distinct(np.concatenate(keys)).size
    doubt = sum(
        one.message.working_set.writable_page_count - one.message.working_set.writable_page_count_at_least
        for one in found
    )
    points = curve.points() if curve else []
    one_host = len({one.record.target.host_id for one in found}) == 1
    # Shared pages count in it for each, and in the shortest windows rounds of others that go on: neither is too little.
    rates = [sum(one.message.working_set.dirty_pages_per_second for one in found)]
    rates += [point.most.mean * 1e9 / point.window_ns for point in points[:1]]
    return pb.WorkingSet(
        # What two hosts wrote at the same time is known only as far as their clocks agree.
        points=[_point(point, exact=point.exact and one_host) for point in points],
        dirty_pages_per_second=min(rates),
        dirty_pages_per_second_now=sum(one.message.working_set.dirty_pages_per_second_now for one in found),
        writable_page_count=written + doubt,
        writable_page_count_at_least=max(0, written - doubt),
    )


def _sharing(found: Sequence[_Found]) -> list[_Found]:
    """Give the targets that map an object which another of them, or they once more, map too."""
    mapped_by = sorted(
        ((place.record.target.host_id, place.record.target.boot_id, one.behind), number)
        for number, place in enumerate(found)
        for one in place.member.ranges
    )
    several = {
        number
        for _, same in groupby(mapped_by, key=lambda entry: entry[0])
        for numbers in [[number for _, number in same]]
        if len(numbers) > 1
        for number in numbers
    }
    return [found[number] for number in sorted(several)]


async def _counted_twice(inquiry: Inquiry, sharing: Sequence[_Found]) -> tuple[int, list[str]]:
    """Give how many populated pages are another's as well, each counted once for every target but one.

    Returns:
        The count, and the targets of which that is not known.
    """
    spaces = Spaces()
    parts = [np.empty(0, np.uint64)]
    unread: list[str] = []
    count, room = 0, POPULATED_PAGES_MAX
    for one in sharing:
        try:
            populated = await inquiry.populated(one.record, one.last_round)
        except HistoryTooShort:
            populated = None
        if populated is None or len(populated) > room:
            unread.append(one.record.name)
            continue
        room -= len(populated)
        pages = await inquiry.on_thread(page_numbers, populated)
        inside = await inquiry.on_thread(_inside, pages, one.member.ranges)
        count += inside.size
        parts.append(spaces.keys(one.member.incarnation, one.member.ranges, inside))
    return count - distinct(np.concatenate(parts)).size, unread


def _inside(pages: "np.typing.NDArray[np.uint64]", ranges: Sequence[SharedRange]) -> "np.typing.NDArray[np.uint64]":
    kept = np.zeros(pages.size, np.bool_)
    for one in ranges:
        low, high = np.searchsorted(pages, np.array([one.start, one.end], np.uint64))
        kept[low:high] = True
    return pages[kept]


def _missing(inquiry: Inquiry, chosen: Chosen, records: Sequence[TargetRecord]) -> list[str]:
    """Say which selected hosts are not wholly in the answer, each in a sentence."""
    on_hosts = {record.target.host_id for record in records}
    return [
        *(
            f"{host}: its agent is not connected, so nothing newer is known"
            for host in sorted(on_hosts | chosen.hosts)
            if not inquiry.catalog.connected(host)
        ),
        *(f"{host}: no target is tracked there" for host in sorted(chosen.hosts - on_hosts)),
    ]
