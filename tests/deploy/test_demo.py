"""Apart from the tests of compose.yaml: each of two agents on one host would track the other's workload."""

import pytest

from tests.deploy.engine import ROOT, Engine, run
from tests.deploy.images import BUILD_SECONDS_MAX

pytestmark = [pytest.mark.needs("docker", "root", "kernel"), pytest.mark.timeout(1500)]


def test_demo_ends_with_an_answer_and_leaves_nothing(engine: Engine) -> None:
    """What the README tells a newcomer to type; its images are built, and a base where none is to be had."""
    before = engine.docker("volume", "ls", "--quiet")
    own = {f"WETINK_{name.upper()}_IMAGE": f"wetink-demo-{name}" for name in ("collector", "agent")}
    environment = {**engine.environment, **own, "WETINK_BUILD_NETWORK": "host"}
    output = run([str(ROOT / "deploy" / "compose-demo")], environment, deadline_seconds=BUILD_SECONDS_MAX)

    (row,) = [line.split() for line in output.partition("wetink dirty")[2].splitlines() if line.startswith("docker/")]
    assert int(row[1].replace(",", "")) > 1000
    assert "yes" in row
    assert engine.docker("ps", "--all", "--quiet", "--filter=name=wetink-demo") == ""
    assert engine.docker("volume", "ls", "--quiet") == before
