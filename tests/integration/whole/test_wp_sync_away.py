"""``wp-sync`` while its collector stands still: nobody who writes notices, and nothing of what they wrote is lost."""

import signal
import statistics
import time

import pytest

from tests.support.agent import HOST, running_agent
from tests.support.collector import running_collector
from tests.support.victim import PAGE, Victim, victim
from wetink_client import Collector

pytestmark = pytest.mark.needs("kernel", "root", "cc")

AWAY_SECONDS = 20.0
PATIENCE_SECONDS = 40.0
TURN_PAGES = 500
TURN_SECONDS = 0.1
TURNS_BEFORE = 30
TURNS_MAX = 400
PAGES = TURNS_MAX * TURN_PAGES
STRIDE = 7919
"""A prime that does not divide PAGES: its multiples visit every page once."""


def turn_pages(first: int, turn: int) -> list[int]:
    """Give pages for a turn that no other turn has, no two of them neighbours: who writes in order is let through."""
    return [first + number * STRIDE % PAGES for number in range(turn * TURN_PAGES, (turn + 1) * TURN_PAGES)]


def write(target: Victim, first: int, turn: int) -> float:
    """Have it write to a turn's pages, one after the other; how long that took, in seconds."""
    took = target.do(
        "import time\n"
        "began = time.perf_counter()\n"
        f"for page in {turn_pages(first, turn)!r}: poke(page * PAGE, 3)\n"
        "result = time.perf_counter() - began"
    )
    assert isinstance(took, float)
    return took


def test_nothing_is_lost_and_nobody_waits_while_the_collector_is_stopped() -> None:
    """Twenty seconds of SIGSTOP: every first write is an event of its thread, in order; writes take what they took."""
    with (
        victim() as target,
        running_collector() as collector,
        running_agent(
            collector.address, "--pid", str(target.pid), "--backend", "wp-sync", "--accept-risk", interval="500ms"
        ),
        Collector(collector.address) as client,
    ):
        name = f"{HOST}/{target.pid}"
        first = target.map(PAGES)
        # Two rounds: the second protects what the first found.
        client.barrier(name)
        cursor = client.dirty(name, barrier=True).cursor
        began, began_ns = time.monotonic(), time.time_ns()
        before = [write(target, first, turn) for turn in range(TURNS_BEFORE)]
        meanwhile: list[float] = []
        collector.process.send_signal(signal.SIGSTOP)
        try:
            while time.monotonic() - began < AWAY_SECONDS:
                turn = len(before) + len(meanwhile)
                assert turn < TURNS_MAX
                meanwhile.append(write(target, first, turn))
                time.sleep(TURN_SECONDS)
        finally:
            collector.process.send_signal(signal.SIGCONT)
        answer = client.dirty(name, since=cursor, barrier=True)
        until = time.monotonic() + PATIENCE_SECONDS
        while not answer.complete:
            # Streams that were opened while it stood still come and go first.
            assert time.monotonic() < until, answer.target.incomplete_message
            time.sleep(0.2)
            answer = client.dirty(name, since=cursor, barrier=True)
        batches = list(client.events(name))

    written = [page for turn in range(len(before) + len(meanwhile)) for page in turn_pages(first, turn)]
    assert set(written) <= set(answer.written)
    # What was written while a round was under way may be in the next one: the times say the order.
    told = sorted((event.time_ns or 0, event.address // PAGE, event.thread_id) for b in batches for event in b.events)
    # A page that was protected while it was filled has an event from before.
    ours = [(page, thread) for at, page, thread in told if at >= began_ns and first <= page < first + PAGES]
    assert sum(batch.lost_count + batch.forgotten_count for batch in batches) == 0
    assert ours == [(page, target.pid) for page in written]
    print(  # noqa: T201 (figures, for pytest -s)
        f"a turn took {1000 * statistics.median(before):.1f} ms before, {1000 * statistics.median(meanwhile):.1f} ms "
        f"meanwhile, at most {1000 * max(meanwhile):.1f}"
    )
    # Each write of a turn waits for the resolver, which on a busy machine waits for its turn. Whoever waited for the
    # collector would wait until it goes on: most turns take their usual time, and none takes what is left of it.
    assert statistics.median(meanwhile) < 10 * statistics.median(before) + 1
    assert max(meanwhile) < AWAY_SECONDS / 2
