"""What copies of private files held, with a file that this process itself has mapped."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyroaring import BitMap64

from wetink.pages import PAGE_SIZE
from wetink_agent import copies
from wetink_agent.copies import Copies

NOTHING = BitMap64()
PAGES = 300
"""More than are looked at in one call."""


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[tuple[int, mmap.mmap]]:
    """Give a private mapping of a file, with a copy of each of its pages: its first page, and itself."""
    path = tmp_path / "file"
    path.write_bytes(b"f" * PAGES * PAGE_SIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        first = view.ctypes.data // PAGE_SIZE
        del view
        for page in range(PAGES):
            mapped[page * PAGE_SIZE] = page % 256
        yield first, mapped


def own(first: int, *, count: int = PAGES, pid: int = 0) -> Copies:
    """Give what covers the mapping."""
    found = Copies(pid or os.getpid())
    found.cover([(first * PAGE_SIZE, (first + count) * PAGE_SIZE)])
    return found


def test_copies_that_hold_what_they_held_are_not_told_again(memory: tuple[int, mmap.mmap]) -> None:
    """One that was written to is, and one that nobody was told of, and nothing outside; what is told anyway is not."""
    first, mapped = memory
    pages = BitMap64(range(first, first + PAGES))
    all_pages = pages | BitMap64([1, 2])
    kept = own(first)
    kept.told(all_pages - BitMap64([first + 7]), all_pages, NOTHING)
    mapped[9 * PAGE_SIZE + 100] = 1
    mapped[299 * PAGE_SIZE] = 0
    mapped[11 * PAGE_SIZE] = 0

    assert kept.changed(all_pages, BitMap64([first + 11])) == BitMap64([first + 7, first + 9, first + 299])


def test_page_that_is_told_again_counts_as_it_is_then(memory: tuple[int, mmap.mmap]) -> None:
    """And one that cannot be read any more is not known."""
    first, mapped = memory
    pages = BitMap64(range(first, first + PAGES))
    kept = own(first)
    kept.told(pages, pages, NOTHING)
    mapped[0] = 200
    mapped[PAGE_SIZE] = 200
    kept.told(BitMap64([first]), pages, NOTHING)
    assert kept.changed(pages, BitMap64()) == BitMap64([first + 1])

    mapped.madvise(mmap.MADV_DONTNEED, 0, PAGE_SIZE)
    assert kept.changed(pages, BitMap64()) == BitMap64([first, first + 1])


def test_what_cannot_be_read_is_told(memory: tuple[int, mmap.mmap]) -> None:
    """Behind the end of the mapping, and of a process that is not there."""
    first, _ = memory
    pages = BitMap64(range(first, first + 10))
    nowhere = BitMap64([1, 2, 3])
    kept = own(1, count=first + 10)
    kept.told(pages | nowhere, pages | nowhere, NOTHING)
    assert kept.changed(pages | nowhere, BitMap64()) >= nowhere

    gone = own(first, pid=1 << 22)
    gone.told(pages, pages, NOTHING)
    assert gone.changed(pages, BitMap64()) == pages


def test_of_too_many_all_are_told(memory: tuple[int, mmap.mmap], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of them; pages that are gone do not count."""
    first, _ = memory
    pages = BitMap64(range(first, first + PAGES))
    monkeypatch.setattr(copies, "COPIES_MAX", PAGES - 1)
    kept = own(first)
    kept.told(pages, pages, NOTHING)
    assert kept.changed(pages, BitMap64()) == pages

    some, others = BitMap64(range(first, first + 200)), BitMap64(range(first + 200, first + PAGES))
    kept.told(some, some, NOTHING)
    kept.told(others, others, NOTHING)
    assert kept.changed(others, BitMap64()) == BitMap64()
    assert set(kept._digests) == set(others)


def test_page_that_vanished_or_is_not_protected_is_not_known_any_more(memory: tuple[int, mmap.mmap]) -> None:
    """
    A reader drops what has vanished, so it is told when it is back, whatever it holds; and where nothing is protected,
    what is written later might not be told.
    """
    first, _ = memory
    pages = BitMap64(range(first, first + 10))
    kept = own(first)
    kept.told(pages, pages, BitMap64([first + 3]))
    kept.told(NOTHING, pages - BitMap64([first + 5]), NOTHING)
    assert kept.changed(pages, NOTHING) == BitMap64([first + 3, first + 5])


def test_mapping_that_is_not_a_files_any_more_is_not_known(memory: tuple[int, mmap.mmap]) -> None:
    """What takes its place may be a file's again in a later round."""
    first, _ = memory
    pages = BitMap64(range(first, first + 10))
    kept = own(first)
    kept.told(pages, pages, NOTHING)
    kept.cover([])
    kept.told(NOTHING, pages, NOTHING)
    kept.cover([(first * PAGE_SIZE, (first + 10) * PAGE_SIZE)])
    assert kept.changed(pages, NOTHING) == pages
