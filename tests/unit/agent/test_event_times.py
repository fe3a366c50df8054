"""Times of events as times since the Unix epoch, where whoever looks at the clocks is held up meanwhile."""

import time

import pytest

from wetink_agent import events

OFFSET_NS = 1_700_000_000_000_000_000
HELD_UP_NS = 5_000_000


class Clocks:
    """Two clocks that go on by themselves with each look, and by much more with one of them."""

    CLOCK_MONOTONIC = time.CLOCK_MONOTONIC

    def __init__(self, held_up_at: int) -> None:
        """Say at which look it is held up."""
        self._looks = 0
        self._now_ns = 1000
        self._held_up_at = held_up_at

    def clock_gettime_ns(self, _clock: int) -> int:
        """Give the time since the machine was started."""
        self._looks += 1
        self._now_ns += HELD_UP_NS if self._looks == self._held_up_at else 50
        return self._now_ns

    def time_ns(self) -> int:
        """Give the time since the epoch."""
        return self.clock_gettime_ns(self.CLOCK_MONOTONIC) + OFFSET_NS


@pytest.mark.parametrize("held_up_at", range(1, 3 * events.CLOCK_LOOKS + 1))
def test_who_is_held_up_between_two_looks_at_clocks_takes_none_for_late(
    monkeypatch: pytest.MonkeyPatch, held_up_at: int
) -> None:
    """Whichever look it was after: an event would have happened before what it followed."""
    monkeypatch.setattr(events, "time", Clocks(held_up_at))

    assert 0 <= events.monotonic_offset_ns() - OFFSET_NS < 100
