"""Cursors that retention has let go of, as readers meet them: an error with a reason, and never a smaller set."""

from pathlib import Path

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, refused, target
from tests.support.collector import HASTY, running_collector
from wetink.v1.ingest_pb2 import TargetEnded
from wetink.v1.types_pb2 import END_REASON_EXITED

NAME = "host-1/1@100"
ONE = target()
OLD = target(2)


def oracle(after_round: int, last_round: int) -> tuple[set[int], set[int]]:
    """Give what is written and what vanished: round n writes page n, and lets n - 1 vanish where n is even."""
    written: set[int] = set()
    vanished: set[int] = set()
    for number in range(after_round + 1, last_round + 1):
        gone = {number - 1} if number % 2 == 0 else set()
        written, vanished = (written - gone) | {number}, (vanished - {number}) | gone
    return written, vanished


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
        agent.deliver(ONE, *(range(number, 1 << 22, 11) for number in range(11)))
        collector.wait_for_log("store_too_large")

        assert Reader(collector.address).dirty(NAME).written == {NAME: set(range(1 << 22))}
    assert len(collector.events("store_too_large")) == 1
