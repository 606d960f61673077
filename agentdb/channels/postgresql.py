"""The channel of PostgreSQL and CockroachDB; apart, because importing psycopg takes SQLite users' time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import django.db
import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors
from psycopg.types.datetime import TimestamptzLoader

from agentdb.channels.base import Channel, Fault, readability
from agentdb.conf import server_name

# With these the server ends the connection; that it has ended may not be known here yet.
_GOOD_BYES = ("25P03", "25P04", "57P01", "57P02", "57P03", "57P05")
# The planner takes states and ages for unrelated; it cannot know that the waiting sandboxes are the ones used lately,
# and reads all of them to find the few idle ones. Every list here has an index in its order: without a sort to fall
# back on, that one is taken. Compiling such statements would only take longer.
_FOLLOW_THE_INDEX = (
    "SELECT set_config(name, 'off', false) FROM unnest(ARRAY['enable_sort', 'enable_incremental_sort', 'jit']) AS name"
)
_STALE_PLAN = "cached plan must not change result type"


class PostgresChannel(Channel):
    errors = (psycopg.Error, django.db.Error)
    aborts_on_error = True

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        super().__init__(wrapper)
        self._raw: psycopg.Connection[Any] | None = None
        self._cursor: psycopg.Cursor[Any]
        self._readable: Callable[[], bool]
        self._prepares = True

    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        self.ensure_alive()
        if self.instrumented():
            cursor = self.wrapper.cursor()
            cursor.execute(sql, params)
            return cursor
        # Django's cursor binds on the client, which cannot prepare; this one binds on the server.
        return self._cursor.execute(sql, params)

    def ensure_alive(self) -> None:
        raw: Any = self.wrapper.connection
        if raw is not None and raw is self._raw:
            # An idle connection has nothing to read unless the server said good-bye, or sent a notice.
            if self.wrapper.in_atomic_block or not self._readable() or self._still_open(raw):
                return
            self.disconnect()
        if self.wrapper.connection is None:
            self.connect()
        self._use(self.wrapper.connection)

    def _use(self, raw: Any) -> None:
        if not self._prepares:
            raw.prepare_threshold = None
        self._raw = raw
        self._readable = readability(raw.pgconn.socket)
        self._cursor = psycopg.Cursor(raw)
        # Django puts a loader written in Python in the way of psycopg's own; the session is in UTC for both.
        self._cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
        # The plans of a host's own queries are the host's; and what a pooler hands on must be as it was.
        if self.owned and raw.prepare_threshold is not None and self.wrapper.vendor == "postgresql":
            with suppress(psycopg.Error):  # the statement that follows says what is wrong
                raw.execute(_FOLLOW_THE_INDEX, prepare=False)

    @staticmethod
    def _still_open(raw: Any) -> bool:
        # The good-bye can arrive before the end of the connection does, so only an answer counts.
        try:
            raw.execute("SELECT 1", prepare=False)
        except psycopg.Error:
            return False
        return True

    def fault(self, error: BaseException) -> Fault:
        if isinstance(error, errors.UniqueViolation):
            return Fault.DUPLICATE
        if isinstance(error, errors.SerializationFailure | errors.DeadlockDetected):
            return Fault.CONFLICT
        if isinstance(error, errors.LockNotAvailable):
            return Fault.LOCKED
        if isinstance(error, errors.InvalidSqlStatementName | errors.DuplicatePreparedStatement) or (
            isinstance(error, errors.FeatureNotSupported) and _STALE_PLAN in str(error)
        ):
            return Fault.STALE_STATEMENT
        if isinstance(error, errors.InsufficientPrivilege):
            return Fault.UNAVAILABLE
        # Class 42 is SQL that does not fit the tables. The rest refuses a value that fits the tables of the migrations.
        state = getattr(error, "sqlstate", None) or ""
        if state.startswith("42") or isinstance(
            error, psycopg.IntegrityError | errors.InvalidTextRepresentation | errors.StringDataRightTruncation
        ):
            return Fault.MISMATCH
        if isinstance(error, psycopg.DataError) and not state:
            return Fault.UNREADABLE
        raw = self.wrapper.connection
        if raw is None or raw.closed or state.startswith("08") or state in _GOOD_BYES:
            return Fault.LOST
        if isinstance(error, psycopg.OperationalError | errors.ReadOnlySqlTransaction):
            return Fault.UNAVAILABLE
        return Fault.OTHER

    def disconnect(self) -> None:
        raw = self.wrapper.connection
        super().disconnect()
        pool = getattr(self.wrapper, "pool", None)
        if raw is not None and pool is not None:
            pool.putconn(raw)  # a host's pool counts those it has handed out, dead or alive

    def prepare_nothing(self) -> None:
        self._prepares = False
        if self._raw is not None:
            self._raw.prepare_threshold = None

    def reason(self, error: BaseException) -> str:
        # The server's details quote whole rows; its first line says enough.
        primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        if primary:
            return " ".join(primary.split()).rstrip(".")
        return re.sub(r" Is the server running [^?]*\?", "", super().reason(error))

    def describe(self) -> str:
        name = "CockroachDB" if self.wrapper.vendor == "cockroachdb" else "PostgreSQL"
        return f"{name} database {server_name(self.wrapper.settings_dict)}"
