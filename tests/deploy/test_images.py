import json
import tomllib
from typing import Any, Final

import pytest

from tests.deploy.engine import ROOT, CommandFailed, Engine
from tests.deploy.images import BASE

pytestmark = [pytest.mark.needs("docker", "root"), pytest.mark.timeout(1500)]

IMAGES: Final = ("wetink-collector", "wetink-agent")
MORE_THAN_BASE_MB_MAX: Final = 250
INSTALLED: Final = (
    "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
)


def inspected(engine: Engine, image: str) -> Any:  # noqa: ANN401 - JSON
    """Give what the engine says of an image."""
    return json.loads(engine.docker("inspect", "--type=image", image))[0]


def in_image(engine: Engine, image: str, *command: str) -> str:
    """Run a program in a container as bare as they all can be started."""
    bounds = ["--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    return engine.docker("run", *bounds, f"--entrypoint={command[0]}", image, *command[1:])


@pytest.mark.parametrize("image", IMAGES)
def test_image_is_small(engine: Engine, image: str) -> None:
    """What it adds to its base is the interpreter's packages, and no compiler of them."""
    more_bytes = inspected(engine, image)["Size"] - inspected(engine, BASE)["Size"]
    tools = in_image(engine, image, "sh", "-c", "command -v cc gcc uv pip git make || true")

    assert more_bytes < MORE_THAN_BASE_MB_MAX * 10**6
    assert tools == ""


@pytest.mark.parametrize("image", IMAGES)
def test_image_has_what_the_lock_says(engine: Engine, image: str) -> None:
    """Each package in the version of uv.lock, and none that is not in it."""
    locked = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    known = {(package["name"], package["version"]) for package in locked}  # some in one version for each Python
    installed = json.loads(in_image(engine, image, "python", "-c", INSTALLED))

    assert "wetink" in installed
    assert {(name.replace("_", "-"), version) for name, version in installed.items()} <= known


@pytest.mark.parametrize("image", IMAGES)
def test_image_says_what_it_is_and_how_it_is(engine: Engine, image: str) -> None:
    """Labels, a health check of its own, the signal that ends it in good order."""
    config = inspected(engine, image)["Config"]

    assert config["Labels"]["org.opencontainers.image.title"] == image
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "wetink", "health"]
    assert config["StopSignal"] == "SIGTERM"


def test_collector_is_nobody_in_particular_and_the_agent_has_no_rights_of_root(engine: Engine) -> None:
    """The agent is user 0, because only that one gets capabilities; without them it may do nothing of root's."""
    assert in_image(engine, "wetink-collector", "id", "-u") == "65532\n"
    assert "CapEff:\t0000000000000000" in in_image(engine, "wetink-agent", "cat", "/proc/self/status")


@pytest.mark.parametrize("image", IMAGES)
def test_image_runs_with_nothing_to_write_to(engine: Engine, image: str) -> None:
    """Its commands start on a read-only root, with their bytecode compiled already."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert in_image(engine, image, image, "--version").strip() == version
    assert in_image(engine, image, "sh", "-c", "find /opt/wetink -name '__init__.cpython-*.pyc' | head -1")
    with pytest.raises(CommandFailed, match="Read-only file system"):
        in_image(engine, image, "touch", "/opt/wetink/new")


def test_agent_has_its_loop_compiled(engine: Engine) -> None:
    """The stage with the compiler was of use."""
    code = "from wetink_agent.resolver_loop import library; print(library() is not None)"

    assert in_image(engine, "wetink-agent", "python", "-c", code) == "True\n"
