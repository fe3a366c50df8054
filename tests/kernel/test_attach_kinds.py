"""Attaching to processes of every kind: each is tracked, or refused in one sentence, and none is harmed."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.descriptors import own_descriptors
from tests.support.programs import Program
from wetink import syscalls
from wetink_agent import procfs
from wetink_agent.attach import STOP_SECONDS_MAX, take_userfaultfd
from wetink_agent.errors import NoSuchProcess, TargetReplaced, TrackingError, Untrackable
from wetink_agent.wp_async import WpAsync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

NOBODY: Final = 65534
PATIENCE_SECONDS: Final = 60.0
REQUESTS: Final = ("ptrace", "ptrace_regset", "ptrace_buffer", "pidfd_getfd")


@pytest.fixture(scope="module")
def odd() -> Iterator[Path]:
    """Give a copy of the odd program that other users reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(shutil.copy(programs.build("odd"), name))


@contextmanager
def answering(command: Sequence[str | Path | int], *, user: int | None = None) -> Iterator[Program]:
    """Start a program, perhaps by others that stay its parents, that says ready and answers; gives what answers."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [str(word) for word in command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            user=user,
            group=user,
            start_new_session=True,
        ) as process,
    ):
        try:
            program = Program(process, errors, name=" ".join(map(str, command)))
            assert program.read_line() == "ready", program.errors
            program.pid = last_of_line(process.pid)
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def last_of_line(pid: int) -> int:
    """Give the only child of the only child, and so on."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        (pid,) = map(int, children)
    return pid


def is_tracked_and_whole(program: Program) -> None:
    """Attach, harvest, let go, and look whether it is as before and goes on."""
    before = traces(program.pid)
    tracker = WpAsync(program.pid, take_userfaultfd(program.pid))
    try:
        assert traces(program.pid) == before
        assert tracker.harvest().populated_page_count > 5
        assert program.ask("") == "here"
        assert tracker.harvest().written
    finally:
        tracker.close()
    assert program.ask("") == "here"


def is_refused_and_whole(program: Program, kind: type[TrackingError], sentence: str) -> None:
    """Be refused, with one sentence, and look whether it is as before and goes on."""
    before = traces(program.pid)
    for _ in range(3):
        with pytest.raises(kind, match=sentence) as caught:
            take_userfaultfd(program.pid)
        assert "\n" not in str(caught.value)
        assert str(program.pid) in str(caught.value)
    assert traces(program.pid) == before
    assert program.ask("") == "here"


def traces(pid: int) -> tuple[object, ...]:
    """Give what an attach could leave behind."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    kept = [line for line in status if line.startswith(("TracerPid", "SigBlk", "SigPnd", "Threads", "Seccomp"))]
    return kept, sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir())


# Other users, namespaces and rights.


@pytest.mark.parametrize(
    "namespaces",
    [
        ("--pid", "--fork"),
        ("--pid", "--fork", "--mount-proc"),
        ("--mount",),
        ("--user",),
        ("--user", "--map-root-user"),
        ("--user", "--map-root-user", "--pid", "--fork", "--mount", "--ipc", "--net", "--uts", "--cgroup"),
    ],
    ids=" ".join,
)
def test_other_namespaces(namespaces: Sequence[str], odd: Path) -> None:
    """A process in namespaces of its own, also as their first process, is one like any other."""
    with answering(["unshare", *namespaces, odd, "plain"]) as program:
        inside = Path(f"/proc/{program.pid}/status").read_text(encoding="utf-8")
        assert ("--fork" in namespaces) == (re.search(r"^NSpid:\t\d+\t1$", inside, re.MULTILINE) is not None)
        is_tracked_and_whole(program)


def test_a_process_of_another_user(odd: Path) -> None:
    """It is tracked with the lesser userfaultfd that it may have."""
    with answering([odd, "plain"], user=NOBODY) as program:
        is_tracked_and_whole(program)


def test_an_undumpable_process(odd: Path) -> None:
    """The agent's rights are enough for one that nobody may dump."""
    with answering([odd, "undumpable"]) as program:
        assert Path(f"/proc/{program.pid}").stat().st_uid == 0
        is_tracked_and_whole(program)
    with answering([odd, "undumpable"], user=NOBODY) as program:
        is_tracked_and_whole(program)


def test_an_undumpable_process_of_the_agents_own_user_without_rights(odd: Path) -> None:
    """Who runs as its user and still may not is told what is in the way, and not to run as its user."""
    with answering([odd, "undumpable"], user=NOBODY) as program:
        source = (
            "import os, sys\n"
            "from wetink_agent.attach import take_userfaultfd\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try:\n    take_userfaultfd(int(sys.argv[1]))\n"
            "except Exception as error:\n    print(type(error).__name__, error)\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", source, str(program.pid)], check=True, capture_output=True, text=True
        ).stdout
        assert said.startswith(f"NotPermitted not permitted to attach to process {program.pid} of the agent's own user")
        assert "PR_SET_DUMPABLE" in said
        assert "CAP_SYS_PTRACE" in said
        assert program.ask("") == "here"


# What has no memory of its own, or not the layout that attaching needs.


def test_every_kernel_thread() -> None:
    """None of them is touched."""
    kernel_threads = [pid for pid in procfs.pids() if is_kernel_thread(pid)]
    assert kernel_threads
    refused = 0
    for pid in kernel_threads[:50]:
        with contextlib.suppress(NoSuchProcess):  # the kernel ends some of them now and then
            with pytest.raises(Untrackable, match=f"^process {pid} is a kernel thread and has no memory"):
                take_userfaultfd(pid)
            refused += 1
    assert refused


def is_kernel_thread(pid: int) -> bool:
    """Whether it is one; no where it has gone meanwhile."""
    try:
        return procfs.stat(pid).is_kernel_thread
    except NoSuchProcess:
        return False


def test_oneself() -> None:
    """The agent does not try to borrow the thread that it runs on, nor another of its own."""
    for run in (lambda work: work(), in_thread):
        with pytest.raises(Untrackable, match=f"^process {os.getpid()} is this agent"):
            run(lambda: take_userfaultfd(os.getpid()))


def in_thread(work: Callable[[], object]) -> None:
    """Run something in a thread of its own."""
    errors: list[Exception] = []

    def body() -> None:
        try:
            work()
        except TrackingError as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    raise errors[0]


@pytest.fixture(scope="module")
def thirty_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Assemble a 32-bit program: it needs no library, so that no other package is needed to build it."""
    program = tmp_path_factory.mktemp("thirty_two") / "program"
    source = Path(__file__).parent.parent / "support/c/thirty_two.S"
    subprocess.run(["cc", "-m32", "-nostdlib", "-static", "-no-pie", "-o", program, source], check=True)
    try:
        subprocess.run([program], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION): {error.strerror}")
    return program


def test_a_32_bit_process(thirty_two: Path) -> None:
    """It is refused by its kind, and the system call that it was stopped in goes on."""
    with answering([thirty_two]) as program:
        is_refused_and_whole(program, Untrackable, "is not a 64-bit x86 process: only those can be attached$")


def test_a_process_without_a_vdso(odd: Path) -> None:
    """It has no room for what attaching needs, and is told the way that needs none."""
    with answering([odd, "novdso"]) as program:
        assert "[vdso]" not in Path(f"/proc/{program.pid}/maps").read_text(encoding="utf-8")
        assert len(set(procfs.layout(program.pid))) > 1
        is_refused_and_whole(program, Untrackable, "has unmapped its vdso.* let it use the handshake$")


def test_a_process_without_a_vsyscall_page(monkeypatch: pytest.MonkeyPatch, odd: Path) -> None:
    """Where the kernel maps none (vsyscall=none, or a kernel without it), nothing is different."""
    with answering([odd, "plain"]) as program:
        maps = procfs.read_maps(program.pid)
        read_maps = procfs.read_maps
        monkeypatch.setattr(
            procfs,
            "read_maps",
            lambda pid: b"".join(re.findall(rb"^.*(?<!\[vsyscall\])\n", read_maps(pid), re.MULTILINE)),
        )
        assert procfs.read_maps(program.pid).count(b"\n") == maps.count(b"\n") - maps.count(b"[vsyscall]")
        is_tracked_and_whole(program)


# What does not run, or does not stay.


@contextmanager
def frozen_cgroup(version: int) -> Iterator[tuple[Path, Callable[[bool], None]]]:
    """Make a cgroup of that version; gives its file of processes, and what freezes and thaws it."""
    root = Path("/sys/fs/cgroup")
    for parent in (root / "freezer",) if version == 1 else (root / "unified", root):
        if (parent / "cgroup.procs").exists():
            break
    else:
        pytest.skip(f"there is no freezer of cgroup version {version} here")
    group = parent / f"wetink-kinds-{os.getpid()}"
    group.mkdir()
    name, words = ("freezer.state", ("THAWED", "FROZEN")) if version == 1 else ("cgroup.freeze", ("0", "1"))

    def freeze(is_frozen: bool) -> None:  # noqa: FBT001 - it is what it sets
        (group / name).write_text(words[is_frozen], encoding="ascii")

    try:
        yield group / "cgroup.procs", freeze
    finally:
        freeze(False)  # noqa: FBT003 - as above
        until = time.monotonic() + PATIENCE_SECONDS
        while (group / "cgroup.procs").read_text(encoding="ascii") and time.monotonic() < until:
            time.sleep(0.01)
        group.rmdir()


@pytest.mark.parametrize("version", [1, 2])
def test_a_process_in_a_frozen_cgroup(version: int, odd: Path) -> None:
    """It is refused at once, since no thread of it would stop; thawed, it is tracked."""
    with frozen_cgroup(version) as (members, freeze), answering([odd, "plain"]) as program:
        members.write_text(str(program.pid), encoding="ascii")
        freeze(True)  # noqa: FBT003 - it is what it sets
        until = time.monotonic() + PATIENCE_SECONDS
        while not procfs.is_cgroup_frozen(program.pid):
            assert time.monotonic() < until
            time.sleep(0.01)
        began = time.monotonic()
        before = traces(program.pid)
        with pytest.raises(
            Untrackable, match=f"^process {program.pid} is frozen by its cgroup.* thaw it and try again$"
        ):
            take_userfaultfd(program.pid)
        assert time.monotonic() - began < STOP_SECONDS_MAX - 1
        assert traces(program.pid) == before
        freeze(False)  # noqa: FBT003 - as above
        assert program.ask("") == "here"
        is_tracked_and_whole(program)


def test_a_process_that_dies_at_any_step_of_being_attached(monkeypatch: pytest.MonkeyPatch, odd: Path) -> None:
    """SIGKILL before the n-th request to the kernel, for every n there is: there is no such process, and no more."""
    descriptors, threads = own_descriptors(), own_threads()
    step, was_attached = 0, False
    while not was_attached:
        step += 1
        assert step < 200
        with answering([odd, "plain"]) as program:
            with monkeypatch.context() as patch:
                before_request(patch, step, partial(os.kill, program.pid, signal.SIGKILL))
                with contextlib.suppress(NoSuchProcess):
                    os.close(take_userfaultfd(program.pid))
            was_attached = program.alive()
    assert step > 15
    assert own_descriptors() == descriptors
    assert own_threads() <= threads


def own_threads() -> set[threading.Thread]:
    """Give the threads of this process; those that other tests have left behind may end."""
    return set(threading.enumerate())


def before_request(patch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do something when the n-th request about the target is about to be made."""
    left = number

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                act()
            return call(*arguments)

        return wrapper

    for name in REQUESTS:
        patch.setattr(syscalls, name, counted(getattr(syscalls, name)))


@pytest.mark.parametrize("mode", ["execs", "threads"])
def test_a_process_that_calls_execve_while_it_is_attached(mode: str, odd: Path) -> None:
    """It is attached in the memory that it has then, or has none of it left; and comes through as it would."""
    count = attached = replaced = 0
    with subprocess.Popen([odd, mode, "400", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            os.set_blocking(process.stdout.fileno(), False)
            until = time.monotonic() + 60
            while not (said := process.stdout.read()):
                assert time.monotonic() < until
                assert process.poll() is None
                count += 1
                try:
                    os.close(take_userfaultfd(process.pid))
                    attached += 1
                except TargetReplaced:
                    replaced += 1
            assert said == b"ready\n"
            assert attached > 3, (count, replaced)
            os.set_blocking(process.stdout.fileno(), True)
            process.stdin.write(b"\n")
            assert process.stdout.read(5) == b"here\n"
            assert traces(process.pid)[1] == ["0", "1", "2"]
        finally:
            process.kill()


@pytest.mark.parametrize("prefix", [(), ("setarch", "-R")], ids=["random addresses", "the same addresses"])
def test_what_was_learned_of_a_memory_is_not_used_on_the_next(
    prefix: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """execve(2) between the look at the vdso and the stop: the stub goes where the new memory has room for it."""
    vdso_range, looks = procfs.vdso_range, 0

    def out_of_date(pid: int) -> tuple[int, int]:
        nonlocal looks
        looks += 1
        found = vdso_range(pid)
        if looks == 1:
            assert program.ask("exec") == "again"
        return found

    with answering([*prefix, sys.executable, "-c", EXECS]) as program:
        monkeypatch.setattr(procfs, "vdso_range", out_of_date)
        os.close(take_userfaultfd(program.pid))
        assert looks == 2
        assert program.ask("") == "here"


EXECS: Final = (
    "import os, sys\n"
    "print('ready' if len(sys.argv) == 1 else 'again', flush=True)\n"
    "while line := os.read(0, 100):\n"
    "    if line == b'exec\\n': os.execv(sys.executable, [*sys.orig_argv[:3], 'again'])\n"
    "    print('here', flush=True)\n"
)


def test_a_debugger_that_comes_first_is_named_whenever_it_came(odd: Path) -> None:
    """Also one that seizes the target between our look and our own seizing: EPERM there has this reason."""
    source = (
        "import sys, time\n"
        "from wetink import syscalls\n"
        "from wetink_agent.uapi.ptrace import PTRACE_SEIZE\n"
        "syscalls.ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0, 'seize')\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with answering([odd, "plain"]) as program, pytest.MonkeyPatch.context() as patch:
        tracers: list[subprocess.Popen[bytes]] = []

        def begin() -> None:
            tracers.append(subprocess.Popen([sys.executable, "-c", source, str(program.pid)], stdout=subprocess.PIPE))
            assert tracers[0].stdout is not None
            tracers[0].stdout.readline()

        before_request(patch, 1, begin)
        try:
            with pytest.raises(Untrackable, match=f"^process {program.pid} is already traced by process") as caught:
                take_userfaultfd(program.pid)
            assert f" {tracers[0].pid}: detach that" in str(caught.value)
        finally:
            for tracer in tracers:
                tracer.kill()
                tracer.communicate()
        assert program.ask("") == "here"
        is_tracked_and_whole(program)


def test_not_permitted_is_not_said_of_what_has_exited(odd: Path) -> None:
    """A zombie gives EPERM as well, and is told for what it is."""
    with answering([odd, "plain"]) as program, pytest.MonkeyPatch.context() as patch:

        def end() -> None:
            os.kill(program.pid, signal.SIGKILL)
            os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)

        before_request(patch, 1, end)
        with pytest.raises(NoSuchProcess):
            take_userfaultfd(program.pid)
