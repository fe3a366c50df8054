"""ListMappings against a real collector: the newest table of a target, or that none is known."""

from collections.abc import Iterator

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, refused, start, target
from tests.support.collector import running_collector
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2, types_pb2
from wetink_client import Collector, MappingsUnknown, NotFound, Uncertainty

NAME = "host-1/1@100"


@pytest.fixture
def served() -> Iterator[tuple[Agent, Collector, Reader]]:
    """Give a welcomed agent, a client, and a plain stub."""
    with (
        running_collector() as process,
        Agent(process.address) as agent,
        Collector(process.address) as client,
    ):
        agent.hello()
        yield agent, client, Reader(process.address)


def table(round_: int = 1, *names: str, incarnation: int = 1) -> ingest_pb2.TargetMappings:
    """Give a table whose mappings have these names."""
    return ingest_pb2.TargetMappings(
        target=target(),
        incarnation=incarnation,
        round=round_,
        mappings=[
            types_pb2.Mapping(
                range=types_pb2.AddressRange(start_address=4096 * (i + 1), size_bytes=4096),
                name=name,
                shared=True,
                device=(1 << 32) | 2,
                inode=3,
                offset_bytes=4096,
                protection=3,
                uncertainty=types_pb2.UNCERTAINTY_SHARED,
            )
            for i, name in enumerate(names)
        ],
        unseen_writers=[types_pb2.UnseenWriter(uncertainty=types_pb2.UNCERTAINTY_DIRECT_IO, what="descriptor 3")],
    )


def deliver(agent: Agent, *tables: ingest_pb2.TargetMappings, incarnation: int = 1) -> None:
    """Begin an incarnation with its tables and a round; what comes before the round is taken when that is durable."""
    agent.say(start(target(), incarnation=incarnation))
    agent.say(*tables)
    agent.say(batch(target(), 1, written={1}, incarnation=incarnation))
    agent.acknowledged(target(), 1, incarnation=incarnation)


def test_a_table_comes_back_as_it_was_told(served: tuple[Agent, Collector, Reader]) -> None:
    """Every field of it, the newest of several."""
    agent, client, _ = served
    deliver(agent, table(0, "old"), table(1, "/memfd:a", "/memfd:b"))

    found = client.mappings("host-1/1")

    assert (found.name, found.incarnation, found.round, found.cut) == (NAME, 1, 1, False)
    assert [one.name for one in found.mappings] == ["/memfd:a", "/memfd:b"]
    first = found.mappings[0]
    assert (first.start_address, first.length_bytes, first.shared, first.protection) == (4096, 4096, True, 3)
    assert (first.device, first.inode, first.offset_bytes) == ((1, 2), 3, 4096)
    assert first.uncertainty is Uncertainty.SHARED
    assert [(one.uncertainty, one.what) for one in found.unseen_writers] == [(Uncertainty.DIRECT_IO, "descriptor 3")]


def test_what_nobody_told_is_not_an_empty_table(served: tuple[Agent, Collector, Reader]) -> None:
    """An agent of an older version tells none; nor is the table of one incarnation that of the next."""
    agent, client, reader = served
    with pytest.raises(NotFound):
        client.mappings(NAME)
    deliver(agent)
    with pytest.raises(MappingsUnknown, match="has not told what host-1/1@100 has mapped"):
        client.mappings(NAME)

    agent.say(table(1, "/memfd:a"))
    deliver(agent, incarnation=2)

    with refused(grpc.StatusCode.FAILED_PRECONDITION, "MAPPINGS_UNKNOWN"):
        reader.stub.ListMappings(pb.ListMappingsRequest(target=NAME), timeout=20)
    deliver(agent, table(1, "late", incarnation=2), table(1, "of before", incarnation=1), incarnation=3)
    with pytest.raises(MappingsUnknown):
        client.mappings(NAME)


@pytest.mark.parametrize(
    "broken",
    [
        table(1, *["x"] * 2049),
        table(1, "x" * 257),
        ingest_pb2.TargetMappings(target=target(), incarnation=1, unseen_writers=[types_pb2.UnseenWriter()] * 17),
        ingest_pb2.TargetMappings(target=target(host_id="host-2"), incarnation=1),
    ],
    ids=["too many", "too long", "too many writers", "of another host"],
)
def test_a_table_over_its_bounds_ends_the_stream(
    served: tuple[Agent, Collector, Reader], broken: ingest_pb2.TargetMappings
) -> None:
    """What an agent says is bounded, or not taken."""
    agent, _, _ = served
    agent.say(start(target()), broken)

    assert agent.error()[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")
