"""What the commands about migrations print for people."""

import sys
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console

from wetink_client.tables import WIDTH_MAX, age_text, bytes_text, table_of
from wetink_client.values import NANOSECONDS_A_SECOND

if TYPE_CHECKING:
    from wetink_client import (
        Accuracy,
        DrainPlan,
        ErrorStatistics,
        MigrationCosts,
        PredictionBasis,
        PredictionError,
        Predictions,
        Ranking,
        Reported,
        WindowFound,
    )

SECONDS_SHORT: Final = 1.0
"""Times below this are told in milliseconds."""


class MigrationPrinter:
    """Prints to standard output, at one point in time."""

    def __init__(self, time_ns: int | None = None) -> None:
        """Look at standard output.

        Args:
            time_ns: What is taken for now, in nanoseconds since the Unix epoch.
        """
        width = None if sys.stdout.isatty() else WIDTH_MAX
        self._console = Console(width=width, markup=False, highlight=False, emoji=False)
        self._time_ns = time.time_ns() if time_ns is None else time_ns

    def predictions(self, found: "Predictions") -> None:
        """Print how a migration would go."""
        self._basis(found.basis)
        table = table_of(
            ">BANDWIDTH",
            "CONVERGES",
            "ENDS",
            ">ROUNDS",
            ">SENT",
            ">TIME",
            ">DOWNTIME",
            ">P95",
            ">STAYS DIRTY",
            "CONFIDENCE",
        )
        for one in found.predictions:
            table.add_row(
                _speed(one.bandwidth_bytes_per_second),
                "yes" if one.converges_when_busy else "mostly" if one.converges else "no",
                str(one.cause),
                f"{one.round_count:,}",
                bytes_text(one.total_bytes),
                _seconds(one.total_seconds),
                _seconds(one.downtime_p50_seconds),
                _seconds(one.downtime_p95_seconds),
                bytes_text(one.plateau_bytes),
                str(one.confidence),
            )
        self._console.print(table)
        self._costs(found.costs)
        smallest = found.smallest_bandwidth_bytes_per_second
        least = _speed(smallest) if smallest else "none would do"
        self._say(f"smallest bandwidth that converges: {least}")
        for one in found.predictions:
            where = _speed(one.bandwidth_bytes_per_second)
            if one.hold_back:
                held = one.hold_back
                self._say(
                    f"{where}: held back to the end, {held.page_count:,} hot pages save "
                    f"{bytes_text(held.saved_bytes)}; downtime {_seconds(held.downtime_seconds)}"
                )
            if one.confidence_reason:
                self._say(f"{where}: confidence is {one.confidence}: {one.confidence_reason}")
        self._say(f"prediction {found.prediction_id}")

    def window(self, found: "WindowFound") -> None:
        """Print when to begin."""
        self._basis(found.basis)
        if found.period_seconds:
            self._say(f"period {_seconds(found.period_seconds)}, autocorrelation {found.period_strength:.2f}")
        self._say(f"the migration takes {_seconds(found.migration_seconds)}")
        if found.window is None:
            self._say(f"no window: {found.reason}")
            return
        begin, end = found.window.start_time_ns, found.window.end_time_ns
        self._say(
            f"window from {_clock(begin)} ({self._from_now(begin)}) to {_clock(end)}: "
            f"{found.window.dirty_pages_per_second:,.0f} pages/s"
        )

    def ranking(self, found: "Ranking") -> None:
        """Print targets by what it costs to move them."""
        table = table_of(
            "TARGET", "CONVERGES", "ENDS", ">SENT", ">TIME", ">DOWNTIME", ">RATE", ">POPULATED", "CONFIDENCE"
        )
        for one in found.candidates:
            table.add_row(
                one.name,
                "yes" if one.converges else "no",
                str(one.cause),
                bytes_text(one.total_bytes),
                _seconds(one.total_seconds),
                _seconds(one.downtime_seconds),
                f"{one.dirty_pages_per_second:,.0f} pages/s",
                f"{one.populated_page_count:,} pages",
                str(one.confidence),
            )
        self._console.print(table if table.row_count else "no target can be ranked")
        self._costs(found.costs)
        for left in found.left_out:
            self._say(f"left out: {left.name}: {left.reason}")

    def drain_plan(self, found: "DrainPlan") -> None:
        """Print how to empty a host."""
        table = table_of("TARGET", ">BEGIN", ">END", ">BANDWIDTH", ">SENT", ">DOWNTIME", ">P95", "CONFIDENCE")
        for one in found.moves:
            table.add_row(
                one.name,
                _seconds(one.start_seconds),
                _seconds(one.end_seconds),
                _speed(one.bandwidth_bytes_per_second),
                bytes_text(one.total_bytes),
                _seconds(one.downtime_p50_seconds),
                _seconds(one.downtime_p95_seconds),
                str(one.confidence),
            )
        if found.moves:
            at_once = (
                "some would not converge" if found.all_at_once_seconds is None else _seconds(found.all_at_once_seconds)
            )
            self._console.print(table)
            self._say(
                f"{_seconds(found.total_seconds)} in all, {bytes_text(found.total_bytes)}, {found.parallel} at once; "
                f"one by one {_seconds(found.one_by_one_seconds)}, all at once {at_once}"
            )
        else:
            self._say("nothing can be moved" if found.cannot_move else "no target is tracked there")
        self._costs(found.costs)
        for left in found.cannot_move:
            self._say(f"cannot be moved: {left.name}: {left.reason}")

    def reported(self, found: "Reported") -> None:
        """Print what a report taught."""
        if found.error:
            self._errors((found.error,))
        else:
            self._say("no prediction to be scored")
        self._say(
            f"learned for the host: {_seconds(found.round_seconds)} a round, {_seconds(found.fixed_seconds)} a downtime"
        )

    def accuracy(self, found: "Accuracy") -> None:
        """Print how far predictions were off."""
        if not found.scored_count:
            self._say("no prediction was reported on yet: `wetink report-migration` does it")
            return
        table = table_of("ERROR OF", ">MEDIAN", ">P95", ">LARGEST")
        for name, errors in (("bytes", found.bytes), ("downtime", found.downtime), ("time", found.seconds)):
            if errors:
                table.add_row(name, *_percents(errors))
        self._console.print(table)
        self._say(f"verdict right in {found.right_count:,} of {found.scored_count:,}")
        self._console.print()
        self._errors(found.errors)

    def _errors(self, errors: "tuple[PredictionError, ...]") -> None:
        table = table_of(
            "TARGET", "REPORTED", ">BANDWIDTH", "POLICY", ">SENT", ">PREDICTED", ">DOWNTIME", ">PREDICTED", "VERDICT"
        )
        for one in errors:
            table.add_row(
                one.name,
                f"{age_text((self._time_ns - one.reported_time_ns) / NANOSECONDS_A_SECOND)} ago",
                _speed(one.bandwidth_bytes_per_second),
                one.policy,
                bytes_text(one.measured_bytes),
                bytes_text(one.predicted_bytes),
                _seconds(one.measured_downtime_seconds) if one.measured_downtime_seconds else "-",
                _seconds(one.predicted_downtime_seconds),
                "right" if one.predicted_converges == one.measured_converges else "wrong",
            )
        self._console.print(table)

    def _basis(self, basis: "PredictionBasis") -> None:
        exact = "" if basis.exact else ", of which some are merged"
        self._say(
            f"{basis.name}: {bytes_text(basis.populated_page_count * basis.page_size)} populated, "
            f"{bytes_text(basis.writable_page_count * basis.page_size)} written in {_seconds(basis.history_seconds)} "
            f"({basis.stretch_count:,} rounds{exact})"
        )

    def _costs(self, costs: "MigrationCosts") -> None:
        source = f"from {costs.report_count} reports" if costs.report_count else "given, or the defaults"
        self._say(
            f"policy {costs.policy}, downtime aimed at {_seconds(costs.downtime_target_seconds)}; "
            f"{_seconds(costs.round_seconds)} a round and {_seconds(costs.fixed_seconds)} a downtime besides pages "
            f"({source})"
        )

    def _from_now(self, time_ns: int) -> str:
        seconds = (time_ns - self._time_ns) / NANOSECONDS_A_SECOND
        return f"in {_seconds(seconds)}" if seconds > 0 else "now"

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _seconds(seconds: float) -> str:
    if seconds < SECONDS_SHORT:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:,.1f} s"


def _speed(bytes_a_second: int) -> str:
    return f"{bytes_text(bytes_a_second)}/s"


def _clock(time_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_ns / NANOSECONDS_A_SECOND))


def _percents(errors: "ErrorStatistics") -> tuple[str, str, str]:
    return f"{errors.median:.1%}", f"{errors.p95:.1%}", f"{errors.max:.1%}"
