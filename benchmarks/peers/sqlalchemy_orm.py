"""SQLAlchemy's ORM: a ``Session`` per call on a kept connection, and entities."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import case, delete, func, select, tuple_, update
from sqlalchemy.orm import Session as OrmSession

from agentdb.interface import SessionRecord
from benchmarks.databases import Database
from benchmarks.peers.sqlalchemy_core import Core
from benchmarks.peers.sqlalchemy_tables import Agent, ApiKey, Sandbox, Session


def open_peer(database: Database) -> Orm:
    return Orm(database)


class Orm:
    """What the ORM has no other way for than Core, upserts and transactions by hand, is Core's to measure."""

    def __init__(self, database: Database) -> None:
        self.core = Core(database)
        self.connection = self.core.connection

    def close(self) -> None:
        self.core.close()

    def session(self) -> OrmSession:
        return OrmSession(self.connection, expire_on_commit=False)

    def _one(self, statement: Any) -> Any:
        with self.session() as session:
            return session.scalars(statement).first()

    def _all(self, statement: Any) -> Any:
        with self.session() as session:
            return session.scalars(statement).all()

    def _count(self, statement: Any) -> int:
        with self.session() as session:
            count: int = session.execute(
                statement, execution_options={"synchronize_session": False}
            ).rowcount  # type: ignore[attr-defined]
            session.commit()
        return count

    def _add(self, entity: Any) -> Any:
        with self.session() as session:
            session.add(entity)
            session.commit()
        return entity

    def get_agent(self, name: str, tenant_id: str = "default") -> Any:
        return self._one(
            select(Agent).where(Agent.tenant_id == tenant_id, Agent.name == name)
        )

    def list_agents(self, tenant_id: str = "default") -> Any:
        return self._all(
            select(Agent).where(Agent.tenant_id == tenant_id).order_by(Agent.name)
        )

    def get_session(self, id: str) -> Any:
        with self.session() as session:
            return session.get(Session, id)

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = "default"
    ) -> Any:
        now = datetime.now(UTC)
        return self._add(
            Session(
                id=id,
                tenant_id=tenant_id,
                agent_name=agent_name,
                sandbox_id=sandbox_id,
                status="starting",
                created_at=now,
                last_active_at=now,
            )
        )

    def _update_session(self, id: str, **values: Any) -> bool:
        return (
            self._count(
                update(Session)
                .where(Session.id == id)
                .values(**values, last_active_at=datetime.now(UTC))
            )
            > 0
        )

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
            select(Session)
            .where(Session.tenant_id == tenant_id)
            .order_by(Session.created_at.desc(), Session.id.desc())
        )
        if agent is not None:
            statement = statement.where(Session.agent_name == agent)
        if before is not None:
            statement = statement.where(
                tuple_(Session.created_at, Session.id) < (before.created_at, before.id)
            )
        if limit is not None:
            statement = statement.limit(limit)
        return self._all(statement)

    def list_sessions_by_runner(self, runner_id: str) -> Any:
        return self._all(
            select(Session)
            .where(Session.runner_id == runner_id)
            .order_by(Session.created_at.desc(), Session.id.desc())
        )

    def get_sandbox(self, id: str) -> Any:
        with self.session() as session:
            return session.get(Sandbox, id)

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = "default",
    ) -> Any:
        now = datetime.now(UTC)
        return self._add(
            Sandbox(
                id=id,
                tenant_id=tenant_id,
                session_id=session_id,
                agent_name=agent_name,
                state="warming",
                workspace_dir=workspace_dir,
                created_at=now,
                last_used_at=now,
            )
        )

    def _update_sandbox(self, id: str, **values: Any) -> bool:
        return self._count(update(Sandbox).where(Sandbox.id == id).values(**values)) > 0

    def update_sandbox_state(self, id: str, state: str) -> bool:
        return self._update_sandbox(id, state=state)

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self._update_sandbox(id, session_id=session_id)

    def touch_sandbox(self, id: str) -> bool:
        return self._update_sandbox(id, last_used_at=datetime.now(UTC))

    def count_sandboxes(self) -> Any:
        return self._one(select(func.count()).select_from(Sandbox))

    def get_best_eviction_candidate(self) -> Any:
        rank = case({"cold": 0, "warm": 1, "waiting": 2}, value=Sandbox.state)
        return self._one(
            select(Sandbox)
            .where(Sandbox.state.in_(("cold", "warm", "waiting")))
            .order_by(rank, Sandbox.last_used_at, Sandbox.id)
            .limit(1)
        )

    def _unused(self, state: str, older_than: datetime) -> Any:
        return self._all(
            select(Sandbox)
            .where(Sandbox.state == state, Sandbox.last_used_at < older_than)
            .order_by(Sandbox.last_used_at, Sandbox.id)
        )

    def get_idle_sandboxes(self, older_than: datetime) -> Any:
        return self._unused("waiting", older_than)

    def get_cold_sandboxes(self, older_than: datetime) -> Any:
        return self._unused("cold", older_than)

    def delete_sandbox(self, id: str) -> bool:
        return self._count(delete(Sandbox).where(Sandbox.id == id)) > 0

    def get_api_key_by_hash(self, key_hash: str) -> Any:
        return self._one(select(ApiKey).where(ApiKey.key_hash == key_hash))

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str, label: str) -> Any:
        return self._add(
            ApiKey(
                id=id,
                tenant_id=tenant_id,
                key_hash=key_hash,
                label=label,
                created_at=datetime.now(UTC),
            )
        )

    def list_api_keys_by_tenant(self, tenant_id: str) -> Any:
        return self._all(
            select(ApiKey)
            .where(ApiKey.tenant_id == tenant_id)
            .order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
        )

    def delete_api_key(self, id: str) -> bool:
        return self._count(delete(ApiKey).where(ApiKey.id == id)) > 0
