"""The record of migrations: what a database lacks, whether its tables and the record belong together."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from urllib.parse import quote as percent_encoded

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, SchemaMismatchError, SchemaOutOfDateError
from agentdb.faults import is_missing_table
from agentdb.inputs import OWN_TABLES
from agentdb.schema.queries import rows
from agentdb.schema.sqltext import quoted

# By path: importing the package would import what the migrations import.
_FOLDER = str(Path(__file__).parents[1] / "migrations")


@cache
def migration_names() -> tuple[str, ...]:
    """Return the names of agentdb's migrations, in order, from their file names."""
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules([_FOLDER]) if m.name[0].isdigit())
    )


def recorded_migrations(connection: BaseDatabaseWrapper) -> set[str]:
    """Return the names of agentdb's migrations that the database records as applied. One query."""
    query = "SELECT name FROM django_migrations WHERE app = 'agentdb'"
    if connection.vendor == "postgresql":
        # The record of another schema on the search_path says nothing about the tables of this one.
        query += " AND tableoid = to_regclass(quote_ident(current_schema()) || '.django_migrations')"
    # In the caller's transaction PostgreSQL would refuse everything after a failed query. Outside of one atomic() would
    # begin and end one: two statements more, on the path of every connect().
    in_transaction = connection.in_atomic_block
    part = transaction.atomic(connection.alias) if in_transaction else nullcontext()
    try:
        with part:
            return {name for (name,) in rows(connection, query)}
    except DatabaseError as error:
        if is_missing_table(error, "django_migrations"):
            return set()
        raise


def pending_migrations(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the names of the migrations that the database lacks, in order. One query."""
    if settings.MIGRATION_MODULES.get("agentdb", "") is None:
        return []  # a test run that creates the tables from the models
    recorded = recorded_migrations(connection)
    return [name for name in migration_names() if name not in recorded]


def migrate(alias: str) -> None:
    """Apply agentdb's missing migrations, and none of other apps.

    Raises ``SchemaMismatchError`` if the tables are not what the migrations expect, and
    ``DatabaseUnavailableError``.
    """
    try:
        call_command(
            "migrate", "agentdb", database=alias, interactive=False, verbosity=0
        )
    except CommandError as error:
        cause = error.__cause__
        if isinstance(cause, AgentDbError):
            raise cause from cause.__cause__
        raise


_TEXTS = ("text", "character varying")
# The existing tables of ours, each with the type of its created_at. In the current schema, whose record of migrations
# is read: tables later in the search_path are another's. Python writes a tuple of names as SQL does.
_ON_SERVER = (
    "SELECT c.relname, format_type(a.atttypid, NULL) FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = current_schema() "
    "LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'created_at' "
    f"WHERE c.relname IN {OWN_TABLES}"
)
_ON_SQLITE = (
    "SELECT lower(m.name), lower(p.type) FROM sqlite_master AS m LEFT JOIN pragma_table_info(m.name) AS p "
    f"ON lower(p.name) = 'created_at' WHERE m.type IN ('table', 'view') AND lower(m.name) IN {OWN_TABLES}"
)


def schema_problem(connection: BaseDatabaseWrapper, place: str) -> AgentDbError | None:
    """Return why agentdb cannot work on the tables, with the command to run.

    Takes two queries if all is well.
    """
    pending = tuple(pending_migrations(connection))
    query = _ON_SQLITE if connection.vendor == "sqlite" else _ON_SERVER
    tables = dict(rows(connection, query))
    if pending:
        is_old = "agents" in tables and len(pending) == len(migration_names())
        return SchemaOutOfDateError(
            _two_schemas(connection, place) or _out_of_date(place, pending, is_old),
            pending=pending,
        )
    if missing := [name for name in OWN_TABLES if name not in tables]:
        return SchemaMismatchError(
            _two_schemas(connection, place)
            or f"{place} lacks the tables {', '.join(missing)}, though their migrations are recorded. "
            "Run 'agentdb verifydb'."
        )
    if not any(kind in _TEXTS for kind in tables.values()):
        return None
    return SchemaMismatchError(
        f"{place} holds its timestamps as text, though the migrations are recorded. Run 'agentdb verifydb'."
    )


def _two_schemas(connection: BaseDatabaseWrapper, place: str) -> str | None:
    cause = tables_elsewhere(connection, OWN_TABLES)
    if cause is None:
        return None
    return f"The search_path of {place} leads to more than one schema. {cause}"


def _out_of_date(place: str, pending: tuple[str, ...], is_old: bool) -> str:
    names = ", ".join(pending)
    if is_old:
        return (
            f"{place} was made by the old server and is not adopted yet (pending: {names}). "
            "Run 'agentdb baselinedb --check' to see what adopting it does, then 'agentdb baselinedb'."
        )
    return f"{place} lacks the migrations {names}. Run 'agentdb migrate'."


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
