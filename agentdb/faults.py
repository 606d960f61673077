"""The meaning of a driver's error, and the sentence for it, for calls, commands and the console.

The only module that reads PostgreSQL's SQLSTATE and SQLite's error names. It recognises drivers by the attributes of
their errors, so that SQLite users need not import psycopg.
"""

from __future__ import annotations

import os
import re
from enum import Enum, auto
from typing import TYPE_CHECKING

from agentdb.conf import server_name
from agentdb.errors import (
    AgentDbError,
    ConflictError,
    DatabaseUnavailableError,
    DuplicateKeyError,
    OutcomeUnknownError,
    SchemaMismatchError,
)
from agentdb.wording import uncapitalized

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


class Fault(Enum):
    """The meaning of a driver's error for a caller."""

    # One member for each case in which the caller, the retry or the sentence differs; not one for each error.
    DUPLICATE = auto()
    # Another writer was in the way; worth another try. LOCKED after the engine has waited as long as it may.
    CONFLICT = auto()
    LOCKED = auto()
    # The prepared statement no longer fits the table; the server does not know it, or another of its name.
    STALE_STATEMENT = auto()
    STATEMENT_GONE = auto()
    # The connection is gone; it was given up because no answer came in time.
    LOST = auto()
    SILENT = auto()
    # The answer to a write did not come; the write failed so late that it may be stored.
    UNANSWERED = auto()
    UNSURE = auto()
    # A table, column or constraint is missing, of another type, or not agentdb's.
    MISMATCH = auto()
    # A stored value that Python cannot hold; a given value that the server cannot store, convert or compare.
    UNREADABLE = auto()
    BAD_VALUE = auto()
    # The role may not do this; the statement took longer than it may.
    FORBIDDEN = auto()
    CUT_OFF = auto()
    # A SQLite file.
    NOT_OPENED = auto()
    NOT_A_DATABASE = auto()
    DAMAGED = auto()
    READ_ONLY = auto()
    FULL = auto()
    UNAVAILABLE = auto()
    OTHER = auto()


# The server rejected these as a whole, so a retry is safe. After a lost connection it is not: the statement may have
# run.
REFUSED = (Fault.CONFLICT, Fault.STALE_STATEMENT, Fault.STATEMENT_GONE)

# After these the connection is not used again: it is gone, or has statements that must be prepared again.
NOT_KEPT = (
    Fault.LOST,
    Fault.SILENT,
    Fault.UNANSWERED,
    Fault.UNSURE,
    Fault.STALE_STATEMENT,
    Fault.STATEMENT_GONE,
)

# Before _BY_CLASS: the exact codes that mean something else than their class does.
_BY_STATE = {
    "08007": Fault.UNANSWERED,  # transaction_resolution_unknown
    "40003": Fault.UNANSWERED,  # CockroachDB's statement_completion_unknown
    "23505": Fault.DUPLICATE,
    "40001": Fault.CONFLICT,
    "40P01": Fault.CONFLICT,  # a deadlock
    "55P03": Fault.LOCKED,
    # A pooler handed this connection another server's session, which has other prepared statements.
    "26000": Fault.STATEMENT_GONE,
    "42P05": Fault.STATEMENT_GONE,
    "42501": Fault.FORBIDDEN,
    "57014": Fault.CUT_OFF,
    "25006": Fault.READ_ONLY,
    "53100": Fault.FULL,
    # The column's type refuses a value that the migrations' tables accept.
    "22P02": Fault.MISMATCH,
    "22001": Fault.MISMATCH,
    # With these the server ends the connection, which may not have arrived here yet.
    **dict.fromkeys(("25P03", "25P04", "57P01", "57P02", "57P03", "57P05"), Fault.LOST),
}
# agentdb's own, by name: importing them from connections/ would import Django and a driver.
_BY_TYPE = {
    "CallTimeout": Fault.SILENT,
    "NotReplicated": Fault.UNSURE,
}
_BY_CLASS = {
    "08": Fault.LOST,
    "22": Fault.BAD_VALUE,
    "23": Fault.MISMATCH,
    "42": Fault.MISMATCH,
}
# The code, 0A000, is that of any feature that is not supported. With these words it means that a table was altered
# after a statement on it was prepared.
_STALE_PLAN = "cached plan must not change result type"

# What SQLite calls an error, how its words begin, which are the same in every language, and what it means. Other builds
# of ``sqlite3``, in the standard one's place, have errors without a name, or with the name of the family alone.
_OF_SQLITE = [
    ("SQLITE_CONSTRAINT_PRIMARYKEY", "UNIQUE constraint failed", Fault.DUPLICATE),
    ("SQLITE_CONSTRAINT_UNIQUE", "UNIQUE constraint failed", Fault.DUPLICATE),
    ("SQLITE_CONSTRAINT_CHECK", "CHECK constraint failed", Fault.MISMATCH),
    ("SQLITE_CONSTRAINT_FOREIGNKEY", "FOREIGN KEY constraint failed", Fault.MISMATCH),
    ("SQLITE_CONSTRAINT_NOTNULL", "NOT NULL constraint failed", Fault.MISMATCH),
    ("SQLITE_MISMATCH", "datatype mismatch", Fault.MISMATCH),
    ("SQLITE_INTERRUPT", "interrupted", Fault.CUT_OFF),
    ("SQLITE_BUSY", "database is locked", Fault.LOCKED),
    ("SQLITE_LOCKED", "database table is locked", Fault.LOCKED),
    ("SQLITE_LOCKED", "database schema is locked", Fault.LOCKED),
    ("SQLITE_NOTADB", "file is not a database", Fault.NOT_A_DATABASE),
    ("SQLITE_CORRUPT", "database disk image is malformed", Fault.DAMAGED),
    ("SQLITE_CORRUPT", "malformed database schema", Fault.DAMAGED),
    ("SQLITE_READONLY", "attempt to write a readonly database", Fault.READ_ONLY),
    ("SQLITE_FULL", "database or disk is full", Fault.FULL),
    ("SQLITE_CANTOPEN", "unable to open database file", Fault.NOT_OPENED),
    # What was written before a sync failed may be found after a crash.
    ("SQLITE_IOERR", "disk I/O error", Fault.UNSURE),
]
# Errors without a name in SQLite.
_MISSING = (
    "no such table",
    "no such column",
    "has no column named",
    "ON CONFLICT clause does not match",
)

# Messages of a server that waiting cannot change. Connection errors have no SQLSTATE; CockroachDB has the same texts.
# So a message in another language counts as one to wait for: a slower error, and no wrong one.
_FINAL = (
    "does not exist",
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "permission denied",
    "is not permitted to log in",
    "invalid ",
    "bad value for",
    "definition of service",
    "does not support SSL",
    "root certificate",
    "or later is required",  # Django's message for a server that is too old
)
# Messages of PostgreSQL and PgBouncer.
_NO_CONNECTION_LEFT = (
    "too many clients",
    "too many connections",
    "connection slots are reserved",
    "no more connections",
)


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's error behind Django's."""
    is_djangos = type(error).__module__ == "django.db.utils"
    return error.__cause__ if is_djangos and error.__cause__ is not None else error


def classify(error: BaseException, *, connected: bool = True) -> Fault:
    """Return the meaning of the error; ``connected``: whether the driver's connection is still open."""
    import sqlite3  # here, so that importing agentdb loads no driver

    error = driver_error(error)
    # A Warning too: Python 3.11 raises one for two statements in a string, and it is not an Error.
    if isinstance(error, sqlite3.Error | sqlite3.Warning):
        return _classify_sqlite(error)
    if known := _BY_TYPE.get(type(error).__name__):
        return known
    if (known := _by_state(error)) is not None:
        return known
    # Without a code the server said nothing: libpq noticed that the connection is gone, or psycopg refused by itself.
    if not connected:
        return Fault.LOST
    return Fault.UNAVAILABLE if _is_a(error, "OperationalError") else Fault.OTHER


def _by_state(error: BaseException) -> Fault | None:
    state = _sqlstate(error)
    if not state:
        # psycopg's own, when it reads a value.
        return Fault.UNREADABLE if _is_a(error, "DataError") else None
    if state == "0A000" and _STALE_PLAN in str(error):
        return Fault.STALE_STATEMENT
    return _BY_STATE.get(state) or _BY_CLASS.get(state[:2])


def _classify_sqlite(error: BaseException) -> Fault:
    name = getattr(error, "sqlite_errorname", None) or ""
    words = str(error)
    # By the name if there is a whole one: a trigger or a function says what its author wants, which may be SQLite's
    # words.
    for known, beginning, fault in _OF_SQLITE:
        is_family = known.startswith(name) and words.startswith(beginning)
        if is_family or name.startswith(known):
            return fault
    return _by_words(error) if name in ("", "SQLITE_ERROR") else Fault.OTHER


def _by_words(error: BaseException) -> Fault:
    """Return what an error means for which SQLite has no name, or which is sqlite3's own."""
    words = str(error)
    if words.startswith("Could not decode to UTF-8"):
        return Fault.UNREADABLE
    if any(each in words for each in _MISSING):
        return Fault.MISMATCH
    return Fault.UNAVAILABLE if _is_a(error, "ProgrammingError") else Fault.OTHER


def _sqlstate(error: BaseException) -> str:
    return getattr(error, "sqlstate", None) or ""


def _is_a(error: BaseException, name: str) -> bool:
    # By name, so that psycopg need not be imported to recognise its errors.
    return any(kind.__name__ == name for kind in type(error).__mro__)


def said_by_server(error: BaseException) -> bool:
    """Return whether the server itself sent the error, so that it has rolled back."""
    return bool(_sqlstate(driver_error(error)))


def exists_already(error: BaseException) -> bool:
    """Return whether a server refused to create a table, an index or a column because there is one of that name."""
    return _sqlstate(driver_error(error)) in ("42P07", "42701")


def is_final(error: BaseException) -> bool:
    """Return whether connecting failed for a reason that waiting cannot change."""
    return any(words in str(error) for words in _FINAL)


def is_missing_table(error: BaseException, table: str) -> bool:
    """Return whether the error says that the table does not exist."""
    error = driver_error(error)
    return _sqlstate(error) == "42P01" or f"no such table: {table}" in str(error)


def needs_another_program(error: BaseException) -> bool:
    """Return whether a table of a SQLite file needs a function or a collation that only the operator's program has."""
    words = ("unknown function", "no such function", "no such collation")
    return str(driver_error(error)).startswith(words)


# -- the reason


def one_line(error: BaseException, password: object = None, path: object = None) -> str:
    """Return the driver's message on one line, without the password; ``path`` is a SQLite file's."""
    error = driver_error(error)
    # Only the first line of a server's message: the details quote whole rows.
    diagnosis = getattr(error, "diag", None)
    message = getattr(diagnosis, "message_primary", None) or str(error)
    words = " ".join(message.split()).rstrip(".")
    words = re.sub(r" Is the server running [^?]*\?", "", words)
    if password:
        words = words.replace(str(password), "***")
    return words + _why_not_opened(error, path)


def _why_not_opened(error: BaseException, path: object) -> str:
    """Return ": " and the cause if SQLite could not open a file or write to it: its message is always the same."""
    if not path or classify(error) not in (Fault.NOT_OPENED, Fault.READ_ONLY):
        return ""
    cause = _no_place_for(str(path))
    return f": {cause}" if cause else ""


def _no_place_for(path: str) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    # Not the methods of Path: before Python 3.13 they raise an error in a folder that this user may not enter.
    if os.path.isdir(path):
        return "it is a folder"
    if not os.path.isdir(folder):
        return f"the folder {folder!r} does not exist"
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        return "this user may not read and write it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder!r} cannot be written to"
    return ""


def _brief(error: BaseException) -> str:
    """Return what the driver says in a few words, for the middle of a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = lines[0]
    for line in lines:
        # With several addresses libpq has a line for each; the server's own message follows the last "FATAL:".
        _, fatal, after = line.rpartition("FATAL:")
        if fatal and after.strip():
            words = after
            break  # the next may be of an attempt without encryption, which a server may refuse to anybody
    _, _, words = words.rpartition("failed: ")
    return uncapitalized(words.strip().rstrip("."))


# -- the sentence of a call


def explain(fault: Fault, place: str, reason: str) -> AgentDbError:
    """Return the error for a call: the place, the meaning, the driver's reason, and the next command."""
    if any(words in reason for words in _NO_CONNECTION_LEFT):
        reason = (
            f"{reason}. Each thread that calls keeps a connection: let fewer call, cap them with ?max_connections= in "
            "the URL, or raise the server's limit"
        )
    # A table and not a chain of conditions: each meaning has one sentence, to be read side by side with the others.
    kind, sentence = _SENTENCES.get(fault, _UNAVAILABLE)
    return kind(sentence.format(place=place, reason=reason))


_Sentence = tuple[type[AgentDbError], str]
_CONFLICT: _Sentence = (
    ConflictError,
    "Other writers of {place} were in the way: {reason}.",
)
_LOST: _Sentence = (
    DatabaseUnavailableError,
    "{place} dropped the connection: {reason}.",
)
_REFUSED: _Sentence = (AgentDbError, "{place} refused the statement: {reason}.")
_UNAVAILABLE: _Sentence = (
    DatabaseUnavailableError,
    "{place} is unavailable: {reason}.",
)
_SENTENCES: dict[Fault, _Sentence] = {
    Fault.DUPLICATE: (
        DuplicateKeyError,
        "The key is taken in {place}: {reason}.",
    ),
    **dict.fromkeys(REFUSED, _CONFLICT),
    Fault.LOCKED: (
        ConflictError,
        "Another connection, of this process or another, holds {place} locked: {reason}.",
    ),
    Fault.MISMATCH: (
        SchemaMismatchError,
        "{place} does not have the tables agentdb works on: {reason}. Run 'agentdb verifydb'.",
    ),
    Fault.UNREADABLE: (
        SchemaMismatchError,
        "{place} holds a value that cannot be read: {reason}. Correct it; 'agentdb verifydb' finds others.",
    ),
    Fault.LOST: _LOST,
    Fault.SILENT: _LOST,
    Fault.UNANSWERED: (
        OutcomeUnknownError,
        "{place} did not answer before the connection was lost: {reason}. "
        "The write may be stored or not: read, then decide.",
    ),
    Fault.UNSURE: (
        OutcomeUnknownError,
        "{place} failed while it stored the write: {reason}. The write may be stored or not: read, then decide.",
    ),
    Fault.BAD_VALUE: _REFUSED,
    Fault.OTHER: _REFUSED,
}


# -- the sentence of a command


def describe_failure(connection: BaseDatabaseWrapper, error: BaseException) -> str:
    """Return what went wrong and what to do, without a password."""
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return describe_sqlite_failure(settings["NAME"], error)
    fault = classify(error)
    sentence = "The database {name} cannot be reached: {reason}."
    # "Cannot be reached" would send an operator to the network, when a server that was reached has refused.
    if fault in _OF_A_SERVER:
        sentence = _OF_A_SERVER[fault]
    elif connection.connection and said_by_server(error) and fault is not Fault.LOST:
        sentence = "The database {name} cannot be used: {reason}."
    return sentence.format(
        name=server_name(settings),
        role=settings["USER"] or "used",
        reason=_brief(error),
    )


_OF_A_SERVER = {
    Fault.FORBIDDEN: "The role {role!r} may not do this in {name}: {reason}. Use the role that owns the tables.",
    Fault.LOCKED: "The tables in {name} are in use by a transaction that does not end. Stop the programs that use "
    "them, and try again.",
}


def describe_sqlite_failure(path: object, error: BaseException) -> str:
    """Return the same for a SQLite file."""
    fault = classify(error)
    reason = _brief(error) + _why_not_opened(driver_error(error), path)
    # Perhaps another build of SQLite can read it, so do not advise to restore a backup.
    if fault is Fault.DAMAGED and reason.startswith("malformed database schema"):
        fault = Fault.UNAVAILABLE
    return describe_file(fault, path, reason)


def describe_file(fault: Fault, path: object, reason: str = "") -> str:
    """Return the sentence for a SQLite file of which that is known."""
    sentence = _OF_A_FILE.get(
        fault, "The database file {name!r} cannot be used: {reason}."
    )
    return sentence.format(name=str(path), reason=reason.rstrip("."))


_OF_A_FILE = {
    Fault.LOCKED: "The database file {name!r} is locked by another process. Stop the program that uses it, or wait, "
    "and try again.",
    Fault.NOT_A_DATABASE: "{name!r} is not a SQLite database, or it is encrypted. Check the database URL.",
    Fault.DAMAGED: "The database file {name!r} is damaged: {reason}. Restore a backup.",
    Fault.READ_ONLY: "The database file {name!r} is read-only. Allow writing to it and to its folder, and try again.",
    Fault.FULL: "No space is left on the disk of {name!r}. Free some space and try again.",
}
