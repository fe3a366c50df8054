"""Mirror of the PAGEMAP_SCAN part of ``include/uapi/linux/fs.h``: numbers and layouts, no behaviour.

Source: Linux kernel commit 52526ca7fdb9 ("fs/proc/task_mmu: implement IOCTL to get and optionally clear info about
PTEs") (in v6.7).
"""

from ctypes import Structure, c_uint64

PAGEMAP_SCAN = 0xC0606610

PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5

PM_SCAN_WP_MATCHING = 1 << 0


class page_region(Structure):
    """``struct page_region``: a run of pages that share their categories."""

    _fields_ = (
        ("start", c_uint64),
        ("end", c_uint64),
        ("categories", c_uint64),
    )


class pm_scan_arg(Structure):
    """``struct pm_scan_arg``: what a scan asks for, and where it stopped."""

    _fields_ = (
        ("size", c_uint64),
        ("flags", c_uint64),
        ("start", c_uint64),
        ("end", c_uint64),
        ("walk_end", c_uint64),
        ("vec", c_uint64),
        ("vec_len", c_uint64),
        ("max_pages", c_uint64),
        ("category_inverted", c_uint64),
        ("category_mask", c_uint64),
        ("category_anyof_mask", c_uint64),
        ("return_mask", c_uint64),
    )
