"""What a later version of the contract says in a message, and this one does not know."""

from typing import Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

FIELDS_MAX: Final = 16
"""Bound on the fields that are named: a log line has them, and a message may have a hundred thousand."""


def unknown_fields(message: Message) -> list[int]:
    """Give the numbers of a message's fields that this version does not know, the first of them."""
    found = UnknownFieldSet(message)
    return [found[index].field_number for index in range(min(len(found), FIELDS_MAX))]
