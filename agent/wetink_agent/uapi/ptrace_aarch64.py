"""Mirror of what is used of aarch64's ``asm/ptrace.h``, ``asm/sigcontext.h`` and ``linux/elf.h``: no behaviour.

A test compiles these with aarch64's headers, and the rest of ``uapi`` with those of the machine it runs on.
"""

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64

NT_PRFPREG = 2
NT_ARM_SVE = 0x405

SVE_PT_REGS_SVE = 1

FPSIMD_MAGIC = 0x46508001


class user_pt_regs(Structure):
    """``struct user_pt_regs``: the general registers, as NT_PRSTATUS carries them."""

    _fields_ = (
        ("regs", c_uint64 * 31),
        ("sp", c_uint64),
        ("pc", c_uint64),
        ("pstate", c_uint64),
    )


class user_fpsimd_state(Structure):
    """``struct user_fpsimd_state``: the floating-point registers, as NT_PRFPREG carries them."""

    _fields_ = (
        ("vregs", c_uint8 * 512),
        ("fpsr", c_uint32),
        ("fpcr", c_uint32),
        ("__reserved", c_uint32 * 2),
    )


class user_sve_header(Structure):
    """``struct user_sve_header``: what NT_ARM_SVE begins with."""

    _fields_ = (
        ("size", c_uint32),
        ("max_size", c_uint32),
        ("vl", c_uint16),
        ("max_vl", c_uint16),
        ("flags", c_uint16),
        ("__reserved", c_uint16),
    )
