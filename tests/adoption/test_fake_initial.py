"""``migrate --fake-initial`` on the databases that old servers left behind, and what it and plain migrate refuse."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.core.management import CommandError
from django.db.backends.base.base import BaseDatabaseWrapper

import agentdb
from agentdb.errors import SchemaMismatchError
from agentdb.schema import compare, expected_tables, read_tables
from agentdb.schema.migration_record import migrate, migration_names, pending_migrations
from tests.helpers.legacy_databases import (
    MULTI_TENANT,
    expected,
    manage,
    opened,
    rows,
    sqlite_path,
    stems,
)

TABLES = ("agents", "sessions", "sandboxes", "api_keys")

Load = Callable[[str], str]


def instant(text: str) -> datetime:
    """What an old timestamp means, read by other code than agentdb's."""
    read = datetime.fromisoformat(text)
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


def contents(
    connection: BaseDatabaseWrapper, table: str, columns: list[str]
) -> list[dict[str, Any]]:
    """The table's rows as the driver gives them, in the order of the expected file."""
    selected = ", ".join(f'"{column}"' for column in columns)
    order = 'id COLLATE "C"' if connection.vendor == "postgresql" else "id"
    found = rows(connection, f'SELECT {selected} FROM "{table}" ORDER BY {order}')
    return [dict(zip(columns, row, strict=True)) for row in found]


def native(vendor: str, text: str) -> datetime | str:
    """What a native column gives for an old timestamp: on SQLite, one text for each instant."""
    return (
        str(instant(text).replace(tzinfo=None)) if vendor == "sqlite" else instant(text)
    )


def raw_schema(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """The four tables by the engine's own words, with names, without positions: nothing of agentdb reads it."""
    if connection.vendor == "sqlite":
        found: dict[str, Any] = {}
        for table in TABLES:
            columns = sorted(
                row[1:6] for row in rows(connection, f"PRAGMA table_info({table})")
            )
            indexes = sorted(
                row[1:] for row in rows(connection, f"PRAGMA index_list({table})")
            )
            parts = []
            for name, *_ in indexes:
                names = {
                    row[0]: row[1]
                    for row in rows(connection, f"PRAGMA table_info({table})")
                }
                info = rows(connection, f'PRAGMA index_xinfo("{name}")')
                parts.append([(names.get(row[1]), *row[2:]) for row in info if row[5]])
            keys = rows(connection, f"PRAGMA foreign_key_list({table})")
            made = rows(
                connection,
                "SELECT name, sql FROM sqlite_master WHERE tbl_name = %s AND type = 'index'",
                [table],
            )
            found[table] = (columns, indexes, parts, keys, sorted(made, key=str))
        return found
    return {
        table: (
            rows(
                connection,
                "SELECT column_name, data_type, is_nullable, column_default, collation_name, is_identity, is_generated"
                " FROM information_schema.columns WHERE table_name = %s AND table_schema = current_schema ORDER BY 1",
                [table],
            ),
            rows(
                connection,
                "SELECT conname, contype, pg_get_constraintdef(oid), condeferrable FROM pg_constraint"
                " WHERE conrelid = %s::regclass ORDER BY 1",
                [table],
            ),
            rows(
                connection,
                "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s ORDER BY 1",
                [table],
            ),
        )
        for table in TABLES
    }


def raw_schema_of(url: str) -> dict[str, Any]:
    with opened(url) as connection:
        return raw_schema(connection)


ALL_MULTI_TENANT = [
    (engine, stem) for engine, names in MULTI_TENANT.items() for stem in names
]


@pytest.mark.parametrize(("engine", "stem"), ALL_MULTI_TENANT)
def test_fake_initial_brings_every_row_of_a_multi_tenant_database_through(
    load_legacy: Load, engine: str, stem: str
):
    before = expected(engine, stem)
    with opened(load_legacy(stem)) as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)

        for table in TABLES:
            columns = before["tables"][table]["columns"]
            wanted = [
                {
                    column: native(engine, value) if column.endswith("_at") else value
                    for column, value in row.items()
                }
                for row in before["tables"][table]["rows"]
            ]
            assert contents(connection, table, columns) == wanted
        for table, extra in before["extra_tables"].items():
            name = ".".join(f'"{part}"' for part in table.split("."))
            selected = ", ".join(f'"{column}"' for column in extra["columns"])
            # JSON holds a bigint as text.
            live = sorted(
                [str(value) for value in row]
                for row in rows(connection, f"SELECT {selected} FROM {name}")
            )
            assert live == sorted(
                [str(row[column]) for column in extra["columns"]]
                for row in extra["rows"]
            )


@pytest.mark.parametrize(("engine", "stem"), ALL_MULTI_TENANT)
def test_an_adopted_schema_equals_a_fresh_one_names_included(
    load_legacy: Load, engine: str, stem: str, url: str
):
    fresh = raw_schema_of(url)

    with opened(load_legacy(stem)) as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)

        adopted = raw_schema(connection)
        if stem == "dirty-extra-nullable-column":
            adopted["sessions"][0].remove(("notes", "TEXT", 0, None, 0))
        assert adopted == fresh
        found = compare(expected_tables(connection, apps), read_tables(connection))
        assert [
            difference for difference in found if difference.severity == "drift"
        ] == []
        assert pending_migrations(connection) == []


@pytest.mark.parametrize(("engine", "stem"), ALL_MULTI_TENANT)
def test_an_adopted_database_goes_back_to_text_that_the_old_server_wrote_with_every_row(
    load_legacy: Load, engine: str, stem: str
):
    before = expected(engine, stem)
    with opened(load_legacy(stem)) as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)

        manage(connection, "migrate", "agentdb", "0001")

        for table in TABLES:
            columns = before["tables"][table]["columns"]
            wanted = [
                {
                    column: instant(value).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
                    if column.endswith("_at")
                    else value
                    for column, value in row.items()
                }
                for row in before["tables"][table]["rows"]
            ]
            assert contents(connection, table, columns) == wanted


@pytest.mark.parametrize(("engine", "stem"), ALL_MULTI_TENANT)
def test_migrate_alone_refuses_a_multi_tenant_database_and_names_the_command(
    load_legacy: Load, engine: str, stem: str
):
    with opened(load_legacy(stem)) as connection:
        before = read_tables(connection)

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb")

        assert read_tables(connection) == before
    assert re.fullmatch(
        r"The database already has the old server's tables \(agents, sessions, sandboxes, api_keys\): "
        r"(multi-tenant|a later server's: multi-tenant, with .*)\. Run 'agentdb baselinedb', which backs up, adopts "
        r"and verifies them, or 'agentdb migrate --fake-initial'\.",
        str(refusal.value),
    )


OTHERS = [
    (engine, stem)
    for engine in ("sqlite", "postgresql")
    for stem in stems(engine)
    if stem not in MULTI_TENANT[engine]
]


@pytest.mark.parametrize("fake_initial", [False, True], ids=["migrate", "fake-initial"])
@pytest.mark.parametrize(("engine", "stem"), OTHERS)
def test_every_other_old_database_is_refused_without_a_change(
    load_legacy: Load, engine: str, stem: str, fake_initial: bool
):
    url = load_legacy(stem)
    with opened(url) as connection:
        damaged = stem in ("dirty-truncated", "dirty-not-a-database")
        before = None if damaged else read_tables(connection)
        contents_before = sqlite_path(url).read_bytes() if damaged else None

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", fake_initial=fake_initial)

        message = str(refusal.value)
        if damaged:
            path = sqlite_path(url)
            assert message in (
                f"'{path}' is not a SQLite database, or it is encrypted. Check the database URL.",
                f"The database file '{path}' is damaged: it has 95,846 of the 159,744 bytes that its header names. "
                "Restore a backup.",
            )
            assert path.read_bytes() == contents_before
        else:
            assert read_tables(connection) == before
            assert "already exists" not in message
            assert (
                "Run 'agentdb baselinedb'" in message
                or "run 'agentdb baselinedb'" in message
                or fake_initial
            )


def test_the_refusal_of_a_single_tenant_database_says_what_was_found(
    load_legacy: Load, engine: str
):
    with (
        opened(load_legacy("era-a")) as connection,
        pytest.raises(CommandError) as refusal,
    ):
        manage(connection, "migrate", "agentdb", fake_initial=True)

    assert str(refusal.value) == (
        "The database already has the old server's tables (agents, sessions, sandboxes): single-tenant. Run 'agentdb "
        "baselinedb', which backs up, adopts and verifies them."
    )


def test_the_refusal_of_an_unreadable_timestamp_names_table_row_column_and_value(
    load_legacy: Load, engine: str
):
    id = {
        "sqlite": "1e91e077-4e80-420b-9f23-38b3fdda3097",
        "postgresql": "36ed1107-d63c-416a-b671-d5f70131dda6",
    }
    with opened(load_legacy("dirty-timestamp-garbage")) as connection:
        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", fake_initial=True)

        assert "django_migrations" not in read_tables(connection)
    assert str(refusal.value) == (
        "1 value cannot be converted. Fix it, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the "
        "command again.\n"
        f"  table 'sessions', id '{id[engine]}', column 'created_at': 'not-a-date' is in no known timestamp format"
    )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_zone_abbreviation_with_several_meanings_is_refused(load_legacy: Load):
    with (
        opened(load_legacy("dirty-datestyle")) as connection,
        pytest.raises(CommandError) as refusal,
    ):
        manage(connection, "migrate", "agentdb", fake_initial=True)

    row = "table 'sessions', id 'ds Postgres, DMY Asia/Kolkata', column"
    reason = "'Mon 23 Nov 00:33:17.182641 2026 IST' names its zone IST, which does not say one offset from UTC"
    assert str(refusal.value) == (
        "2 values cannot be converted. Fix them, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the "
        "command again.\n"
        f"  {row} 'created_at': {reason}\n"
        f"  {row} 'last_active_at': {reason}"
    )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_the_other_date_styles_convert_to_their_instants(load_legacy: Load):
    with opened(load_legacy("dirty-datestyle")) as connection:
        rows(connection, "DELETE FROM sessions WHERE created_at LIKE '%IST'")

        manage(connection, "migrate", "agentdb", fake_initial=True)

        assert rows(
            connection,
            "SELECT id, created_at, created_at = last_active_at FROM sessions WHERE id LIKE 'ds %' ORDER BY created_at",
        ) == [
            (
                "ds SQL, DMY Europe/Berlin",
                datetime(2026, 11, 22, 19, 3, 17, 167536, UTC),
                True,
            ),
            (
                "ds SQL, MDY America/New_York",
                datetime(2026, 11, 22, 19, 3, 17, 178513, UTC),
                True,
            ),
            (
                "ds German Europe/Berlin",
                datetime(2026, 11, 22, 19, 3, 17, 180749, UTC),
                True,
            ),
            (
                "ds ISO Asia/Kathmandu",
                datetime(2026, 11, 22, 19, 3, 17, 184832, UTC),
                True,
            ),
        ]


def change(url: str, sql: str) -> None:
    with opened(url) as connection:
        if connection.vendor == "sqlite":
            with sqlite3.connect(sqlite_path(url)) as raw:
                raw.executescript(sql)
            raw.close()
        else:
            rows(connection, sql)


ADOPTABLE: dict[str, tuple[str, ...]] = {
    "sqlite": (
        "ALTER TABLE sessions ADD COLUMN region text NOT NULL DEFAULT 'x'",
        "DROP INDEX idx_sessions_tenant",
        "DROP INDEX idx_api_keys_hash",
        "DROP INDEX idx_sessions_tenant; CREATE INDEX sessions_by_tenant ON sessions (tenant_id)",
        "CREATE UNIQUE INDEX again ON agents (name, tenant_id)",
    )
}
ADOPTABLE["postgresql"] = (
    *ADOPTABLE["sqlite"],
    "ALTER TABLE agents ALTER tenant_id DROP DEFAULT",
    "ALTER TABLE agents RENAME CONSTRAINT agents_pkey TO agents_new_pkey",
    'ALTER TABLE agents ALTER name TYPE text COLLATE "C"',
    "ALTER INDEX idx_sessions_tenant RENAME TO sessions_by_tenant",
    "ALTER TABLE sessions ADD CHECK (length(status) > 2)",
    "ALTER TABLE sessions ALTER status DROP NOT NULL",
    "ALTER TABLE agents ALTER version TYPE bigint",
    "ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_hash_key",
)
REFUSED: dict[str, tuple[str, ...]] = {
    "sqlite": (
        "DROP TABLE sandboxes",
        "ALTER TABLE sessions RENAME COLUMN sandbox_id TO box",
    )
}
REFUSED["postgresql"] = (
    *REFUSED["sqlite"],
    "DROP INDEX idx_agents_tenant_name",
    "ALTER TABLE agents DROP CONSTRAINT agents_pkey",
    "ALTER TABLE agents ALTER version TYPE text",
    "ALTER TABLE sessions ALTER created_at DROP DEFAULT, ALTER created_at TYPE timestamptz USING now()",
    "ALTER TABLE sessions ADD FOREIGN KEY (agent_name) REFERENCES sandboxes",
)


@pytest.mark.parametrize(
    ("engine", "sql"),
    [(engine, sql) for engine in ADOPTABLE for sql in ADOPTABLE[engine]],
)
def test_fake_initial_decides_by_what_the_tables_are_and_ends_equal_to_fresh(
    load_legacy: Load, engine: str, sql: str, url: str
):
    mangled = load_legacy("era-b-empty")
    change(mangled, sql)

    with opened(mangled) as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)

        adopted = raw_schema(connection)
    fresh = raw_schema_of(url)
    if "region" in sql:
        assert adopted.pop("sessions") != fresh.pop("sessions")
    assert adopted == fresh


@pytest.mark.parametrize(
    ("engine", "sql"), [(engine, sql) for engine in REFUSED for sql in REFUSED[engine]]
)
def test_fake_initial_refuses_what_the_migrations_cannot_bring_to_their_shape(
    load_legacy: Load, engine: str, sql: str
):
    mangled = load_legacy("era-b-empty")
    change(mangled, sql)

    with opened(mangled) as connection:
        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", fake_initial=True)

        assert re.search("[Rr]un 'agentdb baselinedb'", str(refusal.value))
        assert pending_migrations(connection) == list(migration_names())


UNFIT = {
    "sqlite": [
        "ALTER TABLE sessions DROP COLUMN sandbox_id;"
        "ALTER TABLE sessions ADD COLUMN sandbox_id BLOB NOT NULL DEFAULT ''"
    ],
    # A cast would store '\\x68656c6c6f', '7.00', and 3 for 2.6.
    "postgresql": [
        "ALTER TABLE sessions ALTER COLUMN sandbox_id TYPE bytea USING 'hello'",
        "ALTER TABLE sessions ALTER COLUMN sandbox_id TYPE numeric(9,2) USING 7",
        "ALTER TABLE agents ALTER COLUMN version TYPE numeric USING 2.6",
        "ALTER TABLE sessions ALTER COLUMN created_at DROP DEFAULT,"
        "ALTER COLUMN created_at TYPE timestamp USING now()",
    ],
}


@pytest.mark.parametrize(
    ("engine", "sql"), [(engine, sql) for engine in UNFIT for sql in UNFIT[engine]]
)
@pytest.mark.parametrize("way", ["0002", "0001"])
def test_migrations_refuse_a_column_of_a_type_whose_cast_makes_other_values(
    url: str, engine: str, sql: str, way: str
):
    agentdb.connect(url).upsert_agent("a", "/")
    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", "0001" if way == "0002" else "0002")
    change(url, sql)
    with opened(url) as connection:
        before = raw_schema(connection)
        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", way)

        assert re.fullmatch(
            r"Column '\w+' of table '\w+' has the type [\w ,()]+, which does not hold what agentdb needs: \w+\.",
            str(refusal.value),
        )
        assert raw_schema(connection) == before


DOUBLED = {
    "sqlite": (
        "CREATE TABLE new AS SELECT * FROM sessions; INSERT INTO new SELECT * FROM sessions LIMIT 1;"
        "DROP TABLE sessions; ALTER TABLE new RENAME TO sessions"
    ),
    "postgresql": (
        "ALTER TABLE sessions DROP CONSTRAINT sessions_pkey; INSERT INTO sessions SELECT * FROM sessions LIMIT 1"
    ),
}


def test_fake_initial_names_rows_with_one_key_before_anything_is_recorded(
    load_legacy: Load, engine: str
):
    mangled = load_legacy("era-b-small")
    change(mangled, DOUBLED[engine])

    with opened(mangled) as connection:
        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", fake_initial=True)

        assert str(refusal.value).startswith(
            "2 rows of sessions share id with another row. Rename or delete all but one, and run the command again.\n"
            "  table 'sessions', id '"
        )
        assert "django_migrations" not in read_tables(connection)


def test_migrate_refuses_final_tables_that_lack_their_record(url: str):
    change(url, "DROP TABLE django_migrations")

    with opened(url) as connection, pytest.raises(CommandError) as refusal:
        manage(connection, "migrate", "agentdb", fake_initial=True)

    assert (
        "): the tables of migration 0004_fleet_indexes, but no migration is recorded. Run 'agentdb baselinedb'"
        in str(refusal.value)
    )


def test_a_view_on_an_adopted_database_still_answers(load_legacy: Load, engine: str):
    url = load_legacy("dirty-view" if engine == "sqlite" else "era-b-small")
    if engine == "postgresql":
        change(
            url,
            "CREATE VIEW active_sessions AS SELECT s.id, s.created_at, a.path FROM sessions s"
            " JOIN agents a ON a.tenant_id = s.tenant_id AND a.name = s.agent_name WHERE s.status = 'active'",
        )
    with opened(url) as connection:
        before = [
            id
            for (id, *_) in rows(
                connection, "SELECT * FROM active_sessions ORDER BY id"
            )
        ]

        manage(connection, "migrate", "agentdb", fake_initial=True)

        assert [
            id
            for (id, *_) in rows(
                connection, "SELECT * FROM active_sessions ORDER BY id"
            )
        ] == before
        assert before


def test_connect_with_migrate_refuses_old_tables_with_the_same_words(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-empty")

    with pytest.raises(SchemaMismatchError) as refusal:
        agentdb.connect(url, migrate=True)

    assert str(refusal.value) == (
        "The database already has the old server's tables (agents, sessions, sandboxes, api_keys): multi-tenant. "
        "Run 'agentdb baselinedb', which backs up, adopts and verifies them, or 'agentdb migrate --fake-initial'."
    )


def test_migrate_of_the_library_raises_what_the_command_prints(
    load_legacy: Load, engine: str
):
    with (
        opened(load_legacy("era-a")) as connection,
        pytest.raises(SchemaMismatchError, match="single-tenant"),
    ):
        migrate(connection.alias)


def test_the_adopted_database_is_served(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)

    with agentdb.connect(url) as db:
        names = [
            row["name"]
            for row in expected(engine, "era-b-small")["tables"]["agents"]["rows"]
        ]
        tenants = {
            row["tenant_id"]
            for row in expected(engine, "era-b-small")["tables"]["agents"]["rows"]
        }
        assert sorted(
            agent.name for tenant in tenants for agent in db.list_agents(tenant)
        ) == sorted(names)


@pytest.mark.parametrize(
    ("stem", "arguments"),
    [
        ("era-b-small", ["--fake-initial"]),
        (None, ["agentdb", "0001"]),
        (None, ["agentdb", "0002"]),
    ],
    ids=["fake-initial", "back", "forth"],
)
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_an_idle_reader_does_not_keep_a_migration_waiting_for_ever(
    load_legacy: Load,
    url: str,
    engine: str,
    stem: str | None,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    url = load_legacy(stem) if stem else url
    with opened(url) as connection, psycopg.connect(url) as reader:
        if arguments[-1] == "0002":
            manage(connection, "migrate", "agentdb", "0001", force=True)
        reader.execute("SELECT count(*) FROM agents")

        with monkeypatch.context() as impatient, pytest.raises(CommandError) as refusal:
            for module in ("agentdb.operations", "agentdb.adoption.execution"):
                impatient.setattr(
                    f"{module}.LIMIT_LOCK_WAITS", "SET LOCAL lock_timeout = '100ms'"
                )
            manage(connection, "migrate", *arguments, force=True)

        assert re.fullmatch(
            r"The tables in '\w+' at .* are in use by a transaction that does not end\. Stop the programs that use "
            r"them, and try again\. Migrations that were done stay\.",
            str(refusal.value),
        )
        reader.rollback()
        manage(connection, "migrate", *arguments, force=True)
