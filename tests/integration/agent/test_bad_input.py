"""What a person can do wrong with the agent: one clear sentence each, the right code, no traceback, nothing harmed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.support import programs
from tests.support.agent import HOST, running_agent, start_agent
from tests.support.collector import CollectorProcess, running_collector, start_collector
from tests.support.service import PATIENCE_SECONDS, start
from tests.support.watched import wait_until
from wetink import command_line
from wetink_agent import command, probe, soft_dirty
from wetink_client import Collector
from wetink_client.errors import NotFound, Refused, WetinkError

pytestmark = pytest.mark.needs("kernel", "root", "cc")

NOBODY = 65534
NO_SUCH_PID = 4194303

USES_USERFAULTFD = (
    "import mmap, os, time, numpy as np\n"
    "from wetink import syscalls\n"
    "from wetink_agent.uapi import userfaultfd as uf\n"
    "memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    "memory[0] = 1\n"
    "address = np.frombuffer(memory, dtype=np.uint8).ctypes.data\n"
    "uffd = syscalls.userfaultfd(os.O_NONBLOCK | uf.UFFD_USER_MODE_ONLY)\n"
    "api = uf.uffdio_api(api=uf.UFFD_API, features=uf.UFFD_FEATURE_WP_ASYNC)\n"
    "syscalls.ioctl(uffd, uf.UFFDIO_API, api, 'api')\n"
    "span = uf.uffdio_range(start=address, len=1 << 20)\n"
    "register = uf.uffdio_register(range=span, mode=uf.UFFDIO_REGISTER_MODE_WP)\n"
    "syscalls.ioctl(uffd, uf.UFFDIO_REGISTER, register, 'register')\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)
TRACES = (
    "import sys, time\n"
    "from wetink import syscalls\n"
    "from wetink_agent.uapi.ptrace import PTRACE_SEIZE\n"
    "syscalls.ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0, 'seize')\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


def run_without(capabilities: str, *options: str) -> tuple[int, str]:
    """Run an agent that should refuse, as root without some capabilities and without memory to lock."""
    without = ["prlimit", "--memlock=0", "setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]
    agent = [sys.executable, "-c", "from wetink_agent.command import main; main()"]
    done = subprocess.run(
        [*without, *agent, "--collector", "unix:/nonexistent/socket", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    return done.returncode, without_log(done.stderr)


def run_agent(*options: str, collector: str = "unix:/nonexistent/socket") -> tuple[int, str]:
    """Run an agent that should refuse; its exit code and what it said, log lines left out."""
    with start("wetink_agent.command", ["--collector", collector, "--host-id", HOST, *options]) as process:
        try:
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, without_log(said)


def without_log(said: str) -> str:
    """Leave out the lines of the log."""
    return "".join(line for line in said.splitlines(keepends=True) if not line.startswith("{"))


def is_one_sentence(said: str) -> bool:
    """Whether it is one line of the agent's, with no traceback."""
    return said.startswith("wetink-agent: ") and said.count("\n") == 1 and "Traceback" not in said


@pytest.fixture(scope="module")
def collector() -> Iterator[CollectorProcess]:
    """Give a collector."""
    with running_collector() as process:
        yield process


@pytest.fixture(scope="module")
def client(collector: CollectorProcess) -> Iterator[Collector]:
    """Give a client of a collector with an agent."""
    with running_agent(collector.address), Collector(collector.address) as client:
        yield client


@pytest.fixture
def target(tmp_path: Path) -> Iterator[programs.Program]:
    """Give an ordinary process."""
    with programs.running("sleeper", "nanosleep", tmp_path / "progress") as program:
        yield program


def refusal(client: Collector, pid: int) -> WetinkError:
    """Ask to track a process that cannot be; the error."""
    with pytest.raises(WetinkError) as caught:
        client.track(HOST, pid)
    assert "\n" not in str(caught.value)
    return caught.value


def test_no_such_process(client: Collector) -> None:
    """A pid nobody has is not found, whether the agent is told it or asked for it."""
    code, said = run_agent("--pid", str(NO_SUCH_PID))

    assert code == command_line.ExitCode.NOT_FOUND
    assert is_one_sentence(said), said
    assert f"there is no process {NO_SUCH_PID}" in said
    assert isinstance(refusal(client, NO_SUCH_PID), NotFound)


def test_kernel_thread(client: Collector) -> None:
    """A kernel thread has no memory of its own."""
    code, said = run_agent("--pid", "2")

    assert code == command_line.ExitCode.FAILURE
    assert is_one_sentence(said), said
    assert "process 2 is a kernel thread" in said
    error = refusal(client, 2)
    assert isinstance(error, Refused)
    assert "kernel thread" in str(error)


def test_process_of_another_user_without_capability() -> None:
    """The rights that would do are named, and the process is left alone."""
    # setpriv and not Popen's own `user`, for which Python forks: gRPC's threads do not bear that.
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with subprocess.Popen(["setpriv", *ids, "sleep", "600"]) as target:
        try:
            wait_until(lambda: Path(f"/proc/{target.pid}/cmdline").read_bytes().startswith(b"sleep"))
            code, said = run_without("-all", "--pid", str(target.pid))
            assert target.poll() is None
        finally:
            target.kill()

    assert code == command_line.ExitCode.FAILURE
    assert is_one_sentence(said), said
    assert "CAP_SYS_PTRACE" in said


def test_events_without_the_capability(target: programs.Program) -> None:
    """The capability is named, and the option that does without it."""
    code, said = run_without("-perfmon,-sys_admin", "--pid", str(target.pid), "--events")

    assert code == command_line.ExitCode.FAILURE
    assert is_one_sentence(said), said
    assert f"cannot stream the events of process {target.pid}: give the agent CAP_PERFMON" in said


def test_a_ring_that_is_over_the_locked_memory(target: programs.Program) -> None:
    """The size is named, and the three things that would do."""
    code, said = run_without("-ipc_lock", "--pid", str(target.pid), "--events", "--events-ring", "256MiB")

    assert code == command_line.ExitCode.FAILURE
    assert is_one_sentence(said), said
    assert "a ring of 262144 KiB for each CPU is over the memory that may be locked" in said


@pytest.mark.parametrize(
    "options, names",
    [
        (("--backend", "wp-magic"), "'wp-magic'"),
        (("--events", "--events-ring", "3MiB"), "'3MiB'"),
        (("--events", "--events-ring", "much"), "'much'"),
    ],
)
def test_a_choice_that_does_not_exist(options: tuple[str, ...], names: str) -> None:
    """A backend nobody knows, a ring that is no power of two: named, with what would do."""
    code, said = run_agent(*options)

    assert code == command_line.ExitCode.USAGE
    assert is_one_sentence(said), said
    assert names in said


def test_target_under_ptrace(client: Collector, target: programs.Program) -> None:
    """Its tracer is named."""
    with subprocess.Popen([sys.executable, "-c", TRACES, str(target.pid)], stdout=subprocess.PIPE) as tracer:
        try:
            assert tracer.stdout is not None
            tracer.stdout.readline()
            error = refusal(client, target.pid)
        finally:
            tracer.kill()

    assert isinstance(error, Refused)
    assert f"already traced by process {tracer.pid}" in str(error)


def test_target_that_uses_userfaultfd_itself(client: Collector) -> None:
    """Only one tracker can have a mapping: the place is named, and the target keeps its own."""
    with subprocess.Popen([sys.executable, "-c", USES_USERFAULTFD], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            error = refusal(client, process.pid)
            assert process.poll() is None
        finally:
            process.kill()

    assert isinstance(error, Refused)
    assert f"process {process.pid} uses userfaultfd itself at 0x" in str(error)


def test_kernel_without_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """What the kernel lacks is named, before anything is attached."""
    # The command sets logs up for its process, which is the tests' own here: they would go to a file that is closed.
    request.addfinalizer(structlog.reset_defaults)
    lacking = "it lacks UFFD_FEATURE_WP_ASYNC (Linux 6.7 and later have it)"
    monkeypatch.setattr(probe, "why_not_wp_async", lambda: lacking)
    monkeypatch.setattr(soft_dirty, "why_not_soft_dirty", lambda: "it has no soft-dirty bit")
    monkeypatch.setattr(sys, "argv", ["wetink-agent", "--pid", str(os.getppid())])

    with pytest.raises(SystemExit) as caught:
        command.main()

    assert caught.value.code == command_line.ExitCode.FAILURE
    assert capsys.readouterr().err == (
        f"wetink-agent: this kernel cannot track with wp-async: {lacking}; "
        "this kernel cannot track with soft-dirty: it has no soft-dirty bit\n"
    )


def test_collector_unreachable_then_there(tmp_path: Path, target: programs.Program) -> None:
    """The agent says once that it keeps the rounds, tracks on, and delivers every one when the collector comes."""
    listen = f"unix:{tmp_path}/collector.sock"
    agent = start_agent(listen, "--pid", str(target.pid))
    try:
        agent.wait_for_log("collector_unreachable")
        time.sleep(1)
        assert len(agent.events("collector_unreachable")) == 1
        process = CollectorProcess(start_collector(listen=listen), None)
        try:
            agent.wait_for_log("connected")
            with Collector(listen) as client:
                # Connected is said before the rounds that waited have come.
                while not client.targets():
                    time.sleep(0.05)
                answer = client.dirty(f"{HOST}/{target.pid}", barrier=True)
                assert answer.complete
                assert answer.target.round > 10
        finally:
            process.close()
    finally:
        agent.close()


@pytest.mark.parametrize(
    "options,said",
    [
        (("--interval", "soon"), "--interval 'soon' is no time"),
        (("--interval", "1ms"), "--interval '1ms' is no time from 10ms"),
        (("--interval-max", "1h"), "--interval-max '1h' is no time"),
        (("--interval-min", "2s"), "--interval-min 2s is longer than --interval-max 1s"),
        (("--agent-share", "2%"), "they need --interval-min and --interval-max"),
        (("--interval-max", "5s", "--target-share", "200%"), "--target-share '200%' is no share from over 0% to 100%"),
        (("--command", "("), "--command '(' is no regular expression"),
        (("--host-id", "a b"), "'a b' is no host id"),
        (("--collector", "nowhere"), "'nowhere' is no collector's address"),
        (("--backend", "magic"), "magic"),
        (("--pid", "one"), "--pid"),
        (("--nonsense",), "--nonsense"),
        (("--config", "/nonexistent.toml"), "config file /nonexistent.toml cannot be read"),
    ],
)
def test_usage(options: tuple[str, ...], said: str) -> None:
    """What cannot be meant is said, with exit code 2."""
    code, told = run_agent(*options)

    assert code == command_line.ExitCode.USAGE
    assert is_one_sentence(told), told
    assert said in told


@pytest.mark.parametrize(
    "text,said",
    [
        ("pid = [", "is not TOML"),
        ("pidd = 1", "unknown key 'pidd'"),
        ('pid = "5"', 'has pid = "5", which must be a whole number, or a list of them'),
        ("pid = [true]", "has pid = [true], which must be a whole number, or a list of them"),
        ("command = [5]", "has command = [5], which must be a text in quotes, or a list of them"),
        ("interval = true", "has interval = true, which must be a text in quotes"),
        ("host-id = 5", "has host-id = 5, which must be a text in quotes"),
        ("tree = 1", "has tree = 1, which must be true or false"),
    ],
)
def test_malformed_config(text: str, said: str, tmp_path: Path) -> None:
    """The file is named, and what is wrong in it."""
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")

    code, told = run_agent("--config", str(path))

    assert code == command_line.ExitCode.USAGE
    assert is_one_sentence(told), told
    assert str(path) in told
    assert said in told


@pytest.mark.parametrize(
    "text,said",
    [
        (f"pid = {NO_SUCH_PID}", f"there is no process {NO_SUCH_PID}"),
        (f"pid = [{NO_SUCH_PID}]", f"there is no process {NO_SUCH_PID}"),
        ('command = "^("', "--command '^(' is no regular expression"),
    ],
)
def test_config_with_one_value_for_what_may_be_given_again(text: str, said: str, tmp_path: Path) -> None:
    """It is taken for a list of one: a text is not taken apart into its letters."""
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")

    assert said in run_agent("--config", str(path))[1]


def test_second_agent_for_a_host(collector: CollectorProcess) -> None:
    """The one that is deposed ends with a sentence that says what to do."""
    first = start_agent(collector.address, "--host-id", "twice")
    try:
        first.wait_for_log("connected")
        with running_agent(collector.address, "--host-id", "twice"):
            assert first.process.wait(PATIENCE_SECONDS) == command_line.ExitCode.FAILURE
    finally:
        first.close()

    assert "wetink-agent: another agent has taken over host 'twice'" in first.log
    assert "Traceback" not in first.log


def test_agent_does_not_track_itself(collector: CollectorProcess, client: Collector) -> None:
    """Its own pid is refused."""
    del collector
    agents = [pid for pid in programs_running() if is_our_agent(pid)]

    assert any("cannot track itself" in str(refusal(client, pid)) for pid in agents)


def programs_running() -> list[int]:
    """Give every pid."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def is_our_agent(pid: int) -> bool:
    """Whether a process is an agent that this test run started."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return False
    return b"wetink_agent.command" in line and parent == os.getpid()


def test_logs_are_json_lines_off_a_terminal(collector: CollectorProcess) -> None:
    """Each line of the log is one object with an event and a time."""
    with running_agent(collector.address, "--host-id", "logs") as agent:
        pass

    lines = [json.loads(line) for line in agent.log.splitlines()]
    assert {"agent_started", "connected", "agent_stopped"} <= {line["event"] for line in lines}
    assert all(line["timestamp"] for line in lines)


def test_a_target_that_wp_sync_can_harm() -> None:
    """It is refused with what could happen and what to do instead; with consent it is tracked, and its events come."""
    with (
        programs.running("writer", "threads") as target,
        running_collector() as collector,
        running_agent(collector.address, "--backend", "wp-sync") as careful,
        Collector(collector.address) as client,
    ):
        with pytest.raises(Refused, match=f"process {target.pid} has .* threads: .*--accept-risk"):
            client.track(HOST, target.pid)
        assert len(careful.events("hazard")) > 3
        careful.close()
        with running_agent(collector.address, "--backend", "wp-sync", "--accept-risk"):
            info = client.track(HOST, target.pid)
            threads = set[int | None]()
            until = time.monotonic() + PATIENCE_SECONDS
            # Which of them writes between two rounds is the scheduler's choice.
            while len(threads) < 2 and time.monotonic() < until:
                client.dirty(info.name, barrier=True)
                threads |= {event.thread_id for batch in client.events(info.name) for event in batch.events}

    assert info.backend == "wp-sync"
    assert info.backend_reason.startswith("asked for")
    assert len(threads) > 1
