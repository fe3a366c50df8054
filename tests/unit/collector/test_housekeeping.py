"""What is let go of once nobody waits for it any more: a host that is gone, with all that it left."""

from collections.abc import Mapping, Sequence

import pytest

from tests.unit.collector.bench import Bench, runs
from tests.unit.collector.changes import appended, ended, incarnation, started, target
from wetink.v1.types_pb2 import END_REASON_LOST, END_REASON_REFUSED
from wetink_collector import catalog
from wetink_collector.housekeeping import Housekeeping
from wetink_collector.identity import IncarnationKey
from wetink_collector.retention import KEPT_WITHOUT_END
from wetink_collector.store.interface import Change, Contents, HostSeen, TargetWanted

ONE, REFUSED, THERE = incarnation(1), incarnation(2), incarnation(3, host_id="host-2")


class NoSessions:
    """Nobody needs anything."""

    async def needed(self) -> Mapping[IncarnationKey, int]:
        """Give nothing."""
        return {}

    def expired(self, *_: object) -> Sequence[str]:
        """Give nobody."""
        return ()


def contents(one: Bench) -> Contents:
    """Give what the store has, which the catalog has too."""
    found = one.store.contents()
    assert {record.incarnation for record in one.catalog.all()} == {each.incarnation for each in found.incarnations}
    assert set(one.catalog.hosts) == {host.host_id for host in found.hosts}
    return found


@runs
async def test_host_that_is_gone_for_good_leaves_nothing(one: Bench) -> None:
    """Its targets are lost, then forgotten as all that ended are, and it with them; who is connected stays."""
    seen = [HostSeen(host_id, "boot-1", "1", 1) for host_id in ("host-1", "host-2")]
    wanted = [TargetWanted(target(1)), TargetWanted(target(4)), TargetWanted(THERE.target)]
    begun: list[Change] = [
        started(ONE),
        appended(ONE, 1, [1]),
        started(REFUSED),
        ended(REFUSED, END_REASON_REFUSED),
        started(THERE),
    ]
    await one.committer.commit([*seen, *begun, *wanted])
    one.catalog.set_connected("host-2", connected=True)
    house = Housekeeping(one.catalog, one.committer, NoSessions(), KEPT_WITHOUT_END)
    with pytest.MonkeyPatch.context() as patch:
        await house.let_go()
        await house.let_go()
        assert not any(each.ended and each.ended.reason == END_REASON_LOST for each in contents(one).incarnations)

        patch.setattr(catalog, "HOST_KEPT_SECONDS", 0)
        await house.let_go()
        ends = {each.incarnation: each.ended and each.ended.reason for each in contents(one).incarnations}
        assert ends == {ONE: END_REASON_LOST, REFUSED: END_REASON_LOST, THERE: None}
        assert len(contents(one).hosts) == 2

        patch.setattr(catalog, "ENDED_KEPT_SECONDS", 0)
        for _ in range(3):
            await house.let_go()
    found = contents(one)
    assert [each.incarnation for each in found.incarnations] == [THERE]
    assert (found.hosts, found.wanted) == ([seen[1]], [THERE.target])
