"""What ``wetink`` prints for people of the history of targets: tables, bars, and a heatmap of characters."""

import sys
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from wetink_client.tables import WIDTH_MAX, age_text, bytes_text, label_text, printable, table_of
from wetink_client.values import NANOSECONDS_A_SECOND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wetink_client import Heatmap, History, TargetHotPages, WorkingSet, WorkingSets, Writers
    from wetink_client.insight_commands import ColdClass

BAR_CHARACTERS: Final = 24
"""Length of the bar of the largest window."""

SHADES: Final = " .:-=+*#%@"
"""From nothing written to every page written: characters that every terminal has."""

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_LABEL_CHARACTERS: Final = 28


class InsightPrinter:
    """Prints to standard output, at one point in time."""

    def __init__(self, time_ns: int | None = None) -> None:
        """Look at standard output.

        Args:
            time_ns: What is taken for now, in nanoseconds since the Unix epoch.
        """
        # As in ``Printer``: what is printed comes from other machines.
        width = None if sys.stdout.isatty() else WIDTH_MAX
        self._console = Console(width=width, markup=False, highlight=False, emoji=False)
        self._time_ns = time.time_ns() if time_ns is None else time_ns

    def working_sets(self, found: "WorkingSets") -> None:
        """Print W(T) of each target, and of all together."""
        for target in found.targets:
            if target.working_set:
                self._history(target.history)
                self._working_set(target.working_set, target.history.page_size)
        if found.group:
            page_size = max((target.history.page_size for target in found.targets), default=0)
            shared = bytes_text(found.group.shared_page_count * page_size)
            self._say(f"all {len(found.targets)} together, shared pages counted once ({shared} of them populated)")
            if found.group.targets_without_mappings:
                unknown = ", ".join(found.group.targets_without_mappings)
                self._say(f"but for each of these, of which it is not known what they share: {unknown}")
            self._working_set(found.group.working_set, page_size)

    def heatmap(self, found: "Heatmap") -> None:
        """Print a heatmap: a character for each row and column, and a scale."""
        self._history(found.history)
        grid = table_of("ADDRESS", ">SIZE", "WRITTEN", "MAPPING")
        before = None
        for row, counts in zip(found.rows, found.page_counts, strict=True):
            if before is not None and row.start_address > before:
                grid.add_row("", bytes_text(row.start_address - before), "~" * len(counts), "")
            before = row.start_address + row.length_bytes
            shades = "".join(_shade(count, row.page_count) for count in counts)
            label = label_text(row.label, _LABEL_CHARACTERS)
            grid.add_row(f"{row.start_address:#x}", bytes_text(row.length_bytes), shades, label)
        self._print(grid, "nothing is populated there")
        if found.columns:
            first, last = found.columns[0].since_time_ns, found.columns[-1].until_time_ns
            self._say(f"\nfrom {self._ago(first)} to {self._ago(last)}; each character is the share of a part's pages")
            self._say(f"written meanwhile, from none to all: [{SHADES}]; ~ is a hole in the address space")

    def hot_pages(self, targets: "Sequence[TargetHotPages]") -> None:
        """Print the hottest pages of each target."""
        for target in targets:
            if not target.history.last_round:
                continue
            self._history(target.history)
            grid = table_of("ADDRESS", ">PAGES", ">ROUNDS", "LAST WRITTEN", "MAPPING")
            for pages in target.pages:
                rounds = f"{pages.round_count:,}"
                if pages.round_count_max > pages.round_count:
                    rounds += f"-{pages.round_count_max:,}"
                grid.add_row(
                    f"{pages.start_address:#x}",
                    f"{pages.length_bytes // target.history.page_size:,}",
                    rounds,
                    self._ago(pages.last_written_time_ns),
                    printable(pages.label),
                )
            self._print(grid, "nothing was written")
            self._say(f"\nof {target.written_page_count:,} pages that were written at all")

    def cold_first(self, history: "History | None", classes: "Sequence[ColdClass]") -> None:
        """Print in which order to send pages."""
        if history:
            self._history(history)
        grid = table_of(">ORDER", ">PAGES", ">BYTES", "LAST WRITTEN", ">ROUNDS")
        for one in classes:
            grid.add_row(
                str(one.index),
                f"{one.page_count:,}",
                bytes_text(one.page_count * one.page_size),
                self._ago(one.last_written_time_ns),
                f"{one.mean_round_count:,.1f}",
            )
        self._print(grid, "nothing is populated")

    def writers(self, found: "Writers") -> None:
        """Print who writes."""
        rounds = f"rounds {found.incarnation}.{found.first_round} to {found.incarnation}.{found.last_round}"
        self._say(f"{found.name}, {found.event_count:,} first writes to a page, {rounds}")
        threads = table_of(">WRITES", ">PAGES", ">THREAD", "NAME")
        for thread in found.threads:
            identity = "ended" if thread.thread_id is None else str(thread.thread_id)
            threads.add_row(f"{thread.event_count:,}", f"{thread.page_count:,}", identity, printable(thread.name))
        self._print(threads, "no thread is known")
        code = table_of(">WRITES", ">PAGES", "CODE", "FILE")
        for one in found.code:
            name = "the kernel, for the process" if one.code_address == 0 else f"{one.code_address:#x}"
            where = f"{printable(one.file)}+{one.file_offset:#x}" if one.file_offset is not None else "-"
            code.add_row(f"{one.event_count:,}", f"{one.page_count:,}", printable(one.symbol) or name, where)
        self._say("")
        self._print(code, "no code address is known")
        mappings = table_of(">WRITES", ">PAGES", "MAPPING")
        for mapping in found.mappings:
            mappings.add_row(
                f"{mapping.event_count:,}", f"{mapping.page_count:,}", printable(mapping.name) or "(without a name)"
            )
        self._say("")
        self._print(mappings, "no mapping is known")
        for count, what in ((found.lost_count, "lost"), (found.forgotten_count, "not kept any more")):
            if count:
                self._say(f"\n{count:,} events were {what}")

    def _working_set(self, found: "WorkingSet", page_size: int) -> None:
        grid = table_of(">T", ">MEAN", ">P50", ">P95", ">MAX", ">WINDOWS", "EXACT", "MEAN")
        top = max((point.pages.mean for point in found.points), default=0.0)
        for point in found.points:
            sizes = (point.pages.mean, point.pages.p50, point.pages.p95, point.pages.max)
            grid.add_row(
                seconds_text(point.window_ns / NANOSECONDS_A_SECOND),
                *(bytes_text(round(size * page_size)) for size in sizes),
                f"{point.window_count:,}",
                "yes" if point.exact else "no",
                _bar(point.pages.mean / top if top else 0.0),
            )
        self._print(grid, "no window is known yet")
        least, most = (
            bytes_text(count * page_size) for count in (found.writable_page_count_at_least, found.writable_page_count)
        )
        self._say(
            f"\ndirty rate {found.dirty_pages_per_second:,.0f} pages/s, now {found.dirty_pages_per_second_now:,.0f}"
            f"; writable working set {most if least == most else f'{least} to {most}'}"
            f"; populated {bytes_text(found.populated_page_count * page_size)}\n"
        )

    def _history(self, history: "History") -> None:
        since = self._ago(history.since_time_ns)
        kept = "" if history.exact else ", some of them merged"
        self._say(
            f"{history.name}, rounds {history.incarnation}.{history.first_round} to "
            f"{history.incarnation}.{history.last_round}{kept}, from {since} to {self._ago(history.as_of_time_ns)}"
        )

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _print(self, grid: Table, otherwise: str) -> None:
        self._console.print(grid if grid.row_count else otherwise)

    def _ago(self, time_ns: int | None) -> str:
        if not time_ns:
            return "never"
        return f"{age_text((self._time_ns - time_ns) / NANOSECONDS_A_SECOND)} ago"


def seconds_text(seconds: float) -> str:
    """Give a length of time in three digits."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"  # noqa: PLR2004 (three digits)


def _shade(count: int, page_count: int) -> str:
    """Give a character for a share: any write at all shows."""
    if not count or not page_count:
        return SHADES[0]
    return SHADES[min(len(SHADES) - 1, 1 + (len(SHADES) - 1) * count // page_count)]


def _bar(share: float) -> str:
    eighths = round(share * BAR_CHARACTERS * 8)
    return (_EIGHTHS[-1] * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
