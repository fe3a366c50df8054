"""The page about predictions from the lines of a run: ``python -m tests.bench.prediction_report LINES DIRECTORY``.

Writes ``predictions.md``. What is in it comes from the lines alone, so that the same lines give the same bytes.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

LineOfRun: TypeAlias = Mapping[str, Any]

HEAD: Final = """# Predictions beside migrations

Made by `python -m tests.bench.prediction_report docs/predictions.jsonl docs` from the lines that `make bench
ARGS='machine prediction'` printed{when}.

Each process was watched for 20 s with a round every 100 ms. Then a migration was predicted, its memory moved over a
link of that bandwidth to a downtime of 300 ms, and the process frozen for the last round. Costs of rounds and downtimes
are those learned from the migrations before.
"""

_WHICH: Final = ("predicted", "measured")

BURSTS_NOTE: Final = """
A process that writes in bursts of half a second is frozen in one or between two by chance: of its downtime the 95th
percentile is what has to hold.
"""


def main() -> int:
    """Write the page."""
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python -m tests.bench.prediction_report LINES DIRECTORY\n")
        return 2
    (Path(sys.argv[2]) / "predictions.md").write_text(page(read(Path(sys.argv[1]))), encoding="utf-8")
    return 0


def read(path: Path) -> list[LineOfRun]:
    """Read the lines of a run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def page(lines: Sequence[LineOfRun]) -> str:
    """Give the page in Markdown."""
    runs = [line for line in lines if line.get("figure") == "prediction" and "value" in line]
    parts = [HEAD.format(when=_machine(lines)), *_table(runs), BURSTS_NOTE, *_summary(runs), "", spread(lines)]
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"


def spread(lines: Sequence[LineOfRun]) -> str:
    """Give the short table that the README has as well: each process over all bandwidths."""
    runs = [line for line in lines if line.get("figure") == "prediction" and "value" in line]
    rows = [
        "| process | bytes off by | downtime, predicted | was | verdicts right |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for workload in dict.fromkeys(run["workload"] for run in runs):
        same = [run for run in runs if run["workload"] == workload]
        errors = [100 * run["bytes_error"] for run in same]
        predicted, measured = (", ".join(f"{run[f'{which}_downtime_ms']:,}" for run in same) for which in _WHICH)
        right = sum(1 for run in same if run["verdict_right"])
        rows.append(
            f"| {workload} | {min(errors):+.1f} to {max(errors):+.1f} % | {predicted} ms | {measured} ms | "
            f"{right} of {len(same)} |"
        )
    return "\n".join(rows) + "\n"


def _machine(lines: Sequence[LineOfRun]) -> str:
    facts = next((line for line in lines if line.get("figure") == "machine"), {})
    if not facts:
        return ""
    load = facts["load_of_a_minute"]
    return (
        f" on {facts['date']}, with\n{facts['value']} cores, Linux {facts['kernel']} and a load of {load} when it began"
    )


def _table(runs: Sequence[LineOfRun]) -> Iterator[str]:
    yield ""
    yield "| process | MiB/s | sent, predicted | sent | error | downtime, predicted (p95) | downtime | verdict |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for run in runs:
        verdict = "converges" if run["measured_converges"] else "does not"
        verdict += "" if run["verdict_right"] else ", predicted otherwise"
        yield (
            f"| {run['workload']} | {run['bandwidth_mib']} | {run['predicted_mib']:.1f} MiB | "
            f"{run['measured_mib']:.1f} MiB | {100 * run['bytes_error']:+.1f} % | "
            f"{run['predicted_downtime_ms']:,} ms ({run['predicted_downtime_p95_ms']:,}) | "
            f"{run['measured_downtime_ms']:,} ms | {verdict} |"
        )


def _summary(runs: Sequence[LineOfRun]) -> Iterator[str]:
    sizes = [abs(run["bytes_error"]) for run in runs]
    times = [abs(run["predicted_downtime_ms"] - run["measured_downtime_ms"]) for run in runs]
    right = sum(1 for run in runs if run["verdict_right"])
    near = sum(1 for run in runs if run["downtime_near"])
    yield ""
    yield (
        f"Bytes: median error {100 * statistics.median(sizes):.1f} %, largest {100 * max(sizes):.1f} %. "
        f"Downtime: median error {statistics.median(times):.0f} ms, largest {max(times):,} ms;"
    )
    yield f"within 25 % or 20 ms in {near} of {len(runs)}. Verdict right in {right} of {len(runs)}."


if __name__ == "__main__":
    sys.exit(main())
