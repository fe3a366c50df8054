"""How fast page faults go from the kernel's ring to the bytes that travel."""

import statistics
import time
from collections.abc import Iterator
from typing import Final

from tests.bench.run import say
from tests.bench.trackers import apart
from tests.support import programs
from wetink_agent.attach import take_userfaultfd
from wetink_agent.page_faults import PageFaults
from wetink_agent.rounds import EVENTS_PER_MESSAGE_MAX
from wetink_agent.wp_async import WpAsync

TARGET_MIB: Final = 1024
RING_BYTES: Final = 32 << 20
TURNS: Final = 15


def bench_decode_ring() -> Iterator[bool]:
    """Time the way of samples from a ring that the kernel has filled to serialized EventColumns, on one core.

    The ring is filled once, by a process that writes to every page of its memory at random, and read again and again.
    """
    with programs.running("first_write_costs", "plain", TARGET_MIB) as victim, apart(victim.pid):
        tracker = WpAsync(victim.pid, take_userfaultfd(victim.pid))
        stream = PageFaults(victim.pid, RING_BYTES)
        tracker.harvest()
        stream.drain()
        stream.take(tracker.harvest().written, 0)
        # To be put back, so that the ring is full once more. It is never half full, so that nobody else empties it.
        positions = [(ring, int(ring._positions[1])) for ring in stream._rings]
        victim.ask(f"write random {TARGET_MIB * 256} 1")
        written = tracker.harvest().written
        began_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        costs = []
        count = 0
        for _ in range(TURNS):
            for ring, tail in positions:
                ring._positions[1] = tail
            began = time.thread_time()
            events = stream.take(written, began_ns)
            firsts = range(0, len(events), EVENTS_PER_MESSAGE_MAX)
            for first in firsts:
                events.part(first, first + EVENTS_PER_MESSAGE_MAX).to_message().SerializeToString()
            costs.append((time.thread_time() - began) / len(events) * 1e9)
            count = len(events)
        stream.close()
        tracker.close()
    # As a time, so that less is better, like everything here.
    yield say(
        f"decode and batch an event, from a ring with {count:,} to EventColumns",
        statistics.median(costs),
        "ns of CPU an event, median",
        limit=500,
        figure="decode",
        source="perf ring",
        events_per_second=round(1e9 / statistics.median(costs)),
        pages_written=len(written),
    )
