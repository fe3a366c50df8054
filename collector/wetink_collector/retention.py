"""What is let go of, and when: by age, and by the room that is taken. Pure: it is told the time, and what is there.

Nothing is let go of unless somebody said so. What goes is how rounds followed each other, never what is populated: a
reader without a cursor is always answered in full. Time is that of a clock that nobody can set, so that one that jumps
lets go of nothing; it counts anew when the collector starts.

What sessions need (``session_state.needed_after``) stays, whatever its age, as long as their leases live. For it a
quarter more room may be taken than was said; beyond that it goes too.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Final, TypeAlias

from wetink_collector.catalog import TargetRecord
from wetink_collector.identity import IncarnationKey
from wetink_collector.round_log import BLOCKS_MERGED, Block
from wetink_collector.store.interface import RoundsExpired, TargetForgotten, Usage

SAMPLES_AN_AGE: Final = 16
"""How finely age is told: a cursor stays valid for at most a sixteenth longer than it must."""

GOAL: Final = 0.9
"""Part of the size that is aimed at once it is exceeded, so that it is not exceeded again with the next round."""

NEEDED_SIZE: Final = 1.25
"""Bound on the room that is taken where sessions need it, as a multiple of the size: moves take minutes, in which
rounds merge to some dozen blocks, and a disk is not planned to its last byte."""


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long cursors must stay valid, and how much room everything may take. None means without end."""

    age_seconds: float | None = None
    size_bytes: int | None = None


_Gone: TypeAlias = TargetForgotten | RoundsExpired

NOTHING_NEEDED: Final[Mapping[IncarnationKey, int]] = MappingProxyType({})
"""What sessions need where there are none."""

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

    def look(
        self, records: Iterable[TargetRecord], now: float, needed: Mapping[IncarnationKey, int] = NOTHING_NEEDED
    ) -> Iterator[RoundsExpired]:
        """Remember how far each target is, and give what is older than the age.

        Every cursor that was given since ``age_seconds`` before now stays valid.

        Args:
            records: Every target. Of those that have ended nothing expires: they are forgotten whole.
            now: As ``time.monotonic`` gives it.
            needed: The round of a target after which sessions need everything; 0 where they need all it comes to.
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
                yield RoundsExpired(incarnation, min(last_round, needed.get(incarnation) or last_round))


def beyond_size(
    usage: Usage,
    size_bytes: int,
    ended: Sequence[IncarnationKey],
    needed: Mapping[IncarnationKey, int] = NOTHING_NEEDED,
) -> Sequence[_Gone]:
    """Say what is to go so that what is kept takes no more room than it may: targets that have ended, then old rounds.

    Nothing while the store is still freeing room. The last 8 rounds and what is populated of a living target stay. What
    sessions need goes last, and only where more than ``NEEDED_SIZE`` times the room is taken.

    Args:
        usage: What is kept.
        size_bytes: How much room that may take.
        ended: The targets that have ended, oldest first.
        needed: As in ``Ages.look``.
    """
    if usage.size_bytes <= size_bytes or usage.shrinking:
        return ()
    gone = frozenset(ended)
    living = {key: blocks for key, blocks in usage.block_bytes.items() if key not in gone}
    free = _forgotten(usage, [key for key in ended if key not in needed]), _expired(living, needed)
    plan, gained = _until(usage.size_bytes - GOAL * size_bytes, *free)
    size_bytes_max = NEEDED_SIZE * size_bytes
    if usage.size_bytes > size_bytes_max:
        held = {key: blocks for key, blocks in living.items() if key in needed}
        more = _forgotten(usage, [key for key in ended if key in needed]), _expired(held, NOTHING_NEEDED)
        plan += _until(usage.size_bytes - gained - GOAL * size_bytes_max, *more)[0]
    return plan


def _until(excess: float, *steps: Iterable[tuple[_Gone, int]]) -> tuple[list[_Gone], int]:
    """Give what is to go until an excess is gained, in the order of the steps, and how much it gains."""
    plan: list[_Gone] = []
    total = 0
    for change, gained in chain(*steps):
        if total >= excess:
            break
        plan.append(change)
        total += gained
    return plan, total


def _forgotten(usage: Usage, ended: Iterable[IncarnationKey]) -> Iterator[tuple[_Gone, int]]:
    """Give targets that have ended, in their order, and what each gains."""
    for incarnation in ended:
        if taken := sum(size for _, size in usage.block_bytes.get(incarnation, ())):
            yield TargetForgotten(incarnation), taken


def _expired(
    block_bytes: Mapping[IncarnationKey, Sequence[tuple[Block, int]]], needed: Mapping[IncarnationKey, int]
) -> Sequence[tuple[_Gone, int]]:
    """Give the logs that could be made shorter, with their last round that may go and what that gains, most first."""
    found: list[tuple[_Gone, int]] = []
    for incarnation, blocks in block_bytes.items():
        after = needed.get(incarnation)
        old = [one for one in blocks[:-BLOCKS_MERGED] if not after or one[0].last_round <= after]
        # What they fold to takes at least as much room as the largest of them.
        if gained := sum(size for _, size in old) - max((size for _, size in old), default=0):
            found.append((RoundsExpired(incarnation, old[-1][0].last_round), gained))
    return sorted(found, key=lambda one: one[1], reverse=True)


def _number(text: str, units: Mapping[str, int], most: int, sentence: str) -> int:
    match = _WITH_UNIT.fullmatch(text.strip())
    number = int(match["number"]) * units.get(match["unit"], 0) if match else 0
    if not 0 < number <= most:
        raise RetentionMalformed(sentence)
    return number


_WITH_UNIT: Final = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[A-Za-z]+)")
_SECONDS_OF: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES_OF: Final = {"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
