"""Whether a userfaultfd that a process offers is one over its memory, and can be used where it is not fresh.

UFFDIO_API can be done once, so what the process asked for there stays. Firecracker's forks that track ask for what we
need; Firecracker itself asks for what would let it wait for us: that is refused, with what to ask for instead.

Source: ``userfaultfd_api`` and ``userfaultfd_show_fdinfo`` (Linux 4.3) in fs/userfaultfd.c.
"""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink_agent import procfs
from wetink_agent.errors import Untrackable
from wetink_agent.shared_memory import Range, within
from wetink_agent.uapi import fs
from wetink_agent.uapi import userfaultfd as uf

EVENTS: Final = (
    uf.UFFD_FEATURE_EVENT_FORK
    | uf.UFFD_FEATURE_EVENT_REMAP
    | uf.UFFD_FEATURE_EVENT_REMOVE
    | uf.UFFD_FEATURE_EVENT_UNMAP
)
"""Each makes the process wait in a system call until somebody has read the event; we never read any."""

MAPPINGS_MAX: Final = 8
"""Mappings in which a page is registered to see whose memory it is: more than can all be unmapped meanwhile."""

ADDRESS_MIN: Final = 0x1000
ADDRESS_END: Final = 0x7FFFFFFFF000
"""Of user memory, with four levels of page tables: above it a process maps only what it asks for there."""

_INITIALISED: Final = 1 << 31  # UFFD_FEATURE_INITIALIZED, which the kernel keeps for itself
_API_LINE: Final = re.compile(r"^API:\taa:([0-9a-f]+):", re.MULTILINE)
_NAMES: Final = {
    value: name for name, value in vars(uf).items() if name.startswith("UFFD_FEATURE_") and isinstance(value, int)
}
_OTHER_MODES: Final = {"um": "missing pages", "ui": "minor faults"}


def features_of(uffd: int) -> int | None:
    """Give the features that a userfaultfd has been through UFFDIO_API with; None where it has not."""
    match = _API_LINE.search(Path(f"/proc/self/fdinfo/{uffd}").read_text(encoding="ascii"))
    features = int(match[1], 16) if match else 0
    return features & ~_INITIALISED if features & _INITIALISED else None


def check(pid: int, features: int, scope: Sequence[Range], *, needed: int, forbidden: int) -> None:
    """Make sure that a userfaultfd with these features can find what is written, and lets nobody wait.

    Args:
        pid: The process that offered it.
        features: What it asked for.
        scope: The memory that is meant; empty means all of it.
        needed: What it must have asked for.
        forbidden: What it must not, beside ``EVENTS``.

    Raises:
        Untrackable: It cannot be used; the text says what would do.
    """
    if lacking := needed & ~features:
        message = (
            f"process {pid} offered a userfaultfd that has been through UFFDIO_API without {_named(lacking)}: "
            "ask for that there, or leave UFFDIO_API to the agent"
        )
        raise Untrackable(message)
    if surplus := (EVENTS | forbidden) & features:
        message = (
            f"process {pid} offered a userfaultfd that has been through UFFDIO_API with {_named(surplus)}, for which "
            "it would have to wait: leave that out there"
        )
        raise Untrackable(message)
    for start, end, flags in procfs.registered(pid):
        for first, last in within(scope, start, end):
            for flag in flags & _OTHER_MODES.keys():
                message = (
                    f"process {pid} has {first:#x}-{last:#x} registered for {_OTHER_MODES[flag]}, which the agent does "
                    "not serve: offer a userfaultfd that has no such memory"
                )
                raise Untrackable(message)


def take_over(uffd: int, start: int, end: int) -> bool:
    """Register memory that is registered already; whether it was with this userfaultfd, so that it may be ours."""
    argument = uf.uffdio_register(range=uf.uffdio_range(start=start, len=end - start), mode=uf.UFFDIO_REGISTER_MODE_WP)
    try:
        syscalls.ioctl(uffd, uf.UFFDIO_REGISTER, argument, "UFFDIO_REGISTER")
    except OSError as error:
        # Anything else means that it has just gone, or is of another kind now: then nobody reads it.
        return error.errno != errno.EBUSY
    return True


def check_is_over(pid: int, uffd: int) -> None:
    """Make sure that a userfaultfd that has been through UFFDIO_API with WP_ASYNC is over the memory of this process.

    A child of fork(2) may send its parent's. It shows when a page of the process is registered for a moment.

    Raises:
        Untrackable: It is over another's.
        NoSuchProcess: It is gone.
        PermissionError: Its page map may not be read.
    """
    pagemap = procfs.open_pagemap(pid)
    try:
        mappings = [
            mapping
            for mapping in procfs.parse_maps(procfs.read_maps(pid))
            if mapping.writable and not mapping.shared and not mapping.inode
        ]
        # The stack first, which is not unmapped meanwhile.
        mappings.sort(key=lambda mapping: mapping.name != "[stack]")
        is_ours = not mappings or any(_is_over_page(uffd, pagemap, mapping.end) for mapping in mappings[:MAPPINGS_MAX])
    finally:
        os.close(pagemap)
    if not is_ours:
        message = f"process {pid} offered a userfaultfd over the memory of another process: send its own"
        raise Untrackable(message)


def _is_over_page(uffd: int, pagemap: int, end: int) -> bool:
    start = end - PAGE_SIZE
    span = uf.uffdio_range(start=start, len=PAGE_SIZE)
    argument = uf.uffdio_register(range=span, mode=uf.UFFDIO_REGISTER_MODE_WP)
    try:
        if has_registered(pagemap, start, end):
            return take_over(uffd, start, end)
        syscalls.ioctl(uffd, uf.UFFDIO_REGISTER, argument, "UFFDIO_REGISTER")
        seen = has_registered(pagemap, start, end)
        syscalls.ioctl(uffd, uf.UFFDIO_UNREGISTER, span, "UFFDIO_UNREGISTER")
    except OSError:
        return False
    return seen


def has_registered(pagemap: int, start: int = ADDRESS_MIN, end: int = ADDRESS_END) -> bool:
    """Whether anything there is registered for asynchronous write-protection; looks no further than the first."""
    region = np.empty(3, dtype=np.uint64)
    argument = fs.pm_scan_arg(
        size=syscalls.size_bytes(fs.pm_scan_arg),
        start=start,
        end=end,
        vec=region.ctypes.data,
        vec_len=1,
        max_pages=1,
        category_mask=fs.PAGE_IS_WPALLOWED,
        return_mask=fs.PAGE_IS_WPALLOWED,
    )
    return syscalls.ioctl(pagemap, fs.PAGEMAP_SCAN, argument, "PAGEMAP_SCAN") > 0


def _named(features: int) -> str:
    return ", ".join(_NAMES.get(1 << bit, f"feature bit {bit}") for bit in range(64) if features >> bit & 1)
