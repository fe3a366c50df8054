"""Short ways to write down what a store is told."""

from collections.abc import Iterable, Sequence

from pyroaring import BitMap64

from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.types_pb2 import END_REASON_EXITED, EndReason
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import Block, RoundPages
from wetink_collector.store.interface import IncarnationEnded, IncarnationStarted, RoundsAppended, encode_stored


def target(pid: int = 1, *, host_id: str = "host-1", boot_id: str = "boot-1", start_time_ticks: int = 100) -> TargetKey:
    """Give a target."""
    return TargetKey(host_id, boot_id, pid, start_time_ticks)


def incarnation(pid: int = 1, number: int = 1, *, host_id: str = "host-1") -> IncarnationKey:
    """Give an incarnation of a target."""
    return IncarnationKey(target(pid, host_id=host_id), number)


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
    uncertain: Iterable[int] = (),
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
    sets = encode_stored(pages.written), encode_stored(pages.vanished)
    return RoundsAppended(key, block, *sets, uncertain=encode_stored(BitMap64(uncertain)))


def pages_of_fates(fates: Sequence[str]) -> RoundPages:
    """Give a round in which each page, from 0 on, is written (w), uncertain (u), vanished (v), or none of it."""
    return RoundPages(*(BitMap64(n for n, fate in enumerate(fates) if fate in those) for those in ("wu", "v", "u")))


def fate_of(pages: RoundPages, page: int) -> str:
    """Give the fate of a page, as above."""
    for fate, some in (("u", pages.uncertain), ("w", pages.written), ("v", pages.vanished)):
        if page in some:
            return fate
    return "-"


def ended(
    key: IncarnationKey,
    reason: EndReason.ValueType = END_REASON_EXITED,
    *,
    time_ns: int = 7,
    rounds_dropped: bool = False,
) -> IncarnationEnded:
    """Give its end."""
    return IncarnationEnded(key, reason, time_ns, "a sentence", rounds_dropped)
