"""The images of the tests: the base, and what is built on it."""

from typing import Final

from tests.deploy.base_image import import_base_image
from tests.deploy.engine import ROOT, Engine

BASE: Final = "wetink-base"
BUILD_SECONDS_MAX: Final = 600.0


def build_all(engine: Engine) -> None:
    """Make the base where it is missing, and both of ours under the names that compose.yaml gives them."""
    if not engine.docker("images", "--quiet", BASE):
        import_base_image(BASE, engine.environment)
    for name in ("collector", "agent"):
        build(engine, f"wetink-{name}", f"deploy/{name}.Dockerfile")


def build(engine: Engine, tag: str, dockerfile: str) -> None:
    """Build an image from the repository, with the host's network: the engine has no other."""
    options = ["--network=host", f"--build-arg=BASE_IMAGE={BASE}", f"--file={ROOT / dockerfile}", f"--tag={tag}"]
    engine.docker("build", *options, ROOT, deadline_seconds=BUILD_SECONDS_MAX)
