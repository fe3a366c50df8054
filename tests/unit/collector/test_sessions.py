"""Sessions as they are opened: what is durable of them is known, whoever goes away and whatever is over meanwhile."""

import asyncio
from typing import Any, Final, cast

import pytest

from tests.unit.collector.bench import Bench, runs, until
from wetink.v1 import session_pb2 as pb
from wetink.v1.dirty_pb2 import Selection
from wetink_collector import sessions
from wetink_collector.agents import Agents
from wetink_collector.errors import StoreUnavailable
from wetink_collector.room import OF_STREAM_BYTES_MAX
from wetink_collector.sessions import SessionService
from wetink_collector.store.interface import SessionKept, StoreFailed

SOON: Final = 0.005


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what is over at once."""
    monkeypatch.setattr(sessions, "LOOK_SECONDS", SOON)


def service_of(one: Bench) -> SessionService:
    """Give the service; nobody asks for pages."""
    return SessionService(one.catalog, Agents(one.catalog), one.committer, cast("Any", None), ())


def opening(service: SessionService, lease_ms: int) -> asyncio.Task[pb.OpenSessionResponse]:
    """Open a session, or renew it."""
    request = pb.OpenSessionRequest(session="move-7", selection=Selection(targets=["host-1/1"]), lease_ms=lease_ms)
    return asyncio.create_task(service._open(request))


def kept(one: Bench) -> list[str]:
    """Give the sessions that are durable."""
    return [session.name for session in one.store.contents().sessions]


@runs
async def test_session_whose_opener_went_away_is_forgotten_with_its_lease(one: Bench) -> None:
    """It had become durable, and nobody would have asked for it again."""
    service = service_of(one)
    one.store.gate.clear()
    call = opening(service, lease_ms=1)
    await asyncio.sleep(SOON)
    call.cancel()
    await asyncio.wait([call])
    one.store.gate.set()
    await until(lambda: kept(one) == ["move-7"])

    async with service.running():
        await until(lambda: not kept(one))


@runs
async def test_session_that_is_opened_again_after_its_lease_stays(one: Bench) -> None:
    """That the one before is over is found out while this one becomes durable."""
    service = service_of(one)
    await opening(service, lease_ms=1)
    await asyncio.sleep(10 * SOON)
    one.store.gate.clear()
    call = opening(service, lease_ms=60_000)
    await asyncio.sleep(SOON)
    async with service.running():
        await asyncio.sleep(10 * SOON)
        one.store.gate.set()
        await call
        await one.committer.settle("")

    assert kept(one) == ["move-7"]


@runs
async def test_session_that_could_not_be_written_is_not_open(one: Bench) -> None:
    """Whether or not it is there when the store is back, it is forgotten."""
    service = service_of(one)
    one.store.failing = StoreFailed("the disk is full")
    with pytest.raises(StoreUnavailable):
        await opening(service, lease_ms=60_000)

    assert service._living(next(iter(service._sessions))) is None


@runs
async def test_session_of_a_later_version_is_opened_and_renewed(one: Bench) -> None:
    """A field that is not known here is passed over, in the selection too: it does not make it another session."""
    service = service_of(one)
    request = pb.OpenSessionRequest(session="move-7", selection=Selection(targets=["host-1/1"]))
    known = request.SerializeToString()
    later = bytes([0xA2, 0x06, 1, 65])
    request.selection.MergeFromString(later)
    for text in (request.SerializeToString() + later, known, request.SerializeToString()):
        await service._open(pb.OpenSessionRequest.FromString(text))

    assert one.store.groups == [1]


def closing(service: SessionService) -> asyncio.Task[pb.CloseSessionResponse]:
    """Close the session."""
    request = pb.CloseSessionRequest(session="move-7")
    return asyncio.create_task(service.CloseSession(request, cast("Any", Call())))


class Call:
    """A call at the edge, as far as that looks at it."""

    def invocation_metadata(self) -> None:
        """Give what it was called with: nothing."""

    async def abort_with_status(self, _: object) -> None:
        """End it."""
        raise Aborted


class Aborted(Exception):
    """The call has ended with a status."""


@runs
async def test_session_whose_closer_went_away_is_forgotten(one: Bench) -> None:
    """It would be there again after a restart: here its closer still waited for room before the writer."""
    service = service_of(one)
    await opening(service, lease_ms=60_000)
    one.store.gate.clear()
    await one.committer.submit([SessionKept("", "another", b"")], size_bytes=OF_STREAM_BYTES_MAX)
    call = closing(service)
    await asyncio.sleep(SOON)
    call.cancel()
    await asyncio.wait([call])
    one.store.gate.set()

    await until(lambda: kept(one) == ["another"])


@runs
async def test_session_that_could_not_be_closed_is_forgotten_when_the_store_is_back(one: Bench) -> None:
    """Also where nobody closes it again; until then it is in nobody's hands."""
    service = service_of(one)
    await opening(service, lease_ms=60_000)
    one.store.failing = StoreFailed("the disk is full")
    with pytest.raises(Aborted):
        await closing(service)
    assert kept(one) == ["move-7"]
    assert service._living(next(iter(service._sessions))) is None

    async with service.running():
        await until(lambda: not kept(one))
