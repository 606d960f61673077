"""The ``Db`` interface and the frozen records it returns. Knows no framework and no engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import EllipsisType
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
SessionStatusInput: TypeAlias = (
    SessionStatus | Literal["starting", "active", "paused", "ended", "error", "stopped"]
)
SandboxStateInput: TypeAlias = (
    SandboxState | Literal["cold", "warming", "warm", "waiting", "running"]
)


def _cursor(created_at: datetime, id: str) -> str:
    instant = created_at.astimezone(UTC).replace(tzinfo=None)
    return f"{instant.isoformat(timespec='microseconds')}Z,{id}"  # "+00:00" would be a blank in a careless query string


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

    @property
    def cursor(self) -> str:
        """What a client can carry instead of the record, for ``before=``: the instant and the id, as text."""
        return _cursor(self.created_at, self.id)


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

    @property
    def cursor(self) -> str:
        """What a client can carry instead of the record, for ``before=``: the instant and the id, as text."""
        return _cursor(self.created_at, self.id)


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

    def upsert_agent(
        self, name: str, path: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord:
        """Insert the agent at version 1, or move it to ``path`` and the next version; atomic among callers."""
        ...

    def get_agent(
        self, name: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord | None:
        """Return the tenant's agent of that name, or None."""
        ...

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        """Return the tenant's agents by name, in code-point order."""
        ...

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        """Delete the agent and, in the same transaction, the tenant's sessions of that name; True if it existed."""
        ...

    def insert_session(
        self,
        id: str,
        agent_name: str,
        sandbox_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SessionRecord:
        """Insert a session with status ``starting``; ``DuplicateKeyError`` if the id is taken."""
        ...

    def update_session_status(
        self,
        id: str,
        status: SessionStatusInput,
        *,
        only_if: SessionStatusInput | Collection[SessionStatusInput] | None = None,
    ) -> bool:
        """Set the status, a ``SessionStatus``, and ``last_active_at``; True if the session exists.

        With ``only_if``, a status or several: True if the session exists and had one of these.
        """
        ...

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        """Set the sandbox and ``last_active_at``; True if the session exists."""
        ...

    def update_session_runner(
        self,
        id: str,
        runner_id: str | None,
        *,
        only_if: str | EllipsisType | None = ...,
    ) -> bool:
        """Set the runner, or clear it with None, and ``last_active_at``; True if the session exists.

        With ``only_if``, a runner's id or None for no runner: True if the session exists and was on that one.
        """
        ...

    def get_session(self, id: str) -> SessionRecord | None:
        """Return the session, or None."""
        ...

    def list_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        agent: str | None = None,
        *,
        status: SessionStatusInput | Collection[SessionStatusInput] | None = None,
        runner_id: str | None = None,
        limit: int | None = None,
        before: SessionRecord | str | None = None,
    ) -> list[SessionRecord]:
        """Return the tenant's sessions, newest first, ties by id descending.

        The first argument is the tenant; name an agent as ``agent="support-bot"``. ``status`` (one or several) and
        ``runner_id`` narrow the list; ``limit`` (1 or more) cuts it; ``before``, the last record of a page or its
        ``cursor``, continues after it.
        """
        ...

    def count_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        *,
        agent: str | None = None,
        status: SessionStatusInput | Collection[SessionStatusInput] | None = None,
    ) -> int:
        """Return how many sessions the tenant has, of one agent and in one or several statuses if given."""
        ...

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        """Return the runner's sessions of all tenants, newest first, ties by id descending."""
        ...

    def claim_session(
        self, id: str, runner_id: str, *, silent_for: timedelta | None = None
    ) -> SessionRecord | None:
        """Give the session to the runner if it may have it, and return the record as it is now, or None.

        A runner may have a session that nobody has, that it has already, that is ``paused``, or whose
        ``last_active_at`` is more than ``silent_for`` (zero or more, by the database's clock) ago. Sets the runner and
        ``last_active_at``, not the status: a ``paused`` session stays claimable until its status changes, so set that
        in the same ``run_transaction``. None: no such session, a finished one, or another runner's.
        """
        ...

    def get_silent_sessions(
        self, older_than: datetime, *, limit: int | None = None
    ) -> list[SessionRecord]:
        """Return ``active`` and ``starting`` sessions last active before the aware ``older_than``, of all tenants.

        The longest silent come first, ties by id ascending; ``limit`` (1 or more) cuts the list.
        """
        ...

    def touch_session(self, id: str, *, runner_id: str | None = None) -> bool:
        """Set ``last_active_at``; True if the session exists and, with ``runner_id``, is that runner's."""
        ...

    def touch_sessions(
        self, ids: Collection[str], *, runner_id: str | None = None
    ) -> list[str]:
        """Set ``last_active_at`` of 1 to 10,000 sessions in one statement.

        Returns the ids that exist and, with ``runner_id``, are that runner's, in the order given, each once.
        """
        ...

    def delete_session(self, id: str) -> bool:
        """Delete the session; True if it existed. Its sandbox stays."""
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

    def update_sandbox_state(
        self,
        id: str,
        state: SandboxStateInput,
        *,
        only_if: SandboxStateInput | Collection[SandboxStateInput] | None = None,
    ) -> bool:
        """Set the state, a ``SandboxState``, and leave ``last_used_at`` alone; True if the sandbox exists.

        With ``only_if``, a state or several: True if the sandbox exists and was in one of these.
        """
        ...

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        """Set the session, or clear it with None, and leave ``last_used_at`` alone; True if the sandbox exists."""
        ...

    def touch_sandbox(self, id: str) -> bool:
        """Set ``last_used_at``; True if the sandbox exists."""
        ...

    def touch_sandboxes(self, ids: Collection[str]) -> list[str]:
        """Set ``last_used_at`` of 1 to 10,000 sandboxes in one statement.

        Returns the ids that exist, in the order given, each once.
        """
        ...

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        """Return the sandbox, or None."""
        ...

    def list_sandboxes(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        *,
        state: SandboxStateInput | Collection[SandboxStateInput] | None = None,
        agent: str | None = None,
        session_id: str | None = None,
        limit: int | None = None,
        before: SandboxRecord | str | None = None,
    ) -> list[SandboxRecord]:
        """Return the tenant's sandboxes, newest first, ties by id descending.

        ``state`` (one or several), ``agent`` and ``session_id`` narrow the list; ``limit`` (1 or more) cuts it;
        ``before``, the last record of a page or its ``cursor``, continues after it.
        """
        ...

    def list_sandboxes_by_runner(self, runner_id: str) -> list[SandboxRecord]:
        """Return the sandboxes of all tenants whose ``session_id`` names a session on the runner, newest first."""
        ...

    def count_sandboxes(
        self, *, state: SandboxStateInput | Collection[SandboxStateInput] | None = None
    ) -> int:
        """Return how many sandboxes all tenants have, in one or several states if given."""
        ...

    def claim_warm_sandbox(
        self, agent_name: str, session_id: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> SandboxRecord | None:
        """Take a ``warm`` sandbox of the agent and tenant that has no session, and return it as it is now, or None.

        It is the one with the oldest ``last_used_at``, ties by id ascending, that no other caller is taking at this
        moment; of any number of callers one gets it. It becomes ``waiting``, gets the session and a new
        ``last_used_at``. Not safe to repeat: each call takes another one.
        """
        ...

    def get_best_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        """Return the sandbox to evict first, or None.

        Among ``cold``, then ``warm``, then ``waiting``: the one with the oldest ``last_used_at``, ties by id ascending;
        only one last used before the aware ``unused_since``, if given.
        """
        ...

    def claim_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
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

    def mark_sandboxes_cold_by_runner(self, runner_id: str) -> int:
        """Set the sandboxes of ``list_sandboxes_by_runner()`` to ``cold``; return how many were not."""
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

    def insert_api_key(
        self, id: str, tenant_id: str, key_hash: str, label: str
    ) -> ApiKeyRecord:
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

    def prune_sessions(
        self, ended_before: datetime, limit: int, *, also: Sequence[str] = ()
    ) -> int:
        """Delete up to ``limit`` finished sessions last active before the aware ``ended_before``; return how many.

        Finished are ``ended``, ``stopped`` and ``error``. The longest inactive go first, ties by id ascending, with the
        ``cold`` sandboxes whose ``session_id`` they are, in one transaction. ``also`` names tables that are not
        agentdb's: their rows whose text column ``session_id`` names one of the sessions go too. Every call reads all
        finished sessions, so prefer thousands at a time; safe to repeat until it returns 0.
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
        from ``fn`` undoes its calls. On a serialization conflict ``fn`` is called again, whatever it raised then;
        ``ConflictError`` when the retries are used up. What ``fn`` is given belongs to its thread, and ends with it.
        """
        ...

    def close(self) -> None:
        """Close the connections; calling it again does nothing, any other call raises ``DatabaseClosedError``."""
        ...
