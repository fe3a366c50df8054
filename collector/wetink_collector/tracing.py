"""OpenTelemetry spans of group commits and of readers' calls, where somebody asks for them (``wetink[tracing]``).

A stream that lives as long as its agent has no span, and a health probe has none. What cannot be sent is dropped: no
commit and no answer ever waits for it. Off, which it is unless an endpoint is named, a span is one look at a global.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Protocol

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OpenTelemetrySpan
    from opentelemetry.trace import Tracer

QUEUE_SPANS_MAX: Final = 2048
"""Bound on the spans that wait to be sent; what comes beyond it is dropped."""

SEND_SECONDS_MAX: Final = 5.0
"""How long one sending may take."""

FLUSH_SECONDS: Final = 1.0
"""How long a stopping collector waits for its last spans."""

_PATH: Final = "/v1/traces"

log = structlog.get_logger()


class TracingUnusable(Exception):
    """Spans cannot be sent. The sentence says why."""


class Span(Protocol):
    """What a caller may do with a span."""

    def set_status(self, code: str) -> None:
        """Say how the call ended: the name of its gRPC status."""


@contextmanager
def sent_to(endpoint: str | None) -> Iterator[None]:
    """Make spans while the body runs, and send them.

    Args:
        endpoint: Base URL of an OTLP receiver for HTTP; ``/v1/traces`` is added. None makes no spans.

    Raises:
        TracingUnusable: It is no such URL, or the extra is not installed.
    """
    if not endpoint:
        yield
        return
    if not endpoint.startswith(("http://", "https://")):
        message = f"{endpoint!r} is no OTLP receiver: write its URL, as http://127.0.0.1:4318"
        raise TracingUnusable(message)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 (an extra)
    except ImportError as error:
        message = "spans need the extra `tracing`: pip install 'wetink[collector,tracing]'"
        raise TracingUnusable(message) from error
    # It would write a traceback to standard error for each batch that a receiver does not take.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    logging.getLogger("opentelemetry").propagate = False
    url = endpoint.rstrip("/")
    url = url if url.endswith(_PATH) else url + _PATH
    with exported_by(OTLPSpanExporter(endpoint=url, timeout=SEND_SECONDS_MAX)):
        log.info("tracing", endpoint=url)
        yield


@contextmanager
def exported_by(exporter: "SpanExporter") -> Iterator[None]:
    """Make spans while the body runs, and give them to an exporter."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 (an extra)
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create({"service.name": "wetink-collector", "service.version": version("wetink")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX))
    _state.tracer = provider.get_tracer("wetink_collector", version("wetink"))
    try:
        yield
    finally:
        _state.tracer = None
        # In a thread that nobody waits for longer: a receiver that hangs must not keep a drained collector alive.
        flush = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)


@contextmanager
def of_commit(*, change_count: int, size_bytes: int) -> Iterator[None]:
    """Make the span of a group commit, in whatever thread writes it.

    Args:
        change_count: Changes in it.
        size_bytes: Of the page sets in them.
    """
    tracer = _state.tracer
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span("group commit") as span:
        span.set_attributes({"wetink.change_count": change_count, "wetink.size_bytes": size_bytes})
        yield


@contextmanager
def of_call(service: str, method: str, metadata: Mapping[str, str]) -> Iterator[Span]:
    """Make the span of a call, under its caller's where its metadata have a ``traceparent``.

    Args:
        service: Full name.
        method: Name.
        metadata: Of the call, as it came.
    """
    tracer = _state.tracer
    if tracer is None:
        yield _NoSpan()
        return
    from opentelemetry import trace  # noqa: PLC0415 (an extra)
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    # Not made current: an answer is a generator that may end in another context than it began in.
    span = tracer.start_span(
        f"{service}/{method}",
        context=TraceContextTextMapPropagator().extract(metadata),
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
    )
    try:
        yield _OtelSpan(span)
    finally:
        span.end()


@contextmanager
def no_span() -> Iterator[Span]:
    """Stand where a span would say nothing: one as long as a watch, say."""
    yield _NoSpan()


class _State:
    tracer: "Tracer | None" = None


_state: Final = _State()


class _NoSpan:
    def set_status(self, code: str) -> None:
        del code


class _OtelSpan:
    def __init__(self, span: "OpenTelemetrySpan") -> None:
        self._span = span

    def set_status(self, code: str) -> None:
        # A name and no text: an error's sentence may name processes.
        self._span.set_attribute("rpc.grpc.status", code)
