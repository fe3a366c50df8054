"""Harvests, rounds and targets as tests make them, and the rule by which rounds are folded, on plain Python sets."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import pytest
from pyroaring import BitMap64

from wetink import pages
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent.backend import Harvest
from wetink_agent.rounds import Round, round_of

INCARNATION = 1000


def target_of(pid: int = 7) -> types_pb2.Target:
    """Give a target of a host of no importance."""
    return types_pb2.Target(host_id="host-1", boot_id="boot-1", pid=pid, start_time_ticks=100 + pid)


def started_of(pid: int = 7, incarnation: int = INCARNATION) -> ingest_pb2.TargetStarted:
    """Give the message that begins an incarnation."""
    return ingest_pb2.TargetStarted(target=target_of(pid), incarnation=incarnation, time_ns=1, command="writer")


def ended_of(
    pid: int = 7,
    incarnation: int = INCARNATION,
    *,
    reason: types_pb2.EndReason.ValueType = types_pb2.END_REASON_EXITED,
) -> ingest_pb2.TargetEnded:
    """Give the message that ends an incarnation."""
    return ingest_pb2.TargetEnded(target=target_of(pid), incarnation=incarnation, reason=reason, time_ns=2)


def position_of(pid: int = 7, incarnation: int = INCARNATION, *, last: int) -> types_pb2.TargetPosition:
    """Give a position."""
    return types_pb2.TargetPosition(target=target_of(pid), incarnation=incarnation, round=last)


def harvest_of(
    written: Iterable[int] = (),
    vanished: Iterable[int] = (),
    *,
    uncertain: Iterable[int] = (),
    time_ns: int = 1,
    populated: int | None = None,
) -> Harvest:
    """Give a harvest; a page in both sets counts as written, and what is uncertain has to be."""
    copied = BitMap64(written)
    return Harvest(
        began_time_ns=time_ns,
        written=copied,
        vanished=BitMap64(vanished) - copied,
        uncertain=BitMap64(uncertain),
        populated_page_count=len(copied) if populated is None else populated,
    )


def make_round(
    number: int,
    written: Iterable[int] = (),
    vanished: Iterable[int] = (),
    *,
    pid: int = 7,
    incarnation: int = INCARNATION,
    harvest: Harvest | None = None,
) -> Round:
    """Give a round with these pages, or of a whole harvest."""
    return round_of(
        harvest or harvest_of(written, vanished, time_ns=number),
        target=target_of(pid),
        incarnation=incarnation,
        number=number,
        backend=types_pb2.BACKEND_WP_ASYNC,
    )


Sets = tuple[frozenset[int], frozenset[int]]
"""Written and vanished pages."""


@dataclass(frozen=True)
class Fold:
    """What rounds come to, one after the other: the later decides about each page."""

    written: frozenset[int] = field(default_factory=frozenset)
    vanished: frozenset[int] = field(default_factory=frozenset)
    uncertain: frozenset[int] = field(default_factory=frozenset)

    def then(self, written: Iterable[int], vanished: Iterable[int], uncertain: Iterable[int] = ()) -> Self:
        """Fold a later round in."""
        copied, dropped, unsure = frozenset(written), frozenset(vanished), frozenset(uncertain)
        both = (self.written - dropped) | copied
        return replace(
            self,
            written=both,
            vanished=(self.vanished - copied) | dropped,
            uncertain=frozenset(page for page in both if self._is_uncertain(page, copied, unsure)),
        )

    def _is_uncertain(self, page: int, copied: frozenset[int], unsure: frozenset[int]) -> bool:
        """Whether a page that is written in both has no sign of a write in either, and had not vanished before."""
        if page not in copied:
            return page in self.uncertain
        return page in unsure and page not in self.vanished and page not in self.written - self.uncertain


@contextmanager
def tiny_parts(bytes_max: int = 64) -> Iterator[None]:
    """Have page sets cut into parts of so few bytes that small sets travel in several."""
    split = pages.split
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "split", lambda whole, most=bytes_max: split(whole, min(most, bytes_max)))
        yield


def sets_of(parts: Iterable[ingest_pb2.WriteProtectBatch]) -> tuple[BitMap64, BitMap64]:
    """Give what the parts of one round carry together; no page may be in two of them."""
    written, vanished = BitMap64(), BitMap64()
    for part in parts:
        here, gone = pages.decode(part.written), pages.decode(part.vanished)
        assert not here & written
        assert not gone & vanished
        written |= here
        vanished |= gone
    return written, vanished


def plain_sets_of(parts: Iterable[ingest_pb2.WriteProtectBatch]) -> Sets:
    """Give the same on plain Python sets."""
    written, vanished = sets_of(parts)
    return frozenset(written), frozenset(vanished)


def uncertain_of(parts: Iterable[ingest_pb2.WriteProtectBatch]) -> BitMap64:
    """Give what the parts of one round carry as uncertain; no page may be in two of them."""
    uncertain = BitMap64()
    for part in parts:
        here = pages.decode(part.uncertain)
        assert not here & uncertain
        uncertain |= here
    return uncertain
