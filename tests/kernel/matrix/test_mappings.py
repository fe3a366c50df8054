"""Rows of the kernel matrix: memory that comes, goes and moves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.guest import Guest, NoGuest
from tests.support.huge_pages import huge_pages
from tests.support.obedient import (
    ANONYMOUS,
    HUGE,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
    Obedient,
    command,
)
from tests.support.victim import within
from tests.support.watched import Watched, async_only, status_kib
from wetink_agent.backend import Harvest
from wetink_agent.wp_sync import WpSync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

HUGE_PAGES = HUGE // PAGE
EVENT_REMAP = 1 << 2
GUARDED_ROUNDS_MAX = 20


def test_row_04_zap_of_one_page(row: Watched) -> None:
    """MADV_DONTNEED of a page that is never touched again: it has vanished."""
    memory = row.target.map(8)
    row.settle()
    row.target.advise(memory + 3 * PAGE, 1, MADV_DONTNEED)
    row.expect(memory, 8, vanished={3})
    row.check()


@pytest.mark.parametrize("advice", [0, MADV_HUGEPAGE], ids=["small pages", "huge page"])
def test_row_05_zap_of_two_mebibytes(row: Watched, advice: int) -> None:
    """MADV_DONTNEED of a whole huge page, or of its worth of small ones: all 512 have vanished."""
    memory = row.target.map_aligned(2 * HUGE_PAGES, advice=advice)
    if advice:
        needs_huge_page(row.target, memory)
    row.settle()
    row.target.advise(memory, HUGE_PAGES, MADV_DONTNEED)
    row.expect(memory, 2 * HUGE_PAGES, vanished=range(HUGE_PAGES))
    row.check()


def needs_huge_page(target: Obedient, address: int) -> None:
    """Skip where the kernel has given small pages instead of a transparent huge one."""
    if not target.smaps(address, "AnonHugePages"):
        pytest.skip("needs transparent huge pages: the kernel gave none")


def test_row_14_guard_pages(row: Watched) -> None:
    """MADV_GUARD_INSTALL takes the content away, MADV_GUARD_REMOVE leaves zeros: dirty at both, and when written."""
    memory = row.target.map(8)
    row.settle()
    try:
        row.target.advise(memory + 2 * PAGE, 2, MADV_GUARD_INSTALL)
    except OSError as error:
        pytest.skip(f"needs guard regions (Linux 6.13): {error}")
    assert dirty(row.round(), memory, 8) == {2, 3}
    row.check()
    row.target.advise(memory + 2 * PAGE, 2, MADV_GUARD_REMOVE)
    # A guard has a place in the page table, so that it was populated until now.
    row.expect(memory, 8, vanished={2, 3})
    row.target.store(memory + 3 * PAGE)
    row.expect(memory, 8, written={3})
    row.check()


@async_only
def test_row_14_guard_pages_over_copies_of_a_file(row: Watched, file: Path, says: Callable[[str], None]) -> None:
    """There a zap leaves a marker of the protection, and the kernel zaps until it finds nothing: a round ends that."""
    memory = row.target.map(8, flags=MAP_PRIVATE, fd=row.target.open(file))
    row.settle()
    stream = row.target.program.process.stdin
    assert stream is not None
    stream.write(f"{command('madvise', memory + 2 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL)}\n".encode())
    rounds = 0
    while not row.target.program.has_said(wait_seconds=0.05):
        assert rounds < GUARDED_ROUNDS_MAX, "the target is in madvise(2) for good"
        row.round()
        rounds += 1
    if row.target.program.read_line().split() != ["0"]:
        pytest.skip("needs guard regions in file mappings (Linux 6.15)")
    assert rounds, "this kernel does not wait: then the agent need not disarm"
    says("a guard region over armed copies of a file's pages waits for the next round (README)")
    row.check()


def dirty(harvest: Harvest, memory: int, pages: int) -> set[int]:
    """Give what is written or has vanished of the pages from an address on, counted from there."""
    written, vanished = within(harvest, memory // PAGE, pages)
    return written | vanished


def test_row_15_mremap_moves(row: Watched) -> None:
    """All content is at a new address, without registration: all of it is written there, and has vanished here."""
    memory, room = row.target.map(8), row.target.map(8, filled=False)
    row.settle()
    assert row.target.call("mremap", memory, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room
    harvest = row.round()
    assert within(harvest, room // PAGE, 8) == (set(range(8)), set())
    assert within(harvest, memory // PAGE, 8) == (set(), set(range(8)))
    row.target.store(room + 4 * PAGE)
    row.expect(room, 8, written={4})
    row.check()


def test_row_16_mremap_without_its_event(row: Watched) -> None:
    """EVENT_REMAP would keep the marks of what moves, and have the target wait: not asked for, so more is written."""
    assert not row.tracker.features & EVENT_REMAP
    memory, room = row.target.map(8), row.target.map(8, filled=False)
    row.settle()
    row.target.store(memory + PAGE)
    row.target.call("mremap", memory, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room)
    row.expect(room, 8, written=set(range(4)))
    row.check()


def test_row_17_growth_in_place(row: Watched) -> None:
    """A mapping that mremap has grown, and a stack: what is populated of the new pages is written, no more."""
    memory = row.target.map(16, protection=PROT_NONE, filled=False)
    row.target.map(8, at=memory)
    row.settle()
    row.target.call("munmap", memory + 8 * PAGE, 8 * PAGE)
    assert row.target.call("mremap", memory, 8 * PAGE, 16 * PAGE, 0, 0) == memory
    row.target.store(memory + 12 * PAGE)
    row.expect(memory, 16, written={12})
    before = stack_of(row.target.pid)
    row.target.do("stack 200")
    after = stack_of(row.target.pid)
    assert after.start < before.start
    grown = set(row.round().written)
    # What the recursion wrote, and what was there before and written by it too; not the kernel's gap below.
    assert len(grown & set(range(after.start, before.start))) > 150
    row.check()


def stack_of(pid: int) -> range:
    """Give the pages of the stack."""
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith("[stack]"):
            start, end = (int(part, 16) // PAGE for part in line.split()[0].split("-"))
            return range(start, end)
    raise AssertionError(pid)


@pytest.mark.parametrize("way", ["munmap and mmap", "mmap over it"])
def test_row_18_another_mapping_in_its_place(row: Watched, way: str) -> None:
    """A new mapping has lost the registration with the address: what it holds is written, the rest has vanished."""
    memory = row.target.map(8)
    row.settle()
    if way.startswith("munmap"):
        row.target.call("munmap", memory, 8 * PAGE)
    row.target.map(8, at=memory, filled=False)
    row.target.store(memory + 2 * PAGE)
    row.expect(memory, 8, written={2}, vanished=set(range(8)) - {2})
    row.target.store(memory + 2 * PAGE)
    row.expect(memory, 8, written={2})
    row.check()


def test_row_19_new_memory_beside_the_old(row: Watched) -> None:
    """An adjacent mapping and a grown heap are found in the round after, whole."""
    memory = row.target.map(16, protection=PROT_NONE, filled=False)
    row.target.map(8, at=memory)
    row.settle()
    row.target.map(8, at=memory + 8 * PAGE)
    end = row.target.call("brk", 0)
    row.target.call("brk", end + 8 * PAGE)
    heap = (end + PAGE - 1) & -PAGE
    row.target.fill(heap, 7)
    harvest = row.round()
    assert within(harvest, memory // PAGE, 16) == (set(range(8, 16)), set())
    assert within(harvest, heap // PAGE, 7) == (set(range(7)), set())
    row.check()


def test_row_20_mapped_and_filled_between_two_looks(row: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that comes when a round has looked for it is in that round's second look, or in the next round."""
    late: list[int] = []
    step = "_shared"  # both backends look for shared memory after the census
    inner = getattr(row.tracker, step)

    def slow() -> object:
        late.append(row.target.map(8))
        return inner()

    row.settle()
    monkeypatch.setattr(row.tracker, step, slow)
    first = row.round()
    monkeypatch.undo()
    second = row.round()
    (memory,) = late
    assert within(first, memory // PAGE, 8)[0] | within(second, memory // PAGE, 8)[0] == set(range(8))
    row.check()


def test_row_32_write_to_a_huge_page(row: Watched) -> None:
    """One page of a transparent huge page is written: that one is, since the kernel splits it."""
    memory = row.target.map_aligned(2 * HUGE_PAGES, advice=MADV_HUGEPAGE)
    needs_huge_page(row.target, memory)
    row.settle()
    row.target.store(memory + 100 * PAGE)
    row.expect(memory, 2 * HUGE_PAGES, written={100})
    row.check()


def test_row_33_write_to_a_page_of_hugetlbfs(row: Watched, says: Callable[[str], None]) -> None:
    """One byte: all 512 pages of the huge page are written. They are in every round, and said to be cautious."""
    with huge_pages(2):
        memory = row.target.map(2 * HUGE_PAGES, flags=ANONYMOUS | MAP_HUGETLB, filled=False)
        row.target.store(memory)
        row.settle()
        row.target.store(memory + 8)
        harvest = row.expect(memory, 2 * HUGE_PAGES, written=range(HUGE_PAGES))
        assert harvest.cautious_page_count >= HUGE_PAGES
        says("cautious pages, in every round")
        row.check()
        row.target.call("munmap", memory, 2 * HUGE)


def test_row_34_unpopulated_hugetlbfs(row: Watched) -> None:
    """A scan that arms holes of hugetlbfs hangs on some kernels for good: no page of it is ever registered or armed."""
    with huge_pages(2):
        memory = row.target.map(2 * HUGE_PAGES, flags=ANONYMOUS | MAP_HUGETLB, filled=False)
        row.settle()
        assert "uw" not in row.target.flags_of(memory)
        row.target.store(memory + HUGE)
        row.expect(memory, 2 * HUGE_PAGES, written=range(HUGE_PAGES, 2 * HUGE_PAGES))
        assert "uw" not in row.target.flags_of(memory)
        row.check()
        row.target.call("munmap", memory, 2 * HUGE)


def test_row_39_protection_changed_to_and_fro(row: Watched) -> None:
    """Read-only, no access, and back: changes nothing; the write after it is seen."""
    memory = row.target.map(8)
    row.settle()
    row.target.call("mprotect", memory, 8 * PAGE, PROT_READ)
    row.target.call("mprotect", memory, 4 * PAGE, PROT_NONE)
    row.expect(memory, 8)
    row.target.call("mprotect", memory, 8 * PAGE, PROT_RW)
    row.target.store(memory + PAGE, memory + 6 * PAGE)
    row.expect(memory, 8, written={1, 6})
    row.check()


def test_row_40_collapse_to_a_huge_page(row: Watched) -> None:
    """MADV_COLLAPSE is refused while pages are armed, or changes nothing that is not seen."""
    memory = row.target.map_aligned(HUGE_PAGES)
    row.settle()
    (result,) = row.target.do(f"call 28 {memory} {HUGE} {MADV_COLLAPSE}")
    if not isinstance(row.tracker, WpSync):
        assert result < 0, "the kernel has put armed pages together"
    row.check()
    row.target.store(memory + 7 * PAGE)
    assert 7 in within(row.round(), memory // PAGE, HUGE_PAGES)[0]
    row.check()


def test_row_41_a_huge_sparse_mapping(row: Watched) -> None:
    """64 GiB with 32 pages in it: populated ones alone are reported, and no page tables grow for the holes."""
    memory = row.target.map((64 << 30) // PAGE, flags=ANONYMOUS | MAP_NORESERVE, filled=False)
    pages = [n << 19 for n in range(32)]
    row.target.store(*(memory + page * PAGE for page in pages))
    before = status_kib(row.target.pid, "VmPTE")
    row.settle()
    row.target.store(memory + pages[5] * PAGE)
    row.expect(memory, (64 << 30) // PAGE, written={pages[5]})
    assert status_kib(row.target.pid, "VmPTE") - before <= 64
    row.check()


@async_only
def test_row_49_a_guest_of_kvm_writes(row: Watched) -> None:
    """The stores of a virtual machine in the target's memory are the target's."""
    memory = row.target.map(16)
    try:
        guest = Guest(row.target, memory, 16)
    except NoGuest as error:
        pytest.skip(f"needs KVM: {error}")
    guest.run([3, 9])
    row.settle()
    guest.run([5, 11])
    written = within(row.round(), memory // PAGE, 16)[0]
    assert {5, 11} <= written
    # Page 0 has the code, which the test has put there.
    assert written <= {0, 5, 11}
    row.check()
