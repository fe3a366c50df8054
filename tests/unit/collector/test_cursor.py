"""Cursors, from friends and from strangers."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetink_collector.cursor import CURSOR_CHARACTERS_MAX, Cursor, Position, decode, encode
from wetink_collector.errors import CursorMalformed
from wetink_collector.identity import TargetKey

STORE_ID = "0123456789abcdef0123456789abcdef"
BOOT_ID = "6f1dbd1c-5f3a-4c1c-9b5e-0a7f0f6f7a11"

_numbers = st.integers(0, (1 << 63) - 1)
_targets = st.builds(
    TargetKey,
    st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True),
    st.text(max_size=36),
    st.integers(1, 1 << 32),
    _numbers,
)
cursors = st.builds(
    Cursor, st.just(STORE_ID), st.dictionaries(_targets, st.builds(Position, _numbers, _numbers), max_size=20)
)


def cursor_of(count: int) -> Cursor:
    """Give a cursor of a large selection: host names, pids and times as long as they are in life."""
    positions = {
        TargetKey(f"node-{number % 50:03}.example.org", BOOT_ID, 4_000_000 + number, 98_765_432_100 + number): (
            Position(123_456_789_012 + number, 1_000_000 + number)
        )
        for number in range(count)
    }
    return Cursor(STORE_ID, positions)


def sealed(data: bytes) -> str:
    """Give bytes the form of a cursor, with a checksum that is right."""
    return urlsafe_b64encode(data + crc32(data).to_bytes(4, "little")).rstrip(b"=").decode()


@given(cursors)
def test_cursor_survives_its_text(cursor: Cursor) -> None:
    """What an answer gave comes back as it was."""
    assert decode(encode(cursor)) == cursor


def test_cursor_of_the_largest_selection_fits() -> None:
    """Some 25 bytes a target, so that 4096 of them are far from the bound."""
    text = encode(cursor_of(4096))

    assert len(text) < CURSOR_CHARACTERS_MAX / 3
    assert len(text) < 35 * 4096
    assert decode(text) == cursor_of(4096)


@given(cursors, st.data())
def test_cursor_with_any_character_changed_or_cut_is_malformed(cursor: Cursor, data: st.DataObject) -> None:
    """A copy that went wrong is told so, and never taken for another cursor."""
    text = encode(cursor)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([character for character in "Aa0-_" if character != text[place]]))

    with pytest.raises(CursorMalformed):
        decode(text[:place])
    with pytest.raises(CursorMalformed):
        decode(text[:place] + "!" + text[place:])
    try:
        found = decode(text[:place] + other + text[place + 1 :])
    except CursorMalformed:
        return
    # The last character may have bits that mean nothing.
    assert found == cursor


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: urlsafe_b64encode(data).decode()))
def test_any_text_is_refused_with_a_sentence(text: str) -> None:
    """Whatever comes: CursorMalformed, and nothing else."""
    with pytest.raises(CursorMalformed, match="the cursor is malformed"):
        decode(text)


@given(st.binary(max_size=100))
def test_any_bytes_with_a_right_checksum_are_read_safely(body: bytes) -> None:
    """Somebody who knows the layout can name what is not there, and can do no more."""
    text = sealed(bytes([1]) + bytes.fromhex(STORE_ID) + body)
    try:
        cursor = decode(text)
    except CursorMalformed:
        return
    assert cursor.store_id == STORE_ID


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # 2^64 boots
        b"\x00\xff\xff\xff\xff\x0f",  # no boot, 2^32 positions
        b"\x00\x01\x00\x01\x01\x01\x01",  # a position of boot 0, where there is none
        b"\x01\xff\xff\xff\x0f",  # a host of 32 MiB
        b"\x80" * 50,  # a number that does not end
        b"\x01\x01\xff\x01b\x00",  # a host that is not UTF-8
        b"\x00\x00\x00",  # a byte too many
    ],
)
def test_counts_and_lengths_that_do_not_fit_are_malformed(body: bytes) -> None:
    """No memory is taken for what is only claimed."""
    with pytest.raises(CursorMalformed):
        decode(sealed(bytes([1]) + bytes.fromhex(STORE_ID) + body))


def test_cursor_of_another_version_is_malformed() -> None:
    """A later layout is not guessed at."""
    data = urlsafe_b64decode(encode(Cursor(STORE_ID, {})) + "==")[:-4]

    with pytest.raises(CursorMalformed):
        decode(sealed(bytes([2]) + data[1:]))


def test_cursor_over_the_bound_is_not_even_looked_at() -> None:
    """Half a megabyte is more than any selection needs."""
    with pytest.raises(CursorMalformed, match=f"{CURSOR_CHARACTERS_MAX + 1} characters"):
        decode("A" * (CURSOR_CHARACTERS_MAX + 1))
