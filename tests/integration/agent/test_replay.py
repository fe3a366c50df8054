"""``record`` over a real process, ``--backend replay`` into a real collector, and what a person can do wrong."""

import datetime as dt
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support import programs
from tests.support.agent import HOST, start_agent
from tests.support.amounts import amount
from tests.support.collector import running_collector
from tests.support.harvests import Sets, ended_of, make_round, plain_sets_of, started_of
from tests.support.service import PATIENCE_SECONDS, start
from wetink.command_line import ExitCode
from wetink.v1 import types_pb2
from wetink_agent.recording import Recording, RecordingUnusable, RecordingWriter
from wetink_agent.replay import PID_FIRST
from wetink_client import Collector, MigrationPlan, Selection

TICK_NS = 100_000_000
ROUNDS: tuple[Sets, ...] = (
    (frozenset(range(100)), frozenset()),
    (frozenset({3, 5_000_000_000}), frozenset({7})),
    (frozenset({7, 8}), frozenset({3, 4})),
)


def write(
    path: Path,
    rounds: Sequence[Sets] = ROUNDS,
    *,
    tick_ns: int = TICK_NS,
    times_ns: Sequence[int] = (),
    ends: bool = True,
) -> bytes:
    """Write a recording with a round each tenth of a second, or at some times; its bytes."""
    started = started_of()
    started.page_size = 4096
    with RecordingWriter(path, started) as writer:
        for number, sets in enumerate(rounds, start=1):
            made = make_round(number, *sets)
            for part in made.parts:
                part.first_time_ns = part.last_time_ns = times_ns[number - 1] if times_ns else number * tick_ns
            writer.add(made)
        if ends:
            writer.end(ended_of())
    return path.read_bytes()


def run(*arguments: str) -> tuple[int, str]:
    """Run ``wetink-agent`` until it ends; its exit code and what it said, log lines left out."""
    with start("wetink_agent.command", ["--host-id", HOST, *arguments]) as process:
        try:
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, "".join(line for line in said.splitlines(keepends=True) if not line.startswith("{"))


def is_one_sentence(said: str) -> bool:
    """Whether it is one line of the agent's, with no traceback."""
    return said.startswith("wetink-agent: ") and said.count("\n") == 1 and "Traceback" not in said


def played(collector: Collector, name: str, round_count: int) -> list[Sets]:
    """Follow a target from its first round on with a cursor, a barrier a round: the sets of every answer."""
    wait_until(lambda: any(target.round for target in collector.targets()))
    answer = collector.dirty(name)
    answers = [(frozenset(answer.written), frozenset(answer.vanished))]
    while len(answers) < round_count:
        answer = collector.dirty(name, since=answer.cursor, barrier=True)
        answers.append((frozenset(answer.written), frozenset(answer.vanished)))
        assert answer.complete
        assert answer.exact
        assert answer.target.round == len(answers)
    return answers


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, true
        time.sleep(0.02)


def until_ended(collector: Collector, count: int = 1) -> list[str]:
    """Wait until so many targets have ended; how each did."""
    wait_until(lambda: sum(not target.live for target in collector.targets()) == count)
    return [f"{target.end_reason}: {target.end_message}" for target in collector.targets()]


@pytest.mark.needs("kernel", "root", "cc")
def test_a_recorded_process_is_answered_as_it_was_recorded(tmp_path: Path) -> None:
    """Written and vanished pages of every round, by cursor, are those in the file; so are command and page counts."""
    path = tmp_path / "recording"
    with programs.running("writer", "mapfixed", 1) as writer:
        pid = writer.pid
        assert run("record", str(path), "--pid", str(pid), "--interval", "50ms", "--rounds", "7") == (0, "")
        assert writer.alive()
    with Recording(path) as recording:
        assert recording.damage is None
        assert recording.started.target.pid == pid
        assert recording.started.backend == types_pb2.BACKEND_WP_ASYNC
        recorded = [plain_sets_of(recording.parts(index)) for index in range(len(recording))]
        populated = recording.parts(6)[0].populated_page_count
    assert len(recorded) == 7
    assert any(written for written, _ in recorded[1:])
    assert any(vanished for _, vanished in recorded)

    with running_collector() as service, Collector(service.address) as collector:
        # So slowly that only barriers bring rounds.
        agent = start_agent(service.address, "--backend", f"replay:{path}", "--speed", "0.001")
        try:
            agent.wait_for_log("connected")
            name = f"{HOST}/{PID_FIRST}"
            played_rounds = played(collector, name, 7)
            (target,) = collector.targets()
        finally:
            agent.close()

    assert played_rounds == recorded
    assert target.backend == "replay"
    assert "recording" in target.backend_reason
    assert "writer" in target.command
    assert target.populated_page_count == populated


def test_rounds_come_at_their_time(tmp_path: Path) -> None:
    """Ten times as fast takes a tenth as long, and the end comes one interval after the last round."""
    write(tmp_path / "a", ROUNDS * 4, tick_ns=2_000_000_000)
    with running_collector() as service, Collector(service.address) as collector:
        agent = start_agent(service.address, "--backend", f"replay:{tmp_path / 'a'}", "--speed", "10")
        try:
            assert agent.process.wait(PATIENCE_SECONDS) == 0
        finally:
            agent.close()
        (target,) = collector.targets()
    # By its own clock: when we hear of its start is a matter of how busy the machine is.
    began, ended = (
        dt.datetime.fromisoformat(agent.wait_for_log(name)["timestamp"]) for name in ("agent_started", "agent_stopped")
    )
    took = (ended - began).total_seconds()

    assert target.round == 12
    assert 2.2 < took < 20
    assert target.end_reason == "exited"
    assert target.end_message == "recording a ends here, after 12 rounds"


def test_targets_are_many_and_each_has_all(tmp_path: Path) -> None:
    """Pids and start times are distinct; what all rounds come to is the same for each; the agent ends well."""
    write(tmp_path / "a")
    with running_collector() as service, Collector(service.address) as collector:
        agent = start_agent(service.address, "--backend", f"replay:{tmp_path / 'a'}", "--targets", "20")
        try:
            ended = until_ended(collector, 20)
            targets = collector.targets()
            assert agent.process.wait(PATIENCE_SECONDS) == 0
        finally:
            agent.close()

    assert len({target.pid for target in targets}) == 20
    assert len({target.start_time_ticks for target in targets}) == 20
    assert {target.round for target in targets} == {3}
    assert set(ended) == {"exited: recording a ends here, after 3 rounds"}
    assert "Traceback" not in agent.log


def test_fifty_replayed_targets_are_drained_no_worse_than_naively(tmp_path: Path) -> None:
    """Each is moved once, in an order that takes no longer than the naive ones, and never over more than the link."""
    pages = 2000
    rounds = [(frozenset(range(pages)), frozenset[int]())]
    rounds += [(frozenset(range(at * 40, at * 40 + 40)), frozenset[int]()) for at in range(12)]
    # The last comes long after the others: until then every target lives.
    write(tmp_path / "a", [*rounds, ROUNDS[2]], times_ns=[*(number * TICK_NS for number in range(1, 14)), 10**12])
    link = 400_000_000
    plan = MigrationPlan(round_seconds=0.05, fixed_seconds=0.1)
    with running_collector() as service, Collector(service.address) as collector:
        agent = start_agent(service.address, "--backend", f"replay:{tmp_path / 'a'}", "--targets", "50")
        try:
            wait_until(lambda: [target.round for target in collector.targets()] == [13] * 50)
            found = collector.plan_drain(HOST, link, plan)
            assert agent.stop() == 0
        finally:
            agent.close()

    assert not found.cannot_move
    assert len({one.name for one in found.moves}) == len(found.moves) == 50
    assert found.all_at_once_seconds
    # Waiting for rounds and restores leaves the link to others.
    assert found.total_seconds < found.one_by_one_seconds
    assert found.total_seconds <= found.all_at_once_seconds
    assert found.total_seconds == max(one.end_seconds for one in found.moves)
    for begun in found.moves:
        used = [one for one in found.moves if one.start_seconds <= begun.start_seconds < one.end_seconds]
        assert sum(one.bandwidth_bytes_per_second for one in used) <= link


def test_a_loop_begins_new_incarnations(tmp_path: Path) -> None:
    """After the last round comes the first, of the same process and with everything in it."""
    write(tmp_path / "a", tick_ns=50_000_000)
    with running_collector() as service, Collector(service.address) as collector:
        agent = start_agent(service.address, "--backend", f"replay:{tmp_path / 'a'}", "--loop")
        try:
            seen: dict[int, int] = {}
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(seen) < 4 and time.monotonic() < deadline:
                for target in collector.targets(Selection(hosts=(HOST,))):
                    assert target.live
                    seen[target.incarnation] = max(target.round, seen.get(target.incarnation, 0))
            assert agent.stop() == 0
        finally:
            agent.close()
        (target,) = collector.targets()

    assert len(seen) >= 4
    assert max(seen.values()) <= 3
    assert target.end_reason == "untracked"


def test_a_torn_recording_is_played_as_far_as_it_is_whole(tmp_path: Path) -> None:
    """The log says so at once, each target fails with the sentence, and so does the agent."""
    path = tmp_path / "a"
    path.write_bytes(write(path)[:-70])
    with running_collector() as service, Collector(service.address) as collector:
        agent = start_agent(service.address, "--backend", f"replay:{path}")
        try:
            agent.wait_for_log("recording_damaged")
            (ended,) = until_ended(collector)
            assert agent.process.wait(PATIENCE_SECONDS) == ExitCode.FAILURE
        finally:
            agent.close()

    assert ended.startswith(f"failed: recording {path} is damaged at byte")
    assert ended.endswith("rounds 1 to 2 are whole")
    assert is_one_sentence("".join(line for line in agent.log.splitlines(keepends=True) if not line.startswith("{")))


def test_a_replaying_agent_tracks_no_real_process(tmp_path: Path) -> None:
    """What nobody wrote does not stand beside what somebody did."""
    write(tmp_path / "a", tick_ns=10**11)
    with running_collector() as service, Collector(service.address) as collector:
        agent = start_agent(service.address, "--backend", f"replay:{tmp_path / 'a'}")
        try:
            agent.wait_for_log("connected")
            with pytest.raises(Exception, match="replays a recording and tracks no process"):
                collector.track(HOST, os.getpid())
        finally:
            agent.close()


@pytest.mark.needs("kernel", "root", "cc")
@pytest.mark.parametrize(
    "options,backend",
    [
        (("--events", "--events-ring", "8MiB"), types_pb2.BACKEND_WP_ASYNC),
        (("--backend", "wp-sync", "--accept-risk"), types_pb2.BACKEND_WP_SYNC),
    ],
)
def test_recorded_events_are_played(options: tuple[str, ...], backend: int, tmp_path: Path) -> None:
    """What a recording says of who wrote comes out of a collector as it went into the file, whatever found it."""
    path = tmp_path / "recording"
    with programs.running("writer", "mapfixed", 1) as writer:
        pid = writer.pid
        assert run("record", str(path), "--pid", str(pid), "--interval", "50ms", "--rounds", "4", *options) == (0, "")
    with Recording(path) as recording:
        assert recording.started.backend == backend
        recorded = [part.events for index in range(4) for part in recording.parts(index) if part.events.address]
    addresses = [address for columns in recorded for address in np.frombuffer(columns.address, "<u8").tolist()]
    assert len(addresses) > 100

    with running_collector() as service, Collector(service.address) as collector:
        agent = start_agent(service.address, "--backend", f"replay:{path}", "--speed", "10")
        try:
            agent.wait_for_log("connected")
            until_ended(collector)
            batches = list(collector.events(collector.targets()[0].name))
        finally:
            agent.close()
    assert [event.address for batch in batches for event in batch.events] == addresses


@pytest.mark.parametrize(
    "option,said",
    [
        (("--targets", "0"), "--targets 0 is no number of targets from 1 to 4096"),
        (("--targets", "5000"), "--targets 5000 is no number"),
        (("--speed", "0"), "--speed 0 is no speed from 0.001 to 1000"),
        (("--speed", "-1"), "--speed -1 is no speed"),
        (("--speed", "nan"), "--speed nan is no speed"),
        (("--speed", "inf"), "--speed inf is no speed"),
        (("--pid", "1"), "tracks no process"),
    ],
)
def test_usage_of_replay(tmp_path: Path, option: tuple[str, ...], said: str) -> None:
    """What cannot be meant is said, with exit code 2, before anything is read."""
    code, told = run("--backend", f"replay:{tmp_path / 'a'}", *option)

    assert code == ExitCode.USAGE
    assert is_one_sentence(told), told
    assert said in told


def test_options_of_a_replay_without_one() -> None:
    """They would mean nothing."""
    code, told = run("--speed", "2")

    assert code == ExitCode.USAGE
    assert "they need --backend replay:FILE" in told


def test_recordings_that_cannot_be_played(tmp_path: Path) -> None:
    """No file, no recording, another version, nothing whole: one sentence that names the file, exit code 1."""
    whole = write(tmp_path / "whole")
    for name, data, said in (
        ("missing", None, "cannot be read: No such file or directory"),
        ("text", b"no recording", "is no recording"),
        ("version", whole[:8] + b"\x02" + whole[9:], "has version 2 of the format, and this agent reads version 1"),
        ("corrupt", whole[:30] + b"\xff" + whole[31:], "there is nothing to replay"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)

        code, told = run("--backend", f"replay:{path}")

        assert code == ExitCode.FAILURE
        assert is_one_sentence(told), told
        assert str(path) in told
        assert said in told


@pytest.mark.needs("kernel", "root")
def test_recording_ends_well_when_it_is_stopped_or_its_process_ends(tmp_path: Path) -> None:
    """SIGINT and SIGTERM end it after a round; exit and exec of the process are told in the file."""
    for number, reason in (
        (signal.SIGTERM, types_pb2.END_REASON_UNTRACKED),
        (signal.SIGINT, types_pb2.END_REASON_UNTRACKED),
        (None, types_pb2.END_REASON_EXITED),
    ):
        path = tmp_path / f"a{number}"
        with subprocess.Popen(["sleep", "60"]) as target:
            options = ["record", str(path), "--pid", str(target.pid), "--interval", "20ms"]
            with start("wetink_agent.command", options) as recorder:
                wait_for_rounds(path, 3)
                if number is None:
                    target.kill()
                    target.wait()
                else:
                    recorder.send_signal(number)
                _, said = recorder.communicate(timeout=PATIENCE_SECONDS)
            target.kill()

        assert (recorder.returncode, said) == (0, "")
        with Recording(path) as recording:
            assert recording.damage is None
            assert recording.ended is not None
            assert recording.ended.reason == reason


@pytest.mark.soak
@pytest.mark.needs("kernel", "root", "cc")
def test_recording_ends_well_at_whatever_moment_it_is_stopped(tmp_path: Path) -> None:
    """Half of the time in the middle of a round. A thread that a library has begun must not take the signal."""
    moments = random.Random(9)  # noqa: S311 - repeatable, not secret
    with programs.running("writer", "random", 128) as writer:
        for turn in range(amount(gate=3, soak=200)):
            path = tmp_path / f"a{turn}"
            options = ["record", str(path), "--pid", str(writer.pid), "--interval", "10ms"]
            with start("wetink_agent.command", options) as recorder:
                wait_for_rounds(path, 1)
                time.sleep(moments.uniform(0, 0.1))
                recorder.send_signal((signal.SIGTERM, signal.SIGINT)[turn % 2])
                _, said = recorder.communicate(timeout=PATIENCE_SECONDS)

            assert (recorder.returncode, said) == (0, ""), turn
            with Recording(path) as recording:
                assert recording.damage is None
                assert recording.ended is not None
                assert recording.ended.reason == types_pb2.END_REASON_UNTRACKED
            path.unlink()


@pytest.mark.needs("kernel", "root")
def test_a_recorder_that_is_killed_leaves_what_it_had(tmp_path: Path) -> None:
    """All rounds but the one that was being written; the sentence says that the end is missing."""
    path = tmp_path / "a"
    with subprocess.Popen(["sleep", "60"]) as target:
        options = ["record", str(path), "--pid", str(target.pid), "--interval", "10ms"]
        with start("wetink_agent.command", options) as recorder:
            wait_for_rounds(path, 5)
            recorder.kill()
            recorder.communicate()
        assert target.poll() is None
        target.kill()

    with Recording(path) as recording:
        assert len(recording) >= 5
        assert "it stops without an end record" in str(recording.damage) or "cut short" in str(recording.damage)


def wait_for_rounds(path: Path, count: int) -> None:
    """Wait until a recording that is being written has so many rounds."""

    def has_them() -> bool:
        try:
            with Recording(path) as recording:
                return len(recording) >= count
        except RecordingUnusable:  # it is not there yet, or has nothing yet
            return False

    wait_until(has_them)


@pytest.mark.needs("kernel", "root")
def test_what_record_refuses(tmp_path: Path) -> None:
    """A file that is there, no such process, no such directory, no rounds at all: one sentence, and the right code."""
    (tmp_path / "there").write_text("precious")
    with subprocess.Popen(["sleep", "60"]) as target:
        pid = str(target.pid)
        try:
            for options, expected, what in (
                ((str(tmp_path / "there"), "--pid", pid), ExitCode.FAILURE, "is there already: --force overwrites it"),
                ((str(tmp_path / "a"), "--pid", "4194303"), ExitCode.NOT_FOUND, "there is no process 4194303"),
                ((str(tmp_path / "no/a"), "--pid", pid), ExitCode.FAILURE, "cannot be written: No such file"),
                ((str(tmp_path / "a"), "--pid", pid, "--rounds", "0"), ExitCode.USAGE, "--rounds"),
                ((str(tmp_path / "a"), "--pid", pid, "--interval", "soon"), ExitCode.USAGE, "--interval 'soon'"),
                ((str(tmp_path / "a"),), ExitCode.USAGE, "--pid"),
            ):
                code, told = run("record", *options)

                assert code == expected, told
                assert is_one_sentence(told), told
                assert what in told
            assert (tmp_path / "there").read_text() == "precious"
            assert not (tmp_path / "a").exists()
            assert run("record", str(tmp_path / "there"), "--pid", pid, "--rounds", "1", "--force") == (0, "")
        finally:
            target.kill()
    with Recording(tmp_path / "there") as recording:
        assert len(recording) == 1
