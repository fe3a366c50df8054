"""The seccomp profiles of ``deploy/k8s`` let the agent and its targets do what they do, as the kernel filters them.

No container runtime is needed: a filter is made of the profile's names. Conditions on arguments are left out, so that
what a condition would refuse is not tried here.
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
REFUSED: Final = {"bpf", "init_module", "kexec_load", "mount", "reboot", "setns", "unshare", "keyctl", "io_uring_setup"}

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def allowed(profile: str) -> set[str]:
    """Give the calls that a profile allows, whatever their arguments."""
    rules = json.loads((K8S / "seccomp" / f"{profile}.json").read_text(encoding="utf-8"))["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def filter_of(profile: str) -> bytes:
    """Make the filter of a profile."""
    header = next(path for path in HEADERS if path.exists()).read_text(encoding="ascii")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header)}
    code = [(_LOAD, 0, 0, 0)]
    for name in sorted(allowed(profile) & numbers.keys()):
        code += [(_JUMP_IF_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ALLOW)]
    # As the profile has it: clone3 is not there at all, so that the C library falls back to clone.
    code += [(_JUMP_IF_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | 38)]
    code += [(_RETURN, 0, 0, _ERRNO | 1)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


@contextmanager
def compiled(profile: str) -> Iterator[str]:
    """Write the filter of a profile where another user can read it."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory, "filter")
        path.write_bytes(filter_of(profile))
        yield str(path)


@contextmanager
def target(profile: str) -> Iterator[int]:
    """Run a writer of another user under a profile; its pid."""
    with compiled(profile) as path:
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
def agent(profile: str, *arguments: str) -> Iterator[Service]:
    """Run an agent as the manifests do: as root with two capabilities, under a profile."""
    wanted = "-all,+sys_ptrace,+dac_read_search"
    rights = ["--no-new-privs", f"--bounding-set={wanted}", f"--inh-caps={wanted}"]
    run = [sys.executable, "-c", "from wetink_agent.command import main; main()", "--host-id", HOST, *arguments]
    with compiled(profile) as path:
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
        target("target") as pid,
        agent(
            "agent", "--collector", collector.address, "--interval", "50ms", "--pid", str(pid), "--seccomp-allows"
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


def test_agent_under_the_profile_of_targets_says_what_it_lacks() -> None:
    """Its own profile allows more for a reason: without, it cannot take the descriptor, and the process lives on."""
    with (
        target("target") as pid,
        agent("target", "--collector", "127.0.0.1:1", "--pid", str(pid), "--seccomp-allows") as refused,
    ):
        assert refused.process.wait(PATIENCE_SECONDS) == 1
        refused.close()
        assert Path(f"/proc/{pid}").exists()

    assert f"process {pid}" in refused.log


@pytest.mark.parametrize("profile", ["agent", "target"])
def test_profile_refuses_what_no_container_needs(profile: str) -> None:
    """Nothing that changes the host, or makes a namespace."""
    assert "userfaultfd" in allowed(profile)
    assert not allowed(profile) & REFUSED


def test_profile_of_the_agent_allows_little_more_than_that_of_targets() -> None:
    """What it takes to track, by name."""
    assert allowed("agent") - allowed("target") == {"perf_event_open", "pidfd_getfd"}
