"""Pre-copy over a link of a given bandwidth, to a downtime that is aimed at: the stop policy ``downtime`` in practice.

A real link is slower than copying within a host, and which rounds come of it is what predictions are about. This mover
sends no faster than it is told, so that they can be compared with what happens.
"""

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pyroaring import BitMap64

from wetink.pages import PAGE_SIZE
from wetink_client.answers import DirtySet
from wetink_client.collector import Collector
from wetink_client.errors import InvalidRequest
from wetink_client.precopy import NotMoved
from wetink_client.shadow import ShadowCopy

ROUND_COUNT_MAX: Final = 30
"""As the policy ``downtime`` has it."""

ROUNDS_IN_VAIN_MAX: Final = 3
"""As above: so many rounds without a gain, and the freeze comes all the same."""

GAIN: Final = 0.1
"""As above: a round is a gain when it leaves a tenth less than the least so far."""

FREEZE_SECONDS_MAX: Final = 10.0

AHEAD_SECONDS_MAX: Final = 0.002
"""How far sending may be ahead of the link before it waits: as short as a sleep can be kept."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a mover may send, and the downtime it aims at.

    ``fixed_seconds`` is the part of a downtime that does not depend on pages; what is left has the rest of the time.
    """

    bytes_a_second: float
    downtime_seconds: float
    fixed_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check that it carries something.

        Raises:
            InvalidRequest: It does not.
        """
        if not (
            0 < self.bytes_a_second < math.inf and 0 < self.downtime_seconds < math.inf and self.fixed_seconds >= 0
        ):
            message = "a link needs a bandwidth and a downtime above 0, and a fixed part of at least 0"
            raise InvalidRequest(message, "REQUEST_MALFORMED")

    def fits(self, page_count: int) -> bool:
        """Whether so many pages can be sent within the downtime."""
        return page_count * PAGE_SIZE / self.bytes_a_second + self.fixed_seconds <= self.downtime_seconds


@dataclass(frozen=True, slots=True)
class LinkRound:
    """What a round sent, and how long it took, with the answer that said what is left after it.

    The last one is frozen: its time is the downtime, from the freeze to the last page.
    """

    round: int
    sent_bytes: int
    seconds: float
    left_page_count: int
    frozen: bool
    end: Literal["", "target-met", "stalled", "rounds-max"] = ""


class Pacer:
    """Keeps sending to a bandwidth: waits where it is ahead. It begins when it is made."""

    def __init__(self, bytes_a_second: float) -> None:
        """Begin now."""
        self._bytes_a_second = bytes_a_second
        self._began = time.monotonic()
        self._sent_bytes = 0

    def sent(self, size_bytes: int) -> None:
        """Take note of what was sent, and wait until it would have been."""
        self._sent_bytes += size_bytes
        ahead = self._sent_bytes / self._bytes_a_second - (time.monotonic() - self._began)
        if ahead > AHEAD_SECONDS_MAX:
            time.sleep(ahead)

    def finish(self) -> None:
        """Wait until all of it would have been."""
        time.sleep(max(0.0, self._sent_bytes / self._bytes_a_second - (time.monotonic() - self._began)))


def precopy_over(link: Link, collector: Collector, target: str, pid: int, copy: ShadowCopy) -> Iterator[LinkRound]:
    """Move the memory of a process over a link; it is frozen when the last round is given, and stays so.

    Args:
        link: How fast, and to which downtime.
        collector: Knows the target.
        target: Its name.
        pid: In this pid namespace.
        copy: Of that process; empty.

    Raises:
        NotMoved: An answer was not complete, or the process does not stop.
        WetinkError: As the collector says.
    """
    dirty = _ask(collector, target, None)
    least, in_vain = math.inf, 0
    for number in range(1, ROUND_COUNT_MAX + 1):
        began = time.monotonic()
        sent_bytes = _send(link, copy, dirty.written, dirty.vanished)
        dirty = _ask(collector, target, dirty.cursor)
        left = len(dirty.written)
        yield LinkRound(number, sent_bytes, time.monotonic() - began, left, frozen=False)
        if left <= least * (1 - GAIN):
            least, in_vain = left, 0
        else:
            in_vain += 1
        if link.fits(left):
            end: Literal["target-met", "stalled", "rounds-max"] = "target-met"
            break
        if in_vain >= ROUNDS_IN_VAIN_MAX:
            end = "stalled"
            break
    else:
        end = "rounds-max"
    began = time.monotonic()
    freeze(pid)
    last = _ask(collector, target, dirty.cursor)
    # What was written between the last answer and the freeze: the later answer decides.
    written = (dirty.written - last.vanished) | last.written
    vanished = (dirty.vanished - last.written) | last.vanished
    sent_bytes = _send(link, copy, written, vanished)
    yield LinkRound(number + 1, sent_bytes, time.monotonic() - began, 0, frozen=True, end=end)


def _ask(collector: Collector, target: str, cursor: str | None) -> DirtySet:
    answer = collector.dirty(target, since=cursor, barrier=True)
    if not answer.complete:
        message = f"an answer about {target} is not complete: {answer.target.incomplete_message}"
        raise NotMoved(message)
    return answer


def _send(link: Link, copy: ShadowCopy, written: BitMap64, vanished: BitMap64) -> int:
    pacer = Pacer(link.bytes_a_second)
    size_bytes = copy.apply(written, vanished, sent=pacer.sent)
    pacer.finish()
    return size_bytes


def freeze(pid: int) -> None:
    """Stop a process and wait until each of its threads has stopped.

    Raises:
        NotMoved: One does not.
    """
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + FREEZE_SECONDS_MAX
    while not all(_state(task) in "TtZX" for task in Path(f"/proc/{pid}/task").iterdir()):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGCONT)
            message = f"process {pid} did not stop within {FREEZE_SECONDS_MAX:g} s"
            raise NotMoved(message)
        time.sleep(0.0002)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
