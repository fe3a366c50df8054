"""``wetink heatmap``: pictures, and what is said where none can be made."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.integration.client.command import failure, wetink
from tests.integration.collector.wire import Agent, target
from tests.support.collector import running_collector
from wetink.command_line import ExitCode

HOST: Final = "node-1"
NAME: Final = f"{HOST}/1@100"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Give a collector that knows a target."""
    with running_collector() as collector, Agent(collector.address, HOST) as agent:
        agent.hello()
        agent.deliver(target(1, host_id=HOST), range(100), *(range(number, 100, 7) for number in range(10)))
        yield collector.address


@pytest.fixture
def without_matplotlib(tmp_path: Path) -> Mapping[str, str]:
    """Give an environment in which importing it fails, as where nobody installed it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n", encoding="ascii")
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("ending", ["png", "SVG"])
def test_picture_needs_the_extra_and_says_so(
    address: str, without_matplotlib: Mapping[str, str], tmp_path: Path, ending: str
) -> None:
    """One sentence with what to install, and no file."""
    picture = tmp_path / f"heat.{ending}"

    code, sentence = failure(
        "--collector", address, "heatmap", NAME, "--output", str(picture), environment=without_matplotlib
    )

    assert code == ExitCode.FAILURE
    assert sentence == "pictures need the extra `plot`: pip install 'wetink[client,plot]'"
    assert not picture.exists()


def test_terminal_and_json_need_no_extra(address: str, without_matplotlib: Mapping[str, str]) -> None:
    """They are made without it."""
    for options in ((), ("--json",)):
        ended = wetink("--collector", address, "heatmap", NAME, *options, environment=without_matplotlib)

        assert ended.returncode == 0, ended.stderr
        assert NAME in ended.stdout


def test_picture_that_cannot_be_written_is_one_sentence(address: str, tmp_path: Path) -> None:
    """A directory that is not there, and an ending that is no picture's."""
    absent = tmp_path / "absent" / "heat.png"

    code, sentence = failure("--collector", address, "heatmap", NAME, "--output", str(absent))
    assert (code, sentence) == (ExitCode.FAILURE, f"cannot write {absent}: No such file or directory")
    code, sentence = failure("--collector", address, "heatmap", NAME, "--output", str(tmp_path / "heat.gif"))
    assert code == ExitCode.USAGE
    assert "neither .png nor .svg" in sentence


def test_picture_is_drawn_and_what_is_in_it_printed_too_where_both_are_asked_for(address: str, tmp_path: Path) -> None:
    """Neither option is passed over."""
    picture = tmp_path / "heat.svg"

    drawn = wetink("--collector", address, "heatmap", NAME, "--output", str(picture), "--json")

    assert drawn.returncode == 0, drawn.stderr
    assert json.loads(drawn.stdout)["history"]["name"] == NAME
    assert "<svg" in picture.read_text(encoding="utf-8")
