"""What stands in the way of an adoption: refused by table and row, before anything is touched."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from agentdb.adoption.change import Change
from agentdb.adoption.execution import look
from agentdb.adoption.plan import decide
from agentdb.adoption.report import describe_findings
from tests.helpers.baseline_runs import Told, baselinedb, snapshot
from tests.helpers.legacy_databases import opened, rows
from tests.helpers.old_upgrades import STATEMENTS

Load = Callable[[str], str]

ONE = "1 value cannot be converted. Fix it, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the command again."
NEW = "INSERT INTO sessions (id, agent_name, sandbox_id{}) VALUES ('bad', 'a', 'b'{})"
AGENT = "INSERT INTO agents (id, name, path{}) VALUES ('bad', 'a', '/'{})"


def refused(url: str, *statements: str | bytes) -> str:
    """Run the statements, then baselinedb, which must refuse and change nothing; return its message."""
    with opened(url) as connection:
        for statement in statements:
            rows(connection, str(statement))
        if connection.vendor == "sqlite":
            rows(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
    before = snapshot(url)
    runs = [baselinedb(url, "--check"), baselinedb(url)]
    assert [run.code for run in runs] == [2, 2]
    assert runs[0].err == runs[1].err
    assert snapshot(url) == before
    return runs[0].err


TIMESTAMPS = [
    ("", "is in no known timestamp format"),
    ("1771534396", "is in no known timestamp format"),
    ("2026-02-30T10:00:00.000Z", "is not a valid date"),
    ("2026-02-19T20:53:16.123", "names no time zone"),
    ("2026-02-19 24:00:00", "is in no known timestamp format"),
    ("05/06/2026 10:00:00 CET", "may be day/month or month/day"),
    (
        "Thu 19 Feb 10:00:00 2026 IST",
        "names its zone IST, which does not say one offset from UTC",
    ),
]


@pytest.mark.parametrize(("text", "reason"), TIMESTAMPS)
def test_a_timestamp_that_proves_no_instant_is_refused(
    load_legacy: Load, engine: str, text: str, reason: str
):
    message = refused(
        load_legacy("era-b-empty"), NEW.format(", created_at", f", '{text}'")
    )

    assert (
        message
        == f"{ONE}\n  table 'sessions', id 'bad', column 'created_at': {text!r} {reason}"
    )


def test_only_the_first_twenty_are_shown_with_the_total(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-b-empty"),
        *(
            "INSERT INTO sandboxes (id, agent_name, workspace_dir, last_used_at)"
            f" VALUES ('s{number:02}', 'a', '/', 'never')"
            for number in range(25)
        ),
    )

    lines = message.splitlines()
    assert lines[0] == (
        "25 values cannot be converted (the first 20 are shown). Fix them, timestamps as "
        "'YYYY-MM-DD HH:MM:SS+00:00', and run the command again."
    )
    assert len(lines) == 21
    assert (
        lines[1]
        == "  table 'sandboxes', id 's00', column 'last_used_at': 'never' is in no known timestamp format"
    )


def test_a_single_tenant_agent_is_named_by_its_name(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-a"),
        "INSERT INTO agents (name, path, created_at) VALUES ('the-one', '/', 'yesterday')",
    )

    assert message == (
        f"{ONE}\n  table 'agents', name 'the-one', column 'created_at': 'yesterday' is in no known timestamp format"
    )


SQLITE_ONLY = [
    (
        "INSERT INTO sessions (rowid, id, agent_name, sandbox_id) VALUES (777, NULL, 'a', 'b')",
        "table 'sessions', rowid 777, column 'id': NULL is not allowed",
    ),
    (
        "INSERT INTO agents (rowid, id, name, path) VALUES (778, NULL, 'a', '/')",
        "table 'agents', rowid 778, column 'id': NULL is not allowed",
    ),
    (
        "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('bad', x'00ff', 'b')",
        "table 'sessions', id 'bad', column 'agent_name': b'\\x00\\xff' is not text",
    ),
    (
        "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('bad', CAST(x'41ff42' AS TEXT), 'b')",
        "table 'sessions', id 'bad', column 'agent_name': b'A\\xffB' is not valid UTF-8",
    ),
    (
        "INSERT INTO agents (id, name, path, version) VALUES ('bad', 'a', '/', 'two')",
        "table 'agents', id 'bad', column 'version': 'two' is not an integer",
    ),
    (
        "INSERT INTO agents (id, name, path, version) VALUES ('bad', 'a', '/', 1.5)",
        "table 'agents', id 'bad', column 'version': 1.5 is not an integer",
    ),
    (
        "INSERT INTO api_keys (id, tenant_id, key_hash, created_at) VALUES ('bad', 't', 'h', x'3230')",
        "table 'api_keys', id 'bad', column 'created_at': b'20' is not text",
    ),
]


@pytest.mark.parametrize(("statement", "row"), SQLITE_ONLY)
@pytest.mark.parametrize("engine", ["sqlite"])  # PostgreSQL stores no such value
def test_a_value_that_only_sqlite_stores_is_refused(
    load_legacy: Load, engine: str, statement: str, row: str
):
    assert refused(load_legacy("era-b-empty"), statement) == f"{ONE}\n  {row}"


@pytest.mark.parametrize("engine", ["sqlite"])  # PostgreSQL's primary keys are NOT NULL
def test_a_single_tenant_agent_without_a_name_is_refused(
    load_legacy: Load, engine: str
):
    message = refused(
        load_legacy("era-a"),
        "INSERT INTO agents (rowid, name, path) VALUES (999, NULL, '/')",
    )

    assert (
        message
        == f"{ONE}\n  table 'agents', rowid 999, column 'name': NULL is not allowed"
    )


@pytest.mark.parametrize(
    "engine", ["postgresql"]
)  # SQLite cannot drop NOT NULL from a column
def test_a_null_where_the_models_allow_none_is_refused(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-b-empty"),
        "ALTER TABLE sessions ALTER COLUMN tenant_id DROP NOT NULL",
        NEW.format(", tenant_id", ", NULL"),
    )

    assert (
        message
        == f"{ONE}\n  table 'sessions', id 'bad', column 'tenant_id': NULL is not allowed"
    )


@pytest.mark.parametrize(
    "engine", ["postgresql"]
)  # PostgreSQL's stuck state alone has ids that are not unique
def test_agents_that_share_an_id_are_refused(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-b-stuck"),
        "INSERT INTO agents (id, name, path) VALUES ('same', 'one', '/'), ('same', 'two', '/')",
    )

    assert message == (
        "2 rows of agents share id with another row. Rename or delete all but one, and run the command again.\n"
        "  table 'agents', name 'one', column 'id': 'same' is there more than once\n"
        "  table 'agents', name 'two', column 'id': 'same' is there more than once"
    )


@pytest.mark.parametrize(
    "engine", ["postgresql"]
)  # the constraint cannot be dropped on SQLite without a rebuild
def test_api_keys_that_share_a_hash_are_refused(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-b-empty"),
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_hash_key",
        "INSERT INTO api_keys (id, tenant_id, key_hash) VALUES ('1', 't', 'same'), ('2', 't', 'same')",
    )

    assert (
        message.splitlines()[1]
        == "  table 'api_keys', id '1', column 'key_hash': 'same' is there more than once"
    )


def test_of_rows_that_share_a_key_the_first_twenty_are_shown_with_the_total(
    load_legacy: Load, engine: str
):
    message = refused(
        load_legacy("dirty-duplicate-agents"),
        *(
            f"INSERT INTO agents (id, name, path) VALUES ('id{number}', 'same', '/')"
            for number in range(21)
        ),
    )

    lines = message.splitlines()
    assert lines[0] == (
        "23 rows of agents share tenant_id, name with another row (the first 20 are shown). Rename or delete all but "
        "one, and run the command again."
    )
    assert len(lines) == 21


@pytest.mark.parametrize("engine", ["sqlite"])  # which alone stores such texts
def test_rows_that_share_a_key_which_is_not_utf8_are_named(
    load_legacy: Load, engine: str
):
    message = refused(
        load_legacy("dirty-duplicate-agents"),
        "DELETE FROM agents",
        *(
            f"INSERT INTO agents (id, name, path) VALUES ('id{number}', CAST(x'ff' AS TEXT), '/')"
            for number in range(2)
        ),
    )

    assert [line for line in message.splitlines() if line.startswith("  ")] == [
        "  table 'agents', id 'id0', column 'name': b'\\xff' is not valid UTF-8",
        "  table 'agents', id 'id1', column 'name': b'\\xff' is not valid UTF-8",
        "  table 'agents', id 'id0', column 'tenant_id, name': 'default', b'\\xff' is there more than once",
        "  table 'agents', id 'id1', column 'tenant_id, name': 'default', b'\\xff' is there more than once",
    ]


def test_reasons_of_several_kinds_are_all_named(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("dirty-duplicate-agents"),
        NEW.format(", created_at", ", 'x'"),
        "CREATE UNIQUE INDEX mine ON sessions (agent_name, id)",
    )

    assert [line for line in message.splitlines() if not line.startswith("  ")] == [
        "Table 'sessions' has a unique index 'mine', which could refuse what agentdb writes. Drop it, or make it one "
        "that is not unique.",
        ONE,
        "2 rows of agents share tenant_id, name with another row. Rename or delete all but one, and run the command "
        "again.",
    ]


def test_a_column_of_ours_that_is_generated_is_refused(load_legacy: Load, engine: str):
    kind = "VIRTUAL" if engine == "sqlite" else "STORED"
    message = refused(
        load_legacy("era-b-empty"),
        "ALTER TABLE agents DROP COLUMN path",
        f"ALTER TABLE agents ADD COLUMN path TEXT GENERATED ALWAYS AS (name || '/') {kind}",
    )

    assert "Column 'path' of table 'agents' is generated. Make it a plain column." in (
        message.splitlines()
    )


def test_rows_are_not_compared_where_a_column_does_not_hold_them(
    load_legacy: Load, engine: str
):
    message = refused(
        load_legacy("dirty-duplicate-agents"),
        "ALTER TABLE agents DROP COLUMN path",
        "ALTER TABLE agents ADD COLUMN path date",
    )

    assert message == (
        "Column 'path' of table 'agents' has the type date, which does not hold what agentdb needs: text."
    )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_what_would_make_an_adoption_fail_does_not_matter_where_nothing_is_to_do(
    url: str, engine: str
):
    with opened(url) as connection:
        # The next migration that is recorded would get an id that is taken.
        rows(
            connection,
            "SELECT setval(pg_get_serial_sequence('django_migrations', 'id'), 1, false)",
        )

    run = baselinedb(url)

    assert (run.code, run.out.splitlines()[-1]) == (0, "Nothing to do.")


def test_a_view_in_place_of_a_table_is_refused(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-b-empty"),
        "ALTER TABLE api_keys RENAME TO real_keys",
        "CREATE VIEW api_keys AS SELECT * FROM real_keys",
    )

    assert message.splitlines()[0] == "'api_keys' is a view, not a table. Rename it."


def test_a_foreign_table_with_one_of_our_names_is_refused(empty_url: str, engine: str):
    message = refused(
        empty_url,
        "CREATE TABLE sessions (session_key TEXT PRIMARY KEY, data TEXT, expires TEXT)",
    )

    assert message == (
        "Table 'sessions' was not made by the server: it has no column 'id', 'agent_name', 'sandbox_id', 'status', "
        "'runner_id', 'created_at', 'last_active_at'. Rename it, or check the database URL."
    )


def test_a_database_of_something_else_is_refused(empty_url: str, engine: str):
    message = refused(
        empty_url,
        "CREATE TABLE invoices (id INTEGER)",
        "CREATE TABLE customers (id INTEGER)",
    )

    assert message == (
        "There is none of the four tables in this database, but 2 other tables. Check the database URL, or run "
        "'agentdb migrate' to create the tables beside them."
    )


def test_a_foreign_key_to_an_agents_name_is_refused(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-a"),
        "CREATE TABLE schedules (id INTEGER, agent TEXT REFERENCES agents(name))",
    )

    assert message == (
        "Table 'schedules' has a foreign key to the name of agents, which several tenants may use once it is adopted. "
        "Drop the foreign key."
    )


@pytest.mark.parametrize("engine", ["postgresql"])  # SQLite has none
def test_a_materialized_view_that_shows_a_timestamp_is_refused(
    load_legacy: Load, engine: str
):
    message = refused(
        load_legacy("era-b-small"),
        "CREATE MATERIALIZED VIEW own_copy AS SELECT id, created_at FROM sessions",
        "CREATE MATERIALIZED VIEW harmless AS SELECT id, status FROM sessions",
    )

    assert message == (
        "Table 'sessions' cannot be converted: cannot alter type of a column used by a view or rule: rule _RETURN on "
        'materialized view own_copy depends on column "created_at". Rename or drop that, run the command again, and '
        "recreate it.\nNothing was changed."
    )


@pytest.mark.parametrize(
    "engine", ["postgresql"]
)  # SQLite cannot change a column's type
def test_a_column_of_another_type_is_refused(load_legacy: Load, engine: str):
    message = refused(
        load_legacy("era-b-empty"),
        "ALTER TABLE sessions ALTER COLUMN created_at DROP DEFAULT",
        "ALTER TABLE sessions ALTER COLUMN created_at TYPE timestamp USING created_at::timestamp",
    )

    assert message == (
        "Column 'created_at' of table 'sessions' has the type timestamp without time zone, which does not hold "
        "what agentdb needs: timestamp."
    )


def test_a_newer_agentdb_is_not_touched(url: str, engine: str):
    message = refused(
        url,
        "INSERT INTO django_migrations (app, name, applied) VALUES ('agentdb', '0999_future', '2030-01-01 00:00:00')",
    )

    assert message == (
        "The database was migrated by a newer agentdb: '0999_future' is unknown here. Upgrade agentdb."
    )


def test_tables_that_were_all_dropped_are_not_recreated_in_silence(
    url: str, engine: str
):
    message = refused(
        url,
        *(
            f"DROP TABLE {name}"
            for name in ("agents", "sessions", "sandboxes", "api_keys")
        ),
    )

    assert message == (
        "Migration '0004_fleet_indexes' is recorded, but none of the four tables is there. Restore a backup, or run "
        "'agentdb migrate --fake agentdb zero' and 'agentdb migrate' to begin with empty tables."
    )


def test_a_unique_index_that_could_refuse_what_agentdb_writes_is_refused(
    load_legacy: Load, engine: str
):
    message = refused(
        load_legacy("era-b-empty"),
        "CREATE UNIQUE INDEX own_unique ON sandboxes (workspace_dir)",
    )

    assert message == (
        "Table 'sandboxes' has a unique index 'own_unique', which could refuse what agentdb writes. Drop it, or make "
        "it one that is not unique."
    )


def test_what_the_models_would_still_differ_from_is_undone(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    url = load_legacy("era-a")
    with opened(url) as connection:
        before = rows(connection, _SCHEMA[engine])
    monkeypatch.setattr(
        "agentdb.adoption.change.drift",
        lambda expected, live: ["This differs.", "That too."],
    )

    run = baselinedb(url, "--no-backup")

    assert run.code == 2
    # SQLite's tables are tried on a copy, before anything could have changed.
    undone = "" if engine == "sqlite" else "\nNothing was changed."
    assert run.err == (
        f"The tables would still differ from the models:\n  This differs.\n  That too.{undone}"
    )
    with opened(url) as connection:
        assert rows(connection, _SCHEMA[engine]) == before


_SCHEMA = {
    "sqlite": "SELECT * FROM sqlite_master ORDER BY name",
    "postgresql": "SELECT table_name, column_name, data_type FROM information_schema.columns"
    " WHERE table_schema = 'public' ORDER BY 1, 2",
}


def test_deciding_is_a_function_of_what_was_found(load_legacy: Load, engine: str):
    """No database is there any more when it is asked."""
    with opened(load_legacy("era-b-small")) as connection:
        told = Told()
        outcome = look(connection.alias, told, lambda *_: None, backup=True)
    findings, plan = outcome.findings, outcome.plan
    assert told.steps == [
        step
        for table, content in findings.contents.items()
        for step in ((table, 0, 1), (table, content.rows, content.rows))
    ]

    assert decide(findings) == plan
    assert len(decide(findings, backup=False).actions) == len(plan.actions) - (
        engine == "sqlite"
    )
    shown = [
        describe_findings(findings._replace(size=size))[0].rpartition(", ")[2]
        for size in (1023, 1024, 1024**2 - 1, 1024**2, 1536 * 1024**2, 1024**4)
    ]
    assert shown == [
        "1023 bytes",
        "1.0 KiB",
        "1024.0 KiB",
        "1.0 MiB",
        "1.5 GiB",
        "1.0 TiB",
    ]
    in_steps = decide(findings._replace(engine="cockroachdb"))
    assert not in_steps.refusals
    assert plan.actions[-1].endswith("roll back if anything differs.")
    assert in_steps.actions[-1].endswith(
        "if the command is stopped, run it again to continue."
    )


def test_no_statement_of_the_upgrade_is_left_when_an_adoption_fails_half_way(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is wrong with the comparison at the end, everything is undone."""
    url = load_legacy("era-a")
    with opened(url) as connection:
        for statement in STATEMENTS[engine][:5]:
            rows(connection, statement)
        before = rows(connection, _SCHEMA[engine])
    sums = itertools.count()
    monkeypatch.setattr(
        "agentdb.adoption.change.checksum", lambda *arguments: (3, next(sums))
    )

    run = baselinedb(url, "--no-backup")

    assert run.code == 2
    first, undone = run.err.splitlines()
    assert first.startswith("The rows differ after the conversion. Please report")
    assert undone == "Nothing was changed."
    with opened(url) as connection:
        assert rows(connection, _SCHEMA[engine]) == before


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_table_of_the_operators_that_changed_undoes_an_adoption(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    """As it would if a rename took the references of other tables along."""
    url = load_legacy("era-b-small")
    with opened(url) as connection:
        for name in ("notes", "kept"):
            rows(connection, f"CREATE TABLE {name} (id TEXT)")
        before = rows(connection, _SCHEMA[engine])
    record = Change._verify_rows

    def meddle(change: Change, *arguments: Any) -> None:
        rows(change.connection, "ALTER TABLE notes ADD COLUMN other TEXT")
        record(change, *arguments)

    monkeypatch.setattr(Change, "_verify_rows", meddle)

    run = baselinedb(url, "--no-backup")

    assert run.code == 2
    assert run.err.endswith(" agentdb. Tables: notes.\nNothing was changed.")
    with opened(url) as connection:
        assert rows(connection, _SCHEMA[engine]) == before
