"""Connections to PostgreSQL and CockroachDB; a separate module, so that SQLite users need not import psycopg."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import django.db
import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.types.string import TextBinaryLoader

from agentdb.conf import server_name
from agentdb.faults import Fault
from agentdb.schema.migration_lock import is_migrating
from agentdb.serving.connections.base import Connection, Engine

logger = logging.getLogger("agentdb")

_SETTINGS = {
    # The planner assumes that states and ages are independent. It does not know that waiting sandboxes are recently
    # used, and reads all of them to find the few idle ones. Every list here has an index in its order, which the
    # planner uses if it cannot sort. Compiling such short statements (jit) only takes longer.
    "postgresql": dict.fromkeys(
        ("enable_sort", "enable_incremental_sort", "jit"), "off"
    ),
    # Its default, unless somebody gave the cluster or the role another one.
    "cockroachdb": {"default_transaction_isolation": "serializable"},
}
_UNKNOWN_TYPE = 0  # the oid under which psycopg looks for the loader of any other type
_IDLE = psycopg.pq.TransactionStatus.IDLE
_ACTIVE = psycopg.pq.TransactionStatus.ACTIVE
_IN_TRANSACTION = psycopg.pq.TransactionStatus.INTRANS
# Seconds that a healthy server needs at most to cancel a statement and answer.
_CANCEL_SECONDS = 0.2
_ANSWER_SECONDS = 0.1
_CONNECT_SECONDS = 2  # the least that libpq allows
_NOTHING_READY = psycopg.waiting.Ready.NONE
# The server's function that stops waiting for a synchronous standby: the commit is only on the primary.
_NOT_REPLICATED = "SyncRepWaitForLSN"


# Since 3.3.7 psycopg's own loop, which is in C, looks at the clock.
_TimeIsUp: type[psycopg.Error] = getattr(
    psycopg.errors, "_WaitTimeout", psycopg.errors.ConnectionTimeout
)


class CallTimeout(psycopg.OperationalError):
    """The server did not answer in time, and its connection was closed."""


class CallCancelled(psycopg.errors.QueryCanceled):
    """The server did not finish in time, and has cancelled the statement."""


class NotReplicated(psycopg.OperationalError):
    """A commit is stored on the primary, but its synchronous standby did not confirm it."""


class _Notices:
    """What the server has said on a connection besides its answers."""

    not_replicated = False

    def __call__(self, diagnostic: Any) -> None:
        # psycopg calls this while it reads the answer to a statement.
        if diagnostic.source_function == _NOT_REPLICATED:
            self.not_replicated = True


# One for each connection of the driver. A host's may be handed out again and again, and keeps its handlers.
_notices: WeakKeyDictionary[psycopg.Connection[Any], _Notices] = WeakKeyDictionary()


class PostgresEngine(Engine):
    errors = (psycopg.Error, django.db.Error)
    has_server = True

    def __init__(self, wrapper: BaseDatabaseWrapper, *, owned: bool) -> None:
        super().__init__(wrapper, owned=owned)
        self.vendor = wrapper.vendor
        self.skips_locked = wrapper.vendor == "postgresql"

    def describe(self) -> str:
        place = server_name(self.settings)
        if self.vendor == "cockroachdb":
            return f"CockroachDB database {place}"
        return f"PostgreSQL database {place}"

    def connection(self, wrapper: BaseDatabaseWrapper) -> PostgresConnection:
        if not self.prepares:
            wrapper.connection.prepare_threshold = None
        return PostgresConnection(self, wrapper)

    def is_set_up(self, wrapper: BaseDatabaseWrapper) -> bool:
        raw: Any = wrapper.connection
        zone = raw.info.parameter_status("TimeZone")
        return bool(zone == wrapper.timezone_name)

    def limit(self, raw: Any) -> None:
        seconds = self.call_timeout
        if seconds is not None:
            raw.wait = partial(_limited, self, raw, seconds)

    def silence(self, seconds: float) -> str:
        """Log that the server did not answer within so many, and return the reason for an error."""
        limit = f"{seconds:.1f} seconds"
        if seconds == self.call_timeout:  # connect() has a limit of its own
            limit = f"call_timeout={seconds:g} seconds"
        logger.warning("%s did not answer within %s.", self.describe(), limit)
        return f"no answer within {limit}"

    @contextmanager
    def opening(
        self,
        wrapper: BaseDatabaseWrapper,
        limit: float | None,
    ) -> Iterator[None]:
        """Let the body open the connection within ``limit`` seconds, and within ``call_timeout``."""
        limits = [each for each in (limit, self.call_timeout) if each is not None]
        if not limits:
            yield
            return
        # Django calls self.Database.connect() and then runs statements of its own (time zone, role). This is the only
        # place in between where a limit can be set on both.
        connect = partial(_connect, self, min(limits))
        driver = SimpleNamespace(**{**vars(psycopg), "connect": connect})
        wrapper.Database = driver  # type: ignore[attr-defined]
        try:
            yield
        finally:
            del wrapper.Database  # type: ignore[attr-defined]
            if wrapper.connection is not None and not self.owned:
                # No limit for the host's own queries.
                wrapper.connection.__dict__.pop("wait", None)


def _connect(
    engine: PostgresEngine,
    seconds: float,
    **params: Any,
) -> psycopg.Connection[Any]:
    """Connect to the first host that answers within so many seconds, which also limit each of Django's own queries."""
    host = str(params.get("host", ""))
    hosts = host.count(",") + 1
    ends = time.monotonic() + seconds

    class Bounded(psycopg.Connection[Any]):
        @classmethod
        def _connect_gen(cls, *args: Any, **options: Any) -> Any:
            # psycopg calls this for one host after the other.
            nonlocal hosts
            now = time.monotonic()
            # A share of what is left, so that the last host is tried too.
            share = (ends - now) / max(1, hosts)
            hosts -= 1
            attempt = psycopg.Connection._connect_gen(*args, **options)
            return _until(attempt, now + share)

    raw = Bounded.connect(**params)
    raw.wait = partial(_limited, engine, raw, seconds)  # type: ignore[method-assign]
    return raw


def _until(
    waits: Generator[Any, Any, Any],
    ends: float,
    ready: Any = None,
) -> Generator[Any, Any, Any]:
    """Pass on what psycopg waits for, and what is ready, until ``ends`` on the monotonic clock.

    psycopg's generator yields what to wait for and is sent what became ready; a wait comes back at least ten times a
    second. Returns its result; raises ``ConnectionTimeout``.
    """
    try:
        while True:
            # The clock is asked after each wake-up, also of a server that keeps sending a byte now and then.
            ready = yield waits.send(ready)
            if time.monotonic() > ends:
                raise psycopg.errors.ConnectionTimeout("connection timeout expired")
    except StopIteration as end:
        return end.value


def _limited(
    engine: PostgresEngine,
    raw: psycopg.Connection[Any],
    seconds: float,
    waits: Generator[Any, Any, Any],
    **options: Any,
) -> Any:
    """psycopg's ``wait()`` with a time limit: then the statement is cancelled, and a silent connection closed.

    Every wait for the server goes through it: statements, COMMIT, savepoints, Django's own queries. Returns what the
    generator returns; raises ``CallCancelled`` or ``CallTimeout`` if the time is up.
    """
    if "timeout" in options:  # notifies() has a time limit of its own
        return psycopg.Connection.wait(raw, waits, **options)
    try:
        if _TimeIsUp is psycopg.errors.ConnectionTimeout:
            limited = _until(waits, time.monotonic() + seconds)
            return psycopg.Connection.wait(raw, limited)
        return psycopg.Connection.wait(raw, waits, timeout=seconds)
    except _TimeIsUp:
        pass
    # connect(migrate=True): a large table takes its time.
    while is_migrating() and _takes_connections(raw):
        rest = _until(waits, time.monotonic() + seconds, _NOTHING_READY)
        with suppress(psycopg.errors.ConnectionTimeout):
            return psycopg.Connection.wait(raw, rest)
    # Ask the server to stop: it then answers with an error, and connection and locks are in a known state. Only a
    # server that does not answer that either loses the connection, and the outcome is unknown.
    silence = engine.silence(seconds)
    cancel(raw)
    ends = time.monotonic() + _ANSWER_SECONDS
    rest = _until(waits, ends, _NOTHING_READY)
    try:
        return psycopg.Connection.wait(raw, rest)
    except psycopg.errors.QueryCanceled as error:
        raise CallCancelled(silence) from error
    except psycopg.errors.ConnectionTimeout:
        raw.close()
        raise CallTimeout(silence) from None


def _takes_connections(raw: psycopg.Connection[Any]) -> bool:
    """Return whether the server, which has not answered ``raw`` for long, answers another connection."""
    info = raw.info
    with suppress(psycopg.OperationalError):
        try:
            psycopg.connect(
                info.dsn,
                password=info.password,
                connect_timeout=_CONNECT_SECONDS,
            ).close()
        except psycopg.errors.ConnectionTimeout:
            return False
    return True  # if it refuses, it is alive


def cancel(raw: psycopg.Connection[Any]) -> None:
    """Cancel the statement on the server, which would otherwise go on and keep its locks.

    Before version 17 libpq has no time limit for cancelling. With such a libpq the server's ``statement_timeout`` ends
    the statement.
    """
    if psycopg.capabilities.has_cancel_safe():
        with suppress(psycopg.Error):
            raw.cancel_safe(timeout=_CANCEL_SECONDS)


def _readability(file_descriptor: int) -> Callable[[], bool]:
    """Return a function that returns whether there is something to read, without waiting."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: bool(select.select([file_descriptor], [], [], 0)[0])
    # select() refuses a descriptor from 1024 on.
    poll = select.poll()
    poll.register(file_descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))


class PostgresConnection(Connection):
    engine: PostgresEngine

    def __init__(self, engine: PostgresEngine, wrapper: BaseDatabaseWrapper) -> None:
        super().__init__(engine, wrapper)
        raw = self.raw
        self.is_traced = not raw.cursor_factory.__module__.startswith("django.")
        self._is_readable = _readability(raw.pgconn.socket)
        # Not an error: the server commits locally if a cancel reaches it while it waits for its standby, and says so
        # only in a warning. A caller must not be told that such a commit is as safe as others.
        self._notices = _notices.get(raw) or self._listen()
        self._cursor = psycopg.Cursor(raw)
        # Instants as numbers: neither the server writes text nor Django's loader, which is in Python, reads it. They
        # are in UTC as the session is.
        self._cursor.format = psycopg.pq.Format.BINARY
        # A type that psycopg does not know, such as an operator's citext, stays text; its default is bytes.
        self._cursor.adapters.register_loader(_UNKNOWN_TYPE, TextBinaryLoader)
        if not engine.owned:
            return
        engine.limit(raw)
        self._set_up()

    def _listen(self) -> _Notices:
        notices = _Notices()
        # In this order: an exception from a signal handler in between must not leave it without a handler.
        self.raw.add_notice_handler(notices)
        _notices[self.raw] = notices
        return notices

    def _set_up(self) -> None:
        """Set what is agentdb's own: a host's plans are the host's. What a pooler hands on must be as it was: with
        ``prepare=off`` only what the URL asks for is set.
        """
        wanted: dict[str, str] = {}
        idle_seconds = self.engine.idle_seconds
        if self.raw.prepare_threshold is not None:
            wanted.update(_SETTINGS[self.engine.vendor])
            if idle_seconds is not None:
                milliseconds = max(1, int(idle_seconds * 1000))
                wanted["idle_session_timeout"] = str(milliseconds)
        isolation = self.engine.isolation
        if isolation is not None:
            wanted["default_transaction_isolation"] = isolation
        if not wanted:
            return
        settings = ", ".join(
            f"set_config('{name}', '{value}', false)" for name, value in wanted.items()
        )
        # set_config() of all at once is one round trip for a new connection; SET would be one for each.
        self.raw.execute(f"SELECT {settings}", prepare=False)

    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        if self.instrumented():
            cursor: Any = self.wrapper.cursor()
        else:
            # Django's cursor binds on the client and cannot prepare; this one binds on the server.
            cursor = self._cursor
        self._notices.not_replicated = False  # by what the program itself ran
        with self.limited():
            cursor.execute(sql, params)
        if self._notices.not_replicated:
            self._refuse_unreplicated()
        return cursor

    def begin(self) -> None:
        # Serializable whatever the session's default is.
        begin = "BEGIN ISOLATION LEVEL SERIALIZABLE"
        with self.limited():
            self._cursor.execute(begin, prepare=False, binary=False)

    def commit(self) -> None:
        self._notices.not_replicated = False  # by what the program itself ran
        with self.limited():
            super().commit()
        if self._notices.not_replicated:
            self._refuse_unreplicated()

    def roll_back(self) -> None:
        with self.limited():
            super().roll_back()

    def limited(self) -> AbstractContextManager[object]:
        own = self.raw.__dict__
        # agentdb's own connections always have the limit, and so has the body of another limited(). A host's own
        # queries have none.
        if self.engine.call_timeout is None or "wait" in own:
            return nullcontext()
        self.engine.limit(self.raw)
        limit = ExitStack()
        limit.callback(own.pop, "wait", None)
        return limit

    def _refuse_unreplicated(self) -> None:
        raise NotReplicated(
            "the primary has stored it, and its synchronous standby did not say that it has"
        )

    def is_at_hand(self, *, writing: bool) -> bool:
        # libpq knows the state of the session without asking; one poll() shows whether the server has hung up since.
        # A read needs none: if its connection is lost, it is repeated on another one, which a write may not be.
        if self.is_wanted or not self.is_clean():
            return False
        return not (writing and self._is_readable())

    def is_clean(self) -> bool:
        status = self.raw.pgconn.transaction_status
        # Asked of the driver: Django's atomic() switches it off in several steps, and may be cut off in between.
        return bool(status == _IDLE and self.raw.autocommit)

    def in_transaction(self) -> bool:
        # INERROR is not: the server would answer COMMIT with a rollback, and without an error.
        status = self.raw.pgconn.transaction_status
        return bool(status == _IN_TRANSACTION)

    def is_broken_off(self) -> bool:
        # ACTIVE: a statement was sent, and its answer not read to the end.
        status = self.raw.pgconn.transaction_status
        return bool(status == _ACTIVE)

    def is_alive(self) -> bool:
        # An idle connection has something to read only if the server sent a notice or closed the session. Its last
        # message can arrive before the connection ends, so only an answer counts.
        if self.is_wanted:
            return False
        if not self._is_readable():
            return True
        try:
            with self.limited():
                self.raw.execute("SELECT 1", prepare=False)
        except CallTimeout as error:
            raise self.engine.explain(Fault.LOST, error) from error
        except psycopg.Error:
            logger.info(
                "%s had dropped an idle connection; opening another.",
                self.engine.describe(),
            )
            return False
        return True

    def close(self) -> None:
        if not self.raw.closed and self.raw.pgconn.transaction_status == _ACTIVE:
            cancel(self.raw)
        super().close()
