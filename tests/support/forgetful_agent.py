"""``wetink-agent`` with a planted bug: its census never tells of one page, though it arms it again.

``running_agent(..., module=FORGETFUL, environment={FORGOTTEN: str(page)})`` gives one. It has no keeper.
"""

import os
from typing import Any, Final

from pyroaring import BitMap64

from wetink_agent import backends, command, wp_async
from wetink_agent.runs import Runs

FORGETFUL: Final = "tests.support.forgetful_agent"
FORGOTTEN: Final = "FORGOTTEN_PAGE"
"""Name of the variable that has the page's number."""


class Forgetful(wp_async.WpAsync):
    """Harvests as its parent does, but for one page."""

    def _census(self, *arguments: int) -> tuple[Runs, BitMap64]:
        populated, written = super()._census(*arguments)
        written.discard(int(os.environ[FORGOTTEN]))
        return populated, written


def main() -> None:
    """Run it."""
    replaced: Any = backends
    replaced.WpAsync = Forgetful
    command.main()
