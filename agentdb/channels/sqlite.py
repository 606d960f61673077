"""The channel of SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import django.db

from agentdb.channels.base import Channel, Fault
from agentdb.errors import AgentDbError


class _Carried:
    """The files that a fork left open in this process. SQLite takes their locks for held, which only the parent holds.

    Its list of open files is per process and cannot be asked, but what is on it has a file descriptor.
    """

    def __init__(self) -> None:
        self._left_open: dict[int, tuple[int, int]] = {}

    def look(self, names: Iterable[object]) -> None:
        """In the child of a fork: note which of these files are open still."""
        files = {file for name in names if (file := _identity(str(name))) is not None}
        self._left_open = {number: file for number in _descriptors() if (file := _identity(number)) in files}

    def is_open(self, name: object) -> bool:
        """Whether the file is still open on a descriptor of the parent's."""
        if not self._left_open:
            return False
        file = _identity(str(name))
        return any(known == file and _identity(number) == file for number, known in self._left_open.items())


def _identity(file: str | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]  # Linux, macOS and the BSDs have it
    except OSError:
        return []


carried = _Carried()

_MISMATCHES = (
    "SQLITE_CONSTRAINT_CHECK",
    "SQLITE_CONSTRAINT_FOREIGNKEY",
    "SQLITE_CONSTRAINT_NOTNULL",
    "SQLITE_MISMATCH",
)
_MISSING = ("no such table", "no such column", "has no column named", "ON CONFLICT clause does not match")


class SqliteChannel(Channel):
    errors = (sqlite3.Error, sqlite3.Warning, django.db.Error)
    aborts_on_error = False

    def execute(self, sql: str, params: Sequence[Any]) -> Any:
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

    def begin(self) -> None:
        raw = self.wrapper.connection
        raw.execute(f"BEGIN {self.wrapper.transaction_mode or ''}")  # type: ignore[attr-defined]

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

    def connect(self) -> None:
        if self.wrapper.connection is None and carried.is_open(self.wrapper.settings_dict["NAME"]):
            raise AgentDbError(
                f"{self.describe()} was open on another connection, or in a transaction, when this process was forked. "
                "SQLite cannot use the file here without losing writes. Close that connection before the fork, or "
                "start the process with 'spawn'."
            )
        super().connect()

    def fault(self, error: BaseException) -> Fault:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
            return Fault.DUPLICATE
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return Fault.LOCKED
        if name in _MISMATCHES or (name == "SQLITE_ERROR" and any(w in str(error) for w in _MISSING)):
            return Fault.MISMATCH
        if name.startswith(
            ("SQLITE_CANTOPEN", "SQLITE_CORRUPT", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOTADB", "SQLITE_READONLY")
        ) or isinstance(error, sqlite3.ProgrammingError):
            return Fault.UNAVAILABLE
        return Fault.OTHER

    def describe(self) -> str:
        return f"SQLite database {str(self.wrapper.settings_dict['NAME'])!r}"
