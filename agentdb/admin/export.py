"""The filtered rows of a list as CSV or JSON, streamed row by row.

An unreadable value is exported as it is stored. If the database fails midway, the last line says so, because the
browser already has the status of the response.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from django.db import connections
from django.db.models import Model, QuerySet
from django.http import Http404, StreamingHttpResponse
from django.utils import timezone

from agentdb.admin.changelist import RowList
from agentdb.admin.display import column_value
from agentdb.console.questions import EXPECTED_ERRORS, explain, logger
from agentdb.console.reading import missing_columns, read_stored

_CHUNK = 2_000
_BYTE_ORDER_MARK = "\ufeff"  # tells a spreadsheet that the text is UTF-8
# Beginnings of formulas for spreadsheets (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(changelist: RowList, kind: str) -> StreamingHttpResponse:
    """Export all rows that match the filters and the search, not only the page. Key hashes are cut."""
    if kind not in _FORMATS:
        raise Http404
    found = changelist.queryset
    # Always as stored texts: whether a row is unreadable shows only when it is read, too late to begin again.
    connection = connections[found.db]
    missing = missing_columns(connection, found.model) or ()
    # An immediate failure becomes an error page instead of a file.
    list(read_stored(found[:1], missing))
    # Lazy: the rows are read after the request's transaction, which would close a cursor.
    rows = read_stored(found, missing, chunk_size=_CHUNK)
    content_type, write = _FORMATS[kind]
    columns = [field.attname for field in changelist.opts.concrete_fields]
    lines = write(rows, columns)
    table = changelist.opts.db_table
    name = f"{table}-{timezone.now():%Y%m%dT%H%M%SZ}.{kind}"
    return StreamingHttpResponse(
        _whole(lines, found),
        content_type=content_type,
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Content-Type-Options": "nosniff",
        },
    )


def _whole(lines: Iterator[str], rows: QuerySet[Any]) -> Iterator[str]:
    """Yield the lines; if they end early, add one that says so, which makes JSON invalid."""
    try:
        yield from lines
    except EXPECTED_ERRORS as error:
        problem = explain(connections[rows.db], error)
        logger.error(
            "export of %s: %s %s",
            rows.model._meta.db_table,
            problem.sentence,
            problem.said,
        )
        yield f"\nTHE EXPORT ENDED HERE, ROWS ARE MISSING: {problem}\n"


class _Line:
    """A file for ``csv.writer`` that returns each line to the caller of ``writerow``."""

    def write(self, text: str) -> str:
        return text


def _csv(rows: Iterable[Model], columns: list[str]) -> Iterator[str]:
    """Yield the file line by line, the names of the columns first."""
    writer = csv.writer(_Line())
    heading = writer.writerow(columns)
    yield _BYTE_ORDER_MARK + heading
    for row in rows:
        values = [column_value(row, column) for column in columns]
        cells = map(_cell, values)
        yield writer.writerow(cells)


def _cell(value: Any) -> Any:
    """Return a value as spreadsheets read it."""
    # They recognise a time only without a zone and with milliseconds at most. JSON has full precision.
    if isinstance(value, datetime):
        utc = value.astimezone(UTC)
        without_zone = utc.replace(tzinfo=None)
        return without_zone.isoformat(" ", "milliseconds")
    # They use a leading quote for "this is text", and do not show it.
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def as_json(row: Model) -> str:
    """Return one row as the export has it."""
    columns = [field.attname for field in row._meta.concrete_fields]
    values = {column: column_value(row, column) for column in columns}
    return json.dumps(values, ensure_ascii=False, default=datetime.isoformat)


def _json(rows: Iterable[Model], columns: list[str]) -> Iterator[str]:
    """Yield one array, with a row in each line."""
    # Written piece by piece: json.dumps needs all rows in memory.
    yield "["
    between = "\n"
    for row in rows:
        yield between + as_json(row)
        between = ",\n"
    yield "\n]\n"


_FORMATS = {
    "csv": ("text/csv; charset=utf-8", _csv),
    "json": ("application/json", _json),
}
