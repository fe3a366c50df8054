"""Taking a userfaultfd from a running process leaves the process as it was, also when the taker is killed half-way."""

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.programs import SLEEPER_MODES, Progress
from tests.support.watched import wait_until
from wetink import syscalls
from wetink_agent import procfs
from wetink_agent.attach import take_userfaultfd
from wetink_agent.errors import NoSuchProcess, TrackingError, Untrackable
from wetink_agent.wp_async import WpAsync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

ATTACHMENTS = 40
ATTACHMENTS_UNDER_TIMERS = 3000
KILLS = 60
STOP_SECONDS_MAX = 0.005
PATIENCE_SECONDS = 60.0


def sleeper_arguments(mode: str, tmp_path: Path) -> tuple[str | int | Path, ...]:
    """Give the command line of a sleeper with its progress file."""
    return (mode, tmp_path / "progress", *((8,) if mode == "threads" else ()))


@pytest.mark.parametrize("mode", SLEEPER_MODES)
def test_target_goes_on_exactly_where_it_was(mode: str, tmp_path: Path) -> None:
    """Sleeps last as long as they should, calls give what they should, registers and signals are whole."""
    with programs.running("sleeper", *sleeper_arguments(mode, tmp_path)) as target:
        progress = Progress(target, tmp_path / "progress")
        for _ in range(ATTACHMENTS):
            os.close(take_userfaultfd(target.pid))
            time.sleep(0.003)
        progress.wait()

        assert target.alive(), target.errors
        assert target.terminate() == 0, target.errors


def test_interruption_that_the_kernel_forgets_is_asked_for_again() -> None:
    """A timer's signal that is on its way takes a PTRACE_INTERRUPT with it, here within some hundred attachments."""
    with programs.running("timers") as target:
        for _ in range(ATTACHMENTS_UNDER_TIMERS):
            os.close(take_userfaultfd(target.pid))


@pytest.mark.parametrize("mode", SLEEPER_MODES)
def test_target_is_whole_when_the_agent_is_killed_while_it_attaches(mode: str, tmp_path: Path) -> None:
    """SIGKILL at any instruction of the attach leaves no descriptor, no altered register or mask, no stopped thread."""
    pauses = random.Random(3)  # noqa: S311 - repeatable, not secret
    with programs.running("sleeper", *sleeper_arguments(mode, tmp_path)) as target:
        progress = Progress(target, tmp_path / "progress")
        for _ in range(KILLS):
            attacher = os.fork()
            if attacher == 0:
                while True:
                    os.close(take_userfaultfd(target.pid))
            time.sleep(0.001 + pauses.random() * 0.006)
            os.kill(attacher, signal.SIGKILL)
            os.waitpid(attacher, 0)
            assert target.alive(), target.errors
        progress.wait()

        assert userfaultfds(target.pid) == 0
        assert target.terminate() == 0, target.errors


@pytest.mark.parametrize("mode", ["nanosleep", "syscalls", "signals"])
def test_stub_alone_leads_back_when_every_step_of_the_tracer_is_its_last(mode: str, tmp_path: Path) -> None:
    """The same, not left to chance: the tracer ends itself before its n-th ptrace request, for every n there is."""
    with programs.running("sleeper", mode, tmp_path / "progress") as target:
        progress = Progress(target, tmp_path / "progress")
        last = 0
        for step in range(1, 200):
            attacher = os.fork()
            if attacher == 0:
                die_before_request(step)
                take_userfaultfd(target.pid)
                os._exit(0)
            _, status = os.waitpid(attacher, 0)
            progress.wait()
            assert userfaultfds(target.pid) == 0, step
            if os.WIFEXITED(status):
                break
            last = step

        assert last > 15, "the attach has more steps than that"
        assert target.terminate() == 0, target.errors


@pytest.mark.parametrize("mode", ["nanosleep", "busy"])
def test_stubs_lead_back_through_each_other_when_tracers_die_faster_than_the_target_runs(
    mode: str, tmp_path: Path
) -> None:
    """A target that is stopped, or gets no processor, is in the stub of one killed agent when the next one comes."""
    with programs.running("sleeper", mode, tmp_path / "progress") as target:
        progress = Progress(target, tmp_path / "progress")
        for step in range(1, 40):
            target.stop()
            statuses = [killed_before(step, target.pid) for _ in range(3)]
            target.cont()
            progress.wait()
            assert userfaultfds(target.pid) == 0, step
            if all(os.WIFEXITED(status) for status in statuses):
                break

        assert target.terminate() == 0, target.errors


def killed_before(step: int, pid: int) -> int:
    """Attach in a process that ends itself before its n-th request; how it ended."""
    attacher = os.fork()
    if attacher == 0:
        die_before_request(step)
        with contextlib.suppress(TrackingError):
            take_userfaultfd(pid)
        os._exit(0)
    return os.waitpid(attacher, 0)[1]


def test_signal_that_was_reported_to_a_tracer_that_dies_is_not_lost(tmp_path: Path) -> None:
    """The tracer ends itself when its first wait has returned, a hundred times, while signals pour in."""
    with programs.running("sleeper", "signals", tmp_path / "progress") as target:
        for _ in range(100):
            attacher = os.fork()
            if attacher == 0:
                die_before_request(3)
                take_userfaultfd(target.pid)
            os.waitpid(attacher, 0)
        Progress(target, tmp_path / "progress").wait()

        assert target.terminate() == 0, target.errors


def die_before_request(number: int) -> None:
    """Make this process kill itself when it is about to do its n-th request to the kernel about the target."""
    left = number

    def counted(call: object) -> object:
        def wrapper(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)  # type: ignore[operator]

        return wrapper

    for name in ("ptrace", "ptrace_regset", "ptrace_buffer", "pidfd_getfd"):
        setattr(syscalls, name, counted(getattr(syscalls, name)))


def test_target_is_stopped_for_less_than_five_milliseconds(tmp_path: Path) -> None:
    """All that attaching does, of which the stop is a part: ten times, however often others that run here are first."""
    until = time.monotonic() + PATIENCE_SECONDS
    with programs.running("sleeper", "syscalls", tmp_path / "progress") as target:
        took: list[float] = []
        while sum(seconds < STOP_SECONDS_MAX for seconds in took) < 10:
            assert time.monotonic() < until, statistics.quantiles(took, n=10)
            began = time.perf_counter()
            os.close(take_userfaultfd(target.pid))
            took.append(time.perf_counter() - began)


def test_stopped_target_is_attached_and_stays_stopped(tmp_path: Path) -> None:
    """A process under SIGSTOP can be attached, is stopped afterwards, and goes on at SIGCONT."""
    with programs.running("sleeper", "busy", tmp_path / "progress") as target:
        progress = Progress(target, tmp_path / "progress")
        target.stop()
        before = progress.count()

        os.close(take_userfaultfd(target.pid))

        time.sleep(0.1)
        assert progress.count() == before
        target.cont()
        progress.wait()
        assert target.terminate() == 0, target.errors


def test_target_whose_leader_has_exited_is_attached() -> None:
    """A process lives on in its other threads when its first has ended."""
    source = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: time.sleep(60)).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        target.stdout.readline()
        wait_until(lambda: procfs.stat(target.pid).state == "Z")
        try:
            os.close(take_userfaultfd(target.pid))
        finally:
            target.kill()


def test_nothing_is_left_in_the_target(tmp_path: Path) -> None:
    """After an attach and a harvest the vdso has its bytes back and no mapping, descriptor or tracer is there."""
    with programs.running("sleeper", "busy", tmp_path / "progress") as target:
        before = traces(target.pid)
        tracker = WpAsync(target.pid, take_userfaultfd(target.pid))
        assert traces(target.pid) == before
        tracker.harvest()
        tracker.close()

        assert traces(target.pid) == before
        flags = Path(f"/proc/{target.pid}/smaps").read_text(encoding="utf-8")
        assert not [line for line in flags.splitlines() if line.startswith("VmFlags") and " uw" in line]


def traces(pid: int) -> tuple[object, ...]:
    """Give what an attach could leave behind."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    start, end = (
        int(x, 16) for x in next(line for line in maps.splitlines() if "[vdso]" in line).split()[0].split("-")
    )
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        vdso = os.pread(memory.fileno(), end - start, start)
    kept = [line for line in status if line.startswith(("TracerPid", "SigBlk", "SigPnd", "Threads", "Seccomp"))]
    descriptors = sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir())
    return kept, descriptors, vdso, maps.count("\n")


def userfaultfds(pid: int) -> int:
    """Count a process's userfaultfd descriptors."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return sum("userfaultfd" in link for link in links)


def test_no_such_process() -> None:
    """A pid that nobody has is named, with what it may mean."""
    with pytest.raises(NoSuchProcess, match="there is no process 4194303: it has exited, or the pid is wrong"):
        take_userfaultfd(4194303)


def test_zombie() -> None:
    """A process that waits to be reaped has no memory any more."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NoSuchProcess):
            take_userfaultfd(child)
    finally:
        os.waitpid(child, 0)


def test_kernel_thread() -> None:
    """The first kernel thread has no memory of its own."""
    with pytest.raises(Untrackable, match="process 2 is a kernel thread"):
        take_userfaultfd(2)


def test_traced_target(tmp_path: Path) -> None:
    """A process under a debugger is refused, and the debugger is named."""
    with programs.running("sleeper", "nanosleep", tmp_path / "progress") as target:
        tracing = [sys.executable, "-c", TRACE, str(target.pid)]
        with subprocess.Popen(tracing, stdout=subprocess.PIPE) as tracer:
            try:
                assert tracer.stdout is not None
                tracer.stdout.readline()
                with pytest.raises(Untrackable, match=f"already traced by process {tracer.pid}"):
                    take_userfaultfd(target.pid)
            finally:
                tracer.kill()


TRACE = (
    "import sys, time\n"
    "from wetink import syscalls\n"
    "from wetink_agent.uapi.ptrace import PTRACE_SEIZE\n"
    "syscalls.ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0, 'seize')\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


def test_another_users_process_without_capability(tmp_path: Path) -> None:
    """Without rights over it a process is refused with the rights that would do."""
    with programs.running("sleeper", "nanosleep", tmp_path / "progress") as target:
        agent = subprocess.run(
            [sys.executable, "-c", ATTACH_AS_NOBODY, str(target.pid)], check=False, capture_output=True, text=True
        )

        assert agent.returncode == 0, agent.stderr
        assert "NotPermitted" in agent.stdout
        assert "CAP_SYS_PTRACE" in agent.stdout
        assert target.alive()


ATTACH_AS_NOBODY = (
    "import os, sys\n"
    "from wetink_agent.attach import take_userfaultfd\n"
    "os.setgid(65534); os.setuid(65534)\n"
    "try:\n"
    "    take_userfaultfd(int(sys.argv[1]))\n"
    "except Exception as error:\n"
    "    print(type(error).__name__, error)\n"
)


def test_target_of_another_user_gets_user_mode_only(tmp_path: Path) -> None:
    """A process without privilege may not have a full userfaultfd; the lesser one tracks it all the same."""
    with programs.running("sleeper", "read_pipe", tmp_path / "progress") as _:
        source = "import os,time\nos.setgid(65534)\nos.setuid(65534)\nprint('ready',flush=True)\ntime.sleep(60)\n"
        with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as target:
            assert target.stdout is not None
            target.stdout.readline()
            try:
                tracker = WpAsync(target.pid, take_userfaultfd(target.pid))
                assert tracker.harvest().populated_page_count > 100
                tracker.close()
            finally:
                target.kill()


def test_seccomp_filter_is_suspended_for_the_call() -> None:
    """A filter that kills for userfaultfd does not see ours."""
    with subprocess.Popen([sys.executable, "-c", SECCOMP], stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        try:
            assert target.stdout.readline() == b"ready\n"
            os.close(take_userfaultfd(target.pid))
            time.sleep(0.1)
            assert target.poll() is None
        finally:
            target.kill()


# A filter that kills the process for system call 323, userfaultfd, and allows all others.
SECCOMP = (
    "import ctypes, struct, time\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "code = struct.pack('HBBI' * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 323, 6, 0, 0, 0x80000000, 6, 0, 0, 0x7fff0000)\n"
    "buffer = ctypes.create_string_buffer(code)\n"
    "program = struct.pack('HxxxxxxQ', 4, ctypes.addressof(buffer))\n"
    "holder = ctypes.create_string_buffer(program)\n"
    "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
    "assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(holder)), 0, 0) == 0\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize("guard", ["strict", "leaderless"])
def test_target_whose_calls_are_watched_by_seccomp_is_attached_and_lives(guard: str) -> None:
    """Strict mode, and the filter of a thread that outlived its leader, do not see our calls; the target answers."""
    with programs.running("guarded", guard) as target:
        for _ in range(5):
            tracker = WpAsync(target.pid, take_userfaultfd(target.pid))
            assert tracker.harvest().populated_page_count > 10
            tracker.close()
            assert target.ask("") == "here"


def test_target_that_dispatches_its_system_calls_is_refused_and_lives() -> None:
    """A call of ours would be a SIGSYS of its own: one sentence names the way out, and it dispatches on."""
    with programs.running("guarded", "dispatch") as target:
        for _ in range(5):
            with pytest.raises(Untrackable, match=f"^process {target.pid} dispatches system calls itself.*handshake$"):
                take_userfaultfd(target.pid)
            assert target.ask("") == "here"
        assert "TracerPid:\t0" in Path(f"/proc/{target.pid}/status").read_text(encoding="utf-8")
