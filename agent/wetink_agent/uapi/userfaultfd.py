"""Mirror of ``include/uapi/linux/userfaultfd.h``: numbers and layouts, no behaviour.

Names, order and types are the header's own, so the two can be read side by side. Only what the agent uses is here.
"""

from ctypes import Structure, c_uint64

UFFD_API = 0xAA

UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15

UFFD_USER_MODE_ONLY = 1

UFFDIO_REGISTER_MODE_WP = 1 << 1

UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_WRITEPROTECT = 0xC018AA06


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
