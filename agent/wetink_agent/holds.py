"""The agent's side of freezing: it asks the guard, and takes the guard's place where that dies."""

import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from wetink_agent import freezers
from wetink_agent.freezers import Process

ANSWER_SECONDS_MAX: Final = 60.0
"""How long the guard may take to freeze all targets of a barrier: the contract's bound on a barrier."""

LINE_BYTES_MAX: Final = 4 << 20
"""Bound on a line of the guard: what became of 4096 targets, some hundred bytes each."""

log = structlog.get_logger()


class GuardDied(Exception):
    """The guard is gone, and all that it had frozen goes on. The next call begins another."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the freezing of one process went: ``method`` is a name of ``FreezeMethod`` without its prefix, or empty.

    ``since_ns`` is when it was frozen, as ``time.monotonic_ns`` counts.
    """

    method: str
    message: str
    since_ns: int


class Holds:
    """Freezes processes through a guard, which is started when it is first needed. Used on the event loop only."""

    def __init__(self, never: Iterable[int] = ()) -> None:
        """Begin without a guard.

        Args:
            never: Pids that are never frozen, whoever asks: those whom the guard needs to let others go on.
        """
        self._never = tuple(never)
        self._guard: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count()
        self._frozen: dict[str, str] = {}
        self._starting = asyncio.Lock()

    @property
    def guard_pid(self) -> int | None:
        """Pid of the guard, where there is one now. It must never be a target: stopped, it could let nobody go on."""
        return self._guard.pid if self._guard is not None and self._guard.returncode is None else None

    async def freeze(
        self, hold: str, processes: Sequence[Process], *, seconds: float, whole_cgroups: bool
    ) -> Mapping[Process, Outcome]:
        """Freeze processes in the name of a hold, until it is ended or its time is over.

        Args:
            hold: Its name. One that there is already goes on for so long, with these processes beside its others.
            processes: By pid and start time.
            seconds: How long it may last, from when the last was frozen.
            whole_cgroups: Whether a cgroup may be frozen with others in it.

        Raises:
            GuardDied: Nothing is frozen.
        """
        asked = {"hold": hold, "seconds": seconds, "processes": processes, "whole_cgroups": whole_cgroups}
        answer = await self._ask({"freeze": asked})
        return {
            (one["pid"], one["start"]): Outcome(one["method"], one["message"], one.get("since_ns", 0))
            for one in answer["outcomes"]
        }

    async def thaw(self, hold: str, processes: Collection[Process] = ()) -> set[Process]:
        """End a hold, or some of it; give the processes that it had kept frozen. What nobody else holds goes on.

        Args:
            hold: Its name; empty means every hold.
            processes: Which of its processes; none means all.
        """
        if self._writer is None:
            return set()
        try:
            answer = await self._ask({"thaw": {"hold": hold, "processes": list(processes)}})
        except GuardDied:
            return set()
        return {(pid, start) for pid, start in answer["thawed"]}

    async def close(self) -> None:
        """Let everything go on, and end the guard."""
        if self._writer is not None and self._listening is not None:
            self._writer.write_eof()
            await self._listening

    async def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        async with self._starting:
            if self._writer is None:
                await self._start()
        assert self._writer is not None
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self._writer.write(json.dumps({"id": number, **request}).encode() + b"\n")
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await answer
        except (TimeoutError, ConnectionError) as error:
            message = "the guard that freezes targets does not answer"
            raise GuardDied(message) from error
        finally:
            del self._answers[number]

    async def _start(self) -> None:
        ours, its = socket.socketpair()
        with its:
            # In a session of its own, since what a terminal sends to us is not for it; -P: with no module out of the
            # current directory.
            self._guard = subprocess.Popen(  # noqa: ASYNC220, S603 (it blocks until it has been started, and is ours)
                [sys.executable, "-P", "-m", "wetink_agent.guard", str(its.fileno()), *map(str, self._never)],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
        self._listening = asyncio.create_task(self._listen(reader, self._guard))

    async def _listen(self, reader: asyncio.StreamReader, guard: subprocess.Popen[bytes]) -> None:
        """Keep what is frozen in mind for as long as the guard lives, and let it go on afterwards."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                if "begins" in message:
                    method, what = message["begins"]
                    self._frozen[what] = method
                elif "ends" in message:
                    self._frozen.pop(message["ends"][1], None)
                elif (answer := self._answers.get(message["id"])) and not answer.done():
                    answer.set_result(message)
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        left, self._frozen = self._frozen, {}
        # Where its connection broke and it did not die: what it let go later would be what somebody else froze.
        guard.kill()
        await asyncio.to_thread(guard.wait)
        for what, method in left.items():
            with contextlib.suppress(OSError):
                freezers.thaw(method, what)
        if left:
            log.error("guard_died", frozen=sorted(left), consequence="what it had frozen goes on")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(GuardDied("the guard that freezes targets died: nothing is frozen"))
