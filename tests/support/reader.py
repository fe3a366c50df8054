"""An orchestrator for tests: copies a target round by round through the whole service, whatever is killed meanwhile."""

import time
from typing import Final

from wetink_client import Collector
from wetink_client.answers import DirtySet
from wetink_client.errors import NotFound, ResynchronisationNeeded, Unavailable
from wetink_client.shadow import ShadowCopy

PATIENCE_SECONDS: Final = 30.0
"""How long a service may take to be there again."""


class Reader:
    """Keeps a copy of one target, by the reader's rule.

    Attributes:
        cursor: Where it is; None before the first answer.
        resynchronised: How often it was told to begin anew.
    """

    def __init__(self, collector: Collector, target: str, copy: ShadowCopy) -> None:
        """Begin with an empty copy."""
        self.cursor: str | None = None
        self.resynchronised = 0
        self._collector = collector
        self._target = target
        self._copy = copy

    def read(self, *, barrier: bool = True) -> DirtySet:
        """Take over one set, complete or not; begin anew where the service says that it must be so."""
        try:
            answer = self._collector.dirty(self._target, since=self.cursor, barrier=barrier)
        except ResynchronisationNeeded:
            self.resynchronised += 1
            self.cursor = None
            self._copy.pages.clear()
            answer = self._collector.dirty(self._target, barrier=barrier)
        self._copy.apply(answer.written, answer.vanished)
        self.cursor = answer.cursor
        return answer

    def read_complete(self) -> DirtySet:
        """Take over sets until one is complete; nobody may be there at first."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self.read()
            except (Unavailable, NotFound):
                if time.monotonic() > until:
                    raise
            else:
                if answer.complete:
                    return answer
                assert time.monotonic() < until, answer.target.incomplete_message
            time.sleep(0.05)
