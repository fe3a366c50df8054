"""The table of mappings: what is told, how each is classed, and what is left out where there is too much."""

import pytest

from wetink.v1 import types_pb2
from wetink_agent import mappings
from wetink_agent.mappings import Writer, merged, table_of

MOUNTS = {"fd:01": "ext4", "00:19": "tmpfs", "00:30": "hugetlbfs"}
DIRECT = Writer(types_pb2.UNCERTAINTY_DIRECT_IO, "descriptor 3")

LINES = {
    "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ": None,
    "7f0000001000-7f0000002000 rw-p 00000000 00:00 0                          [heap]": "UNSPECIFIED",
    "7f0000002000-7f0000003000 r-xp 00001000 fd:01 42                         /usr/bin/name with space": "FILE",
    "7f0000003000-7f0000004000 rw-s 00000000 fd:01 43                         /data/file": "FILE",
    "7f0000004000-7f0000005000 rw-s 00000000 00:01 44                         /memfd:ring (deleted)": "SHARED",
    "7f0000005000-7f0000006000 rw-p 00000000 00:01 44                         /memfd:ring (deleted)": "FILE",
    "7f0000006000-7f0000007000 rw-s 00000000 00:01 45                         /dev/zero (deleted)": "SHARED",
    "7f0000007000-7f0000008000 rw-p 00000000 00:05 6                          /dev/zero": "UNSPECIFIED",
    "7f0000008000-7f0000009000 rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)": "SHARED",
    "7f0000009000-7f000000a000 rw-s 00000000 00:19 46                         /dev/shm/segment": "SHARED",
    "7f0000200000-7f0000400000 rw-p 00000000 00:0f 47                         /anon_hugepage (deleted)": "HUGE_PAGES",
    "7f0000400000-7f0000600000 rw-s 00000000 00:30 48                         /mnt/huge/page": "HUGE_PAGES",
    "7f0000600000-7f0000601000 rw-s 00000000 00:0d 9                          anon_inode:[io_uring]": "DEVICE",
    "7f0000601000-7f0000602000 rw-s 00000000 00:13 50                         /[aio] (deleted)": "DEVICE",
    "7f0000602000-7f0000603000 rw-s 00000000 00:05 51                         /dev/vfio/7": "DEVICE",
    "7f0000603000-7f0000604000 r--p 00000000 00:00 0                          [vvar]": "DEVICE",
    "7f0000604000-7f0000605000 rw-p 00000000 00:00 0                          [anon:arena]": "UNSPECIFIED",
}


def test_each_kind_of_mapping_has_its_class() -> None:
    """One line of each kind, as kernels write them; what has no name and cannot change unseen is left out."""
    table = table_of(_maps(*LINES), MOUNTS, (), ())

    told = {mapping.range.start_address: mapping.uncertainty for mapping in table.mappings}
    wanted = {
        int(line.split("-")[0], 16): types_pb2.Uncertainty.Value(f"UNCERTAINTY_{name}")
        for line, name in LINES.items()
        if name is not None
    }
    assert told == wanted
    assert not table.cut


def test_an_entry_has_what_a_line_says() -> None:
    """Range, name, sharing, object and protection."""
    (mapping,) = table_of(
        _maps("7f0000002000-7f0000005000 r-xs 00001000 fd:01 42     /usr/bin/a b"), MOUNTS, (), ()
    ).mappings

    assert (mapping.range.start_address, mapping.range.size_bytes) == (0x7F0000002000, 0x3000)
    assert (mapping.name, mapping.shared, mapping.protection) == ("/usr/bin/a b", True, 5)
    assert (mapping.device, mapping.inode, mapping.offset_bytes) == ((0xFD << 32) | 1, 42, 0x1000)


def test_a_registered_buffer_is_an_entry_of_its_own() -> None:
    """It has the name of the mapping it lies in, or none; the order of addresses is kept."""
    heap = "7f0000001000-7f0000009000 rw-p 00000000 00:00 0     [heap]"
    buffers = ((0x7F0000003000, 0x7F0000005000), (0x7E0000000000, 0x7E0000001000))

    table = table_of(_maps(heap), MOUNTS, buffers, ())

    assert [(one.range.start_address, one.name, one.uncertainty) for one in table.mappings] == [
        (0x7E0000000000, "", types_pb2.UNCERTAINTY_REGISTERED_BUFFER),
        (0x7F0000001000, "[heap]", types_pb2.UNCERTAINTY_UNSPECIFIED),
        (0x7F0000003000, "[heap]", types_pb2.UNCERTAINTY_REGISTERED_BUFFER),
    ]


@pytest.mark.parametrize("bound", ["MAPPINGS_MAX", "TABLE_BYTES_MAX"])
def test_a_table_that_is_full_keeps_what_is_uncertain(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Files go before shared memory, and what cannot change unseen before both; that it was cut is said."""
    shared = "7f0000004000-7f0000005000 rw-s 00000000 00:01 44     /memfd:ring (deleted)"
    monkeypatch.setattr(mappings, bound, {"MAPPINGS_MAX": 3, "TABLE_BYTES_MAX": 150}[bound])

    table = table_of(_maps(*list(LINES)[:4], shared), MOUNTS, (), ())

    assert table.cut
    assert shared.split("-", maxsplit=1)[0] in {f"{mapping.range.start_address:x}" for mapping in table.mappings}
    assert "[heap]" not in {mapping.name for mapping in table.mappings}


def test_a_table_is_always_one_message() -> None:
    """As many mappings with as long names as the bounds allow, in the longest characters, fit in one message."""
    name = "/" + "\U0001f40c" * 300
    lines = [
        f"{0x7F0000000000 + i * 8192:x}-{0x7F0000000000 + i * 8192 + 4096:x} rw-p 00000000 fd:01 {i + 1} {name}"
        for i in range(mappings.MAPPINGS_MAX + 10)
    ]

    table = table_of(_maps(*lines), MOUNTS, (), [DIRECT] * 20)

    assert table.cut
    assert table.ByteSize() < 1 << 20
    assert len(table.mappings) > 500
    assert len(table.unseen_writers) == mappings.WRITERS_MAX


def test_a_name_that_is_no_text_is_told_all_the_same() -> None:
    """A file may be called anything; what no message can carry and no terminal should see becomes a question mark."""
    line = b"7f0000002000-7f0000005000 r-xs 00001000 fd:01 42     /a\xff\x1b[2J"

    (mapping,) = table_of(line + b"\n", MOUNTS, (), ()).mappings

    assert mapping.name == "/a??[2J"


def test_ranges_are_merged() -> None:
    """Those that touch or overlap become one."""
    assert list(merged([(8, 9), (1, 3), (3, 4), (2, 5)])) == [(1, 5), (8, 9)]
    assert not list(merged([]))


def _maps(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
