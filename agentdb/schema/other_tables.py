"""Tables that are not agentdb's: how many rows they have, and which of them name sessions."""

from __future__ import annotations

from functools import cache

from django.apps.registry import Apps
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import InvalidInputError
from agentdb.inputs import OWN_TABLES
from agentdb.schema.introspection import LOCK_TABLE
from agentdb.schema.queries import quote_name, rows
from agentdb.schema.rows import readable_rows

# A partition's rows count with its parent table; on CockroachDB relispartition is NULL. Rows that this role may not
# read are not counted. Python writes a tuple of names as SQL does.
_ON_A_SERVER = f"""
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relkind IN ('r', 'p') AND c.relispartition IS NOT TRUE AND c.relpersistence <> 't'
      AND c.relname NOT IN {OWN_TABLES}
      AND pg_catalog.pg_table_is_visible(c.oid) AND has_table_privilege(c.oid, 'SELECT')
      AND c.relnamespace NOT IN (
        SELECT oid FROM pg_catalog.pg_namespace WHERE nspname IN ('pg_catalog', 'pg_extension')
      )
    ORDER BY 1
"""
_COLUMN_ON_A_SERVER = f"""
    SELECT c.relname, pg_catalog.format_type(a.atttypid, NULL)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
    WHERE a.attname = 'session_id' AND NOT a.attisdropped AND c.relkind IN ('r', 'p')
      AND pg_catalog.pg_table_is_visible(c.oid) AND c.relname NOT IN {OWN_TABLES}
"""
# A virtual table stores its rows in other tables, and may need an extension that is not loaded here.
_ON_SQLITE = f"""
    SELECT name FROM sqlite_master
    WHERE type = 'table' AND lower(name) NOT IN {OWN_TABLES} AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name
"""
_COLUMN_ON_SQLITE = f"""
    SELECT t.name, CASE WHEN c.type LIKE '%int%' THEN lower(c.type) ELSE 'text' END
    FROM ({_ON_SQLITE}) t, pragma_table_info(t.name) c WHERE c.name = 'session_id'
"""
_TEXTS = ("text", "character varying", "character")
_RECORDS = (
    "django_migrations",
    LOCK_TABLE,
    "sqlite_sequence",
    "sqlite_stat1",
    "sqlite_stat4",
)


def other_tables(connection: BaseDatabaseWrapper) -> dict[str, int]:
    """Return the row counts of tables that are neither agentdb's nor about migrations, by name."""
    listed = _ON_SQLITE if connection.vendor == "sqlite" else _ON_A_SERVER
    return {
        name: readable_rows(connection, name)
        for (name,) in rows(connection, listed)
        if name not in _RECORDS
    }


def session_tables(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the tables that are not agentdb's and have a column ``session_id`` of text, by name."""
    return sorted(
        name for name, type_ in _session_columns(connection).items() if type_ in _TEXTS
    )


def check_session_tables(
    connection: BaseDatabaseWrapper, names: tuple[str, ...]
) -> None:
    """Raise ``InvalidInputError`` for a name that is not one of those tables."""
    columns = _session_columns(connection) if names else {}
    for name in names:
        if name not in columns:
            raise InvalidInputError(f"No table {name!r} has a column 'session_id'.")
        if columns[name] not in _TEXTS:
            raise InvalidInputError(
                f"The column 'session_id' of {name!r} is of the type {columns[name]}, but the ids of sessions are text."
            )


@cache
def rows_with_session(table: str) -> models.QuerySet[models.Model]:
    """Return a queryset over any table with a column ``session_id``."""

    class Meta:
        apps = Apps()  # a registry of its own, so that nobody finds the model
        app_label = "other_tables"
        db_table = quote_name(table)

    attributes = {
        "__module__": __name__,
        "Meta": Meta,
        "session_id": models.TextField(
            primary_key=True
        ),  # Django needs a key; rows are only counted and deleted
    }
    model: type[models.Model] = type("OtherRow", (models.Model,), attributes)
    return model._default_manager.all()


def _session_columns(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the type of each ``session_id`` that is not in a table of agentdb's, by table."""
    query = _COLUMN_ON_A_SERVER
    if connection.vendor == "sqlite":
        query = _COLUMN_ON_SQLITE
    return dict(rows(connection, query))
