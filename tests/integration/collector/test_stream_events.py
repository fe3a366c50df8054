"""StreamEvents against a real collector: who wrote, oldest first, and what is missing."""

import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.integration.collector.wire import Agent, batch, refused, start, target
from tests.support.collector import running_collector
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.dirty_pb2_grpc import DirtyServiceStub
from wetink_client import Collector, EventBatch, NotFound

NAME = "host-1/1@100"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Agent, Collector, str]]:
    """Give a welcomed agent with one target that has begun, a client, and the collector's address."""
    with (
        running_collector(tmp_path) as process,
        Agent(process.address) as agent,
        Collector(process.address) as client,
    ):
        agent.hello()
        agent.say(start(target()))
        yield agent, client, process.address


def columns(*addresses: int, lost: int = 0, thread_id: int = 7) -> types_pb2.EventColumns:
    """Give events at these addresses; entry i came at nanosecond i, from code 0x1000."""
    count = len(addresses)
    return types_pb2.EventColumns(
        address=struct.pack(f"<{count}Q", *addresses),
        thread_id=struct.pack(f"<{count}I", *[thread_id] * count),
        time_ns=struct.pack(f"<{count}Q", *range(count)),
        instruction_pointer=struct.pack(f"<{count}Q", *[0x1000] * count),
        lost_count=lost,
        threads=[types_pb2.ThreadName(thread_id=thread_id, name="writer")],
        mappings=[
            types_pb2.MappingName(range=types_pb2.AddressRange(start_address=0, size_bytes=1 << 40), name="[heap]")
        ],
    )


def with_events(made: ingest_pb2.WriteProtectBatch, events: types_pb2.EventColumns) -> ingest_pb2.WriteProtectBatch:
    """Give a batch its events."""
    made.events.CopyFrom(events)
    return made


def addresses(batches: list[EventBatch]) -> list[int]:
    """Give the addresses of all events."""
    return [event.address for one in batches for event in one.events]


def test_events_come_back_as_they_were_told(served: tuple[Agent, Collector, str]) -> None:
    """Each with its thread, its mapping, its time and its code, in its round; parts of a round one after the other."""
    agent, client, _ = served
    agent.say(with_events(batch(target(), 1, written={1}), columns(4096, 8192)))
    for part in range(3):
        more = batch(target(), 2, written={10 + part}, part=part, part_count=3)
        agent.say(with_events(more, columns(part * 4096, lost=part)))
    agent.say(with_events(batch(target(), 3, written={3}), columns(lost=4)))
    agent.acknowledged(target(), 3)

    batches = list(client.events(NAME))

    assert addresses(batches) == [4096, 8192, 0, 4096, 8192]
    assert [one.last_round for one in batches] == [1, 2, 2, 2, 3]
    assert [one.lost_count for one in batches] == [0, 0, 1, 2, 4]
    first = batches[0].events[1]
    assert (first.thread_id, first.thread_name, first.mapping) == (7, "writer", "[heap]")
    assert (first.time_ns, first.code_address, first.uffd_flags) == (1, 0x1000, None)


def test_a_batch_that_comes_twice_has_its_events_once(served: tuple[Agent, Collector, str]) -> None:
    """What is sent again changes nothing, and a round's events are there only when the round is."""
    agent, client, _ = served
    made = with_events(batch(target(), 1, written={1}), columns(4096))
    for _ in range(3):
        agent.say(made)
    half = with_events(batch(target(), 2, written={2}, part=0, part_count=2), columns(8192))
    agent.say(half)
    agent.acknowledged(target(), 1)

    assert addresses(list(client.events(NAME))) == [4096]


def test_follow_goes_on_until_the_target_ends(served: tuple[Agent, Collector, str]) -> None:
    """Later rounds come as they are committed; the end of the target ends the call."""
    agent, client, _ = served
    agent.say(with_events(batch(target(), 1, written={1}), columns(4096)))
    agent.acknowledged(target(), 1)
    stream = client.events(NAME, follow=True)
    assert addresses([next(stream)]) == [4096]

    agent.say(with_events(batch(target(), 2, written={2}), columns(8192)))
    assert addresses([next(stream)]) == [8192]
    agent.say(ingest_pb2.TargetEnded(target=target(), incarnation=1, reason=types_pb2.END_REASON_EXITED, time_ns=1))
    assert list(stream) == []


def test_a_call_goes_on_after_the_round_it_names(served: tuple[Agent, Collector, str]) -> None:
    """Rounds that were read before are left out, and are not called forgotten."""
    agent, _, address = served
    for number in range(1, 5):
        agent.say(with_events(batch(target(), number, written={number}), columns(number * 4096)))
    agent.acknowledged(target(), 4)
    with grpc.insecure_channel(address) as channel:
        request = pb.StreamEventsRequest(target=NAME, after_round=2, after_incarnation=1)
        parts = list(DirtyServiceStub(channel).StreamEvents(request, timeout=10))
        other = pb.StreamEventsRequest(target=NAME, after_round=2, after_incarnation=9)
        whole = list(DirtyServiceStub(channel).StreamEvents(other, timeout=10))

    assert [part.last_round for part in parts] == [3, 4]
    assert [part.forgotten_count for part in parts] == [0, 0]
    assert [part.last_round for part in whole] == [1, 2, 3, 4]


def test_columns_that_do_not_match_are_a_corrupt_batch(served: tuple[Agent, Collector, str]) -> None:
    """A column that is shorter than the others is not guessed at."""
    agent, _, _ = served
    broken = columns(4096, 8192)
    broken.thread_id = broken.thread_id[:-1]
    agent.say(with_events(batch(target(), 1, written={1}), broken))

    code, reason, _ = agent.error()
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_CORRUPT")


def test_unknown_target(served: tuple[Agent, Collector, str]) -> None:
    """The name is in the sentence."""
    _, client, _ = served
    with pytest.raises(NotFound, match="host-1/99"):
        list(client.events("host-1/99"))


def test_a_follower_is_told_of_the_drain(tmp_path: Path) -> None:
    """A collector that goes down ends the call with what to do."""
    with running_collector(tmp_path) as process, Agent(process.address) as agent:
        agent.hello()
        agent.say(start(target()))
        agent.say(with_events(batch(target(), 1, written={1}), columns(4096)))
        agent.acknowledged(target(), 1)
        with grpc.insecure_channel(process.address) as channel:
            call = DirtyServiceStub(channel).StreamEvents(pb.StreamEventsRequest(target=NAME, follow=True), timeout=30)
            assert next(call).last_round == 1
            threading.Timer(0.1, os.kill, (process.pid, signal.SIGTERM)).start()
            with refused(grpc.StatusCode.UNAVAILABLE, "COLLECTOR_DRAINING"):
                next(call)
