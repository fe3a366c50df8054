"""``make test-kernels``: the kernel tests on Debian's kernels, one line each.

A line says the kernel, the backend, how many tests passed, and when. A test that is skipped inside counts as failed: on
the kernels listed here nothing may be missing.
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.kernel.vm import vm

ROOT: Final = Path(__file__).resolve().parents[3]
DEADLINE_SECONDS: Final = 3600.0
"""For all tests on one kernel: more than twice what they take on two busy cores."""

TEST_SECONDS_MAX: Final = 900.0
"""For one test that has no limit of its own: many times what the longest takes, as others may have the cores."""

MIXED_PAUSE_FACTOR: Final = 16
"""What the pauses of the writer's pattern "mixed" are multiplied by inside, as its bursts take so much longer there.

Without it its 47 threads take all of the machine, and a copier half a minute for each round.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which tests run on which kernel; ``need`` must be there inside, besides what all need."""

    package: str
    backend: str
    need: str
    tests: tuple[str, ...]


PLANS: Final = (
    Plan(
        "linux-image-amd64",
        "soft-dirty",
        "soft-dirty",
        ("tests/kernel/test_freeze.py", "tests/kernel/test_soft_dirty.py"),
    ),
    Plan(
        "linux-image-6.12-amd64",
        "wp-async",
        "kernel",
        (
            "tests/kernel/test_probe.py",
            "tests/kernel/test_wp_async.py",
            # Without the trackers that leave out a step: they test the test, and `make test` does that.
            "tests/kernel/test_shadow_copy.py::test_copy_of_a_frozen_writer_is_identical",
        ),
    ),
    # Of the writers only those that newer kernels treat otherwise: all of them run on the kernel this backend is for.
    Plan(
        "linux-image-6.12-amd64",
        "soft-dirty",
        "soft-dirty",
        ("tests/kernel/test_soft_dirty.py", "-k", "not identical or thp or mremap or fork_storm or mixed"),
    ),
)


def main() -> int:
    """Run the plans; the exit code says whether all tests passed."""
    parser = argparse.ArgumentParser(prog="make test-kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="plans whose package or backend has this in it")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST_OPTION", help="given to pytest inside")
    arguments = parser.parse_args()
    lacking = vm.lacks()
    if lacking is not None:
        sys.stderr.write(f"make test-kernels: {lacking}\n")
        return 1
    plans = [plan for plan in PLANS if arguments.only in f"{plan.package} {plan.backend}"]
    results = [_run_or_say_why(plan, arguments.pytest) for plan in plans]
    return 0 if all(results) else 1


def _run_or_say_why(plan: Plan, options: list[str]) -> bool:
    try:
        return _run(plan, options)
    except vm.VmError as error:
        # The other plans may well run.
        sys.stderr.write(f"make test-kernels: {error}\n")
        return False


def _run(plan: Plan, options: list[str]) -> bool:
    kernel = vm.fetch(plan.package)
    if kernel is None:
        _say(f"{plan.package}: apt has no such kernel here, so {plan.backend} was not tested on it")
        return True
    began = time.monotonic()
    result = vm.run(
        kernel,
        [
            str(ROOT / ".venv/bin/pytest"),
            "-q",
            "-p",
            "no:cacheprovider",
            f"--timeout={TEST_SECONDS_MAX}",
            *plan.tests,
            *options,
        ],
        deadline_seconds=DEADLINE_SECONDS,
        directory=ROOT,
        environment={
            "PYTHONDONTWRITEBYTECODE": "1",
            "WETINK_REQUIRE": f"cc,root,{plan.need}",
            "WRITER_MIXED_PAUSE_FACTOR": str(MIXED_PAUSE_FACTOR),
        },
    )
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", _last(result))}
    passed = counts.pop("passed", 0)
    good = result.code == 0 and passed > 0 and not counts
    if not good:
        sys.stderr.write(result.output)
    others = "".join(f", {count} {kind}" for kind, count in counts.items())
    _say(
        f"Linux {kernel.release}, {plan.backend}: {passed} passed{others}"
        f" in {time.monotonic() - began:.0f} s, {datetime.now(UTC):%Y-%m-%d}"
    )
    return good


def _last(result: vm.Result) -> str:
    lines = result.output.splitlines()
    return lines[-1] if lines else ""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
