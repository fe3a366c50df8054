"""What a collector says about the history of targets, as plain values, and how they are read from its messages."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wetink.v1 import insight_pb2 as pb
from wetink_client.errors import BrokenAnswer
from wetink_client.values import EndReason, IncompleteReason, end_reason_of, incomplete_reason_of

if TYPE_CHECKING:
    from pyroaring import BitMap64


@dataclass(frozen=True, slots=True)
class History:
    """What stretch of a target's rounds an answer rests on.

    Attributes:
        name: The target's full name.
        incarnation: The stretch of tracking.
        first_round: The first round whose writes are in the answer; None without history.
        last_round: The last one; None without history.
        since_time_ns: Writes after this are in the answer.
        as_of_time_ns: Writes before this are in it.
        stretch_count: How many stretches of rounds are told apart.
        exact: Whether every round is kept single.
        complete: Whether the answer is about now. Where it is not, the next three say why.
        incomplete_reason: A word for it.
        incomplete_message: A sentence.
        end_reason: How tracking ended, where it has.
        page_size: Bytes a page.
    """

    name: str
    incarnation: int
    first_round: int | None
    last_round: int | None
    since_time_ns: int | None
    as_of_time_ns: int | None
    stretch_count: int
    exact: bool
    complete: bool
    incomplete_reason: IncompleteReason | None
    incomplete_message: str
    end_reason: EndReason | None
    page_size: int


@dataclass(frozen=True, slots=True)
class PageStatistics:
    """Numbers of pages, over all starting points of a window. Percentiles are by nearest rank."""

    mean: float
    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class WorkingSetPoint:
    """W(T) for one T.

    Attributes:
        window_ns: T: the mean length of the windows.
        window_count: From how many starting points.
        pages: Unique pages written in a window. Where it is not exact, no window had more.
        pages_at_least: And none had fewer; the same where it is exact.
        exact: Whether every window is of rounds that were single.
    """

    window_ns: int
    window_count: int
    pages: PageStatistics
    pages_at_least: PageStatistics
    exact: bool


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """How much of some memory is written how often.

    Attributes:
        points: W(T), by ascending T.
        dirty_pages_per_second: Pages written in each round, over the time of all rounds.
        dirty_pages_per_second_now: The same in the newest round.
        writable_page_count: Unique pages written in the whole history, at most.
        writable_page_count_at_least: And at least.
        populated_page_count: What a full copy moves.
    """

    points: tuple[WorkingSetPoint, ...]
    dirty_pages_per_second: float
    dirty_pages_per_second_now: float
    writable_page_count: int
    writable_page_count_at_least: int
    populated_page_count: int


@dataclass(frozen=True, slots=True)
class TargetWorkingSet:
    """One target's working set; None without history."""

    history: History
    working_set: WorkingSet | None


@dataclass(frozen=True, slots=True)
class GroupWorkingSet:
    """What the targets of a selection write together: a page of shared memory counts once.

    Attributes:
        working_set: Of all of them.
        targets_without_mappings: Those of which nobody told what is shared: shared pages count for each of them.
        shared_page_count: Populated pages that are another target's as well.
    """

    working_set: WorkingSet
    targets_without_mappings: tuple[str, ...]
    shared_page_count: int


@dataclass(frozen=True, slots=True)
class WorkingSets:
    """The working sets of a selection.

    Attributes:
        targets: Each target, in the order of names.
        group: All of them together; None where there is only one.
        complete: Whether every target has a history that reaches to now.
        missing: Hosts that are missing in whole or in part, each with the reason.
    """

    targets: tuple[TargetWorkingSet, ...]
    group: GroupWorkingSet | None
    complete: bool
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeatmapRow:
    """Some addresses: ``page_count`` pages of them are populated or were written."""

    start_address: int
    length_bytes: int
    page_count: int
    label: str


@dataclass(frozen=True, slots=True)
class HeatmapColumn:
    """Some whole rounds. Where it is not exact, pages that vanished after they were written are left out."""

    since_time_ns: int
    until_time_ns: int
    first_round: int
    last_round: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Address by time: ``page_counts`` has, for each row, the unique pages written in each column."""

    history: History
    rows: tuple[HeatmapRow, ...]
    columns: tuple[HeatmapColumn, ...]
    page_counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class HotPages:
    """Adjacent pages of which the same is true: in how many rounds each was written, and when last.

    ``round_count`` is at least, ``round_count_max`` at most; none was written after ``last_written_time_ns``.
    """

    start_address: int
    length_bytes: int
    round_count: int
    round_count_max: int
    last_written_time_ns: int
    label: str


@dataclass(frozen=True, slots=True)
class TargetHotPages:
    """One target's hot pages, the hottest first, of so many that were written at all."""

    history: History
    pages: tuple[HotPages, ...]
    written_page_count: int


@dataclass(frozen=True, slots=True)
class ColdPages:
    """Some pages, to be sent after those of all before.

    Attributes:
        history: What the order rests on.
        class_index: Of one class the pages may be sent in any order.
        pages: Page numbers.
        last_written_time_ns: None was written after this; None where none was written at all.
        mean_round_count: In how many rounds a page of the class was written.
    """

    history: History
    class_index: int
    pages: "BitMap64"
    last_written_time_ns: int | None
    mean_round_count: float

    def ranges(self) -> list[tuple[int, int]]:
        """Give the pages as ``(start_address, length_bytes)`` runs."""
        from wetink.pages import address_ranges  # noqa: PLC0415 (numpy takes 0.2 s)

        return address_ranges(self.pages, self.history.page_size)


@dataclass(frozen=True, slots=True)
class WriterThread:
    """A thread that writes; its id is None where it had ended before anybody could tell."""

    thread_id: int | None
    name: str
    event_count: int
    page_count: int


@dataclass(frozen=True, slots=True)
class WriterCode:
    """Code that writes: a function, or one address. Address 0 is the kernel's, on the process's behalf."""

    code_address: int
    symbol: str
    file: str
    file_offset: int | None
    event_count: int
    page_count: int


@dataclass(frozen=True, slots=True)
class WriterMapping:
    """A mapping that is written; the one without a name is all that is not known."""

    name: str
    event_count: int
    page_count: int


@dataclass(frozen=True, slots=True)
class Writers:
    """Who writes, counted in first writes to a page in a round.

    ``lost_count`` events did not get to the collector, ``forgotten_count`` are not kept there any more.
    """

    name: str
    incarnation: int
    first_round: int
    last_round: int
    since_time_ns: int | None
    until_time_ns: int | None
    event_count: int
    lost_count: int
    forgotten_count: int
    threads: tuple[WriterThread, ...]
    code: tuple[WriterCode, ...]
    mappings: tuple[WriterMapping, ...]


def history_of(message: pb.HistoryStatus) -> History:
    """Read what an answer rests on."""
    return History(
        name=message.name,
        incarnation=message.incarnation,
        first_round=message.first_round or None,
        last_round=message.last_round or None,
        since_time_ns=message.since_time_ns or None,
        as_of_time_ns=message.as_of_time_ns or None,
        stretch_count=message.stretch_count,
        exact=message.exact,
        complete=message.complete,
        incomplete_reason=None if message.complete else incomplete_reason_of(message.incomplete_reason),
        incomplete_message=message.incomplete_message,
        end_reason=end_reason_of(message.end_reason),
        page_size=message.page_size,
    )


def working_sets_of(message: pb.GetWorkingSetResponse) -> WorkingSets:
    """Read working sets."""
    group = message.group
    return WorkingSets(
        targets=tuple(
            TargetWorkingSet(
                history_of(target.history),
                _working_set_of(target.working_set) if target.HasField("working_set") else None,
            )
            for target in message.targets
        ),
        group=GroupWorkingSet(
            _working_set_of(group.working_set), tuple(group.targets_without_mappings), group.shared_page_count
        )
        if message.HasField("group")
        else None,
        complete=message.complete,
        missing=tuple(message.missing),
    )


def heatmap_of(message: pb.GetHeatmapResponse) -> Heatmap:
    """Read a heatmap.

    Raises:
        BrokenAnswer: It has not one number for each row and column.
    """
    width = len(message.columns)
    if len(message.page_counts) != width * len(message.rows):
        text = "the collector sent a heatmap with another number of cells than rows and columns: ask again"
        raise BrokenAnswer(text)
    return Heatmap(
        history=history_of(message.history),
        rows=tuple(
            HeatmapRow(row.range.start_address, row.range.size_bytes, row.page_count, row.label) for row in message.rows
        ),
        columns=tuple(
            HeatmapColumn(
                column.since_time_ns, column.until_time_ns, column.first_round, column.last_round, column.exact
            )
            for column in message.columns
        ),
        page_counts=tuple(tuple(message.page_counts[at * width : (at + 1) * width]) for at in range(len(message.rows))),
    )


def hot_pages_of(message: pb.GetHotPagesResponse) -> tuple[TargetHotPages, ...]:
    """Read hot pages."""
    return tuple(
        TargetHotPages(
            history=history_of(target.history),
            pages=tuple(
                HotPages(
                    start_address=pages.range.start_address,
                    length_bytes=pages.range.size_bytes,
                    round_count=pages.round_count,
                    round_count_max=pages.round_count_max,
                    last_written_time_ns=pages.last_written_time_ns,
                    label=pages.label,
                )
                for pages in target.pages
            ),
            written_page_count=target.written_page_count,
        )
        for target in message.targets
    )


class ColdReader:
    """Reads the messages of one order of sending."""

    def __init__(self) -> None:
        """Know of no history yet."""
        self._history: History | None = None

    def read(self, message: pb.GetColdFirstResponse) -> list[ColdPages]:
        """Read a message: its pages, or none where nothing is populated.

        Raises:
            BrokenAnswer: It is damaged.
        """
        from wetink.pages import CorruptPageSet, decode  # noqa: PLC0415 (numpy takes 0.2 s)

        if message.HasField("history"):
            self._history = history_of(message.history)
        if self._history is None:
            text = "the collector sent pages without saying what their order rests on: ask again"
            raise BrokenAnswer(text)
        if not message.HasField("pages"):
            return []
        try:
            pages = decode(message.pages)
        except CorruptPageSet as error:
            text = f"the collector sent a damaged set of pages ({error}): ask again"
            raise BrokenAnswer(text) from error
        return [
            ColdPages(
                self._history,
                message.class_index,
                pages,
                message.last_written_time_ns or None,
                message.mean_round_count,
            )
        ]


def writers_of(message: pb.GetWritersResponse) -> Writers:
    """Read who writes."""
    return Writers(
        name=message.name,
        incarnation=message.incarnation,
        first_round=message.first_round,
        last_round=message.last_round,
        since_time_ns=message.since_time_ns or None,
        until_time_ns=message.until_time_ns or None,
        event_count=message.event_count,
        lost_count=message.lost_count,
        forgotten_count=message.forgotten_count,
        threads=tuple(
            WriterThread(one.thread_id or None, one.name, one.event_count, one.page_count) for one in message.threads
        ),
        code=tuple(
            WriterCode(
                code_address=one.instruction_pointer,
                symbol=one.symbol,
                file=one.file,
                file_offset=one.file_offset if one.file else None,
                event_count=one.event_count,
                page_count=one.page_count,
            )
            for one in message.code
        ),
        mappings=tuple(WriterMapping(one.name, one.event_count, one.page_count) for one in message.mappings),
    )


def _working_set_of(message: pb.WorkingSet) -> WorkingSet:
    return WorkingSet(
        points=tuple(
            WorkingSetPoint(
                window_ns=point.window_ns,
                window_count=point.window_count,
                pages=_statistics_of(point.pages),
                pages_at_least=_statistics_of(point.pages if point.exact else point.pages_at_least),
                exact=point.exact,
            )
            for point in message.points
        ),
        dirty_pages_per_second=message.dirty_pages_per_second,
        dirty_pages_per_second_now=message.dirty_pages_per_second_now,
        writable_page_count=message.writable_page_count,
        writable_page_count_at_least=message.writable_page_count_at_least,
        populated_page_count=message.populated_page_count,
    )


def _statistics_of(message: pb.PageStatistics) -> PageStatistics:
    return PageStatistics(message.mean, message.p50, message.p95, message.max)
