"""Single write-protect events, as columns: what a backend saw of who wrote, when and in which order.

The page sets decide what is dirty. Events add to them, and may be lost where there are too many: they are counted then.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wetink.v1 import types_pb2
from wetink_agent import procfs
from wetink_agent.code_names import NAMES, Code, within_bounds
from wetink_agent.errors import NoSuchProcess

EVENTS_MAX: Final = 1 << 20
"""Events kept of one round, 36 MiB: what comes after is counted as lost."""

NAMES_MAX: Final = 256
"""Threads, and mappings, that are named in a message: bound of the contract."""

CLOCK_LOOKS: Final = 3
"""How often two clocks are looked at, for the quickest look: whoever is held up between the two takes one for late."""

THREAD_NAME_CHARACTERS_MAX: Final = 64
MAPPING_NAME_CHARACTERS_MAX: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Columns of equal length, in the order of time; one that a backend cannot fill is empty.

    ``addresses`` are byte addresses, ``uffd_flags`` UFFD_PAGEFAULT_FLAG_* bits, ``thread_ids`` in the agent's pid
    namespace, ``times_ns`` since the Unix epoch, ``instruction_pointers`` code addresses. ``lost_count`` says how many
    more there were. ``threads`` names thread ids, ``mappings`` (start address, address after the end, name) what the
    addresses lie in, ``code`` what the code addresses are, all as far as they are known. ``stream_only_count`` is how
    many pages had a fault and were not written, ``census_only_count`` how many were written without an event.
    """

    addresses: NDArray[np.uint64]
    uffd_flags: NDArray[np.uint64]
    thread_ids: NDArray[np.uint32]
    times_ns: NDArray[np.uint64]
    instruction_pointers: NDArray[np.uint64]
    lost_count: int = 0
    threads: tuple[tuple[int, str], ...] = ()
    mappings: tuple[tuple[int, int, str], ...] = ()
    stream_only_count: int = 0
    census_only_count: int = 0
    code: tuple[Code, ...] = ()

    def __len__(self) -> int:
        """How many events there are."""
        return int(self.addresses.size)

    def part(self, first: int, last: int) -> "Events":
        """Give the events from one index to before another; what is counted, and names, are said with the first."""
        return Events(
            self.addresses[first:last],
            self.uffd_flags[first:last],
            self.thread_ids[first:last],
            self.times_ns[first:last],
            self.instruction_pointers[first:last],
            0 if first else self.lost_count,
            () if first else self.threads,
            () if first else self.mappings,
            0 if first else self.stream_only_count,
            0 if first else self.census_only_count,
            () if first else self.code,
        )

    def to_message(self) -> types_pb2.EventColumns:
        """Give what travels."""
        return types_pb2.EventColumns(
            address=self.addresses.astype("<u8", copy=False).tobytes(),
            uffd_flags=self.uffd_flags.astype("<u8", copy=False).tobytes(),
            thread_id=self.thread_ids.astype("<u4", copy=False).tobytes(),
            time_ns=self.times_ns.astype("<u8", copy=False).tobytes(),
            instruction_pointer=self.instruction_pointers.astype("<u8", copy=False).tobytes(),
            lost_count=self.lost_count,
            stream_only_count=self.stream_only_count,
            census_only_count=self.census_only_count,
            threads=[types_pb2.ThreadName(thread_id=tid, name=name) for tid, name in self.threads],
            mappings=[
                types_pb2.MappingName(
                    range=types_pb2.AddressRange(start_address=start, size_bytes=end - start), name=name
                )
                for start, end, name in self.mappings
            ],
            code=[types_pb2.CodeName(**code._asdict()) for code in self.code],
        )

    @classmethod
    def from_message(cls, message: types_pb2.EventColumns) -> "Events":
        """Read what travelled."""
        return cls(
            np.frombuffer(message.address, "<u8"),
            np.frombuffer(message.uffd_flags, "<u8"),
            np.frombuffer(message.thread_id, "<u4"),
            np.frombuffer(message.time_ns, "<u8"),
            np.frombuffer(message.instruction_pointer, "<u8"),
            message.lost_count,
            tuple((thread.thread_id, thread.name) for thread in message.threads),
            tuple(
                (at.range.start_address, at.range.start_address + at.range.size_bytes, at.name)
                for at in message.mappings
            ),
            message.stream_only_count,
            message.census_only_count,
            tuple(Code(code.instruction_pointer, code.symbol, code.file, code.file_offset) for code in message.code),
        )


def joined(parts: Sequence[Events], count_max: int = EVENTS_MAX) -> Events:
    """Put events one after the other, all of one backend; what is beyond the bound is counted as lost."""
    whole = Events(
        np.concatenate([_NONE_64, *(part.addresses for part in parts)]),
        np.concatenate([_NONE_64, *(part.uffd_flags for part in parts)]),
        np.concatenate([_NONE_32, *(part.thread_ids for part in parts)]),
        np.concatenate([_NONE_64, *(part.times_ns for part in parts)]),
        np.concatenate([_NONE_64, *(part.instruction_pointers for part in parts)]),
        sum(part.lost_count for part in parts),
        tuple(dict(thread for part in parts for thread in part.threads).items())[-NAMES_MAX:],
        tuple(dict.fromkeys(mapping for part in parts for mapping in part.mappings))[-NAMES_MAX:],
        sum(part.stream_only_count for part in parts),
        sum(part.census_only_count for part in parts),
        within_bounds({code.instruction_pointer: code for part in reversed(parts) for code in part.code}.values()),
    )
    beyond = max(0, len(whole) - count_max)
    return replace(whole.part(0, count_max), lost_count=whole.lost_count + beyond) if beyond else whole


_NONE_64: Final = np.empty(0, dtype=np.uint64)
_NONE_32: Final = np.empty(0, dtype=np.uint32)


def named(events: Events, pid: int) -> Events:
    """Add the names of the threads, mappings and code that events of a process speak of, as they are now."""
    if not len(events):
        return events
    threads = []
    for tid in np.unique(events.thread_ids)[:NAMES_MAX].tolist():
        with contextlib.suppress(NoSuchProcess):
            threads.append((tid, procfs.thread_name(pid, tid)[:THREAD_NAME_CHARACTERS_MAX]))
    addresses = np.sort(events.addresses)  # numpy hashes to find what is unique, which takes thirty times as long
    mappings: list[tuple[int, int, str]] = []
    code: tuple[Code, ...] = ()
    with contextlib.suppress(NoSuchProcess, PermissionError):
        mapped = list(procfs.parse_maps(procfs.read_maps(pid)))
        code = NAMES.name(pid, events.instruction_pointers, mapped)
        for mapping in mapped:
            first = int(np.searchsorted(addresses, np.uint64(mapping.start)))
            if len(mappings) < NAMES_MAX and first < addresses.size and int(addresses[first]) < mapping.end:
                mappings.append((mapping.start, mapping.end, mapping.name[:MAPPING_NAME_CHARACTERS_MAX]))
    return replace(events, threads=tuple(threads), mappings=tuple(mappings), code=code)


def translated(events: Events, pid: int) -> Events:
    """Turn thread ids of a process's own pid namespace into those of ours; a thread that has ended becomes 0.

    The kernel fills ``ptid`` of a ``uffd_msg`` for the faulting thread's namespace (``task_pid_vnr`` in
    fs/userfaultfd.c), whoever reads it.
    """
    ids = {}
    if len(events):
        with contextlib.suppress(NoSuchProcess):
            ids = procfs.thread_ids_inside(pid)
    if not ids:
        return events
    inside, places = np.unique(events.thread_ids, return_inverse=True)
    here = np.array([ids.get(tid, 0) for tid in inside.tolist()], dtype=np.uint32)
    return replace(events, thread_ids=here[places])


def monotonic_offset_ns() -> int:
    """Give what turns a time of CLOCK_MONOTONIC into one since the Unix epoch, now; clocks may be set later."""
    looks = []
    for _ in range(CLOCK_LOOKS):
        before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        now_ns = time.time_ns()
        took_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - before_ns
        looks.append((took_ns, now_ns - before_ns))
    return min(looks)[1]
