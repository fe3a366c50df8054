"""What a collector's log has of an event, and what it must never have."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.service import PATIENCE_SECONDS, Service


class Audit:
    """The audit lines of a collector, from when this was made."""

    def __init__(self, collector: Service) -> None:
        """Leave out what was written before."""
        self._collector = collector
        self._first = len(collector.events("audit"))

    def lines(self) -> list[Mapping[str, Any]]:
        """Give those that are there."""
        return self._collector.events("audit")[self._first :]

    def wait_for(self, **fields: object) -> Mapping[str, Any]:
        """Wait for a line with these fields, and give it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            lines = self.lines()
            for line in lines:
                if fields.items() <= line.items():
                    return line
            assert time.monotonic() < deadline, f"no audit line has {fields}; there are {lines}"
            time.sleep(0.05)


def leaks(log: str, directory: Path) -> list[str]:
    """Name everything in a log that must not be there: keys, tokens, tracebacks."""
    tokens = {path.name: path.read_text().strip() for path in directory.rglob("*.token")}
    keys = {path.name: path.read_text().splitlines()[1] for path in directory.rglob("*.key")}
    found = [name for name, secret in (tokens | keys).items() if secret and secret in log]
    return found + [word for word in ("Traceback", "PRIVATE KEY", "Bearer ") if word in log]
