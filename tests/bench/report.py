"""The page about the backends from the lines of a run: ``python -m tests.bench.report LINES DIRECTORY``.

Writes ``backends.md`` and ``backends.svg``. What is in them comes from the lines alone, so that the same lines give the
same bytes.
"""

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from tests.bench import plot
from tests.bench.crossing import MESSAGES_AND_WRITES, RING, RING_AND_WRITES, Cost, event_costs
from tests.bench.first_writes import NOTHING, WP_SYNC_TOGETHER
from tests.bench.trackers import EVENTS, WP_ASYNC

LineOfRun: TypeAlias = Mapping[str, Any]

COMMAND: Final = "make bench ARGS='machine first-write rounds decode-ring sync-decode redis'"
SCAN_COLOURS: Final = ("#6baed6", "#3182bd", "#08519c", "#04234a")
EVENT_COLOURS: Final = ("#fd8d3c", "#e6550d", "#a63603", "#5f1d02")
PLOTTED_SHARES: Final = (0.1, 1, 10, 100)
PAGES_A_MIB: Final = 256
COLUMNS: Final = 120
SHORT: Final = {RING: "ring, agent alone", RING_AND_WRITES: "ring", MESSAGES_AND_WRITES: "uffd_msg"}
"""What each way of counting events is called where there is little room."""


class Run:
    """The lines of one run."""

    def __init__(self, lines: Iterable[LineOfRun]) -> None:
        """Take them in the order in which they were printed."""
        self._lines = list(lines)

    def of(self, figure: str, **facts: object) -> list[LineOfRun]:
        """Give the lines that show something, where the facts are these."""
        wanted = {"figure": figure, **facts}
        return [
            line
            for line in self._lines
            if "value" in line and all(line.get(name) == value for name, value in wanted.items())
        ]

    def value(self, figure: str, **facts: object) -> float | None:
        """Give the one value, or None where it was not measured."""
        found = self.of(figure, **facts)
        assert len(found) <= 1, (figure, facts)
        return float(found[0]["value"]) if found else None

    def different(self, figure: str, fact: str, **facts: object) -> list[Any]:
        """Give what a fact is in the lines that show something, each once, in their order."""
        return list(dict.fromkeys(line[fact] for line in self.of(figure, **facts)))

    def named(self, start: str) -> list[LineOfRun]:
        """Give the lines whose name begins like this."""
        return [line for line in self._lines if line["bench"].startswith(start)]

    def skipped(self) -> list[str]:
        """Give why something was not measured."""
        return [line["skipped"] for line in self._lines if "skipped" in line]


def main() -> int:
    """Write the page and its plot."""
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python -m tests.bench.report LINES DIRECTORY\n")
        return 2
    run = read(Path(sys.argv[1]))
    directory = Path(sys.argv[2])
    (directory / "backends.md").write_text(page(run), encoding="utf-8")
    (directory / "backends.svg").write_text(chart(run), encoding="utf-8")
    return 0


def read(path: Path) -> Run:
    """Read the lines of a run."""
    return Run(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def page(run: Run) -> str:
    """Give the page in Markdown."""
    sections = (head, _first_writes, _by_share, _by_size, _alone, _crossings, _redis, _decoding)
    return "\n\n".join("\n".join(section(run)) for section in sections) + "\n"


def chart(run: Run) -> str:
    """Give the plot in SVG: costs by size, and where events are cheaper."""
    return plot.drawing([_costs_by_size(run), _frontier(run)])


def head(run: Run) -> Iterator[str]:
    """Give the title, where all this was measured, and what was not."""
    (machine,) = run.of("machine")
    yield "# What the backends cost"
    yield ""
    yield from _prose(
        f"Made by `python -m tests.bench.report docs/backends.jsonl docs` from the lines that `{COMMAND}` printed "
        f"on {machine['date']}: {machine['processor']}, {machine['value']:.0f} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, with a load of {machine['load_of_a_minute']} when it began. All figures are "
        "medians. On a shared machine single ones move by a factor of two from run to run; ratios much less."
    )
    for why in run.skipped():
        yield ""
        yield from _prose(f"Not measured: {why}.")


def _first_writes(run: Run) -> Iterator[str]:
    yield "## A first write to a page"
    yield ""
    yield from _prose(
        "What tracking adds to the first write to each page in a round. The writer is on one core and the agent "
        "on the other, unless said otherwise; wp-sync un-protects more than a page where writes follow each "
        "other."
    )
    yield ""
    rows = []
    for name in run.different("first write", "backend"):
        cells = [name]
        for order in ("random", "order"):
            (line,) = run.of("first write", backend=name, order=order)
            added = "" if name == NOTHING else f"{line['value']:,.0f}"
            cells += [f"{line['median_ns']:,}", added, f"{line['of_mprotect']:.2f}" if added else ""]
        rows.append(cells)
    header = ["", "at random: ns", "added", "of mprotect's", "in order: ns", "added", "of mprotect's"]
    yield from _table(header, rows)


def _by_share(run: Run) -> Iterator[str]:
    yield "## A round over 1 GiB, by the share of its pages that were written"
    yield ""
    yield from _prose(
        "Milliseconds of processor time for the GiB, from the first look at the mappings to the page sets in "
        "memory; pages written at random places, of 4 KiB each."
    )
    yield ""
    backends = run.different("round", "backend")
    rows = [
        [
            f"{share:g} %",
            *(_ms(run.value("round", backend=name, span_mib=1024, share_percent=share)) for name in backends),
        ]
        for share in run.different("round", "share_percent", span_mib=1024)
    ]
    yield from _table(["written", *backends], rows)


def _by_size(run: Run) -> Iterator[str]:
    yield "## A round, by the size of the target"
    yield ""
    yield from _prose(
        "Milliseconds of processor time. The page map is `/proc/PID/pagemap`, read as soft-dirty needs it, with no "
        "process stopped, no bit cleared and nothing reported: the least that a round of soft-dirty can cost."
    )
    for name in run.different("round", "backend"):
        shares = run.different("round", "share_percent", backend=name, size_mib=16)
        rows = []
        for span in run.different("round", "span_mib", backend=name):
            (size,) = run.different("round", "size_mib", backend=name, span_mib=span)
            costs = [run.value("round", backend=name, span_mib=span, share_percent=share) for share in shares]
            rows.append([_size_of(size, span), *map(_ms, costs), _ms(run.value("walk", span_mib=span))])
        yield ""
        yield from _table([name, *(f"{share:g} % written" for share in shares), "page map"], rows)


def _alone(run: Run) -> Iterator[str]:
    yield "## A round from events alone"
    yield ""
    yield from _prose(
        "As the mail proposes it: no scan, but the ring read and decoded, and each page armed again with a call "
        "of its own (from C). wetink has no such round, because a write that the kernel makes on somebody's "
        "behalf is no event."
    )
    yield ""
    rows = [
        [
            f"{line['page_count']:,.0f}",
            f"{line['ms']:.2f}",
            f"{line['value']:,.0f}",
            *(f"{line[n]:,}" for n in ("decode_ns", "arm_ns")),
        ]
        for line in run.of("stream")
    ]
    yield from _table(["pages written", "ms", "ns a page", "of it reading and decoding", "arming"], rows)


def _crossings(run: Run) -> Iterator[str]:
    ways = run.different("crossing share", "events")
    yield "## Where events beat a scan, and the other way round"
    yield ""
    yield "![Cost of a round by size, and sizes from which on events are cheaper](backends.svg)"
    yield ""
    yield from _prose(
        "A round from events alone against a whole round of wp-async (scan), and against reading the page map. "
        "Events are counted in three ways: what the agent alone does; with what the ring adds to each first "
        "write; and, for messages that writers wait for, with that wait (uffd_msg). Below these shares of pages "
        "written the events cost less, above them the scan:"
    )
    yield ""
    columns = [(against, way) for against in ("scan", "page map") for way in ways]
    header = [f"{against} / {SHORT[way]}" for against, way in columns]
    rows = [
        [
            _size(size),
            *(f"{run.value('crossing share', against=a, events=w, size_mib=size):.2g} %" for a, w in columns),
        ]
        for size in run.different("crossing share", "size_mib")
    ]
    yield from _table(["target", *header], rows)
    yield ""
    yield from _prose(
        "With so many pages written in a round, the events cost less in targets from this size on, and the scan "
        "in smaller ones (in italics: beyond what was measured, with the cost of a scan prolonged in proportion):"
    )
    yield ""
    rows = [
        [f"{count:,}", *(_from_size(run, against=a, events=w, page_count=count) for a, w in columns)]
        for count in run.different("crossing size", "page_count")
    ]
    yield from _table(["pages written", *header], rows)
    yield ""
    yield from _table(["the mail predicts", "measured"], _beside_the_mail(run), numbers=False)


def _beside_the_mail(run: Run) -> Iterator[list[str]]:
    """Give what Andrea Arcangeli wrote to the CRIU developers in January 2019, and what was measured."""
    small = min(run.different("walk", "size_mib"))
    share = run.value("crossing share", against="page map", events=RING_AND_WRITES, size_mib=small)
    walk = run.value("walk", span_mib=small)
    scan = run.value("round", backend=WP_ASYNC, span_mib=small, share_percent=1)
    measured = (
        f"{_size(small)}: the page map is read in {walk:.2f} ms, and is cheaper than events once {share:.2g} % of the "
        f"pages are written; a round of wp-async takes {scan:.2f} ms"
    )
    yield ["soft-dirty is better for small processes, where the cost is small anyway", measured]

    (by_map,) = run.of("crossing size", against="page map", events=RING_AND_WRITES, page_count=10_000)
    (by_scan,) = run.of("crossing size", against="scan", events=RING_AND_WRITES, page_count=10_000)
    measured = (
        f"10,000 pages written in {_size(by_map['large_mib'])}: {by_map['events_ms']:.1f} ms from events, about "
        f"{by_map['ms_at_large']:,.0f} ms to read the page map and {by_scan['ms_at_large']:,.0f} ms for a round of "
        "wp-async, both prolonged"
    )
    yield ["the event model is much better for regions of hundreds of gigabytes", measured]

    large = max(run.different("crossing share", "size_mib"))
    by_ring = run.value("crossing share", against="scan", events=RING_AND_WRITES, size_mib=large)
    by_message = run.value("crossing share", against="scan", events=MESSAGES_AND_WRITES, size_mib=large)
    measured = (
        f"size alone does not decide: at {_size(large)} a scan is cheaper than the ring once {by_ring:.2g} % of the "
        f"pages are written in a round, and cheaper than messages that writers wait for once {by_message:.2g} % are"
    )
    yield ["(not said)", measured]


def _redis(run: Run) -> Iterator[str]:
    yield "## redis-benchmark SET"
    yield ""
    yield from _prose(
        "How much longer it takes with a round a second: medians of the ratios in pairs. redis-server has one "
        "core; redis-benchmark (50 clients, 16 requests in a pipeline), agent and collector share the other. The "
        "server's own processor time for a request, faults included, is beside it."
    )
    yield ""
    rows = [
        [
            f"{line['keys']:,}",
            line["backend"],
            f"{line['value']:.3f}",
            f"{line['limit']:.2f}" + ("" if line["holds"] else ", missed"),
            f"{line['ratio_min']:.3f} to {line['ratio_max']:.3f}",
            f"{line['server_cpu_ratio']:.3f}",
            f"{line['untracked_requests_a_second']:,}",
            f"{line['first_writes_a_second']:,}",
        ]
        for line in run.of("redis")
    ]
    header = [
        "keys",
        "",
        "ratio",
        "limit",
        "of pairs",
        "processor time",
        "requests a second, untracked",
        "faults a second",
    ]
    yield from _table(header, rows)


def _decoding(run: Run) -> Iterator[str]:
    yield "## Decoding"
    yield ""
    yield from _prose("From what the kernel wrote to the bytes of EventColumns, on one core; pages at random.")
    yield ""
    rows = [
        [
            line.get("source", "uffd_msg"),
            f"{line['value']:.0f}",
            f"{line['limit']:.0f}",
            f"{line['events_per_second'] / 1e6:.2f} million",
        ]
        for line in run.named("decode and batch an event")
    ]
    yield from _table(["", "ns an event", "limit", "events a second"], rows)


def _costs_by_size(run: Run) -> plot.Panel:
    sizes = [size for size in run.different("round", "size_mib") if run.of("round", size_mib=size, span_mib=size)]
    lines = []
    events = _event_cost(run)
    for share, scan_colour, event_colour in zip(PLOTTED_SHARES, SCAN_COLOURS, EVENT_COLOURS, strict=True):
        measured = [
            (size, run.value("round", backend=WP_ASYNC, span_mib=size, share_percent=share) or 0.0) for size in sizes
        ]
        lines.append(plot.Line(measured, f"scan, {share:g} %", scan_colour))
        alone = [(size, events(size * PAGES_A_MIB * share / 100)) for size in sizes]
        lines.append(plot.Line(alone, f"events, {share:g} %", event_colour, dashed=True))
    walked = [(size, run.value("walk", span_mib=size) or 0.0) for size in sizes]
    lines.append(plot.Line(walked, "page map", "#41ab5d"))
    return plot.Panel(
        "A round, by size of the target and pages written",
        "memory of the target",
        "ms of processor time; events with what the ring adds to the writes",
        [(size, _size(size)) for size in sizes],
        [(10.0**power, f"{10.0**power:g}") for power in range(-2, 5)],
        lines,
    )


def _frontier(run: Run) -> plot.Panel:
    counts = run.different("crossing size", "page_count")
    ways = zip((RING, RING_AND_WRITES, MESSAGES_AND_WRITES), EVENT_COLOURS, strict=False)
    lines = []
    for way, colour in ways:
        sizes = run.of("crossing size", against="scan", events=way)
        lines.append(plot.Line([(line["page_count"], line["value"]) for line in sizes], SHORT[way], colour))
    return plot.Panel(
        "Size from which on events cost less than a scan",
        "pages written in a round",
        "memory of the target",
        [(count, f"{count:,}") for count in counts],
        [(2.0**power, _size(2.0**power)) for power in range(-2, 25, 2)],
        lines,
        notes=((counts[1], 1 << 18, "events cost less"), (counts[-2], 1 << 5, "the scan costs less")),
    )


def _event_cost(run: Run) -> Cost:
    """Give the cost of a round from events alone, by the pages written, with what the ring adds to the writes."""
    added = {line["backend"]: float(line["value"]) for line in run.of("first write", order="random")}
    costs = event_costs(
        {line["page_count"]: line["ms"] for line in run.of("stream")},
        ring_added_ns=added[EVENTS] - added[WP_ASYNC],
        messages_added_ns=added[WP_SYNC_TOGETHER] - added[WP_ASYNC],
    )
    return costs[RING_AND_WRITES]


def _from_size(run: Run, **facts: object) -> str:
    lines = run.of("crossing size", **facts)
    if not lines:
        return ""
    (line,) = lines
    least_mib = line["page_count"] / PAGES_A_MIB
    if line["value"] <= least_mib * 1.001:
        return "every size"
    words = _size(line["value"])
    return f"*{words}*" if line["value"] > line["measured_to_mib"] else words


def _size_of(size_mib: int, span_mib: int) -> str:
    return _size(size_mib) if size_mib == span_mib else f"{_size(size_mib)} in a mapping of {_size(span_mib)}"


def _size(mib: float) -> str:
    for unit, shift in (("TiB", 20), ("GiB", 10), ("MiB", 0)):
        if mib >= 1 << shift:
            return f"{float(f'{mib / (1 << shift):.3g}'):g} {unit}"
    return f"{mib * 1024:.3g} KiB"


def _ms(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _prose(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, COLUMNS, break_long_words=False, break_on_hyphens=False)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---:' if numbers and index else '---' for index in range(len(header)))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    sys.exit(main())
