"""What the stream of page faults says of real writes, beside the census, on the real kernel."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support import programs
from tests.support.victim import PAGE, Victim, victim
from wetink_agent.attach import take_userfaultfd
from wetink_agent.backend import Harvest
from wetink_agent.errors import NoSuchProcess
from wetink_agent.events import Events
from wetink_agent.page_faults import PageFaults, WithEvents
from wetink_agent.wp_async import WpAsync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

RUNS = 20
RUN_PAGES = 100_000
RUN_RING_BYTES = 8 << 20
RING_BYTES = 64 << 10
DRAINED_SECONDS_MAX = 60.0
"""Room for a whole run on each CPU: a busy machine may not come to empty a ring in time."""


@contextmanager
def streamed(pid: int, ring_bytes: int = 2 << 20) -> Iterator[WithEvents]:
    """Track a process with its events; the first round is over."""
    backend = WithEvents(WpAsync(pid, take_userfaultfd(pid)), PageFaults(pid, ring_bytes))
    try:
        backend.harvest()
        yield backend
    finally:
        backend.close()


def events_of(harvest: Harvest) -> Events:
    """Give the events of a harvest that has some."""
    assert harvest.events is not None
    return harvest.events


def pages_of(events: Events) -> set[int]:
    """Give the pages that have an event."""
    return set((events.addresses // PAGE).tolist())


def run(target: Victim, source: str) -> int:
    """Have it run some Python that leaves an integer in ``result``."""
    result = target.do(source)
    assert isinstance(result, int)
    return result


def refusal(pid: int, capabilities: str, ring_bytes: int) -> str:
    """Give what opening a stream says where capabilities and locked memory are missing."""
    source = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
        "from wetink_agent.errors import TrackingError\n"
        "from wetink_agent.page_faults import PageFaults\n"
        f"try: PageFaults({pid}, {ring_bytes})\n"
        "except TrackingError as error: print(type(error).__name__, error)"
    )
    command = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", sys.executable, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_until_drained(stream: PageFaults) -> None:
    """Wait until no ring is over half full; not for ever."""
    until = time.monotonic() + DRAINED_SECONDS_MAX
    while any(np.diff(ring._positions[::-1])[0] > RING_BYTES // 2 for ring in stream._rings):
        assert time.monotonic() < until, "nobody drains the rings"
        time.sleep(0.005)


def within(pages: set[int], first: int, count: int) -> set[int]:
    """Give those pages that lie in a mapping."""
    return {page for page in pages if first <= page < first + count}


def test_stream_and_census_find_the_same_pages() -> None:
    """Twenty rounds of 100,000 pages at random: each page written has one event, each event a page written."""
    with programs.running("scan", "victim", 1024) as program, streamed(program.pid, RUN_RING_BYTES) as backend:
        for turn in range(RUNS):
            program.ask(f"dirty {RUN_PAGES / (1 << 18) * 100 + 0.01} {turn}")
            harvest = backend.harvest()
            events = events_of(harvest)

            assert len(events) >= RUN_PAGES
            assert pages_of(events) == set(harvest.written)
            assert len(events) == len(harvest.written)
            assert set(events.thread_ids.tolist()) == {program.pid}
            assert (events.census_only_count, events.lost_count) == (0, 0)


def test_events_name_thread_time_and_code() -> None:
    """Each of several threads, there before or started since, is named for its own pages, in its order, in its time."""
    with victim() as target:
        first = target.map(400)
        target.do(
            "global threading, queue, queues, started, work\n"
            "import threading, queue\n"
            "started = []\n"
            "queues = [queue.Queue() for _ in range(4)]\n"
            "def work(number, q):\n"
            "    for address in iter(q.get, None): poke(address, 9)\n"
        )
        start = (
            "t = threading.Thread(target=work, args=({0}, queues[{0}]), daemon=True); t.start(); started.append(t)\n"
            "result = t.native_id"
        )
        before = [run(target, start.format(number)) for number in range(2)]
        with streamed(target.pid) as backend:
            since = [run(target, start.format(number)) for number in range(2, 4)]
            backend.harvest()
            writes = {
                number: random.sample(range(first + 100 * number, first + 100 * number + 100), 60)
                for number in range(4)
            }
            began = time.time_ns()
            for number, pages in writes.items():
                target.do(f"for page in {pages!r}: queues[{number}].put(page * PAGE)\nqueues[{number}].put(None)")
            target.do("for t in started: t.join()")
            ended = time.time_ns()
            events = events_of(backend.harvest())

    for number, thread_id in enumerate([*before, *since]):
        own = [
            index
            for index in np.flatnonzero(events.thread_ids == thread_id).tolist()
            if first <= int(events.addresses[index]) // PAGE < first + 400
        ]
        assert [int(events.addresses[index]) // PAGE for index in own] == writes[number]
        assert all(began <= int(events.times_ns[index]) <= ended for index in own)
        assert all(int(events.instruction_pointers[index]) for index in own)
    assert dict(events.threads)[target.pid].startswith("python")
    assert any(start <= first * PAGE and (first + 400) * PAGE <= end for start, end, _ in events.mappings)


def test_writes_the_kernel_makes_are_accounted_for() -> None:
    """process_vm_writev(2) has no event and is counted; read(2) has one, without a code address."""
    with victim() as target, victim() as other, streamed(target.pid) as backend:
        first = target.map(200)
        backend.harvest()
        run(
            other,
            "class iovec(ctypes.Structure):\n"
            "    _fields_ = (('base', ctypes.c_void_p), ('size', ctypes.c_size_t))\n"
            "data = ctypes.create_string_buffer(b'y' * PAGE * 100, PAGE * 100)\n"
            f"local, remote = iovec(ctypes.addressof(data), PAGE * 100), iovec({first * PAGE}, PAGE * 100)\n"
            f"result = libc.process_vm_writev({target.pid}, ctypes.byref(local), ctypes.c_ulong(1), "
            "ctypes.byref(remote), ctypes.c_ulong(1), ctypes.c_ulong(0))",
        )
        target.do(
            "r, w = os.pipe(); os.write(w, b'x' * 50)\n"
            f"for page in range({first} + 100, {first} + 150):\n"
            "    libc.read(r, ctypes.c_void_p(page * PAGE), ctypes.c_size_t(1))"
        )
        harvest = backend.harvest()
        events = events_of(harvest)

        assert within(set(harvest.written), first, 200) == set(range(first, first + 150))
        assert within(pages_of(events), first, 200) == set(range(first + 100, first + 150))
        assert set(harvest.written) - pages_of(events) == set(range(first, first + 100))
        assert events.census_only_count == 100
        in_buffers = events.addresses // PAGE - first < 200
        assert not events.instruction_pointers[in_buffers].any()


def test_reads_are_no_events_and_are_counted(tmp_path: Path) -> None:
    """Pages of a file that were read have faults and no event; those written after that have one."""
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE * 64 * 40))
    with victim() as target, streamed(target.pid) as backend:
        first = target.map(64 * 40, filled=False, more=f"fd=os.open({str(file)!r}, os.O_RDONLY), flags=2")
        backend.harvest()
        assert events_of(backend.harvest()).stream_only_count == 0
        # Far apart: a fault on a page of a file maps its neighbours too.
        target.do(f"for page in range({first}, {first} + 64 * 40, 64): peek(page * PAGE)")
        target.write(*range(first + 64 * 30, first + 64 * 40, 64))
        harvest = backend.harvest()

        assert within(pages_of(events_of(harvest)), first, 64 * 40) == set(range(first + 64 * 30, first + 64 * 40, 64))
        assert events_of(harvest).stream_only_count > 0


def test_a_full_ring_costs_events_and_no_pages() -> None:
    """While nobody empties the rings, what does not fit is lost and counted, and the page set is whole."""
    with programs.running("scan", "victim", 64) as program, streamed(program.pid, 4096) as backend:
        # The ring that was full is that of one CPU, and it is on this CPU that the next sample tells of it.
        os.sched_setaffinity(program.pid, {min(os.sched_getaffinity(0))})
        with backend.stream._lock:
            program.ask("dirty 100 1")
        harvest = backend.harvest()
        # The ring says how much it has lost with the next sample that fits.
        program.ask("dirty 1 2")
        after = backend.harvest()

        assert len(harvest.written) >= 64 << 8
        assert len(events_of(harvest)) < 1000
        assert len(events_of(harvest)) + events_of(after).lost_count >= 64 << 8
        assert events_of(harvest).census_only_count >= (64 << 8) - 1000


def test_long_rounds_are_drained_meanwhile() -> None:
    """Rings that hold a part of a round are emptied while it lasts: a writer that pauses now and then loses nothing."""
    with victim() as target, streamed(target.pid, RING_BYTES) as backend:
        # A ring is a CPU's: parts in two of them would leave both less than half full, and the next have no room.
        os.sched_setaffinity(target.pid, {min(os.sched_getaffinity(0))})
        first = target.map(8000)
        backend.harvest()
        # What the ring lost while the mapping was filled it says with the next sample.
        target.write(first)
        backend.harvest()
        for start in range(first, first + 8000, 500):
            # With what the target's interpreter writes itself this is less than half of a ring, as is what is left in
            # it: a ring that is not half full wakes nobody.
            target.write(*range(start, start + 500))
            wait_until_drained(backend.stream)
        events = events_of(backend.harvest())

        assert events.lost_count == 0
        assert within(pages_of(events), first, 8000) == set(range(first, first + 8000))


def test_children_are_not_in_the_stream() -> None:
    """What a forked child writes to its own memory is no event of the parent."""
    with victim() as target, streamed(target.pid) as backend:
        first = target.map(50)
        backend.harvest()
        target.do(f"pid = os.fork()\nif not pid:\n    fill({first} * PAGE, 50, 7)\n    os._exit(0)\nos.waitpid(pid, 0)")
        harvest = backend.harvest()

        assert not within(pages_of(events_of(harvest)), first, 50) - set(harvest.written)
        assert set(events_of(harvest).thread_ids.tolist()) <= {target.pid}


def test_what_is_missing_is_one_sentence() -> None:
    """A ring over the locked memory and a lacking capability each name the process and the remedy."""
    with victim() as target:
        too_large = refusal(target.pid, "-ipc_lock", 64 << 20)
        not_permitted = refusal(target.pid, "-perfmon,-sys_admin", 64 << 10)

    about = f"NotPermitted cannot stream the events of process {target.pid}: "
    assert too_large.startswith(f"{about}a ring of 65536 KiB for each CPU is over the memory that may be locked")
    assert not_permitted == f"{about}give the agent CAP_PERFMON, or leave out --events\n"


def test_a_process_that_is_gone_is_one_sentence() -> None:
    """A pid of nobody is named."""
    with victim() as target:
        pid = target.pid
    with pytest.raises(NoSuchProcess, match=f"no process {pid}"):
        PageFaults(pid, 64 << 10)
