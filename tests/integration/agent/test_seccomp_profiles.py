"""The seccomp profile of ``deploy/k8s`` lets targets be tracked, as the kernel filters them.

No container runtime is needed: a filter is made of the profile's names. Conditions on arguments are left out, so that
what a condition would refuse is not tried here. The agent's filter here is that of targets, without ``userfaultfd`` and
with ``pidfd_getfd``: so far the profiles of runtimes agree for a container with CAP_SYS_PTRACE.
"""

import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.agent import HOST
from tests.support.collector import running_collector
from tests.support.kustomize import K8S
from tests.support.reader import Reader
from tests.support.service import PATIENCE_SECONDS, Service
from wetink_client import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = pytest.mark.needs("kernel", "root", "cc")

HEADERS: Final = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h"))
TARGETS_USER: Final = 65534
ROUNDS: Final = 3
UNDER: Final = (
    "import ctypes, os, struct, sys\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "code = open(sys.argv[1], 'rb').read()\n"
    "buffer = ctypes.create_string_buffer(code, len(code))\n"
    "holder = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(code) // 8, ctypes.addressof(buffer)))\n"
    "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
    "assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(holder)), 0, 0) == 0, ctypes.get_errno()\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)
REFUSED: Final = {"bpf", "init_module", "kexec_load", "mount", "reboot", "setns", "unshare", "keyctl", "pidfd_getfd"}

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def allowed() -> frozenset[str]:
    """Give the calls that the profile allows, whatever their arguments."""
    rules = json.loads((K8S / "seccomp" / "target.json").read_text(encoding="utf-8"))["syscalls"]
    return frozenset(name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"])


OF_THE_AGENT: Final = allowed() - {"userfaultfd"} | {"pidfd_getfd"}


def filter_of(calls: frozenset[str]) -> bytes:
    """Make the filter that allows some calls."""
    header = next(path for path in HEADERS if path.exists()).read_text(encoding="ascii")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header)}
    code = [(_LOAD, 0, 0, 0)]
    for name in sorted(calls & numbers.keys()):
        code += [(_JUMP_IF_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ALLOW)]
    # As the profile has it: clone3 is not there at all, so that the C library falls back to clone.
    code += [(_JUMP_IF_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | 38)]
    code += [(_RETURN, 0, 0, _ERRNO | 1)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


@contextmanager
def compiled(calls: frozenset[str]) -> Iterator[str]:
    """Write a filter where another user can read it."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory, "filter")
        path.write_bytes(filter_of(calls))
        yield str(path)


@contextmanager
def target() -> Iterator[int]:
    """Run a writer of another user under the profile; its pid."""
    with compiled(allowed()) as path:
        program = Path(path).with_name("writer")
        program.write_bytes(programs.build("writer").read_bytes())
        program.chmod(0o755)
        ids = [f"--reuid={TARGETS_USER}", f"--regid={TARGETS_USER}", "--clear-groups", "--bounding-set=-all"]
        command = ["setpriv", *ids, sys.executable, "-c", UNDER, path, str(program), "random", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith(b"ready")
                yield process.pid
            finally:
                process.kill()


@contextmanager
def agent(calls: frozenset[str], *arguments: str) -> Iterator[Service]:
    """Run an agent as the manifests do: as root with two capabilities, under a filter."""
    wanted = "-all,+sys_ptrace,+dac_read_search"
    rights = ["--no-new-privs", f"--bounding-set={wanted}", f"--inh-caps={wanted}"]
    run = [sys.executable, "-c", "from wetink_agent.command import main; main()", "--host-id", HOST, *arguments]
    with compiled(calls) as path:
        command = ["setpriv", *rights, sys.executable, "-c", UNDER, path, *run]
        service = Service(subprocess.Popen(command, stderr=subprocess.PIPE, text=True), "agent")
        try:
            yield service
        finally:
            service.close()


def test_agent_tracks_under_its_profile_a_target_under_its_own() -> None:
    """With the two capabilities of the manifests, every byte of the program is identical in the end."""
    with (
        running_collector() as collector,
        target() as pid,
        agent(
            OF_THE_AGENT, "--collector", collector.address, "--interval", "50ms", "--pid", str(pid), "--seccomp-allows"
        ) as tracking,
        Collector(collector.address) as client,
        ShadowCopy(pid) as copy,
    ):
        tracking.wait_for_log("connected")
        reader = Reader(client, f"{HOST}/{pid}", copy)
        for _ in range(ROUNDS):
            reader.read_complete()
        programs.stop(pid)
        last = reader.read_complete()
        page_count, found = differences(pid, copy.pages)

    assert last.complete
    assert found == []
    assert page_count > 500


def test_agent_that_may_not_take_descriptors_says_so() -> None:
    """A filter without pidfd_getfd is no reason to harm anybody: one sentence, and the process lives on."""
    with (
        target() as pid,
        agent(
            OF_THE_AGENT - {"pidfd_getfd"}, "--collector", "127.0.0.1:1", "--pid", str(pid), "--seccomp-allows"
        ) as refused,
    ):
        assert refused.process.wait(PATIENCE_SECONDS) == 1
        refused.close()
        assert Path(f"/proc/{pid}").exists()

    assert f"process {pid}" in refused.log


def test_profile_refuses_what_no_container_needs() -> None:
    """Nothing that changes the host, makes a namespace, or reaches into another process by a descriptor."""
    assert "userfaultfd" in allowed()
    assert not allowed() & REFUSED
