"""What the four tables hold, read row by row: rows that cannot be adopted, formats of timestamps, and a checksum."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import (
    OLD_COLUMNS,
    SHOWN_ROWS,
    UnusableValue,
    UnusableValues,
    UnusableValuesError,
    decode_sqlite_text,
    not_castable,
    shown,
    too_wide,
    unusable_reason,
)
from agentdb.adoption.shapes import NATIVE_TIMESTAMP_TYPES, old_name, unique_keys
from agentdb.adoption.timestamps import native_text
from agentdb.schema import Table, read_tables
from agentdb.schema.spelling import is_in_calendar, is_spelt_as_agentdb_does
from agentdb.schema.sqltext import quote_name

_REPORT_EVERY = 20_000

Progress = Callable[[str, int, int], None]  # table, rows done, rows in all


@dataclass(frozen=True)
class TableContent:
    """What was read of one table."""

    rows: int
    formats: Mapping[str, Mapping[str, int]]  # timestamp column -> format -> rows
    bad: tuple[UnusableValue, ...] = ()  # the first
    bad_total: int = 0
    nul_rows: int = 0  # with U+0000 in a text, which PostgreSQL could not store
    null_ids: int = 0  # agents that are not keyed by id yet and have none
    checksum: int | None = None


@dataclass
class _Reading:
    formats: dict[str, Counter[str]]
    rows: int = 0
    bad: list[UnusableValue] = field(default_factory=list)
    bad_total: int = 0
    nul_rows: int = 0
    null_ids: int = 0
    checksum: int = 0

    def refuse(self, table: str, row_id: str, column: str, value: object, reason: str) -> None:
        self.bad_total += 1
        if len(self.bad) < SHOWN_ROWS:
            self.bad.append(UnusableValue(table, row_id, column, shown(value), reason))


def count_rows(connection: BaseDatabaseWrapper, table: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {quote_name(table)}")
        return int(cursor.fetchone()[0])


def read_content(
    connection: BaseDatabaseWrapper,
    name: str,
    table: Table,
    *,
    checksum_of: Iterable[str] | None = None,
    progress: Progress = lambda table, done, total: None,
) -> TableContent:
    """Read every row of a table once, in memory that does not grow with it.

    ``checksum_of`` names the columns whose values, timestamps as instants, make the checksum; the order of the rows
    does not matter to it.
    """
    if connection.vendor == "sqlite":
        progress(name, 0, 1)
        if (content := _usual_content(connection, name, table, checksum_of)) is not None:
            progress(name, content.rows, content.rows)
            return content
    elif checksum_of is None and connection.vendor == "postgresql":
        progress(name, 0, 1)
        if (content := _usual_on_postgresql(connection, name, table)) is not None:
            progress(name, content.rows, content.rows)
            return content
    try:
        return _read(connection, name, table, checksum_of, progress, strict=True)
    except OperationalError as error:
        if "Could not decode to UTF-8" not in str(error):
            raise
    return _read(connection, name, table, checksum_of, progress, strict=False)


_known_usable: ContextVar[frozenset[str]] = ContextVar("_known_usable", default=frozenset())


@contextmanager
def known_usable(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """For a block that begins after every value was read, in the same transaction: nothing need be read again."""
    token = _known_usable.set(_known_usable.get() | {connection.alias})
    try:
        yield
    finally:
        _known_usable.reset(token)


def refuse_unusable_values(connection: BaseDatabaseWrapper) -> None:
    """Raise ``UnusableValuesError`` if a row of the old tables holds a value that cannot be converted. Reads only."""
    if connection.alias in _known_usable.get():
        return
    tables = read_tables(connection, OLD_COLUMNS)
    contents = [read_content(connection, name, tables[name]) for name in OLD_COLUMNS if name in tables]
    if total := sum(content.bad_total for content in contents):
        first = [value for content in contents for value in content.bad]
        raise UnusableValuesError(UnusableValues(total, tuple(first[:SHOWN_ROWS])))


def read_checksum(
    connection: BaseDatabaseWrapper,
    name: str,
    table: Table,
    columns: Iterable[str],
    *,
    progress: Progress = lambda table, done, total: None,
) -> tuple[int, int | None]:
    """How many rows an adopted table has, and the checksum that ``read_content`` took of them before.

    Instants have one spelling afterwards, so that the checksum is of the values as they are: no other need be looked
    for.
    """
    if connection.vendor == "sqlite":
        progress(name, 0, 1)
        values = ", ".join(f"+{quote_name(column)}" for column in sorted(columns))
        found = _summed(connection, table, f"agentdb_checksum({values})")
        if found is not None:
            progress(name, found[0], found[0])
            return found[0], int(found[1] or 0)
    content = read_content(connection, name, table, checksum_of=columns, progress=progress)
    return content.rows, content.checksum


def _summed(connection: BaseDatabaseWrapper, table: Table, *sums: str) -> tuple[Any, ...] | None:
    """The number of rows and more sums of a SQLite table; None where a column that is not ours has no UTF-8."""
    connection.ensure_connection()
    raw = connection.connection
    raw.create_aggregate("agentdb_checksum", -1, _Checksum)
    with connection.wrap_database_errors:
        try:
            query = f"SELECT {', '.join(['count(*)', *sums])} FROM {quote_name(table.name)}"
            found: tuple[Any, ...] = raw.execute(query).fetchone()
        except sqlite3.OperationalError as error:
            if "user-defined" not in str(error):
                raise
            return None
        except (SystemError, UnicodeDecodeError):  # how Python says the same, depending on which rows it is in
            return None
    return found


class _Checksum:
    """The sum of the rows' checksums, as an aggregate function of SQLite."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, *values: Any) -> None:
        self._sum += row_checksum(list(values))

    def finalize(self) -> str:
        return str(self._sum % 2**128)


def _usual_content(
    connection: BaseDatabaseWrapper, name: str, table: Table, checksum_of: Iterable[str] | None
) -> TableContent | None:
    """What SQLite itself can say of a table in which no row is out of the ordinary; None if one is.

    The same answer as ``_read`` gives, in a fraction of the time.
    """
    old = OLD_COLUMNS[name]
    native = NATIVE_TIMESTAMP_TYPES["sqlite"]
    quote = quote_name
    usual, formats, texts = ["1"], [], []
    values = {column.name: f"+{quote(column.name)}" for column in table.columns}
    to_convert = []
    for column in table.columns:
        kind, quoted = old.get(column.name), quote(column.name)
        if kind is None:
            continue
        if kind == "timestamp" and column.type not in native:
            to_convert.append(column.name)
            # What comes back letter by letter is in the format; the modifier makes SQLite look at the calendar, too.
            server = f"length({quoted}) = 24"
            text = f"strftime(CASE WHEN {server} THEN '%Y-%m-%dT%H:%M:%fZ' ELSE '%Y-%m-%d %H:%M:%S' END, {quoted})"
            usual.append(f"typeof({quoted}) = 'text' AND {text} = {quoted} COLLATE BINARY AND {is_in_calendar(quoted)}")
            formats.append(f"count(*) FILTER (WHERE {server})")
            values[column.name] = (
                f"CASE WHEN length({quoted}) = 19 THEN {quoted} ELSE substr({quoted}, 1, 10) || ' ' || "
                f"substr({quoted}, 12, 8) || CASE substr({quoted}, 21, 3) WHEN '000' THEN '' ELSE "
                f"'.' || substr({quoted}, 21, 3) || '000' END END"
            )
            continue
        if kind == "timestamp":
            usual.append(is_spelt_as_agentdb_does(quoted))
            continue
        null = f"{quoted} IS NULL OR " if kind == "text or null" else ""
        usual.append(f"{null}typeof({quoted}) = '{'integer' if kind == 'integer' else 'text'}'")
        if kind.startswith("text"):
            texts.append(f"coalesce({quoted}, '')")
    joined = " || '|' || ".join(texts) or "''"
    usual.append(f"agentdb_is_plain(CAST({joined} AS BLOB))")
    checksum = "'0'"
    if checksum_of is not None:
        checksum = f"agentdb_checksum({', '.join(values[column] for column in sorted(checksum_of))})"
    connection.ensure_connection()
    raw = connection.connection
    raw.create_function("agentdb_is_plain", 1, _is_plain, deterministic=True)
    conditions = " AND ".join(f"({one})" for one in usual)
    odd = f"count(*) FILTER (WHERE ({conditions}) IS NOT TRUE)"
    if (found := _summed(connection, table, odd, checksum, *formats)) is None or found[1]:
        return None  # the sums hold for usual values only
    rows, _, summed, *counts = found
    return TableContent(
        rows=rows,
        formats={
            column: {key: number for key, number in (("server", server), ("sqlite", rows - server)) if number}
            for column, server in zip(to_convert, counts, strict=True)
        },
        checksum=None if checksum_of is None else int(summed or 0),
    )


def _usual_on_postgresql(connection: BaseDatabaseWrapper, name: str, table: Table) -> TableContent | None:
    """The same on PostgreSQL, without a checksum. Its columns hold nothing but their type, and no NUL."""
    native = NATIVE_TIMESTAMP_TYPES["postgresql"]
    unusual, formats, to_convert = ["false"], [], []
    for column in table.columns:
        kind, quoted = OLD_COLUMNS[name].get(column.name), quote_name(column.name)
        if kind is None:
            continue
        if kind != "text or null":
            unusual.append(f"{quoted} IS NULL")
        if kind == "integer":
            if column.type not in ("smallint", "integer"):
                return None
        elif kind.startswith("text"):
            if not column.type.startswith(("text", "character varying")):
                return None
        elif column.type in native:
            unusual.append(f"NOT isfinite({quoted}) OR {quoted} < '0001-01-01 00:00:00+00'")
        elif column.type == "text":
            to_convert.append(column.name)
            unusual.append(not_castable(connection, column.name))
            # As ``readable_format`` tells them apart; DateStyles are not castable.
            is_server = f"substr({quoted}, 11, 1) = 'T'"
            has_zone = f"right({quoted}, 1) = 'Z' OR substr({quoted}, 20) ~ '[+-]'"
            formats.append(f"count(*) FILTER (WHERE {is_server})")
            formats.append(f"count(*) FILTER (WHERE NOT {is_server} AND ({has_zone}))")
        else:
            return None
    with connection.cursor() as cursor:
        sums = ", ".join(["count(*)", *formats])
        is_unusual = " OR ".join(f"({one})" for one in unusual)
        cursor.execute(
            f"SELECT count(*) FILTER (WHERE {is_unusual}), {sums} FROM {quote_name(table.name)}".replace("%", "%%"), []
        )
        odd, rows, *counts = cursor.fetchone()
    if odd:
        return None
    found = {}
    for text, server, postgresql in zip(to_convert, counts[::2], counts[1::2], strict=True):
        numbers = {"server": server, "postgresql": postgresql, "sqlite": rows - server - postgresql}
        found[text] = {key: number for key, number in numbers.items() if number}
    return TableContent(rows=rows, formats=found)


def _is_plain(value: bytes) -> bool:
    """Whether it is UTF-8 without U+0000."""
    try:
        return "\0" not in value.decode()
    except UnicodeDecodeError:
        return False


def _read(
    connection: BaseDatabaseWrapper,
    name: str,
    table: Table,
    checksum_of: Iterable[str] | None,
    progress: Progress,
    strict: bool,
) -> TableContent:
    old = OLD_COLUMNS[name]
    native = NATIVE_TIMESTAMP_TYPES[connection.vendor]
    columns = [column.name for column in table.columns]
    ours = [(i, column) for i, column in enumerate(columns) if column in old]
    timestamps = [(i, column) for i, column in ours if old[column] == "timestamp"]
    texts = [i for i, column in ours if old[column].startswith("text")]
    are_native = {i for i, _ in timestamps if table.columns[i].type in native}
    to_convert = [(i, column) for i, column in timestamps if i not in are_native]
    # SQLite's are texts too, and another program may have written them in its own way.
    to_respell = [(i, column) for i, column in timestamps if i in are_native and connection.vendor == "sqlite"]
    wide = [(i, column) for i, column in ours if old[column] == "integer" and table.columns[i].type == "bigint"]
    if connection.vendor == "sqlite":
        wide = []  # where each integer may have 64 bits
    hashed = None if checksum_of is None else [columns.index(column) for column in sorted(checksum_of)]
    # Agents that the old server keyed by name get their id in the adoption.
    fillable = name == "agents" and (table.primary_key is None or table.primary_key.columns != ("id",))
    id_column = columns.index("id") if "id" in columns else None
    label_column = columns.index("name") if name == "agents" and (fillable or id_column is None) else id_column

    reading = _Reading({column: Counter() for _, column in to_convert})
    good_types: set[tuple[type, ...]] = set()
    total = count_rows(connection, table.name)
    progress(name, 0, total)

    def label(row: tuple[Any, ...]) -> str:
        assert label_column is not None
        value = row[label_column]
        if value is None:
            return f"rowid {row[-1]}" if len(row) > len(columns) else "without an id"
        return f"{columns[label_column]} {shown(value)}"

    def check_types(row: tuple[Any, ...]) -> bool:
        good = True
        for i, column in ours:
            if column == "id" and fillable and row[i] is None:
                continue
            kind = "text" if old[column] == "timestamp" else old[column]
            if reason := unusable_reason(kind, row[i]):
                reading.refuse(name, label(row), column, row[i], reason)
                good = False
        return good

    for row in _rows(connection, table, strict):
        reading.rows += 1
        kinds = tuple(map(type, row))
        if kinds not in good_types:
            if check_types(row):
                # One list of types stands for all rows that have it, as long as an id may not be counted in it.
                if id_column is None or row[id_column] is not None:
                    good_types.add(kinds)
                else:
                    reading.null_ids += 1
            else:
                continue
        values: list[Any] | tuple[Any, ...] = row
        if to_convert:
            values = list(row)
            for i, column in to_convert:
                text = values[i]
                values[i] = instant = native_text(text)
                if instant is None:
                    reading.formats[column]["unreadable"] += 1
                    reading.refuse(name, label(row), column, text, unusable_reason("timestamp", text) or "")
                else:
                    reading.formats[column][readable_format(text)] += 1
        for i, column in to_respell:
            text = row[i]
            if (instant := native_text(text)) == text:
                continue
            values = list(values)
            values[i] = instant
            if instant is None:
                reading.refuse(name, label(row), column, text, unusable_reason("timestamp", text) or "")
        for i, column in wide:
            if reason := too_wide(row[i]):
                reading.refuse(name, label(row), column, row[i], reason)
        for i in texts:
            if (text := row[i]) is not None and "\0" in text:
                reading.nul_rows += 1
                break
        if hashed is not None:
            reading.checksum += row_checksum([values[i] for i in hashed])
        if not reading.rows % _REPORT_EVERY:
            progress(name, reading.rows, total)
    progress(name, total, total)
    return TableContent(
        rows=reading.rows,
        formats=reading.formats,
        bad=tuple(reading.bad),
        bad_total=reading.bad_total,
        nul_rows=reading.nul_rows,
        null_ids=reading.null_ids,
        checksum=None if hashed is None else reading.checksum % 2**128,
    )


def row_checksum(values: list[Any]) -> int:
    """A number for the row; the sum over the rows of a table is the table's checksum."""
    return int.from_bytes(blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")


def readable_format(text: str) -> str:
    """Which format a timestamp is in that is known to be readable."""
    if text[4] != "-":
        return "datestyle"
    if text[10] == "T":
        return "server"
    return "postgresql" if text[-1] == "Z" or "+" in text[19:] or "-" in text[19:] else "sqlite"


def _rows(connection: BaseDatabaseWrapper, table: Table, strict: bool) -> Iterator[tuple[Any, ...]]:
    if connection.vendor == "sqlite":
        yield from _sqlite_rows(connection, table, strict)
        return
    native = NATIVE_TIMESTAMP_TYPES[connection.vendor]
    parts = []
    for column in table.columns:
        quoted = quote_name(column.name)
        if column.name not in OLD_COLUMNS.get(old_name(table.name), ()):
            quoted = f"{quoted}::text"
        elif column.type in native:
            quoted = (
                f"CASE WHEN isfinite({quoted}) AND {quoted} >= '0001-01-01 00:00:00+00' THEN "
                f"replace(to_char({quoted} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '.000000', '') "
                f"ELSE {quoted}::text END"
            )
        parts.append(quoted)
    with connection.chunked_cursor() as cursor:
        cursor.cursor.itersize = 5000
        cursor.execute(f"SELECT {', '.join(parts)} FROM {quote_name(table.name)}")
        yield from cursor


def _sqlite_rows(connection: BaseDatabaseWrapper, table: Table, strict: bool) -> Iterator[tuple[Any, ...]]:
    # The sign keeps Django's converters, which go by a column's declared type, away from the value.
    parts = [f"+{quote_name(column.name)}" for column in table.columns]
    if "without rowid" not in table.options:
        parts.append("rowid")
    with _text_factory(connection.connection, strict), connection.wrap_database_errors:
        yield from connection.connection.execute(f"SELECT {', '.join(parts)} FROM {quote_name(table.name)}")


@contextmanager
def _text_factory(connection: sqlite3.Connection, strict: bool) -> Iterator[None]:
    before = connection.text_factory
    connection.text_factory = str if strict else decode_sqlite_text
    try:
        yield
    finally:
        connection.text_factory = before


def duplicates(
    connection: BaseDatabaseWrapper, name: str, table: Table, key: tuple[str, ...]
) -> tuple[int, tuple[UnusableValue, ...]]:
    """How many rows share the values of ``key``, which is to be unique, with another one; and the first of them."""
    if any(unique <= set(key) for unique in unique_keys(table)):
        return 0, ()
    quote = quote_name
    have = {column.name for column in table.columns}
    keys = [column for column in key if column in have]
    columns = ", ".join(quote(column) for column in keys)
    shared = f"SELECT {columns} FROM {quote(table.name)} GROUP BY {columns} HAVING count(*) > 1"
    label = "id" if "id" in have and keys != ["id"] else ("name" if "name" in have else keys[0])
    same = " AND ".join(f"t.{quote(column)} = d.{quote(column)}" for column in keys)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT t.{quote(label)}, {', '.join(f't.{quote(column)}' for column in keys)} "
            f"FROM {quote(table.name)} t JOIN ({shared}) d ON {same} ORDER BY 2, 1"
        )
        first = cursor.fetchmany(SHOWN_ROWS)
        total = len(first)
        while more := cursor.fetchmany(1000):
            total += len(more)
    values = tuple(
        UnusableValue(
            name,
            f"{label} {shown(row[0])}",
            ", ".join(keys),
            ", ".join(shown(value) for value in row[1:]),
            "is there more than once",
        )
        for row in first
    )
    return total, values
