"""Every row of the kernel matrix has a test and is in the page that is made of the results."""

import re

import pytest

from tests.conventions.tools import ROOT
from tests.kernel.matrix.rows import ROWS

PAGE = ROOT / "docs" / "kernel-matrix.md"


def test_no_row_is_missing() -> None:
    """There are 50, by the numbers of the design."""
    assert list(ROWS) == list(range(1, 51))


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_a_test_and_is_in_the_page(row: int) -> None:
    """A row that nobody tests, or that the page leaves out, would be a limit in silence."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/kernel/matrix").glob("test_*.py"))
    line = re.search(rf"^\| {row} \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert f"def test_row_{row:02}_" in sources
    assert line
    operation, truth, *results, _ = line[1].split(" | ")
    assert (operation, truth) == ROWS[row]
    assert any("holds" in result or "not run here" in result for result in results)
    assert not any("fails" in result for result in results)
