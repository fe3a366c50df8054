"""Logs of the two services: readable on a terminal, one JSON object a line elsewhere; always on standard error."""

import faulthandler
import logging
import sys

import structlog


def configure() -> None:
    """Set up structlog for this process, and what it writes where native code fails: the functions of each thread."""
    if not faulthandler.is_enabled():
        faulthandler.enable()
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
