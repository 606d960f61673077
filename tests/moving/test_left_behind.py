"""copydb, backup and restore say which tables and columns of a database they do not carry."""

# ruff: noqa: F811
from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from django.test.utils import CaptureQueriesContext

import agentdb
from agentdb.schema.other_tables import other_tables
from tests.helpers.factories import execute
from tests.helpers.legacy_databases import opened, rows, sqlite_path
from tests.moving.test_backup import run
from tests.moving.test_copydb import MakeUrl, copydb, fill, make_url  # noqa: F401 (a fixture)

LEFT = (
    "Not copied: table 'empty', 0 rows.\n"
    "Not copied: table 'messages', 1,200 rows.\n"
    "Not copied: table 'odd \"name', 1 row.\n"
    "Not copied: column 'model' of 'sessions'.\n"
)


def add_others(url: str) -> None:
    fill(url)
    execute(url, "CREATE TABLE messages (id integer)")
    numbers = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)"
    )
    execute(url, f"{numbers} INSERT INTO messages SELECT i FROM n")
    execute(url, "CREATE TABLE empty (id integer)")
    execute(url, 'CREATE TABLE "odd ""name" (id integer)')
    execute(url, 'INSERT INTO "odd ""name" VALUES (1)')
    execute(url, "CREATE VIEW seen AS SELECT * FROM messages")
    execute(url, "ALTER TABLE sessions ADD COLUMN model text")


def test_copydb_says_what_it_leaves_behind(url: str, make_url: MakeUrl) -> None:
    add_others(url)
    target = make_url("sqlite")

    dry = copydb(url, target, "--dry-run")
    copied = copydb(url, target)
    compared = copydb(url, target, "--verify")

    assert dry.endswith(f"{LEFT}Nothing was copied.\n")
    assert f"{LEFT}" in copied
    assert "Not copied" not in compared
    assert (
        execute(
            target, "SELECT name FROM sqlite_master WHERE name IN ('messages', 'empty')"
        )
        == []
    )


def test_a_backup_of_a_server_says_it_and_one_of_a_file_has_them(
    url: str, engine: str, tmp_path: Path
) -> None:
    add_others(url)
    file = tmp_path / "backup.sqlite3"

    said = run("backup", url, file)

    if engine == "sqlite":
        assert said == f"Backup: {file}\n"
        assert execute(f"sqlite:///{file}", "SELECT count(*) FROM messages") == [
            (1200,)
        ]
    else:
        assert said == f"Backup: {file}\n{LEFT}"


def test_a_restore_says_what_of_the_file_it_leaves_behind(
    tmp_path: Path, make_url: MakeUrl
) -> None:
    url = make_url("sqlite")
    agentdb.connect(url, migrate=True).close()
    add_others(url)
    run("backup", url, tmp_path / "backup.sqlite3")

    restored = run("restore", make_url("postgresql"), tmp_path / "backup.sqlite3")

    assert restored.endswith(f" rows restored.\n{LEFT}")


def test_nothing_is_said_where_nothing_is_left(url: str, make_url: MakeUrl) -> None:
    fill(url)

    assert "Not copied" not in copydb(url, make_url("sqlite"))


def test_a_partitioned_table_counts_once_and_one_of_another_schema_not(
    make_url: MakeUrl,
) -> None:
    url = make_url("postgresql")
    agentdb.connect(url, migrate=True).close()
    execute(url, "CREATE TABLE events (id integer) PARTITION BY RANGE (id)")
    execute(
        url, "CREATE TABLE events_first PARTITION OF events FOR VALUES FROM (0) TO (10)"
    )
    execute(url, "INSERT INTO events VALUES (1), (2)")
    execute(url, "CREATE SCHEMA elsewhere")
    execute(url, "CREATE TABLE elsewhere.hidden (id integer)")

    copied = copydb(url, make_url("sqlite"), "--dry-run")

    assert [line for line in copied.splitlines() if line.startswith("Not")] == [
        "Not copied: table 'events', 2 rows.",
        "Nothing was copied.",
    ]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_table_is_counted_whose_index_only_its_program_can_read(
    url: str, make_url: MakeUrl, engine: str
) -> None:
    with closing(sqlite3.connect(sqlite_path(url))) as connection:
        connection.create_collation("own", lambda one, other: 0)
        # Wide, so that counting the entries of the index would be the cheapest way to count the rows.
        connection.execute("CREATE TABLE notes (x, y TEXT, z TEXT)")
        connection.execute("CREATE INDEX own_index ON notes (x COLLATE own)")

    said = copydb(url, make_url("sqlite"))

    assert "Not copied: table 'notes', 0 rows.\n" in said


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_rows_of_a_large_table_are_counted_in_its_smallest_index(
    url: str, engine: str
) -> None:
    with opened(url) as connection, CaptureQueriesContext(connection) as captured:
        rows(connection, "CREATE TABLE notes (x, y TEXT, z TEXT)")
        rows(connection, "CREATE INDEX own_index ON notes (x)")
        assert other_tables(connection) == {"notes": 0}
        counted = captured[-1]["sql"]
        [(*_, how)] = rows(connection, f"EXPLAIN QUERY PLAN {counted}")

    assert how == "SCAN notes USING COVERING INDEX own_index"
