import asyncio
import subprocess
import threading
from pathlib import Path

import pytest

from wetink.v1 import ingest_pb2
from wetink_agent import backends
from wetink_agent.agent import Agent, Settings
from wetink_agent.discovery import Selection
from wetink_agent.errors import Untrackable


def test_who_stops_waiting_for_an_attach_does_not_stop_it_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose stream ended meanwhile takes nothing from discovery, which waits for the same process."""
    gate = threading.Event()

    def slow(pid: int, *, seccomp_allows: bool) -> int:  # noqa: ARG001 - as the real one takes it
        gate.wait(20)
        message = f"process {pid} is not for tracking"
        raise Untrackable(message)

    monkeypatch.setattr(backends, "take_userfaultfd", slow)

    async def test(pid: int) -> None:
        agent = Agent(Settings(collector="127.0.0.1:9", host_id="here", pids=(), selection=Selection()))
        track = ingest_pb2.CollectorMessage(track=ingest_pb2.Track(request_id=1, pid=pid))
        command = asyncio.create_task(agent.carry_out(track))
        await asyncio.sleep(0)
        discovery = asyncio.create_task(agent._track(pid, 0))
        await asyncio.sleep(0)
        command.cancel()
        await asyncio.sleep(0.05)
        gate.set()

        with pytest.raises(Untrackable, match="not for tracking"):
            await discovery
        assert command.cancelled()
        assert not agent._attaching

    with subprocess.Popen(["sleep", "60"]) as target:
        try:
            asyncio.run(test(target.pid))
        finally:
            target.kill()


def test_a_command_that_fails_in_the_system_is_answered_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Out of descriptors, say: the orchestrator hears it, and does not wait for its deadline."""

    def broken(_pid: int, *, seccomp_allows: bool) -> int:  # noqa: ARG001 - as the real one takes it
        raise OSError(24, "Too many open files", str(tmp_path))

    monkeypatch.setattr(backends, "take_userfaultfd", broken)

    async def test(pid: int) -> None:
        agent = Agent(Settings(collector="127.0.0.1:9", host_id="here", pids=(), selection=Selection()))
        track = ingest_pb2.CollectorMessage(track=ingest_pb2.Track(request_id=5, pid=pid))
        answer = await agent.carry_out(track)

        assert answer is not None
        assert answer.command_result.request_id == 5
        assert answer.command_result.code != 0
        assert "Too many open files" in answer.command_result.message

    with subprocess.Popen(["sleep", "60"]) as target:
        try:
            asyncio.run(test(target.pid))
        finally:
            target.kill()
