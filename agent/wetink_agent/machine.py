"""What attaching must know of a processor: its registers, its system calls, and the code that a thread is given to run.

One implementation for each: ``machine_x86_64`` and ``machine_aarch64``. Nothing here does anything to a process.
"""

import platform
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from wetink_agent.errors import KernelLacks
from wetink_agent.machine_aarch64 import AArch64
from wetink_agent.machine_x86_64 import X86_64
from wetink_agent.uapi.ptrace import user_regs_struct
from wetink_agent.uapi.ptrace_aarch64 import user_pt_regs

R = TypeVar("R")
"""Its ``NT_PRSTATUS`` registers, a structure of ``uapi``."""

Registers = user_regs_struct | user_pt_regs
"""Those of any machine."""

SIGSET_SIZE_BYTES: Final = 8
"""A kernel's ``sigset_t``, of either machine."""


class Machine(Protocol[R]):
    """A kind of processor.

    The *stub* is what a thread runs that lends us a system call: the call, and then by itself all that leads back to
    where the thread was, also when nobody comes back for it. It lies in a *room* of the vdso.
    """

    stub_head: bytes
    """What every stub begins with, its first instruction being the call of ``userfaultfd``."""

    stub_size_bytes: int
    """Of a whole stub: whole words, so that to write the last one does not reach behind the vdso."""

    def blank(self) -> R:
        """Give registers to be filled."""
        ...

    def why_not(self, registers: R, size_bytes: int) -> str | None:
        """Say why a thread with such registers, of which the kernel gave so many bytes, cannot be borrowed; or None."""
        ...

    def places(self, registers: R) -> tuple[int, int]:
        """Give where the next instruction and the stack are."""
        ...

    def is_interrupted_for_good(self, registers: R) -> bool:
        """Whether the thread is in a call without a deadline that gives EINTR for a mere stop, and does not restart."""
        ...

    def call_again(self, registers: R) -> None:
        """Change registers so that the thread makes the call again that it is in."""
        ...

    def lent(self, registers: R, *, room: int, flags: int) -> R:
        """Give registers with which a thread runs the stub in a room, beginning with ``userfaultfd(flags)``."""
        ...

    def result(self, registers: R) -> int:
        """Give what a system call gave, where a negative number is an errno."""
        ...

    def stub(self, registers: R, mask: bytes, read: Callable[[int, Any], int]) -> bytes:
        """Assemble the stub that leads back to such registers and such a mask of signals.

        Args:
            registers: Of the thread, as it was.
            mask: Its blocked signals.
            read: Fills another register set of the thread, by its note, and gives the size; raises OSError.
        """
        ...


def here() -> Machine[Any]:
    """Give the machine that this runs on.

    Raises:
        KernelLacks: There is none for it.
    """
    name = platform.machine()
    if name not in _MACHINES:
        message = f"this processor is {name}: the agent can attach on {' and '.join(_MACHINES)}, not here"
        raise KernelLacks(message)
    return _MACHINES[name]


_MACHINES: Final[dict[str, Machine[Any]]] = {"x86_64": X86_64(), "aarch64": AArch64()}
