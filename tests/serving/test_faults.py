"""What a driver's error means, whoever asks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import django.db
import psycopg
import pytest

import agentdb
from agentdb import (
    AgentDbError,
    ConflictError,
    DatabaseUnavailableError,
    DuplicateKeyError,
    OutcomeUnknownError,
    SchemaMismatchError,
)
from agentdb.faults import (
    Fault,
    classify,
    describe_failure,
    describe_sqlite_failure,
    driver_error,
    exists_already,
    explain,
    is_final,
    is_missing_table,
    one_line,
    said_by_server,
)

PACKAGE = Path(agentdb.__file__).parent

SETUP = "CREATE TABLE t (id TEXT PRIMARY KEY, n INTEGER NOT NULL CHECK (n > 0), u TEXT UNIQUE)"
STATEMENTS = {
    "INSERT INTO t VALUES ('a', 1, 'v')": Fault.DUPLICATE,
    "INSERT INTO t VALUES ('b', 1, 'u')": Fault.DUPLICATE,
    "INSERT INTO t VALUES ('b', 0, 'v')": Fault.MISMATCH,
    "INSERT INTO t VALUES ('b', NULL, 'v')": Fault.MISMATCH,
    "INSERT INTO t (absent) VALUES (1)": Fault.MISMATCH,
    "SELECT * FROM nowhere": Fault.MISMATCH,
    "SELECT CAST(x'ff' AS TEXT)": Fault.UNREADABLE,
    "SELECT": Fault.OTHER,
}


def failure(connection: sqlite3.Connection, sql: str) -> sqlite3.Error:
    with pytest.raises(sqlite3.Error) as raised:
        connection.execute(sql).fetchall()
    return raised.value


@pytest.mark.parametrize(("sql", "fault"), STATEMENTS.items())
def test_sqlites_errors_mean_the_same_without_names(sql: str, fault: Fault) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(SETUP)
    connection.execute("INSERT INTO t VALUES ('a', 1, 'u')")
    error = failure(connection, sql)

    assert classify(error) is fault
    # As another build of the module raises it, in the standard one's place.
    assert classify(type(error)(*error.args)) is fault
    family = type(error)(*error.args)
    family.sqlite_errorname = (
        "SQLITE_CONSTRAINT" if isinstance(error, sqlite3.IntegrityError) else ""
    )
    assert classify(family) is fault


@pytest.mark.parametrize(
    "words", ["interrupted", "UNIQUE constraint failed: t.id", "database is locked"]
)
def test_a_trigger_may_say_what_its_author_wants(words: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(SETUP)
    connection.execute(
        f"CREATE TRIGGER guard BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, '{words}'); END"
    )

    assert (
        classify(failure(connection, "INSERT INTO t VALUES ('a', 1, 'u')"))
        is Fault.OTHER
    )


def test_a_function_or_a_virtual_table_may_say_what_its_author_wants() -> None:
    for words, name in (
        ("database is locked", "SQLITE_ERROR"),
        ("disk I/O error", "SQLITE_ERROR"),
        ("database is locked", "SQLITE_CONSTRAINT"),
        ("disk I/O error", "SQLITE_CONSTRAINT_VTAB"),
    ):
        error = sqlite3.OperationalError(words)
        error.sqlite_errorname = name
        assert classify(error) is Fault.OTHER


def test_sqlites_errors_of_other_words_are_known_by_their_names() -> None:
    for words, name, fault in (
        (
            "cannot commit transaction - SQL statements in progress",
            "SQLITE_BUSY",
            Fault.LOCKED,
        ),
        ("vtable constructor failed: f", "SQLITE_CORRUPT_VTAB", Fault.DAMAGED),
        ("unable to open database: x", "SQLITE_CANTOPEN", Fault.NOT_OPENED),
    ):
        error = sqlite3.OperationalError(words)
        error.sqlite_errorname = name
        assert classify(error) is fault


def test_a_locked_and_a_foreign_file_mean_the_same_without_names(
    tmp_path: Path,
) -> None:
    path = tmp_path / "db"
    with sqlite3.connect(path) as one:
        one.execute(SETUP)
        one.execute("BEGIN IMMEDIATE")
        locked = failure(
            sqlite3.connect(path, timeout=0), "INSERT INTO t VALUES ('b', 1, 'w')"
        )
        one.rollback()
    (tmp_path / "text").write_text("no database, " * 100)
    foreign = failure(sqlite3.connect(tmp_path / "text"), SETUP)

    assert (classify(locked), classify(type(locked)(*locked.args))) == (
        Fault.LOCKED,
        Fault.LOCKED,
    )
    assert (
        classify(foreign)
        is classify(type(foreign)(*foreign.args))
        is Fault.NOT_A_DATABASE
    )


def test_drivers_codes_are_read_in_one_place() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(
            word in path.read_text()
            for word in ("sqlstate", "sqlite_errorname", "sqlite_errorcode", "disk I/O")
        )
    }
    assert readers == {"faults.py"}


# -- of a server


def from_server(state: str, words: str = "no") -> psycopg.Error:
    return psycopg.errors.lookup(state)(words)


STATES = {
    "23505": Fault.DUPLICATE,
    "40001": Fault.CONFLICT,
    "40P01": Fault.CONFLICT,
    "55P03": Fault.LOCKED,
    "26000": Fault.STATEMENT_GONE,
    "42P05": Fault.STATEMENT_GONE,
    "42501": Fault.FORBIDDEN,
    "57014": Fault.CUT_OFF,
    "25006": Fault.READ_ONLY,
    "53100": Fault.FULL,
    "22P02": Fault.MISMATCH,
    "22001": Fault.MISMATCH,
    "57P01": Fault.LOST,
    "08006": Fault.LOST,
    "22003": Fault.BAD_VALUE,
    "23502": Fault.MISMATCH,
    "42P01": Fault.MISMATCH,
}


@pytest.mark.parametrize(("state", "fault"), STATES.items())
def test_a_servers_code_says_what_its_error_means(state: str, fault: Fault) -> None:
    error = from_server(state)
    djangos = django.db.DatabaseError()
    djangos.__cause__ = error

    assert classify(error) is classify(djangos) is fault
    assert classify(error, connected=False) is fault
    assert driver_error(djangos) is error
    assert said_by_server(error)
    assert said_by_server(djangos)


def test_an_error_that_the_server_did_not_send_means_what_the_connection_is() -> None:
    lost, other = psycopg.OperationalError("gone"), psycopg.ProgrammingError("wrong")

    assert classify(lost) is Fault.UNAVAILABLE
    assert classify(other) is Fault.OTHER
    assert classify(psycopg.DataError("year -44")) is Fault.UNREADABLE
    assert classify(psycopg.DataError("x"), connected=False) is Fault.UNREADABLE
    assert classify(lost, connected=False) is Fault.LOST
    assert classify(other, connected=False) is Fault.LOST
    assert not said_by_server(lost)
    alone = django.db.OperationalError("too old")
    assert driver_error(alone) is alone
    assert classify(alone) is Fault.UNAVAILABLE
    # A code that nobody knows.
    assert classify(from_server("XX000")) is Fault.OTHER
    assert classify(from_server("XX000"), connected=False) is Fault.LOST


def test_a_feature_that_is_not_supported_may_be_a_stale_plan() -> None:
    stale = from_server("0A000", "cached plan must not change result type")

    assert classify(stale) is Fault.STALE_STATEMENT
    assert classify(from_server("0A000", "cannot copy")) is Fault.OTHER


def test_what_is_there_already_and_what_is_missing_is_told_by_the_code() -> None:
    assert [
        state
        for state in ("42P07", "42701", "42P01", "23505")
        if exists_already(from_server(state))
    ] == ["42P07", "42701"]
    assert is_missing_table(from_server("42P01"), "agents")
    assert not is_missing_table(from_server("42703"), "agents")
    gone = sqlite3.OperationalError("no such table: agents")
    assert is_missing_table(gone, "agents")
    assert not is_missing_table(gone, "sessions")


@pytest.mark.parametrize(
    ("words", "final"),
    [
        ('database "x" does not exist', True),
        ('password authentication failed for user "x"', True),
        ("Connection refused", False),
        ("the database system is starting up", False),
        ("PostgreSQL 14 or later is required (found 13.9).", True),
    ],
)
def test_waiting_does_not_change_what_a_server_has_decided(
    words: str, final: bool
) -> None:
    assert is_final(psycopg.OperationalError(words)) is final


# -- sentences


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (Fault.DUPLICATE, DuplicateKeyError, "The key is taken in P: why."),
        (Fault.CONFLICT, ConflictError, "Other writers of P were in the way: why."),
        (
            Fault.LOCKED,
            ConflictError,
            "Another connection, of this process or another, holds P locked: why.",
        ),
        (
            Fault.MISMATCH,
            SchemaMismatchError,
            "P does not have the tables agentdb works on: why. Run 'agentdb verifydb'.",
        ),
        (
            Fault.UNREADABLE,
            SchemaMismatchError,
            "P holds a value that cannot be read: why. Correct it; 'agentdb verifydb' finds others.",
        ),
        (Fault.LOST, DatabaseUnavailableError, "P dropped the connection: why."),
        (Fault.SILENT, DatabaseUnavailableError, "P dropped the connection: why."),
        (
            Fault.UNANSWERED,
            OutcomeUnknownError,
            "P did not answer before the connection was lost: why. "
            "The write may be stored or not: read, then decide.",
        ),
        (
            Fault.UNSURE,
            OutcomeUnknownError,
            "P failed while it stored the write: why. The write may be stored or not: read, then decide.",
        ),
        (Fault.FULL, DatabaseUnavailableError, "P is unavailable: why."),
        (Fault.UNAVAILABLE, DatabaseUnavailableError, "P is unavailable: why."),
        (Fault.OTHER, AgentDbError, "P refused the statement: why."),
        (Fault.BAD_VALUE, AgentDbError, "P refused the statement: why."),
    ],
)
def test_each_meaning_has_one_error_and_one_sentence(
    fault: Fault, kind: type[AgentDbError], sentence: str
) -> None:
    error = explain(fault, "P", "why")

    assert (type(error), str(error)) == (kind, sentence)


def test_a_server_without_a_connection_left_is_answered_with_what_to_do() -> None:
    reason = "FATAL: sorry, too many clients already"

    said = str(explain(Fault.UNAVAILABLE, "P", reason))

    assert said == (
        f"P is unavailable: {reason}. Each thread that calls keeps a connection: let fewer call, cap them with "
        "?max_connections= in the URL, or raise the server's limit."
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("One.\nTwo.", "One. Two"),
        ("pass geheim word", "pass *** word"),
        ("Is it? Is the server running on that host and accepting? Yes.", "Is it? Yes"),
    ],
)
def test_a_reason_is_one_line_without_the_password(words: str, line: str) -> None:
    assert one_line(psycopg.OperationalError(words), "geheim") == line
    assert "geheim" not in line
    assert one_line(psycopg.OperationalError(words)).count("geheim") == words.count(
        "geheim"
    )


NOT_OPENED = "unable to open database file"
READ_ONLY = "attempt to write a readonly database"


@pytest.mark.parametrize(
    ("words", "make", "cause"),
    [
        (NOT_OPENED, lambda folder: folder, "it is a folder"),
        (
            NOT_OPENED,
            lambda folder: folder / "no" / "x.db",
            "the folder '{folder}/no' does not exist",
        ),
        (NOT_OPENED, lambda folder: folder / "x.db", ""),
        (READ_ONLY, lambda folder: folder / "x.db", ""),
        (READ_ONLY, lambda folder: folder, "it is a folder"),
        ("database is locked", lambda folder: folder, ""),
    ],
)
def test_why_a_file_cannot_be_opened_is_looked_up(
    tmp_path: Path, words: str, make: Callable[[Path], Path], cause: str
) -> None:
    error = sqlite3.OperationalError(words)
    said = f": {cause.format(folder=tmp_path)}" if cause else ""

    assert one_line(error, path=make(tmp_path)) == f"{words}{said}"
    assert one_line(error) == words


def test_a_folder_or_file_that_may_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    path.touch()
    refused: set[Path] = set()
    monkeypatch.setattr(os, "access", lambda at, mode: Path(at) not in refused)
    error = sqlite3.OperationalError(NOT_OPENED)

    assert one_line(error, path=path) == NOT_OPENED
    refused.add(path)
    assert (
        one_line(error, path=path)
        == f"{NOT_OPENED}: this user may not read and write it"
    )
    refused.add(tmp_path)
    assert (
        one_line(error, path=path)
        == f"{NOT_OPENED}: this user may not read and write it"
    )
    refused.remove(path)
    folder = f"{NOT_OPENED}: the folder {str(tmp_path)!r} cannot be written to"
    assert one_line(error, path=path) == folder
    assert one_line(error, path=tmp_path / "absent.db") == folder


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "database is locked",
            "The database file 'x.db' is locked by another process. Stop the program that uses it, or wait, and try "
            "again.",
        ),
        (
            "file is not a database",
            "'x.db' is not a SQLite database, or it is encrypted. Check the database URL.",
        ),
        (
            "database disk image is malformed",
            "The database file 'x.db' is damaged: database disk image is malformed. Restore a backup.",
        ),
        (
            "malformed database schema (v)",
            "The database file 'x.db' cannot be used: malformed database schema (v).",
        ),
        (
            "database or disk is full",
            "No space is left on the disk of 'x.db'. Free some space and try again.",
        ),
        ("No.", "The database file 'x.db' cannot be used: no."),
        ("", "The database file 'x.db' cannot be used: operationalError."),
    ],
)  # fmt: skip
def test_each_failure_of_a_file_has_one_sentence(words: str, sentence: str) -> None:
    error = sqlite3.OperationalError(words)
    assert describe_sqlite_failure("x.db", error) == sentence


@pytest.mark.parametrize(
    ("error", "is_open", "user", "sentence"),
    [
        (psycopg.OperationalError("Refused"), False, "me", "cannot be reached: refused."),
        (psycopg.OperationalError("Refused"), True, "me", "cannot be reached: refused."),
        (from_server("42P01", "Gone"), True, "me", "cannot be used: gone."),
        (from_server("42P01", "Gone"), False, "me", "cannot be reached: gone."),
        (from_server("57P01", "Ends"), True, "me", "cannot be reached: ends."),
        (
            psycopg.OperationalError(
                'connection to server at "h", port 1 failed: A\nconnection to server at "h", port 2 failed: FATAL:  B'
            ),
            False,
            "me",
            "cannot be reached: b.",
        ),
        (
            psycopg.OperationalError(
                'connection to server at "h", port 1 failed: FATAL:  password authentication failed for user "me"\n'
                'connection to server at "h", port 1 failed: FATAL:  no pg_hba.conf entry for host "i", no encryption'
            ),
            False,
            "me",
            'cannot be reached: password authentication failed for user "me".',
        ),
        (
            psycopg.OperationalError("connection failed: A\nconnection failed: B"),
            False,
            "me",
            "cannot be reached: a.",
        ),
    ],
)  # fmt: skip
def test_each_failure_of_a_server_has_one_sentence(
    error: psycopg.Error, is_open: bool, user: str, sentence: str
) -> None:
    assert (
        describe_failure(_server(is_open, user), error)
        == f"The database 'a' at h:1 {sentence}"
    )


@pytest.mark.parametrize(("user", "role"), [("me", "me"), ("", "used")])
def test_what_a_role_may_not_do_and_what_is_locked_names_the_way_on(
    user: str, role: str
) -> None:
    server = _server(True, user)

    assert describe_failure(server, from_server("42501", "Denied")) == (
        f"The role {role!r} may not do this in 'a' at h:1: denied. Use the role that owns the tables."
    )
    assert describe_failure(server, from_server("55P03", "Locked")) == (
        "The tables in 'a' at h:1 are in use by a transaction that does not end. Stop the programs that use them, and "
        "try again."
    )


def _server(is_open: bool, user: str) -> Any:
    """As much of Django's connection as the sentences need."""
    return SimpleNamespace(
        vendor="postgresql",
        connection=object() if is_open else None,
        settings_dict={"NAME": "a", "HOST": "h", "PORT": 1, "USER": user},
    )
