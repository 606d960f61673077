"""DjangoDb: what each method of the Db interface does. How statements run is in executor.py."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import connections

from agentdb.inputs import (
    aware_instant,
    identifier,
    identifiers,
    named_tenant,
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
    tenant_of_call,
    text,
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
from agentdb.schema.other_tables import check_session_tables
from agentdb.serving.connections.threads import Threads
from agentdb.serving.executor import Executor
from agentdb.serving.health import check_health
from agentdb.serving.host import check_set_up

if TYPE_CHECKING:
    from agentdb.serving import queries
    from agentdb.serving.compiled import Update

_EVER = datetime.max.replace(tzinfo=UTC)
_ALL = 2**63 - 1  # what a 64-bit LIMIT takes

R = TypeVar("R")
Listed = TypeVar("Listed", SessionRecord, SandboxRecord)


class DjangoDb(Executor, KeyIssuer, Db):
    """``Db`` on the connections of one of Django's database aliases; safe to share among threads.

    Every thread has its own connection, which is Django's, so calls join a transaction that the caller has open on
    this alias. An in-memory SQLite database has one connection, on which the threads take turns. API keys are hashed
    with ``key_secret``, or else the environment's ``AGENTDB_KEY_SECRET``.
    """

    def __init__(
        self,
        alias: str = "default",
        *,
        key_secret: str | None = None,
        _threads: Threads | None = None,
    ) -> None:
        global queries
        check_set_up()
        # Imported here: models need Django set up, but callers import this class before that.
        from agentdb.serving import queries

        super().__init__(_threads or Threads(alias))
        self.alias = alias
        self._hashes = KeyHashes(key_secret)
        own = connections.settings[alias].get("AGENTDB", {})
        self._touch_interval = timedelta(seconds=own.get("touch_interval") or 0)
        self._relaxed_touches: bool = own.get("touch_durability") == "relaxed"

    def __repr__(self) -> str:
        return f"<DjangoDb: {self.describe()}>"

    # -- agents

    def upsert_agent(
        self,
        name: str,
        path: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> AgentRecord:
        return self._one(
            AgentRecord,
            queries.UPSERT_AGENT,
            id=str(uuid.uuid4()),
            name=identifier("Agent name", name),
            path=text("Agent path", path),
            tenant_id=self._tenant(tenant_id),
            version=1,
        )

    def get_agent(
        self, name: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> AgentRecord | None:
        return self._first(
            AgentRecord,
            queries.GET_AGENT,
            name=identifier("Agent name", name),
            tenant_id=self._tenant(tenant_id),
        )

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        return self._all(
            AgentRecord,
            queries.LIST_AGENTS,
            tenant_id=self._tenant(tenant_id),
        )

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        deleted = self._count_last(
            queries.DELETE_AGENT_AND_SESSIONS,
            name=identifier("Agent name", name),
            tenant_id=self._tenant(tenant_id),
        )
        return deleted > 0

    # -- sessions

    def insert_session(
        self,
        id: str,
        agent_name: str,
        sandbox_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SessionRecord:
        return self._insert(
            SessionRecord,
            queries.INSERT_SESSION,
            "A session with the id {id!r} exists already.",
            id=identifier("Session id", id),
            agent_name=identifier("Agent name", agent_name),
            sandbox_id=identifier("Sandbox id", sandbox_id),
            tenant_id=self._tenant(tenant_id),
            status="starting",
            runner_id=None,
        )

    def update_session_status(
        self,
        id: str,
        status: SessionStatusInput,
        *,
        only_if: SessionStatusesInput | None = None,
    ) -> bool:
        query = queries.UPDATE_SESSION_STATUS
        values = {
            "id": identifier("Session id", id),
            "status": session_status(status),
        }
        if only_if is not None:
            query = queries.UPDATE_SESSION_STATUS_IF
            values["only_if"] = json.dumps(session_statuses("only_if", only_if))
        return self._changed(query, **values)

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return self._changed(
            queries.UPDATE_SESSION_SANDBOX,
            id=identifier("Session id", id),
            sandbox_id=identifier("Sandbox id", sandbox_id),
        )

    def update_session_runner(
        self,
        id: str,
        runner_id: str | None,
        *,
        only_if: str | EllipsisType | None = ...,
    ) -> bool:
        query = queries.UPDATE_SESSION_RUNNER
        values = {
            "id": identifier("Session id", id),
            "runner_id": optional_identifier("Runner id", runner_id),
        }
        if only_if is None:
            query = queries.UPDATE_SESSION_RUNNER_IF_NONE
        elif only_if is not ...:
            query = queries.UPDATE_SESSION_RUNNER_IF
            values["only_if"] = identifier("only_if", only_if)
        return self._changed(query, **values)

    def get_session(self, id: str) -> SessionRecord | None:
        return self._first(
            SessionRecord,
            queries.GET_SESSION,
            id=identifier("Session id", id),
        )

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
        return self._list(
            SessionRecord,
            queries.SESSIONS,
            tenant_id=self._tenant(tenant_id),
            agent_name=optional_identifier("Agent name", agent),
            wanted=session_statuses("status", status),
            runner_id=optional_identifier("Runner id", runner_id),
            limit=limit,
            before=before,
        )

    def count_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        *,
        agent: str | None = None,
        status: SessionStatusesInput | None = None,
    ) -> int:
        values = {
            "tenant_id": self._tenant(tenant_id),
            "agent_name": optional_identifier("Agent name", agent),
        }
        statuses = session_statuses("status", status)
        query = queries.count_rows(queries.SESSIONS, _given(values), len(statuses))
        return self._one(int, query, **values, **_numbered(statuses))

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        return self._all(
            SessionRecord,
            queries.LIST_SESSIONS_BY_RUNNER,
            runner_id=identifier("Runner id", runner_id),
        )

    def claim_session(
        self,
        id: str,
        runner_id: str,
        *,
        silent_for: timedelta | None = None,
    ) -> SessionRecord | None:
        values: dict[str, Any] = {
            "id": identifier("Session id", id),
            "runner_id": identifier("Runner id", runner_id),
        }
        query = queries.CLAIM_SESSION
        if silent_for is not None:
            query = queries.CLAIM_SILENT_SESSION
            values["silent_for"] = silence(silent_for)
        return self._first(SessionRecord, query, **values)

    def get_silent_sessions(
        self, older_than: datetime, *, limit: int | None = None
    ) -> list[SessionRecord]:
        return self._all(
            SessionRecord,
            queries.GET_SILENT_SESSIONS,
            older_than=aware_instant("older_than", older_than),
            limit=_ALL if limit is None else page_limit(limit),
        )

    def touch_session(self, id: str, *, runner_id: str | None = None) -> bool:
        values = {"id": identifier("Session id", id)}
        touched = self._touch(queries.SESSIONS, values, runner_id)
        return bool(touched)

    def touch_sessions(
        self, ids: Collection[str], *, runner_id: str | None = None
    ) -> list[str]:
        ids = identifiers("Session id", ids)
        values = {"ids": json.dumps(ids)}
        touched = self._touch(queries.SESSIONS, values, runner_id)
        return [id for id in ids if id in touched]

    def delete_session(self, id: str) -> bool:
        return self._changed(
            queries.DELETE_SESSION,
            id=identifier("Session id", id),
        )

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self._count(
            queries.PAUSE_SESSIONS_BY_RUNNER,
            runner_id=identifier("Runner id", runner_id),
        )

    def bulk_pause_active_sessions(self) -> int:
        return self._count(queries.PAUSE_SESSIONS)

    def prune_sessions(
        self, ended_before: datetime, limit: int, *, also: Sequence[str] = ()
    ) -> int:
        values = {
            "ended_before": aware_instant("ended_before", ended_before),
            "limit": page_limit(limit),
        }
        tables = other_tables("also", also)

        def prune(inside: DjangoDb) -> int:
            check_session_tables(connections[self.alias], tables)
            pruned = inside._all(SessionRecord, queries.PRUNE_SESSIONS, **values)
            if not pruned:
                return 0
            ids = json.dumps([session.id for session in pruned])
            inside._count(queries.PRUNE_SANDBOXES, session_ids=ids)
            for table in tables:
                delete = queries.delete_rows_of_sessions(table)
                inside._count(delete, session_ids=ids)
            return len(pruned)

        return self._transaction(prune)

    # -- sandboxes

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord:
        return self._insert(
            SandboxRecord,
            queries.INSERT_SANDBOX,
            "A sandbox with the id {id!r} exists already.",
            id=identifier("Sandbox id", id),
            agent_name=identifier("Agent name", agent_name),
            workspace_dir=text("Workspace directory", workspace_dir),
            session_id=optional_identifier("Session id", session_id),
            tenant_id=self._tenant(tenant_id),
            state="warming",
        )

    def update_sandbox_state(
        self,
        id: str,
        state: SandboxStateInput,
        *,
        only_if: SandboxStatesInput | None = None,
    ) -> bool:
        query = queries.UPDATE_SANDBOX_STATE
        values = {
            "id": identifier("Sandbox id", id),
            "state": sandbox_state(state),
        }
        if only_if is not None:
            query = queries.UPDATE_SANDBOX_STATE_IF
            values["only_if"] = json.dumps(sandbox_states("only_if", only_if))
        return self._changed(query, **values)

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self._changed(
            queries.UPDATE_SANDBOX_SESSION,
            id=identifier("Sandbox id", id),
            session_id=optional_identifier("Session id", session_id),
        )

    def touch_sandbox(self, id: str) -> bool:
        values = {"id": identifier("Sandbox id", id)}
        touched = self._touch(queries.SANDBOXES, values)
        return bool(touched)

    def touch_sandboxes(self, ids: Collection[str]) -> list[str]:
        ids = identifiers("Sandbox id", ids)
        values = {"ids": json.dumps(ids)}
        touched = self._touch(queries.SANDBOXES, values)
        return [id for id in ids if id in touched]

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        return self._first(
            SandboxRecord,
            queries.GET_SANDBOX,
            id=identifier("Sandbox id", id),
        )

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
        return self._list(
            SandboxRecord,
            queries.SANDBOXES,
            tenant_id=self._tenant(tenant_id),
            wanted=sandbox_states("state", state),
            agent_name=optional_identifier("Agent name", agent),
            session_id=optional_identifier("Session id", session_id),
            limit=limit,
            before=before,
        )

    def list_sandboxes_by_runner(self, runner_id: str) -> list[SandboxRecord]:
        return self._all(
            SandboxRecord,
            queries.LIST_SANDBOXES_BY_RUNNER,
            runner_id=identifier("Runner id", runner_id),
        )

    def count_sandboxes(self, *, state: SandboxStatesInput | None = None) -> int:
        states = sandbox_states("state", state)
        query = queries.count_rows(queries.SANDBOXES, frozenset(), len(states))
        return self._one(int, query, **_numbered(states))

    def claim_warm_sandbox(
        self,
        agent_name: str,
        session_id: str,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord | None:
        return self._first(
            SandboxRecord,
            queries.CLAIM_WARM_SANDBOX,
            agent_name=identifier("Agent name", agent_name),
            session_id=identifier("Session id", session_id),
            tenant_id=self._tenant(tenant_id),
        )

    def get_best_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        return self._first(
            SandboxRecord,
            queries.GET_BEST_EVICTION_CANDIDATE,
            older_than=_unused_since(unused_since),
        )

    def claim_eviction_candidate(
        self, *, unused_since: datetime | None = None
    ) -> SandboxRecord | None:
        older_than = _unused_since(unused_since)
        # One statement for each state, in the order of eviction, until one claims a sandbox.
        for state, query in queries.CLAIMS_OF_EVICTION.items():
            claimed = self._first(SandboxRecord, query, older_than=older_than)
            if claimed is not None:
                # The caller is told the state from which it was evicted; an update returns the new one.
                return replace(claimed, state=state.value)
        return None

    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._all(
            SandboxRecord,
            queries.GET_IDLE_SANDBOXES,
            older_than=aware_instant("older_than", older_than),
        )

    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._all(
            SandboxRecord,
            queries.GET_COLD_SANDBOXES,
            older_than=aware_instant("older_than", older_than),
        )

    def delete_sandbox(self, id: str) -> bool:
        return self._changed(
            queries.DELETE_SANDBOX,
            id=identifier("Sandbox id", id),
        )

    def mark_all_sandboxes_cold(self) -> int:
        return self._count(queries.MARK_ALL_SANDBOXES_COLD)

    def mark_sandboxes_cold_by_runner(self, runner_id: str) -> int:
        return self._count(
            queries.MARK_SANDBOXES_COLD_BY_RUNNER,
            runner_id=identifier("Runner id", runner_id),
        )

    def _list(
        self,
        record: type[Listed],
        table: queries.Table,
        *,
        wanted: list[str],
        limit: object,
        before: object,
        **values: Any,
    ) -> list[Listed]:
        """Return a page of the rows that equal the values that are given, and are in one of the wanted states, if any.

        A statement for several states returns a page of each, so that an index gives the order. They are merged here.
        """
        if limit is not None:
            values["limit"] = page_limit(limit)
        if before is not None:
            values["created_at"], values["id"] = page_position(before, record)
        query = queries.list_rows(table, _given(values), len(wanted))
        rows = self._all(record, query, **values, **_numbered(wanted))
        if len(wanted) > 1:
            rows.sort(key=lambda row: (row.created_at, row.id), reverse=True)
        return rows[: values.get("limit")]

    def _touch(
        self,
        table: queries.Table,
        values: dict[str, Any],
        runner_id: str | None = None,
        *,
        skip_locked: bool = False,
    ) -> set[str]:
        """Record that the row ``id``, or those in the JSON array ``ids``, were used, and return the ids that exist.

        With a ``runner_id``, sessions that are not on that runner count as absent. With ``touch_interval`` a row that
        was touched more recently is only read.
        """
        if runner_id is not None:
            values["runner_id"] = identifier("Runner id", runner_id)
        interval = self._touch_interval
        touch = queries.touch(
            table,
            has_interval=bool(interval),
            many="ids" in values,
            of_runner="runner_id" in values,
            skip_locked=skip_locked,
            # In a transaction, the whole of it would not wait for the disk.
            unsynced=self._relaxed_touches and not self._slot().wrapper.in_atomic_block,
        )
        if not interval:
            return self._write_touch(touch.update, values)
        values["interval"] = interval
        # Read first, because most touches come too soon after another; the update checks again.
        rows = self._all(_pair, touch.is_due, **values)
        recent = {id for id, is_due in rows if not is_due}
        if len(recent) == len(rows):
            return recent
        there = recent | self._write_touch(touch.update, values)
        if len(there) < len(rows):
            # Others were faster. A row that they touched counts; one that they claimed, deleted or lock does not.
            again = self._all(_pair, touch.is_due, **values)
            there.update(id for id, is_due in again if not (is_due and skip_locked))
        return there

    def _write_touch(self, update: Update, values: dict[str, Any]) -> set[str]:
        """Write the time of the rows that are due, and return their ids."""
        if update.returning:
            touched = self._all(str, update, **values)
            return set(touched)
        if self._changed(update, **values):
            return {values["id"]}
        return set()

    # -- API keys

    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        return self._first(
            ApiKeyRecord,
            queries.GET_API_KEY_BY_HASH,
            key_hash=identifier("Key hash", key_hash),
        )

    def insert_api_key(
        self,
        id: str,
        tenant_id: str,
        key_hash: str,
        label: str,
    ) -> ApiKeyRecord:
        return self._insert(
            ApiKeyRecord,
            queries.INSERT_API_KEY,
            "An API key with the id {id!r}, or with the same hash, exists already.",
            id=identifier("API key id", id),
            tenant_id=self._tenant(tenant_id),
            key_hash=identifier("Key hash", key_hash),
            label=text("Label", label),
        )

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        return self._all(
            ApiKeyRecord,
            queries.LIST_API_KEYS,
            tenant_id=self._tenant(tenant_id),
        )

    def delete_api_key(self, id: str) -> bool:
        return self._changed(
            queries.DELETE_API_KEY,
            id=identifier("API key id", id),
        )

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        key_hash, bare_hash = self._hashes.known(plain)
        found = self._all(
            ApiKeyRecord,
            queries.GET_API_KEYS_BY_HASHES,
            key_hash=key_hash,
            bare_hash=bare_hash,
        )
        # If there are two, the other one was stored before there was a secret.
        return max(found, key=lambda record: record.key_hash == key_hash, default=None)

    # -- tenants

    def for_tenant(self, tenant_id: str) -> DjangoDb:
        named = named_tenant(self._tenant_id, tenant_id)
        self._slot()  # raises here already if the Db is closed
        return self._view(_tenant_id=named, _statements=self._of_tenants)

    def _tenant(self, tenant_id: str) -> str:
        return tenant_of_call(self._tenant_id, tenant_id)

    # -- transactions and life cycle

    def run_transaction(self, fn: Callable[[DjangoDb], R]) -> R:
        plain_function(fn)
        return self._transaction(lambda inside: plain_result(fn(inside)))

    def health(self) -> Health:
        self._slot()  # raises if a view is closed
        return check_health(self._threads)

    def close(self) -> None:
        if self._tenant_id is None:
            self._threads.close()
        else:
            self._closed = True

    @property
    def _has_server(self) -> bool:
        """Whether a call mostly waits for a server, so that several threads answer more calls than one."""
        return self._threads.engine.has_server

    def _joins(self, method: str) -> bool:
        """Whether calls of the method that wait, each with one id, are better one statement.

        On SQLite writes wait for each other anyway, and share one COMMIT so. On a server each may wait for the lock of
        its own row, and would hold up the others, unless the statement can skip that row. A method that a subclass, a
        test or a tracer has replaced wants to see each call.
        """
        if method not in queries.DO_EACH:
            return False
        own = getattr(getattr(self, method), "__func__", None)
        if own is not _OWN_METHODS[method]:
            return False
        engine = self._threads.engine
        can_skip = not engine.has_server or engine.skips_locked
        return method in queries.READ_EACH or can_skip

    def _do_each(self, method: str, ids: list[str]) -> dict[str, Any]:
        """Return by their ids what ``method`` returns for one, without those that must be called alone.

        All of them must if somebody watches each call; a touch if its row is locked, or is not there.
        """
        if self._slot().is_watched():
            return {}
        wanted = json.dumps(identifiers("Id", ids))
        if method in queries.READ_EACH:
            key, record, query = queries.READ_EACH[method]
            rows: list[Any] = self._all(record, query, ids=wanted)
            # An id without a row has the answer None.
            found: dict[str, Any] = dict.fromkeys(ids)
            for row in rows:
                found[getattr(row, key)] = row
            return found
        table = queries.TOUCH_EACH[method]
        touched = self._touch(table, {"ids": wanted}, skip_locked=True)
        return dict.fromkeys(touched, True)

    def _rest(self) -> None:
        self._threads.rest()


_OWN_METHODS = dict(vars(DjangoDb))


def _unused_since(value: datetime | None) -> datetime:
    """Return the instant, or else one that is later than every use."""
    return _EVER if value is None else aware_instant("unused_since", value)


def _given(values: dict[str, Any]) -> frozenset[str]:
    """Return the names of the values that are not None."""
    return frozenset(name for name in values if values[name] is not None)


def _numbered(values: list[str]) -> dict[str, str]:
    """Return them as the parameters ``value0``, ``value1`` and so on."""
    return {f"value{number}": value for number, value in enumerate(values)}


def _pair(id: str, value: int) -> tuple[str, int]:
    return id, value
