"""What is acknowledged is there after any crash; what is damaged or cannot be written is said to be so."""

import random
import resource
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.integration.collector.mover import Mover, close
from tests.integration.collector.wire import Agent, Reader, batch, position, refused, start, target
from tests.support.collector import CollectorProcess, running_collector
from wetink.v1.types_pb2 import END_REASON_LOST, INCOMPLETE_REASON_AGENT_DISCONNECTED, INCOMPLETE_REASON_TARGET_ENDED

NAME = "host-1/1@100"
ONE = target()


def test_acknowledged_rounds_survive_sigkill(tmp_path: Path) -> None:
    """Killed at the moment of an acknowledgement, ten times in a row: each round that was acknowledged is there."""
    expected: set[int] = set()
    last = 0
    for life in range(10):
        with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
            if life:
                answer = Reader(collector.address).dirty(NAME)
                assert answer.summary.targets[0].round >= last
                assert expected <= answer.written[NAME]
                assert answer.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_AGENT_DISCONNECTED
            welcome = agent.hello(position(ONE, last))
            last = welcome.positions[0].round if welcome.positions else 0
            agent.say(start(ONE))
            sent = last + random.Random(life).randrange(5, 60)  # noqa: S311 (no secret)
            for number in range(last + 1, sent + 1):
                agent.say(batch(ONE, number, written=range(number * 1000, number * 1000 + 500)))
            while (last := agent.hear("ack").ack.positions[0].round) < sent - 3:
                pass
            collector.kill()
            expected |= {page for number in range(1, last + 1) for page in range(number * 1000, number * 1000 + 500)}


def test_cursor_goes_on_across_a_crash(tmp_path: Path) -> None:
    """The agent resumes, the reader goes on, and the union of its answers is everything."""
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1], [2])
        first = Reader(collector.address).dirty(NAME)
        collector.kill()
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        (durable,) = agent.hello(position(ONE, 5)).positions
        agent.say(start(ONE), *(batch(ONE, number, written=[number]) for number in range(durable.round + 1, 6)))
        agent.acknowledged(ONE, 5)
        second = Reader(collector.address).dirty(NAME, cursor=first.summary.cursor)

    assert second.written == {NAME: {3, 4, 5}}
    assert second.summary.complete


def test_cursor_of_a_collector_in_memory_does_not_survive_it() -> None:
    """Another life is another store: the reader copies afresh."""
    with running_collector() as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        cursor = Reader(collector.address).dirty(NAME).summary.cursor
        address = collector.address
    with running_collector(listen=address) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1])

        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OTHER_STORE"):
            Reader(collector.address).dirty(NAME, cursor=cursor)


def test_all_that_is_known_survives_a_restart(tmp_path: Path) -> None:
    """Hosts, targets, their ends and what is wanted; only the connection does not."""
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1], [2, 3])
        reader = Reader(collector.address)
        before, host = reader.target(NAME), reader.hosts()[0]
        agent.end()
    with running_collector(tmp_path) as collector:
        reader = Reader(collector.address)
        after, host_after = reader.target(NAME), reader.hosts()[0]

    before.live = False
    assert after == before
    assert (host_after.host_id, host_after.boot_id, host_after.agent_version) == ("host-1", "boot-1", "1.2.3")
    assert not host_after.connected
    assert host_after.last_seen_time_ns >= host.last_seen_time_ns


def test_older_copy_of_the_store_knows_no_cursor_of_the_newer(tmp_path: Path) -> None:
    """
    What was answered, and what a session came to, after the copy was made is refused, before the agent is back and
    after it. Welcome says how far the copy is, so that an agent that has let go of more begins anew.
    """
    data, copy = tmp_path / "data", tmp_path / "copy"
    with running_collector(data) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1], [2])
        old = Reader(collector.address).dirty(NAME).summary.cursor
        mover = Mover(collector.address, NAME)
        mover.open()
        mover.begin("first")
        close(mover, agent, "first", 3, [3])
        agent.end()
    shutil.copytree(data, copy)
    with running_collector(data) as collector, Agent(collector.address) as agent:
        agent.hello(position(ONE, 3))
        agent.say(start(ONE), batch(ONE, 4, written=[4]))
        agent.acknowledged(ONE, 4)
        mover = Mover(collector.address, NAME)
        mover.begin("second", "first")
        close(mover, agent, "second", 5, [5])
        newer = Reader(collector.address).dirty(NAME).summary.cursor
        collector.kill()
    shutil.rmtree(data)
    shutil.copytree(copy, data)

    with running_collector(data) as collector, Agent(collector.address) as agent:
        reader, mover = Reader(collector.address), Mover(collector.address, NAME)
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            reader.dirty(NAME, cursor=newer)
        assert reader.dirty(NAME, cursor=old).written == {NAME: {3}}
        assert mover.get("first").written == {NAME: {1, 2, 3}}
        with refused(grpc.StatusCode.NOT_FOUND, "ROUND_UNKNOWN"):
            mover.get("second")
        assert [one.round for one in agent.hello(position(ONE, 5)).positions] == [3]
        agent.say(start(ONE, incarnation=2))
        agent.say(*(batch(ONE, n, written=[n, 7], incarnation=2) for n in range(1, 7)))
        agent.acknowledged(ONE, 6, incarnation=2)
        for cursor in (old, newer):
            with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
                reader.dirty(NAME, cursor=cursor)
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            mover.get("first")
        mover.begin("second", "first")
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            mover.close("second")


FLIP = "UPDATE block SET written = substr(written, 1, length(written) - 1) || x'77' WHERE last_round = 2"
REMOVE = "DELETE FROM block WHERE last_round = 2"
CUT = "DELETE FROM block WHERE last_round = 3"


def damage(data: Path, statement: str = FLIP) -> None:
    """Change the pages of one round behind the collector's back."""
    with closing(sqlite3.connect(data / "wetink.sqlite3", isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount == 1


@pytest.mark.parametrize("statement", [FLIP, REMOVE, CUT], ids=["byte changed", "round removed", "last round removed"])
def test_damaged_record_is_never_answered(collector: CollectorProcess, statement: str) -> None:
    """
    The incarnation has ended for every cursor, the answer without one is not complete, and the agent is sent back to
    begin a new incarnation.
    """
    assert collector.data
    with Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1], [2], [3])
        reader = Reader(collector.address)
        cursor = reader.barrier(NAME, timeout_ms=1).cursor
        damage(collector.data, statement)

        answer = reader.dirty(NAME)

        assert answer.written == {}
        assert answer.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_TARGET_ENDED
        assert answer.summary.targets[0].end_reason == END_REASON_LOST
        assert "damaged" in answer.summary.targets[0].incomplete_message
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            reader.dirty(NAME, cursor=cursor)
        agent.hear("barrier")
        assert agent.error()[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "ROUND_GAP")
    with Agent(collector.address) as agent:
        assert not agent.hello(position(ONE, 3)).positions
        agent.say(start(ONE, incarnation=2), batch(ONE, 1, written=[7], incarnation=2))
        agent.acknowledged(ONE, 1, incarnation=2)

        assert reader.dirty(NAME).written == {NAME: {7}}
        assert reader.dirty(NAME).summary.complete


def test_damage_is_found_by_a_reader_with_a_cursor_too(collector: CollectorProcess) -> None:
    """It gets the error, and not a smaller set."""
    assert collector.data
    with Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        reader = Reader(collector.address)
        cursor = reader.dirty(NAME).summary.cursor
        agent.say(batch(ONE, 2, written=[2]), batch(ONE, 3, written=[3]))
        agent.acknowledged(ONE, 3)
        damage(collector.data)

        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            reader.dirty(NAME, cursor=cursor)


def test_damage_is_found_by_a_merge(tmp_path: Path) -> None:
    """Nobody has to ask. What is read back is what the collector does not have any more: of its life before, say."""
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1], [2], [3])
    damage(tmp_path)
    with running_collector(tmp_path) as collector:
        with Agent(collector.address) as agent:
            agent.hello(position(ONE, 3))
            agent.say(start(ONE), *(batch(ONE, number, written=[number]) for number in range(4, 30)))

            assert agent.error()[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "ROUND_GAP")
        # The stream ends first, so that nothing more is appended; the next Hello waits for what was queued.
        with Agent(collector.address) as agent:
            assert not agent.hello(position(ONE, 29)).positions
        assert collector.events("record_damaged")
        assert Reader(collector.address).target(NAME).end_reason == END_REASON_LOST


def test_damaged_file_is_set_aside_and_everybody_begins_afresh(tmp_path: Path) -> None:
    """The collector starts, with an empty store: the agent is to begin anew, and no old cursor is answered."""
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, *(range(number, 1 << 18, 5) for number in range(5)))
        cursor = Reader(collector.address).dirty(NAME).summary.cursor
        agent.end()
    with (tmp_path / "wetink.sqlite3").open("r+b") as file:
        file.seek(12 << 14)
        file.write(b"\xa5" * (10 << 14))

    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        assert collector.events("store_set_aside")
        reader = Reader(collector.address)
        assert [host.host_id for host in reader.hosts()] == ["host-1"]
        assert not agent.hello(position(ONE, 5)).positions
        agent.say(start(ONE, incarnation=2), batch(ONE, 1, written=[7], incarnation=2))
        agent.acknowledged(ONE, 1, incarnation=2)
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OTHER_STORE"):
            reader.dirty(NAME, cursor=cursor)
        assert reader.dirty(NAME).written == {NAME: {7}}


def health(address: str) -> int:
    """Ask for the health of the whole."""
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        status: int = check(HealthCheckRequest(), timeout=20).status
        return status


def test_full_disk_acknowledges_nothing_and_recovers(collector: CollectorProcess) -> None:
    """
    While nothing can be written: streams end with UNAVAILABLE, health says NOT_SERVING, answers say that they are not
    complete. When there is room again: everything goes on by itself, and what was acknowledged before is there.
    """
    reader = Reader(collector.address)
    with Agent(collector.address) as agent, Agent(collector.address, "idle-host") as idle:
        idle.hello()
        agent.hello()
        agent.deliver(ONE, [1])
        assert collector.data
        _, hard = resource.prlimit(collector.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(collector.pid, resource.RLIMIT_FSIZE, (4096, hard))
        agent.say(*(batch(ONE, number, written=range(0, 1 << 16, 3)) for number in range(2, 20)))
        for each in (agent, idle):
            assert each.error()[:2] == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    collector.wait_for_log("store_failed")
    assert health(collector.address) == HealthCheckResponse.NOT_SERVING
    answer = reader.dirty(NAME)
    assert (answer.written, answer.summary.complete) == ({NAME: {1}}, False)
    with Agent(collector.address) as agent, refused(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"):
        agent.hello(position(ONE, 19))

    resource.prlimit(collector.pid, resource.RLIMIT_FSIZE, (hard, hard))
    collector.wait_for_log("store_recovered")

    assert health(collector.address) == HealthCheckResponse.SERVING
    assert len(collector.events("store_failed")) == 1
    with Agent(collector.address) as agent:
        assert [one.round for one in agent.hello(position(ONE, 19)).positions] == [1]
        agent.say(start(ONE), batch(ONE, 2, 19, written=[2]))
        agent.acknowledged(ONE, 19)
    assert reader.dirty(NAME).written == {NAME: {1, 2}}


@pytest.mark.timeout(180)
def test_readers_and_merges_do_not_disturb_each_other(collector: CollectorProcess) -> None:
    """While rounds come and are merged, each answer is the union up to its round, and cursors go on."""
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        reader = Reader(collector.address)
        cursor, seen = "", set[int]()
        while not done.is_set():
            answer = reader.dirty(NAME, cursor=cursor)
            cursor = answer.summary.cursor
            seen |= answer.written.get(NAME, set())
            last = answer.summary.targets[0].round
            if seen != set(range(1, last + 1)):
                failures.append(f"at round {last}: {sorted(seen ^ set(range(1, last + 1)))}")
                return

    with Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(2, 1500):
            agent.say(batch(ONE, number, written=[number]))
            if number % 50 == 0:
                agent.acknowledged(ONE, number)
                time.sleep(0.01)
        agent.acknowledged(ONE, 1499)
        done.set()
        for thread in threads:
            thread.join(60)

    assert failures == []


def test_incarnations_that_follow_each_other_are_not_taken_for_damage(collector: CollectorProcess) -> None:
    """A read that meets the start of a newer incarnation answers from that one, wholly, and harms nobody."""
    failures: list[object] = []
    done = threading.Event()

    def read() -> None:
        reader = Reader(collector.address)
        while not done.is_set():
            answer = reader.dirty(NAME)
            (status,) = answer.summary.targets
            expected = {status.incarnation * 10 + number for number in range(1, status.round + 1)}
            if answer.written.get(NAME, set()) != expected:
                failures.append(answer)

    with Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE)
        agent.say(batch(ONE, 1, written=[11]))
        agent.acknowledged(ONE, 1)
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for life in range(2, 200):
            agent.say(start(ONE, incarnation=life))
            agent.say(*(batch(ONE, n, written=[life * 10 + n], incarnation=life) for n in range(1, 4)))
            agent.acknowledged(ONE, 3, incarnation=life)
        done.set()
        for thread in threads:
            thread.join(60)
        agent.end()

    assert failures == []
    assert collector.events("record_damaged") == []
