"""The smallest valid rows, and a way around the Db to look at them and to set what it would not set."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from agentdb.conf import database_from_url
from agentdb.interface import AgentRecord, ApiKeyRecord, Db, SandboxRecord, SessionRecord

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def instant(seconds: float = 0) -> datetime:
    """Return an instant so many seconds after a fixed one."""
    return START + timedelta(seconds=seconds)


def make_agent(db: Db, name: str = "support-bot", path: str = "/srv/agents/support", **values: Any) -> AgentRecord:
    return db.upsert_agent(name, path, **values)


def make_session(
    db: Db, id: str = "s1", agent_name: str = "support-bot", sandbox_id: str = "sb1", **values: Any
) -> SessionRecord:
    return db.insert_session(id, agent_name, sandbox_id, **values)


def make_sandbox(
    db: Db, id: str = "sb1", agent_name: str = "support-bot", workspace_dir: str = "/tmp/sb1", **values: Any
) -> SandboxRecord:
    return db.insert_sandbox(id, agent_name, workspace_dir, **values)


def make_api_key(
    db: Db, id: str = "k1", tenant_id: str = "acme", key_hash: str = "hash-1", label: str = "ci"
) -> ApiKeyRecord:
    return db.insert_api_key(id, tenant_id, key_hash, label)


def sqlite_path(url: str) -> str:
    return str(database_from_url(url)["NAME"])


def execute(url: str, sql: str, *params: object) -> list[tuple[Any, ...]]:
    """Run SQL with ``?`` placeholders on a connection of its own, as another program would; commit; return the rows."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(sqlite_path(url), timeout=30)) as connection, connection:
            texts = [str(p.astimezone(UTC).replace(tzinfo=None)) if isinstance(p, datetime) else p for p in params]
            return connection.execute(sql, texts).fetchall()
    with psycopg.connect(url.replace("cockroachdb:", "postgresql:"), autocommit=True) as server:
        cursor = server.execute(sql.replace("?", "%s").encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def set_column(url: str, table: str, id: str, **values: object) -> None:
    """Set columns of one row to what the Db would not set, timestamps above all."""
    assignments = ", ".join(f"{column} = ?" for column in values)
    execute(url, f"UPDATE {table} SET {assignments} WHERE id = ?", *values.values(), id)
