"""Collector, worker and keeper killed by turns at random moments, with two targets and three readers."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import programs
from tests.support.agent import HOST, start_agent, worker_pid
from tests.support.amounts import amount
from tests.support.collector import CollectorProcess, start_collector
from tests.support.reader import Reader
from wetink_client import Collector
from wetink_client.errors import NotFound, Unavailable
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

if TYPE_CHECKING:
    from tests.support.service import Service

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(600)]

KILLED: Final = ("collector", "worker", "keeper", "collector", "collector and worker")

WITH_A_GAP: Final = ("keeper",)
"""Who takes the tracking of a target along: then a reader must be told to begin anew. After all others it goes on."""

READERS: Final = 3


@pytest.mark.soak
def test_copies_are_the_targets_whoever_is_killed_whenever(tmp_path: Path) -> None:
    """After each kill every reader goes on with a cursor of its own, and holds what both targets hold, byte by byte.

    A round that was acknowledged is let go of by the agent: had the collector lost one, the readers would have to begin
    anew, and they do only where tracking was lost.
    """
    moments = random.Random(11)  # noqa: S311 - repeatable, not secret
    listen = f"unix:{tmp_path}/collector.sock"
    with ExitStack() as started:
        writers = [
            started.enter_context(programs.running("writer", pattern, seed))
            for seed, pattern in enumerate(("munmap_same", "threads"), 1)
        ]
        parts = started.enter_context(_running(listen, tmp_path / "data", writers))
        client = started.enter_context(Collector(listen))
        copies = [
            (writer, Reader(client, f"{HOST}/{writer.pid}", copy), copy)
            for _ in range(READERS)
            for writer in writers
            for copy in (started.enter_context(ShadowCopy(writer.pid)),)
        ]
        for turn in range(amount(gate=10, soak=100)):
            what = KILLED[turn % len(KILLED)]
            begun_anew = [reader.resynchronised for _, reader, _ in copies]
            with _reading([reader for _, reader, _ in copies]):
                time.sleep(moments.uniform(0.05, 0.4))
                parts.kill(what)
                time.sleep(moments.uniform(0, 0.2))
                parts.bring_up()
            for _, reader, _ in copies:
                reader.read_complete()
            for writer in writers:
                writer.stop()
            for writer, reader, copy in copies:
                last = reader.read_complete()
                assert last.consistency.name == "FROZEN"
                assert differences(writer.pid, copy.pages)[1] == [], f"turn {turn}, after the {what}"
            for writer in writers:
                assert writer.alive()
                writer.cont()
            if what not in WITH_A_GAP:
                assert begun_anew == [reader.resynchronised for _, reader, _ in copies], f"turn {turn}: {what}"


class _Parts:
    """Collector and agent, each started again where it is gone."""

    def __init__(self, listen: str, data: Path, writers: list[programs.Program]) -> None:
        self._listen = listen
        self._data = data
        self._pids = [word for writer in writers for word in ("--pid", str(writer.pid))]
        self._collector: CollectorProcess | None = None
        self._agent: Service | None = None

    def bring_up(self) -> None:
        if self._collector is None:
            self._collector = CollectorProcess(start_collector(self._data, listen=self._listen), self._data)
        if self._agent is None:
            self._agent = start_agent(self._listen, *self._pids)
            self._agent.wait_for_log("connected")

    def kill(self, what: str) -> None:
        assert self._agent
        assert self._collector
        if "worker" in what:
            os.kill(worker_pid(self._agent), signal.SIGKILL)
        if "keeper" in what:
            self._agent.kill()
            self._agent.close()
            self._agent = None
        if "collector" in what:
            self._collector.kill()
            self._collector.close()
            self._collector = None

    def close(self) -> None:
        for service in (self._agent, self._collector):
            if service:
                service.close()


@contextmanager
def _running(listen: str, data: Path, writers: list[programs.Program]) -> Iterator[_Parts]:
    parts = _Parts(listen, data, writers)
    try:
        parts.bring_up()
        yield parts
    finally:
        parts.close()


@contextmanager
def _reading(readers: list[Reader]) -> Iterator[None]:
    """Let every reader go on by itself while the body runs; nobody may be there for it."""
    over = threading.Event()
    failures: list[BaseException] = []

    def read(reader: Reader) -> None:
        try:
            while not over.is_set():
                with suppress(Unavailable, NotFound):
                    reader.read()
                over.wait(0.02)
        except BaseException as error:  # noqa: BLE001 (told to the test, on its own thread)
            failures.append(error)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
