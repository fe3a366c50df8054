"""What a target belongs to: labels that an operator gave, and those that its cgroup and a list of pods tell.

The path of a process's cgroup names its container, and its pod where there is one, in the words of whoever made it:
kubelet with the drivers cgroupfs and systemd; containerd, CRI-O, Docker and Podman; under cgroup v1 and v2; whole, or
as seen from another container (``/../``). What the path does not name is not guessed.

Source: kubelet's cgroup_manager_linux.go and the runtimes' own names, as ``tests/unit/agent/test_labels.py`` has them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from wetink.names import LABELS_MAX, NameMalformed, check_labels
from wetink_agent import procfs
from wetink_agent.pods import PodList

_UID: Final = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32}"
_POD: Final = re.compile(rf"(?:[a-z0-9-]+-)?pod(?P<uid>{_UID})(?:\.slice)?")
# Not `crio-conmon-` and `libpod-conmon-`: what watches a container is not in it.
_CONTAINER: Final = re.compile(r"(?:(?:cri-containerd|crio|docker|libpod)-)?(?P<id>[0-9a-f]{64})(?:\.scope)?")
# containerd as it writes for a driver of the other kind: SLICE:cri-containerd:ID, all in one directory.
_SEPARATORS: Final = re.compile(r"[/:]")

GIVEN_MAX: Final = LABELS_MAX - 5
"""Bound on the labels an operator gives: room is left for the five that are found out."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs. Empty means that its cgroup does not say."""

    pod_uid: str = ""
    container_id: str = ""


class Labeller:
    """Gives each target its labels. What an operator said goes before what was found out."""

    def __init__(self, given: Mapping[str, str], pods: PodList | None = None) -> None:
        """Prepare; nothing is read yet.

        Args:
            given: For every target; accepted by ``check_labels``.
            pods: Names the pods of this host.
        """
        self._given = given
        self._pods = pods

    def labels_of(self, pid: int) -> dict[str, str]:
        """Give a process's labels. Waits for the list of pods where that is new, and never for long.

        Raises:
            NoSuchProcess: It is gone.
        """
        place = place_of(procfs.cgroup_paths(pid))
        labels = {"pod_uid": place.pod_uid, "container_id": place.container_id}
        if self._pods is not None and (place.pod_uid or place.container_id):
            labels |= self._pods.find(place.pod_uid, place.container_id)
        labels = {key: value for key, value in labels.items() if value} | dict(self._given)
        try:
            check_labels(labels)
        except NameMalformed as error:
            log.warning("labels_left_out", pid=pid, why=str(error))
            return dict(self._given)
        return labels


def place_of(paths: Iterable[str]) -> Place:
    """Find pod and container in the cgroup paths of a process; the first that names one of them counts."""
    return next((place for path in paths if (place := _place(path)) != Place()), Place())


def _place(path: str) -> Place:
    parts = _SEPARATORS.split(path)
    pods = [(index, match["uid"]) for index, part in enumerate(parts) if (match := _POD.fullmatch(part))]
    if not pods:
        # Of containers within containers the innermost.
        containers = [match["id"] for part in parts if (match := _CONTAINER.fullmatch(part))]
        return Place(container_id=containers[-1] if containers else "")
    # A node may itself be a container, with its own id before the pod; what a container makes below itself comes after.
    index, uid = pods[-1]
    containers = [match["id"] for part in parts[index + 1 :] if (match := _CONTAINER.fullmatch(part))]
    return Place(uid.replace("_", "-"), containers[0] if containers else "")
