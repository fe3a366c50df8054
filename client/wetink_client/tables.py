"""What ``wetink`` prints for people: tables, and the small words in them."""

import itertools
import mmap
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from wetink_client.values import NANOSECONDS_A_SECOND, Uncertainty

if TYPE_CHECKING:
    from wetink_client import (
        BarrierResult,
        DirtyCounts,
        DirtySet,
        EventBatch,
        Host,
        TargetInfo,
        TargetMapping,
        TargetMappings,
        TargetStatus,
        Thawed,
        UnseenWriter,
    )
    from wetink_client.clean import Verdict

WIDTH_MAX: Final = 10_000
"""Columns where nobody looks at a screen: wide enough that nothing is folded."""

RANGES_MAX: Final = 8
"""Ranges shown of each target: enough to see where it writes. ``--json`` has them all."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_UNIT_MAX: Final = "PiB"
_SHOWN_MAX: Final = 999
_SECONDS_OF: Final = (("d", 86_400), ("h", 3_600), ("min", 60))


class Printer:
    """Prints to standard output, at one point in time, so that all ages in one output agree."""

    def __init__(self, time_ns: int | None = None) -> None:
        """Look at standard output.

        Args:
            time_ns: What is taken for now, in nanoseconds since the Unix epoch.
        """
        # Neither markup nor highlighting: what is printed comes from other machines.
        width = None if sys.stdout.isatty() else WIDTH_MAX
        self._console = Console(width=width, markup=False, highlight=False, emoji=False)
        self._time_ns = time.time_ns() if time_ns is None else time_ns

    def hosts(self, hosts: "Iterable[Host]") -> None:
        """Print hosts."""
        table = table_of("HOST", "AGENT", "LAST SEEN", ">TARGETS", ">SPOOL", ">UNITED", "VERSION")
        for host in hosts:
            table.add_row(
                host.host_id,
                "connected" if host.connected else "away",
                self._ago(host.last_seen_time_ns),
                str(host.target_count),
                bytes_text(host.spool_bytes),
                f"{host.rounds_united:,}",
                printable(host.agent_version),
            )
        self._print(table, "no host has an agent here yet: start `wetink-agent --collector ADDR` on one")

    def targets(self, targets: "Iterable[TargetInfo]") -> None:
        """Print targets."""
        titles = "TARGET", "COMMAND", "STATE", ">POPULATED", ">WRITTEN", ">RATE", "AS OF", ">ROUND", ">EVERY", ">COST"
        table = table_of(*titles, "BACKEND")
        reasons: dict[tuple[str, str], None] = {}
        for target in targets:
            reasons[str(target.backend), target.backend_reason] = None
            rate = target.pages_per_second
            table.add_row(
                target.name,
                printable(target.command),
                _state(target),
                bytes_text(target.populated_page_count * target.page_size),
                bytes_text(target.last_written_page_count * target.page_size),
                "-" if rate is None else f"{rate:,.0f} pages/s",
                self._ago(target.as_of_time_ns),
                f"{target.incarnation}.{target.round}",
                *_pace(target),
                str(target.backend),
            )
        self._print(table, "no target: `wetink track HOST PID` begins to track a process")
        for backend, reason in reasons:
            if reason:
                self._console.print(f"\n{backend}: {printable(reason)}", soft_wrap=True)

    def mappings(self, found: "TargetMappings") -> None:
        """Print what a target has mapped."""
        self._console.print(f"{found.name}, as of round {found.incarnation}.{found.round}", soft_wrap=True)
        table = table_of("ADDRESS", ">SIZE", "PROTECTION", "UNCERTAIN", "MAPPING")
        for mapping in found.mappings:
            table.add_row(
                f"{mapping.start_address:#x}-{mapping.start_address + mapping.length_bytes:#x}",
                bytes_text(mapping.length_bytes),
                _protection(mapping),
                "-" if mapping.uncertainty is None else str(mapping.uncertainty),
                printable(mapping.name),
            )
        self._print(table, "it has mapped nothing that has a name, is shared or uncertain")
        if found.cut:
            self._console.print("and more, which are not told", soft_wrap=True)
        self._writers(found.unseen_writers)

    def barrier(self, result: "BarrierResult") -> None:
        """Print how far each target has come."""
        table = table_of("TARGET", "REACHED", ">ROUND", "AS OF")
        for status in result.targets.values():
            table.add_row(
                status.name,
                _yes(status.complete),
                f"{status.incarnation}.{status.round}",
                self._ago(status.as_of_time_ns),
            )
        self._print(table, "no target is selected")
        self._frozen(result.targets.values())
        self._console.print(f"\nconsistency {result.consistency}\ncursor {result.cursor}", soft_wrap=True)

    def dirty(self, answer: "DirtySet") -> None:
        """Print how much is dirty, and the first ranges of it."""
        table = table_of("TARGET", ">PAGES", ">BYTES", ">RUNS", ">VANISHED", ">UNCERTAIN", "COMPLETE", "EXACT", "AS OF")
        ranges = {name: part.ranges() for name, part in answer.targets.items()}
        for name, part in answer.targets.items():
            table.add_row(
                name,
                f"{len(part.written):,}",
                bytes_text(part.byte_count),
                f"{len(ranges[name]):,}",
                f"{len(part.vanished):,}",
                f"{len(part.uncertain):,}{' left out' if part.lenient and part.uncertain else ''}",
                _yes(part.complete),
                _yes(part.exact),
                self._ago(part.as_of_time_ns),
            )
        self._print(table, "no target is selected")
        for name, runs in ranges.items():
            if runs:
                self._ranges(name, runs)
        self._frozen(answer.targets.values())
        self._console.print(f"\nconsistency {answer.consistency}\ncursor {answer.cursor}", soft_wrap=True)

    def verdict(self, name: str, found: "Verdict") -> None:
        """Print what a verification came to."""
        changed = sum(len(mapping.pages) for mapping in found.changed)
        self._console.print(
            f"{name}: {found.compared_page_count:,} pages called clean were compared, {changed:,} have changed unseen; "
            f"{found.reported_page_count:,} were reported",
            soft_wrap=True,
        )
        if not changed:
            return
        table = table_of(">CHANGED", "UNCERTAIN", "FIRST AT", "MAPPING")
        for mapping in found.changed:
            table.add_row(
                f"{len(mapping.pages):,}",
                "-" if mapping.uncertainty is None else str(mapping.uncertainty),
                f"{mapping.ranges()[0][0]:#x}",
                printable(mapping.name),
            )
        self._console.print(table)
        self._writers(found.unseen_writers)

    def _writers(self, writers: "Iterable[UnseenWriter]") -> None:
        """Print what may write unseen."""
        for writer in writers:
            what = printable(writer.what)
            self._console.print(
                f"may write unseen, nobody can tell where ({writer.uncertainty}): {what}", soft_wrap=True
            )

    def _frozen(self, statuses: "Iterable[TargetStatus]") -> None:
        """Print by what targets were frozen, where they were."""
        for status in statuses:
            if status.freeze_method:
                self._console.print(
                    f"{status.name} was frozen by {status.freeze_method}, for {status.frozen_ns / 1e6:.1f} ms so far",
                    soft_wrap=True,
                )

    def thawed(self, found: "Iterable[Thawed]") -> None:
        """Print what became of each target's hold."""
        table = table_of("TARGET", "HELD")
        for one in found:
            table.add_row(one.name, "unknown" if one.message else _yes(one.held))
        self._print(table, "no target is selected")

    def counts(self, answer: "DirtyCounts") -> None:
        """Print one answer of a watch, in lines that stand under those of the answers before."""
        for name, status in answer.targets.items():
            size = bytes_text(status.written_page_count * status.page_size)
            self._console.print(
                f"{time.strftime('%H:%M:%S', time.localtime(self._time_ns / NANOSECONDS_A_SECOND))}  {name}"
                f"  {status.written_page_count:>11,} pages  {size:>8}  {status.vanished_page_count:>9,} vanished"
                f"  round {status.incarnation}.{status.round}"
                f"{'' if status.complete else '  not complete'}{'' if status.exact else '  not exact'}",
                soft_wrap=True,
            )

    def events(self, batch: "EventBatch") -> None:
        """Print events, one a line, and before them how many are missing."""
        for count, what in ((batch.forgotten_count, "forgotten by the collector"), (batch.lost_count, "lost")):
            if count:
                self._console.print(f"{count:,} events {what} before or among these", soft_wrap=True)
        for event in batch.events:
            clock = "-" if event.time_ns is None else _clock_text(event.time_ns)
            thread = "-" if event.thread_id is None else f"{event.thread_id} {printable(event.thread_name or '')}"
            mapping = printable(event.mapping or "")
            code = {None: "-", 0: "kernel"}.get(event.code_address, f"{event.code_address or 0:#x}")
            self._console.print(
                f"{clock:<15}  {thread:<24}  {event.address:#18x}  {code:>18}  {mapping}".rstrip(), soft_wrap=True
            )

    def _ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> None:
        self._console.print(f"\nwritten in {name}", soft_wrap=True)
        for start_address, size_bytes in itertools.islice(ranges, RANGES_MAX):
            self._console.print(
                f"  {start_address:#x}-{start_address + size_bytes:#x}  {bytes_text(size_bytes)}", soft_wrap=True
            )
        if len(ranges) > RANGES_MAX:
            self._console.print(f"  and {len(ranges) - RANGES_MAX:,} more, which --json prints", soft_wrap=True)

    def _print(self, table: Table, otherwise: str) -> None:
        self._console.print(table if table.row_count else otherwise)

    def _ago(self, time_ns: int | None) -> str:
        if not time_ns:
            return "never"
        return f"{age_text((self._time_ns - time_ns) / NANOSECONDS_A_SECOND)} ago"


def _clock_text(time_ns: int) -> str:
    """Give a time of today to the microsecond."""
    seconds = time_ns / NANOSECONDS_A_SECOND
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{time_ns // 1000 % 10**6:06}"


def bytes_text(size_bytes: int) -> str:
    """Give a size in three digits."""
    size = float(size_bytes)
    for unit in _UNITS:
        if size < _SHOWN_MAX:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.0f} {_UNIT_MAX}"


def age_text(seconds: float) -> str:
    """Give a time that passed, in its largest unit. Clocks of two hosts may differ: it is never negative."""
    seconds = max(0.0, seconds)
    for unit, length in _SECONDS_OF:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def printable(text: str) -> str:
    """Give a text with no control character: a process may call itself anything, also a terminal's commands."""
    return "".join(character if character.isprintable() else "?" for character in text)


def label_text(text: str, characters_max: int) -> str:
    """Give a name that came from elsewhere, printable, and its end alone where it is longer than there is room."""
    label = printable(text)
    return label if len(label) <= characters_max else "..." + label[3 - characters_max :]


def table_of(*headings: str) -> Table:
    """Make a table. A heading that begins with ``>`` is that of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", overflow="fold"
        )
    return table


def _pace(target: "TargetInfo") -> tuple[str, str]:
    """Say how often a target is harvested, and what that costs the agent and the target, of a processor each."""
    if target.pace is None:
        return "-", "-"
    agent, itself = (f"{100 * share:.1f} %" for share in (target.pace.agent_share, target.pace.target_share))
    return f"{target.pace.interval_ms / 1000:g} s", f"{agent} + {itself}"


def _protection(mapping: "TargetMapping") -> str:
    """Write protection and sharing as ``/proc/PID/maps`` does."""
    if mapping.uncertainty == Uncertainty.REGISTERED_BUFFER:
        return "-"
    letters = ((mmap.PROT_READ, "r"), (mmap.PROT_WRITE, "w"), (mmap.PROT_EXEC, "x"))
    rights = "".join(letter if mapping.protection & bit else "-" for bit, letter in letters)
    return f"{rights}{'s' if mapping.shared else 'p'}"


def _state(target: "TargetInfo") -> str:
    if target.end_reason is not None:
        return str(target.end_reason)
    return "live" if target.live else "agent away"


def _yes(fact: bool) -> str:  # noqa: FBT001
    return "yes" if fact else "no"
