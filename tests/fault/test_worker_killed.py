"""SIGKILL of the worker with its keeper alive: incarnation, cursors and copies go on; of both: nothing stays behind."""

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.agent import HOST, running_agent, worker_pid
from tests.support.amounts import amount
from tests.support.collector import CollectorProcess, running_collector, start_collector
from tests.support.reader import Reader
from tests.support.service import Service
from tests.support.watched import wait_until
from wetink_agent.entry import KEEPER
from wetink_agent.journal import JournalOnDisk
from wetink_agent.procfs import boot_id
from wetink_client import Collector
from wetink_client.errors import ResynchronisationNeeded, Unavailable
from wetink_client.shadow import ShadowCopy
from wetink_client.values import EndReason
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(amount(gate=300, soak=3600))]

KILLS = amount(gate=5, soak=50)

PATIENCE_SECONDS = 30.0

POINTS = {
    # Marks are taken, and nobody has been told.
    "census": "from wetink_agent.wp_async import WpAsync as Class; name = '_census'; after = True",
    # What the reader may come to hold is written down; the round is not in the spool.
    "keepsake": "from wetink_agent.keepsake import Keepsake as Class; name = 'harvested'; after = True",
    # The round is in the spool, and dies there.
    "spool": "from wetink_agent.spool import Spool as Class; name = 'add'; after = True",
    # It has been sent, and nobody knows whether it arrived.
    "acknowledged": "from wetink_agent.spool import Spool as Class; name = 'acknowledge'; after = False",
}
"""Where in its work a worker is killed: after a call of a method, or before."""

WORKER = """
import os, signal, sys
{point}
count = 0
whole = getattr(Class, name)

def counted(*arguments, **named):
    global count
    count += 1
    is_last = count == {turn}
    if is_last and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    result = whole(*arguments, **named)
    if is_last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

if not os.path.exists({marker!r}):
    open({marker!r}, "w").close()
    setattr(Class, name, counted)
from wetink_agent.command import main
main()
"""


def read_for(reader: Reader, seconds: float) -> None:
    """Read as an orchestrator would, for a while; nobody may be there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            reader.read()
        except Unavailable:
            time.sleep(0.01)


def check_same(reader: Reader, writer: programs.Program, copy: ShadowCopy) -> None:
    """Freeze the target, read what is left, and compare."""
    reader.read_complete()
    writer.stop()
    last = reader.read_complete()

    assert last.consistency.name == "FROZEN"
    assert reader.resynchronised == 0
    assert differences(writer.pid, copy.pages)[1] == []


@pytest.mark.soak
@pytest.mark.parametrize("pattern", ["mapfixed", "malloc_churn"][: amount(gate=1, soak=2)])
def test_copy_goes_on_while_the_worker_is_killed(pattern: str) -> None:
    """One incarnation over all of them: the first cursor is still good, and the copy is the target's in every byte."""
    pauses = random.Random(8)  # noqa: S311 - repeatable, not secret
    with (
        running_collector() as collector,
        programs.running("writer", pattern, 8) as writer,
        running_agent(collector.address, "--pid", str(writer.pid), interval="20ms") as agent,
        Collector(collector.address) as client,
        ShadowCopy(writer.pid) as copy,
    ):
        reader = Reader(client, f"{HOST}/{writer.pid}", copy)
        first = reader.read_complete()
        for count in range(2, KILLS + 2):
            read_for(reader, pauses.uniform(0.1, 0.6))
            os.kill(worker_pid(agent), signal.SIGKILL)
            agent.wait_for_log("worker_restarted", count - 1)
            agent.wait_for_log("connected", count)
        check_same(reader, writer, copy)
        since_first = client.dirty(f"{HOST}/{writer.pid}", since=first.cursor)

        assert since_first.complete
        assert since_first.target.incarnation == first.target.incarnation
        assert agent.process.poll() is None


@pytest.mark.parametrize(
    "point, pattern", [*((point, "random") for point in POINTS), ("spool", "munmap_same"), ("census", "dontneed_pages")]
)
def test_copy_goes_on_after_a_kill_in_the_middle(point: str, pattern: str, tmp_path: Path) -> None:
    """Wherever in a round the worker ends, what it had found out and not told is told by the next one.

    The target is frozen as soon as the worker is gone: nothing that was lost is written again.
    """
    with (
        running_collector() as collector,
        programs.running("writer", pattern, 9) as writer,
        agent_that_dies(collector.address, writer, POINTS[point], tmp_path) as agent,
        Collector(collector.address) as client,
        ShadowCopy(writer.pid) as copy,
    ):
        reader = Reader(client, f"{HOST}/{writer.pid}", copy)
        reader.read_complete()
        while not agent.events("worker_restarted"):
            read_for(reader, 0.05)
        check_same(reader, writer, copy)


def freeze_without(worker: int, writer: programs.Program) -> None:
    """Freeze a target at once when the worker has ended."""
    ended = os.pidfd_open(worker)
    try:
        select.select([ended], [], [], PATIENCE_SECONDS)
    finally:
        os.close(ended)
    writer.stop()


@contextmanager
def agent_that_dies(address: str, writer: programs.Program, point: str, directory: Path) -> Iterator[Service]:
    """Run an agent with a spool on disk whose first worker is killed in its twentieth round, or about then.

    Its target is frozen as soon as that worker is gone.
    """
    source = WORKER.format(point=point, turn=20, marker=str(directory / "marker"))
    worker = [sys.executable, "-c", source, "--collector", address, "--host-id", HOST, "--spool", str(directory)]
    command = [sys.executable, "-I", "-S", str(KEEPER), *worker, "--pid", str(writer.pid), "--interval", "20ms"]
    agent = Service(subprocess.Popen(command, stderr=subprocess.PIPE, text=True), "agent")
    # From its start on: on a busy machine the twentieth round may be over before anybody has read the first.
    freezing = threading.Thread(target=freeze_without, args=(worker_pid(agent), writer))
    freezing.start()
    try:
        agent.wait_for_log("connected")
        yield agent
    finally:
        agent.close()
        freezing.join()


def test_nothing_stays_behind_when_the_keeper_is_killed_too() -> None:
    """The target runs on, nothing of its memory is registered any more, and the next answer demands to begin anew."""
    with (
        running_collector() as collector,
        programs.running("writer", "threads", 6) as writer,
        Collector(collector.address) as client,
    ):
        with running_agent(collector.address, "--pid", str(writer.pid)) as agent:
            target = f"{HOST}/{writer.pid}"
            before = client.dirty(target, barrier=True)
            assert is_registered(writer.pid)
            worker = worker_pid(agent)
            agent.kill()
            wait_until_gone(worker)

            assert writer.alive()
            assert not is_registered(writer.pid)
        with running_agent(collector.address, "--pid", str(writer.pid)):
            with pytest.raises(ResynchronisationNeeded):
                client.dirty(target, since=before.cursor, barrier=True)
            assert client.dirty(target, barrier=True).complete


def is_registered(pid: int) -> bool:
    """Whether any mapping of a process is registered with a userfaultfd for write-protection."""
    return any(
        line.startswith("VmFlags:") and "uw" in line.split()
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines()
    )


def wait_until_gone(pid: int) -> None:
    """Wait until a process has let go of everything."""
    until = time.monotonic() + PATIENCE_SECONDS
    while Path(f"/proc/{pid}/stat").exists():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_upgrade_of_the_worker_keeps_incarnations() -> None:
    """SIGHUP starts another worker; it takes over in good order: the same incarnation, and nothing told twice."""
    with (
        running_collector() as collector,
        programs.running("writer", "random", 7) as writer,
        running_agent(collector.address, "--pid", str(writer.pid)) as agent,
        Collector(collector.address) as client,
        ShadowCopy(writer.pid) as copy,
    ):
        reader = Reader(client, f"{HOST}/{writer.pid}", copy)
        everything = len(reader.read_complete().written)
        worker = worker_pid(agent)
        os.kill(agent.pid, signal.SIGHUP)
        agent.wait_for_log("connected", 2)
        after = reader.read_complete()

        assert worker_pid(agent) != worker
        assert agent.wait_for_log("worker_restarted")["why"] == "upgrade"
        assert agent.wait_for_log("target_continued")["whole"]
        assert len(after.written) < everything
        check_same(reader, writer, copy)


def test_rounds_on_disk_outlive_worker_and_collector(tmp_path: Path) -> None:
    """A target ends while the collector is away, and then the worker: its last round and its end come all the same."""
    listen = f"unix:{tmp_path}/collector.sock"
    collector = CollectorProcess(start_collector(tmp_path / "data", listen=listen), tmp_path / "data")
    options = ["--spool", str(tmp_path / "spool")]
    try:
        with (
            programs.running("writer", "random", 7) as writer,
            running_agent(listen, "--pid", str(writer.pid), *options) as agent,
        ):
            target = f"{HOST}/{writer.pid}"
            with Collector(listen) as client:
                before = client.dirty(target, barrier=True).target.round
            collector.kill()
            collector.close()
            agent.wait_for_log("collector_unreachable")
            time.sleep(1)  # some rounds that nobody takes
            writer.process.kill()
            writer.process.wait()
            agent.wait_for_log("target_ended")
            wait_until(lambda: has_end_on_disk(tmp_path / "spool"), seconds_max=PATIENCE_SECONDS)
            os.kill(worker_pid(agent), signal.SIGKILL)
            collector = CollectorProcess(start_collector(tmp_path / "data", listen=listen), tmp_path / "data")
            agent.wait_for_log("connected", 2)
            with Collector(listen) as client:
                until = time.monotonic() + PATIENCE_SECONDS
                while (ended := client.targets(target)[0]).live:
                    assert time.monotonic() < until, ended
                    time.sleep(0.02)

            assert ended.end_reason is EndReason.EXITED
            assert ended.round > before
    finally:
        collector.close()


def has_end_on_disk(spool: Path) -> bool:
    """Whether a spool that is being written has the end of a target, as a worker that came now would read it."""
    with tempfile.TemporaryDirectory() as now:
        shutil.copytree(spool, now, dirs_exist_ok=True)
        with JournalOnDisk(Path(now), boot_id()) as journal:
            return any(stored.ended for stored in journal.load().values())


def test_target_that_ends_meanwhile_is_told_as_it_ended() -> None:
    """Of a target that exits while there is no worker, the next one tells that it exited."""
    with (
        running_collector() as collector,
        programs.running("writer", "random", 7) as writer,
        running_agent(collector.address, "--pid", str(writer.pid)) as agent,
        Collector(collector.address) as client,
    ):
        worker = worker_pid(agent)
        programs.stop(worker)
        writer.process.kill()
        writer.process.wait()
        os.kill(worker, signal.SIGKILL)
        agent.wait_for_log("connected", 2)
        until = time.monotonic() + PATIENCE_SECONDS
        while (target := next(iter(client.targets(f"{HOST}/{writer.pid}")))).live:
            assert time.monotonic() < until, target
            time.sleep(0.02)

        assert target.end_reason is EndReason.EXITED
