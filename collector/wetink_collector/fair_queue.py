"""A queue of many streams in which none waits for another's backlog. Plain code: no lock, no clock.

Deficit round robin: the streams take turns, and each turn lets a stream spend a quantum. What it cannot spend, because
its next item costs more, it keeps for its next turn. So an item that costs no more than a quantum waits for one turn of
every other stream at most, however much those have waiting, and whatever their items cost.

Source: M. Shreedhar, G. Varghese, "Efficient Fair Queueing Using Deficit Round-Robin", SIGCOMM 1995.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

StreamT = TypeVar("StreamT", bound=Hashable)
ItemT = TypeVar("ItemT")


@dataclass(slots=True)
class _Backlog(Generic[ItemT]):
    """What waits of one stream, in its order, and what it may still spend."""

    items: deque[tuple[ItemT, int]] = field(default_factory=deque)
    deficit: int = 0


class FairQueue(Generic[StreamT, ItemT]):
    """Items of streams, each stream's in its own order. A stream that has nothing waiting is forgotten."""

    def __init__(self, quantum: int) -> None:
        """Begin empty.

        Args:
            quantum: What a stream's turn is worth, in the unit of costs. At least 1.
        """
        self._quantum = quantum
        # In the order of their turns; the first is having its.
        self._backlogs: dict[StreamT, _Backlog[ItemT]] = {}
        self._has_begun = False

    def __len__(self) -> int:
        """How many streams have something waiting."""
        return len(self._backlogs)

    def put(self, stream: StreamT, item: ItemT, cost: int) -> None:
        """Take an item, behind what its stream has waiting; a stream that has nothing takes its turn last."""
        self._backlogs.setdefault(stream, _Backlog()).items.append((item, cost))

    def take(self, cost_max: int) -> list[ItemT]:
        """Give what is due, in order, until it costs that much; the last item may go over it.

        Empty only where nothing waits. The next call goes on with the turn that this one ended in.
        """
        taken: list[ItemT] = []
        while self._backlogs and cost_max > 0:
            stream, backlog = next(iter(self._backlogs.items()))
            if not self._has_begun:
                backlog.deficit += self._quantum
                self._has_begun = True
            while cost_max > 0 and backlog.items and backlog.items[0][1] <= backlog.deficit:
                item, cost = backlog.items.popleft()
                backlog.deficit -= cost
                cost_max -= cost
                taken.append(item)
            if not backlog.items:
                # Whoever has nothing to say saves nothing up for later.
                del self._backlogs[stream]
                self._has_begun = False
            elif backlog.items[0][1] > backlog.deficit:
                self._backlogs[stream] = self._backlogs.pop(stream)
                self._has_begun = False
        return taken
