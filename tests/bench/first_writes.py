"""What tracking adds to a first write: each backend, nothing, and mprotect(2) with a handler of SIGSEGV, in turns.

The writers are on one core and the agent on another. ``wp-sync``, whose writers wait for it, is measured on their
core too: where a sleeping core has to be woken for every message, as in a virtual machine, that outweighs all else.
"""

import contextlib
import statistics
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from tests.bench.run import say
from tests.bench.trackers import WP_SYNC, apart, choices, together, tracking
from tests.support import programs

TARGET_MIB: Final = 64
PAGES_A_TURN: Final = 4000
TURNS: Final = 25

NOTHING: Final = "no tracking"
MPROTECT: Final = "mprotect and SIGSEGV"
WP_SYNC_TOGETHER: Final = f"{WP_SYNC}, on the writer's core"
ORDERS: Final = {"random": "at random", "order": "one after the other"}


def bench_first_write() -> Iterator[bool]:
    """Print what each way adds to a first write, and how many times as much as mprotect adds."""
    for order, words in ORDERS.items():
        costs = first_write_costs()[order]
        mprotect = costs[MPROTECT] - costs[NOTHING]
        for name, nanoseconds in costs.items():
            added = nanoseconds - costs[NOTHING]
            yield say(
                f"first write, pages {words}, {name}",
                added,
                "ns added, median",
                figure="first write",
                backend=name,
                order=order,
                median_ns=round(nanoseconds),
                of_mprotect=round(added / mprotect, 4),
            )


@cache
def first_write_costs() -> Mapping[str, Mapping[str, float]]:
    """Measure: nanoseconds a write, for each order of pages and each way of tracking. Once a run."""
    with contextlib.ExitStack() as stack:

        def target(mode: str) -> programs.Program:
            return stack.enter_context(programs.running("first_write_costs", mode, TARGET_MIB))

        names = [*choices(), *([WP_SYNC_TOGETHER] if WP_SYNC in choices() else [])]
        targets = {NOTHING: target("plain"), MPROTECT: target("mprotect"), **{name: target("plain") for name in names}}
        stack.enter_context(apart(*(at.pid for at in targets.values())))
        trackers = {name: stack.enter_context(tracking(name, targets[name].pid)) for name in choices()}
        if WP_SYNC_TOGETHER in targets:
            pid = targets[WP_SYNC_TOGETHER].pid
            with together(pid):
                trackers[WP_SYNC_TOGETHER] = stack.enter_context(tracking(WP_SYNC, pid))
        took: dict[str, dict[str, list[float]]] = {order: {name: [] for name in targets} for order in ORDERS}
        for turn in range(1, TURNS + 1):
            for order in ORDERS:
                for name, writer in targets.items():
                    if name in trackers:
                        trackers[name].harvest()
                    answer = writer.ask(f"write {order} {PAGES_A_TURN} {turn}")
                    took[order][name].append(int(answer) / PAGES_A_TURN)
    return {order: {name: statistics.median(times) for name, times in of.items()} for order, of in took.items()}
