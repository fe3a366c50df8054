"""Mirror of ``include/uapi/linux/userfaultfd.h``: numbers and layouts, no behaviour.

Names, order and types are the header's own, so the two can be read side by side. Only what the agent uses is here.
"""

from ctypes import Structure, Union, c_int64, c_uint8, c_uint16, c_uint32, c_uint64

UFFD_API = 0xAA

UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
UFFD_FEATURE_EVENT_FORK = 1 << 1
UFFD_FEATURE_EVENT_REMAP = 1 << 2
UFFD_FEATURE_EVENT_REMOVE = 1 << 3
UFFD_FEATURE_EVENT_UNMAP = 1 << 6
UFFD_FEATURE_SIGBUS = 1 << 7
UFFD_FEATURE_THREAD_ID = 1 << 8
UFFD_FEATURE_EXACT_ADDRESS = 1 << 11
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15

UFFD_EVENT_PAGEFAULT = 0x12
UFFD_EVENT_FORK = 0x13

UFFD_PAGEFAULT_FLAG_WRITE = 1 << 0
UFFD_PAGEFAULT_FLAG_WP = 1 << 1

UFFD_USER_MODE_ONLY = 1

UFFDIO_REGISTER_MODE_WP = 1 << 1
UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0

USERFAULTFD_IOC_NEW = 0xAA00

UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_UNREGISTER = 0x8010AA01
UFFDIO_WAKE = 0x8010AA02
UFFDIO_ZEROPAGE = 0xC020AA04
UFFDIO_WRITEPROTECT = 0xC018AA06


class _feat(Union):
    _fields_ = (("ptid", c_uint32),)


class _pagefault(Structure):
    _fields_ = (
        ("flags", c_uint64),
        ("address", c_uint64),
        ("feat", _feat),
    )


class _arg(Union):
    # Of the members only the one for page faults: no other event is ever asked for.
    _fields_ = (("pagefault", _pagefault),)


class uffd_msg(Structure):
    """``struct uffd_msg``: what read(2) gives, since Linux 4.3."""

    _pack_ = 1
    _fields_ = (
        ("event", c_uint8),
        ("reserved1", c_uint8),
        ("reserved2", c_uint16),
        ("reserved3", c_uint32),
        ("arg", _arg),
    )


class uffdio_api(Structure):
    """``struct uffdio_api``, since Linux 4.3."""

    _fields_ = (
        ("api", c_uint64),
        ("features", c_uint64),
        ("ioctls", c_uint64),
    )


class uffdio_range(Structure):
    """``struct uffdio_range``, since Linux 4.3."""

    _fields_ = (
        ("start", c_uint64),
        ("len", c_uint64),
    )


class uffdio_register(Structure):
    """``struct uffdio_register``, since Linux 4.3."""

    _fields_ = (
        ("range", uffdio_range),
        ("mode", c_uint64),
        ("ioctls", c_uint64),
    )


class uffdio_writeprotect(Structure):
    """``struct uffdio_writeprotect``, since Linux 5.7."""

    _fields_ = (
        ("range", uffdio_range),
        ("mode", c_uint64),
    )


class uffdio_zeropage(Structure):
    """``struct uffdio_zeropage``, since Linux 4.3."""

    _fields_ = (
        ("range", uffdio_range),
        ("mode", c_uint64),
        ("zeropage", c_int64),
    )
