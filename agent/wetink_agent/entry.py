"""Where ``wetink-agent`` begins: the agent runs under its keeper, other commands run alone.

It imports next to nothing, so that what becomes the keeper has not been the agent before.
"""

import os
import sys
from pathlib import Path
from typing import Final

KEEPER: Final = Path(__file__).with_name("keeper.py")

WORKER: Final = "from wetink_agent.command import main; main()"

_ALONE: Final = frozenset({"--help", "--version"})


def main() -> None:
    """Run ``wetink-agent``."""
    arguments = sys.argv[1:]
    if (arguments and not arguments[0].startswith("-")) or _ALONE.intersection(arguments):
        from wetink_agent import command  # noqa: PLC0415 - only where this process is to do the work

        command.main()
    # Not from the current directory, as -c would have it (-P): that may be anybody's.
    worker = [sys.executable, "-P", "-c", WORKER, *arguments]
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(KEEPER), *worker])  # noqa: S606 - our own program
