"""Where a process runs, by the cgroup paths that kubelet, runtimes and drivers really make."""

import json
from pathlib import Path

import pytest

from wetink.names import LABELS_MAX
from wetink_agent import procfs
from wetink_agent.labels import GIVEN_MAX, Labeller, Place, place_of
from wetink_agent.pods import PodList, PodSource

UID = "3f8c1a2b-4d5e-6f70-8192-a3b4c5d6e7f8"
UNDERSCORED = UID.replace("-", "_")
ID = "4e1f" * 16
NODE = "00aa" * 16
STATIC = "d8f9c1a2b34d5e6f708192a3b4c5d6e7"

NODES_SLICE = f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort-pod{UNDERSCORED}.slice"
SLICE = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice"


@pytest.mark.parametrize(
    "path,place",
    [
        # kubelet's systemd driver, cgroup v2 and v1
        (f"/{SLICE}/cri-containerd-{ID}.scope", Place(UID, ID)),
        (f"/{SLICE}/crio-{ID}.scope", Place(UID, ID)),
        (f"/{SLICE}/crio-{ID}.scope/container", Place(UID, ID)),
        (f"/{SLICE}/docker-{ID}.scope", Place(UID, ID)),
        (f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", Place(UID, ID)),
        # kubelet's cgroupfs driver
        (f"/kubepods/besteffort/pod{UID}/{ID}", Place(UID, ID)),
        (f"/kubepods/pod{UID}/{ID}", Place(UID, ID)),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", Place(UID, ID)),
        # containerd with cgroupfs names where kubelet has slices
        (
            f"/system.slice/containerd.service/kubepods-besteffort-pod{UNDERSCORED}.slice:cri-containerd:{ID}",
            Place(UID, ID),
        ),
        (f"/kubepods-burstable-pod{UNDERSCORED}.slice:cri-containerd:{ID}", Place(UID, ID)),
        # a pod of kubelet's own, whose uid is the hash of its file
        (f"/kubepods/burstable/pod{STATIC}/{ID}", Place(STATIC, ID)),
        # a node that is a container itself
        (f"/docker/{NODE}/{NODES_SLICE}/cri-containerd-{ID}.scope", Place(UID, ID)),
        # what a container makes below itself
        (f"/{SLICE}/cri-containerd-{ID}.scope/docker/{NODE}", Place(UID, ID)),
        (f"/{SLICE}/cri-containerd-{ID}.scope/init.scope", Place(UID, ID)),
        # as seen from another container of the pod, with a cgroup namespace of its own
        (f"/../cri-containerd-{ID}.scope", Place("", ID)),
        (f"/../../pod{UID}/{ID}", Place(UID, ID)),
        # no Kubernetes
        (f"/docker/{ID}", Place("", ID)),
        (f"/system.slice/docker-{ID}.scope", Place("", ID)),
        (f"/docker/{NODE}/docker/{ID}", Place("", ID)),
        (f"/machine.slice/libpod-{ID}.scope/container", Place("", ID)),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", Place("", ID)),
        # neither pod nor container
        (f"/{SLICE}", Place(UID, "")),
        (f"/machine.slice/libpod-conmon-{ID}.scope", Place()),
        (f"/{SLICE}/crio-conmon-{ID}.scope", Place(UID, "")),
        ("/user.slice/user-0.slice/session-1.scope", Place()),
        ("/system.slice/pod-monitor.service", Place()),
        (f"/system.slice/backup-{ID[:63]}.scope", Place()),
        ("/", Place()),
        ("", Place()),
    ],
)
def test_cgroup_path_names_pod_and_container(path: str, place: Place) -> None:
    """And what it does not name is not made up."""
    assert place_of([path]) == place


def test_hierarchy_that_knows_it_decides() -> None:
    """Where cgroup v1 and v2 are mounted together, the unified one often says nothing."""
    assert place_of(["/system.slice/containerd.service", "/", f"/kubepods/pod{UID}/{ID}"]) == Place(UID, ID)


def in_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every process one of a pod's container."""
    monkeypatch.setattr(procfs, "cgroup_paths", lambda _pid: [f"/kubepods/pod{UID}/{ID}"])


def pods_in(directory: Path, name: str = "cart-0") -> PodList:
    """Write a list with that pod."""
    path = directory / "pods.json"
    item = {
        "metadata": {"name": name, "namespace": "shop", "uid": UID},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"containerStatuses": [{"name": "app", "containerID": f"containerd://{ID}"}]},
    }
    path.write_text(json.dumps({"items": [item]}), encoding="utf-8")
    return PodList(PodSource(str(path)))


def test_labels_join_what_was_found_and_what_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an operator said goes first; what is not known is left out and not empty."""
    in_container(monkeypatch)

    assert Labeller({}).labels_of(1) == {"pod_uid": UID, "container_id": ID}
    assert Labeller({"namespace": "mine", "zone": "a"}, pods_in(tmp_path)).labels_of(1) == {
        "pod_uid": UID,
        "container_id": ID,
        "pod": "cart-0",
        "namespace": "mine",
        "container": "app",
        "zone": "a",
    }


def test_host_process_has_only_the_labels_that_were_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The list of pods is not even asked."""
    monkeypatch.setattr(procfs, "cgroup_paths", lambda _pid: ["/system.slice/sshd.service"])

    assert Labeller({"zone": "a"}, PodList(PodSource(str(tmp_path / "absent")))).labels_of(1) == {"zone": "a"}


def test_name_that_cannot_be_a_label_costs_labels_and_no_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The collector would end the stream over it."""
    in_container(monkeypatch)

    assert Labeller({"zone": "a"}, pods_in(tmp_path, name="two\nlines")).labels_of(1) == {"zone": "a"}


def test_given_labels_leave_room_for_those_that_are_found() -> None:
    """With the most that an operator may give, all of them fit the contract."""
    assert GIVEN_MAX + len({"pod", "namespace", "container", "pod_uid", "container_id"}) == LABELS_MAX
