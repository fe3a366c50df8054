"""Merging of equal pages by the kernel, switched on for a test.

Source: Documentation/admin-guide/mm/ksm.rst.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_DIRECTORY: Final = Path("/sys/kernel/mm/ksm")
_SETTINGS: Final = {"run": "1", "sleep_millisecs": "1", "pages_to_scan": "5000"}


class NoKsm(Exception):
    """The kernel merges no pages."""


@contextmanager
def ksm() -> Iterator[None]:
    """Have the kernel merge equal pages of who has asked for it, quickly, and put its settings back.

    Raises:
        NoKsm: It has no KSM.
    """
    if not _DIRECTORY.exists():
        message = "this kernel has no KSM (CONFIG_KSM)"
        raise NoKsm(message)
    before = {name: (_DIRECTORY / name).read_text(encoding="ascii") for name in _SETTINGS}
    try:
        for name, value in _SETTINGS.items():
            (_DIRECTORY / name).write_text(value, encoding="ascii")
        yield
    finally:
        for name, value in before.items():
            (_DIRECTORY / name).write_text(value, encoding="ascii")
