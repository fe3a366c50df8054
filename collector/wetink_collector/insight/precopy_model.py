"""The round recursion of pre-copy: what each round sends, given W(T), a link and a stop policy. Pure.

With V pages to send over B pages a second, a round takes V/B and a fixed time; what was written meanwhile is left for
the next: V' = W(V/B + fixed). So V falls to the largest fixed point of that below where it began, and no further.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wetink_collector.insight.curve import Curve
from wetink_collector.insight.policies import Action, Cause, Decision, Policy, Progress

STEPS_MAX: Final = 2000
"""Bound on the steps of one migration that are followed: some 5 ms."""

SECONDS_MAX: Final = 7200.0
"""Bound on the time that is followed: twice the longest timeout of a policy."""

EXACT_ROUNDS: Final = 64
"""So many rounds are followed one by one: by then every policy that counts rounds has come to its end."""

PLATEAU: Final = 1e-4
"""After them, rounds that differ by less than this are taken together, as many as make up a twentieth of the time so
far: a policy that waits for an hour is asked a hundred times, and not a million."""

PLATEAU_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Link:
    """What a migration goes over. ``round_seconds`` comes on top of each round's sending (a harvest, a connection).

    ``fixed_seconds`` is the part of a downtime that does not depend on pages: freeze, other images, restore.
    """

    bytes_a_second: float
    page_size: int
    round_seconds: float = 0.0
    fixed_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Assert that it carries something."""
        assert self.bytes_a_second > 0, self
        assert self.page_size > 0, self

    @property
    def pages_a_second(self) -> float:
        """Pages that go over it in a second."""
        return self.bytes_a_second / self.page_size


@dataclass(frozen=True, slots=True)
class Round:
    """What a round sends while the target runs, and how long it takes; so many rounds alike."""

    pages: float
    seconds: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a migration goes.

    ``left_pages`` is what is left when copying ends: where the policy switches over, it is sent while the target
    stands still. ``window_seconds`` is the time in which it was written, and ``throttle`` the part of it that was taken
    from the target.
    """

    rounds: tuple[Round, ...]
    action: Action
    cause: Cause
    left_pages: float
    window_seconds: float
    throttle: float
    copy_seconds: float
    link: Link

    @property
    def switched(self) -> bool:
        """Whether the target goes over at all."""
        return self.action is Action.SWITCH

    @property
    def round_count(self) -> int:
        """Rounds while the target runs."""
        return sum(one.count for one in self.rounds)

    @property
    def downtime_seconds(self) -> float:
        """How long the target stands still; what it would be where the policy does not switch over."""
        return self.left_pages / self.link.pages_a_second + self.link.fixed_seconds

    @property
    def sent_pages(self) -> float:
        """Pages sent, those of a switch-over among them."""
        return sum(one.pages * one.count for one in self.rounds) + (self.left_pages if self.switched else 0.0)

    @property
    def total_seconds(self) -> float:
        """From the first round to the end of the downtime, or to the end of copying."""
        return self.copy_seconds + (self.downtime_seconds if self.switched else 0.0)


def follow(curve: Curve, populated_pages: float, link: Link, policy: Policy, *, held_pages: float = 0.0) -> Outcome:
    """Follow a migration from its first round to its end.

    Args:
        curve: What the target writes, without pages that are held back.
        populated_pages: What the first round would send, with them.
        link: What it goes over.
        policy: When it ends.
        held_pages: Pages that are sent only in the end.
    """
    speed = link.pages_a_second
    sending = max(0.0, populated_pages - held_pages)
    rounds: list[Round] = []
    count, elapsed_seconds = 0, 0.0
    left, window_seconds, throttle = sending, 0.0, 0.0
    decision = Decision(Action.CONTINUE)
    for _ in range(STEPS_MAX):
        seconds = sending / speed + link.round_seconds
        throttle = decision.throttle
        window_seconds = seconds * (1 - throttle)
        written = curve.at(window_seconds)
        alike = _alike(sending, written, count=count, elapsed_seconds=elapsed_seconds, round_seconds=seconds)
        count += alike
        elapsed_seconds += alike * seconds
        rounds.append(Round(sending, seconds, alike))
        left = written + held_pages
        decision, policy = policy.step(
            Progress(
                rounds=count,
                sent_pages=sending,
                left_pages=left,
                populated_pages=populated_pages,
                elapsed_seconds=elapsed_seconds,
                left_seconds=left / speed,
                fixed_seconds=link.fixed_seconds,
            )
        )
        if decision.action is not Action.CONTINUE or elapsed_seconds > SECONDS_MAX:
            break
        sending = written
    return Outcome(
        rounds=tuple(rounds),
        action=decision.action,
        cause=decision.cause or Cause.ENDLESS,
        left_pages=left,
        window_seconds=window_seconds,
        throttle=throttle,
        copy_seconds=elapsed_seconds,
        link=link,
    )


def plateau_pages(curve: Curve, populated_pages: float, link: Link) -> float:
    """Give what is left after rounds without end: the largest V = W(V/B + fixed) that the recursion comes to.

    Exact: between two knots the curve is a line, and so is what the link carries in the time.
    """
    speed, fixed = link.pages_a_second, link.round_seconds
    start = populated_pages / speed + fixed

    def over(seconds: float) -> float:
        return curve.at(seconds) - speed * (seconds - fixed)

    place = bisect_left(curve.seconds, start)
    if over(start) > 0:
        # More is written than was there: it rises to the next fixed point above.
        low = start
        for high in (*curve.seconds[place:], curve.pages[-1] / speed + fixed + 1):
            if high > low and over(high) <= 0:
                return curve.at(_crossing(over, low, high))
            low = max(low, high)
    high = start
    for low in reversed(curve.seconds[:place]):
        if over(low) >= 0:
            return curve.at(_crossing(over, low, high))
        high = low
    return 0.0


def _alike(sending: float, written: float, *, count: int, elapsed_seconds: float, round_seconds: float) -> int:
    """Give how many rounds from this one on are taken for one."""
    if count < EXACT_ROUNDS or abs(written - sending) > PLATEAU * sending or round_seconds <= 0:
        return 1
    return max(1, int(PLATEAU_SHARE * elapsed_seconds / round_seconds))


def _crossing(over: Callable[[float], float], low: float, high: float) -> float:
    """Give where a line from above or at 0 to below or at 0 crosses it."""
    above, below = over(low), over(high)
    return low if above <= below else low + (high - low) * above / (above - below)
