"""Everything that reads bytes from elsewhere, each with a claim about what it makes of any bytes.

Each target takes any bytes. It returns, or raises what its subject documents for input that is wrong, which is caught
here; whatever else comes out is a finding, and so is a long time or much memory.
"""

import struct
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from zlib import crc32

from google.protobuf.message import DecodeError
from pyroaring import BitMap64

from wetink import pages
from wetink.v1 import dirty_pb2, ingest_pb2
from wetink.v1.types_pb2 import END_REASON_EXITED, PageSet, Target
from wetink_agent import procfs
from wetink_agent.recording import MAGIC, Recording, RecordingUnusable
from wetink_collector import cursor, page, selection
from wetink_collector.catalog import Catalog
from wetink_collector.errors import CursorMalformed, Refusal
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.intake import Intake, open_stream
from wetink_collector.message_checks import PAGE_NUMBER_MAX, check_hello
from wetink_collector.round_log import RoundPages, fold
from wetink_collector.store.interface import Contents, HostSeen, IncarnationStarted
from wetink_collector.store.memory import MemoryStore

HOST, BOOT = "host-1", "boot-1"
TARGET: Final = Target(host_id=HOST, boot_id=BOOT, pid=1, start_time_ticks=100)
KEY: Final = IncarnationKey(TargetKey.of(TARGET), 1)
HELLO: Final = ingest_pb2.Hello(protocol_version=1, host_id=HOST, boot_id=BOOT)
STARTED: Final = ingest_pb2.TargetStarted(target=TARGET, incarnation=1, page_size=4096)


def batch(data: bytes) -> None:
    """A batch as it stands on the wire: it is refused, or the store has what it says."""
    message = ingest_pb2.WriteProtectBatch()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    _take(message)


def sealed_batch(data: bytes) -> None:
    """A batch of this process whose bitmaps are any bytes, with the checksums and counts that belong to them."""
    half = len(data) // 2
    sets = [_sealed(part) for part in (data[:half], data[half:])]
    _take(
        ingest_pb2.WriteProtectBatch(
            target=TARGET,
            incarnation=1,
            first_round=1,
            last_round=1,
            part_count=1,
            written=sets[0],
            vanished=sets[1],
        )
    )


def page_set(data: bytes) -> None:
    """A bitmap of any bytes with the right checksum: no set, or one that can be cut into messages and put together."""
    with suppress(pages.CorruptPageSet):
        found = pages.decode(_sealed(data))
        assert len(found) <= pages.PAGES_MAX
        parts = [pages.decode(part) for part in pages.split(found)]
        assert BitMap64.union(BitMap64(), *parts) == found
        assert sum(map(len, parts)) == len(found)


def stream(data: bytes) -> None:
    """What an agent says, one message after the other: a stream goes on or is ended with a reason."""
    intake = Intake(HELLO, ())
    for part in data.split(b"\xff\xff"):
        message = ingest_pb2.AgentMessage()
        with suppress(DecodeError, Refusal):
            message.ParseFromString(part)
            match message.WhichOneof("message"):
                case "hello":
                    check_hello(message.hello)
                    open_stream(message.hello, (), 0)
                case "target_started":
                    intake.started(message.target_started)
                case "write_protect_batch":
                    intake.batch(message.write_protect_batch)
                case "target_ended":
                    intake.ended(message.target_ended, 0)
                case "barrier_reached":
                    intake.check_reached(message.barrier_reached.positions)
                case _:
                    pass


def any_cursor(data: bytes) -> None:
    """Text that is to be a cursor: refused, or a cursor that is written as it is read."""
    with suppress(CursorMalformed):
        found = cursor.decode(data.decode("latin-1"))
        assert cursor.decode(cursor.encode(found)) == found


def sealed_cursor(data: bytes) -> None:
    """The same of any bytes, with the version and the checksum that belong to them."""
    body = bytes([cursor.VERSION]) + data
    any_cursor(_base64(body + crc32(body).to_bytes(4, "little")))


def any_selection(data: bytes) -> None:
    """A selection: refused, or it means targets that are there."""
    message = dirty_pb2.Selection()
    with suppress(DecodeError, Refusal):
        message.ParseFromString(data)
        chosen = selection.parse(message)
        catalog = _catalog()
        assert len(selection.listed(chosen, catalog)) <= 1
        assert len(selection.resolve(chosen, catalog)) <= 1


def page_token(data: bytes) -> None:
    """A token to go on with a list: refused, or a part of the list."""
    name = b"wetink.v1.ListHostsRequest"
    for token in (data, data + crc32(data, crc32(name)).to_bytes(4, "little")):
        request = dirty_pb2.ListHostsRequest(page_size=1, page_token=_base64(token).decode())
        with suppress(Refusal):
            page.page(request, ["a", "b"], key=str, entry=lambda host: dirty_pb2.Host(host_id=host))


def recording(data: bytes) -> None:
    """A file that is to be replayed: refused, or its whole rounds can be read."""
    with tempfile.TemporaryDirectory(prefix="wetink-fuzz-") as directory, suppress(RecordingUnusable):
        path = Path(directory) / "recording"
        path.write_bytes(data)
        with Recording(path) as found:
            for index in range(len(found)):
                assert found.parts(index)


def sealed_recording(data: bytes) -> None:
    """The same of a file that begins as one should, with records of any bytes and the checksums that belong to them."""
    records = [STARTED_RECORD, *data.split(b"\xff\xff")]
    whole = b"".join(
        struct.pack("<II", len(one), crc32(one, crc32(struct.pack("<I", len(one))))) + one for one in records
    )
    recording(MAGIC + struct.pack("<I", 1) + whole)


def maps(data: bytes) -> None:
    """What ``/proc/PID/maps`` may hold: names of files are their owners' choice, and a line is a mapping or is none."""
    line = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0   "
    mappings = list(procfs.parse_maps(line + data.replace(b"\n", b"\\012") + b"\n" + line + b"\n"))
    assert [(one.start, one.end) for one in mappings] == [(0x7F0000000000, 0x7F0000001000)] * 2
    list(procfs.parse_maps(data, named=True))


def process_stat(data: bytes) -> None:
    """What ``/proc/PID/stat`` may hold: the name of a program is its own choice, and nothing else is."""
    fields = b"S 7 1 1 0 -1 64 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0 1 11 12 13"
    found = procfs.parse_stat(b"1 (" + data[:64] + b") " + fields + b"\n")
    assert (found.state, found.parent_pid, found.flags, found.start_time_ticks) == ("S", 7, 64, 4242)
    assert found.layout == (11, 12, 13)


def cgroup_file(data: bytes) -> None:
    """What ``/proc/PID/cgroup`` may hold: a cgroup's name is anything without a slash or a line feed."""
    path = "/" + data.replace(b"\n", b"").replace(b"\0", b"").decode(errors="replace")
    lines = procfs.lines_of(f"12:freezer:/x\n0::{path}\n".encode())
    assert procfs.cgroup_paths_of(lines) == [path, "/x"]


def roaring_of_runs(highs: list[int], containers: int, runs: tuple[int, ...] = (0, 65535)) -> bytes:
    """Write a bitmap whose containers are runs: for each 2^32 pages so many of 65,536, of ten bytes and four a run."""
    run = struct.pack("<H", len(runs) // 2) + struct.pack(f"<{len(runs)}H", *runs)
    count = sum(runs[1::2]) + len(runs) // 2
    one = struct.pack("<I", 12347 | (containers - 1) << 16) + b"\xff" * ((containers + 7) // 8)
    one += b"".join(struct.pack("<HH", key, count - 1) for key in range(containers))
    if containers >= _WITH_OFFSETS:
        begin = len(one) + 4 * containers
        one += b"".join(struct.pack("<I", begin + len(run) * key) for key in range(containers))
    one += run * containers
    return struct.pack("<Q", len(highs)) + b"".join(struct.pack("<I", high) + one for high in highs)


def _take(message: ingest_pb2.WriteProtectBatch) -> None:
    intake = Intake(HELLO, ())
    started = intake.started(STARTED)
    assert started
    with suppress(Refusal):
        taken = intake.batch(message)
        if taken is None:
            return
        store = MemoryStore()
        store.commit([started, taken])  # type: ignore[list-item]
        answer = fold(one.pages for one in store.read(KEY, after_round=0))
        assert answer == RoundPages(pages.decode(message.written), pages.decode(message.vanished))
        for pages_of in (answer.written, answer.vanished):
            list(pages.split(pages_of))


def _sealed(data: bytes) -> PageSet:
    try:
        count = len(BitMap64.deserialize(data)) if data else 0
    except (ValueError, MemoryError):
        count = 1
    return PageSet(roaring64=data, crc32=crc32(data), page_count=count)


def _base64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _catalog() -> Catalog:
    catalog = Catalog("0" * 32, Contents([], [], []))
    catalog.apply([HostSeen(HOST, BOOT, "1", 1), IncarnationStarted(KEY, STARTED)])
    return catalog


_WITH_OFFSETS: Final = 4
"""As the format says: from so many containers on, a bitmap of runs says where each begins."""

SEEDS: Final = (
    b"",
    pages.encode(BitMap64(range(0, 1 << 16, 3))).roaring64,
    pages.encode(BitMap64([1, 1 << 40, PAGE_NUMBER_MAX])).roaring64,
    roaring_of_runs([0, 1, 2], 5),
    ingest_pb2.WriteProtectBatch(
        target=TARGET, incarnation=1, first_round=1, last_round=1, part_count=1
    ).SerializeToString(),
    ingest_pb2.AgentMessage(
        hello=ingest_pb2.Hello(protocol_version=1, host_id="host-1", boot_id="boot-1")
    ).SerializeToString(),
    ingest_pb2.AgentMessage(target_started=STARTED).SerializeToString(),
    ingest_pb2.AgentMessage(
        target_ended=ingest_pb2.TargetEnded(target=TARGET, incarnation=1, reason=END_REASON_EXITED)
    ).SerializeToString(),
    cursor.encode(cursor.Cursor("0" * 32, {KEY.target: cursor.Position(1, 7)})).encode(),
    b"\x00" * 16 + b"\x01\x06host-1\x06boot-1\x01\x00\x01d\x01\x07",
    b"x\rCapEff:\t0\x0c\x0b\x85\x1c(S 1 1) ",
)
"""What inputs begin from: bytes that are good."""

STARTED_RECORD: Final = ingest_pb2.AgentMessage(target_started=STARTED).SerializeToString()

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    target.__name__.replace("_", "-"): target
    for target in (
        batch,
        sealed_batch,
        page_set,
        stream,
        any_cursor,
        sealed_cursor,
        any_selection,
        page_token,
        recording,
        sealed_recording,
        maps,
        process_stat,
        cgroup_file,
    )
}
"""Every target, by the name that ``make fuzz`` knows it by."""
