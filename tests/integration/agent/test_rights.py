"""The rights the README says the agent needs are enough, and each is needed: its table, row by row.

The agent runs as a user of its own with exactly the capabilities of the row, and no way to more. A row whose test drops
one of them gets the sentence that names it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.integration.agent.test_selection import tracked
from tests.support import programs
from tests.support.agent import HOST
from tests.support.collector import running_collector
from tests.support.reader import Reader
from tests.support.seccomp import NR_KEYCTL, NR_USERFAULTFD, UNDER_A_FILTER
from tests.support.service import PATIENCE_SECONDS, Service
from wetink_client import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = pytest.mark.needs("kernel", "root", "cc")

AGENTS_USER: Final = 65533
TARGETS_USER: Final = 65534
ROUNDS: Final = 5
BITS: Final = {"dac_override": 1, "dac_read_search": 2, "sys_ptrace": 19, "sys_admin": 21, "perfmon": 38}
CHECKS_ITS_RIGHTS: Final = (
    "status = open('/proc/self/status').read()\n"
    "assert 'CapEff:\\t{mask:016x}\\n' in status and 'CapBnd:\\t{mask:016x}\\n' in status, status\n"
    "from wetink_agent.command import main\n"
    "main()\n"
)
README: Final = Path(__file__).resolve().parents[3] / "README.md"


@dataclass(frozen=True)
class Row:
    """One row of the README's table: what is tracked, with which options and capabilities."""

    name: str
    capabilities: tuple[str, ...]
    options: tuple[str, ...] = ()
    user: int = TARGETS_USER
    refused_call: int | None = None


ROWS: Final = (
    Row("processes of its own user", (), user=AGENTS_USER),
    Row("processes of any user", ("sys_ptrace", "dac_read_search")),
    Row(
        "under a seccomp filter",
        ("sys_ptrace", "dac_read_search", "sys_admin"),
        refused_call=NR_USERFAULTFD,
    ),
    Row(
        "under a seccomp filter that allows `userfaultfd`",
        ("sys_ptrace", "dac_read_search"),
        options=("--seccomp-allows",),
        refused_call=NR_KEYCTL,
    ),
    Row(
        "with `--events`", ("sys_ptrace", "dac_read_search", "perfmon"), options=("--events", "--events-ring", "64KiB")
    ),
)
DROPPED: Final = [(row, capability) for row in ROWS for capability in row.capabilities]


def name(row: Row) -> str:
    """Name a row for a test's id."""
    return row.name.replace(" ", "-").replace("`", "")


@contextmanager
def agent_with(
    capabilities: Sequence[str], address: str, *options: str, refused_call: int | None = None
) -> Iterator[Service]:
    """Start an agent of a user of its own with some capabilities, no other, and no way to more.

    Args:
        capabilities: As setpriv(1) names them.
        address: Of the collector.
        options: Of the command.
        refused_call: What a seccomp filter of the agent's own refuses; None for no filter.
    """
    ids = [f"--reuid={AGENTS_USER}", f"--regid={AGENTS_USER}", "--clear-groups", "--no-new-privs"]
    wanted = ",".join(("-all", *(f"+{capability}" for capability in capabilities)))
    rights = [f"--inh-caps={wanted}", f"--ambient-caps={wanted}", f"--bounding-set={wanted}"]
    code = CHECKS_ITS_RIGHTS.format(mask=sum(1 << BITS[capability] for capability in capabilities))
    agent = [sys.executable, "-c", code, "--collector", address, "--host-id", HOST, "--interval", "50ms"]
    if refused_call is not None:
        agent = [sys.executable, "-c", UNDER_A_FILTER, str(refused_call), *agent]
    service = Service(
        subprocess.Popen(["setpriv", *ids, *rights, *agent, *options], stderr=subprocess.PIPE, text=True), "agent"
    )
    try:
        yield service
    finally:
        service.close()


@contextmanager
def target_of(row: Row) -> Iterator[int]:
    """Run a writer as the row has it; its pid."""
    # The tests' own directories are for their user alone.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        program = [shutil.copy(programs.build("writer"), directory), "random", "1"]
        if row.refused_call is not None:
            program = [sys.executable, "-c", UNDER_A_FILTER, str(row.refused_call), *program]
        # setpriv and not Popen's own `user`, for which Python forks: gRPC's threads do not bear that.
        ids = [f"--reuid={row.user}", f"--regid={row.user}", "--clear-groups"]
        with subprocess.Popen(["setpriv", *ids, *program], stdout=subprocess.PIPE) as target:
            try:
                assert target.stdout is not None
                assert target.stdout.readline().startswith(b"ready")
                yield target.pid
            finally:
                target.kill()


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_capabilities_of_the_row_are_enough(row: Row) -> None:
    """Attached, harvested and copied round by round, the frozen process is identical, and the agent was not root."""
    with (
        running_collector() as collector,
        target_of(row) as pid,
        agent_with(row.capabilities, collector.address, "--pid", str(pid), *row.options) as agent,
        Collector(collector.address) as client,
        ShadowCopy(pid) as copy,
    ):
        agent.wait_for_log("connected")
        reader = Reader(client, f"{HOST}/{pid}", copy)
        for _ in range(ROUNDS):
            reader.read_complete()
        programs.stop(pid)
        last = reader.read_complete()
        page_count, found = differences(pid, copy.pages)

    assert last.complete
    assert found == []
    assert page_count > 500


@pytest.mark.parametrize("row,capability", DROPPED, ids=[f"{name(row)}-{dropped}" for row, dropped in DROPPED])
def test_one_capability_less_is_told_by_its_name(row: Row, capability: str) -> None:
    """The agent ends with one sentence: which process, and which right it lacks. The process lives on."""
    left = [kept for kept in row.capabilities if kept != capability]
    with (
        target_of(row) as pid,
        agent_with(left, "127.0.0.1:1", "--pid", str(pid), *row.options) as agent,
    ):
        assert agent.process.wait(PATIENCE_SECONDS) == 1
        agent.close()
        os.kill(pid, 0)

    sentence = agent.log.splitlines()[-1]
    assert f"process {pid}" in sentence
    assert f"CAP_{capability.upper()}" in sentence


def test_agent_without_capabilities_is_told_which_another_user_takes() -> None:
    """The row without any: its agent reaches nobody else."""
    with (
        target_of(ROWS[1]) as pid,
        agent_with((), "127.0.0.1:1", "--pid", str(pid)) as agent,
    ):
        assert agent.process.wait(PATIENCE_SECONDS) == 1
        agent.close()

    assert "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH" in agent.log


def test_filter_that_does_not_allow_userfaultfd_after_all_is_told() -> None:
    """Whoever said --seccomp-allows learns that it does not, and what helps; the process lives on."""
    row = Row("", ("sys_ptrace", "dac_read_search"), refused_call=NR_USERFAULTFD)
    with (
        target_of(row) as pid,
        agent_with(row.capabilities, "127.0.0.1:1", "--pid", str(pid), "--seccomp-allows") as agent,
    ):
        assert agent.process.wait(PATIENCE_SECONDS) == 1
        agent.close()
        os.kill(pid, 0)

    assert "does not allow userfaultfd" in agent.log
    assert "CAP_SYS_ADMIN" in agent.log


def test_agent_under_a_filter_cannot_suspend_one_and_says_so() -> None:
    """With every capability of the row: whoever adds CAP_SYS_ADMIN in vain reads what else it takes."""
    (row,) = (row for row in ROWS if "sys_admin" in row.capabilities)
    with (
        target_of(row) as pid,
        agent_with(row.capabilities, "127.0.0.1:1", "--pid", str(pid), refused_call=NR_KEYCTL) as agent,
    ):
        assert agent.process.wait(PATIENCE_SECONDS) == 1
        agent.close()
        os.kill(pid, 0)

    assert "no seccomp filter of its own" in agent.log


FORKS: Final = """
import os, sys, time
memory = bytearray(1 << 20)
if os.fork() == 0:
    time.sleep(600)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        memory[::4096] = b"y" * 256
        time.sleep(600)
    print(child, flush=True)
"""


def test_children_are_found_as_with_tree_where_the_kernel_gives_no_fork_events() -> None:
    """UFFD_FEATURE_EVENT_FORK takes CAP_SYS_PTRACE: without it no fork waits for anybody, and the log says so once."""
    ids = [f"--reuid={AGENTS_USER}", f"--regid={AGENTS_USER}", "--clear-groups"]
    with subprocess.Popen(
        ["setpriv", *ids, sys.executable, "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as target:
        try:
            assert target.stdin is not None
            assert target.stdout is not None
            assert target.stdout.readline() == "ready\n"
            with (
                running_collector() as collector,
                agent_with((), collector.address, "--pid", str(target.pid), "--follow-fork") as agent,
                Collector(collector.address) as client,
            ):
                agent.wait_for_log("target_attached", 2)
                target.stdin.write("\n")
                target.stdin.flush()
                child = int(target.stdout.readline())
                assert child in tracked(client, {child})
                programs.stop(child)
                answer = client.dirty(f"{HOST}/{child}", barrier=True)

            assert answer.complete
            assert len(answer.written) > 256
            assert {entry["forked"] for entry in agent.events("target_attached")} == {False}
            assert len(agent.events("fork_events_refused")) == 1
        finally:
            os.killpg(target.pid, signal.SIGKILL)


def test_table_of_the_readme_is_these_rows() -> None:
    """What a reader grants is what was tested."""
    told = {
        cells[0].strip(): tuple(re.findall(r"`CAP_([A-Z_]+)`", cells[1]))
        for line in README.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and len(cells := line.strip("|").split("|")) == 3
    }

    for row in ROWS:
        assert told[row.name] == tuple(capability.upper() for capability in row.capabilities)
