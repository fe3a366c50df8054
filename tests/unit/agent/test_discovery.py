import os
import re

from hypothesis import given
from hypothesis import strategies as st

from wetink_agent import discovery
from wetink_agent.discovery import Process, Selection

PIDS = st.integers(1, 12)
PROCESSES = st.dictionaries(
    PIDS,
    st.builds(
        Process,
        parent_pid=st.integers(0, 12),
        command=st.sampled_from(["redis-server *:6379", "python3 -m x", "sleep 60", ""]),
        cgroup=st.sampled_from(["", "/", "/a", "/a/b", "/ab", "/a/b/c"]),
    ),
    max_size=12,
)


def descends(pid: int, ancestors: set[int], processes: dict[int, Process]) -> bool:
    """Whether a process has one of these above it; a circle of parents, which a race can show, ends the climb."""
    seen: set[int] = set()
    while pid in processes and pid not in seen:
        seen.add(pid)
        pid = processes[pid].parent_pid
        if pid in ancestors:
            return True
    return False


@given(
    processes=PROCESSES,
    roots=st.frozensets(PIDS, max_size=2),
    pattern=st.sampled_from(["redis", "^python3? ", "6$", "nothing"]),
    path=st.sampled_from(["/", "/a", "/a/", "/a/b", "/b"]),
    tree=st.booleans(),
)
def test_selected_are_those_that_match_and_their_descendants(
    processes: dict[int, Process], roots: frozenset[int], pattern: str, path: str, *, tree: bool
) -> None:
    """A process is chosen when its command or cgroup matches, or, under tree, when it descends from one or a root."""
    selection = Selection((re.compile(pattern),), (path,), tree)
    inside = path.rstrip("/")
    matching = {
        pid
        for pid, process in processes.items()
        if re.search(pattern, process.command) or f"{process.cgroup}/".startswith(f"{inside}/")
    }
    expected = {pid for pid in processes if pid in matching or (tree and descends(pid, matching | roots, processes))}

    assert selection.select(processes, roots) - roots == expected - roots


def test_a_cgroup_is_no_prefix_of_a_name() -> None:
    """The cgroup /a holds /a and /a/b, and not /ab; a slash at the end of the path changes nothing."""
    processes = {n: Process(1, "x", path) for n, path in enumerate(["/a", "/a/b", "/ab", "/"], start=10)}

    assert Selection(cgroups=("/a",)).select(processes) == {10, 11}
    assert Selection(cgroups=("/a/",)).select(processes) == {10, 11}
    assert Selection(cgroups=("/",)).select(processes) == {10, 11, 12, 13}


def test_a_selection_without_rules_is_empty() -> None:
    """Nothing told is nothing chosen; tree alone may choose, below the roots."""
    assert Selection().is_empty
    assert not Selection(tree=True).is_empty
    assert Selection(tree=True).select({5: Process(4, "x", ""), 6: Process(5, "x", "")}, frozenset({4})) == {5, 6}


def test_a_look_has_what_its_rules_ask_of_processes() -> None:
    """And each process in any case: what is selected is the same as by a look that has everything."""
    pid, whole = os.getpid(), discovery.processes()
    selections = (
        Selection(commands=(re.compile(re.escape(whole[pid].command)),)),
        Selection(cgroups=(whole[pid].cgroup,)),
        Selection(tree=True),
    )

    for selection in selections:
        found = discovery.processes(selection)
        assert found[pid].parent_pid == os.getppid()
        assert pid in selection.select(found, frozenset({os.getppid()}))
    assert [bool(each.command) for each in (discovery.processes(one)[pid] for one in selections)] == [
        True,
        False,
        False,
    ]
    assert [bool(each.cgroup) for each in (discovery.processes(one)[pid] for one in selections)] == [False, True, False]
