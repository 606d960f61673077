"""One thread's connection, driven through its driver without Django's cursor in between.

Opening, closing, settings and transactions stay Django's. What is left to say per engine is how a statement runs, when
a kept connection has died, and what the driver's errors mean.
"""

from __future__ import annotations

import select
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

import django.db
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, DatabaseUnavailableError


class Fault(Enum):
    """What a driver's error means to a caller."""

    DUPLICATE = auto()
    CONFLICT = auto()  # another writer was in the way; worth another try
    LOCKED = auto()  # the same, after the engine has waited as long as it may
    STALE_STATEMENT = auto()  # the prepared statement no longer fits the table, or the server lost it
    LOST = auto()  # the connection is gone
    MISMATCH = auto()  # a table, column or constraint is missing, of another type, or not ours
    UNREADABLE = auto()  # a stored value that the column's type cannot hold in Python
    UNAVAILABLE = auto()
    OTHER = auto()


class Channel(ABC):
    """A connection of one thread; of all threads, taking turns, for an in-memory database."""

    errors: tuple[type[Exception], ...]  # what the driver raises, and Django around it
    # After an error PostgreSQL ignores everything up to the end of the transaction.
    aborts_on_error: bool

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self.wrapper = wrapper
        self.lock = threading.RLock()
        self.owned = False
        # What has doomed the transaction that is open, and whether the same again may succeed.
        self.failure: AgentDbError | None = None
        self.fault_of_failure: Fault | None = None
        self.failed_in: list[Any] = []
        self._debug = settings.DEBUG

    def __del__(self) -> None:
        # The thread has ended; nobody else will close its connection.
        if self.owned and self.wrapper.connection is not None:
            self.wrapper.connection.close()

    @abstractmethod
    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        """Run the statement on an open, live connection and return a cursor."""

    @abstractmethod
    def fault(self, error: BaseException) -> Fault:
        """Return what the driver's error means."""

    @abstractmethod
    def describe(self) -> str:
        """Return the database's name for a message, without the password."""

    def ensure_alive(self) -> None:
        """Open the connection if it is not open; open it anew if it has died while it was idle."""
        if self.wrapper.connection is None:
            self.connect()

    def connect(self) -> None:
        """Open the connection; raise ``DatabaseUnavailableError`` with the driver's reason."""
        try:
            self.wrapper.ensure_connection()
        except SynchronousOnlyOperation as error:
            raise AgentDbError(
                "A DjangoDb was first used inside a running event loop, which it would block. "
                "Use agentdb.connect_async(), or call it in a thread."
            ) from error
        except ImproperlyConfigured as error:
            raise self.unavailable(error) from error
        except self.errors as error:
            raise self.unavailable(error) from driver_error(error)

    def unavailable(self, error: BaseException) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(f"{self.describe()} is unavailable: {self.reason(error)}.")

    def reason(self, error: BaseException) -> str:
        """Return the driver's words on one line, without the password."""
        words = " ".join(str(error).split()).rstrip(".")
        password = self.wrapper.settings_dict.get("PASSWORD")
        return words.replace(password, "***") if password else words

    def disconnect(self) -> None:
        """Drop the connection, in whatever state it is."""
        raw = self.wrapper.connection
        if raw is None:
            return
        if self.wrapper.in_atomic_block:
            # Django opens a new connection once the transaction has ended, and not in the middle of it.
            self.wrapper.closed_in_transaction = True
            self.wrapper.needs_rollback = True
        else:
            self.wrapper.connection = None
        raw.close()

    def prepare_nothing(self) -> None:
        """Use no prepared statements from now on, where the driver has any."""
        return

    def instrumented(self) -> bool:
        """Whether somebody watches Django's cursor: ``assertNumQueries``, a debug toolbar, ``execute_wrapper``."""
        return bool(self.wrapper.execute_wrappers) or self.wrapper.force_debug_cursor or self._debug


def open_channel(wrapper: BaseDatabaseWrapper) -> Channel:
    """Return the channel for a connection of any of the three engines."""
    if not settings.USE_TZ or wrapper.settings_dict["TIME_ZONE"] not in (None, "UTC"):
        # SQLite would hold the project's local times beside UTC, as text that looks the same.
        raise AgentDbError(
            f"The database alias {wrapper.alias!r} does not keep its timestamps in UTC. "
            "Set USE_TZ = True, and no TIME_ZONE in its entry of DATABASES."
        )
    if wrapper.vendor == "sqlite":
        return SqliteChannel(wrapper)
    if wrapper.vendor in ("postgresql", "cockroachdb"):
        from agentdb.channel_postgres import PostgresChannel

        return PostgresChannel(wrapper)
    raise AgentDbError(f"agentdb does not know the engine {wrapper.vendor!r} of the alias {wrapper.alias!r}.")


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error behind one of Django's."""
    if isinstance(error, django.db.Error) and error.__cause__ is not None:
        return error.__cause__
    return error


_SQLITE_MISMATCHES = (
    "SQLITE_CONSTRAINT_CHECK",
    "SQLITE_CONSTRAINT_FOREIGNKEY",
    "SQLITE_CONSTRAINT_NOTNULL",
    "SQLITE_MISMATCH",
)
_SQLITE_MISSING = ("no such table", "no such column", "has no column named", "ON CONFLICT clause does not match")


class SqliteChannel(Channel):
    errors = (sqlite3.Error, sqlite3.Warning, django.db.Error)
    aborts_on_error = False

    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        if self.wrapper.connection is None:
            self.connect()
        if self.instrumented():
            cursor = self.wrapper.cursor()
            # Django's own cursor takes its own placeholders, and so does what logs the SQL.
            cursor.execute(sql.replace("%", "%%").replace("?", "%s"), params)
            return cursor
        return self.wrapper.connection.execute(sql, params)

    def fault(self, error: BaseException) -> Fault:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
            return Fault.DUPLICATE
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return Fault.LOCKED
        if name in _SQLITE_MISMATCHES or (name == "SQLITE_ERROR" and any(w in str(error) for w in _SQLITE_MISSING)):
            return Fault.MISMATCH
        if name.startswith(
            ("SQLITE_CANTOPEN", "SQLITE_CORRUPT", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOTADB", "SQLITE_READONLY")
        ) or isinstance(error, sqlite3.ProgrammingError):
            return Fault.UNAVAILABLE
        return Fault.OTHER

    def describe(self) -> str:
        return f"SQLite database {str(self.wrapper.settings_dict['NAME'])!r}"


def readability(file_descriptor: int) -> Callable[[], bool]:
    """Return a function that says, without waiting, whether there is something to read."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: bool(select.select([file_descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(file_descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))
