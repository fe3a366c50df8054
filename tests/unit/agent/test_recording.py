"""The file format of recordings: what comes back of files that are whole, cut, damaged or of another kind."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from struct import pack
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.harvests import INCARNATION, Sets, ended_of, make_round, plain_sets_of, started_of, tiny_parts
from wetink.v1 import ingest_pb2
from wetink_agent.framing import RECORD_BYTES_MAX
from wetink_agent.recording import MAGIC, Recording, RecordingUnusable, RecordingWriter

ROUNDS: tuple[Sets, ...] = (
    (frozenset(range(100)), frozenset()),
    (frozenset({3, 5_000_000_000}), frozenset({7})),
    (frozenset(), frozenset()),
    (frozenset({7, 8}), frozenset({3, 4})),
)
PAGES = st.frozensets(st.integers(0, 40) | st.integers(0, 1 << 36), max_size=12)
SETS = st.tuples(PAGES, PAGES).map(lambda pair: (pair[0], pair[1] - pair[0]))
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, rounds: Sequence[Sets] = ROUNDS, *, ends: bool = True) -> bytes:
    """Write a recording; its bytes."""
    with RecordingWriter(path, started_of(), overwrite=True) as writer:
        for number, sets in enumerate(rounds, start=1):
            writer.add(make_round(number, *sets))
        if ends:
            writer.end(ended_of())
    return path.read_bytes()


def rounds_of(recording: Recording) -> list[Sets]:
    """Give the sets of every round."""
    return [plain_sets_of(recording.parts(index)) for index in range(len(recording))]


def record(message: ingest_pb2.AgentMessage) -> bytes:
    """Give the bytes of a record, by the page of the format and not by our writer."""
    data = message.SerializeToString()
    return pack("<II", len(data), crc32(pack("<I", len(data)) + data)) + data


def read(path: Path) -> tuple[list[Sets], str | None]:
    """Give the rounds and the sentence about damage; of a file that cannot be used, no rounds."""
    try:
        with Recording(path) as recording:
            return rounds_of(recording), recording.damage
    except RecordingUnusable as error:
        return [], str(error)


def is_one_sentence(said: str | None, path: Path) -> bool:
    """Whether it is one line that names the file."""
    return said is not None and str(path) in said and "\n" not in said


@fuzz
@given(rounds=st.lists(SETS, min_size=1, max_size=6))
def test_what_was_recorded_is_read(tmp_path: Path, rounds: list[Sets]) -> None:
    """Target, rounds in their order with their times, and the end."""
    write(tmp_path / "a", rounds)

    with Recording(tmp_path / "a") as recording:
        assert recording.started == started_of()
        assert rounds_of(recording) == rounds
        assert list(recording.times_ns) == list(range(1, len(rounds) + 1))
        assert recording.ended == ended_of()
        assert recording.damage is None


def test_a_round_in_parts_is_one_round(tmp_path: Path) -> None:
    """All its messages come back, as they were."""
    with tiny_parts():
        whole = make_round(1, range(0, 4_000_000, 50_000), {7})
    assert len(whole.parts) > 2
    with RecordingWriter(tmp_path / "a", started_of()) as writer:
        writer.add(whole)
        writer.add(make_round(2, {5}))

    with Recording(tmp_path / "a") as recording:
        assert len(recording) == 2
        assert tuple(recording.parts(0)) == whole.parts


def test_the_bytes_are_those_of_the_page(tmp_path: Path) -> None:
    """A writer made from ``docs/recording-format.md`` alone makes the same file."""
    expected = b"\x89wetink\n" + pack("<I", 1)
    expected += record(ingest_pb2.AgentMessage(target_started=started_of()))
    for number, sets in enumerate(ROUNDS, start=1):
        expected += record(ingest_pb2.AgentMessage(write_protect_batch=make_round(number, *sets).parts[0]))
    expected += record(ingest_pb2.AgentMessage(target_ended=ended_of()))

    assert write(tmp_path / "a") == expected


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    """Addresses reveal layout."""
    write(tmp_path / "a")

    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    """Unless it may be lost."""
    (tmp_path / "a").write_text("precious")

    with pytest.raises(FileExistsError):
        RecordingWriter(tmp_path / "a", started_of())
    assert (tmp_path / "a").read_text() == "precious"
    RecordingWriter(tmp_path / "a", started_of(), overwrite=True).__exit__(None, None, None)
    assert (tmp_path / "a").read_bytes().startswith(MAGIC)


def test_every_length_of_file_gives_the_rounds_that_are_whole(tmp_path: Path) -> None:
    """Cut at each byte in turn: no round that is there in full is missing, and no sentence either."""
    path = tmp_path / "a"
    ends = [len(write(path, ROUNDS[:count], ends=False)) for count in range(len(ROUNDS) + 1)]
    data = write(path)
    for size in range(len(data)):
        path.write_bytes(data[:size])

        found, said = read(path)

        assert found == list(ROUNDS[: sum(end <= size for end in ends[1:])]), size
        assert is_one_sentence(said, path)


@fuzz
@given(data=st.data(), in_parts=st.booleans())
def test_no_damage_makes_a_round_that_was_not_recorded(tmp_path: Path, data: st.DataObject, *, in_parts: bool) -> None:
    """Bits flipped, bytes cut out, doubled or put in: what is read is how the recording began."""
    path = tmp_path / "a"
    rounds = data.draw(st.lists(SETS, min_size=1, max_size=4))
    if in_parts:
        with tiny_parts():
            whole = write(path, rounds)
    else:
        whole = write(path, rounds)
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(broken) - 1)))
        until = min(len(broken), at + data.draw(st.integers(1, 200)))
        match data.draw(st.sampled_from(["flip", "cut", "double", "insert", "zero", "truncate"])):
            case "flip" if broken:
                broken[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del broken[at:until]
            case "double":
                broken[at:at] = broken[at:until]
            case "insert":
                broken[at:at] = data.draw(st.binary(max_size=40))
            case "zero":
                broken[at:until] = bytes(until - at)
            case _:
                del broken[at:]
    path.write_bytes(broken)

    found, said = read(path)

    assert found == rounds[: len(found)]
    assert bytes(broken) == whole or is_one_sentence(said, path)


@fuzz
@given(data=st.binary(max_size=400))
def test_any_bytes_behind_the_preamble_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    """Never with an error of another kind."""
    path = tmp_path / "a"
    path.write_bytes(MAGIC + pack("<I", 1) + data)

    found, said = read(path)

    assert not found
    assert is_one_sentence(said, path)


def test_a_record_that_came_twice_or_not_at_all_ends_the_file(tmp_path: Path) -> None:
    """Each record is whole in itself: only its place says that it is wrong."""
    started = ingest_pb2.AgentMessage(target_started=started_of())
    first, second, third = (
        ingest_pb2.AgentMessage(write_protect_batch=make_round(number, {number}).parts[0]) for number in (1, 2, 3)
    )
    ended = ingest_pb2.AgentMessage(target_ended=ended_of())
    for messages, count, what in (
        ([started, first, first, second], 1, "part 0 of round 2 was due, and rounds 1 to 1"),
        ([started, first, third], 1, "part 0 of round 2 was due, and rounds 3 to 3"),
        ([started, first, started], 1, "round 2 was due, and target_started stands there"),
        ([started, first, ended, second], 1, "something follows its end record"),
        ([started, ended], 0, "has an end and no rounds; there is nothing to replay"),
        ([first, second], 0, "its first record describes no target"),
        ([started, first, ingest_pb2.AgentMessage(heartbeat=ingest_pb2.Heartbeat(time_ns=1))], 1, "heartbeat"),
    ):
        path = tmp_path / "a"
        path.write_bytes(MAGIC + pack("<I", 1) + b"".join(map(record, messages)))

        found, said = read(path)

        assert len(found) == count
        assert said is not None
        assert what in said


def test_a_round_whose_sets_overlap_is_none(tmp_path: Path) -> None:
    """The collector would refuse it: it is found before anything is replayed."""
    bad = make_round(2, {5}).parts[0]
    bad.vanished.CopyFrom(bad.written)
    with RecordingWriter(tmp_path / "a", started_of()) as writer:
        writer.add(make_round(1, {1}))
    with (tmp_path / "a").open("ab") as file:
        file.write(record(ingest_pb2.AgentMessage(write_protect_batch=bad)))

    found, said = read(tmp_path / "a")

    assert len(found) == 1
    assert "written and vanished" in str(said)


@pytest.mark.parametrize("size", [0, RECORD_BYTES_MAX + 1, 0xFFFFFFFF])
def test_a_length_out_of_bounds_reserves_no_memory(tmp_path: Path, size: int) -> None:
    """It is refused before anything of that size is read."""
    path = tmp_path / "a"
    data = write(path, ROUNDS[:1], ends=False)
    path.write_bytes(data + pack("<II", size, 0) + bytes(64))

    found, said = read(path)

    assert len(found) == 1
    assert f"at byte {len(data)}: a record says it has {size} bytes; rounds 1 to 1 are whole" in str(said)


@pytest.mark.parametrize("version", [0, 2, 0xFFFFFFFF])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    """Both versions are named, and nothing of the file is used."""
    path = tmp_path / "a"
    path.write_bytes(MAGIC + pack("<I", version) + write(path)[12:])

    with pytest.raises(RecordingUnusable, match=f"has version {version} of the format, and this agent reads version 1"):
        Recording(path)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    """Another file, none, a directory, a pipe that nobody writes to: each has its sentence."""
    (tmp_path / "text").write_text("no recording at all")
    os.mkfifo(tmp_path / "pipe")
    for name, what in (
        ("text", "is no recording: make one with"),
        ("nothing", "cannot be read: No such file or directory"),
        (".", "cannot be read: it is no file"),
        ("pipe", "cannot be read: it is no file"),
    ):
        with pytest.raises(RecordingUnusable, match=re.escape(what)) as caught:
            Recording(tmp_path / name)
        assert is_one_sentence(str(caught.value), tmp_path / name)


def test_a_file_that_changes_while_it_is_read_says_so(tmp_path: Path) -> None:
    """What was looked at once is looked at again when it is used."""
    write(tmp_path / "a")
    with Recording(tmp_path / "a") as recording:
        os.truncate(tmp_path / "a", 40)

        with pytest.raises(RecordingUnusable, match="has changed since it was opened"):
            recording.parts(1)


def test_incarnations_are_not_mixed(tmp_path: Path) -> None:
    """A round of another incarnation was not recorded here."""
    stray = make_round(2, {1}, incarnation=INCARNATION + 1)
    with RecordingWriter(tmp_path / "a", started_of()) as writer:
        writer.add(make_round(1, {1}))
        writer.add(stray)

    found, said = read(tmp_path / "a")

    assert len(found) == 1
    assert "round 2 is of another process or incarnation" in str(said)
