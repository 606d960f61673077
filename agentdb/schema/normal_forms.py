"""Normalises what engines and Django spell differently: types, defaults, indexes."""

from __future__ import annotations

import re
from typing import Literal

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.sqltext import IndexText, KeyText, canonical
from agentdb.schema.tables import Index, IndexPart

_COCKROACH_TYPES = {
    "integer": "bigint",
    "int8": "bigint",
    "string": "text",
    "timestamptz": "timestamp with time zone",
}
_LOWER = str.maketrans(
    {chr(code): chr(code).lower() for code in range(ord("A"), ord("Z") + 1)}
)


def folded(name: str) -> str:
    """Return the name in lower case, ASCII letters only, as SQLite compares names."""
    return name.translate(_LOWER)


def column_type(connection: BaseDatabaseWrapper, declared: str) -> str:
    name = re.sub(r"\s+", " ", declared).strip().lower()
    if connection.vendor == "cockroachdb":
        return _COCKROACH_TYPES.get(name, name)
    return name


def column_default(sql: str | None) -> str | None:
    text = None if sql is None else canonical(sql)
    return None if text == "NULL" else text


def literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


def index_from(
    connection: BaseDatabaseWrapper, text: IndexText, *, valid: bool = True
) -> Index:
    """Return the index without redundant parts of its statement."""
    is_sqlite = connection.vendor == "sqlite"
    part = _part_on_sqlite if is_sqlite else _part_on_a_server
    return Index(
        name=folded(text.name) if is_sqlite else text.name,
        parts=tuple(map(part, text.keys)),
        unique=text.unique,
        condition=text.condition,
        include=text.include,
        method=text.method or "btree",
        valid=valid,
        options=("nulls not distinct",) if text.nulls_not_distinct else (),
    )


# NULLs sort first on SQLite and last on PostgreSQL.
def _part_on_sqlite(key: KeyText) -> IndexPart:
    return _part(key, "last" if key.descending else "first", "BINARY")


def _part_on_a_server(key: KeyText) -> IndexPart:
    return _part(key, "first" if key.descending else "last", "default")


def _part(
    key: KeyText, usual_nulls: Literal["first", "last"], usual_collation: str
) -> IndexPart:
    return IndexPart(
        key.expression,
        key.descending,
        collation=None if key.collation == usual_collation else key.collation,
        nulls=None if key.nulls == usual_nulls else key.nulls,
        operator_class=key.operator_class,
    )
