"""What is known of targets without their pages: names, windows, bells and retention."""

import asyncio

import pytest

from tests.unit.collector.changes import appended, ended, incarnation, started, target
from wetink.names import TargetName
from wetink.v1.types_pb2 import END_REASON_FAILED, END_REASON_LOST, EndReason
from wetink_collector.catalog import (
    ENDED_KEPT_MAX,
    ENDED_KEPT_SECONDS,
    HOST_KEPT_SECONDS,
    REFUSED_KEPT_SECONDS,
    Catalog,
)
from wetink_collector.identity import IncarnationKey
from wetink_collector.store.interface import (
    Change,
    Contents,
    HostForgotten,
    HostSeen,
    TargetForgotten,
    TargetUnwanted,
    TargetWanted,
)
from wetink_collector.store.memory import MemoryStore

ONE = incarnation()
SECOND_NS = 10**9


def catalog_of(*changes: object) -> Catalog:
    """Give a catalog that has taken changes."""
    catalog = Catalog("0" * 32, Contents([], [], []))
    catalog.apply(changes)  # type: ignore[arg-type]
    return catalog


def test_catalog_of_a_store_is_that_of_its_changes() -> None:
    """After a restart everything is known as before."""
    changes: list[Change] = [
        HostSeen("host-1", "boot-1", "1.0", 5),
        started(ONE),
        appended(ONE, 1, [1]),
        appended(ONE, 2, [2]),
        started(incarnation(2)),
        ended(incarnation(2)),
        TargetWanted(target(3)),
        TargetWanted(target(4)),
        TargetUnwanted(target(4)),
    ]
    store = MemoryStore()
    store.commit(changes)

    loaded, applied = Catalog(store.store_id, store.contents()), catalog_of(*changes)

    assert list(loaded.all()) == list(applied.all())
    assert loaded.hosts == applied.hosts
    assert loaded.wanted("host-1") == applied.wanted("host-1") == [target(3)]
    assert loaded.get(ONE.target).window_ns == 1000  # type: ignore[union-attr]


def test_name_without_a_start_means_the_youngest_process() -> None:
    """Of those with that pid, on the boot that is newest."""
    old, young = target(1, start_time_ticks=100), target(1, start_time_ticks=200)
    rebooted = target(1, boot_id="boot-2", start_time_ticks=50)
    catalog = catalog_of(
        started(IncarnationKey(young, 1), time_ns=5),
        started(IncarnationKey(old, 1), time_ns=4),
    )
    assert catalog.find(TargetName("host-1", 1)).target == young  # type: ignore[union-attr]
    assert catalog.find(TargetName("host-1", 1, 100)).target == old  # type: ignore[union-attr]
    assert catalog.find(TargetName("host-1", 2)) is None
    assert catalog.find(TargetName("host-2", 1)) is None

    catalog.apply([started(IncarnationKey(rebooted, 1), time_ns=6)])

    assert catalog.find(TargetName("host-1", 1)).target == rebooted  # type: ignore[union-attr]


def test_young_process_that_is_tracked_first_stays_the_youngest() -> None:
    """When tracking began says nothing about which process is younger on one boot."""
    old, young = target(1, start_time_ticks=100), target(1, start_time_ticks=200)
    catalog = catalog_of(
        started(IncarnationKey(young, 1), time_ns=4),
        started(IncarnationKey(old, 1), time_ns=5),
    )

    assert catalog.find(TargetName("host-1", 1)).target == young  # type: ignore[union-attr]


def test_boot_that_the_agent_is_on_is_the_newest_whatever_the_clocks_say() -> None:
    """A host that boots with a clock in the past is asked about as it is now, and so it is once it is gone."""
    before, now = target(1, boot_id="boot-1"), target(1, boot_id="boot-2", start_time_ticks=50)
    changes: list[Change] = [
        HostSeen("host-1", "boot-1", "1", 10**18),
        started(IncarnationKey(before, 1), time_ns=(1 << 63) - 1),
        HostSeen("host-1", "boot-2", "1", 0),
        started(IncarnationKey(now, 1), time_ns=0),
    ]
    store = MemoryStore()
    store.commit(changes)

    for catalog in (catalog_of(*changes), Catalog(store.store_id, store.contents()), catalog_of(*changes[1::2])):
        assert catalog.find(TargetName("host-1", 1)).target == now  # type: ignore[union-attr]


@pytest.mark.parametrize("time_ns", [0, 10**18, (1 << 63) - 1])
def test_targets_that_ended_are_kept_for_an_hour(time_ns: int) -> None:
    """And not longer, by a clock that cannot jump; those that live are never forgotten."""
    catalog = catalog_of(
        started(incarnation(1)),
        started(incarnation(2)),
        started(incarnation(3)),
        ended(incarnation(3), time_ns=time_ns),
    )
    assert catalog.to_forget(1000.0) == []
    catalog.apply([ended(incarnation(2), time_ns=0)])

    assert catalog.to_forget(1000.0 + ENDED_KEPT_SECONDS - 1) == []
    assert catalog.to_forget(1000.0 + ENDED_KEPT_SECONDS) == [incarnation(3)]
    catalog.apply([TargetForgotten(incarnation(3))])
    assert catalog.to_forget(1000.0 + 2 * ENDED_KEPT_SECONDS - 2) == []
    assert catalog.to_forget(1000.0 + 2 * ENDED_KEPT_SECONDS - 1) == [incarnation(2)]
    assert catalog.find(TargetName("host-1", 3)) is None
    assert {record.target for record in catalog.on_host("host-1")} == {target(1), target(2)}


def test_host_is_gone_when_its_agent_has_been_away_for_a_day() -> None:
    """Counted from when that was seen first, and anew from when it was there again."""
    catalog = catalog_of(HostSeen("host-1", "boot-1", "1", 1), HostSeen("host-2", "boot-1", "1", 1))
    catalog.set_connected("host-2", connected=True)

    def gone(now: float) -> list[str]:
        return [host.host_id for host in catalog.hosts_gone(now)]

    assert gone(1000.0) == []
    assert gone(1000.0 + HOST_KEPT_SECONDS - 1) == []
    assert gone(1000.0 + HOST_KEPT_SECONDS) == ["host-1"]
    catalog.apply([HostSeen("host-1", "boot-1", "1", 2)])
    assert gone(1000.0 + HOST_KEPT_SECONDS) == []
    catalog.set_connected("host-1", connected=True)
    catalog.set_connected("host-2", connected=False)
    assert gone(1000.0 + 3 * HOST_KEPT_SECONDS) == []
    assert gone(1000.0 + 4 * HOST_KEPT_SECONDS) == ["host-2"]


def test_host_that_is_seen_again_is_not_forgotten() -> None:
    """It came back while that was on its way."""
    catalog = catalog_of(HostSeen("host-1", "boot-1", "1", 1), TargetWanted(ONE.target))
    catalog.apply([HostSeen("host-1", "boot-1", "1", 2), HostForgotten("host-1", 1)])
    assert (list(catalog.hosts), catalog.wanted("host-1")) == (["host-1"], [ONE.target])

    catalog.apply([HostForgotten("host-1", 2)])
    assert (list(catalog.hosts), catalog.wanted("host-1")) == ([], [])


def test_target_that_lives_again_is_not_forgotten() -> None:
    """What ended was an incarnation before."""
    catalog = catalog_of(started(ONE), ended(ONE))
    assert catalog.to_forget(0.0) == []
    catalog.apply([started(IncarnationKey(ONE.target, 2))])

    assert catalog.to_forget(10.0 * ENDED_KEPT_SECONDS) == []
    assert catalog.ended() == []


def test_forgetting_that_comes_late_leaves_what_has_begun() -> None:
    """It was decided before an incarnation began: that one, what it wrote, and that it is wanted stay."""
    second = IncarnationKey(ONE.target, 2)
    catalog = catalog_of(started(ONE), ended(ONE), TargetWanted(ONE.target))
    catalog.apply([started(second), TargetForgotten(ONE, unwanted=True), appended(second, 1)])

    record = catalog.get(ONE.target)
    assert record is not None
    assert (record.incarnation, record.round) == (second, 1)
    assert catalog.wanted("host-1") == [ONE.target]
    assert catalog.on_host("host-1") == [record]

    catalog.apply([ended(second), TargetForgotten(second, unwanted=True)])
    assert catalog.get(ONE.target) is None
    assert catalog.wanted("host-1") == []


@pytest.mark.parametrize("reason", [END_REASON_FAILED, END_REASON_LOST], ids=["failed", "lost"])
def test_target_that_is_tracked_no_more_may_live_for_a_while(reason: EndReason.ValueType) -> None:
    """Not for ever, not in another boot, and not once it has exited as an incarnation that came after."""
    failed = ended(ONE, reason)

    def may_live(catalog: Catalog) -> bool:
        record = catalog.get(ONE.target)
        assert record is not None
        return catalog.may_live(record)

    catalog = catalog_of(HostSeen("host-1", "boot-1", "1", 1), started(ONE), failed)
    catalog.to_forget(1000.0)
    catalog.to_forget(1000.0 + REFUSED_KEPT_SECONDS - 1)
    assert may_live(catalog)
    assert catalog.to_forget(1000.0 + REFUSED_KEPT_SECONDS) == []
    assert not may_live(catalog)

    catalog = catalog_of(HostSeen("host-1", "boot-1", "1", 1), started(ONE), failed)
    catalog.apply([HostSeen("host-1", "boot-2", "1", 2)])
    assert not may_live(catalog)

    catalog = catalog_of(started(ONE), failed, started(IncarnationKey(ONE.target, 2)))
    assert may_live(catalog)
    catalog.apply([ended(IncarnationKey(ONE.target, 2))])
    assert not may_live(catalog)


def test_no_more_than_the_bound_of_ended_targets_is_kept() -> None:
    """Those go first that ended first, whatever a clock said then."""
    catalog = catalog_of(
        *(started(incarnation(pid)) for pid in range(1, ENDED_KEPT_MAX + 4)),
        *(ended(incarnation(pid), time_ns=10**18 - pid) for pid in range(1, ENDED_KEPT_MAX + 4)),
    )

    assert sorted(catalog.to_forget(0.0)) == [incarnation(1), incarnation(2), incarnation(3)]


def test_rounds_of_an_older_incarnation_change_nothing() -> None:
    """They may be on their way while a newer one starts."""
    newer = IncarnationKey(ONE.target, 2)
    catalog = catalog_of(started(ONE), appended(ONE, 1), started(newer), appended(ONE, 2), ended(ONE))

    record = catalog.get(ONE.target)

    assert record is not None
    assert (record.incarnation, record.round, record.ended) == (newer, 0, None)


def test_bell_rings_for_what_it_listens_to() -> None:
    """For its targets, and for what comes and goes; not for others' rounds."""
    catalog = catalog_of(HostSeen("host-1", "boot-1", "1", 1), started(ONE), started(incarnation(2)))

    async def rung(*changes: object) -> bool:
        with catalog.bell([ONE.target]) as bell:
            catalog.apply(changes)  # type: ignore[arg-type]
            try:
                await asyncio.wait_for(bell.wait(), 0.01)
            except TimeoutError:
                return False
            return True

    async def scenario() -> list[bool]:
        return [
            await rung(appended(ONE, 1)),
            await rung(appended(incarnation(2), 1)),
            await rung(started(incarnation(3))),
            await rung(ended(incarnation(3))),
        ]

    assert asyncio.run(scenario()) == [True, False, True, True]
    assert not catalog._bells
