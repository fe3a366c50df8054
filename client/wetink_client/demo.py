"""The main job on a real process, from start to end: ``make demo``.

Starts a collector and an agent, runs a workload (redis-server under load where it is installed, else a writer of
our own), tracks it, moves its memory by dirty sets alone, freezes it, and compares every byte.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from wetink.command_line import Failure, run
from wetink.pages import PAGE_SIZE
from wetink_client.collector import Collector
from wetink_client.errors import WetinkError
from wetink_client.precopy import NotMoved, PreCopyRound, go_on, precopy
from wetink_client.shadow import ShadowCopy
from wetink_client.tables import bytes_text
from wetink_client.verify import differences

START_SECONDS_MAX: Final = 20.0
"""How long each part may take to be ready."""

HOST: Final = "demo"

# Writes pages at random over 96 MiB, three quarters of the time to a tenth of them.
_WRITER: Final = """
import random, time
memory = bytearray(96 << 20)
for page in range(0, len(memory), 4096):
    memory[page] = 1
print("ready", flush=True)
while True:
    for _ in range(200):
        span = len(memory) // 10 if random.random() < 0.75 else len(memory)
        memory[random.randrange(span)] = random.randrange(256)
    time.sleep(0.005)
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """The process that is moved."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A process that was started for the demonstration, and where it logs."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def last_words(self) -> str:
        """The last line of its log: why it ended, or what it waits for."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it has said nothing")


@dataclass(frozen=True, slots=True)
class Result:
    """What the move came to. Downtime is from the freeze to the end of the last copy.

    Stop-and-copy was not done: its time is that of the first round's copy, which had as much to carry.
    """

    workload: str
    target: str
    rounds: int
    pages_compared: int
    pages_identical: int
    sent_bytes: int
    stop_and_copy_bytes: int
    downtime_seconds: float
    stop_and_copy_seconds_estimated: float


def main() -> None:
    """Run the demonstration."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(demo)
    run(app, "make demo")


def demo(
    *, as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of tables.")] = False
) -> None:
    """Move the memory of a running process by its dirty sets, and compare every byte with the frozen process."""
    if os.geteuid() != 0:
        message = (
            "write-protecting another process's memory needs root (or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH): "
            "run it again with `sudo make demo`"
        )
        raise Failure(message)
    console = Console(quiet=as_json, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="wetink-demo-") as directory, contextlib.ExitStack() as started:
        try:
            result = _move(Path(directory), console, started, as_json=as_json)
        except (WetinkError, NotMoved) as error:
            raise Failure(str(error)) from error
    if result.pages_identical != result.pages_compared:
        message = f"{result.pages_compared - result.pages_identical} pages differ: this is a bug, please report it"
        raise Failure(message)


def _move(directory: Path, console: Console, started: contextlib.ExitStack, *, as_json: bool) -> Result:
    address = f"unix:{directory}/collector.sock"
    workload = started.enter_context(_workload(directory))
    console.print(f"workload: {workload.name}, pid {workload.pid}")
    parts = (
        _start(started, directory, "wetink-collector", "--listen", address, "--data", str(directory / "data")),
        _start(started, directory, "wetink-agent", "--collector", address, "--host-id", HOST, "--interval", "250ms"),
    )
    collector = started.enter_context(Collector(address))
    _wait_for_agent(collector, parts)
    target = collector.track(HOST, workload.pid).name
    console.print(f"target:   {target}, tracked by the agent, asked for over gRPC\n")
    _show_live(collector, target, console)

    copy = started.enter_context(ShadowCopy(workload.pid))
    rounds = []
    for done in precopy(collector, target, copy):
        rounds.append(done)
        if as_json:
            print(json.dumps(asdict(done)), flush=True)  # noqa: T201
        else:
            _show_round(done, console)
    page_count, found = differences(workload.pid, copy.pages)
    wrong = len({difference.page for difference in found})
    last = rounds[-1]
    result = Result(
        workload=workload.name,
        target=target,
        rounds=len(rounds),
        pages_compared=page_count,
        pages_identical=page_count - wrong,
        sent_bytes=sum(done.copied_bytes for done in rounds),
        stop_and_copy_bytes=page_count * PAGE_SIZE,
        downtime_seconds=last.answer_seconds + last.copy_seconds,
        stop_and_copy_seconds_estimated=rounds[0].copy_seconds,
    )
    go_on(collector, target)
    if as_json:
        print(json.dumps(asdict(result)), flush=True)  # noqa: T201
    else:
        _show_result(rounds, result, console)
    return result


def _show_live(collector: Collector, target: str, console: Console) -> None:
    """Print a few live rounds, as any number of readers may watch them beside the move."""
    console.print("live rounds:")
    for number, counts in enumerate(collector.watch(target)):
        status = counts.targets[target]
        console.print(
            f"  round {status.round:>3}: {status.written_page_count:>7,} pages written, "
            f"{status.vanished_page_count:>6,} vanished, {status.populated_page_count:>7,} populated"
        )
        if number == 4:  # noqa: PLR2004 - the first answer and four rounds are enough to see it live
            break
    console.print("\nmoving:")


def _show_round(done: PreCopyRound, console: Console) -> None:
    what = "frozen, last" if done.frozen else "running"
    console.print(
        f"  round {done.round:>3} ({what}): {done.written_page_count:>7,} pages, "
        f"{bytes_text(done.copied_bytes):>10}, {(done.answer_seconds + done.copy_seconds) * 1e3:8.1f} ms"
    )


def _show_result(rounds: list[PreCopyRound], result: Result, console: Console) -> None:
    table = Table(title=f"\nmoved {result.target} by its dirty sets alone")
    for title in ("round", "pages", "bytes", "vanished", "answer", "copy"):
        table.add_column(title, justify="right")
    for done in rounds:
        table.add_row(
            f"{done.round}{' (frozen)' if done.frozen else ''}",
            f"{done.written_page_count:,}",
            bytes_text(done.copied_bytes),
            f"{done.vanished_page_count:,}",
            f"{done.answer_seconds * 1e3:.1f} ms",
            f"{done.copy_seconds * 1e3:.1f} ms",
        )
    console.print(table)
    console.print(
        f"downtime:   {result.downtime_seconds * 1e3:.1f} ms "
        f"(stop-and-copy, estimated from the first copy: {result.stop_and_copy_seconds_estimated * 1e3:.1f} ms)"
    )
    ratio = result.sent_bytes / max(result.stop_and_copy_bytes, 1)
    console.print(
        f"total sent: {bytes_text(result.sent_bytes)} "
        f"(stop-and-copy: {bytes_text(result.stop_and_copy_bytes)}, so {ratio:.2f} times as much)"
    )
    console.print(f"{result.pages_identical:,} of {result.pages_compared:,} pages identical")


@contextlib.contextmanager
def _workload(directory: Path) -> Iterator[Workload]:
    """Run what is to be moved, and stop it in the end."""
    with contextlib.ExitStack() as started:
        if shutil.which("redis-server") and shutil.which("redis-benchmark"):
            socket = directory / "redis.sock"
            server = _spawn(
                started,
                directory / "redis.log",
                ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(directory)],
            )
            _wait_until(socket.exists, "redis-server made no socket", server)
            load = ["redis-benchmark", "-s", str(socket), "-t", "set", "-d", "512", "-q"]
            subprocess.run([*load, "-r", "120000", "-n", "200000", "-P", "16"], check=True, capture_output=True)  # noqa: S603
            _spawn(started, directory / "load.log", [*load, "-r", "2000", "-n", "1000000000", "-c", "1"])
            yield Workload("redis-server under redis-benchmark SET", server.process.pid)
        else:
            writer = _spawn(started, directory / "writer.log", [sys.executable, "-c", _WRITER])
            _wait_until(writer.log.read_bytes, "the writer did not start", writer)
            yield Workload("a writer over 96 MiB (redis-server is not installed)", writer.process.pid)


def _start(started: contextlib.ExitStack, directory: Path, name: str, *arguments: str) -> _Part:
    """Start one of our own commands beside this interpreter."""
    return _spawn(started, directory / f"{name}.log", [str(Path(sys.executable).with_name(name)), *arguments])


def _spawn(started: contextlib.ExitStack, log: Path, command: list[str]) -> _Part:
    # What the caller has exported for a collector or an agent of their own means another one.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WETINK_", "OTEL_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=own
        )
    started.callback(_end, process)
    return _Part(process, log)


def _end(process: "subprocess.Popen[bytes]") -> None:
    # A stopped process does not see SIGTERM before it goes on.
    for number in (signal.SIGCONT, signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_agent(collector: Collector, parts: Sequence[_Part]) -> None:
    def connected() -> bool:
        with contextlib.suppress(WetinkError):
            return any(host.connected for host in collector.hosts())
        return False

    _wait_until(connected, "the agent did not connect to the collector", *parts)


def _wait_until(reached: Callable[[], object], otherwise: str, *parts: _Part) -> None:
    """Wait until the parts that are needed for it have reached something.

    Raises:
        Failure: One of them has ended, or it takes too long; the last words of the one that ended, or of the last, say
            why.
    """
    until = time.monotonic() + START_SECONDS_MAX
    while not reached():
        for part in parts:
            if (code := part.process.poll()) is not None:
                message = f"{otherwise}: {part.log.stem} ended with exit code {code}: {part.last_words}"
                raise Failure(message)
        if time.monotonic() > until:
            message = f"{otherwise} within {START_SECONDS_MAX:g} s; {parts[-1].log.stem}: {parts[-1].last_words}"
            raise Failure(message)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
