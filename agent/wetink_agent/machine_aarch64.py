"""aarch64, as ``attach`` needs it: see ``machine``. Written from the kernel's sources; the stub has run, emulated.

No instruction jumps to an address that is in no register, so the stub goes back by ``rt_sigreturn``: the kernel takes
all registers and the mask at once, from a signal frame that lies with the stub. Its first bytes are of no meaning
there, and have the code.

Unlike on x86-64 the kernel prepares the restart of an interrupted call *before* a tracer sees the registers, and what
it would do besides for a relative sleep (``restart_syscall``) is lost where the thread is sent elsewhere: such a sleep
begins anew, and is longer by what had passed. A call that does not restart gives EINTR once: its first argument is
overwritten.

Source: ``do_signal``, ``restore_sigframe`` and ``parse_user_sigframe`` in arch/arm64/kernel/signal.c.
"""

import errno
import struct
from collections.abc import Callable
from typing import Any, Final

from wetink_agent.uapi import ptrace_aarch64 as pa

_NR_CLOSE: Final = 57
_NR_RT_SIGRETURN: Final = 139
_NR_USERFAULTFD: Final = 282
_REGISTERS_SIZE_BYTES: Final = len(bytes(pa.user_pt_regs()))

# struct rt_sigframe is a siginfo and a ucontext: in it are the mask, the registers, and records, each with a head.
MASK_OFFSET: Final = 168
REGISTERS_OFFSET: Final = 312
RECORDS_OFFSET: Final = 592
FPSIMD_SIZE_BYTES: Final = 528
# A record of no size is the last. The stack is aligned to 16 bytes, and a room is where the stack is then.
_SIZE_BYTES: Final = -(-(RECORDS_OFFSET + FPSIMD_SIZE_BYTES + 8) // 16) * 16

_SVC: Final = 0xD4000001
_HEAD: Final = struct.pack(
    "<8I",
    _SVC,  # svc #0: the one we ask for; a failure gives a number that close refuses
    0xD2800008 | _NR_CLOSE << 5,  # mov x8, close
    _SVC,  # svc #0
    0xD2800008 | _NR_RT_SIGRETURN << 5,  # mov x8, rt_sigreturn
    0x10FFFF80,  # adr x0, the beginning of this
    0x9100001F,  # mov sp, x0
    _SVC,  # svc #0
    0xD4200000,  # brk #0: it does not come back
)


class AArch64:
    """A 64-bit process on aarch64, little-endian."""

    stub_head = _HEAD
    stub_size_bytes = _SIZE_BYTES

    def blank(self) -> pa.user_pt_regs:
        """See ``Machine``."""
        return pa.user_pt_regs()

    def why_not(self, registers: pa.user_pt_regs, size_bytes: int) -> str | None:
        """See ``Machine``."""
        del registers  # of a 32-bit process there are fewer
        return None if size_bytes == _REGISTERS_SIZE_BYTES else "is not a 64-bit process: only those can be attached"

    def places(self, registers: pa.user_pt_regs) -> tuple[int, int]:
        """See ``Machine``."""
        return registers.pc, registers.sp

    def is_interrupted_for_good(self, registers: pa.user_pt_regs) -> bool:
        """See ``Machine``; it may be, but what to call again with is gone."""
        del registers
        return False

    def call_again(self, registers: pa.user_pt_regs) -> None:
        """See ``Machine``; never asked for."""

    def lent(self, registers: pa.user_pt_regs, *, room: int, flags: int) -> pa.user_pt_regs:
        """See ``Machine``."""
        lent = pa.user_pt_regs.from_buffer_copy(registers)
        lent.pc = room
        lent.regs[8] = _NR_USERFAULTFD
        lent.regs[0] = flags
        return lent

    def result(self, registers: pa.user_pt_regs) -> int:
        """See ``Machine``."""
        value = int(registers.regs[0])
        return value - (1 << 64) if value >> 63 else value

    def stub(self, registers: pa.user_pt_regs, mask: bytes, read: Callable[[int, Any], int]) -> bytes:
        """See ``Machine``.

        Raises:
            OSError: EBUSY: it computes with SVE registers at this moment, which any system call would forget.
        """
        self._refuse_sve(read)
        floating = pa.user_fpsimd_state()
        read(pa.NT_PRFPREG, floating)
        fpsimd = struct.pack("<4I", pa.FPSIMD_MAGIC, FPSIMD_SIZE_BYTES, floating.fpsr, floating.fpcr)
        stub = bytearray(_SIZE_BYTES)
        for offset, part in (
            (0, _HEAD),
            (MASK_OFFSET, mask),
            (REGISTERS_OFFSET, bytes(registers)),
            (RECORDS_OFFSET, fpsimd + bytes(floating.vregs)),
        ):
            stub[offset : offset + len(part)] = part
        return bytes(stub)

    def _refuse_sve(self, read: Callable[[int, Any], int]) -> None:
        header = pa.user_sve_header()
        try:
            read(pa.NT_ARM_SVE, header)
        except OSError:
            return  # the processor has none
        if header.flags & pa.SVE_PT_REGS_SVE:
            raise OSError(errno.EBUSY, "its thread computes with SVE registers, which a call would forget: try again")
