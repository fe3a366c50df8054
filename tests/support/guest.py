"""A virtual machine in the memory of a target: a few instructions in real mode that write to the pages they are told.

Source: Documentation/virt/kvm/api.rst.
"""

import errno
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.support.obedient import MAP_SHARED, PAGE, PROT_RW, Obedient

VALUE: Final = 0x5A
"""What the guest writes."""

_CREATE_VM, _GET_VCPU_MMAP_SIZE = 0xAE01, 0xAE04
_CREATE_VCPU, _RUN = 0xAE41, 0xAE80
_SET_USER_MEMORY_REGION, _SET_REGS = 0x4020AE46, 0x4090AE82
_GET_SREGS, _SET_SREGS = 0x8138AE83, 0x4138AE84
_SREGS_BYTES: Final = 312
_REGS_BYTES: Final = 144
_EXIT_HLT: Final = 5


class NoGuest(Exception):
    """There can be no virtual machine here. The text says why."""


class Guest:
    """One virtual machine with one processor, whose memory is a mapping of the target."""

    def __init__(self, target: Obedient, memory: int, pages: int) -> None:
        """Have the target make it.

        Args:
            target: What becomes a virtual machine monitor.
            memory: Where its memory is; its first page takes the instructions.
            pages: How many, at most 16: real mode addresses no more without help.

        Raises:
            NoGuest: There is no KVM, or none for us.
        """
        self._target = target
        self._memory = memory
        try:
            kvm = target.open(Path("/dev/kvm"))
            machine = target.call("ioctl", kvm, _CREATE_VM, 0)
            region = struct.pack("IIQQQ", 0, 0, 0, pages * PAGE, memory)
            target.call("ioctl", machine, _SET_USER_MEMORY_REGION, target.pointed(region))
            self._processor = target.call("ioctl", machine, _CREATE_VCPU, 0)
        except OSError as error:
            raise NoGuest(str(error)) from error
        size_bytes = target.call("ioctl", kvm, _GET_VCPU_MMAP_SIZE, 0)
        self._run = target.map(
            size_bytes // PAGE, protection=PROT_RW, flags=MAP_SHARED, fd=self._processor, filled=False
        )
        sregs = target.pointed(bytes(_SREGS_BYTES))
        target.call("ioctl", self._processor, _GET_SREGS, sregs)
        # struct kvm_segment cs comes first: base, limit, selector.
        target.poke(sregs, struct.pack("Q", 0))
        target.poke(sregs + 12, struct.pack("H", 0))
        target.call("ioctl", self._processor, _SET_SREGS, sregs)

    def run(self, pages: Iterable[int]) -> None:
        """Have it write to these pages of its memory, and halt."""
        code = b"".join(b"\xc6\x06" + struct.pack("<HB", page * PAGE, VALUE) for page in pages) + b"\xf4"
        self._target.poke(self._memory, code)
        # rip and rflags are the last two of struct kvm_regs.
        self._target.call(
            "ioctl", self._processor, _SET_REGS, self._target.pointed(bytes(_REGS_BYTES - 16) + struct.pack("QQ", 0, 2))
        )
        while True:
            try:
                self._target.call("ioctl", self._processor, _RUN, 0)
                break
            except OSError as error:
                if error.errno != errno.EINTR:
                    raise
        reason = self._target.word(self._run + 8) & 0xFFFFFFFF
        assert reason == _EXIT_HLT, f"KVM_RUN ended with exit reason {reason}"
