from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from wetink.pages import encode
from wetink.v1 import dirty_pb2, types_pb2
from wetink_client import (
    BrokenAnswer,
    Consistency,
    DirtySet,
    EndReason,
    IncompleteReason,
    NotOneTarget,
)
from wetink_client.answers import Assembly, OneAnswer

NAME = "host-1/7@100"
OTHER = "host-1/8@200"


def pages(written: Iterable[int] = (), vanished: Iterable[int] = (), name: str = NAME) -> dirty_pb2.GetDirtyResponse:
    """Make a part with pages."""
    message = dirty_pb2.DirtyPages(name=name, written=encode(BitMap64(written)), vanished=encode(BitMap64(vanished)))
    return dirty_pb2.GetDirtyResponse(pages=message)


def status(written: int = 0, vanished: int = 0, name: str = NAME) -> dirty_pb2.TargetStatus:
    """Make one target's line of a summary."""
    return dirty_pb2.TargetStatus(
        name=name,
        incarnation=3,
        round=9,
        as_of_time_ns=1_700_000_000_000_000_000,
        complete=True,
        exact=True,
        written_page_count=written,
        vanished_page_count=vanished,
        populated_page_count=1000,
        page_size=4096,
    )


def summary(*targets: dirty_pb2.TargetStatus) -> dirty_pb2.GetDirtyResponse:
    """Make the end of an answer."""
    return dirty_pb2.GetDirtyResponse(
        summary=dirty_pb2.DirtySummary(
            cursor="next",
            complete=all(target.complete for target in targets),
            exact=True,
            consistency=types_pb2.CONSISTENCY_PER_PROCESS,
            as_of_time_ns=1_700_000_000_000_000_000,
            targets=targets,
        )
    )


def assembled(*parts: dirty_pb2.GetDirtyResponse) -> DirtySet:
    """Put one answer together."""
    answer = OneAnswer()
    for part in parts:
        answer.take(part)
    return answer.finish()


@given(
    written=st.sets(st.integers(0, (1 << 52) - 1)),
    vanished=st.sets(st.integers(0, (1 << 52) - 1)),
    part_pages_max=st.integers(1, 50),
)
def test_parts_make_the_set_they_were_cut_from(written: set[int], vanished: set[int], part_pages_max: int) -> None:
    """However an answer was cut, it is the same answer."""
    vanished -= written
    cut = [
        pages(list(written)[start : start + part_pages_max], list(vanished)[start : start + part_pages_max])
        for start in range(0, max(len(written), len(vanished)), part_pages_max)
    ]

    answer = assembled(*cut, summary(status(len(written), len(vanished))))

    assert set(answer.written) == written
    assert set(answer.vanished) == vanished


def test_answer_about_one_target_is_asked_directly() -> None:
    """Nobody who moves one process should have to name it again."""
    answer = assembled(pages([1, 2, 9], [5]), summary(status(3, 1)))

    assert answer.ranges() == [(0x1000, 0x2000), (0x9000, 0x1000)]
    assert answer.vanished_ranges() == [(0x5000, 0x1000)]
    assert (answer.page_count, answer.byte_count, answer.page_size, answer.incarnation) == (3, 3 * 4096, 4096, 3)
    assert (answer.cursor, answer.complete, answer.exact) == ("next", True, True)
    assert answer.consistency is Consistency.PER_PROCESS
    assert answer.as_of is not None
    assert answer.as_of.isoformat() == "2023-11-14T22:13:20+00:00"


def test_answer_about_several_targets_keeps_them_apart() -> None:
    """Page 1 of one process is not page 1 of another; only what can be added up is."""
    answer = assembled(
        pages([1, 2]), pages([1], name=OTHER), pages([3]), summary(status(3, 0), status(1, 0, name=OTHER))
    )

    assert list(answer.targets) == [NAME, OTHER]
    assert list(answer.targets[NAME].written) == [1, 2, 3]
    assert list(answer.targets[OTHER].written) == [1]
    assert answer.byte_count == 4 * 4096
    for ask in (
        lambda: answer.written,
        lambda: answer.vanished,
        answer.ranges,
        answer.vanished_ranges,
        lambda: answer.page_size,
        lambda: answer.incarnation,
    ):
        with pytest.raises(NotOneTarget, match="about 2 targets"):
            ask()


def test_answer_about_no_target_has_no_pages_to_ask_for() -> None:
    """An empty host is not a process with nothing dirty."""
    answer = assembled(summary())

    assert (answer.page_count, answer.byte_count) == (0, 0)
    with pytest.raises(NotOneTarget, match="about 0 targets"):
        _ = answer.written


@pytest.mark.parametrize(
    "parts,sentence",
    [
        ([], "cut off before its summary"),
        ([pages([1])], "cut off before its summary"),
        ([summary(status()), summary(status())], "goes on after its summary"),
        ([dirty_pb2.GetDirtyResponse()], "does not know"),
        (
            [pages([1]), summary(status(2))],
            r"has 1 written, 0 vanished and 0 uncertain pages, its summary says 2, 0 and 0",
        ),
        (
            [pages([1, 2]), summary(status(1))],
            r"has 2 written, 0 vanished and 0 uncertain pages, its summary says 1, 0 and 0",
        ),
        (
            [pages([], [4]), summary(status())],
            r"has 0 written, 1 vanished and 0 uncertain pages, its summary says 0, 0 and 0",
        ),
        ([summary(status(0, 1))], r"has 0 written, 0 vanished and 0 uncertain pages, its summary says 0, 1 and 0"),
        ([pages([1], name=OTHER), summary(status())], f"pages of {OTHER}, which its summary does not name"),
        ([pages([1, 2], [2]), summary(status(2, 1))], "both as written and as vanished"),
        ([pages([1]), pages([], [1]), summary(status(1, 1))], "both as written and as vanished"),
        ([summary(status(), status())], "names a target twice"),
    ],
)
def test_answer_that_does_not_add_up_is_no_answer(parts: list[dirty_pb2.GetDirtyResponse], sentence: str) -> None:
    """A page that is missing from a set is lost in the migration; an error is not."""
    with pytest.raises(BrokenAnswer, match=sentence):
        assembled(*parts)


def test_damaged_page_set_is_refused() -> None:
    """A damaged bitmap often decodes to another valid set: the checksum tells."""
    part = pages([1, 2, 3])
    data = bytearray(part.pages.written.roaring64)
    data[-1] ^= 0x01
    part.pages.written.roaring64 = bytes(data)

    with pytest.raises(BrokenAnswer, match=f"answer for {NAME} is damaged: page set has checksum"):
        assembled(part, summary(status(3)))


def test_complete_answer_has_no_incomplete_part() -> None:
    """A migration finishes on `complete`: nothing may contradict it."""
    part = status()
    part.complete = False
    end = summary(part)
    end.summary.complete = True

    with pytest.raises(BrokenAnswer, match="one of its targets is not"):
        assembled(end)


def test_incomplete_part_says_why() -> None:
    """The reason stands beside it, for programs and for people."""
    part = status()
    part.complete = False
    part.incomplete_reason = types_pb2.INCOMPLETE_REASON_TARGET_ENDED
    part.incomplete_message = "it exited"
    part.end_reason = types_pb2.END_REASON_EXITED

    answer = assembled(summary(part))

    assert not answer.complete
    assert answer.target.incomplete_reason is IncompleteReason.TARGET_ENDED
    assert answer.target.incomplete_message == "it exited"
    assert answer.target.end_reason is EndReason.EXITED


def test_watch_gives_answer_after_answer() -> None:
    """One answer's pages do not leak into the next."""
    assembly = Assembly()

    first = [assembly.take(part) for part in (pages([1]), pages([2]), summary(status(2)))]
    second = [assembly.take(part) for part in (pages([7]), summary(status(1)))]

    assert first[:2] == [None, None]
    assert first[2] is not None
    assert list(first[2].written) == [1, 2]
    assert second[1] is not None
    assert list(second[1].written) == [7]
