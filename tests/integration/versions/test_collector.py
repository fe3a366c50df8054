"""A real collector, and agents and readers whose contract is that of another version."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, refused, target
from tests.integration.versions import peers
from tests.integration.versions.peers import PATIENCE_SECONDS, PeerAgent, position, start
from tests.support.collector import CollectorProcess, running_collector
from tests.support.contracts import LATER_NUMBER, LATER_TEXT, VERSION, Contract, LaterContract, major_minor
from wetink.pages import decode
from wetink.v1.types_pb2 import END_REASON_EXITED, INCOMPLETE_REASON_BARRIER_TIMEOUT, INCOMPLETE_REASON_TARGET_ENDED

HOST = "host-1"
NAME = f"{HOST}/1@100"


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[CollectorProcess]:
    """Give a collector that keeps what it takes in a file; it may not fail at anything."""
    with running_collector(tmp_path / "data") as collector:
        yield collector
        assert "Traceback" not in collector.log, collector.log


@pytest.fixture
def reader(collector: CollectorProcess) -> Iterator[Reader]:
    """Give a reader of this version."""
    reader = Reader(collector.address)
    with reader.channel:
        yield reader


def test_an_agent_delivers_and_reaches_barriers(
    collector: CollectorProcess, reader: Reader, contract: Contract
) -> None:
    """Its rounds are acknowledged and answered, to the page, and a barrier goes through it."""
    with PeerAgent(contract, collector.address, HOST) as agent:
        welcome = agent.hello()
        assert (len(welcome.positions), welcome.message_bytes_max) == (0, 1 << 20)
        assert welcome.in_flight_bytes_max
        assert welcome.heartbeat_interval_ms
        assert welcome.store_id
        agent.say(target_started=start(HOST))
        agent.say(write_protect_batch=peers.batch(HOST, 1, [1, 2, 3]))
        agent.say(write_protect_batch=peers.batch(HOST, 2, [2], [3]))
        agent.acknowledged(2)
        agent.say(heartbeat={"time_ns": 1, "spool_bytes": 77})
        first = reader.dirty(NAME)
        harvest = threading.Thread(target=_reach, args=(agent, 3, [9]))
        harvest.start()
        since = reader.dirty(NAME, cursor=first.summary.cursor, barrier=True)
        harvest.join()
        (host,) = reader.hosts()
        info = reader.target(NAME)

    assert (first.written, first.summary.complete) == ({NAME: {1, 2}}, True)
    assert (since.written, since.summary.complete, since.summary.exact) == ({NAME: {9}}, True, True)
    assert (host.connected, host.spool_bytes, host.agent_version) == (True, 77, "0.1.0")
    assert (info.live, info.command, dict(info.labels)) == (True, "a command", {"pod": "cart-0"})
    assert info.pace.interval_ms == 50


def test_an_agent_goes_on_after_a_reconnect(collector: CollectorProcess, reader: Reader, contract: Contract) -> None:
    """Welcome says where, a round that is sent twice changes nothing, and the end is kept."""
    with PeerAgent(contract, collector.address, HOST) as agent:
        agent.hello()
        agent.say(target_started=start(HOST))
        agent.say(write_protect_batch=peers.batch(HOST, 1, [1]))
        agent.acknowledged(1)
        agent.end()

    with PeerAgent(contract, collector.address, HOST) as agent:
        (durable,) = agent.hello(position(HOST, 2)).positions
        assert (durable.target.pid, durable.incarnation, durable.round) == (1, 1, 1)
        agent.say(target_started=start(HOST))
        agent.say(write_protect_batch=peers.batch(HOST, 1, [1]))
        agent.say(write_protect_batch=peers.batch(HOST, 2, [2]))
        agent.say(
            target_ended={"target": peers.target(HOST), "incarnation": 1, "reason": "END_REASON_EXITED", "time_ns": 2}
        )
        agent.acknowledged(2)
        agent.end()

    answer = reader.dirty(NAME)
    assert answer.written == {NAME: {1, 2}}
    assert answer.summary.targets[0].end_reason == END_REASON_EXITED


def test_a_reader_is_answered(collector: CollectorProcess, contract: Contract) -> None:
    """Lists, a full set, what is dirty since, a barrier and a watch."""
    with Agent(collector.address) as agent, grpc.insecure_channel(collector.address) as channel:
        agent.hello()
        agent.deliver(target(), [1, 2, 3])
        asking = PeerReader(contract, channel)

        (host,) = asking.call("ListHosts").hosts
        (listed,) = asking.call("ListTargets", selection={"hosts": [HOST]}).targets
        pages, first = asking.dirty()
        agent.say(batch(target(), 2, written=[2], vanished=[3]))
        agent.acknowledged(target(), 2)
        pages_since, since = asking.dirty(first.cursor)
        harvest = threading.Thread(target=lambda: agent.harvest(agent.hear("barrier").barrier, batch(target(), 3)))
        harvest.start()
        reached = asking.call("Barrier", selection={"targets": [NAME]})
        harvest.join()
        watch = asking.watch(reached.cursor)
        begun = next(watch)
        agent.say(batch(target(), 4, written=[8]))
        told = next(watch)

    assert (host.host_id, host.connected, host.target_count) == (HOST, True, 1)
    assert (listed.name, listed.live, listed.round, listed.page_size) == (NAME, True, 1, 4096)
    assert (pages, first.complete, first.exact) == (({1, 2, 3}, set()), True, True)
    assert (pages_since, since.complete, since.exact) == (({2}, {3}), True, True)
    assert [(status.round, status.complete) for status in reached.targets] == [(3, True)]
    assert begun == (set(), set())
    assert told == ({8}, set())


def test_what_is_unknown_is_logged_once_and_not_kept(collector: CollectorProcess, reader: Reader) -> None:
    """A field that nobody reads has no bound: it would be held as long as its target, and be told to readers."""
    with PeerAgent(LaterContract(), collector.address, HOST) as agent:
        agent.hello()
        agent.say(target_started=start(HOST))
        agent.say(write_protect_batch=peers.batch(HOST, 1, [1]))
        agent.acknowledged(1)
        (ignored,) = collector.events("message_ignored")
        info = reader.target(NAME)

    assert (ignored["host"], sorted(ignored["fields"])) == (HOST, [LATER_NUMBER, LATER_NUMBER + 1])
    assert LATER_TEXT.encode() not in info.SerializeToString()


def test_a_round_that_came_in_an_unknown_message_is_missed(collector: CollectorProcess, reader: Reader) -> None:
    """A barrier whose answer names it is not reached, and the next round is a gap: nothing is called complete."""
    with PeerAgent(LaterContract(), collector.address, HOST) as agent:
        agent.hello()
        agent.say(target_started=start(HOST))
        agent.say(write_protect_batch=peers.batch(HOST, 1, [1]))
        agent.acknowledged(1)
        cursor = reader.dirty(NAME).summary.cursor

        def reach() -> None:
            request_id = agent.hear("barrier").request_id
            agent.say(barrier_reached={"request_id": request_id, "positions": [position(HOST, 2)]})

        harvest = threading.Thread(target=reach)
        harvest.start()
        since = reader.dirty(NAME, cursor=cursor, barrier=True, timeout_ms=1000)
        harvest.join()
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "ROUND_GAP"):
            agent.say(write_protect_batch=peers.batch(HOST, 3, [3]))
            agent.acknowledged(3)

    (status,) = since.summary.targets
    assert (status.complete, status.incomplete_reason) == (False, INCOMPLETE_REASON_BARRIER_TIMEOUT)


def test_an_end_for_a_reason_that_came_later_is_an_end(collector: CollectorProcess, reader: Reader) -> None:
    """It is taken and kept, no answer is complete, and a cursor does not go on: nobody here knows what it means."""
    with PeerAgent(LaterContract(), collector.address, HOST) as agent:
        agent.hello()
        agent.say(target_started=start(HOST) | {"backend": LATER_NUMBER})
        agent.say(write_protect_batch=peers.batch(HOST, 1, [1]) | {"backend": LATER_NUMBER})
        agent.acknowledged(1)
        cursor = reader.dirty(NAME).summary.cursor
        agent.say(target_ended={"target": peers.target(HOST), "incarnation": 1, "reason": LATER_NUMBER, "time_ns": 2})
        agent.acknowledged(1)
        agent.end()

    info, answer = reader.target(NAME), reader.dirty(NAME)
    (status,) = answer.summary.targets
    assert (info.live, info.backend, info.end_reason) == (False, LATER_NUMBER, LATER_NUMBER)
    assert (status.complete, status.incomplete_reason) == (False, INCOMPLETE_REASON_TARGET_ENDED)
    assert "(unknown)" in status.incomplete_message
    with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
        reader.dirty(NAME, cursor=cursor)


def test_versions_further_apart_are_told(collector: CollectorProcess) -> None:
    """Such an agent is served, and the log says which versions meet; of a neighbour it only says the version."""
    major, minor = major_minor(VERSION)
    contract = LaterContract()
    versions = (("near", f"{major}.{minor + 1}.0"), ("far", f"{major}.{minor + 2}.0"))
    for number, (host_id, version) in enumerate(versions, start=1):
        with PeerAgent(contract, collector.address, host_id, version=version) as agent:
            assert agent.hello().collector_version == VERSION
            # One that goes as soon as it has its Welcome may never count as connected.
            collector.wait_for_log("agent_connected", number)

    apart = collector.wait_for_log("versions_apart")
    assert {event["host"]: event["version"] for event in collector.events("agent_connected")} == {
        "near": f"{major}.{minor + 1}.0",
        "far": f"{major}.{minor + 2}.0",
    }
    assert len(collector.events("versions_apart")) == 1
    assert (apart["host"], apart["agent"], apart["collector"]) == ("far", f"{major}.{minor + 2}.0", VERSION)
    assert "upgrade the older one" in apart["what_to_do"]


def _reach(agent: PeerAgent, number: int, written: list[int]) -> None:
    """Answer a barrier with a round."""
    asked = agent.hear("barrier")
    assert [target.pid for target in asked.targets] == [1]
    agent.say(write_protect_batch=peers.batch(HOST, number, written))
    agent.say(barrier_reached={"request_id": asked.request_id, "positions": [position(HOST, number)]})


class PeerReader:
    """A reader on the contract of another version, which asks for the one target there is."""

    def __init__(self, contract: Contract, channel: grpc.Channel) -> None:
        """Take the contract it speaks, and the connection."""
        self._contract = contract
        self._stub = contract.stub(channel, "DirtyService")

    def call(self, method: str, **fields: object) -> Any:  # noqa: ANN401 (classes made when the tests run have no types)
        """Call a method of the service."""
        return getattr(self._stub, method)(
            self._contract.message(f"{method}Request")(**fields), timeout=PATIENCE_SECONDS
        )

    def dirty(self, cursor: str = "") -> tuple[tuple[set[int], set[int]], Any]:
        """Give the pages, written and vanished, and the summary of one answer."""
        *parts, last = self.call("GetDirty", selection={"targets": [NAME]}, cursor=cursor)
        return _pages(parts), last.summary

    def watch(self, cursor: str) -> Iterator[tuple[set[int], set[int]]]:
        """Give the pages of each answer of a watch."""
        parts = []
        for part in self.call("Watch", selection={"targets": [NAME]}, cursor=cursor, pages=True):
            if part.WhichOneof("part") == "pages":
                parts.append(part)
            else:
                yield _pages(parts)
                parts.clear()


def _pages(parts: list[Any]) -> tuple[set[int], set[int]]:
    """Put the pages of an answer's parts together."""
    written, vanished = set[int](), set[int]()
    for part in parts:
        for pages, message in ((written, part.pages.written), (vanished, part.pages.vanished)):
            pages.update(decode(message))
    return written, vanished
