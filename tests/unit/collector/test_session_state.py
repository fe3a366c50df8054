"""What a session still needs: whatever its mover may ask next, and no more than that; and that it is kept as it is."""

import time
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.collector.changes import incarnation
from wetink.v1 import session_pb2 as pb
from wetink.v1.dirty_pb2 import Selection
from wetink_collector.cursor import Cursor, Position, encode
from wetink_collector.identity import IncarnationKey
from wetink_collector.session_state import SessionState, earlier, needed_after, restored, stored

STORE_ID: Final = "0" * 32
ONE, TWO = incarnation(1, 7), incarnation(2, 8)


def round_(name: str, parent: str = "", ends: dict[IncarnationKey, int] | None = None) -> pb.SessionRound:
    """Give a round; closed where it has ends."""
    positions = {key.target: Position(key.incarnation, end) for key, end in (ends or {}).items()}
    cursor = encode(Cursor(STORE_ID, positions)) if ends is not None else ""
    return pb.SessionRound(round=name, parent=parent, closed=ends is not None, cursor=cursor)


def session(*rounds: pb.SessionRound) -> SessionState:
    """Give a session with rounds."""
    opened = pb.OpenSessionRequest(session="move-7", selection=Selection(targets=["host-1/1"]), lease_ms=1)
    return SessionState(opened, {one.round: one for one in rounds})


def test_nothing_is_needed_before_a_round_is_closed() -> None:
    """Who begins is answered in full, whatever has gone."""
    assert needed_after({"a": round_("a")}) == {}


def test_round_that_was_gone_on_from_is_needed_no_more() -> None:
    """What the next carries is, and where it ends; of a target that is new in it, where it ends alone."""
    first, second = round_("first", ends={ONE: 5}), round_("second", "first", ends={ONE: 9, TWO: 3})
    third = round_("third", "second")

    assert needed_after({"first": first}) == {ONE: 5}
    assert needed_after({"first": first, "second": round_("second", "first")}) == {ONE: 5}
    assert needed_after({"first": first, "second": second}) == {ONE: 5, TWO: 3}
    assert needed_after({"first": first, "second": second, "third": third}) == {ONE: 5, TWO: 3}
    closed = round_("third", "second", ends={ONE: 9, TWO: 4})
    assert needed_after({"first": first, "second": second, "third": closed}) == {ONE: 9, TWO: 3}


def test_target_without_a_round_needs_to_be_there_and_nothing_else() -> None:
    """It is answered from its beginning, for which its newest rounds suffice; who needs more needs more."""
    assert needed_after({"a": round_("a", ends={ONE: 0})}) == {ONE: 0}
    assert needed_after({"a": round_("a", ends={ONE: 0}), "b": round_("b", ends={ONE: 4})}) == {ONE: 4}
    assert [earlier(0, 4), earlier(4, 0), earlier(4, 3), earlier(0, 0)] == [4, 4, 3, 0]


@given(st.data())
def test_whatever_a_mover_may_ask_is_needed(data: st.DataObject) -> None:
    """
    Of any tree of rounds: what each carries from which no closed one goes on, and where each ends that may be gone on
    from.
    """
    rounds: dict[str, pb.SessionRound] = {}
    end = 0
    for number in range(data.draw(st.integers(1, 8))):
        closed = [""] + [one.round for one in rounds.values() if one.closed]
        parent = data.draw(st.sampled_from(closed))
        end += data.draw(st.integers(1, 3))
        name = f"round-{number}"
        rounds[name] = round_(name, parent, {ONE: end} if data.draw(st.booleans()) else None)
    ends = {name: int(needed_after({name: one}).get(ONE, 0)) for name, one in rounds.items() if one.closed}

    asked = set()
    for one in rounds.values():
        if any(other.closed and other.parent == one.round for other in rounds.values()):
            continue
        if one.parent:
            asked.add(ends[one.parent])
        elif one.closed:
            asked.add(ends[one.round])

    assert needed_after(rounds) == ({ONE: min(asked)} if asked else {})


def test_what_has_gone_is_not_needed_any_more() -> None:
    """It is said once, and what comes after is needed as before."""
    state = session(round_("first", ends={ONE: 5, TWO: 0}))

    assert not state.expire(ONE, 5)
    assert not state.expire(TWO, 99)
    assert not state.expire(incarnation(3), None)
    assert state.expire(ONE, 6)
    assert not state.expire(ONE, 7)
    assert state.needed() == {TWO: 0}
    state.take({**state.rounds, "anew": round_("anew", ends={ONE: 8})})
    assert state.needed() == {ONE: 8, TWO: 0}
    assert state.expire(ONE, None)
    assert state.needed() == {TWO: 0}


def test_lease_is_over_only_when_no_call_is_under_way() -> None:
    """And begins anew when one has ended."""
    state = session()
    long_after = time.monotonic() + 100
    assert state.is_over(time.monotonic())
    with state.called():
        with state.called():
            pass
        assert not state.is_over(long_after)
    assert not state.is_over(state.until)
    assert state.is_over(long_after)


def test_stored_session_is_restored_as_it_was() -> None:
    """With a lease that begins anew."""
    state = session(round_("first", ends={ONE: 5}), round_("second", "first"))

    again = restored(stored(state.open, state.rounds))

    assert (again.open, list(again.rounds.items())) == (state.open, list(state.rounds.items()))
    assert again.until > 0
