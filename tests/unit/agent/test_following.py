"""How often processes are looked for, with no kernel: what a look waits for on a busy host is not what it costs."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from wetink_agent import discovery, following
from wetink_agent.following import Follower

LOOKS = 4
PATIENCE_SECONDS = 60.0


def test_a_look_that_has_to_wait_does_not_put_off_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock each of these takes 300 times the part that looks may take, and next to nothing of a processor."""
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(following, "LOOK_SHARE_MAX", 0.001)

    assert len(_looks(monkeypatch, lambda: time.sleep(0.3))) == LOOKS


def test_a_look_that_is_work_puts_off_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host with very many processes the agent takes no more than its part of a processor."""

    def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass

    monkeypatch.setattr(following, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(following, "LOOK_SHARE_MAX", 0.1)

    # The first look is followed by the second at once: it only finds what was there.
    looks = _looks(monkeypatch, work)[1:]
    assert all(after - before >= 0.2 for before, after in itertools.pairwise(looks))


def _looks(monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> list[float]:
    """Let a follower look so often, if it does in its time; gives when each began, by the monotonic clock."""
    looks: list[float] = []
    are_enough = threading.Event()

    def processes(_selection: discovery.Selection) -> dict[int, discovery.Process]:
        looks.append(time.monotonic())
        if len(looks) >= LOOKS:
            are_enough.set()
        look()
        return {}

    async def follow() -> None:
        with ThreadPoolExecutor(1) as pool:
            follower = Follower(
                discovery.Selection(cgroups=("/",)), track=_track, tracked=(), ourselves=set[int], pool=pool
            )
            looking = asyncio.create_task(follower.run(lambda: None))
            await asyncio.to_thread(are_enough.wait, PATIENCE_SECONDS)
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    monkeypatch.setattr(discovery, "processes", processes)
    asyncio.run(follow())
    return looks[:LOOKS]


async def _track(_pid: int, _start_time_ticks: int) -> None:
    raise AssertionError
