"""The SDK, and collectors whose contract is that of another version."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import pytest

from tests.integration.versions import peers
from tests.integration.versions.peers import Fields, served
from tests.support.contracts import LATER_NUMBER, Contract, LaterContract
from wetink_client import BrokenAnswer, Collector
from wetink_client.values import Backend, EndReason, IncompleteReason

HOST = "host-1"
NAME = f"{HOST}/1@100"
STATUS: dict[str, object] = {
    "name": NAME,
    "incarnation": 1,
    "round": 3,
    "as_of_time_ns": 9,
    "complete": True,
    "exact": True,
    "written_page_count": 2,
    "vanished_page_count": 1,
    "page_size": 4096,
}
INFO: dict[str, object] = {
    "name": NAME,
    "target": peers.target(HOST),
    "incarnation": 1,
    "round": 3,
    "live": True,
    "page_size": 4096,
}
SUMMARY: dict[str, object] = {
    "cursor": "next",
    "complete": True,
    "exact": True,
    "as_of_time_ns": 9,
    "targets": [STATUS],
}
PAGES: Fields = {"name": NAME, "written": peers.page_set([1, 2]), "vanished": peers.page_set([7])}


def test_the_sdk_reads(contract: Contract) -> None:
    """Lists, a set since a cursor, a barrier and a watch; what the collector hears is what was asked."""
    asked: list[Any] = []
    answers: Mapping[str, Sequence[Fields]] = {
        "ListHosts": [{"hosts": [{"host_id": HOST, "connected": True, "agent_version": "0.1.0"}]}],
        "ListTargets": [{"targets": [INFO | {"backend": "BACKEND_WP_ASYNC"}]}],
        "GetDirty": [{"pages": PAGES}, {"summary": SUMMARY}],
        "Watch": [{"pages": PAGES}, {"summary": SUMMARY}],
        "Barrier": [
            {"cursor": "from now on", "targets": [STATUS | {"written_page_count": 0, "vanished_page_count": 0}]}
        ],
    }
    with served(_service(contract, answers, asked)) as address, Collector(address) as collector:
        (host,) = collector.hosts()
        (target,) = collector.targets()
        dirty = collector.dirty(NAME, since="before", barrier=True)
        watched = next(collector.watch(NAME))
        barrier = collector.barrier(NAME)

    assert (host.host_id, host.connected, host.agent_version) == (HOST, True, "0.1.0")
    assert (str(target.name), target.live, target.backend) == (NAME, True, Backend.WP_ASYNC)
    for answer in (dirty, watched):
        assert (set(answer.written), set(answer.vanished)) == ({1, 2}, {7})
        assert (answer.cursor, answer.complete, answer.exact) == ("next", True, True)
    assert barrier.cursor == "from now on"
    assert asked[2].cursor == "before"
    assert asked[2].barrier
    assert list(asked[2].selection.targets) == [NAME]


def test_reasons_that_came_later_are_unknown() -> None:
    """And the answer is what it says it is: not complete."""
    target = INFO | {"live": False, "backend": LATER_NUMBER, "end_reason": LATER_NUMBER}
    status = STATUS | {"complete": False, "incomplete_reason": LATER_NUMBER, "end_reason": LATER_NUMBER}
    summary = SUMMARY | {"complete": False, "targets": [status], "consistency": LATER_NUMBER}
    answers: Mapping[str, Sequence[Fields]] = {
        "ListTargets": [{"targets": [target]}],
        "GetDirty": [{"pages": PAGES}, {"summary": summary}],
    }
    with served(_service(LaterContract(), answers, [])) as address, Collector(address) as collector:
        (listed,) = collector.targets()
        dirty = collector.dirty(NAME)

    assert (listed.backend, listed.end_reason) == (Backend.UNKNOWN, EndReason.UNKNOWN)
    assert (dirty.complete, dirty.target.incomplete_reason) == (False, IncompleteReason.UNKNOWN)


def test_a_part_of_an_unknown_kind_is_no_answer() -> None:
    """It may be pages: of an answer nothing is passed over, also where its summary counts none."""
    contract = LaterContract()
    empty = STATUS | {"written_page_count": 0, "vanished_page_count": 0}
    unheard = list(contract.unheard("GetDirtyResponse"))

    def get_dirty(_request: object, _context: object) -> Iterator[object]:
        yield from unheard
        yield contract.message("GetDirtyResponse")(summary=SUMMARY | {"targets": [empty]})

    with (
        served(contract.served("DirtyService", GetDirty=get_dirty)) as address,
        Collector(address) as collector,
        pytest.raises(BrokenAnswer, match="does not know"),
    ):
        collector.dirty(NAME)


def _service(contract: Contract, answers: Mapping[str, Sequence[Fields]], asked: list[Any]) -> grpc.GenericRpcHandler:
    """Serve the same answers to whoever calls, and keep what was asked."""

    def one(method: str) -> Callable[..., object]:
        def answer(request: object, _context: object) -> object:
            asked.append(request)
            return contract.message(f"{method}Response")(**answers[method][0])

        return answer

    def many(method: str) -> Callable[..., object]:
        def answer(request: object, _context: object) -> Iterator[object]:
            asked.append(request)
            for part in answers[method]:
                yield contract.message(f"{method}Response")(**part)

        return answer

    streams = {"GetDirty", "Watch"}
    return contract.served(
        "DirtyService", **{method: (many if method in streams else one)(method) for method in answers}
    )
