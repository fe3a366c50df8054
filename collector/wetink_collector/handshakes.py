"""Connections that never came to a call, since TLS refused them: only gRPC's own log, on standard error, tells of them.

So standard error is read on its way out while the collector runs. What gRPC says there becomes lines of the collector's
log, the failed handshakes as audit lines; everything else passes unchanged. Of who it was gRPC says nothing.
"""

import asyncio
import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from wetink_collector import metrics
from wetink_collector.trail import Allowance

LINE_BYTES_MAX: Final = 64 << 10
"""A longer line is passed on in pieces."""

JOIN_SECONDS: Final = 2.0
"""How long the last lines may take to be written."""

_FAILED: Final = re.compile(r"Handshake failed with error .*OPENSSL_internal:(?P<reason>[A-Z0-9_]+): (?P<text>.*)$")
_OF_GRPC: Final = re.compile(r"[IWEF][0-9]{4} [0-9:.]+ +[0-9]+ (?P<text>\S+:[0-9]+\] .*)$")

_SENTENCES: Final[Mapping[str, str]] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
    "HTTP_REQUEST": "the peer spoke HTTP in the clear",
    "WRONG_VERSION_NUMBER": "the peer spoke something other than TLS",
}
"""What the commonest reasons of BoringSSL mean. Of others its own words are given."""


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """A connection that TLS refused.

    Attributes:
        reason: BoringSSL's name for it, such as ``CERTIFICATE_VERIFY_FAILED``.
        why: A sentence.
        left_out_count: How many came before it and were not told.
    """

    reason: str
    why: str
    left_out_count: int = 0


class Failures:
    """Makes failures of what gRPC writes, no more than can be told."""

    def __init__(self, now: float) -> None:
        """Begin with nothing told.

        Args:
            now: As ``time.monotonic`` gives it.
        """
        self._allowance = Allowance(now)

    def read(self, line: str, now: float) -> HandshakeFailed | None:
        """Give the failure that a line tells of; None where it tells of none, or where there were too many.

        All of them are counted.
        """
        match = _FAILED.search(line)
        if match is None:
            return None
        metrics.REFUSED.labels("HANDSHAKE_FAILED").inc()
        left_out_count = self._allowance.take(now)
        if left_out_count is None:
            return None
        reason = match["reason"]
        why = _SENTENCES.get(reason) or f"the peer's certificate or handshake is not valid: {match['text']}"
        return HandshakeFailed(reason, why, left_out_count)


@contextmanager
def audited() -> Iterator[None]:
    """Write an audit line for each handshake that fails while the body runs. Enter it inside the event loop."""
    loop = asyncio.get_running_loop()
    # Lines are written by the loop: the thread that reads them would wait for itself.
    with heard(
        lambda failure: _soon(loop, lambda: _audit(failure)),
        lambda line: _soon(loop, lambda: log.info("grpc", line=line)),
    ):
        yield


@contextmanager
def heard(on_failure: Callable[[HandshakeFailed], None], on_line: Callable[[str], None]) -> Iterator[None]:
    """Read standard error on its way out, while the body runs.

    Args:
        on_failure: Called from another thread. It must not write to standard error itself: nobody would read on.
        on_line: Likewise, with what else gRPC says.
    """
    sys.stderr.flush()
    outside = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    # Who reads the pipe dies with the process, and what is said then would be lost.
    if is_telling := faulthandler.is_enabled():
        faulthandler.enable(outside)
    thread = threading.Thread(
        target=_pass_on, args=(reading, outside, on_failure, on_line), name="standard error", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        # The last way into the pipe: its reader comes to the end.
        os.dup2(outside, 2)
        if is_telling:
            faulthandler.enable(2)
        thread.join(JOIN_SECONDS)
        os.close(outside)


def _pass_on(
    reading: int, outside: int, on_failure: Callable[[HandshakeFailed], None], on_line: Callable[[str], None]
) -> None:
    failures = Failures(time.monotonic())
    with open(reading, "rb") as lines:
        while line := lines.readline(LINE_BYTES_MAX):
            text = line.decode("utf-8", "replace").rstrip("\n")
            of_grpc = _OF_GRPC.fullmatch(text)
            if of_grpc is None:
                _write(outside, line)
            elif failure := failures.read(text, time.monotonic()):
                on_failure(failure)
            elif not _FAILED.search(text):
                on_line(of_grpc["text"])


def _write(descriptor: int, rest: bytes) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _soon(loop: asyncio.AbstractEventLoop, write: Callable[[], None]) -> None:
    # Where the loop has ended, nobody waits for the line any more.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(write)


def _audit(failure: HandshakeFailed) -> None:
    log.warning(
        "audit",
        caller=None,
        role=None,
        peer=None,
        method="connect",
        target=None,
        result="UNAVAILABLE",
        reason=failure.reason,
        why=failure.why,
        left_out_count=failure.left_out_count,
    )
