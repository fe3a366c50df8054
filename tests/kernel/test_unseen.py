"""What can change unseen is classed as it appears: real mappings, io_urings and descriptors of a real process."""

from collections.abc import Iterator, Sequence

import pytest

from tests.support.uring import RING
from tests.support.victim import PAGE, Victim, tracked, victim, within
from wetink.v1 import types_pb2
from wetink_agent import descriptors, unseen
from wetink_agent.attach import take_userfaultfd
from wetink_agent.wp_async import WpAsync
from wetink_agent.wp_sync import WpSync

pytestmark = pytest.mark.needs("kernel", "root")


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every look and every table due at once."""
    monkeypatch.setattr(unseen, "TABLE_SECONDS", 0.0)
    monkeypatch.setattr(unseen, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(unseen, "LOOK_COST_MAX", 0)


@pytest.fixture
def target(due: None) -> Iterator[tuple[Victim, WpAsync]]:  # noqa: ARG001 - what it changes is undone after the target
    """Give a victim that can use io_uring, tracked from here on."""
    with victim() as process, tracked(process.pid) as tracker:
        process.do(RING)
        tracker.harvest()
        yield process, tracker


@pytest.fixture(params=[WpAsync, WpSync])
def tracked_by(
    due: None,  # noqa: ARG001 - as above
    request: pytest.FixtureRequest,
) -> Iterator[tuple[Victim, WpAsync]]:
    """Give the same, tracked by each backend of which this kernel has what it needs."""
    with victim() as process:
        process.do(RING)
        tracker = request.param(process.pid, take_userfaultfd(process.pid))
        try:
            tracker.harvest()
            yield process, tracker
        finally:
            tracker.close()


def mappings_of(tracker: WpAsync) -> list[types_pb2.Mapping]:
    """Harvest, and give the table, which must have changed."""
    table = tracker.harvest().table
    assert table is not None
    return list(table.mappings)


def class_at(mappings: Sequence[types_pb2.Mapping], page: int) -> list[str]:
    """Give the classes of the entries that hold a page."""
    return [
        types_pb2.Uncertainty.Name(one.uncertainty).removeprefix("UNCERTAINTY_")
        for one in mappings
        if one.range.start_address <= page * PAGE < one.range.start_address + one.range.size_bytes
    ]


def test_the_first_round_has_the_table_and_a_later_one_where_it_changed() -> None:
    """Program, libraries, heap and stack have their entries; a round without a change has no table."""
    with victim() as process, tracked(process.pid) as tracker:
        first = tracker.harvest().table
        assert first is not None
        assert {"[heap]", "[stack]"} <= {mapping.name for mapping in first.mappings}
        assert any(mapping.uncertainty == types_pb2.UNCERTAINTY_FILE for mapping in first.mappings)
        assert tracker.harvest().table is None


MAPPED = {
    "SHARED": [
        "mmap(4, flags=0x21)",
        "mmap(4, flags=0x01, fd=os.memfd_create('it'))",
        "mmap(4, flags=0x01, fd=os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR))",
    ],
    "FILE": [
        "mmap(1, protection=1, flags=0x02, fd=os.open(sys.executable, os.O_RDONLY))",
        "mmap(1, protection=1, flags=0x01, fd=os.open(sys.executable, os.O_RDONLY))",
        "mmap(1, flags=0x02, fd=os.memfd_create('it'))",
    ],
    "DEVICE": ["mmap(1, flags=0x8001, fd=ring(), offset=0)"],
    "UNSPECIFIED": ["mmap(1, flags=0x02, fd=os.open('/dev/zero', os.O_RDWR))"],
}


@pytest.mark.parametrize(
    "wanted, expression", [(wanted, expression) for wanted, those in MAPPED.items() for expression in those]
)
def test_a_mapping_is_classed_when_it_appears(target: tuple[Victim, WpAsync], wanted: str, expression: str) -> None:
    """In the table of the round after."""
    process, tracker = target

    page = process.number(expression) // PAGE

    assert class_at(mappings_of(tracker), page) == [wanted]


def test_a_registered_buffer_is_in_the_table_while_it_is_registered(target: tuple[Victim, WpAsync]) -> None:
    """With whole pages, beside the mapping that holds it; a ring that is closed takes its buffers along."""
    process, tracker = target
    first = process.map(8)
    process.do(f"globals()['fd'] = ring(); register(fd, ({first * PAGE} + 100, 5000), ({first * PAGE} + 6 * PAGE, 1))")

    mappings = mappings_of(tracker)
    assert [class_at(mappings, first + page) for page in range(8)] == [
        ["REGISTERED_BUFFER"],
        ["REGISTERED_BUFFER"],
        *[[]] * 4,
        ["REGISTERED_BUFFER"],
        [],
    ]
    process.do("unregister(fd)")
    assert not class_at(mappings_of(tracker), first)
    process.do(f"register(fd, ({first * PAGE}, 4096))")
    assert class_at(mappings_of(tracker), first)
    process.do("os.close(fd)")
    assert not class_at(mappings_of(tracker), first)


def test_direct_io_and_aio_are_told_though_not_where_they_write(target: tuple[Victim, WpAsync]) -> None:
    """Each as a writer that nobody can locate, until it is gone."""
    process, tracker = target

    def told() -> list[tuple[int, str]]:
        table = tracker.harvest().table
        assert table is not None
        return [(writer.uncertainty, writer.what) for writer in table.unseen_writers]

    process.do("globals()['direct'] = os.open('/var/tmp', os.O_TMPFILE | os.O_RDWR | os.O_DIRECT)")
    ((uncertainty, what),) = told()
    assert uncertainty == types_pb2.UNCERTAINTY_DIRECT_IO
    assert "O_DIRECT" in what
    process.do("os.close(direct)")
    assert told() == []

    process.do("globals()['aio'] = ctypes.c_ulong(0); checked(libc.syscall(206, 8, ctypes.byref(aio)))")
    ((uncertainty, what),) = told()
    assert uncertainty == types_pb2.UNCERTAINTY_DIRECT_IO
    assert "AIO" in what


def test_descriptors_are_not_looked_at_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target without anything of the kind pays for one look a second; a ring that is mapped is found at once."""
    looks = []
    look = descriptors.look

    def counted(pid: int) -> descriptors.Descriptors:
        looks.append(pid)
        return look(pid)

    monkeypatch.setattr(descriptors, "look", counted)
    monkeypatch.setattr(unseen, "LOOK_SECONDS", 3600.0)
    with victim() as process, tracked(process.pid) as tracker:
        process.do(RING)
        for _ in range(20):
            tracker.harvest()
        assert len(looks) == 1

        first = process.map(2)
        process.do(f"fd = ring(); mmap(1, flags=0x8001, fd=fd); register(fd, ({first * PAGE}, 8192))")
        tracker.harvest()
        assert len(looks) == 2
        tracker.harvest()  # of mappings that the harvest before has joined by registering them
        so_far = len(looks)
        tracker.harvest()
        assert len(looks) == so_far


def test_a_target_that_is_frozen_is_looked_at_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the last look, and the last table: a ring of which nothing is mapped is found and told too."""
    monkeypatch.setattr(unseen, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(unseen, "TABLE_SECONDS", 3600.0)
    with victim() as process, tracked(process.pid) as tracker:
        process.do(RING)
        tracker.harvest()
        first = process.map(2)
        process.do(f"globals()['fd'] = ring(); register(fd, ({first * PAGE}, 8192))")
        tracker.harvest()
        process.program.stop()

        assert class_at(mappings_of(tracker), first) == ["REGISTERED_BUFFER"]


def uncertain_in(tracker: WpAsync, first: int, count: int) -> tuple[set[int], set[int]]:
    """Harvest, and tell of some pages, counted from the first, which are certainly written and which are uncertain."""
    harvest = tracker.harvest()
    written, _ = within(harvest, first, count)
    uncertain = {page - first for page in harvest.uncertain if first <= page < first + count}
    assert harvest.uncertain <= harvest.written
    assert harvest.cautious_page_count >= len(harvest.uncertain)
    return written - uncertain, uncertain


def test_shared_memory_is_certain_when_it_appears_and_uncertain_from_then_on(
    tracked_by: tuple[Victim, WpAsync],
) -> None:
    """Whoever sees it for the first time needs it; also what is added, and what has come back after it vanished."""
    process, tracker = tracked_by
    first = process.map(4, more="flags=0x01, fd=globals().setdefault('fd', os.memfd_create('it'))", filled=False)
    process.do("os.ftruncate(fd, 4 * PAGE)")
    process.do(f"fill({first * PAGE}, 2)")

    assert uncertain_in(tracker, first, 4) == ({0, 1}, set())
    assert uncertain_in(tracker, first, 4) == (set(), {0, 1})
    process.do("os.pwrite(fd, b'x', 2 * PAGE)")
    assert uncertain_in(tracker, first, 4) == ({2}, {0, 1})
    process.do("os.ftruncate(fd, PAGE); os.ftruncate(fd, 4 * PAGE)")
    assert uncertain_in(tracker, first, 4) == (set(), {0})
    process.do("os.pwrite(fd, b'x', PAGE)")
    assert uncertain_in(tracker, first, 4) == ({1}, {0})
    assert uncertain_in(tracker, first, 4) == (set(), {0, 1})


def test_a_registered_buffer_is_uncertain_until_it_is_given_back_and_then_certain_once(
    tracked_by: tuple[Victim, WpAsync],
) -> None:
    """What the kernel read into it since nobody saw; who left it out while it was uncertain catches up."""
    process, tracker = tracked_by
    first = process.map(4)
    process.do(f"globals()['mine'] = MappedRing(); register(mine.fd, ({first * PAGE}, 2 * PAGE))")
    tracker.harvest()
    assert uncertain_in(tracker, first, 4) == (set(), {0, 1})
    process.write(first + 1, first + 3)
    assert uncertain_in(tracker, first, 4) == ({1, 3}, {0})

    process.do("unregister(mine.fd)")

    assert uncertain_in(tracker, first, 4) == ({0, 1}, set())
    assert uncertain_in(tracker, first, 4) == (set(), set())


def test_what_an_io_uring_reads_into_a_registered_buffer_is_reported(target: tuple[Victim, WpAsync]) -> None:
    """The page table shows nothing of it (row 30 of the matrix): only that the buffer is registered tells."""
    process, tracker = target
    first = process.map(2)
    process.do(
        "globals()['file'] = os.memfd_create('file'); os.write(file, b'new' * 4000); globals()['mine'] = MappedRing()"
    )
    process.do(f"register(mine.fd, ({first * PAGE}, PAGE))")
    for _ in range(3):
        tracker.harvest()
    assert process.number(f"peek({first * PAGE})") == 1

    assert process.number(f"mine.read_fixed(file, {first * PAGE}, PAGE)") == PAGE

    assert process.number(f"peek({first * PAGE})") == ord("n")
    _, written = tracker._census()
    assert first not in written
    assert uncertain_in(tracker, first, 2) == (set(), {0})


def test_a_buffer_that_was_given_back_between_two_rounds_is_reported(tracked_by: tuple[Victim, WpAsync]) -> None:
    """The read came after the round that saw the buffer, and the round after sees no buffer any more."""
    process, tracker = tracked_by
    first = process.map(1)
    process.do("globals()['file'] = os.memfd_create('file'); os.write(file, b'new' * 4000)")
    process.do(f"globals()['mine'] = MappedRing(); register(mine.fd, ({first * PAGE}, PAGE))")
    # Written to for sure in the last round that saw it: it is remembered all the same.
    process.write(first)
    tracker.harvest()

    process.do(f"mine.read_fixed(file, {first * PAGE}, PAGE); unregister(mine.fd)")

    assert uncertain_in(tracker, first, 1) == ({0}, set())


def test_a_ring_whose_descriptor_is_closed_is_told(target: tuple[Victim, WpAsync]) -> None:
    """Its mappings keep it alive, and nobody can ask it any more: what it had stays uncertain, and a table says so."""
    process, tracker = target
    first = process.map(1)
    process.do(f"globals()['mine'] = MappedRing(); register(mine.fd, ({first * PAGE}, PAGE))")
    tracker.harvest()
    process.do("os.close(mine.fd)")

    table = tracker.harvest().table

    assert table is not None
    assert ["descriptor is closed" in writer.what for writer in table.unseen_writers] == [True]
    assert uncertain_in(tracker, first, 1) == (set(), {0})
