"""Reads the tables of a database as data. Reads the schema, not the rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema import postgresql_catalog, sqlite_catalog
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
    tables = postgresql_catalog.read(connection, is_wanted)
    if connection.vendor == "cockroachdb":
        return {
            name: with_unique_indexes_as_constraints(table)
            for name, table in tables.items()
        }
    return tables


def with_unique_indexes_as_constraints(table: Table) -> Table:
    """Return the table as CockroachDB treats it: a unique index over columns is a unique constraint."""
    uniques = [
        replace(index, kind="unique constraint")
        for index in table.indexes
        if index.kind == "unique index"
        and index.condition is None
        and all(map(table.column, index.columns))
    ]
    names = {unique.name for unique in uniques}
    indexes = tuple(index for index in table.indexes if index.name not in names)
    return replace(table, uniques=(*table.uniques, *uniques), indexes=indexes)
