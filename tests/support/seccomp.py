"""A seccomp filter over a program, as container runtimes put one over every container."""

from typing import Final

NR_USERFAULTFD: Final = 323
NR_KEYCTL: Final = 250

UNDER_A_FILTER: Final = (
    "import ctypes, os, struct, sys\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "refused = 0x15, 0, 1, int(sys.argv[1]), 6, 0, 0, 0x50001\n"
    "code = struct.pack('HBBI' * 4, 0x20, 0, 0, 0, *refused, 6, 0, 0, 0x7fff0000)\n"
    "buffer = ctypes.create_string_buffer(code)\n"
    "holder = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(buffer)))\n"
    "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
    "assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(holder)), 0, 0) == 0\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
"""For ``python -c``: refuses one system call, by its number, with EPERM, then becomes the program that follows."""
