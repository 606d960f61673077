"""The tables that the models define, in the global registry or in the state of a migration."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from django.apps.registry import Apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import StateApps
from django.db.models import Field, Model

from agentdb.schema.introspection import with_unique_indexes_as_constraints
from agentdb.schema.sqltext import (
    column_default,
    column_type,
    parse_create_index,
    parse_create_table,
)
from agentdb.schema.tables import Column, Key, Table

APP_LABEL = "agentdb"


@cache
def state_apps(name: str) -> StateApps:
    """Return the models as the named migration leaves them."""
    return MigrationLoader(None).project_state((APP_LABEL, name)).apps


def expected_tables(
    connection: BaseDatabaseWrapper, apps: Apps | StateApps
) -> dict[str, Table]:
    """Return the tables of agentdb's models in ``apps`` (the global registry, or a migration state's) by name."""
    tables = [
        expected_table(connection, model)
        for model in apps.get_models()
        if model._meta.app_label == APP_LABEL and model._meta.managed
    ]
    return {table.name: table for table in sorted(tables, key=lambda table: table.name)}


def expected_table(connection: BaseDatabaseWrapper, model: type[Model]) -> Table:
    """Return the table of one of agentdb's models, in whatever state."""
    editor = connection.schema_editor(collect_sql=True, atomic=False)
    editor.deferred_sql = []
    meta = model._meta
    sql, _ = editor.table_sql(model)
    indexes = [str(index.create_sql(model, editor)) for index in meta.indexes]
    # What does not fit into CREATE TABLE is deferred.
    for statement in map(str, editor.deferred_sql):
        _, is_constraint, constraint = statement.partition(" ADD ")
        if is_constraint:
            sql = f"{sql.removesuffix(')')}, {constraint})"
        else:
            indexes.append(statement)
    keys = parse_create_table(sql).keys
    if connection.vendor != "sqlite":
        keys = [_named(meta.db_table, key) for key in keys]
    table = Table(
        name=meta.db_table,
        columns=tuple(
            _expected_column(editor, field) for field in meta.local_concrete_fields
        ),
        primary_key=next(key for key in keys if not key.is_constraint),
        uniques=tuple(key for key in keys if key.is_constraint),
        indexes=tuple(map(parse_create_index, indexes)),
    )
    if connection.vendor == "cockroachdb":
        return with_unique_indexes_as_constraints(table)
    return table


def _named(table: str, key: Key) -> Key:
    """Return the key with PostgreSQL's name for it if its statement has none; SQLite stores none either."""
    own = f"{key.columns[0]}_key" if key.is_constraint else "pkey"
    return replace(key, name=key.name or f"{table}_{own}")


def _expected_column(
    editor: BaseDatabaseSchemaEditor, field: Field[Any, Any]
) -> Column:
    connection = editor.connection
    parameters = field.db_parameters(connection)
    # Only SQLite lets a primary key be NULL.
    is_never_null = field.primary_key and connection.vendor != "sqlite"
    return Column(
        name=str(field.column),
        type=column_type(connection, str(parameters["type"])),
        nullable=field.null and not is_never_null,
        default=_expected_default(editor, field),
        collation=parameters.get("collation"),
    )


def _expected_default(
    editor: BaseDatabaseSchemaEditor, field: Field[Any, Any]
) -> str | None:
    if not field.has_db_default():
        return None
    sql, parameters = editor.db_default_sql(field)
    # Without parameters a percent sign is one.
    return column_default(
        sql % tuple(map(editor.quote_value, parameters)) if parameters else sql
    )
