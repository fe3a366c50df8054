"""Put answers together from the parts they travel in, and check that nothing of them is missing.

Decides only; both the sync and the asyncio client feed it. A short or damaged answer raises and is never a smaller set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TypeAlias

from pyroaring import BitMap64

from wetink.pages import CorruptPageSet, address_ranges, decode
from wetink.v1 import dirty_pb2, session_pb2
from wetink_client.errors import BrokenAnswer
from wetink_client.values import DirtyCounts, TargetStatus, counts_of


class NotOneTarget(ValueError):
    """An answer about several targets, or none, was asked for the pages of the one it is about."""


AnswerPart: TypeAlias = dirty_pb2.GetDirtyResponse | dirty_pb2.WatchResponse | session_pb2.GetRoundResponse
"""A part of an answer with pages, of whichever call."""


@dataclass(frozen=True, slots=True)
class TargetDirty(TargetStatus):
    """One target's part of an answer.

    Copy what is written, drop what vanished, finish, and only then ask for the next set.

    Attributes:
        written: Page numbers to be copied: populated, and possibly changed since the cursor.
        vanished: Page numbers to be dropped and not read: not populated any more. Shares no page with ``written``.
        uncertain: Page numbers with no sign of a write, to which something may have written unseen. A part of
            ``written``, or where the part is ``lenient``, of none of the others.
    """

    written: BitMap64
    vanished: BitMap64
    uncertain: BitMap64

    @property
    def byte_count(self) -> int:
        """Bytes to be copied."""
        return len(self.written) * self.page_size

    def ranges(self) -> list[tuple[int, int]]:
        """Give the written pages as ``(start_address, length_bytes)``, ascending and not touching."""
        return address_ranges(self.written, self.page_size)

    def vanished_ranges(self) -> list[tuple[int, int]]:
        """Give the vanished pages as ``(start_address, length_bytes)``, ascending and not touching."""
        return address_ranges(self.vanished, self.page_size)

    def uncertain_ranges(self) -> list[tuple[int, int]]:
        """Give the uncertain pages as ``(start_address, length_bytes)``, ascending and not touching."""
        return address_ranges(self.uncertain, self.page_size)


@dataclass(frozen=True, slots=True)
class DirtySet(DirtyCounts):
    """What is dirty since a cursor.

    ``targets`` has each target's part. Where the answer is about one target, that one's pages can be had from here
    directly; about several or none, this raises NotOneTarget, because page numbers of two targets must not be mixed.

    The reader's rule: copy what is written, drop what vanished, finish, and only then ask for the next set. A set read
    late is still right. Asked for without a cursor it is everything: drop all you hold of the targets first.
    """

    targets: Mapping[str, TargetDirty]

    @property
    def target(self) -> TargetDirty:
        """The part of the one target.

        Raises:
            NotOneTarget: The answer is about several, or none.
        """
        if len(self.targets) != 1:
            message = f"the answer is about {len(self.targets)} targets: take one out of `targets` by its name"
            raise NotOneTarget(message)
        return next(iter(self.targets.values()))

    @property
    def incarnation(self) -> int:
        """The one target's incarnation."""
        return self.target.incarnation

    @property
    def page_size(self) -> int:
        """Bytes a page of the one target."""
        return self.target.page_size

    @property
    def written(self) -> BitMap64:
        """Page numbers of the one target to be copied."""
        return self.target.written

    @property
    def vanished(self) -> BitMap64:
        """Page numbers of the one target to be dropped."""
        return self.target.vanished

    @property
    def uncertain(self) -> BitMap64:
        """Page numbers of the one target to which something may have written unseen."""
        return self.target.uncertain

    def ranges(self) -> list[tuple[int, int]]:
        """Give the one target's written pages as ``(start_address, length_bytes)``, ascending and not touching."""
        return self.target.ranges()

    def vanished_ranges(self) -> list[tuple[int, int]]:
        """Give the one target's vanished pages as ``(start_address, length_bytes)``, ascending and not touching."""
        return self.target.vanished_ranges()

    @property
    def page_count(self) -> int:
        """Pages to be copied, of all targets together."""
        return sum(len(part.written) for part in self.targets.values())

    @property
    def byte_count(self) -> int:
        """Bytes to be copied, of all targets together."""
        return sum(part.byte_count for part in self.targets.values())


class OneAnswer:
    """Puts together the one answer of a stream that has only one."""

    def __init__(self) -> None:
        """Begin with no part."""
        self._assembly = Assembly()
        self._answer: DirtySet | None = None

    def take(self, part: AnswerPart) -> None:
        """Add a part.

        Raises:
            BrokenAnswer: As ``Assembly.take``, and for a part after the summary.
        """
        if self._answer is not None:
            message = "answer goes on after its summary"
            raise BrokenAnswer(message)
        self._answer = self._assembly.take(part)

    def finish(self) -> DirtySet:
        """Give the answer once the stream has ended.

        Raises:
            BrokenAnswer: It ended without a summary.
        """
        if self._answer is None:
            message = "answer was cut off before its summary: ask again with the same cursor"
            raise BrokenAnswer(message)
        return self._answer


class Assembly:
    """Puts answers together from their parts: any number of page sets, then a summary, and again."""

    def __init__(self) -> None:
        """Begin with no part."""
        self._written: dict[str, BitMap64] = {}
        self._vanished: dict[str, BitMap64] = {}
        self._uncertain: dict[str, BitMap64] = {}

    def take(self, part: AnswerPart) -> DirtySet | None:
        """Add a part, and give the answer when this was its summary.

        Raises:
            BrokenAnswer: A page set is damaged, or what came is not what the summary says.
        """
        match part.WhichOneof("part"):
            case "pages":
                self._add(part.pages)
                return None
            case "summary":
                return self._end(part.summary)
            case _:
                message = "answer has a part of a kind that this version does not know, and which may be pages"
                raise BrokenAnswer(message)

    def _add(self, pages: dirty_pb2.DirtyPages) -> None:
        try:
            written, vanished, uncertain = (decode(some) for some in (pages.written, pages.vanished, pages.uncertain))
        except CorruptPageSet as error:
            message = f"answer for {pages.name} is damaged: {error}"
            raise BrokenAnswer(message) from error
        for sets, more in (
            (self._written, written),
            (self._vanished, vanished),
            (self._uncertain, uncertain),
        ):
            have = sets.setdefault(pages.name, more)
            if have is not more:
                have |= more

    def _end(self, summary: dirty_pb2.DirtySummary) -> DirtySet:
        counts = counts_of(summary)
        targets = {name: self._part(status) for name, status in counts.targets.items()}
        if self._written:
            message = f"answer has pages of {next(iter(self._written))}, which its summary does not name"
            raise BrokenAnswer(message)
        return DirtySet(
            cursor=counts.cursor,
            complete=counts.complete,
            exact=counts.exact,
            consistency=counts.consistency,
            as_of_time_ns=counts.as_of_time_ns,
            targets=MappingProxyType(targets),
        )

    def _part(self, status: TargetStatus) -> TargetDirty:
        """Take one target's pages out, and compare them with what the summary says of them."""
        written = self._written.pop(status.name, BitMap64())
        vanished = self._vanished.pop(status.name, BitMap64())
        uncertain = self._uncertain.pop(status.name, BitMap64())
        found = (len(written), len(vanished), len(uncertain))
        said = (status.written_page_count, status.vanished_page_count, status.uncertain_page_count)
        if found != said:
            message = (
                f"answer for {status.name} has {found[0]} written, {found[1]} vanished and {found[2]} uncertain pages, "
                f"its summary says {said[0]}, {said[1]} and {said[2]}"
            )
            raise BrokenAnswer(message)
        if not (uncertain.isdisjoint(written) if status.lenient else uncertain.issubset(written)):
            message = f"answer for {status.name} has uncertain pages where it says that there are none"
            raise BrokenAnswer(message)
        if not written.isdisjoint(vanished):
            message = f"answer for {status.name} has pages both as written and as vanished"
            raise BrokenAnswer(message)
        known = {field.name: getattr(status, field.name) for field in fields(status)}
        return TargetDirty(**known, written=written, vanished=vanished, uncertain=uncertain)
