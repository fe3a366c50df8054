"""Programs that are not in Python offer their memory: by the C header, and unmodified ones under the library."""

import contextlib
import errno
import itertools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, truth
from tests.support.amounts import amount
from tests.support.offers import PATIENCE_SECONDS, Agent, Listener, agent, armed_mappings, listener
from tests.support.programs import Program
from tests.support.seccomp import NR_USERFAULTFD, UNDER_A_FILTER
from tests.support.watched import wait_until
from wetink_agent.preload import HEADER, LIBRARY
from wetink_agent.wp_async import WpAsync
from wetink_client.shadow import ShadowCopy

pytestmark = pytest.mark.needs("kernel", "root", "cc")

HEADER_LINES_MAX: Final = 150
STRICT: Final = ("-Wall", "-Wextra", "-pedantic", "-Werror", "-Wconversion", "-Wshadow")
LATE_MILLISECONDS: Final = 10_000
PATIENCE_MILLISECONDS: Final = 60_000
NOBODY: Final = 65534


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program that calls the header."""
    program = tmp_path_factory.mktemp("offers") / "offers"
    source = Path(__file__).parent.parent / "support/c/offers.c"
    subprocess.run(["cc", "-std=c99", *STRICT, f"-I{HEADER.parent}", "-o", program, source], check=True)
    return program


@pytest.fixture
def common() -> Iterator[Path]:
    """Make a directory that other users reach, as they do not reach those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def started(
    command: Sequence[str | Path | int], *, environment: Mapping[str, str] | None = None, user: int | None = None
) -> Iterator[Program]:
    """Start a program that says ready, or anything else, on a line of its own."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [str(word) for word in command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            user=user,
            group=user,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Program(process, errors, name=str(command[0]))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()


def preloaded(path: Path, **more: str) -> dict[str, str]:
    """Give the environment in which a program offers its memory, and waits for as long as a busy agent may take."""
    patience = {"WETINK_OFFER_MILLISECONDS": str(PATIENCE_MILLISECONDS)}
    return {"LD_PRELOAD": str(LIBRARY), "WETINK_OFFER_SOCKET": str(path), **patience, **more}


def userfaultfds(pid: int) -> int:
    """Count the userfaultfds that a process holds; others of its descriptors may come and go meanwhile."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += "userfaultfd" in str(link.readlink())
    return count


# The header.


def test_the_header_is_short() -> None:
    """Who includes it can read it first."""
    assert len(HEADER.read_text(encoding="ascii").splitlines()) < HEADER_LINES_MAX


@pytest.mark.parametrize("standard", ["c99", "c11", "c17", "gnu17"])
def test_the_header_is_clean_in_c(standard: str, tmp_path: Path) -> None:
    """Included first, it compiles without a warning in each standard from C99 on."""
    compile_header(["cc", f"-std={standard}", "-x", "c"], tmp_path)


@pytest.mark.needs("c++")
@pytest.mark.parametrize("standard", ["c++98", "c++11", "c++20"])
def test_the_header_is_clean_in_cpp(standard: str, tmp_path: Path) -> None:
    """The same file, as C++."""
    compile_header(["c++", f"-std={standard}", "-x", "c++"], tmp_path)


def compile_header(command: Sequence[str], directory: Path) -> None:
    """Compile a program that includes the header and calls it."""
    source = (
        '#include "wetink_offer.h"\n'
        'int main(void) { char said[9]; return wetink_offer("/", NULL, 0, 1, said, sizeof said); }\n'
    )
    done = subprocess.run(
        [*command, *STRICT, "-O2", f"-I{HEADER.parent}", "-", "-o", directory / "program"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "nobody"])
def test_a_c_program_offers_its_memory(user: int | None, offers: Path, common: Path) -> None:
    """One call and it is tracked: nobody traces it, and it holds no descriptor more than before."""
    program_path = shutil.copy(offers, common / "offers")
    with agent(common / "agent") as here:
        os.chown(here.path, NOBODY, -1)
        with started([program_path, here.path, PATIENCE_MILLISECONDS], user=user) as program:
            ready, result, _, _, left, said = program.read_line().split(maxsplit=5)
            assert (ready, result, left) == ("ready", "0", "0")
            assert said.startswith(f"here/{program.pid}@")
            assert armed_mappings(program.pid) > 3
            assert userfaultfds(program.pid) == 0
            assert "TracerPid:\t0" in Path(f"/proc/{program.pid}/status").read_text(encoding="utf-8")


def test_a_c_program_offers_parts_of_its_memory(offers: Path, tmp_path: Path) -> None:
    """Only what it names is registered, up to as many regions as an offer has room for."""
    with agent(tmp_path / "agent") as here, started([offers, here.path, PATIENCE_MILLISECONDS, 3, 64]) as program:
        assert program.read_line().split()[:2] == ["ready", "0"]
        rss = Path(f"/proc/{program.pid}/smaps").read_text(encoding="utf-8").split("VmFlags:")
        armed = [part for part, flags in itertools.pairwise(rss) if " uw" in flags.splitlines()[0]]
        sizes = [int(line.split()[1]) for part in armed for line in part.splitlines() if line.startswith("Size:")]
        assert sum(sizes) == 64 * 3 * 4


# What each kind of agent that is no agent gives, and in which time.
_HANGING: Final = "an agent that never accepts"
_FULL: Final = "an agent whose queue is full"
_SILENT: Final = "an agent that says nothing"
_DRIPPING: Final = "an agent that drips"


@pytest.mark.parametrize("kind", [_HANGING, _FULL, _SILENT, _DRIPPING])
def test_an_agent_that_hangs_costs_no_more_than_the_deadline(kind: str, offers: Path, tmp_path: Path) -> None:
    """Whatever does not happen at the other end, the program goes on when it has said it would."""
    with strange_agent(tmp_path / "agent", kind) as path, started([offers, path, 300]) as program:
        ready, result, number, took, left, _ = program.read_line().split(maxsplit=5)
        assert (ready, result, int(number), left) == ("ready", "-1", errno.ETIMEDOUT, "0")
        assert 250 <= int(took) < LATE_MILLISECONDS


@contextmanager
def strange_agent(path: Path, kind: str) -> Iterator[Path]:
    """Listen, and do what an agent should not."""
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as open_ones:
        listening.bind(str(path))
        listening.listen(0 if kind == _FULL else 8)
        if kind == _FULL:
            for _ in range(4):
                waiting = open_ones.enter_context(
                    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                )
                waiting.connect_ex(str(path))

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while not over.wait(0.05):
                    if kind == _DRIPPING:
                        with contextlib.suppress(OSError):
                            connection.send(b" ", socket.MSG_NOSIGNAL)

        thread = threading.Thread(target=serve, daemon=True)
        if kind in {_SILENT, _DRIPPING}:
            thread.start()
        try:
            yield path
        finally:
            over.set()


@pytest.mark.parametrize(
    "name,number,sentence",
    [
        ("absent", errno.ENOENT, "No such file or directory"),
        ("stale", errno.ECONNREFUSED, "Connection refused"),
        ("x" * 120, errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_no_agent_is_told_at_once(name: str, number: int, sentence: str, offers: Path, tmp_path: Path) -> None:
    """Where nobody listens the program hears so in its errno and in words."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    with started([offers, tmp_path / name, PATIENCE_MILLISECONDS]) as program:
        ready, result, told, took, left, said = program.read_line().split(maxsplit=5)
        assert (ready, result, int(told), left, said) == ("ready", "-1", number, "0", sentence)
        assert int(took) < LATE_MILLISECONDS


def test_a_refusal_is_told_in_the_agents_words(offers: Path, tmp_path: Path) -> None:
    """What the agent does not take it says why, and the program can say it on; so with what is too much to offer."""
    with started([offers, tmp_path / "agent", PATIENCE_MILLISECONDS, 1, 65]) as program:
        assert program.read_line().split()[1:3] == ["-1", str(errno.E2BIG)]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "agent"))
        listening.listen()
        for answer, said in (
            (b'{"error": "process 7 is not wanted"}\n', "process 7 is not wanted"),
            (b"", "the agent hung up"),
        ):
            with started([offers, tmp_path / "agent", PATIENCE_MILLISECONDS]) as program:
                connection, _ = listening.accept()
                with connection:
                    _, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
                    connection.sendall(answer)
                for descriptor in descriptors:
                    os.close(descriptor)
                line = program.read_line().split(maxsplit=5)
                assert (line[1], int(line[2]), line[4], line[5]) == ("-1", errno.EPROTO, "0", said)


# The library.


def shadow_copied(tracker: WpAsync, pid: int, seconds: float) -> tuple[int, list[truth.Difference]]:
    """Copy a process's memory by its dirty sets while it runs, freeze it, copy the rest, and compare every byte."""
    with ShadowCopy(pid) as copy:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            harvest = tracker.harvest()
            copy.apply(harvest.written, harvest.vanished)
            time.sleep(0.02)
        with programs.Stopped(pid):
            last = tracker.harvest()
            copy.apply(last.written, last.vanished)
            return truth.differences(pid, copy.pages)


@pytest.mark.needs("preload")
@pytest.mark.soak
@pytest.mark.parametrize("name", ["redis", "python", "writer"])
def test_an_unmodified_program_offers_its_memory_and_a_copy_is_identical(name: str, tmp_path: Path) -> None:
    """Started under the library it is tracked from before its main function on, and nothing it writes is missed."""
    with listener(tmp_path / "agent") as here, PROGRAMS[name](here, tmp_path) as pid:
        taken, tracker = here.taken()
        try:
            assert taken == pid
            wait_until(lambda: userfaultfds(pid) == 0)  # it lets go of its own when it has sent it
            page_count, differences = shadow_copied(tracker, pid, amount(gate=1.5, soak=30.0))
        finally:
            tracker.close()
        assert page_count > 500
        assert differences == []


@contextmanager
def redis(here: Listener, directory: Path) -> Iterator[int]:
    """Run redis-server under its benchmark."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis: apt-get install redis-server redis-tools")
    at = directory / "redis"
    command = f"redis-server --port 0 --unixsocket {at} --save '' --appendonly no --dir {directory}"
    with started(shlex.split(command), environment=preloaded(here.path)) as server:
        until = time.monotonic() + PATIENCE_SECONDS
        while not at.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        load = ["redis-benchmark", "-s", str(at), "-t", "set", "-n", "100000000", "-r", "20000", "-d", "200", "-q"]
        with subprocess.Popen(load, stdout=subprocess.DEVNULL) as benchmark:
            try:
                yield server.pid
            finally:
                benchmark.kill()


@contextmanager
def python(here: Listener, directory: Path) -> Iterator[int]:
    """Run a Python program that makes and forgets objects."""
    del directory  # it needs none
    source = (
        "import random\nkept = {}\nwhile True:\n"
        "    kept[random.randrange(20000)] = bytes([random.randrange(256)]) * random.randrange(1, 4000)\n"
    )
    with started([sys.executable, "-c", source], environment=preloaded(here.path)) as program:
        yield program.pid


@contextmanager
def writer(here: Listener, directory: Path) -> Iterator[int]:
    """Run a C program that maps, unmaps, forks and writes in every pattern there is."""
    command: list[str | Path | int] = [programs.build("writer"), "malloc_churn", 5]
    with started(command, environment=preloaded(here.path, TMPDIR=str(directory))) as program:
        program.read_line()
        yield program.pid


PROGRAMS: Final[Mapping[str, Callable[[Listener, Path], contextlib.AbstractContextManager[int]]]] = {
    "redis": redis,
    "python": python,
    "writer": writer,
}


@pytest.mark.needs("preload")
def test_what_a_program_execs_offers_again(tmp_path: Path) -> None:
    """The environment goes with execve(2), so that the shell, its child and what it becomes are three offers."""
    with (
        listener(tmp_path / "agent") as here,
        started(["sh", "-c", "sleep 60 & exec sleep 61"], environment=preloaded(here.path)) as shell,
    ):
        commands: dict[int, list[bytes]] = {}
        for _ in range(3):
            pid, tracker = here.taken()
            tracker.close()
            commands.setdefault(pid, []).append(Path(f"/proc/{pid}/cmdline").read_bytes())
        assert sorted(map(len, commands.values())) == [1, 2]
        assert len(commands[shell.pid]) == 2


@pytest.mark.needs("preload")
def test_what_was_tracked_before_execve_is_tracked_again_by_its_next_offer(tmp_path: Path) -> None:
    """The agent does not take the second offer for one of the memory that it tracks, which has gone."""
    command = ["sh", "-c", "sleep 0.3; exec sleep 60"]
    with (
        agent(tmp_path / "agent", "--interval", "60s") as here,
        started(command, environment=preloaded(here.path)) as program,
    ):
        until = time.monotonic() + PATIENCE_SECONDS
        while Path(f"/proc/{program.pid}/cmdline").read_bytes() != b"sleep\x0060\0" or not armed_mappings(program.pid):
            assert time.monotonic() < until
            time.sleep(0.01)
        # It is armed before that is logged.
        while len(attached := here.logged("target_attached", f"/{program.pid}@")) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(attached) == 2


def test_a_discovered_process_that_calls_execve_while_it_is_attached_is_tried_again_at_once(
    tmp_path: Path,
) -> None:
    """It is not taken for one that cannot be tracked, which would be looked at again in half a minute."""
    odd = shutil.copy(programs.build("odd"), tmp_path / "odd")
    with (
        agent(tmp_path / "agent", "--command", f"^{odd} ") as here,
        started([odd, "execs", 300, 4]) as program,
    ):
        assert program.read_line() == "ready"
        until = time.monotonic() + PATIENCE_SECONDS
        while not armed_mappings(program.pid):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert here.logged("target_refused", str(program.pid)) == []


FORKING: Final = "import os, sys, time\nchild = os.fork()\nif child:\n    print(child, flush=True)\ntime.sleep(60)\n"


@pytest.mark.needs("preload")
def test_children_of_fork_offer_where_they_are_told_to(tmp_path: Path) -> None:
    """By itself the library offers once a program; with WETINK_OFFER_FORKS=1 each child offers its own memory."""
    with listener(tmp_path / "agent") as here:
        for more in ({}, {"WETINK_OFFER_FORKS": "1"}):
            command = [sys.executable, "-c", FORKING]
            with started(command, environment=preloaded(here.path, **more)) as program:
                taken = [here.taken()]
                child = int(program.read_line())
                if more:
                    taken.append(here.taken())
                assert [pid for pid, _ in taken] == [program.pid, child][: 1 + len(more)]
                for _, tracker in taken:
                    assert tracker.harvest().populated_page_count > 100
                    tracker.close()
        assert here.has_nobody()


@pytest.mark.needs("preload")
def test_a_program_without_an_agent_does_what_it_always_does(tmp_path: Path) -> None:
    """Its output and exit code are its own; that it is not tracked is one line on standard error, or nothing to say."""
    command = ["sh", "-c", "echo out; exit 7"]
    lone = {"LD_PRELOAD": str(LIBRARY)}
    for environment, lines in ((preloaded(tmp_path / "absent"), 1), (lone, 0)):
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (7, "out\n")
        assert done.stderr.count("\n") == lines
        assert "is not tracked: No such file or directory" in done.stderr or not lines


@pytest.mark.needs("preload")
def test_a_program_whose_agent_hangs_begins_when_it_was_told(tmp_path: Path) -> None:
    """WETINK_OFFER_MILLISECONDS is all that an agent which never answers can cost."""
    with strange_agent(tmp_path / "agent", _SILENT) as path:
        began = time.monotonic()
        environment = {**os.environ, **preloaded(path, WETINK_OFFER_MILLISECONDS="200")}
        subprocess.run(["true"], env=environment, check=True, capture_output=True)
        assert 0.15 < time.monotonic() - began < LATE_MILLISECONDS / 1000


@pytest.mark.needs("preload")
def test_a_program_finds_what_it_would_find_without_the_library(offers: Path, tmp_path: Path) -> None:
    """The descriptors that are open when its main function begins are those that it was given."""
    seen = []
    with agent(tmp_path / "agent") as here:
        for environment in ({}, preloaded(here.path)):
            with started([offers, "-", 0], environment=environment) as program:
                program.read_line()
                links = [str(link.readlink()) for link in sorted(Path(f"/proc/{program.pid}/fd").iterdir())]
                seen.append([link.split(":")[0].split("/")[1:2] for link in links])
                assert bool(armed_mappings(program.pid)) == bool(environment)
    assert seen[0] == seen[1]


@pytest.mark.needs("preload")
@pytest.mark.skipif(not Path("/dev/userfaultfd").exists(), reason="there is no /dev/userfaultfd (Linux 6.1)")
def test_an_unmodified_program_under_a_filter_offers_by_the_device(tmp_path: Path) -> None:
    """Where a seccomp filter forbids the call, as in a container, /dev/userfaultfd gives what it would."""
    command: list[str | Path | int] = [sys.executable, "-c", UNDER_A_FILTER, NR_USERFAULTFD, "/bin/sleep", 60]
    with listener(tmp_path / "agent") as here, started(command, environment=preloaded(here.path)) as program:
        for _ in range(2):  # the interpreter, then under the filter what it becomes
            pid, tracker = here.taken()
            assert pid == program.pid
            with contextlib.closing(tracker):
                pass
        assert b"sleep" in Path(f"/proc/{program.pid}/cmdline").read_bytes()


@pytest.mark.needs("preload")
@pytest.mark.parametrize("kind", ["static", "set-user-ID"])
def test_what_the_loader_does_not_preload_into_runs_untracked(kind: str, offers: Path, common: Path) -> None:
    """A static program has no loader, and for a set-user-ID one it ignores the library: both run as ever."""
    program_path = common / "program"
    if kind == "static":
        source = "int main(void) { return 5; }"
        subprocess.run(["cc", "-static", "-x", "c", "-", "-o", program_path], input=source, text=True, check=True)
        command: list[str | Path | int] = [program_path]
    else:
        shutil.copy(offers, program_path)
        os.chown(program_path, NOBODY, NOBODY)
        program_path.chmod(0o4755)
        command = [program_path, "-", 0]
    with listener(common / "agent") as here:
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **preloaded(here.path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (5 if kind == "static" else 0, b"")
        time.sleep(0.1)
        assert here.has_nobody()


@pytest.mark.needs("preload")
def test_the_command_says_where_they_are() -> None:
    """``wetink-agent preload`` prints the library's path for LD_PRELOAD, and with --header the header's."""
    for options, expected in (((), LIBRARY), (("--header",), HEADER)):
        source = "from wetink_agent.command import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", source, "preload", *options], check=True, capture_output=True, text=True
        )
        assert done.stdout == f"{expected}\n"


def test_who_offers_while_it_is_tracked_is_told_its_name_again(offers: Path, tmp_path: Path) -> None:
    """Offering twice, by the library and by itself, is no mistake."""
    if not LIBRARY.exists():
        pytest.skip("needs preload")
    with agent(tmp_path / "agent") as here:
        assert isinstance(here, Agent)
        with started([offers, here.path, PATIENCE_MILLISECONDS], environment=preloaded(here.path)) as program:
            assert program.read_line().split()[5].startswith(f"here/{program.pid}@")
