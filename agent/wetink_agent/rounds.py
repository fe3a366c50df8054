"""Rounds as they wait and travel: the messages of one round, and how adjacent rounds become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from pyroaring import BitMap64

from wetink import pages
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.backend import Harvest
from wetink_agent.code_names import CODES_BYTES_MAX
from wetink_agent.events import Events, joined

MAPPING_CHANGES_MAX: Final = 1024
"""Entries of ``mapped`` and ``unmapped`` in a batch: bound of the contract."""

EVENTS_PER_MESSAGE_MAX: Final = 1 << 14
"""Events in one batch, at most 36 bytes each: more would not leave room for the rest of the message."""

EVENTS_UNITED_MAX: Final = EVENTS_PER_MESSAGE_MAX
"""Events kept of rounds that are united: where room is short, time resolution goes first."""

_EVENTS_BYTES_MAX: Final = EVENTS_PER_MESSAGE_MAX * 36 + (352 << 10) + CODES_BYTES_MAX  # names of four-byte characters


_Sets = tuple[BitMap64, BitMap64, BitMap64]
_SET_NAMES: Final = ("written", "vanished", "uncertain")


@dataclass(frozen=True, slots=True)
class Round:
    """One round, or adjacent ones united, ready to be sent: its parts in their order, at least one."""

    parts: tuple[ingest_pb2.WriteProtectBatch, ...]
    size_bytes: int

    @property
    def first(self) -> int:
        """First round number in it."""
        return self.parts[0].first_round

    @property
    def last(self) -> int:
        """Last round number in it."""
        return self.parts[0].last_round

    @property
    def last_time_ns(self) -> int:
        """When that round began, in nanoseconds since the Unix epoch."""
        return self.parts[0].last_time_ns


def round_of(
    harvest: Harvest,
    *,
    target: types_pb2.Target,
    incarnation: int,
    number: int,
    backend: types_pb2.Backend.ValueType,
    pace: types_pb2.Pace | None = None,
    first: int | None = None,
) -> Round:
    """Make a round of a harvest; ``first`` is the number of the first round it stands for, where it does for more."""
    header = ingest_pb2.WriteProtectBatch(
        target=target,
        incarnation=incarnation,
        first_round=number if first is None else first,
        last_round=number,
        first_time_ns=harvest.began_time_ns,
        last_time_ns=harvest.began_time_ns,
        backend=backend,
        frozen=harvest.frozen,
        populated_page_count=harvest.populated_page_count,
        cautious_page_count=harvest.cautious_page_count,
        mapped=_ranges(harvest.mapped),
        unmapped=_ranges(harvest.unmapped),
        mappings_cut=max(len(harvest.mapped), len(harvest.unmapped)) > MAPPING_CHANGES_MAX,
        pace=pace,
    )
    return _cut(header, (harvest.written, harvest.vanished, harvest.uncertain), harvest.events)


def unite(older: Round, newer: Round) -> Round:
    """Make one round of two adjacent ones: the later decides about each page.

    Time resolution is lost, pages are not.
    """
    assert newer.first == older.last + 1, (older.last, newer.first)
    written, vanished, uncertain = _page_sets(older)
    later = later_written, later_vanished, _ = _page_sets(newer)
    events = [Events.from_message(part.events) for part in (*older.parts, *newer.parts) if part.HasField("events")]
    before, after = older.parts[0], newer.parts[0]
    header = ingest_pb2.WriteProtectBatch()
    header.CopyFrom(after)
    header.first_round = before.first_round
    header.first_time_ns = before.first_time_ns
    header.cautious_page_count = max(before.cautious_page_count, after.cautious_page_count)
    for name in ("mapped", "unmapped"):
        changes = [*getattr(before, name), *getattr(after, name)]
        header.ClearField(name)
        getattr(header, name).extend(changes[:MAPPING_CHANGES_MAX])
        header.mappings_cut |= before.mappings_cut or len(changes) > MAPPING_CHANGES_MAX
    return _cut(
        header,
        (
            (written - later_vanished) | later_written,
            (vanished - later_written) | later_vanished,
            pages.uncertain_of_both(written, vanished, uncertain, later),
        ),
        joined(events, EVENTS_UNITED_MAX) if events else None,
    )


def _cut(header: ingest_pb2.WriteProtectBatch, sets: _Sets, events: Events | None) -> Round:
    """Spread the sets over as many messages as they need; what is said once is said in the first."""
    bytes_max = pages.PART_OF_THREE_BYTES_MAX if sets[-1] else pages.PART_BYTES_MAX
    pieces = list(zip_longest(*(pages.split(some, bytes_max) for some in sets))) or [()]
    parts: list[ingest_pb2.WriteProtectBatch] = []
    for piece in pieces:
        part = _next_part(header, parts)
        for name, some in zip(_SET_NAMES, piece, strict=False):
            if some is not None:
                getattr(part, name).CopyFrom(some)
    for index, events_part in enumerate(_events_parts(events)):
        has_room = index < len(parts) and parts[index].ByteSize() < pages.MESSAGE_BYTES_MAX - _EVENTS_BYTES_MAX
        part = parts[index] if has_room else _next_part(header, parts)
        part.events.CopyFrom(events_part.to_message())
    for part in parts:
        part.part_count = len(parts)
    return Round(tuple(parts), sum(part.ByteSize() for part in parts))


def _next_part(
    header: ingest_pb2.WriteProtectBatch, parts: list[ingest_pb2.WriteProtectBatch]
) -> ingest_pb2.WriteProtectBatch:
    """Append a part that says what each has to, and what is said once where it is the first."""
    part = ingest_pb2.WriteProtectBatch()
    part.CopyFrom(header)
    for name in (*_SET_NAMES, "events", *(("mapped", "unmapped") if parts else ())):
        part.ClearField(name)
    part.part = len(parts)
    parts.append(part)
    return part


def _events_parts(events: Events | None) -> list[Events]:
    """Cut events into what one message takes; one part with none where only how many were lost is to be said."""
    if events is None:
        return []
    firsts = range(0, max(1, len(events)), EVENTS_PER_MESSAGE_MAX)
    return [events.part(first, first + EVENTS_PER_MESSAGE_MAX) for first in firsts]


def _page_sets(united: Round) -> _Sets:
    written, vanished, uncertain = BitMap64(), BitMap64(), BitMap64()
    for part in united.parts:
        written |= pages.decode(part.written)
        vanished |= pages.decode(part.vanished)
        uncertain |= pages.decode(part.uncertain)
    return written, vanished, uncertain


def _ranges(spans: Sequence[tuple[int, int]]) -> list[types_pb2.AddressRange]:
    return [
        types_pb2.AddressRange(start_address=start, size_bytes=end - start)
        for start, end in spans[:MAPPING_CHANGES_MAX]
    ]
