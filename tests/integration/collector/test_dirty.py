"""DirtyService against a real collector: every answer and every status the contract names."""

import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2

from tests.integration.collector.wire import (
    PATIENCE_SECONDS,
    T0_NS,
    Agent,
    Reader,
    answers,
    batch,
    meanwhile,
    position,
    refused,
    start,
    target,
)
from tests.support.collector import HASTY, CollectorProcess, running_collector
from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2, types_pb2
from wetink.v1.types_pb2 import (
    CONSISTENCY_FROZEN,
    CONSISTENCY_NONE,
    CONSISTENCY_PER_PROCESS,
    END_REASON_EXEC,
    END_REASON_EXITED,
    END_REASON_FAILED,
    END_REASON_LOST,
    END_REASON_RESYNCHRONISED,
    END_REASON_UNTRACKED,
    INCOMPLETE_REASON_AGENT_DISCONNECTED,
    INCOMPLETE_REASON_BARRIER_TIMEOUT,
    INCOMPLETE_REASON_NO_ROUND,
    INCOMPLETE_REASON_TARGET_ENDED,
    INCOMPLETE_REASON_UNSPECIFIED,
)
from wetink_collector.catalog import ENDED_KEPT_MAX

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE


@pytest.fixture
def one(host: str) -> types_pb2.Target:
    """Give a target of the test's host."""
    return target(host_id=host)


@pytest.fixture
def name(host: str) -> str:
    """Give its printed name."""
    return f"{host}/1@100"


@pytest.fixture
def live(agent: Agent) -> Agent:
    """Give the test's agent, welcomed."""
    agent.hello()
    return agent


def end(of: types_pb2.Target, reason: types_pb2.EndReason.ValueType, text: str = "") -> ingest_pb2.TargetEnded:
    """Give an end."""
    return ingest_pb2.TargetEnded(target=of, incarnation=1, reason=reason, time_ns=1, message=text)


def test_without_a_cursor_every_populated_page_is_written(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """What vanished is not told: there is no copy to drop it from."""
    live.say(start(one), batch(one, 1, written=[1, 2, 3]), batch(one, 2, written=[4], vanished=[2]))
    live.acknowledged(one, 2)

    answer = reader.dirty(name)

    assert answer.written == {name: {1, 3, 4}}
    assert answer.vanished == {}
    (status,) = answer.summary.targets
    assert (status.name, status.incarnation, status.round, status.page_size) == (name, 1, 2, 4096)
    assert (status.written_page_count, status.vanished_page_count, status.populated_page_count) == (3, 0, 1002)
    assert status.as_of_time_ns == answer.summary.as_of_time_ns == T0_NS + 2 * 10**9
    assert (status.complete, status.exact, status.incomplete_reason) == (True, True, INCOMPLETE_REASON_UNSPECIFIED)
    assert (answer.summary.complete, answer.summary.exact) == (True, True)
    assert answer.summary.consistency == CONSISTENCY_NONE


def test_since_a_cursor_only_what_came_after_it(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """Written and vanished; and nothing when nothing came."""
    live.deliver(one, [1, 2, 3])
    cursor = reader.dirty(name).summary.cursor
    live.say(batch(one, 2, written=[3, 4], vanished=[1]), batch(one, 3, written=[5], vanished=[3]))
    live.acknowledged(one, 3)

    answer = reader.dirty(name, cursor=cursor)
    nothing = reader.dirty(name, cursor=answer.summary.cursor)

    assert (answer.written, answer.vanished) == ({name: {4, 5}}, {name: {1, 3}})
    assert (nothing.written, nothing.vanished, nothing.message_count) == ({}, {}, 0)
    assert nothing.summary.complete
    assert nothing.summary.targets[0].round == 3


def test_readers_do_not_disturb_each_other(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """A cursor can be used again, by anybody, with the same answer."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor
    live.say(batch(one, 2, written=[2]))
    live.acknowledged(one, 2)

    first, second = reader.dirty(name, cursor=cursor), reader.dirty(name, cursor=cursor)

    assert first == second


def test_cursor_inside_merged_rounds_is_answered_with_more(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """
    Since round 3 of 40, from where the reader has gone on long ago: at least what came after it, and it says that it is
    not exact. Since 32: exactly.
    """
    cursors: dict[int, str] = {}
    live.say(start(one))
    for number in range(1, 41):
        live.say(batch(one, number, written=[number]))
        live.acknowledged(one, number)
        cursors[number] = reader.dirty(name, cursor=cursors.get(number - 1, "")).summary.cursor

    old, recent = reader.dirty(name, cursor=cursors[3]), reader.dirty(name, cursor=cursors[32])

    assert set(range(4, 41)) < old.written[name] <= set(range(1, 41))
    assert not old.summary.exact
    assert old.summary.complete
    assert recent.written == {name: set(range(33, 41))}
    assert recent.summary.exact


def test_reader_that_sends_for_many_rounds_is_told_no_page_twice(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Cursors of rounds 3, 20, 100 and 200 of 200, asked with once: exactly what came since each."""
    cursors: dict[int, str] = {}
    live.say(start(one))
    for first, last in ((1, 3), (4, 20), (21, 100), (101, 200)):
        live.say(*(batch(one, number, written=[number]) for number in range(first, last + 1)))
        live.acknowledged(one, last)
        cursors[last] = reader.dirty(name).summary.cursor

    for number, cursor in cursors.items():
        answer = reader.dirty(name, cursor=cursor)
        assert answer.written.get(name, set()) == set(range(number + 1, 201))
        assert answer.summary.exact


def test_answer_larger_than_a_message_comes_in_several(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Each below the bound, no page twice, and the summary last."""
    pages = [set(range(part << 24, (part << 24) + (3 << 20), 17)) for part in range(4)]
    live.say(start(one))
    for part, some in enumerate(pages):
        live.say(batch(one, 1, written=some, part=part, part_count=4))
    live.acknowledged(one, 1)
    request = pb.GetDirtyRequest(selection=pb.Selection(targets=[name]))

    parts = list(reader.stub.GetDirty(request, timeout=30))
    answer = reader.dirty(name)

    assert len(parts) > 2
    assert all(part.ByteSize() <= MESSAGE_BYTES_MAX for part in parts)
    assert [part.WhichOneof("part") for part in parts] == ["pages"] * (len(parts) - 1) + ["summary"]
    assert answer.written == {name: set.union(*pages)}


def test_target_the_cursor_does_not_name_is_answered_from_its_beginning(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """The one it names since the cursor, the other with everything."""
    other, other_name = target(2, host_id=host), f"{host}/2@100"
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor
    live.deliver(other, [10, 11])
    live.say(batch(one, 2, written=[2]))
    live.acknowledged(one, 2)

    answer = reader.dirty(name, other_name, cursor=cursor)

    assert answer.written == {name: {2}, other_name: {10, 11}}
    assert [status.name for status in answer.summary.targets] == [name, other_name]


def test_selections_by_name_host_and_cgroup(live: Agent, reader: Reader, host: str) -> None:
    """A host means what lives on it, a cgroup what lives in it or below, a pid the youngest; nothing comes twice."""
    cgroup = f"/{host}"
    live.deliver(target(1, host_id=host), [1], cgroup=f"{cgroup}/a")
    live.deliver(target(2, host_id=host), [2], cgroup=f"{cgroup}/ab")
    live.deliver(target(3, host_id=host), [3], cgroup=f"{cgroup}/a/deep")
    live.deliver(target(4, host_id=host), [4], cgroup="/elsewhere")
    live.deliver(target(4, host_id=host, start_time_ticks=200), [5], cgroup="/elsewhere")
    live.say(end(target(2, host_id=host), END_REASON_EXITED))
    live.acknowledged(target(2, host_id=host), 1)

    def meant(*names: str, hosts: Sequence[str] = (), cgroups: Sequence[str] = ()) -> list[str]:
        answer = reader.dirty(*names, hosts=hosts, cgroups=cgroups)
        chosen = [status.name.removeprefix(host) for status in answer.summary.targets]
        listed = reader.targets(*names, hosts=hosts, cgroups=cgroups)
        assert chosen == [info.name.removeprefix(host) for info in listed]
        return chosen

    assert meant(hosts=[host]) == ["/1@100", "/3@100", "/4@100", "/4@200"]
    assert meant(cgroups=[f"{cgroup}/a"]) == ["/1@100", "/3@100"]
    assert meant(cgroups=[f"{cgroup}/a/"]) == ["/1@100", "/3@100"]
    assert meant(f"{host}/4") == ["/4@200"]
    assert meant(f"{host}/4@100") == ["/4@100"]
    assert meant(f"{host}/2", f"{host}/1", f"{host}/1@100", cgroups=[cgroup]) == ["/1@100", "/2@100", "/3@100"]
    listed = [info.name for info in reader.targets() if info.name.startswith(f"{host}/")]
    assert [name.removeprefix(host) for name in listed] == ["/1@100", "/2@100", "/3@100", "/4@100", "/4@200"]


def test_selection_by_labels_means_what_has_all_of_them(live: Agent, reader: Reader, host: str) -> None:
    """On any host, as long as it lives, beside what is named; and what a target's labels are is told."""
    shop = {"namespace": host, "pod": "cart-0"}
    live.deliver(target(1, host_id=host), [1], labels=shop)
    live.deliver(target(2, host_id=host), [2], labels=shop | {"pod": "cart-1"})
    live.deliver(target(3, host_id=host), [3], labels={"namespace": "other", "pod": "cart-0"})
    live.deliver(target(4, host_id=host), [4])
    live.deliver(target(5, host_id=host), [5], labels=shop)
    live.say(end(target(5, host_id=host), END_REASON_EXITED))
    live.acknowledged(target(5, host_id=host), 1)

    def meant(*names: str, **labels: str) -> list[str]:
        selection = pb.Selection(targets=names, labels=labels)
        infos = reader.stub.ListTargets(pb.ListTargetsRequest(selection=selection), timeout=20).targets
        (answer,) = answers(reader.stub.GetDirty(pb.GetDirtyRequest(selection=selection), timeout=20))
        chosen = [info.name.removeprefix(host) for info in infos]
        assert chosen == [status.name.removeprefix(host) for status in answer.summary.targets]
        return chosen

    assert meant(namespace=host) == ["/1@100", "/2@100"]
    assert meant(namespace=host, pod="cart-0") == ["/1@100"]
    assert meant(f"{host}/4", namespace=host, pod="cart-1") == ["/2@100", "/4@100"]
    assert dict(reader.target(f"{host}/1").labels) == shop
    assert not reader.target(f"{host}/4").labels


def test_list_of_what_is_not_there_is_empty(reader: Reader) -> None:
    """A list is no place to learn that a name is wrong."""
    assert reader.targets("nowhere/1", hosts=["nowhere"], cgroups=["/nowhere"]) == []


@pytest.mark.parametrize(
    "selection",
    [
        pb.Selection(targets=["no slash"]),
        pb.Selection(targets=["host/0"]),
        pb.Selection(targets=["host/1@x"]),
        pb.Selection(hosts=["a b"]),
        pb.Selection(hosts=[""]),
        pb.Selection(cgroups=["relative"]),
        pb.Selection(cgroups=[""]),
        pb.Selection(labels={"no key at all": "1"}),
        pb.Selection(targets=["host/1"] * 4097),
    ],
    ids=["slash", "pid", "start", "host", "no host", "cgroup", "no cgroup", "label", "too many"],
)
def test_selection_that_is_malformed(reader: Reader, selection: pb.Selection) -> None:
    """Every call with a selection says so."""
    stub = reader.stub
    with refused(INVALID, "SELECTION_MALFORMED"):
        stub.ListTargets(pb.ListTargetsRequest(selection=selection), timeout=20)
    with refused(INVALID, "SELECTION_MALFORMED"):
        stub.Barrier(pb.BarrierRequest(selection=selection), timeout=20)
    with refused(INVALID, "SELECTION_MALFORMED"):
        list(stub.GetDirty(pb.GetDirtyRequest(selection=selection), timeout=20))
    with refused(INVALID, "SELECTION_MALFORMED"):
        list(stub.Watch(pb.WatchRequest(selection=selection), timeout=20))


def test_selection_that_is_empty_where_pages_are_asked_for(reader: Reader) -> None:
    """It does not mean all: that would be everybody's memory."""
    with refused(INVALID, "SELECTION_MALFORMED") as refusal:
        reader.dirty()
    with refused(INVALID, "SELECTION_MALFORMED"):
        reader.barrier()
    with refused(INVALID, "SELECTION_MALFORMED"):
        list(reader.stub.Watch(pb.WatchRequest(), timeout=20))

    assert "empty" in refusal.message


def test_target_that_is_unknown(live: Agent, reader: Reader, one: types_pb2.Target, host: str) -> None:
    """By pid, by start time, by host; and a host or cgroup with nothing on it gives no empty set either."""
    with refused(NOT_FOUND, "TARGET_UNKNOWN"):
        reader.dirty(hosts=[host])
    live.deliver(one, [1])

    for names, hosts, cgroups in (
        ([f"{host}/2"], [], []),
        ([f"{host}/1@99"], [], []),
        (["nowhere/1"], [], []),
        ([], ["nowhere"], []),
        ([], [host, "nowhere"], []),
        ([], [], ["/nobody"]),
    ):
        with refused(NOT_FOUND, "TARGET_UNKNOWN"):
            reader.dirty(*names, hosts=hosts, cgroups=cgroups)
    with refused(NOT_FOUND, "TARGET_UNKNOWN"):
        reader.barrier(f"{host}/2")
    with refused(NOT_FOUND, "TARGET_UNKNOWN"):
        list(reader.stub.Watch(pb.WatchRequest(selection=pb.Selection(targets=[f"{host}/2"])), timeout=20))


@pytest.mark.parametrize("cursor", ["x", "garbage!", "AAAA", "A" * 1000, "ä"])
def test_cursor_that_is_malformed(live: Agent, reader: Reader, one: types_pb2.Target, name: str, cursor: str) -> None:
    """Cut short, changed, or never a cursor."""
    live.deliver(one, [1])

    with refused(INVALID, "CURSOR_MALFORMED"):
        reader.dirty(name, cursor=cursor)
    with refused(INVALID, "CURSOR_MALFORMED"):
        reader.dirty(name, cursor=reader.dirty(name).summary.cursor[:-1])
    request = pb.WatchRequest(selection=pb.Selection(targets=[name]), cursor=cursor)
    with refused(INVALID, "CURSOR_MALFORMED"):
        list(reader.stub.Watch(request, timeout=20))


def test_cursor_that_names_none_of_the_targets(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """It is of another selection; an answer from the beginning would be a surprise."""
    live.deliver(one, [1])
    live.deliver(target(2, host_id=host), [2])
    cursor = reader.dirty(name).summary.cursor

    with refused(INVALID, "CURSOR_FOREIGN"):
        reader.dirty(f"{host}/2", cursor=cursor)


def test_cursor_of_another_store(live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str) -> None:
    """Its rounds are not these rounds."""
    live.deliver(one, [1])
    with running_collector() as other, Agent(other.address, host) as agent:
        agent.hello()
        agent.deliver(one, [1])
        cursor = Reader(other.address).dirty(name).summary.cursor

    with refused(OUT_OF_RANGE, "CURSOR_OTHER_STORE"):
        reader.dirty(name, cursor=cursor)


@pytest.mark.parametrize(
    "reason", [END_REASON_EXEC, END_REASON_FAILED, END_REASON_RESYNCHRONISED], ids=["exec", "failed", "resynchronised"]
)
def test_cursor_of_an_incarnation_that_ended_with_a_gap(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, reason: types_pb2.EndReason.ValueType
) -> None:
    """It names the targets. Without a cursor there is an answer, and it says that it is not complete."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor
    live.say(end(one, reason, "a sentence"))
    live.acknowledged(one, 1)

    with refused(OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED") as refusal:
        reader.dirty(name, cursor=cursor)
    answer = reader.dirty(name)

    assert refusal.metadata["targets"] == name
    assert answer.written == {name: {1}}
    (status,) = answer.summary.targets
    assert not answer.summary.complete
    assert (status.incomplete_reason, status.end_reason) == (INCOMPLETE_REASON_TARGET_ENDED, reason)
    assert "a sentence" in status.incomplete_message


def test_cursor_of_an_incarnation_that_another_followed(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Whether or not its end was told."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor
    live.say(start(one, incarnation=2), batch(one, 1, written=[2], incarnation=2))
    live.acknowledged(one, 1, incarnation=2)

    with refused(OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
        reader.dirty(name, cursor=cursor)
    with refused(OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
        request = pb.WatchRequest(selection=pb.Selection(targets=[name]), cursor=cursor)
        list(reader.stub.Watch(request, timeout=20))
    assert reader.dirty(name).summary.complete


def test_cursor_of_a_lost_incarnation(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """The agent came back without it."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor
    live.end()
    with Agent(shared_collector.address, host) as again:
        again.hello()

        with refused(OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
            reader.dirty(name, cursor=cursor)
        assert reader.dirty(name).summary.targets[0].end_reason == END_REASON_LOST


def test_many_ended_targets_are_named_as_far_as_they_fit(live: Agent, reader: Reader, host: str) -> None:
    """The error stays within what a transport takes, and its count is right."""
    targets = [target(pid, host_id=host) for pid in range(1, 201)]
    for each in targets:
        live.say(start(each), batch(each, 1, written=[1]))
    live.acknowledged(targets[-1], 1)
    cursor = reader.dirty(hosts=[host]).summary.cursor
    for each in targets:
        live.say(start(each, incarnation=2), batch(each, 1, written=[1], incarnation=2))
    live.acknowledged(targets[-1], 1, incarnation=2)

    with refused(OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED") as refusal:
        reader.dirty(hosts=[host], cursor=cursor)

    assert refusal.metadata["target_count"] == "200"
    assert set(refusal.metadata["targets"].split(",")) <= {f"{host}/{pid}@100" for pid in range(1, 201)}


@pytest.mark.parametrize("reason", [END_REASON_EXITED, END_REASON_UNTRACKED], ids=["exited", "untracked"])
def test_last_set_of_a_target_that_ended_in_order(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, reason: types_pb2.EndReason.ValueType
) -> None:
    """The cursor is still answered, and the answer is not complete: nobody tracks it any more."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor
    live.say(batch(one, 2, written=[2]))
    live.acknowledged(one, 2)
    live.say(end(one, reason))
    live.acknowledged(one, 2)

    answer = reader.dirty(name, cursor=cursor)

    assert answer.written == {name: {2}}
    assert answer.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_TARGET_ENDED
    assert answer.summary.targets[0].end_reason == reason
    assert not answer.summary.complete


def test_end_of_a_target_chosen_by_its_host_is_told_once(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """A reader that holds a copy gets the last set and the end; the next answer goes on without it."""
    other, other_name = target(2, host_id=host), f"{host}/2@100"
    live.deliver(one, [1])
    live.deliver(other, [10])
    cursor = reader.dirty(hosts=[host]).summary.cursor
    live.say(batch(one, 2, written=[2]))
    live.acknowledged(one, 2)
    live.say(end(one, END_REASON_EXITED))
    live.acknowledged(one, 2)

    told = reader.dirty(hosts=[host], cursor=cursor)
    after = reader.dirty(hosts=[host], cursor=told.summary.cursor)

    assert told.written == {name: {2}}
    assert [status.name for status in told.summary.targets] == [name, other_name]
    assert not told.summary.complete
    assert [status.name for status in after.summary.targets] == [other_name]
    assert after.summary.complete


@pytest.mark.parametrize("reason", [END_REASON_FAILED, END_REASON_LOST], ids=["failed", "lost"])
def test_target_that_is_tracked_no_more_stays_in_answers_about_its_host(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str, reason: types_pb2.EndReason.ValueType
) -> None:
    """
    The process may well live: no answer about its host says that it is complete without it, until it is tracked again.
    It is only named there: whoever holds a copy must drop it.
    """
    other, other_name = target(2, host_id=host), f"{host}/2@100"
    live.deliver(one, [1])
    live.deliver(other, [10])
    live.say(end(one, reason, "the kernel said no"))
    live.acknowledged(one, 1)

    first = reader.dirty(hosts=[host])
    later = reader.dirty(hosts=[host], cursor=first.summary.cursor)

    assert (first.written, later.written) == ({other_name: {10}}, {})
    for answer in (first, later):
        assert [status.name for status in answer.summary.targets] == [name, other_name]
        assert not answer.summary.complete
        assert answer.summary.targets[0].end_reason == reason
        assert "the kernel said no" in answer.summary.targets[0].incomplete_message

    with meanwhile(lambda: live.harvest(live.hear("barrier").barrier, batch(other, 2, written=[20]))):
        reached = reader.barrier(hosts=[host])
    since = reader.dirty(hosts=[host], cursor=reached.cursor)
    assert [status.complete for status in reached.targets] == [False, True]
    assert (since.written, since.summary.complete) == ({}, False)

    live.say(start(one, incarnation=2), batch(one, 1, written=[1, 2, 3], incarnation=2))
    live.acknowledged(one, 1, incarnation=2)
    again = reader.dirty(hosts=[host], cursor=since.summary.cursor)
    assert (again.written, again.summary.complete) == ({name: {1, 2, 3}}, True)


def test_target_without_a_round_is_not_an_empty_set(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """Every page may be dirty; the cursor that comes with it gives everything later."""
    live.say(start(one))
    live.deliver(target(2, host_id=one.host_id), [1])

    answer = reader.dirty(name)
    live.say(batch(one, 1, written=[1, 2]))
    live.acknowledged(one, 1)
    later = reader.dirty(name, cursor=answer.summary.cursor)

    (status,) = answer.summary.targets
    assert (status.round, status.complete, status.as_of_time_ns) == (0, False, 0)
    assert status.incomplete_reason == INCOMPLETE_REASON_NO_ROUND
    assert not answer.summary.complete
    assert later.written == {name: {1, 2}}
    assert later.summary.complete


def test_answer_without_the_agent_is_not_complete(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """The pages that are known come, at once, with or without a barrier."""
    live.deliver(one, [1])
    live.end()

    # A barrier that waited would wait for longer than the call may take.
    for answer in (reader.dirty(name), reader.dirty(name, barrier=True, timeout_ms=60_000)):
        assert answer.written == {name: {1}}
        (status,) = answer.summary.targets
        assert (status.complete, status.incomplete_reason) == (False, INCOMPLETE_REASON_AGENT_DISCONNECTED)
        assert answer.summary.consistency == CONSISTENCY_NONE
    (status,) = reader.barrier(name, timeout_ms=60_000).targets

    assert (status.complete, status.incomplete_reason) == (False, INCOMPLETE_REASON_AGENT_DISCONNECTED)


def test_reason_that_stands_is_the_first_that_holds(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """The end before the missing round, the missing round before the missing agent."""
    other = target(2, host_id=host)
    live.say(start(one), start(other), end(one, END_REASON_EXITED))
    live.end()

    ended, fresh = reader.dirty(name, f"{host}/2").summary.targets

    assert ended.incomplete_reason == INCOMPLETE_REASON_TARGET_ENDED
    assert fresh.incomplete_reason == INCOMPLETE_REASON_NO_ROUND


def test_barrier_harvests_and_waits_for_the_disk(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """What was written before the call is in the answer."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor

    def harvest() -> None:
        asked = live.hear("barrier").barrier
        assert list(asked.targets) == [one]
        live.harvest(asked, batch(one, 2, written=[2]))

    with meanwhile(harvest):
        answer = reader.dirty(name, cursor=cursor, barrier=True)

    assert answer.written == {name: {2}}
    assert answer.summary.complete
    assert answer.summary.consistency == CONSISTENCY_PER_PROCESS


def test_barrier_gives_a_cursor_from_now_on(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """With the round that was reached, and no pages."""
    live.deliver(one, [1])

    with meanwhile(lambda: live.harvest(live.hear("barrier").barrier, batch(one, 2, written=[2]))):
        response = reader.barrier(name)
    live.acknowledged(one, 2)
    live.say(batch(one, 3, written=[3]))
    live.acknowledged(one, 3)

    (status,) = response.targets
    assert (status.name, status.round, status.complete) == (name, 2, True)
    assert (status.written_page_count, status.vanished_page_count, status.populated_page_count) == (0, 0, 0)
    assert response.consistency == CONSISTENCY_PER_PROCESS
    assert reader.dirty(name, cursor=response.cursor).written == {name: {3}}


def test_barrier_over_stopped_targets_is_one_cut(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """Only where each of them was stopped throughout."""
    other, other_name = target(2, host_id=host), f"{host}/2@100"
    live.deliver(one, [1])
    live.deliver(other, [1])

    def harvest(*, both: bool) -> None:
        asked = live.hear("barrier").barrier
        number = 3 if both else 2
        live.harvest(asked, batch(one, number, frozen=True), batch(other, number, frozen=both))

    with meanwhile(lambda: harvest(both=False)):
        loose = reader.dirty(name, other_name, barrier=True).summary
    with meanwhile(lambda: harvest(both=True)):
        cut = reader.dirty(name, other_name, barrier=True).summary

    assert [status.frozen for status in loose.targets] == [True, False]
    assert loose.consistency == CONSISTENCY_PER_PROCESS
    assert [status.frozen for status in cut.targets] == [True, True]
    assert cut.consistency == CONSISTENCY_FROZEN


def test_barrier_that_is_not_reached_in_time(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """The call succeeds and says so; what is known comes all the same."""
    live.deliver(one, [1])
    began = time.monotonic()

    answer = reader.dirty(name, barrier=True, timeout_ms=300)

    assert 0.3 <= time.monotonic() - began < 4.5, "unless told otherwise it would be 5 s"
    (status,) = answer.summary.targets
    assert (status.complete, status.incomplete_reason) == (False, INCOMPLETE_REASON_BARRIER_TIMEOUT)
    assert answer.written == {name: {1}}
    assert answer.summary.consistency == CONSISTENCY_NONE
    assert not answer.summary.complete


def test_barrier_is_not_reached_before_its_rounds_are_there(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str
) -> None:
    """An agent that names a round it has not sent is not believed."""
    live.deliver(one, [1])

    def lie() -> None:
        asked = live.hear("barrier").barrier
        live.say(ingest_pb2.BarrierReached(request_id=asked.request_id, positions=[position(one, 9)]))

    with meanwhile(lie):
        (status,) = reader.barrier(name, timeout_ms=300).targets

    assert status.incomplete_reason == INCOMPLETE_REASON_BARRIER_TIMEOUT


def test_agent_does_not_vouch_for_another_host(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """A barrier that a host's own agent has not reached is not reached because another's agent says so."""
    live.deliver(one, [1])
    other = target(7, host_id=f"{host}x")
    with Agent(shared_collector.address, f"{host}x") as rogue:
        rogue.hello()
        rogue.deliver(other, [1])

        def vouch() -> None:
            asked = rogue.hear("barrier").barrier
            rogue.say(ingest_pb2.BarrierReached(request_id=asked.request_id, positions=[position(one, 1)]))

        with meanwhile(vouch):
            statuses = reader.barrier(name, f"{host}x/7@100", timeout_ms=500).targets

        assert [status.complete for status in statuses] == [False, False]
        assert rogue.error()[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")


def test_late_answer_to_a_barrier_is_ignored(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """It belongs to a call that has ended; the next one is asked for anew."""
    live.deliver(one, [1])
    reader.barrier(name, timeout_ms=50)
    live.say(
        ingest_pb2.BarrierReached(request_id=live.hear("barrier").barrier.request_id, positions=[position(one, 1)])
    )

    (status,) = reader.barrier(name, timeout_ms=200).targets

    assert status.incomplete_reason == INCOMPLETE_REASON_BARRIER_TIMEOUT


def test_agent_that_goes_away_during_a_barrier(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """The call does not wait for the timeout."""
    live.deliver(one, [1])

    def leave() -> None:
        live.hear("barrier")
        live.half_close()

    # The call itself may not take as long.
    with meanwhile(leave):
        (status,) = reader.barrier(name, timeout_ms=60_000).targets

    assert status.incomplete_reason == INCOMPLETE_REASON_AGENT_DISCONNECTED
    assert f"host {one.host_id} " in status.incomplete_message


def test_agent_that_is_back_before_the_others_have_answered_was_away_all_the_same(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, host: str
) -> None:
    """Its barrier went with its stream: the group's answer names the host, and does not say that it was slow."""
    live.deliver(one, [1])
    other = target(host_id=f"{host}x")
    with Agent(shared_collector.address, f"{host}x") as agent:
        agent.hello()
        agent.deliver(other, [1])

        def leave_and_come_back() -> None:
            asked = agent.hear("barrier").barrier
            live.hear("barrier")
            live.end()
            with Agent(shared_collector.address, host) as again:
                again.hello(position(one, 1))
                agent.harvest(asked, batch(other, 2, written=[2]))
                again.half_close()
                time.sleep(1)

        with meanwhile(leave_and_come_back):
            lost, reached = reader.barrier(f"{host}/1", f"{host}x/1", timeout_ms=20_000).targets

    assert lost.incomplete_reason == INCOMPLETE_REASON_AGENT_DISCONNECTED
    assert f"host {host} " in lost.incomplete_message
    assert reached.complete


def test_target_that_ends_during_a_barrier(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """Its last set comes, with the end."""
    live.deliver(one, [1])
    cursor = reader.dirty(name).summary.cursor

    def exit_() -> None:
        asked = live.hear("barrier").barrier
        live.say(batch(one, 2, written=[2]), end(one, END_REASON_EXITED))
        live.say(ingest_pb2.BarrierReached(request_id=asked.request_id))

    with meanwhile(exit_):
        answer = reader.dirty(name, cursor=cursor, barrier=True)

    assert answer.written == {name: {2}}
    assert answer.summary.targets[0].incomplete_reason == INCOMPLETE_REASON_TARGET_ENDED


def test_barrier_over_two_hosts_asks_each(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """One that is silent does not make the other's part incomplete."""
    live.deliver(one, [1])
    with Agent(shared_collector.address, f"{host}x") as silent:
        silent.hello()
        silent.deliver(target(host_id=f"{host}x"), [1])

        with meanwhile(lambda: live.harvest(live.hear("barrier").barrier, batch(one, 2))):
            response = reader.barrier(name, f"{host}x/1", timeout_ms=500)

    assert [status.complete for status in response.targets] == [True, False]
    assert response.consistency == CONSISTENCY_NONE


def test_timeout_over_a_minute_is_refused(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """The contract's bound."""
    live.deliver(one, [1])

    with refused(INVALID, "REQUEST_MALFORMED"):
        reader.barrier(name, timeout_ms=60_001)
    with refused(INVALID, "REQUEST_MALFORMED"):
        reader.dirty(name, barrier=True, timeout_ms=60_001)


def test_list_says_all_that_is_known_of_a_target(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """As TargetStarted and the last batch said it."""
    live.deliver(one, [1], [2, 3])

    info = reader.target(name)

    assert info.target == one
    assert (info.incarnation, info.round, info.live, info.end_reason) == (1, 2, True, 0)
    assert (info.command, info.cgroup, info.page_size) == ("a command", "/test", 4096)
    assert (info.backend, info.backend_reason) == (types_pb2.BACKEND_REPLAY, "there is no kernel")
    assert (info.populated_page_count, info.last_written_page_count, info.last_window_ns) == (1002, 2, 10**9)
    assert info.as_of_time_ns == T0_NS + 2 * 10**9


def track(reader: Reader, host: str, pid: int = 1) -> pb.TargetInfo:
    """Ask to track a process."""
    return reader.stub.Track(pb.TrackRequest(host_id=host, pid=pid), timeout=20).target


def test_track_asks_the_agent_and_gives_the_target(
    live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """And again: it changes nothing and succeeds."""

    def obey() -> None:
        for _ in range(2):
            asked = live.hear("track").track
            assert asked.pid == 1
            live.say(start(one), ingest_pb2.CommandResult(request_id=asked.request_id, position=position(one)))

    with meanwhile(obey):
        assert [track(reader, host).name, track(reader, host).name] == [name, name]


def test_tracked_process_is_wanted_until_it_is_untracked(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, name: str, host: str
) -> None:
    """An agent that comes back is told."""

    def begin() -> None:
        asked = live.hear("track").track
        live.say(start(one), ingest_pb2.CommandResult(request_id=asked.request_id, position=position(one)))

    with meanwhile(begin):
        track(reader, host)
    live.end()
    with Agent(shared_collector.address, host) as again:
        (wanted,) = again.hello(position(one)).wanted
        assert (wanted.request_id, wanted.pid, wanted.start_time_ticks) == (0, 1, 100)

        def stop() -> None:
            asked = again.hear("untrack").untrack
            assert asked.target == one
            again.say(end(one, END_REASON_UNTRACKED), ingest_pb2.CommandResult(request_id=asked.request_id))

        with meanwhile(stop):
            info = reader.stub.Untrack(pb.UntrackRequest(target=name), timeout=20).target
        assert (info.name, info.live, info.end_reason) == (name, False, END_REASON_UNTRACKED)
        again.end()
    with Agent(shared_collector.address, host) as last:
        assert not last.hello().wanted


def test_process_that_exited_is_not_wanted_any_more(
    shared_collector: CollectorProcess, live: Agent, reader: Reader, one: types_pb2.Target, host: str
) -> None:
    """Its pid will mean another process."""

    def begin() -> None:
        asked = live.hear("track").track
        live.say(start(one), ingest_pb2.CommandResult(request_id=asked.request_id, position=position(one)))

    with meanwhile(begin):
        track(reader, host)
    live.say(end(one, END_REASON_EXITED))
    live.end()

    with Agent(shared_collector.address, host) as again:
        assert not again.hello().wanted


@pytest.mark.parametrize(
    "code, status, reason",
    [
        (code_pb2.NOT_FOUND, grpc.StatusCode.NOT_FOUND, "PROCESS_UNKNOWN"),
        (code_pb2.PERMISSION_DENIED, grpc.StatusCode.PERMISSION_DENIED, "TRACK_REFUSED"),
        (code_pb2.FAILED_PRECONDITION, grpc.StatusCode.FAILED_PRECONDITION, "TRACK_REFUSED"),
        (code_pb2.INTERNAL, grpc.StatusCode.FAILED_PRECONDITION, "TRACK_REFUSED"),
    ],
)
def test_track_that_the_agent_refuses(
    live: Agent, reader: Reader, host: str, code: int, status: grpc.StatusCode, reason: str
) -> None:
    """With the agent's sentence, of which as much is told as a caller's transport takes."""
    sentence = "the agent's sentence" + " goes on" * 5000

    def refuse() -> None:
        asked = live.hear("track").track
        live.say(ingest_pb2.CommandResult(request_id=asked.request_id, code=code, message=sentence))

    with meanwhile(refuse), refused(status, reason) as refusal:
        track(reader, host)

    assert refusal.message == sentence[:1024]


def test_track_where_there_is_no_agent(live: Agent, reader: Reader, host: str) -> None:
    """Never seen, gone, gone meanwhile; and what cannot be a process."""
    with refused(grpc.StatusCode.NOT_FOUND, "HOST_UNKNOWN"):
        track(reader, "nowhere")
    with refused(INVALID, "REQUEST_MALFORMED"):
        track(reader, "a b")
    with refused(INVALID, "REQUEST_MALFORMED"):
        track(reader, host, pid=0)

    def leave() -> None:
        live.hear("track")
        live.half_close()

    with meanwhile(leave), refused(grpc.StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED"):
        track(reader, host)
    with refused(grpc.StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED"):
        track(reader, host)


def test_untrack_of_what_is_not_there(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """Unknown, malformed, and without its agent."""
    live.deliver(one, [1])
    live.end()

    for text, code, reason in (
        ("nowhere/1", grpc.StatusCode.NOT_FOUND, "TARGET_UNKNOWN"),
        ("nonsense", INVALID, "REQUEST_MALFORMED"),
        (name, grpc.StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED"),
    ):
        with refused(code, reason):
            reader.stub.Untrack(pb.UntrackRequest(target=text), timeout=20)


def test_untrack_of_what_has_exited_succeeds(live: Agent, reader: Reader, one: types_pb2.Target, name: str) -> None:
    """It is as it was asked to be, and the agent is not troubled."""
    live.deliver(one, [1])
    live.say(end(one, END_REASON_EXITED))
    live.acknowledged(one, 1)

    info = reader.stub.Untrack(pb.UntrackRequest(target=name), timeout=20).target

    assert info.end_reason == END_REASON_EXITED


def test_cursor_of_a_host_that_names_a_forgotten_target_has_ended(tmp_path: Path) -> None:
    """What was written last in that target would be told nobody: an answer about the others would be too small."""
    gone, lives = target(1), target(2)
    followed = pb.Selection(hosts=["host-1"])
    with (
        running_collector(tmp_path, module=HASTY) as collector,
        Agent(collector.address) as agent,
        Agent(collector.address, "host-2") as other,
    ):
        reader = Reader(collector.address)
        agent.hello()
        agent.deliver(gone, [1])
        alone = reader.dirty(hosts=["host-1"]).summary.cursor
        agent.deliver(lives, [2])
        both = reader.dirty(hosts=["host-1"]).summary.cursor
        agent.say(batch(gone, 2, written=[3]), end(gone, END_REASON_EXITED), batch(lives, 2, written=[4]))
        agent.acknowledged(lives, 2)
        assert reader.dirty(hosts=["host-1"], cursor=both).written == {"host-1/1@100": {3}, "host-1/2@100": {4}}

        other.hello()
        for pid in range(1, ENDED_KEPT_MAX + 1):
            of_other = target(pid, host_id="host-2")
            other.say(start(of_other), end(of_other, END_REASON_EXITED))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while reader.targets("host-1/1"):
            assert time.monotonic() < deadline
            time.sleep(0.1)

        for cursor in (both, alone):
            with refused(OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED") as refusal:
                reader.dirty(hosts=["host-1"], cursor=cursor)
            assert "forgotten" in refusal.message
            assert (refusal.metadata["targets"], refusal.metadata["target_count"]) == ("", "1")
            with refused(OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED"):
                list(reader.stub.Watch(pb.WatchRequest(selection=followed, cursor=cursor, pages=True), timeout=20))
        assert reader.dirty("host-1/2", cursor=both).written == {"host-1/2@100": {4}}
