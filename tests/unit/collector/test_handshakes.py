import subprocess
import sys

import pytest
from prometheus_client import Counter

from wetink_collector import metrics
from wetink_collector.handshakes import Failures
from wetink_collector.trail import LINES_AT_ONCE

PREFIX = "I1124 03:38:48.505437   19578 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: "
EXPIRED = f"{PREFIX}error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired"
MISSING = f"{PREFIX}error:100000c0:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid context"

SPEAKS = f"""
import os, sys, threading
from wetink_collector.handshakes import heard
failures, lines = [], []
with heard(failures.append, lines.append):
    print("a line of ours", file=sys.stderr)
    os.write(2, b"{EXPIRED}\\n")
    os.write(2, b"E1124 03:43:36.837581    1532 ssl_utils.cc:490] Something else\\n")
    os.write(2, b"the beginning of a line, ")
    os.write(2, b"and its end\\n")
print("afterwards", file=sys.stderr)
print([(one.reason, one.why) for one in failures], lines)
"""


def count_of(counter: Counter) -> float:
    """Give what a counter stands at."""
    return next(
        sample.value for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total")
    )


@pytest.mark.parametrize(
    "line, reason, why",
    [
        (EXPIRED, "CERTIFICATE_VERIFY_FAILED", "certificate has expired"),
        (MISSING, "PEER_DID_NOT_RETURN_A_CERTIFICATE", "the peer showed no certificate"),
        (
            f"{PREFIX}error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid",
            "WRONG_VERSION_NUMBER",
            "the peer spoke something other than TLS",
        ),
    ],
)
def test_failure_is_read_from_what_grpc_writes(line: str, reason: str, why: str) -> None:
    """Its name and a sentence, and neither gRPC's file names nor its numbers."""
    failure = Failures(0.0).read(line, 0.0)

    assert failure
    assert failure.reason == reason
    assert why in failure.why
    assert "error:" not in failure.why


def test_other_lines_tell_of_no_failure() -> None:
    """Anybody may write to standard error."""
    assert Failures(0.0).read("a line of something else", 0.0) is None


def test_a_flood_of_failures_is_counted_and_not_told() -> None:
    """As many as nobody reads any more are left out, and the next one says how many. The metric has them all."""
    failures = Failures(0.0)
    counted = metrics.REFUSED.labels("HANDSHAKE_FAILED")
    before = count_of(counted)

    told = [failures.read(EXPIRED, 0.0) for _ in range(LINES_AT_ONCE + 50)]
    later = failures.read(EXPIRED, 1.0)

    assert sum(one is not None for one in told) == LINES_AT_ONCE
    assert later
    assert later.left_out_count == 50
    assert count_of(counted) - before == LINES_AT_ONCE + 51


def test_standard_error_passes_through_but_for_what_grpc_says() -> None:
    """Nothing is lost, nothing is changed, and afterwards everything is as it was."""
    ended = subprocess.run([sys.executable, "-c", SPEAKS], capture_output=True, text=True, timeout=60, check=True)

    assert ended.stderr == "a line of ours\nthe beginning of a line, and its end\nafterwards\n"
    assert "certificate has expired" in ended.stdout
    assert "ssl_utils.cc:490] Something else" in ended.stdout
    assert ended.stdout.count("CERTIFICATE_VERIFY_FAILED") == 1
