"""No bytes from elsewhere do harm: the targets of ``make fuzz``, tried with hypothesis; and bytes made to do some."""

import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.fuzz.targets import SEEDS, STARTED, TARGET, TARGETS, roaring_of_runs
from tests.support.amounts import amount
from wetink.pages import PAGES_MAX, CorruptPageSet, decode, encode, split
from wetink.v1.ingest_pb2 import Hello, WriteProtectBatch
from wetink.v1.types_pb2 import PageSet
from wetink_collector import intake as taking
from wetink_collector.errors import BatchCorrupt, RoundTooLarge
from wetink_collector.intake import Intake
from wetink_collector.limits import Limits
from wetink_collector.message_checks import PAGE_NUMBER_MAX


def _sealed(data: bytes, count: int) -> PageSet:
    return PageSet(roaring64=data, crc32=crc32(data), page_count=count)


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """Give any bytes, or some that were good with some of them changed."""
    data = bytearray(draw(st.one_of(st.sampled_from(SEEDS), st.binary(max_size=200))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_does_harm(name: str) -> None:
    """Each target's claim holds for whatever hypothesis thinks of."""

    @settings(max_examples=amount(gate=100, soak=50_000))
    @given(inputs())
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()


def _costs(body: Callable[[], object], *, seconds: float, mebibytes: float) -> None:
    """Do something within a time and within memory; a busy machine is given ten times as long as it takes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    body()
    assert time.process_time() - began < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < mebibytes


@pytest.mark.parametrize(
    "data",
    [
        roaring_of_runs(list(range(40_000)), 1),
        roaring_of_runs([7 * high for high in range(40_000)], 1),
        roaring_of_runs([0], 65_536),
        roaring_of_runs(list(range(8)), 9_000),
        roaring_of_runs([0], 40_000, (0, 20_000, 30_000, 20_000)),
    ],
    ids=["wide", "wider", "dense", "some of each", "two runs each"],
)
def test_bitmap_of_a_message_that_claims_billions_of_pages_costs_little(data: bytes) -> None:
    """It is taken and given on within what a large honest set takes: its pages are never looked at one by one."""
    pages = BitMap64.deserialize(data)
    assert len(pages) > 10**9

    def live() -> None:
        found = decode(_sealed(data, len(pages)))
        assert sum(part.page_count for part in split(found)) == len(found)

    _costs(live, seconds=10, mebibytes=200)


def test_set_of_more_pages_than_there_are_is_refused_before_it_is_decoded() -> None:
    """Its bytes are not looked at."""
    with pytest.raises(CorruptPageSet, match="is over"):
        decode(_sealed(b"whatever", PAGES_MAX + 1))


@pytest.mark.parametrize("kind", ["written", "vanished"])
def test_page_without_an_address_is_refused(kind: str) -> None:
    """The last that has one is taken."""
    for page, error in ((PAGE_NUMBER_MAX, None), (PAGE_NUMBER_MAX + 1, BatchCorrupt)):
        intake = Intake(Hello(protocol_version=1, host_id="host-1", boot_id="boot-1"), ())
        intake.started(STARTED)
        message = WriteProtectBatch(target=TARGET, incarnation=1, first_round=1, last_round=1, part_count=1)
        getattr(message, kind).CopyFrom(encode(BitMap64([page])))
        with pytest.raises(error, match="no address") if error else nullcontext():
            assert intake.batch(message)


def test_parts_that_take_much_memory_and_few_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of pages that lie far from each other is cut off where no address space would have them."""
    monkeypatch.setattr(taking, "CONTAINERS_MAX", 1 << 17)
    intake = Intake(Hello(protocol_version=1, host_id="host-1", boot_id="boot-1"), (), Limits(pages=PAGES_MAX))
    intake.started(STARTED)
    parts = 4
    data_of = [roaring_of_runs([part], 65_535) for part in range(parts)]

    def deliver() -> None:
        for part, data in enumerate(data_of):
            intake.batch(
                WriteProtectBatch(
                    target=TARGET,
                    incarnation=1,
                    first_round=1,
                    last_round=1,
                    part=part,
                    part_count=parts,
                    written=_sealed(data, 65_535 * 65_536),
                )
            )

    def refused() -> None:
        with pytest.raises(RoundTooLarge, match=str(1 << 17)):
            deliver()

    _costs(refused, seconds=20, mebibytes=600)
