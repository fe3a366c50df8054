"""A reader of 64-bit Roaring bitmaps in the portable serialization, written from the format's specification alone.

It shares no code with the library that wetink uses, so that the two can witness for each other. It is slow and strict:
whatever the specification does not allow is refused, and nothing may follow the bitmap.

Source: RoaringFormatSpec, "Standard 32-bit Roaring Bitmap" and "Extension for 64-bit implementations".
"""

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

SERIAL_COOKIE_NO_RUNCONTAINER: Final = 12346
SERIAL_COOKIE: Final = 12347
NO_OFFSET_THRESHOLD: Final = 4
"""With runs, fewer containers than this have no offset header."""

ARRAY_COUNT_MAX: Final = 4096
"""A container with more values is no array."""

BITSET_BYTES: Final = 8192


class NotRoaring(ValueError):
    """Bytes that the specification does not allow. The sentence says where it ends."""


@dataclass(slots=True)
class Decoded:
    """What was read: the numbers, ascending, and of which kind each container was."""

    numbers: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0

    def take(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(f"<{layout}")
        if self.at + size > len(self.data):
            message = f"cut short at byte {len(self.data)}"
            raise NotRoaring(message)
        values = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += size
        return values


def decode(data: bytes) -> Decoded:
    """Read a 64-bit bitmap.

    Raises:
        NotRoaring: The bytes are none.
    """
    reader = _Reader(data)
    decoded = Decoded()
    (bucket_count,) = reader.take("Q")
    high_before = -1
    for _ in range(bucket_count):
        (high,) = reader.take("I")
        _require(high > high_before, "high words ascend")
        high_before = high
        _bucket(reader, high << 32, decoded)
    _require(reader.at == len(data), "nothing follows the bitmap")
    return decoded


def _bucket(reader: _Reader, base: int, decoded: Decoded) -> None:
    """Read the 32-bit bitmap that holds the low words below one high word."""
    start = reader.at
    (cookie,) = reader.take("I")
    is_run = []
    if cookie & 0xFFFF == SERIAL_COOKIE:
        count = (cookie >> 16) + 1
        flags = reader.take(f"{(count + 7) // 8}B")
        is_run = [bool(flags[index // 8] >> index % 8 & 1) for index in range(count)]
    else:
        _require(cookie == SERIAL_COOKIE_NO_RUNCONTAINER, "a cookie begins the bitmap")
        (count,) = reader.take("I")
        _require(count <= 1 << 16, "there are at most 2**16 containers")
    described = [reader.take("HH") for _ in range(count)]
    _require(all(one < other for (one, _), (other, _) in pairwise(described)), "keys ascend")
    has_offsets = not is_run or count >= NO_OFFSET_THRESHOLD
    offsets = reader.take(f"{count}I") if has_offsets else ()
    for index, (key, cardinality_less_one) in enumerate(described):
        _require(not offsets or offsets[index] == reader.at - start, "offsets lead to the containers")
        kind, lows = _container(reader, cardinality_less_one + 1, is_run=bool(is_run) and is_run[index])
        _require(len(lows) == cardinality_less_one + 1, "the cardinality is that of the header")
        decoded.kinds.append(kind)
        decoded.numbers += [base + (key << 16) + low for low in lows]


def _container(reader: _Reader, cardinality: int, *, is_run: bool) -> tuple[str, list[int]]:
    """Read one container: up to 2**16 values that share their upper 48 bits."""
    if is_run:
        (run_count,) = reader.take("H")
        runs = [reader.take("HH") for _ in range(run_count)]
        _require(all(one + more < other for (one, more), (other, _) in pairwise(runs)), "runs ascend")
        _require(all(first + more < 1 << 16 for first, more in runs), "runs stay in their container")
        return "run", [low for first, more in runs for low in range(first, first + more + 1)]
    if cardinality <= ARRAY_COUNT_MAX:
        lows = reader.take(f"{cardinality}H")
        _require(all(one < other for one, other in pairwise(lows)), "values ascend")
        return "array", list(lows)
    bits = reader.take(f"{BITSET_BYTES}B")
    return "bitset", [8 * index + bit for index, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1]


def _require(holds: bool, rule: str) -> None:  # noqa: FBT001 (reads as a sentence where it is called)
    if not holds:
        message = f"not so: {rule}"
        raise NotRoaring(message)
