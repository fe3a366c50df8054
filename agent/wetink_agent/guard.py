"""The guard: a process of its own that freezes targets for the agent and lets them go, also when the agent dies.

A stopped thread and a frozen cgroup outlive whoever stopped them. So the agent stops nobody itself: it asks this
process, which lets everything go on when a hold's time is over, and when its connection to the agent ends, which the
kernel sees to however the agent dies. If the guard dies, the agent lets go what it was told of before it was frozen. If
both die at once, what is held by ptrace goes on, by the kernel, and a cgroup when the next agent starts.

It speaks lines of JSON over a socket that it inherits. It is small, and it never waits for the agent.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from wetink_agent import procfs
from wetink_agent.errors import NoSuchProcess
from wetink_agent.freeze import NotFrozen
from wetink_agent.freezers import NotPossible, Process, Way, ways

REQUEST_BYTES_MAX: Final = 1 << 20
"""Bound on a line from the agent: a request names at most 4096 targets, of some 40 bytes."""

SAY_SECONDS_MAX: Final = 1.0
"""How long the agent may take to make room for a line. One that does not is stopped or hangs, and nobody may wait for
it: all that is frozen goes on, and it hears of that when it comes back."""

REAP_SECONDS: Final = 0.05
"""How often threads are looked for that were killed while they were held: their parents wait for us."""

_WALL: Final = 0x40000000


@dataclass(slots=True)
class _Frozen:
    """One thing that is frozen, and since when (``time.monotonic_ns``)."""

    way: Way
    since_ns: int


@dataclass(slots=True)
class _Hold:
    until: float
    processes: set[Process] = field(default_factory=set)


class Guard:
    """What is frozen, by whose hold, and until when."""

    def __init__(self, agent: socket.socket, never: Iterable[int]) -> None:
        """Serve an agent.

        Args:
            agent: The connection to it.
            never: Pids that are not frozen, besides this process: the agent's own.
        """
        agent.settimeout(SAY_SECONDS_MAX)
        self._never = frozenset((os.getpid(), *never))
        self._agent = agent
        self._frozen: dict[str, _Frozen] = {}
        self._of_process: dict[Process, str] = {}
        self._holds: dict[str, _Hold] = {}

    def serve(self) -> None:
        """Do what the agent asks until it is gone; then let everything go on."""
        unread = b""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._agent, selectors.EVENT_READ)
                while True:
                    if selector.select(self._wait_seconds()):
                        piece = self._agent.recv(1 << 16)
                        unread += piece
                        if not piece or len(unread) > REQUEST_BYTES_MAX:
                            return
                    while b"\n" in unread:
                        line, _, unread = unread.partition(b"\n")
                        self._answer(json.loads(line))
                    self._end_overdue()
                    self._reap()
        except OSError:
            return  # the agent is gone, and does not hear us any more
        finally:
            self._holds.clear()
            self._let_go()

    def _wait_seconds(self) -> float | None:
        if not self._holds:
            return None
        return min(REAP_SECONDS, max(0.0, min(hold.until for hold in self._holds.values()) - time.monotonic()))

    def _answer(self, request: dict[str, Any]) -> None:
        if "freeze" in request:
            self._say(id=request["id"], outcomes=self._freeze(request["freeze"]))
        else:
            self._say(id=request["id"], thawed=self._thaw(request["thaw"]))

    def _freeze(self, asked: dict[str, Any]) -> list[dict[str, object]]:
        processes: list[Process] = [(pid, start) for pid, start in asked["processes"]]
        # Counted from here for a start: should we be slow to freeze them all, nobody is held for longer.
        hold = self._holds.setdefault(asked["hold"], _Hold(0.0))
        hold.until = time.monotonic() + asked["seconds"]
        outcomes = []
        for process in processes:
            outcome = self._freeze_one(process, processes, whole_cgroups=asked["whole_cgroups"])
            if outcome["method"]:
                hold.processes.add(process)
            outcomes.append({"pid": process[0], "start": process[1], **outcome})
        hold.until = time.monotonic() + asked["seconds"]
        if not hold.processes:
            del self._holds[asked["hold"]]
        return outcomes

    def _freeze_one(self, process: Process, others: Collection[Process], *, whole_cgroups: bool) -> dict[str, object]:
        if process[0] in self._never:
            # Stopped, we could let nobody go on when the time is over, and the agent could not do it in our place.
            return {"method": "", "message": f"process {process[0]} is of the agent, which does not freeze itself"}
        what = self._of_process.get(process)
        if what is None:
            try:
                what = self._freeze_by_any(process, others, whole_cgroups=whole_cgroups)
            except (NotPossible, NotFrozen, NoSuchProcess, OSError) as error:
                return {"method": "", "message": str(error)}
            self._of_process[process] = what
        frozen = self._frozen[what]
        return {"method": frozen.way.method, "message": "", "since_ns": frozen.since_ns}

    def _freeze_by_any(self, process: Process, others: Collection[Process], *, whole_cgroups: bool) -> str:
        for freezer in procfs.freezers(process[0]):
            if str(freezer.directory) in self._frozen:
                return str(freezer.directory)
        reason = NotPossible(f"process {process[0]} cannot be frozen")
        for way in ways(process, others, whole_cgroups=whole_cgroups):
            # Said before it is done: whoever outlives us lets it go on.
            self._say(begins=[way.method, way.what])
            began_ns = time.monotonic_ns()
            try:
                way.freeze()
            except NotPossible as error:
                reason = error
            except BaseException:
                self._say(ends=[way.method, way.what])
                raise
            else:
                self._frozen[way.what] = _Frozen(way, began_ns)
                return way.what
            self._say(ends=[way.method, way.what])
        raise reason

    def _thaw(self, asked: dict[str, Any]) -> list[Process]:
        names = [asked["hold"]] if asked["hold"] else list(self._holds)
        meant = {(pid, start) for pid, start in asked["processes"]}
        thawed: set[Process] = set()
        for name in names:
            if hold := self._holds.get(name):
                gone = hold.processes & meant if meant else set(hold.processes)
                hold.processes -= gone
                thawed |= gone
                if not hold.processes:
                    del self._holds[name]
        self._let_go()
        return sorted(thawed)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        over = [name for name, hold in self._holds.items() if hold.until <= now]
        for name in over:
            del self._holds[name]
        if over:
            self._let_go()

    def _let_go(self) -> None:
        """Let everything go on that no hold keeps."""
        held = {process for hold in self._holds.values() for process in hold.processes}
        for process in self._of_process.keys() - held:
            del self._of_process[process]
        for what in self._frozen.keys() - set(self._of_process.values()):
            frozen = self._frozen.pop(what)
            with suppress(OSError):
                frozen.way.thaw()
            with suppress(OSError):
                self._say(ends=[frozen.way.method, what])

    def _reap(self) -> None:
        """Take note of held threads that were killed. What only stopped is left: it may have a signal to deliver."""
        with suppress(ChildProcessError):
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | _WALL) is not None:
                pass

    def _say(self, **message: object) -> None:
        self._agent.sendall(json.dumps(message).encode() + b"\n")


def main() -> None:
    """Serve the agent at the other end of the socket whose descriptor is the first argument.

    The others are the pids of the agent, which are never frozen.
    """
    # Whoever stops the service stops the agent; we go when it has gone, and let everything go on first.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as agent:
        Guard(agent, map(int, sys.argv[2:])).serve()


if __name__ == "__main__":
    main()
