"""A process that does with its memory what a test tells it to, one line of Python at a time.

Its own interpreter writes memory too: a test that says exactly what is written looks at mappings it has made.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.support.programs import Program
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Harvest
from wetink_agent.shared_memory import Range
from wetink_agent.wp_async import WpAsync

PAGE: Final = 4096

_LOOP: Final = """
import ctypes, json, os, sys
PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
for name in ("munmap", "madvise", "mprotect"):
    getattr(libc, name).argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)[: 2 if name == "munmap" else 3]
libc.sbrk.restype = ctypes.c_void_p
libc.sbrk.argtypes = (ctypes.c_long,)

def mmap(pages, address=None, protection=3, flags=0x22, fd=-1, offset=0):
    got = libc.mmap(address, pages * PAGE, protection, flags, fd, offset)
    if got == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got

def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def poke(address, value=1):
    ctypes.c_ubyte.from_address(address).value = value

def peek(address):
    return ctypes.c_ubyte.from_address(address).value

def fill(address, pages, value=1):
    for page in range(pages):
        poke(address + page * PAGE, value)

print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    here = {"result": None}
    try:
        exec(json.loads(line), globals(), here)
        answer = {"result": here["result"]}
    except Exception as error:
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
"""


USERFAULTFD: Final = """
def own_userfaultfd(start, size_bytes, features, mode):
    import fcntl, struct
    global own
    own = checked(libc.syscall(323, ctypes.c_long(1 | 0o2000000)))
    fcntl.ioctl(own, 0xc018aa3f, bytearray(struct.pack('QQQ', 0xaa, features, 0)))
    fcntl.ioctl(own, 0xc020aa00, bytearray(struct.pack('QQQQ', start, size_bytes, mode, 0)))
globals()['own_userfaultfd'] = own_userfaultfd
"""
"""Source that defines ``own_userfaultfd``: the victim registers memory of its own."""


class Victim:
    """The process."""

    def __init__(self, program: Program) -> None:
        """Take over a program that has said it is ready."""
        self.program = program
        self.pid = program.pid

    def do(self, source: str) -> object:
        """Have it run some Python; gives what that leaves in ``result``."""
        answer: dict[str, object] = json.loads(self.program.ask(json.dumps(source)))
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def number(self, expression: str) -> int:
        """Have it evaluate an expression to an integer."""
        result = self.do(f"result = {expression}")
        assert isinstance(result, int)
        return result

    def map(self, pages: int, *, filled: bool = True, more: str = "") -> int:
        """Have it map private anonymous memory, or as ``more`` says, and fill it; gives the first page."""
        address = self.number(f"mmap({pages}{', ' + more if more else ''})")
        if filled:
            self.do(f"fill({address}, {pages})")
        return address // PAGE

    def write(self, *pages: int, value: int = 2) -> None:
        """Have it write these pages."""
        self.do(f"for page in {pages!r}: poke(page * PAGE, {value})")


@contextmanager
def victim(*before: str) -> Iterator[Victim]:
    """Start a victim.

    Args:
        before: Words before the interpreter's on the command line: ``setarch -R``, say.
    """
    command = [*before, sys.executable, "-c", _LOOP]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        ) as process,
    ):
        try:
            program = Program(process, errors, name="victim")
            assert program.read_line().split() == ["ready", str(process.pid)]
            yield Victim(program)
        finally:
            process.kill()


@contextmanager
def tracked(pid: int, scope: Sequence[Range] = ()) -> Iterator[WpAsync]:
    """Attach to a process and track it; nothing is harvested yet."""
    tracker = WpAsync(pid, take_userfaultfd(pid), scope)
    try:
        yield tracker
    finally:
        tracker.close()


def within(harvest: Harvest, first: int, count: int) -> tuple[set[int], set[int]]:
    """Give what a harvest says of some pages, counted from the first: which are written, which vanished."""
    pages = range(first, first + count)
    return (
        {page - first for page in harvest.written if page in pages},
        {page - first for page in harvest.vanished if page in pages},
    )
