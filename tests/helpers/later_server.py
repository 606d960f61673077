"""The newest old server's calls on PostgreSQL, with the statements and the values that it sends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self

import psycopg
from psycopg.rows import dict_row

# What its migrations add to the four tables of its first release with migrations of its own.
NEWER_COLUMNS = (
    "ALTER TABLE agents ADD COLUMN env text, ADD COLUMN config text, ADD COLUMN active_version_id text",
    "ALTER TABLE sessions ADD COLUMN parent_session_id text, ADD COLUMN model text, ADD COLUMN config text",
)


class LaterServer:
    """One connection of it. Values are texts without a type, its instants too, and each statement commits by itself."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def upsert_agent(self, id: str, name: str, path: str, tenant_id: str) -> None:
        """Read, then write: of two at once one version is lost."""
        found = self._ask(
            "SELECT id, version FROM agents WHERE tenant_id = %s AND name = %s",
            tenant_id,
            name,
        )
        version = found[0]["version"] + 1 if found else 1
        self._ask(
            "INSERT INTO agents (id, tenant_id, name, version, path, env, config, active_version_id, created_at,"
            " updated_at) VALUES (%s, %s, %s, %s, %s, %s, DEFAULT, DEFAULT, %s, %s)"
            " ON CONFLICT (tenant_id, name) DO UPDATE SET version = %s, path = %s, updated_at = %s",
            *(
                found[0]["id"] if found else id,
                tenant_id,
                name,
                version,
                path,
                '{"A": "1"}',
                _now(),
                _now(),
            ),
            *(version, path, _now()),
        )

    def get_agent(self, name: str, tenant_id: str) -> dict[str, Any]:
        return self._ask(
            "SELECT * FROM agents WHERE tenant_id = %s AND name = %s LIMIT %s",
            tenant_id,
            name,
            1,
        )[0]

    def delete_agent(self, name: str, tenant_id: str) -> None:
        self._ask(
            "DELETE FROM sessions WHERE agent_name = %s AND tenant_id = %s",
            name,
            tenant_id,
        )
        self._ask(
            "DELETE FROM agents WHERE name = %s AND tenant_id = %s", name, tenant_id
        )

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str
    ) -> None:
        self._ask(
            "INSERT INTO sessions (id, tenant_id, agent_name, sandbox_id, status, runner_id, parent_session_id, model,"
            " config, created_at, last_active_at) VALUES (%s, %s, %s, %s, %s, DEFAULT, %s, %s, %s, %s, %s)",
            *(
                id,
                tenant_id,
                agent_name,
                sandbox_id,
                "starting",
                None,
                "a-model",
                None,
                _now(),
                _now(),
            ),
        )

    def get_session(self, id: str) -> dict[str, Any]:
        return self._ask("SELECT * FROM sessions WHERE id = %s LIMIT %s", id, 1)[0]

    def list_sessions(self, tenant_id: str) -> list[str]:
        sql = "SELECT * FROM sessions WHERE tenant_id = %s ORDER BY created_at DESC"
        return [row["id"] for row in self._ask(sql, tenant_id)]

    def update_session(self, id: str, column: str, value: str | None) -> None:
        self._ask(
            f"UPDATE sessions SET {column} = %s, last_active_at = %s WHERE id = %s",
            value,
            _now(),
            id,
        )

    def touch_session(self, id: str) -> None:
        self._ask("UPDATE sessions SET last_active_at = %s WHERE id = %s", _now(), id)

    def pause_sessions_of(self, runner_id: str) -> None:
        self._ask(
            "UPDATE sessions SET status = %s, last_active_at = %s WHERE runner_id = %s AND status IN (%s, %s)",
            *("paused", _now(), runner_id, "active", "starting"),
        )

    def insert_message(self, id: str, session_id: str, tenant_id: str) -> None:
        self._ask(
            "INSERT INTO messages (id, tenant_id, session_id, role, content, sequence, created_at) VALUES (%s, %s, %s,"
            " %s, %s, COALESCE((SELECT MAX(sequence) FROM messages WHERE tenant_id = %s AND session_id = %s), 0) + 1,"
            " %s)",
            *(
                id,
                tenant_id,
                session_id,
                "user",
                "hello",
                tenant_id,
                session_id,
                _now(),
            ),
        )

    def insert_sandbox(
        self, id: str, agent_name: str, session_id: str, tenant_id: str
    ) -> None:
        self._ask(
            "INSERT INTO sandboxes (id, tenant_id, session_id, agent_name, state, workspace_dir, created_at,"
            " last_used_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            *(id, tenant_id, session_id, agent_name, "warming", "/w", _now(), _now()),
        )

    def update_sandbox_state(self, id: str, state: str) -> None:
        self._ask("UPDATE sandboxes SET state = %s WHERE id = %s", state, id)

    def touch_sandbox(self, id: str) -> None:
        self._ask("UPDATE sandboxes SET last_used_at = %s WHERE id = %s", _now(), id)

    def unused_sandboxes(self, state: str, before: datetime) -> list[str]:
        sql = "SELECT * FROM sandboxes WHERE state = %s AND last_used_at < %s ORDER BY last_used_at"
        return [row["id"] for row in self._ask(sql, state, _text(before))]

    def best_eviction_candidate(self) -> str:
        return str(
            self._ask(
                "SELECT * FROM sandboxes WHERE state IN (%s, %s, %s) ORDER BY CASE state WHEN 'cold' THEN 0"
                " WHEN 'warm' THEN 1 WHEN 'waiting' THEN 2 END, last_used_at LIMIT %s",
                *("cold", "warm", "waiting", 1),
            )[0]["id"]
        )

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str) -> None:
        self._ask(
            "INSERT INTO api_keys (id, tenant_id, key_hash, label, created_at) VALUES (%s, %s, %s, %s, %s)",
            *(id, tenant_id, key_hash, "a label", _now()),
        )

    def _ask(self, sql: str, *values: object) -> list[dict[str, Any]]:
        cursor = self._connection.execute(sql.encode(), values)
        return cursor.fetchall() if cursor.description else []


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(instant: datetime) -> str:
    """As JavaScript's toISOString() writes it."""
    return (
        instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        + f"{instant.microsecond // 1000:03}Z"
    )
