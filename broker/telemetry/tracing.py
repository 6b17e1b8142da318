"""Traces: whose request something was, by its id and the W3C `traceparent` that came with it, and spans for who wants
them.

A well-formed `traceparent` is kept in the events that its request causes, whether spans are exported or not: with it
the ledger and anybody's traces tell one story. Anything else in that header is as if it were not there. Spans carry
counts, outcomes and ids of decisions, never what was asked or issued.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Protocol

import structlog

from broker.errors import ConfigurationInvalid

_WELL_FORMED = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SANE_ID = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.:=-]{0,63}")
_SAMPLED = 1
_NO_EXCEPTIONS = MappingProxyType({"record_exception": False, "set_status_on_exception": False})
"""What an exception says may hold what was asked."""
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def traceparent_in(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The one well-formed `traceparent` among the headers of a request, or None."""
    return _only(b"traceparent", headers, _WELL_FORMED)


def request_id_in(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The id that a request was given by whoever sent it: its one sane `X-Request-Id`, or None."""
    return _only(b"x-request-id", headers, _SANE_ID)


def new_request_id() -> str:
    """An id for a request that has none: it joins the answer to the log."""
    return f"req_{secrets.token_hex(8)}"


def _only(wanted: bytes, headers: Iterable[tuple[bytes, bytes]], form: re.Pattern[bytes]) -> str | None:
    found: bytes | None = None
    for name, value in headers:
        if name == wanted:
            if found is not None:
                return None
            found = value
    return found.decode() if found is not None and form.fullmatch(found) else None


def enter(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """A request begins: what is logged and committed for it from here on can be told to be of it. Its id."""
    trace, request_id = traceparent_in(headers), request_id_in(headers) or new_request_id()
    _current.set(trace)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    if trace is not None:
        structlog.contextvars.bind_contextvars(traceparent=trace)
    return request_id


def entered() -> str:
    """The id of the request that is being answered."""
    return str(structlog.contextvars.get_contextvars().get("request_id") or new_request_id())


def current() -> str | None:
    """The `traceparent` of the request that is being answered, if it has one."""
    return _current.get()


class Traced(Protocol):
    """A request that knows where it comes from."""

    @property
    def traceparent(self) -> str | None:
        """As it came, and well-formed."""


class Spans:
    """Exports spans, or none. Every method is cheap when nothing is exported."""

    def __init__(self, provider: Any = None) -> None:  # noqa: ANN401  (OpenTelemetry is optional)
        """`provider` is OpenTelemetry's TracerProvider, or None for no spans."""
        self._provider = provider
        self._tracer = provider.get_tracer("taskpass") if provider is not None else None

    @classmethod
    def to(cls, endpoint: str | None, *, version: str) -> "Spans":
        """Spans exported to an OTLP collector over HTTP; to nobody without an endpoint. Raises ConfigurationInvalid."""
        if endpoint is None:
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigurationInvalid("tracing.endpoint is set: install taskpass[otel], or remove it.") from None
        resource = Resource.create({"service.name": "taskpass", "service.version": version})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider)

    @property
    def exported(self) -> bool:
        """Whether anybody gets them."""
        return self._tracer is not None

    @contextmanager
    def token_batch(self, requests: Sequence[Traced]) -> Iterator[Callable[[Sequence[object]], None]]:
        """A batch of token requests: one span for it, and one in the trace of each request that is sampled, once the
        answers are told.
        """
        if self._tracer is None:
            yield lambda _: None
            return
        began = time.time_ns()
        with self._tracer.start_as_current_span("taskpass.token_batch", **_NO_EXCEPTIONS) as whole:
            whole.set_attribute("taskpass.requests", len(requests))
            yield lambda answers: self._tokens(requests, answers, whole.get_span_context(), began)

    def _tokens(self, requests: Sequence[Traced], answers: Sequence[object], batch: Any, began: int) -> None:  # noqa: ANN401
        from opentelemetry.trace import Link

        assert self._tracer is not None
        for request, answer in zip(requests, answers, strict=True):
            if request.traceparent is not None and _is_sampled(request.traceparent):
                context = _remote(request.traceparent)
                span = self._tracer.start_span("taskpass.token", context, start_time=began, links=[Link(batch)])
                span.set_attribute("taskpass.decision", str(getattr(answer, "decision_id", None) or ""))
                span.set_attribute("taskpass.issued", not isinstance(answer, Exception))
                span.end()

    @contextmanager
    def stage(self, name: str, requests: int) -> Iterator[None]:
        """A span around a part of a batch, of so many requests."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(f"taskpass.{name}", **_NO_EXCEPTIONS) as span:
            span.set_attribute("taskpass.requests", requests)
            yield

    def commit(self, commands: int, seconds: float, *, failed: bool) -> None:
        """The writer was with its store for `seconds`. From its thread."""
        if self._tracer is None:
            return
        ended = time.time_ns()
        span = self._tracer.start_span("taskpass.ledger_commit", start_time=ended - int(seconds * 1e9))
        span.set_attribute("taskpass.commands", commands)
        span.set_attribute("taskpass.failed", failed)
        span.end(ended)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A span around the block, in the trace of the request that is being answered."""
        if self._tracer is None:
            yield
            return
        trace = current()
        context = _remote(trace) if trace is not None else None
        with self._tracer.start_as_current_span(f"taskpass.{name}", context=context, **_NO_EXCEPTIONS):
            yield

    def close(self) -> None:
        """Export what is left, for a few seconds at most."""
        if self._provider is not None:
            self._provider.shutdown()


def _is_sampled(traceparent: str) -> bool:
    return bool(int(traceparent[-2:], 16) & _SAMPLED)


def _remote(traceparent: str) -> Any:  # noqa: ANN401  (OpenTelemetry is optional)
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    _, trace, span, flags = traceparent.split("-")
    context = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(context))
