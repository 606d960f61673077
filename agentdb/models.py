"""The four tables. They have no foreign keys on purpose: sessions and sandboxes outlive what they name."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Index, Q

from agentdb.expressions import UtcNow
from agentdb.fields import Instant, Integer, Text
from agentdb.interface import SandboxState, SessionStatus
from agentdb.querysets import (
    LEAST_RECENTLY_USED_FIRST,
    NEWEST_FIRST,
    AgentQuerySet,
    ApiKeyQuerySet,
    SandboxQuerySet,
    SessionQuerySet,
)

_TENANT = "Whose row it is; 'default' where there is one tenant only."
_CREATED = "When the row was created, by the server's clock."


def new_id() -> str:
    """Return a fresh agent id: a random UUID as text, as the old server made them."""
    return str(uuid.uuid4())


# Each value is its own label. Values of newer servers can still be read.
_STATUSES = [(status.value, status.value) for status in SessionStatus]
_STATES = [(state.value, state.value) for state in SandboxState]


class Agent(models.Model):
    id = Text(primary_key=True, default=new_id, help_text="A random UUID.")
    tenant_id = Text(db_default="default", help_text=_TENANT)
    name = Text(help_text="What sessions name the agent by; unique within a tenant.")
    version = Integer(db_default=1, help_text="How often the agent was deployed.")
    path = Text(help_text="Where the agent's files lie.")
    created_at = Instant(db_default=UtcNow(), help_text=_CREATED)
    updated_at = Instant(
        db_default=UtcNow(),
        moves_on_save=True,
        help_text="When the agent was last deployed; each save() moves it.",
    )

    objects = AgentQuerySet.as_manager()

    # Frozen: databases in use have these names, and later migrations refer to them.

    class Meta:
        db_table = "agents"
        constraints = [
            models.UniqueConstraint(
                fields=["tenant_id", "name"], name="idx_agents_tenant_name"
            )
        ]
        indexes = [
            Index(fields=["tenant_id"], name="idx_agents_tenant"),
            Index(*NEWEST_FIRST, name="idx_agents_created"),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class Session(models.Model):
    id = Text(primary_key=True, help_text="What the agent server calls the session.")
    tenant_id = Text(db_default="default", help_text=_TENANT)
    agent_name = Text(
        help_text="The agent it talks to, which may have been deleted since."
    )
    sandbox_id = Text(help_text="The sandbox it runs in, which may be gone.")
    status = Text(
        db_default=SessionStatus.STARTING.value,
        choices=_STATUSES,
        help_text="What the session is doing.",
    )
    runner_id = Text(
        null=True,
        blank=True,
        help_text="The machine or process that runs it; empty where none does.",
    )
    created_at = Instant(db_default=UtcNow(), help_text=_CREATED)
    last_active_at = Instant(
        db_default=UtcNow(),
        help_text="The last sign of life; agentdb never moves it backwards.",
    )

    objects = SessionQuerySet.as_manager()

    class Meta:
        db_table = "sessions"
        indexes = [
            Index(fields=["tenant_id"], name="idx_sessions_tenant"),
            Index(*NEWEST_FIRST, name="idx_sessions_created"),
            Index("tenant_id", *NEWEST_FIRST, name="idx_sessions_tenant_created"),
            Index(
                "tenant_id",
                "agent_name",
                *NEWEST_FIRST,
                name="idx_sessions_agent_created",
            ),
            Index("status", *NEWEST_FIRST, name="idx_sessions_status_created"),
            # No call asks for the sessions that have no runner, so those need no entry.
            Index(
                "runner_id",
                *NEWEST_FIRST,
                name="idx_sessions_runner_created",
                condition=Q(runner_id__isnull=False),
            ),
            Index(
                "tenant_id",
                "status",
                *NEWEST_FIRST,
                name="idx_sessions_tenant_status",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent_name} session {self.id} ({self.status})"


class Sandbox(models.Model):
    id = Text(primary_key=True, help_text="What the agent server calls the sandbox.")
    tenant_id = Text(db_default="default", help_text=_TENANT)
    session_id = Text(
        null=True,
        blank=True,
        help_text="The session it is reserved for; empty where there is none.",
    )
    agent_name = Text(help_text="The agent whose files it holds.")
    state = Text(
        db_default=SandboxState.WARMING.value,
        choices=_STATES,
        help_text="Whether it has a process (warm, waiting, running), is getting one (warming) or has none (cold).",
    )
    workspace_dir = Text(help_text="The folder it works in.")
    created_at = Instant(db_default=UtcNow(), help_text=_CREATED)
    last_used_at = Instant(
        db_default=UtcNow(),
        help_text="The last use, by which eviction chooses; agentdb never moves it backwards.",
    )

    objects = SandboxQuerySet.as_manager()

    class Meta:
        db_table = "sandboxes"
        verbose_name_plural = "sandboxes"
        indexes = [
            Index(fields=["state"], name="idx_sandboxes_state"),
            Index(fields=["session_id"], name="idx_sandboxes_session"),
            Index(fields=["last_used_at"], name="idx_sandboxes_last_used"),
            Index(fields=["tenant_id"], name="idx_sandboxes_tenant"),
            Index(
                "state",
                *LEAST_RECENTLY_USED_FIRST,
                name="idx_sandboxes_state_last_used",
            ),
            Index("tenant_id", *NEWEST_FIRST, name="idx_sandboxes_tenant_created"),
            Index(
                "tenant_id",
                "state",
                *NEWEST_FIRST,
                name="idx_sandboxes_tenant_state",
            ),
            # What a warm pool holds has no session. The state is a column and not part of the condition, because
            # neither SQLite nor a prepared statement of PostgreSQL knows that a parameter is 'warm'.
            Index(
                "tenant_id",
                "agent_name",
                "state",
                *LEAST_RECENTLY_USED_FIRST,
                name="idx_sandboxes_pool",
                condition=Q(session_id__isnull=True),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent_name} sandbox {self.id} ({self.state})"


class ApiKey(models.Model):
    id = Text(primary_key=True, help_text="What the agent server calls the key.")
    tenant_id = Text(help_text="The tenant that the key opens.")
    key_hash = Text(
        unique=True,
        help_text="The SHA-256 of the key; the key itself is stored nowhere.",
    )
    label = Text(
        db_default="", blank=True, help_text="For people: what the key is for."
    )
    created_at = Instant(db_default=UtcNow(), help_text=_CREATED)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        db_table = "api_keys"
        verbose_name = "API key"
        indexes = [
            Index(fields=["tenant_id"], name="idx_api_keys_tenant"),
            Index(*NEWEST_FIRST, name="idx_api_keys_created"),
            Index("tenant_id", *NEWEST_FIRST, name="idx_api_keys_tenant_created"),
        ]

    def __str__(self) -> str:
        return f"{self.label or 'unlabelled key'} of {self.tenant_id}"
