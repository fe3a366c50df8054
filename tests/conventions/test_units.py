import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conventions.tools import ROOT

SYSTEMD = ROOT / "deploy" / "systemd"
UNITS = ("wetink-agent.service", "wetink-collector.service")
EXPOSURE_MAX = {"wetink-agent.service": 2.2, "wetink-collector.service": 1.5}
"""What ``systemd-analyze security`` may give, from 0, which can do nothing, to 10."""

BRINGS_A_FILTER = {
    "SystemCallFilter",
    "SystemCallArchitectures",
    "RestrictAddressFamilies",
    "PrivateDevices",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectClock",
    "ProtectHostname",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "DynamicUser",
}
"""Directives that put a service under a seccomp filter. Source: systemd.exec(5), NoNewPrivileges=."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with commands that are there."""
    for path in SYSTEMD.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(SYSTEMD)
            copy.parent.mkdir(exist_ok=True)
            text = path.read_text(encoding="utf-8").replace("/opt/wetink/bin", str(Path(sys.executable).parent))
            copy.write_text(text, encoding="utf-8")
    return tmp_path


def remove_drop_ins(installed: Path) -> None:
    """Leave the units as they are."""
    for directory in installed.glob("*.d"):
        shutil.rmtree(directory)


def settings(path: Path) -> dict[str, str]:
    """Give what a unit sets; what is set again is joined."""
    found: dict[str, str] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        found[key] = f"{found[key]} {value}" if key in found else value
    return found


def capabilities(path: Path) -> set[str]:
    """Give the capabilities a unit may have, which must be those that it has."""
    said = settings(path)
    assert said["CapabilityBoundingSet"] == said["AmbientCapabilities"]
    return set(said["CapabilityBoundingSet"].replace("CAP_", "").split())


def told(row: str) -> set[str]:
    """Give the capabilities that the README's table names for a kind of targets."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)$", readme, re.MULTILINE)
    return set(re.findall(r"`CAP_([A-Z_]+)`", line))


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("drop_ins", [True, False])
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_no_complaint(installed: Path, unit: str, *, drop_ins: bool) -> None:
    """Each unit as it is, and with every drop-in."""
    if not drop_ins:
        remove_drop_ins(installed)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", installed / unit],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_little_is_exposed(installed: Path, unit: str) -> None:
    """What a service can bear, it has: the sum is bounded, and the page for operators says what it is."""
    remove_drop_ins(installed)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", installed / unit],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)

    assert found, done.stderr
    assert float(found[1]) <= EXPOSURE_MAX[unit]
    assert f"`{unit}` {found[1]}" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_units_have_the_capabilities_of_the_readme() -> None:
    """Those of its rows, which are tried one by one; the collector has none."""
    agent, events, suspend = (
        capabilities(SYSTEMD / name)
        for name in (
            "wetink-agent.service",
            "wetink-agent.service.d/events.conf",
            "wetink-agent.service.d/suspend-seccomp.conf",
        )
    )

    assert capabilities(SYSTEMD / "wetink-collector.service") == set()
    assert agent == told("processes of any user")
    assert agent | events == told("with `--events`")
    assert agent | suspend == told("under a seccomp filter")


def test_agent_that_suspends_filters_has_none() -> None:
    """The kernel refuses a tracer that is filtered itself: every directive that filters is taken back."""
    agent = settings(SYSTEMD / "wetink-agent.service")
    suspend = settings(SYSTEMD / "wetink-agent.service.d" / "suspend-seccomp.conf")

    assert {key for key in agent if key in BRINGS_A_FILTER} <= suspend.keys()
    assert {suspend[key] for key in BRINGS_A_FILTER & suspend.keys()} <= {"", "no"}


def test_page_for_operators_names_each_drop_in() -> None:
    """What is not in a unit is found from there."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(wetink-\S+\.conf)` \|", page, re.MULTILINE))

    assert rows == {str(path.relative_to(SYSTEMD)) for path in SYSTEMD.glob("*.d/*.conf")}
