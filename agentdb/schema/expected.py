"""The tables that the models define, in the global registry or in the state of a migration."""

from __future__ import annotations

from typing import Any

from django.apps.registry import Apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.db.models import BaseConstraint, Field, Model, UniqueConstraint

from agentdb.schema.sqltext import (
    column_default,
    column_type,
    literal,
    parse_create_index,
)
from agentdb.schema.tables import Column, Key, Table

APP_LABEL = "agentdb"


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
    meta = model._meta
    # PostgreSQL's default name; SQLite stores no names of keys.
    key = "" if connection.vendor == "sqlite" else f"{meta.db_table}_pkey"
    # What CREATE INDEX makes is an index and not a constraint on PostgreSQL: the old server's tables have one.
    indexes = [str(index.create_sql(model, editor)) for index in meta.indexes]
    uniques = _uniques_of_columns(connection, model)
    for constraint in meta.constraints:
        unique = _unique(model, constraint)
        sql = str(constraint.create_sql(model, editor))
        # LegacyUnique answers with a CREATE INDEX there, and Django's own constraint with an ALTER TABLE.
        if connection.vendor == "postgresql" and sql.startswith("CREATE "):
            indexes.append(sql)
        else:
            uniques.append(unique)
    return Table(
        name=meta.db_table,
        columns=tuple(
            _expected_column(editor, field) for field in meta.local_concrete_fields
        ),
        primary_key=Key(key, (_name_of(meta.pk),), "primary key"),
        uniques=tuple(uniques),
        indexes=tuple(map(parse_create_index, indexes)),
    )


def _uniques_of_columns(
    connection: BaseDatabaseWrapper, model: type[Model]
) -> list[Key]:
    prefix = f"{model._meta.db_table}_"
    columns = [
        _name_of(field)
        for field in model._meta.local_concrete_fields
        if field.unique and not field.primary_key
    ]
    # Again the default name, and none on SQLite.
    is_named = connection.vendor != "sqlite"
    return [
        Key(
            f"{prefix}{column}_key" if is_named else "",
            (column,),
            "unique constraint",
        )
        for column in columns
    ]


def _unique(model: type[Model], constraint: BaseConstraint) -> Key:
    *_, options = constraint.deconstruct()
    if not isinstance(constraint, UniqueConstraint) or set(options) != {
        "fields",
        "name",
    }:
        # Fail: a constraint that is not compared would always seem present.
        raise NotImplementedError(
            f"{constraint!r} of {model.__name__}: agentdb.schema.expected cannot compare it."
        )
    fields = map(model._meta.get_field, constraint.fields)
    columns = tuple(map(_name_of, fields))
    return Key(constraint.name, columns, "unique constraint")


def _name_of(field: Any) -> str:
    return str(field.column)


def _expected_column(
    editor: BaseDatabaseSchemaEditor, field: Field[Any, Any]
) -> Column:
    connection = editor.connection
    parameters = field.db_parameters(connection)
    # Only SQLite lets a primary key be NULL.
    is_never_null = field.primary_key and connection.vendor != "sqlite"
    return Column(
        name=_name_of(field),
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
    return column_default(sql % tuple(map(literal, parameters)) if parameters else sql)
