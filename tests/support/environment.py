"""What the caller has exported for collectors and agents of their own, kept from those that tests and benchmarks start.

The variables of the tests themselves (``WETINK_REQUIRE``, ``WETINK_SOAK`` and others) are left alone.
"""

import os
from typing import Final

PREFIXES: Final = ("WETINK_AGENT_", "WETINK_COLLECTOR", "WETINK_OFFER_", "WETINK_TLS_", "WETINK_TOKEN_FILE")

OTHERS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT",)
"""What our programs read besides: the collector sends its spans there."""


def forget_callers() -> None:
    """Take them out of this process's environment, which everything that it starts inherits."""
    for name in [name for name in os.environ if name.startswith(PREFIXES) or name in OTHERS]:
        del os.environ[name]
