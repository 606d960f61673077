"""Reads the contents of the four tables: rows that cannot be adopted, formats of timestamps, and a checksum.

SQL finds the unusual rows, and Python reads only those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import (
    OLD_COLUMNS,
    SHOWN_ROWS,
    AdoptionRefusedError,
    Refusal,
    UnusableValue,
    UnusableValues,
    not_castable,
    read_instants,
    too_wide,
    unusable_reason,
)
from agentdb.adoption.progress import SILENT, Progress
from agentdb.adoption.shapes import (
    NATIVE_TIMESTAMP,
    key_of,
    unfit_columns,
    unique_keys,
)
from agentdb.adoption.steps import columns_sql
from agentdb.adoption.timestamps import add_native_text, native_sql
from agentdb.schema import Table, read_tables
from agentdb.schema.queries import count_rows, quote_name, rows
from agentdb.schema.rows import (
    AS_SQLITE_TEXT,
    StoredColumn,
    decoded,
    is_in_python,
    is_usual_on_sqlite,
    read_sqlite,
    shown,
)

# Why a column's value cannot be converted or copied, or None.
Reason = Callable[[StoredColumn, Any], str | None]


@dataclass
class TableContent:
    """The contents of one table."""

    table: str
    stored_as: str  # its name in the database
    columns: list[StoredColumn]  # those of the old server
    formats: dict[str, Counter[str]]  # timestamp column -> format -> rows
    rows: int = 0
    odd_rows: int = 0  # rows that Python had to read
    null_ids: int = 0  # agents without an id


_USUAL_FORMATS = ("server", "postgresql", "sqlite")

# The format of a readable timestamp, in SQL of every engine.
FORMAT = (
    "CASE WHEN substr({0}, 11, 1) = 'T' THEN 'server' WHEN substr({0}, 5, 1) <> '-' THEN 'datestyle'"
    " WHEN substr({0}, 20) LIKE '%Z' OR substr({0}, 20) LIKE '%+%' OR substr({0}, 20) LIKE '%-%' THEN 'postgresql'"
    " ELSE 'sqlite' END"
)


def read_content(
    connection: BaseDatabaseWrapper,
    name: str,
    table: Table,
    progress: Progress,
    reason: Reason,
    bad: UnusableValues,
) -> TableContent:
    """Read every row of a table, in constant memory; ``reason`` judges the values that are not usual."""
    columns = [column for column in _columns(connection, name, table) if column.kind]
    formats = {
        column.name: FORMAT.format(column.sql)
        for column in columns
        if column.is_to_convert
    }
    content = TableContent(
        name, table.name, columns, {column: Counter() for column in formats}
    )
    progress(name, 0, 1)
    # Of a table that the server wrote, counts say all there is to say. Python reads a row only if SQL cannot tell that
    # each of its values converts, which is also so if a value is NULL, hence IS TRUE.
    usual = f"({_usual(connection, columns)}) IS TRUE"
    source = quote_name(table.name)
    # Usual timestamps are in these formats. No GROUP BY, for which SQLite would sort all rows.
    keys = [(column, key) for column in formats for key in _USUAL_FORMATS]
    counts = [
        f"count(*) FILTER (WHERE {formats[column]} = '{key}')" for column, key in keys
    ]
    [(usual_rows, *found)] = rows(
        connection,
        f"SELECT {', '.join(['count(*)', *counts])} FROM {source} WHERE {usual}",
    )
    for (column, key), number in zip(keys, found, strict=True):
        if number:
            content.formats[column][key] = number
    content.rows = count_rows(connection, table.name)
    content.odd_rows = content.rows - usual_rows
    if content.odd_rows:
        where = f"FROM {source} WHERE NOT ({usual})"
        _read_odd_rows(connection, table, content, where, formats, reason, bad)
    progress(name, content.rows, content.rows)
    return content


def _columns(
    connection: BaseDatabaseWrapper, name: str, table: Table
) -> list[StoredColumn]:
    """Return all columns of a table; an additional one is of no kind."""
    native = NATIVE_TIMESTAMP[connection.vendor]
    kinds = OLD_COLUMNS[name]
    return [
        StoredColumn(
            each.name, kinds.get(each.name, ""), each.type, each.type == native
        )
        for each in table.columns
    ]


def _usual(connection: BaseDatabaseWrapper, columns: list[StoredColumn]) -> str:
    """Return an SQL condition: all values of the row are usual. It may be unknown instead of false."""
    if connection.vendor == "sqlite":
        return is_usual_on_sqlite(connection, columns)
    return " AND ".join(
        f"({_usual_on_a_server(connection, column)})" for column in columns
    )


def _usual_on_a_server(connection: BaseDatabaseWrapper, column: StoredColumn) -> str:
    sql = column.sql
    if column.is_to_convert:
        return f"{sql} IS NOT NULL AND NOT ({not_castable(connection, column.name)})"
    if column.kind == "timestamp":
        return is_in_python(sql)
    if column.kind == "integer":
        return f"{sql} BETWEEN {-(2**31)} AND {2**31 - 1}"
    usual = "true" if column.kind == "text or null" else f"{sql} IS NOT NULL"
    if _has_any_bytes(connection):
        # Python checks all text that is not ASCII.
        usual += f" AND coalesce({sql}, '') !~ '[^\\x01-\\x7f]'"
    return usual


def _has_any_bytes(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the server stores arbitrary bytes in texts (SQL_ASCII)."""
    if connection.vendor != "postgresql":
        return False
    # Its tables were read, so the connection is open.
    report = connection.connection.info.parameter_status
    return bool(report("server_encoding") == "SQL_ASCII")


def _read_odd_rows(
    connection: BaseDatabaseWrapper,
    table: Table,
    content: TableContent,
    where: str,
    formats: Mapping[str, str],
    reason_of: Reason,
    bad: UnusableValues,
) -> None:
    # Agents with the name as key get their id in the adoption.
    is_fillable = content.table == "agents" and key_of(table) != ("id",)
    parts = [_as_read(connection, column) for column in content.columns]
    parts += formats.values()
    if connection.vendor == "sqlite" and "without rowid" not in table.options:
        parts.append("rowid")
    for row in _rows(connection, f"SELECT {', '.join(parts)} {where}"):
        values = dict(zip(content.columns, row, strict=False))
        behind = row[len(values) :]
        found = dict(zip(formats, behind, strict=False))
        by_name = {column.name: value for column, value in values.items()}
        title = _title(by_name, is_fillable, behind[len(formats) :])
        if is_fillable and by_name.get("id", "") is None:
            content.null_ids += 1
            values = {each: values[each] for each in values if each.name != "id"}
        _judge_row(content, title, values, found, reason_of, bad)


def _judge_row(
    content: TableContent,
    title: str,
    values: Mapping[StoredColumn, Any],
    formats: Mapping[str, str],
    reason_of: Reason,
    bad: UnusableValues,
) -> None:
    for column, value in values.items():
        if reason := reason_of(column, value):
            place = content.table, title, column.name
            bad.add(UnusableValue(*place, shown(value), reason))
        elif column.is_to_convert:
            content.formats[column.name][formats[column.name]] += 1


def _title(values: Mapping[str, Any], is_fillable: bool, rowid: tuple[int, ...]) -> str:
    """Return what a message calls the row."""
    label = "name" if is_fillable or "id" not in values else "id"
    name = values[label]
    if name is not None:
        return f"{label} {shown(name)}"
    if rowid:
        return f"rowid {rowid[0]}"
    return "without an id"


def _reason(
    connection: BaseDatabaseWrapper, column: StoredColumn, value: Any
) -> str | None:
    """Return why the value cannot be converted, or None."""
    if reason := unusable_reason(column.kind, value):
        return reason
    if column.type == "bigint":
        return too_wide(value)
    # The conversion of another DateStyle takes a function of the session, which CockroachDB does not have.
    is_online = connection.vendor == "cockroachdb" and column.is_to_convert
    if is_online and value[4] != "-":
        return "is not a timestamp that CockroachDB can read"
    return None


def _as_read(connection: BaseDatabaseWrapper, column: StoredColumn) -> str:
    if connection.vendor == "sqlite":
        return f"+{column.sql}"
    if column.is_native:
        # CockroachDB lacks isfinite(), and uses its last instant for infinity.
        in_range = (
            f"{column.sql} >= '0001-01-01 00:00:00+00' AND {column.sql} < 'infinity'"
        )
        return f"CASE WHEN {in_range} THEN {AS_SQLITE_TEXT.format(column.sql)} ELSE {column.sql}::text END"
    if column.kind != "integer" and _has_any_bytes(connection):
        return f"convert_to({column.sql}, 'SQL_ASCII')"
    return column.sql


def _rows(connection: BaseDatabaseWrapper, sql: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows, with ``decoded()`` of each value that is not UTF-8."""
    if connection.vendor == "sqlite":
        yield from read_sqlite(connection, sql)
        return
    with connection.chunked_cursor() as cursor:
        cursor.execute(sql, None)
        for row in cursor:
            yield tuple(
                decoded(bytes(value))
                if isinstance(value, bytes | memoryview)
                else value
                for value in row
            )


def read_contents(
    connection: BaseDatabaseWrapper,
    tables: Mapping[str, Table],
    progress: Progress = SILENT,
    reason: Reason | None = None,
) -> tuple[dict[str, TableContent], UnusableValues]:
    """Return the contents of ours among the tables, by name, and the values that ``reason`` refuses."""
    reason = reason or partial(_reason, connection)
    bad = UnusableValues()
    contents = {
        name: read_content(connection, name, tables[name], progress, reason, bad)
        for name in OLD_COLUMNS
        if name in tables
    }
    return contents, bad


def read_usable_values(connection: BaseDatabaseWrapper) -> dict[str, TableContent]:
    """Return the contents of the old tables by name, without changing anything.

    Raise ``AdoptionRefusedError`` if a value cannot be converted, or a column has a type of which none should be.
    """
    tables = read_tables(connection, OLD_COLUMNS)
    unfit = [
        problem
        for name, table in tables.items()
        for problem in unfit_columns(connection.vendor, name, table)
    ]
    if unfit:
        raise AdoptionRefusedError.of(*unfit)
    contents, bad = read_contents(connection, tables)
    if bad.total:
        raise AdoptionRefusedError((Refusal.unconvertible(bad),))
    return contents


def timestamp_sources(
    connection: BaseDatabaseWrapper, content: TableContent
) -> dict[str, str]:
    """Return by column SQL that makes an instant of a stored timestamp. All values are known to be readable.

    On SQLite also for columns of the final type, because another program may have written those in its own way.
    """
    stored = [column for column in content.columns if column.kind == "timestamp"]
    if connection.vendor == "sqlite":
        add_native_text(connection)
        return {column.name: native_sql(column.sql) for column in stored}
    texts = [column for column in stored if not column.is_native]
    template = "{}::timestamptz"
    # CockroachDB has no such formats. A row in one is an odd row, so most tables need no second look.
    may_be_rare = connection.vendor == "postgresql" and texts and content.odd_rows
    if may_be_rare and read_instants(connection, content.stored_as, texts):
        template = "pg_temp.agentdb_instant({})"
    return {column.name: template.format(column.sql) for column in texts}


# The checksum ---------------------------------------------------------------------------------------------------------


def checksum(
    connection: BaseDatabaseWrapper,
    name: str,
    table: Table,
    columns: Collection[str],
    sources: Mapping[str, str],
) -> tuple[int, int]:
    """Return a table's row count and a checksum of ``columns``, with timestamps as instants, in any row order.

    It is the same before and after an adoption, and on every engine. ``sources`` has the SQL that makes an instant of
    a timestamp that is not native yet.
    """
    # By name, because the order of columns is another one after a rebuild.
    stored = sorted(_columns(connection, name, table), key=lambda column: column.name)
    row = " || ".join(
        _value(connection, column, sources.get(column.name, column.sql))
        for column in stored
        if column.name in columns
    )
    source = quote_name(table.name)
    if connection.vendor == "sqlite":
        connection.connection.create_aggregate("agentdb_checksum", 1, _Checksum)
        [(number, total)] = rows(
            connection,
            f"SELECT count(*), coalesce(agentdb_checksum(CAST({row} AS BLOB)), 0) FROM {source}",
        )
        return number, int(total)
    # A sum does not depend on the order of rows, which a rewritten table does not keep, and two halves fit a bigint.
    # XOR would let a row that is there twice cancel itself.
    halves = ", ".join(
        f"coalesce(sum(('x' || substr(h, {at}, 16))::bit(64)::bigint), 0)"
        for at in (1, 17)
    )
    # CockroachDB's sha256() takes and returns text.
    digest = (
        f"sha256({row})"
        if connection.vendor == "cockroachdb"
        else f"encode(sha256(convert_to({row}, 'UTF8')), 'hex')"
    )
    # OFFSET prevents the planner from computing the hash twice.
    [(number, high, low)] = rows(
        connection,
        f"SELECT count(*), {halves} FROM (SELECT {digest} AS h FROM {source} OFFSET 0) AS hashes",
    )
    return number, (int(high) * 2**64 + int(low)) % 2**128


def _value(connection: BaseDatabaseWrapper, column: StoredColumn, sql: str) -> str:
    """Return SQL for a value with its length in front, so that different rows never look alike."""
    is_timestamp = column.kind == "timestamp"
    if connection.vendor == "sqlite":
        if is_timestamp:
            return f"{sql} || ';'"
        if column.kind:
            return f"coalesce(length(CAST({sql} AS BLOB)) || ':' || {sql}, '-')"
        # An additional column may hold any type. quote() writes a real number with all its digits, || with fifteen.
        text = f"CASE typeof({sql}) WHEN 'real' THEN quote({sql}) ELSE {sql} END"
        return f"typeof({sql}) || coalesce(length(CAST({sql} AS BLOB)) || ':' || {text}, '')"
    if is_timestamp:
        return f"{AS_SQLITE_TEXT.format(sql)} || ';'"
    return f"coalesce(octet_length({sql}::text)::text || ':' || {sql}::text, '-')"


class _Checksum:
    """The sum of the rows' hashes, as an aggregate function of SQLite: both halves of 128 bits with their sign."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, row: bytes) -> None:
        digest = sha256(row).digest()
        high = int.from_bytes(digest[:8], "big")
        low = int.from_bytes(digest[8:16], "big", signed=True)
        self._sum += high * 2**64 + low

    def finalize(self) -> str:
        # As text, because SQLite's integers have 64 bits; modulo 2**128, like the sum of a server's two halves.
        return str(self._sum % 2**128)


# Duplicates -----------------------------------------------------------------------------------------------------------


def duplicates(
    connection: BaseDatabaseWrapper, name: str, table: Table, key: list[str]
) -> UnusableValues:
    """Return the rows that share the values of ``key``, which must be unique, with another row."""
    if any(unique.issubset(key) for unique in unique_keys(table)):
        return UnusableValues()
    columns, source = columns_sql(key)[1:-1], quote_name(table.name)
    # Rows with the same id are told apart by their names, if they have one.
    labels = ("name", "id") if key == ["id"] else ("id", "name", *key)
    label = next(name for name in labels if table.column(name))
    shared = f"SELECT {columns} FROM {source} GROUP BY {columns} HAVING count(*) > 1"
    found = f"FROM {source} WHERE ({columns}) IN ({shared})"
    [(total,)] = rows(connection, f"SELECT count(*) {found}")
    first = _rows(
        connection,
        f"SELECT {quote_name(label)}, {columns} {found} ORDER BY 2, 1 LIMIT {SHOWN_ROWS}",
    )
    values = [
        UnusableValue(
            name,
            f"{label} {shown(row[0])}",
            ", ".join(key),
            ", ".join(map(shown, row[1:])),
            "is there more than once",
        )
        for row in first
    ]
    return UnusableValues(total, values)
