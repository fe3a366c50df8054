"""Programs that others wrote, each under a load that is usual for it, as targets.

Each is started in a directory of its own, listens nowhere but there or on the loopback, and is gone with all its
children afterwards.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parent / "load"
READY_SECONDS_MAX: Final = 60.0
STRESSORS: Final = (
    *("--vm", "1", "--vm-bytes", "16M", "--madvise", "1", "--mremap", "1", "--mremap-bytes", "8M", "--brk", "1"),
    *("--stack", "1", "--mmap", "1", "--mmap-bytes", "8M", "--mmapfork", "1", "--fork", "1"),
    *("--memfd", "1", "--memfd-bytes", "16M", "--aio", "1"),
)
"""What the design asks for, all at once."""

_SMALL: Final = (f"--as={768 << 20}", f"--data={128 << 20}", f"--stack={16 << 20}")
"""Some stressors take what they can get."""


@contextmanager
def redis(directory: Path) -> Iterator[int]:
    """Run redis-server under redis-benchmark; gives its pid."""
    path = directory / "redis.sock"
    server = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    load = ["redis-benchmark", "-s", str(path), "-t", "set,lpush,hset", "-r", "20000", "-d", "200", "-c", "10", "-l"]
    with _process(server, directory) as pid:
        ask = ["redis-cli", "-s", str(path), "ping"]
        _wait_for(lambda: subprocess.run(ask, capture_output=True, check=False).stdout == b"PONG\n")
        with _process(load, directory):
            yield pid


@contextmanager
def postgres(_: Path) -> Iterator[int]:
    """Run postgres under pgbench; gives the pid of its first process. It refuses to be root."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres")
        with _postgres(directory) as pid:
            yield pid


@contextmanager
def _postgres(directory: Path) -> Iterator[int]:
    programs = postgres_programs()
    assert programs is not None
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    data = directory / "data"
    _run([str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", user, "--no-sync"], directory, user)
    settings = f"listen_addresses= unix_socket_directories={directory} shared_buffers=16MB fsync=off"
    options = [word for setting in settings.split() for word in ("-c", setting)]
    with _process([str(programs / "postgres"), "-D", str(data), *options], directory, user) as pid:
        bench = [str(programs / "pgbench"), "-h", str(directory), "-U", user, "postgres"]
        ask = [str(programs / "pg_isready"), "-q", "-h", str(directory)]
        _wait_for(lambda: subprocess.run(ask, check=False).returncode == 0)
        _run([*bench, "-i", "-q", "-s", "1"], directory, user)
        with _process([*bench, "-c", "4", "-T", "600", "-n"], directory, user):
            yield pid


@contextmanager
def nginx(directory: Path) -> Iterator[int]:
    """Run nginx under wrk; gives the pid of its first process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (directory / "index.html").write_text("wet ink " * 500, encoding="ascii")
    configuration = directory / "nginx.conf"
    places = "".join(f"{kind}_temp_path {directory}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    configuration.write_text(
        f"user root; daemon off; worker_processes 2; pid {directory}/pid; error_log {directory}/error.log;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log {directory}/access.log; gzip on; {places}\n"
        f"server {{ listen 127.0.0.1:{port}; root {directory}; }} }}\n",
        encoding="ascii",
    )
    with _process(["nginx", "-c", str(configuration), "-p", str(directory)], directory) as pid:
        _wait_for(lambda: _listens(port))
        with _process(
            ["wrk", "-t", "1", "-c", "8", "-d", "600", "-H", "Accept-Encoding: gzip", f"http://127.0.0.1:{port}/"],
            directory,
        ):
            yield pid


@contextmanager
def jvm(directory: Path) -> Iterator[int]:
    """Run a Java program with a heap of 64 MiB."""
    with _process(["java", "-Xmx64m", "-XX:+UseG1GC", str(SOURCES / "Churn.java")], directory, says_ready=True) as pid:
        yield pid


@contextmanager
def node(directory: Path) -> Iterator[int]:
    """Run a JavaScript program."""
    command = ["node", "--max-old-space-size=64", str(SOURCES / "churn.js")]
    with _process(command, directory, says_ready=True) as pid:
        yield pid


@contextmanager
def python(directory: Path) -> Iterator[int]:
    """Run a Python program that uses numpy."""
    with _process([sys.executable, str(SOURCES / "churn.py")], directory, says_ready=True) as pid:
        yield pid


@contextmanager
def stress_ng(directory: Path) -> Iterator[int]:
    """Run stress-ng with all its stressors at once; gives the pid of its first process."""
    command = ["stress-ng", *STRESSORS, "--timeout", "600", "--temp-path", str(directory), "--quiet"]
    with _process(["prlimit", *_SMALL, "nice", "-n", "15", *command], directory) as pid:
        yield pid


Application = Callable[[Path], "contextlib.AbstractContextManager[int]"]
"""Starts a program and its load in a directory that is there; gives the pid of the program's first process."""

APPLICATIONS: Final[Mapping[str, Application]] = {
    "redis": redis,
    "postgres": postgres,
    "nginx": nginx,
    "java": jvm,
    "node": node,
    "python": python,
    "stress-ng": stress_ng,
}
"""By the need of each; python needs none."""


def postgres_programs() -> Path | None:
    """Give the directory of the newest postgres, where there is one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def _process(
    command: Sequence[str],
    directory: Path,
    user: str | None = None,
    *,
    says_ready: bool = False,
) -> Iterator[int]:
    """Run a program in a session of its own, and kill all of it afterwards."""
    with (
        (directory / f"{Path(command[0]).name}.out").open("w+b") as output,
        subprocess.Popen(
            # Whatever happens to the tests, the program does not outlive them.
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            start_new_session=True,
        ) as process,
    ):
        try:
            if says_ready:
                _wait_for(lambda: Path(output.name).read_bytes().startswith(b"ready") or process.poll() is not None)
            assert process.poll() is None, Path(output.name).read_text(encoding="utf-8")
            yield process.pid
        finally:
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Give the children of a process, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, task.read_text(encoding="ascii").split()):
                found += [child, *descendants(child)]
    return found


def _run(command: Sequence[str], directory: Path, user: str) -> None:
    subprocess.run(
        command,
        cwd=directory,
        user=user,
        group=pwd.getpwnam(user).pw_gid,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + READY_SECONDS_MAX
    while not holds():
        assert time.monotonic() < until, "it does not come up"
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
