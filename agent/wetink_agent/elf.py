"""Which function of an ELF file an offset is in: a small reader of its symbol tables, for files that may be hostile.

Every number in the file is checked against a bound before it is used, and nothing is read but what is bounded. What is
no ELF file, or says something impossible, has no functions.

Source: elf(5); ``include/uapi/linux/elf.h``.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SYMBOLS_MAX: Final = 1 << 20
"""Bound on the symbols of one table: 24 MiB. A browser's has half as many."""

STRINGS_BYTES_MAX: Final = 64 << 20
"""Bound on the names of one table."""

NAME_CHARACTERS_MAX: Final = 256
"""Characters of a function's name that are kept: bound of the contract."""

_HEADERS_MAX: Final = 4096
_MAGIC: Final = b"\x7fELF\x02\x01"  # 64-bit, little-endian
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PT_LOAD: Final = 1
_SHT_SYMTAB: Final = 2
_SHT_DYNSYM: Final = 11
_STT_FUNC: Final = 2
_STT_GNU_IFUNC: Final = 10
_TYPE: Final = 0xF

_SEGMENT: Final = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)
_SECTION: Final = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("addr", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("addralign", "<u8"),
        ("entsize", "<u8"),
    ]
)
_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)


class NoElf(Exception):
    """The file is no 64-bit little-endian ELF file, or what it says of itself cannot be."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The functions of one symbol table, by ascending address; ``names`` are where in ``strings`` theirs begin."""

    values: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    names: NDArray[np.uint32]
    strings: bytes


class Functions:
    """The functions of one file."""

    def __init__(self, descriptor: int) -> None:
        """Read the tables of an open file.

        Raises:
            NoElf: It has none that can be read.
            OSError: It cannot be read.
        """
        header = _HEADER.unpack(_read(descriptor, 0, _HEADER.size))
        if not header[0].startswith(_MAGIC):
            message = "not an ELF file of 64 bits"
            raise NoElf(message)
        (_, _, _, _, _, segments_at, sections_at, _, _, segment_size, segment_count, section_size, section_count, _) = (
            header
        )
        segments = _array(descriptor, _SEGMENT, segments_at, segment_size, segment_count)
        self._segments = segments[segments["type"] == _PT_LOAD]
        sections = _array(descriptor, _SECTION, sections_at, section_size, section_count)
        self._tables = list(_tables(descriptor, sections))

    def name_at(self, offset: int) -> str:
        """Give the name of the function that a byte of the file is in; empty where there is none."""
        for segment in self._segments:
            begin, size = int(segment["offset"]), int(segment["filesz"])
            if begin <= offset < begin + size:
                return self._name_of(int(segment["vaddr"]) + offset - begin)
        return ""

    def _name_of(self, address: int) -> str:
        if address >= 1 << 64:
            return ""
        for table in self._tables:
            at = int(np.searchsorted(table.values, np.uint64(address), side="right")) - 1
            # A size of 0 means that it is not known: it goes on to the next function.
            if at >= 0 and (not table.sizes[at] or address - int(table.values[at]) < int(table.sizes[at])):
                return _string(table.strings, int(table.names[at]))
        return ""


def _tables(descriptor: int, sections: NDArray[np.void]) -> Iterator[_Table]:
    """Read the symbol tables: the whole one first, which has what the dynamic one has, unless it was stripped."""
    for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
        for section in sections[sections["type"] == kind][:1]:
            if int(section["link"]) >= len(sections):
                continue
            count = min(SYMBOLS_MAX, int(section["size"]) // _SYMBOL.itemsize)
            symbols = _array(descriptor, _SYMBOL, int(section["offset"]), int(section["entsize"]), count, SYMBOLS_MAX)
            strings = sections[int(section["link"])]
            kinds = symbols["info"] & _TYPE
            functions = symbols[((kinds == _STT_FUNC) | (kinds == _STT_GNU_IFUNC)) & (symbols["shndx"] != 0)]
            functions = functions[np.argsort(functions["value"], kind="stable")]
            yield _Table(
                functions["value"].copy(),
                functions["size"].copy(),
                functions["name"].copy(),
                _read(descriptor, int(strings["offset"]), min(STRINGS_BYTES_MAX, int(strings["size"]))),
            )


def _array(
    descriptor: int, kind: np.dtype[np.void], offset: int, entry_size: int, count: int, count_max: int = _HEADERS_MAX
) -> NDArray[np.void]:
    """Read entries of one kind.

    Raises:
        NoElf: They are of another size, or too many, or not in the file.
    """
    if not count:
        return np.empty(0, kind)
    if entry_size != kind.itemsize or count > count_max:
        message = f"{count} entries of {entry_size} bytes"
        raise NoElf(message)
    return np.frombuffer(_read(descriptor, offset, count * entry_size), kind)


def _read(descriptor: int, offset: int, size_bytes: int) -> bytes:
    """Read a part of the file, whole.

    Raises:
        NoElf: The file ends before it.
    """
    if not 0 <= offset < 1 << 62:
        message = f"something at offset {offset}"
        raise NoElf(message)
    # What a file says of its size may be anything: nothing is made ready for it that is not there.
    if offset + size_bytes > os.fstat(descriptor).st_size:
        message = f"{size_bytes} bytes at offset {offset} are not in the file"
        raise NoElf(message)
    parts: list[bytes] = []
    while size_bytes:
        part = os.pread(descriptor, size_bytes, offset)
        if not part:
            message = "the file was cut off while it was read"
            raise NoElf(message)
        parts.append(part)
        offset += len(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _string(strings: bytes, start: int) -> str:
    end = strings.find(b"\0", start, start + NAME_CHARACTERS_MAX)
    name = strings[start : end if end >= 0 else start + NAME_CHARACTERS_MAX].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in name)
