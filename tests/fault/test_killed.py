"""SIGKILL of any part at any moment: the target is well, and no answer is ever wrong."""

import random
import time
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.agent import HOST, running_agent, start_agent
from tests.support.collector import CollectorProcess, running_collector, start_collector
from tests.support.reader import Reader
from wetink_client import Collector
from wetink_client.errors import ResynchronisationNeeded, Unavailable
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(600)]

KILLS = 20


def test_copy_goes_on_across_twenty_kills_of_the_collector(tmp_path: Path) -> None:
    """The same cursor and the same copy, continued over every restart, end identical and were never begun anew."""
    pauses = random.Random(5)  # noqa: S311 - repeatable, not secret
    listen = f"unix:{tmp_path}/collector.sock"
    data = tmp_path / "data"
    process = start_collector(data, listen=listen)
    with programs.running("writer", "mapfixed", 5) as writer, running_agent(listen, "--pid", str(writer.pid)) as agent:
        collector = CollectorProcess(process, data)
        try:
            with Collector(listen) as client, ShadowCopy(writer.pid) as copy:
                reader = Reader(client, f"{HOST}/{writer.pid}", copy)
                reader.read_complete()
                for _ in range(KILLS):
                    read_for(reader, pauses.uniform(0.02, 0.3))
                    collector.kill()
                    collector.close()
                    assert writer.alive()
                    time.sleep(pauses.uniform(0, 0.2))
                    collector = CollectorProcess(start_collector(data, listen=listen), data)
                assert reader.read_complete().complete
                writer.stop()
                last = reader.read_complete()

                assert last.consistency.name == "FROZEN"
                assert reader.resynchronised == 0
                assert differences(writer.pid, copy.pages)[1] == []
                assert agent.process.poll() is None
        finally:
            collector.close()


def read_for(reader: Reader, seconds: float) -> None:
    """Read as an orchestrator would, for a while; the collector may not be there, or may be without its agent."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            reader.read()
        except Unavailable:
            time.sleep(0.01)


def test_target_is_well_and_answers_are_honest_across_twenty_kills_of_the_agent(tmp_path: Path) -> None:
    """While it is gone no answer is complete; when it is back the old cursor is an error and a fresh copy right."""
    pauses = random.Random(6)  # noqa: S311 - repeatable, not secret
    with (
        running_collector(tmp_path / "data") as collector,
        programs.running("writer", "threads", 6) as writer,
        Collector(collector.address) as client,
        ShadowCopy(writer.pid) as copy,
    ):
        agent = start_agent(collector.address)
        agent.wait_for_log("connected")
        target = client.track(HOST, writer.pid).name
        reader = Reader(client, target, copy)
        try:
            for _ in range(KILLS):
                before, begun_anew = reader.read_complete().cursor, reader.resynchronised
                time.sleep(pauses.uniform(0, 0.2))
                agent.kill()
                agent.close()

                assert writer.alive()
                assert not userfaultfds(writer.pid)
                answer = client.dirty(target, since=before, barrier=True)
                assert not answer.complete
                assert answer.target.incomplete_message

                agent = start_agent(collector.address)
                agent.wait_for_log("connected")
                with pytest.raises(ResynchronisationNeeded):
                    client.dirty(target, since=before, barrier=True)
                reader.read_complete()
                assert reader.resynchronised > begun_anew
            writer.stop()
            last = reader.read_complete()

            assert last.complete
            assert differences(writer.pid, copy.pages)[1] == []
        finally:
            agent.close()


def userfaultfds(pid: int) -> list[str]:
    """Give the process's descriptors of that kind."""
    return [str(path) for path in Path(f"/proc/{pid}/fd").iterdir() if "userfaultfd" in str(path.readlink())]


def test_target_runs_on_under_its_own_checks_while_agents_are_killed(tmp_path: Path) -> None:
    """A program that checks each of its own turns sees none of twenty agents come, track it and be killed."""
    pauses = random.Random(7)  # noqa: S311 - repeatable, not secret
    with running_collector() as collector, programs.running("sleeper", "threads", tmp_path / "progress", 8) as target:
        for _ in range(KILLS):
            agent = start_agent(collector.address, "--pid", str(target.pid), interval="10ms")
            time.sleep(pauses.uniform(0.3, 1.2))
            agent.kill()
            agent.close()
            assert target.alive(), target.errors
        programs.Progress(target, tmp_path / "progress").wait()

        assert target.terminate() == 0, target.errors
