import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tests.deploy.engine import ROOT, CommandFailed, Engine, run
from tests.deploy.images import BASE, build
from tests.support import programs
from tests.support.reader import Reader
from wetink_client import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("docker", "root", "kernel"), pytest.mark.timeout(1500)]

PROJECT: Final = "wetink-test"
FILE: Final = ROOT / "deploy" / "compose.yaml"
UP_SECONDS_MAX: Final = 180.0
CLIENTS: Final = (("docker-compose",), ("docker", "compose"))
"""Compose 1.29, as Debian has it, and Compose 2, where its plugin is installed."""

ROUNDS: Final = 5
LISTENING: Final = "0A"


@dataclass(frozen=True, slots=True)
class Stack:
    """What ``compose.yaml`` has started."""

    engine: Engine
    client: tuple[str, ...]

    def compose(self, *arguments: str) -> str:
        """Run Compose on it."""
        environment = {
            **self.engine.environment,
            "BASE_IMAGE": BASE,
            "WETINK_BUILD_NETWORK": "host",
            "WETINK_INTERVAL": "100ms",
            "PROMETHEUS_IMAGE": "wetink-test-prometheus",
        }
        command = [*self.client, f"--project-name={PROJECT}", f"--file={FILE}", *arguments]
        return run(command, environment, deadline_seconds=UP_SECONDS_MAX)

    def state(self, service: str) -> Any:  # noqa: ANN401 - JSON
        """Give what the engine says of a service's container."""
        container = self.compose("ps", "--quiet", service).strip()
        return json.loads(self.engine.docker("inspect", container))[0]

    def pid(self, service: str) -> int:
        """Give the first process of a service, as the host numbers it."""
        return int(self.state(service)["State"]["Pid"])

    @property
    def address(self) -> str:
        """Where the collector is reached from the host, by its volume."""
        return f"unix:{self.engine.volume(f'{PROJECT}_socket')}/collector.sock"


@pytest.fixture(scope="module", params=CLIENTS, ids=" ".join)
def stack(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Collector, agent and workload, as an operator starts them."""
    client: tuple[str, ...] = request.param
    if not works(client):
        pytest.skip(f"needs Compose: `{' '.join(client)} version` fails here")
    stack = Stack(engine, client)
    try:
        stack.compose("up", "--detach")
        yield stack
    except CommandFailed as error:
        error.add_note(stack.compose("logs", "--tail=30"))
        raise
    finally:
        stack.compose("--profile=monitoring", "down", "--volumes")


def works(client: Sequence[str]) -> bool:
    """Whether there is this client."""
    return (
        shutil.which(client[0]) is not None
        and not subprocess.run([*client, "version"], check=False, capture_output=True).returncode
    )


def time_of(text: str) -> datetime:
    """Read a time as the engine writes it, with nanoseconds."""
    return datetime.fromisoformat(text[:26] + "+00:00")


def status_of(pid: int) -> dict[str, str]:
    """Give the lines of ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_workload_of_another_container_has_an_identical_copy(stack: Stack) -> None:
    """Copied round by round by what the collector answers, the frozen workload is the same in every byte."""
    pid = stack.pid("workload")
    with Collector(stack.address) as client, ShadowCopy(pid) as copy:
        reader = Reader(client, f"docker/{pid}", copy)
        for _ in range(ROUNDS):
            reader.read_complete()
        with programs.Stopped(pid):
            last = reader.read_complete()
            page_count, found = differences(pid, copy.pages)

    assert last.complete
    assert found == []
    assert page_count > 1000


def test_answer_is_the_same_from_within(stack: Stack) -> None:
    """As the README has it: the collector's container answers, and names the target by the pid that the host gives."""
    pid = stack.pid("workload")
    told = json.loads(stack.compose("exec", "-T", "collector", "wetink", "targets", "--json"))
    dirty = json.loads(
        stack.compose("exec", "-T", "collector", "wetink", "dirty", "--host=docker", "--barrier", "--json")
    )

    assert told["pid"] == pid
    assert dirty["complete"]
    assert dirty["pages"] > 1000


def test_target_has_its_container_as_a_label(stack: Stack) -> None:
    """So that an orchestrator selects by the id that Docker gives."""
    with Collector(stack.address) as client:
        (target,) = client.targets()

    assert stack.state("workload")["Id"].startswith(target.labels["container_id"])


def test_each_starts_when_the_one_before_is_healthy(stack: Stack) -> None:
    """The workload starts last, so that all of its life is tracked."""
    states = [stack.state(service)["State"] for service in ("collector", "agent", "workload")]
    started = [time_of(state["StartedAt"]) for state in states]
    healthy = [
        time_of(next(probe["End"] for probe in state["Health"]["Log"] if probe["ExitCode"] == 0))
        for state in states[:2]
    ]

    assert started[0] < healthy[0] < started[1] < healthy[1] < started[2]


def test_rights_are_those_of_the_file(stack: Stack) -> None:
    """The agent has three capabilities, the others none, and nobody a way to more."""
    agent, collector, workload = (status_of(stack.pid(name)) for name in ("agent", "collector", "workload"))

    assert int(agent["CapEff"], 16) == 1 << 2 | 1 << 19 | 1 << 21  # DAC_READ_SEARCH, SYS_PTRACE, SYS_ADMIN
    for status in (agent, collector, workload):
        assert status["CapBnd"] == status["CapPrm"] == status["CapEff"]
        assert status["NoNewPrivs"] == "1"
    for status in (collector, workload):
        assert int(status["CapEff"], 16) == 0
        assert "0" not in status["Uid"].split()
        assert status["Seccomp"] == "2"
    for name in ("agent", "collector", "workload"):
        assert stack.state(name)["HostConfig"]["ReadonlyRootfs"], name


@pytest.mark.parametrize("name", ["collector", "agent", "workload"])
def test_nothing_listens_but_on_loopback(stack: Stack, name: str) -> None:
    """Without TLS nobody comes over the network."""
    for family in ("tcp", "tcp6"):
        table = Path(f"/proc/{stack.pid(name)}/net/{family}").read_text(encoding="ascii").splitlines()[1:]
        for _, local, _, state, *_ in (line.split() for line in table):
            assert state != LISTENING or address_of(local).is_loopback, local


def address_of(field: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address as the kernel's tables have it: words in this machine's order, then the port."""
    words = bytes.fromhex(field.partition(":")[0])
    return ipaddress.ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4)))


def test_prometheus_has_the_metrics_and_the_alerts(stack: Stack, tmp_path: Path) -> None:
    """With the profile, as an operator asks for it; the program is Debian's, in an image like the usual one."""
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE}\n"
        "RUN apt-get update -q && apt-get install -qy --no-install-recommends prometheus\n"
        "RUN install -d -o nobody /prometheus\n"
        "USER nobody\n"
        'ENTRYPOINT ["prometheus"]\n'
        'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]\n',
        encoding="ascii",
    )
    build(stack.engine, "wetink-test-prometheus", str(tmp_path / "Dockerfile"))
    stack.compose("--profile=monitoring", "up", "--detach", "prometheus")
    # It scrapes every few seconds; what it says is asked for until it has.
    ask = "until promtool query instant http://127.0.0.1:9090 \"$1\" | grep -q '=>'; do sleep 0.5; done"

    for query in ('up{job=~".*wetink-collector.*"} == 1', "wetink_hosts == 1", "sum(wetink_targets) >= 1"):
        stack.compose("exec", "-T", "prometheus", "timeout", "60", "sh", "-c", ask, "sh", query)
