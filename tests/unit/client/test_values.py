from enum import StrEnum

import pytest

from wetink.names import parse_target
from wetink.v1 import dirty_pb2, types_pb2
from wetink_client import Backend, Consistency, EndReason, IncompleteReason, InvalidRequest, NotFound, Selection
from wetink_client.values import all_ended, counts_of, status_of, target_of, tree_of


@pytest.mark.parametrize(
    "kind,names,prefix",
    [
        (Backend, types_pb2.Backend.keys(), "BACKEND_"),
        (EndReason, types_pb2.EndReason.keys(), "END_REASON_"),
        (IncompleteReason, types_pb2.IncompleteReason.keys(), "INCOMPLETE_REASON_"),
        (Consistency, types_pb2.Consistency.keys(), "CONSISTENCY_"),
    ],
)
def test_each_name_of_the_contract_has_its_member(kind: type[StrEnum], names: list[str], prefix: str) -> None:
    """What the contract can say, the SDK can say; UNSPECIFIED is UNKNOWN, or None where absence has a meaning."""
    contract = {name.removeprefix(prefix) for name in names}

    assert {member.name for member in kind} - {"UNKNOWN"} == contract - {"UNSPECIFIED"}


def test_number_of_a_newer_contract_is_unknown() -> None:
    """An old client goes on working beside a new collector."""
    number = types_pb2.EndReason.ValueType(99)
    target = target_of(dirty_pb2.TargetInfo(backend=types_pb2.Backend.ValueType(99), end_reason=number))
    status = status_of(
        dirty_pb2.TargetStatus(incomplete_reason=types_pb2.IncompleteReason.ValueType(99), end_reason=number)
    )

    assert (target.backend, target.end_reason) == (Backend.UNKNOWN, EndReason.UNKNOWN)
    assert (status.incomplete_reason, status.end_reason) == (IncompleteReason.UNKNOWN, EndReason.UNKNOWN)


def test_absence_is_none() -> None:
    """A time of 0 is no time, and a target that lives has not ended."""
    target = target_of(dirty_pb2.TargetInfo())
    status = status_of(dirty_pb2.TargetStatus(complete=True))

    assert (target.as_of_time_ns, target.end_reason, target.pages_per_second) == (None, None, None)
    assert (status.as_of_time_ns, status.as_of, status.incomplete_reason, status.end_reason) == (None,) * 4


def test_rate_is_pages_over_their_window() -> None:
    """300 pages in 1.5 s are 200 a second."""
    target = target_of(dirty_pb2.TargetInfo(last_written_page_count=300, last_window_ns=1_500_000_000))

    assert target.pages_per_second == pytest.approx(200)


def test_selection_takes_a_name_or_several() -> None:
    """A string is one name, never a list of letters."""
    assert Selection.of("host-1/7").targets == ("host-1/7",)
    assert Selection.of(["host-1/7", "host-1/8@9"]).targets == ("host-1/7", "host-1/8@9")
    assert Selection.of(Selection(hosts=("host-1",))) == Selection(hosts=("host-1",))
    assert not Selection()


@pytest.mark.parametrize("name", ["", "host-1", "host-1/", "host-1/0", "host-1/x", "host 1/7", "host-1/7@", "a/7@1 "])
def test_malformed_name_is_told_before_anything_is_sent(name: str) -> None:
    """The sentence says how a name is written."""
    with pytest.raises(InvalidRequest, match="write HOST/PID or HOST/PID@START") as caught:
        Selection.of(name)

    assert caught.value.reason == "SELECTION_MALFORMED"


def test_malformed_host_is_told_before_anything_is_sent() -> None:
    """As for targets."""
    with pytest.raises(InvalidRequest, match="is no host id"):
        Selection(hosts=("host 1",))


@pytest.mark.parametrize(
    "selection, reasons, is_over",
    [
        (Selection(("h/1", "h/2")), (types_pb2.END_REASON_EXITED, types_pb2.END_REASON_UNTRACKED), True),
        (Selection(("h/1", "h/2")), (types_pb2.END_REASON_EXITED, types_pb2.END_REASON_UNSPECIFIED), False),
        (Selection(("h/1", "h/2")), (types_pb2.END_REASON_EXITED, types_pb2.END_REASON_FAILED), False),
        (Selection(("h/1",), hosts=("h",)), (types_pb2.END_REASON_EXITED,), False),
        (Selection(cgroups=("/a",)), (types_pb2.END_REASON_EXITED,), False),
        (Selection(labels=("pod=a",)), (types_pb2.END_REASON_EXITED,), False),
    ],
)
def test_a_watch_is_over_when_nothing_can_follow(
    selection: Selection, reasons: tuple[types_pb2.EndReason.ValueType, ...], is_over: object
) -> None:
    """Others may come to a host, and who failed or became another program may come back."""
    statuses = [dirty_pb2.TargetStatus(name=f"h/{pid}@9", end_reason=reason) for pid, reason in enumerate(reasons, 1)]

    assert all_ended(selection, counts_of(dirty_pb2.DirtySummary(targets=statuses))) is is_over


def test_label_with_two_values_is_refused() -> None:
    """No target has both, and an answer about those with the one would be called complete."""
    with pytest.raises(InvalidRequest, match="label pod is given twice, as 'a' and 'b'") as caught:
        Selection(labels=("pod=a", "namespace=n", "pod=b"))

    assert caught.value.reason == "SELECTION_MALFORMED"
    assert Selection(labels=("pod=a", "pod=a"))


def test_tree_has_whoever_may_live() -> None:
    """Also those that are not tracked because of a limit or a failure: without them an answer would look complete."""
    reasons = {
        1: 0,
        2: 0,
        3: types_pb2.END_REASON_REFUSED,
        4: types_pb2.END_REASON_FAILED,
        5: types_pb2.END_REASON_EXITED,
    }
    targets = [
        target_of(
            dirty_pb2.TargetInfo(
                name=f"h/{pid}@{pid}",
                target=types_pb2.Target(host_id="h", pid=pid, start_time_ticks=pid),
                ancestors=[1] if pid > 1 else [],
                end_reason=types_pb2.EndReason.ValueType(reason),
            )
        )
        for pid, reason in reasons.items()
    ]

    assert tree_of(targets, parse_target("h/1")) == Selection(("h/1@1", "h/2@2", "h/3@3", "h/4@4"))
    assert tree_of(targets, parse_target("h/2@2")) == Selection(("h/2@2",))
    with pytest.raises(NotFound, match="g/1"):
        tree_of(targets, parse_target("g/1"))


def test_tree_of_another_process_with_the_same_pid_is_none() -> None:
    """A start time that is said counts."""
    target = target_of(
        dirty_pb2.TargetInfo(name="h/1@7", target=types_pb2.Target(host_id="h", pid=1, start_time_ticks=7))
    )

    assert tree_of([target], parse_target("h/1@7")) == Selection(("h/1@7",))
    with pytest.raises(NotFound, match="h/1@8"):
        tree_of([target], parse_target("h/1@8"))
