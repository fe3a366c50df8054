"""What code addresses are named by, and that a process cannot make the agent read another file than the mapped one."""

import ctypes
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wetink_agent import procfs
from wetink_agent.code_names import CODES_BYTES_MAX, CODES_MAX, Code, CodeNames, functions_of, within_bounds


def mapping_of(address: int) -> procfs.Mapping:
    """Give the mapping of this process that an address lies in."""
    return next(
        mapping
        for mapping in procfs.parse_maps(procfs.read_maps(os.getpid()))
        if mapping.start <= address < mapping.end
    )


def address_of(function: str) -> int:
    """Give where a function of the C library is in this process."""
    address = ctypes.cast(getattr(ctypes.CDLL(None), function), ctypes.c_void_p).value
    assert address
    return address


def test_function_of_a_library_has_its_name() -> None:
    """In a round after its file was read; the file and the place in it at once."""
    names = CodeNames()
    address = address_of("getpid")
    mapping = mapping_of(address)
    pointers = np.array([address, address, address + 1, 0], np.uint64)
    (first, *_) = names.name(os.getpid(), pointers, [mapping])
    assert (first.instruction_pointer, first.file) == (address, mapping.name)
    assert first.file_offset == address - mapping.start + mapping.offset

    until = time.monotonic() + 60
    while not first.symbol and time.monotonic() < until:
        time.sleep(0.01)
        (first, *_) = names.name(os.getpid(), pointers, [mapping])
    assert "getpid" in first.symbol


def test_address_in_no_file_has_no_name() -> None:
    """Code that was made at run time is told as its address alone."""
    anonymous = replace(mapping_of(address_of("getpid")), inode=0, name="")

    assert CodeNames().name(os.getpid(), np.array([anonymous.start], np.uint64), [anonymous]) == ()


def test_most_frequent_addresses_are_named() -> None:
    """As many as the contract allows."""
    mapping = mapping_of(address_of("getpid"))
    many = np.arange(mapping.start, mapping.start + 1000, dtype=np.uint64)
    often = np.repeat(np.uint64(mapping.start + 2000), 5)
    found = CodeNames().name(os.getpid(), np.concatenate((many, often)), [mapping])

    assert found[0].instruction_pointer == mapping.start + 2000
    assert len(found) <= CODES_MAX


@pytest.mark.parametrize("kind", ["file", "fifo", "gone"])
def test_another_file_under_the_name_is_not_read(tmp_path: Path, kind: str) -> None:
    """A process may put anything where its program was: only the inode that is mapped is opened."""
    path = tmp_path / "program"
    if kind == "file":
        path.write_bytes(Path("/proc/self/exe").read_bytes())
    elif kind == "fifo":
        os.mkfifo(path)
    # Nothing is mapped at this address, so that it is the name that counts.
    mapping = replace(mapping_of(address_of("getpid")), start=4096, end=8192, name=str(path), inode=1)

    assert functions_of(os.getpid(), mapping) is None


def test_file_under_the_name_is_read_if_it_is_the_one(tmp_path: Path) -> None:
    """As it is where the agent may not use map_files."""
    path = tmp_path / "program"
    path.write_bytes(Path("/proc/self/exe").read_bytes())
    own = mapping_of(address_of("getpid"))
    mapping = replace(own, start=4096, end=8192, name=str(path), inode=path.stat().st_ino)

    assert functions_of(os.getpid(), mapping)


def test_names_take_no_more_than_their_room() -> None:
    """So that a round with all its names still fits in its messages."""
    codes = [Code(number, "s" * 256, "f" * 256, 0) for number in range(CODES_MAX)]

    kept = within_bounds(codes)
    assert 0 < len(kept) < CODES_MAX
    assert sum(len(code.symbol) + len(code.file) for code in kept) <= CODES_BYTES_MAX
