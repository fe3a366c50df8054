import re
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2

from wetink.status import status_with_reason
from wetink_client import (
    AgentUnavailable,
    CollectorFailed,
    CollectorUnavailable,
    InvalidRequest,
    NotFound,
    Refused,
    ResynchronisationNeeded,
    TooLarge,
    Unavailable,
    WetinkError,
)
from wetink_client.errors import ERROR_OF, from_call

INFO = "type.googleapis.com/google.rpc.ErrorInfo"
CONTRACT = Path(__file__).parents[3] / "protos/README.md"
OF_THE_INGEST_SERVICE = {"ABORTED"}


@dataclass
class FailedCall(grpc.RpcError):
    """What a stub raises."""

    status: grpc.StatusCode
    text: str
    trailer: tuple[tuple[str, str | bytes], ...] = ()

    def code(self) -> grpc.StatusCode:
        """Give the status."""
        return self.status

    def details(self) -> str:
        """Give the text."""
        return self.text

    def trailing_metadata(  # type: ignore[override]
        self,
    ) -> tuple[tuple[str, str | bytes], ...]:
        """Give the trailer."""
        return self.trailer


def failed(code: grpc.StatusCode, reason: str, text: str, **metadata: str) -> FailedCall:
    """Make a call that failed as the contract says."""
    status = status_with_reason(code, reason, text, metadata)
    return FailedCall(code, status.details, tuple(status.trailing_metadata))


@pytest.mark.parametrize(
    "code,reason,kind",
    [
        (grpc.StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED", AgentUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "AGENT_SILENT", AgentUnavailable),
        (grpc.StatusCode.UNAVAILABLE, "A_REASON_OF_TOMORROW", CollectorUnavailable),
        (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OTHER_STORE", ResynchronisationNeeded),
        (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_FOREIGN", InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, "TARGET_UNKNOWN", NotFound),
        (grpc.StatusCode.PERMISSION_DENIED, "TRACK_REFUSED", Refused),
        (grpc.StatusCode.FAILED_PRECONDITION, "TRACK_REFUSED", Refused),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", TooLarge),
        (grpc.StatusCode.INTERNAL, "A_REASON_OF_TOMORROW", CollectorFailed),
    ],
)
def test_reason_becomes_its_exception(code: grpc.StatusCode, reason: str, kind: type[WetinkError]) -> None:
    """The collector's sentence and its reason come through."""
    error = from_call(failed(code, reason, "It is so.", target="h/1@2"), "collector:1")

    assert type(error) is kind
    assert (str(error), error.reason, error.metadata) == ("It is so.", reason, {"target": "h/1@2"})


def test_resynchronisation_names_its_targets() -> None:
    """A reader drops what it holds of those, and keeps the others."""
    error = from_call(
        failed(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED", "Gone.", targets="h/1@2,h/3@4"), "collector:1"
    )

    assert isinstance(error, ResynchronisationNeeded)
    assert error.targets == ("h/1@2", "h/3@4")


def test_list_of_targets_that_was_cut_means_all() -> None:
    """Part of a name may be another target's name."""
    error = from_call(
        failed(
            grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INCARNATION_ENDED", "Gone.", targets="h/1@2,h/3@4", target_count="3"
        ),
        "collector:1",
    )

    assert isinstance(error, ResynchronisationNeeded)
    assert error.targets == ()


@pytest.mark.parametrize(
    "details,cause",
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
            "Connection refused",
        ),
        (
            "errors resolving n:1: [field:hostname lookup error:address lookup failed for n:1: Domain name not found]",
            "Domain name not found",
        ),
        ("Socket\nclosed", "Socket closed"),
        ("", "no reason given"),
    ],
)
def test_collector_that_is_away_is_told_in_one_sentence(details: str, cause: str) -> None:
    """Which collector, and the cause at the end of what gRPC has to say."""
    error = from_call(FailedCall(grpc.StatusCode.UNAVAILABLE, details), "collector:1")

    assert type(error) is CollectorUnavailable
    assert isinstance(error, Unavailable)
    assert str(error) == f"collector collector:1 cannot be reached ({cause}): is it running there?"


@pytest.mark.parametrize(
    "end,remedy",
    [
        ("UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed", "does it want TLS (--tls-ca), or another --tls-cert?"),
        ("UNKNOWN: ipv4:127.0.0.1:1: Hostname Verification Check failed.", "of another name than this address"),
        (
            "UNKNOWN: SSL_ERROR_SSL: error:1:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: expired: OK",
            "authority in --tls-ca",
        ),
        (
            "UNKNOWN: SSL_ERROR_SSL: error:1:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid: OK",
            "does not speak TLS there",
        ),
    ],
)
def test_handshake_that_failed_says_what_to_do(end: str, remedy: str) -> None:
    """GRPC says what went wrong in words for those who wrote it."""
    details = f"failed to connect to all addresses; last error: {end}"
    error = from_call(FailedCall(grpc.StatusCode.UNAVAILABLE, details), "collector:1")

    assert type(error) is CollectorUnavailable
    assert str(error).startswith("collector collector:1 cannot be reached (")
    assert remedy in str(error)


def test_silent_collector_is_told_in_one_sentence() -> None:
    """GRPC says only "Deadline Exceeded"."""
    error = from_call(FailedCall(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), "collector:1")

    assert type(error) is CollectorUnavailable
    assert str(error) == "collector collector:1 did not answer in time"


def test_failure_without_a_name_says_its_status() -> None:
    """A bug in the collector is told apart from everything a caller can act on."""
    error = from_call(FailedCall(grpc.StatusCode.UNKNOWN, "Unexpected\n<class 'KeyError'>"), "collector:1")

    assert type(error) is CollectorFailed
    assert str(error) == "collector collector:1 failed with UNKNOWN: Unexpected <class 'KeyError'>"


@pytest.mark.parametrize(
    "trailer",
    [
        b"\xff\xff",
        status_pb2.Status(code=5, message="It is so.", details=[any_pb2.Any(type_url=INFO, value=b"\xff")]),
        status_pb2.Status(code=13, message="It is so."),
        status_pb2.Status(code=5, message="It is otherwise."),
    ],
    ids=["damaged", "damaged detail", "another status", "another text"],
)
def test_trailer_that_cannot_be_read_names_no_reason(trailer: bytes | status_pb2.Status) -> None:
    """The status that gRPC itself carries still says what became of the call."""
    data = trailer if isinstance(trailer, bytes) else trailer.SerializeToString()
    call = FailedCall(grpc.StatusCode.NOT_FOUND, "It is so.", (("grpc-status-details-bin", data),))

    error = from_call(call, "collector:1")

    assert type(error) is NotFound
    assert (str(error), error.reason) == ("collector collector:1 failed with NOT_FOUND: It is so.", "")


def test_each_status_of_the_contract_is_in_the_table() -> None:
    """The table of `protos/README.md` says what an orchestrator can meet."""
    table = CONTRACT.read_text().partition("## Errors")[2].partition("## Limits")[0]
    statuses = set(re.findall(r"`([A-Z_]+)`", " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE))))

    assert {"UNAVAILABLE", "OUT_OF_RANGE"} <= statuses
    assert statuses - OF_THE_INGEST_SERVICE <= {code.name for code, _ in ERROR_OF}
