"""The shadow-copy loop over a backend alone: harvest, copy, freeze, harvest, copy, compare."""

import random
import time
from dataclasses import dataclass

from tests.support import programs, truth
from wetink_agent.attach import take_userfaultfd
from wetink_agent.wp_async import WpAsync
from wetink_client.shadow import ShadowCopy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with.

    ``again_page_count`` is what a second harvest of the frozen target still reports, less the cautious pages: nothing,
    since nothing was written.
    """

    page_count: int
    differences: list[truth.Difference]
    again_page_count: int
    frozen: bool


def shadow_copy(
    pattern: str, *, rounds: int, seed: int, backend: type[WpAsync] = WpAsync, pause_seconds_max: float = 0.04
) -> Outcome:
    """Copy a writer's memory round by round while it runs, then freeze it and compare every byte.

    Args:
        pattern: Of the program ``writer``.
        rounds: While it runs; two more follow when it is frozen.
        seed: Of the writer and of the pauses between rounds.
        backend: What tracks; the negative controls leave a step out of it.
        pause_seconds_max: Bound on the pause between two rounds.
    """
    pauses = random.Random(seed)  # noqa: S311 - repeatable, not secret
    with programs.running("writer", pattern, seed) as writer:
        tracker = backend(writer.pid, take_userfaultfd(writer.pid))
        try:
            with ShadowCopy(writer.pid) as copy:
                for _ in range(rounds):
                    harvest = tracker.harvest()
                    copy.apply(harvest.written, harvest.vanished)
                    time.sleep(pauses.uniform(0, pause_seconds_max))
                writer.stop()
                last = tracker.harvest()
                copy.apply(last.written, last.vanished)
                again = tracker.harvest()
                page_count, differences = truth.differences(writer.pid, copy.pages)
        finally:
            tracker.close()
        return Outcome(page_count, differences, len(again.written) - again.cautious_page_count, last.frozen)
