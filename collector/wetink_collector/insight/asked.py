"""What is asked of predictions, checked: bandwidths, and what a migration is like."""

import math
from collections.abc import Sequence
from typing import Final

from wetink.v1 import prediction_pb2 as pb
from wetink_collector.errors import PolicyUnknown, RequestMalformed
from wetink_collector.insight.accuracy import Costs, Report
from wetink_collector.insight.policy_names import POLICIES
from wetink_collector.insight.prediction import BANDWIDTH_MAX, Plan

BANDWIDTHS_MAX: Final = 64
"""As the contract says."""

PLAN_SECONDS_MAX: Final = 3600.0
"""As the contract says: downtimes and fixed costs of an hour are no live migrations."""

HORIZON_SECONDS_DEFAULT: Final = 3600.0
"""As the contract says."""

HORIZON_SECONDS_MAX: Final = 86_400.0
"""As the contract says."""

ROUNDS_MAX: Final = 4096
"""As the contract says."""

REPORT_BYTES_MAX: Final = 1 << 62
"""As the contract says: more than a year over the fastest link."""

REPORT_SECONDS_MAX: Final = 1e6
"""Bound on the time of a round or a downtime that is reported: eleven days."""


def bandwidths(values: Sequence[int]) -> list[int]:
    """Accept bandwidths.

    Raises:
        RequestMalformed: There are none, or too many, or one cannot be.
    """
    if not 1 <= len(values) <= BANDWIDTHS_MAX:
        message = f"{len(values)} bandwidths are asked for; give from 1 to {BANDWIDTHS_MAX}"
        raise RequestMalformed(message)
    return [bandwidth(value) for value in values]


def bandwidth(value: int) -> int:
    """Accept a bandwidth in bytes a second.

    Raises:
        RequestMalformed: It cannot be one.
    """
    if not 1 <= value <= BANDWIDTH_MAX:
        message = f"a bandwidth of {value} bytes a second cannot be; give from 1 to {BANDWIDTH_MAX}"
        raise RequestMalformed(message)
    return value


def plan(asked: pb.MigrationPlan, learned: Costs) -> Plan:
    """Accept what a migration is like, with the costs that are learned where none are given.

    Raises:
        PolicyUnknown: No policy has the name.
        RequestMalformed: A time is out of its bounds, or the policy cannot throttle.
    """
    name = policy(asked.policy)
    named = POLICIES[name]
    if asked.auto_converge and not named.may_throttle:
        able = " and ".join(known for known, each in POLICIES.items() if each.may_throttle)
        message = f"policy {name} takes no time from its target; of those that are known, {able} do"
        raise RequestMalformed(message)
    return Plan(
        policy=name,
        downtime_seconds=_seconds(asked.downtime_target_seconds, "downtime_target_seconds") or named.downtime_seconds,
        auto_converge=asked.auto_converge,
        round_seconds=(
            _seconds(asked.round_seconds, "round_seconds") if asked.HasField("round_seconds") else learned.round_seconds
        ),
        fixed_seconds=(
            _seconds(asked.fixed_seconds, "fixed_seconds") if asked.HasField("fixed_seconds") else learned.fixed_seconds
        ),
    )


def policy(name: str) -> str:
    """Accept the name of a policy.

    Raises:
        PolicyUnknown: None has it.
    """
    found = name or "downtime"
    if found not in POLICIES:
        message = f"no stop policy is called {found[:64]!r}; there are {', '.join(POLICIES)}"
        raise PolicyUnknown(message)
    return found


def costs(used: Plan, asked: pb.MigrationPlan, learned: Costs) -> pb.MigrationCosts:
    """Say what a migration was counted with."""
    given = asked.HasField("round_seconds") and asked.HasField("fixed_seconds")
    return pb.MigrationCosts(
        policy=used.policy,
        downtime_target_seconds=used.downtime_seconds,
        round_seconds=used.round_seconds,
        fixed_seconds=used.fixed_seconds,
        report_count=0 if given else learned.report_count,
    )


def horizon(seconds: float) -> float:
    """Accept how far to look ahead.

    Raises:
        RequestMalformed: It is out of its bounds.
    """
    return _seconds(seconds, "horizon_seconds", HORIZON_SECONDS_MAX) or HORIZON_SECONDS_DEFAULT


def report(asked: pb.ReportMigrationRequest) -> Report:
    """Accept a report.

    Raises:
        RequestMalformed: Its numbers cannot be.
        PolicyUnknown: No policy has the name.
    """
    if len(asked.round_bytes) != len(asked.round_seconds):
        message = f"the report has bytes of {len(asked.round_bytes)} rounds and times of {len(asked.round_seconds)}"
        raise RequestMalformed(message)
    if not 1 <= len(asked.round_bytes) <= ROUNDS_MAX:
        message = f"the report has {len(asked.round_bytes)} rounds; give from 1 to {ROUNDS_MAX}"
        raise RequestMalformed(message)
    if sum(asked.round_bytes) + asked.final_bytes > REPORT_BYTES_MAX:
        message = f"the report has more than {REPORT_BYTES_MAX} bytes in all"
        raise RequestMalformed(message)
    downtime_seconds = _seconds(asked.downtime_seconds, "downtime_seconds", REPORT_SECONDS_MAX)
    if not asked.switched and (downtime_seconds or asked.final_bytes):
        message = "the report has a downtime, and says that the target was not switched over"
        raise RequestMalformed(message)
    return Report(
        bytes_a_second=bandwidth(asked.bandwidth_bytes_per_second),
        policy=policy(asked.policy),
        round_bytes=tuple(asked.round_bytes),
        round_seconds=tuple(_seconds(seconds, "round_seconds", REPORT_SECONDS_MAX) for seconds in asked.round_seconds),
        final_bytes=asked.final_bytes,
        downtime_seconds=downtime_seconds,
        switched=asked.switched,
        met_target=asked.met_target,
    )


def _seconds(value: float, name: str, most: float = PLAN_SECONDS_MAX) -> float:
    if not (math.isfinite(value) and 0 <= value <= most):
        message = f"{name} is {value:g}; give from 0 to {most:g} seconds"
        raise RequestMalformed(message)
    return value
