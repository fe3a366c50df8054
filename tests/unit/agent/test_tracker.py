"""A tracker over a backend that harvests when the test lets it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.support.harvests import Fold, harvest_of, plain_sets_of, started_of
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.backend import Harvest
from wetink_agent.errors import TargetExited, TargetReplaced, Untrackable
from wetink_agent.pace import Budget, Load, Pacer
from wetink_agent.spool import Spool
from wetink_agent.tracker import Tracker

LONG = 3600.0
PATIENCE_SECONDS = 20.0


class Memory:
    """A backend over a set of pages that the test writes; with ``gated`` each harvest waits to be let through."""

    kind: types_pb2.Backend.ValueType = types_pb2.BACKEND_WP_ASYNC
    handle = None

    def __init__(self, *, gated: bool = False) -> None:
        """Begin with two pages."""
        self.populated = {1, 2}
        self.written: set[int] = set()
        self.harvest_count = 0
        self.forget_count = 0
        self.closed_count = 0
        self.error: Exception | None = None
        self.began = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self._gated = gated
        self._full = True
        self._busy = threading.Lock()

    def write(self, page: int) -> None:
        """Write a page."""
        self.populated.add(page)
        self.written.add(page)

    def harvest(self) -> Harvest:
        """Give what was written before this began."""
        assert self._busy.acquire(blocking=False), "two threads at once"
        try:
            if self.error is not None:
                raise self.error
            pages = self.populated if self._full else self.written
            result = harvest_of(pages, populated=len(self.populated))
            self.written, self._full = set(), False
            self.harvest_count += 1
            self.began.release()
            if self._gated:
                assert self.gate.acquire(timeout=PATIENCE_SECONDS)
            return result
        finally:
            self._busy.release()

    def forget(self) -> None:
        """Make the next harvest a full one."""
        assert not self._busy.locked()
        self.forget_count += 1
        self._full = True

    def close(self) -> None:
        """Count."""
        assert not self._busy.locked()
        self.closed_count += 1


@dataclass
class Stage:
    """A tracker that runs, and what it works with."""

    memory: Memory
    spool: Spool
    tracker: Tracker
    task: asyncio.Task[types_pb2.EndReason.ValueType | None]

    async def began(self) -> None:
        """Wait until a harvest has begun."""
        assert await asyncio.to_thread(self.memory.began.acquire, timeout=PATIENCE_SECONDS)

    async def ended(self) -> types_pb2.EndReason.ValueType | None:
        """Wait for the end."""
        return await asyncio.wait_for(self.task, PATIENCE_SECONDS)

    def messages(self) -> list[ingest_pb2.AgentMessage]:
        """Give what would be sent."""
        return list(self.spool.unsent(1 << 30))


@asynccontextmanager
async def stage(memory: Memory, *, interval_seconds: float = LONG) -> AsyncIterator[Stage]:
    """Start a tracker as the agent does, after its first harvest; stop it at the end."""
    spool = Spool()
    with ThreadPoolExecutor(4) as pool:
        memory.gate.release()
        first = memory.harvest()
        memory.began.acquire()
        pacer = Pacer(Budget(interval_seconds, interval_seconds), Load(1.0))
        tracker = Tracker(memory, started_of(), first, spool=spool, pool=pool, pacer=pacer, on_change=nothing)
        task = asyncio.create_task(tracker.run())
        await asyncio.sleep(0)
        try:
            yield Stage(memory, spool, tracker, task)
        finally:
            memory.gate.release(1000)
            tracker.stop(types_pb2.END_REASON_UNTRACKED)
            await asyncio.wait({task}, timeout=PATIENCE_SECONDS)


def nothing() -> None:
    """Do nothing: the spool is looked at directly."""


def batches(messages: list[ingest_pb2.AgentMessage]) -> list[ingest_pb2.WriteProtectBatch]:
    """Give the rounds among messages."""
    return [message.write_protect_batch for message in messages if message.HasField("write_protect_batch")]


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(test())


def test_a_barrier_is_not_served_by_the_round_that_is_under_way() -> None:
    """A page written after a harvest began, and before the barrier, is in the round that the barrier gives."""

    async def test() -> None:
        async with stage(Memory(gated=True)) as here:
            early = asyncio.create_task(here.tracker.barrier())
            await here.began()
            here.memory.write(77)
            late = asyncio.create_task(here.tracker.barrier())
            await asyncio.sleep(0.05)
            here.memory.gate.release()
            served = await early
            assert served is not None
            assert not late.done()
            here.memory.gate.release()
            position = await late
            assert position is not None

            assert (served.round, position.round) == (2, 3)
            rounds = batches(here.messages())
            assert [batch.last_round for batch in rounds] == [1, 2, 3]
            assert plain_sets_of([rounds[2]])[0] == {77}

    run(test)


def test_barriers_that_come_together_share_a_round() -> None:
    """A hundred barriers asked for while a round runs are served by the one after it."""

    async def test() -> None:
        async with stage(Memory(gated=True)) as here:
            first = asyncio.create_task(here.tracker.barrier())
            await here.began()
            others = [asyncio.create_task(here.tracker.barrier()) for _ in range(100)]
            await asyncio.sleep(0)
            here.memory.gate.release(2)
            await first
            positions = await asyncio.gather(*others)

            assert {position.round for position in positions if position is not None} == {3}
            assert here.memory.harvest_count == 3

    run(test)


@pytest.mark.parametrize(
    "error, reason",
    [
        (TargetExited("process 7 exited"), types_pb2.END_REASON_EXITED),
        (TargetReplaced("process 7 called execve"), types_pb2.END_REASON_EXEC),
        (Untrackable("process 7 uses userfaultfd itself"), types_pb2.END_REASON_FAILED),
        (OSError(12, "no memory"), types_pb2.END_REASON_FAILED),
    ],
)
def test_what_a_harvest_fails_with_is_the_end_and_its_reason(
    error: Exception, reason: types_pb2.EndReason.ValueType
) -> None:
    """The target's end is told behind its last round, barriers get no position, and the backend is closed once."""

    async def test() -> None:
        async with stage(Memory()) as here:
            here.memory.error = error
            assert await here.tracker.barrier() is None
            assert await here.ended() == reason

            last = here.messages()[-1].target_ended
            assert (last.reason, last.message, last.incarnation) == (
                reason,
                str(error),
                here.tracker.position.incarnation,
            )
            assert here.memory.closed_count == 1

    run(test)


def test_a_mistake_of_the_agents_own_is_an_end_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a harvest fails with, the collector hears that the target is not tracked any more."""

    async def test() -> None:
        async with stage(Memory()) as here:
            here.memory.error = ValueError("a mistake")
            assert await here.tracker.barrier() is None
            assert await here.ended() == types_pb2.END_REASON_FAILED
            assert "a mistake" in here.messages()[-1].target_ended.message
            assert here.memory.closed_count == 1

    run(test)
    assert "harvest_failed" in capsys.readouterr().out


def test_a_barrier_on_a_target_that_has_ended_is_answered_at_once() -> None:
    """Nobody waits a minute for a round that will never be."""

    async def test() -> None:
        async with stage(Memory()) as here:
            here.tracker.stop(types_pb2.END_REASON_UNTRACKED)
            await here.ended()
            assert await asyncio.wait_for(here.tracker.barrier(), 2) is None

    run(test)


def test_stop_ends_after_the_round_under_way() -> None:
    """That round still arrives, the end follows it, and whoever waits for a barrier is told that there is none."""

    async def test() -> None:
        async with stage(Memory(gated=True)) as here:
            served = asyncio.create_task(here.tracker.barrier())
            await here.began()
            unserved = asyncio.create_task(here.tracker.barrier())
            await asyncio.sleep(0)
            here.tracker.stop(types_pb2.END_REASON_UNTRACKED, "as asked")
            here.memory.gate.release()

            assert await here.ended() == types_pb2.END_REASON_UNTRACKED
            assert (await served) is not None
            assert await unserved is None
            messages = here.messages()
            assert [batch.last_round for batch in batches(messages)] == [1, 2]
            assert messages[-1].target_ended.message == "as asked"
            assert here.memory.harvest_count == 2

    run(test)


def test_resynchronise_begins_a_greater_incarnation_with_everything() -> None:
    """The new incarnation starts at round 1 with every populated page, and the old one is sent no more."""

    async def test() -> None:
        async with stage(Memory()) as here:
            here.memory.write(5)
            await here.tracker.barrier()
            before = here.tracker.position
            here.memory.write(6)
            here.tracker.resynchronise()
            position = await here.tracker.barrier()
            assert position is not None

            assert position.incarnation > before.incarnation
            messages = here.messages()
            assert [m.target_started.incarnation for m in messages if m.HasField("target_started")] == [
                position.incarnation
            ]
            fold = Fold()
            for batch in batches(messages):
                assert batch.incarnation == position.incarnation
                fold = fold.then(*plain_sets_of([batch]))
            assert batches(messages)[0].first_round == 1
            assert plain_sets_of(batches(messages)[:1])[0] == {1, 2, 5, 6}
            assert fold.written == {1, 2, 5, 6}

    run(test)


def test_resynchronise_while_a_round_runs_loses_nothing() -> None:
    """What a round of the old incarnation found is in the first of the new one, which serves the barrier too."""

    async def test() -> None:
        async with stage(Memory(gated=True)) as here:
            asked = asyncio.create_task(here.tracker.barrier())
            here.memory.write(5)
            await here.began()
            before = here.tracker.position
            here.tracker.resynchronise()
            here.memory.gate.release(2)
            position = await asyncio.wait_for(asked, PATIENCE_SECONDS)
            assert position is not None

            assert position.incarnation > before.incarnation
            rounds = [batch for batch in batches(here.messages()) if batch.incarnation == position.incarnation]
            assert rounds[0].first_round == 1
            assert plain_sets_of(rounds[:1])[0] == {1, 2, 5}

    run(test)


def test_rounds_come_on_their_period() -> None:
    """At 20 ms a half second's worth of rounds comes without being asked for, and no sooner."""

    async def test() -> None:
        async with stage(Memory(), interval_seconds=0.02) as here:
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(25):
                await here.began()
            assert loop.time() - began >= 20 * 0.02

    run(test)


def test_a_slow_harvest_gets_as_long_a_rest() -> None:
    """A round of 100 ms on a period of 10 ms leaves the target alone for half of the time."""

    async def test() -> None:
        memory = Memory(gated=True)
        async with stage(memory, interval_seconds=0.01) as here:
            loop = asyncio.get_running_loop()
            rests = []
            for _ in range(3):
                await here.began()
                await asyncio.sleep(0.1)
                ended = loop.time()
                memory.gate.release()
                await here.began()
                rests.append(loop.time() - ended)
                await asyncio.sleep(0.1)
                memory.gate.release()

            assert min(rests) >= 0.09

    run(test)


def test_a_barrier_does_not_wait_for_the_period() -> None:
    """With an hour from round to round a barrier is served at once."""

    async def test() -> None:
        async with stage(Memory()) as here:
            for number in range(2, 12):
                position = await asyncio.wait_for(here.tracker.barrier(), PATIENCE_SECONDS)
                assert position is not None
                assert position.round == number

    run(test)
