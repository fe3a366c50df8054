"""How much of a processor a thread may use beside others. Pure: the clocks are the caller's."""

from typing import Final

SHARE_MAX: Final = 0.25
"""Bound on the share of a processor that counting takes while nobody waits for it: it holds the interpreter's lock,
which acknowledgements need. Some four hundred rounds of 4 Ki random pages are counted in a second of it."""

SHARE_MIN: Final = 0.01
"""What counting may take however busy the collector is, so that it comes to an end."""

BUSY_SHARE_MAX: Final = 0.7
"""What all of the collector may take of a processor before counting gives way to the rest. Most of it is done under the
interpreter's lock; nearer to the whole, rounds wait longer for each other than they take."""

LOOK_SECONDS: Final = 1.0
"""Over how long it is seen what the rest takes."""

SPARED_SECONDS_MAX: Final = 0.005
"""How much of its share may be used late, or in advance: to fall asleep and wake up takes as long as some rounds."""

OWED_SECONDS_MAX: Final = 1.0
"""What was used beyond it is made up for up to so much: what was counted in a hurry, for who waited for it, would keep
everything else waiting for minutes."""


class Share:
    """What a thread may use of a processor beside others."""

    def __init__(self, now: float, used: float, used_by_all: float) -> None:
        """Begin with nothing used.

        Args:
            now: A time in seconds.
            used: The thread's processor time then, in seconds.
            used_by_all: That of all threads, this one among them.
        """
        self._now = now
        self._used = used
        self._used_by_all = used_by_all
        self._others = 0.0
        self._seconds = 0.0

    def excess_seconds(self, now: float, used: float, used_by_all: float) -> float:
        """Say how long the thread is to rest from now on; 0 where it need not. The arguments are those of the start."""
        passed, spent = now - self._now, used - self._used
        if passed > 0:
            others = max(0.0, used_by_all - self._used_by_all - spent) / passed
            self._others += (others - self._others) * min(1.0, passed / LOOK_SECONDS)
        share = max(SHARE_MIN, min(SHARE_MAX, BUSY_SHARE_MAX - self._others))
        self._now, self._used, self._used_by_all = now, used, used_by_all
        self._seconds = max(-OWED_SECONDS_MAX, min(SPARED_SECONDS_MAX, self._seconds + passed * share - spent))
        # Looked at again when it may be otherwise.
        return min(-self._seconds / share, LOOK_SECONDS) if self._seconds < -SPARED_SECONDS_MAX else 0.0
