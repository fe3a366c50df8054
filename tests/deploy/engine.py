"""A Docker engine of the tests' own: its socket, its data and its processes end with it.

Nothing of an engine that already runs on the machine is seen or touched. There is no bridge, so that no rule of the
firewall is needed: containers have the host's network or none.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The repository."""

START_SECONDS_MAX: Final = 60.0
END_SECONDS_MAX: Final = 30.0

KEEP: Final = "WETINK_DOCKER"
"""The environment variable with a directory that keeps images for the next run; without it, nothing stays."""


class CommandFailed(AssertionError):
    """A command ended with another code than 0. The sentence has what it said."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine."""

    directory: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What its clients need to find it. The builder is the one that needs no plugin."""
        return {**os.environ, "DOCKER_HOST": f"unix://{self.directory}/docker.sock", "DOCKER_BUILDKIT": "0"}

    def docker(self, *arguments: str | Path, deadline_seconds: float = 60.0) -> str:
        """Run the client; what it printed."""
        return run(["docker", *map(str, arguments)], self.environment, deadline_seconds=deadline_seconds)

    def logs(self, container: str) -> str:
        """Give what a container's program has written to its output and to its errors."""
        command = ["docker", "logs", container]
        return subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout

    def volume(self, name: str) -> Path:
        """Give where a volume's files are on the host."""
        return Path(self.docker("volume", "inspect", "--format", "{{.Mountpoint}}", name).strip())

    def pid(self, container: str) -> int:
        """Give a container's first process, as the host numbers it."""
        return int(self.docker("inspect", "--format", "{{.State.Pid}}", container))


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, *, deadline_seconds: float = 60.0) -> str:
    """Run a command to its end; what it printed.

    Raises:
        CommandFailed: It ended with another code than 0.
    """
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=deadline_seconds
    )
    if done.returncode != 0:
        said = "\n".join([*done.stdout.splitlines()[-30:], *done.stderr.splitlines()[-30:]])
        message = f"{' '.join(command)} ended with {done.returncode}:\n{said}"
        raise CommandFailed(message)
    return done.stdout


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    """Start an engine; in the end every container of it is removed, and the engine stopped.

    Raises:
        CommandFailed: It did not start.
    """
    kept = os.environ.get(KEEP)
    directory = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="wetink-docker-"))
    directory.mkdir(exist_ok=True)
    engine = Engine(directory)
    try:
        _mount_cgroups()
        with _daemon(engine):
            yield engine
    finally:
        # Not with rmtree, should a mount of a container be left: nothing but this engine's own files is to go.
        if not kept:
            run(["rm", "-rf", "--one-file-system", str(directory)])


@contextlib.contextmanager
def _daemon(engine: Engine) -> Iterator[None]:
    directory = engine.directory
    options = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    (directory / "pid").unlink(missing_ok=True)
    with (
        (directory / "dockerd.log").open("wb") as log,
        subprocess.Popen(
            [
                "dockerd",
                *(f"--{name}={directory / file}" for name, file in options.items()),
                f"--host=unix://{directory}/docker.sock",
                "--bridge=none",
                "--iptables=false",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_until_ready(engine, process)
            try:
                yield
            finally:
                _remove_containers(engine)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
            _unmount_below(directory)


def _wait_until_ready(engine: Engine, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            engine.docker("version")
        except CommandFailed as error:
            if process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
                continue
            log = (engine.directory / "dockerd.log").read_text(encoding="utf-8", errors="replace")
            message = f"dockerd is not ready: {error}\n{log[-3000:]}"
            raise CommandFailed(message) from error
        return


def _remove_containers(engine: Engine) -> None:
    if containers := engine.docker("ps", "--all", "--quiet").split():
        engine.docker("rm", "--force", "--volumes", *containers)


def _mount_cgroups() -> None:
    """See to it that containers can have cgroups: where no init system runs, nobody has mounted them."""
    if not any(Path("/sys/fs/cgroup").iterdir()) and (program := shutil.which("cgroupfs-mount")):
        run([program])


def _unmount_below(directory: Path) -> None:
    """Take away the mounts that an engine leaves behind: its own data directory, and a network namespace."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in sorted(mounts, reverse=True):
        if Path(mount).is_relative_to(directory):
            run(["umount", "--lazy", mount])
