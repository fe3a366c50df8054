"""IngestService against a real collector, message by message."""

import threading
from collections.abc import Iterator

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, durable, position, refused, start, target
from tests.support.collector import CollectorProcess
from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.types_pb2 import END_REASON_EXEC, END_REASON_EXITED, END_REASON_LOST


@pytest.fixture
def one(host: str) -> types_pb2.Target:
    """Give a target of the test's host."""
    return target(host_id=host)


@pytest.fixture
def again(shared_collector: CollectorProcess, host: str) -> Iterator[Agent]:
    """Give a second stream of the test's host."""
    with Agent(shared_collector.address, host) as agent:
        yield agent


def name_of(one: types_pb2.Target) -> str:
    """Give the printed name."""
    return f"{one.host_id}/{one.pid}@{one.start_time_ticks}"


def test_welcome_names_the_bounds_and_the_store(agent: Agent) -> None:
    """An agent learns what it may send, and how often it must speak."""
    welcome = agent.hello()

    assert welcome.message_bytes_max == MESSAGE_BYTES_MAX
    assert welcome.in_flight_bytes_max >= MESSAGE_BYTES_MAX
    assert welcome.heartbeat_interval_ms == 5000
    assert len(welcome.store_id) == 32
    assert not welcome.positions
    assert not welcome.wanted


def test_host_is_listed_while_its_stream_is_open_and_afterwards(agent: Agent, reader: Reader, host: str) -> None:
    """With its boot, its agent's version and its spool; and that it is not connected when it is gone."""
    agent.hello()
    agent.deliver(target(host_id=host), [1])
    agent.say(ingest_pb2.Heartbeat(time_ns=1, spool_bytes=77, rounds_united=5))
    agent.deliver(target(2, host_id=host), [1])
    (listed,) = (one for one in reader.hosts() if one.host_id == host)
    assert (listed.boot_id, listed.agent_version, listed.connected) == ("boot-1", "1.2.3", True)
    assert (listed.spool_bytes, listed.rounds_united, listed.target_count) == (77, 5, 2)
    assert listed.last_seen_time_ns

    agent.end()

    (listed,) = (one for one in reader.hosts() if one.host_id == host)
    assert not listed.connected


def test_acknowledgement_names_the_last_durable_round(agent: Agent, one: types_pb2.Target) -> None:
    """Cumulatively: many batches may have one Ack."""
    agent.hello()
    agent.say(start(one), *(batch(one, number, written=[number]) for number in range(1, 51)))

    agent.acknowledged(one, 50)


def test_half_close_acknowledges_the_rest(agent: Agent, one: types_pb2.Target) -> None:
    """Then the collector closes with OK."""
    agent.hello()
    agent.say(start(one), *(batch(one, number, written=range(number)) for number in range(1, 101)))

    rest = agent.end()

    assert [said.WhichOneof("message") for said in rest] == ["ack"] * len(rest)
    assert rest[-1].ack.positions[0].round == 100


def test_duplicates_change_nothing(agent: Agent, reader: Reader, one: types_pb2.Target) -> None:
    """A batch that comes again is acknowledged again, with the round that is durable."""
    agent.hello()
    agent.deliver(one, [1], [2])
    agent.say(batch(one, 1, written=[99]), batch(one, 1, 2, written=[98]))
    agent.acknowledged(one, 2)

    assert reader.dirty(name_of(one)).written == {name_of(one): {1, 2}}
    assert reader.target(name_of(one)).round == 2


def test_gap_ends_the_stream(agent: Agent, again: Agent, one: types_pb2.Target) -> None:
    """And Welcome says what is there."""
    agent.hello()
    agent.deliver(one, [1], [2])
    agent.say(batch(one, 4, written=[4]))

    assert agent.error() == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "ROUND_GAP",
        {"target": name_of(one), "incarnation": "1", "round": "4"},
    )
    assert list(again.hello(position(one, 4)).positions) == [durable(one, 2)]


def test_overlap_is_merged_whole_and_said_to_be_inexact(agent: Agent, reader: Reader, one: types_pb2.Target) -> None:
    """A cursor inside it is answered with more pages, never fewer."""
    agent.hello()
    agent.deliver(one, [1], [2])
    cursor = reader.dirty(name_of(one)).summary.cursor
    agent.say(batch(one, 3, written=[3]))
    agent.acknowledged(one, 3)
    agent.say(batch(one, 2, 4, written=[3, 4], vanished=[2]))
    agent.acknowledged(one, 4)

    answer = reader.dirty(name_of(one), cursor=cursor)

    assert answer.written == {name_of(one): {3, 4}}
    assert answer.vanished == {name_of(one): {2}}
    assert not answer.summary.exact
    assert answer.summary.complete


def test_round_in_parts_counts_when_the_last_has_come(
    agent: Agent, again: Agent, reader: Reader, one: types_pb2.Target
) -> None:
    """A reconnect in the middle discards what came."""
    agent.hello()
    agent.deliver(one, [1])
    agent.say(batch(one, 2, written=[20], part=0, part_count=2))
    agent.end()
    assert reader.target(name_of(one)).round == 1

    again.hello(position(one, 2))
    again.say(start(one), batch(one, 2, written=[21], part=0, part_count=2))
    again.say(batch(one, 2, written=[22], part=1, part_count=2))
    again.acknowledged(one, 2)

    assert reader.dirty(name_of(one)).written == {name_of(one): {1, 21, 22}}


def test_newer_stream_deposes_the_older(agent: Agent, again: Agent, reader: Reader, one: types_pb2.Target) -> None:
    """The older ends with DEPOSED, and the newer goes on where everything the older had queued ends."""
    agent.hello()
    agent.say(start(one), *(batch(one, number, written=[number]) for number in range(1, 201)))
    agent.hear("ack")

    welcome = again.hello(position(one, 200))

    assert agent.error() == (grpc.StatusCode.ABORTED, "DEPOSED", {})
    (durable,) = welcome.positions
    again.say(start(one), *(batch(one, number, written=[number]) for number in range(durable.round + 1, 201)))
    if durable.round < 200:
        again.acknowledged(one, 200)
    assert reader.dirty(name_of(one)).written == {name_of(one): set(range(1, 201))}
    assert reader.target(name_of(one)).live


def test_streams_that_depose_each_other_leave_one(shared_collector: CollectorProcess, host: str) -> None:
    """Ten at once: nine end with DEPOSED, one is welcomed and works."""
    outcomes: list[str] = []
    one = target(host_id=host)
    lock = threading.Lock()
    all_in = threading.Barrier(10)

    def open_stream() -> None:
        with Agent(shared_collector.address, host) as agent:
            try:
                agent.hello()
                outcome = "welcomed"
            except grpc.RpcError:
                outcome = "refused"
            with lock:
                outcomes.append(outcome)
            all_in.wait(60)
            agent.say(start(one), batch(one, 1, written=[1]))
            try:
                agent.acknowledged(one, 1)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.ABORTED  # noqa: PT017 (what is expected of nine)
                return
            with lock:
                outcomes.append("works")

    threads = [threading.Thread(target=open_stream) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert outcomes.count("works") == 1


@pytest.mark.parametrize("what", ["crc32", "page_count", "roaring64"])
def test_corrupt_bitmap_ends_the_stream_and_the_round_may_come_again(
    agent: Agent, again: Agent, reader: Reader, one: types_pb2.Target, what: str
) -> None:
    """Nothing of it counts."""
    agent.hello()
    agent.deliver(one, [1])
    message = batch(one, 2, written=[2, 3])
    if what == "roaring64":
        message.written.roaring64 = message.written.roaring64[:-1]
    else:
        setattr(message.written, what, getattr(message.written, what) + 1)
    agent.say(message)

    assert agent.error() == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "BATCH_CORRUPT",
        {"target": name_of(one), "incarnation": "1", "round": "2"},
    )
    assert reader.target(name_of(one)).round == 1
    assert list(again.hello(position(one, 2)).positions) == [durable(one, 1)]
    again.say(start(one), batch(one, 2, written=[2, 3]))
    again.acknowledged(one, 2)


def test_message_over_the_bound_is_refused(agent: Agent, again: Agent, one: types_pb2.Target) -> None:
    """By the transport, before it takes memory; and the next stream works."""
    agent.hello()
    message = batch(one, 1)
    message.events.address = bytes(MESSAGE_BYTES_MAX + (64 << 10))
    agent.say(start(one), message)

    code, _, _ = agent.error()

    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    again.hello(position(one, 1))


def test_message_of_exactly_the_bound_is_taken(agent: Agent, one: types_pb2.Target) -> None:
    """The contract's 1 MiB is the serialized message."""
    agent.hello()
    message = batch(one, 1, written=[1])
    message.events.address = bytes((MESSAGE_BYTES_MAX - message.ByteSize() - 64) // 8 * 8)
    thread = message.events.threads.add(name="x")
    thread.name += "x" * (MESSAGE_BYTES_MAX - ingest_pb2.AgentMessage(write_protect_batch=message).ByteSize())
    assert ingest_pb2.AgentMessage(write_protect_batch=message).ByteSize() == MESSAGE_BYTES_MAX
    agent.say(start(one), message)

    agent.acknowledged(one, 1)


def test_stream_without_hello_is_refused(agent: Agent, one: types_pb2.Target) -> None:
    """Nobody writes without saying for which host."""
    agent.say(batch(one, 1))

    assert agent.error()[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")


def test_second_hello_is_refused(agent: Agent) -> None:
    """Hello is the first message, and only there."""
    agent.hello()
    agent.say(ingest_pb2.Hello(protocol_version=1, host_id="other", boot_id="boot-1"))

    assert agent.error()[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")


def test_target_of_another_host_is_refused(agent: Agent) -> None:
    """An agent writes for its own host only."""
    agent.hello()
    agent.say(start(target(host_id="another")))

    assert agent.error()[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")


def test_agent_of_another_version_is_refused_with_a_sentence(agent: Agent) -> None:
    """The sentence names both versions."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED") as refusal:
        agent.hello(protocol_version=9)

    assert "version 9" in refusal.message


def test_message_that_is_not_known_is_ignored(agent: Agent, one: types_pb2.Target) -> None:
    """A newer agent may say more than this collector understands."""
    agent.hello()
    agent._said.put(ingest_pb2.AgentMessage())
    agent.deliver(one, [1])


def test_incarnation_that_is_not_in_hello_is_lost(
    agent: Agent, again: Agent, reader: Reader, one: types_pb2.Target, host: str
) -> None:
    """What was written meanwhile is not known, and the reader is told."""
    other = target(2, host_id=host)
    agent.hello()
    agent.deliver(one, [1])
    agent.deliver(other, [1])
    agent.end()

    again.hello(position(other, 1))

    lost, living = reader.target(name_of(one)), reader.target(name_of(other))
    assert (lost.live, lost.end_reason) == (False, END_REASON_LOST)
    assert (living.live, living.end_reason) == (True, 0)


def test_incarnation_of_an_earlier_boot_is_lost(
    shared_collector: CollectorProcess, agent: Agent, reader: Reader, one: types_pb2.Target, host: str
) -> None:
    """The host was started again: nothing of before runs any more."""
    agent.hello()
    agent.deliver(one, [1])
    agent.end()

    with Agent(shared_collector.address, host, "boot-2") as again:
        again.hello()
        assert reader.target(name_of(one)).end_reason == END_REASON_LOST


def test_ends_are_kept_with_their_reason(agent: Agent, reader: Reader, one: types_pb2.Target) -> None:
    """And acknowledged, so that the agent may forget the target."""
    agent.hello()
    agent.deliver(one, [1])
    agent.say(
        ingest_pb2.TargetEnded(target=one, incarnation=1, reason=END_REASON_EXITED, time_ns=1, message="exit code 0")
    )
    agent.acknowledged(one, 1)

    ended = reader.target(name_of(one))
    assert (ended.live, ended.end_reason, ended.end_message) == (False, END_REASON_EXITED, "exit code 0")


def test_newer_incarnation_takes_the_place_of_the_older(agent: Agent, reader: Reader, one: types_pb2.Target) -> None:
    """After execve the memory is another; what is left of the old one is acknowledged and not kept."""
    agent.hello()
    agent.deliver(one, [1])
    agent.say(ingest_pb2.TargetEnded(target=one, incarnation=1, reason=END_REASON_EXEC, time_ns=1))
    agent.acknowledged(one, 1)
    agent.say(start(one, incarnation=2), batch(one, 1, written=[7], incarnation=2))
    agent.acknowledged(one, 1, incarnation=2)
    agent.say(batch(one, 9, written=[9]))
    agent.acknowledged(one, 9)

    answer = reader.dirty(name_of(one))
    assert answer.written == {name_of(one): {7}}
    assert (answer.summary.targets[0].incarnation, answer.summary.complete) == (2, True)
