"""What is not ours on the four tables comes through a conversion, or the refusal names it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.conforming import conform_table
from agentdb.errors import SchemaMismatchError
from agentdb.models import Agent
from agentdb.schema import read_tables
from agentdb.schema.sqltext import parse_create_table
from tests.adoption.test_fake_initial import raw_schema
from tests.helpers.legacy_databases import manage, opened, rows, sqlite_path

Load = Callable[[str], str]


def execute(connection: BaseDatabaseWrapper, *statements: str) -> None:
    for sql in statements:
        rows(connection, sql)


def test_definitions_are_found_as_written_whatever_their_quotes_and_comments():
    parsed = parse_create_table(
        """CREATE TABLE "odd ( name" (
            id TEXT PRIMARY KEY, -- the key, of course
            `a,b` text DEFAULT 'it''s, (fine)' NOT NULL,
            [c d] TEXT /* a, comment */ CHECK ("c d" IN ('x', 'y')),
            "unique" TEXT DEFAULT (strftime('%Y-%m-%d', 'now')), price NUMERIC(10, 2)
            , CONSTRAINT "u" UNIQUE (id, `a,b`), FOREIGN KEY (price) REFERENCES t (x, y)
            -- nothing more
        ) WITHOUT ROWID"""
    )

    assert parsed.definitions == {
        "id": "id TEXT PRIMARY KEY",
        "a,b": "`a,b` text DEFAULT 'it''s, (fine)' NOT NULL",
        "c d": "[c d] TEXT /* a, comment */ CHECK (\"c d\" IN ('x', 'y'))",
        "unique": "\"unique\" TEXT DEFAULT (strftime('%Y-%m-%d', 'now'))",
        "price": "price NUMERIC(10, 2)",
    }
    assert parsed.constraints == [
        'CONSTRAINT "u" UNIQUE (id, `a,b`)',
        "FOREIGN KEY (price) REFERENCES t (x, y)",
    ]


def test_the_definition_of_a_column_that_was_added_later_is_found():
    parsed = parse_create_table(
        "CREATE TABLE t (\n  a TEXT\n, b TEXT NOT NULL DEFAULT 'default', c REFERENCES t(a))"
    )

    assert parsed.definitions == {
        "a": "a TEXT",
        "b": "b TEXT NOT NULL DEFAULT 'default'",
        "c": "c REFERENCES t(a)",
    }


@pytest.mark.parametrize("engine", ["sqlite"])
def test_on_sqlite_additional_columns_indexes_triggers_and_views_come_through(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        execute(
            connection,
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, about TEXT REFERENCES agents (id))",
            "CREATE TABLE log (at TEXT DEFAULT (datetime('now')), what TEXT)",
            'ALTER TABLE sessions ADD COLUMN "Cost, in $" NUMERIC DEFAULT 0.5 CHECK ("Cost, in $" >= 0)',
            "ALTER TABLE sessions ADD COLUMN parent TEXT REFERENCES notes (id)",
            "ALTER TABLE sessions ADD COLUMN loud TEXT AS (upper(agent_name)) VIRTUAL",
            'UPDATE sessions SET "Cost, in $" = 2.5 WHERE id = (SELECT min(id) FROM sessions)',
            "CREATE INDEX by_cost ON sessions (\"Cost, in $\" DESC) WHERE status <> 'ended'",
            "CREATE INDEX by_loud ON sessions (loud)",
            "CREATE INDEX by_lower_name ON agents (tenant_id, lower(name), id)",
            "CREATE TRIGGER logged AFTER UPDATE ON sessions BEGIN INSERT INTO log (what) VALUES ('100%s'); END",
            "CREATE VIEW busy AS SELECT id, loud FROM sessions WHERE status = 'active'",
            "CREATE VIEW busy_count AS SELECT count(*) AS n FROM busy",
            "CREATE VIEW broken AS SELECT * FROM nowhere",
            "INSERT INTO notes SELECT NULL, id FROM agents LIMIT 1",
        )
        held = rows(
            connection,
            'SELECT id, "Cost, in $", parent, loud FROM sessions ORDER BY id',
        )
        kinds = "SELECT type, name, sql FROM sqlite_master WHERE name IN ('logged', 'busy', 'busy_count', 'broken',"
        kinds += " 'by_cost', 'by_loud', 'by_lower_name', 'notes') ORDER BY name"
        objects = rows(connection, kinds)
        before = rows(connection, "SELECT * FROM busy_count")
        rows(connection, "DELETE FROM log")

        manage(connection, "migrate", "agentdb", fake_initial=True)
        assert (
            rows(
                connection,
                'SELECT id, "Cost, in $", parent, loud FROM sessions ORDER BY id',
            )
            == held
        )
        assert rows(connection, kinds) == objects
        assert rows(connection, "SELECT * FROM busy_count") == before
        assert rows(connection, "SELECT * FROM log") == []
        assert rows(connection, "PRAGMA foreign_key_list(sessions)")[0][2:5] == (
            "notes",
            "parent",
            "id",
        )
        assert rows(connection, "PRAGMA integrity_check") == [("ok",)]

        manage(connection, "migrate", "agentdb", "0001")
        assert (
            rows(
                connection,
                'SELECT id, "Cost, in $", parent, loud FROM sessions ORDER BY id',
            )
            == held
        )
        assert rows(connection, kinds) == objects
        rows(connection, "UPDATE sessions SET status = 'ended'")
        assert rows(connection, "SELECT DISTINCT what FROM log") == [("100%s",)]


def test_a_missing_column_that_nothing_fills_is_named(url: str) -> None:
    with opened(url) as connection:
        execute(connection, "ALTER TABLE agents DROP COLUMN path")

    with (
        opened(url) as connection,
        connection.schema_editor() as editor,
        pytest.raises(SchemaMismatchError) as error,
    ):
        conform_table(editor, Agent, {})

    assert str(error.value) == (
        "Table 'agents' has no column 'path'. Run 'agentdb baselinedb'."
    )


def test_a_table_that_is_not_there_is_created(url: str) -> None:
    with opened(url) as connection:
        before = raw_schema(connection)
        execute(connection, "DROP TABLE agents")

        with connection.schema_editor() as editor:
            conform_table(editor, Agent, {})

        assert raw_schema(connection) == before


@pytest.mark.parametrize("engine", ["sqlite"])
def test_on_sqlite_a_dangling_reference_is_named_and_the_tables_stay(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        execute(
            connection,
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, about TEXT REFERENCES agents (id))",
            "PRAGMA foreign_keys = OFF",
            "INSERT INTO notes VALUES (1, 'nobody')",
        )
        before = read_tables(connection)

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", fake_initial=True)

        assert str(refusal.value).endswith(
            "the row in table 'notes' with primary key '1' has an invalid foreign key: notes.about contains a value "
            "'nobody' that does not have a corresponding value in agents.id. Migrations that were done stay."
        )
        live = read_tables(connection)
        assert {name: live[name] for name in before} == before


@pytest.fixture
def other_role(postgres_url: str) -> Any:
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE agentdb_reader")
        yield "agentdb_reader"
        connection.execute("DROP ROLE agentdb_reader")


VIEWS = """
    SELECT c.relname, pg_get_viewdef(c.oid), pg_get_userbyid(relowner), relacl::text, reloptions,
        obj_description(c.oid, 'pg_class')
    FROM pg_class c WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace ORDER BY 1
"""


@pytest.mark.parametrize("engine", ["postgresql"])
def test_on_postgresql_views_triggers_and_additional_things_come_through(
    other_role: str, load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        execute(
            connection,
            "CREATE TABLE notes (id int PRIMARY KEY, about text REFERENCES agents (id))",
            "ALTER TABLE sessions ADD COLUMN cost numeric NOT NULL DEFAULT 0.5 CHECK (cost >= 0)",
            "ALTER TABLE sessions ADD COLUMN note int REFERENCES notes",
            "ALTER TABLE sessions ADD COLUMN loud text GENERATED ALWAYS AS (upper(agent_name)) STORED",
            "CREATE INDEX by_cost ON sessions (cost DESC) WHERE status <> 'ended'",
            "CREATE INDEX by_time ON sessions (last_active_at, cost)",
            "CREATE VIEW busy WITH (security_barrier=true) AS"
            " SELECT id, created_at, cost % 7 AS rest FROM sessions WHERE status LIKE 'act%'",
            "COMMENT ON VIEW busy IS 'it''s busy'",
            "GRANT SELECT ON busy TO agentdb_reader WITH GRANT OPTION",
            "GRANT SELECT ON busy TO PUBLIC",
            "CREATE VIEW busiest AS SELECT max(created_at) AS last, count(*) AS n FROM busy",
            "CREATE VIEW untouched AS SELECT id, status FROM sessions",
            "GRANT ALL ON SCHEMA public TO agentdb_reader",
            "ALTER VIEW busiest OWNER TO agentdb_reader",
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''told''; END'",
            "CREATE TRIGGER told BEFORE UPDATE OF last_active_at ON sessions FOR EACH ROW EXECUTE FUNCTION tell()",
            "CREATE TRIGGER hushed BEFORE UPDATE OF created_at ON sessions FOR EACH ROW EXECUTE FUNCTION tell()",
            "ALTER TABLE sessions DISABLE TRIGGER hushed",
            "INSERT INTO notes SELECT 1, min(id) FROM agents",
        )
        triggers = "SELECT tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
        views_before, triggers_before = (
            rows(connection, VIEWS),
            rows(connection, triggers),
        )
        count_before = rows(connection, "SELECT n FROM busiest")
        constraints = (
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conname ~ 'cost|note' ORDER BY 1"
        )
        constraints_before = rows(connection, constraints)

        manage(connection, "migrate", "agentdb", fake_initial=True)

        def same(views: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
            return [
                (name, text, owner, options, comment)
                for name, text, owner, _, options, comment in views
            ]

        assert same(rows(connection, VIEWS)) == same(views_before)
        assert grants(connection, "busy") == {
            ("PUBLIC", "SELECT", "NO"),
            ("agentdb_reader", "SELECT", "YES"),
            *((owner(connection), privilege, "YES") for privilege in ALL_PRIVILEGES),
        }
        assert rows(connection, triggers) == triggers_before
        assert rows(connection, constraints) == constraints_before
        assert rows(connection, "SELECT n FROM busiest") == count_before
        assert {"by_cost", "by_time"} <= {
            index.name for index in read_tables(connection)["sessions"].indexes
        }

        manage(connection, "migrate", "agentdb", "0001")
        assert same(rows(connection, VIEWS)) == same(views_before)
        assert rows(connection, triggers) == triggers_before
        execute(connection, "DROP OWNED BY agentdb_reader CASCADE")


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_view_made_again_gets_no_right_from_default_privileges_and_its_owner_none_back(
    other_role: str, load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        execute(
            connection,
            "CREATE VIEW bare AS SELECT id, created_at FROM sessions",
            "CREATE VIEW theirs AS SELECT id, created_at FROM sessions",
            "GRANT ALL ON SCHEMA public TO agentdb_reader",
            "ALTER VIEW theirs OWNER TO agentdb_reader",
            "REVOKE UPDATE ON theirs FROM agentdb_reader",
            "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO agentdb_reader, PUBLIC",
        )
        before = grants(connection, "bare"), grants(connection, "theirs")

        manage(connection, "migrate", "agentdb", fake_initial=True)

        assert (grants(connection, "bare"), grants(connection, "theirs")) == before
        execute(connection, "DROP OWNED BY agentdb_reader CASCADE")


ALL_PRIVILEGES = (
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "TRUNCATE",
    "REFERENCES",
    "TRIGGER",
)


def owner(connection: BaseDatabaseWrapper) -> str:
    return str(rows(connection, "SELECT current_user")[0][0])


def grants(connection: BaseDatabaseWrapper, view: str) -> set[tuple[str, str, str]]:
    sql = "SELECT grantee, privilege_type, is_grantable FROM information_schema.table_privileges WHERE table_name = %s"
    return {
        (grantee, privilege, may)
        for grantee, privilege, may in rows(connection, sql, [view])
    }


_RENAME = "Rename or drop that, run the command again, and recreate it."
IN_THE_WAY = {
    "CREATE MATERIALIZED VIEW daily AS SELECT substr(created_at, 1, 10) AS day FROM sessions": (
        "Table 'sessions' cannot be converted: cannot alter type of a column used by a view or rule: rule _RETURN on "
        f'materialized view daily depends on column "created_at". {_RENAME}'
    ),
    "CREATE VIEW days AS SELECT substr(created_at, 1, 10) AS day FROM sessions": (
        "View 'days' cannot be recreated with the new types of the columns it reads: function substr(timestamp with "
        "time zone, integer, integer) does not exist. Drop it, run the command again, and recreate it."
    ),
    "CREATE RULE quiet AS ON DELETE TO sandboxes DO INSTEAD NOTHING": (
        "Rule 'quiet' on table 'sandboxes' stands in the way of converting its columns. Drop it and run the command "
        "again."
    ),
    "DROP INDEX idx_sessions_tenant; CREATE VIEW idx_sessions_tenant AS SELECT 1": (
        f"Table 'sessions' cannot be converted: relation \"idx_sessions_tenant\" already exists. {_RENAME}"
    ),
    "CREATE INDEX days ON sessions (substr(created_at, 1, 10))": (
        "Table 'sessions' cannot be converted: function substr(timestamp with time zone, integer, integer) does not "
        f"exist. These read columns whose types change: index days. {_RENAME}"
    ),
    "ALTER TABLE sessions ADD COLUMN day text GENERATED ALWAYS AS (substr(created_at, 1, 10)) STORED": (
        "Table 'sessions' cannot be converted: cannot alter type of a column used by a generated column: Column "
        f'"created_at" is used by generated column "day". {_RENAME}'
    ),
    "CREATE UNIQUE INDEX own ON sessions (agent_name, id)": (
        "Table 'sessions' has a unique index 'own', which could refuse what agentdb writes. Drop it, or make it one "
        "that is not unique."
    ),
}


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("sql", IN_THE_WAY)
def test_on_postgresql_what_cannot_be_recreated_is_named_and_nothing_changes(
    load_legacy: Load, engine: str, sql: str
):
    with opened(load_legacy("era-b-small")) as connection:
        execute(connection, sql)
        before = raw_schema(connection)

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", fake_initial=True)

        assert str(refusal.value) == IN_THE_WAY[sql]
        assert raw_schema(connection) == before


@pytest.mark.parametrize("engine", ["postgresql"])
def test_on_postgresql_a_table_in_another_schema_of_the_search_path_is_left_alone(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        execute(
            connection,
            "CREATE SCHEMA other",
            "CREATE TABLE other.sessions (id text PRIMARY KEY, created_at text)",
            "INSERT INTO other.sessions VALUES ('x', 'not-a-date')",
        )

        manage(connection, "migrate", "agentdb", fake_initial=True)

        assert rows(connection, "SELECT * FROM other.sessions") == [("x", "not-a-date")]


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("option", ["WITHOUT ROWID", "STRICT"])
def test_on_sqlite_a_table_with_other_options_becomes_a_plain_one(
    load_legacy: Load, engine: str, url: str, option: str
):
    with opened(url) as connection:
        fresh = raw_schema(connection)
    with opened(load_legacy("era-b-small")) as connection:
        [(sql,)] = rows(
            connection, "SELECT sql FROM sqlite_master WHERE name = 'api_keys'"
        )
        execute(connection, "ALTER TABLE api_keys RENAME TO copied", f"{sql} {option}")
        execute(
            connection, "INSERT INTO api_keys SELECT * FROM copied", "DROP TABLE copied"
        )
        held = rows(
            connection,
            "SELECT id, tenant_id, key_hash, label FROM api_keys ORDER BY id",
        )

        manage(connection, "migrate", "agentdb", fake_initial=True)

        assert (
            rows(
                connection,
                "SELECT id, tenant_id, key_hash, label FROM api_keys ORDER BY id",
            )
            == held
        )
        assert raw_schema(connection) == fresh


@pytest.mark.parametrize("engine", ["sqlite"])
def test_on_sqlite_a_value_in_a_table_without_rowids_is_refused_by_id(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-empty")) as connection:
        [(sql,)] = rows(
            connection, "SELECT sql FROM sqlite_master WHERE name = 'api_keys'"
        )
        execute(connection, "DROP TABLE api_keys", f"{sql} WITHOUT ROWID")
        execute(connection, "INSERT INTO api_keys VALUES ('k', 't', 'h', '', '?')")

        with pytest.raises(
            CommandError,
            match="table 'api_keys', id 'k', column 'created_at': '\\?' is in no known",
        ):
            manage(connection, "migrate", "agentdb", fake_initial=True)


@pytest.mark.parametrize("engine", ["postgresql"])
def test_on_postgresql_tables_in_a_schema_of_the_search_path_are_adopted_there(
    load_legacy: Load, engine: str, url: str
):
    with opened(url) as connection:
        fresh = raw_schema(connection)
    legacy_url = load_legacy("era-b-small")
    with opened(legacy_url) as connection:
        execute(
            connection,
            "CREATE SCHEMA app",
            *(f"ALTER TABLE {table} SET SCHEMA app" for table in fresh),
        )
        held = rows(connection, "SELECT id FROM app.sessions ORDER BY id")

    separator = "&" if "?" in legacy_url else "?"
    with opened(f"{legacy_url}{separator}options=-csearch_path%3Dapp") as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)

        assert without_schema(raw_schema(connection)) == without_schema(fresh)
        assert rows(connection, "SELECT id FROM app.sessions ORDER BY id") == held
        assert rows(
            connection, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ) == [(0,)]


def without_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        table: (
            columns,
            constraints,
            [(name, sql.replace(" app.", " public.")) for name, sql in indexes],
        )
        for table, (columns, constraints, indexes) in schema.items()
    }


@pytest.mark.parametrize("engine", ["postgresql"])
def test_on_postgresql_the_planner_has_statistics_of_converted_columns_at_once(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)

        assert rows(
            connection,
            "SELECT count(*) FROM pg_stats WHERE attname = 'created_at' AND tablename = 'sessions'",
        ) == [(1,)]


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_role_without_rights_to_the_tables_is_told_so_and_changes_nothing(
    other_role: str, load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        execute(connection, "GRANT ALL ON SCHEMA public TO agentdb_reader")
        execute(
            connection,
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO agentdb_reader",
            "SET ROLE agentdb_reader",
        )

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", fake_initial=True)

        assert str(refusal.value).startswith(
            "The role 'agentdb_reader' does not own table 'agents' and may not change it. Use the role '"
        )
        execute(connection, "RESET ROLE", "DROP OWNED BY agentdb_reader CASCADE")
        assert read_tables(connection)["sessions"].column("created_at").type == "text"


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_role_that_may_create_nothing_is_told_so(
    other_role: str, empty_url: str, engine: str
):
    with opened(empty_url) as connection:
        execute(
            connection, "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        )  # as it is from PostgreSQL 15 on
        execute(connection, "SET ROLE agentdb_reader")

        with pytest.raises(
            CommandError,
            match="may not do this in .*: permission denied for schema public. Use the role that owns the tables.",
        ):
            manage(connection, "migrate", "agentdb")

        execute(connection, "RESET ROLE")


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_locked_sqlite_file_is_refused_in_a_sentence(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    other = sqlite3.connect(sqlite_path(url))
    other.execute("BEGIN IMMEDIATE")
    with (
        opened(f"{url}?timeout=0.1") as connection,
        pytest.raises(CommandError) as refusal,
    ):
        manage(connection, "migrate", "agentdb", fake_initial=True)
    other.rollback()
    other.close()

    assert str(refusal.value) == (
        f"The database file '{sqlite_path(url)}' is locked by another process. Stop the program that uses it, or wait, "
        "and try again. Migrations that were done stay."
    )
