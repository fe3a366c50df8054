import asyncio
import time
from collections.abc import Callable

import pytest
from pyroaring import BitMap64

from tests.integration.client.command import failure
from tests.support.fake_dirty import fake_collector
from wetink.pages import encode
from wetink.v1 import dirty_pb2
from wetink_client import AsyncCollector, BrokenAnswer, Collector, CollectorUnavailable

NAME = "host-1/7@100"


def _pages() -> dirty_pb2.GetDirtyResponse:
    return dirty_pb2.GetDirtyResponse(pages=dirty_pb2.DirtyPages(name=NAME, written=encode(BitMap64([1, 2, 3]))))


def _corrupt_pages() -> dirty_pb2.GetDirtyResponse:
    part = _pages()
    part.pages.written.crc32 ^= 1
    return part


def _summary(written_page_count: int) -> dirty_pb2.GetDirtyResponse:
    status = dirty_pb2.TargetStatus(
        name=NAME, complete=True, exact=True, written_page_count=written_page_count, page_size=4096
    )
    return dirty_pb2.GetDirtyResponse(
        summary=dirty_pb2.DirtySummary(cursor="next", complete=True, exact=True, targets=[status])
    )


BROKEN = [
    pytest.param([_pages()], "cut off before its summary", id="cut before the summary"),
    pytest.param([_corrupt_pages(), _summary(3)], "checksum", id="corrupt checksum"),
    pytest.param([_pages(), _summary(4)], "3 written, 0 vanished and 0 uncertain pages", id="count mismatch"),
]


def _dirty(address: str) -> BitMap64:
    with Collector(address) as collector:
        return collector.dirty(NAME).written


def _dirty_in_a_loop(address: str) -> BitMap64:
    async def ask() -> BitMap64:
        async with AsyncCollector(address) as collector:
            return (await collector.dirty(NAME)).written

    return asyncio.run(ask())


def _watch(address: str) -> BitMap64:
    with Collector(address) as collector:
        return next(collector.watch(NAME)).written


def _watch_in_a_loop(address: str) -> BitMap64:
    async def ask() -> BitMap64:
        async with AsyncCollector(address) as collector:
            return (await anext(collector.watch(NAME))).written

    return asyncio.run(ask())


@pytest.mark.parametrize("ask", [_dirty, _dirty_in_a_loop, _watch, _watch_in_a_loop])
def test_whole_answer_is_given(ask: Callable[[str], BitMap64]) -> None:
    """What the broken answers below are compared with."""
    with fake_collector([_pages(), _summary(3)]) as address:
        assert list(ask(address)) == [1, 2, 3]


@pytest.mark.parametrize("ask", [_dirty, _dirty_in_a_loop])
@pytest.mark.parametrize("parts,sentence", [*BROKEN, pytest.param([], "cut off before its summary", id="nothing")])
def test_broken_answer_is_never_a_smaller_set(
    parts: list[dirty_pb2.GetDirtyResponse], sentence: str, ask: Callable[[str], BitMap64]
) -> None:
    """A page that is missing from a set is lost in the migration; an error is not."""
    with fake_collector(parts) as address, pytest.raises(BrokenAnswer, match=sentence):
        ask(address)


@pytest.mark.parametrize("ask", [_watch, _watch_in_a_loop])
@pytest.mark.parametrize("parts,sentence", BROKEN[1:])
def test_broken_answer_of_a_watch_is_never_a_smaller_set(
    parts: list[dirty_pb2.GetDirtyResponse], sentence: str, ask: Callable[[str], BitMap64]
) -> None:
    """As where it is asked for once."""
    with fake_collector(parts) as address, pytest.raises(BrokenAnswer, match=sentence):
        ask(address)


@pytest.mark.parametrize("ask", [_watch, _watch_in_a_loop])
@pytest.mark.parametrize("parts", [[], [_pages()]], ids=["at once", "in the middle of an answer"])
def test_watch_that_ends_says_so(parts: list[dirty_pb2.GetDirtyResponse], ask: Callable[[str], BitMap64]) -> None:
    """A watch has no end of its own: a loop over it must not fall through as if all was well."""
    with fake_collector(parts) as address, pytest.raises(CollectorUnavailable, match="ended the watch"):
        ask(address)


def test_pages_that_nobody_asked_for_are_refused() -> None:
    """Counts without pages are not mixed up with pages."""
    with (
        fake_collector([_pages(), _summary(3)]) as address,
        Collector(address) as collector,
        pytest.raises(BrokenAnswer, match="only counts"),
    ):
        next(collector.watch_counts(NAME))


def test_damaged_answer_is_one_sentence_of_the_command() -> None:
    """Nothing of it is printed, and nobody sees a traceback."""
    with fake_collector([_pages(), _corrupt_pages(), _summary(3)]) as address:
        code, sentence = failure("--collector", address, "dirty", NAME, "--json")

    assert code == 1
    assert sentence.startswith(f"answer for {NAME} is damaged")


def test_collector_that_hangs_costs_its_deadline_only() -> None:
    """Also after it has begun to answer."""
    with fake_collector([_pages()], hangs=True) as address, Collector(address) as collector:
        began = time.monotonic()
        with pytest.raises(CollectorUnavailable, match="did not answer in time"):
            collector.dirty(NAME, transfer_seconds=0.5)

        assert 0.4 < time.monotonic() - began < 5


def test_collector_that_hangs_costs_its_deadline_only_in_a_loop() -> None:
    """The same without threads."""

    async def ask(address: str) -> None:
        async with AsyncCollector(address) as collector:
            await collector.dirty(NAME, transfer_seconds=0.5)

    with fake_collector([_pages()], hangs=True) as address:
        began = time.monotonic()
        with pytest.raises(CollectorUnavailable, match="did not answer in time"):
            asyncio.run(ask(address))

        assert 0.4 < time.monotonic() - began < 5


def test_list_has_a_deadline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call waits for ever."""
    monkeypatch.setattr("wetink_client.dirty_calls.LIST_SECONDS_MAX", 0.5)

    with (
        fake_collector(hangs=True) as address,
        Collector(address) as collector,
        pytest.raises(CollectorUnavailable, match="did not answer in time"),
    ):
        collector.hosts()
