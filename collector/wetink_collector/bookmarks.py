"""Where readers stand: the rounds of cursors that were given out lately. Merging leaves the end of a block there.

A mover sends for many rounds what one answer said, and asks again with that answer's cursor. Were the round merged with
older ones meanwhile, it would be told, and send, up to seven rounds too many, or sixty-three, again and again.

Nothing depends on it but how exact an answer is. So it is kept in memory, within bounds, and forgotten in a restart.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Final

from wetink_collector.identity import IncarnationKey

ROUNDS_MAX: Final = 32
"""Bound on the rounds of one incarnation: so many movers may read one target, each from a round of its own. The one
that was noted first goes."""

INCARNATIONS_MAX: Final = 16_384
"""Bound on incarnations, four times the widest selection, in some 20 MiB at most; the one that was noted first goes."""

SECONDS_MAX: Final = 3600.0
"""A round of a migration that takes longer is answered with some rounds more. Many readers never come back."""


class Bookmarks:
    """Notes rounds. Any thread may ask at any time."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = Lock()
        self._noted: OrderedDict[IncarnationKey, OrderedDict[int, _Mark]] = OrderedDict()

    def note(self, incarnation: IncarnationKey, *, round_number: int, left: int = 0) -> None:
        """Take note that a reader goes on from a round.

        Args:
            incarnation: What it reads.
            round_number: Where its cursor is; 0 is nowhere.
            left: Where it was before, and is not expected any more. Should it come back, because an answer was lost,
                it has more pages at worst.
        """
        with self._lock:
            noted = self._noted.setdefault(incarnation, OrderedDict())
            self._noted.move_to_end(incarnation)
            if (before := noted.get(left)) and before.reader_count > 1:
                noted[left] = _Mark(before.reader_count - 1, before.seconds)
            else:
                noted.pop(left, None)
            if round_number:
                there = noted.pop(round_number, None)
                noted[round_number] = _Mark(there.reader_count + 1 if there else 1, time.monotonic())
            while len(noted) > ROUNDS_MAX:
                noted.popitem(last=False)
            while len(self._noted) > INCARNATIONS_MAX:
                self._noted.popitem(last=False)

    def rounds(self, incarnation: IncarnationKey) -> frozenset[int]:
        """Give the rounds that were noted and are not too old."""
        with self._lock:
            noted = self._noted.get(incarnation, OrderedDict())
            since = time.monotonic() - SECONDS_MAX
            return frozenset(number for number, mark in noted.items() if mark.seconds >= since)


@dataclass(frozen=True, slots=True)
class _Mark:
    """So many readers go on from a round; the last of them was there at a time (``time.monotonic``)."""

    reader_count: int
    seconds: float
