"""Find out by doing whether this kernel can track with ``wp-async``: never by asking which version it is."""

import mmap
import os

import numpy as np

from wetink import syscalls
from wetink_agent import procfs
from wetink_agent.uapi import fs
from wetink_agent.uapi import userfaultfd as uf

FEATURES = uf.UFFD_FEATURE_PAGEFAULT_FLAG_WP | uf.UFFD_FEATURE_WP_UNPOPULATED | uf.UFFD_FEATURE_WP_ASYNC
"""What ``wp-async`` asks the kernel for."""


def why_not_wp_async() -> str | None:
    """Say which feature ``wp-async`` lacks here, as the end of a sentence, or None where it lacks nothing.

    Writes to a page of its own under write-protection and looks whether the scan sees it.
    """
    try:
        uffd = syscalls.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | uf.UFFD_USER_MODE_ONLY)
    except OSError as error:
        return f"userfaultfd(2) fails here: {error.strerror}"
    try:
        return _try(uffd)
    finally:
        os.close(uffd)


def is_forbidden_by_own_filter() -> bool:
    """Whether a seccomp filter of the agent's own keeps it from the probe: of the kernel that says nothing.

    Container runtimes put such filters over every container. What is tracked is a target's own userfaultfd, and whether
    the target may make one is known when it does.
    """
    if not procfs.has_seccomp(os.getpid(), os.getpid()):
        return False
    try:
        os.close(syscalls.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK | uf.UFFD_USER_MODE_ONLY))
    except PermissionError:
        return True
    return False


def _try(uffd: int) -> str | None:
    try:
        syscalls.ioctl(uffd, uf.UFFDIO_API, uf.uffdio_api(api=uf.UFFD_API, features=FEATURES), "UFFDIO_API")
    except OSError:
        return "it lacks UFFD_FEATURE_WP_ASYNC (Linux 6.7 and later have it)"
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        view = np.frombuffer(page, dtype=np.uint8)
        address = view.ctypes.data
        del view  # or the page could not be closed
        return _try_page(uffd, address, page)


def _try_page(uffd: int, address: int, page: mmap.mmap) -> str | None:
    span = uf.uffdio_range(start=address, len=mmap.PAGESIZE)
    register = uf.uffdio_register(range=span, mode=uf.UFFDIO_REGISTER_MODE_WP)
    try:
        syscalls.ioctl(uffd, uf.UFFDIO_REGISTER, register, "UFFDIO_REGISTER")
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"its write-protection fails: {error.strerror}"
    try:
        seen = [_written(fd, address)]
        seen.append(_written(fd, address))
        page[0] = 2
        seen.append(_written(fd, address))
    except OSError:
        return "it lacks PAGEMAP_SCAN (Linux 6.7 and later have it)"
    finally:
        os.close(fd)
    return None if seen == [True, False, True] else "its write-protection does not report a write that happened"


def _written(fd: int, address: int) -> bool:
    """Scan and re-arm one page."""
    region = np.zeros(3, dtype=np.uint64)
    argument = fs.pm_scan_arg(
        size=syscalls.size_bytes(fs.pm_scan_arg),
        flags=fs.PM_SCAN_WP_MATCHING,
        start=address,
        end=address + mmap.PAGESIZE,
        vec=region.ctypes.data,
        vec_len=1,
        category_anyof_mask=fs.PAGE_IS_PRESENT | fs.PAGE_IS_SWAPPED,
        return_mask=fs.PAGE_IS_WRITTEN | fs.PAGE_IS_PRESENT,
    )
    count = syscalls.ioctl(fd, fs.PAGEMAP_SCAN, argument, "PAGEMAP_SCAN")
    return bool(count and int(region[2]) & fs.PAGE_IS_WRITTEN)
