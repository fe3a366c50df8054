"""Rows of the kernel matrix: what the kernel does to memory on its own: swap, merge, move, lock."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.ksm import NoKsm, ksm
from tests.support.obedient import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_WRITE,
    PAGE,
    Obedient,
)
from tests.support.victim import USERFAULTFD, victim, within
from tests.support.watched import BACKENDS, Watched
from wetink_agent.attach import take_userfaultfd
from wetink_agent.errors import Untrackable
from wetink_agent.wp_sync import WpSync, why_risky

pytestmark = pytest.mark.needs("kernel", "root", "cc")


def test_row_13_given_up_and_reclaimed(row: Watched) -> None:
    """MADV_FREE lets the kernel drop pages whenever it likes; when it does, they have vanished."""
    memory = row.target.map(64)
    row.settle()
    row.target.advise(memory, 32, MADV_FREE)
    row.check()
    row.target.advise(memory, 32, MADV_PAGEOUT)
    vanished = within(row.round(), memory // PAGE, 64)[1]
    if not vanished:
        pytest.skip("needs the kernel to drop pages on demand: MADV_PAGEOUT has left all of them")
    assert vanished <= set(range(32))
    row.check()


@pytest.mark.usefixtures("swap")
def test_row_35_out_to_swap_and_back(row: Watched) -> None:
    """Pages in swap keep their marks, are armed there, and come back clean: what is written is written, and no more."""
    memory = row.target.map(64)
    row.settle()
    row.target.advise(memory, 64, MADV_PAGEOUT)
    if row.target.smaps(memory, "Swap") < 64:
        pytest.skip("needs the kernel to swap on demand: MADV_PAGEOUT has left the pages")
    row.expect(memory, 64)
    row.target.do(f"touch {memory} 16")
    row.target.store(memory + 20 * PAGE, memory + 3 * PAGE)
    row.target.advise(memory, 64, MADV_PAGEOUT)
    row.expect(memory, 64, written={3, 20})
    row.target.store(memory + 40 * PAGE)
    row.expect(memory, 64, written={40})
    row.check()


def test_row_36_merged_by_ksm(row: Watched, says: Callable[[str], None]) -> None:
    """Merging changes no content. Whatever is told of it, writes before and after are, and the copy is identical."""
    memory = row.target.map(64)
    row.target.do(";".join(f"store {memory + page * PAGE} 5" for page in range(64)))
    row.target.advise(memory, 64, MADV_MERGEABLE)
    row.settle()
    try:
        with ksm():
            wait_until_merged(row.target, 60)
            row.check()
            row.target.store(memory + 7 * PAGE, memory + 30 * PAGE)
            assert {7, 30} <= within(row.round(), memory // PAGE, 64)[0]
            row.check()
    except NoKsm as error:
        pytest.skip(f"needs KSM: {error}")
    if isinstance(row.tracker, WpSync):
        assert "KSM" in (why_risky(row.target.pid) or "")
        says("`wp-sync` refuses such a target, unless told `--accept-risk`")


def wait_until_merged(target: Obedient, count: int) -> None:
    """Wait until so many pages are merged, or skip."""
    until = time.monotonic() + 20
    while (merged := _merged(target)) < count:
        if time.monotonic() > until:
            pytest.skip(f"needs KSM to merge: {merged} of {count} pages in 20 s")
        time.sleep(0.02)


def _merged(target: Obedient) -> int:
    for line in Path(f"/proc/{target.pid}/ksm_stat").read_text(encoding="ascii").splitlines():
        if line.startswith("ksm_merging_pages"):
            return int(line.split()[1])
    return 0


def test_row_37_moved_by_compaction(row: Watched) -> None:
    """The kernel moves pages to other places in memory: nothing is told, and nothing missed."""
    count = 16384
    memory = row.target.map_aligned(count, advice=MADV_NOHUGEPAGE)
    # Three of four pages go, so that there are holes to fill.
    for first in range(0, count, 1024):
        zaps = (memory + page * PAGE for page in range(first, first + 1024, 4))
        row.target.do(";".join(f"call 28 {address} {3 * PAGE} {MADV_DONTNEED}" for address in zaps))
    row.settle()
    before = _frames(row.target.pid, memory, count)
    try:
        Path("/proc/sys/vm/compact_memory").write_text("1", encoding="ascii")
    except OSError as error:
        pytest.skip(f"needs compaction: {error}")
    if not (_frames(row.target.pid, memory, count) != before).any():
        pytest.skip("needs compaction that moves something: memory is in order as it is")
    row.expect(memory, count)
    row.target.store(memory + 7 * PAGE)
    row.expect(memory, count, written={7})
    row.check()


def _frames(pid: int, memory: int, pages: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        entries = np.frombuffer(os.pread(pagemap.fileno(), pages * 8, memory // PAGE * 8), dtype=np.uint64)
    return entries & np.uint64((1 << 55) - 1)


@pytest.mark.parametrize("way", ["mlock", "MADV_POPULATE_WRITE"])
def test_row_38_locked_and_populated(row: Watched, way: str) -> None:
    """Faulting pages in as if for writing changes nothing, and may be told: of these pages, and no others."""
    memory = row.target.map(32)
    row.settle()
    if way == "mlock":
        row.target.call("mlock", memory, 16 * PAGE)
    else:
        row.target.advise(memory, 16, MADV_POPULATE_WRITE)
    written, vanished = within(row.round(), memory // PAGE, 32)
    assert written <= set(range(16))
    assert not vanished
    row.target.store(memory + 3 * PAGE)
    row.expect(memory, 32, written={3})
    row.check()


def test_row_42_the_target_has_a_userfaultfd_itself(backend: str, says: Callable[[str], None]) -> None:
    """There is room for one only: the target is refused with a sentence that says where, and keeps its own."""
    with victim() as target:
        first = target.map(16)
        target.do(USERFAULTFD)
        target.do(f"own_userfaultfd({first * PAGE}, {16 * PAGE}, 0, 1)")
        with pytest.raises(Untrackable, match=f"process {target.pid} uses userfaultfd itself at"):
            track(target.pid, backend)
        assert target.number(f"peek({first * PAGE})") == 1
    says("refused: uses userfaultfd itself, and where")


def track(pid: int, backend: str) -> None:
    """Track a process for one round."""
    tracker = BACKENDS[backend](pid, take_userfaultfd(pid))
    try:
        tracker.harvest()
    finally:
        tracker.close()
