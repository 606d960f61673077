"""The channel of PostgreSQL and CockroachDB; apart, because importing psycopg takes SQLite users' time."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import django.db
import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.types.datetime import TimestamptzLoader

from agentdb.conf import server_name
from agentdb.faults import Fault, classify
from agentdb.serving.connections.base import Channel, readability

logger = logging.getLogger("agentdb")

# The planner takes states and ages for unrelated; it cannot know that the waiting sandboxes are the ones used lately,
# and reads all of them to find the few idle ones. Every list here has an index in its order: without a sort to fall
# back on, that one is taken. Compiling such statements would only take longer.
_FOLLOW_THE_INDEX = (
    "SELECT set_config(name, 'off', false) FROM unnest(ARRAY['enable_sort', 'enable_incremental_sort', 'jit']) AS name"
)
_IDLE = psycopg.pq.TransactionStatus.IDLE
_ACTIVE = psycopg.pq.TransactionStatus.ACTIVE
_IN_TRANSACTION = psycopg.pq.TransactionStatus.INTRANS
_CANCEL_SECONDS = 1.0
_ANSWER_SECONDS = 0.2  # at the least, for a server that was asked to cancel to say so


class PostgresChannel(Channel):
    errors = (psycopg.Error, django.db.Error)
    aborts_on_error = True

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        super().__init__(wrapper)
        self._raw: Any = None
        self._cursor: psycopg.Cursor[Any]
        self._readable: Callable[[], bool]
        self._prepares = True
        self._usual_level: psycopg.IsolationLevel | None = None

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
            if self.wrapper.in_atomic_block:
                return
            # In anything else than this state an exception from nowhere has left it: nobody waits for its answer.
            if raw.pgconn.transaction_status != _IDLE and self.wrapper.autocommit:
                self.disconnect()
            elif not self._readable() or self._still_open(raw):
                return
            else:
                logger.info("%s had dropped an idle connection; opening another.", self.describe())
                self.disconnect()
        if self.wrapper.connection is None:
            self.connect()
        self._use(self.wrapper.connection)

    def at_rest(self, raw: Any) -> bool:
        return bool(raw.closed or raw.pgconn.transaction_status == _IDLE)

    def spoiled(self, raw: Any) -> bool:
        return bool(raw.closed or raw.pgconn.transaction_status not in (_IDLE, _IN_TRANSACTION))

    def give_up(self, began: float) -> None:
        raw: Any = self.wrapper.connection
        if raw is None or raw.closed:
            return
        logger.warning("%s did not answer within call_timeout=%g seconds.", self.describe(), self.call_timeout)
        # A server that is well ends the statement and keeps the connection; one that is silent is left.
        self._cancel(raw)
        ends = max(began + (self.call_timeout or 0), time.monotonic() + _ANSWER_SECONDS)
        answered = threading.Event()  # programs under test replace time.sleep
        while self.began == began and time.monotonic() < ends:
            answered.wait(0.005)
        if self.began == began and raw is self.wrapper.connection and not raw.closed:
            with suppress(OSError), socket.socket(fileno=os.dup(raw.pgconn.socket)) as connection:
                connection.shutdown(socket.SHUT_RDWR)

    def interrupted(self) -> None:
        raw = self.wrapper.connection
        if raw is not None and raw.pgconn.transaction_status == _ACTIVE:
            self.disconnect()

    def disconnect(self) -> None:
        raw = self.wrapper.connection
        if raw is None:
            return
        if not raw.closed and raw.pgconn.transaction_status == _ACTIVE:
            self._cancel(raw)
        super().disconnect()
        self._give_back(raw)

    def traced(self) -> bool:
        # Without it, Django's settings of the connection name the class of its cursors.
        raw: Any = self.wrapper.connection
        return not raw.cursor_factory.__module__.startswith("django.")

    def begin(self) -> None:
        raw: Any = self.wrapper.connection
        raw.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        raw.autocommit = False  # the driver sends BEGIN with the first statement

    def commit(self) -> None:
        raw: Any = self.wrapper.connection
        raw.commit()
        raw.autocommit = True

    def settle(self) -> None:
        super().settle()
        raw: Any = self.wrapper.connection
        if raw is not None and not raw.closed and raw.pgconn.transaction_status == _IDLE:
            raw.isolation_level = self._usual_level

    def abandon(self, raw: Any) -> None:
        if not raw.closed and raw.pgconn.transaction_status == _ACTIVE:
            self._cancel(raw)
        raw.close()
        self._give_back(raw)

    def _give_back(self, raw: Any) -> None:
        pool = getattr(self.wrapper, "pool", None)
        if pool is not None:
            pool.putconn(raw)  # a host's pool counts those it has handed out, dead or alive

    @staticmethod
    def _cancel(raw: Any) -> None:
        """Let the server end what it does for this connection; else it goes on, and holds its locks, for nobody.

        Before version 17 libpq knows no time limit for that either. psycopg's C code keeps Python's other threads out
        meanwhile: with such a libpq it is left to the server's ``statement_timeout``.
        """
        if psycopg.capabilities.has_cancel_safe():
            with suppress(psycopg.Error):
                raw.cancel_safe(timeout=_CANCEL_SECONDS)
        elif psycopg.pq.__impl__ == "python":

            def cancel() -> None:
                with suppress(psycopg.Error):
                    raw.cancel()

            thread = threading.Thread(target=cancel, daemon=True)
            thread.start()
            thread.join(_CANCEL_SECONDS)

    def _use(self, raw: Any) -> None:
        if not self._prepares:
            raw.prepare_threshold = None
        self._raw = raw
        self._usual_level = raw.isolation_level
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
        raw = self.wrapper.connection
        return classify(error, connected=raw is not None and not raw.closed)

    def prepare_nothing(self) -> None:
        self._prepares = False
        if self._raw is not None:
            self._raw.prepare_threshold = None

    def reason(self, error: BaseException) -> str:
        if self.given_up and self.call_timeout is not None:
            return f"no answer within call_timeout={self.call_timeout:g} seconds"
        return super().reason(error)

    def describe(self) -> str:
        name = "CockroachDB" if self.wrapper.vendor == "cockroachdb" else "PostgreSQL"
        return f"{name} database {server_name(self.wrapper.settings_dict)}"
