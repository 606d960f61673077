"""Retention: finished sessions that are older than an age, and the rows of other tables that name them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from django.db import connections

from agentdb.interface import Db
from agentdb.models import Session
from agentdb.querysets import SessionQuerySet
from agentdb.schema.other_tables import (
    check_session_tables,
    rows_with_session,
    session_tables,
)
from agentdb.schema.queries import run

# A batch is one transaction, and locks its rows until it ends: a fraction of a second for so many.
_BATCH = 1000
_LOCK_TIMEOUT_SECONDS = 5


def finished_sessions(
    alias: str,
    tenant: str | None,
    ended_before: datetime,
) -> SessionQuerySet:
    """Return the sessions to delete: of one tenant, or of all for ``None``."""
    sessions = Session.objects.using(alias).finished().idle_since(ended_before)
    if tenant is None:
        return sessions
    return sessions.of_tenant(tenant)


def rows_naming(sessions: SessionQuerySet, also: tuple[str, ...]) -> dict[str, int]:
    """Return how many rows of other tables name the sessions, for each table that has such rows or is in ``also``.

    Raises ``InvalidInputError`` for a name in ``also`` that is not a table with a ``session_id``.
    """
    connection = connections[sessions.db]
    check_session_tables(connection, also)
    ids = sessions.values("id")
    counts = {}
    for table in session_tables(connection):
        rows = rows_with_session(table).using(sessions.db)
        count = rows.filter(session_id__in=ids).count()
        if count or table in also:
            counts[table] = count
    return counts


def prune(
    db: Db, alias: str, ended_before: datetime, also: tuple[str, ...]
) -> Iterator[int]:
    """Delete the sessions in batches, each committed at once; yield the size of each batch."""
    # A blocked batch fails after a while instead of blocking everybody behind it. SQLite waits at most 30 seconds
    # by itself.
    connection = connections[alias]
    if connection.vendor != "sqlite":
        run(connection, f"SET lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'")
    while batch := db.prune_sessions(ended_before, _BATCH, also=also):
        yield batch
