"""The rows of the kernel matrix: what a target does, and what then differs from the last copy of its memory.

Each has tests by its number, ``test_row_NN_...``, beside this module. ``docs/kernel-matrix.md`` is made of both.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

BACKENDS: Final = ("wp-async", "wp-sync")
"""What the rows are run with. A row that says nothing of one of them is not."""


class Row(NamedTuple):
    """One row."""

    operation: str
    truth: str


ROWS: Final[Mapping[int, Row]] = {
    1: Row("write to anonymous memory; read of it", "the written page only"),
    2: Row("first write to an unpopulated page", "that page"),
    3: Row("write after a read of the zero page", "that page"),
    4: Row("MADV_DONTNEED of one page, never touched again", "the page is zero"),
    5: Row("MADV_DONTNEED of a whole huge page, or of 2 MiB of small ones", "512 pages are zero"),
    6: Row("MADV_DONTNEED of the own copy of a file's page", "the page is the file's again"),
    7: Row("MADV_DONTNEED of private hugetlbfs", "the pages are zero"),
    8: Row("MADV_REMOVE, punched hole, ftruncate down and up, of shared memory", "the pages are zero"),
    9: Row("file truncated under own copies of its pages", "the pages are zero"),
    10: Row("pwrite to the file under a page that is the file's", "the page, as the file's state"),
    11: Row("shared memory written by a second mapping, another process, pwrite", "the page"),
    12: Row("MADV_DONTNEED of shared memory", "nothing"),
    13: Row("MADV_FREE, and reclaim", "what was dropped is zero"),
    14: Row("MADV_GUARD_INSTALL, MADV_GUARD_REMOVE", "the pages are gone, then zero"),
    15: Row("mremap moves", "everything at the new address"),
    16: Row("mremap moves, where EVENT_REMAP could be had", "only what was dirty before"),
    17: Row("growth in place: mremap, stack", "the new pages"),
    18: Row("another mapping at the same address", "all of the new mapping"),
    19: Row("new mapping beside an old one, grown heap", "all that is new"),
    20: Row("mapping made and filled between two looks", "all of it"),
    21: Row("parent writes after a fork", "the parent's pages"),
    22: Row("child writes after a fork", "the child's own pages"),
    23: Row("child of vfork writes", "the parent's page"),
    24: Row("execve", "new memory"),
    25: Row("exit, and then a scan", "nothing is left"),
    26: Row("process_vm_writev, /proc/PID/mem, PTRACE_POKEDATA", "the pages"),
    27: Row("read, readv, pipe into a buffer", "the pages they touch"),
    28: Row("O_DIRECT read that has completed", "its pages"),
    29: Row("O_DIRECT read in flight across a round", "its pages, after that round"),
    30: Row("io_uring reads into a registered buffer", "its pages"),
    31: Row("rings that the kernel maps: io_uring, AIO, perf", "pages of the rings"),
    32: Row("write to a transparent huge page", "one page"),
    33: Row("write to a page of hugetlbfs", "2 MiB"),
    34: Row("unpopulated hugetlbfs under a scan that arms", "nothing, and no hang"),
    35: Row("swapped out and in, armed meanwhile", "what was written only"),
    36: Row("merged by KSM", "nothing"),
    37: Row("moved by compaction", "nothing"),
    38: Row("mlock, MADV_POPULATE_WRITE", "nothing"),
    39: Row("mprotect to read-only and back, then a write", "that page"),
    40: Row("MADV_COLLAPSE", "nothing"),
    41: Row("sparse mapping of 64 GiB", "what is populated only"),
    42: Row("the target has a userfaultfd itself", "not to be known"),
    43: Row("thread exits: robust futex, cleared thread id", "the kernel's writes to both pages"),
    44: Row("signal on a protected alternative stack", "the stack's page"),
    45: Row("agent killed while a writer waits for it", "the write is done"),
    46: Row("agent stands still", "the target does not"),
    47: Row("freeze while the kernel writes to protected memory", "the target stops"),
    48: Row("writers during scan and copy", "the copy is identical"),
    49: Row("guest of KVM writes", "the pages"),
    50: Row("MAP_DROPPABLE, rseq area, uprobes, vsyscall page, shadow stack", "the pages"),
}
