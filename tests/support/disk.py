"""A disk between a program and its files (``c/disk.c``): what was written, in which order, and what a power cut leaves.

What may be lost is what POSIX lets a disk lose: of each file everything since its last fsync, each write by itself or
in part, and a file's name until its directory was synced. What an fsync that fails did not bring down no later one
does: Linux takes it for clean (LWN, "PostgreSQL's fsync() surprise", 2018). Memory that is mapped does not pass here:
SQLite's ``-shm`` is made anew after a crash.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.support.programs import build

SECTOR_BYTES: Final = 512
"""What a disk writes whole or not at all."""

_HEAD: Final = struct.Struct("<IIIIQ")


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that was done to a file.

    ``kind`` is the first letter of write, truncate, sync, create, rename, unlink, or of a sync that failed. ``offset``
    is the size that a truncation leaves, and ``data`` the name that a renaming gives.
    """

    kind: str
    name: str
    offset: int
    data: bytes


def preloaded(directory: Path, *, log: Path | None = None, faults: "Faults | None" = None) -> Mapping[str, str]:
    """Give the environment of a program whose files in a directory are watched."""
    told = {"LD_PRELOAD": str(build("disk", "-shared", "-fPIC", "-ldl")), "DISK_DIRECTORY": str(directory)}
    if log:
        told["DISK_LOG"] = str(log)
    if faults:
        told["DISK_FAULTS"] = str(faults.path)
    return told


class Faults:
    """What fails from now on, in every program that was told of it: an errno each, and 0 for what works."""

    def __init__(self, path: Path) -> None:
        """Let nothing fail."""
        self.path = path
        path.write_bytes(bytes(mmap.PAGESIZE))

    def set(self, *, write: int = 0, sync: int = 0, read: int = 0) -> None:
        """Say what fails."""
        with self.path.open("r+b") as file:
            file.write(struct.pack("<iii", write, sync, read))

    @contextmanager
    def during(self, *, write: int = 0, sync: int = 0, read: int = 0) -> Iterator[None]:
        """Let things fail while the body runs."""
        self.set(write=write, sync=sync, read=read)
        try:
            yield
        finally:
            self.set()


def operations(log: Path) -> Sequence[Operation]:
    """Read what was written down."""
    data = log.read_bytes()
    found: list[Operation] = []
    at = 0
    while at < len(data):
        kind, name_bytes, data_bytes, _, offset = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        name = data[at : at + name_bytes].decode()
        at += name_bytes
        found.append(Operation(chr(kind), name, offset, data[at : at + data_bytes]))
        at += data_bytes
    return found


def left(done: Sequence[Operation], random: Random | None = None) -> Mapping[str, bytes]:
    """Give the files that a power cut leaves.

    Args:
        done: Everything up to the cut.
        random: Decides what of the unsynced is lost; None: nothing is, as when only the program was killed.
    """
    # A disk that loses all or half or little of what it holds: each is another kind of bad luck.
    share = random.choice((0.0, 0.1, 0.5, 0.9, 1.0)) if random else 0.0
    pending = _pending(done)
    disk = _Disk()
    for index, one in enumerate(done):
        if not (random and index in pending and random.random() < share):
            disk.take(one)
        elif one.kind == "w" and random.random() < share:
            disk.take(_torn(one, random))
        else:
            disk.take(one, is_lost=True)
    return {name: bytes(content) for name, content in disk.durable.items()}


def _pending(done: Sequence[Operation]) -> set[int]:
    """Say which operations no fsync has made durable, by their place."""
    contents: dict[str, set[int]] = {}
    names: set[int] = set()
    never: set[int] = set()
    for index, one in enumerate(done):
        match one.kind:
            case "f":
                never |= contents.pop(one.name, set())
            case "w" | "t":
                contents.setdefault(one.name, set()).add(index)
            case "s" if one.name == ".":
                names.clear()
            case "s":
                contents.pop(one.name, None)
            case _:
                names.add(index)
    return names.union(never, *contents.values())


class _Disk:
    """Files by the names that programs see, and by those on the disk: a file has one content, under both."""

    def __init__(self) -> None:
        self.durable: dict[str, bytearray] = {}
        self._seen: dict[str, bytearray] = {}

    def take(self, one: Operation, *, is_lost: bool = False) -> None:
        match one.kind:
            case "c":
                self._seen[one.name] = bytearray()
                if not is_lost:
                    self.durable[one.name] = self._seen[one.name]
            case "u":
                del self._seen[one.name]
                if not is_lost:
                    self.durable.pop(one.name, None)
            case "r":
                moved = self._seen[one.data.decode()] = self._seen.pop(one.name)
                if not is_lost:
                    self.durable.pop(one.name, None)
                    self.durable[one.data.decode()] = moved
            case "w" | "t" if not is_lost:
                _change(self._seen[one.name], one)


def _torn(one: Operation, random: Random) -> Operation:
    """Give the part of a write that came down: some of its sectors, from its beginning."""
    size = random.randrange(0, len(one.data) + 1) // SECTOR_BYTES * SECTOR_BYTES
    return Operation(one.kind, one.name, one.offset, one.data[:size])


def _change(content: bytearray, one: Operation) -> None:
    content.extend(bytes(max(0, one.offset - len(content))))
    if one.kind == "t":
        del content[one.offset :]
    else:
        content[one.offset : one.offset + len(one.data)] = one.data
