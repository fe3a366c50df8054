"""An orchestrator with a session, on the plain stub."""

from collections.abc import Iterable

from tests.integration.collector.wire import (
    PATIENCE_SECONDS,
    Agent,
    Answer,
    answers,
    batch,
    channel,
    meanwhile,
    target,
)
from wetink.v1 import dirty_pb2, types_pb2
from wetink.v1 import session_pb2 as pb
from wetink.v1.session_pb2_grpc import SessionServiceStub


class Mover:
    """An orchestrator on the plain stub, with one session over one target."""

    def __init__(self, address: str, name: str, session: str = "move-7") -> None:
        """Connect; nothing is opened yet."""
        self.channel = channel(address)
        self.stub = SessionServiceStub(self.channel)
        self.session = session
        self.selection = dirty_pb2.Selection(targets=[name])

    def open(self, lease_ms: int = 0) -> list[pb.SessionRound]:
        """Open the session."""
        request = pb.OpenSessionRequest(session=self.session, selection=self.selection, lease_ms=lease_ms)
        return list(self.stub.OpenSession(request, timeout=PATIENCE_SECONDS).rounds)

    def begin(self, round_: str, parent: str = "") -> pb.SessionRound:
        """Begin a round."""
        request = pb.BeginRoundRequest(session=self.session, round=round_, parent=parent)
        return self.stub.BeginRound(request, timeout=PATIENCE_SECONDS).round

    def close(self, round_: str, timeout_ms: int = 0, freeze: types_pb2.Freeze | None = None) -> pb.SessionRound:
        """Close a round."""
        request = pb.CloseRoundRequest(session=self.session, round=round_, timeout_ms=timeout_ms, freeze=freeze)
        return self.stub.CloseRound(request, timeout=PATIENCE_SECONDS).round

    def get(self, round_: str) -> Answer:
        """Ask what a round carries."""
        request = pb.GetRoundRequest(session=self.session, round=round_)
        (answer,) = answers(self.stub.GetRound(request, timeout=PATIENCE_SECONDS))
        return answer

    def end(self) -> None:
        """Close the session."""
        self.stub.CloseSession(pb.CloseSessionRequest(session=self.session), timeout=PATIENCE_SECONDS)


def close(
    mover: Mover, live: Agent, round_: str, number: int, written: Iterable[int], vanished: Iterable[int] = ()
) -> pb.SessionRound:
    """Close a round that the agent harvests."""
    of = target(host_id=mover.selection.targets[0].rpartition("/")[0])
    harvested = batch(of, number, written=written, vanished=vanished)
    with meanwhile(lambda: live.harvest(live.hear("barrier").barrier, harvested)):
        return mover.close(round_)
