"""Labels on their way: from a cgroup's path, a list of pods and the operator to whoever asks the collector."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.client.command import wetink
from tests.support.agent import HOST, running_agent, start_agent
from tests.support.collector import running_collector
from tests.support.service import PATIENCE_SECONDS, Service, start
from wetink_client import Collector, Selection, TargetInfo

pytestmark = pytest.mark.needs("kernel", "root", "cc")

ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/pids")

UID = "3f8c1a2b-4d5e-6f70-8192-a3b4c5d6e7f8"
ID = f"{os.getpid():064x}"
FOUND = {"container_id": ID, "pod_uid": UID}
NAMED = {"container": "app", "namespace": "shop", "pod": "cart-0"}
PODS = {
    "items": [
        {
            "metadata": {"name": "cart-0", "namespace": "shop", "uid": UID},
            "spec": {"containers": [{"name": "app"}, {"name": "other"}]},
            "status": {"containerStatuses": [{"name": "app", "containerID": f"containerd://{ID}"}]},
        }
    ]
}


@contextmanager
def in_a_pod() -> Iterator[int]:
    """Run a process in a cgroup of the name that kubelet and containerd would give it."""
    root = next((path for path in map(Path, ROOTS) if os.access(path / "cgroup.procs", os.W_OK)), None)
    if root is None:
        pytest.skip(f"none of {', '.join(ROOTS)} is a cgroup hierarchy that may be written")
    pod = root / f"kubepods-pod{UID.replace('-', '_')}.slice"
    container = pod / f"cri-containerd-{ID}.scope"
    container.mkdir(parents=True)
    try:
        with subprocess.Popen(["sleep", "4331.25"]) as process:
            (container / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
            try:
                yield process.pid
            finally:
                process.kill()
    finally:
        container.rmdir()
        with suppress(OSError):  # another run has its container there
            pod.rmdir()


def the_target(client: Collector) -> TargetInfo:
    """Wait until there is a target; gives it."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := client.targets()) and time.monotonic() < until:
        time.sleep(0.05)
    (target,) = found
    return target


def test_what_a_pod_is_called_reaches_whoever_asks(tmp_path: Path) -> None:
    """Found, named and given labels are told by the SDK and the command, and select; a restart keeps them."""
    pods = tmp_path / "pods.json"
    pods.write_text(json.dumps(PODS), encoding="utf-8")
    data = tmp_path / "data"
    with in_a_pod() as pid:
        with (
            running_collector(data) as collector,
            running_agent(
                collector.address, "--pid", str(pid), "--pods", str(pods), "--label", "zone=a", "--label", "tier="
            ),
            Collector(collector.address) as client,
        ):
            target = the_target(client)
            assert target.labels == FOUND | NAMED | {"zone": "a", "tier": ""}
            assert client.targets(Selection(labels=("pod=cart-0", "namespace=other"))) == ()
            chosen = client.dirty(Selection(labels=("pod=cart-0", "namespace=shop")), barrier=True)
            assert list(chosen.targets) == [target.name]
            printed = wetink("--collector", collector.address, "targets", "--label", "pod=cart-0", "--json")
            assert json.loads(printed.stdout)["labels"] == target.labels
        with running_collector(data) as collector, Collector(collector.address) as client:
            (again,) = client.targets()
            assert again.labels == target.labels


def test_labels_of_the_environment_as_the_downward_api_gives_them() -> None:
    """A sidecar has no list of pods: its manifest says which pod it is in."""
    with in_a_pod() as pid, running_collector() as collector, Collector(collector.address) as client:
        arguments = ["--collector", collector.address, "--host-id", HOST, "--pid", str(pid)]
        agent = Service(
            start("wetink_agent.command", arguments, {"WETINK_AGENT_LABEL": "pod=cart-0 namespace=shop"}), "agent"
        )
        try:
            target = the_target(client)
        finally:
            agent.close()

    assert target.labels == FOUND | {"namespace": "shop", "pod": "cart-0"}


def test_pods_that_cannot_be_listed_cost_no_target(tmp_path: Path) -> None:
    """The target is tracked, with what its cgroup says, and the log says what is wrong."""
    with (
        in_a_pod() as pid,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(pid), "--pods", str(tmp_path / "absent")) as agent,
        Collector(collector.address) as client,
    ):
        target = the_target(client)
        warning = agent.wait_for_log("pods_unreadable")
        assert len(agent.events("pods_unreadable")) == 1

    assert target.labels == FOUND
    assert "absent" in warning["why"]


@pytest.mark.parametrize("label", ["nokey", "=x", "a b=c", f"k={'x' * 254}"])
def test_label_that_cannot_be_one_is_refused_at_the_start(label: str) -> None:
    """With the option and what a label looks like, before anything is attached."""
    agent = start_agent("127.0.0.1:1", "--label", label)
    try:
        assert agent.process.wait(PATIENCE_SECONDS) == 2
    finally:
        agent.close()
    assert "(--label)" in agent.log
