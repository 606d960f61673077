"""The channel of SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import django.db
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, DatabaseUnavailableError
from agentdb.serving.connections.base import Channel
from agentdb.sqlite_files import close_kept_open, descriptors, identity, shared_file_system


class _Carried:
    """The files that a fork left open in this process. SQLite takes their locks for held, which only the parent holds.

    Its list of open files is per process and cannot be asked, but what is on it has a file descriptor.
    """

    def __init__(self) -> None:
        self._left_open: dict[int, tuple[int, int]] = {}

    def look(self, names: Iterable[object]) -> None:
        """In the child of a fork: note which of these files are open still."""
        close_kept_open()
        files = {file for name in names if (file := identity(str(name))) is not None}
        self._left_open = {number: file for number in descriptors() if (file := identity(number)) in files}

    def is_open(self, name: object) -> bool:
        """Whether the file is still open on a descriptor of the parent's."""
        if not self._left_open:
            return False
        file = identity(str(name))
        return any(known == file and identity(number) == file for number, known in self._left_open.items())


carried = _Carried()


class _Place(NamedTuple):
    """Which file and which write-ahead log are at a path, each as device and number; None where there is none."""

    file: tuple[int, int] | None
    log: tuple[int, int] | None

    @classmethod
    def of(cls, path: str) -> _Place:
        return cls(identity(path), identity(_log_of(path)))


def _log_of(path: str) -> str:
    return f"{os.path.realpath(path)}-wal"  # SQLite follows links first


def _is_gone(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass  # it may be there
    return False


# Seconds between two looks at what the path names: a look is a twentieth of a read.
_LOOK_SECONDS = 0.1


class SqliteChannel(Channel):
    errors = (sqlite3.Error, sqlite3.Warning, django.db.Error)
    aborts_on_error = False

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        super().__init__(wrapper)
        self._looked = 0.0  # when, on the monotonic clock
        self._looked_at: Any = None  # the connection, of which is known:
        self._path = ""  # absolute: the program may change its folder
        self._open = _Place(None, None)
        self._has_run = False  # a statement

    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        if self.began - self._looked > _LOOK_SECONDS and not self.wrapper.in_atomic_block:
            self._refuse_other_file()
            self._has_run = True
        raw = self.wrapper.connection
        if raw is None:
            self.connect()
            raw = self.wrapper.connection
        elif raw.in_transaction and not self.wrapper.in_atomic_block and self.wrapper.autocommit:
            # Begun by a call that an exception from nowhere cut off: what follows would never be committed.
            raw.rollback()
        if self.instrumented():
            cursor = self.wrapper.cursor()
            # Django's own cursor takes its own placeholders, and so does what logs the SQL.
            cursor.execute(sql.replace("%", "%%").replace("?", "%s"), params)
            return cursor
        return raw.execute(sql, params)

    def traced(self) -> bool:
        # Its proxy passes for the driver's class with isinstance().
        return not issubclass(type(self.wrapper.connection), sqlite3.Connection)

    def begin(self) -> None:
        raw = self.wrapper.connection
        raw.execute(f"BEGIN {self.wrapper.transaction_mode or ''}")  # type: ignore[attr-defined]
        self._has_run = True

    def commit(self) -> None:
        self.wrapper.connection.commit()

    def at_rest(self, raw: Any) -> bool:
        return not raw.in_transaction

    def spoiled(self, raw: Any) -> bool:
        return not raw.in_transaction

    def abandon(self, raw: Any) -> None:
        try:
            raw.rollback()
        except sqlite3.Error:
            raw.close()
            return
        # The connection is all that there is of a database in memory.
        self.wrapper.connection, self.wrapper.autocommit = raw, True

    def ensure_alive(self) -> None:
        self._refuse_other_file()
        super().ensure_alive()

    def _refuse_other_file(self) -> None:
        """Raise where the path no longer names the file that is open: what is written now would not be found there.

        SQLite itself goes on, in a file without a name (https://sqlite.org/howtocorrupt.html, 2.4).
        """
        raw, self._looked = self.wrapper.connection, self.began
        if raw is None:
            return
        if raw is not self._looked_at:
            self._remember(raw)
            return
        known, now = self._open, _Place.of(self._path)
        if known.log is None:
            if self._has_run:
                # From the first statement on the log stays the same, until the last process closes the file.
                self._remember(raw, now.log)
            known = known._replace(log=now.log)
        if now == known:
            return
        if now.file is None:
            if not _is_gone(self._path):
                return
            problem = self._is_missing()
        elif shared_file_system(self._path):
            return  # the numbers of a file may change there
        elif now.file != known.file:
            problem = self._is_another()
            self._remember(raw)  # and the log, which the file that is there now must not be opened with
        else:
            problem = (
                f"The write-ahead log {_log_of(self._path)!r} was removed while {self.describe()} was open. Commits "
                "that only it held may be missing. Stop every program that uses the file, and start them again."
            )
        self.disconnect()
        raise DatabaseUnavailableError(problem)

    def _is_missing(self) -> str:
        return (
            f"{self.describe()} was removed or moved while it was open. Stop every program that uses it, put the file "
            "back, and start them again."
        )

    def _is_another(self) -> str:
        return (
            f"Another file took the place of {self.describe()} while it was open. Stop every program that uses it, "
            f"move {_log_of(self._name)!r}, which belongs to the file that was there before, out of the way, and start "
            "them again."
        )

    @property
    def _name(self) -> str:
        return str(self.wrapper.settings_dict["NAME"])

    def _remember(self, raw: Any, log: tuple[int, int] | None = None) -> None:
        if raw is not self._looked_at:
            self._looked_at, self._has_run, self._path = raw, False, os.path.abspath(self._name)
            self._open = _Place(identity(self._path), None)
        # For the connections of other threads, which share the settings of the alias.
        left = self._open._replace(log=identity(_log_of(self._path)))
        self.wrapper.settings_dict.setdefault("AGENTDB", {})["place"] = left
        self._open = self._open._replace(log=log)

    def connect(self) -> None:
        known = self.wrapper.settings_dict.get("AGENTDB", {}).get("place")
        if known is not None and known.file is not None:
            if _is_gone(self._name):
                raise DatabaseUnavailableError(self._is_missing())  # SQLite would make an empty one
            now = _Place.of(self._name)
            if now.file != known.file and known.log is not None and now.log == known.log:
                raise DatabaseUnavailableError(self._is_another())  # SQLite would write the log's pages into it
        if self.wrapper.connection is None and carried.is_open(self._name):
            raise AgentDbError(
                f"{self.describe()} was open on another connection, or in a transaction, when this process was forked. "
                "SQLite cannot use the file here without losing writes. Close that connection before the fork, or "
                "start the process with 'spawn'."
            )
        super().connect()
        self._remember(self.wrapper.connection)

    def describe(self) -> str:
        return f"SQLite database {self._name!r}"
