import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from tests.conventions.tools import ROOT
from tests.support.kustomize import K8S, Manifest, containers, pods, rendered
from wetink_agent.command import agent as agent_command
from wetink_collector.caller import of_certificate
from wetink_collector.command import collector as collector_command

RENDERED = ("base", "cert-manager", "seccomp", "example", "overlays/daemonset", "overlays/sidecar")
COMPONENTS = ("service-monitor", "suspend-seccomp", "events", "csi-certificates")
# Of operators: no schema of Kubernetes has them.
FOREIGN = frozenset({"monitoring.coreos.com/v1", "cert-manager.io/v1", "policy.cert-manager.io/v1alpha1"})
CSI = "csi.cert-manager.io/"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def capabilities_of(row: str) -> set[str]:
    """Give the capabilities that the README's table names for a kind of targets."""
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)$", README, re.MULTILINE)
    return set(re.findall(r"`CAP_([A-Z_]+)`", line))


@pytest.mark.parametrize("name", RENDERED)
def test_manifest_is_valid(name: str) -> None:
    """Kubernetes' own schemas have no complaint, about unknown fields either."""
    manifests = rendered(name)

    assert manifests
    for manifest in manifests:
        if manifest["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", ["base", "overlays/daemonset", "overlays/sidecar"])
def test_manifest_is_valid_with_every_component_that_fits(name: str, tmp_path: Path) -> None:
    """Components change what is there, or add; what comes out is valid too."""
    fitting = COMPONENTS if name == "overlays/daemonset" else COMPONENTS[:1]
    manifests = rendered(name, *fitting, into=tmp_path)

    assert any(manifest["kind"] == "ServiceMonitor" for manifest in manifests)
    for manifest in manifests:
        if manifest["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", RENDERED)
def test_no_container_has_more_than_it_needs(name: str) -> None:
    """No privilege, no way to one, nothing to write to but its volumes, a profile, a limit of memory."""
    for where, container in containers(rendered(name)).items():
        security = container["securityContext"]
        assert security["privileged"] is False, where
        assert security["allowPrivilegeEscalation"] is False, where
        assert security["readOnlyRootFilesystem"] is True, where
        assert security["capabilities"]["drop"] == ["ALL"], where
        assert security["seccompProfile"]["type"] in {"RuntimeDefault", "Localhost"}, where
        assert "memory" in container["resources"]["limits"], where


def test_only_the_agent_adds_capabilities_and_only_what_writes_for_root_is_root() -> None:
    """The collector and the example are nobody in particular."""
    found = containers([*rendered("overlays/daemonset"), *rendered("example")])
    added = {where for where, container in found.items() if container["securityContext"]["capabilities"].get("add")}
    root = {where for where, container in found.items() if not container["securityContext"].get("runAsNonRoot")}

    assert added == {"wetink-agent/agent", "cart/wetink-agent"}
    assert root == added | {"wetink-seccomp/profiles"}


@pytest.mark.parametrize(
    "components,row,more",
    [
        ((), "under a seccomp filter that allows `userfaultfd`", set()),
        (("suspend-seccomp",), "under a seccomp filter", set()),
        (("events",), "with `--events`", set()),
        (("suspend-seccomp", "events"), "under a seccomp filter", {"PERFMON"}),
    ],
)
def test_agent_of_a_node_has_what_the_readme_says(
    components: tuple[str, ...], row: str, more: set[str], tmp_path: Path
) -> None:
    """Each capability by its name, and the options and the profile that go with them."""
    agent = containers(rendered("overlays/daemonset", *components, into=tmp_path))["wetink-agent/agent"]
    security = agent["securityContext"]

    assert set(security["capabilities"]["add"]) == capabilities_of(row) | more
    suspends = "suspend-seccomp" in components
    assert security["seccompProfile"]["type"] == ("Unconfined" if suspends else "RuntimeDefault")
    assert "--seccomp-allows" in agent["args"]
    assert ("--events" in agent["args"]) == ("events" in components)


def test_sidecar_has_what_the_readme_says() -> None:
    """A native sidecar in a shared pid namespace, before the program, with two capabilities; the program has none."""
    ((_, pod),) = pods(rendered("example"))
    agent, program = containers(rendered("example")).values()

    assert pod["shareProcessNamespace"] is True
    assert "hostPID" not in pod
    assert pod["initContainers"][0]["restartPolicy"] == "Always"
    assert "startupProbe" in pod["initContainers"][0]
    assert set(agent["securityContext"]["capabilities"]["add"]) == capabilities_of(
        "under a seccomp filter that allows `userfaultfd`"
    )
    assert "--seccomp-allows" in agent["args"]
    assert agent["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert program["securityContext"]["seccompProfile"]["localhostProfile"] == "wetink/target.json"


def test_sidecar_keeps_what_the_workload_has(tmp_path: Path) -> None:
    """Its own init containers, volumes and labels stay; a workload without the label is left as it is."""
    workload = (K8S / "example" / "workload.yaml").read_text(encoding="utf-8").rpartition("---\n")[2]
    own = workload.replace(
        "      containers:",
        "      volumes: [{name: own, emptyDir: {}}]\n"
        "      initContainers: [{name: own, image: own}]\n"
        "      containers:",
    )
    plain = workload.replace("name: cart", "name: plain").replace('  labels:\n    wetink/sidecar: "true"\n', "")
    (tmp_path / "own.yaml").write_text(f"{own}---\n{plain}", encoding="utf-8")
    (tmp_path / "made").mkdir()
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "own.yaml").rename(base / "own.yaml")
    (base / "kustomization.yaml").write_text("resources: [own.yaml]\n", encoding="utf-8")
    found = dict(pods(rendered(str(base), "sidecar", into=tmp_path / "made")))

    assert {one["name"] for one in found["cart"]["initContainers"]} == {"own", "wetink-agent"}
    assert {one["name"] for one in found["cart"]["volumes"]} == {"own", "wetink-tls"}
    assert "initContainers" not in found["plain"]
    assert "shareProcessNamespace" not in found["plain"]


def test_every_option_of_a_manifest_is_one_of_its_command() -> None:
    """A container that ends with "no such option" is found here, and not on a node."""
    parameters = {
        "wetink-agent": signature(agent_command).parameters,
        "wetink-collector": signature(collector_command).parameters,
    }
    found = containers([*rendered("overlays/daemonset"), *rendered("example")])
    told = [(where, container) for where, container in found.items() if container["image"].startswith("wetink-")]

    assert {where for where, container in told if "args" in container} == {
        "wetink-collector/collector",
        "wetink-agent/agent",
        "cart/wetink-agent",
    }
    for where, container in told:
        known = parameters[container["image"].partition(":")[0]]
        prefix = container["image"].partition(":")[0].upper().replace("-", "_") + "_"
        options = {argument.removeprefix("--").partition("=")[0] for argument in container.get("args", ())}
        variables = {one["name"] for one in container.get("env", ()) if one["name"].startswith(prefix)}
        names = {option.replace("-", "_") for option in options}
        names |= {variable.removeprefix(prefix).lower() for variable in variables}
        assert names <= known.keys(), where


def csi_agents(tmp_path: Path) -> Iterator[tuple[Manifest, Manifest]]:
    """Give each agent whose certificate the csi-driver gets, with what it is asked for."""
    for name, components in (("example", ()), ("overlays/daemonset", ("csi-certificates", "events"))):
        for _, pod in pods(rendered(name, *components, into=tmp_path)):
            for volume in pod.get("volumes", ()):
                if "csi" in volume:
                    (agent,) = (
                        one for one in [*pod.get("initContainers", ()), *pod["containers"]] if "agent" in one["name"]
                    )
                    yield agent, volume["csi"]["volumeAttributes"]


def test_certificate_of_each_pod_names_the_host_that_its_agent_does(tmp_path: Path) -> None:
    """The driver ignores attributes that it does not know, so each is one of its own; the collector knows the URI."""
    found = list(csi_agents(tmp_path))

    assert len(found) == 2
    for agent, asked in found:
        assert {key.removeprefix(CSI) for key in asked} == {"issuer-kind", "issuer-name", "uri-sans", "key-usages"}
        uri = asked[f"{CSI}uri-sans"].replace("${POD_NAMESPACE}", "shop").replace("${POD_NAME}", "cart-0")
        caller = of_certificate({"peer_uri": [uri.encode()]})
        told = {one["name"]: one.get("value") for one in agent["env"]}
        host = told.get("WETINK_AGENT_HOST_ID") or next(
            text.removeprefix("--host-id=") for text in agent["args"] if text.startswith("--host-id=")
        )
        assert caller
        assert caller.host_id == "shop.cart-0"
        assert host == "$(POD_NAMESPACE).$(POD_NAME)"
        assert {"--tls-cert=/etc/wetink/tls/tls.crt", "--tls-key=/etc/wetink/tls/tls.key"} <= set(agent["args"])


def test_nobody_gets_a_certificate_that_no_policy_names(tmp_path: Path) -> None:
    """A pod may be an agent of its namespace: no reader, no admin, no common name. What agents ask for is allowed."""
    policies = {one["metadata"]["name"]: one["spec"] for one in rendered("cert-manager") if "Policy" in one["kind"]}
    agents, collector = policies["wetink-agent"], policies["wetink-collector"]
    (rule,) = agents["allowed"]["uris"]["validations"]
    (pattern,) = agents["allowed"]["uris"]["values"]

    assert len(policies) == 2
    assert set(agents["allowed"]) == {"uris", "usages"}
    assert set(collector["allowed"]) == {"dnsNames", "usages"}
    assert collector["selector"]["namespace"]["matchNames"] == ["wetink"]
    assert rule["rule"] == f"self.startsWith('{pattern.removesuffix('*')}' + cr.namespace + '.')"
    for _, asked in csi_agents(tmp_path):
        assert asked[f"{CSI}uri-sans"].startswith(f"{pattern.removesuffix('*')}${{POD_NAMESPACE}}.")
        assert asked[f"{CSI}key-usages"].split(",") == agents["allowed"]["usages"]
        assert asked[f"{CSI}issuer-name"] == agents["selector"]["issuerRef"]["name"]
