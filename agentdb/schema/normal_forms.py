"""Normalises what engines and Django spell differently: types, defaults, indexes."""

from __future__ import annotations

from dataclasses import replace

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.sqltext import COCKROACH_TYPES, canonical, folded
from agentdb.schema.tables import Index, IndexPart

# The SQL standard's name, which is 64 bits wide there.
_COCKROACH_TYPES = {**COCKROACH_TYPES, "integer": "bigint"}


def column_type(connection: BaseDatabaseWrapper, declared: str) -> str:
    """Return the type in lower case, with single spaces and PostgreSQL's name for it."""
    name = " ".join(declared.lower().split())
    if connection.vendor == "cockroachdb":
        return _COCKROACH_TYPES.get(name, name)
    return name


def column_default(sql: str | None) -> str | None:
    """Return the canonical default; None for ``NULL``, which some servers write out and which does what none does."""
    if sql is None:
        return None
    text = canonical(sql)
    return None if text == "NULL" else text


def literal(value: object) -> str:
    """Return the value as SQL has it in a default."""
    if isinstance(value, str):
        escaped = value.replace("'", "''")
        return f"'{escaped}'"
    return str(value)


def normal_index(connection: BaseDatabaseWrapper, index: Index) -> Index:
    """Return the index without what its statement says of a part although it is so anyway."""
    is_sqlite = connection.vendor == "sqlite"
    usual_collation = "BINARY" if is_sqlite else "default"

    def normal(part: IndexPart) -> IndexPart:
        collation = part.collation
        if collation is not None and is_sqlite:
            collation = collation.upper()  # SQLite ignores the case
        # NULLs are smaller than anything on SQLite, and larger than anything on a server.
        usual_nulls = "first" if part.descending != is_sqlite else "last"
        return replace(
            part,
            collation=None if collation == usual_collation else collation,
            nulls=None if part.nulls == usual_nulls else part.nulls,
        )

    name = folded(index.name) if is_sqlite else index.name
    return replace(index, name=name, parts=tuple(map(normal, index.parts)))
