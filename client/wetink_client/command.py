"""The ``wetink`` command: what an operator asks a collector, as tables or as lines of JSON.

Exit codes: 0 done, 1 failure, 2 usage (also a malformed name or cursor), 3 nobody answered or a barrier was not
reached, 4 not found, 5 the cursor leads nowhere any more: drop what you hold, ask without one.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

# Its names are imported when they are used: `wetink --help` waits for none of them.
import wetink_client
from wetink.command_line import ExitCode, Failure, run
from wetink_client import insight_commands, json_lines, migration_commands, session_commands
from wetink_client.options import (
    CgroupsOption,
    HoldForOption,
    HostsOption,
    JsonOption,
    LabelsOption,
    Settings,
    SinceOption,
    TargetsArgument,
    TimeoutOption,
    connected,
    exit_code_of,
    explain,
    hold_seconds,
    needed,
    print_lines,
    printer,
    selected,
    wants_json,
)

if TYPE_CHECKING:
    from wetink_client import Collector, Freeze, Selection

ADDRESS: Final = "127.0.0.1:7419"
BARRIER_SECONDS: Final = 5.0
VERIFY_SECONDS_MAX: Final = 86_400.0
"""How long `wetink verify` waits at most between its looks: a day, long before time.sleep() has a bound."""

app = typer.Typer(
    name="wetink",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help comes in a third of the time
    help="""Ask a collector which memory pages of which processes were written since you last asked.

    A target is named HOST/PID@START, as `wetink targets` prints it, or HOST/PID for the youngest process with that
    pid.""",
    epilog="Example: wetink --collector collector:7419 targets",
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001
    if wanted:
        typer.echo(metadata.version("wetink"))
        raise typer.Exit


FreezeOption = Annotated[
    bool,
    typer.Option(
        "--freeze", help="Freeze the targets first, all of them, and let them go on when the last was harvested."
    ),
]
HoldOption = Annotated[
    str, typer.Option("--hold", metavar="NAME", help="Freeze, and keep them frozen until `wetink thaw --hold NAME`.")
]
WholeCgroupsOption = Annotated[
    bool,
    typer.Option("--whole-cgroups", help="Freeze cgroups also where they hold other processes beside the targets."),
]


@app.callback()
def settings(
    context: typer.Context,
    address: Annotated[
        str,
        typer.Option("--collector", metavar="ADDR", envvar="WETINK_COLLECTOR", help="HOST:PORT or unix:PATH."),
    ] = ADDRESS,
    *,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca",
            metavar="FILE",
            envvar="WETINK_TLS_CA",
            help="Speak TLS, and check the collector's certificate against these.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option("--tls-cert", metavar="FILE", envvar="WETINK_TLS_CERT", help="Certificate that says who you are."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", envvar="WETINK_TLS_KEY", help="The private key to it.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            envvar="WETINK_TOKEN_FILE",
            help="Bearer token that says who you are; over TCP it needs --tls-ca.",
        ),
    ] = None,
    json: JsonOption = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keep what was said before the subcommand; where there is none, teach."""
    security = {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key, "token_file": token_file}
    context.obj = Settings(address, json, security)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


@app.command(epilog="Example: wetink hosts")
def hosts(context: typer.Context, *, json: JsonOption = False) -> None:
    """List the hosts that have, or had, an agent."""
    with connected(context) as collector:
        found = collector.hosts()
    if wants_json(context, json):
        print_lines(json_lines.plain(found))
    else:
        printer().hosts(found)


@app.command(epilog="Example: wetink targets --host host-1")
def targets(
    context: typer.Context,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    *,
    mappings: Annotated[
        bool, typer.Option("--mappings", help="List what each has mapped instead, and what of it can change unseen.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List targets and how fast they get dirty.

    All of them, or those selected; also those that ended not long ago. With --mappings those that live: private
    anonymous mappings without a name are left out.
    """
    with connected(context) as collector:
        found = collector.targets(selected(names, host, cgroup, label))
        _check_known(collector, set(host or ()) - {target.host_id for target in found})
        if mappings:
            names_now = [target.name for target in found if target.end_reason is None]
            _mappings(collector, names_now, as_json=wants_json(context, json))
            return
    if wants_json(context, json):
        print_lines(json_lines.plain(found))
    else:
        printer().targets(found)


@app.command(epilog="Example: wetink track host-1 4711")
def track(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="As `wetink hosts` prints it.")],
    pid: Annotated[int, typer.Argument(metavar="PID", help="In the pid namespace of the host's agent.")],
    *,
    json: JsonOption = False,
) -> None:
    """Begin to track a process.

    To track a tracked process changes nothing.
    """
    with connected(context) as collector:
        found = collector.track(host, pid)
    if wants_json(context, json):
        print_lines(json_lines.plain([found]))
    else:
        printer().targets([found])


@app.command(epilog="Example: wetink untrack host-1/4711")
def untrack(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="HOST/PID@START or HOST/PID.")],
    *,
    json: JsonOption = False,
) -> None:
    """Stop tracking a process.

    Prints the target as it ended.
    """
    with connected(context) as collector:
        found = collector.untrack(target)
    if wants_json(context, json):
        print_lines(json_lines.plain([found]))
    else:
        printer().targets([found])


@app.command(epilog="Example: wetink barrier host-1/4711 host-1/4712 --timeout 2")
def barrier(
    context: typer.Context,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    timeout: TimeoutOption = BARRIER_SECONDS,
    hold: HoldOption = "",
    hold_for: HoldForOption = None,
    *,
    freeze: FreezeOption = False,
    whole_cgroups: WholeCgroupsOption = False,
    json: JsonOption = False,
) -> None:
    """Make every write from before now known.

    Prints how far each target has come, and a cursor that means "from now on". Exits with 3 if one was not reached, or
    was to be frozen and was not.
    """
    how = _freeze(hold, hold_for, freeze=freeze, whole_cgroups=whole_cgroups)
    with connected(context) as collector:
        result = collector.barrier(needed(names, host, cgroup, label), barrier_seconds=timeout, freeze=how or False)
    if wants_json(context, json):
        print_lines(json_lines.barrier(result))
    else:
        printer().barrier(result)
    explain(result.targets.values())
    if not result.complete:
        raise typer.Exit(ExitCode.UNAVAILABLE)


@app.command(epilog="Example: wetink dirty host-1/4711 --since CURSOR --barrier --json")
def dirty(
    context: typer.Context,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    since: SinceOption = "",
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            help="With --barrier, --freeze or --hold: how long it waits for the agents, at most 60.",
            show_default=f"{BARRIER_SECONDS:g}",
        ),
    ] = None,
    hold: HoldOption = "",
    hold_for: HoldForOption = None,
    *,
    harvest: Annotated[bool, typer.Option("--barrier", help="Harvest on the hosts first.")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict/--no-strict",
            help="Whether pages to which something may have written unseen count as written. Finish strictly.",
        ),
    ] = True,
    freeze: FreezeOption = False,
    whole_cgroups: WholeCgroupsOption = False,
    json: JsonOption = False,
) -> None:
    """Print which pages are dirty since a cursor.

    Copy what is written, drop what vanished, finish, and only then ask again with the new cursor. Without a cursor, and
    after exit code 5, drop all you hold first. Where it is not complete, standard error says why; exits with 3 if that
    was a barrier not reached, or a target not frozen. Targets are harvested too where they are to be frozen.
    """
    how = _freeze(hold, hold_for, freeze=freeze, whole_cgroups=whole_cgroups)
    harvest = harvest or how is not None
    if timeout is not None and not harvest:
        message = "--timeout says how long a barrier waits: give --barrier, --freeze or --hold too"
        raise Failure(message, ExitCode.USAGE)
    with connected(context) as collector:
        answer = collector.dirty(
            needed(names, host, cgroup, label),
            since,
            barrier=harvest,
            barrier_seconds=BARRIER_SECONDS if timeout is None else timeout,
            strictness=wetink_client.Strictness.STRICT if strict else wetink_client.Strictness.LENIENT,
            freeze=how or False,
        )
    if wants_json(context, json):
        print_lines(json_lines.dirty(answer))
    else:
        printer().dirty(answer)
    explain(answer.targets.values())
    if harvest and not answer.complete:
        raise typer.Exit(ExitCode.UNAVAILABLE)


@app.command(epilog="Example: wetink thaw host-1/4711 --hold move-7")
def thaw(
    context: typer.Context,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    hold: Annotated[
        str, typer.Option("--hold", metavar="NAME", help="End this hold.", show_default="every hold on them")
    ] = "",
    *,
    json: JsonOption = False,
) -> None:
    """Let targets go on that are held frozen.

    Exits with 3 if an agent could not be asked: its targets go on when the hold's time is over. With 4 if one was not
    held by the hold that is named, any more or at all: it may have run for a while.
    """
    with connected(context) as collector:
        found = collector.thaw(needed(names, host, cgroup, label), hold).values()
    if wants_json(context, json):
        print_lines(json_lines.thawed(found))
    else:
        printer().thawed(found)
    for message in sorted({one.message for one in found if one.message}):
        typer.echo(f"wetink: {message}", err=True)
    if any(one.message for one in found):
        raise typer.Exit(ExitCode.UNAVAILABLE)
    loose = [one.name for one in found if not one.held]
    if hold and loose:
        typer.echo(f"wetink: hold {hold!r} was not on {', '.join(loose)}: it may have run before", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND)


@app.command(epilog="Example: wetink watch host-1/4711 --count 10")
def watch(
    context: typer.Context,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    since: SinceOption = "",
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0, help="The least time between two answers.")
    ] = 0.0,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="End after N answers.")] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Print what gets dirty as it does.

    First what is dirty since the cursor, then each time rounds came in. Without a target: on all hosts known now. With
    --json each line is as that of `wetink dirty`; otherwise one line of counts a target. Where an answer is not
    complete, standard error says why, and again only when the reason changes. Ends when all targets that were named
    have exited or were untracked.
    """
    with connected(context) as collector:
        selection = selected(names, host, cgroup, label) or _all_hosts(collector)
        said: dict[str, str] = {}
        if wants_json(context, json):
            for answer in islice(collector.watch(selection, since, interval_seconds_min=interval), count):
                print_lines(json_lines.dirty(answer))
                said = explain(answer.targets.values(), said)
        else:
            for counts in islice(collector.watch_counts(selection, since, interval_seconds_min=interval), count):
                printer().counts(counts)
                said = explain(counts.targets.values(), said)


@app.command(epilog="Example: wetink verify host-1/4711 --interval 10")
def verify(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="HOST/PID@START or HOST/PID.")],
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0, help="How long to wait between the two looks.")
    ] = 2.0,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Do it N times, each from afresh.")] = 1,
    pid: Annotated[
        int | None, typer.Option("--pid", metavar="PID", min=1, help="Its process id here, if it has another.")
    ] = None,
    *,
    strict: Annotated[
        bool,
        typer.Option("--strict/--no-strict", help="Without: look also for what changed where nobody claims to see it."),
    ] = True,
    json: JsonOption = False,
) -> None:
    """Look for pages that changed and were called clean.

    Runs on the target's host, as root: it hashes the pages of the process twice, and compares those that the answers
    between the looks call clean. Content and hashes stay here. Exits with 1 if there are any that changed, and with
    another code if it could not be tried: 3, where none fits better.
    """
    from wetink_client import clean  # noqa: PLC0415 - as above

    if not interval <= VERIFY_SECONDS_MAX:  # which is so of NaN too
        message = f"{interval:g} s is no time to wait between two looks: at most {VERIFY_SECONDS_MAX:g} is possible"
        raise Failure(message, ExitCode.USAGE)
    is_any = False
    with _verifying(context) as collector:
        info = next(iter(collector.targets(target)), None)
        if info is None:
            message = f"target {target} is not known here: `wetink targets` prints those that are"
            raise Failure(message, ExitCode.NOT_FOUND)
        strictness = wetink_client.Strictness.STRICT if strict else wetink_client.Strictness.LENIENT
        try:
            clean.check_here(info, pid or info.pid)
            with clean.Look(pid or info.pid) as look:
                for _ in range(rounds):
                    verification = clean.Verification(collector, info.name, look, strictness=strictness)
                    time.sleep(interval)
                    verdict = verification.finish()
                    is_any = is_any or bool(verdict.changed)
                    if wants_json(context, json):
                        print_lines(json_lines.verdict(info.name, verdict))
                    else:
                        printer().verdict(info.name, verdict)
        except clean.NotVerified as error:
            raise Failure(str(error), ExitCode.UNAVAILABLE) from error
    if is_any:
        raise typer.Exit(ExitCode.FAILURE)


@app.command(epilog="Example: wetink events host-1/4711 --follow")
def events(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="HOST/PID@START or HOST/PID.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is written from now on.")] = False,
    json: JsonOption = False,
) -> None:
    """Print who wrote: time, thread, address, code address and mapping of each first write to a page in a round.

    Needs an agent that streams events (`wetink-agent --events`). The collector keeps a bounded number of them; where
    some are missing, a line says how many.
    """
    is_any = False
    with connected(context) as collector:
        for batch in collector.events(target, follow=follow):
            is_any = True
            if wants_json(context, json):
                print_lines(json_lines.events(target, batch))
            else:
                printer().events(batch)
    if not is_any:
        typer.echo(f"no events of {target} are kept here: does its agent run with --events?", err=True)


insight_commands.add_to(app)
migration_commands.add_to(app)
app.add_typer(session_commands.app, name="session")


@app.command(epilog="Example: wetink health --collector unix:/run/wetink/health")
def health(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Option("--collector", metavar="ADDR", help="As before the subcommand; a --health address will do."),
    ] = None,
    service: Annotated[
        str,
        typer.Option("--service", metavar="NAME", help="Of this service, not of the whole: wetink.v1.DirtyService."),
    ] = "",
) -> None:
    """Ask whether a collector or an agent serves, as a container's health check does.

    Exits with 0 if it does, 1 if it is there and does not, 3 if nobody answers.
    """
    # Not the client: it needs what page sets need, and a health check is run every few seconds.
    from wetink_client.health import check  # noqa: PLC0415

    where = address or context.obj.address
    what = f"{where}, {service}," if service else where
    try:
        serves = check(where, service, context.obj.security)
    except wetink_client.WetinkError as error:
        raise Failure(str(error), exit_code_of(error)) from error
    if not serves:
        message = f"{what} is there and does not serve now: it starts, drains, or cannot write; see its log"
        raise Failure(message)
    typer.echo(f"{what} serves")


def main() -> NoReturn:
    """Run the command and exit."""
    # What gRPC logs of a failed connection, on standard error, is in the sentence too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    run(app, "wetink")


@contextmanager
def _verifying(context: typer.Context) -> "Iterator[Collector]":
    """Connect as ``connected``, and keep the exit code 1 for pages that changed."""
    try:
        with connected(context) as collector:
            yield collector
    except Failure as error:
        if error.exit_code == ExitCode.FAILURE:
            raise Failure(str(error), ExitCode.UNAVAILABLE) from error
        raise


def _freeze(hold: str, hold_for: float | None, *, freeze: bool, whole_cgroups: bool) -> "Freeze | None":
    seconds = hold_seconds(hold, hold_for)
    if not freeze and not hold:
        if whole_cgroups:
            message = "--whole-cgroups says what --freeze or --hold may freeze: give one of them"
            raise Failure(message, ExitCode.USAGE)
        return None
    return wetink_client.Freeze(seconds, hold, whole_cgroups)


def _mappings(collector: "Collector", names: Sequence[str], *, as_json: bool) -> None:
    """Print what targets have mapped; of which that is not known, standard error says so, and it is a failure."""
    unknown = 0
    for name in names:
        try:
            found = collector.mappings(name)
        except wetink_client.MappingsUnknown as error:
            unknown += 1
            typer.echo(str(error), err=True)
            continue
        except wetink_client.NotFound:
            continue  # it has ended and was forgotten meanwhile
        if as_json:
            print_lines(json_lines.plain([found]))
        else:
            printer().mappings(found)
    if unknown:
        raise typer.Exit(ExitCode.FAILURE)


def _all_hosts(collector: "Collector") -> "Selection":
    hosts = tuple(host.host_id for host in collector.hosts())
    if not hosts:
        message = "no host has an agent here yet, so there is nothing to watch"
        raise Failure(message, ExitCode.NOT_FOUND)
    return wetink_client.Selection(hosts=hosts)


def _check_known(collector: "Collector", hosts: set[str]) -> None:
    """Refuse a host without targets that nobody knows: most likely its name is misspelled.

    Raises:
        Failure: One is not known.
    """
    known = {host.host_id for host in collector.hosts()} if hosts else set()
    unknown = sorted(hosts - known)
    if unknown:
        message = f"host {unknown[0]!r} is not known: `wetink hosts` prints those that are"
        raise Failure(message, ExitCode.NOT_FOUND)
