"""The limit: hand-written SQL on sqlite3 or psycopg (prepared), kept connections and cursors, the same records."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import starmap
from typing import Any, Protocol

import psycopg

from agentdb import AgentRecord, ApiKeyRecord, SandboxRecord, SessionRecord
from benchmarks.databases import Database

AGENT = "id, tenant_id, name, version, path, created_at, updated_at"
SESSION = "id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at"
SANDBOX = "id, tenant_id, session_id, agent_name, state, workspace_dir, created_at, last_used_at"
API_KEY = "id, tenant_id, key_hash, label, created_at"

GET_SESSION = f"SELECT {SESSION} FROM sessions WHERE id = ?"


def open_peer(database: Database) -> Raw:
    return RawSqlite(database) if database.engine == "sqlite" else RawPostgres(database)


class Cursor(Protocol):
    """What the cursors of both drivers have."""

    rowcount: int

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...


class Raw:
    """Statements and rows; what differs per driver is in the subclasses."""

    execute: Callable[..., Cursor]
    close: Callable[[], None]
    now: Callable[[], datetime]
    stored: Callable[[datetime], Any]
    agent: Callable[..., AgentRecord]
    session: Callable[..., SessionRecord]
    sandbox: Callable[..., SandboxRecord]
    api_key: Callable[..., ApiKeyRecord]
    begin: str
    begin_serializable: str

    def __init__(self, mark: str, code_point: str) -> None:
        def sql(text: str) -> str:
            return text.replace("?", mark).replace("{C}", code_point)

        newest = "ORDER BY created_at DESC, id{C} DESC"
        oldest = "ORDER BY last_used_at, id{C}"
        self.GET_AGENT = sql(
            f"SELECT {AGENT} FROM agents WHERE tenant_id = ? AND name = ?"
        )
        self.LIST_AGENTS = sql(
            f"SELECT {AGENT} FROM agents WHERE tenant_id = ? ORDER BY name{{C}}"
        )
        self.UPSERT_AGENT = sql(
            f"INSERT INTO agents ({AGENT}) VALUES (?, ?, ?, 1, ?, ?, ?) ON CONFLICT (tenant_id, name) DO UPDATE SET "
            f"version = agents.version + 1, path = excluded.path, updated_at = excluded.updated_at RETURNING {AGENT}"
        )
        self.DELETE_AGENT = sql("DELETE FROM agents WHERE tenant_id = ? AND name = ?")
        self.DELETE_SESSIONS = sql(
            "DELETE FROM sessions WHERE tenant_id = ? AND agent_name = ?"
        )
        self.GET_SESSION = sql(GET_SESSION)
        self.INSERT_SESSION = sql(
            f"INSERT INTO sessions ({SESSION}) VALUES (?, ?, ?, ?, 'starting', NULL, ?, ?)"
        )
        self.UPDATE_STATUS = sql(
            "UPDATE sessions SET status = ?, last_active_at = ? WHERE id = ?"
        )
        self.UPDATE_SANDBOX = sql(
            "UPDATE sessions SET sandbox_id = ?, last_active_at = ? WHERE id = ?"
        )
        self.UPDATE_RUNNER = sql(
            "UPDATE sessions SET runner_id = ?, last_active_at = ? WHERE id = ?"
        )
        self.TOUCH_SESSION = sql("UPDATE sessions SET last_active_at = ? WHERE id = ?")
        self.LIST_SESSIONS = sql(
            f"SELECT {SESSION} FROM sessions WHERE tenant_id = ? {newest}"
        )
        self.LIST_SESSIONS_LIMIT = sql(
            f"SELECT {SESSION} FROM sessions WHERE tenant_id = ? {newest} LIMIT ?"
        )
        self.LIST_SESSIONS_AFTER = sql(
            f"SELECT {SESSION} FROM sessions WHERE tenant_id = ? AND (created_at, id{{C}}) < (?, ?) {newest} LIMIT ?"
        )
        self.LIST_SESSIONS_AGENT = sql(
            f"SELECT {SESSION} FROM sessions WHERE tenant_id = ? AND agent_name = ? {newest}"
        )
        self.LIST_SESSIONS_BY_RUNNER = sql(
            f"SELECT {SESSION} FROM sessions WHERE runner_id = ? {newest}"
        )
        self.PAUSE_BY_RUNNER = sql(
            "UPDATE sessions SET status = 'paused', last_active_at = ? "
            "WHERE runner_id = ? AND status IN ('active', 'starting')"
        )
        self.PAUSE_ALL = sql(
            "UPDATE sessions SET status = 'paused', last_active_at = ? WHERE status IN ('active', 'starting')"
        )
        self.CLAIM_SESSION = sql(
            "UPDATE sessions SET runner_id = ?, last_active_at = ? WHERE id = ? "
            "AND (runner_id IS NULL OR runner_id = ? OR status = 'paused') "
            f"AND status NOT IN ('ended', 'stopped', 'error') RETURNING {SESSION}"
        )
        ids = "IN (SELECT value FROM json_each(?))" if mark == "?" else "= ANY(?)"
        self.TOUCH_SESSIONS = sql(
            f"UPDATE sessions SET last_active_at = ? WHERE id {ids} RETURNING id"
        )
        self.GET_SANDBOX = sql(f"SELECT {SANDBOX} FROM sandboxes WHERE id = ?")
        self.INSERT_SANDBOX = sql(
            f"INSERT INTO sandboxes ({SANDBOX}) VALUES (?, ?, ?, ?, 'warming', ?, ?, ?)"
        )
        self.UPDATE_STATE = sql("UPDATE sandboxes SET state = ? WHERE id = ?")
        self.UPDATE_SESSION = sql("UPDATE sandboxes SET session_id = ? WHERE id = ?")
        self.TOUCH_SANDBOX = sql("UPDATE sandboxes SET last_used_at = ? WHERE id = ?")
        self.EVICTION = sql(
            " UNION ALL ".join(
                f"SELECT * FROM (SELECT {SANDBOX} FROM sandboxes WHERE state = '{state}' {oldest} LIMIT 1) {state}"
                for state in ("cold", "warm", "waiting")
            )
            + " LIMIT 1"
        )
        self.CLAIM_WARM = sql(
            "UPDATE sandboxes SET state = 'waiting', session_id = ?, last_used_at = ? WHERE id = ("
            "SELECT id FROM sandboxes WHERE tenant_id = ? AND agent_name = ? AND state = 'warm' AND session_id IS NULL "
            f"{oldest} LIMIT 1{'' if mark == '?' else ' FOR UPDATE SKIP LOCKED'}) RETURNING {SANDBOX}"
        )
        self.UNUSED = sql(
            f"SELECT {SANDBOX} FROM sandboxes WHERE state = ? AND last_used_at < ? {oldest}"
        )
        self.DELETE_SANDBOX = sql("DELETE FROM sandboxes WHERE id = ?")
        self.GET_API_KEY = sql(f"SELECT {API_KEY} FROM api_keys WHERE key_hash = ?")
        self.INSERT_API_KEY = sql(
            f"INSERT INTO api_keys ({API_KEY}) VALUES (?, ?, ?, ?, ?)"
        )
        self.LIST_API_KEYS = sql(
            f"SELECT {API_KEY} FROM api_keys WHERE tenant_id = ? {newest}"
        )
        self.DELETE_API_KEY = sql("DELETE FROM api_keys WHERE id = ?")

    def get_agent(self, name: str, tenant_id: str = "default") -> AgentRecord | None:
        row = self.execute(self.GET_AGENT, (tenant_id, name)).fetchone()
        return self.agent(*row) if row else None

    def list_agents(self, tenant_id: str = "default") -> list[AgentRecord]:
        return list(
            starmap(self.agent, self.execute(self.LIST_AGENTS, (tenant_id,)).fetchall())
        )

    def upsert_agent(
        self, name: str, path: str, tenant_id: str = "default"
    ) -> AgentRecord:
        now = self.stored(datetime.now(UTC))
        cursor = self.execute(
            self.UPSERT_AGENT, (str(uuid.uuid4()), tenant_id, name, path, now, now)
        )
        # To the end: SQLite commits when the statement is done.
        [row] = cursor.fetchall()
        return self.agent(*row)

    def delete_agent(self, name: str, tenant_id: str = "default") -> bool:
        self.execute(self.begin)
        self.execute(self.DELETE_SESSIONS, (tenant_id, name))
        deleted = self.execute(self.DELETE_AGENT, (tenant_id, name)).rowcount > 0
        self.execute("COMMIT")
        return deleted

    def get_session(self, id: str) -> SessionRecord | None:
        row = self.execute(self.GET_SESSION, (id,)).fetchone()
        return self.session(*row) if row else None

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = "default"
    ) -> SessionRecord:
        now = datetime.now(UTC)
        stored = self.stored(now)
        self.execute(
            self.INSERT_SESSION, (id, tenant_id, agent_name, sandbox_id, stored, stored)
        )
        return SessionRecord(
            id, tenant_id, agent_name, sandbox_id, "starting", None, now, now
        )

    def update_session_status(self, id: str, status: str) -> bool:
        return (
            self.execute(
                self.UPDATE_STATUS, (status, self.stored(datetime.now(UTC)), id)
            ).rowcount
            > 0
        )

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return (
            self.execute(
                self.UPDATE_SANDBOX, (sandbox_id, self.stored(datetime.now(UTC)), id)
            ).rowcount
            > 0
        )

    def update_session_runner(self, id: str, runner_id: str | None) -> bool:
        return (
            self.execute(
                self.UPDATE_RUNNER, (runner_id, self.stored(datetime.now(UTC)), id)
            ).rowcount
            > 0
        )

    def touch_session(self, id: str) -> bool:
        return (
            self.execute(
                self.TOUCH_SESSION, (self.stored(datetime.now(UTC)), id)
            ).rowcount
            > 0
        )

    def list_sessions(
        self,
        tenant_id: str = "default",
        agent: str | None = None,
        *,
        limit: int | None = None,
        before: SessionRecord | None = None,
    ) -> list[SessionRecord]:
        if before is not None:
            cursor = self.execute(
                self.LIST_SESSIONS_AFTER,
                (tenant_id, self.stored(before.created_at), before.id, limit),
            )
        elif agent is not None:
            cursor = self.execute(self.LIST_SESSIONS_AGENT, (tenant_id, agent))
        elif limit is not None:
            cursor = self.execute(self.LIST_SESSIONS_LIMIT, (tenant_id, limit))
        else:
            cursor = self.execute(self.LIST_SESSIONS, (tenant_id,))
        return list(starmap(self.session, cursor.fetchall()))

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        return list(
            starmap(
                self.session,
                self.execute(self.LIST_SESSIONS_BY_RUNNER, (runner_id,)).fetchall(),
            )
        )

    def claim_session(self, id: str, runner_id: str) -> SessionRecord | None:
        values = (runner_id, self.stored(datetime.now(UTC)), id, runner_id)
        rows = self.execute(self.CLAIM_SESSION, values).fetchall()
        return self.session(*rows[0]) if rows else None

    def touch_sessions(self, ids: list[str]) -> list[str]:
        given = json.dumps(ids) if self.begin == RawSqlite.begin else ids
        rows = self.execute(
            self.TOUCH_SESSIONS, (self.stored(datetime.now(UTC)), given)
        ).fetchall()
        touched = {id for (id,) in rows}
        return [id for id in ids if id in touched]

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self.execute(
            self.PAUSE_BY_RUNNER, (self.stored(datetime.now(UTC)), runner_id)
        ).rowcount

    def bulk_pause_active_sessions(self) -> int:
        return self.execute(self.PAUSE_ALL, (self.stored(datetime.now(UTC)),)).rowcount

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        row = self.execute(self.GET_SANDBOX, (id,)).fetchone()
        return self.sandbox(*row) if row else None

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = "default",
    ) -> SandboxRecord:
        now = datetime.now(UTC)
        stored = self.stored(now)
        self.execute(
            self.INSERT_SANDBOX,
            (id, tenant_id, session_id, agent_name, workspace_dir, stored, stored),
        )
        return SandboxRecord(
            id, tenant_id, session_id, agent_name, "warming", workspace_dir, now, now
        )

    def update_sandbox_state(self, id: str, state: str) -> bool:
        return self.execute(self.UPDATE_STATE, (state, id)).rowcount > 0

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self.execute(self.UPDATE_SESSION, (session_id, id)).rowcount > 0

    def touch_sandbox(self, id: str) -> bool:
        return (
            self.execute(
                self.TOUCH_SANDBOX, (self.stored(datetime.now(UTC)), id)
            ).rowcount
            > 0
        )

    def count_sandboxes(self) -> int:
        count: int = self.execute("SELECT count(*) FROM sandboxes").fetchone()[0]
        return count

    def get_best_eviction_candidate(self) -> SandboxRecord | None:
        row = self.execute(self.EVICTION).fetchone()
        return self.sandbox(*row) if row else None

    def claim_warm_sandbox(
        self, agent_name: str, session_id: str, tenant_id: str = "default"
    ) -> SandboxRecord | None:
        values = (session_id, self.stored(datetime.now(UTC)), tenant_id, agent_name)
        rows = self.execute(self.CLAIM_WARM, values).fetchall()
        return self.sandbox(*rows[0]) if rows else None

    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return list(
            starmap(
                self.sandbox,
                self.execute(
                    self.UNUSED, ("waiting", self.stored(older_than))
                ).fetchall(),
            )
        )

    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return list(
            starmap(
                self.sandbox,
                self.execute(self.UNUSED, ("cold", self.stored(older_than))).fetchall(),
            )
        )

    def delete_sandbox(self, id: str) -> bool:
        return self.execute(self.DELETE_SANDBOX, (id,)).rowcount > 0

    def mark_all_sandboxes_cold(self) -> int:
        return self.execute(
            "UPDATE sandboxes SET state = 'cold' WHERE state <> 'cold'"
        ).rowcount

    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        row = self.execute(self.GET_API_KEY, (key_hash,)).fetchone()
        return self.api_key(*row) if row else None

    def insert_api_key(
        self, id: str, tenant_id: str, key_hash: str, label: str
    ) -> ApiKeyRecord:
        now = datetime.now(UTC)
        self.execute(
            self.INSERT_API_KEY, (id, tenant_id, key_hash, label, self.stored(now))
        )
        return ApiKeyRecord(id, tenant_id, key_hash, label, now)

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        return list(
            starmap(
                self.api_key, self.execute(self.LIST_API_KEYS, (tenant_id,)).fetchall()
            )
        )

    def delete_api_key(self, id: str) -> bool:
        return self.execute(self.DELETE_API_KEY, (id,)).rowcount > 0

    def run_transaction(self, fn: Callable[[Any], Any]) -> Any:
        """Serializable, because less would not be the same transaction."""
        self.execute(self.begin_serializable)
        result = fn(self)
        self.execute("COMMIT")
        return result


class RawSqlite(Raw):
    begin = begin_serializable = "BEGIN IMMEDIATE"

    def __init__(self, database: Database) -> None:
        super().__init__("?", "")
        connection: Any = sqlite3.connect(
            database.path, isolation_level=None, timeout=30
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={database.synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        self.connection = connection
        self.execute = connection.execute
        self.close = connection.close
        self.stored = _sqlite_text
        self.agent = _sqlite_agent
        self.session = _sqlite_session
        self.sandbox = _sqlite_sandbox
        self.api_key = _sqlite_api_key


class RawPostgres(Raw):
    begin = "BEGIN"
    begin_serializable = "BEGIN ISOLATION LEVEL SERIALIZABLE"

    def __init__(self, database: Database) -> None:
        super().__init__("%s", ' COLLATE "C"')
        connection: Any = connect_postgres(database)
        self.connection = connection
        self.execute = connection.cursor().execute
        self.close = connection.close
        self.stored = _as_it_is
        self.agent = AgentRecord
        self.session = SessionRecord
        self.sandbox = SandboxRecord
        self.api_key = ApiKeyRecord

    def run_read_committed(self, fn: Callable[[Any], Any]) -> Any:
        """What a plain BEGIN gives on PostgreSQL, for comparison."""
        self.execute(self.begin)
        result = fn(self)
        self.execute("COMMIT")
        return result


def connect_postgres(database: Database) -> psycopg.Connection[Any]:
    return psycopg.connect(
        database.url, autocommit=True, prepare_threshold=0, options="-c TimeZone=UTC"
    )


def _as_it_is(instant: datetime) -> datetime:
    return instant


def _sqlite_text(instant: datetime) -> str:
    return str(instant.replace(tzinfo=None))


# SQLite keeps naive UTC text. One that ends in "+00:00" is parsed into an aware datetime in one step.
_parse = datetime.fromisoformat


def _sqlite_agent(
    id: str,
    tenant_id: str,
    name: str,
    version: int,
    path: str,
    created_at: str,
    updated_at: str,
) -> AgentRecord:
    return AgentRecord(
        id,
        tenant_id,
        name,
        version,
        path,
        _parse(created_at + "+00:00"),
        _parse(updated_at + "+00:00"),
    )


def _sqlite_session(
    id: str,
    tenant_id: str,
    agent_name: str,
    sandbox_id: str,
    status: str,
    runner_id: str | None,
    created_at: str,
    last_active_at: str,
) -> SessionRecord:
    return SessionRecord(
        id,
        tenant_id,
        agent_name,
        sandbox_id,
        status,
        runner_id,
        _parse(created_at + "+00:00"),
        _parse(last_active_at + "+00:00"),
    )


def _sqlite_sandbox(
    id: str,
    tenant_id: str,
    session_id: str | None,
    agent_name: str,
    state: str,
    workspace_dir: str,
    created_at: str,
    last_used_at: str,
) -> SandboxRecord:
    return SandboxRecord(
        id,
        tenant_id,
        session_id,
        agent_name,
        state,
        workspace_dir,
        _parse(created_at + "+00:00"),
        _parse(last_used_at + "+00:00"),
    )


def _sqlite_api_key(
    id: str, tenant_id: str, key_hash: str, label: str, created_at: str
) -> ApiKeyRecord:
    return ApiKeyRecord(id, tenant_id, key_hash, label, _parse(created_at + "+00:00"))
