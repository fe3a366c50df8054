"""The single writes that a collector tells of, put together from the messages they travel in."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wetink.v1 import dirty_pb2
from wetink_client.errors import BrokenAnswer

_NONE: Final = -1


@dataclass(frozen=True, slots=True)
class Event:
    """One first write to a page in a round. What a backend cannot tell is None or empty.

    Attributes:
        address: Byte address.
        mapping: What lies there: a path, ``[heap]``, ``[stack]``; empty for anonymous memory, None where not known.
        thread_id: Of the writer, in the agent's pid namespace.
        thread_name: What the thread was called when the round ended.
        time_ns: In nanoseconds since the Unix epoch.
        code_address: Where the write was done; 0 where the kernel wrote on the thread's behalf.
        uffd_flags: UFFD_PAGEFAULT_FLAG_* bits.
    """

    address: int
    mapping: str | None
    thread_id: int | None
    thread_name: str | None
    time_ns: int | None
    code_address: int | None
    uffd_flags: int | None


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of one round, or of adjacent rounds united, or a part of them.

    Attributes:
        incarnation: The stretch of tracking that the rounds count in.
        first_round: First round they may be of.
        last_round: Last round they may be of.
        events: In the order of their time within the round.
        lost_count: How many more there were, lost between the kernel and the collector.
        forgotten_count: How many before these the collector does not keep any more.
    """

    incarnation: int
    first_round: int
    last_round: int
    events: tuple[Event, ...]
    lost_count: int
    forgotten_count: int


class EventReader:
    """Reads the messages of one call, and remembers the names in them: they come once a round."""

    def __init__(self) -> None:
        """Know no names yet."""
        self._threads: dict[int, str] = {}
        self._starts: list[int] = []
        self._mappings: list[tuple[int, str]] = []

    def read(self, message: dirty_pb2.StreamEventsResponse) -> EventBatch:
        """Read a message.

        Raises:
            BrokenAnswer: It is damaged.
        """
        columns = message.events
        if columns.mappings:
            self._starts = [mapping.range.start_address for mapping in columns.mappings]
            self._mappings = [
                (mapping.range.start_address + mapping.range.size_bytes, mapping.name) for mapping in columns.mappings
            ]
        self._threads.update((thread.thread_id, thread.name) for thread in columns.threads)
        addresses = _column("Q", columns.address, None)
        count = len(addresses)
        rows = zip(
            addresses,
            _column("I", columns.thread_id, count),
            _column("Q", columns.time_ns, count),
            _column("Q", columns.instruction_pointer, count),
            _column("Q", columns.uffd_flags, count),
            strict=True,
        )
        return EventBatch(
            incarnation=message.incarnation,
            first_round=message.first_round,
            last_round=message.last_round,
            events=tuple(self._events(rows)),
            lost_count=columns.lost_count,
            forgotten_count=message.forgotten_count,
        )

    def _events(self, rows: "Iterator[tuple[int, int, int, int, int]]") -> Iterator[Event]:
        for address, thread_id, time_ns, code_address, uffd_flags in rows:
            yield Event(
                address=address,
                mapping=self._mapping(address),
                thread_id=_known(thread_id),
                thread_name=self._threads.get(thread_id),
                time_ns=_known(time_ns),
                code_address=_known(code_address),
                uffd_flags=_known(uffd_flags),
            )

    def _mapping(self, address: int) -> str | None:
        place = bisect_right(self._starts, address) - 1
        if place < 0 or address >= self._mappings[place][0]:
            return None
        return self._mappings[place][1]


def _column(kind: str, data: bytes, count: int | None) -> "array[int] | list[int]":
    """Read a column; one that is empty says nothing of any event."""
    if count and not data:
        return [_NONE] * count
    column = array(kind)
    if len(data) % column.itemsize or count not in {None, len(data) // column.itemsize}:
        message = "the collector sent columns of events of different lengths: ask again"
        raise BrokenAnswer(message)
    column.frombytes(data)
    return column


def _known(value: int) -> int | None:
    return None if value == _NONE else value
