"""Small real programs as targets: built on demand from ``c/``, started, stopped and cleaned up.

The sources are in ``tests/support/c`` and ``tests/bench/c``; what each program does is said at its head. No tracker is
started here, and nothing is compared.
"""

import contextlib
import hashlib
import os
import select
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, Self

SOURCE_DIRECTORIES: Final = (
    Path(__file__).resolve().parent / "c",
    Path(__file__).resolve().parent.parent / "bench" / "c",
)
COMPILE: Final = ("cc", "-std=gnu11", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror")

# A program that populates 1 GiB on two busy CPUs takes seconds; one that has said nothing for this long hangs.
DEADLINE_SECONDS: Final = 60.0
# A thread that waits for its vfork child stops only when that ends.
STOP_SECONDS: Final = 60.0

WRITER_PATTERNS: Final = (
    "sequential",
    "random",
    "zipf",
    "sparse64g",
    "threads",
    "brief_threads",
    "malloc_churn",
    "munmap_same",
    "mapfixed",
    "mremap",
    "dontneed_pages",
    "dontneed_2m",
    "fork_storm",
    "thp",
    "nothp",
    "file_cow",
    "file_private",
    "stack",
    "read_syscall",
    "mprotect",
    "madv_free",
    "mlock",
    "shared_own",
    "shared_anon",
    "vm_writev",
    "mixed",
)
SLEEPER_MODES: Final = (
    "nanosleep",
    "poll",
    "epoll",
    "futex",
    "read_pipe",
    "accept",
    "busy",
    "syscalls",
    "signals",
    "threads",
)


class ProgramError(Exception):
    """A program did not build, did not start, ended too early or did not answer in time."""


class Program:
    """A running program; its first line on standard output said that it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], *, name: str) -> None:
        """Take over a process whose standard streams are pipes, unbuffered."""
        self.name = name
        self.process = process
        self.pid = process.pid
        self.ready: tuple[str, ...] = ()
        self._errors = errors
        self._unread = b""

    @property
    def errors(self) -> str:
        """What the program has written to standard error so far."""
        # pread leaves the offset alone, which the program shares.
        size_bytes = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size_bytes, 0).decode(errors="replace")

    def read_line(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> str:
        """Return the next line of standard output, without its end.

        Raises:
            ProgramError: None came in time, or none will come any more.
        """
        assert self.process.stdout is not None
        output = self.process.stdout.fileno()
        until = time.monotonic() + deadline_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, until - time.monotonic())):
                    message = f"said nothing for {deadline_seconds:.0f} s"
                    raise self.error(message)
                piece = os.read(output, 65536)
                if not piece:
                    message = f"ended with {self._exit_code()}"
                    raise self.error(message)
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def has_said(self, *, wait_seconds: float) -> bool:
        """Whether there is something to read, or no more will come; waits so long for it."""
        assert self.process.stdout is not None
        return bool(self._unread) or bool(select.select([self.process.stdout], [], [], wait_seconds)[0])

    def ask(self, command: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> str:
        """Write one line to standard input and return the line that answers it."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        return self.read_line(deadline_seconds=deadline_seconds)

    def alive(self) -> bool:
        """Whether the program still runs."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Freeze the program and its children; see ``stop``."""
        stop(self.pid)

    def cont(self) -> None:
        """Let a stopped program run on; see ``cont``."""
        cont(self.pid)

    def terminate(self, *, deadline_seconds: float = DEADLINE_SECONDS) -> int:
        """Send SIGTERM and return the exit code, negative for a signal, as ``subprocess`` has it."""
        self.process.terminate()
        try:
            return self.process.wait(deadline_seconds)
        except subprocess.TimeoutExpired as error:
            message = f"did not end within {deadline_seconds:.0f} s of SIGTERM"
            raise self.error(message) from error

    def error(self, what: str) -> ProgramError:
        """Return an error that says who, what, and what the program itself has said about it."""
        return ProgramError(f"{self.name} (pid {self.pid}) {what}. Standard error: {self.errors.strip() or 'empty'}")

    def _exit_code(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"exit code {self.process.wait(DEADLINE_SECONDS)}"
        return "standard output closed"


class Progress:
    """The iteration count that ``sleeper`` keeps in the file it is given."""

    def __init__(self, program: Program, path: Path) -> None:
        """Read the file at each look; it need not exist yet."""
        self.program = program
        self.path = path

    def count(self) -> int:
        """Return the count now; 0 before the program has made the file."""
        return self._field(0)

    def interruption_count(self) -> int:
        """Return how often a call was interrupted in a way that its manual allows."""
        return self._field(1)

    def late_seconds_max(self) -> float:
        """Return the longest time by which a turn came late."""
        return self._field(2) / 1e9

    def _field(self, index: int) -> int:
        with contextlib.suppress(FileNotFoundError):
            return int.from_bytes(self.path.read_bytes()[8 * index : 8 * index + 8], sys.byteorder)
        return 0

    def wait(self, *, more: int = 1, deadline_seconds: float = DEADLINE_SECONDS) -> int:
        """Return the count once it has grown by so many.

        Raises:
            ProgramError: It has not grown in time, or the program has ended.
        """
        first = self.count()
        until = time.monotonic() + deadline_seconds
        while (count := self.count()) < first + more:
            if not self.program.alive():
                message = f"ended with exit code {self.program.process.returncode}"
                raise self.program.error(message)
            if time.monotonic() > until:
                message = f"went from {first} only to {count} in {deadline_seconds:.0f} s"
                raise self.program.error(message)
            time.sleep(0.001)
        return count


def build(name: str, *options: str) -> Path:
    """Return the path of a compiled program; compile it where its source or the command is new.

    Several processes may do this at once: each compiles for itself, and the last one's file stays.

    Args:
        name: Of the source, without its ending.
        options: For the compiler, besides those that all get.

    Raises:
        ProgramError: No such source, or the compiler refused it.
    """
    source = _source(name)
    key = hashlib.sha256(" ".join((*COMPILE, *options)).encode() + b"\0" + source.read_bytes()).hexdigest()[:16]
    directory = build_directory()
    program = directory / f"{name}-{key}"
    if program.exists():
        return program
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        result = Path(scratch) / name
        done = subprocess.run(
            [*COMPILE, *options, "-o", result, source],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            message = f"{source} does not compile:\n{done.stderr}"
            raise ProgramError(message)
        result.replace(program)
    return program


@contextlib.contextmanager
def running(
    name: str,
    *arguments: str | int | Path,
    environment: Mapping[str, str] | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> Iterator[Program]:
    """Start a program, wait until it is ready, and kill it and its children at the end.

    Args:
        name: A source file's name, without its suffix.
        arguments: The command line after the program's name.
        environment: Added to this process's own.
        deadline_seconds: How long it may take until its first line, which must begin with "ready".

    Raises:
        ProgramError: It did not build, ended or was not ready in time.
    """
    command = [str(build(name)), *map(str, arguments)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        ) as process,
    ):
        program = Program(process, errors, name=" ".join([name, *command[1:]]))
        try:
            line = program.read_line(deadline_seconds=deadline_seconds)
            program.ready = tuple(line.split())
            if program.ready[:1] != ("ready",):
                message = f"{program.name} said {line!r} instead of ready"
                raise ProgramError(message)
            yield program
        finally:
            # The group first: the pid names it as long as its leader is not reaped.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()


def stop(pid: int, *, deadline_seconds: float = STOP_SECONDS) -> None:
    """Freeze a process, then its descendants: SIGSTOP, and wait until every thread is in state T.

    The process goes first: a thread that waits for its vfork child can stop only when that child has ended. Its
    descendants follow because they may write memory that it shares with them.

    Raises:
        ProcessLookupError: The process is gone.
        TimeoutError: A thread still runs.
    """
    until = time.monotonic() + deadline_seconds
    os.kill(pid, signal.SIGSTOP)
    while not _all_stopped(pid):
        if time.monotonic() > until:
            message = f"process {pid} has not stopped: {sorted(_states(pid).items())}"
            raise TimeoutError(message)
        time.sleep(0.0005)
    for child in _children(pid):
        with contextlib.suppress(ProcessLookupError):
            stop(child, deadline_seconds=max(0.0, until - time.monotonic()))


def cont(pid: int) -> None:
    """Let a stopped process and its descendants run on.

    Raises:
        ProcessLookupError: The process is gone.
    """
    for child in _children(pid):
        with contextlib.suppress(ProcessLookupError):
            cont(child)
    os.kill(pid, signal.SIGCONT)


class Stopped(contextlib.AbstractContextManager["Stopped"]):
    """A stretch of a test in which a process and its descendants are frozen."""

    def __init__(self, pid: int) -> None:
        """Name the process; it runs until the context is entered."""
        self.pid = pid

    def __enter__(self) -> Self:
        """Freeze it."""
        stop(self.pid)
        return self

    def __exit__(self, *_: object) -> None:
        """Let it run on, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            cont(self.pid)


def build_directory() -> Path:
    """Give where programs are built, which is the same for all tests of a user."""
    directory = Path(tempfile.gettempdir()) / f"wetink-tests-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        message = f"{directory} belongs to somebody else"
        raise ProgramError(message)
    return directory


def _source(name: str) -> Path:
    for directory in SOURCE_DIRECTORIES:
        source = directory / f"{name}.c"
        if source.exists():
            return source
    message = f"no {name}.c in {' or '.join(map(str, SOURCE_DIRECTORIES))}"
    raise ProgramError(message)


def _all_stopped(pid: int) -> bool:
    states = _states(pid)
    if not states:
        message = f"process {pid} is gone"
        raise ProcessLookupError(message)
    # Threads that have ended and are not reaped do not run either.
    return set(states.values()) <= set("TZX")


def _states(pid: int) -> dict[int, str]:
    states = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                states[int(task.name)] = _fields(task / "stat")[0]
    return states


def _children(pid: int) -> list[int]:
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if int(_fields(entry / "stat")[1]) == pid:
                    children.append(int(entry.name))
    return children


def _fields(stat: Path) -> list[str]:
    """Return the fields after the name, which may itself hold spaces and brackets: state, parent, ..."""
    return stat.read_text().rpartition(")")[2].split()
