"""How much a test does: enough to find a bug in the gate, and for hours' worth of them in ``make soak``."""

import os
from typing import Final, TypeVar

SOAK: Final = "WETINK_SOAK"
"""The environment variable that ``make soak`` sets: tests that are marked ``soak`` then take their larger amount."""

_Amount = TypeVar("_Amount", int, float)


def amount(*, gate: _Amount, soak: _Amount) -> _Amount:
    """Give how often, how long or how many, in the caller's unit.

    Args:
        gate: In ``make test``.
        soak: In ``make soak``.
    """
    return soak if os.environ.get(SOAK) else gate
