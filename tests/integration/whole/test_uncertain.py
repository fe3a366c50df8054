"""Uncertain pages all the way: left out of lenient answers, counted dirty in strict ones, and none is lost by that."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.collector import running_collector
from tests.support.service import Service
from tests.support.uring import RING
from tests.support.victim import PAGE, Victim, victim
from wetink_client import Collector, Strictness, Uncertainty
from wetink_client.precopy import precopy
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = pytest.mark.needs("kernel", "root")

PATIENCE_SECONDS = 20.0
LENIENT = Strictness.LENIENT


@contextmanager
def served() -> Iterator[tuple[Victim, Collector, str, Service]]:
    """Give a tracked victim, a client, the target's name and the agent. Rounds come at barriers, hardly in between."""
    with (
        victim() as process,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(process.pid), interval="60m") as agent,
        Collector(collector.address) as client,
    ):
        process.do(RING)
        yield process, client, f"{HOST}/{process.pid}", agent


def test_lenient_answers_leave_out_what_strict_ones_have() -> None:
    """With the same cursor: certain pages are in both, uncertain ones apart, and the counts say which it was."""
    with served() as (process, client, name, _):
        own = process.map(4)
        shared = process.map(8, more="flags=0x21")
        first = client.dirty(name, barrier=True, strictness=LENIENT)
        assert {own, shared, shared + 7} <= set(first.written)
        assert (first.target.lenient, len(first.uncertain)) == (True, 0)
        process.write(own + 1, shared + 2)

        lenient = client.dirty(name, since=first.cursor, barrier=True, strictness=LENIENT)
        strict = client.dirty(name, since=first.cursor)
        by_itself = client.dirty(name, since=first.cursor, strictness=Strictness.STRICT_WHEN_FROZEN)

        every = set(range(shared, shared + 8))
        assert own + 1 in lenient.written
        assert not every & set(lenient.written)
        assert every <= set(lenient.uncertain)
        assert every <= set(strict.written)
        assert strict.uncertain == lenient.uncertain
        assert strict.written == lenient.written | lenient.uncertain
        assert (lenient.target.lenient, strict.target.lenient) == (True, False)
        assert by_itself.written == lenient.written

        process.program.stop()
        frozen = client.dirty(name, since=lenient.cursor, barrier=True, strictness=Strictness.STRICT_WHEN_FROZEN)
        assert (frozen.target.frozen, frozen.target.lenient) == (True, False)
        assert every <= set(frozen.written)


def test_a_mover_that_is_lenient_while_the_target_runs_loses_nothing() -> None:
    """Shared memory written through a descriptor and a registered buffer that the kernel reads into: every byte."""
    with served() as (process, client, name, _):
        shared = process.map(64, more="flags=0x01, fd=globals().setdefault('fd', os.memfd_create('it'))", filled=False)
        process.do(f"os.ftruncate(fd, 64 * PAGE); fill({shared * PAGE}, 64)")
        buffer = process.map(16)
        process.do(
            "globals()['file'] = os.memfd_create('file'); os.write(file, b'new' * 40000)\n"
            "globals()['mine'] = MappedRing()"
        )
        process.do(f"register(mine.fd, ({buffer * PAGE}, 16 * PAGE))")

        with ShadowCopy(process.pid) as copy:
            rounds = []
            for done in precopy(client, client.targets(name)[0].name, copy):
                rounds.append(done)
                if not done.frozen:
                    number = len(rounds)
                    process.do(f"os.pwrite(fd, b'seen by nobody', {number} * PAGE)")
                    process.do(f"mine.read_fixed(file, {(buffer + number) * PAGE}, PAGE)")
            page_count, found = differences(process.pid, copy.pages)

        assert found == []
        assert page_count > 0
        assert rounds[-1].frozen
        assert rounds[-1].written_page_count >= 64 + 16


def test_what_is_uncertain_is_listed_from_the_target_to_the_reader() -> None:
    """Through agent and collector, as the SDK gives it."""
    with served() as (process, client, name, _):
        shared = process.map(8, more="flags=0x21")
        found, mapping = None, None
        until = time.monotonic() + PATIENCE_SECONDS
        while mapping is None and time.monotonic() < until:
            client.barrier(name)  # a table comes with a round, and at most once a second
            found = client.mappings(name)
            mapping = next((one for one in found.mappings if one.start_address == shared * PAGE), None)

        assert found is not None
        assert mapping is not None
        assert (mapping.uncertainty, mapping.shared, mapping.length_bytes) == (Uncertainty.SHARED, True, 8 * PAGE)
        assert mapping.name == "/dev/zero (deleted)"
        assert not found.cut
        assert found.round >= 1


def test_a_buffer_that_is_given_back_while_no_worker_lives_is_reported() -> None:
    """The next worker finds no buffer any more, goes on in the same incarnation, and does not take that for clean."""
    with served() as (process, client, name, agent):
        buffer = process.map(4)
        process.do("globals()['file'] = os.memfd_create('file'); os.write(file, b'new' * 4000)")
        process.do(f"globals()['mine'] = MappedRing(); register(mine.fd, ({buffer * PAGE}, 4 * PAGE))")
        first = client.dirty(name, barrier=True)
        first = client.dirty(name, since=first.cursor, barrier=True)
        time.sleep(0.5)  # until the worker knows that all is durable: else the next would doubt, whatever we test
        os.kill(worker_pid(agent), signal.SIGKILL)

        process.do(f"mine.read_fixed(file, {(buffer + 1) * PAGE}, PAGE); unregister(mine.fd)")

        agent.wait_for_log("target_continued")
        agent.wait_for_log("connected", 2)
        after = client.dirty(name, since=first.cursor, barrier=True, barrier_seconds=20)
        assert after.complete
        assert after.incarnation == first.incarnation
        assert buffer + 1 in after.written - after.uncertain
