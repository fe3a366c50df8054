"""A reference orchestrator: moves the memory of one process by dirty sets alone, as pre-copy live migration does.

Rounds while it runs, each the pages that were written during the one before; then freeze, a last barrier, a last
copy. What a real orchestrator sends to another host is here copied into this process.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wetink_client.collector import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.values import Strictness

ROUND_COUNT_MAX: Final = 30
"""Rounds while the process runs: Xen stops at 5, QEMU does not; this is for a process that never converges."""

ROUND_PAGES_FEW: Final = 256
"""So few pages that another round would cost more than it saves: 1 MiB."""

STALLED_ROUND_COUNT: Final = 3
"""Rounds without a new least number of pages after which the freeze comes: the working set is reached."""

FREEZE_SECONDS_MAX: Final = 10.0


class NotMoved(Exception):
    """The memory could not be moved whole; the text says why. The process runs on."""


@dataclass(frozen=True, slots=True)
class PreCopyRound:
    """One round: what it carried, and how long freezing, asking and copying took. Only the last one is frozen."""

    round: int
    written_page_count: int
    vanished_page_count: int
    copied_bytes: int
    freeze_seconds: float
    answer_seconds: float
    copy_seconds: float
    frozen: bool


def precopy(collector: Collector, target: str, pid: int, copy: ShadowCopy) -> Iterator[PreCopyRound]:
    """Move the memory of a process into a copy; it is frozen when the last round is given, and stays so.

    Args:
        collector: Knows the target.
        target: Its name.
        pid: In this pid namespace.
        copy: Of that process; empty.

    Raises:
        NotMoved: An answer was not complete, or the process does not stop.
        WetinkError: As the collector says.
    """
    cursor: str | None = None
    least, stalled, number = 0, 0, 0
    while number < ROUND_COUNT_MAX and stalled < STALLED_ROUND_COUNT:
        number += 1
        cursor, done = _round(collector, target, pid, cursor, copy, number=number, frozen=False)
        yield done
        if done.written_page_count <= ROUND_PAGES_FEW:
            break
        if number == 1 or done.written_page_count < least:
            least, stalled = done.written_page_count, 0
        else:
            stalled += 1
    yield _round(collector, target, pid, cursor, copy, number=number + 1, frozen=True)[1]


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


def _round(
    collector: Collector,
    target: str,
    pid: int,
    cursor: str | None,
    copy: ShadowCopy,
    *,
    number: int,
    frozen: bool,
) -> tuple[str, PreCopyRound]:
    began = time.monotonic()
    if frozen:
        freeze(pid)
    asked = time.monotonic()
    # Memory that may have changed unseen would be copied in each round. Left out while the target runs, it comes with
    # the round that finds it stopped.
    strictness = Strictness.STRICT if frozen else Strictness.LENIENT
    answer = collector.dirty(target, since=cursor, barrier=True, strictness=strictness)
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
        freeze_seconds=asked - began,
        answer_seconds=answered - asked,
        copy_seconds=time.monotonic() - answered,
        frozen=frozen,
    )


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
