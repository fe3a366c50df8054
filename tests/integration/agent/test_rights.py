"""The rights the agent says it needs are enough: another user with two capabilities tracks a process of a third."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.agent import HOST
from tests.support.collector import running_collector
from tests.support.reader import Reader
from tests.support.service import Service
from wetink_client import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = pytest.mark.needs("kernel", "root", "cc")

AGENTS_USER = 65533
TARGETS_USER = 65534
ROUNDS = 5
RIGHTS = "+sys_ptrace,+dac_read_search"
# Bit 2 is CAP_DAC_READ_SEARCH, bit 19 CAP_SYS_PTRACE.
CHECKS_ITS_RIGHTS = (
    "status = open('/proc/self/status').read()\n"
    "assert 'CapEff:\\t0000000000080004\\n' in status, status\n"
    "from wetink_agent.command import main\n"
    "main()\n"
)


@contextmanager
def running_agent_with_few_rights(address: str, *options: str) -> Iterator[Service]:
    """Run an agent of a user of its own with the two capabilities that the README names, and no other."""
    ids = [f"--reuid={AGENTS_USER}", f"--regid={AGENTS_USER}", "--clear-groups"]
    rights = [f"--inh-caps={RIGHTS}", f"--ambient-caps={RIGHTS}"]
    agent = [sys.executable, "-c", CHECKS_ITS_RIGHTS, "--collector", address, "--host-id", HOST, "--interval", "50ms"]
    service = Service(
        subprocess.Popen(["setpriv", *ids, *rights, *agent, *options], stderr=subprocess.PIPE, text=True), "agent"
    )
    try:
        service.wait_for_log("connected")
        yield service
    finally:
        service.close()


@contextmanager
def writing_as_another_user() -> Iterator[int]:
    """Run a writer of another user; its pid."""
    # The tests' own directories are for their user alone.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        program = shutil.copy(programs.build("writer"), directory)
        with subprocess.Popen(
            [program, "random", "1"], stdout=subprocess.PIPE, user=TARGETS_USER, group=TARGETS_USER, extra_groups=()
        ) as target:
            try:
                assert target.stdout is not None
                assert target.stdout.readline().startswith(b"ready")
                yield target.pid
            finally:
                target.kill()


def test_two_capabilities_are_enough_for_a_process_of_another_user() -> None:
    """Attached, harvested and copied round by round, the frozen process is identical, and the agent was not root."""
    with (
        running_collector() as collector,
        writing_as_another_user() as pid,
        running_agent_with_few_rights(collector.address, "--pid", str(pid)),
        Collector(collector.address) as client,
        ShadowCopy(pid) as copy,
    ):
        reader = Reader(client, f"{HOST}/{pid}", copy)
        for _ in range(ROUNDS):
            reader.read_complete()
        programs.stop(pid)
        last = reader.read_complete()
        page_count, found = differences(pid, copy.pages)

    assert last.complete
    assert found == []
    assert page_count > 500
