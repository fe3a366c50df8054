import json

from pyroaring import BitMap64

from wetink.v1 import dirty_pb2, types_pb2
from wetink_client import Consistency, DirtySet, TargetDirty, json_lines
from wetink_client.values import barrier_of, host_of, target_of


def part(name: str) -> TargetDirty:
    """Make one target's part of an answer."""
    return TargetDirty(
        name=name,
        incarnation=2,
        round=5,
        as_of_time_ns=1,
        complete=True,
        incomplete_reason=None,
        incomplete_message="",
        end_reason=None,
        exact=False,
        frozen=False,
        written_page_count=3,
        vanished_page_count=1,
        populated_page_count=10,
        page_size=4096,
        uncertain_page_count=1,
        lenient=True,
        uncertain=BitMap64([9]),
        written=BitMap64([1, 2, 1 << 40]),
        vanished=BitMap64([7]),
    )


def test_dirty_line_is_to_the_letter() -> None:
    """Programs depend on it: keys, order and units."""
    answer = DirtySet(
        cursor="next",
        complete=True,
        exact=False,
        consistency=Consistency.NONE,
        as_of_time_ns=1,
        targets={name: part(name) for name in ("h/1@2", "h/3@4")},
    )

    first, second = json_lines.dirty(answer)

    assert first == (
        '{"target": "h/1@2", "incarnation": 2, "cursor": "next", "complete": true, "exact": false, "page_size": 4096, '
        '"pages": 3, "ranges": [[4096, 8192], [4503599627370496, 4096]], "vanished": [[28672, 4096]], '
        '"strict": false, "uncertain": [[36864, 4096]], "freeze_method": null, "frozen_ns": 0, '
        '"incomplete_reason": null, "incomplete_message": "", "end_reason": null}'
    )
    assert json.loads(second)["target"] == "h/3@4"
    assert json.loads(second)["cursor"] == "next"


def test_barrier_line_says_whether_it_was_reached() -> None:
    """With the cursor that means "from now on"."""
    result = barrier_of(
        dirty_pb2.BarrierResponse(
            cursor="now",
            consistency=types_pb2.CONSISTENCY_NONE,
            targets=[
                dirty_pb2.TargetStatus(
                    name="h/1@2",
                    incarnation=2,
                    round=5,
                    as_of_time_ns=9,
                    incomplete_reason=types_pb2.INCOMPLETE_REASON_BARRIER_TIMEOUT,
                    incomplete_message="The agent was silent.",
                )
            ],
        )
    )

    (line,) = json_lines.barrier(result)

    assert json.loads(line) == {
        "target": "h/1@2",
        "incarnation": 2,
        "cursor": "now",
        "reached": False,
        "round": 5,
        "as_of_time_ns": 9,
        "consistency": "none",
        "freeze_method": None,
        "frozen_ns": 0,
        "incomplete_reason": "barrier-timeout",
        "incomplete_message": "The agent was silent.",
    }


def test_list_lines_have_the_names_of_the_contract() -> None:
    """Who knows the .proto knows the lines; the target's parts stand beside its name."""
    host = dirty_pb2.Host(host_id="h", connected=True)
    target = dirty_pb2.TargetInfo(name="h/1@2", target=types_pb2.Target(host_id="h", pid=1, start_time_ticks=2))

    (host_line,) = json_lines.plain([host_of(host)])
    (target_line,) = json_lines.plain([target_of(target)])

    assert json.loads(host_line).keys() == {field.name for field in dirty_pb2.Host.DESCRIPTOR.fields}
    parts = {field.name for field in types_pb2.Target.DESCRIPTOR.fields}
    fields = {field.name for field in dirty_pb2.TargetInfo.DESCRIPTOR.fields}
    assert json.loads(target_line).keys() == (fields - {"target"}) | parts
