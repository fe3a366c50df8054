"""The replay backend: harvests in the recorded order, when each is due, and how it ends."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyroaring import BitMap64

from tests.support.harvests import ended_of, harvest_of, make_round, started_of
from wetink.v1 import types_pb2
from wetink_agent.backend import Harvest
from wetink_agent.errors import TargetExited, TargetReplaced, TrackingError
from wetink_agent.events import Events
from wetink_agent.recording import Recording, RecordingWriter
from wetink_agent.replay import Replay, Score
from wetink_agent.rounds import MAPPING_CHANGES_MAX

SECOND_NS = 1_000_000_000


def write(
    path: Path, *harvests: Harvest, reason: types_pb2.EndReason.ValueType = types_pb2.END_REASON_UNTRACKED
) -> None:
    """Record harvests."""
    with RecordingWriter(path, started_of()) as writer:
        for number, harvest in enumerate(harvests, start=1):
            writer.add(make_round(number, harvest=harvest))
        ended = ended_of()
        ended.reason = reason
        writer.end(ended)


def test_what_is_played_is_what_was_harvested(tmp_path: Path) -> None:
    """Everything a harvest says comes back but its times, which are moved to now, those of its events alike."""
    events = Events(
        np.array([0x1000, 0x2000], np.uint64),
        np.array([1, 3], np.uint64),
        np.array([7, 8], np.uint32),
        np.array([5 * SECOND_NS + 10, 5 * SECOND_NS + 30], np.uint64),
        np.array([9, 9], np.uint64),
        lost_count=4,
    )
    spans = tuple((page << 13, (page << 13) + 4096) for page in range(1, MAPPING_CHANGES_MAX + 9))
    recorded = Harvest(
        began_time_ns=5 * SECOND_NS,
        written=BitMap64([1, 2]),
        vanished=BitMap64([3]),
        populated_page_count=12,
        cautious_page_count=1,
        frozen=True,
        mapped=spans,
        unmapped=spans[:2],
        events=events,
    )
    write(tmp_path / "a", recorded)

    with Recording(tmp_path / "a") as recording:
        before_ns = time.time_ns()
        found = Replay(Score(recording, 1)).harvest()

    assert before_ns <= found.began_time_ns <= time.time_ns()
    assert found.events is not None
    assert [moved - found.began_time_ns for moved in found.events.times_ns.tolist()] == [10, 30]
    assert found.events.addresses.tolist() == events.addresses.tolist()
    assert found.events.lost_count == 4
    kept = replace(found, began_time_ns=recorded.began_time_ns, events=events)
    assert kept == replace(recorded, mapped=kept.mapped, unmapped=kept.unmapped)
    again, once = make_round(1, harvest=found).parts[0], make_round(1, harvest=recorded).parts[0]
    assert (again.mapped, again.unmapped, again.mappings_cut) == (once.mapped, once.unmapped, True)


def test_rounds_are_due_when_they_were_divided_by_the_speed(tmp_path: Path) -> None:
    """Counted from the first; the end is due one interval after the last; a barrier takes the next one early."""
    write(tmp_path / "a", *(harvest_of([1], time_ns=at * SECOND_NS) for at in (100, 102, 109)))
    with Recording(tmp_path / "a") as recording:
        score = Score(recording, 2)
        backend = Replay(score)
        due = []
        while not backend.is_over:
            due.append(backend.due)
            backend.harvest()
        due.append(backend.due)

        assert [round(later - due[0], 6) for later in due] == [0, 1, 4.5, 5.5]
        backend.forget()
        assert due[0] <= backend.due <= time.monotonic()
        assert not backend.is_over


@pytest.mark.parametrize(
    "reason,error",
    [
        (types_pb2.END_REASON_EXITED, TargetExited),
        (types_pb2.END_REASON_UNTRACKED, TargetExited),
        (types_pb2.END_REASON_EXEC, TargetReplaced),
        (types_pb2.END_REASON_FAILED, TrackingError),
    ],
)
def test_it_ends_as_it_ended(tmp_path: Path, reason: types_pb2.EndReason.ValueType, error: type[TrackingError]) -> None:
    """Behind the last round there is never an empty one."""
    write(tmp_path / "a", harvest_of([1]), reason=reason)
    with Recording(tmp_path / "a") as recording:
        backend = Replay(Score(recording, 1))
        backend.harvest()
        for _ in range(2):
            with pytest.raises(error, match="ends here, after 1 rounds") as caught:
                backend.harvest()
            assert type(caught.value) is error


def test_targets_at_different_places_share_no_place(tmp_path: Path) -> None:
    """One plays on where it is, whatever another does."""
    write(tmp_path / "a", *(harvest_of([number], time_ns=number) for number in range(1, 30)))
    with Recording(tmp_path / "a") as recording:
        score = Score(recording, 1)
        ahead, behind = Replay(score), Replay(score)
        assert [list(ahead.harvest().written) for _ in range(29)] == [[number] for number in range(1, 30)]
        assert [list(behind.harvest().written) for _ in range(29)] == [[number] for number in range(1, 30)]


def test_a_file_that_is_cut_while_it_is_played_ends_the_target(tmp_path: Path) -> None:
    """It fails with a sentence, and gives no round."""
    write(tmp_path / "a", harvest_of([1]), harvest_of([2]))
    with Recording(tmp_path / "a") as recording:
        backend = Replay(Score(recording, 1))
        backend.harvest()
        (tmp_path / "a").write_bytes(b"")
        with pytest.raises(TrackingError, match="has changed since it was opened"):
            backend.harvest()
