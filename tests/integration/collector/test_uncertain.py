"""Uncertain pages against a real collector: who asks strictly, leniently, or knows nothing of either."""

from collections.abc import Collection, Iterator
from pathlib import Path

import grpc
import pytest
from pyroaring import BitMap64

from tests.integration.collector.wire import Agent, Reader, answers, batch, start, target
from tests.support.collector import CollectorProcess, running_collector
from wetink.pages import decode, encode
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2
from wetink.v1.types_pb2 import (
    STRICTNESS_LENIENT,
    STRICTNESS_STRICT,
    STRICTNESS_STRICT_WHEN_FROZEN,
    STRICTNESS_UNSPECIFIED,
    Strictness,
)

NAME = "host-1/1@100"
LATER = 99
"""A strictness that this version does not know."""


def uncertain_batch(
    number: int,
    written: Collection[int],
    uncertain: Collection[int],
    vanished: Collection[int] = (),
    *,
    frozen: bool = False,
) -> ingest_pb2.WriteProtectBatch:
    """Give a round with uncertain pages among the written."""
    made = batch(target(), number, written=written, vanished=vanished, frozen=frozen)
    made.uncertain.CopyFrom(encode(BitMap64(uncertain)))
    return made


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[CollectorProcess]:
    """Give a collector with a store on disk."""
    with running_collector(tmp_path) as process:
        yield process


def asked(reader: Reader, cursor: str, strictness: Strictness.ValueType) -> tuple[set[int], set[int], pb.TargetStatus]:
    """Give what is written, what is uncertain, and the status."""
    request = pb.GetDirtyRequest(selection=pb.Selection(targets=[NAME]), cursor=cursor, strictness=strictness)
    written, uncertain, status = BitMap64(), BitMap64(), pb.TargetStatus()
    for part in reader.stub.GetDirty(request, timeout=20):
        written |= decode(part.pages.written)
        uncertain |= decode(part.pages.uncertain)
        if part.HasField("summary"):
            (status,) = part.summary.targets
    assert (status.written_page_count, status.uncertain_page_count) == (len(written), len(uncertain))
    return set(written), set(uncertain), status


def test_each_strictness_says_what_it_promises(collector: CollectorProcess) -> None:
    """Over two rounds: a page that one of them is certain of is certain. One asked for by a later version is strict."""
    with Agent(collector.address) as agent:
        agent.hello()
        agent.say(start(target()), batch(target(), 1, written=range(10)))
        agent.acknowledged(target(), 1)
        reader = Reader(collector.address)
        cursor = reader.dirty(NAME).summary.cursor
        agent.say(uncertain_batch(2, {1, 2, 3}, {2, 3}), uncertain_batch(3, {2, 3, 4, 9}, {2, 4}, {1}))
        agent.acknowledged(target(), 3)

        for strictness in (STRICTNESS_UNSPECIFIED, STRICTNESS_STRICT, Strictness.ValueType(LATER)):
            written, uncertain, status = asked(reader, cursor, strictness)
            assert (written, uncertain, status.lenient) == ({2, 3, 4, 9}, {2, 4}, False)
        for strictness in (STRICTNESS_LENIENT, STRICTNESS_STRICT_WHEN_FROZEN):
            written, uncertain, status = asked(reader, cursor, strictness)
            assert (written, uncertain, status.lenient) == ({3, 9}, {2, 4}, True)

        agent.say(uncertain_batch(4, {2}, {2}, frozen=True))
        agent.acknowledged(target(), 4)
        assert asked(reader, cursor, STRICTNESS_STRICT_WHEN_FROZEN)[:2] == ({2, 3, 4, 9}, {2, 4})
        assert asked(reader, cursor, STRICTNESS_LENIENT)[:2] == ({3, 9}, {2, 4})


def test_who_has_nothing_yet_gets_everything(collector: CollectorProcess) -> None:
    """Without a cursor a lenient answer leaves nothing out."""
    with Agent(collector.address) as agent:
        agent.hello()
        agent.say(start(target()), uncertain_batch(1, {1, 2}, {2}))
        agent.acknowledged(target(), 1)

        assert asked(Reader(collector.address), "", STRICTNESS_LENIENT)[:2] == ({1, 2}, set())


def test_uncertain_pages_outlive_the_collector(tmp_path: Path) -> None:
    """They are in the store, and in merged blocks too."""
    with running_collector(tmp_path) as process, Agent(process.address) as agent:
        agent.hello()
        agent.say(start(target()), batch(target(), 1, written=range(10)))
        for number in range(2, 40):
            agent.say(uncertain_batch(number, {1, 2, number % 3 + 5}, {1, 2}))
        agent.acknowledged(target(), 39)
        cursor = Reader(process.address).dirty(NAME).summary.cursor
        assert cursor
        first = Reader(process.address).dirty(NAME, cursor="").summary
        assert first.targets[0].round == 39

    with running_collector(tmp_path) as process, Agent(process.address) as agent:
        reader = Reader(process.address)
        assert asked(reader, cursor, STRICTNESS_LENIENT)[:2] == (set(), set())
        early = early_cursor(cursor)
        written, uncertain, status = asked(reader, early, STRICTNESS_LENIENT)
        assert (written, uncertain, status.lenient) == ({5, 6, 7}, {1, 2}, True)


def early_cursor(cursor: str) -> str:
    """Give a cursor of the same store and target, at round 8, where a merged block ends."""
    from wetink_collector.cursor import Cursor, Position, decode, encode  # noqa: PLC0415 - opaque to all others

    known = decode(cursor)
    return encode(Cursor(known.store_id, {key: Position(one.incarnation, 8) for key, one in known.positions.items()}))


def test_a_watch_is_as_strict_as_it_is_asked_to_be(collector: CollectorProcess) -> None:
    """In its answers with pages, and in the counts of those without."""
    with Agent(collector.address) as agent:
        agent.hello()
        agent.say(start(target()), batch(target(), 1, written=range(10)))
        agent.acknowledged(target(), 1)
        reader = Reader(collector.address)
        cursor = reader.dirty(NAME).summary.cursor
        agent.say(uncertain_batch(2, {1, 2}, {2}))
        agent.acknowledged(target(), 2)

        for strictness, count in ((STRICTNESS_STRICT, 2), (STRICTNESS_LENIENT, 1)):
            request = pb.WatchRequest(
                selection=pb.Selection(targets=[NAME]), cursor=cursor, pages=True, strictness=strictness
            )
            stream = reader.stub.Watch(request, timeout=20)
            answer = next(answers(stream))
            stream.cancel()
            assert answer.summary.targets[0].written_page_count == count == len(answer.written[NAME])


def test_a_round_whose_uncertain_pages_are_not_written_is_refused(collector: CollectorProcess) -> None:
    """A lenient reader would leave out what nobody reports."""
    with Agent(collector.address) as agent:
        agent.hello()
        agent.say(start(target()), uncertain_batch(1, {1}, {2}))

        assert agent.error()[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_CORRUPT")
