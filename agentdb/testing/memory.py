"""MemoryDb: a complete Db in dictionaries, for tests; it imports no Django and opens nothing."""

from __future__ import annotations

import inspect
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from types import EllipsisType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from agentdb.errors import (
    DatabaseClosedError,
    DuplicateKeyError,
    InvalidInputError,
)
from agentdb.inputs import (
    InOneThread,
    arguments_of,
    checked,
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
    SessionRecord,
)
from agentdb.keys import KeyHashes, KeyIssuer

P = ParamSpec("P")
R = TypeVar("R")
Record = TypeVar(
    "Record", bound=AgentRecord | SessionRecord | SandboxRecord | ApiKeyRecord
)

# As the plain strings that records hold: a newer server's values are not members of an enumeration.
_RUNNING = ("active", "starting")
_FINISHED = ("ended", "stopped", "error")
_EVICTED_FIRST = ("cold", "warm", "waiting")

# The columns of those arguments that have another name.
_COLUMNS = {"agent": "agent_name", "ids": "id"}


@dataclass
class _Rows(Generic[Record]):
    """One table, or what a tenant sees of it."""

    record: type[Record]
    # The column with the time of the last activity or use.
    last: str
    now: Callable[[], datetime]
    # The whole table, by id: the views of tenants share the dictionary.
    rows: dict[str, Record] = field(default_factory=dict)
    tenant_id: str | None = None

    def find(self, **wanted: Any) -> list[Record]:
        """Return the rows in the order of the ids that are wanted, or else as they were inserted.

        A column is compared with a string, with a collection of which any will do, or not at all if it is None.
        """
        any_of: dict[str, dict[Any, None]] = {}
        for name, value in {"tenant_id": self.tenant_id, **wanted}.items():
            if value is not None:
                column = _COLUMNS.get(name, name)
                values = [value] if isinstance(value, str) else value
                # A dictionary finds a value at once, and keeps the order of the ids that are asked for.
                any_of[column] = dict.fromkeys(values)
        ids = any_of.get("id", self.rows)
        rows = [self.rows[id] for id in ids if id in self.rows]
        return [
            row
            for row in rows
            if all(getattr(row, column) in values for column, values in any_of.items())
        ]

    def untouched(
        self,
        older_than: datetime | None = None,
        limit: int | None = None,
        **wanted: Any,
    ) -> list[Record]:
        """Return the rows that were not touched since then, at most so many, the longest untouched first."""
        rows = self.find(**wanted)
        rows.sort(key=lambda row: (getattr(row, self.last), row.id))
        if older_than is not None:
            rows = [row for row in rows if getattr(row, self.last) < older_than]
        return rows[:limit]

    def page(
        self,
        limit: int | None = None,
        before: object = None,
        **wanted: Any,
    ) -> list[Record]:
        """Return the newest rows, at most so many, of those that come after the record or cursor."""
        rows = sorted(self.find(**wanted), key=_place, reverse=True)
        if before is not None:
            record: Any = self.record
            position = page_position(before, record)
            rows = [row for row in rows if _place(row) < position]
        return rows[:limit]

    def insert(self, **values: Any) -> list[Record]:
        id = values["id"]
        if id in self.rows:
            noun = self.record.__name__.removesuffix("Record").lower()
            raise DuplicateKeyError(f"A {noun} with the id {id!r} exists already.")
        values["created_at"] = values[self.last] = self.now()
        row = self.record(**values)
        return [self.put(row)]

    def put(self, row: Record) -> Record:
        """Insert the row, or replace the one with its id; return it."""
        self.rows[row.id] = row
        return row

    def update(
        self,
        id: str,
        only_if: object = None,
        *,
        touch: bool = False,
        **value: Any,
    ) -> list[Record]:
        """Set one column of a row, if it exists and has one of those values there."""
        [column] = value
        rows = self.find(id=id, **{column: only_if})
        return self.change(rows, touch, **value)

    def touch(self, **wanted: Any) -> list[Record]:
        rows = self.find(**wanted)
        return self.change(rows, touch=True)

    def change(
        self, rows: list[Record], touch: bool = False, **values: Any
    ) -> list[Record]:
        """Set columns of the rows, with ``touch`` also the time of their last activity or use; return the new rows."""
        now = self.now()
        changed = []
        for row in rows:
            if touch:
                # The clock may go back, but this time only moves forward.
                values[self.last] = max(now, getattr(row, self.last))
            changed.append(self.put(replace(row, **values)))
        return changed

    def delete(self, **wanted: Any) -> list[Record]:
        rows = self.find(**wanted)
        for row in rows:
            del self.rows[row.id]
        return rows


def _place(row: Record) -> tuple[datetime, str]:
    """Return by what rows are listed."""
    # Python compares strings by code point, which is the order that the SQL asks every engine for.
    return row.created_at, row.id


def _pause(sessions: _Rows[Any], **wanted: Any) -> list[Any]:
    running = sessions.find(status=_RUNNING, **wanted)
    return sessions.change(running, touch=True, status="paused")


def _mark_cold(sandboxes: _Rows[Any], **wanted: Any) -> list[Any]:
    found = sandboxes.find(**wanted)
    others = [sandbox for sandbox in found if sandbox.state != "cold"]
    return sandboxes.change(others, state="cold")


def _in_table(
    method: Callable[Concatenate[Db, P], R],
    table: str,
    action: Callable[..., list[Any]],
    **fixed: Any,
) -> Callable[Concatenate[MemoryDb, P], R]:
    """Return the method of this signature that takes an action, with its arguments, on the rows of one table."""
    kind = inspect.signature(method).return_annotation

    @wraps(method)
    def call(self: MemoryDb, /, *_: P.args, **arguments: P.kwargs) -> R:
        rows = action(getattr(self, table), **arguments, **fixed)
        answer: R = _answer(kind, rows)
        return answer

    return call


def _answer(kind: str, rows: list[Any]) -> Any:
    """Return what a call with this annotation answers if these are the rows that it found, changed or deleted."""
    if kind == "bool":
        return bool(rows)
    if kind == "int":
        return len(rows)
    if kind == "list[str]":
        return [row.id for row in rows]
    if kind.startswith("list"):
        return rows
    return rows[0] if rows else None


def _call(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method check its arguments as every ``Db`` does, and then run in its thread's turn."""
    promised = getattr(Db, method.__name__)
    signature = inspect.signature(promised)
    arguments = list(arguments_of(method.__name__))

    @wraps(promised)
    def call(self: MemoryDb, /, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        values = {}
        # In their order, so that of several bad ones each implementation names the same.
        for each in arguments:
            value = bound.arguments[each.name]
            if each.name == "tenant_id":
                values[each.name] = tenant_of_call(self._tenant_id, value)
            else:
                values[each.name] = checked(each, value)
        with self._turn():
            return method(self, **values)

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
        def now() -> datetime:
            return datetime.now(UTC) if clock is None else clock().astimezone(UTC)

        self._hashes = KeyHashes(key_secret)
        self._now = now
        self._agents = _Rows(AgentRecord, "updated_at", now)
        self._sessions = _Rows(SessionRecord, "last_active_at", now)
        self._sandboxes = _Rows(SandboxRecord, "last_used_at", now)
        self._keys = _Rows(ApiKeyRecord, "created_at", now)
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
        for agent in self._agents.find(name=name, tenant_id=tenant_id):
            updated = replace(
                agent,
                version=agent.version + 1,
                path=path,
                updated_at=self._now(),
            )
            return self._agents.put(updated)
        [inserted] = self._agents.insert(
            id=str(uuid.uuid4()),
            tenant_id=tenant_id,
            name=name,
            version=1,
            path=path,
        )
        return inserted

    get_agent = _in_table(Db.get_agent, "_agents", _Rows.find)

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        agents = self._agents.find(tenant_id=tenant_id)
        return sorted(agents, key=lambda agent: agent.name)

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        # Whether or not the agent exists: sessions name it by a soft reference, and may have outlived it.
        self._sessions.delete(agent_name=name, tenant_id=tenant_id)
        return bool(self._agents.delete(name=name, tenant_id=tenant_id))

    # -- sessions

    insert_session = _in_table(
        Db.insert_session,
        "_sessions",
        _Rows.insert,
        status="starting",
        runner_id=None,
    )
    update_session_status = _in_table(
        Db.update_session_status,
        "_sessions",
        _Rows.update,
        touch=True,
    )
    update_session_sandbox = _in_table(
        Db.update_session_sandbox,
        "_sessions",
        _Rows.update,
        touch=True,
    )

    def update_session_runner(
        self,
        id: str,
        runner_id: str | None,
        *,
        only_if: str | EllipsisType | None = ...,
    ) -> bool:
        # Left out, it lets any runner pass; None is a runner like the others, "nobody".
        wanted = None if only_if is ... else [only_if]
        updated = self._sessions.update(id, wanted, touch=True, runner_id=runner_id)
        return bool(updated)

    get_session = _in_table(Db.get_session, "_sessions", _Rows.find)
    list_sessions = _in_table(Db.list_sessions, "_sessions", _Rows.page)
    count_sessions = _in_table(Db.count_sessions, "_sessions", _Rows.find)
    list_sessions_by_runner = _in_table(
        Db.list_sessions_by_runner, "_sessions", _Rows.page
    )

    def claim_session(
        self,
        id: str,
        runner_id: str,
        *,
        silent_for: timedelta | None = None,
    ) -> SessionRecord | None:
        for session in self._sessions.find(id=id):
            silence = self._now() - session.last_active_at
            is_silent = silent_for is not None and silence > silent_for
            is_free = session.runner_id in (None, runner_id)
            may_be_taken = is_free or is_silent or session.status == "paused"
            if may_be_taken and session.status not in _FINISHED:
                [claimed] = self._sessions.change(
                    [session], touch=True, runner_id=runner_id
                )
                return claimed
        return None

    get_silent_sessions = _in_table(
        Db.get_silent_sessions,
        "_sessions",
        _Rows.untouched,
        status=_RUNNING,
    )
    touch_session = _in_table(Db.touch_session, "_sessions", _Rows.touch)
    touch_sessions = _in_table(Db.touch_sessions, "_sessions", _Rows.touch)
    delete_session = _in_table(Db.delete_session, "_sessions", _Rows.delete)
    bulk_pause_sessions_by_runner = _in_table(
        Db.bulk_pause_sessions_by_runner, "_sessions", _pause
    )
    bulk_pause_active_sessions = _in_table(
        Db.bulk_pause_active_sessions, "_sessions", _pause
    )

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
        finished = self._sessions.untouched(ended_before, limit, status=_FINISHED)
        ids = [session.id for session in finished]
        self._sandboxes.delete(state="cold", session_id=ids)
        return len(self._sessions.delete(id=ids))

    # -- sandboxes

    insert_sandbox = _in_table(
        Db.insert_sandbox, "_sandboxes", _Rows.insert, state="warming"
    )
    update_sandbox_state = _in_table(
        Db.update_sandbox_state, "_sandboxes", _Rows.update
    )
    update_sandbox_session = _in_table(
        Db.update_sandbox_session, "_sandboxes", _Rows.update
    )
    touch_sandbox = _in_table(Db.touch_sandbox, "_sandboxes", _Rows.touch)
    touch_sandboxes = _in_table(Db.touch_sandboxes, "_sandboxes", _Rows.touch)
    get_sandbox = _in_table(Db.get_sandbox, "_sandboxes", _Rows.find)
    list_sandboxes = _in_table(Db.list_sandboxes, "_sandboxes", _Rows.page)

    def list_sandboxes_by_runner(self, runner_id: str) -> list[SandboxRecord]:
        # A sandbox does not name a runner; its session does.
        sessions = self._sessions.find(runner_id=runner_id)
        ids = [session.id for session in sessions]
        return self._sandboxes.page(session_id=ids)

    count_sandboxes = _in_table(Db.count_sandboxes, "_sandboxes", _Rows.find)

    def claim_warm_sandbox(
        self,
        agent_name: str,
        session_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord | None:
        pool = self._sandboxes.untouched(
            agent_name=agent_name,
            tenant_id=tenant_id,
            state="warm",
            # Not left out, which would be any session, but one that is None.
            session_id=[None],
        )
        for sandbox in pool:
            [claimed] = self._sandboxes.change(
                [sandbox], touch=True, state="waiting", session_id=session_id
            )
            return claimed
        return None

    def get_best_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        for state in _EVICTED_FIRST:
            for sandbox in self._sandboxes.untouched(unused_since, state=state):
                return sandbox
        return None

    def claim_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        sandbox = self.get_best_eviction_candidate(unused_since=unused_since)
        # The record that was found stays as it was before: from it the caller knows which of the two was done.
        if sandbox is not None:
            if sandbox.state == "cold":
                self._sandboxes.delete(id=sandbox.id)
            else:
                self._sandboxes.change([sandbox], state="cold")
        return sandbox

    get_idle_sandboxes = _in_table(
        Db.get_idle_sandboxes,
        "_sandboxes",
        _Rows.untouched,
        state="waiting",
    )
    get_cold_sandboxes = _in_table(
        Db.get_cold_sandboxes,
        "_sandboxes",
        _Rows.untouched,
        state="cold",
    )
    delete_sandbox = _in_table(Db.delete_sandbox, "_sandboxes", _Rows.delete)
    mark_all_sandboxes_cold = _in_table(
        Db.mark_all_sandboxes_cold, "_sandboxes", _mark_cold
    )

    def mark_sandboxes_cold_by_runner(self, runner_id: str) -> int:
        sandboxes = self.list_sandboxes_by_runner(runner_id)
        ids = [sandbox.id for sandbox in sandboxes]
        return len(_mark_cold(self._sandboxes, ids=ids))

    # -- API keys

    get_api_key_by_hash = _in_table(Db.get_api_key_by_hash, "_keys", _Rows.find)

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
        [key] = self._keys.insert(
            id=id,
            tenant_id=tenant_id,
            key_hash=key_hash,
            label=label,
        )
        return key

    list_api_keys_by_tenant = _in_table(Db.list_api_keys_by_tenant, "_keys", _Rows.page)
    delete_api_key = _in_table(Db.delete_api_key, "_keys", _Rows.delete)

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        # That of the hash which new keys have comes first.
        for key_hash in self._hashes.known(plain):
            for key in self._keys.find(key_hash=key_hash):
                return key
        return None

    # -- tenants, transactions and life cycle

    def for_tenant(self, tenant_id: str) -> MemoryDb:
        """Return a view in which every call, by id included, sees and changes that tenant's rows only."""
        tenant_id = named_tenant(self._tenant_id, tenant_id)
        self._check_open()
        # It shares everything with this Db, the rows and the lock too, and only looks at fewer rows.
        view = copy(self)
        view._tenant_id = tenant_id
        for name, rows in vars(self).items():
            if isinstance(rows, _Rows):
                setattr(view, name, replace(rows, tenant_id=tenant_id))
        return view

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        """Call ``fn(db)``, undo its calls if it raises, and return its result; other threads wait meanwhile."""
        plain_function(fn)
        # The lock is held until the end, and it is reentrant: calls of this thread go on, those of others wait.
        with self._turn():
            # Records are immutable, so a copy of a dictionary is a snapshot.
            kept = [
                (each.rows, each.rows.copy())
                for each in vars(self).values()
                if isinstance(each, _Rows)
            ]
            transaction = InOneThread()
            inside = copy(self)
            inside._transaction = transaction
            try:
                result = plain_result(fn(inside))
                # A function that closes the Db stores nothing.
                self._check_open()
            except BaseException:
                # Into the same dictionaries, which the views that were made in the transaction have too.
                for rows, before in kept:
                    rows.clear()
                    rows.update(before)
                raise
            finally:
                transaction.is_over = True
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
        """Refuse all further calls with ``DatabaseClosedError``; of a tenant's view, those on that view."""
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
