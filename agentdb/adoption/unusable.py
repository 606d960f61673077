"""Rows that cannot be taken over as they are, found before anything is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.timestamps import POSTGRES_CASTABLE, UnreadableTimestampError, is_readable, parse_timestamp
from agentdb.errors import SchemaMismatchError

# The columns of the old tables and what they hold. Frozen: it describes what migration 0002 finds.
OLD_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "agents": {
        "id": "text",
        "tenant_id": "text",
        "name": "text",
        "version": "integer",
        "path": "text",
        "created_at": "timestamp",
        "updated_at": "timestamp",
    },
    "sessions": {
        "id": "text",
        "tenant_id": "text",
        "agent_name": "text",
        "sandbox_id": "text",
        "status": "text",
        "runner_id": "text or null",
        "created_at": "timestamp",
        "last_active_at": "timestamp",
    },
    "sandboxes": {
        "id": "text",
        "tenant_id": "text",
        "session_id": "text or null",
        "agent_name": "text",
        "state": "text",
        "workspace_dir": "text",
        "created_at": "timestamp",
        "last_used_at": "timestamp",
    },
    "api_keys": {
        "id": "text",
        "tenant_id": "text",
        "key_hash": "text",
        "label": "text",
        "created_at": "timestamp",
    },
}

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class UnusableValue:
    """A value that no rule converts. ``row`` is the id, the agent's name where there is no id, or ``rowid N``."""

    table: str
    row: str
    column: str
    value: str
    reason: str

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 120 else f"{self.value[:120]}…"
        return f"table {self.table!r}, {self.row}, column {self.column!r}: {value} {self.reason}"


@dataclass(frozen=True, slots=True)
class UnusableValues:
    """How many there are, and the first 20."""

    total: int
    first: tuple[UnusableValue, ...]


class UnusableValuesError(SchemaMismatchError):
    """Rows that cannot be converted; nothing was changed. ``values`` holds the total and the first of them."""

    def __init__(self, values: UnusableValues) -> None:
        self.values = values
        total = f"{values.total} value{'' if values.total == 1 else 's'} cannot be converted"
        shown = "" if values.total <= _SHOWN else f" (the first {_SHOWN} are shown)"
        super().__init__(
            f"{total}{shown}; nothing was changed.\n"
            + "".join(f"  {value}\n" for value in values.first)
            + "Correct them, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the command again."
        )


def first_line(error: BaseException) -> str:
    """The driver's message without its hints and positions, as a sentence."""
    return f"{str(error).strip().partition(chr(10))[0].rstrip('.')}."


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
    values = find_unusable_values(connection)
    if values.total:
        raise UnusableValuesError(values)


def find_unusable_values(connection: BaseDatabaseWrapper) -> UnusableValues:
    """Return the values that stop a conversion, of those of the four tables that exist, whatever columns they have.

    Rows are streamed; memory does not grow with them.
    """
    total = 0
    first: list[UnusableValue] = []
    for table, columns in OLD_COLUMNS.items():
        live = _live_columns(connection, table)
        kinds = {column: kind for column, kind in columns.items() if column in live}
        find = _unusable_on_sqlite if connection.vendor == "sqlite" else _unusable_on_postgresql
        for value in find(connection, table, kinds) if kinds else ():
            total += 1
            if len(first) < _SHOWN:
                first.append(value)
    return UnusableValues(total, tuple(first))


def _live_columns(connection: BaseDatabaseWrapper, table: str) -> set[str]:
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT lower(name) FROM pragma_table_info(%s)", [table])
        else:
            cursor.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(%s))"
                " AND attnum > 0 AND NOT attisdropped AND atttypid = ANY('{text,varchar,int4}'::regtype[])",
                [table],
            )
        return {name for (name,) in cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class _NotUtf8:
    value: bytes


def decode_sqlite_text(value: bytes) -> str | _NotUtf8:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _NotUtf8(value)


def _unusable_on_sqlite(
    connection: BaseDatabaseWrapper, table: str, kinds: Mapping[str, str]
) -> Iterator[UnusableValue]:
    connection.ensure_connection()
    raw = connection.connection
    try:
        yield from _scan_sqlite(raw, table, kinds)
        return
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    # Some text is no UTF-8: read this table again, with a decoder that tells which.
    raw.text_factory = decode_sqlite_text
    try:
        yield from _scan_sqlite(raw, table, kinds)
    finally:
        raw.text_factory = str


def _scan_sqlite(raw: sqlite3.Connection, table: str, kinds: Mapping[str, str]) -> Iterator[UnusableValue]:
    # The plus keeps the driver from converting by the column's declared type.
    selected = ", ".join(f'+"{column}"' for column in kinds)
    try:
        rows = raw.execute(f'SELECT {selected}, rowid FROM "{table}"')
    except sqlite3.OperationalError:  # a table WITHOUT ROWID
        rows = raw.execute(f'SELECT {selected}, NULL FROM "{table}"')
    names = tuple(kinds)
    key = names.index("id" if "id" in kinds else "name") if {"id", "name"} & kinds.keys() else None
    usual = {(*combination, int) for combination in _type_combinations(tuple(kinds.values()))}
    timestamps = [index for index, kind in enumerate(kinds.values()) if kind == "timestamp"]
    for row in rows:
        if tuple(map(type, row)) in usual and all(is_readable(row[index]) for index in timestamps):
            continue
        label = f"rowid {row[-1]}" if key is None or row[key] is None else f"{names[key]} {shown(row[key])}"
        for column, kind, value in zip(names, kinds.values(), row, strict=False):
            if reason := unusable_reason(kind, value):
                yield UnusableValue(table, label, column, shown(value), reason)


def _type_combinations(kinds: tuple[str, ...]) -> Iterator[tuple[type, ...]]:
    if not kinds:
        yield ()
        return
    allowed: tuple[type, ...] = (str,)
    if kinds[0] == "integer":
        allowed = (int,)
    elif kinds[0] == "text or null":
        allowed = (str, type(None))
    for rest in _type_combinations(kinds[1:]):
        for one in allowed:
            yield (one, *rest)


def unusable_reason(kind: str, value: object) -> str | None:
    """Why a value cannot be taken over, as the end of a sentence that begins with it; None if it can."""
    if isinstance(value, _NotUtf8):
        return "is no UTF-8 text"
    if value is None:
        return None if kind == "text or null" else "is not allowed"
    if kind == "integer":
        return None if isinstance(value, int) else "is no integer"
    if not isinstance(value, str):
        return "is no text"
    if kind != "timestamp":
        return None
    try:
        parse_timestamp(value)
    except UnreadableTimestampError as error:
        return str(error)
    return None


def too_wide(value: int) -> str | None:
    """Why a number cannot be a server's integer, as ``unusable_reason`` says it; SQLite's hold 64 bits."""
    return None if -(2**31) <= value < 2**31 else "does not fit into 32 bits"


def shown(value: object) -> str:
    """The value as messages show it."""
    if value is None:
        return "NULL"
    return repr(value.value if isinstance(value, _NotUtf8) else value)


def _unusable_on_postgresql(
    connection: BaseDatabaseWrapper, table: str, kinds: Mapping[str, str]
) -> Iterator[UnusableValue]:
    timestamps = [column for column, kind in kinds.items() if kind == "timestamp"]
    key = "id" if "id" in kinds else "name"
    for row_key, *values in _not_castable(connection, table, timestamps, key) if timestamps else ():
        for column, value in zip(timestamps, values, strict=True):
            if value is not None and (reason := unusable_reason("timestamp", value)):
                yield UnusableValue(table, f"{key} {shown(row_key)}", column, shown(value), reason)


def _not_castable(
    connection: BaseDatabaseWrapper, table: str, columns: list[str], key: str
) -> Iterator[tuple[Any, ...]]:
    """Yield the key and the columns of the rows that PostgreSQL's own cast may not be trusted with."""
    connection.ensure_connection()
    selected = ", ".join(f'"{column}"' for column in (key, *columns))
    # A cursor on the server, so that memory stays bounded if every row is of this kind.
    with connection.connection.cursor(name="agentdb_not_castable", withhold=not connection.in_atomic_block) as cursor:
        cursor.itersize = 1000
        cursor.execute(f'SELECT {selected} FROM "{table}" WHERE {_any_not_castable(connection, columns)}')
        yield from cursor


def _any_not_castable(connection: BaseDatabaseWrapper, columns: list[str]) -> str:
    return " OR ".join(not_castable(connection, column) for column in columns)


def not_castable(connection: BaseDatabaseWrapper, column: str) -> str:
    """An SQL condition: the column's text is none that PostgreSQL's cast is known to read as agentdb does."""
    no_match = f"\"{column}\" !~ '{POSTGRES_CASTABLE}'"
    if connection.connection.info.server_version < 160000:
        return no_match
    # What the server wrote comes back letter by letter, which costs a third of matching a pattern.
    back = f"""to_char("{column}"::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
    return (
        f'CASE WHEN length("{column}") = 24 AND pg_input_is_valid("{column}", \'timestamptz\')'
        f' THEN CASE WHEN {back} = "{column}" THEN false ELSE {no_match} END ELSE {no_match} END'
    )


def read_instants(connection: BaseDatabaseWrapper, table: str, columns: list[str]) -> bool:
    """Fill ``pg_temp.agentdb_instants`` with the instants of PostgreSQL's rare formats; False if there are none."""
    found = False
    batch: list[tuple[str, str]] = []
    with connection.cursor() as cursor:
        # A count is spread over processes, which reading rows one by one is not.
        doubtful = _any_not_castable(connection, columns)
        cursor.execute(f'SELECT count(*) FROM "{table}" WHERE {doubtful}'.replace("%", "%%"), [])
        if not cursor.fetchone()[0]:
            return False

        def flush() -> None:
            cursor.executemany(
                "INSERT INTO pg_temp.agentdb_instants VALUES (%s, %s::timestamptz) ON CONFLICT DO NOTHING", batch
            )
            batch.clear()

        for _, *values in _not_castable(connection, table, columns, columns[0]):
            if not found:
                found = True
                cursor.execute(
                    "CREATE TEMPORARY TABLE IF NOT EXISTS agentdb_instants"
                    " (text text PRIMARY KEY, instant timestamptz NOT NULL) ON COMMIT DROP"
                )
                # PL/pgSQL plans once per session where an SQL function would plan for each row.
                cursor.execute(
                    "CREATE OR REPLACE FUNCTION pg_temp.agentdb_instant(value text) RETURNS timestamptz"
                    " LANGUAGE plpgsql AS $$ BEGIN"
                    f" IF value ~ '{POSTGRES_CASTABLE}' THEN RETURN value::timestamptz; END IF;"
                    " RETURN (SELECT instant FROM pg_temp.agentdb_instants WHERE text = value); END $$"
                )
            batch += [(value, str(parse_timestamp(value))) for value in values]
            if len(batch) >= 1000:
                flush()
        if batch:
            flush()
    return found
