"""What the commands of ``wetink`` share: options, connecting, and printing."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final

import typer

# Its names are imported when they are used: `wetink --help` waits for none of them.
import wetink_client
from wetink.command_line import ExitCode, Failure

if TYPE_CHECKING:
    from wetink_client import Collector, Selection, TargetStatus, WetinkError
    from wetink_client.tables import Printer


@dataclass(frozen=True, slots=True)
class Settings:
    """What was said before the subcommand."""

    address: str
    json: bool
    security: Mapping[str, Path | None]


HOLD_SECONDS: Final = 10.0
"""How long a hold lasts unless said otherwise."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
HostsOption = Annotated[
    list[str] | None, typer.Option("--host", metavar="HOST", help="Every target on this host. May be repeated.")
]
CgroupsOption = Annotated[
    list[str] | None,
    typer.Option("--cgroup", metavar="PATH", help="Every target in this cgroup or below it. May be repeated."),
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Every target with all of these labels. May be repeated."),
]
TreesOption = Annotated[
    list[str] | None,
    typer.Option("--tree", metavar="HOST/PID", help="This process and all that descend from it. May be repeated."),
]
TargetsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="TARGET", help="HOST/PID@START or HOST/PID.", show_default=False)
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="How long a barrier waits for the agents, at most 60.")
]
HoldForOption = Annotated[
    float | None,
    typer.Option(
        "--hold-for",
        metavar="SECONDS",
        help="With --hold: go on after so long in any case, at most 60.",
        show_default=f"{HOLD_SECONDS:g}",
    ),
]
SinceOption = Annotated[
    str, typer.Option("--since", metavar="CURSOR", help="From an earlier answer. Without it: every populated page.")
]


@contextmanager
def connected(context: typer.Context) -> "Iterator[Collector]":
    """Connect, and turn what a call raises into a sentence and an exit code."""
    try:
        with wetink_client.Collector(context.obj.address, **context.obj.security) as collector:
            yield collector
    except wetink_client.WetinkError as error:
        raise Failure(str(error), exit_code_of(error)) from error


def exit_code_of(error: "WetinkError") -> ExitCode:
    """Give the exit code for what a call raised."""
    codes: Mapping[type[WetinkError], ExitCode] = {
        wetink_client.Unavailable: ExitCode.UNAVAILABLE,
        wetink_client.NotFound: ExitCode.NOT_FOUND,
        wetink_client.InvalidRequest: ExitCode.USAGE,
        wetink_client.ResynchronisationNeeded: ExitCode.RESYNCHRONISE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), ExitCode.FAILURE)


def selected(
    names: list[str] | None, hosts: list[str] | None, cgroups: list[str] | None, labels: list[str] | None
) -> "Selection":
    """Give the selection that options name; it may be empty."""
    return wetink_client.Selection(
        tuple(names or ()), hosts=tuple(hosts or ()), cgroups=tuple(cgroups or ()), labels=tuple(labels or ())
    )


def needed(
    names: list[str] | None, hosts: list[str] | None, cgroups: list[str] | None, labels: list[str] | None
) -> "Selection":
    """Give the selection that options name.

    Raises:
        Failure: They name nothing.
    """
    found = selected(names, hosts, cgroups, labels)
    if not found:
        message = "no target is named: write HOST/PID, --host HOST, --cgroup PATH or --label KEY=VALUE"
        raise Failure(message, ExitCode.USAGE)
    return found


def in_trees(collector: "Collector", roots: "Sequence[str] | None") -> list[str]:
    """Give the targets of process trees."""
    return [name for root in roots or () for name in collector.tree(root).targets]


def hold_seconds(hold: str, hold_for: float | None) -> float:
    """Give how long targets are to be held; 0 means not at all.

    Raises:
        Failure: A time was said, and not by which name they are held.
    """
    if not hold:
        if hold_for is not None:
            message = "--hold-for says how long a hold lasts: give it a name with --hold too"
            raise Failure(message, ExitCode.USAGE)
        return 0.0
    return HOLD_SECONDS if hold_for is None else hold_for


def wants_json(context: typer.Context, json: bool) -> bool:  # noqa: FBT001
    """Whether ``--json`` stood before or after the subcommand."""
    return json or bool(context.obj.json)


def print_lines(lines: Iterable[str]) -> None:
    """Print and flush, so that a reader that went away is noticed here and not after the end."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def explain(statuses: "Iterable[TargetStatus]", said: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Say why an answer is not complete, one sentence a target.

    Args:
        statuses: Of the answer's targets.
        said: What this gave for the answer before: not said again.

    Returns:
        The reason of each target that is not complete.
    """
    reasons = {
        status.name: status.incomplete_message or f"{status.incomplete_reason}"
        for status in statuses
        if not status.complete
    }
    for name, reason in reasons.items():
        if said.get(name) != reason:
            typer.echo(f"wetink: {name} is not complete: {reason}", err=True)
    return reasons


def printer() -> "Printer":
    """Make what prints for people: it needs rich, which lines of JSON do not."""
    from wetink_client.tables import Printer  # noqa: PLC0415

    return Printer()
