"""What it costs a round to look for ways in which memory can change unseen, on a target that has none."""

import os
import statistics
import time
from collections.abc import Iterator
from typing import Final

from tests.bench.run import say
from tests.support.victim import tracked, victim
from wetink_agent.unseen import Unseen
from wetink_agent.wp_async import WpAsync

TURNS: Final = 300
MAPPING_COUNT: Final = 10_000
DESCRIPTOR_COUNT: Final = 500

SHARE_MAX: Final = 0.05
"""Part of a round that the looks may take, where the target maps nothing new."""


def bench_unseen() -> Iterator[bool]:
    """Compare rounds with those that do not look, on a target of many mappings and descriptors that does nothing."""
    with victim() as process:
        process.do(
            f"first = mmap({2 * MAPPING_COUNT})\n"
            f"for n in range({MAPPING_COUNT}): checked(libc.mprotect(first + 2 * n * PAGE, PAGE, 1))\n"
            f"fill(first + PAGE, 1)\n"
            f"global files; files = [os.open(os.devnull, os.O_RDONLY) for _ in range({DESCRIPTOR_COUNT})]"
        )
        with tracked(process.pid) as tracker:
            for _ in range(3):
                tracker.harvest()
            with_looks, without = [], []
            looks, no_looks = tracker._unseen, _Blind(process.pid)
            for _ in range(TURNS):
                tracker._unseen = looks
                with_looks.append(_seconds(tracker))
                tracker._unseen = no_looks
                without.append(_seconds(tracker))
        share = sum(with_looks) / sum(without) - 1
    yield say(
        f"look for what changes unseen, {MAPPING_COUNT:,} mappings and {DESCRIPTOR_COUNT} descriptors, nothing found",
        max(0.0, share),
        "of a round's CPU, over rounds without",
        limit=SHARE_MAX,
        figure="unseen",
        source="wp-async",
        round_us=round(statistics.median(with_looks) * 1e6),
        processors=os.cpu_count(),
    )


class _Blind(Unseen):
    """Never looks."""

    def look(self, maps: bytes, *, frozen: bool) -> None:
        """Do nothing."""


def _seconds(tracker: WpAsync) -> float:
    began = time.thread_time()
    tracker.harvest()
    return time.thread_time() - began
