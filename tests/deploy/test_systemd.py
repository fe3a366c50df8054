"""The units of deploy/systemd as services, under a systemd that is the first process of a container.

They are installed as docs/operations.md says. What systemd hardens counts as on a host: namespaces, seccomp filters,
dynamic users, credentials. Only ``LimitNOFILE`` is cut to what the engine may give, and there is no CAP_PERFMON.
"""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.deploy.engine import ROOT, CommandFailed, Engine
from tests.deploy.images import BASE, build
from tests.support import programs
from tests.support.reader import Reader
from wetink_client import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("docker", "root", "kernel"), pytest.mark.timeout(1500)]

IMAGE: Final = "wetink-test-systemd"
DOCKERFILE: Final = (
    f"FROM {BASE}\n"
    "RUN apt-get update -q && apt-get install -qy --no-install-recommends systemd\n"
    # It would set variables of the kernel that this machine's other programs live with.
    "RUN systemctl mask systemd-sysctl.service systemd-modules-load.service\n"
    "WORKDIR /source\n"
    "COPY . .\n"
    "RUN {install}\n"
)
# A tree of cgroups of its own, for the engine gives one that is read-only; and mounts that are shared as on a host, for
# credentials come to a service by one. The capabilities are what systemd needs for the units: with --privileged the
# engine asks for every one there is, and not every machine has them all.
BOOT: Final = (
    "umount --recursive /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount --make-rshared /"
    " && exec /lib/systemd/systemd --unit=basic.target"
)
OPTIONS: Final = (
    *(f"--cap-add={name}" for name in ("SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH")),
    *(f"--security-opt={name}=unconfined" for name in ("seccomp", "systempaths")),
    "--cgroupns=private",
    "--network=none",
    *(f"--tmpfs={path}" for path in ("/run", "/run/lock", "/tmp")),  # noqa: S108 - the container's
    "--env=container=docker",
    f"--volume={ROOT / 'deploy'}:/deploy:ro",
)
UNITS: Final = ("wetink-collector.service", "wetink-agent.service")
LOOPBACK: Final = 'listen = "127.0.0.1:7419"'
SOCKET: Final = "/run/wetink/collector.sock"
MEMBER: Final = "setpriv --reuid=games --regid=games --groups=adm"
AGENT: Final = 'host-id = "node1"\ninterval = "100ms"\ncommand = ["^/usr/bin/python3 /writer.py"]\n'
WRITER: Final = (
    "import random, time\n"
    "memory = bytearray(8 << 20)\n"
    "while True:\n"
    "    for _ in range(20):\n"
    "        memory[random.randrange(len(memory))] = random.randrange(256)\n"
    "    time.sleep(0.01)\n"
)
REGISTERED: Final = (
    "grep --count 'VmFlags:.* uw' /proc/$(systemctl show --property=MainPID --value writer)/smaps || true"
)
ROUNDS: Final = 3
PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A container that systemd runs."""

    engine: Engine
    identity: str

    def run(self, command: str) -> str:
        """Run a line of shell as its root; what it printed."""
        return self.engine.docker("exec", self.identity, "sh", "-euc", command)

    def until_done(self, command: str) -> str:
        """Run a line of shell until it ends with 0 and has printed something: a service needs a moment."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                printed, why = self.run(command), "nothing printed"
            except CommandFailed as error:
                printed, why = "", str(error)
            if printed:
                return printed
            assert time.monotonic() < until, f"{why}\n{self.log()}"
            time.sleep(0.2)

    def wetink(self, arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Ask as an operator on the host does, until there is an answer; its first object."""
        return json.loads(self.until_done(f"/opt/wetink/bin/wetink {arguments} --json").splitlines()[0])

    def write(self, path: str, text: str) -> None:
        """Make a file."""
        command = ["docker", "exec", "--interactive", self.identity, "sh", "-c", f"cat >{path}"]
        subprocess.run(command, env=self.engine.environment, input=text, text=True, check=True)

    def show(self, unit: str, what: str) -> str:
        """Give a property of a unit."""
        return self.run(f"systemctl show --property={what} --value {unit}").strip()

    def pid(self, unit: str) -> int:
        """Give the main process of a unit, as this machine numbers it."""
        inner = self.show(unit, "MainPID")
        for name in self.engine.docker("top", self.identity, "-eo", "pid").split()[1:]:
            with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                if status_of(int(name))["NSpid"].split()[-1] == inner:
                    return int(name)
        message = f"{unit} has no process"
        raise AssertionError(message)

    def log(self) -> str:
        """Give what the services have written in this test, without what systemd says of them."""
        return self.run(f"journalctl --output=cat --quiet {' '.join(f'_SYSTEMD_UNIT={unit}' for unit in UNITS)}")

    def start(self, collector: str = LOOPBACK, agent: str = AGENT, *, drop_ins: tuple[str, ...] = ()) -> None:
        """Start both units as an operator has set them."""
        self.write("/etc/wetink/collector.toml", collector)
        self.write("/etc/wetink/agent.toml", agent)
        for drop_in in drop_ins:
            self.run(f"cd /deploy/systemd && cp --parents {drop_in} /etc/systemd/system")
        self.run(f"systemctl daemon-reload && systemctl start {' '.join(UNITS)}")

    def start_target(self, *properties: str) -> None:
        """Start a program of another user, as a service of its own."""
        said = " ".join(f"--property={text}" for text in properties)
        self.run(f"systemd-run --unit=writer --uid=daemon {said} /usr/bin/python3 /writer.py")

    def reset(self) -> None:
        """Take back what a test has started and set."""
        self.run(
            f"systemctl stop writer {' '.join(UNITS)} 2>/dev/null || true; systemctl reset-failed;"
            " rm -rf /etc/wetink/* /etc/systemd/system/wetink-*.d /var/lib/private/wetink; systemctl daemon-reload;"
            " cp /deploy/systemd/*.service /etc/systemd/system;"
            " journalctl --rotate --vacuum-time=1ms --quiet; userdel wetink-agent 2>/dev/null || true"
        )


def status_of(pid: int) -> dict[str, str]:
    """Give the lines of ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def told(heading: str) -> list[str]:
    """Give the commands of a section of the page for operators."""
    section = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    (block, *_) = re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return str(block).splitlines()


@pytest.fixture(scope="module")
def booted(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with the program installed, and the units in place."""
    install = [line for line in told("systemd") if "/opt/wetink" in line]
    dockerfile = tmp_path_factory.mktemp("systemd") / "Dockerfile"
    dockerfile.write_text(DOCKERFILE.format(install=" && ".join(install)), encoding="utf-8")
    build(engine, IMAGE, str(dockerfile))
    identity = engine.docker("run", "--detach", *OPTIONS, "--entrypoint=sh", IMAGE, "-c", BOOT).strip()
    try:
        machine = Machine(engine, identity)
        wait_until_booted(machine)
        copying = [line for line in told("systemd") if line.startswith(("cp ", "install "))]
        machine.run(f"cd / && {' && '.join(copying)}")
        machine.write("/writer.py", WRITER)
        yield machine
    finally:
        engine.docker("rm", "--force", identity)


def wait_until_booted(machine: Machine) -> None:
    """Wait for systemd to answer, and then to be done."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            state = machine.run("systemctl is-system-running || true").strip()
        except CommandFailed as error:
            state = str(error)
        if state == "running":
            return
        assert time.monotonic() < until, f"{state}\n{machine.engine.logs(machine.identity)}"
        time.sleep(0.2)


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The same, and what the test starts there ends with it."""
    booted.reset()
    yield booted
    booted.reset()


def check_copy(machine: Machine, target_pid: int, name: str) -> None:
    """Copy the target round by round by way of the collector's socket, freeze it, and compare."""
    socket = Path(f"/proc/{machine.pid(UNITS[0])}/root{SOCKET}")
    with Collector(f"unix:{socket}") as client, ShadowCopy(target_pid) as copy:
        reader = Reader(client, name, copy)
        for _ in range(ROUNDS):
            reader.read_complete()
        with programs.Stopped(target_pid):
            last = reader.read_complete()
            page_count, found = differences(target_pid, copy.pages)

    assert last.complete
    assert found == []
    assert page_count > 2000


def test_first_dirty_set_and_a_restart_that_keeps_the_store(machine: Machine) -> None:
    """A cursor from before `systemctl restart` is answered after it, in the same incarnation, complete."""
    machine.start()
    machine.start_target()
    target = machine.wetink("targets")
    before = machine.wetink(f"dirty {target['name']} --barrier")
    pid = machine.show(UNITS[0], "MainPID")
    machine.run(f"systemctl restart {UNITS[0]}")
    after = machine.wetink(f"dirty {target['name']} --barrier --since {before['cursor']}")

    assert target["pid"] == int(machine.show("writer", "MainPID"))
    assert before["complete"]
    assert before["pages"] > 2000
    assert machine.show(UNITS[0], "MainPID") != pid
    assert (after["target"], after["incarnation"]) == (before["target"], before["incarnation"])
    assert after["complete"]
    # With rounds merged across the cursor it may be all again, and then says that it is not exact.
    assert 0 < after["pages"] < before["pages"] or not after["exact"]


@pytest.mark.parametrize("verb", ["restart", "reload"])
def test_agent_that_is_started_again_goes_on_with_its_targets(machine: Machine, verb: str) -> None:
    """The descriptor store, or the keeper, has what the next one needs: one incarnation, and the cursor is good."""
    machine.start()
    machine.start_target()
    target = machine.wetink("targets")
    before = machine.wetink(f"dirty {target['name']} --barrier")
    pid = machine.show(UNITS[1], "MainPID")
    machine.run(f"systemctl {verb} {UNITS[1]}")
    machine.until_done(f"journalctl --output=cat --quiet _SYSTEMD_UNIT={UNITS[1]} | grep target_continued")
    after = machine.wetink(f"dirty {target['name']} --barrier --since {before['cursor']}")

    assert (machine.show(UNITS[1], "MainPID") == pid) == (verb == "reload")
    assert after["incarnation"] == before["incarnation"]
    assert after["complete"]
    assert machine.show("writer", "ActiveState") == "active"


def test_agent_that_is_started_again_with_other_options_does_what_they_say(machine: Machine) -> None:
    """What they leave out is untracked, and nothing of it is registered any more; the program runs on."""
    machine.start()
    machine.start_target()
    target = machine.wetink("targets")
    machine.write("/etc/wetink/agent.toml", AGENT.replace("writer.py", "nobody.py"))
    machine.run(f"systemctl restart {UNITS[1]}")
    machine.until_done(f"journalctl --output=cat --quiet _SYSTEMD_UNIT={UNITS[1]} | grep target_not_continued")
    until = time.monotonic() + PATIENCE_SECONDS
    while (ended := machine.wetink("targets"))["live"]:
        assert time.monotonic() < until, ended
        time.sleep(0.1)

    assert (ended["name"], ended["end_reason"]) == (target["name"], "untracked")
    wait_until_not_registered(machine)
    assert machine.show("writer", "ActiveState") == "active"


def wait_until_not_registered(machine: Machine) -> None:
    """Wait until the kernel has nothing registered any more."""
    until = time.monotonic() + PATIENCE_SECONDS
    while machine.run(REGISTERED).strip() != "0":
        assert time.monotonic() < until
        time.sleep(0.1)


def test_agent_that_is_stopped_leaves_nothing_behind(machine: Machine) -> None:
    """A stop empties the store: the kernel unregisters, and the next start begins anew."""
    machine.start()
    machine.start_target()
    target = machine.wetink("targets")
    machine.wetink(f"dirty {target['name']} --barrier")

    assert machine.run(REGISTERED).strip() != "0"
    machine.run(f"systemctl stop {UNITS[1]}")
    wait_until_not_registered(machine)


def test_logs_are_json_and_nothing_is_started_twice(machine: Machine) -> None:
    """What the journal has is for machines to read, from the first line to the last; both end with 0."""
    machine.start()
    machine.start_target()
    machine.wetink("targets")
    machine.run(f"systemctl stop {' '.join(UNITS)}")
    events = [json.loads(line)["event"] for line in machine.log().splitlines()]

    assert {"listening", "agent_started", "connected", "agent_stopped", "stopped"} <= set(events)
    for unit in UNITS:
        assert [machine.show(unit, name) for name in ("NRestarts", "Result", "ExecMainStatus")] == ["0", "success", "0"]
    assert machine.show("writer", "ActiveState") == "active"


def test_rights_are_those_of_the_units(machine: Machine) -> None:
    """Neither is root; each has a seccomp filter, no way to more rights, and the capabilities of its unit alone."""
    machine.start()
    collector, agent = (status_of(machine.pid(unit)) for unit in UNITS)

    assert int(collector["CapBnd"], 16) == 0
    assert int(agent["CapEff"], 16) == int(agent["CapBnd"], 16) == 1 << 2 | 1 << 19  # DAC_READ_SEARCH, SYS_PTRACE
    for status in (collector, agent):
        assert "0" not in status["Uid"].split()
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"


def test_target_under_a_filter_takes_the_drop_in(machine: Machine) -> None:
    """Refused with the sentence that says what it takes; tracked where the drop-in gives that."""
    machine.start()
    machine.start_target("SystemCallFilter=~userfaultfd")
    until = time.monotonic() + PATIENCE_SECONDS
    while "CAP_SYS_ADMIN" not in machine.log():
        assert time.monotonic() < until, machine.log()
        time.sleep(0.2)
    machine.run(f"systemctl stop {UNITS[1]}")
    machine.start(drop_ins=("wetink-agent.service.d/suspend-seccomp.conf",))
    target = machine.wetink("targets")

    assert machine.wetink(f"dirty {target['name']} --barrier")["complete"]
    assert status_of(machine.pid(UNITS[1]))["Seccomp"] == "0"


def test_users_are_told_apart_at_a_socket(machine: Machine) -> None:
    """With the drop-in, agent and reader each have their role by user or group; the copy is the same in every byte."""
    machine.run("useradd --system --no-create-home --shell /usr/sbin/nologin wetink-agent")
    machine.start(
        f'listen = "unix:{SOCKET}"\nunix-allow = ["wetink-agent:agent:node1", "@adm:reader", "root:reader"]',
        f'collector = "unix:{SOCKET}"\n{AGENT}',
        drop_ins=("wetink-collector.service.d/unix-socket.conf",),
    )
    machine.start_target()
    answer = machine.wetink(f"--collector unix:{SOCKET} targets")
    asked = f"{MEMBER} /opt/wetink/bin/wetink --collector unix:{SOCKET}"

    assert answer["name"] in machine.run(f"{asked} targets --json")
    with pytest.raises(CommandFailed, match="admin"):
        machine.run(f"{asked} track node1 1")
    check_copy(machine, machine.pid("writer"), answer["name"])


def test_without_the_drop_in_only_root_has_a_number(machine: Machine) -> None:
    """In the unit's own user namespace everybody else is nobody in particular, and refused."""
    machine.start(f'listen = "unix:{SOCKET}"\nunix-allow = ["@adm:reader", "root:reader"]')
    asked = f"/opt/wetink/bin/wetink --collector unix:{SOCKET} hosts"
    machine.until_done(asked)

    with pytest.raises(CommandFailed, match="this user may do nothing here"):
        machine.run(f"{MEMBER} {asked}")


def test_private_keys_stay_with_root(machine: Machine) -> None:
    """As the units' comments have it: systemd hands over the keys, whose files nobody else can read."""
    machine.run(
        "cd /etc/wetink && /opt/wetink/bin/wetink-collector init-pki pki --host node1 --name localhost >&2"
        " && cp pki/collector.key tls.key && cp pki/agent-node1.key agent.key && chmod 600 tls.key agent.key"
        " && mkdir --mode=700 own && mv pki/*.key own && chmod 755 pki && chmod 644 pki/*"
        " && sed --in-place 's/^#LoadCredential/LoadCredential/' /etc/systemd/system/wetink-*.service"
    )
    machine.start(
        f'{LOOPBACK}\ntls-cert = "/etc/wetink/pki/collector.pem"\ntls-client-ca = "/etc/wetink/pki/ca.pem"\n'
        'tls-key = "/run/credentials/wetink-collector.service/tls.key"\n',
        'collector = "localhost:7419"\ntls-ca = "/etc/wetink/pki/ca.pem"\n'
        'tls-cert = "/etc/wetink/pki/agent-node1.pem"\n'
        f'tls-key = "/run/credentials/wetink-agent.service/tls.key"\n{AGENT}',
    )
    machine.start_target()
    reader = (
        "--collector localhost:7419 --tls-ca /etc/wetink/pki/ca.pem"
        " --tls-cert /etc/wetink/pki/reader.pem --tls-key /etc/wetink/own/reader.key"
    )

    assert machine.wetink(f"{reader} dirty --host node1 --barrier")["complete"]
