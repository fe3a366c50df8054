"""The sidecar and the agent of a host, for real: what deploy/README.md says of rights in containers holds.

Each row of its table is run, and each with one right less, which is then named.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from tests.deploy.engine import ROOT, CommandFailed, Engine
from tests.support import programs
from tests.support.reader import Reader
from wetink_client import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("docker", "root", "kernel"), pytest.mark.timeout(1500)]

README: Final = ROOT / "deploy" / "README.md"
TARGET_JSON: Final = f"seccomp={ROOT / 'deploy' / 'k8s' / 'seccomp' / 'target.json'}"
UNCONFINED: Final = "seccomp=unconfined"
DEVICE: Final = "--device=/dev/userfaultfd"
ROUNDS: Final = 3
PATIENCE_SECONDS: Final = 30.0
VOLUME: Final = "wetink-rights"

WRITER: Final = (
    "import random, time\n"
    "memory = bytearray(8 << 20)\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    for _ in range(20):\n"
    "        memory[random.randrange(len(memory))] = random.randrange(256)\n"
    "    time.sleep(0.01)\n"
)
OFFERING: Final = (
    "import sys\nfrom wetink_agent.offer import offer_memory\nprint(offer_memory(sys.argv[1]), flush=True)\n"
)


@dataclass(frozen=True)
class Row:
    """One row of the table, as it is written, and what it comes to."""

    line: str
    capabilities: tuple[str, ...]
    target: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("host", "sidecar")

    @property
    def offers(self) -> bool:
        """Whether the target comes to the agent, and not the agent to the target."""
        return "--handshake" in self.line


def seccomp(value: str) -> str:
    """Give the option of docker run for a profile."""
    return f"--security-opt={value}"


ROWS: Final = (
    Row(
        "| of user 0 | Docker's | none | `SYS_PTRACE`, `SYS_ADMIN` |",
        ("SYS_PTRACE", "SYS_ADMIN"),
        agent=(seccomp(UNCONFINED),),
    ),
    Row(
        "| of another user | Docker's | none | `SYS_PTRACE`, `SYS_ADMIN`, `DAC_READ_SEARCH` |",
        ("SYS_PTRACE", "SYS_ADMIN", "DAC_READ_SEARCH"),
        target=("--user=1000:1000",),
        agent=(seccomp(UNCONFINED),),
    ),
    Row(
        "| of user 0 | [`target.json`](k8s/seccomp/target.json) | Docker's | `SYS_PTRACE`, with `--seccomp-allows` |",
        ("SYS_PTRACE",),
        target=(seccomp(TARGET_JSON),),
        options=("--seccomp-allows",),
    ),
    Row(
        "| of another user | `target.json` | Docker's | `SYS_PTRACE`, `DAC_READ_SEARCH`, with `--seccomp-allows` |",
        ("SYS_PTRACE", "DAC_READ_SEARCH"),
        target=("--user=1000:1000", seccomp(TARGET_JSON)),
        options=("--seccomp-allows",),
    ),
    Row(
        "| of the agent's own user | `target.json` | none | none, with `--seccomp-allows` |",
        (),
        target=("--user=1000:1000", "--cap-drop=ALL", seccomp(TARGET_JSON)),
        agent=("--user=1000:1000", "--group-add=65532", seccomp(UNCONFINED)),
        options=("--seccomp-allows",),
        modes=("sidecar",),
    ),
    Row("| of user 0 | none | Docker's | `SYS_PTRACE` |", ("SYS_PTRACE",), target=(seccomp(UNCONFINED),)),
    Row(
        "| of user 0, offering its memory | Docker's; `/dev/userfaultfd` | Docker's | `SYS_PTRACE` (`--handshake`) |",
        ("SYS_PTRACE",),
        target=(DEVICE,),
        modes=("sidecar",),
    ),
    Row(
        "| the same, of the agent's group | Docker's; the device | Docker's | none, nor the target (`--handshake`) |",
        (),
        target=("--user=0:65532", "--cap-drop=ALL", DEVICE),
        modes=("sidecar",),
    ),
)
RUNS: Final = [(row, mode) for row in ROWS for mode in row.modes]
DROPPED: Final = [(row, mode, capability) for row, mode in RUNS if not row.offers for capability in row.capabilities]


def name(value: object) -> str:
    """Name a row for a test's id."""
    return re.sub(r"\W+", "-", value.line).strip("-") if isinstance(value, Row) else str(value)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    """Give where a collector in a container is reached from the host."""
    bounds = ["--network=none", "--read-only", "--cap-drop=ALL", f"--volume={VOLUME}:/run/wetink"]
    container = engine.docker("run", "--detach", *bounds, "wetink-collector").strip()
    # Agents of other users make their handshake sockets there.
    engine.volume(VOLUME).chmod(0o770)
    try:
        yield f"unix:{engine.volume(VOLUME)}/collector.sock"
    finally:
        engine.docker("rm", "--force", "--volumes", container)
        engine.docker("volume", "rm", VOLUME)


@contextmanager
def container(engine: Engine, *arguments: str) -> Iterator[str]:
    """Run a container of the agent's image while the body runs; its id."""
    identity = engine.docker(
        "run", "--detach", "--network=none", "--read-only", f"--volume={VOLUME}:/run/wetink", *arguments
    ).strip()
    try:
        yield identity
    finally:
        engine.docker("rm", "--force", "--volumes", identity)


@contextmanager
def target_of(engine: Engine, row: Row, *more: str, offers_to: str = "") -> Iterator[str]:
    """Run the target of a row, or a program that holds its pid namespace; the container's id."""
    code = ["-c", OFFERING + WRITER, f"/run/wetink/{offers_to}"] if offers_to else ["-c", WRITER]
    with container(engine, *row.target, *more, "--entrypoint=python3", "wetink-agent", *code) as target:
        yield target


def agent_arguments(engine: Engine, row: Row, mode: str, target: str, dropped: str = "") -> Sequence[str]:
    """Give docker run's arguments for the agent of a row."""
    granted = [f"--cap-add={capability}" for capability in row.capabilities if capability != dropped]
    space = "--pid=host" if mode == "host" else f"--pid=container:{target}"
    pid = engine.pid(target) if mode == "host" else 1
    what = [f"--handshake=/run/wetink/{host_of(row, mode)}"] if row.offers else [f"--pid={pid}"]
    bounds = ["--cap-drop=ALL", *granted, "--security-opt=no-new-privileges", *row.agent, "--tmpfs=/run/wetink-agent"]
    return [space, *bounds, "wetink-agent", f"--host-id={host_of(row, mode)}", "--interval=100ms", *what, *row.options]


def host_of(row: Row, mode: str) -> str:
    """Name a host that no other run of the module has."""
    return f"{mode}-{ROWS.index(row) if row in ROWS else 'refused'}"


@pytest.mark.parametrize("row,mode", RUNS, ids=name)
def test_rights_of_the_row_are_enough(engine: Engine, address: str, row: Row, mode: str) -> None:
    """Copied round by round, the frozen target in its container is the same in every byte."""
    with (
        target_of(engine, row) as held,
        container(engine, *agent_arguments(engine, row, mode, held)) as agent,
        Collector(address) as client,
    ):
        if not row.offers:
            check_copy(client, f"{host_of(row, mode)}/{engine.pid(held) if mode == 'host' else 1}", engine.pid(held))
            return
        wait_for((engine.volume(VOLUME) / host_of(row, mode)).is_socket, engine, agent)
        with target_of(engine, row, f"--pid=container:{held}", offers_to=host_of(row, mode)) as target:
            wait_for(lambda: "ready" in engine.docker("logs", target), engine, target)
            told = engine.docker("logs", target).splitlines()[0]
            check_copy(client, told, engine.pid(target))


@pytest.mark.parametrize("row,mode,dropped", DROPPED, ids=name)
def test_one_capability_less_is_named(engine: Engine, address: str, row: Row, mode: str, dropped: str) -> None:
    """The agent ends with a sentence that has the name of what is missing."""
    assert address
    with target_of(engine, row) as target:
        assert f"CAP_{dropped}" in refusal(engine, agent_arguments(engine, row, mode, target, dropped))


@pytest.mark.parametrize("mode", ["host", "sidecar"])
def test_dockers_profile_over_both_refuses_every_agent(engine: Engine, address: str, mode: str) -> None:
    """The last row: whatever the agent's capabilities, it says what to give to whom."""
    assert address
    capabilities = ("SYS_PTRACE", "DAC_READ_SEARCH", "SYS_ADMIN")
    for options, sentence in (
        ((), "give the agent CAP_SYS_ADMIN and no seccomp filter of its own"),
        (("--seccomp-allows",), "has a seccomp filter that does not allow userfaultfd: run it with one that does"),
    ):
        row = Row("", capabilities, options=options)
        with target_of(engine, row) as target:
            assert sentence in refusal(engine, agent_arguments(engine, row, mode, target))


def test_table_has_these_rows_and_no_other() -> None:
    """A row that is written is a row that was run."""
    text = README.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.fullmatch(r"\|(?: [^|]+ \|){4} (tracked[^|]*|refused) \|", line)]

    assert [line for line in lines if not line.endswith("| refused |")] == [
        next(line for line in lines if line.startswith(row.line)) for row in ROWS
    ]
    assert len(lines) == len(ROWS) + 1


def check_copy(client: Collector, target: str, pid: int) -> None:
    """Copy a target round by round, freeze it, and compare."""
    with ShadowCopy(pid) as copy:
        reader = Reader(client, target, copy)
        for _ in range(ROUNDS):
            reader.read_complete()
        with programs.Stopped(pid):
            last = reader.read_complete()
            page_count, found = differences(pid, copy.pages)

    assert last.complete
    assert found == []
    assert page_count > 2000


def refusal(engine: Engine, arguments: Sequence[str]) -> str:
    """Run an agent that is refused; what it said."""
    with pytest.raises(CommandFailed) as caught:
        engine.docker("run", "--rm", "--network=none", "--read-only", f"--volume={VOLUME}:/run/wetink", *arguments)
    return str(caught.value)


def wait_for(reached: Callable[[], bool], engine: Engine, container: str) -> None:
    """Wait until something is so; what the container has logged says why it never is."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < until, engine.docker("logs", container)
        time.sleep(0.1)
