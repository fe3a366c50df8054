"""Processes that offer their own memory to a real agent over its socket, and what else may come through it."""

import contextlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.offers import PATIENCE_SECONDS, Agent, agent, armed_mappings
from tests.support.programs import Program
from tests.support.seccomp import NR_USERFAULTFD, UNDER_A_FILTER
from tests.support.victim import PAGE, victim
from wetink import syscalls
from wetink_agent.handshake import ANSWER_SECONDS_MAX
from wetink_agent.uapi.userfaultfd import UFFD_USER_MODE_ONLY

pytestmark = pytest.mark.needs("kernel", "root", "cc")


def fresh_userfaultfd() -> int:
    """Make a userfaultfd over this process."""
    return syscalls.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)


@contextmanager
def offering(source: str, *, under: Sequence[str] = ()) -> Iterator[Program]:
    """Run a program that says ready, does what the source says, and says what it got.

    Args:
        source: Python that makes a ``result``.
        under: A command that becomes the program.
    """
    head = "import sys\nfrom wetink_agent.offer import offer_memory\nprint('ready', flush=True)\n"
    tail = "print(result, flush=True)\nimport time\ntime.sleep(60)\n"
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*under, sys.executable, "-c", head + source + tail], bufsize=0, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        try:
            program = Program(process, errors, name="offering")
            assert program.read_line() == "ready"
            yield program
        finally:
            process.kill()


def traced_by(pid: int) -> str:
    """Give the line of a process's status that says whether somebody traces it."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("TracerPid"))


def test_a_python_program_offers_its_memory(tmp_path: Path) -> None:
    """One call of the helper and the process is tracked, with no copy of the descriptor left in it."""
    with agent(tmp_path / "agent") as here:
        before = here.descriptors()
        with offering(f"result = offer_memory({str(here.path)!r})\n") as program:
            assert program.read_line().startswith(f"here/{program.pid}@")
            assert armed_mappings(program.pid) > 10
            assert traced_by(program.pid).split()[1] == "0"
            links = [str(path.readlink()) for path in Path(f"/proc/{program.pid}/fd").iterdir()]
            assert not [link for link in links if "userfaultfd" in link]
        assert here.settled_descriptors(before) == before


@pytest.mark.skipif(not Path("/dev/userfaultfd").exists(), reason="there is no /dev/userfaultfd (Linux 6.1)")
def test_a_program_under_a_filter_offers_its_memory_by_the_device(tmp_path: Path) -> None:
    """In a container whose seccomp filter forbids the system call, /dev/userfaultfd gives what it would."""
    under = [sys.executable, "-c", UNDER_A_FILTER, str(NR_USERFAULTFD)]
    with (
        agent(tmp_path / "agent") as here,
        offering(f"result = offer_memory({str(here.path)!r})\n", under=under) as program,
    ):
        assert program.read_line().startswith(f"here/{program.pid}@")
        assert armed_mappings(program.pid) > 10
        links = [str(path.readlink()) for path in Path(f"/proc/{program.pid}/fd").iterdir()]
        assert not [link for link in links if "userfaultfd" in link]


def test_a_program_offers_a_part_of_its_memory(tmp_path: Path) -> None:
    """With regions named, only they are registered, in Firecracker's form as in ours."""
    source = (
        "import mmap, ctypes, json, os, socket\n"
        "from wetink import syscalls\n"
        "memory = mmap.mmap(-1, 16 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "for page in range(16): memory[page * 4096] = 1\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
    )
    ours = "result = offer_memory({path!r}, [(address, 8 * 4096)])\n"
    firecracker = (
        "uffd = syscalls.userfaultfd(0o2004000)\n"
        "body = [dict(base_host_virt_addr=address, size=32768, offset=0, page_size=4096, page_size_kib=4096)]\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        "connection.connect({path!r})\n"
        "socket.send_fds(connection, [json.dumps(body).encode()], [uffd])\n"
        "os.close(uffd)\n"
        "result = json.loads(connection.recv(4096))['target']\n"
    )
    with agent(tmp_path / "agent") as here:
        for form in (ours, firecracker):
            with offering(source + form.format(path=str(here.path))) as program:
                assert program.read_line().startswith(f"here/{program.pid}@")
                assert armed_mappings(program.pid) == 1


HELLO = json.dumps({"wetink": 1, "regions": []}).encode()


@pytest.mark.parametrize(
    "body,sentence",
    [
        pytest.param(b'{"wetink": 2, "regions": []}', "speaks version 2 of the handshake, this agent 1", id="version"),
        pytest.param(b'{"regions": []}', "cannot be read", id="no version"),
        pytest.param(b'{"wetink": 1}', "cannot be read", id="no regions"),
        pytest.param(b"[{", "cannot be read", id="cut short"),
        pytest.param(b"\xff\xfe\xfd", "cannot be read", id="no text"),
        pytest.param(b"7", "cannot be read", id="a number"),
        pytest.param(b'{"wetink": 1, "regions": {"a": 1}}', "cannot be read", id="regions of another kind"),
        pytest.param(b"[" * 20000, "cannot be read", id="deep"),
        pytest.param(b'[{"base_host_virt_addr": 1e999, "size": 4096}]', "cannot be read", id="infinite"),
        pytest.param(b'[{"base_host_virt_addr": 4097, "size": 4096}]', "not of whole pages", id="odd start"),
        pytest.param(b'[{"base_host_virt_addr": 4096, "size": 100}]', "not of whole pages", id="odd size"),
        pytest.param(b'[{"base_host_virt_addr": 4096, "size": 0}]', "not of whole pages", id="empty region"),
        pytest.param(b'[{"base_host_virt_addr": -4096, "size": 4096}]', "not of whole pages", id="negative"),
        pytest.param(
            json.dumps([{"base_host_virt_addr": 1 << 70, "size": 4096}]).encode(), "beyond", id="beyond 64 bits"
        ),
        pytest.param(
            json.dumps([{"base_host_virt_addr": 4096, "size": 1 << 63}]).encode(), "beyond", id="beyond user memory"
        ),
        pytest.param(
            json.dumps([{"base_host_virt_addr": at, "size": 8192} for at in (4096, 8192)]).encode(),
            "overlap",
            id="overlapping",
        ),
    ],
)
def test_a_bad_offer_gets_one_sentence_and_costs_nothing(body: bytes, sentence: str, one_agent: Agent) -> None:
    """What cannot be meant is refused with its reason; nothing stays open, and the next offer is served."""
    before = one_agent.descriptors()

    answer = one_agent.offer(body, [fresh_userfaultfd()])

    assert list(answer) == ["error"]
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert one_agent.settled_descriptors(before) == before
    assert one_agent.process.poll() is None


@pytest.fixture(scope="module")
def one_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Give one agent to many tests: whatever they send it, it goes on."""
    with agent(tmp_path_factory.mktemp("handshake") / "agent") as here:
        yield here


def pipe_end() -> int:
    """Make a descriptor that is something else."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.mark.parametrize(
    "count,sentence",
    [(0, "offered 0 descriptors: send one"), (2, "offered 2 descriptors: send one"), (9, "descriptors: send one")],
)
def test_one_descriptor_is_the_right_number(count: int, sentence: str, one_agent: Agent) -> None:
    """None, two and too many are refused, and those that came are closed."""
    before = one_agent.descriptors()

    assert sentence in one_agent.offer(HELLO, [fresh_userfaultfd() for _ in range(count)])["error"]
    assert one_agent.settled_descriptors(before) == before


def test_a_descriptor_that_is_no_userfaultfd_is_called_so(one_agent: Agent) -> None:
    """A pipe or a file sent by mistake is told from a kernel that lacks something."""
    before = one_agent.descriptors()
    for descriptor in (pipe_end(), os.open("/dev/zero", os.O_RDONLY)):
        assert "no userfaultfd" in one_agent.offer(HELLO, [descriptor])["error"]
    assert one_agent.settled_descriptors(before) == before


def test_a_second_offer_of_a_tracked_process_costs_nothing(one_agent: Agent) -> None:
    """It is told its name again, and the descriptor that is not needed is closed."""
    before = one_agent.descriptors()
    source = f"result = [offer_memory({str(one_agent.path)!r}) for _ in range(5)]\n"
    with offering(source) as program:
        names = program.read_line()
        assert names.count(f"here/{program.pid}@") == 5
        assert sum("userfaultfd" in link for link in one_agent.descriptors()) == 1
    assert one_agent.settled_descriptors(before) == before


def test_whoever_hangs_up_leaves_nothing(one_agent: Agent) -> None:
    """Connections closed or reset at any point cost no descriptor and no service."""
    before = one_agent.descriptors()
    for body in (b"", b"[", HELLO):
        for _ in range(10):
            with one_agent.connect() as connection:
                if body:
                    # One that is of no use: with a good one this process would be tracked, though nobody hears it.
                    socket.send_fds(connection, [body], [useless := os.open("/dev/zero", os.O_RDONLY)])
                    os.close(useless)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert "offered 0 descriptors" in one_agent.offer(HELLO)["error"]
    assert one_agent.settled_descriptors(before) == before


def test_an_offer_that_drips_in_is_hung_up_on(one_agent: Agent) -> None:
    """The time for an offer is for all of it: a byte now and then does not make it longer."""
    before = one_agent.descriptors()
    began = time.monotonic()
    with one_agent.connect() as connection, contextlib.suppress(ConnectionError):
        while time.monotonic() - began < ANSWER_SECONDS_MAX + 30:
            connection.send(b"[")
            time.sleep(0.2)
    assert ANSWER_SECONDS_MAX - 1 < time.monotonic() - began < ANSWER_SECONDS_MAX + 20
    assert one_agent.settled_descriptors(before) == before


def test_who_is_slow_does_not_keep_others_waiting(one_agent: Agent) -> None:
    """While one has connected and says nothing, and one has begun and stopped, others are served at once."""
    with one_agent.connect() as silent, one_agent.connect() as begun:
        begun.send(b"[")
        for _ in range(5):
            assert "error" in one_agent.offer(b"7")
        for waiting in (silent, begun):
            waiting.setblocking(False)  # noqa: FBT003 - the library's signature
            with pytest.raises(BlockingIOError):  # its time is not over
                waiting.recv(1)


def test_an_offer_may_come_in_pieces(one_agent: Agent) -> None:
    """The descriptor is in the first piece, the body goes on; the answer comes when it is whole, unasked for."""
    with one_agent.connect() as connection:
        useless = pipe_end()
        socket.send_fds(connection, [HELLO[:5]], [useless])
        os.close(useless)
        time.sleep(0.1)
        connection.send(HELLO[5:])
        assert b"no userfaultfd" in connection.recv(4096)


def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    """Its mode is 0600 from the start; it goes with the agent."""
    with agent(tmp_path / "agent") as here:
        assert stat.S_IMODE(here.path.stat().st_mode) == 0o600
    assert not here.path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """A socket that an agent left behind when it was killed is no obstacle for the next."""
    path = tmp_path / "agent"
    with agent(path) as killed:
        killed.process.kill()
        killed.process.wait()
        assert path.exists()
        with agent(path) as here:
            assert "error" in here.offer(b"7")


def test_the_socket_of_a_living_agent_is_not_taken_away(tmp_path: Path) -> None:
    """A second agent on the same path ends with one sentence, and the first goes on."""
    with agent(tmp_path / "agent") as here:
        done = start(here.path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "cannot be made" in done.stderr
        assert "error" in here.offer(b"7")


def start(path: Path) -> "subprocess.CompletedProcess[str]":
    """Start an agent that is to fail; give its sentence, less what it logged before."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from wetink_agent.command import main; main()",
            *("--collector", "127.0.0.1:9", "--handshake", str(path), "--host-id", "here"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    said = [line for line in done.stderr.splitlines(keepends=True) if '"event"' not in line]
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, "".join(said))


@pytest.mark.parametrize("name", ["absent/agent", "file", "x" * 150, "directory"])
def test_a_socket_that_cannot_be_made_is_one_sentence(name: str, tmp_path: Path) -> None:
    """No directory, something else in the place, a path too long: exit code 1 and the reason, and nothing destroyed."""
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    (tmp_path / "directory").mkdir()

    done = start(tmp_path / name)

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"the handshake socket {tmp_path / name} cannot be made" in done.stderr
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


def test_a_killed_agent_leaves_a_cooperating_process_alone(tmp_path: Path) -> None:
    """After SIGKILL of the agent the program that offered its memory runs on, with nothing registered."""
    with victim() as target, agent(tmp_path / "agent") as here:
        first = target.map(64)
        target.do(
            "import sys; from wetink_agent.offer import offer_memory\n"
            f"result = offer_memory({str(here.path)!r}, [({first * PAGE}, {64 * PAGE})])"
        )
        assert armed_mappings(target.pid) == 1
        here.process.send_signal(signal.SIGKILL)
        here.process.wait()
        until = time.monotonic() + PATIENCE_SECONDS
        while armed_mappings(target.pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert armed_mappings(target.pid) == 0
        target.write(*range(first, first + 64))
