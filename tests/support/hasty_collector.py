"""``wetink-collector`` with bounds on time that a test can wait for; in all else it is the real one.

``with running_collector(module=HASTY) as collector:`` gives one. The environment has other options of gRPC's, as JSON.
"""

import json
import os
from typing import Any, Final

from wetink_collector import command, errors, lasting, server, session

CHECK_SECONDS: Final = 0.2
TIDY_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 0.2
REFUSED_RETRY_SECONDS: Final = 1.0
OPTIONS: Final = "HASTY_OPTIONS"
"""Name of the variable."""


def main() -> None:
    """Run it."""
    bounds: Any = lasting
    bounds.CHECK_SECONDS = CHECK_SECONDS
    patience: Any = session
    patience.PATIENCE_SECONDS = PATIENCE_SECONDS
    retries: Any = errors.RETRY_SECONDS_OF
    retries[errors.TargetsTooMany] = REFUSED_RETRY_SECONDS
    options: Any = server
    changed = json.loads(os.environ.get(OPTIONS, "{}"))
    options.TIDY_SECONDS = TIDY_SECONDS
    options.OPTIONS = tuple((name, changed.get(name, value)) for name, value in server.OPTIONS)
    command.main()
