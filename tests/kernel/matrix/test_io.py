"""Rows of the kernel matrix: memory that input, devices and the kernel itself write to."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.held_file import BYTE, HeldFile
from tests.support.obedient import (
    ANONYMOUS,
    MAP_DROPPABLE,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    command,
)
from tests.support.rings import READ, READ_FIXED, Aio, Ring
from tests.support.victim import within
from tests.support.watched import Watched, async_only, wait_until
from wetink.v1 import types_pb2

pytestmark = pytest.mark.needs("kernel", "root", "cc")


def test_row_27_read_into_a_buffer(row: Watched, file: Path) -> None:
    """read(2), readv(2) and a pipe: the pages they touch are written, page by page."""
    memory = row.target.map(16)
    fd = row.target.open(file)
    reading, writing = row.target.pipe()
    row.settle()
    row.target.call("read", fd, memory + PAGE, 2 * PAGE)
    row.target.call("readv", fd, row.target.vector(memory + 5 * PAGE - 10, 20), 1)
    row.target.call("write", writing, row.target.room, 100)
    row.target.call("read", reading, memory + 9 * PAGE, 100)
    row.expect(memory, 16, written={1, 2, 4, 5, 9})
    row.check()


def test_row_28_direct_io_that_has_completed(row: Watched, file: Path) -> None:
    """O_DIRECT writes to the pages behind the processor's back, and has marked them first: they are written."""
    memory = row.target.map(16)
    try:
        fd = row.target.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"needs O_DIRECT on the file system of the temporary directory: {error}")
    row.settle()
    row.target.call("pread64", fd, memory + 4 * PAGE, 4 * PAGE, 0)
    row.expect(memory, 16, written={4, 5, 6, 7})
    row.check()


@pytest.mark.parametrize("way", ["thread", "aio"])
def test_row_29_direct_io_in_flight(row: Watched, tmp_path: Path, way: str, says: Callable[[str], None]) -> None:
    """Pages are marked when a read begins; a round in between takes the mark, and the data comes after it, unseen.

    No interface of the kernel tells where: wetink says that the target has such a reader.
    """
    with mounted_or_skip(tmp_path) as file:
        memory = row.target.map(16)
        fd = row.target.open(file.path, os.O_RDONLY | os.O_DIRECT)
        aio = Aio(row.target) if way == "aio" else None
        row.settle()
        file.hold()
        if aio is None:
            row.target.do(f"thread {command('pread64', fd, memory, 16 * PAGE, 0)}")
        else:
            aio.read(fd, memory, 16 * PAGE)
        file.wait_for_reads()
        assert within(row.round(), memory // PAGE, 16)[0] == set(range(16))
        file.release()
        assert (aio.wait() if aio else row.target.do("join 0")[0]) == 16 * PAGE
        row.expect(memory, 16)
        assert row.target.peek(memory, 1) == bytes([BYTE]), "the data has not come"
        assert types_pb2.UNCERTAINTY_DIRECT_IO in row.unseen_writers()
        says("the target is listed with an unseen writer, UNCERTAINTY_DIRECT_IO")
        # What is not told are these pages, and nothing else.
        assert {difference.page for difference in row.differences()} == set(range(memory // PAGE, memory // PAGE + 16))


@async_only
def test_row_26_a_write_of_another_process_in_flight(row: Watched, tmp_path: Path, says: Callable[[str], None]) -> None:
    """process_vm_writev(2) marks up to 4 MiB of pages and then writes to them, past the page table, like direct I/O.

    It can be at that for as long as its source takes to be read. Nobody can tell that it is, from outside.
    """
    with mounted_or_skip(tmp_path) as file:
        memory = row.target.map(16)
        fd = row.target.open(file.path, os.O_RDONLY)
        source = row.target.map(16, protection=PROT_READ, flags=MAP_PRIVATE, fd=fd, filled=False)
        local = row.target.vector(source, 16 * PAGE)
        remote = row.target.vector(memory, 16 * PAGE, at=2064)
        row.settle()
        file.hold()
        row.target.do(f"thread {command('process_vm_writev', row.target.pid, local, 1, remote, 1, 0)}")
        file.wait_for_reads()
        assert within(row.round(), memory // PAGE, 16)[0] == set(range(16))
        file.release()
        assert row.target.do("join 0")[0] == 16 * PAGE
        row.expect(memory, 16)
        assert {difference.page for difference in row.differences()} == set(range(memory // PAGE, memory // PAGE + 16))
        says("the README says it: a process_vm_writev(2) in flight across a round is seen by nobody")


@contextlib.contextmanager
def mounted_or_skip(directory: Path) -> Iterator[HeldFile]:
    """Mount a file whose reads can be held, or skip."""
    try:
        file = HeldFile(directory)
    except OSError as error:
        pytest.skip(f"needs FUSE, to hold direct I/O in flight: {error}")
    try:
        yield file
    finally:
        file.close()


def ring_of(row: Watched) -> Ring:
    """Give an io_uring of the target, or skip."""
    try:
        return Ring(row.target)
    except OSError as error:
        pytest.skip(f"needs io_uring: {error}")


def test_row_30_a_registered_buffer_of_io_uring(row: Watched, file: Path, says: Callable[[str], None]) -> None:
    """The kernel writes to pages it has pinned, past the page table: they are in every round, as uncertain.

    An ordinary read through the same ring is seen.
    """
    memory = row.target.map(16)
    fd = row.target.open(file)
    ring = ring_of(row)
    ring.register(memory, 8 * PAGE)
    row.settle()
    assert ring.read(fd, memory + 12 * PAGE, 2 * PAGE, operation=READ) == 2 * PAGE
    assert {12, 13} <= within(row.round(), memory // PAGE, 16)[0]
    assert ring.read(fd, memory, 4 * PAGE, operation=READ_FIXED) == 4 * PAGE
    harvest = row.round()
    assert within(harvest, memory // PAGE, 16)[0] == set(range(8))
    assert set(range(memory // PAGE, memory // PAGE + 8)) <= set(harvest.uncertain)
    assert row.target.peek(memory, 1) == b"\x01"
    for page in range(8):
        assert types_pb2.UNCERTAINTY_REGISTERED_BUFFER in row.uncertainties(memory + page * PAGE)
    assert row.uncertainties(memory + 12 * PAGE) == set()
    says("uncertain pages; the buffer is listed as UNCERTAINTY_REGISTERED_BUFFER")
    row.check()


def test_row_31_memory_that_the_kernel_maps_and_writes(row: Watched, says: Callable[[str], None]) -> None:
    """Rings of io_uring, AIO and perf are the kernel's: they are never told as memory to copy, and are listed so."""
    ring = ring_of(row)
    aio = Aio(row.target)
    # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY
    attributes = struct.pack("IIQ", 1, 112, 9).ljust(112, b"\0")
    fd = row.target.call("perf_event_open", row.target.pointed(attributes), 0, -1, -1, 0)
    perf = row.target.map(2, flags=MAP_SHARED, fd=fd, filled=False)
    row.settle()
    row.target.do(f"touch {ring.rings} 1; touch {perf} 1; touch {aio.context} 1")
    harvest = row.round()
    for address in (ring.rings, ring.entries, perf, aio.context):
        assert address // PAGE not in harvest.written
        assert row.uncertainties(address) == {types_pb2.UNCERTAINTY_DEVICE}
    says("the mappings are listed as UNCERTAINTY_DEVICE")
    row.check()


def test_row_50_droppable_memory(row: Watched) -> None:
    """MAP_DROPPABLE may become zero whenever memory is short: it is found like other anonymous memory."""
    try:
        memory = row.target.map(8, flags=(ANONYMOUS & ~2) | MAP_DROPPABLE, filled=False)
    except OSError as error:
        pytest.skip(f"needs MAP_DROPPABLE (Linux 6.11): {error}")
    row.target.fill(memory, 4)
    row.settle()
    row.target.store(memory + PAGE, memory + 6 * PAGE)
    assert {1, 6} <= within(row.round(), memory // PAGE, 8)[0]
    row.check()


def test_row_50_the_area_of_restartable_sequences(row: Watched) -> None:
    """The kernel writes the number of the processor there when a thread moves: the page is written."""
    cpus = sorted(os.sched_getaffinity(row.target.pid))
    if len(cpus) < 2:
        pytest.skip("needs two processors, to move from one to the other")
    memory = row.target.map(8)
    mask = [row.target.pointed(struct.pack("Q", 1 << cpu), at=64 + 8 * index) for index, cpu in enumerate(cpus[:2])]
    reading, writing = row.target.pipe()
    room = row.target.room + 512
    started = row.target.do(
        f"thread {command('rseq', memory + PAGE, 32, 0, 0x53053053)}; "
        f"{command('sched_setaffinity', 0, 8, mask[0])}; {command('read', reading, room, 1)}; "
        f"{command('sched_setaffinity', 0, 8, mask[1])}; {command('getpid')}; {command('read', reading, room, 1)}"
    )
    assert started == [0]
    numbers = [struct.pack("II", cpu, cpu) for cpu in cpus[:2]]
    wait_until(lambda: row.target.peek(memory + PAGE, 8) == numbers[0])
    row.settle()
    row.target.call("write", writing, room, 1)
    row.target.call("write", writing, room, 1)
    row.target.do("join 0")
    assert row.target.peek(memory + PAGE, 8) == numbers[1]
    assert 1 in within(row.round(), memory // PAGE, 8)[0]
    row.check()


def test_row_50_uprobes(row: Watched) -> None:
    """A probe writes a breakpoint into a private copy of program text: that copy is written."""
    kind = Path("/sys/bus/event_source/devices/uprobe/type")
    if not kind.exists():
        pytest.skip("needs uprobes (CONFIG_UPROBE_EVENTS)")
    text = next(
        line.split()
        for line in Path(f"/proc/{row.target.pid}/maps").read_text(encoding="utf-8").splitlines()
        if "obedient" in line and " r-xp " in line
    )
    start, end = (int(part, 16) for part in text[0].split("-"))
    path = ctypes.create_string_buffer(os.fsencode(text[-1]))
    row.settle()
    attributes = struct.pack(
        "IIQQQQQIIQQ",
        *(int(kind.read_text(encoding="ascii")), 112, 0, 0, 0, 0, 0, 0, 0),
        *(ctypes.addressof(path), int(text[2], 16) + 0x40),
    ).ljust(112, b"\0")
    buffer = ctypes.create_string_buffer(attributes)
    fd = ctypes.CDLL(None, use_errno=True).syscall(298, buffer, row.target.pid, -1, -1, 0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        assert row.target.peek(start + 0x40, 1) == b"\xcc", "no breakpoint"
        assert 0 in within(row.round(), start // PAGE, (end - start) // PAGE)[0]
        row.check()
    finally:
        os.close(fd)
    row.check()


def test_row_50_the_page_of_old_system_calls(row: Watched) -> None:
    """[vsyscall] is the kernel's, the same in every process: it is never told."""
    pages = [
        range(*(int(part, 16) // PAGE for part in line.split()[0].split("-")))
        for line in Path(f"/proc/{row.target.pid}/maps").read_text(encoding="utf-8").splitlines()
        if line.endswith("[vsyscall]")
    ]
    if not pages:
        pytest.skip("needs a kernel that maps [vsyscall] (vsyscall=none)")
    for _ in range(2):
        assert not set(row.round().written) & set(pages[0])


def test_row_50_shadow_stacks(row: Watched) -> None:
    """A shadow stack is populated by the kernel, which puts a token on its top: it is told, whole."""
    (memory,) = row.target.do(command("map_shadow_stack", 0, 4 * PAGE, 1))
    if memory < 0:
        pytest.skip(f"needs shadow stacks: {os.strerror(-memory)}")
    assert 3 in within(row.round(), memory // PAGE, 4)[0]
    row.check()
