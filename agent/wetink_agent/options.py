"""What the options of ``wetink-agent`` may be, and what is made of their words."""

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Final

import structlog
import typer

from wetink.command_line import ExitCode, Failure
from wetink.names import NameMalformed, check_address, check_host_id, parse_labels
from wetink.tls import Security, SecurityUnusable
from wetink_agent.backends import HAZARDS, BackendName, Choice, choose
from wetink_agent.errors import KernelLacks
from wetink_agent.labels import GIVEN_MAX
from wetink_agent.pace import Budget
from wetink_agent.replay import Pace

INTERVAL_SECONDS_MIN: Final = 0.01
INTERVAL_SECONDS_MAX: Final = 3600.0

SHARE_MAX: Final = 1.0

EVENTS_RING_BYTES_MIN: Final = 64 << 10
EVENTS_RING_BYTES_MAX: Final = 256 << 20

_SIZE: Final = re.compile(r"(?P<number>[0-9]+)(?P<unit>KiB|MiB)")
_SHIFTS: Final = {"KiB": 10, "MiB": 20}
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_PERCENT: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?%")
_INTERVAL: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>ms|s|m)")

EVENTS_RING: Final = "512KiB"

EventsOption = Annotated[
    bool,
    typer.Option(
        "--events",
        envvar="WETINK_AGENT_EVENTS",
        help="Stream thread, time and code address of each first write too. Needs CAP_PERFMON.",
    ),
]
EventsRingOption = Annotated[
    str,
    typer.Option(
        envvar="WETINK_AGENT_EVENTS_RING",
        metavar="SIZE",
        help="Memory for events between kernel and agent, for each CPU and target: 512KiB, 2MiB.",
    ),
]
AcceptRiskOption = Annotated[
    bool,
    typer.Option(
        "--accept-risk",
        envvar="WETINK_AGENT_ACCEPT_RISK",
        help="Track with wp-sync also targets that it can harm.",
    ),
]

log = structlog.get_logger()


def pace_of(speed: float, targets: int, *, loop: bool) -> Pace:
    """Say how a recording is played.

    Raises:
        Failure: It cannot be played so.
    """
    try:
        return Pace(speed, loop, targets)
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE) from error


def backend_of(text: str, ring: str, *, accept_risk: bool, follow_fork: bool = False) -> Choice:
    """Pick the backend.

    Raises:
        Failure: There is none of this name, or this kernel cannot.
    """
    try:
        name = BackendName(text)
    except ValueError as error:
        message = f"--backend {text!r} is none of {', '.join(BackendName)} and replay:FILE"
        raise Failure(message, ExitCode.USAGE) from error
    try:
        choice = choose(name, events_ring_bytes=_ring_bytes(ring) if ring else 0, accept_risk=accept_risk)
    except KernelLacks as error:
        raise Failure(str(error)) from error
    if ring and choice.name is BackendName.SOFT_DIRTY:
        message = "--events goes with wp-async alone, and this kernel tracks with soft-dirty: leave it out"
        raise Failure(message, ExitCode.USAGE)
    if follow_fork and choice.name is not BackendName.WP_ASYNC:
        message = f"--follow-fork goes with wp-async alone, and this agent tracks with {choice.name}: leave it out"
        raise Failure(message, ExitCode.USAGE)
    for hazard in HAZARDS[choice.name]:
        log.warning("hazard", backend=str(choice.name), what=hazard)
    return replace(choice, follow_fork=follow_fork)


def _ring_bytes(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    size_bytes = int(match["number"]) << _SHIFTS[match["unit"]] if match else 0
    if not EVENTS_RING_BYTES_MIN <= size_bytes <= EVENTS_RING_BYTES_MAX or size_bytes & (size_bytes - 1):
        message = f"--events-ring {text!r} is no power of two from 64KiB to 256MiB: write 512KiB or 2MiB"
        raise Failure(message, ExitCode.USAGE)
    return size_bytes


def budget_of(
    interval: str,
    interval_min: str | None,
    interval_max: str | None,
    agent_share: str | None,
    target_share: str | None,
) -> Budget:
    """Say how rounds are paced.

    Raises:
        Failure: The options contradict each other, or one is no time or share.
    """
    fixed = seconds_of(interval)
    shortest = fixed if interval_min is None else seconds_of(interval_min, "--interval-min")
    longest = fixed if interval_max is None else seconds_of(interval_max, "--interval-max")
    if shortest > longest:
        message = (
            f"--interval-min {interval_min or interval} is longer than --interval-max {interval_max or interval}: "
            "give both, the shorter one first"
        )
        raise Failure(message, ExitCode.USAGE)
    if shortest == longest and (agent_share or target_share):
        message = (
            "--agent-share and --target-share say what an adapting interval keeps to: "
            "they need --interval-min and --interval-max"
        )
        raise Failure(message, ExitCode.USAGE)
    shares = Budget()
    return Budget(
        shortest,
        longest,
        _share(agent_share, "--agent-share") if agent_share else shares.agent_share,
        _share(target_share, "--target-share") if target_share else shares.target_share,
    )


def _share(text: str, option: str) -> float:
    match = _PERCENT.fullmatch(text.strip())
    share = float(match["number"]) / 100 if match else 0.0
    if not 0 < share <= SHARE_MAX:
        message = f"{option} {text!r} is no share from over 0% to {SHARE_MAX:.0%}: write 2% or 0.5%"
        raise Failure(message, ExitCode.USAGE)
    return share


def seconds_of(text: str, option: str = "--interval") -> float:
    """Read a time like 500ms, in seconds.

    Raises:
        Failure: It is none, or out of bounds.
    """
    match = _INTERVAL.fullmatch(text.strip())
    seconds = float(match["number"]) * _UNITS[match["unit"]] if match else 0.0
    if not INTERVAL_SECONDS_MIN <= seconds <= INTERVAL_SECONDS_MAX:
        message = f"{option} {text!r} is no time from 10ms to 60m: write 500ms, 1s or 2m"
        raise Failure(message, ExitCode.USAGE)
    return seconds


def pattern_of(text: str) -> re.Pattern[str]:
    """Read a regular expression.

    Raises:
        Failure: It is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        message = f"--command {text!r} is no regular expression: {error}"
        raise Failure(message, ExitCode.USAGE) from error


def labels_of(texts: Iterable[str]) -> Mapping[str, str]:
    """Read ``KEY=VALUE`` texts.

    Raises:
        Failure: One is none, or there are too many.
    """
    try:
        labels = parse_labels(texts)
    except NameMalformed as error:
        message = f"{error} (--label)"
        raise Failure(message, ExitCode.USAGE) from error
    if len(labels) > GIVEN_MAX:
        message = f"{len(labels)} labels are too many: give at most {GIVEN_MAX} with --label"
        raise Failure(message, ExitCode.USAGE)
    return labels


def security_of(security: Security, collector: str) -> Security:
    """Accept certificates and token, as they are now.

    Raises:
        Failure: One cannot be used, or is missing beside another.
    """
    try:
        security.credentials(collector)
    except SecurityUnusable as error:
        raise Failure(str(error), ExitCode.USAGE) from error
    return security


def address_of(text: str, option: str = "--collector") -> str:
    """Accept an address.

    Raises:
        Failure: It is none.
    """
    try:
        return check_address(text)
    except NameMalformed as error:
        message = f"{error} ({option})"
        raise Failure(message, ExitCode.USAGE) from error


def host_id_of(text: str | None) -> str:
    """Accept a host id; None means the name of this host.

    Raises:
        Failure: It cannot be one.
    """
    try:
        return check_host_id(text if text is not None else socket.gethostname())
    except NameMalformed as error:
        message = f"{error} (--host-id)"
        raise Failure(message, ExitCode.USAGE) from error
