"""Without a descriptor left nothing looks like nothing: reading /proc fails, or says that it does not know."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from wetink_agent import descriptors, discovery, headroom, keeper, procfs
from wetink_agent.descriptors import Descriptors
from wetink_agent.errors import DescriptorsFew
from wetink_agent.unseen import Unseen


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process have no more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


OWN: Final = os.getpid()

READS: Final[dict[str, Callable[[], object]]] = {
    "stat": lambda: procfs.stat(OWN),
    "threads": lambda: procfs.threads(OWN),
    "living thread": lambda: procfs.living_thread(OWN),
    "maps": lambda: procfs.read_maps(OWN),
    "layout": lambda: procfs.layout(OWN),
    "memory devices": lambda: procfs.memory_devices(OWN),
    "cgroup": lambda: procfs.cgroup(OWN),
    "ancestors": lambda: procfs.ancestors(OWN),
    "pids": procfs.pids,
    "processes": discovery.processes,
    "descriptors": lambda: descriptors.look(OWN),
}


@pytest.mark.parametrize("name", READS)
def test_what_a_round_reads_is_not_taken_for_empty(name: str) -> None:
    """Nor for that of a process that has gone: the error says what it is."""
    READS[name]()

    with no_descriptors(), pytest.raises(OSError) as failed:  # noqa: PT011 (its number is looked at)
        READS[name]()
    assert failed.value.errno == errno.EMFILE


def test_rings_that_cannot_be_asked_are_silent_and_not_without_buffers() -> None:
    """What was registered before still counts, and what may be is said not to be known."""
    with no_descriptors():
        assert descriptors.buffers_of(Descriptors(f"/proc/{OWN}", (0,))) == ((), (0,))


def test_descriptors_that_cannot_be_looked_at_are_said_to_be_unknown() -> None:
    """Until the next look, which is at the next round."""
    unseen = Unseen(OWN)
    maps = procfs.read_maps(OWN)
    with no_descriptors():
        unseen.look(maps, frozen=False)
    table = unseen.table(frozen=False)
    assert table is not None
    assert any("could not be looked at" in writer.what for writer in table.unseen_writers)

    unseen.look(maps, frozen=False)
    assert unseen._found.where


def test_no_target_is_taken_up_with_the_last_descriptors() -> None:
    """The error says which process, and what to do; with many left there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    headroom.check(OWN)
    count = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (as in the module)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 2, hard))
    try:
        with pytest.raises(DescriptorsFew, match=rf"process {OWN} .*RLIMIT_NOFILE"):
            headroom.check(OWN)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_keeper_that_could_not_receive_a_descriptor_says_so_and_holds_none() -> None:
    """Not the one that the name stood for before either; and it does not take the message for another."""
    one = keeper.Keeper(["true"], {})
    held = os.memfd_create("before")
    one._hear("hold uffd-1-2", [held], [held])
    assert one._held == {"uffd-1-2": held}

    one._hear("hold uffd-1-2", [], [])

    assert one._held == {}
    assert one._said == ""
    one._store._socket.close()
