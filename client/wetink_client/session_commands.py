"""``wetink session``: the rounds of a move by name, for scripts that may be run again after they died."""

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from wetink.command_line import ExitCode
from wetink_client import json_lines
from wetink_client.options import (
    CgroupsOption,
    HoldForOption,
    HostsOption,
    JsonOption,
    LabelsOption,
    TargetsArgument,
    TimeoutOption,
    connected,
    explain,
    hold_seconds,
    needed,
    print_lines,
    printer,
    wants_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wetink_client import Freeze, SessionRound

LEASE_SECONDS = 60.0
BARRIER_SECONDS = 5.0

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="Its name: 1 to 64 of [A-Za-z0-9._-].")]
RoundArgument = Annotated[str, typer.Argument(metavar="ROUND", help="Its name: 1 to 64 of [A-Za-z0-9._-].")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Rounds of a move, by name: each command may be said again and gets the same answer, also after a crash.

    A session is forgotten when nobody has asked for it for as long as its lease.""",
)


@app.command("open", epilog="Example: wetink session open move-7 host-1/4711")
def open_(
    context: typer.Context,
    session: SessionArgument,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    lease: Annotated[
        float, typer.Option("--lease", metavar="SECONDS", help="Live so long without a command, at most 3600.")
    ] = LEASE_SECONDS,
    *,
    json: JsonOption = False,
) -> None:
    """Open a session over targets, or renew its lease, and print its rounds."""
    with connected(context) as collector:
        rounds = collector.open_session(session, needed(names, host, cgroup, label), lease_seconds=lease)
    _print(context, rounds, as_json=json)


@app.command(epilog="Example: wetink session begin move-7 round-2 --parent round-1")
def begin(
    context: typer.Context,
    session: SessionArgument,
    round_: RoundArgument,
    parent: Annotated[
        str, typer.Option("--parent", metavar="ROUND", help="Go on from this closed round.", show_default="everything")
    ] = "",
    *,
    json: JsonOption = False,
) -> None:
    """Begin a round."""
    with connected(context) as collector:
        found = collector.begin_round(session, round_, parent or None)
    _print(context, [found], as_json=json)


@app.command(epilog="Example: wetink session close move-7 round-2 --freeze")
def close(
    context: typer.Context,
    session: SessionArgument,
    round_: RoundArgument,
    timeout: TimeoutOption = BARRIER_SECONDS,
    hold: Annotated[
        str, typer.Option("--hold", metavar="NAME", help="Freeze, and keep frozen until `wetink thaw --hold NAME`.")
    ] = "",
    hold_for: HoldForOption = None,
    *,
    freeze: Annotated[bool, typer.Option("--freeze", help="Freeze the targets while they are harvested.")] = False,
    json: JsonOption = False,
) -> None:
    """Close a round: every write from before now is in it, and it ends here.

    Exits with 3 if a target was not reached; the round is open then, and the command may be said again. Also if the
    closed round is not complete, because a target has ended, say: standard error says why.
    """
    seconds = hold_seconds(hold, hold_for)
    with connected(context) as collector:
        found = collector.close_round(
            session, round_, barrier_seconds=timeout, freeze=_freeze(hold, seconds) if hold else freeze
        )
    _print(context, [found], as_json=json)
    if explain(found.targets.values()):
        raise typer.Exit(ExitCode.UNAVAILABLE)


@app.command(epilog="Example: wetink session dirty move-7 round-2 --json")
def dirty(context: typer.Context, session: SessionArgument, round_: RoundArgument, *, json: JsonOption = False) -> None:
    """Print which pages a closed round carries: what is dirty since its parent ended, until it did.

    Where it is not complete, standard error says why, and it exits with 3.
    """
    with connected(context) as collector:
        answer = collector.round_dirty(session, round_)
    if wants_json(context, json):
        print_lines(json_lines.dirty(answer))
    else:
        printer().dirty(answer)
    if explain(answer.targets.values()):
        raise typer.Exit(ExitCode.UNAVAILABLE)


@app.command(epilog="Example: wetink session end move-7")
def end(context: typer.Context, session: SessionArgument) -> None:
    """Forget a session, also one that is not there."""
    with connected(context) as collector:
        collector.close_session(session)


def _freeze(hold: str, seconds: float) -> "Freeze":
    from wetink_client.values import Freeze  # noqa: PLC0415 (only where it is needed)

    return Freeze(seconds, hold)


def _print(context: typer.Context, rounds: "Iterable[SessionRound]", *, as_json: bool) -> None:
    if wants_json(context, as_json):
        print_lines(
            json_module.dumps(
                {
                    "round": one.round,
                    "parent": one.parent,
                    "closed": one.closed,
                    "cursor": one.cursor,
                    "consistency": one.consistency,
                    "closed_time_ns": one.closed_time_ns,
                    "targets": {name: status.round for name, status in one.targets.items()},
                    "incomplete": {
                        name: status.incomplete_message for name, status in one.targets.items() if not status.complete
                    },
                }
            )
            for one in rounds
        )
        return
    for one in rounds:
        state = f"closed, {one.consistency}" if one.closed else "open"
        typer.echo(f"{one.round}  after {one.parent or 'nothing'}  {state}")
