import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2

from tests.integration.client.command import ENVIRONMENT, WETINK, failure, running, wetink
from tests.support.fake_dirty import fake_collector
from tests.support.raw_agent import RawAgent
from wetink.v1 import dirty_pb2, types_pb2

COMMANDS = ["hosts", "targets", "track", "untrack", "barrier", "dirty", "watch"]


def lines_of(collector: str, *arguments: str) -> list[dict[str, Any]]:
    """Run a command that must succeed, and read its lines of JSON."""
    ended = wetink("--collector", collector, *arguments, "--json")

    assert (ended.returncode, ended.stderr) == (0, "")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def text_of(collector: str, *arguments: str) -> str:
    """Run a command that must succeed, and give what a person reads."""
    ended = wetink("--collector", collector, *arguments)

    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)], ids=["wetink", *COMMANDS])
def test_help_teaches_by_example(arguments: Sequence[str]) -> None:
    """Each page ends with a line that can be typed."""
    ended = wetink(*arguments, "--help")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(rf"^ *Example: wetink .*{arguments[0] if arguments else 'targets'}", ended.stdout, re.MULTILINE)
    assert "Exit codes: 0 done" in ended.stdout


def test_command_without_a_subcommand_teaches() -> None:
    """It is a mistake, and the help says what to do."""
    ended = wetink()

    assert ended.returncode == 2
    assert ended.stdout == wetink("--help").stdout


def test_version_is_that_of_the_distribution() -> None:
    """One line, as the agent and the collector print it."""
    assert wetink("--version").stdout == f"{version('wetink')}\n"


@pytest.mark.parametrize(
    "arguments,absent",
    [
        (["--help"], ["grpc", "numpy", "rich", "google.protobuf"]),
        (["--collector", "unix:/nosuch", "targets"], ["numpy", "rich.table"]),
    ],
)
def test_command_imports_only_what_it_needs(arguments: Sequence[str], absent: Sequence[str]) -> None:
    """Numpy alone takes 0.2 s, which a person notices."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", WETINK, *arguments], capture_output=True, text=True, check=False
    )
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}

    assert "wetink_client.command" in imported
    assert imported.isdisjoint(absent)


def test_hosts_and_targets_are_listed(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """As tables, and as lines."""
    agent.start(7, range(100))

    (host,) = (line for line in lines_of(collector, "hosts") if line["host_id"] == host_id)
    (target,) = (line for line in lines_of(collector, "targets") if line["host_id"] == host_id)

    assert (host["host_id"], host["connected"], host["target_count"]) == (host_id, True, 1)
    assert (target["name"], target["backend"], target["end_reason"]) == (name, "replay", None)
    assert re.search(rf"^{host_id} +connected ", text_of(collector, "hosts"), re.MULTILINE)
    assert re.search(rf"^{name} +raw +live +400 KiB ", text_of(collector, "targets"), re.MULTILINE)
    assert lines_of(collector, "targets", "--cgroup", "/elsewhere") == []
    assert lines_of(collector, "targets", "--host", host_id, f"{host_id}/7") == [target]


def test_json_stands_before_or_after_the_subcommand(collector: str, agent: RawAgent, name: str) -> None:
    """Nobody remembers which."""
    agent.start(7, [1])

    before = wetink("--collector", collector, "--json", "dirty", name)
    after = wetink("--collector", collector, "dirty", name, "--json")

    assert before.returncode == 0
    assert before.stdout == after.stdout
    assert json.loads(before.stdout)["target"] == name


def test_dirty_line_is_as_promised(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """Keys in their order, addresses in bytes, and a cursor that goes on."""
    tracked = agent.start(7, [1, 2, 3, 9])
    (first,) = lines_of(collector, "dirty", f"{host_id}/7")
    agent.round(tracked, [2], vanished=[9])
    (second,) = lines_of(collector, "dirty", name, "--since", first["cursor"])

    assert list(first) == [
        "target",
        "incarnation",
        "cursor",
        "complete",
        "exact",
        "page_size",
        "pages",
        "ranges",
        "vanished",
        "strict",
        "uncertain",
        "freeze_method",
        "frozen_ns",
        "incomplete_reason",
        "incomplete_message",
        "end_reason",
    ]
    assert (first["target"], first["incarnation"], first["complete"], first["exact"]) == (name, 1, True, True)
    assert (first["page_size"], first["pages"]) == (4096, 4)
    assert (first["ranges"], first["vanished"]) == ([[0x1000, 0x3000], [0x9000, 0x1000]], [])
    assert (second["ranges"], second["vanished"]) == ([[0x2000, 0x1000]], [[0x9000, 0x1000]])


def test_mappings_are_listed_with_how_they_can_change_unseen(
    collector: str, agent: RawAgent, host_id: str, name: str
) -> None:
    """As a table, as JSON, and as a failure where nobody has told them."""
    tracked = agent.start(7, [1])
    unknown = wetink("--collector", collector, "targets", name, "--mappings")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert f"has not told what {name} has mapped" in unknown.stderr

    agent.tell_mappings(
        tracked,
        types_pb2.Mapping(
            range=types_pb2.AddressRange(start_address=0x1000, size_bytes=0x2000),
            name="/memfd:\x1b[2J",
            shared=True,
            device=1,
            inode=5,
            protection=3,
            uncertainty=types_pb2.UNCERTAINTY_SHARED,
        ),
        writers=[types_pb2.UnseenWriter(uncertainty=types_pb2.UNCERTAINTY_DIRECT_IO, what="descriptor 3: /data")],
    )
    agent.round(tracked, [1])

    printed = wetink("--collector", collector, "targets", "--host", host_id, "--mappings")
    (told,) = lines_of(collector, "targets", name, "--mappings")

    assert printed.returncode == 0
    lines = [line.split() for line in printed.stdout.splitlines()]
    assert ["0x1000-0x3000", "8", "KiB", "rw-s", "shared", "/memfd:?[2J"] in lines
    assert "may write unseen, nobody can tell where (direct-io): descriptor 3: /data" in printed.stdout
    assert (told["name"], told["incarnation"], told["round"], told["cut"]) == (name, 1, 1, False)
    assert told["mappings"][0]["uncertainty"] == "shared"
    assert told["unseen_writers"] == [{"uncertainty": "direct-io", "what": "descriptor 3: /data"}]


def test_dirty_of_several_targets_is_a_line_each(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """With the one cursor of all."""
    agent.start(7, [1])
    agent.start(8, [2])

    lines = lines_of(collector, "dirty", f"{host_id}/8", f"{host_id}/7")

    assert [line["target"] for line in lines] == [name, f"{host_id}/8@100"]
    assert lines[0]["cursor"] == lines[1]["cursor"]
    assert [line["target"] for line in lines_of(collector, "dirty", "--host", host_id)] == [name, f"{host_id}/8@100"]


def test_barrier_comes_first_where_asked(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """What was written before the call is in the answer."""
    tracked = agent.start(7, [1])
    (first,) = lines_of(collector, "dirty", name)
    agent.write(tracked, [5])
    (second,) = lines_of(collector, "dirty", name, "--since", first["cursor"], "--barrier")
    agent.write(tracked, [6])
    (reached,) = lines_of(collector, "barrier", f"{host_id}/7")

    assert second["ranges"] == [[0x5000, 0x1000]]
    assert (reached["target"], reached["reached"], reached["round"]) == (name, True, 3)
    assert lines_of(collector, "dirty", name, "--since", reached["cursor"])[0]["pages"] == 0
    assert re.search(rf"^{name} +yes +1\.4 ", text_of(collector, "barrier", name), re.MULTILINE)


def test_dirty_for_people_has_counts_ranges_and_the_cursor(collector: str, agent: RawAgent, name: str) -> None:
    """Enough to see, and enough to go on."""
    agent.start(7, range(0, 40, 2))

    text = text_of(collector, "dirty", name)

    assert re.search(rf"^{name} +20 +80 KiB +20 +0 +0 +yes +yes +\d+\.\d s ago", text, re.MULTILINE)
    assert "0x0-0x1000  4 KiB" in text
    assert "and 12 more" in text
    (cursor,) = re.findall(r"^cursor (\S+)$", text, re.MULTILINE)
    assert lines_of(collector, "dirty", name, "--since", cursor)[0]["pages"] == 0


def test_barrier_that_was_not_reached_exits_with_3(collector: str, agent: RawAgent, name: str) -> None:
    """The answer is printed as usual, and the reason beside it."""
    agent.start(7, [1])
    agent.answers_barriers = False

    for command in ("barrier", "dirty"):
        flag = ["--barrier"] if command == "dirty" else []
        ended = wetink("--collector", collector, command, name, *flag, "--timeout", "0.3", "--json")

        assert ended.returncode == 3
        assert json.loads(ended.stdout)["target"] == name
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stderr.startswith(f"wetink: {name} is not complete: ")


def test_answer_that_is_not_complete_says_why(collector: str, host_id: str, name: str) -> None:
    """Without a barrier it is an answer all the same: exit code 0."""
    with RawAgent(collector, host_id) as agent:
        agent.start(7, [1])

    ended = wetink("--collector", collector, "dirty", name, "--json")

    assert ended.returncode == 0
    assert json.loads(ended.stdout)["complete"] is False
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"wetink: {name} is not complete: ")


@pytest.mark.usefixtures("agent")
def test_track_and_untrack_print_the_target(collector: str, host_id: str, name: str) -> None:
    """As it is then."""
    (tracked,) = lines_of(collector, "track", host_id, "7")
    (untracked,) = lines_of(collector, "untrack", f"{host_id}/7")

    assert (tracked["name"], tracked["end_reason"]) == (name, None)
    assert (untracked["name"], untracked["end_reason"]) == (name, "untracked")


def test_refusal_is_the_agents_sentence(collector: str, agent: RawAgent, host_id: str) -> None:
    """One line, exit code 1; a process that is not there has its own."""
    agent.track_code, agent.track_message = code_pb2.PERMISSION_DENIED, "process 9 belongs to root"
    refused = failure("--collector", collector, "track", host_id, "9")
    agent.track_code, agent.track_message = code_pb2.NOT_FOUND, "there is no process 9"
    missing = failure("--collector", collector, "track", host_id, "9")

    assert refused[0] == 1
    assert "process 9 belongs to root" in refused[1]
    assert missing[0] == 4
    assert "there is no process 9" in missing[1]


def test_unknown_is_4(collector: str, agent: RawAgent, host_id: str) -> None:
    """A target or host that nobody knows."""
    agent.start(7)

    for arguments in (
        ["dirty", f"{host_id}/8"],
        ["barrier", f"{host_id}/8"],
        ["untrack", f"{host_id}/8"],
        ["watch", f"{host_id}/8"],
        ["track", "host-0", "8"],
        ["targets", "--host", "host-0"],
        ["targets", "--host", host_id, "--host", "host-0"],
    ):
        assert failure("--collector", collector, *arguments)[0] == 4


@pytest.mark.usefixtures("agent")
def test_known_host_without_targets_is_no_mistake(collector: str, host_id: str) -> None:
    """It has an agent that tracks nothing yet."""
    assert lines_of(collector, "targets", "--host", host_id) == []


def test_mistake_is_2(collector: str, agent: RawAgent, host_id: str, name: str) -> None:
    """One sentence that says what to write instead."""
    agent.start(7, [1])
    agent.start(8, [1])
    (line,) = lines_of(collector, "dirty", name)

    for arguments in (
        ["dirty"],
        ["barrier"],
        ["dirty", "seven"],
        ["dirty", "--host", "not a host"],
        ["dirty", name, "--since", "nonsense"],
        ["dirty", name, "--since", line["cursor"][:-3]],
        ["dirty", f"{host_id}/8", "--since", line["cursor"]],
        ["dirty", name, "--label", "pod=a", "--label", "pod=b"],
        ["dirty", name, "--timeout", "1"],
        ["dirty", name, "--barrier", "--hold-for", "1"],
        ["barrier", name, "--timeout", "61"],
        ["verify", name, "--interval", "nan"],
        ["verify", name, "--interval", "inf"],
        ["track", host_id, "0"],
        ["track", host_id, "seven"],
        ["track", host_id],
        ["watch", name, "--count", "0"],
        ["nosuch"],
        ["hosts", "--nosuch"],
    ):
        code, sentence = failure("--collector", collector, *arguments)

        assert code == 2, arguments
        assert len(sentence) > 10


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["text", "json"])
def test_output_that_cannot_be_written_is_one_sentence(collector: str, agent: RawAgent, flag: list[str]) -> None:
    """On a disk that is full, say."""
    agent.start(7, [1])

    with Path("/dev/full").open("w", encoding="ascii") as full:
        ended = subprocess.run(
            [WETINK, "--collector", collector, "hosts", *flag],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert ended.stderr == "wetink: what it has to say cannot be written: No space left on device\n"
    assert ended.returncode == 1


def test_cursor_from_before_a_new_incarnation_is_5(collector: str, agent: RawAgent, name: str) -> None:
    """Ask again without it, and drop what you hold."""
    first = agent.start(7, [1])
    (line,) = lines_of(collector, "dirty", name)
    agent.end(first, types_pb2.END_REASON_EXEC)
    agent.start(7, [2], incarnation=2)

    code, _ = failure("--collector", collector, "dirty", name, "--since", line["cursor"])

    assert code == 5


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["text", "json"])
def test_watch_of_a_process_that_has_exited_is_0(collector: str, flag: list[str], agent: RawAgent, name: str) -> None:
    """It is over, and nothing has failed."""
    agent.end(agent.start(7, [1]), types_pb2.END_REASON_EXITED)
    agent.start(8)

    ended = wetink("--collector", collector, "watch", name, *flag)

    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1


def test_watch_counts_its_answers(collector: str, agent: RawAgent, name: str) -> None:
    """As lines of JSON it is the same as dirty; for people it is counts."""
    agent.start(7, [1, 2])

    (line,) = lines_of(collector, "watch", name, "--count", "1")
    # All hosts: those of other tests, whose agents are gone, have their reasons on standard error.
    text = wetink("--collector", collector, "watch", "--count", "1").stdout

    assert line == lines_of(collector, "dirty", name)[0]
    assert re.search(rf"^\d\d:\d\d:\d\d  {name} +2 pages +8 KiB +0 vanished  round 1\.1$", text, re.MULTILINE)


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["text", "json"])
def test_watch_says_why_an_answer_is_not_complete(collector: str, flag: list[str], host_id: str, name: str) -> None:
    """As dirty does, and without an end: exit code 0."""
    with RawAgent(collector, host_id) as agent:
        agent.start(7, [1])

    ended = wetink("--collector", collector, "watch", name, "--count", "1", *flag)

    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 1
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"wetink: {name} is not complete: the agent of host {host_id} is not connected")


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["text", "json"])
def test_watch_says_each_reason_once(flag: list[str]) -> None:
    """Again only when another came between, or none."""
    reasons = ["away", "away", "silent", "", "silent", "silent"]
    with fake_collector([summary(reason) for reason in reasons]) as address:
        ended = wetink("--collector", address, "watch", "host-1/7", "--count", str(len(reasons)), *flag)

    said = [line.rpartition(": ")[2] for line in ended.stderr.splitlines()]
    assert (ended.returncode, said) == (0, ["away", "silent", "silent"])
    assert len(ended.stdout.splitlines()) == len(reasons)


def summary(reason: str) -> dirty_pb2.GetDirtyResponse:
    """Give an answer of no pages that is not complete for a reason, or complete without one."""
    status = dirty_pb2.TargetStatus(
        name="host-1/7@100", complete=not reason, exact=True, page_size=4096, incomplete_message=reason
    )
    return dirty_pb2.GetDirtyResponse(
        summary=dirty_pb2.DirtySummary(cursor="next", complete=not reason, exact=True, targets=[status])
    )


def test_watch_ends_quietly_when_interrupted(collector: str, agent: RawAgent, name: str) -> None:
    """As a person ends it: no traceback."""
    agent.start(7, [1])
    with running("--collector", collector, "watch", name, "--json") as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["target"] == name
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=60)

    assert (watch.returncode, errors) == (130, "")


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["text", "json"])
def test_reader_that_goes_away_is_no_failure_to_tell(
    collector: str, agent: RawAgent, flag: list[str], name: str
) -> None:
    """As `| head` does: no traceback, and an end."""
    tracked = agent.start(7, [1])
    with running("--collector", collector, "watch", name, *flag) as watch:
        assert watch.stdout is not None
        assert name in watch.stdout.readline()
        watch.stdout.close()
        while watch.poll() is None:
            agent.round(tracked, [1])
        assert watch.stderr is not None
        assert watch.stderr.read() == ""


def test_answer_longer_than_a_pipe_can_be_cut_short(collector: str, agent: RawAgent, name: str) -> None:
    """`wetink dirty --json | head -c 10`."""
    agent.start(7, range(0, 60_000, 2))
    with running("--collector", collector, "dirty", name, "--json") as dirty:
        assert dirty.stdout is not None
        assert dirty.stdout.read(10) == '{"target":'
        dirty.stdout.close()
        assert dirty.stderr is not None
        assert dirty.stderr.read() == ""


def test_table_on_a_narrow_terminal_cuts_nothing(collector: str, agent: RawAgent, name: str) -> None:
    """It is folded: each name can be read, if not at once."""
    agent.start(7, [1])
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [WETINK, "--collector", collector, "targets", name],
        stdout=theirs,
        env={**ENVIRONMENT, "COLUMNS": "60", "TERM": "xterm"},
    ) as targets:
        assert targets.wait(60) == 0
    os.close(theirs)
    with closing(os.fdopen(ours, "rb", buffering=0)) as screen:
        pieces = []
        with suppress(OSError):  # the other end is closed: there is no more
            while piece := screen.read(65536):
                pieces.append(piece)
        text = b"".join(pieces).decode()

    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    assert all(len(line) <= 60 for line in lines)
    first_column = "".join(line.split(" ")[0] for line in lines[1:])
    assert name in first_column.removeprefix("TARGET")
