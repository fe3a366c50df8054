"""The keeper with a worker that is a few lines of shell or Python, and with a systemd that is a socket."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from wetink_agent.entry import KEEPER

PATIENCE_SECONDS = 60.0

WORKER = """
import json, os, signal, socket, sys
keeper = socket.socket(fileno=int(os.environ["WETINK_AGENT_KEEPER"]))
held = {}
inherited = sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}"))
inherited = [fd for fd in inherited if fd > 2 and fd != keeper.fileno()]
while True:
    message, fds, _, _ = socket.recv_fds(keeper, 512, 1)
    what, _, rest = message.decode().partition(" ")
    if what == "begin":
        break
    held[rest] = os.pread(fds[0], 100, 0).decode()
    os.close(fds[0])
told = {"begin": rest, "held": held, "inherited": inherited, "systemd": "NOTIFY_SOCKET" in os.environ}
print(json.dumps(told), flush=True)

def hold(name, text):
    fd = os.memfd_create(name)
    os.pwrite(fd, text.encode(), 0)
    socket.send_fds(keeper, [f"hold {name}".encode()], [fd])

say = lambda word: keeper.send(word.encode())
for line in sys.stdin:
    exec(line)
"""


class Kept:
    """A keeper, and its worker, which does what it is told by a line of Python."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take over a process that has been started."""
        self.process = process

    def told(self) -> Mapping[str, object]:
        """Give what the next worker says first."""
        assert self.process.stdout is not None
        answer: dict[str, object] = json.loads(self.process.stdout.readline())
        return answer

    def do(self, line: str) -> None:
        """Have the worker run a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@contextmanager
def kept(
    environment: Mapping[str, str] | None = None, *, before: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> Iterator[Kept]:
    """Run a keeper."""
    command = [*before, sys.executable, "-I", "-S", str(KEEPER), sys.executable, "-u", "-c", WORKER]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        pass_fds=pass_fds,
        start_new_session=True,
    ) as process:
        try:
            yield Kept(process)
        finally:
            process.kill()


def test_next_worker_gets_what_the_one_before_handed_over() -> None:
    """Also what was on its way when that was killed; replaced and dropped names are as they were left."""
    with kept() as keeper:
        assert keeper.told()["begin"] == "1 -"
        keeper.do("hold('a', '1'); hold('b', '2'); hold('a', '3'); hold('c', '4'); say('drop c'); say('ready')")
        keeper.do("hold('d', '5'); os.kill(os.getpid(), signal.SIGKILL)")
        second = keeper.told()

        assert second["begin"] == "2 signal:9"
        assert second["held"] == {"a": "3", "b": "2", "d": "5"}
        # No copies that it does not know of: what it lets go of is gone.
        assert second["inherited"] == []
        keeper.do("say('leave'); sys.exit(7)")
        assert keeper.process.wait(PATIENCE_SECONDS) == 7


@pytest.mark.parametrize(
    "line, code",
    [
        ("sys.exit(2)", 2),
        ("say('ready'); say('leave'); sys.exit(1)", 1),
        ("say('leave'); os.kill(os.getpid(), 9)", 137),
    ],
)
def test_exit_that_is_meant_is_the_keepers_own(line: str, code: int) -> None:
    """Before it was ready, as with options that are wrong, or where the worker says so."""
    with kept() as keeper:
        keeper.told()
        keeper.do(line)

        assert keeper.process.wait(PATIENCE_SECONDS) == code


def test_worker_that_was_ready_is_followed_by_another_however_it_ended() -> None:
    """An exception nobody foresaw ends in exit code 1; the next one is told, and comes a little later each time."""
    with kept() as keeper:
        keeper.told()
        began = time.monotonic()
        for count in range(2, 5):
            keeper.do("say('ready'); sys.exit(1)")
            assert keeper.told()["begin"] == f"{count} exit:1"
        assert time.monotonic() - began > 0.1 + 0.2 + 0.4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    """The worker decides what they mean, and with which code both end."""
    with kept() as keeper:
        keeper.told()
        keeper.do(f"signal.signal({int(number)}, lambda *_: os._exit(5)); say('ready'); print(1, flush=True)")
        assert keeper.process.stdout is not None
        keeper.process.stdout.readline()
        keeper.process.send_signal(number)

        assert keeper.process.wait(PATIENCE_SECONDS) == 5


def test_hangup_starts_the_next_worker_at_once() -> None:
    """Without a terminal it is an operator's word: the worker leaves, and the next one has all that it held."""
    with kept() as keeper:
        keeper.told()
        keeper.do("signal.signal(signal.SIGHUP, lambda *_: (say('again'), os._exit(0)))")
        keeper.do("hold('a', '1'); say('ready'); print(1, flush=True)")
        assert keeper.process.stdout is not None
        keeper.process.stdout.readline()
        keeper.process.send_signal(signal.SIGHUP)
        second = keeper.told()

        assert second["begin"] == "2 upgrade"
        assert second["held"] == {"a": "1"}


def test_keeper_is_small() -> None:
    """It has not been the agent before it became the keeper."""
    with kept() as keeper:
        keeper.told()
        lines = Path(f"/proc/{keeper.process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        (own,) = [int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")]

        assert own < 8 << 10, "KiB"


class Systemd:
    """The descriptor store's side of the protocol: keeps what is stored, by name."""

    def __init__(self, path: Path) -> None:
        """Listen."""
        self.path = path
        self.stored: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE_SECONDS)

    def take(self, count: int) -> None:
        """Take so many messages."""
        for _ in range(count):
            message, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
            said = dict(line.split("=", 1) for line in message.decode().splitlines())
            if said.get("FDSTORE") == "1":
                (self.stored[said["FDNAME"]],) = fds
            else:
                assert said["FDSTOREREMOVE"] == "1"
                os.close(self.stored.pop(said["FDNAME"]))

    def close(self) -> None:
        """Let go of everything."""
        self._socket.close()
        for fd in self.stored.values():
            os.close(fd)


# What systemd does between fork and exec: the descriptors from 3 on, and whose they are.
LISTENING = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"


def test_descriptor_store_outlives_the_keeper(tmp_path: Path) -> None:
    """What is held is put into systemd's store and taken out of it; what comes back from there is held again."""
    systemd = Systemd(tmp_path / "notify")
    try:
        with kept({"NOTIFY_SOCKET": str(systemd.path)}) as keeper:
            assert not keeper.told()["systemd"]
            keeper.do("hold('a', '1'); hold('b', '2'); hold('c', '3'); say('drop b')")
            systemd.take(4)
            keeper.process.kill()
            keeper.process.wait()
        assert systemd.stored.keys() == {"a", "c"}

        names = sorted(systemd.stored)
        listening = {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        # They must be 3 and 4 in the next one.
        inherited = [os.dup2(systemd.stored[name], 300 + index) for index, name in enumerate(names)]
        place = "; ".join(f"os.dup2({fd}, {3 + index})" for index, fd in enumerate(inherited))
        with kept(
            {"NOTIFY_SOCKET": str(systemd.path), **listening},
            before=[sys.executable, "-c", f"import os; {place}; {LISTENING}"],
            pass_fds=inherited,
        ) as keeper:
            assert keeper.told()["held"] == {"a": "1", "c": "3"}
            keeper.do("say('drop a')")
            systemd.take(1)
        assert systemd.stored.keys() == {"c"}
        for fd in inherited:
            os.close(fd)
    finally:
        systemd.close()
