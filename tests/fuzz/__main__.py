"""``make fuzz``: each target for a while under atheris, which follows the branches that inputs take.

A finding ends the run with exit code 1: the input is in ``fuzz-findings``, and ``--input FILE`` tries it again.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FINDINGS: Final = Path("fuzz-findings")

RSS_MIB_MAX: Final = 1024
"""Bound on the memory of a target: what takes more is a finding. The largest honest round takes a tenth."""

INPUT_SECONDS_MAX: Final = 10
"""Bound on the time of one input: what takes longer is a finding."""

INPUT_BYTES_MAX: Final = 1 << 14


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Try hostile input on everything that reads any.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="Which ones; all of them unless said.")
    parser.add_argument("--seconds", type=int, default=60, help="For how long, each; 60 unless said.")
    parser.add_argument("--input", type=Path, help="Try the one target on this file, and nothing else.")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        return _fuzz(arguments.targets[0], arguments.seconds)

    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (the fuzzer itself must import it instrumented)

    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: no such target; there are {', '.join(TARGETS)}")
    if arguments.input:
        TARGETS[names[0]](arguments.input.read_bytes())
        return 0
    return _run(names, arguments.seconds)


def _run(names: Sequence[str], seconds: int) -> int:
    failed = []
    for name in names:
        sys.stdout.write(f"{name}: {seconds} s\n")
        sys.stdout.flush()
        command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds), "--alone"]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = done.stdout.splitlines()
        if done.returncode:
            failed.append(name)
            sys.stdout.write("\n".join(lines[-40:]) + "\n")
        else:
            sys.stdout.write(next((f"  {line}\n" for line in lines if line.startswith("Done ")), ""))
    if failed:
        sys.stdout.write(f"findings in {', '.join(failed)}: see {FINDINGS}\n")
    return int(bool(failed))


def _fuzz(name: str, seconds: int) -> int:
    """Turn this process into the fuzzer of one target. Does not come back."""
    import atheris  # noqa: PLC0415 (of a dependency group of its own)

    with atheris.instrument_imports(include=["wetink", "wetink_agent", "wetink_collector", "tests.fuzz"]):
        from tests.fuzz.targets import SEEDS, TARGETS  # noqa: PLC0415 (as above)
    FINDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wetink-fuzz-") as corpus:
        for number, seed in enumerate(SEEDS):
            Path(corpus, str(number)).write_bytes(seed)
        told = (
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={RSS_MIB_MAX}",
            f"-timeout={INPUT_SECONDS_MAX}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-artifact_prefix={FINDINGS}/{name}-",
            corpus,
        )
        atheris.Setup([sys.argv[0], *told], TARGETS[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
