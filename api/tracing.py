"""Traces by OpenTelemetry over web workers and engines. Off, and its library is not imported, unless `[trace] url` says where they go.

A request's trace: "POST /{model_id}/generate" over all, "limits" while it waits to be admitted, and for each picture "queue", "model" and
"encode" in the engine process. So have each attempt at a task ("task") and each change that a viewer of `/live` makes ("change"). A batch
has a trace of its own, linked with those of its pictures, as it belongs to none of them alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from api import __version__
from api.conf import TraceConf
from api.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

PATIENCE = 3  # seconds that the collector has to take what is sent; a process that ends waits no longer either
CURRENT: ContextVar[str | None] = ContextVar("trace", default=None)
"""The span within which something is done, in the form of the header `traceparent` (W3C Trace Context)."""


NOTHING: AbstractContextManager[None] = nullcontext()


class Tracing:
    """Switched off."""

    on = False

    def span(self, name: str, parent: str | None = None, *, server: bool = False) -> AbstractContextManager[Span | None]:
        """Within this, what is done belongs to a span below ``parent``, or below the current one."""
        return NOTHING

    def record(
        self, name: str, begun: int, ended: int, parent: str | None, links: Sequence[str] = (), **attributes: str | int
    ) -> str | None:
        """A span that is over, from ``begun`` to ``ended`` in nanoseconds of Unix time; its own name for others to refer to."""
        return None

    def close(self) -> None:
        """Sends what has not been sent."""


class Recording(Tracing):
    on = True

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("stylegan-fastapi", __version__)

    @contextmanager
    def span(self, name: str, parent: str | None = None, *, server: bool = False) -> Iterator[Span | None]:
        from opentelemetry.trace import SpanKind

        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        with self.tracer.start_as_current_span(name, context(parent or CURRENT.get()), kind) as span:
            token = CURRENT.set(spell(span))
            try:
                yield span
            finally:
                CURRENT.reset(token)

    def record(
        self, name: str, begun: int, ended: int, parent: str | None, links: Sequence[str] = (), **attributes: str | int
    ) -> str | None:
        from opentelemetry.trace import Link, get_current_span

        found = [Link(get_current_span(context(link)).get_span_context()) for link in links]
        span = self.tracer.start_span(name, context(parent), start_time=begun, links=found, attributes=dict(attributes))
        span.end(ended)
        return spell(span)

    def close(self) -> None:
        self.provider.shutdown()


def context(parent: str | None) -> Context:
    """The library's form of a `traceparent`; one that is none is as if there were none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent or ""}, Context())


def spell(span: Span) -> str:
    told = span.get_span_context()
    return f"00-{told.trace_id:032x}-{told.span_id:016x}-{told.trace_flags:02x}"


def open_tracing(conf: TraceConf, role: str) -> Tracing:
    """``role`` names the process: "web", "engine:cpu". Raises ``ConfigError`` if the library is missing."""
    if conf.url is None:
        return Tracing()
    try:
        trace: Any = importlib.import_module("opentelemetry.sdk.trace")
        export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
        sampling: Any = importlib.import_module("opentelemetry.sdk.trace.sampling")
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
        otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ModuleNotFoundError as error:
        raise ConfigError(f"trace.url: {error.name} is not installed; pip install -r requirements-trace.txt") from None
    provider = trace.TracerProvider(
        sampler=sampling.ParentBased(sampling.TraceIdRatioBased(conf.sample)),
        resource=resources.Resource.create({"service.name": "stylegan-fastapi", "service.version": __version__, "process.role": role}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(conf.url, timeout=PATIENCE)))
    return Recording(provider)
