"""Which targets a selection means, as the contract says it, and in no more time than there are targets."""

import time

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.collector.changes import started, target
from wetink.v1.dirty_pb2 import Selection
from wetink_collector.catalog import Catalog
from wetink_collector.identity import IncarnationKey
from wetink_collector.selection import TARGETS_MAX, parse, resolve
from wetink_collector.store.interface import Contents

PATHS = st.lists(st.sampled_from(["", "a", "b", "ab", "."]), max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(PATHS, max_size=5), PATHS | st.sampled_from(["", "a", "a/b"]))
def test_a_cgroup_means_itself_and_all_below(selected: list[str], path: str) -> None:
    """And not one whose name only begins alike. The root means all that have any."""
    means = any(
        path == cgroup or path.startswith(cgroup + "/")
        for cgroup in (one.rstrip("/") for one in selected)
        if cgroup or path.startswith("/")
    )

    assert parse(Selection(cgroups=selected)).has_cgroup(path) == means


@given(
    st.lists(st.sampled_from(["h/1", "h/1@100", "h/2@100", "i/1", "i/2@7"]), max_size=4),
    st.sampled_from(["h", "i"]),
    st.integers(1, 2),
    st.sampled_from([7, 100]),
)
def test_a_name_means_a_pid_or_one_process(names: list[str], host_id: str, pid: int, start: int) -> None:
    """With its start time it means the one that started then, else any with that pid."""
    means = bool({f"{host_id}/{pid}", f"{host_id}/{pid}@{start}"} & set(names))

    one = target(pid, host_id=host_id, start_time_ticks=start)
    assert parse(Selection(targets=names)).names_target(one) == means


def test_a_selection_of_very_many_takes_no_longer_for_each() -> None:
    """It is read on the event loop: compared with each other, as many names or cgroups as may be took ten seconds."""
    catalog = Catalog("0" * 32, Contents([], [], []))
    keys = [IncarnationKey(target(pid), 1) for pid in range(1, TARGETS_MAX + 1)]
    catalog.apply(started(key, cgroup=f"/kubepods/pod-{key.target.pid}/one") for key in keys)
    names = parse(Selection(targets=[str(key.target) for key in keys]))
    cgroups = parse(Selection(cgroups=[f"/kubepods/pod-{key.target.pid}" for key in keys]))

    began = time.process_time()
    assert all(names.names_target(key.target) for key in keys)
    assert len(resolve(cgroups, catalog)) == TARGETS_MAX
    assert time.process_time() - began < 2
