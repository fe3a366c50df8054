"""What a worker writes down before it may be killed: enough at every moment, whatever came before."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent import keepsake
from wetink_agent.keepsake import Keepsake, KeepsakeUnusable

LAYOUT = (1, 2, 3)
STARTED = ingest_pb2.TargetStarted(
    target=types_pb2.Target(host_id="here", boot_id="b", pid=5, start_time_ticks=6), incarnation=7
)
PAGES = st.sets(st.integers(0, 40), max_size=12)
STEPS = st.lists(st.one_of(PAGES, st.integers(0, 6)), max_size=40)
"""A set is a round that knows these pages; a number is how many rounds at most are not durable from then on."""


@pytest.fixture
def memory() -> Iterator[int]:
    """A memory file as the keeper holds it."""
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


@given(steps=STEPS, again_at=st.integers(0, 40))
def test_next_worker_knows_every_page_that_somebody_may_hold(steps: list[set[int] | int], again_at: int) -> None:
    """From the last durable round on, whatever any round has known is there; also when another worker goes on."""
    memory = os.memfd_create("test")
    try:
        writer = Keepsake(os.dup(memory))
        writer.begin(STARTED, LAYOUT)
        known: list[set[int]] = [set()]
        for index, step in enumerate(steps):
            if isinstance(step, int):
                writer.durable(max(0, len(known) - 1 - step))
            else:
                writer.harvesting()
                writer.harvested(BitMap64(step), BitMap64(known[-1] - step))
                known.append(step)
            left = keepsake.read(memory)

            assert left.harvested == len(known) - 1
            assert all(pages <= set(left.pages) for pages in known[left.durable :])
            if index == again_at:
                writer.close()
                writer = Keepsake(os.dup(memory))
                writer.begin(left.started, left.layout, left)
                # The round that it begins with: whatever is not populated has vanished.
                writer.harvested(BitMap64(known[-1]), left.pages - BitMap64(known[-1]))
                known.append(known[-1])
        writer.close()
    finally:
        os.close(memory)


def test_whole_is_only_what_nothing_was_lost_of(memory: int) -> None:
    """Not while a harvest is under way, not before its round is durable, not before there was one."""
    writer = Keepsake(os.dup(memory))
    writer.begin(STARTED, LAYOUT)
    assert not keepsake.read(memory).is_whole
    writer.harvested(BitMap64([1]), BitMap64())
    assert not keepsake.read(memory).is_whole
    writer.durable(1)
    assert keepsake.read(memory).is_whole
    writer.harvesting()
    assert not keepsake.read(memory).is_whole
    writer.close()


def test_record_is_read_as_it_was_or_as_it_becomes(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each system call of a change, what is there can be read and is one of the two."""
    writer = Keepsake(os.dup(memory))
    writer.begin(STARTED, LAYOUT)
    writer.harvested(BitMap64(range(1000)), BitMap64())
    seen: list[keepsake.Kept] = []
    whole = os.pwrite

    def looked_at(fd: int, data: bytes, at: int) -> int:
        seen.append(keepsake.read(memory))
        return whole(fd, data, at)

    monkeypatch.setattr(os, "pwrite", looked_at)
    for first in (0, 10_000, 10):
        writer.harvested(BitMap64(range(first, first + 3000, 2)), BitMap64())
    writer.begin(STARTED, LAYOUT)
    seen.append(keepsake.read(memory))

    assert all(left.started == STARTED and left.layout == LAYOUT for left in seen)
    assert [left.harvested for left in seen] == [*sorted(left.harvested for left in seen[:-1]), 0]
    assert len(seen) > 10
    writer.close()


def test_memory_is_bounded_by_what_must_be_known(memory: int) -> None:
    """A target that maps afresh for ever does not make the file grow, as long as rounds become durable."""
    writer = Keepsake(os.dup(memory))
    writer.begin(STARTED, LAYOUT)
    known = BitMap64()
    for number in range(1, 200):
        before, known = known, BitMap64(range(number * 10_000, number * 10_000 + 4_000, 2))
        writer.harvested(known, before)
        writer.durable(number)

    assert os.fstat(memory).st_size < 1 << 20
    writer.close()


@pytest.mark.parametrize("content", [b"", b"wetink\x002" + bytes(100), b"wetink\x001" + b"\xff" * 8, b"something else"])
def test_what_cannot_be_read_is_told(memory: int, content: bytes) -> None:
    """Unfinished, of another version, or no such thing: one error, and no guess."""
    os.pwrite(memory, content, 0)
    with pytest.raises(KeepsakeUnusable):
        keepsake.read(memory)
