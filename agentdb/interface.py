"""The ``Db`` interface and the frozen records it returns. Knows no framework and no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, Protocol, TypeAlias, TypeVar

R = TypeVar("R")

# A text of its own, which no other "default" is: a tenant's view knows by it that no tenant was named.
DEFAULT_TENANT_ID: str = str(b"default", "ascii")


class SessionStatus(StrEnum):
    STARTING = "starting"
    ACTIVE = "active"
    PAUSED = "paused"
    ENDED = "ended"
    ERROR = "error"
    STOPPED = "stopped"


class SandboxState(StrEnum):
    COLD = "cold"
    WARMING = "warming"
    WARM = "warm"
    WAITING = "waiting"
    RUNNING = "running"


# What a type checker lets through: a misspelt "actve" is found before it runs.
SessionStatusInput: TypeAlias = SessionStatus | Literal["starting", "active", "paused", "ended", "error", "stopped"]
SandboxStateInput: TypeAlias = SandboxState | Literal["cold", "warming", "warm", "waiting", "running"]


@dataclass(frozen=True, slots=True)
class AgentRecord:
    id: str
    tenant_id: str
    name: str
    version: int
    path: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """``status`` is one of ``SessionStatus``, or a newer server's value as stored."""

    id: str
    tenant_id: str
    agent_name: str
    sandbox_id: str
    status: str
    runner_id: str | None
    created_at: datetime
    last_active_at: datetime


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """``state`` is one of ``SandboxState``, or a newer server's value as stored."""

    id: str
    tenant_id: str
    session_id: str | None
    agent_name: str
    state: str
    workspace_dir: str
    created_at: datetime
    last_used_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKeyRecord:
    id: str
    tenant_id: str
    key_hash: str
    label: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a database works, and what it is; from ``Db.health()``.

    ``reason`` says in one sentence why ``ok`` is False, and is empty otherwise. ``engine`` is ``sqlite``,
    ``postgresql`` or ``cockroachdb``; ``place`` names the database without its password. ``connections`` counts the
    open ones of this ``Db`` in this process. What could not be asked is empty, and ``round_trip_ms`` None.
    ``warnings`` has a sentence for each thing that can lose what was acknowledged without an error: the file system of
    a SQLite file, and a version of SQLite.
    """

    ok: bool
    engine: str
    server_version: str
    place: str
    round_trip_ms: float | None
    pending_migrations: tuple[str, ...]
    connections: int
    reason: str
    warnings: tuple[str, ...] = ()


class Db(Protocol):
    """What an agent server needs of its database.

    Every method is one whole unit of work. Timestamps are aware UTC ``datetime``s. A method raises
    ``InvalidInputError`` before any SQL for an argument no engine can store, ``DatabaseUnavailableError`` when the
    database is out of reach, and ``DatabaseClosedError`` after ``close()``.
    """

    def upsert_agent(self, name: str, path: str, tenant_id: str = DEFAULT_TENANT_ID) -> AgentRecord:
        """Insert the agent at version 1, or move it to ``path`` and the next version; atomic among callers."""
        ...

    def get_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> AgentRecord | None:
        """Return the tenant's agent of that name, or None."""
        ...

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        """Return the tenant's agents by name, in code-point order."""
        ...

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        """Delete the agent and, in the same transaction, the tenant's sessions of that name; True if it existed."""
        ...

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> SessionRecord:
        """Insert a session with status ``starting``; ``DuplicateKeyError`` if the id is taken."""
        ...

    def update_session_status(self, id: str, status: SessionStatusInput) -> bool:
        """Set the status, a ``SessionStatus``, and ``last_active_at``; True if the session exists."""
        ...

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        """Set the sandbox and ``last_active_at``; True if the session exists."""
        ...

    def update_session_runner(self, id: str, runner_id: str | None) -> bool:
        """Set the runner, or clear it with None, and ``last_active_at``; True if the session exists."""
        ...

    def get_session(self, id: str) -> SessionRecord | None:
        """Return the session, or None."""
        ...

    def list_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        agent: str | None = None,
        *,
        limit: int | None = None,
        before: SessionRecord | None = None,
    ) -> list[SessionRecord]:
        """Return the tenant's sessions, of one agent if named, newest first, ties by id descending.

        The first argument is the tenant; name an agent as ``agent="support-bot"``. ``limit`` (1 or more) cuts the
        list; ``before``, the last record of a page, continues after it.
        """
        ...

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        """Return the runner's sessions of all tenants, newest first, ties by id descending."""
        ...

    def touch_session(self, id: str) -> bool:
        """Set ``last_active_at``; True if the session exists."""
        ...

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord:
        """Insert a sandbox with state ``warming``; ``DuplicateKeyError`` if the id is taken."""
        ...

    def update_sandbox_state(self, id: str, state: SandboxStateInput) -> bool:
        """Set the state, a ``SandboxState``, and leave ``last_used_at`` alone; True if the sandbox exists."""
        ...

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        """Set the session, or clear it with None, and leave ``last_used_at`` alone; True if the sandbox exists."""
        ...

    def touch_sandbox(self, id: str) -> bool:
        """Set ``last_used_at``; True if the sandbox exists."""
        ...

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        """Return the sandbox, or None."""
        ...

    def count_sandboxes(self) -> int:
        """Return how many sandboxes all tenants have."""
        ...

    def get_best_eviction_candidate(self) -> SandboxRecord | None:
        """Return the sandbox to evict first, or None.

        Among ``cold``, then ``warm``, then ``waiting``: the one with the oldest ``last_used_at``, ties by id ascending.
        """
        ...

    def claim_eviction_candidate(self) -> SandboxRecord | None:
        """Take the sandbox that ``get_best_eviction_candidate()`` names, and return it as it was before, or None.

        A ``cold`` one is deleted, any other becomes ``cold``, each in one statement that looks at state and
        ``last_used_at`` again as it writes: of any number of callers one gets it, and one touched meanwhile is left
        alone. Those that others are writing at this moment are passed over. Not safe to repeat: each call takes
        another one.
        """
        ...

    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        """Return ``waiting`` sandboxes last used before aware ``older_than``, oldest first, ties by id ascending."""
        ...

    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        """Return ``cold`` sandboxes last used before the aware ``older_than``, oldest first, ties by id ascending."""
        ...

    def delete_sandbox(self, id: str) -> bool:
        """Delete the sandbox; True if it existed."""
        ...

    def mark_all_sandboxes_cold(self) -> int:
        """Set every sandbox to ``cold``; return how many were not."""
        ...

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        """Pause the runner's ``active`` and ``starting`` sessions, setting ``last_active_at``; return how many."""
        ...

    def bulk_pause_active_sessions(self) -> int:
        """Pause all ``active`` and ``starting`` sessions, setting ``last_active_at``; return how many."""
        ...

    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        """Return the key with that hash, or None."""
        ...

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str, label: str) -> ApiKeyRecord:
        """Insert a key by its hash; ``DuplicateKeyError`` if the id or the hash is taken."""
        ...

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        """Return the tenant's keys, newest first, ties by id descending."""
        ...

    def delete_api_key(self, id: str) -> bool:
        """Delete the key; True if it existed."""
        ...

    def issue_api_key(self, tenant_id: str, label: str) -> tuple[str, ApiKeyRecord]:
        """Make and store a new key; return the plain key, which is stored nowhere, and its record."""
        ...

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        """Return the record of the plain key, or None; reads once and writes nothing."""
        ...

    def for_tenant(self, tenant_id: str) -> Db:
        """Return a view of this ``Db`` in which every call, by id included, sees and changes that tenant's rows only.

        Another tenant's id answers like a missing one, and cannot be inserted. Calls that concern all tenants concern
        this one. ``tenant_id`` may be left out of calls on the view; another one is an ``InvalidInputError``, to a
        second ``for_tenant()`` too. ``run_transaction`` hands a view on. ``close()`` ends the view alone; ``health()``
        is the whole database's.
        """
        ...

    def prune_sessions(self, ended_before: datetime, limit: int) -> int:
        """Delete up to ``limit`` finished sessions last active before the aware ``ended_before``; return how many.

        Finished are ``ended``, ``stopped`` and ``error``. The longest inactive go first, ties by id ascending, with the
        ``cold`` sandboxes whose ``session_id`` they are, in one transaction. Every call reads all finished sessions, so
        prefer thousands at a time; safe to repeat until it returns 0.
        """
        ...

    def health(self) -> Health:
        """Ask the database whether it works. One that is away is an answer, ``ok=False`` with the reason, no exception.

        One with pending migrations is not ``ok``. Writes nothing; safe to repeat. Milliseconds are of one round trip.
        """
        ...

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        """Call ``fn(db)`` with all its calls in one serializable transaction and return its result.

        Inside a transaction of a host project it is part of that, with its isolation. All or nothing: an exception
        from ``fn`` undoes its calls. On a serialization conflict ``fn`` is called again;
        ``ConflictError`` when the retries are used up.
        """
        ...

    def close(self) -> None:
        """Close the connections; calling it again does nothing, any other call raises ``DatabaseClosedError``."""
        ...
