"""Those who can connect and are nobody: what they hold must not be what others need."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.integration.collector.wire import Reader, channel, refused
from tests.integration.security.audit import Audit
from tests.support.certificates import Authority, credentials
from tests.support.collector import CollectorProcess, running_collector
from wetink_collector.access import PROBES_WAITING_MAX
from wetink_collector.server import PROBES_MAX
from wetink_collector.trail import LINES_AT_ONCE

KNOWN = "reader-token-0123456789"

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How an HTTP/2 client begins: RFC 9113, section 3.4, and empty SETTINGS."""


@pytest.fixture
def collector(start: Callable[..., CollectorProcess], authority: Authority, tmp_path: Path) -> CollectorProcess:
    """Give a collector that takes tokens over TLS: anybody can connect, and is nobody."""
    own, file = authority.collector(), tmp_path / "tokens"
    file.write_text(f"reader {KNOWN}\n")
    options = ["--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tokens", str(file)]
    return start(*options, "--health", "127.0.0.1:0")


HEADERS, SETTINGS, PING = 1, 4, 6
"""Types of frames: RFC 9113, section 6."""


def health(of: grpc.Channel) -> Any:  # noqa: ANN401 (the stub's type knows none of its methods)
    """Give the stub of the health protocol."""
    return HealthStub(of)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Give an HTTP/2 frame: RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers(path: str) -> bytes:
    """Give the headers of a gRPC call, each as a literal that is not indexed: RFC 7541, section 6.2.2."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    return b"".join(
        bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode() for name, value in fields.items()
    )


@contextmanager
def dripping(address: str, message: bytes, seconds: float) -> Iterator[list[bytes]]:
    """Send a message of a stream one byte at a time, and gather what is answered."""
    host, _, port = address.rpartition(":")
    heard: list[bytes] = []
    over = threading.Event()

    def drip(one: socket.socket) -> None:
        try:
            for byte in message:
                one.sendall(frame(0, 0, 1, bytes((byte,))))
                if over.wait(seconds):
                    return
        except OSError:
            pass

    def hear(one: socket.socket) -> None:
        try:
            while part := one.recv(65536):
                heard.append(part)
        except OSError:
            pass

    with socket.create_connection((host, int(port))) as one:
        one.sendall(PREFACE + frame(1, 4, 1, headers("/wetink.v1.IngestService/Stream")))
        threads = [threading.Thread(target=work, args=(one,)) for work in (drip, hear)]
        for thread in threads:
            thread.start()
        yield heard
        over.set()
        one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def test_hello_that_drips_ends_in_its_time() -> None:
    """A byte now and then keeps no stream open: DEADLINE_EXCEEDED after 10 s, and others go on meanwhile."""
    message = b"\0\0\0\x01\0" + bytes(256)
    with running_collector() as collector, ExitStack() as opened:
        began, audit = time.monotonic(), Audit(collector)
        heard = opened.enter_context(dripping(collector.address, message, 0.5))
        while not collector.events("stream_refused"):
            assert time.monotonic() - began < 60, heard
            Reader(collector.address).hosts()
            time.sleep(0.2)

        assert time.monotonic() - began > 8
        assert collector.wait_for_log("stream_refused")["reason"] == "AGENT_SILENT"
        audit.wait_for(method="Stream", result="DEADLINE_EXCEEDED")
        assert "Traceback" not in collector.log


@pytest.mark.parametrize("method", ["Watch", "List"])
def test_strangers_hold_no_streams_of_health(
    collector: CollectorProcess, authority: Authority, audit: Audit, method: str
) -> None:
    """A watch stays open: some thousands of them would leave no call for anybody. Check is all that they get."""
    with channel(collector.address, credentials(authority.ca)) as stranger:
        stub = health(stranger)
        assert stub.Check(HealthCheckRequest(), timeout=20).status == HealthCheckResponse.SERVING
        with refused(grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN"):
            answer = getattr(stub, method)(HealthCheckRequest(), timeout=20)
            list(answer)

    audit.wait_for(method=method, result="UNAUTHENTICATED")


def test_probes_are_answered_however_many_connect(collector: CollectorProcess) -> None:
    """At the port for health nobody stays for long, whatever they ask for."""
    address = collector.health_address
    assert address
    with ExitStack() as held:
        stubs = [health(held.enter_context(channel(address))) for _ in range(4)]
        watches = [stub.Watch(HealthCheckRequest()) for stub in stubs for _ in range(PROBES_MAX // 3)]
        assert next(watches[0]).status == HealthCheckResponse.SERVING
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            for watch in reversed(watches):
                next(watch)
        until = time.monotonic() + 30
        while True:
            with channel(address) as probe:
                try:
                    assert health(probe).Check(HealthCheckRequest(), timeout=2).status
                    break
                except grpc.RpcError:
                    assert time.monotonic() < until
                    time.sleep(0.5)


def test_probes_that_ask_nothing_take_no_place_of_those_who_are_known(
    collector: CollectorProcess, authority: Authority
) -> None:
    """A bound of their own holds for them, far below that of all calls."""
    never = threading.Event()
    with channel(collector.address, credentials(authority.ca)) as stranger:
        check: grpc.StreamUnaryMultiCallable[bytes, bytes] = stranger.stream_unary("/grpc.health.v1.Health/Check")
        calls = [check.future(_nothing(never), timeout=20) for _ in range(PROBES_WAITING_MAX + 20)]
        assert Reader(collector.address, credentials(authority.ca, token=KNOWN)).hosts() == []
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "PROBES_TOO_MANY"):
            calls[-1].result()
        never.set()
        for call in calls:
            call.cancel()

    with channel(collector.address, credentials(authority.ca)) as stranger:
        assert health(stranger).Check(HealthCheckRequest(), timeout=20).status == HealthCheckResponse.SERVING


def test_refusals_fill_no_disk(collector: CollectorProcess, authority: Authority) -> None:
    """Lines about what strangers cause are bounded, and the next one says how many were left out."""
    audit = Audit(collector)
    reader = Reader(collector.address, credentials(authority.ca, token=f"{KNOWN}0"))
    for _ in range(LINES_AT_ONCE + 100):
        with refused(grpc.StatusCode.UNAUTHENTICATED):
            reader.hosts()
    time.sleep(1.5)
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        reader.hosts()

    until = time.monotonic() + 10
    while len(lines := audit.lines()) + sum(line["left_out_count"] for line in lines) != LINES_AT_ONCE + 101:
        assert time.monotonic() < until, lines  # the pipe that they come through may lag behind the answers
        time.sleep(0.05)
    assert LINES_AT_ONCE <= len(lines) < LINES_AT_ONCE + 100


def test_strangers_are_refused_before_they_say_what_they_ask(
    collector: CollectorProcess, authority: Authority, audit: Audit
) -> None:
    """A call of nobody ends at once, though its request never comes."""
    with channel(collector.address, credentials(authority.ca)) as stranger:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = stranger.stream_unary("/wetink.v1.DirtyService/ListHosts")
        never = threading.Event()
        began = time.monotonic()
        with refused(grpc.StatusCode.UNAUTHENTICATED):
            call(_nothing(never), timeout=20)
        never.set()

    assert time.monotonic() - began < 5
    audit.wait_for(method="ListHosts", result="UNAUTHENTICATED")


def _nothing(until: threading.Event) -> Iterator[bytes]:
    until.wait(20)
    yield from ()
