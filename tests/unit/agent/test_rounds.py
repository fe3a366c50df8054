from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from tests.support.harvests import Fold, Sets, harvest_of, make_round, plain_sets_of, sets_of, tiny_parts, uncertain_of
from wetink import pages
from wetink.v1 import ingest_pb2
from wetink_agent.backend import Harvest
from wetink_agent.events import EVENTS_MAX, Events, joined
from wetink_agent.rounds import EVENTS_UNITED_MAX, MAPPING_CHANGES_MAX, Round, unite

PAGES = st.frozensets(st.integers(0, 40) | st.integers(0, 1 << 20), max_size=12)
SETS = st.tuples(PAGES, PAGES).map(lambda pair: (pair[0], pair[1] - pair[0]))


def disjoint(united: Round) -> bool:
    """Whether no page of a round is both written and vanished."""
    written, vanished = sets_of(united.parts)
    return not written & vanished


def assert_sound(united: Round) -> None:
    """Check what the contract says of every round: its parts in order, disjoint, each within a message's bound."""
    assert [part.part for part in united.parts] == list(range(len(united.parts)))
    assert {part.part_count for part in united.parts} == {len(united.parts)}
    assert {(part.first_round, part.last_round) for part in united.parts} == {(united.first, united.last)}
    assert disjoint(united)
    assert united.size_bytes == sum(part.ByteSize() for part in united.parts)
    for part in united.parts:
        assert ingest_pb2.AgentMessage(write_protect_batch=part).ByteSize() < pages.MESSAGE_BYTES_MAX


@given(sets=SETS)
def test_a_round_carries_its_harvest(sets: Sets) -> None:
    """Both page sets come out of the parts of a round as they went in."""
    made = make_round(3, *sets)

    assert_sound(made)
    assert (made.first, made.last) == (3, 3)
    assert plain_sets_of(made.parts) == sets


@given(rounds=st.lists(SETS, min_size=1, max_size=6), data=st.data())
def test_united_rounds_say_what_the_rounds_said_in_whatever_order_they_unite(
    rounds: list[Sets], data: st.DataObject
) -> None:
    """Uniting is folding: neighbours united in any order give the sets of the fold over all rounds."""
    waiting = [make_round(number, *sets) for number, sets in enumerate(rounds, start=1)]
    while len(waiting) > 1:
        place = data.draw(st.integers(0, len(waiting) - 2))
        waiting[place : place + 2] = [unite(waiting[place], waiting[place + 1])]
    fold = Fold()
    for written, vanished in rounds:
        fold = fold.then(written, vanished)

    assert_sound(waiting[0])
    assert (waiting[0].first, waiting[0].last) == (1, len(rounds))
    assert plain_sets_of(waiting[0].parts) == (fold.written, fold.vanished)


@given(rounds=st.lists(st.tuples(PAGES, PAGES, PAGES), min_size=1, max_size=5), data=st.data())
def test_united_rounds_are_certain_of_what_one_of_them_is(
    rounds: list[tuple[frozenset[int], frozenset[int], frozenset[int]]], data: st.DataObject
) -> None:
    """In whatever order neighbours unite, and in parts of any size: page by page as the fold has it."""
    fold, waiting = Fold(), []
    with tiny_parts():
        for number, (written, vanished, uncertain) in enumerate(rounds, start=1):
            harvest = harvest_of(written, vanished, uncertain=written & uncertain, time_ns=number)
            waiting.append(make_round(number, harvest=harvest))
            assert frozenset(uncertain_of(waiting[-1].parts)) == written & uncertain
            fold = fold.then(written, vanished - written, written & uncertain)
        while len(waiting) > 1:
            place = data.draw(st.integers(0, len(waiting) - 2))
            waiting[place : place + 2] = [unite(waiting[place], waiting[place + 1])]

    assert_sound(waiting[0])
    assert plain_sets_of(waiting[0].parts) == (fold.written, fold.vanished)
    assert frozenset(uncertain_of(waiting[0].parts)) == fold.uncertain


def test_three_large_sets_stay_within_a_message() -> None:
    """Scattered pages in all three sets make messages below the bound."""
    written, vanished = BitMap64(range(0, 6_000_000, 6)), BitMap64(range(3, 6_000_000, 6))
    uncertain = BitMap64(range(0, 6_000_000, 12))
    made = make_round(1, harvest=harvest_of(written, vanished, uncertain=uncertain))

    assert_sound(made)
    assert sets_of(made.parts) == (written, vanished)
    assert uncertain_of(made.parts) == uncertain


@given(sets=SETS, later=SETS)
def test_parts_of_any_size_are_the_same_round(sets: Sets, later: Sets) -> None:
    """Cut into parts of 64 bytes a round still carries its sets, and so do two that are united."""
    with tiny_parts():
        first, second = make_round(1, *sets), make_round(2, *later)
        united = unite(first, second)
    fold = Fold(*sets).then(*later)

    for made in (first, second, united):
        assert_sound(made)
    assert plain_sets_of(united.parts) == (fold.written, fold.vanished)


def test_a_round_over_one_mebibyte_travels_in_parts_below_it() -> None:
    """A million scattered pages, written and vanished, make several messages, none over the bound."""
    written, vanished = BitMap64(range(0, 6_000_000, 6)), BitMap64(range(3, 6_000_000, 6))
    made = make_round(1, harvest=Harvest(1, written, vanished, populated_page_count=len(written)))

    assert len(made.parts) > 1
    assert made.size_bytes > pages.MESSAGE_BYTES_MAX
    assert_sound(made)
    assert sets_of(made.parts) == (written, vanished)


def test_many_mappings_and_full_sets_stay_within_a_message() -> None:
    """The longest lists of mappings at the highest addresses beside the largest page sets fit into one message."""
    spans = tuple((0x7FFF_0000_0000 + n * 0x2000, 0x7FFF_0000_1000 + n * 0x2000) for n in range(5000))
    written = BitMap64(range(1 << 51, (1 << 51) + 4_000_000, 3))
    harvest = Harvest(
        (1 << 63) - 1, written, BitMap64(), populated_page_count=1 << 40, mapped=spans, unmapped=spans[::-1]
    )
    made = make_round(1 << 62, harvest=harvest)

    assert_sound(made)
    assert len(made.parts[0].mapped) == len(made.parts[0].unmapped) == MAPPING_CHANGES_MAX
    assert made.parts[0].mappings_cut
    assert all(not part.mapped and not part.unmapped for part in made.parts[1:])


@given(counts=st.lists(st.integers(0, 700), min_size=2, max_size=4))
def test_united_mappings_are_kept_up_to_their_bound(counts: list[int]) -> None:
    """What was mapped is listed in its order over united rounds; at the bound it is cut and says so."""
    spans = [
        tuple((n << 24 | k << 12, (n << 24 | k << 12) + 4096) for k in range(count))
        for n, count in enumerate(counts, start=1)
    ]
    waiting = [
        make_round(number, harvest=Harvest(1, BitMap64(), BitMap64(), 0, mapped=listed, unmapped=listed[:1]))
        for number, listed in enumerate(spans, start=1)
    ]
    united = waiting[0]
    for later in waiting[1:]:
        united = unite(united, later)
    told = [(span.start_address, span.start_address + span.size_bytes) for span in united.parts[0].mapped]

    assert told == [span for listed in spans for span in listed][:MAPPING_CHANGES_MAX]
    assert united.parts[0].mappings_cut == (sum(counts) > MAPPING_CHANGES_MAX)


def test_united_rounds_keep_the_first_time_and_the_last_state() -> None:
    """The span of times covers both rounds; frozen and the populated count are the later one's."""
    older = make_round(1, harvest=Harvest(10, BitMap64([1]), BitMap64(), 5, cautious_page_count=4, frozen=True))
    newer = make_round(2, harvest=Harvest(20, BitMap64([2]), BitMap64(), 6, cautious_page_count=1))

    part = unite(older, newer).parts[0]

    assert (part.first_time_ns, part.last_time_ns) == (10, 20)
    assert (part.frozen, part.populated_page_count, part.cautious_page_count) == (False, 6, 4)


def test_an_empty_harvest_is_a_round_all_the_same() -> None:
    """A round with no pages has one part: its number and its time are news."""
    made = make_round(9, harvest=harvest_of())

    assert len(made.parts) == 1
    assert_sound(made)


def events(count: int, *, first: int = 0, lost: int = 0) -> Events:
    """Give so many events that can be told apart."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return Events(
        numbers * np.uint64(8), numbers & np.uint64(3), numbers.astype(np.uint32), numbers, numbers + np.uint64(1), lost
    )


def events_in(made: Round) -> Events:
    """Give the events of all parts, in their order."""
    return joined([Events.from_message(part.events) for part in made.parts])


def assert_same(left: Events, right: Events) -> None:
    """Check every column."""
    for name in ("addresses", "uffd_flags", "thread_ids", "times_ns", "instruction_pointers"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name
    assert left.lost_count == right.lost_count


@given(count=st.integers(0, 40_000), lost=st.integers(0, 9), written=st.integers(1, 400_000))
def test_events_travel_with_their_round(count: int, lost: int, written: int) -> None:
    """However many there are, beside page sets of any size: all arrive in their order, in messages within the bound."""
    sets = BitMap64(range(0, written * 3, 3))
    harvest = replace(harvest_of(sets, ()), events=events(count, lost=lost))
    made = make_round(1, harvest=harvest)

    assert_sound(made)
    assert sets_of(made.parts) == (sets, BitMap64())
    assert_same(events_in(made), events(count, lost=lost))


def test_united_rounds_keep_their_events_in_order() -> None:
    """The older round's come first and lost ones add up; what is beyond the bound counts as lost, pages never are."""
    one = make_round(1, harvest=replace(harvest_of({1}, ()), events=events(10_000, lost=2)))
    two = make_round(2, harvest=replace(harvest_of({2}, ()), events=events(10, first=10_000, lost=3)))
    none = make_round(3, {3}, ())
    many = make_round(4, harvest=replace(harvest_of({4}, ()), events=events(50_000, first=10_010)))
    united = unite(unite(one, two), none)
    bounded = unite(united, many)

    assert_sound(united)
    assert_same(events_in(united), events(10_010, lost=5))
    assert_sound(bounded)
    assert_same(events_in(bounded), events(EVENTS_UNITED_MAX, lost=5 + 60_010 - EVENTS_UNITED_MAX))
    assert plain_sets_of(bounded.parts) == (frozenset({1, 2, 3, 4}), frozenset())
    assert_same(joined([events(EVENTS_MAX), events(7, lost=1)]), events(EVENTS_MAX, lost=8))
