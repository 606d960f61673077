"""Changes a live table of any old shape to exactly the model's, and keeps what is not ours.

The schema editor's own methods start from the model a table was made from. These start from the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import DatabaseError, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from agentdb.adoption.dependents import drop, read_dependents, recreate
from agentdb.adoption.obstacles import first_line, is_transient
from agentdb.adoption.online import Progress, conform_model_online
from agentdb.adoption.sqlite_rebuild import rebuild
from agentdb.adoption.steps import ASPECTS, Dialect, Step, columns_sql, no_table
from agentdb.errors import SchemaMismatchError
from agentdb.schema import Column, expected_table, read_tables
from agentdb.schema.queries import quote_name, rows, run


class LegacyUnique(models.UniqueConstraint):
    """A unique constraint as the old server made it: on PostgreSQL a unique index without a constraint."""

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        if schema_editor.connection.vendor == "sqlite":
            return super().constraint_sql(model, schema_editor)
        # Not in CREATE TABLE, which knows no unique index: the schema editor runs these behind it.
        statement = self.create_sql(model, schema_editor)
        schema_editor.deferred_sql.append(statement)
        return None

    def create_sql(self, model: Any, schema_editor: Any) -> Any:
        if schema_editor.connection.vendor == "sqlite":
            return super().create_sql(model, schema_editor)
        name = quote_name(self.name)
        table = quote_name(model._meta.db_table)
        fields = map(model._meta.get_field, self.fields)
        columns = columns_sql([field.column for field in fields])
        return f"CREATE UNIQUE INDEX {name} ON {table} {columns}"


def create_table(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model]
) -> None:
    """Create the model's table. Unlike ``create_model``, without text_pattern_ops indexes, which no query uses."""
    sql, params = schema_editor.table_sql(model)
    # A nullable key, like the old server's on SQLite: PostgreSQL makes it NOT NULL unless NULL is explicit.
    schema_editor.execute(
        sql.replace("text NULL PRIMARY KEY", "text PRIMARY KEY"), params or None
    )
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)


def conform_table(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    sources: Mapping[str, str],
    progress: Progress = lambda sql: None,
) -> None:
    """Change the live table to the model's; additional columns, indexes, triggers and views stay.

    ``sources`` gives, for columns that are new or converted, an SQL expression over the old row. The caller holds the
    transaction. On CockroachDB there is none: each step stays, ``progress`` is told it, and a table that is not there
    is created. ``SchemaMismatchError`` if a column is missing that no source or default fills, or if what was built
    around the table does not let it change.
    """
    connection = schema_editor.connection
    if connection.vendor == "cockroachdb":
        conform_model_online(connection, model, sources, progress)
        return
    try:
        if connection.vendor == "sqlite":
            rebuild(schema_editor, model, sources)
        else:
            _conform_on_postgresql(connection, model, sources)
    except DatabaseError as error:
        if is_transient(error):
            raise
        raise SchemaMismatchError(
            f"Table {model._meta.db_table!r} cannot be converted; nothing was changed. {first_line(error)}"
        ) from error


def _conform_on_postgresql(
    connection: BaseDatabaseWrapper,
    model: type[models.Model],
    sources: Mapping[str, str],
) -> None:
    wanted = expected_table(connection, model)
    dialect = _PostgreSql(connection)
    for aspect in ASPECTS:
        # Read again for each aspect, because the one before has changed the table. The statements of one aspect are for
        # the table as it was before the first of them, so one reading is enough for all.
        live = read_tables(connection, [wanted.name]).get(wanted.name)
        if live is None:
            raise no_table(wanted.name)
        for sql in aspect(Step(live, wanted, sources, dialect)):
            run(connection, sql)
    # A column that changed its type has no statistics, and the planner would guess until autovacuum runs.
    run(connection, f"ANALYZE {quote_name(wanted.name)}")


class _PostgreSql(Dialect):
    def cast(self, live: Column, wanted: Column) -> str | None:
        """The types that operators gave columns of ours, which hold what ours hold."""
        alike = {
            "integer": ("smallint", "bigint"),
            "text": ("text", "character varying"),
        }
        if live.type.startswith(alike.get(wanted.type, ())):
            return f"{quote_name(live.name)}::{wanted.type}"
        return None

    def convert(self, step: Step, expressions: Mapping[str, str]) -> Iterator[str]:
        if not expressions:
            return
        with _without_dependents(self.connection, step.live.name, expressions):
            # A default of the old type may have no cast to the new one.
            dropped = [
                f"ALTER COLUMN {quote_name(column)} DROP DEFAULT"
                for column in expressions
            ]
            yield f"{step.alter} {', '.join(dropped)}"
            # A single statement, so that the table is rewritten once. An UPDATE would fire the operator's triggers.
            conversions = [
                f"ALTER COLUMN {quote_name(column.name)} TYPE {column.type} USING ({expressions[column.name]})"
                for column in step.wanted.columns
                if column.name in expressions
            ]
            yield f"{step.alter} {', '.join(conversions)}"

    def finish(self, step: Step) -> Iterator[str]:
        """Replicate by the primary key if the index that did it is gone: the key's, which was another one."""
        # The flag on the table stays when its index is dropped, and then a published table refuses UPDATE and DELETE.
        [(lost_its_index,)] = rows(
            self.connection,
            "SELECT relreplident = 'i' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisreplident)"
            " FROM pg_class c WHERE oid = to_regclass(quote_ident(%s))",
            [step.live.name],
        )
        if lost_its_index and step.wanted.primary_key:
            name = quote_name(step.wanted.primary_key.name or "")
            yield f"{step.alter} REPLICA IDENTITY USING INDEX {name}"


@contextmanager
def _without_dependents(
    connection: BaseDatabaseWrapper, table: str, columns: Collection[str]
) -> Iterator[None]:
    """Drop what depends on the columns, and recreate it after the body; raise ``SchemaMismatchError`` if impossible."""
    # PostgreSQL changes no type under a view, a rule, a policy or a trigger's columns. They are dropped and recreated
    # in the transaction that converts, so nobody ever sees them missing.
    dependents = read_dependents(connection, {table: columns})
    # baselinedb has refused all of them before; 'migrate --fake-initial' has no plan and comes here first.
    for obstacle in dependents.obstacles:
        raise SchemaMismatchError(obstacle)
    drop(connection, dependents)
    yield
    recreate(connection, dependents)
