"""Many at once, and some who behave badly: the service stays up for the others."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, channel, position, start, target
from tests.support.amounts import amount
from tests.support.collector import CollectorProcess, running_collector
from wetink.v1 import dirty_pb2 as pb
from wetink.v1.dirty_pb2_grpc import DirtyServiceStub

pytestmark = pytest.mark.timeout(300)

TARGETS: Final = amount(gate=2_000, soak=10_000)
STREAMS: Final = amount(gate=300, soak=1_000)
AGENTS: Final = amount(gate=16, soak=64)

BARRIER_SECONDS_MAX: Final = 5.0
"""How long the one who behaves well may wait: its barrier's own time."""


@pytest.fixture
def collector() -> Iterator[CollectorProcess]:
    """Give a collector of the test's own, which ends in good order."""
    with running_collector() as one:
        yield one
        assert "Traceback" not in one.log, one.log


def check_served(collector: CollectorProcess, what: str) -> None:
    """Deliver a round of another host, and read it by a barrier."""
    one = target(host_id="well")
    began = time.monotonic()
    with Agent(collector.address, "well") as agent:
        agent.hello()
        agent.deliver(one, [1])
        asking = Reader(collector.address)
        answering = threading.Thread(
            target=lambda: agent.harvest(agent.hear("barrier").barrier, batch(one, 2, written=[2]))
        )
        answering.start()
        answer = asking.dirty("well/1", barrier=True)
        answering.join()
        agent.end()
        asking.channel.close()

    assert answer.written == {"well/1@100": {1, 2}}
    assert answer.summary.complete
    print(f"{what}: another host was served in {time.monotonic() - began:.2f} s")  # noqa: T201 (figures, for pytest -s)


@pytest.mark.soak
def test_thousands_of_targets_announced_at_once(collector: CollectorProcess) -> None:
    """By one agent, with a round each: all of them are there, and another host does not wait for them."""
    with Agent(collector.address, "many") as agent:
        agent.hello()
        for pid in range(1, TARGETS + 1):
            agent.say(start(target(pid, host_id="many")), batch(target(pid, host_id="many"), 1, written=[pid]))
        check_served(collector, f"{TARGETS} targets announced")
        agent.acknowledged(target(TARGETS, host_id="many"), 1)
        asking = Reader(collector.address)
        found = asking.dirty(f"many/{TARGETS}", f"many/{TARGETS // 2}")
        asking.channel.close()

        assert sorted(map(sorted, found.written.values())) == [[TARGETS // 2], [TARGETS]]


@pytest.mark.soak
def test_agents_that_come_back_in_the_same_second(collector: CollectorProcess) -> None:
    """Each finds what it had delivered, and goes on after it."""
    with ExitStack() as first:
        for number in range(AGENTS):
            agent = first.enter_context(Agent(collector.address, f"host-{number}"))
            agent.hello()
            agent.deliver(target(host_id=f"host-{number}"), [1])
    began = time.monotonic()
    failures: list[str] = []

    def come_back(number: int) -> None:
        one = target(host_id=f"host-{number}")
        with Agent(collector.address, f"host-{number}") as agent:
            welcome = agent.hello(position(one, 1))
            if [known.round for known in welcome.positions] != [1]:
                failures.append(f"host-{number}: {welcome}")
            agent.say(start(one), batch(one, 2, written=[2]))
            agent.acknowledged(one, 2)

    threads = [threading.Thread(target=come_back, args=(number,)) for number in range(AGENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    print(f"{AGENTS} agents came back in {time.monotonic() - began:.2f} s")  # noqa: T201 (as above)
    check_served(collector, f"{AGENTS} agents came back")


@pytest.mark.soak
def test_reader_that_never_reads_and_one_with_very_many_streams(collector: CollectorProcess) -> None:
    """They hold what they hold: the collector's memory is bounded, and others are answered."""
    one = target(host_id="busy")
    with Agent(collector.address, "busy") as agent, ExitStack() as streams:
        agent.hello()
        agent.deliver(one, range(0, 1 << 20, 2))
        before = resident_bytes(collector)
        own = streams.enter_context(channel(collector.address, None, ("grpc.http2.bdp_probe", 0)))
        stub = DirtyServiceStub(own)
        selection = pb.Selection(targets=["busy/1"])
        watches = [stub.Watch(pb.WatchRequest(selection=selection, pages=True)) for _ in range(STREAMS)]
        for watch in watches:
            streams.callback(watch.cancel)
        # The first answer of each is there to be taken, and nobody does.
        for number in range(2, 12):
            agent.say(batch(one, number, written=range(0, 1 << 20, 2)))
        agent.acknowledged(one, 11)
        check_served(collector, f"{STREAMS} watches that nobody reads")
        grown = resident_bytes(collector) - before

    print(f"{STREAMS} watches that nobody reads take {grown >> 20} MiB")  # noqa: T201 (as above)
    # Each may hold one answer: its set, what that is encoded to, and the message on its way. Not one for each round.
    assert grown < (96 << 20) + STREAMS * (640 << 10)
    with pytest.raises(grpc.RpcError):
        next(iter(watches[0]))


def resident_bytes(collector: CollectorProcess) -> int:
    """Give the memory that it takes."""
    return int(Path(f"/proc/{collector.pid}/statm").read_text(encoding="ascii").split()[1]) * 4096
