"""A collector whose disk takes its time: each group commit is followed by what such an fsync would take."""

import time
from collections.abc import Sequence
from typing import Final

from wetink_collector.command import main
from wetink_collector.store.interface import Change
from wetink_collector.store.sqlite import SqliteStore

__all__ = ["main"]

FSYNC_SECONDS: Final = 0.05
"""As of a disk that spins, and that others use too."""


def _slowly(self: SqliteStore, changes: Sequence[Change]) -> None:
    _commit(self, changes)
    time.sleep(FSYNC_SECONDS)


_commit = SqliteStore.commit
SqliteStore.commit = _slowly  # type: ignore[method-assign]
