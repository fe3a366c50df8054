"""What the collector refuses with, against what the contract says that it may."""

import re
from pathlib import Path

from wetink_collector.errors import STATUS_OF

CONTRACT = Path(__file__).parents[3] / "protos/README.md"


def test_each_reason_is_in_the_table_of_the_contract_with_its_status() -> None:
    """Who writes a client looks there for what it may meet."""
    table = CONTRACT.read_text(encoding="utf-8").partition("## Errors")[2].partition("## Versions")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    told = {
        (status, reason)
        for statuses, reasons in rows
        for status in re.findall(r"`([A-Z_]+)`", statuses)
        for reason in re.findall(r"`([A-Z_]+)`", reasons)
    }

    assert {(status.name, reason) for status, reason in STATUS_OF.values()} - told == set()
