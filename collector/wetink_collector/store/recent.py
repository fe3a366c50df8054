"""The page sets that were written last, kept in memory for the merge that comes next.

Every round is merged once with the seven before or after it, most of them some rounds after it came. To read them back
takes a call for each, and each gives the interpreter's lock away: on a busy collector the merge waited for that most of
its time.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from wetink_collector.round_log import Block

RECENT_BYTES_MAX: Final = 32 << 20
"""Bound on the sets that are kept: 15 rounds of 4 Ki random pages for each of 256 targets. What goes is read again."""

_KEPT_BYTES: Final = 400
"""What a block takes beside its sets."""

Sets = tuple[bytes, ...]


class RecentSets:
    """Page sets by the row of their log and their last round; the oldest go first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: OrderedDict[tuple[int, int], Sets] = OrderedDict()
        self._size_bytes = 0

    def put(self, row: int, block: Block, sets: Sets) -> None:
        """Keep the sets of a block for a while, in the place of one with its rounds that was never written."""
        self.drop(row, [block])
        self._kept[row, block.last_round] = sets
        self._size_bytes += _size(sets)
        while self._size_bytes > RECENT_BYTES_MAX:
            _, gone = self._kept.popitem(last=False)
            self._size_bytes -= _size(gone)

    def of(self, row: int, blocks: Sequence[Block]) -> Sequence[Sets]:
        """Give the sets of adjacent blocks of a log; none where those of one are not kept."""
        found = [self._kept.get((row, block.last_round)) for block in blocks]
        return [sets for sets in found if sets is not None] if None not in found else ()

    def drop(self, row: int, blocks: Sequence[Block]) -> None:
        """Let go of blocks that are no more."""
        for block in blocks:
            if (gone := self._kept.pop((row, block.last_round), None)) is not None:
                self._size_bytes -= _size(gone)


def _size(sets: Sets) -> int:
    return sum(map(len, sets)) + _KEPT_BYTES
