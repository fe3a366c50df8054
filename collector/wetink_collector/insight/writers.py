"""Who writes: events counted by thread, by code and by mapping. Pure.

Events of one round are first writes to a page: a thread that writes a page first in a round has one event for it,
whatever it and others write there until the round ends.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink.v1 import insight_pb2 as pb
from wetink.v1.types_pb2 import CodeName, EventColumns
from wetink_collector.insight.heatmap import Mapping as NamedPages
from wetink_collector.insight.mapped import Labels

CODES_MAX: Final = 1 << 16
"""Bound on the code addresses that are counted apart; what comes beyond it counts as one, at address 0."""

_U64: Final = np.dtype("<u8")
_U32: Final = np.dtype("<u4")


@dataclass(slots=True)
class _Tally:
    """Events and their pages, by what they are counted by."""

    events: Counter[int] = field(default_factory=Counter)
    pages: dict[int, BitMap64] = field(default_factory=lambda: defaultdict(BitMap64))

    def add(self, keys: NDArray[np.int64], pages: NDArray[np.uint64]) -> None:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        edges = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [ordered.size])).tolist()
        for begin, end in pairwise(edges):
            key = int(ordered[begin])
            self.events[key] += end - begin
            self.pages[key] |= BitMap64(pages[order[begin:end]].tolist())


class Writers:
    """Counts the events of one incarnation, message by message."""

    def __init__(self, page_size: int, mappings: Iterable[NamedPages] = ()) -> None:
        """Count from none.

        Args:
            page_size: Bytes a page.
            mappings: What the table of mappings says lies where, ascending; messages of events may say it, too.
        """
        self._page_size = page_size
        self._labels = Labels(list(mappings))
        self._threads = _Tally()
        self._codes = _Tally()
        self._mappings = _Tally()
        self._thread_names: dict[int, str] = {}
        self._code_names: dict[int, CodeName] = {}
        # Mappings by a number for each name.
        self._mapping_names: dict[str, int] = {"": 0}
        self.event_count = 0
        self.lost_count = 0
        self.since_ns = 0
        self.until_ns = 0

    def add(self, columns: EventColumns, since_ns: int) -> None:
        """Count one message's events, of those only the ones after a time."""
        self.lost_count += columns.lost_count
        self._thread_names.update((thread.thread_id, thread.name) for thread in columns.threads)
        self._code_names.update((code.instruction_pointer, code) for code in columns.code)
        addresses = np.frombuffer(columns.address, _U64)
        kept = np.ones(addresses.size, np.bool_)
        if columns.time_ns:
            times = np.frombuffer(columns.time_ns, _U64)
            kept = times > np.uint64(since_ns)
            self._note_times(times[kept])
        pages = addresses[kept] // np.uint64(self._page_size)
        if not pages.size:
            return
        self.event_count += pages.size
        if columns.thread_id:
            self._threads.add(np.frombuffer(columns.thread_id, _U32)[kept].astype(np.int64), pages)
        if columns.instruction_pointer:
            self._codes.add(self._code_keys(np.frombuffer(columns.instruction_pointer, _U64)[kept]), pages)
        self._mappings.add(self._mapping_keys(columns, pages), pages)

    def threads(self, limit: int) -> list[pb.WriterThread]:
        """Give the threads with the most events."""
        return [
            pb.WriterThread(
                thread_id=thread_id,
                name=self._thread_names.get(thread_id, ""),
                event_count=count,
                page_count=len(self._threads.pages[thread_id]),
            )
            for thread_id, count in self._threads.events.most_common(limit)
        ]

    def code(self, limit: int) -> list[pb.WriterCode]:
        """Give the functions with the most events; addresses whose function is not known each on its own."""
        grouped: dict[tuple[str, str] | int, list[int]] = defaultdict(list)
        for address, _ in self._codes.events.most_common():
            named = self._code_names.get(address)
            grouped[(named.file, named.symbol) if named and named.symbol else address].append(address)
        found = [self._one_code(addresses) for addresses in grouped.values()]
        return sorted(found, key=lambda code: (-code.event_count, code.instruction_pointer))[:limit]

    def mappings(self, limit: int) -> list[pb.WriterMapping]:
        """Give the mappings with the most events."""
        names = {number: name for name, number in self._mapping_names.items()}
        return [
            pb.WriterMapping(name=names[number], event_count=count, page_count=len(self._mappings.pages[number]))
            for number, count in self._mappings.events.most_common(limit)
        ]

    def _one_code(self, addresses: list[int]) -> pb.WriterCode:
        named = self._code_names.get(addresses[0], CodeName())
        return pb.WriterCode(
            instruction_pointer=addresses[0],
            symbol=named.symbol,
            file=named.file,
            file_offset=named.file_offset,
            event_count=sum(self._codes.events[address] for address in addresses),
            page_count=len(BitMap64.union(*(self._codes.pages[address] for address in addresses))),
        )

    def _code_keys(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        # Code is in the lower half of the address space; the kernel's own is not told.
        keys = addresses.astype(np.int64)
        if len(self._codes.events) >= CODES_MAX:
            keys = np.where(np.isin(keys, np.fromiter(self._codes.events, np.int64)), keys, 0)
        return keys

    def _mapping_keys(self, columns: EventColumns, pages: NDArray[np.uint64]) -> NDArray[np.int64]:
        keys = self._labels.numbers(pages, self._mapping_names)
        for mapping in columns.mappings:
            start = mapping.range.start_address // self._page_size
            end = start + mapping.range.size_bytes // self._page_size
            inside = (pages >= np.uint64(start)) & (pages < np.uint64(end))
            if inside.any():
                keys[inside] = self._mapping_names.setdefault(mapping.name, len(self._mapping_names))
        return keys

    def _note_times(self, times: NDArray[np.uint64]) -> None:
        if times.size:
            first, last = int(times.min()), int(times.max())
            self.since_ns = min(self.since_ns or first, first)
            self.until_ns = max(self.until_ns, last)
