import pytest

from wetink.later import FIELDS_MAX, unknown_fields
from wetink.v1.ingest_pb2 import AgentMessage
from wetink_collector.versions import are_apart, printable


@pytest.mark.parametrize(
    "one, other, apart",
    [
        ("0.1.0", "0.1.9", False),
        ("0.1.0", "0.2.0", False),
        ("0.10.0", "0.9.3.dev1+g1", False),
        ("0.1.0", "0.3.0", True),
        ("0.1.0", "0.10.0", True),
        ("1.0.0", "0.9.0", True),
        ("", "0.1.0", False),
        ("raw", "0.1.0", False),
        ("1", "0.1.0", False),
        ("9" * 256 + ".1", "0.1.0", False),
    ],
)
def test_versions_are_apart_by_major_or_by_more_than_one_minor(one: str, other: str, *, apart: bool) -> None:
    """Whichever is the newer; patches do not count, and of what is no version nothing is said."""
    assert are_apart(one, other) is apart
    assert are_apart(other, one) is apart


def test_a_version_cannot_write_on_a_terminal() -> None:
    """It is whatever an agent says."""
    assert printable("0.1.0\x1b[2J\n") == "0.1.0?[2J?"


def test_not_every_unknown_field_is_named() -> None:
    """A message of a mebibyte has room for hundreds of thousands."""
    field = b"\xc2\x3e\x00"  # number 1000, no bytes

    assert unknown_fields(AgentMessage.FromString(field * 3)) == [1000] * 3
    assert unknown_fields(AgentMessage.FromString(field * 5000)) == [1000] * FIELDS_MAX
