"""``wetink-collector`` that keeps no history for insight: what the keeping costs is measured beside it."""

from typing import Any, Final

from wetink_collector import command
from wetink_collector.insight.histories import Histories

WITHOUT_HISTORIES: Final = "tests.support.collector_without_histories"
"""``with running_collector(module=WITHOUT_HISTORIES) as collector:`` gives one."""


def main() -> None:
    """Run it."""
    histories: Any = Histories
    histories.took = lambda _histories, _change: None
    command.main()
