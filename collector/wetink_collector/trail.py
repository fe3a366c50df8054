"""How much of the audit trail those may write who may do nothing else: anybody who can connect causes refusals."""

import time
from typing import Final

LINES_AT_ONCE: Final = 100
LINES_PER_SECOND: Final = 5.0
"""Bounds on lines about what was refused, so that nobody fills a disk: 100 MB a day at this rate. Those left out are
counted in the next."""


class Allowance:
    """So many lines at once, and so many a second. Not for several threads."""

    def __init__(self, now: float | None = None) -> None:
        """Begin with all that there is.

        Args:
            now: As ``time.monotonic`` gives it, which is asked where it is left out.
        """
        self._lines = float(LINES_AT_ONCE)
        self._filled_at = time.monotonic() if now is None else now
        self._left_out_count = 0

    def take(self, now: float | None = None) -> int | None:
        """Take one line.

        Returns:
            How many were left out since the last one; None where this one is to be left out too.
        """
        now = time.monotonic() if now is None else now
        self._lines = min(self._lines + (now - self._filled_at) * LINES_PER_SECOND, LINES_AT_ONCE)
        self._filled_at = now
        if self._lines < 1:
            self._left_out_count += 1
            return None
        self._lines -= 1
        left_out_count, self._left_out_count = self._left_out_count, 0
        return left_out_count
