"""The test vectors of the contract: what they hold, and how they are written.

``python -m tests.conventions.vectors`` writes the file again. Bytes that were published stay as they are: it is run
to add a vector, and the difference is looked at. What is in the file is said in the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from google.protobuf import json_format
from pyroaring import BitMap64

from tests.conventions.tools import ROOT
from wetink import pages
from wetink.v1.types_pb2 import PageSet

FILE: Final = ROOT / "protos/wetink/v1/vectors/page_sets.json"

ABOUT: Final = [
    "Page sets for readers in any language. `message` is a wetink.v1.PageSet in the JSON form of proto3:",
    "`roaring64` is base64, `pageCount` a decimal string. An absent field has its default.",
    "`valid`: the set is the union of the `pages`, each `count` pages from `first` on, `step` apart.",
    "`invalid`: a reader must refuse the message. `error` says what is wrong: `checksum` (crc32 is not that of the",
    "bytes), `encoding` (the checksum is right, the bytes are no bitmap), `count` (pageCount is not the set's).",
]


@dataclass(frozen=True, slots=True)
class Run:
    """Pages at equal distances."""

    first: int
    count: int
    step: int = 1

    def numbers(self) -> range:
        """Give the page numbers."""
        return range(self.first, self.first + self.count * self.step, self.step)


VALID: Final[Mapping[str, Sequence[Run]]] = {
    "empty": [],
    "single page, the lowest": [Run(0, 1)],
    "single page, the highest of user space on x86-64": [Run(0x7FFFFFFFE, 1)],
    "array: scattered pages": [Run(7, 1), Run(4096, 3, 5), Run(65535, 1)],
    "array: the most that one holds": [Run(0, 4096, 16)],
    "bitset: one more than an array holds": [Run(0, 4097, 15)],
    "bitset: every second page": [Run(1, 32768, 2)],
    "run: one, inside a container": [Run(100, 1000)],
    "run: one, over three containers": [Run(60000, 80000)],
    "run: a whole container": [Run(65536, 65536)],
    "run: several in each of four containers, with an offset header": [
        Run(key << 16 | 500 * place, 200) for key in range(4) for place in range(9)
    ],
    "array, bitset and run side by side": [Run(3, 40, 9), Run(1 << 16, 20000, 3), Run(2 << 16, 5000)],
    "a process: text, heap, mappings and stack": [
        Run(0x555555554, 12),
        Run(0x555555700, 300),
        Run(0x7FFFE0000, 512),
        Run(0x7FFFF7DC0, 97, 3),
        Run(0x7FFFFFFDE, 33),
    ],
    "several high words, from pages beyond 2**32": [
        Run(high << 32 | 10 * high, 3, 70000) for high in (0, 1, 2, 7, 1 << 20)
    ],
    "a run over the border of two high words": [Run((1 << 32) - 5, 10)],
    "extremes of 64 bits": [Run(0, 1), Run((1 << 32) - 1, 2), Run((1 << 63) - 1, 2), Run((1 << 64) - 1, 1)],
}


def document() -> dict[str, object]:
    """Give the file's content."""
    valid = [
        {"name": name, "message": as_json(encoded(runs)), "pages": [as_numbers(run) for run in runs]}
        for name, runs in VALID.items()
    ]
    # No bitmap and a bitmap of nothing are both the empty set.
    nothing = BitMap64().serialize()
    valid.append({"name": "empty, as a bitmap of nothing", "message": as_json(message(nothing, 0)), "pages": []})
    invalid = [
        {"name": name, "message": as_json(broken), "error": error} for name, (error, broken) in damaged().items()
    ]
    return {"about": ABOUT, "valid": valid, "invalid": invalid}


def damaged() -> dict[str, tuple[str, PageSet]]:
    """Give messages that must be refused, each with what is wrong."""
    whole = encoded(VALID["a process: text, heap, mappings and stack"])
    data, good, count = whole.roaring64, whole.crc32, whole.page_count
    array = encoded([Run(1, 3, 2)]).roaring64
    flipped = bytes([*data[:-1], data[-1] ^ 1])
    return {
        "one bit of the bitmap flipped": ("checksum", PageSet(roaring64=flipped, crc32=good, page_count=count)),
        "one bit of the checksum flipped": (
            "checksum",
            PageSet(roaring64=data, crc32=good ^ 1, page_count=count),
        ),
        "no checksum": ("checksum", PageSet(roaring64=data, page_count=count)),
        "cut short by a byte": ("encoding", message(data[:-1], count)),
        "cut short in the header": ("encoding", message(data[:10], count)),
        "a single byte": ("encoding", message(b"\x01", 1)),
        "text": ("encoding", message(b"these bytes are no bitmap at all", 1)),
        "more high words than bytes": ("encoding", message(b"\xff" * 8 + data[8:], count)),
        "values that do not ascend": ("encoding", message(array[:-2] + array[-4:-2], 3)),
        "one page too many counted": ("count", message(data, count + 1)),
        "one page too few counted": ("count", message(data, count - 1)),
        "no page counted": ("count", message(data, 0)),
        "pages counted, but no bitmap": ("count", PageSet(page_count=5)),
    }


def encoded(runs: Sequence[Run]) -> PageSet:
    """Give the message of a set."""
    return pages.encode(BitMap64(sorted({page for run in runs for page in run.numbers()})))


def message(data: bytes, page_count: int) -> PageSet:
    """Give a message whose checksum is right, whatever the bytes are."""
    return PageSet(roaring64=data, crc32=crc32(data), page_count=page_count)


def as_json(page_set: PageSet) -> dict[str, object]:
    """Give a message in the JSON form of proto3."""
    return dict(json_format.MessageToDict(page_set))


def as_numbers(run: Run) -> dict[str, object]:
    """Give pages as the file has them: 64 bits are a string, since many readers of JSON keep but 53."""
    return {"first": str(run.first), "count": run.count, "step": run.step}


def main() -> None:
    """Write the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(document(), indent=2) + "\n")


if __name__ == "__main__":
    main()
