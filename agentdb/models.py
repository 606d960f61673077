"""The four tables. No foreign keys, on purpose: sessions and sandboxes outlive what they name."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import F, Index, Q

from agentdb.expressions import CodePointOrder, UtcNow
from agentdb.interface import SandboxState as SandboxStateValue
from agentdb.interface import SessionStatus as SessionStatusValue

# What the queries of Db sort by: the newest first, and among equals an order that does not depend on the locale.
NEWEST_FIRST = (F("created_at").desc(), CodePointOrder("id").desc())
LEAST_RECENTLY_USED_FIRST = (F("last_used_at").asc(), CodePointOrder("id").asc())


def new_id() -> str:
    """Return a fresh agent id: a random UUID as text, as the old server made them."""
    return str(uuid.uuid4())


class Agent(models.Model):
    id = models.TextField(primary_key=True, default=new_id)
    tenant_id = models.TextField(db_default="default")
    name = models.TextField()
    version = models.IntegerField(db_default=1)
    path = models.TextField()
    created_at = models.DateTimeField(db_default=UtcNow())
    updated_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "agents"
        constraints = [models.UniqueConstraint(fields=["tenant_id", "name"], name="idx_agents_tenant_name")]
        indexes = [
            Index(fields=["tenant_id"], name="idx_agents_tenant"),
            Index(*NEWEST_FIRST, name="idx_agents_created"),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class Session(models.Model):
    id = models.TextField(primary_key=True)
    tenant_id = models.TextField(db_default="default")
    agent_name = models.TextField()
    sandbox_id = models.TextField()
    status = models.TextField(db_default=SessionStatusValue.STARTING.value)
    runner_id = models.TextField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=UtcNow())
    last_active_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "sessions"
        indexes = [
            Index(fields=["tenant_id"], name="idx_sessions_tenant"),
            Index(*NEWEST_FIRST, name="idx_sessions_created"),
            Index(F("tenant_id"), *NEWEST_FIRST, name="idx_sessions_tenant_created"),
            Index(F("tenant_id"), F("agent_name"), *NEWEST_FIRST, name="idx_sessions_agent_created"),
            Index(F("status"), *NEWEST_FIRST, name="idx_sessions_status_created"),
            Index(
                F("runner_id"),
                *NEWEST_FIRST,
                name="idx_sessions_runner_created",
                condition=Q(runner_id__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent_name} session {self.id} ({self.status})"


class Sandbox(models.Model):
    id = models.TextField(primary_key=True)
    tenant_id = models.TextField(db_default="default")
    session_id = models.TextField(null=True, blank=True)
    agent_name = models.TextField()
    state = models.TextField(db_default=SandboxStateValue.WARMING.value)
    workspace_dir = models.TextField()
    created_at = models.DateTimeField(db_default=UtcNow())
    last_used_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "sandboxes"
        verbose_name_plural = "sandboxes"
        indexes = [
            Index(fields=["state"], name="idx_sandboxes_state"),
            Index(fields=["session_id"], name="idx_sandboxes_session"),
            Index(fields=["last_used_at"], name="idx_sandboxes_last_used"),
            Index(fields=["tenant_id"], name="idx_sandboxes_tenant"),
            Index(F("state"), *LEAST_RECENTLY_USED_FIRST, name="idx_sandboxes_state_last_used"),
        ]

    def __str__(self) -> str:
        return f"{self.agent_name} sandbox {self.id} ({self.state})"


class ApiKey(models.Model):
    id = models.TextField(primary_key=True)
    tenant_id = models.TextField()
    key_hash = models.TextField(unique=True)
    label = models.TextField(db_default="", blank=True)
    created_at = models.DateTimeField(db_default=UtcNow())

    class Meta:
        db_table = "api_keys"
        verbose_name = "API key"
        indexes = [
            Index(fields=["tenant_id"], name="idx_api_keys_tenant"),
            Index(*NEWEST_FIRST, name="idx_api_keys_created"),
            Index(F("tenant_id"), *NEWEST_FIRST, name="idx_api_keys_tenant_created"),
        ]

    def __str__(self) -> str:
        return f"{self.label or 'unlabelled key'} of {self.tenant_id}"
