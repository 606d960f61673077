"""A thread's slot for a database, and the driver's connection in it.

Django opens and closes connections; statements and transactions go to the driver directly. The state of a connection,
such as whether a transaction is open, is always read from the driver.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError
from agentdb.faults import (
    Fault,
    classify,
    driver_error,
    explain,
    one_line,
    said_by_server,
)
from agentdb.serving.turns import Turn

# In the child of a fork, the parent's connections. They are kept alive, because deleting one would close it, and the
# server would end the parent's session.
left_to_the_parent: list[object] = []


# What a fault that leaves a write's outcome open means for anything else.
_OF_A_READ = {
    Fault.UNANSWERED: Fault.LOST,
    Fault.UNSURE: Fault.UNAVAILABLE,
}


class Engine(ABC):
    """What all connections of one alias have in common."""

    # The driver's exceptions, and Django's wrappers.
    errors: tuple[type[Exception], ...]
    has_server: bool
    is_in_memory: bool = False  # the database ends with its last connection
    prepares = True  # until a pooler has lost a prepared statement
    # Rows that other transactions have locked; see expressions.Locked.
    skips_locked: bool

    def __init__(self, wrapper: BaseDatabaseWrapper, *, owned: bool) -> None:
        self.settings: dict[str, Any] = wrapper.settings_dict
        self.owned = owned  # by agentdb, not by a host project
        own = self.settings.get("AGENTDB", {})
        self.call_timeout: float | None = own.get("call_timeout")  # seconds
        # An unused connection is closed after this; a host's has no such limit.
        self.idle_seconds: float | None = own.get("idle_seconds") if owned else None
        # Of single calls, if not the server's default.
        self.isolation: str | None = own.get("isolation")
        # Slower statements are logged.
        self.slow_call_seconds: float | None = own.get("slow_call_seconds")

    @abstractmethod
    def describe(self) -> str:
        """Return the database's name for a message, without the password."""

    @abstractmethod
    def connection(self, wrapper: BaseDatabaseWrapper) -> Connection:
        """Return the ``Connection`` for the driver's connection in Django's wrapper."""

    def opening(
        self,
        wrapper: BaseDatabaseWrapper,
        limit: float | None,
    ) -> AbstractContextManager[None]:
        """Let the body open the connection within ``limit`` seconds."""
        return nullcontext()

    def seconds_to_open(self, timeout_seconds: float) -> float:
        """Return for how long opening the first connection is tried again."""
        return timeout_seconds

    def refuse_displaced(self) -> None:
        """Raise ``DatabaseUnavailableError`` if the file at the path is not the one that the alias had open before."""
        return

    def rest_of_call(self, began: float) -> float | None:
        """Return the seconds that a call has left that began then, by ``time.monotonic()``; None without a limit."""
        if self.call_timeout is None:
            return None
        return began + self.call_timeout - time.monotonic()

    def take_turn(self) -> Turn | None:
        """Wait until a transaction may begin; other writers wait until the returned turn, if any, ends."""
        return None

    def limit(self, raw: Any) -> None:
        """Let no statement of the driver's connection wait longer than ``call_timeout`` for a silent server."""
        return

    def is_set_up(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Whether Django's ``connect()`` has come to its end; asks no server, and not about autocommit."""
        return True

    def renew(self, raw: Any) -> bool:
        """Reset a connection without closing it; return whether that was possible."""
        return False

    def reason(self, error: BaseException) -> str:
        """Return the driver's message on one line, without the password."""
        password = self.settings.get("PASSWORD")
        return one_line(error, password, self.settings["NAME"])

    def explain(self, fault: Fault, error: BaseException) -> AgentDbError:
        """Return the ``AgentDbError`` for the driver's error."""
        place = self.describe()
        reason = self.reason(error)
        return explain(fault, place, reason)


class Connection(ABC):
    """A connection of the driver; this object lives from its opening to its closing."""

    is_wanted = False  # by another thread, which waits for ?max_connections=
    is_traced: bool  # by the driver's OpenTelemetry instrumentation, which sees only what Django's cursor runs

    def __init__(self, engine: Engine, wrapper: BaseDatabaseWrapper) -> None:
        self.engine = engine
        self.wrapper = wrapper
        # Kept, not read from the wrapper each time: if Django has another connection meanwhile, this object is out of
        # date, and Slot sees that by comparing the two.
        self.raw: Any = wrapper.connection
        self._debug = settings.DEBUG

    @abstractmethod
    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        """Run the statement and return a cursor."""

    def write(self, run: Callable[[Connection], Any]) -> Any:
        """Call ``run`` with a connection, and return its result when the write is stored."""
        return run(self)

    @abstractmethod
    def is_at_hand(self, *, writing: bool) -> bool:
        """Whether a cheap check says that it can be used as it is; if not, ``Slot.ready`` checks further."""

    @abstractmethod
    def is_clean(self) -> bool:
        """Whether it is open, idle, in no transaction, and begins none by itself; does not ask the server."""

    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a transaction is open that can be committed; does not ask the server."""

    @abstractmethod
    def begin(self) -> None:
        """Begin a serializable transaction."""

    def commit(self) -> None:
        """Commit the transaction of ``begin``; if this raises the driver's error, it may be stored or not."""
        self.raw.commit()

    def roll_back(self) -> None:
        """Roll back the transaction of ``begin``."""
        self.raw.rollback()

    @abstractmethod
    def is_alive(self) -> bool:
        """Whether it can be used after it was idle.

        Raises ``AgentDbError`` if the server does not answer, or if the file at the path is another one now.
        """

    def is_broken_off(self) -> bool:
        """Whether an asynchronous exception interrupted it in the middle of a statement."""
        return False

    def close(self) -> None:
        """Close it in any state, without waiting."""
        self.raw.close()

    def limited(self) -> AbstractContextManager[object]:
        """Limit each wait of the body on the driver's connection to ``call_timeout``."""
        return nullcontext()

    def instrumented(self) -> bool:
        """Whether something hooks into Django's cursor: ``assertNumQueries``, ``execute_wrapper``, OpenTelemetry."""
        if self._debug or self.is_traced:
            return True
        wrapper = self.wrapper
        return bool(wrapper.execute_wrappers) or wrapper.force_debug_cursor


class Slot:
    """One thread's slot for an alias: Django's wrapper, and its open connection, if any.

    For an in-memory database all threads share a slot and take turns.
    """

    def __init__(self, engine: Engine, wrapper: BaseDatabaseWrapper) -> None:
        self.engine = engine
        self.wrapper = wrapper
        self.lock: threading.RLock = threading.RLock()
        self.used: float = time.monotonic()  # when it was last used
        # Waits until another connection may be opened.
        self.room: Callable[[Slot], AbstractContextManager[object]] = nullcontext
        # The state of the host's open transaction; see transactions.py.
        self.host_block: object = None
        self._connection: Connection | None = None
        self._process = os.getpid()

    def __del__(self) -> None:
        # The thread has ended, and nobody else will close its connection.
        raw = self.wrapper.connection
        if not self.engine.owned or raw is None:
            return
        if self._process == os.getpid():
            # The wrapper may live on, and the child of a fork closes what it finds there.
            self.wrapper.connection = None
            raw.close()
        else:  # a fork ends all threads but one in the child
            left_to_the_parent.append(raw)

    # An exception from a signal handler can come between any two bytecodes, so an operation may be left half done.
    # Therefore the driver is asked before each operation whether the connection is in the middle of something, and
    # then it is reset or replaced.

    def ready(self, limit: float | None = None, *, writing: bool = True) -> Connection:
        """Return a connection for a call outside a transaction: open, alive and idle.

        ``limit``: the seconds for opening one. A read may find out by itself that the server has hung up.
        """
        # The usual way, kept short: three comparisons and one question to the operating system.
        connection = self._connection
        if (
            connection is None
            or connection.raw is not self.wrapper.connection
            or not connection.is_at_hand(writing=writing)
        ):
            connection = self._kept() or self._open(limit)
        self.used = time.monotonic()
        return connection

    def _kept(self) -> Connection | None:
        """Return the open connection if it is usable, after a reset if necessary; None if one must be opened.

        Raises ``AgentDbError`` if the server does not answer on it, or if the file at the path is another one now.
        """
        connection = self.current() or self._adopted()
        if connection is None:
            return None
        # Not clean: a transaction was left open, or autocommit off, for example by a signal handler's exception between
        # BEGIN and the note in the wrapper. Nobody waits for it any more, so it is rolled back by closing.
        if not connection.is_clean():
            if not self.wrapper.autocommit:
                raise self.never_committed()
            self.reset()
            return self._connection
        try:
            if connection.is_alive():
                return connection
        except AgentDbError:
            self.discard()
            raise
        self.discard()
        return None

    def never_committed(self) -> AgentDbError:
        """Return the error for a call after which Django does not commit.

        Perhaps the host has switched autocommit off, and has work in its transaction, so it is not reset.
        """
        alias = self.wrapper.alias
        return AgentDbError(
            f"The connection of the database alias {alias!r} has autocommit off, and nothing would commit this call: "
            "an exception from a signal handler in atomic() leaves it so, or set_autocommit(False). "
            f"Outside of atomic() call connections[{alias!r}].close() and then connect(), which switches it on."
        )

    def open_in_block(self) -> Connection:
        """Return the connection of the open transaction."""
        if not self.is_open:
            raise AgentDbError(
                "The transaction's connection is closed; it can only be rolled back."
            )
        return self.current() or self.take_over()  # a host's, which Django has opened

    def _adopted(self) -> Connection | None:
        """Return a host's connection that Django has opened; None if one must be opened."""
        if self.is_open and not self._is_set_up():
            # Its connect() was interrupted.
            self.reset()
        return self.take_over() if self.is_open else None

    def _is_set_up(self) -> bool:
        if self.engine.owned:
            return False  # ours is taken over as soon as Django has opened it
        if not self.wrapper.autocommit:
            return True  # the host has switched it off
        try:
            return self.engine.is_set_up(self.wrapper)
        except self.engine.errors:  # the driver's is closed
            return False

    def current(self) -> Connection | None:
        """Return the object for the driver's connection that Django has open, if there is one."""
        connection = self._connection
        if connection is None or connection.raw is not self.wrapper.connection:
            return None
        return connection

    def take_over(self) -> Connection:
        """Return a new object for the driver's connection that Django has open, from now on this slot's."""
        connection = self.engine.connection(self.wrapper)
        self._connection = connection
        return connection

    def _open(self, limit: float | None) -> Connection:
        """Open the connection through Django, which reads its settings and sends its signals.

        ``limit``: the seconds for that, besides ``call_timeout``.
        """
        try:
            with self.room(self), self.engine.opening(self.wrapper, limit):
                return self._opened()
        except BaseException as error:
            # Includes an exception between two steps of Django's connect(), which would leave autocommit off.
            self.discard()
            explained = self._why_not_opened(error)
            if explained is None:
                raise
            raise explained from driver_error(error)

    def _opened(self) -> Connection:
        """Return the connection that Django opens, or the first from a host's pool that has not died there."""
        pool = getattr(self.wrapper, "pool", None)
        may_be_dead = getattr(pool, "max_size", 0)  # no more than the pool holds
        while True:
            self.wrapper.ensure_connection()
            connection = self.current() or self.take_over()
            if not may_be_dead or connection.is_alive():
                return connection
            self.discard()
            may_be_dead -= 1

    def _why_not_opened(self, error: BaseException) -> AgentDbError | None:
        """Return the error for the caller, or None if it is not about the database."""
        if isinstance(error, SynchronousOnlyOperation):
            return AgentDbError(
                "A DjangoDb was first used inside a running event loop, which it would block. "
                "Use agentdb.connect_async(), or call it in a thread."
            )
        if isinstance(error, (ImproperlyConfigured, *self.engine.errors)):
            return self.engine.explain(Fault.UNAVAILABLE, error)
        return None

    @property
    def is_open(self) -> bool:
        return self.wrapper.connection is not None

    def is_watched(self) -> bool:
        """Whether somebody is to see each call's own statement on the connection that is open."""
        connection = self._connection
        return connection is not None and connection.instrumented()

    def reset(self) -> None:
        """Remove all traces of an interrupted operation: close the connection, or do the equivalent."""
        self.leave_block()
        self.wrapper.run_on_commit = []
        # The wrapper first: closing a connection inside a block would only mark the block as failed.
        raw = self.wrapper.connection
        if raw is None or not self.engine.renew(raw):
            self.discard()

    def leave_block(self) -> None:
        """Tell Django that no transaction is open. Plain assignments, which no asynchronous exception can separate."""
        wrapper = self.wrapper
        if wrapper.closed_in_transaction:
            # As Django does at the end of its own: the connection was discarded, and a pool takes it back only once.
            self._connection = wrapper.connection = None
        wrapper.in_atomic_block = False
        wrapper.autocommit = True
        wrapper.needs_rollback = False
        wrapper.closed_in_transaction = False
        wrapper.savepoint_ids = []
        wrapper.atomic_blocks = []

    def discard(self) -> None:
        """Drop the connection in any state; ``ready`` opens another."""
        wrapper = self.wrapper
        raw = wrapper.connection
        if raw is None or wrapper.closed_in_transaction:
            return
        if wrapper.in_atomic_block:
            wrapper.needs_rollback = True
        # Ours also cancels a running statement, which would otherwise hold its locks until the server notices.
        closable = self.current() or raw
        with suppress(*self.engine.errors):
            closable.close()
        # A host's pool counts those it has handed out, dead or alive.
        pool = getattr(wrapper, "pool", None)
        if pool is not None:
            pool.putconn(raw)
        # Last, so that an interrupted close is found here and repeated.
        if wrapper.in_atomic_block:
            # Django opens a new connection after the transaction has ended, not in the middle of it.
            wrapper.closed_in_transaction = True
        else:
            self._connection = None
            wrapper.connection = None

    def interrupted(self) -> None:
        """After an exception that is not the driver's: leave no running statement to the next caller."""
        connection = self.current()
        if connection is not None and connection.is_broken_off():
            self.discard()

    def fault(self, error: BaseException, *, writing: bool) -> Fault:
        """Return what the driver's error means; for a write or COMMIT, whether its outcome is unknown.

        If the server announced the end of the session, it has rolled back.
        """
        raw = self.wrapper.connection
        # psycopg says whether it still has the server; a connection of sqlite3 has no such attribute.
        is_connected = raw is not None and not getattr(raw, "closed", False)
        fault = classify(error, connected=is_connected)
        if not writing:
            return _OF_A_READ.get(fault, fault)
        if fault is Fault.SILENT:
            return Fault.UNANSWERED
        if fault is Fault.LOST and not said_by_server(error):
            return Fault.UNANSWERED
        return fault

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Limit the body's calls on Django's wrapper, and translate their errors."""
        connection = self._connection
        try:
            with connection.limited() if connection is not None else nullcontext():
                yield
        except self.engine.errors as error:
            fault = self.fault(error, writing=False)
            raise self.engine.explain(fault, error) from driver_error(error)
        except BaseException:
            self.interrupted()
            raise

    def ask(self) -> None:
        """From any thread, ask for the connection: its thread closes it before its next call."""
        connection = self._connection
        if connection is not None:
            connection.is_wanted = True

    def close_if_idle(self) -> bool:
        """From any thread, close the connection, unless a call, a transaction or the host's own query uses it."""
        try:
            # acquire() is inside the try, so that an exception right after it does not leave the slot locked
            # permanently. If it was not acquired, release() raises RuntimeError, because an RLock knows its owner.
            if not self.lock.acquire(blocking=False):
                return False
            connection = self._connection
            is_idle = (
                connection is not None
                and not self.wrapper.in_atomic_block
                and connection.is_clean()
            )
            if is_idle:
                self.discard()
            return is_idle
        finally:
            with suppress(RuntimeError):  # another thread has it
                self.lock.release()
