"""What ``wp-sync`` costs, in the manner of ``tests.bench.run``: ratios of one run, as JSON lines."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from tests.bench.run import say
from tests.support import programs
from wetink_agent.attach import take_userfaultfd
from wetink_agent.events import EVENTS_MAX
from wetink_agent.resolver import MESSAGE
from wetink_agent.uapi import userfaultfd as uf
from wetink_agent.wp_sync import WpSync, decoded, first_of_each_page

TARGET_MIB: Final = 64
PAGES_A_TURN: Final = 4000
TURNS: Final = 25
PAGE: Final = 4096


def bench_write() -> Iterator[bool]:
    """Time first writes at random, answered page by page, against a C handler's, in turns.

    Twice: with writer and handler on one core, and on two. Where a sleeping core has to be woken for every message, as
    in a virtual machine, that outweighs all else; so both handlers must be in the same place.
    """
    cores = sorted(os.sched_getaffinity(0))
    for name, writer_core, handler_core in (("one core", cores[0], cores[0]), ("two cores", cores[0], cores[-1])):
        os.sched_setaffinity(0, {handler_core})
        try:
            yield from compare_writes(name, writer_core)
        finally:
            os.sched_setaffinity(0, cores)


def compare_writes(name: str, writer_core: int) -> Iterator[bool]:
    """Do one comparison; the handlers are where this process is."""
    with (
        programs.running("sync_faults", "handled", TARGET_MIB) as handled,
        programs.running("sync_faults", "plain", TARGET_MIB) as bare,
        programs.running("sync_faults", "plain", TARGET_MIB) as tracked,
    ):
        for target in (handled, bare, tracked):
            os.sched_setaffinity(target.pid, {writer_core})
        # The child that handles has been born on this process's core, and the resolver's thread is there too.
        tracker = WpSync(tracked.pid, take_userfaultfd(tracked.pid), span_bytes_max=PAGE)
        ours, theirs, nobody = [], [], []
        for turn in range(1, TURNS + 1):
            tracker.harvest()
            ours.append(nanoseconds_a_write(tracked, turn))
            theirs.append(nanoseconds_a_write(handled, turn))
            nobody.append(nanoseconds_a_write(bare, turn))
        tracker.close()
    yield say(
        f"a first write of {PAGES_A_TURN} at random, wp-sync, writer and handler on {name}",
        statistics.median(ours) / statistics.median(theirs),
        "times a C handler",
        limit=1.5,
        median_ns=round(statistics.median(ours)),
        c_median_ns=round(statistics.median(theirs)),
        untracked_median_ns=round(statistics.median(nobody)),
        ratio_of_minima=round(min(ours) / min(theirs), 3),
    )


def nanoseconds_a_write(target: programs.Program, seed: int) -> float:
    """Have a target write to pages that are protected."""
    return int(target.ask(f"write {PAGES_A_TURN} {seed}")) / PAGES_A_TURN


def bench_decode() -> Iterator[bool]:
    """Time the way of messages from the buffer that read(2) fills to the bytes of EventColumns, on one core."""
    random = np.random.default_rng(1)
    messages = np.zeros(EVENTS_MAX, dtype=MESSAGE)
    page_fault = messages["arg"]["pagefault"]
    messages["event"] = uf.UFFD_EVENT_PAGEFAULT
    page_fault["flags"] = uf.UFFD_PAGEFAULT_FLAG_WRITE | uf.UFFD_PAGEFAULT_FLAG_WP
    page_fault["address"] = (0x7F0000000 + random.permutation(EVENTS_MAX).astype(np.uint64)) * np.uint64(PAGE)
    page_fault["feat"]["ptid"] = random.integers(1000, 1016, EVENTS_MAX)
    times_ns = np.full(EVENTS_MAX, time.time_ns(), dtype=np.uint64)
    rates = []
    for _ in range(10):
        began = time.thread_time()
        first_of_each_page(decoded(messages, times_ns)).to_message().SerializeToString()
        rates.append(EVENTS_MAX / (time.thread_time() - began))
    # As a time, so that less is better, like everything here.
    yield say(
        "decode and batch an event, all of a full log at random addresses",
        1e9 / statistics.median(rates),
        "ns of CPU an event",
        limit=500,
        events_per_second=round(statistics.median(rates)),
    )


BENCHES: Final[dict[str, Callable[[], Iterator[bool]]]] = {"write": bench_write, "decode": bench_decode}
