"""Firecracker's handshake, byte for byte: its regions and its userfaultfd, which is used where it can be."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.offers import PATIENCE_SECONDS, Agent, agent, armed_mappings, listener
from tests.support.programs import Program
from wetink.pages import PAGE_SIZE
from wetink_agent.handshake import receive

pytestmark = pytest.mark.needs("kernel", "root", "cc")

PAGES: Final = 64
EVENT_REMOVE: Final = 1 << 3
MISSING_SHMEM: Final = 1 << 5
SIGBUS: Final = 1 << 7
WP_ASYNC: Final = 1 << 15
ALL_OF_OURS: Final = 0xB001

NONE, MISSING, WRITE_PROTECT = 0, 1, 2


def first_pages(guest: Program) -> list[int]:
    """Give the first page of each region of guest memory."""
    return [int(word) // PAGE_SIZE for word in guest.ready[2::2]]


def test_the_message_is_what_firecracker_sends(tmp_path: Path) -> None:
    """One message, compact JSON of five fields, a descriptor with it, and nothing after it."""
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with programs.running("firecracker", path, "-", NONE) as guest:
            connection, _ = listening.accept()
            with connection:
                body, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
    assert len(descriptors) == 1
    expected = [
        {
            "base_host_virt_addr": page * PAGE_SIZE,
            "size": PAGES * PAGE_SIZE,
            "offset": index * PAGES * PAGE_SIZE,
            "page_size": PAGE_SIZE,
            "page_size_kib": PAGE_SIZE,
        }
        for index, page in enumerate(first_pages(guest))
    ]
    assert body == json.dumps(expected, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "features,mode",
    [
        pytest.param("-", NONE, id="fresh"),
        pytest.param(f"{WP_ASYNC:x}", NONE, id="with what suffices"),
        pytest.param(f"{ALL_OF_OURS | MISSING_SHMEM | SIGBUS:x}", NONE, id="with more"),
        pytest.param(f"{WP_ASYNC:x}", WRITE_PROTECT, id="registered"),
    ],
)
@pytest.mark.parametrize("how", ["", "late"])
def test_guest_memory_is_tracked(features: str, mode: int, how: str, tmp_path: Path) -> None:
    """Only the regions, each page of them, though the program keeps socket and descriptor and hears no answer."""
    with (
        listener(tmp_path / "agent") as here,
        programs.running("firecracker", here.path, features, mode, *filter(None, [how])) as guest,
    ):
        pid, tracker = here.taken()
        try:
            assert pid == guest.pid
            regions = first_pages(guest)
            assert set(tracker.harvest().written) == {first + page for first in regions for page in range(0, PAGES, 2)}
            assert not tracker.harvest().written
            guest.ask("0 3 7")
            guest.ask("1 4 7")
            assert set(tracker.harvest().written) == {regions[0] + 3, regions[1] + 4}
            assert armed_mappings(pid) in {1, 2}  # the kernel may have joined them
        finally:
            tracker.close()
        # Its own copy stays, so the memory stays registered; nobody reads it, and nobody waits.
        guest.ask("0 5 7")


@pytest.fixture(scope="module")
def one_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Give one agent to many tests."""
    with agent(tmp_path_factory.mktemp("firecracker") / "agent") as here:
        yield here


@pytest.mark.parametrize(
    "features,mode,how,sentence",
    [
        pytest.param("0", MISSING, "", "without UFFD_FEATURE_WP_UNPOPULATED, UFFD_FEATURE_WP_ASYNC", id="stock"),
        pytest.param(
            f"{WP_ASYNC | EVENT_REMOVE:x}", NONE, "", "with UFFD_FEATURE_EVENT_REMOVE, for which it would", id="balloon"
        ),
        pytest.param(f"{WP_ASYNC:x}", MISSING, "", "registered for missing pages", id="missing"),
        pytest.param(f"{WP_ASYNC:x}", WRITE_PROTECT, "armed", "uses userfaultfd itself at", id="armed"),
        pytest.param("-", NONE, "fork", "over the memory of another process", id="a child's"),
        pytest.param(f"{WP_ASYNC:x}", NONE, "fork", "over the memory of another process", id="a child's own"),
    ],
)
def test_what_cannot_be_used_is_refused(features: str, mode: int, how: str, sentence: str, one_agent: Agent) -> None:
    """One sentence in the agent's log says what would do, nothing of it stays open, and the guest runs on."""
    before = one_agent.descriptors()
    with programs.running("firecracker", one_agent.path, features, mode, *filter(None, [how])) as guest:
        pid = int(guest.ready[1])
        refusal = one_agent.wait_for_log("offer_refused", f"process {pid} ")
        assert sentence in refusal
        assert one_agent.settled_descriptors(before) == before
        if mode != MISSING:
            guest.ask("0 3 7")


def test_a_guest_whose_agent_is_killed_runs_on(tmp_path: Path) -> None:
    """It has a copy of the descriptor, so that nothing is unregistered; and still no write waits for anybody."""
    with (
        agent(tmp_path / "agent") as here,
        programs.running("firecracker", here.path, f"{WP_ASYNC:x}", NONE) as guest,
    ):
        until = time.monotonic() + PATIENCE_SECONDS
        while not armed_mappings(guest.pid):
            assert time.monotonic() < until
            time.sleep(0.01)
        here.process.send_signal(signal.SIGKILL)
        here.process.wait()
        for page in range(PAGES):
            guest.ask(f"0 {page} 9")


def test_a_body_that_no_descriptor_follows_is_answered() -> None:
    """When its time is over and only the descriptor is missing, the answer says that."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"[]")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Exception, match="offered 0 descriptors: send one"):
            receive(ours)
