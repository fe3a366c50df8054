"""``wetink-agent doctor`` against what happens when one tries: real processes, restricted in real ways.

In each row doctor looks with some rights at some process, and then it is attached with the same rights, and harvested.
Doctor's verdict is how that ends, and what is missing is the thing that the row took away.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import programs
from tests.support.programs import Program
from tests.support.seccomp import NR_KEYCTL, NR_USERFAULTFD, UNDER_A_FILTER
from tests.support.victim import victim
from tests.support.watched import wait_until
from wetink_agent import procfs

pytestmark = pytest.mark.needs("kernel", "root", "cc")

AGENTS_USER: Final = 65533
OTHERS_USER: Final = 65534

DOCTOR: Final = "import sys; from wetink_agent.command import main; sys.argv[1:1] = ['doctor']; main()"
LOOKS_AND_TRIES: Final = (
    "import json, sys\n"
    "from wetink_agent import doctor, doctor_target\n"
    "from wetink_agent.attach import take_userfaultfd\n"
    "from wetink_agent.errors import TrackingError\n"
    "from wetink_agent.wp_async import WpAsync\n"
    "pid = int(sys.argv[1])\n"
    "print(*doctor.lines([*doctor.host(), *doctor_target.target(pid)], pid, as_json=True), sep='\\n')\n"
    "try:\n"
    "    tracker = WpAsync(pid, take_userfaultfd(pid))\n"
    "    tracker.harvest()\n"
    "except (TrackingError, OSError) as error:\n"
    "    sys.exit(f'refused: {error}')\n"
)

Target = Callable[[], AbstractContextManager[int]]


@contextmanager
def odd(mode: str = "plain", *, user: int | None = None, before: Sequence[str] = ()) -> Iterator[int]:
    """Run the odd program, of a user, under another program; its pid."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as errors:
        Path(directory).chmod(0o755)
        command = [*before, shutil.copy(programs.build("odd"), directory), mode]
        if user is not None:
            command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
        with subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            try:
                assert Program(process, errors, name="odd").read_line() == "ready"
                yield process.pid
            finally:
                process.kill()


def filtered(number: int) -> Target:
    """Run it under a seccomp filter that refuses a system call."""
    return lambda: odd(before=[sys.executable, "-c", UNDER_A_FILTER, str(number)])


@contextmanager
def full() -> Iterator[int]:
    """Run one that has as many descriptors as it may have."""
    with odd() as pid:
        subprocess.run(["prlimit", "--pid", str(pid), "--nofile=3"], check=True)
        yield pid


@contextmanager
def traced() -> Iterator[int]:
    """Run one that a debugger has seized."""
    source = (
        "import ctypes, sys, time\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0\n"
        "print('seized', flush=True); time.sleep(3600)\n"
    )
    with (
        odd() as pid,
        subprocess.Popen([sys.executable, "-c", source, str(pid)], stdout=subprocess.PIPE) as debugger,
    ):
        try:
            assert debugger.stdout is not None
            assert debugger.stdout.readline() == b"seized\n"
            yield pid
        finally:
            debugger.kill()


@contextmanager
def zombie() -> Iterator[int]:
    """Give a process that has exited and is not reaped."""
    process = subprocess.Popen(["true"])
    wait_until(lambda: procfs.stat(process.pid).state == "Z")
    yield process.pid
    process.wait()


@contextmanager
def with_userfaultfd() -> Iterator[int]:
    """Run one that uses userfaultfd itself."""
    with victim() as process:
        process.do(
            "import fcntl, struct\n"
            "global own; own = checked(libc.syscall(323, 0))\n"
            # UFFDIO_API with PAGEFAULT_FLAG_WP, WP_UNPOPULATED and WP_ASYNC; UFFDIO_REGISTER for write-protection.
            "fcntl.ioctl(own, 0xc018aa3f, struct.pack('QQQ', 0xaa, 0xa001, 0))\n"
            "fcntl.ioctl(own, 0xc020aa00, struct.pack('QQQQ', mmap(4), 4 * PAGE, 2, 0))"
        )
        yield process.pid


@contextmanager
def kernel_thread() -> Iterator[int]:
    """Give a thread of the kernel."""
    found = (pid for pid in procfs.pids() if pid != os.getpid() and procfs.stat(pid).is_kernel_thread)
    pid = next(found, None)
    if pid is None:
        pytest.skip("no thread of the kernel is seen from here")
    yield pid


@contextmanager
def thirty_two() -> Iterator[int]:
    """Give a file of the right kind to run: that doctor reads it is all that this needs."""
    source = Path(__file__).parent.parent / "support/c/thirty_two.S"
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "program"
        subprocess.run(["cc", "-m32", "-nostdlib", "-static", "-no-pie", "-o", program, source], check=True)
        try:
            process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            pytest.skip(f"this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION): {error.strerror}")
        with process:
            try:
                yield process.pid
            finally:
                process.kill()


@contextmanager
def frozen() -> Iterator[int]:
    """Run one whose cgroup is frozen."""
    root = Path("/sys/fs/cgroup")
    parent = next((one for one in (root / "unified", root) if (one / "cgroup.procs").exists()), None)
    if parent is None:
        pytest.skip("there is no freezer of cgroup version 2 here")
    group = parent / f"wetink-doctor-{os.getpid()}"
    group.mkdir()
    try:
        with odd() as pid:
            (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
            (group / "cgroup.freeze").write_text("1", encoding="ascii")
            wait_until(lambda: procfs.is_cgroup_frozen(pid))
            try:
                yield pid
            finally:
                (group / "cgroup.freeze").write_text("0", encoding="ascii")
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(encoding="ascii"))
        group.rmdir()


@dataclass(frozen=True)
class Row:
    """A process, the rights of who looks, and what is missing: nothing where it can be tracked.

    ``capabilities`` None is root with all of them. ``refused_call`` is what a filter over the agent refuses.
    """

    name: str
    target: Target
    missing: tuple[str, ...] = ()
    capabilities: tuple[str, ...] | None = None
    refused_call: int | None = None
    change: str = ""


BOTH: Final = ("sys_ptrace", "dac_read_search")
ROWS: Final = (
    Row("root", odd),
    Row("own-user", lambda: odd(user=AGENTS_USER), capabilities=()),
    Row("other-user", lambda: odd(user=OTHERS_USER), ("page-map", "attach"), (), change="CAP_DAC_READ_SEARCH"),
    Row("other-user-one-right", lambda: odd(user=OTHERS_USER), ("page-map",), ("sys_ptrace",), change=BOTH[1]),
    Row("other-user-both-rights", lambda: odd(user=OTHERS_USER), (), BOTH),
    Row("undumpable", lambda: odd("undumpable", user=AGENTS_USER), ("page-map", "attach"), ()),
    Row("filter", filtered(NR_USERFAULTFD), ("seccomp",), BOTH, change="CAP_SYS_ADMIN"),
    Row("filter-suspended", filtered(NR_USERFAULTFD), (), (*BOTH, "sys_admin")),
    Row("both-filtered", filtered(NR_KEYCTL), ("seccomp",), (*BOTH, "sys_admin"), NR_KEYCTL, "without one"),
    Row("agent-filtered", odd, (), BOTH, NR_USERFAULTFD),
    Row("traced", traced, ("tracer",), change="detach process"),
    Row("zombie", zombie, ("process",)),
    Row("kernel-thread", kernel_thread, ("process",)),
    Row("thirty-two", thirty_two, ("process",), change="--handshake"),
    Row("no-vdso", lambda: odd("novdso"), ("vdso",), change="--handshake"),
    Row("userfaultfd", with_userfaultfd, ("userfaultfd",)),
    Row("descriptors", full, ("descriptors",), change="RLIMIT_NOFILE"),
    Row("frozen", frozen, ("frozen",), change="thaw"),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_doctor_says_what_happens_when_one_tries(row: Row) -> None:
    """Its verdict is how trying ends; what is missing has one change, which names what the row took away."""
    with row.target() as pid:
        said = run(row, LOOKS_AND_TRIES, str(pid))
    findings = findings_of(said)

    assert tuple(name for name, finding in findings.items() if finding["state"] == "missing") == row.missing
    assert bool(row.missing) == said.stderr.startswith("refused: "), said.stderr
    for name in row.missing:
        assert findings[name]["change"]
    assert row.change.lower() in " ".join(findings[name]["change"] for name in row.missing).lower()


def test_for_people_each_missing_thing_is_followed_by_its_change() -> None:
    """And the last line says what it comes to."""
    row = next(row for row in ROWS if row.name == "other-user-one-right")
    with row.target() as pid:
        lines = run(row, DOCTOR, "--pid", str(pid)).stdout.splitlines()

    index = next(index for index, line in enumerate(lines) if line.startswith("missing"))
    assert lines[index + 1].split()[0] == "->"
    assert "CAP_DAC_READ_SEARCH" in lines[index + 1]
    assert lines[-1] == f"wp-async would not work for process {pid}"


def test_without_a_process_it_is_about_the_host_and_one_that_is_not_there_is_not_found() -> None:
    """Exit codes 0 and 4."""
    row = ROWS[0]
    host = run(row, DOCTOR, "--json")
    assert host.returncode == 0
    assert json.loads(host.stdout.splitlines()[-1]) == {"wp_async": True, "pid": None}
    nobody = run(row, DOCTOR, "--pid", str(1 << 22))
    assert nobody.returncode == 4
    assert "there is no process" in nobody.stderr


def test_what_may_change_unseen_is_told() -> None:
    """Shared memory, with how much of it, and a file that is open for direct I/O."""
    with victim() as process:
        process.map(16, more="flags=0x21")
        process.do("global direct; direct = os.open('/var/tmp', os.O_TMPFILE | os.O_RDWR | os.O_DIRECT)")
        unseen = findings_of(run(ROWS[0], DOCTOR, "--pid", str(process.pid), "--json"))["unseen"]

    assert unseen["state"] == "limited"
    assert "64 KiB of shared memory" in unseen["found"]
    assert "O_DIRECT" in unseen["found"]


def findings_of(said: subprocess.CompletedProcess[str]) -> Mapping[str, Mapping[str, Any]]:
    """Give what was found, by name; of what is looked at both of the host and of the process, the latter."""
    *lines, verdict = [json.loads(line) for line in said.stdout.splitlines()]
    assert verdict["wp_async"] == (said.returncode == 0)
    return {line["name"]: line for line in lines}


def run(row: Row, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run some Python with the rights of a row."""
    command = [sys.executable, "-c", source, *arguments]
    if row.refused_call is not None:
        command = [sys.executable, "-c", UNDER_A_FILTER, str(row.refused_call), *command]
    if row.capabilities is not None:
        wanted = ",".join(("-all", *(f"+{capability}" for capability in row.capabilities)))
        rights = [f"--inh-caps={wanted}", f"--ambient-caps={wanted}", f"--bounding-set={wanted}"]
        ids = [f"--reuid={AGENTS_USER}", f"--regid={AGENTS_USER}", "--clear-groups", "--no-new-privs"]
        command = ["setpriv", *ids, *rights, *command]
    return subprocess.run(command, check=False, capture_output=True, text=True)
