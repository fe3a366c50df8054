"""What one agent may take: its stream is read at its rate, and a target over a limit is refused, alone and in words."""

import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pyroaring import BitMap64

from tests.integration.collector.wire import Agent, Reader, batch, meanwhile, position, refused, start, target
from tests.support.collector import HASTY, CollectorProcess, running_collector
from wetink.v1 import types_pb2
from wetink.v1.dirty_pb2 import TrackRequest
from wetink.v1.ingest_pb2 import CommandResult, TargetEnded

PAGES = 1500

MIB_ROUND = range(0, 500_000 * 17, 17)
"""Pages of a round that takes 1 MB, and therefore over half a second of the rate."""

ENDED = types_pb2.INCOMPLETE_REASON_TARGET_ENDED


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorProcess]:
    """Give a collector with limits that are soon met. Each test has a host of its own."""
    options = ["--agent-targets", "2", "--target-pages", str(PAGES), "--metrics", "127.0.0.1:0"]
    with running_collector(tmp_path_factory.mktemp("data"), options=options) as collector:
        yield collector
        assert "Traceback" not in collector.log, collector.log


@pytest.fixture
def reader(limited: CollectorProcess) -> Iterator[Reader]:
    """Give an orchestrator."""
    reader = Reader(limited.address)
    with reader.channel:
        yield reader


def refusals(collector: CollectorProcess, limit: str) -> float:
    """Give how often a limit was met."""
    with urllib.request.urlopen(f"http://{collector.metrics_address}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    (line,) = (line for line in lines if line.startswith(f'wetink_agents_limited_total{{limit="{limit}"}}'))
    return float(line.split()[1])


def test_target_over_the_number_is_not_covered_until_another_ends(
    limited: CollectorProcess, reader: Reader, host: str
) -> None:
    """
    Its agent is told, in the stream that goes on for the others; answers about the host say that they are not complete,
    and which target is why. When there is room it is taken as a new incarnation, and answers are complete again.
    """
    one, two, three = (target(pid, host_id=host) for pid in (1, 2, 3))
    before = refusals(limited, "targets")
    with Agent(limited.address, host) as agent:
        agent.hello(can_be_refused=True)
        agent.deliver(one, [1])
        agent.deliver(two, [2])
        agent.say(start(three), batch(three, 1, written=[3]))
        told = agent.hear("target_refused").target_refused
        assert (told.target, told.incarnation, told.reason) == (three, 1, "TARGETS_TOO_MANY")
        assert told.retry_after_ms >= 1000
        assert f"{host}/3@100 is not covered" in told.message
        assert refusals(limited, "targets") == before + 1
        agent.say(batch(one, 2, written=[11]))
        agent.acknowledged(one, 2)

        answer = reader.dirty(hosts=[host])
        assert answer.written == {f"{host}/1@100": {1, 11}, f"{host}/2@100": {2}}
        assert not answer.summary.complete
        (bad,) = (part for part in answer.summary.targets if not part.complete)
        assert (bad.name, bad.incomplete_reason, bad.end_reason) == (
            f"{host}/3@100",
            ENDED,
            types_pb2.END_REASON_REFUSED,
        )
        assert "--agent-targets" in bad.incomplete_message
        assert not reader.dirty(f"{host}/3").summary.complete
        assert not reader.dirty(cgroups=["/test"], hosts=[host]).summary.complete
        # Asked again since its own cursor, the answer still says so.
        assert not reader.dirty(hosts=[host], cursor=answer.summary.cursor).summary.complete
        assert "not covered" in reader.target(f"{host}/3").end_message

        agent.say(TargetEnded(target=one, incarnation=1, reason=types_pb2.END_REASON_EXITED))
        agent.say(start(three, incarnation=2), batch(three, 1, written=[33], incarnation=2))
        agent.acknowledged(three, 1, incarnation=2)
        answer = reader.dirty(hosts=[host])
        assert answer.written == {f"{host}/2@100": {2}, f"{host}/3@100": {33}}
        assert answer.summary.complete


def test_target_with_too_many_pages_is_refused_in_the_middle(
    limited: CollectorProcess, reader: Reader, host: str
) -> None:
    """
    A barrier that waits for it is answered at once and not complete, what was there before can be read by its name, and
    the other target's round is in the answer.
    """
    large, small = target(1, host_id=host), target(2, host_id=host)
    before = refusals(limited, "pages")
    with Agent(limited.address, host) as agent:
        agent.hello(can_be_refused=True)
        agent.deliver(large, [1])
        agent.deliver(small, [2])
        began = time.monotonic()

        def answer_barrier() -> None:
            asked = agent.hear("barrier").barrier
            agent.harvest(asked, batch(large, 2, written=range(PAGES + 1)), batch(small, 2, written=[22]))

        with meanwhile(answer_barrier):
            answer = reader.dirty(hosts=[host], barrier=True, timeout_ms=30_000)
        assert time.monotonic() - began < 20
        assert answer.written == {f"{host}/2@100": {2, 22}}
        assert not answer.summary.complete
        assert [part.complete for part in answer.summary.targets] == [False, True]
        assert reader.dirty(f"{host}/1").written == {f"{host}/1@100": {1}}
        assert refusals(limited, "pages") == before + 1
        assert agent.hear("target_refused").target_refused.reason == "PAGES_TOO_MANY"
        # What is on its way is thrown away, and acknowledged: the agent need not keep it.
        agent.say(batch(large, 3, written=[5]))
        agent.acknowledged(large, 3)
        # Once it has exited nobody misses it, and no copy of what was taken of it goes on.
        cursor = reader.dirty(f"{host}/1").summary.cursor
        agent.say(TargetEnded(target=large, incarnation=1, reason=types_pb2.END_REASON_EXITED))
        agent.acknowledged(large, 0)
        answer = reader.dirty(hosts=[host])
        assert answer.written == {f"{host}/2@100": {2, 22}}
        assert answer.summary.complete
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            reader.dirty(f"{host}/1", cursor=cursor)


def test_agent_that_knows_no_refusals_goes_on_without_the_target(
    limited: CollectorProcess, reader: Reader, host: str
) -> None:
    """Its stream ends with what an older one gives a target up for, and is not ended again for the same one."""
    one, two, three = (target(pid, host_id=host) for pid in (1, 2, 3))
    with Agent(limited.address, host) as agent:
        agent.hello()
        agent.deliver(one, [1])
        agent.deliver(two, [2])
        agent.say(start(three))
        code, reason, metadata = agent.error()
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ROUND_TOO_LARGE")
    assert (metadata["target"], metadata["incarnation"]) == (f"{host}/3@100", "1")

    with Agent(limited.address, host) as agent:
        welcome = agent.hello(position(one, 1), position(two, 1), position(three, 0))
        assert len(welcome.positions) == 3
        agent.say(start(one), start(two), start(three))
        agent.say(TargetEnded(target=three, incarnation=1, reason=types_pb2.END_REASON_FAILED))
        agent.say(batch(one, 2, written=[11]))
        agent.acknowledged(one, 2)
        assert not reader.dirty(hosts=[host]).summary.complete
        # Who has not heard is told again, and not acknowledged for ever.
        agent.say(batch(three, 1, written=[3]))
        assert agent.error()[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ROUND_TOO_LARGE")


def test_track_of_one_target_too_many_fails_in_words(limited: CollectorProcess, reader: Reader, host: str) -> None:
    """RESOURCE_EXHAUSTED with the sentence; the process is not wanted afterwards."""
    with Agent(limited.address, host) as agent:
        agent.hello(can_be_refused=True)
        agent.deliver(target(1, host_id=host), [1])
        agent.deliver(target(2, host_id=host), [2])

        def answer_track() -> None:
            asked = agent.hear("track").track
            three = target(3, host_id=host)
            agent.say(start(three), batch(three, 1, written=[3]))
            agent.say(CommandResult(request_id=asked.request_id, position=position(three, 1)))

        with (
            meanwhile(answer_track),
            refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TARGET_REFUSED") as refusal,
        ):
            reader.stub.Track(TrackRequest(host_id=host, pid=3), timeout=20)
        assert "--agent-targets" in refusal.message
    with Agent(limited.address, host) as agent:
        assert not agent.hello(position(target(1, host_id=host), 1), position(target(2, host_id=host), 1)).wanted


def test_agent_over_its_rate_is_read_more_slowly_and_loses_nothing(tmp_path: Path) -> None:
    """
    Its rounds take as long as they must at the rate and are all there. While one comes in many parts, an Ack without
    positions says that the collector lives. Another agent's rounds do not wait; and the credit is small, so that a
    barrier's answer does not wait behind much.
    """
    one, other = target(host_id="busy"), target(host_id="other")
    options = ["--agent-rate", "1", "--metrics", "127.0.0.1:0"]
    parts = [range(start, start + len(MIB_ROUND) * 17, 17) for start in (1, 2, 3)]
    # All of them made before the first is said: an agent that made them slowly would keep to the rate by itself.
    said = [batch(one, number, written=MIB_ROUND) for number in (1, 2, 3)]
    said += [batch(one, 4, written=written, part=part, part_count=len(parts)) for part, written in enumerate(parts)]
    with running_collector(tmp_path / "data", options=options, module=HASTY) as collector:
        with Agent(collector.address, "busy") as agent, Agent(collector.address, "other") as quiet:
            assert agent.hello().in_flight_bytes_max == 1 << 20
            quiet.hello()
            quiet.deliver(other, [1])
            agent.say(start(one))
            began = time.monotonic()
            agent.say(*said)
            heard: list[list[int]] = []
            listening = threading.Thread(target=lambda: listen(agent, heard, until_round=4))
            listening.start()
            number = 1
            while listening.is_alive():
                number += 1
                quiet.say(batch(other, number, written=[number]))
                quiet.acknowledged(other, number)
                time.sleep(0.05)
            seconds = time.monotonic() - began
            reader = Reader(collector.address)
            with reader.channel:
                assert reader.pages("busy/1") == BitMap64.union(*map(BitMap64, (MIB_ROUND, *parts)))
        # The burst of two seconds is free, and nobody waits after the last message.
        assert seconds > len(MIB_ROUND) * 2 * 5 / 2**20 - 2 - 0.5
        assert [] in heard
        assert refusals(collector, "bytes") >= 3
        assert len(collector.events("agent_slowed")) == 1
        assert number > 5


def listen(agent: Agent, heard: list[list[int]], *, until_round: int) -> None:
    """Note the rounds in each acknowledgement, until one of them is acknowledged."""
    while [until_round] not in heard:
        heard.append([one.round for one in agent.hear("ack").ack.positions])
