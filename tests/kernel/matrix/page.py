"""Run the rows of the kernel matrix and write ``docs/kernel-matrix.md`` from what came out: ``make kernel-matrix``.

The exit code is pytest's: a row that fails is in the page as such.
"""

import platform
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kernel.matrix.rows import BACKENDS, ROWS

ROOT: Final = Path(__file__).resolve().parents[3]
PAGE: Final = ROOT / "docs" / "kernel-matrix.md"

PREFACE: Final = (
    "What a target can do to its memory, what then differs from the last copy, and whether wetink tells. Each row is a",
    "test, `test_row_NN_...` in `tests/kernel/matrix`: it does the operation, looks at what the round says, copies by",
    "it, and compares every byte with the frozen target.",
    "",
)

_NAME: Final = re.compile(r"test_row_(\d\d)_(\w+?)(?:\[(.*)\])?$")


class Results:
    """What came out of each test: a plugin of pytest."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.outcomes: dict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
        self.words: dict[int, list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what came out of one test, once."""
        match = _NAME.search(report.nodeid)
        if match is None or not (report.when == "call" or report.outcome != "passed"):
            return
        row, test = int(match[1]), match[2].replace("_", " ")
        backend = next((name for name in BACKENDS if name in (match[3] or "")), "wp-async")
        reason = ""
        if report.skipped:
            assert isinstance(report.longrepr, tuple)
            reason = report.longrepr[2].removeprefix("Skipped: ")
        outcome = f"{test}: {reason}" if reason else test
        self.outcomes[row, backend].append((report.outcome, outcome))
        for name, words in report.user_properties:
            if name == "says" and words not in self.words[row]:
                self.words[row].append(str(words))

    def cell(self, row: int, backend: str) -> str:
        """Say what came out of a row with a backend."""
        outcomes = self.outcomes.get((row, backend), [])
        if not outcomes:
            return "-"
        failed = sorted({test for outcome, test in outcomes if outcome == "failed"})
        skipped = sorted({test for outcome, test in outcomes if outcome == "skipped"})
        words = ["**fails**: " + ", ".join(failed)] if failed else []
        if any(outcome == "passed" for outcome, _ in outcomes):
            words.insert(0, "holds")
        words += [f"not run here: {test}" for test in skipped]
        return "; ".join(words).replace("|", "\\|")


def lines(results: Results) -> Iterator[str]:
    """Lay the page out."""
    yield "# Kernel matrix"
    yield ""
    yield "<!-- Made by `make kernel-matrix` from the results of tests/kernel/matrix. Do not edit. -->"
    yield ""
    yield from PREFACE
    yield f"Linux {platform.release().partition('-')[0]}, {platform.machine()}, {time.strftime('%Y-%m-%d')}."
    yield ""
    yield from table(["row", "the target", "what differs", *BACKENDS, "and wetink says"], cells(results))


def cells(results: Results) -> Iterator[list[str]]:
    """Give the cells of each row."""
    for number, row in ROWS.items():
        told = [results.cell(number, backend) for backend in BACKENDS]
        yield [str(number), row.operation, row.truth, *told, "; ".join(results.words.get(number, []))]


def table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Lay a table out."""
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---:' if name == 'row' else '---' for name in header)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> int:
    """Run the rows, and write the page."""
    results = Results()
    status = pytest.main(["-q", str(Path(__file__).parent), *sys.argv[1:]], plugins=[results])
    if results.outcomes:
        PAGE.write_text("\n".join(lines(results)) + "\n", encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
