"""What a driver's error means, whoever asks."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import agentdb
from agentdb.faults import Fault, classify

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
            for word in ("sqlstate", "sqlite_errorname", "sqlite_errorcode")
        )
    }
    assert readers == {"faults.py"}
