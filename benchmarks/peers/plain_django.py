"""Django's ORM as its documentation writes it, on agentdb's own models: instances, not records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from django.db import connections, transaction
from django.db.models import Case, F, IntegerField, Q, Value, When
from django.db.utils import ConnectionHandler

from agentdb.interface import SessionRecord
from agentdb.models import Agent, ApiKey, Sandbox, Session
from benchmarks.databases import Database


def open_peer(database: Database) -> PlainDjango:
    alias = "plain"
    if alias in connections.settings:
        connections[alias].close()
        del connections[alias]
    if database.engine == "sqlite":
        settings: dict[str, Any] = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(database.path),
            "OPTIONS": {
                "timeout": 30,
                "transaction_mode": "IMMEDIATE",
                "init_command": f"PRAGMA journal_mode=WAL; PRAGMA synchronous={database.synchronous}",
            },
        }
    else:
        parts = urlsplit(database.url)
        settings = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.path[1:],
            "USER": parts.username,
            "HOST": dict(pair.split("=") for pair in parts.query.split("&"))["host"],
        }
    connections.settings[alias] = ConnectionHandler({"default": settings}).settings[
        "default"
    ]
    return PlainDjango(alias)


class PlainDjango:
    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.agents = Agent.objects.using(alias)
        self.sessions = Session.objects.using(alias)
        self.sandboxes = Sandbox.objects.using(alias)
        self.api_keys = ApiKey.objects.using(alias)

    def close(self) -> None:
        connections[self.alias].close()

    def get_agent(self, name: str, tenant_id: str = "default") -> Any:
        return self.agents.get(tenant_id=tenant_id, name=name)

    def list_agents(self, tenant_id: str = "default") -> list[Any]:
        return list(self.agents.filter(tenant_id=tenant_id).order_by("name"))

    def upsert_agent(self, name: str, path: str, tenant_id: str = "default") -> Any:
        with transaction.atomic(using=self.alias):
            agent, created = self.agents.update_or_create(
                tenant_id=tenant_id,
                name=name,
                defaults={
                    "path": path,
                    "version": F("version") + 1,
                    "updated_at": datetime.now(UTC),
                },
                create_defaults={"path": path},
            )
            if not created:
                agent.refresh_from_db(fields=["version"])
        return agent

    def delete_agent(self, name: str, tenant_id: str = "default") -> bool:
        with transaction.atomic(using=self.alias):
            self.sessions.filter(tenant_id=tenant_id, agent_name=name).delete()
            return self.agents.filter(tenant_id=tenant_id, name=name).delete()[0] > 0

    def get_session(self, id: str) -> Any:
        return self.sessions.get(id=id)

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = "default"
    ) -> Any:
        return self.sessions.create(
            id=id, agent_name=agent_name, sandbox_id=sandbox_id, tenant_id=tenant_id
        )

    def update_session_status(self, id: str, status: str) -> bool:
        return (
            self.sessions.filter(id=id).update(
                status=status, last_active_at=datetime.now(UTC)
            )
            > 0
        )

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return (
            self.sessions.filter(id=id).update(
                sandbox_id=sandbox_id, last_active_at=datetime.now(UTC)
            )
            > 0
        )

    def update_session_runner(self, id: str, runner_id: str | None) -> bool:
        return (
            self.sessions.filter(id=id).update(
                runner_id=runner_id, last_active_at=datetime.now(UTC)
            )
            > 0
        )

    def touch_session(self, id: str) -> bool:
        return self.sessions.filter(id=id).update(last_active_at=datetime.now(UTC)) > 0

    def list_sessions(
        self,
        tenant_id: str = "default",
        agent: str | None = None,
        *,
        limit: int | None = None,
        before: SessionRecord | None = None,
    ) -> list[Any]:
        sessions = self.sessions.filter(tenant_id=tenant_id).order_by(
            "-created_at", "-id"
        )
        if agent is not None:
            sessions = sessions.filter(agent_name=agent)
        if before is not None:
            sessions = sessions.filter(
                Q(created_at__lt=before.created_at)
                | Q(created_at=before.created_at, id__lt=before.id)
            )
        return list(sessions[:limit])

    def list_sessions_by_runner(self, runner_id: str) -> list[Any]:
        return list(
            self.sessions.filter(runner_id=runner_id).order_by("-created_at", "-id")
        )

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self.sessions.filter(
            runner_id=runner_id, status__in=["active", "starting"]
        ).update(status="paused", last_active_at=datetime.now(UTC))

    def bulk_pause_active_sessions(self) -> int:
        return self.sessions.filter(status__in=["active", "starting"]).update(
            status="paused", last_active_at=datetime.now(UTC)
        )

    def get_sandbox(self, id: str) -> Any:
        return self.sandboxes.get(id=id)

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = "default",
    ) -> Any:
        return self.sandboxes.create(
            id=id,
            agent_name=agent_name,
            workspace_dir=workspace_dir,
            session_id=session_id,
            tenant_id=tenant_id,
        )

    def update_sandbox_state(self, id: str, state: str) -> bool:
        return self.sandboxes.filter(id=id).update(state=state) > 0

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self.sandboxes.filter(id=id).update(session_id=session_id) > 0

    def touch_sandbox(self, id: str) -> bool:
        return self.sandboxes.filter(id=id).update(last_used_at=datetime.now(UTC)) > 0

    def count_sandboxes(self) -> int:
        return self.sandboxes.count()

    def get_best_eviction_candidate(self) -> Any:
        rank = Case(
            *(
                When(state=state, then=Value(i))
                for i, state in enumerate(("cold", "warm", "waiting"))
            ),
            output_field=IntegerField(),
        )
        return (
            self.sandboxes.filter(state__in=["cold", "warm", "waiting"])
            .order_by(rank, "last_used_at", "id")
            .first()
        )

    def get_idle_sandboxes(self, older_than: datetime) -> list[Any]:
        return list(
            self.sandboxes.filter(
                state="waiting", last_used_at__lt=older_than
            ).order_by("last_used_at", "id")
        )

    def get_cold_sandboxes(self, older_than: datetime) -> list[Any]:
        return list(
            self.sandboxes.filter(state="cold", last_used_at__lt=older_than).order_by(
                "last_used_at", "id"
            )
        )

    def delete_sandbox(self, id: str) -> bool:
        return self.sandboxes.filter(id=id).delete()[0] > 0

    def mark_all_sandboxes_cold(self) -> int:
        return self.sandboxes.exclude(state="cold").update(state="cold")

    def get_api_key_by_hash(self, key_hash: str) -> Any:
        return self.api_keys.get(key_hash=key_hash)

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str, label: str) -> Any:
        return self.api_keys.create(
            id=id, tenant_id=tenant_id, key_hash=key_hash, label=label
        )

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[Any]:
        return list(
            self.api_keys.filter(tenant_id=tenant_id).order_by("-created_at", "-id")
        )

    def delete_api_key(self, id: str) -> bool:
        return self.api_keys.filter(id=id).delete()[0] > 0

    def run_transaction(self, fn: Callable[[Any], Any]) -> Any:
        with transaction.atomic(using=self.alias):
            return fn(self)
