"""Who takes offers of memory: a real agent that listens, and the agent's own server in this process, for its rounds."""

import array
import asyncio
import json
import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wetink_agent import procfs
from wetink_agent.handshake import HandshakeServer, Offer
from wetink_agent.wp_async import WpAsync

PATIENCE_SECONDS: Final = 60.0
ACCEPTS: Final = "00010000"
"""__SO_ACCEPTCON, in the flags of ``/proc/net/unix``."""
OF_TRACKING: Final = re.compile(r"userfaultfd|pidfd|pagemap|/dev/zero")


class Agent:
    """A ``wetink-agent`` without a collector, that listens for offers."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
        """Take it over."""
        self.process = process
        self.path = path
        self._log = log

    def wait_for_log(self, *words: str) -> str:
        """Give the first line of its log that has all of these words, as soon as it is there."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not (lines := self.logged(*words)):
            assert time.monotonic() < until, self._log.read_text(encoding="utf-8")
            time.sleep(0.01)
        return lines[0]

    def logged(self, *words: str) -> list[str]:
        """Give the lines of its log that have all of these words."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if all(word in line for word in words)]

    def descriptors(self) -> list[str]:
        """Give those of its descriptors that offers and tracking make; gRPC's own come and go with its attempts."""
        links = []
        for path in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                links.append(str(path.readlink()))
            except FileNotFoundError:
                continue
        return sorted(link for link in links if OF_TRACKING.search(link))

    def settled_descriptors(self, expected: list[str]) -> list[str]:
        """Give the same, waiting a while for what is expected: answers come before the last clean-up."""
        until = time.monotonic() + PATIENCE_SECONDS
        while (found := self.descriptors()) != expected and time.monotonic() < until:
            time.sleep(0.02)
        return found

    def connect(self) -> socket.socket:
        """Connect to its socket."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection

    def offer(self, body: bytes, descriptors: Sequence[int] = (), *, half_close: bool = True) -> dict[str, str]:
        """Send an offer from this process and give the answer; the descriptors are closed here."""
        with self.connect() as connection:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            connection.sendmsg([body], ancillary)
            for descriptor in descriptors:
                os.close(descriptor)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").readline()
        told: dict[str, str] = json.loads(answer)
        return told


@contextmanager
def agent(path: Path, *more: str) -> Iterator[Agent]:
    """Start an agent whose collector is never there, with more arguments."""
    command = [sys.executable, "-c", "from wetink_agent.command import main; main()"]
    arguments = [
        "--collector",
        "127.0.0.1:9",
        "--handshake",
        str(path),
        "--host-id",
        "here",
        "--interval",
        "50ms",
        *more,
    ]
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while b"handshake_listening" not in (said := Path(log.name).read_bytes()):
                assert process.poll() is None, said
                assert time.monotonic() < until, said
                time.sleep(0.01)
            yield Agent(process, path, Path(log.name))
            assert b"Traceback" not in Path(log.name).read_bytes()
            assert b"offer_failed" not in Path(log.name).read_bytes()
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


def armed_mappings(pid: int) -> int:
    """Count the mappings of a process that are registered with a userfaultfd for write-protection."""
    return Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").count(" uw")


def listens(path: Path) -> bool:
    """Whether somebody listens at a Unix socket: it is there a moment before."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines():
        if line.endswith(f" {path}") and line.split()[3] == ACCEPTS:
            return True
    return False


class Listener:
    """Takes offers in this process, in place of an agent, so that a test does the rounds itself."""

    def __init__(self, path: Path) -> None:
        """Listen at a path; ``close`` ends it."""
        self.path = path
        self._taken: queue.SimpleQueue[tuple[int, WpAsync]] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="listener")
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)
        while not listens(path):
            time.sleep(0.001)

    def taken(self) -> tuple[int, WpAsync]:
        """Give the next process that was taken, and what tracks it; nothing is harvested yet."""
        return self._taken.get(timeout=PATIENCE_SECONDS)

    def has_nobody(self) -> bool:
        """Whether nobody was taken that ``taken`` has not given."""
        return self._taken.empty()

    def close(self) -> None:
        """Stop listening, and let go of who was not asked for."""
        assert self._stop is not None
        loop, task = self._stop
        loop.call_soon_threadsafe(task.cancel)
        self._thread.join()
        while not self._taken.empty():
            self._taken.get()[1].close()

    async def _run(self) -> None:
        task = asyncio.create_task(HandshakeServer(self.path, self._accept).run())
        self._stop = asyncio.get_running_loop(), task
        self._ready.set()
        await asyncio.gather(task, return_exceptions=True)

    async def _accept(self, offer: Offer) -> str:
        name = f"here/{offer.pid}@{procfs.stat(offer.pid).start_time_ticks}"
        self._taken.put((offer.pid, WpAsync(offer.pid, os.dup(offer.uffd), offer.scope)))
        return name


@contextmanager
def listener(path: Path) -> Iterator[Listener]:
    """Take offers at a path."""
    listening = Listener(path)
    try:
        yield listening
    finally:
        listening.close()
