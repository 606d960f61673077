"""MemoryDb: a complete Db in dictionaries, for tests; it imports no Django and opens nothing."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar

from agentdb.errors import (
    AgentDbError,
    DatabaseClosedError,
    DuplicateKeyError,
    InvalidInputError,
)
from agentdb.inputs import (
    aware_instant,
    check_tenant,
    identifier,
    identifiers,
    optional_identifier,
    other_tables,
    page_limit,
    page_position,
    plain_function,
    plain_result,
    sandbox_state,
    sandbox_states,
    session_status,
    session_statuses,
    silence,
    text,
)
from agentdb.interface import (
    DEFAULT_TENANT_ID,
    AgentRecord,
    ApiKeyRecord,
    Db,
    Health,
    SandboxRecord,
    SandboxState,
    SandboxStateInput,
    SandboxStatesInput,
    SessionRecord,
    SessionStatus,
    SessionStatusesInput,
    SessionStatusInput,
)
from agentdb.keys import KeyHashes

R = TypeVar("R")
Record = TypeVar("Record", AgentRecord, SessionRecord, SandboxRecord, ApiKeyRecord)

_RUNNING = (SessionStatus.ACTIVE, SessionStatus.STARTING)
_FINISHED = (SessionStatus.ENDED, SessionStatus.STOPPED, SessionStatus.ERROR)
_EVICTED_FIRST = (SandboxState.COLD, SandboxState.WARM, SandboxState.WAITING)


@dataclass
class _Tables:
    """All rows by id. Records are immutable, so a copy of the dictionaries is a snapshot."""

    agents: dict[str, AgentRecord] = field(default_factory=dict)
    sessions: dict[str, SessionRecord] = field(default_factory=dict)
    sandboxes: dict[str, SandboxRecord] = field(default_factory=dict)
    keys: dict[str, ApiKeyRecord] = field(default_factory=dict)

    def kept(self) -> _Tables:
        return _Tables(
            copy(self.agents),
            copy(self.sessions),
            copy(self.sandboxes),
            copy(self.keys),
        )

    def put_back(self, kept: _Tables) -> None:
        # In this object, which all views share: one made in the transaction must see the old rows again too.
        self.agents, self.sessions = kept.agents, kept.sessions
        self.sandboxes, self.keys = kept.sandboxes, kept.keys


class MemoryDb(Db):
    """A ``Db`` that behaves like the real ones, errors included, and keeps its rows in memory.

    Threads take turns, so a transaction has the database to itself and no call conflicts. ``clock`` returns the time of
    each call, an aware ``datetime``; set it to control the ages of rows.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] | None = None,
        key_secret: str | None = None,
    ) -> None:
        self._hashes = KeyHashes(key_secret)
        self._clock = clock or (lambda: datetime.now(UTC))
        self._tables = _Tables()
        self._lock = threading.RLock()
        self._tenant_id: str | None = None
        self._whole = self
        self._transaction: _Transaction | None = None  # that this is the view of
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- agents

    def upsert_agent(
        self, name: str, path: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord:
        name = identifier("Agent name", name)
        path = text("Agent path", path)
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            now = self._now()
            old = self._find(tables.agents, name=name, tenant_id=tenant_id)
            if old is None:
                id = str(uuid.uuid4())
                agent = AgentRecord(id, tenant_id, name, 1, path, now, now)
            else:
                agent = replace(old, version=old.version + 1, path=path, updated_at=now)
            tables.agents[agent.id] = agent
            return agent

    def get_agent(
        self, name: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord | None:
        name = identifier("Agent name", name)
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            return self._find(tables.agents, name=name, tenant_id=tenant_id)

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            return sorted(
                self._all(tables.agents, tenant_id=tenant_id),
                key=lambda agent: agent.name,
            )

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        name = identifier("Agent name", name)
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            # Whether or not the agent exists: sessions name it by a soft reference, and may have outlived it.
            for session in self._all(
                tables.sessions, agent_name=name, tenant_id=tenant_id
            ):
                del tables.sessions[session.id]
            agent = self._find(tables.agents, name=name, tenant_id=tenant_id)
            return agent is not None and self._delete(tables.agents, agent.id)

    # -- sessions

    def insert_session(
        self,
        id: str,
        agent_name: str,
        sandbox_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SessionRecord:
        id = identifier("Session id", id)
        agent_name = identifier("Agent name", agent_name)
        sandbox_id = identifier("Sandbox id", sandbox_id)
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            if id in tables.sessions:
                raise DuplicateKeyError(f"A session with the id {id!r} exists already.")
            now = self._now()
            session = SessionRecord(
                id, tenant_id, agent_name, sandbox_id, "starting", None, now, now
            )
            tables.sessions[id] = session
            return session

    def update_session_status(
        self,
        id: str,
        status: SessionStatusInput,
        *,
        only_if: SessionStatusesInput | None = None,
    ) -> bool:
        wanted = (
            {} if only_if is None else {"status": session_statuses("only_if", only_if)}
        )
        return self._update_session(id, wanted, status=session_status(status))

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return self._update_session(id, sandbox_id=identifier("Sandbox id", sandbox_id))

    def update_session_runner(
        self,
        id: str,
        runner_id: str | None,
        *,
        only_if: str | EllipsisType | None = ...,
    ) -> bool:
        wanted = (
            {}
            if only_if is ...
            else {"runner_id": [optional_identifier("only_if", only_if)]}
        )
        return self._update_session(
            id, wanted, runner_id=optional_identifier("Runner id", runner_id)
        )

    def get_session(self, id: str) -> SessionRecord | None:
        id = identifier("Session id", id)
        with self._turn() as tables:
            return self._get(tables.sessions, id)

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
        wanted = self._sessions_wanted(tenant_id, agent, status)
        if runner_id is not None:
            wanted["runner_id"] = identifier("Runner id", runner_id)
        limit = None if limit is None else page_limit(limit)
        position = None if before is None else page_position(before, SessionRecord)
        with self._turn() as tables:
            return _page(self._all(tables.sessions, **wanted), limit, position)

    def count_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        *,
        agent: str | None = None,
        status: SessionStatusesInput | None = None,
    ) -> int:
        wanted = self._sessions_wanted(tenant_id, agent, status)
        with self._turn() as tables:
            return len(self._all(tables.sessions, **wanted))

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        runner_id = identifier("Runner id", runner_id)
        with self._turn() as tables:
            return _newest_first(self._all(tables.sessions, runner_id=runner_id))

    def claim_session(
        self, id: str, runner_id: str, *, silent_for: timedelta | None = None
    ) -> SessionRecord | None:
        id = identifier("Session id", id)
        runner_id = identifier("Runner id", runner_id)
        silent_for = None if silent_for is None else silence(silent_for)
        with self._turn() as tables:
            session = self._get(tables.sessions, id)
            if session is None or session.status in _FINISHED:
                return None
            now = self._now()
            is_free = (
                session.runner_id in (None, runner_id)
                or session.status == SessionStatus.PAUSED
            )
            is_silent = (
                silent_for is not None and session.last_active_at < now - silent_for
            )
            if not is_free and not is_silent:
                return None
            tables.sessions[id] = _active(session, now, runner_id=runner_id)
            return tables.sessions[id]

    def get_silent_sessions(
        self, older_than: datetime, *, limit: int | None = None
    ) -> list[SessionRecord]:
        older_than = aware_instant("older_than", older_than)
        limit = None if limit is None else page_limit(limit)
        with self._turn() as tables:
            live = self._all(tables.sessions, status=_RUNNING)
        silent = [session for session in live if session.last_active_at < older_than]
        return _least_recently_active(silent)[:limit]

    def touch_session(self, id: str, *, runner_id: str | None = None) -> bool:
        id = identifier("Session id", id)
        return self._update_session(id, _on_runner(runner_id))

    def touch_sessions(
        self, ids: Collection[str], *, runner_id: str | None = None
    ) -> list[str]:
        ids = identifiers("Session id", ids)
        wanted = _on_runner(runner_id)
        with self._turn() as tables:
            now = self._now()
            found = self._several(tables.sessions, ids, **wanted)
            _put(tables.sessions, (_active(session, now) for session in found))
            return [row.id for row in found]

    def delete_session(self, id: str) -> bool:
        id = identifier("Session id", id)
        with self._turn() as tables:
            return self._delete(tables.sessions, id)

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self._pause(runner_id=identifier("Runner id", runner_id))

    def bulk_pause_active_sessions(self) -> int:
        return self._pause()

    def prune_sessions(
        self, ended_before: datetime, limit: int, *, also: Sequence[str] = ()
    ) -> int:
        ended_before = aware_instant("ended_before", ended_before)
        limit = page_limit(limit)
        for table in other_tables("also", also):
            raise InvalidInputError(f"No table {table!r} has a column 'session_id'.")
        with self._turn() as tables:
            finished = self._all(tables.sessions, status=_FINISHED)
            pruned = {
                session.id
                for session in _least_recently_active(finished)[:limit]
                if session.last_active_at < ended_before
            }
            for sandbox in self._all(tables.sandboxes, state="cold", session_id=pruned):
                del tables.sandboxes[sandbox.id]
            for id in pruned:
                del tables.sessions[id]
            return len(pruned)

    def _sessions_wanted(
        self, tenant_id: str, agent: str | None, status: object
    ) -> dict[str, Any]:
        wanted: dict[str, Any] = {"tenant_id": self._tenant(tenant_id)}
        if agent is not None:
            wanted["agent_name"] = identifier("Agent name", agent)
        if status is not None:
            wanted["status"] = session_statuses("status", status)
        return wanted

    def _update_session(
        self, id: str, wanted: dict[str, Any] | None = None, **values: Any
    ) -> bool:
        id = identifier("Session id", id)
        with self._turn() as tables:
            session = self._get(tables.sessions, id)
            if session is None or not _fits(session, wanted or {}):
                return False
            tables.sessions[id] = _active(session, self._now(), **values)
            return True

    def _pause(self, **wanted: str) -> int:
        with self._turn() as tables:
            now = self._now()
            live = self._all(tables.sessions, status=_RUNNING, **wanted)
            _put(
                tables.sessions, (_active(each, now, status="paused") for each in live)
            )
            return len(live)

    # -- sandboxes

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord:
        id = identifier("Sandbox id", id)
        agent_name = identifier("Agent name", agent_name)
        workspace_dir = text("Workspace directory", workspace_dir)
        session_id = optional_identifier("Session id", session_id)
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            if id in tables.sandboxes:
                raise DuplicateKeyError(f"A sandbox with the id {id!r} exists already.")
            now = self._now()
            sandbox = SandboxRecord(
                id,
                tenant_id,
                session_id,
                agent_name,
                "warming",
                workspace_dir,
                now,
                now,
            )
            tables.sandboxes[id] = sandbox
            return sandbox

    def update_sandbox_state(
        self,
        id: str,
        state: SandboxStateInput,
        *,
        only_if: SandboxStatesInput | None = None,
    ) -> bool:
        wanted = (
            {} if only_if is None else {"state": sandbox_states("only_if", only_if)}
        )
        return self._update_sandbox(id, wanted, state=sandbox_state(state))

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self._update_sandbox(
            id, session_id=optional_identifier("Session id", session_id)
        )

    def touch_sandbox(self, id: str) -> bool:
        return bool(self.touch_sandboxes([id]))

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        id = identifier("Sandbox id", id)
        with self._turn() as tables:
            return self._get(tables.sandboxes, id)

    def touch_sandboxes(self, ids: Collection[str]) -> list[str]:
        ids = identifiers("Sandbox id", ids)
        with self._turn() as tables:
            now = self._now()
            found = self._several(tables.sandboxes, ids)
            _put(tables.sandboxes, (_used(sandbox, now) for sandbox in found))
            return [row.id for row in found]

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
        wanted: dict[str, Any] = {"tenant_id": self._tenant(tenant_id)}
        if state is not None:
            wanted["state"] = sandbox_states("state", state)
        if agent is not None:
            wanted["agent_name"] = identifier("Agent name", agent)
        if session_id is not None:
            wanted["session_id"] = identifier("Session id", session_id)
        limit = None if limit is None else page_limit(limit)
        position = None if before is None else page_position(before, SandboxRecord)
        with self._turn() as tables:
            return _page(self._all(tables.sandboxes, **wanted), limit, position)

    def list_sandboxes_by_runner(self, runner_id: str) -> list[SandboxRecord]:
        runner_id = identifier("Runner id", runner_id)
        with self._turn() as tables:
            sessions = self._all(tables.sessions, runner_id=runner_id)
            ids = {session.id for session in sessions}
            return _newest_first(self._all(tables.sandboxes, session_id=ids))

    def count_sandboxes(self, *, state: SandboxStatesInput | None = None) -> int:
        wanted = {} if state is None else {"state": sandbox_states("state", state)}
        with self._turn() as tables:
            return len(self._all(tables.sandboxes, **wanted))

    def claim_warm_sandbox(
        self, agent_name: str, session_id: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> SandboxRecord | None:
        agent_name = identifier("Agent name", agent_name)
        session_id = identifier("Session id", session_id)
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            warm = self._all(
                tables.sandboxes,
                agent_name=agent_name,
                tenant_id=tenant_id,
                state="warm",
                session_id=[None],
            )
            if not warm:
                return None
            free = _least_recently_used(warm)[0]
            claimed = _used(free, self._now(), state="waiting", session_id=session_id)
            tables.sandboxes[claimed.id] = claimed
            return claimed

    def get_best_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        if unused_since is not None:
            unused_since = aware_instant("unused_since", unused_since)
        with self._turn() as tables:
            for state in _EVICTED_FIRST:
                found = _least_recently_used(
                    self._all(tables.sandboxes, state=state.value)
                )
                if found and (
                    unused_since is None or found[0].last_used_at < unused_since
                ):
                    return found[0]
        return None

    def claim_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        with self._turn() as tables:
            sandbox = self.get_best_eviction_candidate(unused_since=unused_since)
            if sandbox is None:
                return None
            if sandbox.state == SandboxState.COLD:
                del tables.sandboxes[sandbox.id]
            else:
                tables.sandboxes[sandbox.id] = replace(sandbox, state="cold")
            return sandbox

    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._unused(SandboxState.WAITING, older_than)

    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._unused(SandboxState.COLD, older_than)

    def delete_sandbox(self, id: str) -> bool:
        id = identifier("Sandbox id", id)
        with self._turn() as tables:
            return self._delete(tables.sandboxes, id)

    def mark_all_sandboxes_cold(self) -> int:
        with self._turn() as tables:
            return self._mark_cold(self._all(tables.sandboxes))

    def mark_sandboxes_cold_by_runner(self, runner_id: str) -> int:
        with self._turn():
            return self._mark_cold(self.list_sandboxes_by_runner(runner_id))

    def _mark_cold(self, sandboxes: list[SandboxRecord]) -> int:
        others = [each for each in sandboxes if each.state != SandboxState.COLD]
        _put(self._tables.sandboxes, (replace(each, state="cold") for each in others))
        return len(others)

    def _update_sandbox(
        self,
        id: str,
        wanted: dict[str, Any] | None = None,
        **values: Any,
    ) -> bool:
        id = identifier("Sandbox id", id)
        with self._turn() as tables:
            sandbox = self._get(tables.sandboxes, id)
            if sandbox is None or not _fits(sandbox, wanted or {}):
                return False
            tables.sandboxes[id] = replace(sandbox, **values)
            return True

    def _unused(self, state: SandboxState, older_than: datetime) -> list[SandboxRecord]:
        older_than = aware_instant("older_than", older_than)
        with self._turn() as tables:
            found = _least_recently_used(self._all(tables.sandboxes, state=state.value))
        return [sandbox for sandbox in found if sandbox.last_used_at < older_than]

    # -- API keys

    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        key_hash = identifier("Key hash", key_hash)
        with self._turn() as tables:
            return self._find(tables.keys, key_hash=key_hash)

    def insert_api_key(
        self, id: str, tenant_id: str, key_hash: str, label: str
    ) -> ApiKeyRecord:
        id = identifier("API key id", id)
        tenant_id = self._tenant(tenant_id)
        key_hash = identifier("Key hash", key_hash)
        label = text("Label", label)
        with self._turn() as tables:
            # Of all tenants, also for a tenant's view: the column is unique, and a key must belong to one tenant.
            hashes = {key.key_hash for key in tables.keys.values()}
            if id in tables.keys or key_hash in hashes:
                raise DuplicateKeyError(
                    f"An API key with the id {id!r}, or with the same hash, exists already."
                )
            key = ApiKeyRecord(id, tenant_id, key_hash, label, self._now())
            tables.keys[id] = key
            return key

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        tenant_id = self._tenant(tenant_id)
        with self._turn() as tables:
            return _newest_first(self._all(tables.keys, tenant_id=tenant_id))

    def delete_api_key(self, id: str) -> bool:
        id = identifier("API key id", id)
        with self._turn() as tables:
            return self._delete(tables.keys, id)

    def issue_api_key(self, tenant_id: str, label: str) -> tuple[str, ApiKeyRecord]:
        plain, key_hash = self._hashes.generate()
        return plain, self.insert_api_key(str(uuid.uuid4()), tenant_id, key_hash, label)

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        key_hash, bare_hash = self._hashes.known(plain)
        with self._turn() as tables:
            return self._find(tables.keys, key_hash=key_hash) or self._find(
                tables.keys, key_hash=bare_hash
            )

    # -- tenants, transactions and life cycle

    def for_tenant(self, tenant_id: str) -> MemoryDb:
        tenant_id = identifier("Tenant id", tenant_id)
        self._check_open()
        if self._tenant_id is not None:
            check_tenant(self._tenant_id, tenant_id)
        view = copy(self)
        view._tenant_id = tenant_id
        return view

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        plain_function(fn)
        with self._turn() as tables:
            # The lock is held until the end, and it is reentrant: calls of this thread go on, those of others wait.
            kept = tables.kept()
            inside = copy(self)
            inside._transaction = transaction = _Transaction()
            try:
                result = plain_result(fn(inside))
                self._check_open()
                return result
            except BaseException:
                tables.put_back(kept)
                raise
            finally:
                transaction.is_over = True

    def health(self) -> Health:
        self._check_open()
        return Health(True, "memory", "", "a MemoryDb", 0.0, (), 0, "")

    def describe(self) -> str:
        """Return the name of the database for a message."""
        return "a MemoryDb"

    def close(self) -> None:
        self._closed = True

    # -- rows

    def _turn(self) -> _Turn:
        return _Turn(self)

    def _check_open(self) -> None:
        if self._transaction is not None:
            self._transaction.check()
        if self._whole._closed:
            raise DatabaseClosedError(
                "The Db is closed. Open another one with agentdb.connect()."
            )
        if self._closed:
            raise DatabaseClosedError(
                "The view of a tenant is closed. Make another one with for_tenant()."
            )

    def _now(self) -> datetime:
        return self._clock().astimezone(UTC)

    def _tenant(self, tenant_id: str) -> str:
        if self._tenant_id is None:
            return identifier("Tenant id", tenant_id)
        if tenant_id is not DEFAULT_TENANT_ID:
            check_tenant(self._tenant_id, identifier("Tenant id", tenant_id))
        return self._tenant_id

    def _sees(self, row: Any) -> bool:
        return self._tenant_id is None or row.tenant_id == self._tenant_id

    def _get(self, rows: dict[str, Record], id: str) -> Record | None:
        row = rows.get(id)
        return row if row is not None and self._sees(row) else None

    def _several(
        self, rows: dict[str, Record], ids: Iterable[str], **wanted: Any
    ) -> list[Record]:
        found = (self._get(rows, id) for id in ids)
        return [row for row in found if row is not None and _fits(row, wanted)]

    def _all(self, rows: dict[str, Record], **wanted: Any) -> list[Record]:
        return [row for row in rows.values() if self._sees(row) and _fits(row, wanted)]

    def _find(self, rows: dict[str, Record], **wanted: str) -> Record | None:
        return next(iter(self._all(rows, **wanted)), None)

    def _delete(self, rows: dict[str, Record], id: str) -> bool:
        if self._get(rows, id) is None:
            return False
        del rows[id]
        return True


class _Transaction:
    """A running transaction, for the views of it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self.is_over = False

    def check(self) -> None:
        """Raise if it has ended, or belongs to another thread."""
        if self.is_over:
            raise DatabaseClosedError(
                "The transaction has ended. Call the Db that ran it."
            )
        if self._thread != threading.get_ident():
            raise AgentDbError(
                "A transaction belongs to the thread that runs it, and this call comes from another. Make the calls in "
                "the function's own thread, or use the Db around it: what that does in another thread is not part of "
                "the transaction."
            )


class _Turn:
    """A thread's turn with the tables of an open ``MemoryDb``."""

    def __init__(self, db: MemoryDb) -> None:
        self._db = db

    def __enter__(self) -> _Tables:
        self._db._check_open()  # before waiting for a lock that the caller's own transaction may hold
        self._db._lock.acquire()
        try:
            self._db._check_open()
        except BaseException:
            self._db._lock.release()
            raise
        return self._db._tables

    def __exit__(self, *error: object) -> None:
        self._db._lock.release()


Dated = TypeVar("Dated", SessionRecord, SandboxRecord, ApiKeyRecord)


def _fits(row: Any, wanted: dict[str, Any]) -> bool:
    """Return whether each column has the wanted value, or one of several."""
    return all(
        getattr(row, column) == value
        if isinstance(value, str)
        else getattr(row, column) in value
        for column, value in wanted.items()
    )


def _on_runner(runner_id: str | None) -> dict[str, str]:
    return (
        {} if runner_id is None else {"runner_id": identifier("Runner id", runner_id)}
    )


# The clock may go back, but last activity and last use only move forward.
def _active(session: SessionRecord, now: datetime, **values: Any) -> SessionRecord:
    active = max(session.last_active_at, now)
    return replace(session, last_active_at=active, **values)


def _used(sandbox: SandboxRecord, now: datetime, **values: Any) -> SandboxRecord:
    return replace(sandbox, last_used_at=max(sandbox.last_used_at, now), **values)


def _put(rows: dict[str, Record], changed: Iterable[Record]) -> None:
    rows.update((row.id, row) for row in changed)


def _newest_first(rows: list[Dated]) -> list[Dated]:
    # Python compares strings by code point, which is the order that the SQL asks every engine for.
    return sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)


def _page(
    rows: list[Dated], limit: int | None, position: tuple[datetime, str] | None
) -> list[Dated]:
    if position is not None:
        rows = [row for row in rows if (row.created_at, row.id) < position]
    return _newest_first(rows)[:limit]


def _least_recently_active(sessions: list[SessionRecord]) -> list[SessionRecord]:
    return sorted(sessions, key=lambda session: (session.last_active_at, session.id))


def _least_recently_used(sandboxes: list[SandboxRecord]) -> list[SandboxRecord]:
    return sorted(sandboxes, key=lambda sandbox: (sandbox.last_used_at, sandbox.id))
