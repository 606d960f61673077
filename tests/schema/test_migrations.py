"""Each migration forwards and backwards, with data, on both engines."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.operations.base import Operation
from django.db.migrations.writer import OperationWriter
from django.test.utils import CaptureQueriesContext, override_settings

import agentdb
from agentdb import operations
from agentdb.adoption.obstacles import AdoptionRefusedError
from agentdb.errors import SchemaMismatchError
from agentdb.schema import compare, expected_tables, read_tables
from agentdb.schema.migration_record import migrate, migration_names, pending_migrations
from tests.adoption.test_fake_initial import raw_schema
from tests.helpers.legacy_databases import manage, opened, rows, sqlite_path

Load = Callable[[str], str]

ROOT = Path(__file__).parents[2]
TIMESTAMPS = {
    "agents": ("created_at", "updated_at"),
    "sessions": ("created_at", "last_active_at"),
    "sandboxes": ("created_at", "last_used_at"),
    "api_keys": ("created_at",),
}

# Inserts that leave out every column with a default, as the old server and its operators wrote them.
RAW_INSERTS = {
    "agents": "INSERT INTO agents (id, name, path) VALUES ('{id}', 'n{id}', '/p')",
    "sessions": "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('{id}', 'n', 'b')",
    "sandboxes": "INSERT INTO sandboxes (id, agent_name, workspace_dir) VALUES ('{id}', 'n', '/w')",
    "api_keys": "INSERT INTO api_keys (id, tenant_id, key_hash) VALUES ('{id}', 't', 'h{id}')",
}
DEFAULTS: dict[str, dict[str, object]] = {
    "agents": {"tenant_id": "default", "version": 1},
    "sessions": {"tenant_id": "default", "status": "starting", "runner_id": None},
    "sandboxes": {"tenant_id": "default", "state": "warming", "session_id": None},
    "api_keys": {"label": ""},
}


def insert_raw(connection: BaseDatabaseWrapper, id: str) -> None:
    for sql in RAW_INSERTS.values():
        rows(connection, sql.format(id=id))


def insert_session(
    connection: BaseDatabaseWrapper, id: str, created_at: object, last_active_at: object
) -> None:
    rows(
        connection,
        "INSERT INTO sessions (id, agent_name, sandbox_id, created_at, last_active_at) VALUES (%s, 'a', 'b', %s, %s)",
        [id, created_at, last_active_at],
    )


def test_there_are_four_migrations_named_for_what_they_do():
    assert migration_names() == (
        "0001_initial",
        "0002_native_timestamps",
        "0003_query_indexes",
        "0004_fleet_indexes",
    )


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_fresh_0001_is_the_database_that_the_old_server_makes(
    load_legacy: Load, empty_url: str, engine: str
):
    """Accepted: the position of columns, names that SQLite's shell never shows, and how an autoindex came by its rule.

    On SQLite the old server's unique (tenant_id, name) has no name of its own. That is all.
    """
    with opened(load_legacy("era-b-empty")) as connection:
        old = raw_schema(connection)
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        new = raw_schema(connection)

    if engine == "sqlite":
        # Types and defaults are compared without case and quotes of names: "TEXT" and "text" are one type.
        assert normal_sqlite(new) == normal_sqlite(old)
    else:
        assert new == old


def normal_sqlite(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        table: (
            [(name, type.lower(), *rest) for name, type, *rest in columns],
            indexes,
            parts,
            keys,
            [(name, sql and re.sub(r'[" ]', "", sql).lower()) for name, sql in made],
        )
        for table, (columns, indexes, parts, keys, made) in schema.items()
    }


@pytest.mark.parametrize("name", migration_names())
def test_every_migration_leaves_the_schema_of_its_state_forwards_and_backwards(
    empty_url: str, engine: str, name: str
):
    from django.db.migrations.loader import MigrationLoader

    with opened(empty_url) as connection:
        state = expected_tables(
            connection, MigrationLoader(None).project_state(("agentdb", name)).apps
        )

        manage(connection, "migrate", "agentdb", name)
        forwards = raw_schema(connection)
        found = [compare(state, read_tables(connection), names=name != "0001_initial")]
        manage(connection, "migrate", "agentdb")
        manage(connection, "migrate", "agentdb", name)
        found.append(
            compare(state, read_tables(connection), names=name != "0001_initial")
        )

        assert [
            [d.message for d in differences if d.severity == "drift"]
            for differences in found
        ] == [[], []]
        if engine != "cockroachdb":  # which has all indexes from 0002 on
            assert raw_schema(connection) == forwards


@pytest.mark.parametrize("name", migration_names())
def test_raw_inserts_rely_on_defaults_after_every_migration_and_read_back_as_now(
    empty_url: str, name: str
):
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", name)
        before = datetime.now(UTC) - timedelta(seconds=1)

        insert_raw(connection, "1")

        for table, defaults in DEFAULTS.items():
            assert rows(connection, f"SELECT {', '.join(defaults)} FROM {table}") == [
                tuple(defaults.values())
            ]
        manage(connection, "migrate", "agentdb")
        after = datetime.now(UTC)
        for model in apps.get_app_config("agentdb").get_models():
            row = model._default_manager.using(connection.alias).get()
            for column in TIMESTAMPS[model._meta.db_table]:
                assert before <= getattr(row, column) <= after


def test_raw_inserts_after_going_back_are_read_when_migrating_again(empty_url: str):
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb")
        manage(connection, "migrate", "agentdb", "0001")
        before = datetime.now(UTC) - timedelta(seconds=1)

        insert_raw(connection, "1")

        manage(connection, "migrate", "agentdb")
        [(id, created_at)] = rows(connection, "SELECT id, created_at FROM sessions")
        created_at = datetime.fromisoformat(str(created_at))
        assert before <= created_at.replace(tzinfo=UTC) <= datetime.now(UTC)


# One instant each, a minute apart, in the order of the instants; the order of the texts is another.
MIXED = [
    "2026-02-19T20:53:16.123Z",
    "2026-02-19 20:54:16",
    "2026-02-19 15:55:16.123456-05",
    "2026-02-20 02:26:16.0075+05:30",
    "2026-02-19T20:57:16.000Z",
    "19.02.2026 21:58:16 CET",
    "2026-02-19 20:59:16.5",
    "Thu 19 Feb 16:00:16 2026 EST",
    "2026-02-20T00:01:16.000Z",
    "2026-02-20 00:02:16",
]


# CockroachDB reads no other DateStyle.
_IN_ISO = {
    "19.02.2026 21:58:16 CET": "2026-02-19 21:58:16+01",
    "Thu 19 Feb 16:00:16 2026 EST": "2026-02-19 16:00:16-05",
}


def test_rows_of_all_formats_are_ordered_and_compared_by_their_instants(
    empty_url: str, engine: str
):
    from agentdb.models import Session

    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        for number, mixed in enumerate(MIXED):
            text = _IN_ISO.get(mixed, mixed) if engine == "cockroachdb" else mixed
            insert_session(connection, str(number), text, text)

        manage(connection, "migrate", "agentdb")

        sessions = Session.objects.using(connection.alias)
        assert list(sessions.order_by("created_at").values_list("id", flat=True)) == [
            *"0123456789"
        ]
        for number, session in enumerate(sessions.order_by("id")):
            earlier = sessions.filter(created_at__lt=session.created_at)
            assert sorted(earlier.values_list("id", flat=True)) == [
                *"0123456789"[:number]
            ]
            assert sessions.get(created_at=session.created_at) == session
            assert (
                sessions.get(
                    last_active_at__lte=session.created_at,
                    created_at__gte=session.created_at,
                )
                == session
            )
        if engine == "sqlite":
            canonical = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})?")
            for row in rows(
                connection, "SELECT +created_at, +last_active_at FROM sessions"
            ):
                assert all(
                    canonical.fullmatch(text) and not text.endswith(".000000")
                    for text in row
                )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_text_without_an_offset_is_utc_in_a_project_with_another_zone(
    empty_url: str, engine: str
):
    with opened(empty_url) as connection:
        connection.settings_dict["TIME_ZONE"] = "America/New_York"
        MigrationExecutor(connection).migrate([("agentdb", "0001_initial")])
        text = "2026-02-19 20:53:16"
        insert_session(connection, "s", text, text)

        MigrationExecutor(connection).migrate([("agentdb", "0002_native_timestamps")])

        stored = "SELECT (created_at AT TIME ZONE 'UTC')::text FROM sessions"
        assert rows(connection, stored) == [(text,)]


@pytest.mark.parametrize("engine", ["postgresql"])
def test_no_row_appears_between_the_check_of_the_values_and_their_conversion(
    url: str, engine: str
):
    with opened(url) as connection:
        for name in ("0001_initial", "0002_native_timestamps"):  # back, and forth again
            with CaptureQueriesContext(connection) as sent:
                MigrationExecutor(connection).migrate([("agentdb", name)])

            said = [query["sql"] for query in sent]
            locked = next(
                place for place, sql in enumerate(said) if sql.startswith("LOCK TABLE")
            )
            for table in ("agents", "sessions", "sandboxes", "api_keys"):
                assert f'"{table}"' in said[locked]
                reads = f'FROM "{table}"'
                assert not any(reads in sql for sql in said[:locked])
                assert any(reads in sql for sql in said[locked:])


def test_a_row_written_through_the_models_compares_with_converted_ones(empty_url: str):
    from agentdb.models import Session

    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        insert_session(
            connection, "old", "2026-02-19T20:53:16.123Z", "2026-02-19 20:53:16"
        )
        manage(connection, "migrate", "agentdb")
        sessions = Session.objects.using(connection.alias)

        for id, micro in (("same", 123000), ("later", 123001), ("earlier", 122999)):
            at = datetime(2026, 2, 19, 20, 53, 16, micro, UTC)
            sessions.create(
                id=id, agent_name="a", sandbox_id="b", created_at=at, last_active_at=at
            )

        old = sessions.get(id="old")
        assert old.created_at == datetime(2026, 2, 19, 20, 53, 16, 123000, UTC)
        assert set(
            sessions.filter(created_at=old.created_at).values_list("id", flat=True)
        ) == {"old", "same"}
        assert set(
            sessions.filter(created_at__gt=old.created_at).values_list("id", flat=True)
        ) == {"later"}
        assert set(
            sessions.filter(created_at__lt=old.created_at).values_list("id", flat=True)
        ) == {"earlier"}


def test_unreadable_timestamps_stop_the_migration_before_it_changes_anything(
    empty_url: str,
):
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        insert_raw(connection, "good")
        insert_session(connection, "s'1", "not-a-date", "2026-02-19 20:53:16")
        rows(connection, "UPDATE api_keys SET created_at = '05/06/2026 10:00:00 EST'")
        before = raw_schema(connection)
        held = rows(connection, "SELECT * FROM sessions ORDER BY id")

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb")

        assert str(refusal.value) == (
            "2 values cannot be converted. Fix them, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the "
            "command again.\n"
            "  table 'sessions', id \"s'1\", column 'created_at': 'not-a-date' is in no known timestamp format\n"
            "  table 'api_keys', id 'good', column 'created_at': '05/06/2026 10:00:00 EST' may be day/month or "
            "month/day"
        )
        assert raw_schema(connection) == before
        assert rows(connection, "SELECT * FROM sessions ORDER BY id") == held
        assert pending_migrations(connection) == [
            "0002_native_timestamps",
            "0003_query_indexes",
            "0004_fleet_indexes",
        ]


def test_of_many_unreadable_timestamps_the_first_20_are_shown_and_all_are_counted(
    empty_url: str,
):
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        for number in range(15):
            insert_session(connection, f"s{number:02}", "?", "?")

        with pytest.raises(AdoptionRefusedError) as refusal:
            migrate(connection.alias)

    [found] = refusal.value.refusals
    assert (found.total, len(found.rows)) == (30, 20)
    first, *lines = str(refusal.value).split("\n")
    assert first == (
        "30 values cannot be converted (the first 20 are shown). Fix them, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', "
        "and run the command again."
    )
    assert len(lines) == 20
    assert (
        lines[0]
        == "  table 'sessions', id 's00', column 'created_at': '?' is in no known timestamp format"
    )


def test_a_corrected_value_converts_on_the_next_run(empty_url: str):
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        insert_session(connection, "s", "?", "2026-02-19 20:53:16")
        with pytest.raises(CommandError):
            manage(connection, "migrate", "agentdb")

        rows(connection, "UPDATE sessions SET created_at = '2026-02-19 20:53:16+00:00'")

        manage(connection, "migrate", "agentdb")
        assert rows(connection, "SELECT created_at = last_active_at FROM sessions") in (
            [(True,)],
            [(1,)],
        )


@pytest.mark.parametrize("engine", ["sqlite"])
def test_what_only_sqlite_can_hold_is_refused_with_table_and_row(
    empty_url: str, engine: str
):
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        insert_raw(connection, "good")
        rows(
            connection,
            "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES (NULL, 'a', 'b')",
        )
        rows(
            connection,
            "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('blob', x'00ff', 'b')",
        )
        rows(connection, "UPDATE sandboxes SET workspace_dir = CAST(x'2fff' AS TEXT)")
        rows(connection, "UPDATE agents SET version = 'two'")
        rows(connection, "UPDATE api_keys SET created_at = x'31'")

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb")

        assert str(refusal.value) == (
            "5 values cannot be converted. Fix them, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the "
            "command again.\n"
            "  table 'agents', id 'good', column 'version': 'two' is not an integer\n"
            "  table 'sessions', rowid 2, column 'id': NULL is not allowed\n"
            "  table 'sessions', id 'blob', column 'agent_name': b'\\x00\\xff' is not text\n"
            "  table 'sandboxes', id 'good', column 'workspace_dir': b'/\\xff' is not valid UTF-8\n"
            "  table 'api_keys', id 'good', column 'created_at': b'1' is not text"
        )
        assert rows(connection, "SELECT count(*) FROM sessions") == [(3,)]


def test_microseconds_are_lost_on_the_way_back_and_nothing_else_is(empty_url: str):
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb", "0001")
        insert_session(
            connection, "s", "2026-02-19 15:53:16.123999-05", "2026-02-19 20:53:16"
        )
        manage(connection, "migrate", "agentdb")

        manage(connection, "migrate", "agentdb", "0001")

        assert rows(
            connection, "SELECT id, created_at, last_active_at, runner_id FROM sessions"
        ) == [("s", "2026-02-19T20:53:16.123Z", "2026-02-19T20:53:16.000Z", None)]


def test_an_instant_that_the_old_server_cannot_read_stops_the_way_back(
    empty_url: str, engine: str
):
    value = "someday" if engine == "sqlite" else "infinity"
    with opened(empty_url) as connection:
        manage(connection, "migrate", "agentdb")
        insert_raw(connection, "1")
        rows(connection, f"UPDATE sandboxes SET last_used_at = '{value}'")

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", "0001")

        shown = "294276-12-31 23:59:59.999999+00" if engine == "cockroachdb" else value
        assert str(refusal.value) == (
            "1 value cannot be converted. Fix it, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the "
            "command again.\n"
            f"  table 'sandboxes', id '1', column 'last_used_at': '{shown}' is in no known timestamp format"
        )
        assert rows(
            connection, f"SELECT count(*) FROM sandboxes WHERE last_used_at = '{value}'"
        ) == [(1,)]


class AgentDbIsElsewhere:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return app_label != "agentdb"


def test_another_programs_tables_stop_no_migration_where_agentdb_has_none(
    empty_url: str,
):
    routers = [f"{__name__}.AgentDbIsElsewhere"]
    with opened(empty_url) as connection, override_settings(DATABASE_ROUTERS=routers):
        # As a table of agentdb's it would be refused: the column is of a type that holds no timestamps.
        rows(connection, "CREATE TABLE agents (created_at boolean)")

        for name in (migration_names()[-1], "0001_initial"):
            MigrationExecutor(connection).migrate([("agentdb", name)])

        assert read_tables(connection).keys() == {"agents", "django_migrations"}
        assert rows(connection, "SELECT created_at FROM agents") == []


def test_the_operation_of_0002_can_be_written_into_a_squashed_migration():
    wanted = import_module("agentdb.migrations.0002_native_timestamps").Migration

    written, imports = OperationWriter(wanted.operations[0], indentation=0).serialize()

    assert imports >= {"import agentdb.operations"}
    assert written.startswith(
        "agentdb.operations.NativeTimestamps(\n    state_operations=["
    )
    for model in ("Agent", "Session", "Sandbox", "ApiKey"):
        assert f"model_name='{model}'" in written


def test_a_transaction_goes_on_after_the_question_what_an_empty_database_lacks(
    empty_url: str,
):
    with opened(empty_url) as connection, transaction.atomic(connection.alias):
        assert pending_migrations(connection) == list(migration_names())
        assert rows(connection, "SELECT 1") == [(1,)]


def test_migrate_zero_drops_the_four_tables_and_migrate_makes_them_again(url: str):
    with opened(url) as connection:
        before = raw_schema(connection)

        manage(connection, "migrate", "agentdb", "zero")
        assert read_tables(connection).keys() <= {"django_migrations"}

        manage(connection, "migrate", "agentdb")
        assert raw_schema(connection) == before


def test_a_recorded_first_migration_over_other_tables_is_caught_by_the_second(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-a")) as connection:
        manage(connection, "migrate", "agentdb", "0001", fake=True)

        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb")

    assert "Run 'agentdb baselinedb'." in str(refusal.value)
    assert isinstance(refusal.value.__cause__, SchemaMismatchError)


def test_makemigrations_finds_nothing_to_do(url: str):
    with opened(url) as connection:
        out = io.StringIO()
        call_command("makemigrations", "agentdb", check=True, dry_run=True, stdout=out)
        assert connection.alias
    assert out.getvalue() == "No changes detected in app 'agentdb'\n"


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", migration_names())
def test_sqlmigrate_prints_every_migration(
    url: str, engine: str, name: str, backwards: bool
):
    with opened(url) as connection:
        printed = manage(connection, "sqlmigrate", "agentdb", name, backwards=backwards)

    if name == "0002_native_timestamps":
        assert "-- THIS OPERATION CANNOT BE WRITTEN AS SQL" in printed
    elif engine == "cockroachdb" and name == "0001_initial" and not backwards:
        assert "-- (no-op)" in printed  # 0002 creates the tables
    else:
        assert 'TABLE "sessions"' in printed or '"idx_sessions_tenant_' in printed


def test_plan_names_the_conversion_and_changes_nothing(empty_url: str):
    with opened(empty_url) as connection:
        rows(connection, "SELECT 1")  # makes the SQLite file, which a look does not
        printed = manage(connection, "migrate", plan=True)

        assert "Convert text timestamps to native ones" in printed
        assert not read_tables(connection)


def test_check_tells_pending_migrations_apart(empty_url: str):
    with opened(empty_url) as connection:
        rows(connection, "SELECT 1")  # makes the SQLite file, which a look does not
        with pytest.raises(SystemExit):
            manage(connection, "migrate", "agentdb", check_unapplied=True)
        manage(connection, "migrate", "agentdb")
        manage(connection, "migrate", "agentdb", check_unapplied=True)


@pytest.mark.parametrize("arguments", [[], ["agentdb"]], ids=["all", "agentdb"])
def test_a_migrate_that_has_nothing_to_do_takes_no_lock(
    url: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    with opened(url) as connection:
        manage(connection, "migrate")
        monkeypatch.setattr("agentdb.management.commands.migrate.migration_lock", None)
        assert "No migrations to apply." in manage(connection, "migrate", *arguments)


@pytest.mark.parametrize(
    "operation",
    [operations.CreateLegacyTable, operations.AddIndex],
    ids=["the first migration", "a later one"],
)
def test_a_migrate_stopped_by_ctrl_c_says_what_is_done_and_goes_on(
    empty_url: str,
    operation: type[Operation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def pressed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with opened(empty_url) as connection:
        with monkeypatch.context() as patched:
            patched.setattr(operation, "database_forwards", pressed)
            with pytest.raises(SystemExit) as stopped:
                manage(connection, "migrate", "agentdb")

        assert stopped.value.code == 130
        assert (
            "Interrupted. Migrations that were done stay; 'agentdb migrate' goes on from there.\n"
            in capsys.readouterr().err
        )
        manage(connection, "migrate", "agentdb")
        assert pending_migrations(connection) == []


def test_a_migrate_of_other_apps_takes_the_lock_and_one_of_another_app_alone_does_not(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    taken: list[str] = []

    @contextmanager
    def lock(connection: BaseDatabaseWrapper, waiting: object) -> Iterator[None]:
        taken.append(connection.alias)
        yield

    monkeypatch.setattr("agentdb.management.commands.migrate.migration_lock", lock)
    with opened(url) as connection:
        manage(connection, "migrate", "contenttypes")
        assert taken == []

        manage(connection, "migrate")
        assert taken == [connection.alias]


# CockroachDB's integers have 64 bits, and verifydb expects that.
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_inspectdb_yields_models_that_agree_with_ours_field_by_field(
    url: str, engine: str
):
    with opened(url) as connection:
        printed = manage(
            connection, "inspectdb", "agents", "sessions", "sandboxes", "api_keys"
        )

    namespace: dict[str, Any] = {"__name__": f"inspected_{engine}"}
    source = re.sub(
        r"class Meta:\n",
        f"class Meta:\n        app_label = 'inspected_{engine}'\n",
        printed,
    )
    exec(compile(source, "inspectdb", "exec"), namespace)
    inspected = {
        model._meta.db_table: model
        for model in namespace.values()
        if isinstance(model, type)
        and issubclass(model, models.Model)
        and model is not models.Model
    }
    ours = {
        model._meta.db_table: model
        for model in apps.get_app_config("agentdb").get_models()
    }
    assert inspected.keys() == ours.keys()
    for table, model in ours.items():
        assert fields_of(inspected[table]) == fields_of(model)
        together = [tuple(group) for group in inspected[table]._meta.unique_together]
        assert together == [
            tuple(c.fields)
            for c in model._meta.constraints
            if isinstance(c, models.UniqueConstraint)
        ]


def fields_of(model: type[models.Model]) -> dict[str, tuple[object, ...]]:
    return {
        field.name: (
            field.get_internal_type(),
            field.column,
            field.null,
            field.primary_key,
            field.unique,
        )
        for field in model._meta.local_fields
    }


def test_two_processes_migrate_one_database_at_once_and_both_succeed(empty_url: str):
    command = [sys.executable, "-m", "agentdb", "--url", empty_url, "migrate"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }
    both = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=600) for process in both]

    assert [process.returncode for process in both] == [0, 0], printed
    assert (
        sum(
            out.count("Applying agentdb.0002_native_timestamps... OK")
            for out, _ in printed
        )
        == 1
    )
    with opened(empty_url) as connection:
        assert pending_migrations(connection) == []
        assert len(
            rows(connection, "SELECT 1 FROM django_migrations WHERE app = 'agentdb'")
        ) == len(migration_names())


def test_connect_with_migrate_brings_an_empty_database_up_to_date(empty_url: str):
    with agentdb.connect(empty_url, migrate=True) as db:
        assert db.upsert_agent("a", "/p").version == 1


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_file_that_is_no_database_is_refused_in_a_sentence(
    empty_url: str, engine: str
):
    sqlite_path(empty_url).write_text(
        "not a database, but long enough to be read as a header" * 20
    )

    with opened(empty_url) as connection, pytest.raises(CommandError) as refusal:
        manage(connection, "migrate", "agentdb")

    assert str(refusal.value) == (
        f"'{sqlite_path(empty_url)}' is not a SQLite database, or it is encrypted. Check the database URL."
    )


def test_migrate_zero_refuses_to_drop_rows_and_names_the_way_that_loses_nothing(
    url: str,
):
    with agentdb.connect(url) as db:
        db.upsert_agent("a", "/")
    with opened(url) as connection:
        with pytest.raises(CommandError) as refusal:
            manage(connection, "migrate", "agentdb", "zero")

        assert str(refusal.value) == (
            "'migrate agentdb zero' drops the tables with their rows: agents (1). Nothing was changed. To go back to "
            "the old server and lose nothing, run 'agentdb migrate agentdb 0001'. To drop them, run 'agentdb backup "
            "FILE', delete the rows, and run the command again."
        )
        assert rows(connection, "SELECT name FROM agents") == [("a",)]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_migrate_zero_refuses_to_drop_rows_of_a_table_in_capitals(
    url: str, engine: str
):
    with agentdb.connect(url) as db:
        db.upsert_agent("a", "/")
    with opened(url) as connection:
        rows(connection, "ALTER TABLE agents RENAME TO other")
        rows(connection, 'ALTER TABLE other RENAME TO "Agents"')

        with pytest.raises(CommandError, match=r"with their rows: agents \(1\)"):
            manage(connection, "migrate", "agentdb", "zero")


class Stream(io.StringIO):
    """Input or output, of a terminal or not."""

    def __init__(self, text: str = "", *, is_terminal: bool) -> None:
        super().__init__(text)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    ("reads", "shows", "answer", "is_asked", "is_dropped"),
    [
        (True, True, "yes\n", True, True),
        (True, True, " yes \n", True, True),
        (True, True, "y\n", True, False),
        (True, True, "", True, False),
        (True, False, "yes\n", False, False),
        (False, True, "yes\n", False, False),
        (False, False, "yes\n", False, False),
    ],
)
def test_migrate_zero_asks_a_person_at_a_terminal_and_nobody_else(
    url: str,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    reads: bool,
    shows: bool,
    answer: str,
    is_asked: bool,
    is_dropped: bool,
):
    with agentdb.connect(url) as db:
        db.upsert_agent("a", "/")
        db.insert_session("s", "a", "b")
    monkeypatch.setattr(sys, "stdin", Stream(answer, is_terminal=reads))
    said = Stream(is_terminal=shows)
    with opened(url) as connection:
        try:
            manage(connection, "migrate", "agentdb", "zero", stderr=said)
        except CommandError as refusal:
            assert not is_dropped
            assert "Nothing was changed." in str(refusal)

        assert ("agents" in connection.introspection.table_names()) is not is_dropped
    question = "the tables with their rows: agents (1), sessions (1). Type 'yes' to drop them: "
    assert (question in said.getvalue()) is is_asked
