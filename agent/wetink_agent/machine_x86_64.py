"""x86-64, as ``attach`` needs it: see ``machine``. The restart codes are those of ``include/linux/errno.h``."""

import errno
import struct
from collections.abc import Callable
from typing import Any, Final

from wetink_agent.uapi.ptrace import user_regs_struct

_NR_CLOSE: Final = 3
_NR_RT_SIGPROCMASK: Final = 14
_NR_RESTART_SYSCALL: Final = 219
_NR_USERFAULTFD: Final = 323
_SIG_SETMASK: Final = 2
_SIGSET_SIZE_BYTES: Final = 8
_SYSCALL_SIZE_BYTES: Final = 2
_WORD_SIZE_BYTES: Final = 8
_USER_CS_64: Final = 0x33
_MASK_64: Final = (1 << 64) - 1
_REGISTERS_SIZE_BYTES: Final = len(bytes(user_regs_struct()))

# What a system call leaves in rax when a stop interrupted it.
_RESTART_SAME: Final = frozenset({512, 513, 514})  # ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
_RESTART_BLOCK: Final = 516  # ERESTART_RESTARTBLOCK

_HEAD: Final = b"".join(
    (
        b"\x0f\x05",  # syscall: the one we ask for
        b"\x89\xc7",  # mov edi, eax: its descriptor; a failure gives a number that close refuses
        b"\xb8" + struct.pack("<I", _NR_CLOSE),  # mov eax, close
        b"\x0f\x05",  # syscall
        b"\xb8" + struct.pack("<I", _NR_RT_SIGPROCMASK),  # mov eax, rt_sigprocmask
        b"\xbf" + struct.pack("<I", _SIG_SETMASK),  # mov edi, SIG_SETMASK
        b"\x48\x8d\x35" + struct.pack("<I", 5 + 6 + 2 + 7 * 10 + 6 + 8),  # lea rsi, [rip + distance to the mask]
        b"\xba\x00\x00\x00\x00",  # mov edx, 0
        b"\x41\xba" + struct.pack("<I", _SIGSET_SIZE_BYTES),  # mov r10d, size of the mask
        b"\x0f\x05",  # syscall
    )
)


class X86_64:  # noqa: N801 - the processor's name
    """A 64-bit process on x86-64."""

    stub_head = _HEAD
    stub_size_bytes = -(-(len(_HEAD) + 7 * 10 + 6 + 8 + _SIGSET_SIZE_BYTES) // _WORD_SIZE_BYTES) * _WORD_SIZE_BYTES

    def blank(self) -> user_regs_struct:
        """See ``Machine``."""
        return user_regs_struct()

    def why_not(self, registers: user_regs_struct, size_bytes: int) -> str | None:
        """See ``Machine``."""
        if size_bytes < _REGISTERS_SIZE_BYTES or registers.cs != _USER_CS_64:
            return "is not a 64-bit x86 process: only those can be attached"
        return None

    def places(self, registers: user_regs_struct) -> tuple[int, int]:
        """See ``Machine``."""
        return registers.rip, registers.rsp

    def is_interrupted_for_good(self, registers: user_regs_struct) -> bool:
        """See ``Machine``.

        Calls with a deadline are left alone, since nobody knows how much of it was left; signal(7) allows them EINTR.
        """
        if _signed(registers.rax) != -errno.EINTR:
            return False
        match registers.orig_rax:
            case 232 | 281:  # epoll_wait, epoll_pwait: an int of milliseconds
                return bool(registers.r10 >> 31 & 1)
            case 65:  # semop
                return True
            case 220 | 441:  # semtimedop, epoll_pwait2: a pointer
                return bool(registers.r10 == 0)
            case 128:  # rt_sigtimedwait: a pointer
                return bool(registers.rdx == 0)
            case _:
                return False

    def call_again(self, registers: user_regs_struct) -> None:
        """See ``Machine``."""
        registers.rax, registers.orig_rax = registers.orig_rax, _MASK_64
        registers.rip -= _SYSCALL_SIZE_BYTES

    def lent(self, registers: user_regs_struct, *, room: int, flags: int) -> user_regs_struct:
        """See ``Machine``."""
        lent = user_regs_struct.from_buffer_copy(registers)
        lent.rip = room
        lent.rax = _NR_USERFAULTFD
        lent.rdi = flags
        lent.orig_rax = _MASK_64  # no system call is under way, so nothing is restarted before ours
        return lent

    def result(self, registers: user_regs_struct) -> int:
        """See ``Machine``."""
        return _signed(registers.rax)

    def stub(self, registers: user_regs_struct, mask: bytes, read: Callable[[int, Any], int]) -> bytes:
        """See ``Machine``.

        Only instructions that leave the flags alone are used; ``syscall`` itself overwrites rcx and r11.
        """
        del read  # no other registers are touched
        rax, rip = registers.rax, registers.rip
        if _signed(registers.orig_rax) >= 0:
            code = -_signed(registers.rax)
            # What the kernel itself would do on the way out: go back over the syscall instruction.
            if code in _RESTART_SAME:
                rax, rip = registers.orig_rax, rip - _SYSCALL_SIZE_BYTES
            elif code == _RESTART_BLOCK:
                rax, rip = _NR_RESTART_SYSCALL, rip - _SYSCALL_SIZE_BYTES
        return b"".join(
            (
                _HEAD,
                b"\x48\xb8" + struct.pack("<Q", rax),  # mov rax, ...
                b"\x48\xbf" + struct.pack("<Q", registers.rdi),  # mov rdi, ...
                b"\x48\xbe" + struct.pack("<Q", registers.rsi),  # mov rsi, ...
                b"\x48\xba" + struct.pack("<Q", registers.rdx),  # mov rdx, ...
                b"\x49\xba" + struct.pack("<Q", registers.r10),  # mov r10, ...
                b"\x48\xb9" + struct.pack("<Q", registers.rcx),  # mov rcx, ...
                b"\x49\xbb" + struct.pack("<Q", registers.r11),  # mov r11, ...
                b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", rip),  # jmp [rip + 0]
                mask,
            )
        ).ljust(self.stub_size_bytes, b"\0")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
