"""Lists in pages against a real collector with thousands of targets, of which some come and go."""

from collections.abc import Iterator
from typing import Final

import grpc
import pytest

from tests.integration.client.command import wetink
from tests.integration.collector.wire import Agent, Reader, refused, start, target
from tests.support.collector import CollectorProcess, running_collector
from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import ingest_pb2
from wetink.v1.types_pb2 import END_REASON_EXITED
from wetink_client import Collector, requests

COUNT: Final = 3000
"""Targets of the host that is full: some 4 MiB of list."""

FULL: Final = pb.Selection(hosts=["full"])


@pytest.fixture(scope="module")
def crowded() -> Iterator[CollectorProcess]:
    """Give a collector with a full host, and one with a single target."""
    with running_collector() as collector:
        with Agent(collector.address, "full") as full, Agent(collector.address, "a") as a:
            full.hello()
            for pid in range(1, COUNT):
                full.say(start(target(pid, host_id="full"), cgroup="/" + "x" * 1200))
            full.deliver(target(COUNT, host_id="full"), [1])
            a.hello()
            a.deliver(target(host_id="a"), [1])
            yield collector
        assert "Traceback" not in collector.log, collector.log


@pytest.fixture
def crowd(crowded: CollectorProcess) -> Iterator[Reader]:
    """Give an orchestrator of it."""
    reader = Reader(crowded.address)
    with reader.channel:
        yield reader


def pages(reader: Reader, selection: pb.Selection | None = None, page_size: int = 1000) -> Iterator[list[str]]:
    """Walk through the targets; give the names in each page."""
    request = pb.ListTargetsRequest(selection=selection, page_size=page_size)
    while True:
        response = reader.stub.ListTargets(request, timeout=20)
        assert response.ByteSize() <= MESSAGE_BYTES_MAX
        yield [info.name for info in response.targets]
        request.page_token = response.next_page_token
        if not request.page_token:
            return


def exited(pid: int) -> ingest_pb2.TargetEnded:
    """Give the end of a process of the host that moves."""
    return ingest_pb2.TargetEnded(
        target=target(pid, host_id="moving"), incarnation=1, reason=END_REASON_EXITED, time_ns=1
    )


def test_list_that_does_not_fit_in_a_message_is_never_cut_unseen(crowd: Reader) -> None:
    """Who does not ask for pages may not know of them. A list that fits is whole."""
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"):
        crowd.targets(hosts=["full"])

    assert len(crowd.targets("full/1", "full/2")) == 2


@pytest.mark.parametrize("page_size", [1000, 700, 1 << 30])
def test_pages_together_are_the_list(crowd: Reader, page_size: int) -> None:
    """In the order of the names, each target once; as many to a page as fit in a message, and never more than 1000."""
    walked = list(pages(crowd, FULL, page_size))
    names = [name for page in walked for name in page]

    assert names == sorted(f"full/{pid}@100" for pid in range(1, COUNT + 1))
    assert all(500 < len(page) <= min(page_size, 1000) for page in walked[:-1])


def test_page_has_as_many_as_were_asked_for(crowd: Reader) -> None:
    """The last one says that it is; a token without a page size is enough to go on."""
    first = crowd.stub.ListTargets(pb.ListTargetsRequest(page_size=1), timeout=20)
    second = crowd.stub.ListTargets(pb.ListTargetsRequest(page_token=first.next_page_token), timeout=20)
    few = crowd.stub.ListTargets(pb.ListTargetsRequest(selection=pb.Selection(hosts=["a"]), page_size=1), timeout=20)

    assert [info.name for info in first.targets] == ["a/1@100"]
    assert second.targets[0].name == "full/1000@100"
    assert (len(few.targets), few.next_page_token) == (1, "")


def test_target_that_lives_through_a_walk_is_in_it_once(collector: CollectorProcess) -> None:
    """However many come and go between its pages, in front of what was given and behind."""
    reader, count, page_size = Reader(collector.address), 2000, 100
    with Agent(collector.address, "moving") as agent:
        agent.hello()
        for pid in range(10_000, 10_000 + count):
            agent.say(start(target(pid, host_id="moving")))
        agent.deliver(target(50_000, host_id="moving"), [1])
        gone: set[str] = set()
        names: list[str] = []
        for number, page in enumerate(pages(reader, pb.Selection(hosts=["moving"]), page_size)):
            names += page
            # More go in front of what was given than come there: by their places, those behind would be passed over.
            ends = [*range(10_000 + number * 20, 10_020 + number * 20), 10_000 + count - 1 - number]
            agent.say(*(exited(pid) for pid in ends))
            agent.say(
                *(start(target(pid + offset, host_id="moving")) for pid in ends[:5] for offset in (-9000, 50_000))
            )
            agent.deliver(target(40_000 + number, host_id="moving"), [1])
            gone |= {f"moving/{pid}@100" for pid in ends}

    lived = {f"moving/{pid}@100" for pid in range(10_000, 10_000 + count)} - gone
    assert len(lived) > count // 2
    assert lived <= set(names)
    assert len(names) == len(set(names))


def test_targets_of_one_name_are_both_listed(collector: CollectorProcess) -> None:
    """After a boot, the same processes may start at the same ticks."""
    reader = Reader(collector.address)
    for boot_id in ("boot-1", "boot-2"):
        with Agent(collector.address, boot_id=boot_id) as agent:
            agent.hello()
            agent.deliver(target(boot_id=boot_id), [1])

    assert list(pages(reader, page_size=1)) == [["host-1/1@100"], ["host-1/1@100"]]


def test_hosts_come_in_pages_too(crowd: Reader) -> None:
    """In the order of their ids."""
    first = crowd.stub.ListHosts(pb.ListHostsRequest(page_size=1), timeout=20)
    second = crowd.stub.ListHosts(pb.ListHostsRequest(page_size=1, page_token=first.next_page_token), timeout=20)

    assert [host.host_id for host in (*first.hosts, *second.hosts)] == ["a", "full"]
    assert second.next_page_token == ""


def test_token_of_something_else_is_refused(crowd: Reader) -> None:
    """Of another selection or list, cut short, or none at all: to go on from it would leave targets out."""
    token = crowd.stub.ListTargets(pb.ListTargetsRequest(selection=FULL, page_size=1), timeout=20).next_page_token

    for selection, text in (
        (None, token),
        (pb.Selection(hosts=["a"]), token),
        (FULL, token[:-4]),
        (FULL, "nonsense"),
        (FULL, "\xe9"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_MALFORMED"):
            crowd.stub.ListTargets(pb.ListTargetsRequest(selection=selection, page_token=text), timeout=20)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_MALFORMED"):
        crowd.stub.ListHosts(pb.ListHostsRequest(page_token=token), timeout=20)


def test_page_size_below_zero_is_refused(crowd: Reader) -> None:
    """Nobody means it."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"):
        crowd.stub.ListTargets(pb.ListTargetsRequest(page_size=-1), timeout=20)


def test_sdk_and_command_walk_through_all_pages(crowded: CollectorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller hears nothing of pages."""
    with Collector(crowded.address) as client:
        targets = client.targets()
        monkeypatch.setattr(requests, "PAGE_SIZE", 1)
        hosts = client.hosts()
    printed = wetink("--collector", crowded.address, "targets", "--json").stdout.splitlines()

    assert [host.host_id for host in hosts] == ["a", "full"]
    assert len(targets) == len({target.name for target in targets}) == len(printed) == COUNT + 1
