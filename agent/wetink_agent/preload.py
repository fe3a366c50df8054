"""What lets programs that are not in Python offer their memory: a C header, and a library to start others under.

Neither is used by the agent itself; ``offer_preload.c`` and ``wetink_offer.h`` say how they are used.
"""

from pathlib import Path
from typing import Final

HEADER: Final = Path(__file__).with_name("wetink_offer.h")
"""For programs that call ``wetink_offer`` themselves; it needs no library."""

LIBRARY: Final = Path(__file__).with_name("_offer_preload.so")
"""For ``LD_PRELOAD``; what ``hatch_build.py`` makes."""


def why_no_library() -> str | None:
    """Say why there is no library to preload, as a sentence, or give None where there is one."""
    if LIBRARY.exists():
        return None
    return (
        "there was no C compiler where wetink was installed: install gcc and libc6-dev and then wetink again, or "
        f"compile {HEADER.with_name('offer_preload.c')} with cc -shared -fPIC"
    )
