"""A real agent, which plays a recording, and collectors whose contract is that of another version."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.versions.peers import Fields, PeerCollector, PeerStream, Script, served
from tests.support.agent import HOST, start_agent
from tests.support.contracts import LATER_NUMBER, Contract, LaterContract
from tests.support.harvests import ended_of, make_round, started_of
from tests.support.service import Service
from wetink.pages import decode
from wetink_agent.recording import RecordingWriter

ROUNDS = ((range(100), ()), ({3, 5_000_000_000}, {7}), ({7, 8}, {3, 4}))
SECOND_NS = 1_000_000_000
WELCOME: Fields = {
    "in_flight_bytes_max": 8 << 20,
    "message_bytes_max": 1 << 20,
    "heartbeat_interval_ms": 200,
    "store_id": "s",
}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Give a recording of three rounds."""
    path = tmp_path / "recording"
    started = started_of()
    started.page_size = 4096
    with RecordingWriter(path, started) as writer:
        for number, (written, vanished) in enumerate(ROUNDS, start=1):
            made = make_round(number, written, vanished)
            for part in made.parts:
                part.first_time_ns = part.last_time_ns = number * SECOND_NS
            writer.add(made)
        writer.end(ended_of())
    return path


def test_an_agent_is_heard_and_goes_on_after_a_reconnect(contract: Contract, recording: Path) -> None:
    """It delivers, reaches barriers, answers commands, goes when asked to, and sends again what was not durable."""
    heard: list[tuple[set[int], set[int]]] = []
    last_round_is_durable = threading.Event()

    def first(agent: PeerStream) -> Iterator[Fields]:
        hello = agent.hear("hello")
        assert (hello.protocol_version, hello.host_id) == (1, HOST)
        assert hello.agent_version
        yield {"welcome": WELCOME}
        started = agent.hear("target_started")
        assert (started.command, started.page_size) == ("writer", 4096)
        heard.append(_round(agent, 1))
        yield {"ack": {"positions": [_position(started, 1)]}}
        assert agent.hear("heartbeat").time_ns
        yield {"barrier": {"request_id": 5, "targets": [started.target]}}
        _round(agent, 2)
        reached = agent.hear("barrier_reached")
        assert (reached.request_id, [each.round for each in reached.positions]) == (5, [2])
        yield {"track": {"request_id": 6, "pid": 1}}
        refused = agent.hear("command_result")
        assert refused.request_id == 6
        assert refused.code
        assert refused.message
        yield {"drain": {}}
        agent.hear_out()

    def second(agent: PeerStream) -> Iterator[Fields]:
        (at,) = agent.hear("hello").positions
        assert at.round == 2
        yield {"welcome": WELCOME | {"positions": [_position(at, 1)]}}
        started = agent.hear("target_started")
        heard.append(_round(agent, 2))
        yield {"barrier": {"request_id": 1, "targets": [started.target]}}
        heard.append(_round(agent, 3))
        yield {"ack": {"positions": [_position(started, 3)]}}
        last_round_is_durable.set()
        assert agent.hear("target_ended").incarnation == started.incarnation
        yield {"ack": {"positions": [_position(started, 3)]}}
        agent.hear_out()

    agent = _play(contract, recording, [first, second], last_round_is_durable)

    assert heard == [(set(written), set(vanished)) for written, vanished in ROUNDS]
    assert len(agent.events("connected")) == 2
    assert not agent.events("resynchronising")
    assert not agent.events("collector_unreachable")
    assert "Traceback" not in agent.log


def test_what_is_unknown_is_logged_once(recording: Path) -> None:
    """And the stream goes on, before the Welcome and after it."""
    over = threading.Event()

    def script(agent: PeerStream) -> Iterator[Fields]:
        agent.hear("hello")
        yield {"welcome": WELCOME}
        started = agent.hear("target_started")
        _round(agent, 1)
        yield {"ack": {"positions": [_position(started, 1)]}}
        over.set()
        agent.hear("target_ended")
        yield {"ack": {"positions": [_position(started, 1)]}}
        agent.hear_out()

    agent = _play(LaterContract(), recording, [script], over)

    (ignored,) = agent.events("message_ignored")
    assert sorted(ignored["fields"]) == [LATER_NUMBER, LATER_NUMBER + 1]
    assert len(agent.events("connected")) == 1


def _play(contract: Contract, recording: Path, scripts: list[Script], over: threading.Event) -> Service:
    """Run an agent whose rounds come by barriers only, and stop it when all but its end is over."""
    collector = PeerCollector(contract, scripts)
    with served(contract.served("IngestService", Stream=collector.stream)) as address:
        agent = start_agent(address, "--backend", f"replay:{recording}", "--speed", "0.001")
        try:
            collector.wait_for(over)
            assert agent.stop() == 0
            collector.wait()
        finally:
            agent.close()
    return agent


def _round(agent: PeerStream, number: int) -> tuple[set[int], set[int]]:
    """Hear a round, which must be the next one; its written and vanished pages."""
    batch = agent.hear("write_protect_batch")
    assert (batch.first_round, batch.last_round, batch.part_count) == (number, number, 1)
    return set(decode(batch.written)), set(decode(batch.vanished))


def _position(of: Any, round_: int) -> Fields:  # noqa: ANN401 (classes made when the tests run have no types)
    """Give a position in the incarnation that a message of the agent is about."""
    return {"target": of.target, "incarnation": of.incarnation, "round": round_}
