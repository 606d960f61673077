"""SQLAlchemy Core: statements built by each call, as users write them, and compiled once by its cache; rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Table, case, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from agentdb.interface import SessionRecord
from benchmarks.databases import Database
from benchmarks.peers.sqlalchemy_tables import (
    Agent,
    ApiKey,
    Sandbox,
    Session,
    engine_for,
)

AGENTS, SESSIONS, SANDBOXES, API_KEYS = (
    cast(Table, model.__table__) for model in (Agent, Session, Sandbox, ApiKey)
)


def open_peer(database: Database) -> Core:
    return Core(database)


class Core:
    def __init__(self, database: Database) -> None:
        self.engine = engine_for(database)
        self.connection = self.engine.connect()
        self.execute = self.connection.execute
        self.insert_or_update: Any = (
            sqlite.insert if database.engine == "sqlite" else postgresql.insert
        )
        self.database = database

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()

    def get_agent(self, name: str, tenant_id: str = "default") -> Any:
        return self.execute(
            select(AGENTS).where(AGENTS.c.tenant_id == tenant_id, AGENTS.c.name == name)
        ).first()

    def list_agents(self, tenant_id: str = "default") -> Any:
        return self.execute(
            select(AGENTS)
            .where(AGENTS.c.tenant_id == tenant_id)
            .order_by(AGENTS.c.name)
        ).all()

    def upsert_agent(self, name: str, path: str, tenant_id: str = "default") -> Any:
        now = datetime.now(UTC)
        statement = self.insert_or_update(AGENTS).values(
            id=str(uuid.uuid4()),
            tenant_id=tenant_id,
            name=name,
            version=1,
            path=path,
            created_at=now,
            updated_at=now,
        )
        statement = statement.on_conflict_do_update(
            index_elements=["tenant_id", "name"],
            set_={"version": AGENTS.c.version + 1, "path": path, "updated_at": now},
        ).returning(*AGENTS.c)
        return self.execute(statement).one()

    def get_session(self, id: str) -> Any:
        return self.execute(select(SESSIONS).where(SESSIONS.c.id == id)).first()

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = "default"
    ) -> Any:
        now = datetime.now(UTC)
        values = {
            "id": id,
            "tenant_id": tenant_id,
            "agent_name": agent_name,
            "sandbox_id": sandbox_id,
            "status": "starting",
            "created_at": now,
            "last_active_at": now,
        }
        self.execute(insert(SESSIONS), values)
        return values

    def _update_session(self, id: str, **values: Any) -> bool:
        statement = (
            update(SESSIONS)
            .where(SESSIONS.c.id == id)
            .values(**values, last_active_at=datetime.now(UTC))
        )
        return self.execute(statement).rowcount > 0

    def update_session_status(self, id: str, status: str) -> bool:
        return self._update_session(id, status=status)

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return self._update_session(id, sandbox_id=sandbox_id)

    def update_session_runner(self, id: str, runner_id: str | None) -> bool:
        return self._update_session(id, runner_id=runner_id)

    def touch_session(self, id: str) -> bool:
        return self._update_session(id)

    def list_sessions(
        self,
        tenant_id: str = "default",
        agent: str | None = None,
        *,
        limit: int | None = None,
        before: SessionRecord | None = None,
    ) -> Any:
        statement = (
            select(SESSIONS)
            .where(SESSIONS.c.tenant_id == tenant_id)
            .order_by(SESSIONS.c.created_at.desc(), SESSIONS.c.id.desc())
        )
        if agent is not None:
            statement = statement.where(SESSIONS.c.agent_name == agent)
        if before is not None:
            statement = statement.where(
                tuple_(SESSIONS.c.created_at, SESSIONS.c.id)
                < (before.created_at, before.id)
            )
        if limit is not None:
            statement = statement.limit(limit)
        return self.execute(statement).all()

    def list_sessions_by_runner(self, runner_id: str) -> Any:
        return self.execute(
            select(SESSIONS)
            .where(SESSIONS.c.runner_id == runner_id)
            .order_by(SESSIONS.c.created_at.desc(), SESSIONS.c.id.desc())
        ).all()

    def get_sandbox(self, id: str) -> Any:
        return self.execute(select(SANDBOXES).where(SANDBOXES.c.id == id)).first()

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = "default",
    ) -> Any:
        now = datetime.now(UTC)
        values = {
            "id": id,
            "tenant_id": tenant_id,
            "session_id": session_id,
            "agent_name": agent_name,
            "state": "warming",
            "workspace_dir": workspace_dir,
            "created_at": now,
            "last_used_at": now,
        }
        self.execute(insert(SANDBOXES), values)
        return values

    def _update_sandbox(self, id: str, **values: Any) -> bool:
        return (
            self.execute(
                update(SANDBOXES).where(SANDBOXES.c.id == id).values(**values)
            ).rowcount
            > 0
        )

    def update_sandbox_state(self, id: str, state: str) -> bool:
        return self._update_sandbox(id, state=state)

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self._update_sandbox(id, session_id=session_id)

    def touch_sandbox(self, id: str) -> bool:
        return self._update_sandbox(id, last_used_at=datetime.now(UTC))

    def count_sandboxes(self) -> Any:
        return self.execute(select(func.count()).select_from(SANDBOXES)).scalar_one()

    def get_best_eviction_candidate(self) -> Any:
        rank = case({"cold": 0, "warm": 1, "waiting": 2}, value=SANDBOXES.c.state)
        return self.execute(
            select(SANDBOXES)
            .where(SANDBOXES.c.state.in_(("cold", "warm", "waiting")))
            .order_by(rank, SANDBOXES.c.last_used_at, SANDBOXES.c.id)
            .limit(1)
        ).first()

    def _unused(self, state: str, older_than: datetime) -> Any:
        return self.execute(
            select(SANDBOXES)
            .where(SANDBOXES.c.state == state, SANDBOXES.c.last_used_at < older_than)
            .order_by(SANDBOXES.c.last_used_at, SANDBOXES.c.id)
        ).all()

    def get_idle_sandboxes(self, older_than: datetime) -> Any:
        return self._unused("waiting", older_than)

    def get_cold_sandboxes(self, older_than: datetime) -> Any:
        return self._unused("cold", older_than)

    def delete_sandbox(self, id: str) -> bool:
        return self.execute(delete(SANDBOXES).where(SANDBOXES.c.id == id)).rowcount > 0

    def get_api_key_by_hash(self, key_hash: str) -> Any:
        return self.execute(
            select(API_KEYS).where(API_KEYS.c.key_hash == key_hash)
        ).first()

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str, label: str) -> Any:
        values = {
            "id": id,
            "tenant_id": tenant_id,
            "key_hash": key_hash,
            "label": label,
            "created_at": datetime.now(UTC),
        }
        self.execute(insert(API_KEYS), values)
        return values

    def list_api_keys_by_tenant(self, tenant_id: str) -> Any:
        return self.execute(
            select(API_KEYS)
            .where(API_KEYS.c.tenant_id == tenant_id)
            .order_by(API_KEYS.c.created_at.desc(), API_KEYS.c.id.desc())
        ).all()

    def delete_api_key(self, id: str) -> bool:
        return self.execute(delete(API_KEYS).where(API_KEYS.c.id == id)).rowcount > 0

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self.execute(
            update(SESSIONS)
            .where(
                SESSIONS.c.runner_id == runner_id,
                SESSIONS.c.status.in_(("active", "starting")),
            )
            .values(status="paused", last_active_at=datetime.now(UTC))
        ).rowcount

    def bulk_pause_active_sessions(self) -> int:
        return self.execute(
            update(SESSIONS)
            .where(SESSIONS.c.status.in_(("active", "starting")))
            .values(status="paused", last_active_at=datetime.now(UTC))
        ).rowcount

    def mark_all_sandboxes_cold(self) -> int:
        return self.execute(
            update(SANDBOXES).where(SANDBOXES.c.state != "cold").values(state="cold")
        ).rowcount

    def run_transaction(self, fn: Callable[[Any], Any]) -> Any:
        self.connection.exec_driver_sql(
            "BEGIN IMMEDIATE" if self.database.engine == "sqlite" else "BEGIN"
        )
        result = fn(self)
        self.connection.exec_driver_sql("COMMIT")
        return result
