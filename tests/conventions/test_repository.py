import re
import tomllib

import pytest

from tests.conventions.tools import ROOT, judge


def test_the_lock_is_current() -> None:
    """``uv.lock`` answers to pyproject.toml. Nothing is asked of the network: a lock that fits needs nothing."""
    judge("uv", "lock", "--check", "--offline")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "protos/README.md"])
def test_a_reader_finds(name: str) -> None:
    """The pages that a newcomer opens are there, and say something."""
    assert (ROOT / name).stat().st_size > 200


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    """A change is written down with the change, not at the release."""
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_changelog_knows_every_released_version() -> None:
    """The newest entry is the version that the package says it is. Before the first release there is none."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    entries = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert not entries or entries[0] == version


def test_generators_and_judges_are_pinned() -> None:
    """Equal sources give equal bytes and equal verdicts everywhere."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]

    assert {"buf-bin", "grpcio-tools", "ruff", "uv"} <= {name.split("==")[0] for name in group if "==" in name}


def test_make_says_what_each_target_does() -> None:
    """``make`` alone is the list of what there is."""
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)

    assert phony
    assert set(phony[1].split()) == set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
