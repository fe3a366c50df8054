"""Lists in pages: how much goes into one, and the token by which the next goes on.

A token is the key of the last entry given, and the next page begins after that key: no entry moves when others come
and go. Its checksum covers what was asked for, so that a token of another list or selection is refused.

Source: AIP-158 (pagination), but for a request without a page size, which is never given a part of the list.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar
from zlib import crc32

from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import dirty_pb2 as pb
from wetink_collector.errors import MessageTooLarge, PageTokenMalformed, RequestMalformed

PAGE_SIZE_MAX: Final = 1000
"""As the contract says: some 10 ms of the event loop."""

PAGE_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 4096
"""Bound on the entries of a page: the token has its room in the message beside them."""

_ENTRY_BYTES: Final = 4
"""What an entry takes in its message beside its own bytes: its tag, and its length below 2 MiB."""

_CRC_BYTES: Final = 4

Request = pb.ListHostsRequest | pb.ListTargetsRequest

_T = TypeVar("_T")
_Entry = TypeVar("_Entry", pb.Host, pb.TargetInfo)


def page(
    request: Request, found: Iterable[_T], *, key: Callable[[_T], str], entry: Callable[[_T], _Entry]
) -> tuple[Sequence[_Entry], str]:
    """Give one page of a list, and the token of the next.

    Args:
        request: Says which page.
        found: The whole list as it is now, in any order.
        key: Of an entry, for as long as it is there; no two have the same.
        entry: Makes its message.

    Raises:
        RequestMalformed: The page size is negative.
        PageTokenMalformed: The token is none, or of another list or selection.
        MessageTooLarge: No page is asked for, and the whole does not fit in one message.
    """
    if request.page_size < 0:
        message = f"page_size is {request.page_size}; give the number of entries wanted, or 0"
        raise RequestMalformed(message)
    after = _decode(request) if request.page_token else ""
    rest = sorted((one for one in found if key(one) > after), key=key)
    in_pages = bool(request.page_size or request.page_token)
    limit = min(request.page_size or PAGE_SIZE_MAX, PAGE_SIZE_MAX) if in_pages else len(rest)
    entries: list[_Entry] = []
    size_bytes = 0
    for one in rest[:limit]:
        made = entry(one)
        size_bytes += made.ByteSize() + _ENTRY_BYTES
        # Every field of an entry is bounded when it is taken: a single one always fits.
        if size_bytes > PAGE_BYTES_MAX:
            break
        entries.append(made)
    assert entries or not rest, rest[0]
    if len(entries) == len(rest):
        return entries, ""
    if not in_pages:
        message = f"{len(rest)} entries do not fit in one message of {MESSAGE_BYTES_MAX} bytes; ask with a page_size"
        raise MessageTooLarge(message)
    return entries, _encode(request, key(rest[len(entries) - 1]))


def _encode(request: Request, last: str) -> str:
    data = last.encode()
    return urlsafe_b64encode(data + _checksum(request, data)).decode()


def _decode(request: Request) -> str:
    try:
        data = urlsafe_b64decode(request.page_token)
    except ValueError:
        data = b""
    last, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    try:
        # A checksum can be made up: what it fits may be no text.
        if checksum == _checksum(request, last):
            return last.decode()
    except UnicodeDecodeError:
        pass
    message = "the page token is malformed, or of another list or selection; pass one exactly as an answer gave it"
    raise PageTokenMalformed(message)


def _checksum(request: Request, last: bytes) -> bytes:
    asked = request.DESCRIPTOR.full_name.encode()
    if isinstance(request, pb.ListTargetsRequest):
        asked += request.selection.SerializeToString(deterministic=True)
    return crc32(last, crc32(asked)).to_bytes(_CRC_BYTES, "little")
