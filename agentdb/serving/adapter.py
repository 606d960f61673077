"""DjangoDb: what each method of the Db interface does. How statements run is in executor.py."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from django.db import connections

from agentdb.errors import AgentDbError
from agentdb.inputs import (
    aware_instant,
    check_tenant,
    identifier,
    optional_identifier,
    page_limit,
    page_record,
    plain_function,
    plain_result,
    sandbox_state,
    session_status,
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
    SessionRecord,
    SessionStatusInput,
)
from agentdb.keys import KeyHashes
from agentdb.serving.executor import Executor, Threads
from agentdb.serving.health import check_health
from agentdb.serving.host import check_set_up

if TYPE_CHECKING:
    from agentdb.serving import queries
    from agentdb.serving.compiled import Update

R = TypeVar("R")


class DjangoDb(Db):
    """``Db`` on the connections of one of Django's database aliases; safe to share among threads.

    Every thread works on its own connection, which Django keeps for it, so calls join a transaction that the caller
    has open on this alias. An in-memory SQLite database has one connection, on which the threads take turns.
    ``key_secret`` is the secret that API keys are stored under, else the environment's ``AGENTDB_KEY_SECRET``.
    """

    def __init__(
        self, alias: str = "default", *, key_secret: str | None = None, _executor: Executor | None = None
    ) -> None:
        global queries
        check_set_up()
        # The models cannot be imported before Django is set up, and callers name this class before that.
        from agentdb.serving import queries

        self.alias = alias
        self._keys = KeyHashes(key_secret)
        self._executor = _executor or Executor(Threads(alias))
        own = connections.settings[alias].get("AGENTDB", {})
        self._touch_interval: float = own.get("touch_interval", 0)
        self._touches_of_session = queries.touch_session(self._touch_interval)
        self._touches_of_sandbox = queries.touch_sandbox(self._touch_interval)
        self._relaxed_touches: bool = own.get("touch_durability") == "relaxed"

    def __repr__(self) -> str:
        try:
            place = self.describe()
        except AgentDbError:
            place = f"the alias {self.alias!r}"
        return f"<DjangoDb: {place}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- agents

    def upsert_agent(self, name: str, path: str, tenant_id: str = DEFAULT_TENANT_ID) -> AgentRecord:
        values = {
            "id": str(uuid.uuid4()),
            "name": identifier("Agent name", name),
            "path": text("Agent path", path),
            "tenant_id": self._tenant(tenant_id),
            "now": datetime.now(UTC),
        }
        return self._executor.one(AgentRecord, queries.UPSERT_AGENT, **values)

    def get_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> AgentRecord | None:
        return self._executor.first(
            AgentRecord,
            queries.GET_AGENT,
            name=identifier("Agent name", name),
            tenant_id=self._tenant(tenant_id),
        )

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        return self._executor.all(AgentRecord, queries.LIST_AGENTS, tenant_id=self._tenant(tenant_id))

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        values = {"name": identifier("Agent name", name), "tenant_id": self._tenant(tenant_id)}
        return self._executor.count_last(queries.DELETE_SESSIONS_OF_AGENT, queries.DELETE_AGENT, **values) > 0

    # -- sessions

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> SessionRecord:
        return self._executor.insert(
            SessionRecord,
            queries.INSERT_SESSION,
            "A session with the id {id!r} exists already.",
            id=identifier("Session id", id),
            agent_name=identifier("Agent name", agent_name),
            sandbox_id=identifier("Sandbox id", sandbox_id),
            tenant_id=self._tenant(tenant_id),
            now=datetime.now(UTC),
        )

    def update_session_status(self, id: str, status: SessionStatusInput) -> bool:
        return self._update_session(queries.UPDATE_SESSION_STATUS, id, status=session_status(status))

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return self._update_session(queries.UPDATE_SESSION_SANDBOX, id, sandbox_id=identifier("Sandbox id", sandbox_id))

    def update_session_runner(self, id: str, runner_id: str | None) -> bool:
        return self._update_session(
            queries.UPDATE_SESSION_RUNNER, id, runner_id=optional_identifier("Runner id", runner_id)
        )

    def get_session(self, id: str) -> SessionRecord | None:
        return self._executor.first(SessionRecord, queries.GET_SESSION, id=identifier("Session id", id))

    def list_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        agent: str | None = None,
        *,
        limit: int | None = None,
        before: SessionRecord | None = None,
    ) -> list[SessionRecord]:
        values: dict[str, Any] = {"tenant_id": self._tenant(tenant_id)}
        if agent is not None:
            values["agent"] = identifier("Agent name", agent)
        if before is not None:
            before = page_record(before)
            values.update(created_at=before.created_at, id=before.id)
        if limit is not None:
            values["limit"] = page_limit(limit)
        query = queries.LIST_SESSIONS[agent is not None, before is not None, limit is not None]
        return self._executor.all(SessionRecord, query, **values)

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        return self._executor.all(
            SessionRecord, queries.LIST_SESSIONS_BY_RUNNER, runner_id=identifier("Runner id", runner_id)
        )

    def touch_session(self, id: str) -> bool:
        return self._touch(self._touches_of_session, identifier("Session id", id))

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self._executor.count(
            queries.PAUSE_SESSIONS_BY_RUNNER, runner_id=identifier("Runner id", runner_id), now=datetime.now(UTC)
        )

    def bulk_pause_active_sessions(self) -> int:
        return self._executor.count(queries.PAUSE_SESSIONS, now=datetime.now(UTC))

    def prune_sessions(self, ended_before: datetime, limit: int) -> int:
        values = {"ended_before": aware_instant("ended_before", ended_before), "limit": page_limit(limit)}

        def prune() -> int:
            pruned = self._executor.all(SessionRecord, queries.PRUNE_SESSIONS, **values)
            if pruned:
                self._executor.count(queries.PRUNE_SANDBOXES, session_ids=json.dumps([s.id for s in pruned]))
            return len(pruned)

        return self._executor.transaction(prune)

    def _update_session(self, query: Update, id: str, **values: str | None) -> bool:
        return self._executor.count(query, id=identifier("Session id", id), now=datetime.now(UTC), **values) > 0

    # -- sandboxes

    def insert_sandbox(
        self,
        id: str,
        agent_name: str,
        workspace_dir: str,
        session_id: str | None = None,
        tenant_id: str = DEFAULT_TENANT_ID,
    ) -> SandboxRecord:
        return self._executor.insert(
            SandboxRecord,
            queries.INSERT_SANDBOX,
            "A sandbox with the id {id!r} exists already.",
            id=identifier("Sandbox id", id),
            agent_name=identifier("Agent name", agent_name),
            workspace_dir=text("Workspace directory", workspace_dir),
            session_id=optional_identifier("Session id", session_id),
            tenant_id=self._tenant(tenant_id),
            now=datetime.now(UTC),
        )

    def update_sandbox_state(self, id: str, state: SandboxStateInput) -> bool:
        return self._update_sandbox(queries.UPDATE_SANDBOX_STATE, id, state=sandbox_state(state))

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self._update_sandbox(
            queries.UPDATE_SANDBOX_SESSION, id, session_id=optional_identifier("Session id", session_id)
        )

    def touch_sandbox(self, id: str) -> bool:
        return self._touch(self._touches_of_sandbox, identifier("Sandbox id", id))

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        return self._executor.first(SandboxRecord, queries.GET_SANDBOX, id=identifier("Sandbox id", id))

    def count_sandboxes(self) -> int:
        return self._executor.one(int, queries.COUNT_SANDBOXES)

    def get_best_eviction_candidate(self) -> SandboxRecord | None:
        return self._executor.first(SandboxRecord, queries.GET_BEST_EVICTION_CANDIDATE)

    def claim_eviction_candidate(self) -> SandboxRecord | None:
        for state, query in (
            (SandboxState.COLD, queries.CLAIM_COLD_SANDBOX),
            (SandboxState.WARM, queries.CLAIM_WARM_SANDBOX),
            (SandboxState.WAITING, queries.CLAIM_WAITING_SANDBOX),
        ):
            claimed = self._executor.first(SandboxRecord, query)
            if claimed is not None:
                return replace(claimed, state=state.value)
        return None

    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._executor.all(
            SandboxRecord, queries.GET_IDLE_SANDBOXES, older_than=aware_instant("older_than", older_than)
        )

    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._executor.all(
            SandboxRecord, queries.GET_COLD_SANDBOXES, older_than=aware_instant("older_than", older_than)
        )

    def delete_sandbox(self, id: str) -> bool:
        return self._executor.count(queries.DELETE_SANDBOX, id=identifier("Sandbox id", id)) > 0

    def mark_all_sandboxes_cold(self) -> int:
        return self._executor.count(queries.MARK_ALL_SANDBOXES_COLD)

    def _update_sandbox(self, query: Update, id: str, **values: Any) -> bool:
        return self._executor.count(query, id=identifier("Sandbox id", id), **values) > 0

    def _touch(self, touch: queries.Touch, id: str) -> bool:
        values: dict[str, Any] = {"id": id, "now": datetime.now(UTC)}
        if interval := self._touch_interval:
            values["touched_before"] = values["now"] - timedelta(seconds=interval)
            # A read first, because most touches are too soon after another; the update asks again as it writes.
            if not (is_due := self._executor.first(bool, touch.is_due, **values)):
                return is_due is not None
        # In a transaction it would be the whole of it that waits for no disk.
        unsynced = self._relaxed_touches and not self._executor.threads.in_transaction
        return self._executor.count(touch.unsynced if unsynced else touch.update, **values) > 0 or interval > 0

    # -- API keys

    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        return self._executor.first(
            ApiKeyRecord, queries.GET_API_KEY_BY_HASH, key_hash=identifier("Key hash", key_hash)
        )

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str, label: str) -> ApiKeyRecord:
        return self._executor.insert(
            ApiKeyRecord,
            queries.INSERT_API_KEY,
            "An API key with the id {id!r}, or with the same hash, exists already.",
            id=identifier("API key id", id),
            tenant_id=self._tenant(tenant_id),
            key_hash=identifier("Key hash", key_hash),
            label=text("Label", label),
            now=datetime.now(UTC),
        )

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        return self._executor.all(ApiKeyRecord, queries.LIST_API_KEYS, tenant_id=self._tenant(tenant_id))

    def delete_api_key(self, id: str) -> bool:
        return self._executor.count(queries.DELETE_API_KEY, id=identifier("API key id", id)) > 0

    def issue_api_key(self, tenant_id: str, label: str) -> tuple[str, ApiKeyRecord]:
        plain, key_hash = self._keys.generate()
        return plain, self.insert_api_key(str(uuid.uuid4()), tenant_id, key_hash, label)

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        key_hash, bare_hash = self._keys.known(plain)
        found = self._executor.all(ApiKeyRecord, queries.GET_API_KEYS_BY_HASHES, key_hash=key_hash, bare_hash=bare_hash)
        return max(found, key=lambda record: record.key_hash == key_hash, default=None)

    # -- tenants

    def for_tenant(self, tenant_id: str) -> DjangoDb:
        tenant_id = identifier("Tenant id", tenant_id)
        if (own := self._executor.tenant_id) is not None:
            check_tenant(own, tenant_id)
        view = copy(self)
        view._executor = self._executor.of_tenant(tenant_id)
        return view

    def _tenant(self, tenant_id: str) -> str:
        own = self._executor.tenant_id
        if own is None:
            return identifier("Tenant id", tenant_id)
        if tenant_id is not DEFAULT_TENANT_ID:
            check_tenant(own, identifier("Tenant id", tenant_id))
        return own

    # -- transactions and life cycle

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        plain_function(fn)
        return self._executor.transaction(lambda: plain_result(fn(self)))

    def health(self) -> Health:
        return check_health(self._executor.threads)

    def describe(self) -> str:
        """Return the name of the database for a message, without the password."""
        return self._executor.describe()

    def close(self) -> None:
        self._executor.close()

    def _rest(self) -> None:
        self._executor.threads.rest()
