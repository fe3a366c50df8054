"""Spans: what there is one of, under which parent, and that no receiver can hold anything up."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra tracing")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.integration.collector.wire import Agent, target
from tests.support.collector import running_collector, start_collector
from tests.support.service import PATIENCE_SECONDS
from wetink.v1 import dirty_pb2 as pb
from wetink.v1.dirty_pb2_grpc import DirtyServiceStub

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
LIST_TARGETS = "wetink.v1.DirtyService/ListTargets"

OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
"""Spans are sent each 100 ms, and not each 5 s."""


class Receiver(ThreadingHTTPServer):
    """An OTLP receiver for HTTP that keeps what it is sent."""

    def __init__(self) -> None:
        """Listen on a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.paths: set[str] = set()
        self.hangs = threading.Event()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, name: str) -> list[Span]:
        """Give the spans of a name."""
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, count: int) -> list[Span]:
        """Give them once there are so many. A collector that stops waits a second for its last ones, and no longer."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.named(name)) < count:
            assert time.monotonic() < deadline, self.spans
            time.sleep(0.02)
        return found


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.hangs.is_set():
            time.sleep(8)
        self.server.paths.add(self.path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""
    with Receiver() as receiver:
        receiver.daemon_threads = True
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


def list_targets(address: str, *, traceparent: str | None = None, page: str = "") -> None:
    """Call once; what it answers is not looked at."""
    metadata = (("traceparent", traceparent),) if traceparent else ()
    with grpc.insecure_channel(address) as channel:
        request = pb.ListTargetsRequest(page_size=1, page_token=page)
        DirtyServiceStub(channel).ListTargets(request, metadata=metadata, timeout=20)


def test_calls_and_commits_have_spans_and_probes_and_streams_have_none() -> None:
    """A call's span is under its caller's; it says how the call ended, and nothing of what was asked."""
    with (
        receiving() as receiver,
        running_collector(options=["--traces", receiver.url], environment=OFTEN) as collector,
        Agent(collector.address) as agent,
    ):
        agent.hello()
        agent.deliver(target(1), [1, 2, 3])
        list_targets(collector.address, traceparent=f"00-{TRACE}-{PARENT}-01")
        with pytest.raises(grpc.RpcError):
            list_targets(collector.address, page="no such")
        answered, refused = receiver.wait_for(LIST_TARGETS, 2)
        assert receiver.wait_for("group commit", 1)

    assert receiver.paths == {"/v1/traces"}
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE, PARENT)
    assert not refused.parent_span_id
    statuses = [
        attribute.value.string_value
        for span in (answered, refused)
        for attribute in span.attributes
        if attribute.key == "rpc.grpc.status"
    ]
    assert statuses == ["OK", "INVALID_ARGUMENT"]
    assert {span.name for span in receiver.spans} == {"group commit", LIST_TARGETS}


def test_without_an_endpoint_there_are_no_spans() -> None:
    """A caller's own trace changes nothing about that."""
    with receiving() as receiver, running_collector() as collector:
        list_targets(collector.address, traceparent=f"00-{TRACE}-{PARENT}-01")

    assert receiver.spans == []


def test_endpoint_of_the_environment_is_taken() -> None:
    """As every program with OpenTelemetry takes it."""
    with receiving() as receiver:
        environment = {**OFTEN, "OTEL_EXPORTER_OTLP_ENDPOINT": f"{receiver.url}/"}
        with running_collector(environment=environment) as collector:
            list_targets(collector.address)
            assert receiver.wait_for(LIST_TARGETS, 1)


def test_receiver_that_hangs_or_is_gone_holds_nothing_up() -> None:
    """Calls are answered, and the end comes in its time."""
    with receiving() as receiver:
        receiver.hangs.set()
        for url in (receiver.url, "http://127.0.0.1:1"):
            with running_collector(options=["--traces", url]) as collector:
                began = time.monotonic()
                for _ in range(20):
                    list_targets(collector.address)
                assert time.monotonic() - began < 30, "a call that waited would wait for 5 s"
                began = time.monotonic()
                assert collector.stop() == 0
                assert time.monotonic() - began < 30
                assert "Traceback" not in collector.log


def test_endpoint_that_is_no_url_is_refused() -> None:
    """With what one looks like."""
    process = start_collector(options=["--traces", "localhost:4318"])
    _, log = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 1
    assert "write its URL, as http://127.0.0.1:4318" in log
