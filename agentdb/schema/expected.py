"""The tables that the models define, in the global registry or in the state of a migration."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from django.apps.registry import Apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import StateApps
from django.db.models import Model

from agentdb.schema.sqltext import (
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
    sql, indexes = _statements(connection, model)
    table = model._meta.db_table
    text = parse_create_table(sql)
    columns = text.columns
    keys = [*text.keys, *map(parse_create_index, indexes)]
    if connection.vendor != "sqlite":
        keys = [_key_on_a_server(connection, table, key) for key in keys]
        columns = [_on_a_server(connection, column, model) for column in columns]
    return Table(table, tuple(columns)).with_keys(keys)


def _statements(
    connection: BaseDatabaseWrapper, model: type[Model]
) -> tuple[str, list[str]]:
    """Return Django's CREATE TABLE, with all constraints, and its CREATE INDEX statements."""
    editor = connection.schema_editor(collect_sql=True, atomic=False)
    editor.deferred_sql = []
    sql, parameters = editor.table_sql(model)
    # Without parameters a percent sign is one.
    if parameters:
        sql %= tuple(map(editor.quote_value, parameters))
    indexes = [str(index.create_sql(model, editor)) for index in model._meta.indexes]
    # What does not fit into CREATE TABLE is deferred.
    for statement in map(str, editor.deferred_sql):
        _, is_constraint, constraint = statement.partition(" ADD ")
        if is_constraint:
            sql = f"{sql.removesuffix(')')}, {constraint})"
        else:
            indexes.append(statement)
    return sql, indexes


def _key_on_a_server(connection: BaseDatabaseWrapper, table: str, key: Key) -> Key:
    """Return the key with PostgreSQL's name for it if its statement has none; SQLite stores none either."""
    # To CockroachDB a unique index over columns is a constraint.
    if connection.vendor == "cockroachdb" and key.kind == "unique index":
        key = replace(key, kind="unique constraint")
    own = f"{key.columns[0]}_key" if key.is_constraint else "pkey"
    return replace(key, name=key.name or f"{table}_{own}")


def _on_a_server(
    connection: BaseDatabaseWrapper, column: Column, model: type[Model]
) -> Column:
    return replace(
        column,
        type=column_type(connection, column.type),
        # Only SQLite lets a primary key be NULL.
        nullable=column.nullable and column.name != model._meta.pk.column,
    )
