"""What a process has open that may write into its memory by other ways than its page table.

An io_uring tells which buffers are registered with it. Direct I/O and devices do not tell where they write: that they
are there is all that can be said.

Source: Linux io_uring/fdinfo.c (``UserBufs``); proc_pid_fdinfo(5).
"""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wetink.pages import PAGE_SIZE
from wetink.v1 import types_pb2
from wetink_agent import procfs
from wetink_agent.mappings import WRITERS_MAX, Writer, merged
from wetink_agent.shared_memory import Range

DESCRIPTORS_MAX: Final = 4096
"""Descriptors that are looked at: some 20 ms. Of a process with more, the rest is said to be unknown."""

TRIES: Final = 5
TRY_SECONDS: Final = 0.0005
"""How often an io_uring is asked for its buffers, and the pause between: it does not answer while it works."""

INFO_BYTES_MAX: Final = 1 << 20
"""Of one descriptor's fdinfo: room for the 16,384 buffers that an io_uring may have."""

RING: Final = "anon_inode:[io_uring]"
_DEVICES: Final = ("/dev/vfio/", "/dev/infiniband/", "/dev/vhost-", "/dev/dri/", "/dev/nvidia", "anon_inode:[vfio")
_FLAGS: Final = re.compile(rb"^flags:\s*0*([0-7]+)$", re.MULTILINE)
_BUFFERS: Final = re.compile(rb"^UserBufs:\s*(\d+)$", re.MULTILINE)
_BUFFER: Final = re.compile(rb"^ *\d+: (?:0x([0-9a-f]+)/(\d+)|<none>)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What one look found. ``writers`` are those of which nobody can tell where they write.

    ``where`` is the directory of ``/proc`` that shows them: of a thread that lives, where the first has ended.
    """

    where: str = ""
    rings: tuple[int, ...] = ()
    writers: tuple[Writer, ...] = ()


def look(pid: int) -> Descriptors:
    """Look at the descriptors of a process.

    Raises:
        OSError, NoSuchProcess: It is gone.
    """
    where = f"/proc/{pid}/task/{procfs.living_thread(pid)}"
    try:
        found = sorted(int(path.name) for path in Path(f"{where}/fd").iterdir())
    except PermissionError:
        what = "its open files may not be read: io_uring, direct I/O and devices are not known"
        return Descriptors(writers=(Writer(types_pb2.UNCERTAINTY_DIRECT_IO, what),))
    rings: list[int] = []
    writers: list[Writer] = []
    for fd in found[:DESCRIPTORS_MAX]:
        try:
            path = str(Path(f"{where}/fd/{fd}").readlink())
            if path == RING:
                rings.append(fd)
            elif path.startswith(_DEVICES):
                writers.append(Writer(types_pb2.UNCERTAINTY_DEVICE, f"descriptor {fd}: {path}"))
            elif path.startswith("/") and _is_direct(where, fd):
                writers.append(Writer(types_pb2.UNCERTAINTY_DIRECT_IO, f"descriptor {fd}: {path} (O_DIRECT)"))
        except FileNotFoundError:
            continue  # closed meanwhile
    if len(found) > DESCRIPTORS_MAX:
        what = f"{len(found) - DESCRIPTORS_MAX} of its {len(found)} descriptors were not looked at"
        writers.insert(0, Writer(types_pb2.UNCERTAINTY_DIRECT_IO, what))
    return Descriptors(where, tuple(rings), tuple(writers[:WRITERS_MAX]))


def buffers_of(found: Descriptors) -> tuple[tuple[Range, ...], tuple[int, ...]]:
    """Ask io_urings for the buffers that are registered with them.

    Returns:
        Their ranges of addresses, of whole pages, merged; and the rings that did not answer.
    """
    buffers: list[Range] = []
    silent = []
    for fd in found.rings:
        ranges = _buffers_of(found.where, fd)
        if ranges is None:
            silent.append(fd)
        else:
            buffers += ranges
    return tuple(merged(buffers)), tuple(silent)


def parse_buffers(info: bytes) -> list[Range] | None:
    """Read the registered buffers out of an io_uring's fdinfo; None where it did not tell all of them.

    It leaves them out while another thread is inside the ring, and what does not fit in its page of output.
    """
    head = _BUFFERS.search(info)
    if head is None:
        return None
    found = _BUFFER.findall(info, head.end())[: int(head[1])]
    if len(found) < int(head[1]):
        return None
    return [_whole_pages(int(address, 16), int(size)) for address, size in found if address]


def _buffers_of(where: str, fd: int) -> list[Range] | None:
    for attempt in range(TRIES):
        if attempt:
            time.sleep(TRY_SECONDS)
        try:
            ranges = parse_buffers(_info(where, fd))
        except (FileNotFoundError, ProcessLookupError):
            return []  # closed meanwhile
        except OSError:
            return None  # we have no descriptor left to ask it with
        if ranges is not None:
            return ranges
    return None


def _whole_pages(address: int, size_bytes: int) -> Range:
    return address & -PAGE_SIZE, (address + max(size_bytes, 1) + PAGE_SIZE - 1) & -PAGE_SIZE


def _is_direct(where: str, fd: int) -> bool:
    flags = _FLAGS.search(_info(where, fd))
    return flags is not None and bool(int(flags[1], 8) & os.O_DIRECT)


def _info(where: str, fd: int) -> bytes:
    info = os.open(f"{where}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces: list[bytes] = []
        while (piece := os.read(info, 64 << 10)) and sum(map(len, pieces)) < INFO_BYTES_MAX:
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(info)
