"""Cursors that retention has let go of, as readers meet them: an error with a reason, and never a smaller set."""

import urllib.request
from pathlib import Path

import grpc
import pytest

from tests.integration.collector.mover import Mover, close
from tests.integration.collector.wire import Agent, Answer, Reader, batch, position, refused, start, target
from tests.support.collector import HASTY, running_collector
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.ingest_pb2 import TargetEnded
from wetink.v1.types_pb2 import END_REASON_EXITED

NAME = "host-1/1@100"
ONE = target()
OLD = target(2)
OTHER, OTHER_NAME = target(2), "host-1/2@100"


def oracle(after_round: int, last_round: int) -> tuple[set[int], set[int]]:
    """Give what is written and what vanished: round n writes page n, and lets n - 1 vanish where n is even."""
    written: set[int] = set()
    vanished: set[int] = set()
    for number in range(after_round + 1, last_round + 1):
        gone = {number - 1} if number % 2 == 0 else set()
        written, vanished = (written - gone) | {number}, (vanished - {number}) | gone
    return written, vanished


def rounds(of: types_pb2.Target, first: int, last: int) -> list[ingest_pb2.WriteProtectBatch]:
    """Give rounds of the oracle's."""
    return [batch(of, n, written=[n], vanished=[] if n % 2 else [n - 1]) for n in range(first, last + 1)]


def wait_until_expired(reader: Reader, name: str, cursor: str, after_round: int) -> None:
    """Ask since a cursor until it is refused; until then each answer has all that the oracle's has."""
    with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"):
        while (answer := reader.dirty(name, cursor=cursor)).summary.targets:
            check_holds(answer, name, after_round)


def check_holds(answer: Answer, name: str, after_round: int) -> None:
    """Compare an answer with the oracle's: never fewer dirty pages, and no others where it is exact."""
    (status,) = answer.summary.targets
    written, vanished = oracle(after_round, status.round)
    told = answer.written.get(name, set()), answer.vanished.get(name, set())
    assert written | vanished <= told[0] | told[1]
    assert not status.exact or told == (written, vanished)


@pytest.mark.parametrize("keeps", ["file", "memory"])
def test_cursor_older_than_the_age_expires(tmp_path: Path, keeps: str) -> None:
    """Each answer is whole until the cursor is refused; who asks without one, or with a newer one, goes on."""
    data = tmp_path if keeps == "file" else None
    options = ["--retention-age", "1s"]
    with running_collector(data, options=options, module=HASTY) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        reader = Reader(collector.address)
        old = reader.dirty(NAME).summary.cursor
        agent.say(*(batch(ONE, n, written=[n], vanished=[] if n % 2 else [n - 1]) for n in range(2, 60)))
        agent.acknowledged(ONE, 59)
        last = reader.dirty(NAME).summary.cursor

        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED") as refusal:
            while (answer := reader.dirty(NAME, cursor=old)).summary.targets:
                assert (answer.written[NAME], answer.vanished[NAME]) == oracle(1, 59)

        assert refusal.metadata == {"targets": NAME, "target_count": "1"}
        assert "without a cursor" in refusal.message
        whole = reader.dirty(NAME)
        assert (whole.written, whole.vanished) == ({NAME: oracle(0, 59)[0]}, {})
        assert whole.summary.complete
        agent.say(batch(ONE, 60, written=[60], vanished=[59]))
        agent.acknowledged(ONE, 60)
        newer = reader.dirty(NAME, cursor=last)
        assert (newer.written, newer.vanished, newer.summary.exact) == ({NAME: {60}}, {NAME: {59}}, True)


def test_more_than_the_size_lets_go_of_the_ended_and_then_of_old_cursors(tmp_path: Path) -> None:
    """The last set of an exited process goes first; of a living one everything populated stays."""
    options = ["--retention-size", "2MiB"]
    with running_collector(tmp_path, options=options, module=HASTY) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(OLD, range(0, 1 << 20, 3))
        agent.say(TargetEnded(target=OLD, incarnation=1, reason=END_REASON_EXITED))
        agent.deliver(ONE, [1])
        reader = Reader(collector.address)
        old = reader.dirty(NAME).summary.cursor
        for number in range(2, 100):
            agent.say(batch(ONE, number, written=range(number % 6, 1 << 20, 7)))
        agent.acknowledged(ONE, 99)

        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"):
            while reader.dirty(NAME, cursor=old).summary.targets:
                pass

        assert [found.name for found in reader.targets()] == [NAME]
        assert reader.dirty(NAME).written == {NAME: {page for page in range(1 << 20) if page % 7 != 6}}
        assert collector.events("store_too_large") == []


def test_what_living_targets_need_is_kept_over_the_size(tmp_path: Path) -> None:
    """It is said once that it is too much, and nothing is lost by it."""
    options = ["--retention-size", "1MiB"]
    with running_collector(tmp_path, options=options, module=HASTY) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, *(range(number, 1 << 21, 17) for number in range(17)))
        collector.wait_for_log("store_too_large")

        assert Reader(collector.address).dirty(NAME).written == {NAME: set(range(1 << 21))}
    assert len(collector.events("store_too_large")) == 1


def test_what_a_session_needs_stays_as_long_as_its_lease(tmp_path: Path) -> None:
    """
    Whatever its age, also after a restart of the collector. What is older goes, and what others held of that time; and
    when the lease is over, all of it does.
    """
    options = ["--retention-age", "1s"]
    with running_collector(tmp_path, options=options, module=HASTY) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        agent.say(*rounds(ONE, 2, 8))
        agent.acknowledged(ONE, 8)
        reader, mover = Reader(collector.address), Mover(collector.address, NAME)
        old = reader.dirty(NAME).summary.cursor
        mover.open(lease_ms=3_600_000)
        mover.begin("first")
        agent.say(*rounds(ONE, 9, 15))
        agent.acknowledged(ONE, 15)
        first = close(mover, agent, "first", 16, [16], [15])
        agent.deliver(OTHER, *([n] for n in range(1, 17)))
        other = reader.dirty(OTHER_NAME).summary.cursor
        agent.say(*rounds(ONE, 17, 60), *rounds(OTHER, 17, 60))
        agent.acknowledged(OTHER, 60)

        wait_until_expired(reader, OTHER_NAME, other, 16)
        wait_until_expired(reader, NAME, old, 8)

        assert oracle(0, 16)[0] <= mover.get("first").written[NAME]
        mover.begin("second", "first")
        close(mover, agent, "second", 61, [61])
        second = mover.get("second")
        check_holds(second, NAME, 16)
        assert second.summary.exact
    with running_collector(tmp_path, options=options, module=HASTY) as collector, Agent(collector.address) as agent:
        agent.hello(position(ONE, 61), position(OTHER, 60))
        reader, mover = Reader(collector.address), Mover(collector.address, NAME)
        other = reader.dirty(OTHER_NAME).summary.cursor
        agent.say(start(ONE), start(OTHER), *rounds(ONE, 62, 80), *rounds(OTHER, 61, 80))
        agent.acknowledged(OTHER, 80)

        wait_until_expired(reader, OTHER_NAME, other, 60)

        check_holds(mover.get("second"), NAME, 16)
        mover.begin("third", "second")
        close(mover, agent, "third", 81, [81])
        check_holds(mover.get("third"), NAME, 61)
        assert [one.round for one in mover.open(lease_ms=1)] == ["first", "second", "third"]
        wait_until_expired(reader, NAME, first.cursor, 16)


def test_session_loses_its_rounds_only_where_they_take_far_too_much_room(tmp_path: Path) -> None:
    """First those go that nobody needs. What a session needs goes beyond a quarter more, and then it is said whose."""
    options = ["--retention-size", "1MiB", "--metrics", "127.0.0.1:0"]
    with running_collector(tmp_path, options=options, module=HASTY) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1], [2])
        agent.deliver(OTHER, [1], [2], [3])
        reader, mover = Reader(collector.address), Mover(collector.address, NAME)
        other = reader.dirty(OTHER_NAME).summary.cursor
        mover.open(lease_ms=3_600_000)
        mover.begin("first")
        first = close(mover, agent, "first", 3, [3])
        written: set[int] = set()

        def write(number: int, *whose: types_pb2.Target) -> None:
            pages = range(number % 6, 1 << 18, 7)
            written.update(pages)
            agent.say(*(batch(of, number, written=pages) for of in whose))
            agent.acknowledged(whose[-1], number)

        number = 4
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"):
            while reader.dirty(OTHER_NAME, cursor=other).summary.targets:
                write(number, ONE, OTHER)
                number += 1
        mover.begin("second", "first")
        close(mover, agent, "second", number, [1])
        assert mover.get("second").written == {NAME: written | {1}}
        assert collector.events("session_rounds_expired") == []

        while not (told := collector.events("session_rounds_expired")):
            number += 1
            write(number, ONE)
        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"):
            while reader.dirty(NAME, cursor=first.cursor).summary.targets:
                pass

        with refused(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"):
            mover.get("second")
        assert (told[0]["target"], told[0]["sessions"], told[0]["session_count"]) == (NAME, ["move-7"], 1)
        assert len(collector.events("session_rounds_expired")) == 1
        with urllib.request.urlopen(f"http://{collector.metrics_address}/metrics", timeout=20) as response:
            assert b"\nwetink_session_rounds_expired_total 1.0\n" in response.read()
        mover.begin("anew")
        close(mover, agent, "anew", number + 1, [1])
        assert written <= mover.get("anew").written[NAME]
