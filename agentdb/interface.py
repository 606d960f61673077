"""The ``Db`` interface and the frozen records it returns. Knows no framework and no engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import EllipsisType
from typing import Literal, Protocol, TypeAlias, TypeVar

R = TypeVar("R")

# A distinct str object, compared by identity, so that a tenant's view can tell "no tenant given" from "default".
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


# A type checker accepts these strings only, so it reports a misspelt "actve".
SessionStatusInput: TypeAlias = (
    SessionStatus | Literal["starting", "active", "paused", "ended", "error", "stopped"]
)
SandboxStateInput: TypeAlias = (
    SandboxState | Literal["cold", "warming", "warm", "waiting", "running"]
)
# A tuple is a Collection, but mypy refuses ("active",) unless it is named.
SessionStatusesInput: TypeAlias = (
    SessionStatusInput | tuple[SessionStatusInput, ...] | Collection[SessionStatusInput]
)
SandboxStatesInput: TypeAlias = (
    SandboxStateInput | tuple[SandboxStateInput, ...] | Collection[SandboxStateInput]
)


def _cursor(created_at: datetime, id: str) -> str:
    instant = created_at.astimezone(UTC).replace(tzinfo=None)
    return f"{instant.isoformat(timespec='microseconds')}Z,{id}"  # not "+00:00": a "+" in a query string is a space


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
        """The record's place in a list as text, for ``before=``: the instant and the id."""
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
        """The record's place in a list as text, for ``before=``: the instant and the id."""
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
    open ones of this ``Db`` in this process. A value that could not be read is empty, or None for ``round_trip_ms``.
    ``warnings`` has a sentence for each danger to acknowledged writes: the file system of a SQLite file, and the
    version of SQLite.
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
    """The calls that an agent server makes to its database.

    Every method is atomic. Timestamps are aware UTC ``datetime``s. A method raises
    ``InvalidInputError`` before any SQL for an argument no engine can store, ``DatabaseUnavailableError`` if the
    database cannot be reached, and ``DatabaseClosedError`` after ``close()``.
    """

    def upsert_agent(
        self, name: str, path: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord:
        """Insert the agent at version 1, or set ``path`` and raise the version by one; N concurrent calls add N."""
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
        only_if: SessionStatusesInput | None = None,
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
        status: SessionStatusesInput | None = None,
        runner_id: str | None = None,
        limit: int | None = None,
        before: SessionRecord | str | None = None,
    ) -> list[SessionRecord]:
        """Return the tenant's sessions, newest first, ties by id descending.

        The first argument is the tenant; name an agent as ``agent="support-bot"``. ``status`` (one or several) and
        ``runner_id`` narrow the list; ``limit`` (1 or more) caps its length; ``before``, the last
        record of a page or its ``cursor``, continues after it.
        """
        ...

    def count_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        *,
        agent: str | None = None,
        status: SessionStatusesInput | None = None,
    ) -> int:
        """Return how many sessions the tenant has, of one agent and in one or several statuses if given."""
        ...

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        """Return the runner's sessions of all tenants, newest first, ties by id descending."""
        ...

    def claim_session(
        self, id: str, runner_id: str, *, silent_for: timedelta | None = None
    ) -> SessionRecord | None:
        """Give the session to the runner if it may have it, and return the updated record, or None.

        A runner can claim a session that has no runner, that is its own already, that is ``paused``, or whose
        ``last_active_at`` is more than ``silent_for`` (zero or more, by the database's clock) ago. Sets the runner and
        ``last_active_at``, not the status: a ``paused`` session stays claimable until its status changes, so set that
        in the same ``run_transaction``. None: the session does not exist, is finished, or is another runner's.
        """
        ...

    def get_silent_sessions(
        self, older_than: datetime, *, limit: int | None = None
    ) -> list[SessionRecord]:
        """Return ``active`` and ``starting`` sessions last active before the aware ``older_than``, of all tenants.

        The longest silent come first, ties by id ascending; ``limit`` (1 or more) caps the length.
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
        only_if: SandboxStatesInput | None = None,
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
        state: SandboxStatesInput | None = None,
        agent: str | None = None,
        session_id: str | None = None,
        limit: int | None = None,
        before: SandboxRecord | str | None = None,
    ) -> list[SandboxRecord]:
        """Return the tenant's sandboxes, newest first, ties by id descending.

        ``state`` (one or several), ``agent`` and ``session_id`` narrow the list; ``limit`` (1 or more) caps its
        length; ``before``, the last record of a page or its ``cursor``, continues after it.
        """
        ...

    def list_sandboxes_by_runner(self, runner_id: str) -> list[SandboxRecord]:
        """Return the sandboxes of all tenants whose ``session_id`` names a session on the runner, newest first."""
        ...

    def count_sandboxes(self, *, state: SandboxStatesInput | None = None) -> int:
        """Return how many sandboxes all tenants have, in one or several states if given."""
        ...

    def claim_warm_sandbox(
        self, agent_name: str, session_id: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> SandboxRecord | None:
        """Claim a ``warm`` sandbox of the agent and tenant that has no session; return the updated record, or None.

        It is the one with the oldest ``last_used_at``, ties by id ascending, that no other caller is claiming; each
        sandbox goes to one caller. It becomes ``waiting``, gets the session and a new ``last_used_at``. Not safe to
        repeat: each call claims another one.
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
        """Claim the sandbox that ``get_best_eviction_candidate()`` names; return the record as it was before, or None.

        A ``cold`` one is deleted, any other becomes ``cold``, in one statement that rechecks state and
        ``last_used_at`` as it writes: each sandbox goes to one caller, and one that was touched meanwhile is left
        alone. Sandboxes that other transactions are writing are skipped. Not safe to repeat: each call claims another.
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
        """Create and store a key; return the plain key, which is not stored, and the record."""
        ...

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        """Return the record of the plain key, or None; one read, no write."""
        ...

    def for_tenant(self, tenant_id: str) -> Db:
        """Return a view of this ``Db`` in which every call, by id included, sees and changes that tenant's rows only.

        Another tenant's id behaves like a missing one, and cannot be inserted. Calls for all tenants act on this one.
        ``tenant_id`` may be omitted from calls on the view; another tenant raises ``InvalidInputError``, also in a
        nested ``for_tenant()``. ``run_transaction`` passes a view to its function. ``close()`` closes only the view;
        ``health()`` reports on the whole database.
        """
        ...

    def prune_sessions(
        self, ended_before: datetime, limit: int, *, also: Sequence[str] = ()
    ) -> int:
        """Delete up to ``limit`` finished sessions last active before the aware ``ended_before``; return how many.

        Finished are ``ended``, ``stopped`` and ``error``. The longest inactive are deleted first, ties by id ascending,
        together with their ``cold`` sandboxes, in one transaction. ``also`` names tables that are not agentdb's: their
        rows whose text column ``session_id`` names one of the sessions are deleted too. Every call reads all finished
        sessions, so delete thousands at a time. Safe to repeat until it returns 0.
        """
        ...

    def health(self) -> Health:
        """Report whether the database works. If it cannot be reached, ``ok`` is False and ``reason`` says why.

        Pending migrations make ``ok`` False too. Does not raise for a fault of the database, and writes nothing.
        """
        ...

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        """Call ``fn(db)`` with all its calls in one serializable transaction and return its result.

        Inside a host project's transaction it joins that, at its isolation level. An exception from ``fn`` rolls its
        calls back. After a serialization conflict ``fn`` is called again, whatever it raised; ``ConflictError`` when
        the retries run out. The ``Db`` passed to ``fn`` works only in the thread of ``fn``, and until ``fn`` returns.
        """
        ...

    def close(self) -> None:
        """Close the connections. A second ``close()`` does nothing; any other call raises ``DatabaseClosedError``."""
        ...
