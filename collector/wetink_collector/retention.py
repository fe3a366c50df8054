"""What is let go of, and when: by age, and by the room that is taken. Pure: it is told the time, and what is there.

Nothing is let go of unless somebody said so. What goes is how rounds followed each other, never what is populated: a
reader without a cursor is always answered in full. Time is that of a clock that nobody can set, so that one that jumps
lets go of nothing; it counts anew when the collector starts.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from wetink_collector.catalog import TargetRecord
from wetink_collector.identity import IncarnationKey
from wetink_collector.round_log import BASE_LEVEL, BLOCKS_MERGED, Block
from wetink_collector.store.interface import RoundsExpired, TargetForgotten, Usage

SAMPLES_AN_AGE: Final = 16
"""How finely age is told: a cursor stays valid for at most a sixteenth longer than it must."""

GOAL: Final = 0.9
"""Part of the size that is aimed at once it is exceeded, so that it is not exceeded again with the next round."""


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long cursors must stay valid, and how much room everything may take. None means without end."""

    age_seconds: float | None = None
    size_bytes: int | None = None


KEPT_WITHOUT_END: Final = Retention()
"""What holds unless somebody says otherwise: a cursor stays valid as long as its incarnation goes on."""


class RetentionMalformed(ValueError):
    """An option is none. The sentence says which, and how it is written."""


def parse(age: str | None, size: str | None) -> Retention:
    """Read the options.

    Raises:
        RetentionMalformed: One of them is none.
    """
    wrong_age = f"--retention-age {str(age)[:100]!r} is no time from 1s to 3650d: write 30m, 12h or 7d"
    wrong_size = f"--retention-size {str(size)[:100]!r} is no size from 1MiB to 1024TiB: write 500MiB or 20GiB"
    return Retention(
        None if age is None else _number(age, _SECONDS_OF, 3650 * 86400, wrong_age),
        None if size is None else _number(size, _BYTES_OF, 1 << 50, wrong_size),
    )


@dataclass(slots=True)
class Ages:
    """How far each incarnation had come at some moments."""

    age_seconds: float
    _seen: dict[IncarnationKey, deque[tuple[float, int]]] = field(default_factory=dict)

    def look(self, records: Iterable[TargetRecord], now: float) -> Iterator[RoundsExpired]:
        """Remember how far each target is, and give what is older than the age.

        Every cursor that was given since ``age_seconds`` before now stays valid.

        Args:
            records: Every target. Of those that have ended nothing expires: they are forgotten whole.
            now: As ``time.monotonic`` gives it.
        """
        living = {record.incarnation: record.round for record in records if not record.ended and record.round}
        self._seen = {key: self._seen.get(key) or deque() for key in living}
        for incarnation, samples in self._seen.items():
            if not samples or now - samples[-1][0] >= self.age_seconds / SAMPLES_AN_AGE:
                samples.append((now, living[incarnation]))
            while len(samples) > 1 and samples[1][0] <= now - self.age_seconds:
                samples.popleft()
            time, last_round = samples[0]
            if time <= now - self.age_seconds:
                yield RoundsExpired(incarnation, last_round)


def beyond_size(
    usage: Usage, size_bytes: int, ended: Sequence[IncarnationKey]
) -> Sequence[TargetForgotten | RoundsExpired]:
    """Say what is to go so that what is kept takes no more room than it may: targets that have ended, then old rounds.

    Nothing while the store is still freeing room. The last 8 rounds and what is populated of a living target stay.

    Args:
        usage: What is kept.
        size_bytes: How much room that may take.
        ended: The targets that have ended, oldest first.
    """
    if usage.size_bytes <= size_bytes or usage.shrinking:
        return ()
    excess = usage.size_bytes - GOAL * size_bytes
    plan: list[TargetForgotten | RoundsExpired] = []
    for incarnation in ended:
        if excess <= 0:
            break
        if taken := sum(size for _, size in usage.block_bytes.get(incarnation, ())):
            plan.append(TargetForgotten(incarnation.target))
            excess -= taken
    for incarnation, last_round, gained in _most_gained(usage.block_bytes, frozenset(ended)):
        if excess <= 0:
            break
        plan.append(RoundsExpired(incarnation, last_round))
        excess -= gained
    return plan


def _most_gained(
    block_bytes: Mapping[IncarnationKey, Sequence[tuple[Block, int]]], ended: frozenset[IncarnationKey]
) -> Sequence[tuple[IncarnationKey, int, int]]:
    """Give the logs that could be made shorter, with their last round that may go and what that gains, most first."""
    found = []
    for incarnation, blocks in block_bytes.items():
        old = blocks[:-BLOCKS_MERGED]
        if incarnation not in ended and old and old[-1][0].level != BASE_LEVEL:
            # What they fold to takes at least as much room as the largest of them.
            gained = sum(size for _, size in old) - max(size for _, size in old)
            found.append((incarnation, old[-1][0].last_round, gained))
    return sorted(found, key=lambda one: one[2], reverse=True)


def _number(text: str, units: Mapping[str, int], most: int, sentence: str) -> int:
    match = _WITH_UNIT.fullmatch(text.strip())
    number = int(match["number"]) * units.get(match["unit"], 0) if match else 0
    if not 0 < number <= most:
        raise RetentionMalformed(sentence)
    return number


_WITH_UNIT: Final = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[A-Za-z]+)")
_SECONDS_OF: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES_OF: Final = {"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
