"""The manifests of ``deploy/k8s`` as kubectl renders them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

K8S: Final = Path(__file__).resolve().parents[2] / "deploy" / "k8s"

Manifest: TypeAlias = Mapping[str, Any]


def rendered(name: str, *components: str, into: Path | None = None) -> list[Manifest]:
    """Render a directory of ``deploy/k8s``, with components of it besides.

    Args:
        name: The directory, or any other's absolute path.
        components: Directories below ``components``.
        into: An empty directory, where there are components: what puts them together is written there.
    """
    directory = K8S / name
    if components:
        assert into is not None
        here, base = into.resolve(), os.path.relpath(K8S, into.resolve())
        made = {
            "kind": "Kustomization",
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "resources": [os.path.relpath(directory, here)],
            "components": [f"{base}/components/{component}" for component in components],
        }
        directory = into
        (into / "kustomization.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    # The one in the lock: Debian's knows no components.
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Give the pod spec of each workload, by the workload's name."""
    for manifest in manifests:
        if "template" in manifest.get("spec", {}):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def containers(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """Give each container by its workload's name and its own, with what its pod says of security beneath."""
    found: dict[str, Manifest] = {}
    for workload, pod in pods(manifests):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
            found[f"{workload}/{container['name']}"] = {**container, "securityContext": security}
    return found
