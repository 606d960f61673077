"""OpenTelemetry: a span for each call of a ``DjangoDb``, where ``opentelemetry-api`` is installed.

Names and attributes are those of the semantic conventions for databases
(https://opentelemetry.io/docs/specs/semconv/database/database-spans/). No span holds a value of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.db import connections
from opentelemetry import trace as api
from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer

from agentdb.interface import Db

_SYSTEMS = {"sqlite3": "sqlite", "django_cockroachdb": "cockroachdb"}
_NO_CALL = ("close", "for_tenant")


def trace(db: type[Any]) -> None:
    """Give each method of the interface a span, in the class itself."""
    tracer = get_tracer("agentdb")
    for name, _ in inspect.getmembers(Db, inspect.isfunction):
        if not name.startswith("_") and name not in _NO_CALL:
            setattr(db, name, _traced(tracer, name, getattr(db, name)))


class _Call:
    """Error reports show the variables of each frame: an API key is in none of them."""

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs


def _traced(tracer: Any, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        made = _Call(args, kwargs)
        del args, kwargs
        # Libraries bring the API along without an SDK; the spans that nobody takes would cost as much as a read.
        if getattr(api, "_TRACER_PROVIDER", api) is None:
            return method(self, *made.args, **made.kwargs)
        settings = connections.settings.get(self.alias, {})
        engine = str(settings.get("ENGINE", "")).rpartition(".")[2]
        attributes = {
            "db.system.name": _SYSTEMS.get(engine, engine),
            "db.namespace": str(settings.get("NAME", "")),
            "db.operation.name": name,
        }
        with tracer.start_as_current_span(
            f"agentdb.{name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,  # its message names ids
            set_status_on_exception=False,
        ) as span:
            try:
                return method(self, *made.args, **made.kwargs)
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    return call
