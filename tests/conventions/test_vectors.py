import base64
import json
import re
from typing import Any, Final

import pytest
from google.protobuf import json_format

from tests.conventions.vectors import FILE, Run, document
from tests.support import roaring_spec
from wetink import pages
from wetink.v1.types_pb2 import PageSet

VECTORS: Final[dict[str, Any]] = json.loads(FILE.read_text())

BROKEN: Final = [vector for vector in VECTORS["invalid"] if vector["error"] == "encoding"]

SENTENCE: Final = {
    "checksum": r"has checksum",
    "encoding": r"is no Roaring64 bitmap",
    "count": r"holds \d+ pages, its message says|has no bitmap",
}
"""What the refusal says, by the vector's ``error``."""


def ids(kind: str) -> list[str]:
    """Give the names of vectors, for pytest to print."""
    return [vector["name"] for vector in VECTORS[kind]]


def meant(vector: dict[str, Any]) -> list[int]:
    """Give the page numbers that a vector means, ascending."""
    runs = [Run(int(run["first"]), run["count"], run["step"]) for run in vector["pages"]]
    return sorted(page for run in runs for page in run.numbers())


def message(vector: dict[str, Any]) -> PageSet:
    """Give the message of a vector."""
    return json_format.ParseDict(vector["message"], PageSet())


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=ids("valid"))
def test_wetink_reads_the_pages_that_are_meant(vector: dict[str, Any]) -> None:
    """Our decoder takes every valid vector and gives its set."""
    assert list(pages.decode(message(vector))) == meant(vector)


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=ids("valid"))
def test_a_reader_of_the_specification_reads_the_same(vector: dict[str, Any]) -> None:
    """The bytes are the published format, not merely what one library writes and reads."""
    data = base64.b64decode(vector["message"].get("roaring64", ""))
    numbers = roaring_spec.decode(data).numbers if data else []

    assert numbers == meant(vector)
    assert len(numbers) == int(vector["message"].get("pageCount", "0"))


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=ids("invalid"))
def test_wetink_refuses_what_is_wrong_and_says_so(vector: dict[str, Any]) -> None:
    """No damage becomes a page set, and the sentence names the damage."""
    with pytest.raises(pages.CorruptPageSet, match=SENTENCE[vector["error"]]):
        pages.decode(message(vector))


@pytest.mark.parametrize(
    "vector", [one for one in VECTORS["invalid"] if one["error"] == "encoding"], ids=lambda one: one["name"]
)
def test_a_reader_of_the_specification_refuses_the_same_bytes(vector: dict[str, Any]) -> None:
    """A broken encoding is broken by the specification, not by a whim of ours."""
    with pytest.raises(roaring_spec.NotRoaring):
        roaring_spec.decode(base64.b64decode(vector["message"]["roaring64"]))


def test_the_vectors_cover_every_kind_of_container_and_error() -> None:
    """A reader that passes has met all there is to meet."""
    decoded = [
        roaring_spec.decode(message(vector).roaring64) for vector in VECTORS["valid"] if message(vector).roaring64
    ]

    assert {kind for one in decoded for kind in one.kinds} == {"array", "bitset", "run"}
    assert max(len({number >> 32 for number in one.numbers}) for one in decoded) >= 4
    assert {vector["error"] for vector in VECTORS["invalid"]} == SENTENCE.keys()


def test_the_file_says_what_the_generator_means() -> None:
    """Nobody edits base64 by hand; the sets and the verdicts are those of ``vectors.py``."""
    written = json.loads(json.dumps(document()))

    assert [without_bytes(one) for one in VECTORS["valid"]] == [without_bytes(one) for one in written["valid"]]
    assert [without_bytes(one) for one in VECTORS["invalid"]] == [without_bytes(one) for one in written["invalid"]]
    assert VECTORS["about"] == written["about"]


def without_bytes(vector: dict[str, Any]) -> dict[str, Any]:
    """Leave out the bytes: another release of the library may write the same set otherwise, and both are right."""
    kept = {name: value for name, value in vector["message"].items() if name == "pageCount"}
    return vector | {"message": kept}


def test_readme_of_the_contract_leads_to_the_vectors() -> None:
    """Who writes a reader in another language finds them."""
    assert re.search(r"`vectors/`", (FILE.parents[3] / "README.md").read_text())
