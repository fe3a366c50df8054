"""What retention lets go of: nothing unless told to, the oldest first, and never what a reader was promised."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.collector.changes import appended, ended, incarnation, started
from wetink_collector.catalog import TargetRecord
from wetink_collector.identity import IncarnationKey
from wetink_collector.retention import (
    KEPT_WITHOUT_END,
    SAMPLES_AN_AGE,
    Ages,
    Retention,
    RetentionMalformed,
    beyond_size,
    parse,
)
from wetink_collector.round_log import BASE_LEVEL, BLOCKS_MERGED, Block
from wetink_collector.store.interface import RoundsExpired, TargetForgotten, Usage

ONE, TWO, THREE = incarnation(1), incarnation(2), incarnation(3)
AGE = 160.0


def record(last_round: int, key: IncarnationKey = ONE, *, has_ended: bool = False) -> TargetRecord:
    """Give a target that has come to a round."""
    return TargetRecord(
        key, started(key).started, appended(key, last_round).block, ended=ended(key) if has_ended else None
    )


@given(st.lists(st.tuples(st.floats(0, AGE), st.integers(0, 20)), min_size=1, max_size=60))
def test_no_cursor_that_was_given_within_the_age_expires(steps: Sequence[tuple[float, int]]) -> None:
    """However rounds and looks follow each other; and what is older by more than the steps of the looks does expire."""
    ages, now, last_round = Ages(AGE), 1000.0, 1
    held: list[tuple[float, int]] = []
    for wait, more in steps:
        now, last_round = now + wait, last_round + more
        held.append((now, last_round))
        found = list(ages.look([record(last_round)], now))

        expired = found[0].last_round if found else 0
        assert all(round_ >= expired for time, round_ in held if now - time < AGE)
        assert len(ages._seen[ONE]) <= SAMPLES_AN_AGE + 2


def test_cursor_older_than_the_age_expires() -> None:
    """Within a sixteenth of it, when looked at often enough."""
    ages = Ages(AGE)
    expired = {}
    for second in range(400):
        for change in ages.look([record(second + 1)], float(second)):
            assert change.incarnation == ONE
            expired[second] = change.last_round

    assert min(expired) == AGE
    assert all(0 <= second + 1 - AGE - last_round <= AGE / SAMPLES_AN_AGE for second, last_round in expired.items())


def test_nothing_expires_of_what_has_ended_or_begins_anew() -> None:
    """An ended target is forgotten whole; a new incarnation has an age of its own."""
    ages = Ages(AGE)
    list(ages.look([record(5), record(5, TWO)], 0.0))

    newer = IncarnationKey(ONE.target, 2)
    assert list(ages.look([record(9, newer), record(9, TWO, has_ended=True)], AGE)) == []
    assert list(ages.look([record(9, newer)], 2 * AGE)) == [RoundsExpired(newer, 9)]
    assert list(ages._seen) == [newer]


def blocks(count: int, size: int, *, has_base: bool = False) -> list[tuple[Block, int]]:
    """Give a log of single blocks."""
    found = [(appended(ONE, number).block, size) for number in range(1, count + 1)]
    if has_base:
        found[0] = replace(found[0][0], level=BASE_LEVEL), size
    return found


def usage(
    logs: Mapping[IncarnationKey, Sequence[tuple[Block, int]]], *, shrinking: bool = False, more: int = 0
) -> Usage:
    """Give the usage of some logs."""
    return Usage(sum(size for log in logs.values() for _, size in log) + more, logs, shrinking)


def test_nothing_goes_while_there_is_room_or_some_is_being_made() -> None:
    """Otherwise one excess would be answered twice."""
    logs = {ONE: blocks(20, 100)}

    assert beyond_size(usage(logs), 2000, []) == ()
    assert beyond_size(usage(logs, shrinking=True), 1000, []) == ()
    assert beyond_size(usage(logs), 1999, []) == [RoundsExpired(ONE, 12)]


def test_ended_targets_go_before_rounds_of_living_ones() -> None:
    """The one that ended first goes first, and no more than must."""
    logs = {ONE: blocks(20, 100), TWO: blocks(5, 100), THREE: blocks(5, 100)}

    assert beyond_size(usage(logs), 2900, [TWO, THREE]) == [TargetForgotten(TWO)]
    assert beyond_size(usage(logs), 2000, [THREE, TWO]) == [
        TargetForgotten(THREE),
        TargetForgotten(TWO),
        RoundsExpired(ONE, 12),
    ]


def test_logs_that_gain_most_go_first_and_the_last_rounds_stay() -> None:
    """A log that is all base and last rounds gains nothing more."""
    logs = {ONE: blocks(BLOCKS_MERGED + 4, 10), TWO: blocks(BLOCKS_MERGED + 30, 10), THREE: blocks(8, 10)}

    assert beyond_size(usage(logs), 400, []) == [RoundsExpired(TWO, 30)]
    assert beyond_size(usage(logs), 10, []) == [RoundsExpired(TWO, 30), RoundsExpired(ONE, 4)]
    assert beyond_size(usage({ONE: blocks(9, 100, has_base=True)}), 10, []) == []


@given(
    st.lists(st.tuples(st.floats(0, AGE), st.integers(0, 20), st.none() | st.integers(0, 100)), min_size=1, max_size=60)
)
def test_age_lets_go_of_nothing_that_is_needed(steps: Sequence[tuple[float, int, int | None]]) -> None:
    """And of all else as if nobody needed anything; of what is needed from its beginning, all."""
    ages, others, now, last_round = Ages(AGE), Ages(AGE), 1000.0, 1
    for wait, more, after in steps:
        now, last_round = now + wait, last_round + more
        needed = {} if after is None else {ONE: after}
        found = [change.last_round for change in ages.look([record(last_round)], now, needed)]
        expected = [change.last_round for change in others.look([record(last_round)], now)]

        assert found == [min(round_, after or round_) for round_ in expected]


def test_what_is_needed_goes_last_and_only_beyond_a_quarter_more() -> None:
    """Whether it is old rounds or targets that have ended; and then no more of it than must."""
    logs = {ONE: blocks(20, 100), TWO: blocks(5, 100), THREE: blocks(5, 100)}
    needed = {ONE: 4, THREE: 0}

    assert beyond_size(usage(logs), 2500, [THREE, TWO], needed) == [TargetForgotten(TWO), RoundsExpired(ONE, 4)]
    assert beyond_size(usage(logs), 2400, [THREE, TWO], needed) == [TargetForgotten(TWO), RoundsExpired(ONE, 4)]
    assert beyond_size(usage(logs), 2000, [THREE, TWO], needed) == [
        TargetForgotten(TWO),
        RoundsExpired(ONE, 4),
    ]
    assert beyond_size(usage(logs), 1800, [THREE, TWO], needed) == [
        TargetForgotten(TWO),
        RoundsExpired(ONE, 4),
        TargetForgotten(THREE),
    ]
    assert beyond_size(usage(logs), 1200, [THREE, TWO], needed) == [
        TargetForgotten(TWO),
        RoundsExpired(ONE, 4),
        TargetForgotten(THREE),
        RoundsExpired(ONE, 12),
    ]


def test_what_is_needed_from_its_beginning_keeps_no_old_rounds() -> None:
    """Of a living target its newest rounds suffice for that."""
    assert beyond_size(usage({ONE: blocks(20, 100)}), 1999, [], {ONE: 0}) == [RoundsExpired(ONE, 12)]


def test_options_are_read_with_their_units() -> None:
    """And nothing is let go of without them."""
    assert parse(None, None) == KEPT_WITHOUT_END
    assert parse("90s", "1MiB") == Retention(90, 1 << 20)
    assert parse("7d", "20GiB") == Retention(7 * 86400, 20 << 30)


@pytest.mark.parametrize("age", ["", "7", "0s", "-1h", "1w", "4000d", "1.5h", "9999999999s"])
def test_age_that_is_none_is_refused(age: str) -> None:
    """With how it is written."""
    with pytest.raises(RetentionMalformed, match=r"--retention-age .* write 30m, 12h or 7d"):
        parse(age, None)


@pytest.mark.parametrize("size", ["", "7", "0MiB", "1KiB", "1GB", "2048TiB", "999999999TiB"])
def test_size_that_is_none_is_refused(size: str) -> None:
    """With how it is written."""
    with pytest.raises(RetentionMalformed, match=r"--retention-size .* write 500MiB or 20GiB"):
        parse(None, size)
