"""What a list has been filtered to, as CSV or JSON, streamed row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.utils import timezone

from agentdb.admin.changelist import KeysetChangeList
from agentdb.display import exact, masked

_CHUNK = 2_000
# What a spreadsheet would take for the beginning of a formula (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(request: HttpRequest, changelist: KeysetChangeList, kind: str) -> StreamingHttpResponse:
    """All rows that the filters and the search leave, not the page alone. A key's hash is cut."""
    if kind not in ("csv", "json"):
        raise Http404
    rows = _rows(changelist)
    columns = [field.attname for field in changelist.opts.concrete_fields]
    lines = _csv(rows, columns) if kind == "csv" else _json(rows, columns)
    content_type = "text/csv; charset=utf-8" if kind == "csv" else "application/json"
    response = StreamingHttpResponse(lines, content_type=content_type)
    name = f"{changelist.opts.db_table}-{timezone.now():%Y%m%dT%H%M%SZ}.{kind}"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


def _rows(changelist: KeysetChangeList) -> Iterator[Model]:
    found: QuerySet[Any] = changelist.queryset
    if changelist.query:
        found = found.filter(Q(pk__startswith=changelist.query) | changelist.matches())
    return found.order_by(f"-{changelist.model_admin.order_field}", "-pk").iterator(chunk_size=_CHUNK)


def _value(row: Model, column: str) -> Any:
    value = getattr(row, column)
    if column == "key_hash":
        return masked(value)
    return value


class _Line:
    def write(self, text: str) -> str:
        return text


def _csv(rows: Iterable[Model], columns: list[str]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(columns)
    for row in rows:
        yield writer.writerow([_cell(_value(row, column)) for column in columns])


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return exact(value)
    # The quote is what spreadsheets themselves use for "this is text", and do not show.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _json(rows: Iterable[Model], columns: list[str]) -> Iterator[str]:
    yield "["
    between = "\n"
    for row in rows:
        values = {column: _value(row, column) for column in columns}
        yield between + json.dumps(values, ensure_ascii=False, default=datetime.isoformat)
        between = ",\n"
    yield "\n]\n"
