"""``wetink verify``: what changed unseen is found and named, and nothing is that was only late."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from pyroaring import BitMap64

from tests.integration.client.command import wetink
from tests.kernel.matrix.test_io import mounted_or_skip
from tests.support.agent import HOST, running_agent
from tests.support.collector import running_collector
from tests.support.forgetful_agent import FORGETFUL, FORGOTTEN
from tests.support.raw_agent import RawAgent
from tests.support.uring import RING
from tests.support.victim import Victim, victim
from tests.support.watched import wait_until
from wetink_agent.procfs import boot_id
from wetink_client import Collector, Strictness, Uncertainty
from wetink_client.clean import Look, Verdict, Verification

pytestmark = pytest.mark.needs("kernel", "root")

PAGE = 4096
LENIENT, STRICT = Strictness.LENIENT, Strictness.STRICT


READS = """
import threading
libc.pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
results = []

def begin_to_read(address, size_bytes):
    global reading
    reading = threading.Thread(target=lambda: results.append(libc.pread(fd, address, size_bytes, 0)))
    reading.start()

def finish_reading():
    reading.join()
    return results.pop()

globals().update(threading=threading, results=results, begin_to_read=begin_to_read, finish_reading=finish_reading)
"""

WRITES = """
def begin_to_write(address):
    import itertools, threading
    over = threading.Event()
    place = ctypes.c_uint64.from_address(address)

    def write():
        for number in itertools.count(1):
            place.value = number
            if over.wait(0.1):
                return

    threading.Thread(target=write, daemon=True).start()
    return over

globals().update(begin_to_write=begin_to_write)
"""
"""Source that defines ``begin_to_write``: something else ten times a second, until what it gives is set."""


@contextmanager
def served(
    process: Victim,
    module: str = "wetink_agent.entry",
    environment: Mapping[str, str] | None = None,
    *,
    interval: str = "100ms",
) -> Iterator[tuple[Collector, str]]:
    """Track a victim; give a client and the target's name."""
    options = "--pid", str(process.pid)
    with (
        running_collector() as collector,
        running_agent(collector.address, *options, interval=interval, module=module, environment=environment),
        Collector(collector.address) as client,
    ):
        yield client, client.targets(f"{HOST}/{process.pid}")[0].name


def verdict_on(client: Collector, name: str, process: Victim, between: str, strictness: Strictness) -> Verdict:
    """Verify, and have the victim do something between the two looks."""
    with Look(process.pid) as look:
        verification = Verification(client, name, look, strictness=strictness)
        process.do(between)
        return verification.finish()


@pytest.fixture(scope="module")
def prepared() -> Iterator[tuple[Victim, Collector, str, int, int]]:
    """Give a tracked victim with a memfd mapped, a buffer that is registered with an io_uring, and where they are."""
    with victim() as process:
        process.do(RING)
        shared = process.map(8, more="flags=0x01, fd=globals().setdefault('fd', os.memfd_create('it'))", filled=False)
        process.do(f"os.ftruncate(fd, 8 * PAGE); fill({shared * PAGE}, 8)")
        buffer = process.map(4)
        process.do("globals()['file'] = os.memfd_create('file'); os.write(file, b'new' * 4000)")
        process.do(f"globals()['mine'] = MappedRing(); register(mine.fd, ({buffer * PAGE}, 4 * PAGE))")
        process.do("globals()['other'] = mmap(8, flags=0x01, fd=fd)")
        with served(process) as (client, name):
            client.barrier(name)
            client.barrier(name)
            yield process, client, name, shared, buffer


Prepared = tuple[Victim, Collector, str, int, int]


@pytest.mark.parametrize("strictness", [STRICT, LENIENT])
def test_a_memfd_written_through_its_second_mapping(prepared: Prepared, strictness: Strictness) -> None:
    """A lenient answer does not have the page in the first mapping, a strict one has: only the former is told of."""
    process, client, name, shared, _ = prepared

    verdict = verdict_on(client, name, process, f"poke(other + 3 * PAGE, {7 + (strictness is LENIENT)})", strictness)

    changed = {mapping.name: mapping for mapping in verdict.changed}
    if strictness is STRICT:
        assert verdict.changed == ()
        return
    assert list(changed) == ["/memfd:it (deleted)"]
    assert changed["/memfd:it (deleted)"].uncertainty is Uncertainty.SHARED
    assert shared + 3 in changed["/memfd:it (deleted)"].pages
    assert len(changed["/memfd:it (deleted)"].pages) == 2  # in both mappings


@pytest.mark.parametrize("strictness", [STRICT, LENIENT])
def test_a_read_into_a_registered_buffer(prepared: Prepared, strictness: Strictness) -> None:
    """The kernel's write is found at the very page, and its mapping is named by what it is."""
    process, client, name, _, buffer = prepared
    page = buffer + (1 if strictness is STRICT else 2)

    verdict = verdict_on(client, name, process, f"mine.read_fixed(file, {page * PAGE}, PAGE)", strictness)

    assert verdict.compared_page_count > 100
    found = [(mapping.uncertainty, set(mapping.pages)) for mapping in verdict.changed]
    assert found == ([] if strictness is STRICT else [(Uncertainty.REGISTERED_BUFFER, {page})])


def test_direct_io_in_flight_is_named_for_what_it_is(tmp_path: Path) -> None:
    """A read that was under way when a round came ends unseen: its pages changed, and whose work that may be is told.

    One that begins and ends between the two looks was seen. Both hold whether or not uncertain pages are asked for,
    since nobody can tell where direct I/O will write.
    """
    with mounted_or_skip(tmp_path) as file, victim() as process:
        process.do(READS)
        # Rounds come by barriers alone: of those that were merged an answer may have more than was written since.
        with served(process, interval="600s") as (client, name):
            for strictness in (STRICT, LENIENT):
                seen, unseen = process.map(8), process.map(8)
                process.do(f"globals()['fd'] = os.open({str(file.path)!r}, os.O_RDONLY | os.O_DIRECT)")
                wait_until(lambda: bool(client.barrier(name).targets and client.mappings(name).unseen_writers))
                file.hold()
                process.do(f"begin_to_read({unseen * PAGE}, 8 * PAGE)")
                file.wait_for_reads()
                with Look(process.pid) as look:
                    verification = Verification(client, name, look, strictness=strictness)
                    file.release()
                    assert process.number("finish_reading()") == 8 * PAGE
                    process.do(f"begin_to_read({seen * PAGE}, 8 * PAGE)")
                    assert process.number("finish_reading()") == 8 * PAGE
                    # The descriptor need not be there any more.
                    process.do("os.close(fd)")
                    verdict = verification.finish()

                assert [(changed.uncertainty, set(changed.pages)) for changed in verdict.changed] == [
                    (Uncertainty.DIRECT_IO, set(range(unseen, unseen + 8)))
                ]
                assert [writer.uncertainty for writer in verdict.unseen_writers] == [Uncertainty.DIRECT_IO]
                assert str(file.path) in verdict.unseen_writers[0].what
                assert verdict.reported_page_count >= 8


class LateLook(Look):
    """A look before which the target writes once more, after the barrier that came before it."""

    def __init__(self, process: Victim, page: int) -> None:
        """Take the page that is written."""
        super().__init__(process.pid)
        self._process = process
        self._page = page

    def changed(self, hashes: Mapping[int, bytes], pages: BitMap64) -> BitMap64:
        """Write, and look."""
        assert self._page in pages, "it was called clean so far"
        self._process.write(self._page, value=9)
        found = super().changed(hashes, pages)
        assert self._page in found
        return found


def test_a_write_between_the_barrier_and_the_look_was_not_unseen(prepared: Prepared) -> None:
    """The process runs on: what is only late is in the answer to the next barrier."""
    process, client, name, _, _ = prepared
    own = process.map(4)
    client.barrier(name)

    with LateLook(process, own + 2) as look:
        verdict = Verification(client, name, look, strictness=STRICT).finish()

    assert verdict.changed == ()


def test_a_page_that_the_backend_drops_is_found() -> None:
    """A planted bug: the census never tells of one page. By the command, with the mapping's name and exit code 1."""
    with victim() as process:
        page = process.map(8) + 5
        with served(process, FORGETFUL, {FORGOTTEN: str(page)}) as (client, name):
            process.do(f"{WRITES}\nglobals()['writing'] = begin_to_write({page * PAGE})")
            done = wetink("--collector", client.address, "verify", name, "--interval", "1", "--json")
            process.do("writing.set()")

    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [page * PAGE, PAGE] in [extent for mapping in found["changed"] for extent in mapping["ranges"]]
    assert found["changed"][0]["uncertainty"] is None
    assert found["compared_page_count"] > 100


def test_what_runs_elsewhere_cannot_be_looked_at() -> None:
    """One sentence says where to go; so it is for a pid of another pid namespace. It is not the exit code of a find."""
    with running_collector() as collector:
        verify = partial(wetink, "--collector", collector.address, "verify")
        with RawAgent(collector.address, "elsewhere") as agent:
            agent.start(7, [1])
            other_host = verify("elsewhere/7")
        with RawAgent(collector.address, "here", boot_id()) as agent:
            agent.start(7, [1], start_time_ticks=1 << 40)
            other_process = verify("here/7", "--pid", str(os.getpid()))
            no_process = verify("here/7", "--pid", str(1 << 22))

    assert (other_host.returncode, other_process.returncode, no_process.returncode) == (3, 3, 3)
    assert "run this on host elsewhere" in one_line(other_host.stderr)
    assert f"process {os.getpid()} is not here/7@{1 << 40}" in one_line(other_process.stderr)
    assert "(--pid)" in one_line(no_process.stderr)


def test_a_target_that_is_not_known_is_not_found() -> None:
    """As for the other commands."""
    with running_collector() as collector:
        assert wetink("--collector", collector.address, "verify", "here/8").returncode == 4


def one_line(text: str) -> str:
    """Accept one line, and give it."""
    (line,) = text.splitlines()
    return line
