"""Finds the migrations that a database lacks, and applies them."""

from __future__ import annotations

import pkgutil
from contextlib import nullcontext
from functools import cache
from pathlib import Path

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError
from agentdb.faults import is_missing_table
from agentdb.schema.queries import rows

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


def migrate(alias: str, *, verbosity: int = 0) -> None:
    """Apply agentdb's missing migrations, and none of other apps.

    Raises ``SchemaMismatchError`` if the tables are not what the migrations expect, and
    ``DatabaseUnavailableError``.
    """
    try:
        call_command(
            "migrate", "agentdb", database=alias, interactive=False, verbosity=verbosity
        )
    except CommandError as error:
        cause = error.__cause__
        if isinstance(cause, AgentDbError):
            raise cause from cause.__cause__
        raise
