"""Reads the tables of a database as data. Reads the schema, not the rows."""

from __future__ import annotations

from collections.abc import Collection

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema import postgresql_catalog, sqlite_catalog
from agentdb.schema.sqltext import folded
from agentdb.schema.tables import Table

# Only on CockroachDB, and always empty: lets one process migrate at a time.
LOCK_TABLE = "agentdb_migrating"


def read_tables(
    connection: BaseDatabaseWrapper, names: Collection[str] | None = None
) -> dict[str, Table]:
    """Return the tables of the current schema by name; only those in ``names``, if given.

    On SQLite, which ignores case, the names are in lower case. A view is
    listed only if it has the name of one of agentdb's tables, or is in ``names``.
    """
    models = apps.get_app_config("agentdb").get_models()
    ours = {model._meta.db_table for model in models}

    def is_wanted(name: str, is_view: bool) -> bool:
        if names is not None:
            return name in names
        return name in ours if is_view else name != LOCK_TABLE

    if connection.vendor == "sqlite":
        return sqlite_catalog.read(connection, is_wanted)
    return postgresql_catalog.read(connection, is_wanted)


def table_names(connection: BaseDatabaseWrapper) -> set[str]:
    """Return the names of the tables, without views; on SQLite, which ignores case, in lower case."""
    names = connection.introspection.table_names()
    return set(map(folded, names) if connection.vendor == "sqlite" else names)
