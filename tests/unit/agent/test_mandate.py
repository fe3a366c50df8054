"""What a worker was told to track, as the next one reads it."""

import re

import pytest

from wetink_agent.discovery import Selection
from wetink_agent.mandate import Mandate, Rules

RULES = Rules.of((9, 5), Selection((re.compile("^b"), re.compile("^a")), ("/y", "/x"), tree=True), offers=True)


def test_a_mandate_is_read_as_it_was_written() -> None:
    """In any order of options, which is none of their meaning."""
    mandate = Mandate(RULES, frozenset({(1, 2)}), frozenset({(3, 4), (5, 6)}), frozenset({(7, 8)}))
    same = Rules.of((5, 9), Selection((re.compile("^a"), re.compile("^b")), ("/x", "/y"), tree=True), offers=True)

    assert Mandate.from_bytes(mandate.to_bytes()) == mandate
    assert same == RULES


@pytest.mark.parametrize(
    "text", [b"", b"no", b"[]", b"{}", b'{"rules": {}}', b'{"rules": [], "wanted": 5}', Mandate().to_bytes()[:-9]]
)
def test_what_another_version_wrote_is_none(text: bytes) -> None:
    """Then nothing is known of what it was told, and everything is gone on with."""
    assert Mandate.from_bytes(text) is None
