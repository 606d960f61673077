"""MemoryDb: a complete Db in dictionaries, for tests; it imports no Django and opens nothing."""

from __future__ import annotations

import inspect
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from types import EllipsisType
from typing import Any, Generic, TypeVar

from agentdb.errors import (
    DatabaseClosedError,
    DuplicateKeyError,
    InvalidInputError,
)
from agentdb.inputs import (
    InOneThread,
    argument_checks,
    named_tenant,
    page_position,
    plain_function,
    plain_result,
    tenant_of_call,
)
from agentdb.interface import (
    DEFAULT_TENANT_ID,
    AgentRecord,
    ApiKeyRecord,
    Db,
    Health,
    SandboxRecord,
    SandboxStateInput,
    SandboxStatesInput,
    SessionRecord,
    SessionStatusesInput,
    SessionStatusInput,
)
from agentdb.keys import KeyHashes, KeyIssuer

R = TypeVar("R")
Record = TypeVar(
    "Record", bound=AgentRecord | SessionRecord | SandboxRecord | ApiKeyRecord
)

# As the plain strings that records hold: a newer server's values are not members of an enumeration.
_RUNNING = ("active", "starting")
_FINISHED = ("ended", "stopped", "error")
_EVICTED_FIRST = ("cold", "warm", "waiting")


@dataclass
class _Rows(Generic[Record]):
    """Rows of one table: all, or those that have the wanted values."""

    record: type[Record]
    # The column with the time of the last activity or use.
    last: str
    # The whole table, by id: what is narrowed shares the dictionary.
    rows: dict[str, Record] = field(default_factory=dict)
    wanted: dict[str, Any] = field(default_factory=dict)

    def where(self, **wanted: Any) -> _Rows[Record]:
        """Return those of the rows that have these values.

        A column is compared with a string, with a collection of which any will do, or not at all if it is None.
        """
        narrowed = self.wanted.copy()
        for column, value in wanted.items():
            if value is not None:
                # A dictionary finds a value at once, and keeps the order of the ids that are asked for.
                any_of = [value] if isinstance(value, str) else value
                narrowed[column] = dict.fromkeys(any_of)
        return replace(self, wanted=narrowed)

    def all(self) -> list[Record]:
        """Return the rows: in the order of the ids that are wanted, or else as they were inserted."""
        ids = self.wanted.get("id", self.rows)
        rows = [self.rows[id] for id in ids if id in self.rows]
        return [row for row in rows if self._fits(row)]

    def first(self) -> Record | None:
        for row in self.all():
            return row
        return None

    def untouched(self, since: datetime | None = None) -> list[Record]:
        """Return the rows that were not touched since then, the longest untouched first."""
        rows = self.all()
        rows.sort(key=lambda row: (getattr(row, self.last), row.id))
        return [row for row in rows if since is None or getattr(row, self.last) < since]

    def page(
        self,
        limit: int | None = None,
        before: object = None,
    ) -> list[Record]:
        """Return the newest rows, at most so many, of those that come after the record or cursor."""
        rows = sorted(self.all(), key=_place, reverse=True)
        if before is not None:
            record: Any = self.record
            position = page_position(before, record)
            rows = [row for row in rows if _place(row) < position]
        return rows[:limit]

    def put(self, row: Record) -> Record:
        """Insert the row, or replace the one with its id; return it."""
        self.rows[row.id] = row
        return row

    def change(self, now: datetime | None = None, **values: Any) -> list[str]:
        """Set columns of the rows, with ``now`` also the time of their last activity or use, and return their ids."""
        rows = self.all()
        for row in rows:
            if now is not None:
                # The clock may go back, but this time only moves forward.
                values[self.last] = max(now, getattr(row, self.last))
            self.put(replace(row, **values))
        return [row.id for row in rows]

    def delete(self) -> int:
        """Delete the rows, and return how many that were."""
        rows = self.all()
        for row in rows:
            del self.rows[row.id]
        return len(rows)

    def _fits(self, row: Record) -> bool:
        return all(
            getattr(row, column) in any_of for column, any_of in self.wanted.items()
        )


def _place(row: Record) -> tuple[datetime, str]:
    """Return by what rows are listed."""
    # Python compares strings by code point, which is the order that the SQL asks every engine for.
    return row.created_at, row.id


def _call(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method check its arguments as every ``Db`` does, and then run in its thread's turn."""
    signature = inspect.signature(method)
    checks = argument_checks(method)

    @wraps(method)
    def call(self: MemoryDb, /, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        # In their order, so that of several bad ones each implementation names the same.
        for name, value in arguments.items():
            if name == "tenant_id":
                arguments[name] = tenant_of_call(self._tenant_id, value)
            elif name in checks:
                arguments[name] = checks[name](value)
        with self._turn():
            return method(*bound.args, **bound.kwargs)

    return call


def _with_checks(kind: type[R]) -> type[R]:
    """Make each method of ``Db`` a call, but those that check by themselves, or do something once it is closed."""
    for name in {*vars(Db)} - {"for_tenant", "run_transaction", "close"}:
        if not name.startswith("_"):
            setattr(kind, name, _call(getattr(kind, name)))
    return kind


@_with_checks
class MemoryDb(KeyIssuer):
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
        self._agents = _Rows(AgentRecord, "updated_at")
        self._sessions = _Rows(SessionRecord, "last_active_at")
        self._sandboxes = _Rows(SandboxRecord, "last_used_at")
        self._keys = _Rows(ApiKeyRecord, "created_at")
        self._lock = threading.RLock()
        self._tenant_id: str | None = None
        self._whole = self
        self._transaction: InOneThread | None = None  # that this is the view of
        self._closed = False

    # -- agents

    def upsert_agent(
        self,
        name: str,
        path: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> AgentRecord:
        now = self._now()
        agent = self.get_agent(name, tenant_id)
        if agent is None:
            id = str(uuid.uuid4())
            agent = AgentRecord(id, tenant_id, name, 0, path, now, now)
        updated = replace(
            agent,
            version=agent.version + 1,
            path=path,
            updated_at=now,
        )
        return self._agents.put(updated)

    def get_agent(
        self, name: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord | None:
        return self._agents.where(name=name, tenant_id=tenant_id).first()

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        agents = self._agents.where(tenant_id=tenant_id).all()
        return sorted(agents, key=lambda agent: agent.name)

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        # Whether or not the agent exists: sessions name it by a soft reference, and may have outlived it.
        self._sessions.where(agent_name=name, tenant_id=tenant_id).delete()
        return self._agents.where(name=name, tenant_id=tenant_id).delete() > 0

    # -- sessions

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

    def update_session_status(
        self,
        id: str,
        status: SessionStatusInput,
        *,
        only_if: SessionStatusesInput | None = None,
    ) -> bool:
        session = self._sessions.where(id=id, status=only_if)
        return bool(session.change(self._now(), status=status))

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        session = self._sessions.where(id=id)
        return bool(session.change(self._now(), sandbox_id=sandbox_id))

    def update_session_runner(
        self,
        id: str,
        runner_id: str | None,
        *,
        only_if: str | EllipsisType | None = ...,
    ) -> bool:
        # Left out, it lets any runner pass; None is a runner like the others, "nobody".
        wanted = None if only_if is ... else [only_if]
        session = self._sessions.where(id=id, runner_id=wanted)
        return bool(session.change(self._now(), runner_id=runner_id))

    def get_session(self, id: str) -> SessionRecord | None:
        return self._sessions.where(id=id).first()

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
        sessions = self._sessions.where(
            tenant_id=tenant_id,
            agent_name=agent,
            status=status,
            runner_id=runner_id,
        )
        return sessions.page(limit, before)

    def count_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        *,
        agent: str | None = None,
        status: SessionStatusesInput | None = None,
    ) -> int:
        sessions = self._sessions.where(
            tenant_id=tenant_id,
            agent_name=agent,
            status=status,
        )
        return len(sessions.all())

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        return self._sessions.where(runner_id=runner_id).page()

    def claim_session(
        self,
        id: str,
        runner_id: str,
        *,
        silent_for: timedelta | None = None,
    ) -> SessionRecord | None:
        wanted = self._sessions.where(id=id)
        session = wanted.first()
        if session is None or session.status in _FINISHED:
            return None
        now = self._now()
        is_silent = silent_for is not None and session.last_active_at < now - silent_for
        is_free = session.runner_id in (None, runner_id)
        if not (is_free or is_silent or session.status == "paused"):
            return None
        wanted.change(now, runner_id=runner_id)
        return wanted.first()

    def get_silent_sessions(
        self, older_than: datetime, *, limit: int | None = None
    ) -> list[SessionRecord]:
        running = self._sessions.where(status=_RUNNING)
        return running.untouched(older_than)[:limit]

    def touch_session(
        self,
        id: str,
        *,
        runner_id: str | None = None,
    ) -> bool:
        session = self._sessions.where(id=id, runner_id=runner_id)
        return bool(session.change(self._now()))

    def touch_sessions(
        self, ids: Collection[str], *, runner_id: str | None = None
    ) -> list[str]:
        sessions = self._sessions.where(id=ids, runner_id=runner_id)
        return sessions.change(self._now())

    def delete_session(self, id: str) -> bool:
        return self._sessions.where(id=id).delete() > 0

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self._pause(runner_id)

    def bulk_pause_active_sessions(self) -> int:
        return self._pause()

    def prune_sessions(
        self,
        ended_before: datetime,
        limit: int,
        *,
        also: Sequence[str] = (),
    ) -> int:
        # No table but the four is here, whatever its name.
        for table in also:
            raise InvalidInputError(f"No table {table!r} has a column 'session_id'.")
        finished = self._sessions.where(status=_FINISHED).untouched(ended_before)
        pruned = [session.id for session in finished[:limit]]
        self._sandboxes.where(state="cold", session_id=pruned).delete()
        return self._sessions.where(id=pruned).delete()

    def _pause(self, runner_id: str | None = None) -> int:
        """Pause what runs, on the runner or on all, and return how many that were."""
        running = self._sessions.where(status=_RUNNING, runner_id=runner_id)
        paused = running.change(self._now(), status="paused")
        return len(paused)

    # -- sandboxes

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

    def update_sandbox_state(
        self,
        id: str,
        state: SandboxStateInput,
        *,
        only_if: SandboxStatesInput | None = None,
    ) -> bool:
        sandbox = self._sandboxes.where(id=id, state=only_if)
        return bool(sandbox.change(state=state))

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        sandbox = self._sandboxes.where(id=id)
        return bool(sandbox.change(session_id=session_id))

    def touch_sandbox(self, id: str) -> bool:
        return bool(self._sandboxes.where(id=id).change(self._now()))

    def touch_sandboxes(self, ids: Collection[str]) -> list[str]:
        return self._sandboxes.where(id=ids).change(self._now())

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        return self._sandboxes.where(id=id).first()

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
        sandboxes = self._sandboxes.where(
            tenant_id=tenant_id,
            state=state,
            agent_name=agent,
            session_id=session_id,
        )
        return sandboxes.page(limit, before)

    def list_sandboxes_by_runner(self, runner_id: str) -> list[SandboxRecord]:
        # A sandbox does not name a runner; its session does.
        sessions = self._sessions.where(runner_id=runner_id)
        ids = [session.id for session in sessions.all()]
        return self._sandboxes.where(session_id=ids).page()

    def count_sandboxes(self, *, state: SandboxStatesInput | None = None) -> int:
        sandboxes = self._sandboxes.where(state=state)
        return len(sandboxes.all())

    def claim_warm_sandbox(
        self,
        agent_name: str,
        session_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord | None:
        pool = self._sandboxes.where(
            agent_name=agent_name,
            tenant_id=tenant_id,
            state="warm",
            # Not left out, which would be any session, but one that is None.
            session_id=[None],
        )
        ids = [sandbox.id for sandbox in pool.untouched()[:1]]
        claimed = self._sandboxes.where(id=ids)
        claimed.change(self._now(), state="waiting", session_id=session_id)
        return claimed.first()

    def get_best_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        for state in _EVICTED_FIRST:
            in_state = self._sandboxes.where(state=state)
            for sandbox in in_state.untouched(unused_since):
                return sandbox
        return None

    def claim_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        sandbox = self.get_best_eviction_candidate(unused_since=unused_since)
        if sandbox is None:
            return None
        # The record that was found stays as it was before: from it the caller knows which of the two was done.
        claimed = self._sandboxes.where(id=sandbox.id)
        if sandbox.state == "cold":
            claimed.delete()
        else:
            claimed.change(state="cold")
        return sandbox

    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._sandboxes.where(state="waiting").untouched(older_than)

    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._sandboxes.where(state="cold").untouched(older_than)

    def delete_sandbox(self, id: str) -> bool:
        return self._sandboxes.where(id=id).delete() > 0

    def mark_all_sandboxes_cold(self) -> int:
        return self._mark_cold(self._sandboxes.all())

    def mark_sandboxes_cold_by_runner(self, runner_id: str) -> int:
        sandboxes = self.list_sandboxes_by_runner(runner_id)
        return self._mark_cold(sandboxes)

    def _mark_cold(self, sandboxes: list[SandboxRecord]) -> int:
        """Mark those that are not cold, and return how many that were."""
        ids = [each.id for each in sandboxes if each.state != "cold"]
        marked = self._sandboxes.where(id=ids).change(state="cold")
        return len(marked)

    # -- API keys

    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        return self._keys.where(key_hash=key_hash).first()

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

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        return self._keys.where(tenant_id=tenant_id).page()

    def delete_api_key(self, id: str) -> bool:
        return self._keys.where(id=id).delete() > 0

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        # That of the hash which new keys have comes first.
        for key_hash in self._hashes.known(plain):
            key = self._keys.where(key_hash=key_hash).first()
            if key is not None:
                return key
        return None

    # -- tenants, transactions and life cycle

    def for_tenant(self, tenant_id: str) -> MemoryDb:
        tenant_id = named_tenant(self._tenant_id, tenant_id)
        self._check_open()
        # It shares everything with this Db, the rows and the lock too, and only looks at fewer rows.
        view = copy(self)
        view._tenant_id = tenant_id
        for name, rows in vars(self).items():
            if isinstance(rows, _Rows):
                setattr(view, name, rows.where(tenant_id=tenant_id))
        return view

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        plain_function(fn)
        # The lock is held until the end, and it is reentrant: calls of this thread go on, those of others wait.
        with self._turn(), self._undone_on_error():
            transaction = InOneThread()
            inside = copy(self)
            inside._transaction = transaction
            try:
                result = plain_result(fn(inside))
            finally:
                transaction.is_over = True
            # A function that closes the Db stores nothing.
            self._check_open()
            return result

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
        # A tenant's view is closed alone, but the view of a transaction is the Db itself.
        closed = self._whole if self._tenant_id is None else self
        closed._closed = True

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
        tables: list[dict[str, Any]] = [
            rows.rows for rows in vars(self).values() if isinstance(rows, _Rows)
        ]
        kept = [table.copy() for table in tables]
        try:
            yield
        except BaseException:
            for table, rows in zip(tables, kept, strict=True):
                table.clear()
                table.update(rows)
            raise

    def _check_open(self) -> None:
        if self._transaction is not None:
            self._transaction.check_use()
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
