"""What one agent may take of the collector: bytes a second, targets, and pages of each target. Plain code: no clock.

No honest fleet meets the defaults. Over the first an agent's stream is read more slowly, and nothing is lost: its spool
unites rounds. Over the others the target concerned is refused, and it alone: answers say that it is not covered.
"""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20

RATE_MIB_DEFAULT: Final = 64
"""Half of what one collector writes in a second, and all that an agent's spool holds."""

TARGETS_DEFAULT: Final = 16_384
"""More than one answer can be about; what is known of as many without a page takes some 64 MiB."""

PAGES_DEFAULT: Final = 1 << 33
"""32 TiB of 4 KiB pages: as much memory as the largest machines have."""

BURST_SECONDS: Final = 2.0
"""What an agent has not sent, it may send later: up to so many seconds' worth, as after a reconnect."""

IN_FLIGHT_SECONDS: Final = 1.0
"""How much an agent may have on its way, where its rate bounds that: its barriers wait behind as much."""

REFUSED_MAX: Final = 1024
"""Bound on the targets of one host that are remembered as refused. Beyond it the whole stream is: what nobody remembers
would be missing from answers unseen."""

HOSTS_MAX: Final = 16_384
"""Bound on hosts, also on those whose agents have gone and that are not forgotten yet, in some tens of MiB: whoever may
announce one host may announce any, where nobody has to say who they are."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one agent may take. ``pages`` are those a target has populated, and those of one round."""

    bytes_per_second: int = RATE_MIB_DEFAULT * MIB
    targets: int = TARGETS_DEFAULT
    pages: int = PAGES_DEFAULT

    @property
    def in_flight_bytes(self) -> int:
        """How much may be on its way, as far as the rate bounds that."""
        return round(self.bytes_per_second * IN_FLIGHT_SECONDS)


DEFAULTS: Final = Limits()
"""What holds unless an operator says otherwise."""


class Meter:
    """How far one stream has outrun its rate. What is taken is taken whole; then it waits until that is made up for."""

    def __init__(self, bytes_per_second: int, now: float) -> None:
        """Begin with nothing taken.

        Args:
            bytes_per_second: The rate.
            now: On a clock that only goes forward, in seconds; as everywhere here.
        """
        self._seconds_per_byte = 1 / bytes_per_second
        self._paid_until = now - BURST_SECONDS

    def take(self, size_bytes: int, now: float) -> float:
        """Count something that was taken, and say in how many seconds the next may be."""
        self._paid_until = max(self._paid_until, now - BURST_SECONDS) + size_bytes * self._seconds_per_byte
        return max(0.0, self._paid_until - now)
