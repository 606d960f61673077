"""SQLite files as other programs leave them: --check and the adoption say the same, and the message names the cause."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.baseline_runs import Run, assert_adopted, baselinedb
from tests.helpers.legacy_databases import opened, sqlite_path

pytestmark = pytest.mark.parametrize("engine", ["sqlite"])

Load = Callable[[str], str]


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_function("own", 1, lambda value: value, deterministic=True)
        connection.create_collation(
            "own", lambda one, other: (one > other) - (one < other)
        )
        for statement in statements:
            connection.execute(statement)


def write(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def both(url: str) -> tuple[Run, Run]:
    return baselinedb(url, "--check"), baselinedb(url)


FOREIGN_INDEXES = {
    "of an unknown function": "CREATE INDEX own_index ON notes (own(x))",
    "of an unknown collation": "CREATE INDEX own_index ON notes (x COLLATE own)",
}


@pytest.mark.parametrize("index", FOREIGN_INDEXES)
def test_an_index_of_another_table_that_only_its_program_reads(
    load_legacy: Load, engine: str, index: str
):
    url = load_legacy("era-b")
    change(
        sqlite_path(url),
        # Wide, so that counting the entries of the index would be the cheapest way to count the rows.
        "CREATE TABLE notes (x, y TEXT, z TEXT)",
        "INSERT INTO notes (x) VALUES ('b'), ('a')",
        FOREIGN_INDEXES[index],
    )

    check, run = both(url)

    assert (check.code, run.code, run.err if run.code else "") == (1, 0, "")
    with opened(url) as connection:
        assert_adopted(connection)


def test_a_vector_index_of_libsql_on_another_table(load_legacy: Load, engine: str):
    url = load_legacy("era-b")
    change(
        sqlite_path(url),
        "CREATE TABLE notes (x)",
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql)"
        " VALUES ('index', 'own', 'notes', 0, 'CREATE INDEX own ON notes (libsql_vector_idx(x))')",
    )

    assert [run.code for run in both(url)] == [1, 0]


def test_a_table_that_only_libsql_can_read_is_not_damage(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b")
    change(
        sqlite_path(url),
        "CREATE TABLE notes (x)",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = 'CREATE TABLE notes (x) RANDOM ROWID' WHERE name = 'notes'",
    )

    check, run = both(url)

    assert (check.code, run.code, check.err) == (2, 2, run.err)
    assert "cannot be used: malformed database schema (notes)" in run.err


@pytest.mark.parametrize(
    ("offset", "content"), [(18, b"\3\3"), (18, b"\3"), (44, b"\0\0\0\5")]
)
def test_a_later_file_format_is_named(
    load_legacy: Load, engine: str, offset: int, content: bytes
):
    url = load_legacy("era-b")
    write(sqlite_path(url), offset, content)

    check, run = both(url)

    assert (check.code, run.code, check.err) == (2, 2, run.err)
    assert run.err == (
        f"'{sqlite_path(url)}' has a file format that SQLite {sqlite3.sqlite_version}, which Python uses here, does "
        "not know. Upgrade SQLite."
    )


def test_rowids_stay_if_a_foreign_key_is_violated(load_legacy: Load, engine: str):
    url = load_legacy("era-a")
    change(
        sqlite_path(url),
        "DELETE FROM sessions WHERE rowid IN (3, 5, 9)",
        "DELETE FROM agents WHERE rowid = 2",
    )

    def rowids() -> list[list[tuple[int, str]]]:
        keys = (("agents", "name"), ("sessions", "id"), ("sandboxes", "id"))
        with closing(sqlite3.connect(sqlite_path(url))) as connection:
            return [
                connection.execute(
                    f"SELECT rowid, {key} FROM {table} ORDER BY 1"
                ).fetchall()
                for table, key in keys
            ]

    before = rowids()

    assert [run.code for run in both(url)] == [1, 0]
    assert rowids() == before
