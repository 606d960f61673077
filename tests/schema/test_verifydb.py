"""The verifydb command: what it prints, its exit codes, its JSON, and that it leaves no trace."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections

import agentdb
from agentdb.schema.inspection import ChangedMeanwhileError, inspecting
from agentdb.schema.migration_record import migration_names
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.legacy_databases import manage, opened, rows, sqlite_path

MIGRATIONS = migration_names()
LISTED = f"{', '.join(MIGRATIONS[:-1])} and {MIGRATIONS[-1]}"


class Result(NamedTuple):
    code: int
    lines: list[str]  # of standard output, or of the error where it cannot look


def verifydb(url: str, *arguments: str) -> Result:
    """Run the command on a database without opening it first."""
    out = io.StringIO()
    with opened(url) as connection:
        connection.close()
        try:
            call_command(
                "verifydb",
                *arguments,
                database=connection.alias,
                stdout=out,
                no_color=True,
            )
        except SystemExit as stop:
            return Result(int(str(stop.code)), out.getvalue().splitlines())
        except CommandError as error:
            return Result(error.returncode, str(error).splitlines())
    return Result(0, out.getvalue().splitlines())


def change(url: str, *statements: str) -> None:
    with opened(url) as connection:
        for statement in statements:
            rows(connection, statement)


def migrate(url: str, *arguments: str) -> None:
    with opened(url) as connection:
        manage(connection, "migrate", *arguments, verbosity=0)


def test_a_match_is_one_line_and_exit_code_0(url):
    assert verifydb(url) == Result(
        0,
        [
            f"The schema matches the models, and the recorded migrations are true: {LISTED}."
        ],
    )


def test_drift_is_a_line_each_and_exit_code_1(url):
    change(
        url,
        "DROP INDEX idx_sessions_tenant",
        "ALTER TABLE agents RENAME COLUMN path TO folder",
    )

    code, lines = verifydb(url)

    assert code == 1
    assert lines == [
        "Column agents.path is missing (column folder is defined like it: was it renamed?).",
        "Index idx_sessions_tenant on sessions (tenant_id) is missing.",
        f"Recorded are {LISTED}, but the tables are not as {MIGRATIONS[-1]} leaves them. "
        "Run 'agentdb baselinedb --check' to see what can be done.",
    ]


def test_a_missing_column_takes_the_indexes_whose_condition_reads_it_along(url):
    change(
        url,
        "DROP INDEX idx_sandboxes_session",
        "DROP INDEX idx_sandboxes_pool",
        "ALTER TABLE sandboxes DROP COLUMN session_id",
    )

    code, lines = verifydb(url)

    assert code == 1
    assert lines[0] == "Column sandboxes.session_id is missing."
    assert len(lines) == 2


def test_what_is_not_agentdbs_is_a_note_and_no_drift(url):
    change(
        url,
        "ALTER TABLE sessions ADD COLUMN region text",
        "CREATE TABLE messages (id integer)",
        "CREATE TABLE events (id integer)",
    )

    code, lines = verifydb(url)

    assert code == 0
    assert (
        lines[0]
        == "Note: Column sessions.region (text) is not in the models and is left alone."
    )
    assert lines[1] in (
        "Note: not agentdb's, and left alone: messages, events.",
        "Note: not agentdb's, and left alone: events, messages.",
    )
    assert len(lines) == 3


def test_an_empty_database_is_told_to_migrate(empty_url, engine):
    if engine == "sqlite":
        sqlite_path(empty_url).touch()

    code, lines = verifydb(empty_url)

    assert code == 1
    assert lines == [
        *(
            f"Table {table} is missing."
            for table in ("agents", "api_keys", "sandboxes", "sessions")
        ),
        "There are no agentdb tables. Run 'agentdb migrate'.",
    ]


def test_pending_migrations_are_named_with_the_command(empty_url):
    migrate(empty_url, "agentdb", MIGRATIONS[0])

    code, lines = verifydb(empty_url)

    assert code == 1
    assert lines[-1] == (
        f"The tables are as {MIGRATIONS[0]} leaves them. Run 'agentdb migrate' to apply "
        f"{', '.join(MIGRATIONS[1:-1])} and {MIGRATIONS[-1]}."
    )
    assert any(
        line.startswith("Column agents.created_at has the type text; it should be ")
        for line in lines
    )


def test_the_old_servers_database_is_told_to_be_adopted(load_legacy):
    code, lines = verifydb(load_legacy("era-a"))

    assert code == 1
    assert lines[0] == "Column agents.id is missing."
    assert (
        lines[-1]
        == "No migration is recorded: these tables are not adopted yet. Run 'agentdb baselinedb'."
    )


def test_a_record_that_is_not_true_is_named(url):
    change(url, f"DELETE FROM django_migrations WHERE name = '{MIGRATIONS[-1]}'")

    code, lines = verifydb(url)

    assert (code, lines) == (
        1,
        [
            f"Recorded are {', '.join(MIGRATIONS[:-2])} and {MIGRATIONS[-2]}, but the tables are not as "
            f"{MIGRATIONS[-2]} leaves them. Run 'agentdb baselinedb --check' to see what can be done."
        ],
    )


def test_a_record_with_a_gap_is_not_true(url):
    change(url, f"DELETE FROM django_migrations WHERE name = '{MIGRATIONS[0]}'")

    report = json.loads("\n".join(verifydb(url, "--json").lines))

    assert report["migrations"] == {
        "recorded": list(MIGRATIONS[1:]),
        "pending": [MIGRATIONS[0]],
        "unknown": [],
        "record_is_true": False,
    }


def test_recorded_migrations_without_tables_are_named(url):
    change(
        url,
        *(
            f"DROP TABLE {table}"
            for table in ("agents", "sessions", "sandboxes", "api_keys")
        ),
    )

    code, lines = verifydb(url)

    assert code == 1
    assert lines[-1] == (
        f"Recorded are {LISTED}, but the tables are not as 0004_fleet_indexes leaves them. Run 'agentdb baselinedb "
        "--check' to see what can be done."
    )


def test_migrations_of_a_newer_agentdb_are_named(url):
    change(
        url,
        "INSERT INTO django_migrations (app, name, applied) VALUES ('agentdb', '0999_later', CURRENT_TIMESTAMP)",
    )

    code, lines = verifydb(url)

    assert (code, lines) == (
        1,
        [
            "A newer agentdb migrated this database: 0999_later is not known here. Upgrade agentdb."
        ],
    )
    report = json.loads("\n".join(verifydb(url, "--json").lines))
    assert report["migrations"]["unknown"] == ["0999_later"]
    assert report["migrations"]["record_is_true"] is None


def test_the_tables_of_the_projects_other_apps_are_not_mentioned(empty_url):
    with opened(empty_url) as connection:
        manage(connection, "migrate", verbosity=0)
        assert len(connection.introspection.table_names()) > 5

    assert len(verifydb(empty_url).lines) == 1


# -------------------------------------------------------------------------------------------------------------- JSON


def test_json_of_a_match(url, engine):
    code, lines = verifydb(url, "--json")

    report = json.loads("\n".join(lines))
    assert code == 0
    assert list(report.items()) == [
        ("format", 1),
        ("engine", engine),
        ("database", report["database"]),
        ("matches", True),
        (
            "verdict",
            f"The schema matches the models, and the recorded migrations are true: {LISTED}.",
        ),
        (
            "migrations",
            {
                "recorded": list(MIGRATIONS),
                "pending": [],
                "unknown": [],
                "record_is_true": True,
            },
        ),
        ("differences", []),
        ("notes", []),
    ]
    place = urlsplit(url).path
    assert report["database"].startswith(
        place.removeprefix("/") if engine == "sqlite" else f"{place[1:]!r} at "
    )


def test_json_of_drift_and_a_note(url):
    change(url, "DROP INDEX idx_sessions_tenant", "CREATE TABLE messages (id integer)")

    code, lines = verifydb(url, "--json")

    report = json.loads("\n".join(lines))
    assert code == 1
    assert report["matches"] is False
    assert report["migrations"]["record_is_true"] is False
    assert report["differences"] == [
        {
            "code": "index.missing",
            "severity": "drift",
            "table": "sessions",
            "object": "idx_sessions_tenant",
            "expected": "index on (tenant_id)",
            "found": None,
            "message": "Index idx_sessions_tenant on sessions (tenant_id) is missing.",
        }
    ]
    assert report["notes"] == [
        {
            "code": "table.foreign",
            "severity": "note",
            "table": "messages",
            "object": None,
            "expected": None,
            "found": "table",
            "message": "Table messages is not agentdb's and is left alone.",
        }
    ]


def test_json_where_it_cannot_look(tmp_path):
    code, lines = verifydb(f"sqlite:///{tmp_path}/missing.db", "--json")

    assert code == 2
    assert json.loads("\n".join(lines)) == {
        "format": 1,
        "error": f"The database file '{tmp_path}/missing.db' does not exist. Check the database URL, or run "
        "'agentdb migrate' "
        "to make a new one.",
    }


# ---------------------------------------------------------------------------------------------------- leaving no trace


def test_a_missing_file_is_not_created(tmp_path):
    code, lines = verifydb(f"sqlite:///{tmp_path}/missing.db")

    assert (code, len(lines)) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_file_and_its_folder_stay_as_they_were(tmp_path, journal, _migrated_sqlite):
    path = tmp_path / "agentdb.sqlite3"
    source, target = sqlite3.connect(_migrated_sqlite), sqlite3.connect(path)
    source.backup(target)
    target.execute(f"PRAGMA journal_mode={journal}")
    source.close()
    target.close()
    before = path.read_bytes()

    assert verifydb(f"sqlite:///{path}").code == 0

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["agentdb.sqlite3"]


def test_a_folder_may_have_a_name_that_is_not_utf8(
    _migrated_sqlite, tmp_path, monkeypatch
):
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    path = shutil.copyfile(_migrated_sqlite, folder / "agentdb.sqlite3")
    (tmp_path / "link.sqlite3").symlink_to(path)
    monkeypatch.chdir(folder)

    assert verifydb(f"sqlite:///{tmp_path}/link.sqlite3").code == 0
    assert verifydb("sqlite:///agentdb.sqlite3").code == 0
    with agentdb.connect("sqlite:///agentdb.sqlite3") as db:
        assert db.list_agents() == []


def test_a_file_that_goes_while_it_is_read_is_not_taken_for_read(
    _migrated_sqlite, tmp_path
):
    path = shutil.copyfile(_migrated_sqlite, tmp_path / "agentdb.sqlite3")
    with (
        opened(f"sqlite:///{path}") as configured,
        pytest.raises(ChangedMeanwhileError),
        inspecting(configured.alias),
    ):
        path.unlink()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_what_a_log_beside_the_target_of_a_link_holds_is_seen(url, engine, tmp_path):
    link = tmp_path / "elsewhere" / "link.sqlite3"
    link.parent.mkdir()
    link.symlink_to(sqlite_path(url))
    with closing(sqlite3.connect(sqlite_path(url), isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("DROP INDEX idx_sessions_tenant")

        assert verifydb(f"sqlite:///{link}").code == 1


def test_what_another_process_has_only_in_its_write_ahead_log_is_seen(url, engine):
    if engine != "sqlite":
        change(url, "DROP INDEX idx_sessions_tenant")
        assert verifydb(url).code == 1
        return
    other = sqlite3.connect(sqlite_path(url), isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("DROP INDEX idx_sessions_tenant")

    code, lines = verifydb(url)

    other.close()
    assert (code, lines[0]) == (
        1,
        "Index idx_sessions_tenant on sessions (tenant_id) is missing.",
    )


def test_all_that_is_inspected_is_of_one_moment(url, engine):
    if engine == "cockroachdb":
        pytest.skip("its writers wait for a reader")
    how_many = "SELECT count(*) FROM agents"
    with agentdb.connect(url) as other, agentdb.connect(url) as looked_at:
        other.list_agents()  # keeps a SQLite file's log in use
        with inspecting(looked_at.alias) as connection:
            before = rows(connection, how_many)
            other.upsert_agent("later", "/later")
            assert rows(connection, how_many) == before
            with pytest.raises(DatabaseError):
                rows(connection, "DELETE FROM agents")
        assert [agent.name for agent in other.list_agents()] == ["later"]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_error_that_ends_the_transaction_of_a_look_is_not_hidden_by_its_end(
    url, engine
):
    def run_out_of_memory() -> None:
        raise MemoryError

    with (
        opened(url) as configured,
        pytest.raises(MemoryError),
        inspecting(configured.alias) as connection,
    ):
        connection.connection.create_function("fill", 0, run_out_of_memory)
        rows(connection, "SELECT fill() FROM django_migrations")


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_look_at_a_file_waits_for_its_writers_as_long_as_the_url_says(url, engine):
    with (
        opened(f"{url}?timeout=7") as configured,
        inspecting(configured.alias) as connection,
    ):
        assert rows(connection, "PRAGMA busy_timeout") == [(7000,)]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_look_at_a_file_costs_no_later_write_of_an_open_connection(url, engine):
    """Closing a file releases all locks of the process on it: another would take the log for one that nobody uses."""
    path = sqlite_path(url)
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(*c.execute('SELECT name FROM agents')); c.close()"
    )

    def other_process() -> str:
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.check_output(command, text=True)

    with agentdb.connect(f"{url}?journal=wal") as db:
        db.upsert_agent("earlier", "/")
        with inspecting(db.alias):
            pass
        assert other_process() == "('earlier',)\n"
        db.upsert_agent("later", "/")
        assert other_process() == "('earlier',) ('later',)\n"


# On CockroachDB it waits: readers do.
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_transaction_of_another_process_is_no_hindrance(url, engine):
    """A long write keeps nobody from looking."""
    if engine == "sqlite":
        other = sqlite3.connect(sqlite_path(url), isolation_level=None)
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("BEGIN IMMEDIATE")
        other.execute(
            "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('s', 'a', 'b')"
        )
        assert verifydb(url).code == 0
        other.close()
        return
    with psycopg.connect(url) as server:
        server.execute(
            "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('s', 'a', 'b')"
        )
        assert verifydb(url).code == 0


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_role_that_may_only_read_the_record_can_verify(url):
    """Reading a schema needs no right to the rows."""
    role = f"agentdb_reader_{os.getpid()}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            as_role = _as_role(url, role)
            denied = verifydb(as_role)
            server.execute(f"GRANT SELECT ON django_migrations TO {role}".encode())
            allowed = verifydb(as_role)
        finally:
            server.execute(f"DROP OWNED BY {role}".encode())
            server.execute(f"DROP ROLE {role}".encode())

    assert denied.code == 2
    assert "permission denied for table django_migrations" in denied.lines[0]
    assert allowed.code == 0


def _as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(
        parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}")
    )


# ------------------------------------------------------------------------------------------------------- cannot look


def _text_file(path: Path) -> None:
    path.write_text(
        "not a database, but long enough to hold a header of one hundred bytes " * 3
    )


def _directory(path: Path) -> None:
    path.mkdir()


def _cut(path: Path) -> None:
    source = sqlite3.connect(path)
    source.execute("CREATE TABLE agents (id text)")
    source.executemany("INSERT INTO agents VALUES (?)", [("x" * 1000,)] * 100)
    source.commit()
    source.close()
    path.write_bytes(path.read_bytes()[:20000])


@pytest.mark.parametrize("make", [_text_file, _directory, _cut])
def test_what_is_no_database_is_one_sentence_and_exit_code_2(
    tmp_path: Path, make: Callable[[Path], None]
):
    path = tmp_path / "agentdb.sqlite3"
    make(path)

    code, lines = verifydb(f"sqlite:///{path}")

    assert (code, len(lines)) == (2, 1)
    assert str(path) in lines[0]
    assert lines[0].endswith(".")


def test_a_missing_database_is_one_sentence_without_the_password(postgres_url):
    parts = urlsplit(postgres_url)
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit(
        parts._replace(
            path="/agentdb_no_such", netloc=f"{parts.username}:s3cret@{host}"
        )
    )

    code, lines = verifydb(url)

    assert (code, len(lines)) == (2, 1)
    assert "'agentdb_no_such'" in lines[0]
    assert "does not exist" in lines[0]
    assert "s3cret" not in lines[0]


def test_an_unknown_alias_is_refused_with_the_known_ones():
    with pytest.raises(
        CommandError,
        match=r"argument --database: invalid choice: 'nonsense' \(choose from",
    ):
        call_command("verifydb", "--database=nonsense")
    assert "nonsense" not in connections


@pytest.mark.parametrize("engine", ["sqlite"])
def test_timestamps_that_an_old_server_goes_on_writing_are_found_and_put_right(
    url: str,
) -> None:
    with agentdb.connect(url) as db:
        for name in ("one", "two", "three"):
            db.insert_sandbox(name, "a", "/w")
            db.update_sandbox_state(name, "waiting")
        change(
            url,
            "UPDATE sandboxes SET last_used_at = '2026-02-19T20:53:16.123Z', created_at = '2026-02-19 20:53:16'"
            " WHERE id = 'two'",
            "UPDATE sandboxes SET last_used_at = '2026-02-19T20:53:16.000Z' WHERE id = 'one'",
            "UPDATE sandboxes SET last_used_at = '2026-02-19 20:53:16.000000' WHERE id = 'three'",
        )

        found = verifydb(url)
        checked = baselinedb(url, "--check")
        put_right = baselinedb(url, "--no-backup")

        assert found == Result(
            1,
            [
                "Column sandboxes.last_used_at holds 3 timestamps in another spelling than agentdb's, as "
                "'2026-02-19 20:53:16.000000', which SQLite sorts and compares wrongly. Stop the program that writes "
                "them, and run 'agentdb baselinedb'.",
                "The schema matches the models, but an old server, or another program, has written timestamps of its "
                "own spelling. Run 'agentdb baselinedb'.",
            ],
        )
        action = "Rewrite 3 timestamps in sandboxes.last_used_at that another program wrote, as "
        assert checked.code == 1
        assert action in checked.out
        assert put_right.code == 0, put_right
        assert verifydb(url).code == 0
        assert baselinedb(url).out.splitlines()[-1] == "Nothing to do."
        moment = datetime(2026, 2, 19, 20, 53, 16, tzinfo=UTC)
        assert [
            (one.id, one.last_used_at)
            for one in db.get_idle_sandboxes(moment + timedelta(days=1))
        ] == [
            ("one", moment),
            ("three", moment),
            ("two", moment + timedelta(milliseconds=123)),
        ]


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    ("stored", "spelt", "reason"),
    [
        ("'yesterday'", "'yesterday'", "'yesterday' is in no known timestamp format"),
        ("CAST(x'ff' AS TEXT)", "'\\\\xff'", "b'\\xff' is not valid UTF-8"),
        # Written as agentdb does, but as bytes.
        (
            "CAST('2026-02-19 20:53:16' AS BLOB)",
            "\"b'2026-02-19 20:53:16'\"",
            "b'2026-02-19 20:53:16' is not text",
        ),
    ],
)
def test_a_text_in_a_timestamp_column_that_is_none_is_named_by_its_row(
    url: str, stored: str, spelt: str, reason: str
) -> None:
    with agentdb.connect(url) as db:
        db.insert_session("s1", "a", "sb")
    change(url, f"UPDATE sessions SET last_active_at = {stored}")

    verified = verifydb(url)
    assert verified.code == 1
    assert verified.lines[0].startswith(
        "Column sessions.last_active_at holds 1 timestamp in another spelling than "
        f"agentdb's, as {spelt}, which"
    )
    refused = baselinedb(url, "--check")
    assert refused.code == 2
    assert refused.err.splitlines()[1:] == [
        f"  table 'sessions', id 's1', column 'last_active_at': {reason}"
    ]


def test_without_a_record_tables_are_for_baselinedb_which_knows_those_of_other_programs(
    empty_url: str,
) -> None:
    change(empty_url, "CREATE TABLE sessions (id text PRIMARY KEY, sess text NOT NULL)")

    result = verifydb(empty_url)

    assert result.code == 1
    assert result.lines[-1] == (
        "No migration is recorded: these tables are not adopted yet. Run 'agentdb baselinedb'."
    )
    refused = baselinedb(empty_url, "--check")
    assert refused.code == 2
    assert "Table 'sessions' was not made by the server" in refused.err


@pytest.mark.parametrize("engine", ["postgresql"])
def test_names_that_the_old_server_gave_do_not_count_before_0002(empty_url, engine):
    migrate(empty_url, "agentdb", MIGRATIONS[0])
    change(
        empty_url,
        "ALTER TABLE api_keys RENAME CONSTRAINT api_keys_key_hash_key TO idx_hash",
    )

    assert (
        verifydb(empty_url)
        .lines[-1]
        .startswith(
            "The tables are as 0001_initial leaves them. Run 'agentdb migrate' to apply "
        )
    )
