"""Connections to SQLite."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import django.db
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import (
    AgentDbError,
    DatabaseUnavailableError,
    OutcomeUnknownError,
    SchemaOutOfDateError,
)
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.migration_record import pending_migrations
from agentdb.serving.connections.base import Connection, Engine
from agentdb.serving.turns import Turn, Turns, turns_of
from agentdb.sqlite_files import (
    close_kept_open,
    descriptors,
    file_uri,
    identity,
    shared_file_system,
)

# By descriptor, the files that a fork left open in this process. SQLite believes it holds locks on them that the parent
# holds. Its list of open files is per process and hidden, but each file on it has a descriptor.
_left_open: dict[int, tuple[int, int]] = {}


def note_left_open(names: Iterable[object]) -> None:
    """In the child of a fork, note which of these files are still open."""
    close_kept_open()
    files = {identity(str(name)) for name in names}
    _left_open.clear()
    for number in descriptors():
        file = identity(number)
        if file is not None and file in files:
            _left_open[number] = file


def _is_left_open(name: str) -> bool:
    """Return whether the file is still open on a descriptor of the parent."""
    file = identity(name)
    numbers = [number for number, known in _left_open.items() if known == file]
    # A number may have been closed since, and given to another file.
    return any(identity(number) == file for number in numbers)


class Place(NamedTuple):
    """The files at a path, each as device and inode, or None if absent."""

    file: tuple[int, int] | None
    log: tuple[int, int] | None  # of the commits that are not in the file yet
    shm: tuple[int, int] | None  # the index of the log

    @classmethod
    def of(cls, path: str, real: str) -> Place:
        """Read them; ``real`` is the path without links, which SQLite resolves before it names the other files."""
        return cls(
            file=identity(path),
            log=identity(f"{real}-wal"),
            shm=identity(f"{real}-shm"),
        )


def _is_gone(path: str) -> bool:
    """Whether there is certainly no file; False too if one may not look, or the disk is away."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass  # it may be there
    return False


# Seconds between two checks of the path for reads; a write checks each time, the folder first.
_LOOK_SECONDS = 0.1
_TICK_NANOSECONDS = 100_000_000


def _state_of(folder: str) -> tuple[int, int] | None:
    """Return the inode of the folder and its modification time in ns."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class SqliteEngine(Engine):
    errors = (sqlite3.Error, sqlite3.Warning, django.db.Error)
    has_server = False

    def __init__(self, wrapper: BaseDatabaseWrapper, *, owned: bool) -> None:
        super().__init__(wrapper, owned=owned)
        self.place: Place | None = None  # when a connection last opened it
        self.turns: Turns | None = None
        self.is_in_memory = sqlite_path(wrapper) is None
        if not self.is_in_memory:
            self.turns = turns_of(self.name)
        options = self.settings["OPTIONS"]
        self.busy_seconds: float = options.get("timeout", 5.0)

    @property
    def name(self) -> str:
        return str(self.settings["NAME"])

    def describe(self) -> str:
        return f"SQLite database {self.name!r}"

    def seconds_to_open(self, timeout_seconds: float) -> float:
        # SQLite itself waits as long, but not for another transaction to end if it gives the file a write-ahead log.
        return self.busy_seconds

    def take_turn(self) -> Turn | None:
        if self.turns is None:
            return None
        return self.turns.take(self.busy_seconds)

    def connection(self, wrapper: BaseDatabaseWrapper) -> SqliteConnection:
        return SqliteConnection(self, wrapper)

    @contextmanager
    def opening(
        self,
        wrapper: BaseDatabaseWrapper,
        limit: float | None,
    ) -> Iterator[None]:
        """Let the body open the file at the path, but create none.

        Raises ``DatabaseUnavailableError`` if the file is not the one that was open before, and ``AgentDbError`` if a
        fork left it open.
        """
        if self.is_in_memory or self.name.startswith("file:"):
            yield
            return
        self.refuse_displaced()
        if _is_left_open(self.name):
            raise AgentDbError(
                f"{self.describe()} was open on another connection, or in a transaction, when this process was forked. "
                "SQLite cannot use the file here without losing writes. Close that connection before the fork, or "
                "start the process with 'spawn'."
            )
        # SQLite takes mode=rw only in a URI, while NAME is a path, which messages show. So the parameters are changed
        # for this one call. mode=rw makes SQLite fail for a missing file; a check before opening would leave a moment
        # in between.
        params = wrapper.get_connection_params()
        # SQLite would create an empty file for a misspelt or removed one.
        params["database"] = file_uri(self.name, "mode=rw")
        wrapper.get_connection_params = lambda: params  # type: ignore[method-assign]
        try:
            yield
        finally:
            del wrapper.get_connection_params

    def renew(self, raw: Any) -> bool:
        """Reset a connection to a database in memory; others are reopened."""
        if not self.is_in_memory:
            return False
        try:
            raw.rollback()
            raw.isolation_level = None
        except sqlite3.Error:
            return False
        return True

    def refuse_displaced(self) -> None:
        known = self.place
        if known is None or known.file is None:
            return
        if _is_gone(self.name):
            raise DatabaseUnavailableError(self.is_missing())
        # A restored or copied file over the old one, while the old log is still beside it.
        now = Place.of(self.name, os.path.realpath(self.name))
        is_same_log = known.log is not None and now.log == known.log
        if now.file != known.file and is_same_log:
            # SQLite would write the log's pages into it.
            raise DatabaseUnavailableError(self.is_another())

    def is_missing(self) -> str:
        return (
            f"{self.describe()} was removed or moved while it was open. Stop every program that uses it, put the file "
            "back, and start them again."
        )

    def is_another(self) -> str:
        log = f"{os.path.realpath(self.name)}-wal"
        return (
            f"Another file took the place of {self.describe()} while it was open. Stop every program that uses it, "
            f"move {log!r}, which belongs to the file that was there before, out of the way, and start them again."
        )


class SqliteConnection(Connection):
    engine: SqliteEngine

    def __init__(self, engine: SqliteEngine, wrapper: BaseDatabaseWrapper) -> None:
        super().__init__(engine, wrapper)
        # A proxy passes for the driver's class with isinstance().
        self.is_traced = not issubclass(type(self.raw), sqlite3.Connection)
        self._is_file = not engine.is_in_memory
        self._path = os.path.abspath(engine.name)  # the program may change its folder
        self._real = os.path.realpath(self._path)
        # The log and its index are noted at a look, because SQLite may make them later.
        self._known = Place(file=identity(self._path), log=None, shm=None)
        self._looked = 0.0  # when, on the monotonic clock
        self._folder = os.path.dirname(self._path)
        self._folder_state: tuple[int, int] | None = None  # at that look
        # SQLite's number of the schema, counted up by each change.
        self._schema: int | None = None
        if self._is_file:
            engine.place = Place.of(self._path, self._real)

    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        if self.instrumented():
            # Django's cursor and query log expect Django's placeholders.
            doubled = sql.replace("%", "%%")
            for_django = doubled.replace("?", "%s")
            cursor = self.wrapper.cursor()
            cursor.execute(for_django, params)
            return cursor
        return self.raw.execute(sql, params)

    def is_at_hand(self, *, writing: bool) -> bool:
        # A read within a tenth of a second of the last look is let through: what it may miss is what it would also
        # miss if the file were moved a moment later. A write is checked again after its COMMIT.
        is_seen = time.monotonic() - self._looked < _LOOK_SECONDS
        return (is_seen or not self._is_file) and self.is_clean()

    def write(self, run: Callable[[Connection], Any]) -> Any:
        engine = self.engine
        if engine.turns is None:
            return run(self)
        return engine.turns.write(
            self,
            run,
            engine.busy_seconds,
            # Instrumentation of this connection must see the statement.
            apart=self.instrumented(),
        )

    def is_clean(self) -> bool:
        try:
            # Without an isolation level sqlite3 begins no transaction by itself, as Django's autocommit wants it.
            return not self.raw.in_transaction and self.raw.isolation_level is None
        except sqlite3.ProgrammingError:  # it is closed
            return False

    def is_alive(self) -> bool:
        self.look()
        return True

    def in_transaction(self) -> bool:
        return bool(self.raw.in_transaction)

    def begin(self) -> None:
        mode = self.wrapper.transaction_mode or ""  # type: ignore[attr-defined]
        self.raw.execute(f"BEGIN {mode}")
        self._refuse_old_schema()

    def commit(self) -> None:
        # Before: nothing is stored yet, so a file that was moved is a clean error. After: it may have been moved
        # while COMMIT ran, and then the outcome is unknown.
        self.look()
        super().commit()
        self.confirm()

    def look(self) -> None:
        """Raise if the path no longer names the open file, where the next write would be lost.

        SQLite itself would write on, into a file without a name (https://sqlite.org/howtocorrupt.html, 2.4).
        """
        if self._is_unchanged():
            return
        if not self.raw.in_transaction:
            # Opens the log and its index, which then stay the same until the last process closes the file.
            self._refuse_old_schema()
        problem = self._displaced()
        if problem:
            raise DatabaseUnavailableError(problem)

    def _is_unchanged(self) -> bool:
        """Return whether the folder is unchanged since a recent check, or there is no file."""
        if not self._is_file:
            return True
        is_recent = time.monotonic() - self._looked <= _LOOK_SECONDS
        known = self._folder_state
        return is_recent and known is not None and _state_of(self._folder) == known

    def _refuse_old_schema(self) -> None:
        """Raise if migrations were reversed: SQLite prepares again, and text columns accept any value."""
        [(schema,)] = self.raw.execute("PRAGMA schema_version").fetchall()
        if schema == self._schema:
            return
        # At the first look there is nothing to compare with.
        if self._schema is not None:
            pending = pending_migrations(self.wrapper)
            if pending:
                names = ", ".join(pending)
                raise SchemaOutOfDateError(
                    f"{self.engine.describe()} lacks the migrations {names}. Run 'agentdb migrate'.",
                    pending=tuple(pending),
                )
        self._schema = schema

    def confirm(self) -> None:
        """Raise ``OutcomeUnknownError`` if the last write went into a file that is no longer at the path."""
        if self._is_unchanged():
            return
        problem = self._displaced()
        if problem:
            raise OutcomeUnknownError(
                f"{problem} The last write went into the file that was open."
            )

    def _displaced(self) -> str:
        """Return what is wrong with the files at the path, or ''."""
        # First forget what is known: an exception in the middle must not let the old answer count.
        self._looked = 0.0
        self._folder_state = None
        # The folder before the files, so that a change in between shows at the next check.
        folder = _state_of(self._folder)
        wall_clock = time.time_ns()
        known = self._known
        now = Place.of(self._path, self._real)
        # The log and its index are made by the first write, so they may appear later, but never change.
        if known.log is None:
            known = known._replace(log=now.log)
        if known.shm is None:
            known = known._replace(shm=now.shm)
        if now != known:
            return self._difference(known, now)
        self._known = known
        self.engine.place = known
        self._looked = time.monotonic()
        if folder is not None:
            _, changed = folder
            # A second change within one tick of the file system's clock would not show.
            if wall_clock - changed > _TICK_NANOSECONDS:
                self._folder_state = folder
        return ""

    def _difference(self, known: Place, now: Place) -> str:
        """Return what a user should know and do about files that changed, or '' if it does no harm."""
        if now.file is None:
            if not _is_gone(self._path):
                return ""
            return self.engine.is_missing()
        if shared_file_system(self._path):
            return ""  # the numbers of a file may change there
        if now.file != known.file:
            # Nobody may open the file that is there now with this one's log.
            self.engine.place = known._replace(log=now.log)
            return self.engine.is_another()
        log = f"{self._real}-wal"
        return (
            f"The write-ahead log {log!r}, or its index, was removed while {self.engine.describe()} was open. "
            "Commits that only it held may be missing. Stop every program that uses the file, and start them again."
        )
