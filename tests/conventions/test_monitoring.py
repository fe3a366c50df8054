import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from tests.conventions.tools import ROOT
from wetink_collector import metrics

MONITORING = ROOT / "deploy" / "monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
OPERATIONS = ROOT / "docs" / "operations.md"


def series() -> set[str]:
    """Name every series that the collector has, as Prometheus stores it."""
    return {
        name
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        for described in metric.describe()
        for name in stored(described.name, described.type)
    }


def stored(name: str, kind: str) -> set[str]:
    """Name the series of a metric."""
    match kind:
        case "counter":
            return {f"{name}_total"}
        case "histogram":
            return {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        case _:
            return {name}


def named(expression: str) -> set[str]:
    """Name the series of ours in an expression."""
    return set(re.findall(r"\bwetink_\w+", expression))


def expressions() -> list[str]:
    """Give every expression of rules and dashboard."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [*(rule["expr"] for rule in RULES), *panels]


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    """An alert on a name that nobody counts is silent for ever."""
    used = set().union(*map(named, expressions()))

    assert used - series() == set()


def test_dashboard_shows_every_metric_or_its_alert_does() -> None:
    """What is counted is looked at somewhere."""
    used = set().union(*map(named, expressions()))
    kept = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in used}

    assert {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in series()} - kept == set()


def test_each_alert_is_explained() -> None:
    """Whoever is woken finds a section with the alert's name: what it means, and what to do."""
    sections = set(re.findall(r"^### (Wetink\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE))

    assert sections == {rule["alert"] for rule in RULES}


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("arguments", [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]])
def test_promtool_has_no_complaint(arguments: list[str]) -> None:
    """The rules are well formed, and fire when they should and not otherwise."""
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried() -> None:
    """It fires in a test, and is silent in another."""
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    tried = [one for test in tests for one in test["alert_rule_test"]]

    assert {one["alertname"] for one in tried if one["exp_alerts"]} == {rule["alert"] for rule in RULES}
    assert {one["alertname"] for one in tried if not one["exp_alerts"]} == {rule["alert"] for rule in RULES}


def test_panels_are_laid_out() -> None:
    """No two have one place or one number."""
    panels = DASHBOARD["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    assert Path(MONITORING / "dashboard.json").stat().st_size < 100_000


def test_nobody_logs_in_to_the_dashboard_of_compose() -> None:
    """Grafana would make an admin with the password "admin". There is none, and no form: visitors only look."""
    grafana = COMPOSE["services"]["grafana"]
    said = grafana["environment"]

    assert all(port.startswith("127.0.0.1:") for port in grafana["ports"])
    assert said["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == said["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert said["GF_AUTH_BASIC_ENABLED"] == "false"
    assert said["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
