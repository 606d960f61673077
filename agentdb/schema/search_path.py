"""Finds out whether PostgreSQL's search_path mixes agentdb's tables of several schemas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from urllib.parse import quote as percent_encoded

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import rows
from agentdb.schema.sqltext import quoted

# The first relation of each name on the search path, for the names that agentdb uses without a schema.
_VISIBLE = """
    SELECT c.relname, n.nspname
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = ANY(%s) AND c.relkind IN ('r', 'p') AND pg_catalog.pg_table_is_visible(c.oid)
        AND n.nspname = ANY(current_schemas(false))
    ORDER BY c.relname
"""
_RECORD = "django_migrations"


def tables_elsewhere(
    connection: BaseDatabaseWrapper, names: Collection[str]
) -> str | None:
    """What to do if the search_path finds the tables, or the record of migrations, outside the current schema.

    PostgreSQL looks tables up in every schema of the path, but creates them only in the current schema. Without this
    check, agentdb would read the record of one schema and the tables of another.
    """
    if connection.vendor != "postgresql":
        return None
    [(current, role)] = rows(
        connection, "SELECT current_schema(), quote_ident(current_user)"
    )
    schemas = dict(rows(connection, _VISIBLE, [[*names, _RECORD]]))
    record = schemas.pop(_RECORD, current)
    number = Counter(schemas.values())
    home = current if number[current] else _full_schema(number) or current
    if home == record == current:
        return None
    if home != current:
        what = (
            f"The tables are in schema {home!r}, and new ones would be created in "
            f"{current!r}, which comes before it in"
        )
    else:
        tables = "The tables are" if number[current] else "New tables would be created"
        what = f"{tables} in schema {home!r}, but the record of migrations ({_RECORD}) is in {record!r}, further down"
    return (
        f"{what} the search_path. Run 'ALTER ROLE {role} SET search_path = {quoted(home)}', or add "
        f"options=-csearch_path%3D{percent_encoded(quoted(home), safe='')} to the database URL."
    )


def _full_schema(number: Counter[str]) -> str | None:
    """Return the first schema with three of the four tables; a single one called sessions may be another's."""
    return next((name for name, tables in number.items() if tables >= 3), None)
