"""A reference orchestrator: moves the memory of one process by dirty sets alone, as pre-copy live migration does.

Rounds while it runs, each the pages that were written during the one before; then the agent freezes it for the last
round, and it stays frozen while that is copied. What a real orchestrator sends to another host is here copied into this
process.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wetink_client.collector import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.values import Freeze, Strictness

ROUND_COUNT_MAX: Final = 30
"""Rounds while the process runs: Xen stops at 5, QEMU does not; this is for a process that never converges."""

ROUND_PAGES_FEW: Final = 256
"""So few pages that another round would cost more than it saves: 1 MiB."""

STALLED_ROUND_COUNT: Final = 3
"""Rounds without a new least number of pages after which the freeze comes: the working set is reached."""

HOLD_SECONDS: Final = 60.0
"""How long the last round may take: after that the process goes on by itself, should we have died in the middle."""


class NotMoved(Exception):
    """The memory could not be moved whole; the text says why. The process runs on."""


@dataclass(frozen=True, slots=True)
class PreCopyRound:
    """One round: what it carried, and how long asking, with the freeze of the last one, and copying took."""

    round: int
    written_page_count: int
    vanished_page_count: int
    copied_bytes: int
    answer_seconds: float
    copy_seconds: float
    frozen: bool


def precopy(collector: Collector, target: str, copy: ShadowCopy) -> Iterator[PreCopyRound]:
    """Move the memory of a process into a copy; it is frozen when the last round is given.

    It stays so until ``go_on``, or until ``HOLD_SECONDS`` are over; when this fails it goes on.

    Args:
        collector: Knows the target.
        target: Its name.
        copy: Of that process; empty.

    Raises:
        NotMoved: An answer was not complete, or the process cannot be frozen.
        WetinkError: As the collector says.
    """
    cursor: str | None = None
    least, stalled, number = 0, 0, 0
    while number < ROUND_COUNT_MAX and stalled < STALLED_ROUND_COUNT:
        number += 1
        cursor, done = _round(collector, target, cursor, copy, number=number, frozen=False)
        yield done
        if done.written_page_count <= ROUND_PAGES_FEW:
            break
        if number == 1 or done.written_page_count < least:
            least, stalled = done.written_page_count, 0
        else:
            stalled += 1
    try:
        last = _round(collector, target, cursor, copy, number=number + 1, frozen=True)[1]
    except BaseException:
        collector.thaw(target, _hold(target))
        raise
    yield last


def go_on(collector: Collector, target: str) -> None:
    """Let a process go on that ``precopy`` has frozen.

    Raises:
        NotMoved: It has gone on before, because the time was over or the agent died: the copy may not be whole.
    """
    (thawed,) = collector.thaw(target, _hold(target)).values()
    if not thawed.held:
        message = f"{target} was not frozen until the end of the copy: {thawed.message or 'its hold was over'}"
        raise NotMoved(message)


def _round(
    collector: Collector,
    target: str,
    cursor: str | None,
    copy: ShadowCopy,
    *,
    number: int,
    frozen: bool,
) -> tuple[str, PreCopyRound]:
    asked = time.monotonic()
    # Memory that may have changed unseen would be copied in each round. Left out while the target runs, it comes with
    # the round that finds it stopped.
    strictness = Strictness.STRICT if frozen else Strictness.LENIENT
    freeze = Freeze(HOLD_SECONDS, _hold(target)) if frozen else False
    answer = collector.dirty(target, since=cursor, barrier=True, strictness=strictness, freeze=freeze)
    if not answer.complete:
        message = f"round {number} of {target} is not complete: {answer.target.incomplete_message}"
        raise NotMoved(message)
    answered = time.monotonic()
    copied_bytes = copy.apply(answer.written, answer.vanished)
    return answer.cursor, PreCopyRound(
        round=number,
        written_page_count=len(answer.written),
        vanished_page_count=len(answer.vanished),
        copied_bytes=copied_bytes,
        answer_seconds=answered - asked,
        copy_seconds=time.monotonic() - answered,
        frozen=frozen,
    )


def _hold(target: str) -> str:
    """Name the hold by the process, which has a start time beside its pid."""
    return f"precopy-{target.rpartition('/')[2].replace('@', '-')}"
