"""What an io_uring says of its registered buffers, as Linux 6.18 prints it."""

from wetink_agent.descriptors import parse_buffers

INFO = b"""pos:\t0
flags:\t02000002
SqThread:\t-1
UserFiles:\t1
    0: /a file
UserBufs:\t3
    0: 0x7f313f4bc000/8192
    1: <none>
    2: 0x7f313f4c0800/100
PollList:
NAPI:\tdisabled
"""


def test_buffers_are_whole_pages() -> None:
    """A buffer reaches from the page of its first byte to that of its last; one that was given back is none."""
    assert parse_buffers(INFO) == [(0x7F313F4BC000, 0x7F313F4BE000), (0x7F313F4C0000, 0x7F313F4C1000)]


def test_a_ring_without_buffers_has_none() -> None:
    """That is an answer, other than none at all."""
    assert parse_buffers(b"UserBufs:\t0\nPollList:\n") == []


def test_a_ring_that_does_not_tell_all_is_not_taken_at_its_word() -> None:
    """While it is busy it leaves the buffers out, and what is cut off is not all of them."""
    assert parse_buffers(b"pos:\t0\nUserFiles:\t1\n") is None
    assert parse_buffers(INFO.partition(b"    1:")[0]) is None
