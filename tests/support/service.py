"""A service of ours in a process of its own: what it logs, and how it is waited for, stopped and killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

PATIENCE_SECONDS: Final = 120.0
"""How long it may take to start or to end; on a busy machine that is most of all its imports. One that has ended is
noticed at once."""


class Service:
    """A service that was started, and what it has logged."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        """Begin to read its log.

        Args:
            process: Logs JSON lines to its piped standard error.
            name: For messages.
        """
        self.process = process
        self.name = name
        self._lines: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"log of the {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """All it has written to standard error."""
        with self._logged:
            return "".join(self._lines)

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """Give what it has logged under a name."""
        with self._logged:
            entries = [json.loads(line) for line in self._lines if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == name]

    def wait_for_log(self, name: str, count: int = 1) -> Mapping[str, Any]:
        """Wait until it has logged a name so many times, and give the last of them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            # Looked at first: what it said last is read after it has ended.
            no_more = self.process.poll() is not None and not self._reader.is_alive()
            if len(found := self.events(name)) >= count:
                return found[-1]
            if no_more or time.monotonic() > deadline:
                message = f"the {self.name} did not log {name!r}; exit code {self.process.poll()}, log:\n{self.log}"
                raise AssertionError(message)
            with self._logged:
                self._logged.wait(timeout=0.1)

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to drain, wait until it is gone, and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.kill()
            message = f"the {self.name} did not stop in {PATIENCE_SECONDS} s; log:\n{self.log}"
            raise AssertionError(message) from error

    def close(self) -> None:
        """Stop it where it still runs, and let go of its log."""
        if self.process.poll() is None:
            self.stop()
        self._reader.join(PATIENCE_SECONDS)
        if self.process.stderr:
            self.process.stderr.close()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            with self._logged:
                self._lines.append(line)
                self._logged.notify_all()


def start(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    before: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start a command of ours, in the interpreter that runs the tests, and do not wait for anything.

    Its own environment variables are kept from it, except those given.

    Args:
        module: The module with its ``main``: ``wetink_agent.command``.
        arguments: After the command's name.
        environment: Variables added to those of the tests.
        before: Words before the interpreter's on the command line: ``ip netns exec NAME``, say.
    """
    command = [*before, sys.executable, "-c", f"from {module} import main; main()", *arguments]
    own = {name: value for name, value in os.environ.items() if not name.startswith("WETINK_")}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**own, **(environment or {})})
