"""djanorm, an ORM with Django's interface and without Django; its own models, on the same tables."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import dorm
from dorm import F
from dorm.db.connection import get_connection

from agentdb.interface import SessionRecord
from benchmarks.databases import Database


class Agent(dorm.Model):
    id = dorm.TextField(primary_key=True)
    tenant_id = dorm.TextField()
    name = dorm.TextField()
    version = dorm.IntegerField(default=1)
    path = dorm.TextField()
    created_at = dorm.DateTimeField()
    updated_at = dorm.DateTimeField()

    class Meta:
        db_table = "agents"


class Session(dorm.Model):
    id = dorm.TextField(primary_key=True)
    tenant_id = dorm.TextField()
    agent_name = dorm.TextField()
    sandbox_id = dorm.TextField()
    status = dorm.TextField(default="starting")
    runner_id = dorm.TextField(null=True)
    created_at = dorm.DateTimeField()
    last_active_at = dorm.DateTimeField()

    class Meta:
        db_table = "sessions"


class Sandbox(dorm.Model):
    id = dorm.TextField(primary_key=True)
    tenant_id = dorm.TextField()
    session_id = dorm.TextField(null=True)
    agent_name = dorm.TextField()
    state = dorm.TextField(default="warming")
    workspace_dir = dorm.TextField()
    created_at = dorm.DateTimeField()
    last_used_at = dorm.DateTimeField()

    class Meta:
        db_table = "sandboxes"


class ApiKey(dorm.Model):
    id = dorm.TextField(primary_key=True)
    tenant_id = dorm.TextField()
    key_hash = dorm.TextField()
    label = dorm.TextField(default="")
    created_at = dorm.DateTimeField()

    class Meta:
        db_table = "api_keys"


logging.getLogger("dorm.db").setLevel(logging.ERROR)


def open_peer(database: Database) -> Djanorm:
    if database.engine == "sqlite":
        settings: dict[str, Any] = {
            "ENGINE": "sqlite",
            "NAME": str(database.path),
            "OPTIONS": {"journal_mode": "WAL"},
        }
    else:
        parts = urlsplit(database.url)
        settings = {
            "ENGINE": "postgresql",
            "NAME": parts.path[1:],
            "USER": parts.username,
            "PASSWORD": "",
            "HOST": dict(pair.split("=") for pair in parts.query.split("&"))["host"],
            "PREPARE_THRESHOLD": 0,
        }
    dorm.configure(
        DATABASES={"default": settings}, INSTALLED_APPS=[], USE_TZ=True, TIME_ZONE="UTC"
    )  # type: ignore[no-untyped-call]
    if database.engine == "sqlite":
        get_connection("default").execute_script(
            f"PRAGMA synchronous={database.synchronous}"
        )
    return Djanorm()


class Djanorm:
    def close(self) -> None:
        get_connection("default").close()

    def get_agent(self, name: str, tenant_id: str = "default") -> Any:
        return Agent.objects.get(tenant_id=tenant_id, name=name)

    def list_agents(self, tenant_id: str = "default") -> list[Any]:
        return list(Agent.objects.filter(tenant_id=tenant_id).order_by("name"))

    def get_session(self, id: str) -> Any:
        return Session.objects.get(id=id)

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = "default"
    ) -> Any:
        now = datetime.now(UTC)
        return Session.objects.create(
            id=id,
            agent_name=agent_name,
            sandbox_id=sandbox_id,
            tenant_id=tenant_id,
            created_at=now,
            last_active_at=now,
        )

    def update_session_status(self, id: str, status: str) -> bool:
        return bool(
            Session.objects.filter(id=id).update(
                status=status, last_active_at=datetime.now(UTC)
            )
        )

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return bool(
            Session.objects.filter(id=id).update(
                sandbox_id=sandbox_id, last_active_at=datetime.now(UTC)
            )
        )

    def update_session_runner(self, id: str, runner_id: str | None) -> bool:
        return bool(
            Session.objects.filter(id=id).update(
                runner_id=runner_id, last_active_at=datetime.now(UTC)
            )
        )

    def touch_session(self, id: str) -> bool:
        return bool(
            Session.objects.filter(id=id).update(last_active_at=datetime.now(UTC))
        )

    def list_sessions(
        self,
        tenant_id: str = "default",
        agent: str | None = None,
        *,
        limit: int | None = None,
        before: SessionRecord | None = None,
    ) -> list[Any]:
        sessions = Session.objects.filter(tenant_id=tenant_id).order_by(
            "-created_at", "-id"
        )
        if agent is not None:
            sessions = sessions.filter(agent_name=agent)
        return list(sessions[:limit] if limit is not None else sessions)

    def list_sessions_by_runner(self, runner_id: str) -> list[Any]:
        return list(
            Session.objects.filter(runner_id=runner_id).order_by("-created_at", "-id")
        )

    def get_sandbox(self, id: str) -> Any:
        return Sandbox.objects.get(id=id)

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = "default",
    ) -> Any:
        now = datetime.now(UTC)
        return Sandbox.objects.create(
            id=id,
            agent_name=agent_name,
            workspace_dir=workspace_dir,
            session_id=session_id,
            tenant_id=tenant_id,
            created_at=now,
            last_used_at=now,
        )

    def update_sandbox_state(self, id: str, state: str) -> bool:
        return bool(Sandbox.objects.filter(id=id).update(state=state))

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return bool(Sandbox.objects.filter(id=id).update(session_id=session_id))

    def touch_sandbox(self, id: str) -> bool:
        return bool(
            Sandbox.objects.filter(id=id).update(last_used_at=datetime.now(UTC))
        )

    def count_sandboxes(self) -> int:
        return int(Sandbox.objects.count())

    def get_api_key_by_hash(self, key_hash: str) -> Any:
        return ApiKey.objects.get(key_hash=key_hash)

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str, label: str) -> Any:
        return ApiKey.objects.create(
            id=id,
            tenant_id=tenant_id,
            key_hash=key_hash,
            label=label,
            created_at=datetime.now(UTC),
        )

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[Any]:
        return list(
            ApiKey.objects.filter(tenant_id=tenant_id).order_by("-created_at", "-id")
        )

    def upsert_agent(self, name: str, path: str, tenant_id: str = "default") -> Any:
        now = datetime.now(UTC)
        agent, created = Agent.objects.update_or_create(
            tenant_id=tenant_id,
            name=name,
            defaults={"path": path, "version": F("version") + 1, "updated_at": now},
            create_defaults={
                "id": name,
                "path": path,
                "created_at": now,
                "updated_at": now,
            },
        )
        if not created:
            agent.refresh_from_db()
        return agent

    def delete_sandbox(self, id: str) -> bool:
        return bool(Sandbox.objects.filter(id=id).delete())

    def delete_api_key(self, id: str) -> bool:
        return bool(ApiKey.objects.filter(id=id).delete())
