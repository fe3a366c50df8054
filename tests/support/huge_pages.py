"""Huge pages of hugetlbfs, set aside for a test and given back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.locks import alone


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """Have the kernel set huge pages aside, and give back what there was.

    One test at a time: what one gives back would be taken from another that has not touched its own yet.
    """
    path = Path("/proc/sys/vm/nr_hugepages")
    if not path.exists():
        pytest.skip("needs huge pages: this kernel has no hugetlb")
    with alone("huge-pages"):
        before = path.read_text(encoding="ascii")
        try:
            path.write_text(str(int(before) + count), encoding="ascii")
            free = int(path.read_text(encoding="ascii")) - int(before)
            if free < count:
                pytest.skip(f"needs {count} huge pages: the kernel could set {free} aside")
            yield
        finally:
            path.write_text(before, encoding="ascii")
