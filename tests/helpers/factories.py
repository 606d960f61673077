"""The smallest valid rows, and a way around the Db to look at them and to set what it would not set."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg

from agentdb import Db, SandboxRecord
from agentdb.conf import database_from_url
from agentdb.testing.conformance.subject import (
    instant,
    make_agent,
    make_api_key,
    make_session,
)

__all__ = [
    "execute",
    "instant",
    "make_agent",
    "make_api_key",
    "make_sandbox",
    "make_session",
    "set_column",
]


def make_sandbox(
    db: Db,
    id: str = "sb1",
    agent_name: str = "support-bot",
    workspace_dir: str = "/tmp/sb1",
    **values: Any,
) -> SandboxRecord:
    return db.insert_sandbox(
        id,
        agent_name,
        workspace_dir,
        **values,
    )


def sqlite_path(url: str) -> str:
    assert url.startswith("sqlite:"), url  # SQLite would make a file of any name
    return str(database_from_url(url)["NAME"])


def execute(url: str, sql: str, *params: object) -> list[tuple[Any, ...]]:
    """Run SQL with ``?`` placeholders on a connection of its own, as another program would; commit; return the rows."""
    if url.startswith("sqlite"):
        with (
            closing(sqlite3.connect(sqlite_path(url), timeout=30)) as connection,
            connection,
        ):
            texts = [
                str(p.astimezone(UTC).replace(tzinfo=None))
                if isinstance(p, datetime)
                else p
                for p in params
            ]
            # No test of these cuts the power, and waiting for the disk takes most of the time of many.
            connection.execute("PRAGMA synchronous=OFF")
            return connection.execute(sql, texts).fetchall()
    with psycopg.connect(
        url.replace("cockroachdb:", "postgresql:"), autocommit=True
    ) as server:
        cursor = server.execute(sql.replace("?", "%s").encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def set_column(url: str, table: str, id: str, **values: object) -> None:
    """Set columns of one row to what the Db would not set, timestamps above all."""
    assignments = ", ".join(f"{column} = ?" for column in values)
    execute(url, f"UPDATE {table} SET {assignments} WHERE id = ?", *values.values(), id)
