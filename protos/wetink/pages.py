"""Page sets between memory and the wire: Roaring64 portable bytes with a checksum, and their split into messages.

A set in memory is a ``pyroaring.BitMap64`` of page numbers. What the bytes mean is said in ``types.proto``.
"""

from collections.abc import Iterator
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from wetink.v1.types_pb2 import PageSet

PAGE_SIZE: Final = 4096
"""Bytes a page, wherever no target says otherwise."""

MESSAGE_BYTES_MAX: Final = 1 << 20
"""Bound on one serialized message, both ways: small enough to hold hundreds, large enough for 64 Ki random pages."""

PART_BYTES_MAX: Final = 480 * 1024
"""Bound on one serialized page set in a message: two of them and all other fields stay below the message's bound."""

PART_OF_THREE_BYTES_MAX: Final = 320 * 1024
"""The same where there are three in a message."""

PAGES_MAX: Final = 1 << 36
"""Bound on the pages of one set: all of a 48-bit address space, 256 TiB, of which no host has as much. Ten bytes can
claim 65,536 pages, so that the bound on a message is none on them."""

CONTAINERS_MAX: Final = 1 << 20
"""Bound on the containers of one set, 65,536 page numbers each: those of a 48-bit address space. A container takes some
hundred bytes of memory, however few it took in a message."""

_RANGE_PAGES_MAX: Final = 1 << 32
"""A range takes a container for each 64 Ki pages, whether a set has any there: across wider gaps it costs too much."""

_SLICED_PAGES_MAX: Final = 1 << 22
"""A slice takes its pages one by one: of more of them it costs too much, and of a set of runs it never ends."""

_HELD_BYTES: Final = 5 << 10
_SUMMED_BYTES_MAX: Final = 16 * _HELD_BYTES


class CorruptPageSet(ValueError):
    """A page set whose checksum, encoding or count is wrong. The sentence says which."""


def encode(pages: BitMap64) -> PageSet:
    """Turn a set into its message.

    Args:
        pages: Page numbers. The caller bounds its size: see ``split``.
    """
    if not pages:
        return PageSet()
    data = pages.serialize()
    return PageSet(roaring64=data, crc32=crc32(data), page_count=len(pages))


def decode(message: PageSet) -> BitMap64:
    """Turn a message into its set.

    Raises:
        CorruptPageSet: The checksum does not match, the bytes are no bitmap, the count differs, or there are more pages
            than can be. The checksum is looked at first, because a damaged bitmap often decodes to another valid set.
    """
    if message.page_count > PAGES_MAX:
        text = f"page set of {message.page_count} pages is over {PAGES_MAX}"
        raise CorruptPageSet(text)
    # Each look at a field of bytes copies them.
    data = message.roaring64
    if not data:
        if message.page_count:
            text = f"page set of {message.page_count} pages has no bitmap"
            raise CorruptPageSet(text)
        return BitMap64()
    found = checksum(data)
    if found != message.crc32:
        text = f"page set has checksum {found:#010x}, its message says {message.crc32:#010x}"
        raise CorruptPageSet(text)
    try:
        pages = BitMap64.deserialize(data)
    except (ValueError, MemoryError) as error:
        text = f"page set of {len(data)} bytes is no Roaring64 bitmap"
        raise CorruptPageSet(text) from error
    if len(pages) != message.page_count:
        text = f"page set holds {len(pages)} pages, its message says {message.page_count}"
        raise CorruptPageSet(text)
    return pages


def checksum(data: bytes, before: int = 0) -> int:
    """Give the CRC-32 of a set, as ``zlib.crc32`` does.

    That lets go of the interpreter's lock for over 5 KiB at a time, and in a busy collector it takes ten times as long
    to get it back as to sum up the set of an ordinary round. Here it is kept.

    Args:
        data: Encoded pages.
        before: The checksum of what comes before them.
    """
    if len(data) > _SUMMED_BYTES_MAX:
        return crc32(data, before)
    for at in range(0, len(data), _HELD_BYTES):
        before = crc32(data[at : at + _HELD_BYTES], before)
    return before


def container_count(pages: BitMap64) -> int:
    """Say of how many containers a set is: it takes memory and time by them."""
    count: int = pages.get_statistics()["n_containers"]
    return count


def split(pages: BitMap64, bytes_max: int = PART_BYTES_MAX) -> Iterator[PageSet]:
    """Cut a set into messages of bounded size, in ascending order of their pages. The empty set gives none.

    Args:
        pages: Page numbers.
        bytes_max: Bound on each ``roaring64``. At least 64.
    """
    waiting = [pages] if pages else []
    # Who sends the messages may wait long between two: nothing is held then but what is still to come.
    del pages
    while waiting:
        lowest = waiting.pop()
        message = encode(lowest)
        if len(message.roaring64) <= bytes_max:
            del lowest
            yield message
        else:
            del message
            waiting += _halves(lowest)
            del lowest


def uncertain_of_both(
    written: BitMap64, vanished: BitMap64, uncertain: BitMap64, then: tuple[BitMap64, BitMap64, BitMap64]
) -> BitMap64:
    """Give which pages are uncertain after two stretches of rounds: those that neither has as certainly written.

    A page that vanished in the older and is uncertain in the newer is certain in both: whoever dropped it needs it.

    Args:
        written: Of the older.
        vanished: Of the older.
        uncertain: Of the older, part of ``written``.
        then: The same three of the newer.
    """
    newer_written, newer_vanished, newer_uncertain = then
    if not uncertain and not newer_uncertain:
        return BitMap64()
    still = uncertain - newer_vanished - (newer_written - newer_uncertain)
    return still | (newer_uncertain - (written - uncertain) - vanished)


def runs(pages: BitMap64) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Give a set as runs of adjacent pages.

    Returns:
        The first page of each run, and the page after its last, both ascending.
    """
    numbers = np.frombuffer(pages.to_array(), dtype=np.uint64)
    if not numbers.size:
        return numbers, numbers
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    starts = numbers[np.concatenate(([0], breaks + 1))]
    ends = numbers[np.concatenate((breaks, [numbers.size - 1]))] + np.uint64(1)
    return starts, ends


def address_ranges(pages: BitMap64, page_size: int = PAGE_SIZE) -> list[tuple[int, int]]:
    """Give a set as ``(start_address, length_bytes)`` runs, ascending and not touching.

    Args:
        pages: Page numbers.
        page_size: Bytes a page.
    """
    starts, ends = runs(pages)
    size = np.uint64(page_size)
    return list(zip((starts * size).tolist(), ((ends - starts) * size).tolist(), strict=True))


def _halves(pages: BitMap64) -> tuple[BitMap64, BitMap64]:
    """Give the upper and the lower half of a set, in time by its containers and not by its pages."""
    middle = pages[len(pages) // 2]
    if middle - pages[0] <= _RANGE_PAGES_MAX:
        below = BitMap64()
        below.add_range(pages[0], middle)
        below &= pages
    elif len(pages) <= _SLICED_PAGES_MAX:
        below = pages[: len(pages) // 2]
    else:
        below = pages.copy()
        below.remove_range(middle, pages.max() + 1)
    return pages - below, below
