"""The commands of ``wetink`` that ask about the history of targets. ``command`` brings them in."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from wetink.command_line import ExitCode, Failure
from wetink_client.options import (
    CgroupsOption,
    HostsOption,
    JsonOption,
    LabelsOption,
    TargetsArgument,
    TreesOption,
    connected,
    in_trees,
    needed,
    print_lines,
    wants_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wetink_client import ColdPages, History
    from wetink_client.insight_tables import InsightPrinter

TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="HOST/PID@START or HOST/PID.")]

PICTURES: Final = (".png", ".svg")
"""What a file to draw into may end with."""


@dataclass(frozen=True, slots=True)
class ColdClass:
    """One class of an order of sending, without its pages."""

    index: int
    page_count: int
    page_size: int
    last_written_time_ns: int | None
    mean_round_count: float


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: wetink working-set host-1/4711")(working_set)
    app.command(epilog="Example: wetink heatmap host-1/4711 --output heat.svg")(heatmap)
    app.command(epilog="Example: wetink hot-pages host-1/4711 --by age")(hot_pages)
    app.command(epilog="Example: wetink cold-first host-1/4711 --json")(cold_first)
    app.command(epilog="Example: wetink writers host-1/4711")(writers)


def working_set(
    context: typer.Context,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    tree: TreesOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Print W(T): how many pages are written in windows of different lengths T.

    Mean, percentiles and most, over all starting points in the history that the collector keeps; and the dirty rate,
    the pages written at all, and those populated. Of several targets also of all together, shared pages counted once.
    """
    with connected(context) as collector:
        found = collector.working_set(needed([*(names or ()), *in_trees(collector, tree)], host, cgroup, label))
    if wants_json(context, json):
        print_lines(json_module.dumps(asdict(target)) for target in found.targets)
        if found.group:
            print_lines([json_module.dumps({"group": asdict(found.group), "missing": found.missing})])
    else:
        _printer().working_sets(found)
    _explain(target.history for target in found.targets)
    for sentence in found.missing:
        typer.echo(f"wetink: {sentence}", err=True)


def heatmap(
    context: typer.Context,
    target: TargetArgument,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Parts of memory at most, to 1024.")] = 32,
    columns: Annotated[int, typer.Option("--columns", metavar="N", min=1, help="Parts of time at most, to 1024.")] = 64,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Draw it into a .png or .svg; needs the extra `plot`."),
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Print which parts of memory were written when.

    Rows are addresses, with holes left out; columns are times. Writes are exact, to the round.
    """
    if output and output.suffix.lower() not in PICTURES:
        message = f"{output} is neither .png nor .svg: give --output one of these endings"
        raise Failure(message, ExitCode.USAGE)
    with connected(context) as collector:
        found = collector.heatmap(target, rows=rows, columns=columns)
    if output:
        from wetink_client.plot import draw_heatmap  # noqa: PLC0415 (an extra)

        draw_heatmap(found, output)
    if wants_json(context, json):
        print_lines([json_module.dumps(asdict(found))])
    elif not output:
        _printer().heatmap(found)
    _explain([found.history])


def hot_pages(
    context: typer.Context,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    tree: TreesOption = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Pages of each target, to 10000.")] = 100,
    order: Annotated[
        str, typer.Option("--by", metavar="WHAT", help="`rounds` in which they were written, or `age`.")
    ] = ("rounds"),
    *,
    json: JsonOption = False,
) -> None:
    """Print the pages that are written in the most rounds, or that were written last."""
    if order not in ("rounds", "age"):
        message = f"--by {order} is neither rounds nor age"
        raise Failure(message, ExitCode.USAGE)
    with connected(context) as collector:
        found = collector.hot_pages(
            needed([*(names or ()), *in_trees(collector, tree)], host, cgroup, label),
            limit=limit,
            order="age" if order == "age" else "rounds",
        )
    if wants_json(context, json):
        print_lines(json_module.dumps(asdict(target)) for target in found)
    else:
        _printer().hot_pages(found)
    _explain(one.history for one in found)


def cold_first(
    context: typer.Context,
    target: TargetArgument,
    classes: Annotated[int, typer.Option("--classes", metavar="N", min=2, help="At most so many, to 256.")] = 16,
    *,
    json: JsonOption = False,
) -> None:
    """Print in which order to send pages, so that the fewest are sent in vain.

    First those that were never written since tracking began, last those that were written last. With --json each line
    has `ranges` of `[start_address, length_bytes]`.
    """
    history: History | None = None
    found: dict[int, ColdClass] = {}
    with connected(context) as collector:
        for part in collector.cold_first(target, classes=classes):
            history = part.history
            if wants_json(context, json):
                print_lines([json_module.dumps(_cold_line(part))])
            before = found.get(part.class_index)
            found[part.class_index] = ColdClass(
                part.class_index,
                len(part.pages) + (before.page_count if before else 0),
                part.history.page_size,
                part.last_written_time_ns,
                part.mean_round_count,
            )
    if not wants_json(context, json):
        _printer().cold_first(history, list(found.values()))
    _explain([history] if history else [])


def writers(
    context: typer.Context,
    target: TargetArgument,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Lines of each kind, to 1000.")] = 20,
    *,
    json: JsonOption = False,
) -> None:
    """Print which threads and which code write the most, and to which mappings.

    Needs an agent that streams events (`wetink-agent --events`). Code has the name of its function where the file that
    is mapped there tells it.
    """
    with connected(context) as collector:
        found = collector.writers(target, limit=limit)
    if wants_json(context, json):
        print_lines([json_module.dumps(asdict(found))])
    else:
        _printer().writers(found)


def _cold_line(part: "ColdPages") -> dict[str, object]:
    return {
        "target": part.history.name,
        "class": part.class_index,
        "pages": len(part.pages),
        "last_written_time_ns": part.last_written_time_ns,
        "mean_round_count": part.mean_round_count,
        "ranges": part.ranges(),
    }


def _printer() -> "InsightPrinter":
    """Make what prints for people: it needs rich, which lines of JSON do not."""
    from wetink_client.insight_tables import InsightPrinter  # noqa: PLC0415

    return InsightPrinter()


def _explain(histories: "Iterable[History]") -> None:
    """Say of what the answer is not about now, one sentence a target."""
    for history in histories:
        if not history.complete:
            reason = history.incomplete_message or str(history.incomplete_reason)
            typer.echo(f"wetink: {history.name} is not complete: {reason}", err=True)
