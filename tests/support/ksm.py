"""Merging of equal pages by the kernel, switched on for a test.

Source: Documentation/admin-guide/mm/ksm.rst.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from tests.support.locks import alone
from tests.support.programs import build_directory

_DIRECTORY: Final = Path("/sys/kernel/mm/ksm")
_SETTINGS: Final = {"run": "1", "sleep_millisecs": "1", "pages_to_scan": "5000"}


class NoKsm(Exception):
    """The kernel merges no pages."""


@contextmanager
def ksm() -> Iterator[None]:
    """Have the kernel merge equal pages of who has asked for it, quickly, and put its settings back.

    Several tests may have it so at once: the first one changes the settings, and the last one puts them back.

    Raises:
        NoKsm: It has no KSM.
    """
    if not _DIRECTORY.exists():
        message = "this kernel has no KSM (CONFIG_KSM)"
        raise NoKsm(message)
    with (build_directory() / "ksm-users").open("a+", encoding="utf-8") as users:
        with alone("ksm") as kept:
            if _is_only_user(users):
                _keep(kept, {name: (_DIRECTORY / name).read_text(encoding="ascii") for name in _SETTINGS})
                _set(_SETTINGS)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with alone("ksm") as kept:
                if _is_only_user(users):
                    kept.seek(0)
                    _set(json.load(kept))


def _is_only_user(users: IO[str]) -> bool:
    """Whether nobody else holds this lock, which each user shares."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keep(file: IO[str], settings: Mapping[str, str]) -> None:
    file.truncate(0)
    json.dump(settings, file)
    file.flush()


def _set(settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        (_DIRECTORY / name).write_text(value, encoding="ascii")
