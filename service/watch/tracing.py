"""Tracing: a span for each prediction with its stages as children, sent over OTLP. Off unless it is configured.

It is the one module that knows OpenTelemetry, and imports it only when tracing is on. Spans are made after the fact
from the stages' own times, so the way of a request holds none of it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from starlette.requests import Request

from adapters.errors import AdaptError
from adapters.version import installed_version
from service.errors import status_of
from service.settings import Settings
from service.watch.logs import BatchProgress

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from service.web.outcomes import Outcomes

STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Either turns tracing on too; the SDK itself reads these and every other OTEL_ variable."""
CLOSE_MS = 2000
"""How long a stop waits for the collector to take the last spans."""


class Tracing:
    """One server's spans; ``close`` sends what is left."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._tracer = provider, provider.get_tracer("adaptserve", installed_version())
        self._server, self._within = SpanKind.SERVER, set_span_in_context
        self._error = Status(StatusCode.ERROR)
        self._propagator = TraceContextTextMapPropagator()

    def answered(self, request: Request, outcomes: Outcomes, seconds: float) -> None:
        """A prediction that took ``seconds`` until now; each task's queue and compute have spans of their own."""
        end = time.time_ns()
        span = self._request(request, end - _ns(seconds))
        here, decoded = self._within(span), outcomes.decoded_ns
        self._stage("decode", here, decoded - _ns(outcomes.decode_s), decoded, {})
        for result in outcomes.results:
            served = result.served
            facts: dict[str, str | int] = {"adaptserve.task": served.task, "adaptserve.version": served.version}
            started = decoded + _ns(result.queue_s)
            self._stage("queue", here, decoded, started, facts)
            self._stage("compute", here, started, started + _ns(result.compute_s), facts)
        span.set_attribute("adaptserve.tasks", [result.served.task for result in outcomes.results])
        span.set_attribute("http.response.status_code", 200)
        span.end(end)

    def failed(self, request: Request, error: Exception, seconds: float) -> None:
        """A prediction that ended in ``error`` after ``seconds``; an error of ours (5xx) marks the span."""
        end = time.time_ns()
        span = self._request(request, end - _ns(seconds))
        status = status_of(error) if isinstance(error, AdaptError) else 500
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("error.type", type(error).__name__)
        if status >= 500:
            span.set_status(self._error)
        span.end(end)

    def batch(
        self, request: Request, task: str, progress: BatchProgress, wrong: AdaptError | None, seconds: float
    ) -> None:
        """A batch call that took ``seconds``, in one span however many items it has; ``wrong`` has cut it short."""
        end = time.time_ns()
        span = self._request(request, end - _ns(seconds))
        span.set_attribute("adaptserve.tasks", [task])
        for name, value in vars(progress).items():
            span.set_attribute(f"adaptserve.batch.{name}", value)
        span.set_attribute("http.response.status_code", 200)
        if wrong is not None:
            span.set_attribute("error.type", type(wrong).__name__)
            if status_of(wrong) >= 500:
                span.set_status(self._error)
        span.end(end)

    def close(self) -> None:
        """Send what waits, for a bounded time, and end the sender's thread."""
        self._provider.force_flush(CLOSE_MS)
        self._provider.shutdown()

    def _request(self, request: Request, start: int) -> Span:
        """The span of the request, in the caller's trace if a ``traceparent`` header came."""
        route = request.scope["route"].path
        span = self._tracer.start_span(
            f"{request.method} {route}",
            context=self._propagator.extract(dict(request.headers)),
            kind=self._server,
            start_time=start,
        )
        span.set_attribute("http.request.method", request.method)
        span.set_attribute("http.route", route)
        span.set_attribute("adaptserve.request_id", request.state.request_id)
        return span

    def _stage(self, name: str, here: Context, start: int, end: int, facts: dict[str, str | int]) -> None:
        self._tracer.start_span(name, context=here, start_time=start, attributes=facts).end(end)


def start(settings: Settings) -> Tracing | None:
    """Tracing to the collector that is configured, None where none is. Raises AdaptError without the extra ``otel``."""
    if not settings.otel_endpoint and not any(os.environ.get(name) for name in STANDARD):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise AdaptError(
            "tracing is configured (ADAPTSERVE_OTEL_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT), but its packages are not "
            "installed; pip install 'adaptserve[otel]', or unset it"
        ) from error
    facts = {"service.version": installed_version()}
    if "OTEL_SERVICE_NAME" not in os.environ:
        facts["service.name"] = "adaptserve"
    endpoint = f"{settings.otel_endpoint.rstrip('/')}/v1/traces" if settings.otel_endpoint else None
    provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
