"""MemoryDb: a complete Db in dictionaries, for tests; it imports no Django and opens nothing."""

from __future__ import annotations

import inspect
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from types import EllipsisType, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from agentdb.errors import (
    AgentDbError,
    DatabaseClosedError,
    DuplicateKeyError,
    InvalidInputError,
)
from agentdb.inputs import (
    argument_checks,
    check_tenant,
    identifier,
    page_position,
    plain_function,
    plain_result,
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

P = ParamSpec("P")
R = TypeVar("R")
Record = TypeVar(
    "Record", bound=AgentRecord | SessionRecord | SandboxRecord | ApiKeyRecord
)
Dated = TypeVar("Dated", SessionRecord, SandboxRecord, ApiKeyRecord)
Paged = TypeVar("Paged", SessionRecord, SandboxRecord)

_RUNNING = (SessionStatus.ACTIVE, SessionStatus.STARTING)
_FINISHED = (SessionStatus.ENDED, SessionStatus.STOPPED, SessionStatus.ERROR)
_EVICTED_FIRST = [SandboxState.COLD, SandboxState.WARM, SandboxState.WAITING]


class _Table(Generic[Record]):
    """One table, as a ``Db`` sees it: all rows, or those of a tenant."""

    def __init__(
        self,
        last: str,
        rows: dict[str, Record],
        tenant_id: str | None = None,
    ) -> None:
        # Of all tenants, by id: the views of a Db share the dictionary.
        self.rows = rows
        # The column with the time of the last activity or use.
        self._last = last
        self._tenant_id = tenant_id

    def of_tenant(self, tenant_id: str) -> _Table[Record]:
        return _Table(self._last, self.rows, tenant_id)

    def all(self, **wanted: Any) -> list[Record]:
        """Return all rows with the wanted values.

        A column is compared with a string, with a collection of which any will do, or not at all if it is None.
        """
        return [row for row in self.rows.values() if self._fits(row, wanted)]

    def only(self, **wanted: Any) -> Record | None:
        """Return the one row that has the wanted values, or None."""
        for row in self.all(**wanted):
            return row
        return None

    def get(self, id: str, **wanted: Any) -> Record | None:
        """Return the row with that id, or None if it does not have the wanted values too."""
        row = self.rows.get(id)
        if row is None or not self._fits(row, wanted):
            return None
        return row

    def put(self, row: Record) -> Record:
        """Insert the row, or replace the one with its id; return it."""
        self.rows[row.id] = row
        return row

    def update(self, row: Record | None, **values: Any) -> bool:
        """Set columns of the row, and return whether there is one."""
        if row is None:
            return False
        self.rows[row.id] = replace(row, **values)
        return True

    def touch(self, row: Record | None, now: datetime, **values: Any) -> bool:
        """Set columns of the row and the time of its last activity or use, and return whether there is one."""
        if row is None:
            return False
        # The clock may go back, but this time only moves forward.
        before = getattr(row, self._last)
        values[self._last] = max(before, now)
        return self.update(row, **values)

    def untouched(self, since: datetime | None, **wanted: Any) -> list[Record]:
        """Return the rows with the wanted values that were not touched since then, the longest untouched first."""

        def place(row: Record) -> tuple[datetime, str]:
            return getattr(row, self._last), row.id

        rows = self.all(**wanted)
        if since is not None:
            rows = [row for row in rows if getattr(row, self._last) < since]
        return sorted(rows, key=place)

    def delete(self, id: str) -> bool:
        """Delete the row, and return whether there was one."""
        if self.get(id) is None:
            return False
        del self.rows[id]
        return True

    def _fits(self, row: Record, wanted: dict[str, Any]) -> bool:
        """Return whether the row is of the tenant, if there is one, and has the wanted values."""
        if self._tenant_id not in (None, row.tenant_id):
            return False
        for column, value in wanted.items():
            if value is None:
                continue
            any_of = [value] if isinstance(value, str) else value
            if getattr(row, column) not in any_of:
                return False
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


def _call(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """Make a method check its arguments as every ``Db`` does, and then run in its thread's turn."""
    signature = inspect.signature(method)
    checks = argument_checks(method)

    @wraps(method)
    def call(self: MemoryDb, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        # In their order, so that of several bad ones each implementation names the same.
        for name, value in arguments.items():
            if name == "tenant_id":
                arguments[name] = self._tenant(value)
            elif name in checks:
                arguments[name] = checks[name](value)
        with self._turn():
            return method(*bound.args, **bound.kwargs)

    return call


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
        self._agents: _Table[AgentRecord] = _Table("updated_at", {})
        self._sessions: _Table[SessionRecord] = _Table("last_active_at", {})
        self._sandboxes: _Table[SandboxRecord] = _Table("last_used_at", {})
        self._keys: _Table[ApiKeyRecord] = _Table("created_at", {})
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

    @_call
    def upsert_agent(
        self,
        name: str,
        path: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> AgentRecord:
        now = self._now()
        old = self._agents.only(name=name, tenant_id=tenant_id)
        if old is None:
            id = str(uuid.uuid4())
            agent = AgentRecord(
                id,
                tenant_id,
                name,
                1,
                path,
                now,
                now,
            )
        else:
            agent = replace(
                old,
                version=old.version + 1,
                path=path,
                updated_at=now,
            )
        return self._agents.put(agent)

    @_call
    def get_agent(
        self, name: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord | None:
        return self._agents.only(name=name, tenant_id=tenant_id)

    @_call
    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        def by_name(agent: AgentRecord) -> str:
            return agent.name

        agents = self._agents.all(tenant_id=tenant_id)
        return sorted(agents, key=by_name)

    @_call
    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        # Whether or not the agent exists: sessions name it by a soft reference, and may have outlived it.
        sessions = self._sessions.all(
            agent_name=name,
            tenant_id=tenant_id,
        )
        for session in sessions:
            self._sessions.delete(session.id)
        agent = self._agents.only(name=name, tenant_id=tenant_id)
        if agent is None:
            return False
        return self._agents.delete(agent.id)

    # -- sessions

    @_call
    def insert_session(
        self,
        id: str,
        agent_name: str,
        sandbox_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SessionRecord:
        if id in self._sessions.rows:
            raise DuplicateKeyError(f"A session with the id {id!r} exists already.")
        now = self._now()
        session = SessionRecord(
            id,
            tenant_id,
            agent_name,
            sandbox_id,
            status="starting",
            runner_id=None,
            created_at=now,
            last_active_at=now,
        )
        return self._sessions.put(session)

    @_call
    def update_session_status(
        self,
        id: str,
        status: SessionStatusInput,
        *,
        only_if: SessionStatusesInput | None = None,
    ) -> bool:
        session = self._sessions.get(id, status=only_if)
        return self._sessions.touch(session, self._now(), status=status)

    @_call
    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        session = self._sessions.get(id)
        return self._sessions.touch(
            session,
            self._now(),
            sandbox_id=sandbox_id,
        )

    @_call
    def update_session_runner(
        self,
        id: str,
        runner_id: str | None,
        *,
        only_if: str | EllipsisType | None = ...,
    ) -> bool:
        # Left out, it lets any runner pass; None is a runner like the others, "nobody".
        wanted = None if only_if is ... else [only_if]
        session = self._sessions.get(id, runner_id=wanted)
        return self._sessions.touch(session, self._now(), runner_id=runner_id)

    @_call
    def get_session(self, id: str) -> SessionRecord | None:
        return self._sessions.get(id)

    @_call
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
        sessions = self._sessions.all(
            tenant_id=tenant_id,
            agent_name=agent,
            status=status,
            runner_id=runner_id,
        )
        return _page(SessionRecord, sessions, limit, before)

    @_call
    def count_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        *,
        agent: str | None = None,
        status: SessionStatusesInput | None = None,
    ) -> int:
        sessions = self._sessions.all(
            tenant_id=tenant_id,
            agent_name=agent,
            status=status,
        )
        return len(sessions)

    @_call
    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        sessions = self._sessions.all(runner_id=runner_id)
        return _newest_first(sessions)

    @_call
    def claim_session(
        self,
        id: str,
        runner_id: str,
        *,
        silent_for: timedelta | None = None,
    ) -> SessionRecord | None:
        session = self._sessions.get(id)
        if session is None or session.status in _FINISHED:
            return None
        now = self._now()
        # Nobody's session, the runner's own, or a paused one; and one that was silent for long enough.
        may_have_it = (
            session.runner_id in (None, runner_id)
            or session.status == SessionStatus.PAUSED
        )
        if silent_for is not None and session.last_active_at < now - silent_for:
            may_have_it = True
        if not may_have_it:
            return None
        self._sessions.touch(session, now, runner_id=runner_id)
        return self._sessions.get(id)

    @_call
    def get_silent_sessions(
        self, older_than: datetime, *, limit: int | None = None
    ) -> list[SessionRecord]:
        silent = self._sessions.untouched(older_than, status=_RUNNING)
        return silent[:limit]

    @_call
    def touch_session(
        self,
        id: str,
        *,
        runner_id: str | None = None,
    ) -> bool:
        session = self._sessions.get(id, runner_id=runner_id)
        return self._sessions.touch(session, self._now())

    @_call
    def touch_sessions(
        self, ids: Collection[str], *, runner_id: str | None = None
    ) -> list[str]:
        now = self._now()
        touched = []
        for id in ids:
            session = self._sessions.get(id, runner_id=runner_id)
            was_there = self._sessions.touch(session, now)
            if was_there:
                touched.append(id)
        return touched

    @_call
    def delete_session(self, id: str) -> bool:
        return self._sessions.delete(id)

    @_call
    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self._pause(runner_id)

    @_call
    def bulk_pause_active_sessions(self) -> int:
        return self._pause()

    @_call
    def prune_sessions(
        self,
        ended_before: datetime,
        limit: int,
        *,
        also: Sequence[str] = (),
    ) -> int:
        for table in also:
            raise InvalidInputError(f"No table {table!r} has a column 'session_id'.")
        finished = self._sessions.untouched(ended_before, status=_FINISHED)
        pruned = [session.id for session in finished[:limit]]
        for sandbox in self._sandboxes.all(state="cold", session_id=pruned):
            self._sandboxes.delete(sandbox.id)
        for id in pruned:
            self._sessions.delete(id)
        return len(pruned)

    def _pause(self, runner_id: str | None = None) -> int:
        """Pause what runs, on the runner or on all, and return how many that were."""
        now = self._now()
        running = self._sessions.all(
            status=_RUNNING,
            runner_id=runner_id,
        )
        for session in running:
            self._sessions.touch(
                session,
                now,
                status="paused",
            )
        return len(running)

    # -- sandboxes

    @_call
    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord:
        if id in self._sandboxes.rows:
            raise DuplicateKeyError(f"A sandbox with the id {id!r} exists already.")
        now = self._now()
        sandbox = SandboxRecord(
            id,
            tenant_id,
            session_id,
            agent_name,
            state="warming",
            workspace_dir=workspace_dir,
            created_at=now,
            last_used_at=now,
        )
        return self._sandboxes.put(sandbox)

    @_call
    def update_sandbox_state(
        self,
        id: str,
        state: SandboxStateInput,
        *,
        only_if: SandboxStatesInput | None = None,
    ) -> bool:
        sandbox = self._sandboxes.get(id, state=only_if)
        return self._sandboxes.update(sandbox, state=state)

    @_call
    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        sandbox = self._sandboxes.get(id)
        return self._sandboxes.update(sandbox, session_id=session_id)

    @_call
    def touch_sandbox(self, id: str) -> bool:
        sandbox = self._sandboxes.get(id)
        return self._sandboxes.touch(sandbox, self._now())

    @_call
    def touch_sandboxes(self, ids: Collection[str]) -> list[str]:
        now = self._now()
        touched = []
        for id in ids:
            sandbox = self._sandboxes.get(id)
            was_there = self._sandboxes.touch(sandbox, now)
            if was_there:
                touched.append(id)
        return touched

    @_call
    def get_sandbox(self, id: str) -> SandboxRecord | None:
        return self._sandboxes.get(id)

    @_call
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
        sandboxes = self._sandboxes.all(
            tenant_id=tenant_id,
            state=state,
            agent_name=agent,
            session_id=session_id,
        )
        return _page(SandboxRecord, sandboxes, limit, before)

    @_call
    def list_sandboxes_by_runner(self, runner_id: str) -> list[SandboxRecord]:
        sessions = self._sessions.all(runner_id=runner_id)
        ids = [session.id for session in sessions]
        sandboxes = self._sandboxes.all(session_id=ids)
        return _newest_first(sandboxes)

    @_call
    def count_sandboxes(self, *, state: SandboxStatesInput | None = None) -> int:
        sandboxes = self._sandboxes.all(state=state)
        return len(sandboxes)

    @_call
    def claim_warm_sandbox(
        self,
        agent_name: str,
        session_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord | None:
        pool = self._sandboxes.untouched(
            None,
            agent_name=agent_name,
            tenant_id=tenant_id,
            state="warm",
            session_id=[None],
        )
        for sandbox in pool:
            self._sandboxes.touch(
                sandbox,
                self._now(),
                state="waiting",
                session_id=session_id,
            )
            return self._sandboxes.get(sandbox.id)
        return None

    @_call
    def get_best_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        for state in _EVICTED_FIRST:
            for sandbox in self._sandboxes.untouched(unused_since, state=state):
                return sandbox
        return None

    @_call
    def claim_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        sandbox = self.get_best_eviction_candidate(unused_since=unused_since)
        if sandbox is None:
            return None
        if sandbox.state == SandboxState.COLD:
            self._sandboxes.delete(sandbox.id)
        else:
            self._sandboxes.update(sandbox, state="cold")
        return sandbox

    @_call
    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._sandboxes.untouched(older_than, state="waiting")

    @_call
    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._sandboxes.untouched(older_than, state="cold")

    @_call
    def delete_sandbox(self, id: str) -> bool:
        return self._sandboxes.delete(id)

    @_call
    def mark_all_sandboxes_cold(self) -> int:
        return self._mark_cold(self._sandboxes.all())

    @_call
    def mark_sandboxes_cold_by_runner(self, runner_id: str) -> int:
        sandboxes = self.list_sandboxes_by_runner(runner_id)
        return self._mark_cold(sandboxes)

    def _mark_cold(self, sandboxes: list[SandboxRecord]) -> int:
        """Mark those that are not cold, and return how many that were."""
        marked = 0
        for sandbox in sandboxes:
            if sandbox.state == SandboxState.COLD:
                continue
            self._sandboxes.update(sandbox, state="cold")
            marked += 1
        return marked

    # -- API keys

    @_call
    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        return self._keys.only(key_hash=key_hash)

    @_call
    def insert_api_key(
        self,
        id: str,
        tenant_id: str,
        key_hash: str,
        label: str,
    ) -> ApiKeyRecord:
        # Of all tenants, also for a tenant's view: the column is unique, and a key must belong to one tenant.
        hashes = [key.key_hash for key in self._keys.rows.values()]
        if id in self._keys.rows or key_hash in hashes:
            raise DuplicateKeyError(
                f"An API key with the id {id!r}, or with the same hash, exists already."
            )
        key = ApiKeyRecord(
            id,
            tenant_id,
            key_hash,
            label,
            self._now(),
        )
        return self._keys.put(key)

    @_call
    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        keys = self._keys.all(tenant_id=tenant_id)
        return _newest_first(keys)

    @_call
    def delete_api_key(self, id: str) -> bool:
        return self._keys.delete(id)

    @_call
    def issue_api_key(self, tenant_id: str, label: str) -> tuple[str, ApiKeyRecord]:
        plain, key_hash = self._hashes.generate()
        id = str(uuid.uuid4())
        key = self.insert_api_key(
            id,
            tenant_id,
            key_hash,
            label,
        )
        return plain, key

    @_call
    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        # That of the hash which new keys have comes first.
        for key_hash in self._hashes.known(plain):
            key = self._keys.only(key_hash=key_hash)
            if key is not None:
                return key
        return None

    # -- tenants, transactions and life cycle

    def for_tenant(self, tenant_id: str) -> MemoryDb:
        tenant_id = identifier("Tenant id", tenant_id)
        self._check_open()
        if self._tenant_id is not None:
            check_tenant(self._tenant_id, tenant_id)
        view = copy(self)
        view._tenant_id = tenant_id
        view._agents = self._agents.of_tenant(tenant_id)
        view._sessions = self._sessions.of_tenant(tenant_id)
        view._sandboxes = self._sandboxes.of_tenant(tenant_id)
        view._keys = self._keys.of_tenant(tenant_id)
        return view

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        plain_function(fn)
        # The lock is held until the end, and it is reentrant: calls of this thread go on, those of others wait.
        with self._turn(), self._undone_on_error():
            transaction = _Transaction()
            inside = copy(self)
            inside._transaction = transaction
            try:
                result = plain_result(fn(inside))
            finally:
                transaction.is_over = True
            self._check_open()
            return result

    @_call
    def health(self) -> Health:
        return Health(
            ok=True,
            engine="memory",
            server_version="",
            place=self.describe(),
            round_trip_ms=0.0,
            pending_migrations=(),
            connections=0,
            reason="",
        )

    def describe(self) -> str:
        """Return the name of the database for a message."""
        return "a MemoryDb"

    def close(self) -> None:
        self._closed = True

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep the calls of other threads waiting; raise if the ``Db`` is closed."""
        # Before waiting, too: the lock may be held by the transaction whose function waits for this call of a thread.
        self._check_open()
        with self._lock:
            self._check_open()
            yield

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        # Records are immutable, so a copy of a dictionary is a snapshot. It is put back into the same dictionary, which
        # the views that were made in the transaction have too.
        tables: list[_Table[Any]] = [
            self._agents,
            self._sessions,
            self._sandboxes,
            self._keys,
        ]
        kept = [table.rows.copy() for table in tables]
        try:
            yield
        except BaseException:
            for table, rows in zip(tables, kept, strict=True):
                table.rows.clear()
                table.rows.update(rows)
            raise

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
        """Return the tenant that a call is of: the one it names, or that of the view, which refuses any other."""
        if self._tenant_id is None:
            return identifier("Tenant id", tenant_id)
        # The very object that is the argument's default: the call names no tenant.
        if tenant_id is not DEFAULT_TENANT_ID:
            named = identifier("Tenant id", tenant_id)
            check_tenant(self._tenant_id, named)
        return self._tenant_id


def _place(row: Dated) -> tuple[datetime, str]:
    """Return by what rows are listed."""
    # Python compares strings by code point, which is the order that the SQL asks every engine for.
    return row.created_at, row.id


def _newest_first(rows: list[Dated]) -> list[Dated]:
    return sorted(rows, key=_place, reverse=True)


def _page(
    record: type[Paged],
    rows: list[Paged],
    limit: int | None,
    before: Paged | str | None,
) -> list[Paged]:
    """Return the newest rows, at most so many, of those that come after the record or cursor."""
    if before is not None:
        position = page_position(before, record)
        rows = [row for row in rows if _place(row) < position]
    newest_first = _newest_first(rows)
    return newest_first[:limit]
