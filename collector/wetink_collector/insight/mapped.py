"""What a target's table of mappings says about its pages: their names, and the objects behind those that are shared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wetink.v1.ingest_pb2 import TargetMappings
from wetink.v1.types_pb2 import UNCERTAINTY_REGISTERED_BUFFER
from wetink.v1.types_pb2 import Mapping as MappingMessage
from wetink_collector.insight.heatmap import Mapping

_SYSTEM_V: Final = "/SYSV"

Object = tuple[int, int, bool]
"""What is behind shared memory of one host: device, inode, and whether it is System V's, which counts inodes itself."""


@dataclass(frozen=True, slots=True)
class SharedRange:
    """Pages from ``start`` to before ``end`` that are those of an object from ``first`` on."""

    start: int
    end: int
    behind: Object
    first: int


def names(table: TargetMappings | None, page_size: int) -> list[Mapping]:
    """Give what lies where, by ascending page; nothing where it is not known."""
    return [
        Mapping(start, end, message.name)
        for message, start, end in _entries(table, page_size)
        if message.name and message.uncertainty != UNCERTAINTY_REGISTERED_BUFFER
    ]


def shared(table: TargetMappings | None, page_size: int) -> list[SharedRange]:
    """Give the pages that others may map too, by ascending page."""
    return [
        SharedRange(
            start,
            end,
            (message.device, message.inode, message.name.startswith(_SYSTEM_V)),
            message.offset_bytes // page_size,
        )
        for message, start, end in _entries(table, page_size)
        if message.shared and message.inode and message.uncertainty != UNCERTAINTY_REGISTERED_BUFFER
    ]


class Labels:
    """Names pages by a table, many at a time."""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        """Take mappings that do not overlap, ascending."""
        self._mappings = mappings
        self._starts = np.array([mapping.start for mapping in mappings], np.uint64)
        self._ends = np.array([mapping.end for mapping in mappings], np.uint64)

    def of(self, page: int) -> str:
        """Name one page; empty where that is not known."""
        at = int(np.searchsorted(self._starts, np.uint64(page), side="right")) - 1
        return self._mappings[at].name if at >= 0 and page < self._mappings[at].end else ""

    def numbers(self, pages: NDArray[np.uint64], number_of: dict[str, int]) -> NDArray[np.int64]:
        """Give the number of each page's name.

        Args:
            pages: In any order.
            number_of: The numbers of names; it has the empty one, and those that are new get the next.
        """
        numbers = np.full(pages.size, number_of[""], np.int64)
        if not self._mappings:
            return numbers
        at = np.searchsorted(self._starts, pages, side="right") - 1
        inside = (at >= 0) & (pages < self._ends[at])
        for place in set(at[inside].tolist()):
            name = self._mappings[place].name
            numbers[inside & (at == place)] = number_of.setdefault(name, len(number_of))
        return numbers


def _entries(table: TargetMappings | None, page_size: int) -> Iterable[tuple[MappingMessage, int, int]]:
    for message in table.mappings if table else ():
        start = message.range.start_address // page_size
        yield message, start, start + message.range.size_bytes // page_size
