from xml.etree import ElementTree as ET

import pytest

from tests.bench import report
from tests.conventions.tools import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def run() -> report.Run:
    """The lines that are committed."""
    return report.read(DOCS / "backends.jsonl")


def test_the_page_is_what_its_lines_say(run: report.Run) -> None:
    """Nobody has written a figure into it by hand: ``python -m tests.bench.report docs/backends.jsonl docs``."""
    assert (DOCS / "backends.md").read_text(encoding="utf-8") == report.page(run)


def test_the_plot_is_what_its_lines_say(run: report.Run) -> None:
    """As the page."""
    assert (DOCS / "backends.svg").read_text(encoding="utf-8") == report.chart(run)


def test_the_plot_is_well_formed(run: report.Run) -> None:
    """A browser shows it: each measured backend's curve is in it."""
    svg = ET.fromstring(report.chart(run))  # noqa: S314 - made a moment ago

    assert len(svg.findall(".//{*}polyline")) == 12


def test_what_was_not_measured_is_said() -> None:
    """A kernel that lacks a backend shows in the page as a sentence."""
    machine = {"memory_gib": 1, "load_of_a_minute": 0, "processor": "Any", "kernel": "6.9", "date": "2026-01-01"}
    lines: list[dict[str, object]] = [
        {"bench": "machine", "figure": "machine", "value": 2, **machine},
        {"bench": "backend soft-dirty", "skipped": "this kernel cannot"},
    ]

    assert "Not measured: this kernel cannot." in "\n".join(report.head(report.Run(lines)))
