"""The manifests of deploy/k8s, as kubectl renders them, with Docker in the kubelet's place.

Users, capabilities, seccomp profiles, namespaces, limits, arguments and environment are those of the manifests. What
only a cluster has is left out: the collector is reached by a socket instead of TLS, and names come from here.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.engine import Engine
from tests.support import programs
from tests.support.kustomize import K8S, Manifest, containers, pods, rendered
from tests.support.reader import Reader
from wetink_client import Collector, Selection
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("docker", "root", "kernel"), pytest.mark.timeout(1500)]

VOLUME: Final = "wetink-k8s"
ROUNDS: Final = 3
PATIENCE_SECONDS: Final = 30.0
NAMES: Final = {"POD_NAME": "cart-0", "POD_NAMESPACE": "shop", "POD_UID": "4711", "NODE_NAME": "node-1"}
ELSEWHERE: Final = ("--collector=", "--tls-")
"""What the arguments have that only a cluster has."""

# In the place of the kubelet's pause and of the example's redis.
PAUSE: Final = ("--entrypoint=bash", "--no-healthcheck", "wetink-agent", "-c", "exec -a /pause sleep infinity")
WRITER: Final = (
    "import random, time\n"
    "memory = bytearray(8 << 20)\n"
    "while True:\n"
    "    for _ in range(20):\n"
    "        memory[random.randrange(len(memory))] = random.randrange(256)\n"
    "    time.sleep(0.01)\n"
)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    """Run the collector as its manifest has it; where it is reached."""
    manifest = containers(rendered("base"))["wetink-collector/collector"]
    with running(engine, [*bounds(manifest), "--network=none", "--no-healthcheck", "wetink-collector"]):
        yield f"unix:{engine.volume(VOLUME)}/collector.sock"
    engine.docker("volume", "rm", VOLUME)


def bounds(manifest: Manifest) -> list[str]:
    """Translate what a manifest says of a container's rights and limits into options of docker run."""
    security, options = manifest["securityContext"], [f"--volume={VOLUME}:/run/wetink"]
    if "runAsUser" in security:
        options.append(f"--user={security['runAsUser']}:{security['runAsGroup']}")
    if security["readOnlyRootFilesystem"]:
        options.append("--read-only")
    if not security["allowPrivilegeEscalation"]:
        options.append("--security-opt=no-new-privileges")
    capabilities = security["capabilities"]
    options += [f"--cap-drop={name}" for name in capabilities["drop"]]
    options += [f"--cap-add={name}" for name in capabilities.get("add", ())]
    match security["seccompProfile"]:
        case {"type": "Localhost", "localhostProfile": str(path)}:
            options.append(f"--security-opt=seccomp={K8S / 'seccomp' / Path(path).name}")
        case {"type": "Unconfined"}:
            options.append("--security-opt=seccomp=unconfined")
        case profile:
            assert profile == {"type": "RuntimeDefault"}
    limit = manifest["resources"]["limits"]["memory"]
    return [*options, f"--memory={re.sub('i$', '', limit).lower()}"]


def agent_of(manifest: Manifest, *, without: str = "") -> list[str]:
    """Give what docker run takes for an agent as its manifest has it, perhaps without one of its capabilities."""
    options = [option for option in bounds(manifest) if option != f"--cap-add={without}"]
    names = dict(NAMES)
    for variable in manifest["env"]:
        # What asks the cluster for its pods has nobody to ask here.
        if variable["name"] not in {*NAMES, "WETINK_AGENT_PODS"}:
            names[variable["name"]] = expanded(variable["value"], names) if "value" in variable else NAMES["NODE_NAME"]
    arguments = [expanded(text, names) for text in manifest["args"] if not text.startswith(ELSEWHERE)]
    return [
        *options,
        *(f"--env={name}={value}" for name, value in names.items()),
        "--network=none",
        "--no-healthcheck",  # a kubelet runs none
        "--group-add=65532",  # the socket's
        "wetink-agent",
        "--collector=unix:/run/wetink/collector.sock",
        *arguments,
    ]


def expanded(text: str, names: Mapping[str, str]) -> str:
    """Put values in the place of ``$(NAME)``, as a kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda found: names[found[1]], text)


@contextmanager
def running(engine: Engine, arguments: Sequence[str]) -> Iterator[str]:
    """Run a container while the body runs; its id."""
    identity = engine.docker("run", "--detach", *arguments).strip()
    try:
        yield identity
    finally:
        engine.docker("rm", "--force", identity)


def program_of(manifest: Manifest, *more: str) -> list[str]:
    """Give what docker run takes for a program with the rights of the example's."""
    return [*bounds(manifest), *more, "--network=none", "--entrypoint=python3", "wetink-agent", "-c", WRITER]


def wait_until_started(engine: Engine, agent: str) -> None:
    """Ask as the manifest's startup probe does, until the agent serves: in its network namespace, where it listens."""
    wetink = Path(sys.executable).with_name("wetink")
    probe = ["nsenter", f"--net=/proc/{engine.pid(agent)}/ns/net", str(wetink), "health", "--collector=127.0.0.1:7420"]
    until = time.monotonic() + PATIENCE_SECONDS
    while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        assert time.monotonic() < until, engine.logs(agent)


def check_copy(address: str, target: str, pid: int) -> None:
    """Copy a target round by round, freeze it, and compare."""
    with Collector(address) as client, ShadowCopy(pid) as copy:
        reader = Reader(client, target, copy)
        for _ in range(ROUNDS):
            reader.read_complete()
        with programs.Stopped(pid):
            last = reader.read_complete()
            page_count, found = differences(pid, copy.pages)

    assert last.complete
    assert found == []
    assert page_count > 2000


def inner_pid(pid: int) -> int:
    """Give a process's number in its own pid namespace."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (numbers,) = re.findall(r"^NSpid:\s+(.*)$", status, re.MULTILINE)
    return int(numbers.split()[-1])


@contextmanager
def pod_of_the_example(engine: Engine, *, without: str = "") -> Iterator[tuple[str, str]]:
    """Start the example's pod: what holds its namespaces, the agent, the program; ids of the latter two."""
    manifests = rendered("example")
    ((_, pod),) = pods(manifests)
    agent, program = containers(manifests).values()
    assert pod["shareProcessNamespace"]
    with ExitStack() as pod_of:
        held = pod_of.enter_context(running(engine, ["--network=none", *PAUSE]))
        shared = f"--pid=container:{held}"
        sidecar = pod_of.enter_context(running(engine, [shared, *agent_of(agent, without=without)]))
        wait_until_started(engine, sidecar)
        yield sidecar, pod_of.enter_context(running(engine, [shared, "--no-healthcheck", *program_of(program)]))


def test_sidecar_tracks_the_program_of_its_pod(engine: Engine, address: str) -> None:
    """Started before it, with what the manifest grants and no more; the pod's names are the target's labels."""
    with pod_of_the_example(engine) as (_, program):
        pid = engine.pid(program)
        target = f"shop.cart-0/{inner_pid(pid)}"
        check_copy(address, target, pid)
        with Collector(address) as client:
            (found,) = [one for one in client.targets(Selection(hosts=("shop.cart-0",))) if one.pid == inner_pid(pid)]

    assert {"pod": "cart-0", "namespace": "shop", "pod_uid": "4711", "node": "node-1"}.items() <= found.labels.items()


@pytest.mark.parametrize("capability", ["SYS_PTRACE", "DAC_READ_SEARCH"])
def test_sidecar_with_one_capability_less_says_which(engine: Engine, address: str, capability: str) -> None:
    """It lives on, tracks nothing, and its log names what the manifest has to grant."""
    assert address
    with pod_of_the_example(engine, without=capability) as (agent, _):
        until = time.monotonic() + PATIENCE_SECONDS
        while f"CAP_{capability}" not in (log := engine.logs(agent)):
            assert time.monotonic() < until, log
            time.sleep(0.1)

    assert '"event": "target_refused"' in log


@pytest.mark.parametrize(
    "components,is_default", [((), False), (("suspend-seccomp",), True)], ids=["target.json", "RuntimeDefault"]
)
def test_agent_of_a_node_tracks_a_program_in_any_pod(
    engine: Engine, address: str, components: tuple[str, ...], tmp_path: Path, *, is_default: bool
) -> None:
    """One that has the profile; with one more component, one under the runtime's own."""
    manifests = rendered("overlays/daemonset", *components, into=tmp_path)
    agent = containers(manifests)["wetink-agent/agent"]
    assert dict(pods(manifests))["wetink-agent"]["hostPID"]
    program = dict(containers(rendered("example"))["cart/redis"])
    if is_default:
        program["securityContext"] = {**program["securityContext"], "seccompProfile": {"type": "RuntimeDefault"}}
    with (
        running(engine, ["--pid=host", *agent_of(agent)]) as started,
        running(engine, ["--no-healthcheck", *program_of(program)]) as target,
        Collector(address) as client,
    ):
        wait_until_started(engine, started)
        pid = engine.pid(target)
        name = client.track("node-1", pid).name
        check_copy(address, name, pid)
