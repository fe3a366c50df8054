"""A disk that is full, read-only or broken: nothing is acknowledged that is not there, and it ends by itself."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EIO, EROFS
from pathlib import Path
from typing import cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.integration.collector.wire import Agent, Reader, batch, position, refused, start, target
from tests.support.collector import CollectorProcess, running_collector, start_collector
from tests.support.disk import Faults, preloaded
from tests.support.needs import needs

NAME = "host-1/1@100"
ONE = target()
GROWTH_BYTES_MAX = 96 << 20
"""What may wait for the writer, and as much again for what is on its way there and for the interpreter."""


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Path]:
    """Mount a tmpfs while the body runs."""
    needs("root")
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def resident_bytes(pid: int) -> int:
    """Say how much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def fill(agent: Agent, first: int) -> int:
    """Deliver rounds of 64 KiB each until the collector has no room; give the last that was acknowledged."""
    last = first - 1
    agent.say(*(batch(ONE, n, written=range(n % 5, 1 << 19, 5)) for n in range(first, first + 400)))
    with refused(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"):
        for message in agent.call:
            last = message.ack.positions[0].round
    return last


def expect_advice(address: str) -> None:
    """Be turned away with a time after which to come back."""
    with Agent(address) as agent:
        try:
            agent.hello()
        except grpc.RpcError as error:
            status = rpc_status.from_call(cast("grpc.Call", error))
            assert status
            retry = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(retry) for detail in status.details)
            assert retry.retry_delay.ToMilliseconds() == 1000
        else:
            pytest.fail("a stream was taken while the store cannot be written")


def go_on(collector: CollectorProcess, last: int) -> None:
    """Resume at what was acknowledged, and be whole again."""
    with Agent(collector.address) as agent:
        (durable,) = agent.hello(position(ONE, last)).positions
        assert durable.round >= last
        agent.say(start(ONE), batch(ONE, durable.round + 1, written=[1 << 30]))
        agent.acknowledged(ONE, durable.round + 1)
        answer = Reader(collector.address).dirty(NAME)
    expected = {page for n in range(1, min(durable.round, 6) + 1) for page in range(n % 5, 1 << 19, 5)}
    assert answer.written[NAME] == expected | {1 << 30}
    assert answer.summary.complete


def test_full_disk_fills_no_memory_and_ends_when_there_is_room(tmp_path: Path) -> None:
    """
    On a real file system that is full: agents and their Hellos are turned away with a time to come back, readers get
    what is there, and everything goes on once there is room.
    """
    with mounted(tmp_path / "small", "-o", "size=6m") as small:
        ballast = small / "ballast"
        ballast.write_bytes(bytes(3 << 20))
        with running_collector(small / "data") as collector, Agent(collector.address) as agent:
            agent.hello()
            agent.deliver(ONE, range(1, 1 << 19, 5))
            before = resident_bytes(collector.pid)
            last = fill(agent, 2)
            collector.wait_for_log("store_failed")
            answer = Reader(collector.address).dirty(NAME)
            # What became durable as the stream ended may not have been acknowledged any more.
            assert answer.summary.targets[0].round >= last
            assert not answer.summary.complete
            for _ in range(5):
                expect_advice(collector.address)
            assert resident_bytes(collector.pid) - before < GROWTH_BYTES_MAX

            ballast.unlink()
            collector.wait_for_log("store_recovered")
            go_on(collector, last)


@pytest.mark.needs("cc")
@pytest.mark.parametrize(
    "faults_set",
    [{"write": EIO}, {"write": EROFS}, {"sync": EIO}],
    ids=["writes fail", "read-only", "fsyncs fail"],
)
def test_disk_that_fails_is_told_and_ends_when_it_works_again(tmp_path: Path, faults_set: dict[str, int]) -> None:
    """In the middle of work, by each way in which a write can fail: one failure and one recovery are logged."""
    faults = Faults(tmp_path / "faults")
    data = tmp_path / "data"
    data.mkdir()
    environment = preloaded(data, faults=faults)
    with running_collector(data, environment=environment) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, range(1, 1 << 19, 5))
        with faults.during(**faults_set):
            last = fill(agent, 2)
            collector.wait_for_log("store_failed")
            expect_advice(collector.address)
        collector.wait_for_log("store_recovered")
        go_on(collector, last)
    assert len(collector.events("store_failed")) == len(collector.events("store_recovered")) == 1
    assert collector.events("store_set_aside") == collector.events("record_damaged") == []


@pytest.mark.needs("cc")
def test_disk_that_cannot_be_read_is_an_error_and_no_smaller_set(tmp_path: Path) -> None:
    """A reader is told to come back; nothing is taken for damaged, and the next answer is whole."""
    faults = Faults(tmp_path / "faults")
    data = tmp_path / "data"
    data.mkdir()
    with running_collector(data, environment=preloaded(data, faults=faults)) as collector:
        with Agent(collector.address) as agent:
            agent.hello()
            agent.deliver(ONE, *(range(n, 1 << 19, 5) for n in range(5)))
            agent.end()
        reader = Reader(collector.address)
        with faults.during(read=EIO), refused(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"):
            reader.dirty(NAME)

        assert reader.dirty(NAME).written[NAME] == set(range(1 << 19))
    assert collector.events("record_damaged") == []


def test_read_only_file_system_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """At start, with what to do; the store is not touched."""
    with mounted(tmp_path / "disk", "-o", "size=16m") as disk:
        with running_collector(disk / "data") as collector, Agent(collector.address) as agent:
            agent.hello()
            agent.deliver(ONE, [1])
        before = {file.name: file.read_bytes() for file in (disk / "data").iterdir()}
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        process = start_collector(disk / "data")
        _, log = process.communicate(timeout=60)

        assert process.returncode == 1
        assert "cannot be written: Read-only file system; give one that can be with --data" in log
        assert "Traceback" not in log
        assert {file.name: file.read_bytes() for file in (disk / "data").iterdir()} == before
