"""Rows of the kernel matrix: files, and memory that more than one mapping or process has."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.huge_pages import huge_pages
from tests.support.obedient import (
    ANONYMOUS,
    HUGE,
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    command,
)
from tests.support.victim import within
from tests.support.watched import Watched, async_only
from wetink.v1 import types_pb2

pytestmark = pytest.mark.needs("kernel", "root", "cc")

PUNCH_HOLE_KEEP_SIZE = 3
HUGE_PAGES = HUGE // PAGE


@pytest.mark.parametrize("of", ["file", "memfd"])
def test_row_06_zap_of_a_copied_file_page(row: Watched, file: Path, of: str) -> None:
    """The process's own copy of a file's page is given back: the file's content is there again, and is not kept."""
    fd = row.target.open(file) if of == "file" else row.target.memfd(8)
    if of == "memfd":
        row.target.call("pwrite64", fd, row.target.pointed(b"\4"), 1, 3 * PAGE)
    memory = row.target.map(8, flags=MAP_PRIVATE, fd=fd, filled=False)
    row.target.store(memory + PAGE, memory + 3 * PAGE)
    row.settle()
    row.target.advise(memory + 3 * PAGE, 1, MADV_DONTNEED)
    written, vanished = within(row.round(), memory // PAGE, 8)
    assert 3 in written | vanished
    assert row.target.word(memory + 3 * PAGE) & 0xFF == 4, "not the file's content"
    row.check()
    # The same, and it is read before anybody looks: nothing is left of the zap but the copy that is no more.
    row.target.advise(memory + PAGE, 1, MADV_DONTNEED)
    row.target.do(f"touch {memory + PAGE} 1")
    assert 1 in set().union(*within(row.round(), memory // PAGE, 8))
    row.check()


@async_only
@pytest.mark.parametrize("of", ["file", "memfd"])
def test_row_06_frozen_between_the_two_faults_of_a_store(row: Watched, tmp_path: Path, of: str) -> None:
    """A store to a zapped copy faults twice: the first makes a copy that is armed from birth, the second lets it write.

    Whoever is frozen in between has the file's content there, and nothing shows it. A process that writes to very many
    of them is in that place for a good part of its time.
    """
    pages = 1024
    path = tmp_path / "large"
    path.write_bytes(b"f" * (pages * PAGE))
    fd = row.target.open(path) if of == "file" else row.target.memfd(pages)
    memory = row.target.map(pages, flags=MAP_PRIVATE, fd=fd)
    zap = command("madvise", memory, pages * PAGE, MADV_DONTNEED)
    stream = row.target.program.process.stdin
    assert stream is not None
    row.settle()
    for turn in range(12):
        stream.write(f"{zap};fill {memory} {pages} {(turn + 1) << 16}\n".encode())
        time.sleep(0.0001 * (1 + turn))
        row.check()
        row.target.program.read_line()
        # What was written meanwhile is armed for the next turn.
        row.settle()


def test_row_06_zap_of_a_copied_file_page_beside_swapped_memory(row: Watched, file: Path, swap: None) -> None:
    """The marker that the zap leaves looks like the swapped pages of the mapping before it: they are told apart."""
    around = row.target.map(16)
    memory = around + 8 * PAGE
    row.target.map(8, at=memory, flags=MAP_PRIVATE, fd=row.target.open(file))
    row.settle()
    row.target.advise(around, 8, MADV_PAGEOUT)
    row.target.advise(memory, 2, MADV_DONTNEED)
    written, vanished = within(row.round(), memory // PAGE, 8)
    assert {0, 1} <= written | vanished
    row.check()
    assert swap is None


def test_row_07_zap_of_a_page_of_hugetlbfs(row: Watched, says: Callable[[str], None]) -> None:
    """A huge page that is given back leaves no trace of that: it is in every round, and vanished once it is gone."""
    with huge_pages(2):
        memory = row.target.map(2 * HUGE_PAGES, flags=ANONYMOUS | MAP_HUGETLB, filled=False)
        row.target.store(memory, memory + HUGE)
        row.settle()
        row.target.advise(memory, HUGE_PAGES, MADV_DONTNEED)
        harvest = row.round()
        written, vanished = within(harvest, memory // PAGE, 2 * HUGE_PAGES)
        assert set(range(HUGE_PAGES)) <= written | vanished
        assert harvest.cautious_page_count >= HUGE_PAGES
        says("cautious pages, in every round")
        row.check()
        row.target.call("munmap", memory, 2 * HUGE)


@pytest.mark.parametrize("way", ["MADV_REMOVE", "fallocate", "ftruncate"])
def test_row_08_holes_in_shared_memory(row: Watched, way: str) -> None:
    """The object's pages go, through the mapping or the descriptor: they have vanished."""
    fd = row.target.memfd(8)
    memory = row.target.map(8, flags=MAP_SHARED, fd=fd)
    row.settle()
    if way == "MADV_REMOVE":
        row.target.advise(memory + 4 * PAGE, 4, MADV_REMOVE)
    elif way == "fallocate":
        row.target.call("fallocate", fd, PUNCH_HOLE_KEEP_SIZE, 4 * PAGE, 4 * PAGE)
    else:
        row.target.call("ftruncate", fd, 4 * PAGE)
        row.target.call("ftruncate", fd, 8 * PAGE)
    assert set(range(4, 8)) <= within(row.round(), memory // PAGE, 8)[1]
    row.check()


def test_row_09_truncated_under_private_copies(row: Watched, file: Path) -> None:
    """Copies of pages beyond a file's new end are dropped with them: they have vanished."""
    fd = row.target.open(file)
    memory = row.target.map(8, flags=MAP_PRIVATE, fd=fd)
    row.settle()
    row.target.call("ftruncate", fd, 4 * PAGE)
    row.target.call("ftruncate", fd, 16 * PAGE)
    written, vanished = within(row.round(), memory // PAGE, 8)
    assert set(range(4, 8)) <= written | vanished
    assert row.target.word(memory + 5 * PAGE) == 0
    row.check()


@pytest.mark.parametrize("flags", [MAP_PRIVATE, MAP_SHARED], ids=["private", "shared"])
def test_row_10_a_write_to_the_file_beneath(row: Watched, file: Path, flags: int, says: Callable[[str], None]) -> None:
    """A page that is the file's own changes with the file: the file's state, not told as memory, and said so."""
    fd = row.target.open(file)
    memory = row.target.map(8, flags=flags, fd=fd, filled=False)
    row.target.do(f"touch {memory} 8")
    row.settle()
    row.target.call("pwrite64", fd, row.target.pointed(b"changed!"), 8, 2 * PAGE)
    assert row.target.peek(memory + 2 * PAGE, 8) == b"changed!"
    row.expect(memory, 8)
    assert row.uncertainties(memory + 2 * PAGE) == {types_pb2.UNCERTAINTY_FILE}
    says("the mapping is listed as UNCERTAINTY_FILE")
    row.check()


@pytest.mark.parametrize("way", ["second mapping", "other process", "pwrite"])
def test_row_11_shared_memory_changed_from_elsewhere(row: Watched, way: str, says: Callable[[str], None]) -> None:
    """No trace in this mapping: shared memory is in every round whole, and said to be so out of caution."""
    fd = row.target.memfd(8)
    memory = row.target.map(8, flags=MAP_SHARED, fd=fd)
    other = row.target.map(8, flags=MAP_SHARED, fd=fd, filled=False)
    row.settle()
    if way == "second mapping":
        row.target.store(other + 2 * PAGE)
    elif way == "other process":
        row.target.do(f"fork store {memory + 2 * PAGE} 99")
    else:
        row.target.call("pwrite64", fd, row.target.pointed(b"changed!"), 8, 2 * PAGE)
    harvest = row.expect(memory, 8, written=range(8))
    assert harvest.cautious_page_count >= 8
    assert set(range(memory // PAGE, memory // PAGE + 8)) <= set(harvest.uncertain)
    assert row.uncertainties(memory) == {types_pb2.UNCERTAINTY_SHARED}
    says("uncertain pages, in every round; the mapping is listed as UNCERTAINTY_SHARED")
    row.check()


def test_row_12_zap_of_shared_memory(row: Watched) -> None:
    """MADV_DONTNEED takes it from the page table and leaves the object as it is: nothing has vanished."""
    memory = row.target.map(8, flags=MAP_SHARED | MAP_ANONYMOUS)
    row.settle()
    row.target.advise(memory, 8, MADV_DONTNEED)
    assert within(row.round(), memory // PAGE, 8)[1] == set()
    assert row.target.word(memory + 3 * PAGE) == (1 << 32) + 3
    row.check()


@async_only
def test_row_06_zaps_in_very_many_places(row: Watched, tmp_path: Path) -> None:
    """Thousands of copies that are given back here and there are seen to together; none is missed."""
    path = tmp_path / "large"
    path.write_bytes(b"f" * (4096 * PAGE))
    memory = row.target.map(4096, flags=MAP_PRIVATE, fd=row.target.open(path))
    row.settle()
    zapped = set(range(0, 2400, 2)) | set(range(2500, 4096, 200))
    addresses = [memory + page * PAGE for page in sorted(zapped)]
    for first in range(0, len(addresses), 500):
        row.target.do(";".join(command("madvise", at, PAGE, MADV_DONTNEED) for at in addresses[first : first + 500]))
    written, vanished = within(row.round(), memory // PAGE, 4096)
    assert zapped <= written | vanished
    row.check()
    row.check()
