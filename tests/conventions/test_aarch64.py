"""What the agent knows of aarch64, against aarch64's own headers, assembler and, emulated, instructions."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.conventions.test_uapi import facts
from wetink.syscalls import NUMBERS
from wetink_agent import machine_aarch64 as machine
from wetink_agent.uapi import ptrace_aarch64

HEADERS: Final = Path("/usr/aarch64-linux-gnu/include")
FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK

FRAME: Final = """
struct rt_sigframe { struct siginfo info; struct ucontext uc; }; /* arch/arm64/kernel/signal.c */
"""


@pytest.mark.needs("cc", "aarch64-headers")
def test_layouts_and_numbers_are_those_of_the_headers_of_aarch64(tmp_path: Path) -> None:
    """Registers, signal frame and system calls: the compiler asserts each of them, and nothing has to run."""
    frame = "__builtin_offsetof(struct rt_sigframe, uc.uc_{})"
    claims = {
        **{name.replace("offsetof(", "__builtin_offsetof("): value for name, value in facts(ptrace_aarch64).items()},
        frame.format("sigmask"): machine.MASK_OFFSET,
        frame.format("mcontext.regs"): machine.REGISTERS_OFFSET,
        frame.format("mcontext.__reserved"): machine.RECORDS_OFFSET,
        "sizeof(struct fpsimd_context)": machine.FPSIMD_SIZE_BYTES,
        "__builtin_offsetof(struct fpsimd_context, vregs)": 16,
        "__NR_close": machine._NR_CLOSE,
        "__NR_rt_sigreturn": machine._NR_RT_SIGRETURN,
        "__NR_userfaultfd": machine._NR_USERFAULTFD,
        **{f"__NR_{name}": number for name, number in NUMBERS["aarch64"].items()},
    }
    # What the sigcontext calls regs, sp, pc, pstate is one NT_PRSTATUS.
    order = [f"{frame.format('mcontext.' + name)}" for name in ("regs", "sp", "pc", "pstate")]
    for name, field in zip(order, ("regs", "sp", "pc", "pstate"), strict=True):
        claims[f"{name} - {order[0]}"] = getattr(ptrace_aarch64.user_pt_regs, field).offset
    names = (
        "asm/ptrace.h",
        "asm/siginfo.h",
        "asm/signal.h",
        "asm/sigcontext.h",
        "asm/ucontext.h",
        "asm/unistd.h",
        "linux/elf.h",
    )
    source = "".join(f"#include <{name}>\n" for name in names) + FRAME
    source += "".join(f'_Static_assert({text} == {value}, "{text}");\n' for text, value in claims.items())

    done = subprocess.run(
        ["cc", "-x", "c", "-nostdinc", "-isystem", HEADERS, "-c", "-", "-o", tmp_path / "claims.o"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(claims) > 25


@pytest.mark.needs("cc", "aarch64-headers")
def test_system_calls_of_this_machine_are_in_the_same_table() -> None:
    """Both machines have the same calls."""
    assert NUMBERS["aarch64"].keys() == NUMBERS["x86_64"].keys()


PATTERN: Final = 0x1111_2222_3333_4400
MASK: Final = 1 << 9 | 1 << 13  # SIGUSR1, SIGALRM


@pytest.mark.needs("aarch64")
def test_the_stub_leads_back_with_every_register_and_the_mask(tmp_path: Path) -> None:
    """A thread that runs through it, emulated, comes out where it was, with all that it had."""
    registers = ptrace_aarch64.user_pt_regs()
    for index in range(31):
        registers.regs[index] = PATTERN + index

    def read(note: int, into: object) -> int:
        if note != ptrace_aarch64.NT_PRFPREG:
            raise OSError
        assert isinstance(into, ptrace_aarch64.user_fpsimd_state)
        for index in range(512):
            into.vregs[index] = index * 7 & 0xFF
        return 528

    stub = machine.AArch64().stub(registers, MASK.to_bytes(8, "little"), read)
    lent = machine.AArch64().lent(registers, room=0x1000, flags=FLAGS)
    assert (lent.pc, lent.regs[8], lent.regs[0], lent.regs[1]) == (0x1000, machine._NR_USERFAULTFD, FLAGS, PATTERN + 1)
    assert len(stub) == machine.AArch64.stub_size_bytes
    assert stub.startswith(machine.AArch64.stub_head)
    (tmp_path / "stub").write_bytes(stub)
    source = Path(__file__).parent.parent / "support/c/stub_aarch64.c"
    program = tmp_path / "program"
    subprocess.run(["aarch64-linux-gnu-gcc", "-static", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)

    words = [tmp_path / "stub", machine.REGISTERS_OFFSET, PATTERN, MASK, FLAGS, machine._NR_USERFAULTFD]
    done = subprocess.run(
        ["qemu-aarch64", program, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stdout + done.stderr
