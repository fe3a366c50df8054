"""What /proc says of real processes with awkward names, and of the lines the kernel may write."""

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import programs
from wetink_agent import discovery, procfs
from wetink_agent.errors import NoSuchProcess

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=15)


@contextmanager
def python(source: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program until its first line, and kill it at the end."""
    with subprocess.Popen([sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def write_comm(name: bytes) -> None:
    """Rename this thread, with any bytes there can be in a name."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(15, ctypes.c_char_p(name), 0, 0, 0) == 0


@pytest.mark.parametrize("name", [b"a) R 1 2 (b", b"x\ny", b")", b"((", b"", b"\xff\xfe)", b" "])
def test_a_name_does_not_shift_the_fields_behind_it(name: bytes) -> None:
    """Parentheses, spaces, newlines and bytes that are no text in a process's name are part of the name."""
    child = os.fork()
    if child == 0:
        write_comm(name)
        os.kill(os.getpid(), 19)
        os._exit(0)
    try:
        os.waitpid(child, os.WUNTRACED)
        stat = procfs.stat(child)
        assert (stat.state, stat.parent_pid) == ("T", os.getpid())
        assert not stat.is_kernel_thread
        assert stat.start_time_ticks >= procfs.stat(os.getpid()).start_time_ticks
        assert procfs.is_frozen(child)
        assert "\n" not in procfs.command(child)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@given(name=NAMES, state=st.sampled_from("RSDZTtXI"), start=st.integers(0, (1 << 63) - 1))
def test_stat_is_read_behind_the_last_parenthesis(name: str, state: str, start: int) -> None:
    """Any name at all leaves the fields what they are."""
    fields = [state, "12", *("0" * 4), "4194304", *("7" * 12), str(start), *"9" * 3, "111", "222", "333", "0"]
    stat = procfs.parse_stat(f"7 ({name}) {' '.join(fields)}\n".encode())

    assert (stat.state, stat.parent_pid, stat.start_time_ticks, stat.layout) == (state, 12, start, (111, 222, 333))


@pytest.mark.parametrize(
    "name",
    ["plain", "with space", " leading", "[vdso]", "new\nline", "back\\slash", "caf\u00e9", "x (deleted)", "\\012"],
)
def test_a_mapped_files_name_does_not_disturb_its_line(name: str, tmp_path: Path) -> None:
    """Whatever a file is called, its mapping has one line with the right range, and no other line is lost."""
    path = tmp_path / name
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        maps = procfs.read_maps(os.getpid())
        found = [mapping for mapping in procfs.parse_maps(maps) if mapping.inode == path.stat().st_ino]

        assert [(mapping.start, mapping.end) for mapping in found] == [(address, address + mmap.PAGESIZE)]
        assert found[0].shared
        assert found[0].writable
        assert found[0].name.replace("\\012", "\n") == str(path) or name == "\\012"
        assert len(list(procfs.parse_maps(maps))) == maps.count(b"\n")
        assert procfs.vdso_range(os.getpid())[0] != address


def test_a_file_called_like_the_vdso_is_not_the_vdso(tmp_path: Path) -> None:
    """A program that maps a file of such a name is attached by its real vdso, and nothing is written to the file."""
    path = tmp_path / "[vdso]"
    path.write_bytes(bytes(mmap.PAGESIZE))
    source = (
        "import mmap, sys, time\n"
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t) + (ctypes.c_int,) * 3 + (ctypes.c_long,)\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "assert libc.mmap(0x10000000, 4096, 3, 0x10 | 1, file.fileno(), 0) == 0x10000000\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with python(source, str(path)) as process:
        start, end = procfs.vdso_range(process.pid)

        assert start > 0x10000000
        assert end - start >= mmap.PAGESIZE


def test_the_cgroup_is_the_unified_one_unless_that_is_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """With version 2, with version 1, and with both, the path that names the group is found, colons and all."""

    def says(text: str) -> str:
        monkeypatch.setattr(procfs, "_read", lambda _pid, _name: text.encode())
        return procfs.cgroup(1)

    assert says("0::/system.slice/a.service\n") == "/system.slice/a.service"
    assert says("0::/\n") == "/"
    assert says("12:memory:/docker/abc\n4:cpu,cpuacct:/\n1:name=systemd:/docker/abc/x\n0::/\n") == "/docker/abc/x"
    assert says("12:memory:/docker/abc\n0::/unified/group\n") == "/unified/group"
    assert says("0::/odd:name:with:colons\n") == "/odd:name:with:colons"
    assert says("") == ""


def test_a_command_line_is_cut_for_the_contract_and_whole_for_the_selection() -> None:
    """What is said of a target has 256 characters; --command looks at all: a Java class stands at the end."""
    with python(
        "print('ready', flush=True)\nimport time\ntime.sleep(60)", "x" * 500, "tab\there", "org.Main"
    ) as process:
        told = procfs.command(process.pid)
        assert len(told) == procfs.COMMAND_CHARACTERS_MAX
        assert discovery.processes()[process.pid].command.endswith("tab?here org.Main")


def test_kernel_threads_and_zombies_are_not_looked_at() -> None:
    """They have no memory of their own."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        found = discovery.processes()
        assert child not in found
        assert os.getpid() in found
        for pid in found:
            with contextlib.suppress(NoSuchProcess):  # it has exited meanwhile
                assert not procfs.stat(pid).is_kernel_thread
    finally:
        os.waitpid(child, 0)


def test_nobody_is_a_sentence() -> None:
    """Whatever is asked of a pid that nobody has, the answer names it."""
    for ask in (procfs.stat, procfs.command, procfs.cgroup, procfs.read_maps, procfs.living_thread, procfs.tracer_of):
        with pytest.raises(NoSuchProcess, match="there is no process 4194303"):
            ask(4194303)
    assert not procfs.is_frozen(4194303)


@pytest.mark.needs("cc")
def test_a_process_is_frozen_when_all_its_living_threads_are(tmp_path: Path) -> None:
    """One thread that runs is enough for no; a thread that has ended is not."""
    with programs.running("sleeper", "threads", tmp_path / "progress", 4) as target:
        assert not procfs.is_frozen(target.pid)
        target.stop()
        assert procfs.is_frozen(target.pid)
        target.cont()
    source = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: time.sleep(60)).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"
    )
    with python(source) as leaderless:
        while procfs.stat(leaderless.pid).state != "Z":
            os.sched_yield()
        programs.stop(leaderless.pid)
        assert procfs.is_frozen(leaderless.pid)


MANY_THREADS = (
    "import threading, time\n"
    "for _ in range(300): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


def test_one_stopped_thread_does_not_make_a_process_frozen() -> None:
    """Its leader is held by a tracer, the others run: no. Stopped as a whole: yes, tracer or not."""
    tracing = (
        "import sys, time\n"
        "from wetink import syscalls\n"
        "from wetink_agent.uapi import ptrace as pt\n"
        "for request in (pt.PTRACE_SEIZE, pt.PTRACE_INTERRUPT):\n"
        "    syscalls.ptrace(request, int(sys.argv[1]), 0, 0, 'hold')\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with python(MANY_THREADS) as target, python(tracing, str(target.pid)):
        while procfs.stat(target.pid).state != "t":
            os.sched_yield()
        assert not procfs.is_frozen(target.pid)
        target.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 60
        while not procfs.is_frozen(target.pid) and time.monotonic() < until:
            time.sleep(0.001)
        assert procfs.is_frozen(target.pid)


def test_to_ask_a_running_process_of_many_threads_costs_what_one_thread_costs() -> None:
    """The first thread that runs is the answer: three hundred others cost next to nothing."""
    with python(MANY_THREADS) as many, python("print('ready', flush=True)\nimport time\ntime.sleep(60)") as one:

        def took(pid: int) -> float:
            took = []
            for _ in range(50):
                began = time.perf_counter()
                assert not procfs.is_frozen(pid)
                took.append(time.perf_counter() - began)
            return min(took)

        assert took(many.pid) < 5 * took(one.pid)


@pytest.mark.needs("root")
def test_a_process_in_a_frozen_cgroup_is_frozen() -> None:
    """Its threads are not in the state of stopped ones: the group says it."""
    freezer = Path("/sys/fs/cgroup/freezer")
    if not freezer.is_dir():
        pytest.skip("needs a cgroup freezer of version 1 at /sys/fs/cgroup/freezer")
    group = freezer / f"wetink-test-{os.getpid()}"
    group.mkdir()
    try:
        with python(MANY_THREADS) as target:
            (group / "cgroup.procs").write_text(str(target.pid), encoding="ascii")
            assert not procfs.is_frozen(target.pid)
            try:
                (group / "freezer.state").write_text("FROZEN", encoding="ascii")
                while "FROZEN" not in (group / "freezer.state").read_text(encoding="ascii").split():
                    os.sched_yield()
                assert procfs.is_frozen(target.pid)
            finally:
                # Nothing that is frozen here can be killed.
                (group / "freezer.state").write_text("THAWED", encoding="ascii")
            assert not procfs.is_frozen(target.pid)
    finally:
        group.rmdir()


@pytest.mark.needs("root")
def test_processes_that_may_not_be_seen_are_passed_over() -> None:
    """On a /proc mounted with hidepid=1 an agent without privilege finds what it may see, and does not end."""
    source = (
        "import os\n"
        "from wetink_agent import discovery\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "found = discovery.processes()\n"
        "assert os.getpid() in found and 1 not in found, found\n"
        "print('well')\n"
    )
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=1 proc /proc && exec "$@"', "sh"]
    done = subprocess.run([*mounted, sys.executable, "-c", source], capture_output=True, text=True, check=False)
    if "mount:" in done.stderr:
        pytest.skip(f"needs a /proc with hidepid: {done.stderr.strip()}")

    assert done.stdout == "well\n", done.stderr
