"""DjangoDb: the Db interface over one of Django's database aliases. The only place where rows become records."""

from __future__ import annotations

import inspect
import logging
import os
import random
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from agentdb.channels import open_channel
from agentdb.channels.base import Channel, Fault, driver_error
from agentdb.compiled import Delete, Insert, Query, Row, Select, Statement, Update
from agentdb.errors import (
    AgentDbError,
    ConflictError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    DuplicateKeyError,
    InvalidInputError,
    SchemaMismatchError,
)
from agentdb.inputs import (
    aware_instant,
    identifier,
    optional_identifier,
    page_limit,
    page_record,
    sandbox_state,
    session_status,
    text,
)
from agentdb.interface import (
    DEFAULT_TENANT_ID,
    AgentRecord,
    ApiKeyRecord,
    Db,
    SandboxRecord,
    SessionRecord,
)
from agentdb.keys import generate_api_key, hash_api_key

if TYPE_CHECKING:
    from agentdb import queries

R = TypeVar("R")
Record = TypeVar("Record", AgentRecord, SessionRecord, SandboxRecord, ApiKeyRecord)

# About five seconds in all: longer than any transaction here takes, shorter than a caller's patience.
_MAX_RETRIES = 15
_FIRST_DELAY_SECONDS = 0.005
_LONGEST_DELAY_SECONDS = 0.5

logger = logging.getLogger("agentdb")

_open: weakref.WeakSet[DjangoDb] = weakref.WeakSet()
_inherited: list[object] = []


class DjangoDb:
    """Implements ``Db`` on the connections of one alias; safe to share among threads.

    Every thread works on its own connection, which Django keeps for it, so calls join a transaction that the caller
    has open on this alias. An in-memory SQLite database has one connection, on which the threads take turns.
    """

    def __init__(self, alias: str = "default", *, _owned: bool = False, _shared: bool = False) -> None:
        global queries
        # The models cannot be imported before Django is set up, and callers name this class before that.
        from agentdb import queries

        if alias not in connections.settings:
            raise InvalidInputError(f"There is no database alias {alias!r}; known are {', '.join(connections)}.")
        self.alias = alias
        self._owned = _owned
        self._closed = False
        self._statements: dict[Query, Statement] = {}
        self._prepares = True
        self._forget_threads()
        self._shared = open_channel(connections[alias]) if _shared else None
        if self._shared:
            self._shared.wrapper.inc_thread_sharing()
        _open.add(self)

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
            "tenant_id": identifier("Tenant id", tenant_id),
            "now": datetime.now(UTC),
        }
        [row] = self._run(queries.UPSERT_AGENT, values, _fetch_all)
        return AgentRecord(*self._values(queries.UPSERT_AGENT, row))

    def get_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> AgentRecord | None:
        return self._first(
            AgentRecord,
            queries.GET_AGENT,
            name=identifier("Agent name", name),
            tenant_id=identifier("Tenant id", tenant_id),
        )

    def list_agents(self, tenant_id: str = DEFAULT_TENANT_ID) -> list[AgentRecord]:
        return self._all(AgentRecord, queries.LIST_AGENTS, tenant_id=identifier("Tenant id", tenant_id))

    def delete_agent(self, name: str, tenant_id: str = DEFAULT_TENANT_ID) -> bool:
        values = {"name": identifier("Agent name", name), "tenant_id": identifier("Tenant id", tenant_id)}

        def delete(_: Db) -> bool:
            self._count(queries.DELETE_SESSIONS_OF_AGENT, **values)
            return self._count(queries.DELETE_AGENT, **values) > 0

        return self.run_transaction(delete)

    # -- sessions

    def insert_session(
        self, id: str, agent_name: str, sandbox_id: str, tenant_id: str = DEFAULT_TENANT_ID
    ) -> SessionRecord:
        return self._insert(
            SessionRecord,
            queries.INSERT_SESSION,
            "A session with the id {id!r} exists already.",
            id=identifier("Session id", id),
            agent_name=identifier("Agent name", agent_name),
            sandbox_id=identifier("Sandbox id", sandbox_id),
            tenant_id=identifier("Tenant id", tenant_id),
            now=datetime.now(UTC),
        )

    def update_session_status(self, id: str, status: str) -> bool:
        return self._update_session(queries.UPDATE_SESSION_STATUS, id, status=session_status(status))

    def update_session_sandbox(self, id: str, sandbox_id: str) -> bool:
        return self._update_session(queries.UPDATE_SESSION_SANDBOX, id, sandbox_id=identifier("Sandbox id", sandbox_id))

    def update_session_runner(self, id: str, runner_id: str | None) -> bool:
        return self._update_session(
            queries.UPDATE_SESSION_RUNNER, id, runner_id=optional_identifier("Runner id", runner_id)
        )

    def get_session(self, id: str) -> SessionRecord | None:
        return self._first(SessionRecord, queries.GET_SESSION, id=identifier("Session id", id))

    def list_sessions(
        self,
        tenant_id: str = DEFAULT_TENANT_ID,
        agent: str | None = None,
        *,
        limit: int | None = None,
        before: SessionRecord | None = None,
    ) -> list[SessionRecord]:
        values: dict[str, Any] = {"tenant_id": identifier("Tenant id", tenant_id)}
        if agent is not None:
            values["agent"] = identifier("Agent name", agent)
        if before is not None:
            before = page_record(before)
            values.update(created_at=before.created_at, id=before.id)
        if limit is not None:
            values["limit"] = page_limit(limit)
        query = queries.LIST_SESSIONS[agent is not None, before is not None, limit is not None]
        return self._all(SessionRecord, query, **values)

    def list_sessions_by_runner(self, runner_id: str) -> list[SessionRecord]:
        return self._all(SessionRecord, queries.LIST_SESSIONS_BY_RUNNER, runner_id=identifier("Runner id", runner_id))

    def touch_session(self, id: str) -> bool:
        return self._update_session(queries.TOUCH_SESSION, id)

    def bulk_pause_sessions_by_runner(self, runner_id: str) -> int:
        return self._count(
            queries.PAUSE_SESSIONS_BY_RUNNER, runner_id=identifier("Runner id", runner_id), now=datetime.now(UTC)
        )

    def bulk_pause_active_sessions(self) -> int:
        return self._count(queries.PAUSE_SESSIONS, now=datetime.now(UTC))

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
            tenant_id=identifier("Tenant id", tenant_id),
            now=datetime.now(UTC),
        )

    def update_sandbox_state(self, id: str, state: str) -> bool:
        return self._update_sandbox(queries.UPDATE_SANDBOX_STATE, id, state=sandbox_state(state))

    def update_sandbox_session(self, id: str, session_id: str | None) -> bool:
        return self._update_sandbox(
            queries.UPDATE_SANDBOX_SESSION, id, session_id=optional_identifier("Session id", session_id)
        )

    def touch_sandbox(self, id: str) -> bool:
        return self._update_sandbox(queries.TOUCH_SANDBOX, id, now=datetime.now(UTC))

    def get_sandbox(self, id: str) -> SandboxRecord | None:
        return self._first(SandboxRecord, queries.GET_SANDBOX, id=identifier("Sandbox id", id))

    def count_sandboxes(self) -> int:
        [(count,)] = self._rows(queries.COUNT_SANDBOXES, {})
        return int(count)

    def get_best_eviction_candidate(self) -> SandboxRecord | None:
        return self._first(SandboxRecord, queries.GET_BEST_EVICTION_CANDIDATE)

    def get_idle_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._all(SandboxRecord, queries.GET_IDLE_SANDBOXES, older_than=aware_instant("older_than", older_than))

    def get_cold_sandboxes(self, older_than: datetime) -> list[SandboxRecord]:
        return self._all(SandboxRecord, queries.GET_COLD_SANDBOXES, older_than=aware_instant("older_than", older_than))

    def delete_sandbox(self, id: str) -> bool:
        return self._count(queries.DELETE_SANDBOX, id=identifier("Sandbox id", id)) > 0

    def mark_all_sandboxes_cold(self) -> int:
        return self._count(queries.MARK_ALL_SANDBOXES_COLD)

    # -- API keys

    def get_api_key_by_hash(self, key_hash: str) -> ApiKeyRecord | None:
        return self._first(ApiKeyRecord, queries.GET_API_KEY_BY_HASH, key_hash=identifier("Key hash", key_hash))

    def insert_api_key(self, id: str, tenant_id: str, key_hash: str, label: str) -> ApiKeyRecord:
        return self._insert(
            ApiKeyRecord,
            queries.INSERT_API_KEY,
            "An API key with the id {id!r}, or with the same hash, exists already.",
            id=identifier("API key id", id),
            tenant_id=identifier("Tenant id", tenant_id),
            key_hash=identifier("Key hash", key_hash),
            label=text("Label", label),
            now=datetime.now(UTC),
        )

    def list_api_keys_by_tenant(self, tenant_id: str) -> list[ApiKeyRecord]:
        return self._all(ApiKeyRecord, queries.LIST_API_KEYS, tenant_id=identifier("Tenant id", tenant_id))

    def delete_api_key(self, id: str) -> bool:
        return self._count(queries.DELETE_API_KEY, id=identifier("API key id", id)) > 0

    def issue_api_key(self, tenant_id: str, label: str) -> tuple[str, ApiKeyRecord]:
        plain, key_hash = generate_api_key()
        try:
            return plain, self.insert_api_key(str(uuid.uuid4()), tenant_id, key_hash, label)
        except BaseException:
            plain = ""  # error reports show the variables of each frame
            raise

    def authenticate(self, plain: str) -> ApiKeyRecord | None:
        if not isinstance(plain, str):
            raise InvalidInputError(f"An API key must be a string, not {type(plain).__name__}.")
        key_hash = hash_api_key(plain)
        del plain  # error reports show the variables of each frame
        return self._first(ApiKeyRecord, queries.GET_API_KEY_BY_HASH, key_hash=key_hash)

    # -- transactions and life cycle

    def run_transaction(self, fn: Callable[[Db], R]) -> R:
        if inspect.iscoroutinefunction(fn):
            raise InvalidInputError(_NOT_A_COROUTINE)
        channel = self._channel()
        with channel.lock:
            if channel.wrapper.in_atomic_block:
                # Part of the transaction around it, which alone can be tried again; undone alone if fn fails.
                with self._translated(channel), transaction.atomic(using=self.alias):
                    return fn(self)
            for delay in _delays():
                try:
                    try:
                        return self._attempt(channel, fn)
                    finally:
                        if self._closed:  # by fn; Django has needed the alias up to here
                            self._forget_alias()
                except ConflictError as error:
                    if error is not channel.failure or channel.fault_of_failure not in _REFUSED or delay is None:
                        raise
                    if channel.fault_of_failure is Fault.STALE_STATEMENT:
                        channel.disconnect()
                    time.sleep(delay)
            raise AssertionError("unreachable: the last try returns or raises")

    def describe(self) -> str:
        """Return the name of the database for a message, without the password."""
        return self._channel().describe()

    @property
    def has_server(self) -> bool:
        """Whether the database is a server, which may be away, and not a file."""
        return self._channel().wrapper.vendor != "sqlite"

    def ensure_connected(self) -> None:
        """Open this thread's connection now; raise ``DatabaseUnavailableError`` if that fails."""
        self._channel().ensure_alive()

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Translate the errors of Django's own use of this thread's connection."""
        with self._translated(self._channel()):
            yield

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        if not self._owned:
            return  # the connections are Django's to close
        for channel in list(self._channels):
            # A call that is under way in another thread ends first.
            with channel.lock:
                channel.disconnect()
        if not any(channel.wrapper.in_atomic_block for channel in self._channels):
            self._forget_alias()

    def _forget_alias(self) -> None:
        if self._owned and self.alias != DEFAULT_DB_ALIAS:
            connections.settings.pop(self.alias, None)
            with suppress(AttributeError):
                del connections[self.alias]

    def _attempt(self, channel: Channel, fn: Callable[[Db], R]) -> R:
        channel.failure = None
        with self._translated(channel):
            channel.ensure_alive()  # while it may still be replaced, which it may not in a transaction
        with self._translated(channel), transaction.atomic(using=self.alias):
            channel.ensure_alive()  # whatever Django opened just now
            result = fn(self)
            if self._closed:
                raise DatabaseClosedError(_CLOSED)
            if channel.failure is not None:
                # fn went on after a failure that has undone its work; that must not look like success.
                raise channel.failure
            if inspect.isawaitable(result):
                getattr(result, "close", bool)()
                raise InvalidInputError(_NOT_A_COROUTINE)
            return result

    @contextmanager
    def _translated(self, channel: Channel) -> Iterator[None]:
        """Translate what beginning, committing and undoing a transaction raise; other calls translate their own."""
        try:
            yield
        except channel.errors as error:
            cause = driver_error(error)
            failure = self._doom(channel, channel.fault(cause), cause)
            raise failure from cause

    # -- running statements

    def _first(self, record: type[Record], query: Select, **values: Any) -> Record | None:
        rows = self._rows(query, values)
        return record(*self._values(query, rows[0])) if rows else None

    def _all(self, record: type[Record], query: Select, **values: Any) -> list[Record]:
        rows = self._rows(query, values)
        convert = self._statements[query].convert
        try:
            return [record(*convert(row)) for row in rows]
        except _UNREADABLE as error:
            raise self._unreadable(error) from error

    def _insert(self, record: type[Record], query: Insert, duplicate: str, **values: Any) -> Record:
        channel = self._channel()
        try:
            if channel.aborts_on_error and channel.wrapper.in_atomic_block:
                # Without a savepoint a caller that expects the duplicate would lose its whole transaction.
                with transaction.atomic(using=self.alias):
                    self._count(query, **values)
            else:
                self._count(query, **values)
        except ConflictError:
            # Leaving the savepoint has made Django forget that the transaction cannot go on.
            channel.wrapper.needs_rollback = channel.wrapper.in_atomic_block
            raise
        except DuplicateKeyError as error:
            raise DuplicateKeyError(duplicate.format(**values)) from error.__cause__
        return record(*self._statements[query].given(values))

    def _update_session(self, query: Update, id: str, **values: str | None) -> bool:
        return self._count(query, id=identifier("Session id", id), now=datetime.now(UTC), **values) > 0

    def _update_sandbox(self, query: Update, id: str, **values: Any) -> bool:
        return self._count(query, id=identifier("Sandbox id", id), **values) > 0

    def _count(self, query: Insert | Update | Delete, **values: Any) -> int:
        return self._run(query, values, _row_count)

    def _rows(self, query: Query, values: dict[str, Any]) -> list[Row]:
        return self._run(query, values, _fetch_all, reads_only=True)

    def _values(self, query: Query, row: Row) -> Row | list[Any]:
        try:
            return self._statements[query].convert(row)
        except _UNREADABLE as error:
            raise self._unreadable(error) from error

    def _run(self, query: Query, values: dict[str, Any], consume: Callable[[Any], R], *, reads_only: bool = False) -> R:
        channel = self._channel()
        with channel.lock:
            if self._closed:
                raise DatabaseClosedError(_CLOSED)
            if channel.wrapper.in_atomic_block and channel.wrapper.needs_rollback:
                if channel.failure is not None and channel.failed_in == channel.wrapper.atomic_blocks[:1]:
                    raise channel.failure
                raise AgentDbError("The transaction has failed already; it can only be undone.")
            try:
                statement = self._statements[query]
            except KeyError:
                statement = self._statements[query] = query.compile(channel.wrapper)
            params = statement.bind(values)
            try:
                return consume(channel.execute(statement.sql, params))
            except channel.errors as error:
                failure = driver_error(error)
            return self._recover(channel, statement.sql, params, consume, reads_only, failure)

    def _recover(
        self,
        channel: Channel,
        sql: str,
        params: list[Any],
        consume: Callable[[Any], R],
        reads_only: bool,
        failure: BaseException,
    ) -> R:
        """Try again where that cannot do anything twice; else raise the failure in agentdb's terms."""
        may_retry = not channel.wrapper.in_atomic_block
        for delay in _delays():
            fault = channel.fault(failure)
            if fault is Fault.STALE_STATEMENT:
                # psycopg would go on using the prepared statement for as long as it has the connection.
                self._statement_lost(channel, failure)
            if not may_retry or delay is None or (fault not in _REFUSED and not (fault is Fault.LOST and reads_only)):
                break
            if fault in (Fault.LOST, Fault.STALE_STATEMENT):
                channel.disconnect()
                reads_only = False  # a second loss is the server's state, not the connection's
            else:
                time.sleep(delay)
            try:
                return consume(channel.execute(sql, params))
            except channel.errors as error:
                failure = driver_error(error)
        if fault is Fault.LOST:
            channel.disconnect()
        if channel.wrapper.in_atomic_block and fault is not Fault.DUPLICATE:
            channel.wrapper.needs_rollback = True
            raise self._doom(channel, fault, failure) from failure
        raise self._translate(channel, fault, failure) from failure

    def _doom(self, channel: Channel, fault: Fault, error: BaseException) -> AgentDbError:
        channel.failure, channel.fault_of_failure = self._translate(channel, fault, error), fault
        channel.failed_in = channel.wrapper.atomic_blocks[:1]
        return channel.failure

    def _statement_lost(self, channel: Channel, failure: BaseException) -> None:
        if "does not exist" in str(failure) or "already exists" in str(failure):
            logger.warning(
                "%s lost a prepared statement, as a pooler between here and there does; nothing more is prepared. "
                "Add prepare=off to the database URL.",
                channel.describe(),
            )
            self._prepares = False
            channel.prepare_nothing()

    def _translate(self, channel: Channel, fault: Fault, error: BaseException) -> AgentDbError:
        reason = channel.reason(error)
        place = channel.describe()
        match fault:
            case Fault.DUPLICATE:
                return DuplicateKeyError(f"The key is taken in {place}: {reason}.")
            case Fault.CONFLICT | Fault.STALE_STATEMENT:
                return ConflictError(f"Other writers of {place} were in the way: {reason}.")
            case Fault.LOCKED:
                return ConflictError(f"Another process holds {place} locked: {reason}.")
            case Fault.MISMATCH:
                return SchemaMismatchError(
                    f"{place} does not have the tables agentdb works on: {reason}. Run 'agentdb verifydb'."
                )
            case Fault.UNREADABLE:
                return self._unreadable(error)
            case Fault.LOST:
                return DatabaseUnavailableError(f"{place} dropped the connection: {reason}.")
            case Fault.UNAVAILABLE:
                return channel.unavailable(error)
        return AgentDbError(f"{place} refused the statement: {reason}.")

    def _unreadable(self, error: BaseException) -> SchemaMismatchError:
        return SchemaMismatchError(
            f"{self.describe()} holds a timestamp that is none: {error}. Run 'agentdb baselinedb --check'."
        )

    # -- one channel per thread

    def _channel(self) -> Channel:
        if self._closed:
            raise DatabaseClosedError(_CLOSED)
        try:
            channel: Channel = self._local.channel
        except AttributeError:
            channel = self._local.channel = self._open_channel()
        return channel

    def _open_channel(self) -> Channel:
        if self._shared is not None:
            connections[self.alias] = self._shared.wrapper
            channel = self._shared
        else:
            channel = open_channel(connections[self.alias])
        channel.owned = self._owned
        if not self._prepares:
            channel.prepare_nothing()
        self._channels.add(channel)
        return channel

    def _forget_threads(self) -> None:
        self._local = threading.local()
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()


_NOT_A_COROUTINE = "run_transaction() takes a plain function, not a coroutine: its calls run in one thread."
_CLOSED = "The Db is closed. Open another one with agentdb.connect()."

# What a conversion raises over text that is no timestamp, over a number or bytes, and over year 0 in UTC.
_UNREADABLE = (ValueError, AttributeError, OverflowError)

# Refused as a whole, so that doing it again does it once. A connection lost on the way may have done it.
_REFUSED = (Fault.CONFLICT, Fault.STALE_STATEMENT)


def _delays() -> Iterator[float | None]:
    """Yield how long to wait before each retry, and None for the last try."""
    for retry in range(_MAX_RETRIES):
        longest: float = min(_FIRST_DELAY_SECONDS * 2**retry, _LONGEST_DELAY_SECONDS)
        yield longest * random.uniform(0.5, 1.0)
    yield None


def _fetch_all(cursor: Any) -> list[Row]:
    rows: list[Row] = cursor.fetchall()
    return rows


def _row_count(cursor: Any) -> int:
    count: int = cursor.rowcount
    return count


def _start_anew_in_child() -> None:
    """Leave the parent's connections alone after a fork: two processes on one socket corrupt both."""
    for db in list(_open):
        for channel in list(db._channels):
            if channel is not db._shared:
                _inherited.append(channel.wrapper.connection)  # kept, because deleting it would close it
                channel.wrapper.connection = None
        if db._shared is None:
            db._forget_threads()
            with suppress(AttributeError):
                del connections[db.alias]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
