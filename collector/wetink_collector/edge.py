"""The edge of a service: what a call that orchestrators make ends with, is counted as, and leaves in a trace."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc.aio import ServicerContext

from wetink_collector import metrics, tracing
from wetink_collector.errors import STATUS_OF, Refusal, abort


@asynccontextmanager
async def edge(
    service: str, method: str, context: ServicerContext[Any, Any], *, lasting: bool = False
) -> AsyncIterator[None]:
    """End a call with the status of what was raised, count it, and make its span.

    Args:
        service: Full name of the service.
        method: Name of the method.
        context: The call.
        lasting: Whether it goes on for as long as its reader likes: its time says nothing.
    """
    began = time.perf_counter()
    code = "OK"
    with tracing.no_span() if lasting else tracing.of_call(service, method, _texts(context)) as span:
        try:
            yield
        except Refusal as refusal:
            code = STATUS_OF[type(refusal)][0].name
            await abort(context, refusal)
        except BaseException:
            code = "CANCELLED"
            raise
        finally:
            span.set_status(code)
            metrics.CALLS.labels(method, code).inc()
            if not lasting:
                metrics.ANSWER_SECONDS.labels(method).observe(time.perf_counter() - began)


def _texts(context: ServicerContext[Any, Any]) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
