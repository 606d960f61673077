"""What a list has been filtered to, as CSV or JSON, streamed row by row.

A value that cannot be read is exported as it is stored. A database that fails in the middle is said in the last line,
for the browser has the status of the answer already.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from django.db import connections
from django.db.models import Model
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.utils import timezone

from agentdb.admin.changelist import RowList
from agentdb.admin.display import column_value
from agentdb.console.questions import EXPECTED_ERRORS, explain, logger
from agentdb.console.reading import missing_columns, read_stored

_CHUNK = 2_000
_BYTE_ORDER_MARK = "\ufeff"  # by which a spreadsheet knows that the text is UTF-8
# What a spreadsheet would take for the beginning of a formula (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(
    request: HttpRequest, changelist: RowList, kind: str
) -> StreamingHttpResponse:
    """All rows that the filters and the search leave, not the page alone. A key's hash is cut."""
    if kind not in ("csv", "json"):
        raise Http404
    found = changelist.queryset
    missing = missing_columns(connections[found.db], found.model) or ()
    list(
        read_stored(found[:1], missing)
    )  # what fails at once is a page that says why, and no file
    # Not begun yet: it is read after the transaction that a request may have, in which a cursor would end.
    rows = read_stored(found, missing, chunk_size=_CHUNK)
    columns = [field.attname for field in changelist.opts.concrete_fields]
    lines = _whole(
        _csv(rows, columns) if kind == "csv" else _json(rows),
        lambda error: _ended(changelist, error),
    )
    content_type = "text/csv; charset=utf-8" if kind == "csv" else "application/json"
    response = StreamingHttpResponse(lines, content_type=content_type)
    name = f"{changelist.opts.db_table}-{timezone.now():%Y%m%dT%H%M%SZ}.{kind}"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["X-Content-Type-Options"] = "nosniff"
    return response


def _ended(changelist: RowList, error: Exception) -> str:
    problem = explain(connections[changelist.queryset.db], error)
    logger.error(
        "export of %s: %s %s", changelist.opts.db_table, problem.sentence, problem.said
    )
    return f"THE EXPORT ENDED HERE, ROWS ARE MISSING: {problem}"


def _whole(lines: Iterator[str], ended: Callable[[Exception], str]) -> Iterator[str]:
    """The lines, and one that says so if they end too early; in JSON it makes the file one that no parser takes."""
    try:
        yield from lines
    except EXPECTED_ERRORS as error:
        yield f"\n{ended(error)}\n"


class _Line:
    def write(self, text: str) -> str:
        return text


def _csv(rows: Iterable[Model], columns: list[str]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield _BYTE_ORDER_MARK + writer.writerow(columns)
    for row in rows:
        yield writer.writerow([_cell(column_value(row, column)) for column in columns])


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        # What a spreadsheet takes for a time: without a zone, and no finer than a millisecond. JSON has it whole.
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
    # The quote is what spreadsheets themselves use for "this is text", and do not show.
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
    )


def as_json(row: Model) -> str:
    """One row, as the export has it."""
    values = {
        field.attname: column_value(row, field.attname)
        for field in row._meta.concrete_fields
    }
    return json.dumps(values, ensure_ascii=False, default=datetime.isoformat)


def _json(rows: Iterable[Model]) -> Iterator[str]:
    yield "["
    between = "\n"
    for row in rows:
        yield between + as_json(row)
        between = ",\n"
    yield "\n]\n"
