"""The commands of ``wetink`` about migrations: how one would go, when, of what, in which order, and how it went."""

import json as json_module
import math
import re
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Final

import typer

# Its names are imported when they are used: `wetink --help` waits for none of them.
import wetink_client
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
    from wetink_client import MigrationPlan
    from wetink_client.migration_tables import MigrationPrinter

_FACTORS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNIT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)(i?)(b|bytes?|bits?)?(?:/s|ps)?", re.IGNORECASE)

BANDWIDTH_HELP: Final = "Bytes a second: 125000000, 125MB or 119MiB; bits a second: 1Gbit or 1Gbps."

TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="HOST/PID@START or HOST/PID.")]
BandwidthOption = Annotated[str, typer.Option("--bandwidth", metavar="SPEED", help=BANDWIDTH_HELP)]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="When copying stops: downtime, phaul, go-phaul, incus, xen, cloud-hypervisor, qemu, ovirt, "
        "kubevirt-stall or kubevirt-ramp.",
    ),
]
DowntimeOption = Annotated[
    float | None,
    typer.Option("--downtime", metavar="SECONDS", help="The downtime aimed at. Without it: the policy's own."),
]
ThrottleOption = Annotated[
    bool, typer.Option("--auto-converge", help="Let the policy take time from the target (qemu, cloud-hypervisor).")
]
RoundCostOption = Annotated[
    float | None,
    typer.Option("--round-cost", metavar="SECONDS", help="What a round takes besides its pages. Without it: learned."),
]
FixedCostOption = Annotated[
    float | None,
    typer.Option("--fixed-cost", metavar="SECONDS", help="What a downtime takes besides pages. Without it: learned."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command(epilog="Example: wetink predict host-1/4711 --bandwidth 1Gbit --bandwidth 10Gbit --downtime 0.1")(
        predict
    )
    app.command(epilog="Example: wetink window host-1/4711 --bandwidth 1Gbit")(window)
    app.command(epilog="Example: wetink rank --host host-1 --bandwidth 1Gbit --limit 5")(rank)
    app.command("drain-plan", epilog="Example: wetink drain-plan host-1 --bandwidth 10Gbit --parallel 4")(drain_plan)
    app.command(
        "report-migration",
        epilog="Example: wetink report-migration host-1/4711 --bandwidth 1Gbit --round 75000000:0.61 "
        "--round 9000000:0.08 --final 1200000 --downtime 0.03 --met",
    )(report_migration)
    app.command(epilog="Example: wetink accuracy --limit 10")(accuracy)


def predict(
    context: typer.Context,
    target: TargetArgument,
    bandwidths: Annotated[
        list[str], typer.Option("--bandwidth", metavar="SPEED", help=f"{BANDWIDTH_HELP} May be repeated.")
    ],
    policy: PolicyOption = "downtime",
    downtime: DowntimeOption = None,
    round_cost: RoundCostOption = None,
    fixed_cost: FixedCostOption = None,
    *,
    auto_converge: ThrottleOption = False,
    json: JsonOption = False,
) -> None:
    """Say how a migration would go, from what its target has written so far.

    For each bandwidth: whether it converges, what it sends, how long the target stands still, and what stays dirty
    however long copying goes on.
    """
    plan = _plan(policy, downtime, round_cost, fixed_cost, auto_converge=auto_converge)
    with connected(context) as collector:
        found = collector.predict(target, [bandwidth_of(speed) for speed in bandwidths], plan)
    if wants_json(context, json):
        shared = asdict(found)
        each = shared.pop("predictions")
        print_lines(json_module.dumps({"target": found.basis.name, **prediction, **shared}) for prediction in each)
    else:
        _printer().predictions(found)


def window(
    context: typer.Context,
    target: TargetArgument,
    bandwidth: BandwidthOption,
    policy: PolicyOption = "downtime",
    downtime: DowntimeOption = None,
    round_cost: RoundCostOption = None,
    fixed_cost: FixedCostOption = None,
    horizon: Annotated[
        float | None, typer.Option("--horizon", metavar="SECONDS", help="How far to look ahead. Without it: an hour.")
    ] = None,
    *,
    auto_converge: ThrottleOption = False,
    json: JsonOption = False,
) -> None:
    """Say when to migrate a target that writes in cycles.

    The next stretch in which it writes little, long enough for the migration. Where there is none, the reason.
    """
    plan = _plan(policy, downtime, round_cost, fixed_cost, auto_converge=auto_converge)
    with connected(context) as collector:
        found = collector.find_window(target, bandwidth_of(bandwidth), plan, horizon_seconds=horizon)
    if wants_json(context, json):
        print_lines([json_module.dumps({"target": found.basis.name, **asdict(found)})])
    else:
        _printer().window(found)


def rank(
    context: typer.Context,
    bandwidth: BandwidthOption,
    names: TargetsArgument = None,
    host: HostsOption = None,
    cgroup: CgroupsOption = None,
    label: LabelsOption = None,
    tree: TreesOption = None,
    policy: PolicyOption = "downtime",
    downtime: DowntimeOption = None,
    round_cost: RoundCostOption = None,
    fixed_cost: FixedCostOption = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Print the first N.")] = None,
    *,
    auto_converge: ThrottleOption = False,
    json: JsonOption = False,
) -> None:
    """Say which targets are the cheapest to move.

    Those that converge first, and among them those that send the fewest bytes.
    """
    plan = _plan(policy, downtime, round_cost, fixed_cost, auto_converge=auto_converge)
    with connected(context) as collector:
        selection = needed([*(names or ()), *in_trees(collector, tree)], host, cgroup, label)
        found = collector.rank(selection, bandwidth_of(bandwidth), plan, limit=limit)
    if wants_json(context, json):
        print_lines(json_module.dumps({"left_out": False, **asdict(one)}) for one in found.candidates)
        print_lines(json_module.dumps({"left_out": True, **asdict(one)}) for one in found.left_out)
    else:
        _printer().ranking(found)


def drain_plan(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="As `wetink hosts` prints it.")],
    bandwidth: Annotated[
        str, typer.Option("--bandwidth", metavar="SPEED", help=f"What the link carries in all. {BANDWIDTH_HELP}")
    ],
    policy: PolicyOption = "downtime",
    downtime: DowntimeOption = None,
    round_cost: RoundCostOption = None,
    fixed_cost: FixedCostOption = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", metavar="N", help="No more than N migrations at once.")
    ] = None,
    *,
    auto_converge: ThrottleOption = False,
    json: JsonOption = False,
) -> None:
    """Say in which order, and how many at once, to move every target off a host.

    Prints who cannot be moved, and why; and how long the naive orders would take.
    """
    plan = _plan(policy, downtime, round_cost, fixed_cost, auto_converge=auto_converge)
    with connected(context) as collector:
        found = collector.plan_drain(host, bandwidth_of(bandwidth), plan, parallel_max=parallel)
    if wants_json(context, json):
        print_lines([json_module.dumps({"host": host, **asdict(found)})])
    else:
        _printer().drain_plan(found)


def report_migration(
    context: typer.Context,
    target: TargetArgument,
    bandwidth: BandwidthOption,
    rounds: Annotated[
        list[str],
        typer.Option("--round", metavar="BYTES:SECONDS", help="Of each round while the target ran, in their order."),
    ],
    final: Annotated[int, typer.Option("--final", metavar="BYTES", help="Sent while the target stood still.")] = 0,
    downtime: Annotated[
        float | None,
        typer.Option("--downtime", metavar="SECONDS", help="How long that was. Without it: it was not switched over."),
    ] = None,
    policy: PolicyOption = "downtime",
    prediction: Annotated[
        str, typer.Option("--prediction", metavar="ID", help="From `wetink predict`. Without it: the newest that fits.")
    ] = "",
    *,
    met: Annotated[
        bool, typer.Option("--met", help="What was left fitted into the downtime that was aimed at.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say how a migration went.

    The prediction is scored by it, and what rounds and downtimes cost besides pages is learned from it.
    """
    report = wetink_client.MigrationReport(
        target=target,
        bandwidth_bytes_per_second=bandwidth_of(bandwidth),
        rounds=[_round_of(text) for text in rounds],
        final_bytes=final,
        downtime_seconds=downtime,
        met_target=met,
        policy=policy,
        prediction_id=prediction,
    )
    with connected(context) as collector:
        found = collector.report_migration(report)
    if wants_json(context, json):
        print_lines([json_module.dumps(asdict(found))])
    else:
        _printer().reported(found)


def accuracy(
    context: typer.Context,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="The newest N of them. Without it: 100.")
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Say how far predictions were off from what was reported.

    Since the collector started; with --json one line for each migration, the newest first.
    """
    with connected(context) as collector:
        found = collector.accuracy(limit=limit)
    if wants_json(context, json):
        print_lines(json_module.dumps(asdict(one)) for one in found.errors)
    else:
        _printer().accuracy(found)


def bandwidth_of(text: str) -> int:
    """Read a bandwidth in bytes a second.

    Raises:
        Failure: It is none.
    """
    found = _UNIT.fullmatch(text.strip())
    if found is None:
        message = f"{text[:64]!r} is no bandwidth: write bytes a second, as 125000000, 125MB or 119MiB, or 1Gbit"
        raise Failure(message, ExitCode.USAGE)
    number, prefix, binary, unit = found.groups()
    factor = _FACTORS[prefix.lower()]
    if binary:
        factor = 1024 ** list(_FACTORS).index(prefix.lower())
    # In fractions: of a large number, a float's digits would not do.
    # As ever among network people: b is a bit, and B a byte.
    bits = 8 if unit == "b" or (unit or "").lower().startswith("bit") else 1
    return math.floor(Fraction(number) * factor / bits)


def _plan(
    policy: str, downtime: float | None, round_cost: float | None, fixed_cost: float | None, *, auto_converge: bool
) -> "MigrationPlan":
    return wetink_client.MigrationPlan(
        policy=policy,
        downtime_target_seconds=downtime,
        auto_converge=auto_converge,
        round_seconds=round_cost,
        fixed_seconds=fixed_cost,
    )


def _round_of(text: str) -> tuple[int, float]:
    size, _, seconds = text.partition(":")
    try:
        return int(size), float(seconds)
    except ValueError as error:
        message = f"{text[:64]!r} is no round: write the bytes it sent and the seconds it took, as 9000000:0.08"
        raise Failure(message, ExitCode.USAGE) from error


def _printer() -> "MigrationPrinter":
    """Make what prints for people: it needs rich, which lines of JSON do not."""
    from wetink_client.migration_tables import MigrationPrinter  # noqa: PLC0415

    return MigrationPrinter()
