"""Streams that follow each other: who may write, and when the newer one is welcomed."""

import asyncio
import gc
import time
from typing import Any

import pytest
from grpc.aio import EOF
from pyroaring import BitMap64

from tests.unit.collector.bench import Bench, runs, until
from tests.unit.collector.changes import ended, incarnation, started
from wetink.pages import encode
from wetink.v1.ingest_pb2 import AgentMessage, CollectorMessage, Hello, WriteProtectBatch
from wetink.v1.types_pb2 import END_REASON_LOST
from wetink_collector import intake
from wetink_collector.agents import SILENCE_SECONDS_MAX, Agents
from wetink_collector.errors import AgentSilent, Deposed, HostsTooMany, Refusal, RoundGap
from wetink_collector.limits import Limits
from wetink_collector.room import IN_ALL_BYTES_MAX, Place
from wetink_collector.session import Session
from wetink_collector.store.interface import TargetForgotten

ONE = incarnation()


class Wire:
    """The agent's side of one stream, without a transport."""

    def __init__(self, agents: Agents, one: Bench, *, host_id: str = "host-1", can_be_refused: bool = False) -> None:
        """Open it, and say Hello."""
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self.heard: list[CollectorMessage] = []
        self.serving = asyncio.create_task(agents.serve(self, one.committer))  # type: ignore[arg-type]  # what is used of it
        hello = Hello(protocol_version=1, host_id=host_id, boot_id="boot-1")
        if host_id == ONE.target.host_id:
            hello.positions.add(target=ONE.target.message(), incarnation=1, round=1)
        hello.can_be_refused = can_be_refused
        self.say(hello=hello)

    def say(self, **message: Any) -> None:  # noqa: ANN401 (any field of the message)
        """Say something."""
        self._said.put_nowait(AgentMessage(**message))

    def batch(self, number: int) -> None:
        """Say a round without pages."""
        message = WriteProtectBatch(
            target=ONE.target.message(), incarnation=1, first_round=number, last_round=number, part_count=1
        )
        self.say(write_protect_batch=message)

    def half_close(self) -> None:
        """Say that nothing more comes."""
        self._said.put_nowait(EOF)

    def kinds(self) -> list[str | None]:
        """Give what was heard, by kind."""
        return [message.WhichOneof("message") for message in self.heard]

    async def read(self) -> Any:  # noqa: ANN401 (a message or EOF, as gRPC gives it)
        """Give the collector what was said."""
        return await self._said.get()

    async def write(self, message: CollectorMessage) -> None:
        """Take what the collector says."""
        self.heard.append(message)


class Deaf(Wire):
    """It reads nothing after its Welcome, until it is told to."""

    def __init__(self, agents: Agents, one: Bench) -> None:
        """Open it."""
        self.listens = asyncio.Event()
        super().__init__(agents, one, can_be_refused=True)

    def unread_count(self) -> int:
        """Give how much of what was said nobody has read."""
        return self._said.qsize()

    async def write(self, message: CollectorMessage) -> None:
        """Take it, or have it wait."""
        if not message.HasField("welcome"):
            await self.listens.wait()
        await super().write(message)


async def a_while() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0.005)


@runs
async def test_newer_stream_is_welcomed_when_what_the_older_queued_is_durable(one: Bench) -> None:
    """Not before; and the Welcome counts it."""
    agents = Agents(one.catalog)
    older = Wire(agents, one)
    older.say(target_started=started(ONE).started)
    await until(lambda: one.catalog.get(ONE.target) is not None)
    one.store.gate.clear()
    older.batch(1)
    await until(lambda: one.committer._room.size_bytes > 0)

    newer = Wire(agents, one)
    await a_while()
    assert newer.heard == []
    one.store.gate.set()
    await until(lambda: bool(newer.heard))

    assert [position.round for position in newer.heard[0].welcome.positions] == [1]
    assert "ack" not in older.kinds()
    with pytest.raises(Deposed):
        await older.serving
    newer.half_close()
    await newer.serving


@runs
async def test_welcome_counts_what_the_older_stream_got_in_at_the_last_moment(one: Bench) -> None:
    """A batch that waited for room in the queue, and got it just as its stream was deposed, is not taken twice."""
    agents = Agents(one.catalog)
    older = Wire(agents, one)
    older.say(target_started=started(ONE).started)
    older.batch(1)
    await until(lambda: "ack" in older.kinds())
    committer = one.committer
    full = Place("another", IN_ALL_BYTES_MAX)
    original = Session.end

    def end_and_make_room(session: Session, refusal: Refusal) -> None:
        original(session, refusal)
        committer._room.leave([full])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "end", end_and_make_room)
        await committer._room.enter(full)
        older.batch(2)
        await until(lambda: bool(committer._room._waiting))
        newer = Wire(agents, one)
        await until(lambda: bool(newer.heard))

    (position,) = newer.heard[0].welcome.positions
    record = one.catalog.get(ONE.target)
    assert record is not None
    assert position.round == record.round
    newer.half_close()
    await newer.serving


@pytest.mark.parametrize("forgets", [True, False], ids=["forgotten", "given up"])
def test_round_of_what_the_collector_let_go_of_is_not_acknowledged(*, forgets: bool) -> None:
    """The agent would let go of it as if it were there for good. It is told to begin anew."""
    runs(lambda one: let_go(one, forgets=forgets))()


async def let_go(one: Bench, *, forgets: bool) -> None:
    """End a target behind its stream's back, and let another round of it come."""
    wire = Wire(Agents(one.catalog), one)
    wire.say(target_started=started(ONE).started)
    wire.batch(1)
    await until(lambda: "ack" in wire.kinds())
    await one.committer.commit([ended(ONE, END_REASON_LOST), *([TargetForgotten(ONE)] if forgets else [])])
    wire.heard.clear()
    wire.batch(2)

    with pytest.raises(RoundGap) as refusal:
        await wire.serving
    assert refusal.value.metadata == {"target": str(ONE.target), "incarnation": "1", "round": "2"}
    assert "ack" not in wire.kinds()


@runs
async def test_what_a_stream_remembers_of_refused_targets_does_not_grow(one: Bench) -> None:
    """Whoever tries again and again is one target, and who has not tried for long is forgotten."""
    agents = Agents(one.catalog, Limits(targets=1))
    wire = Wire(agents, one, can_be_refused=True)
    wire.say(target_started=started(ONE).started)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wetink_collector.intake.REFUSED_MAX", 1)
        for number in range(1, 6):
            wire.say(target_started=started(incarnation(2, number)).started)
        await until(lambda: wire.kinds().count("target_refused") == 5)
        assert len(agents._sessions["host-1"]._told) == 1
        await one.committer.commit([TargetForgotten(incarnation(2, 5))])
        wire.say(target_started=started(incarnation(3)).started)
        await until(lambda: wire.kinds().count("target_refused") == 6)
    wire.half_close()
    await wire.serving


@runs
async def test_new_host_beyond_the_bound_is_turned_away_and_the_known_ones_are_not(one: Bench) -> None:
    """Also while the last that fits is not known yet, and for those that went and are not forgotten."""
    agents = Agents(one.catalog)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wetink_collector.agents.HOSTS_MAX", 2)
        wires = [Wire(agents, one, host_id=host_id) for host_id in ("host-1", "host-2", "host-3")]
        with pytest.raises(HostsTooMany, match="host host-3 is not taken: there are 2 hosts already"):
            await wires[2].serving
        for wire in wires[:2]:
            wire.half_close()
            await wire.serving
            assert wire.kinds() == ["welcome"]
        with pytest.raises(HostsTooMany):
            await Wire(agents, one, host_id="host-4").serving
        again = Wire(agents, one, host_id="host-2")
        again.half_close()
        await again.serving
        assert again.kinds() == ["welcome"]


@runs
async def test_agent_that_is_welcomed_is_connected_before_it_knows(one: Bench) -> None:
    """Who hears of it from the agent itself may ask at once, and is not told that it is away."""

    class Looking(Wire):
        """Looks at what is known when something is heard."""

        async def write(self, message: CollectorMessage) -> None:
            """Ask at once."""
            assert one.catalog.connected("host-1")
            await super().write(message)

    wire = Looking(Agents(one.catalog), one)
    wire.half_close()
    await wire.serving
    assert wire.kinds() == ["welcome"]
    assert not one.catalog.connected("host-1")


@runs
async def test_agent_that_is_not_listened_to_is_not_silent(one: Bench) -> None:
    """While its round waits for room before the writer, or for its rate, it cannot be heard."""
    agents = Agents(one.catalog)
    wire = Wire(agents, one)
    wire.say(target_started=started(ONE).started)
    await until(lambda: one.catalog.get(ONE.target) is not None)
    full = Place("another", IN_ALL_BYTES_MAX)
    await one.committer._room.enter(full)
    wire.batch(1)
    await until(lambda: bool(one.committer._room._waiting))
    agents.end_silent(time.monotonic() + SILENCE_SECONDS_MAX + 1)
    await a_while()
    assert one.catalog.connected("host-1")

    one.committer._room.leave([full])
    await until(lambda: "ack" in wire.kinds())
    wire.half_close()
    await wire.serving


@runs
async def test_agent_that_is_silent_for_too_long_is_cut_off(one: Bench) -> None:
    """Whatever its transport says: it does not harvest."""
    agents = Agents(one.catalog)
    began = time.monotonic()
    silent = Wire(agents, one)
    await until(lambda: one.catalog.connected("host-1"))
    await a_while()

    agents.end_silent(began + SILENCE_SECONDS_MAX)
    await a_while()
    assert one.catalog.connected("host-1")
    agents.end_silent(time.monotonic() + SILENCE_SECONDS_MAX + 1)

    with pytest.raises(AgentSilent):
        await silent.serving
    assert not one.catalog.connected("host-1")


@pytest.mark.parametrize("what", ["commands", "acknowledgements"])
def test_agent_that_does_not_listen_is_listened_to_no_further(what: str) -> None:
    """What it is told would take all memory: it can cause as much of that as it likes. It is heard when it listens."""
    runs(lambda one: speak_to_the_deaf(one, what))()


async def speak_to_the_deaf(one: Bench, what: str) -> None:
    """Say what is answered, a hundred times, and listen to none of it at first."""
    agents = Agents(one.catalog, Limits(targets=1))
    wire = Deaf(agents, one)
    wire.say(target_started=started(incarnation(1, 101)).started)
    await until(lambda: one.catalog.get(ONE.target) is not None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wetink_collector.session.UNHEARD_MAX", 10)
        for number in range(1, 101):
            if what == "commands":
                # One target too many: that it is refused is told each time, when it is durable.
                wire.say(target_started=started(incarnation(2, number)).started)
                await until(lambda: not wire.unread_count() or unheard_count(agents) > 10)
                await one.committer.settle("host-1")
            else:
                # Acknowledged at once, each: a newer one has taken its place.
                older = WriteProtectBatch(
                    target=ONE.target.message(), incarnation=number, first_round=1, last_round=1, part_count=1
                )
                wire.say(write_protect_batch=older)
        await a_while()
        assert wire.unread_count() > 0
        assert unheard_count(agents) <= 12
        wire.listens.set()
        await until(lambda: not wire.unread_count())
    wire.half_close()
    await wire.serving


def unheard_count(agents: Agents) -> int:
    """Give how much the host was told and has not heard."""
    session = agents._sessions["host-1"]
    return len(session._commands) + len(session._acks)


@pytest.mark.parametrize("how", ["half-closed", "deposed", "corrupt", "shared", "gap", "silent", "cancelled"])
def test_a_stream_that_has_ended_holds_no_half_round(how: str) -> None:
    """It may be of 64 MiB, and what ended the stream may hold that for as long as nobody looks for garbage."""
    gc.collect()
    gc.disable()
    try:
        runs(lambda one: end_in_the_middle(one, how))()
    finally:
        gc.enable()


async def end_in_the_middle(one: Bench, how: str) -> None:
    """End a stream that has said half a round."""
    agents = Agents(one.catalog)
    wire = Wire(agents, one)
    wire.say(target_started=started(ONE).started)
    half = WriteProtectBatch(
        target=ONE.target.message(), incarnation=1, first_round=1, last_round=1, part=0, part_count=3
    )
    half.written.CopyFrom(encode(BitMap64([1])))
    wire.say(write_protect_batch=half)
    await until(lambda: len(half_rounds()) == 1)
    match how:
        case "half-closed":
            wire.half_close()
        case "deposed":
            Wire(agents, one).half_close()
        case "corrupt":
            half.part = 1
            half.written.roaring64 = b"no bitmap"
            wire.say(write_protect_batch=half)
        case "shared":
            half.part = 1
            wire.say(write_protect_batch=half)
        case "gap":
            wire.batch(7)
        case "silent":
            agents.end_silent(time.monotonic() + SILENCE_SECONDS_MAX + 1)
        case "cancelled":
            wire.serving.cancel()
    await asyncio.wait([wire.serving])
    # Whoever asks gets the error, and with it all that it holds.
    assert wire.serving.cancelled() or bool(wire.serving.exception()) == (how != "half-closed")
    await until(lambda: not half_rounds())


def half_rounds() -> list[object]:
    """Give the rounds in parts that are held anywhere."""
    return [found for found in gc.get_objects() if isinstance(found, intake._Parts)]
