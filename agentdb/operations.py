"""Operations of agentdb's migrations that Django does not have."""

from __future__ import annotations

from django.db import ProgrammingError, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import operations
from django.db.migrations.operations import CreateModel
from django.db.migrations.state import ProjectState

from agentdb.adoption.conforming import (
    LegacyUnique,
    conform_online,
    conform_table,
    create_table,
)
from agentdb.adoption.obstacles import first_line
from agentdb.adoption.timestamps import server_text
from agentdb.adoption.values import read_usable_values, timestamp_sources
from agentdb.errors import SchemaMismatchError
from agentdb.expressions import OtherOnSqlite
from agentdb.schema import expected_tables
from agentdb.schema.expected import state_apps
from agentdb.schema.migration_lock import LIMIT_LOCK_WAITS
from agentdb.schema.migration_record import recorded_migrations

__all__ = [
    "AddIndex",
    "CreateLegacyTable",
    "LegacyNow",
    "LegacyUnique",
    "NativeTimestamps",
]


# The text of a timestamp, as the old server wrote it.
_TO_TEXT = """to_char("{}" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""


class LegacyNow(OtherOnSqlite):
    """The old server's default of a timestamp column: text, in each database's own format."""

    template = "now()::text"
    on_sqlite = "datetime('now')"
    output_field = models.TextField()


class CreateLegacyTable(CreateModel):
    """Create one of the four tables as the old server made it; an existing table is refused by name."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = to_state.apps.get_model(app_label, self.name)
        connection = schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return
        table = model._meta.db_table
        # sqlmigrate collects SQL without a look at the database, where the tables are by then.
        looks = not schema_editor.collect_sql
        if looks and table in connection.introspection.table_names(include_views=True):
            raise SchemaMismatchError(
                f"The database already has a table {table!r}. Run 'agentdb baselinedb' to adopt it."
            )
        # On CockroachDB NativeTimestamps creates the tables in their final shape.
        if connection.vendor != "cockroachdb":
            create_table(schema_editor, model)


class NativeTimestamps(operations.SeparateDatabaseAndState):
    """Turn the text timestamps of all tables into native ones, and back, and give every table its final shape.

    One operation for all tables, so that a value that cannot be converted stops it before it changes the first one. The
    tables reach the state to which ``state_operations`` lead, or lead back.
    """

    # What it does depends on the rows and on the live table's shape, so sqlmigrate cannot show it.
    reduces_to_sql = False

    def describe(self) -> str:
        return "Convert text timestamps to native ones"

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        connection = schema_editor.connection
        models_ = self._models(app_label, connection, to_state)
        if not models_:
            return
        # In this order: no row appears after the check, and nothing is changed before all tables have passed it.
        _lock(schema_editor, models_)
        contents = read_usable_values(connection)
        # Texts without an offset are UTC, also in a project that migrates with Django's own command and a TIME_ZONE.
        if connection.vendor == "postgresql":
            schema_editor.execute("SET LOCAL TimeZone = 'UTC'", None)
        for model in models_:
            # CockroachDB does not have the table yet if it is new.
            content = contents.get(model._meta.db_table)
            sources = {}
            if content is not None:
                sources = timestamp_sources(connection, content)
            conform_table(schema_editor, model, sources)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        connection = schema_editor.connection
        models_ = self._models(app_label, connection, to_state)
        if not models_:
            return
        template = _TO_TEXT
        if connection.vendor == "sqlite":
            connection.ensure_connection()
            connection.connection.create_function("agentdb_server_text", 1, server_text)
            template = 'agentdb_server_text("{}")'
        # All of them before the first table changes, as on the way forward.
        _lock(schema_editor, models_)
        read_usable_values(connection)
        for model in models_:
            native = from_state.apps.get_model(app_label, model.__name__)
            sources = {
                str(field.column): template.format(field.column)
                for field in native._meta.local_fields
                if isinstance(field, models.DateTimeField)
            }
            conform_table(schema_editor, model, sources)

    def _models(
        self, app_label: str, connection: BaseDatabaseWrapper, state: ProjectState
    ) -> list[type[models.Model]]:
        return [
            model
            for model in state.apps.get_models()
            if model._meta.app_label == app_label
            and self.allow_migrate_model(connection.alias, model)
        ]


def make_old_tables(connection: BaseDatabaseWrapper) -> None:
    """Make the old server's tables on CockroachDB if the database stays at 0001.

    There 0001 makes none: 0002 makes each table in its final shape, which takes a second instead of a minute.
    """
    if connection.vendor != "cockroachdb":
        return
    # After the command, not in 0001: only then is it known that 0002 does not follow.
    if recorded_migrations(connection) != {"0001_initial"}:
        return
    for table in expected_tables(connection, state_apps("0001_initial")).values():
        conform_online(connection, table)


class AddIndex(operations.AddIndex):
    """Add an index; on CockroachDB, where a migration is not one transaction, accept an existing one."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        # CREATE INDEX waits for writers, and every later writer waits behind it: rather fail, and be run again.
        _limit_lock_waits(schema_editor)
        if schema_editor.connection.vendor == "cockroachdb":
            # A run that was interrupted has made some of the migration's indexes, and recorded none of it.
            usual = type(schema_editor).sql_create_index
            schema_editor.sql_create_index = usual.replace(
                "INDEX", "INDEX IF NOT EXISTS"
            )
        super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        _limit_lock_waits(schema_editor)
        super().database_backwards(app_label, schema_editor, from_state, to_state)


def _limit_lock_waits(schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(LIMIT_LOCK_WAITS, None)


def _lock(
    schema_editor: BaseDatabaseSchemaEditor, models_: list[type[models.Model]]
) -> None:
    """Lock the tables before their rows are checked, so that no unchecked row appears."""
    # SQLite's migration holds the write lock already; CockroachDB's schema changes are jobs outside the transaction.
    # PostgreSQL locks the tables in this order, the same in each migration, so no two each hold what the other wants.
    if schema_editor.connection.vendor == "postgresql":
        tables = ", ".join(
            schema_editor.quote_name(model._meta.db_table) for model in models_
        )
        _limit_lock_waits(schema_editor)
        try:
            schema_editor.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE", None)
        except ProgrammingError as error:
            raise SchemaMismatchError(
                f"The tables cannot be converted; nothing was changed. {first_line(error)} Run 'agentdb baselinedb'."
            ) from error
