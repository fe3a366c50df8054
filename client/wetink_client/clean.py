"""Find pages that have changed and were called clean: what ``wetink verify`` does.

Every page of a process is hashed, and a while later those that the answers since then call clean are hashed again. Of
the ones that differ, those stay that an answer to a barrier after the second look still does not have: a write before
that look is a write before the barrier. So the process need not stop, and nothing is called unseen that was only late.

What may write unseen without anybody knowing where, direct I/O say, is looked up before and after: what changed then in
memory that is otherwise certain is laid to its account. For it is what the tracking cannot see, and says so.

Hashes are made where the process runs, from ``/proc/PID/mem``, and neither they nor the content leaves this program.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from pyroaring import BitMap64

from wetink.pages import PAGE_SIZE, address_ranges
from wetink_client.collector import Collector
from wetink_client.errors import MappingsUnknown, WetinkError
from wetink_client.shadow import read_pages
from wetink_client.values import Strictness, TargetInfo, TargetMapping, Uncertainty, UnseenWriter

HASH_BYTES: Final = 16
"""Of each page: two contents of one hash are not met with by chance."""

PAGES_MAX: Final = 1 << 24
"""Pages that are looked at, 64 GiB: their hashes take some 2 GiB here."""

_ANONYMOUS: Final = "anonymous memory"


class NotVerified(Exception):
    """It cannot be found out; the text says why."""


@dataclass(frozen=True, slots=True)
class ChangedMapping:
    """A mapping with pages that changed unseen: its name, how it may do so where that is known, and the pages."""

    name: str
    uncertainty: Uncertainty | None
    pages: BitMap64

    def ranges(self) -> list[tuple[int, int]]:
        """Give the pages as ``(start_address, length_bytes)``, ascending and not touching."""
        return address_ranges(self.pages)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out.

    Attributes:
        compared_page_count: Pages that were called clean and compared.
        reported_page_count: Pages that were looked at first and then were in an answer.
        changed: The mappings with pages that changed unseen, in the order of their addresses.
        unseen_writers: Where any changed: what may have written to any of them, nobody can tell where.
    """

    compared_page_count: int
    reported_page_count: int
    changed: tuple[ChangedMapping, ...]
    unseen_writers: tuple[UnseenWriter, ...] = ()


def check_here(info: TargetInfo, pid: int) -> None:
    """Make sure that a process of this host is a target.

    Raises:
        NotVerified: The target runs on another host, or it is another process that has the pid here.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    if boot_id != info.boot_id:
        message = (
            f"{info.name} runs on another host or boot: run this on host {info.host_id}, where its memory can be read; "
            "content does not travel"
        )
        raise NotVerified(message)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        message = f"there is no process {pid} here: it has exited, or has another number in this pid namespace (--pid)"
        raise NotVerified(message) from error
    if int(stat.rpartition(")")[2].split()[19]) != info.start_time_ticks:
        message = f"process {pid} is not {info.name} here: say by which number it goes in this pid namespace (--pid)"
        raise NotVerified(message)


class Look:
    """Hashes of the pages of one process at one time. Use as a context manager."""

    def __init__(self, pid: int) -> None:
        """Open its memory.

        Raises:
            NotVerified: We may not read it.
        """
        self._pid = pid
        try:
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            message = f"not permitted to read the memory of process {pid}: run this as root on its host"
            raise NotVerified(message) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            raise _exited(pid) from error

    def __enter__(self) -> Self:
        """Give the look itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its memory."""
        os.close(self._memory)

    def hashes(self, pages: BitMap64) -> dict[int, bytes]:
        """Hash pages; those that are not mapped are left out.

        Raises:
            NotVerified: The process has exited.
        """
        try:
            return {
                page: blake2b(content, digest_size=HASH_BYTES).digest()
                for page, content in read_pages(self._pid, self._memory, pages)
                if content is not None
            }
        except ProcessLookupError as error:
            raise _exited(self._pid) from error

    def changed(self, hashes: Mapping[int, bytes], pages: BitMap64) -> BitMap64:
        """Give those pages that do not hash to what they did; one that is not mapped any more does not.

        Raises:
            NotVerified: The process has exited.
        """
        now = self.hashes(pages)
        return BitMap64(page for page in pages if now.get(page) != hashes[page])


class Verification:
    """One verification of one target, in two steps with a pause between them."""

    def __init__(self, collector: Collector, target: str, look: Look, *, strictness: Strictness) -> None:
        """Take the first look.

        Args:
            collector: Knows the target.
            target: Its name.
            look: At its process.
            strictness: Strict looks at what must never change unseen; lenient also at what is uncertain.

        Raises:
            NotVerified: An answer is not complete, or there are too many pages.
            WetinkError: As the collector says.
        """
        self._collector = collector
        self._target = target
        self._look = look
        self._strictness = strictness
        self._cursor: str | None = None
        self._reported, self._cursor = self._ask(None)
        self._writers = self._table()[1]
        if len(self._reported) > PAGES_MAX:
            message = f"{target} has {len(self._reported):,} pages, and at most {PAGES_MAX:,} can be looked at"
            raise NotVerified(message)
        self._hashes = look.hashes(self._reported)

    def finish(self) -> Verdict:
        """Take the second look, and tell what changed unseen since the first.

        Raises:
            NotVerified: An answer is not complete.
            WetinkError: As the collector says.
        """
        looked_at = BitMap64(self._hashes)
        reported, _ = self._ask(self._cursor)
        clean = looked_at - reported
        differing = self._look.changed(self._hashes, clean)
        if differing:
            # What was written between the barrier and our look is in the answer to the next barrier.
            reported, _ = self._ask(self._cursor)
            differing -= reported
        if not differing:
            return Verdict(len(clean), len(looked_at & reported), ())
        mappings, writers = self._table()
        writers = tuple(dict.fromkeys((*self._writers, *writers)))
        changed = _by_mapping(differing, mappings, writers[0].uncertainty if writers else None)
        return Verdict(len(clean), len(looked_at & reported), changed, writers)

    def _ask(self, cursor: str | None) -> tuple[BitMap64, str]:
        """Give the pages that a reader would copy or drop, and the cursor after them."""
        answer = self._collector.dirty(self._target, since=cursor, barrier=True, strictness=self._strictness)
        if not answer.complete:
            message = f"the answer for {self._target} is not complete: {answer.target.incomplete_message}"
            raise NotVerified(message)
        return answer.written | answer.vanished, answer.cursor

    def _table(self) -> tuple[tuple[TargetMapping, ...], tuple[UnseenWriter, ...]]:
        """Give the target's mappings, and what may write to it unseen; nothing where that is not known."""
        try:
            told = self._collector.mappings(self._target)
        except (MappingsUnknown, WetinkError):
            return (), ()
        return told.mappings, told.unseen_writers


def _by_mapping(
    pages: BitMap64, mappings: tuple[TargetMapping, ...], otherwise: Uncertainty | None
) -> tuple[ChangedMapping, ...]:
    """Sort pages by their mappings; ``otherwise`` is how those may have changed whose mapping is certain."""
    found: dict[tuple[str, Uncertainty | None], BitMap64] = {}
    for page in pages:
        name, uncertainty = _mapping_of(page, mappings)
        found.setdefault((name, uncertainty or otherwise), BitMap64()).add(page)
    return tuple(ChangedMapping(name, uncertainty, some) for (name, uncertainty), some in found.items())


def _mapping_of(page: int, mappings: tuple[TargetMapping, ...]) -> tuple[str, Uncertainty | None]:
    """Give name and class of the smallest range that holds a page: a registered buffer lies in another."""
    address = page * PAGE_SIZE
    holding = [one for one in mappings if one.start_address <= address < one.start_address + one.length_bytes]
    smallest = min(holding, key=lambda one: one.length_bytes, default=None)
    return (smallest.name or _ANONYMOUS, smallest.uncertainty) if smallest else (_ANONYMOUS, None)


def _exited(pid: int) -> NotVerified:
    return NotVerified(f"process {pid} has exited")
