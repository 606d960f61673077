"""The channel of SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import django.db

from agentdb.channels.base import Channel, Fault

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

    def at_rest(self, raw: Any) -> bool:
        return not raw.in_transaction

    def spoiled(self, raw: Any) -> bool:
        return not raw.in_transaction

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
