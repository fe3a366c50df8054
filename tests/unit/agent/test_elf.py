"""Symbols of real files against nm, and files that were damaged or made to harm."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.programs import build
from wetink_agent.elf import NAME_CHARACTERS_MAX, Functions, NoElf

REASONABLE_BYTES = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def program() -> Path:
    """Give a program with known functions."""
    return build("hot_and_cold")


@pytest.fixture(scope="module")
def small(program: Path) -> bytes:
    """Give its bytes."""
    return program.read_bytes()


def functions(data: bytes) -> Functions:
    """Read functions of a file with these bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return Functions(file.fileno())


@pytest.mark.needs("cc")
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is missing")
@pytest.mark.parametrize("options", [(), ("-D",)], ids=["whole table", "dynamic table"])
def test_every_function_is_found_where_nm_has_it(program: Path, options: tuple[str, ...]) -> None:
    """Also in a file that was stripped, which has the dynamic table alone."""
    path = Path("/proc/self/exe").resolve() if options else program
    listed = subprocess.run(["nm", "-S", *options, path], capture_output=True, text=True, check=True).stdout
    expected: dict[int, set[str]] = {}
    for line in listed.splitlines():
        words = line.split()
        if len(words) == 4 and words[2] in "tTwW":
            expected.setdefault(int(words[0], 16), set()).add(words[3].partition("@")[0])
    loads = [
        tuple(int(word, 16) for word in line.split()[1:4])
        for line in subprocess.run(
            ["readelf", "-lW", path], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if line.split()[:1] == ["LOAD"]
    ]
    assert expected
    with opened(path) as descriptor:
        found = Functions(descriptor)
        for address, names in list(expected.items())[:500]:
            offset = next(address - vaddr + at for at, vaddr, _ in loads[::-1] if address >= vaddr)
            assert found.name_at(offset) in names | {name.partition("@")[0] for name in names}


@pytest.mark.needs("cc")
def test_place_in_no_function_has_no_name(small: bytes) -> None:
    """The header of the file, and what is behind its end."""
    found = functions(small)

    assert found.name_at(0) == ""
    assert found.name_at(len(small) + 5) == ""
    assert found.name_at((1 << 64) - 1) == ""


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100), bytes(64)])
def test_other_files_are_refused(data: bytes) -> None:
    """Scripts, 32-bit programs, and what ends too early."""
    with pytest.raises(NoElf):
        functions(data)


HEADER = struct.Struct("<16sHHIQQQIHHHHHH")


@pytest.mark.needs("cc")
@given(st.data())
def test_damaged_files_are_refused_or_read(small: bytes, data: st.DataObject) -> None:
    """Whatever stands in the header and in the tables, nothing is raised but NoElf, and no name is long."""
    damaged = bytearray(small)
    fields = list(HEADER.unpack_from(small))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(1, len(fields) - 1))
        size = (2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2)[place - 1]
        fields[place] = data.draw(st.integers(0, (1 << 8 * size) - 1) | st.sampled_from([0, 1, fields[place]]))
    damaged[: HEADER.size] = HEADER.pack(*fields)
    sections_at, count = HEADER.unpack_from(small)[6], HEADER.unpack_from(small)[12]
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(HEADER.size, 1200) | st.integers(sections_at, sections_at + 64 * count - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        found = functions(bytes(damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) // 2, 600]))]))
    except NoElf:
        return
    for offset in (0, 0x1000, 0x1234, len(damaged), 1 << 63):
        assert len(found.name_at(offset)) <= NAME_CHARACTERS_MAX


@pytest.mark.needs("cc")
def test_a_table_that_claims_to_be_huge_takes_no_memory(small: bytes) -> None:
    """What a file says of its size is not made ready before it is there."""
    code = f"""
import os, resource, struct, sys, tempfile
from wetink_agent.elf import Functions, NoElf
data = bytearray(open({str(build("hot_and_cold"))!r}, "rb").read())
at, = struct.unpack_from("<Q", data, 40)
count, = struct.unpack_from("<H", data, 60)
for section in range(count):
    struct.pack_into("<Q", data, at + 64 * section + 32, (1 << 62) - 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with tempfile.TemporaryFile() as file:
    file.write(data); file.flush()
    try:
        Functions(file.fileno())
    except NoElf:
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert int(grown) * 1024 < 40 * REASONABLE_BYTES
    assert small
