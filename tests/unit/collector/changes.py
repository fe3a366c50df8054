"""Short ways to write down what a store is told."""

from collections.abc import Iterable

from pyroaring import BitMap64

from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.types_pb2 import END_REASON_EXITED, EndReason
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import Block, RoundPages
from wetink_collector.store.interface import IncarnationEnded, IncarnationStarted, RoundsAppended, encode_stored


def target(pid: int = 1, *, host_id: str = "host-1", boot_id: str = "boot-1", start_time_ticks: int = 100) -> TargetKey:
    """Give a target."""
    return TargetKey(host_id, boot_id, pid, start_time_ticks)


def incarnation(pid: int = 1, number: int = 1) -> IncarnationKey:
    """Give an incarnation of a target of ``host-1``."""
    return IncarnationKey(target(pid), number)


def started(key: IncarnationKey, *, time_ns: int = 1, cgroup: str = "/test") -> IncarnationStarted:
    """Give its start."""
    message = TargetStarted(
        target=key.target.message(),
        incarnation=key.incarnation,
        time_ns=time_ns,
        command="test",
        cgroup=cgroup,
        page_size=4096,
    )
    return IncarnationStarted(key, message)


def appended(
    key: IncarnationKey,
    first_round: int,
    written: Iterable[int] = (),
    vanished: Iterable[int] = (),
    *,
    last_round: int | None = None,
    oldest_round: int | None = None,
) -> RoundsAppended:
    """Give a batch."""
    pages = RoundPages(BitMap64(written), BitMap64(vanished))
    block = Block(
        first_round=first_round,
        last_round=last_round or first_round,
        oldest_round=oldest_round or first_round,
        level=0,
        first_time_ns=first_round * 1000,
        last_time_ns=(last_round or first_round) * 1000 + 1,
        frozen=first_round % 2 == 0,
        written_page_count=len(pages.written),
        vanished_page_count=len(pages.vanished),
        populated_page_count=100 + first_round,
        cautious_page_count=first_round,
    )
    return RoundsAppended(key, block, encode_stored(pages.written), encode_stored(pages.vanished))


def ended(
    key: IncarnationKey,
    reason: EndReason.ValueType = END_REASON_EXITED,
    *,
    time_ns: int = 7,
    rounds_dropped: bool = False,
) -> IncarnationEnded:
    """Give its end."""
    return IncarnationEnded(key, reason, time_ns, "a sentence", rounds_dropped)
