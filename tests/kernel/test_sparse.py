"""Very many mappings that hold next to nothing cost little to track, and the target nothing."""

import pytest

from tests.support.obedient import PAGE
from tests.support.sparse import MAPPING_COUNT, map_sparsely
from tests.support.watched import status_kib, watched

pytestmark = pytest.mark.needs("kernel", "root", "cc")

ROUNDS = 5


def test_rounds_over_twenty_thousand_sparse_mappings_make_no_page_tables() -> None:
    """What is populated is told, page by page, and the page tables are as large as the target made them.

    How long a round takes is measured by ``make bench``.
    """
    with watched("wp-async") as row:
        written = map_sparsely(row.target)
        before = status_kib(row.target.pid, "VmPTE")
        pages = {address // PAGE for address in written}
        assert pages <= set(row.round().written)
        row.settle()
        for turn in range(ROUNDS):
            row.target.store(written[turn * 7])
            assert pages & set(row.round().written) == {written[turn * 7] // PAGE}

        assert status_kib(row.target.pid, "VmPTE") == before
        assert len(written) == MAPPING_COUNT // 2
        row.check()
