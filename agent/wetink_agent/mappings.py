"""The table of a target's mappings: which are worth telling, and how the content of each can change unseen.

Plain code over what ``/proc`` told. What cannot change unseen and has no name is left out, so that a table stays small
where a program has very many mappings.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent import procfs, shared_memory
from wetink_agent.shared_memory import Range

MAPPINGS_MAX: Final = 2048
"""Entries of a table: bound of the contract."""

TABLE_BYTES_MAX: Final = 900 << 10
"""Bound on the entries of a table: it travels in one message, to the collector and to readers."""

NAME_CHARACTERS_MAX: Final = 256
"""Characters of a name that are kept: bound of the contract."""

WRITERS_MAX: Final = 16
"""Unseen writers that are told: bound of the contract."""

_KERNEL_MADE: Final = ("[vdso]", "[vvar", "[vsyscall]", "[uprobes]")
_HUGETLBFS: Final = "hugetlbfs"
_DEVICE_SHIFT: Final = 32


class Writer(NamedTuple):
    """Something that may write unseen, it cannot be told where: what kind of writing, and what it is for people."""

    uncertainty: types_pb2.Uncertainty.ValueType
    what: str


def table_of(
    maps: bytes, mounts: Mapping[str, str], buffers: Iterable[Range], writers: Sequence[Writer]
) -> ingest_pb2.TargetMappings:
    """Make the table of a process; whose it is, and of which round, is for the caller to add.

    Args:
        maps: What ``procfs.read_maps`` gave.
        mounts: The file system of each mount, as ``procfs.mounts`` gives it.
        buffers: Ranges of addresses, of whole pages, that are registered with an io_uring.
        writers: Those of which nobody can tell where they write.
    """
    named = list(procfs.parse_maps(maps, named=True))
    entries = [_entry(mapping, mounts) for mapping in named]
    entries += [_buffer(start, end, named) for start, end in sorted(buffers)]
    # Where the table is full, what a reader has to know of stays before what it may like to know.
    entries.sort(key=_priority)
    kept: list[types_pb2.Mapping] = []
    size_bytes = 0
    for entry in entries[:MAPPINGS_MAX]:
        size_bytes += entry.ByteSize() + 8
        if size_bytes > TABLE_BYTES_MAX:
            break
        kept.append(entry)
    return ingest_pb2.TargetMappings(
        mappings=sorted(kept, key=lambda entry: entry.range.start_address),
        cut=len(kept) < len(entries),
        unseen_writers=[
            types_pb2.UnseenWriter(uncertainty=writer.uncertainty, what=_name(writer.what))
            for writer in writers[:WRITERS_MAX]
        ],
    )


def uncertainty_of(mapping: procfs.Mapping, file_system: str | None) -> types_pb2.Uncertainty.ValueType:
    """Say how the content of a mapping can change unseen.

    Args:
        mapping: One with a name.
        file_system: The type of its mount; None where the process can see none of its device.
    """
    if not mapping.inode and mapping.name.startswith(_KERNEL_MADE):
        return types_pb2.UNCERTAINTY_DEVICE
    if procfs.is_hugetlb(mapping, frozenset()) or (mapping.inode and file_system == _HUGETLBFS):
        return types_pb2.UNCERTAINTY_HUGE_PAGES
    if shared_memory.is_device(mapping.name):
        return types_pb2.UNCERTAINTY_DEVICE
    if mapping.shared:
        is_memory = shared_memory.is_memory(mapping.name, file_system)
        return types_pb2.UNCERTAINTY_SHARED if is_memory else types_pb2.UNCERTAINTY_FILE
    # A private mapping of /dev/zero is anonymous memory with a name.
    if mapping.inode and not mapping.name.startswith("/dev/zero"):
        return types_pb2.UNCERTAINTY_FILE
    return types_pb2.UNCERTAINTY_UNSPECIFIED


def _entry(mapping: procfs.Mapping, mounts: Mapping[str, str]) -> types_pb2.Mapping:
    major, _, minor = mapping.device.partition(":")
    return types_pb2.Mapping(
        range=types_pb2.AddressRange(start_address=mapping.start, size_bytes=mapping.end - mapping.start),
        name=_name(mapping.name),
        shared=mapping.shared,
        device=(int(major, 16) << _DEVICE_SHIFT) | int(minor, 16),
        inode=mapping.inode,
        offset_bytes=mapping.offset,
        protection=mapping.protection,
        uncertainty=uncertainty_of(mapping, mounts.get(mapping.device)),
    )


def _buffer(start: int, end: int, named: Iterable[procfs.Mapping]) -> types_pb2.Mapping:
    """Give the entry of a registered buffer, with the name of the mapping that it begins in."""
    name = next((mapping.name for mapping in named if mapping.start <= start < mapping.end), "")
    return types_pb2.Mapping(
        range=types_pb2.AddressRange(start_address=start, size_bytes=end - start),
        name=_name(name),
        uncertainty=types_pb2.UNCERTAINTY_REGISTERED_BUFFER,
    )


def _priority(entry: types_pb2.Mapping) -> tuple[bool, bool]:
    return (
        entry.uncertainty == types_pb2.UNCERTAINTY_UNSPECIFIED,
        entry.uncertainty == types_pb2.UNCERTAINTY_FILE,
    )


def _name(text: str) -> str:
    # A path may hold bytes that are no text, which no message can carry.
    return "".join(c if c.isprintable() else "?" for c in text[:NAME_CHARACTERS_MAX])


def merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """Give ranges of addresses in ascending order, those that touch or overlap as one."""
    last_start, last_end = 0, 0
    for start, end in sorted(ranges):
        if start > last_end:
            if last_end:
                yield last_start, last_end
            last_start, last_end = start, end
        last_end = max(last_end, end)
    if last_end:
        yield last_start, last_end
