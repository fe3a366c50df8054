"""What a round costs where a target is all corners: very many mappings, next to nothing in them; and what the audits of
a round cost, which find memory that no registration covers.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Final

from tests.bench.run import TARGET_MIB, say
from tests.support import programs
from tests.support.sparse import MAPPING_COUNT, SPAN_BYTES, map_sparsely
from tests.support.watched import status_kib, watched
from wetink_agent.attach import take_userfaultfd
from wetink_agent.runs import Runs
from wetink_agent.wp_async import WpAsync

REPETITIONS: Final = 25
CLEAN_ROUND_MS_MAX: Final = 100.0


def bench_sparse() -> Iterator[bool]:
    """Time a clean round over 64 GiB in 20,000 mappings, and see what page tables it makes."""
    with watched("wp-async") as row:
        map_sparsely(row.target)
        before = status_kib(row.target.pid, "VmPTE")
        row.settle()
        took, used = [], []
        for _ in range(REPETITIONS):
            began, began_cpu = time.perf_counter(), time.thread_time()
            row.tracker.harvest()
            took.append((time.perf_counter() - began) * 1e3)
            used.append((time.thread_time() - began_cpu) * 1e3)
        yield say(
            f"clean round of {SPAN_BYTES >> 30} GiB in {MAPPING_COUNT:,} mappings",
            statistics.median(took),
            "ms, median",
            limit=CLEAN_ROUND_MS_MAX,
            cpu_ms=round(statistics.median(used), 2),
        )
        yield say(
            "page tables made by rounds over them",
            status_kib(row.target.pid, "VmPTE") - before,
            "KiB",
            limit=1,
        )


class Audited(WpAsync):
    """Notes how long the audits of a round take."""

    audit_seconds = 0.0

    def _audit(self) -> Runs:
        began = time.perf_counter()
        found = super()._audit()
        self.audit_seconds += time.perf_counter() - began
        return found


def bench_audit() -> Iterator[bool]:
    """Time the two audits of a clean round, beside the whole of it."""
    with programs.running("scan", "victim", TARGET_MIB) as victim:
        yield from _audits(victim.pid, f"{TARGET_MIB} MiB in one mapping")
    with watched("wp-async") as row:
        map_sparsely(row.target)
        row.tracker.close()
        yield from _audits(row.target.pid, f"{SPAN_BYTES >> 30} GiB in {MAPPING_COUNT:,} mappings")


def _audits(pid: int, what: str) -> Iterator[bool]:
    tracker = Audited(pid, take_userfaultfd(pid))
    try:
        tracker.harvest()
        tracker.harvest()
        audits, rounds = [], []
        for _ in range(REPETITIONS):
            tracker.audit_seconds = 0.0
            began = time.perf_counter()
            tracker.harvest()
            rounds.append(time.perf_counter() - began)
            audits.append(tracker.audit_seconds)
        yield say(
            f"audits of a clean round of {what}",
            statistics.median(audits) * 1e3,
            "ms, median of the two together",
            round_ms=round(statistics.median(rounds) * 1e3, 3),
            share_percent=round(100 * statistics.median(audits) / statistics.median(rounds), 1),
        )
    finally:
        tracker.close()
