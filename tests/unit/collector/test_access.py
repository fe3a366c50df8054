import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from wetink.v1 import dirty_pb2, ingest_pb2, insight_pb2, session_pb2, types_pb2
from wetink_collector.access import ANYBODY, ROLES_OF, check_role
from wetink_collector.caller import Caller, Role
from wetink_collector.errors import RoleLacking

FILES = (ingest_pb2, dirty_pb2, insight_pb2, session_pb2, health_pb2, reflection_pb2)

METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every method of every service that the collector serves."""

DIRTY = "/wetink.v1.DirtyService/"
READS = ["ListHosts", "ListTargets", "ListMappings", "Barrier", "GetDirty", "Watch", "StreamEvents"]
INSIGHT = "/wetink.v1.InsightService/"
INSIGHTS = ["GetWorkingSet", "GetHeatmap", "GetHotPages", "GetColdFirst", "GetWriters"]
PREDICTIONS = ["PredictMigration", "FindWindow", "RankCandidates", "PlanDrain", "ReportMigration", "GetAccuracy"]
SESSION = "/wetink.v1.SessionService/"
SESSIONS = ["OpenSession", "CloseSession", "BeginRound", "CloseRound", "GetRound"]
READERS = [
    *(DIRTY + name for name in READS),
    *(SESSION + name for name in SESSIONS),
    *(INSIGHT + name for name in [*INSIGHTS, *PREDICTIONS]),
]


def caller(role: Role) -> Caller:
    """Give somebody of a role."""
    return Caller("somebody", frozenset((role,)))


def test_every_method_is_in_the_table() -> None:
    """A method that is added without a thought about who may call it fails here, and is refused to everybody."""
    assert ROLES_OF.keys() == METHODS


@pytest.mark.parametrize("role", Role)
def test_method_that_is_not_in_the_table_is_for_nobody(role: Role) -> None:
    """Also not for admins."""
    with pytest.raises(RoleLacking, match="table"):
        check_role("/wetink.v1.DirtyService/New", caller(role))


@pytest.mark.parametrize(
    "role, methods",
    [
        (Role.AGENT, ["/wetink.v1.IngestService/Stream"]),
        (Role.READER, READERS),
        (Role.ADMIN, [*READERS, DIRTY + "Track", DIRTY + "Untrack", DIRTY + "Thaw"]),
    ],
)
def test_role_may_what_is_its_own_and_nothing_else(role: Role, methods: list[str]) -> None:
    """Written out here once more: the table is not asked about itself."""
    allowed = {*methods, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}
    allowed |= {f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")}
    for method in METHODS:
        if method in allowed:
            check_role(method, caller(role))
        else:
            with pytest.raises(RoleLacking):
                check_role(method, caller(role))


def test_anybody_may_ask_for_health_alone() -> None:
    """Probes have no certificate, and learn nothing of targets. What stays open is for those with a role."""
    assert {method for method, roles in ROLES_OF.items() if roles is ANYBODY} == {"/grpc.health.v1.Health/Check"}


@pytest.mark.parametrize("request_", [dirty_pb2.BarrierRequest, dirty_pb2.GetDirtyRequest])
def test_who_freezes_is_an_admin(request_: type[dirty_pb2.BarrierRequest | dirty_pb2.GetDirtyRequest]) -> None:
    """A reader may ask for a barrier, and stop nobody for it."""
    method = DIRTY + request_.__name__.removesuffix("Request")
    freezing = request_(freeze=types_pb2.Freeze())

    check_role(method, caller(Role.READER), request_())
    check_role(method, caller(Role.ADMIN), freezing)
    with pytest.raises(RoleLacking, match="to freeze"):
        check_role(method, caller(Role.READER), freezing)
