"""The uplink against a collector that the test plays, stream by stream, over loopback."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc
import pytest

from tests.support.fake_ingest import Peer, Script, fake_ingest, pages_of
from tests.support.harvests import INCARNATION, ended_of, make_round, position_of, started_of, target_of
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent import uplink as uplink_module
from wetink_agent.spool import Key, Spool, key_of
from wetink_agent.uplink import Deposed, Uplink

PATIENCE_SECONDS = 50.0
KEY = key_of(target_of(), INCARNATION)


@dataclass
class Commands:
    """What the uplink asked of the agent; a broken incarnation begins anew at once, with one page."""

    spool: Spool
    broken: list[Key] = field(default_factory=list)
    given_up: list[tuple[Key, str]] = field(default_factory=list)
    wanted: list[ingest_pb2.Track] = field(default_factory=list)
    before_barrier: Callable[[], object] = lambda: None

    async def carry_out(self, message: ingest_pb2.CollectorMessage) -> ingest_pb2.AgentMessage | None:
        """Answer a barrier with the last round of each target."""
        self.before_barrier()
        reached = ingest_pb2.BarrierReached(
            request_id=message.barrier.request_id, positions=[p for p in self.spool.positions() if p.round]
        )
        return ingest_pb2.AgentMessage(barrier_reached=reached)

    def set_wanted(self, wanted: list[ingest_pb2.Track]) -> None:
        """Remember."""
        self.wanted = wanted

    def resynchronise(self, broken: list[Key]) -> None:
        """Begin the next incarnation."""
        self.broken += broken
        for pid, _, incarnation in broken:
            self.spool.drop((pid, 100 + pid, incarnation))
            begin(self.spool, pid, incarnation + 1, [1000 + incarnation])

    def give_up(self, key: Key, why: str, retry_seconds: float = 0.0) -> None:  # noqa: ARG002 (as the uplink calls it)
        """End it, as its tracker would."""
        self.given_up.append((key, why))
        self.spool.end(ended_of(key[0], key[2], reason=types_pb2.END_REASON_FAILED))


def begin(spool: Spool, pid: int = 7, incarnation: int = INCARNATION, written: list[int] | None = None) -> None:
    """Begin an incarnation with its first round."""
    spool.start(started_of(pid, incarnation))
    first = make_round(1, written if written is not None else [1, 2, 3], pid=pid, incarnation=incarnation)
    spool.add(key_of(target_of(pid), incarnation), first)


@dataclass
class Agent:
    """An uplink that runs, and what it works with."""

    spool: Spool
    commands: Commands
    uplink: Uplink
    task: asyncio.Task[None]

    def add(self, number: int, *written: int, pid: int = 7) -> None:
        """Harvest a round."""
        self.spool.add(key_of(target_of(pid), INCARNATION), make_round(number, written, pid=pid))
        self.uplink.changed()


@asynccontextmanager
async def agent(address: str, spool: Spool | None = None) -> AsyncIterator[Agent]:
    """Run an uplink over a spool, by default with one target and its first round."""
    if spool is None:
        spool = Spool()
        begin(spool)
    commands = Commands(spool)
    hello = ingest_pb2.Hello(protocol_version=1, host_id="host-1", boot_id="boot-1", agent_instance="one")
    uplink = Uplink(address, hello, spool=spool, commands=commands)
    task = asyncio.create_task(uplink.run())
    try:
        yield Agent(spool, commands, uplink, task)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Deposed):
            await task


def streams(*scripts: Script) -> Script:
    """Play one script on each stream in their order; the last one on all that follow."""
    left = list(scripts)

    async def play(peer: Peer) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(peer)

    return play


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a test's coroutine, with an end."""

    async def within() -> None:
        async with asyncio.timeout(100):
            await test()

    asyncio.run(within())


async def listen(peer: Peer) -> None:
    """Hear the agent out, to no answer."""
    while await peer.hear() is not None:
        pass


async def empty(spool: Spool) -> None:
    """Wait until every round is durable."""
    while spool.size_bytes:  # noqa: ASYNC110 - the spool is plain code and tells nobody
        await asyncio.sleep(0.01)


async def wait_for(event: asyncio.Event) -> None:
    """Wait, with an end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await event.wait()


def test_what_is_not_durable_is_sent_again_and_what_is_durable_is_not() -> None:
    """After a reconnect the agent goes on behind the round that Welcome names, and says the target again."""
    over = asyncio.Event()
    again: list[int] = []

    async def first(peer: Peer) -> None:
        await peer.welcome()
        for _ in range(3):
            await peer.hear_round()

    async def second(peer: Peer) -> None:
        hello = await peer.welcome(position_of(last=2))
        assert [position.round for position in hello.positions] == [3]
        await peer.hear_until("target_started")
        batch = await peer.hear_round()
        again.append(batch.first_round)
        await peer.acknowledge(batch)
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(streams(first, second)) as address, agent(address) as here:
            here.add(2, 5)
            here.add(3, 6)
            await wait_for(over)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await empty(here.spool)

    run(test)
    assert again == [3]


def test_a_collector_that_has_forgotten_gets_a_new_incarnation() -> None:
    """Where Welcome ends before what the agent still holds, a new incarnation begins and is sent on the same stream."""
    over = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.acknowledge(await peer.hear_round())
        await asyncio.sleep(0.1)

    async def second(peer: Peer) -> None:
        await peer.welcome()
        started = (await peer.hear_until("target_started")).target_started
        assert started.incarnation == INCARNATION + 1
        assert (await peer.hear_round()).incarnation == INCARNATION + 1
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(streams(first, second)) as address, agent(address) as here:
            await wait_for(over)
            assert here.commands.broken == [KEY]

    run(test)


def test_a_collector_that_is_away_is_tried_now_and_then(tmp_path: Path) -> None:
    """Absent it costs a few attempts, not a spinning loop; once there, it gets everything."""
    over = asyncio.Event()

    async def collector(peer: Peer) -> None:
        await peer.welcome()
        assert pages_of(await peer.hear_round()) == {1, 2, 3}
        over.set()
        await listen(peer)

    async def test() -> None:
        address = f"unix:{tmp_path / 'collector'}"
        async with agent(address) as here:
            attempts = 0
            connect = here.uplink._connect

            async def counted() -> None:
                nonlocal attempts
                attempts += 1
                await connect()

            here.uplink._connect = counted  # type: ignore[method-assign]
            used = time.process_time()
            await asyncio.sleep(2)
            assert 2 <= attempts < 40
            assert time.process_time() - used < 1
            async with fake_ingest(collector, address):
                await wait_for(over)

    run(test)


def test_a_collector_that_refuses_every_stream_is_not_hammered() -> None:
    """Streams that end at once are followed by waits that grow."""
    opened = 0

    async def collector(peer: Peer) -> None:
        nonlocal opened
        opened += 1
        await peer.welcome()

    async def test() -> None:
        async with fake_ingest(collector) as address, agent(address):
            await asyncio.sleep(3)

    run(test)
    assert 2 <= opened < 40


def test_a_collector_that_never_acknowledges_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time the contract gives, the agent takes the stream for dead and sends the batches on another."""
    monkeypatch.setattr(uplink_module, "ACK_SECONDS_MAX", 1.0)
    over = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.welcome()
        await listen(peer)

    async def second(peer: Peer) -> None:
        await peer.welcome()
        await peer.hear_round()
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(streams(silent, second)) as address, agent(address):
            await wait_for(over)

    run(test)


def test_an_idle_stream_is_no_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything acknowledged the agent stays for as long as nothing happens, and sends heartbeats."""
    opened = 0
    over = asyncio.Event()
    began = time.monotonic()

    async def collector(peer: Peer) -> None:
        nonlocal opened
        opened += 1
        await peer.welcome(heartbeat_ms=100)
        await peer.acknowledge(await peer.hear_round())
        await peer.hear_until("heartbeat")
        # From here on there is nothing that a busy machine could acknowledge too late.
        monkeypatch.setattr(uplink_module, "ACK_SECONDS_MAX", 1.0)
        for _ in range(30):
            await peer.hear_until("heartbeat")
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(collector) as address, agent(address):
            await wait_for(over)

    run(test)
    assert opened == 1
    assert time.monotonic() - began > 2.5


def test_drain_is_answered_with_the_end_of_the_stream() -> None:
    """Told that the collector goes down, the agent half-closes, takes the last acknowledgements, and comes back."""
    over = asyncio.Event()

    async def draining(peer: Peer) -> None:
        await peer.welcome()
        batch = await peer.hear_round()
        await peer.say(drain=ingest_pb2.Drain())
        await listen(peer)
        assert peer.half_closed
        await peer.acknowledge(batch)

    async def second(peer: Peer) -> None:
        hello = await peer.welcome(position_of(last=1))
        assert hello.agent_instance == "one"
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(streams(draining, second)) as address, agent(address) as here:
            await wait_for(over)
            assert here.spool.size_bytes == 0

    run(test)


def test_a_deposed_agent_ends() -> None:
    """When another agent has taken the host over, this one says so and does not come back to fight."""

    async def collector(peer: Peer) -> None:
        await peer.welcome()
        await peer.hear_round()
        await peer.refuse("DEPOSED")

    async def test() -> None:
        async with fake_ingest(collector) as address, agent(address) as here:
            with pytest.raises(Deposed, match="another agent has taken over host 'host-1'"):
                await asyncio.wait_for(here.task, PATIENCE_SECONDS)

    run(test)


def test_a_round_that_is_refused_twice_begins_a_new_incarnation() -> None:
    """The first refusal is answered by sending the round again, the second by a new incarnation."""
    over = asyncio.Event()
    refused: list[int] = []

    async def refusing(peer: Peer) -> None:
        await peer.welcome()
        batch = await peer.hear_round()
        refused.append(batch.incarnation)
        await peer.refuse("BATCH_CORRUPT", batch)

    async def third(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.hear_round()).incarnation == INCARNATION + 1
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(streams(refusing, refusing, third)) as address, agent(address) as here:
            await wait_for(over)
            assert here.commands.broken == [KEY]

    run(test)
    assert refused == [INCARNATION, INCARNATION]


def test_a_round_no_collector_can_take_ends_its_target_and_lets_the_others_through() -> None:
    """It is not sent again and again: its end is, with the reason, and what others have."""
    over = asyncio.Event()
    heard: list[str] = []

    async def collector(peer: Peer) -> None:
        await peer.welcome()
        while (message := await peer.hear()) is not None:
            if message.HasField("target_ended"):
                heard.append(f"end of {message.target_ended.target.pid}")
            if message.HasField("write_protect_batch"):
                batch = message.write_protect_batch
                heard.append(f"round of {batch.target.pid}")
                if batch.target.pid == 7:
                    await peer.refuse("ROUND_TOO_LARGE", batch)
            if heard[-2:] in (["end of 7", "round of 8"], ["round of 8", "end of 7"]):
                over.set()

    async def test() -> None:
        async with fake_ingest(collector) as address, agent(address) as here:
            begin(here.spool, 8)
            await wait_for(over)
            here.add(2, 9)  # a harvest that was under way
            await asyncio.sleep(0.2)
            assert here.commands.given_up == [(KEY, "refused: ROUND_TOO_LARGE")]
            assert here.commands.broken == []

    run(test)
    # Twice more where the refusal came while the other's round was being written.
    assert heard.count("round of 7") <= 3


def test_another_targets_acknowledgement_is_no_excuse() -> None:
    """A target that is refused twice begins anew even where others on the stream were acknowledged in between."""
    over = asyncio.Event()
    durable = {8: 0}

    async def collector(peer: Peer) -> None:
        await peer.welcome(*([position_of(8, last=durable[8])] if durable[8] else []))
        corrupt = None
        while corrupt is None:
            batch = (await peer.hear_until("write_protect_batch")).write_protect_batch
            if batch.target.pid == 8:
                durable[8] = batch.last_round
                await peer.acknowledge(batch)
            elif batch.incarnation != INCARNATION:
                over.set()
                await listen(peer)
                return
            elif durable[8]:
                corrupt = batch
        await asyncio.sleep(0.1)
        await peer.refuse("BATCH_CORRUPT", corrupt)

    async def test() -> None:
        spool = Spool()
        begin(spool, 8)
        begin(spool, 7)
        async with fake_ingest(collector) as address, agent(address, spool) as here:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for number in count(2):
                    if over.is_set():
                        break
                    here.add(number, number, pid=8)
                    await asyncio.sleep(0.1)
            assert here.commands.broken == [KEY]

    run(test)


def test_the_window_bounds_what_is_out() -> None:
    """Never are more bytes out than Welcome allows, except a round that is larger and goes alone."""
    over = asyncio.Event()
    together: list[list[int]] = []

    async def collector(peer: Peer) -> None:
        await peer.welcome(window_bytes=400)
        while not together or together[-1][-1] < 9:
            out = await peer.hear_rounds(quiet_seconds=0.3)
            if not out:
                continue  # it is held up, not quiet
            together.append([batch.last_round for batch in out])
            assert sum(batch.ByteSize() for batch in out) <= 400 or len(out) == 1
            for batch in out:
                await peer.acknowledge(batch)
        over.set()
        await listen(peer)

    async def test() -> None:
        spool = Spool()
        begin(spool)
        for number in range(2, 10):
            spool.add(KEY, make_round(number, range(0, 3000, 3) if number == 5 else [number]))
        async with fake_ingest(collector) as address, agent(address, spool):
            await wait_for(over)

    run(test)
    assert [5] in together
    assert max(map(len, together)) > 1


def test_the_answer_to_a_barrier_comes_behind_the_rounds_it_speaks_of() -> None:
    """Also where the window is full when the barrier has been carried out."""
    over = asyncio.Event()
    order: list[tuple[str, int]] = []

    async def collector(peer: Peer) -> None:
        await peer.welcome(window_bytes=1)
        first = await peer.hear_round()
        await peer.say(barrier=ingest_pb2.Barrier(request_id=9, targets=[target_of()]))
        await asyncio.sleep(0.3)
        await peer.acknowledge(first)
        while len(order) < 2:
            message = await peer.hear()
            assert message is not None
            if message.HasField("write_protect_batch"):
                order.append(("round", message.write_protect_batch.last_round))
            elif message.HasField("barrier_reached"):
                order.append(("reached", message.barrier_reached.positions[0].round))
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(collector) as address, agent(address) as here:
            here.commands.before_barrier = lambda: here.add(2, 5)
            await wait_for(over)

    run(test)
    assert order == [("round", 2), ("reached", 2)]


def test_what_has_ended_is_forgotten_while_others_are_busy() -> None:
    """Targets that came and went leave nothing in the spool, also where there is never a quiet moment."""

    async def collector(peer: Peer) -> None:
        await peer.welcome(heartbeat_ms=200)
        while (message := await peer.hear()) is not None:
            if message.HasField("write_protect_batch"):
                await peer.acknowledge(message.write_protect_batch)

    async def test() -> None:
        spool = Spool()
        begin(spool)
        for pid in range(20, 40):
            begin(spool, pid)
            spool.end(ended_of(pid))
        async with fake_ingest(collector) as address, agent(address, spool) as here:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for number in count(2):
                    if {position.target.pid for position in spool.positions()} == {7}:
                        break
                    here.add(number, number)
                    await asyncio.sleep(0.05)

    run(test)


def test_a_first_message_that_is_no_welcome_is_not_taken_for_one() -> None:
    """What a later collector may say before it is passed over: an empty Welcome would end every incarnation."""
    over = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.acknowledge(await peer.hear_round())
        await asyncio.sleep(0.1)

    async def second(peer: Peer) -> None:
        await peer.say()
        await peer.welcome(position_of(last=1))
        await peer.hear_until("target_started")
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(streams(first, second)) as address, agent(address) as here:
            await wait_for(over)
            await asyncio.sleep(0.1)
            assert here.commands.broken == []

    run(test)


def test_the_end_of_a_stopping_agents_targets_arrives() -> None:
    """What the spool holds when the agent is told to stop has been heard when flush is over, every time."""
    ends: list[int] = []

    async def collector(peer: Peer) -> None:
        await peer.welcome()
        while (message := await peer.hear()) is not None:
            if message.HasField("write_protect_batch"):
                await peer.acknowledge(message.write_protect_batch)
            if message.HasField("target_ended"):
                ends.append(message.target_ended.target.pid)

    async def test() -> None:
        for pid in range(20, 40):
            spool = Spool()
            begin(spool, pid)
            async with fake_ingest(collector) as address:
                async with agent(address, spool) as here:
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        await empty(spool)
                    spool.end(ended_of(pid))
                    here.uplink.changed()
                    await here.uplink.flush(PATIENCE_SECONDS)
                await asyncio.sleep(0.02)

    run(test)
    assert ends == list(range(20, 40))


def test_a_trailer_that_cannot_be_read_is_one_more_reason_to_reconnect() -> None:
    """Details of an error that no contract knows, from a proxy say, do not end the agent."""
    over = asyncio.Event()

    async def odd(peer: Peer) -> None:
        await peer.welcome()
        await peer.abort_with(grpc.StatusCode.UNAVAILABLE, (("grpc-status-details-bin", b"\xff\xff\xff"),))

    async def second(peer: Peer) -> None:
        await peer.welcome()
        over.set()
        await listen(peer)

    async def test() -> None:
        async with fake_ingest(streams(odd, second)) as address, agent(address):
            await wait_for(over)

    run(test)
