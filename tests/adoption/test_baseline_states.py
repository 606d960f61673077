"""States that no file shows but that occur: stopped after any statement, and altered by hand in many ways."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.change import Change
from agentdb.schema import Table
from tests.helpers.baseline_runs import (
    TABLES,
    assert_adopted,
    baselinedb,
    contents,
    expected_contents,
    snapshot,
)
from tests.helpers.legacy_databases import expected, opened, rows, sqlite_path
from tests.helpers.old_upgrades import STATEMENTS

Load = Callable[[str], str]


def run_sql(connection: BaseDatabaseWrapper, *statements: str) -> None:
    if connection.vendor == "sqlite":
        rows(connection, "PRAGMA foreign_keys = OFF")
    for statement in statements:
        rows(connection, statement)


def values(
    connection: BaseDatabaseWrapper, name: str, columns: list[str]
) -> list[tuple[object, ...]]:
    return sorted(
        tuple(str(row[column]) for column in columns)
        for row in contents(connection, name, columns)
    )


def assert_rows_of(connection: BaseDatabaseWrapper, stem: str) -> None:
    """Every value that the database of that name held is there; ids that were made are unique."""
    file = expected(connection.vendor, stem)
    for name in TABLES:
        table = file["tables"][name]
        if table is None:
            assert contents(connection, name, ["id"]) == []
            continue
        columns = [
            column for column in table["columns"] if column != "id" or name != "agents"
        ]
        wanted = expected_contents(
            {
                "columns": columns,
                "rows": [[r[c] for c in columns] for r in table["rows"]],
            }
        )
        assert values(connection, name, columns) == sorted(
            tuple(str(row[c]) for c in columns) for row in wanted
        )
    assert rows(connection, "SELECT count(*) - count(DISTINCT id) FROM agents") == [
        (0,)
    ]


STOPPED = [
    (engine, k)
    for engine, statements in STATEMENTS.items()
    for k in range(len(statements) + 1)
]


@pytest.mark.parametrize(("engine", "k"), STOPPED)
def test_an_upgrade_that_stopped_after_any_statement_is_adopted(
    load_legacy: Load, engine: str, k: int
):
    url = load_legacy("era-a")
    with opened(url) as connection:
        run_sql(connection, *STATEMENTS[engine][:k])

    run = baselinedb(url, "--no-backup")

    assert (run.code, run.out.splitlines()[-1].partition(":")[0]) == (0, "Adopted")
    with opened(url) as connection:
        assert_adopted(connection)
        assert_rows_of(connection, "era-a")
        if engine == "postgresql":
            return
        # What a stopped rebuild left behind beside the table is not ours to drop.
        left = {
            name
            for (name,) in rows(
                connection,
                "SELECT name FROM sqlite_master WHERE name LIKE '%\\_new' ESCAPE '\\'",
            )
        }
        created = "".join(STATEMENTS[engine][:k])
        half = {
            name
            for name in ("agents", "sessions")
            if f"CREATE TABLE {name}_new" in created
            and f"DROP TABLE {name}" not in STATEMENTS[engine][:k]
        }
        assert left == {f"{name}_new" for name in half}


@pytest.mark.parametrize(
    "engine", ["sqlite"]
)  # the old server rebuilds tables on SQLite only
def test_a_rebuild_that_stopped_before_the_rename_is_finished(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-a")
    with opened(url) as connection:
        run_sql(connection, *STATEMENTS[engine][:12])

    run = baselinedb(url, "--check")

    assert (
        "  2. Rename table agents_new to agents, as the old server was about to do."
        in run.out.splitlines()
    )


@pytest.mark.parametrize("k", range(10, 13))
def test_agents_of_which_some_have_an_id_keep_it_and_the_others_get_one(
    load_legacy: Load, engine: str, k: int
):
    url = load_legacy("era-a")
    add = (
        "ALTER TABLE agents ADD COLUMN id TEXT"
        if engine == "sqlite"
        else STATEMENTS[engine][9]
    )
    with opened(url) as connection:
        run_sql(connection, *STATEMENTS[engine][:9], add)
        run_sql(
            connection,
            "UPDATE agents SET id = 'kept-' || version WHERE name IN ('alpha', 'Zeta')",
        )
        kept = rows(
            connection, "SELECT name, id FROM agents WHERE id IS NOT NULL ORDER BY 1"
        )
        total = rows(connection, "SELECT count(*) FROM agents")[0][0]
    assert len(kept) == 2

    run = baselinedb(url, "--no-backup")

    assert run.code == 0
    assert any(
        line.endswith(f"Give {total - 2} agents an id, a random UUID.")
        for line in run.out.splitlines()
    )
    with opened(url) as connection:
        assert_adopted(connection)
        assert_rows_of(connection, "era-a")
        assert (
            rows(
                connection,
                "SELECT name, id FROM agents WHERE id LIKE 'kept-%%' ORDER BY 1",
            )
            == kept
        )


def test_an_id_that_would_change_undoes_the_adoption(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    url = load_legacy("era-a")
    with opened(url) as connection:
        run_sql(
            connection,
            "ALTER TABLE agents ADD COLUMN id TEXT",
            "UPDATE agents SET id = 'mine' WHERE name = 'alpha'",
        )
        before = rows(connection, "SELECT * FROM agents ORDER BY name")
    real = Change._sources_of

    def other_ids(change: Change, name: str, table: Table) -> dict[str, str]:
        sources = real(change, name, table)
        if name == "agents":
            sources["id"] = "'x' || name"
        return sources

    monkeypatch.setattr(Change, "_sources_of", other_ids)

    run = baselinedb(url, "--no-backup")

    tables = run.err.rpartition(" Tables: ")[2]
    assert (run.code, tables) == (2, "agents: other ids.\nNothing was changed.")
    with opened(url) as connection:
        assert rows(connection, "SELECT * FROM agents ORDER BY name") == before


@pytest.mark.parametrize(
    "engine", ["sqlite"]
)  # the old server rebuilds tables on SQLite only
def test_a_view_that_names_the_missing_table_stands_until_the_rename(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-a")
    with opened(url) as connection:
        run_sql(
            connection,
            "CREATE VIEW own_view AS SELECT name FROM agents",
            *STATEMENTS[engine][:12],
        )

    run = baselinedb(url, "--no-backup")

    assert (run.code, run.err if run.code else "") == (0, "")
    with opened(url) as connection:
        assert_adopted(connection)
        assert len(rows(connection, "SELECT name FROM own_view")) == 17


Alter = Callable[[BaseDatabaseWrapper], None]


def sql(*statements: str, only: str | None = None) -> Alter:
    def change(connection: BaseDatabaseWrapper) -> None:
        if only in (None, connection.vendor):
            run_sql(connection, *statements)

    return change


# What operators do to a database and what versions in between leave out; none of it may stand in the way.
HARMLESS: dict[str, Alter] = {
    "no index on agents' tenant": sql("DROP INDEX IF EXISTS idx_agents_tenant"),
    "no index on sessions' tenant": sql("DROP INDEX IF EXISTS idx_sessions_tenant"),
    "no index on state": sql("DROP INDEX IF EXISTS idx_sandboxes_state"),
    "no redundant index": sql("DROP INDEX IF EXISTS idx_api_keys_hash"),
    "an own index": sql("CREATE INDEX own_index ON sessions (status, agent_name)"),
    "an own partial index": sql("CREATE INDEX own_partial ON sandboxes (agent_name) WHERE state = 'cold'"),
    "an index over a timestamp": sql("CREATE INDEX own_created ON sessions (created_at)"),
    "an own table": sql("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)", "INSERT INTO notes VALUES (1, 'me')"),
    "an own column": sql("ALTER TABLE sandboxes ADD COLUMN labels TEXT"),
    "an own column with a default": sql("ALTER TABLE agents ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'"),
    "a view": sql("CREATE VIEW own_view AS SELECT id, created_at, status FROM sessions WHERE status = 'active'"),
    "a view over a view": sql(
        "CREATE VIEW own_first AS SELECT agent_name, created_at FROM sandboxes",
        "CREATE VIEW own_second AS SELECT agent_name, max(created_at) AS latest FROM own_first GROUP BY agent_name",
    ),
    "a trigger": sql(
        "CREATE TABLE log (what TEXT)",
        "CREATE TRIGGER own_trigger AFTER UPDATE ON agents BEGIN INSERT INTO log VALUES (new.name); END",
        only="sqlite",
    ),
    "a trigger function": sql(
        "CREATE TABLE log (what TEXT)",
        "CREATE FUNCTION own_log() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log VALUES (NEW.name); RETURN NEW; END $$",
        "CREATE TRIGGER own_trigger BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION own_log()",
        only="postgresql",
    ),
    "a foreign key to a table of ours": sql(
        "CREATE TABLE transcripts (id INTEGER, session_id TEXT REFERENCES sessions(id) ON DELETE CASCADE)",
        "INSERT INTO transcripts SELECT 1, id FROM sessions",
    ),
    "a foreign key that is broken already": sql(
        "CREATE TABLE orphans (id INTEGER, session_id TEXT REFERENCES sessions(id))",
        "INSERT INTO orphans VALUES (1, 'nobody')",
        only="sqlite",
    ),
    "a check": sql("ALTER TABLE sessions ADD CHECK (status <> 'nonsense')", only="postgresql"),
    "a generated column": sql(
        "ALTER TABLE sessions ADD COLUMN short TEXT GENERATED ALWAYS AS (substr(id, 1, 8)) VIRTUAL", only="sqlite"
    ),
    "a stored generated column": sql(
        "ALTER TABLE sessions ADD COLUMN short TEXT GENERATED ALWAYS AS (substr(id, 1, 8)) STORED", only="postgresql"
    ),
    "a partial copy": sql("CREATE TABLE sessions_backup AS SELECT * FROM sessions"),
    "bytes": sql("CREATE TABLE blobs (data BLOB)", "INSERT INTO blobs VALUES (x'00ff'), (NULL)", only="sqlite"),
    "a virtual table": sql(
        "CREATE VIRTUAL TABLE search USING fts5(text)", "INSERT INTO search VALUES ('found')", only="sqlite"
    ),
    "nullable tenants": sql("ALTER TABLE sessions ALTER COLUMN tenant_id DROP NOT NULL", only="postgresql"),
    "no default": sql("ALTER TABLE sandboxes ALTER COLUMN state DROP DEFAULT", only="postgresql"),
    "another default": sql("ALTER TABLE agents ALTER COLUMN version SET DEFAULT 7", only="postgresql"),
    "varchar": sql("ALTER TABLE sessions ALTER COLUMN status TYPE varchar(40)", only="postgresql"),
    "another key name": sql("ALTER TABLE sessions RENAME CONSTRAINT sessions_pkey TO pk_sessions", only="postgresql"),
    "a column order of its own": sql(
        "ALTER TABLE sandboxes RENAME TO old", "CREATE TABLE sandboxes AS SELECT * FROM old", "DROP TABLE old",
        "ALTER TABLE sandboxes ADD PRIMARY KEY (id)", only="postgresql",
    ),
}  # fmt: skip


def applies(connection: BaseDatabaseWrapper, stem: str, change: str) -> bool:
    has_tenants = stem != "era-a"
    return has_tenants or change not in ("nullable tenants",)


@pytest.mark.parametrize("change", HARMLESS)
def test_a_harmless_change_is_adopted_with_it(
    load_legacy: Load, engine: str, change: str
):
    stem = "era-b-small"
    url = load_legacy(stem)
    with opened(url) as connection:
        HARMLESS[change](connection)

    run = baselinedb(url, "--no-backup")

    assert (run.code, run.err if run.code else "") == (0, "")
    with opened(url) as connection:
        assert_adopted(connection)
        assert_rows_of(connection, stem)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stem", ["era-a", "era-a-opened-by-b", "era-d"])
def test_several_changes_at_once_are_adopted(
    load_legacy: Load, engine: str, stem: str, seed: int
):
    random_ = random.Random(f"{engine} {stem} {seed}")
    url = load_legacy(stem)
    chosen = random_.sample(sorted(HARMLESS), 8)
    chosen.sort(
        key=lambda change: "view" in change
    )  # a column that a view shows cannot be altered
    if {"a trigger", "a trigger function"} <= set(chosen):
        chosen.remove("a trigger")
    with opened(url) as connection:
        for change in chosen:
            if applies(connection, stem, change):
                HARMLESS[change](connection)

    run = baselinedb(url, "--no-backup")

    assert (run.code, run.err if run.code else "") == (0, ""), chosen
    with opened(url) as connection:
        assert_adopted(connection)
        assert_rows_of(connection, stem)


def test_views_triggers_and_own_indexes_work_after_an_adoption(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-small")
    trigger = "a trigger" if engine == "sqlite" else "a trigger function"
    with opened(url) as connection:
        for change in (
            "a view",
            "a view over a view",
            trigger,
            "an own index",
            "an own table",
        ):
            HARMLESS[change](connection)
        active = rows(connection, "SELECT count(*) FROM own_view")

    baselinedb(url, "--no-backup")

    with opened(url) as connection:
        assert rows(connection, "SELECT count(*) FROM own_view") == active
        assert len(rows(connection, "SELECT * FROM own_second")) > 0
        assert (
            rows(connection, "SELECT what FROM log") == []
        )  # the adoption fired no trigger
        rows(connection, "UPDATE agents SET version = version + 1 WHERE name = 'alpha'")
        assert rows(connection, "SELECT what FROM log") == [("alpha",)]
        assert rows(connection, "SELECT text FROM notes") == [("me",)]
        table = (
            "sqlite_master WHERE name = 'own_index'"
            if engine == "sqlite"
            else "pg_class WHERE relname = 'own_index'"
        )
        assert rows(connection, f"SELECT count(*) FROM {table}") == [(1,)]


@pytest.mark.parametrize(
    "drop", ["idx_sessions_tenant", "idx_agents_created", "idx_sessions_runner_created"]
)
def test_an_adopted_database_that_was_altered_is_repaired_without_touching_a_row(
    url: str, engine: str, drop: str
):
    with opened(url) as connection:
        rows(connection, "INSERT INTO agents (id, name, path) VALUES ('1', 'a', '/a')")
        before = rows(connection, "SELECT * FROM agents")
        rows(connection, f"DROP INDEX {drop}")

    check = baselinedb(url, "--check")
    run = baselinedb(url, "--no-backup")

    assert (
        "Shape: changed since migration 0004_fleet_indexes was applied"
        in check.out.splitlines()
    )
    assert (check.code, run.code) == (1, 0)
    with opened(url) as connection:
        assert_adopted(connection)
        assert rows(connection, "SELECT * FROM agents") == before


def test_tables_that_are_partly_native_keep_every_microsecond(url: str, engine: str):
    with opened(url) as connection:
        rows(
            connection,
            "INSERT INTO agents (id, name, path, created_at, updated_at)"
            " VALUES ('1', 'a', '/a', '2026-02-19 20:53:16.123456', '2026-02-19 20:53:17')",
        )
        before = contents(connection, "agents", ["id", "created_at", "updated_at"])
        rows(connection, "DROP TABLE django_migrations")
        rows(connection, "DROP TABLE sandboxes")
        rows(
            connection,
            "CREATE TABLE sandboxes (id TEXT PRIMARY KEY, session_id TEXT, agent_name TEXT NOT NULL,"
            " state TEXT NOT NULL, workspace_dir TEXT NOT NULL, created_at TEXT NOT NULL, last_used_at TEXT NOT NULL)",
        )
        rows(
            connection,
            "INSERT INTO sandboxes VALUES ('s', NULL, 'a', 'cold', '/w', '2026-02-19T20:53:16.123Z',"
            " '2026-02-19 20:53:16')",
        )

    run = baselinedb(url, "--no-backup")

    assert "Shape: in part with native timestamps" in run.out.splitlines()
    assert (run.code, run.err if run.code else "") == (0, "")
    with opened(url) as connection:
        assert_adopted(connection)
        assert (
            contents(connection, "agents", ["id", "created_at", "updated_at"]) == before
        )
        assert (
            len(contents(connection, "sandboxes", ["id", "created_at", "last_used_at"]))
            == 1
        )


def test_a_record_that_is_not_true_is_taken_back(load_legacy: Load, engine: str):
    """Somebody ran Django's own --fake over the old tables."""
    url = load_legacy("era-b-small")
    with opened(url) as connection:
        run_sql(
            connection,
            "CREATE TABLE django_migrations (id INTEGER PRIMARY KEY "
            + (
                "AUTOINCREMENT"
                if engine == "sqlite"
                else "GENERATED BY DEFAULT AS IDENTITY"
            )
            + ", app VARCHAR(255) NOT NULL, name VARCHAR(255) NOT NULL, applied "
            + ("DATETIME" if engine == "sqlite" else "TIMESTAMPTZ")
            + " NOT NULL)",
            *(
                f"INSERT INTO django_migrations (app, name, applied) VALUES ('agentdb', '{name}', '2026-01-01')"
                for name in (
                    "0001_initial",
                    "0002_native_timestamps",
                    "0003_query_indexes",
                    "0004_fleet_indexes",
                )
            ),
        )

    run = baselinedb(url, "--no-backup")

    assert run.code == 0
    with opened(url) as connection:
        assert_adopted(connection)
        assert_rows_of(connection, "era-b-small")


def test_a_database_without_its_record_gets_it_back(url: str, engine: str):
    with opened(url) as connection:
        rows(connection, "DROP TABLE django_migrations")

    run = baselinedb(url, "--no-backup")

    assert run.code == 0
    assert (
        "Shape: the tables of migration 0004_fleet_indexes, but no migration is recorded"
        in run.out.splitlines()
    )
    with opened(url) as connection:
        assert_adopted(connection)


def test_names_of_which_only_the_case_differs_are_two_agents(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-a")

    baselinedb(url, "--no-backup")

    with opened(url) as connection:
        found = {name for (name,) in rows(connection, "SELECT name FROM agents")}
        assert {"alpha", "Alpha", "ALPHA"} <= found


@pytest.mark.parametrize("engine", ["sqlite"])  # journal modes are SQLite's
def test_a_sqlite_database_in_another_journal_mode_is_looked_at_without_a_switch(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-a")
    with opened(url) as connection:
        rows(connection, "PRAGMA journal_mode = DELETE")
    before = snapshot(url)

    assert baselinedb(url, "--check").code == 1

    assert snapshot(url) == before
    assert sqlite_path(url).read_bytes()[18:20] == b"\x01\x01"
