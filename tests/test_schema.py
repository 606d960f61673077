"""What a comparison of schemas finds, and that it finds nothing where there is nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.apps import apps
from django.db import connections

from agentdb.opening import configure
from agentdb.schema import Difference, compare, expected_tables, read_tables
from tests import schema_changes
from tests.conftest import ENGINES
from tests.schema_changes import Database

MODELS = list(apps.get_app_config("agentdb").get_models())
TABLES = [model._meta.db_table for model in MODELS]
COLUMNS = [(model._meta.db_table, field.column) for model in MODELS for field in model._meta.local_concrete_fields]
INDEXES = [(model._meta.db_table, index.name) for model in MODELS for index in model._meta.indexes]
UNIQUES = [("agents", ("tenant_id", "name")), ("api_keys", ("key_hash",))]


@pytest.fixture(scope="module", params=ENGINES)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A migrated database; what a test changes inside ``undone()`` is gone for the next."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("schema") / "agentdb.sqlite3"
        shutil.copyfile(request.getfixturevalue("_migrated_sqlite"), path)
        url, name = f"sqlite:///{path}", None
    else:
        server = request.getfixturevalue("postgres_url")
        name = f"agentdb_schema_{os.getpid()}"
        template = request.getfixturevalue("_migrated_postgres")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    connection = connections[configure(url)]
    yield Database(connection, expected_tables(connection, apps))
    connection.close()
    if name:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def undone(database: Database) -> Iterator[None]:
    database.execute("BEGIN")
    try:
        yield
    finally:
        database.execute("ROLLBACK")


def differences(database: Database) -> list[Difference]:
    found = compare(database.expected, read_tables(database.connection))
    return [one for one in found if one.code != "table.foreign"]


def lines(database: Database) -> list[str]:
    return [difference.message for difference in differences(database) if difference.severity == "drift"]


def try_each(database: Database, changes: tuple[Callable[..., str | None], ...], *things: object) -> int:
    """Make each change alone, and expect its line and no other; return how many there were."""
    wrong = {}
    tried = 0
    for change in changes:
        with undone(database):
            expected = change(database, *things)
            if expected is not None:
                tried += 1
                found = lines(database)
                if found != [expected]:
                    wrong[change.__name__] = {"expected": [expected], "found": found}
    assert wrong == {}
    return tried


def test_a_migrated_database_has_no_difference_and_no_note(database):
    assert differences(database) == []


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_each_change_of_a_column_is_one_line(database, record_property, table, column):
    expected = database.expected[table]

    tried = try_each(database, schema_changes.COLUMN_CHANGES, expected, expected.column(column))

    record_property("schema changes", tried)
    assert tried >= 4


@pytest.mark.parametrize(("table", "index"), INDEXES)
def test_each_change_of_an_index_is_one_line(database, record_property, table, index):
    expected = database.expected[table]

    tried = try_each(database, schema_changes.INDEX_CHANGES, expected, expected.index(index))

    record_property("schema changes", tried)
    assert tried >= 6


@pytest.mark.parametrize(("table", "columns"), UNIQUES)
def test_each_change_of_a_unique_constraint_is_one_line(database, record_property, table, columns):
    expected = database.expected[table]
    (unique,) = (unique for unique in expected.uniques if unique.columns == columns)

    tried = try_each(database, schema_changes.UNIQUE_CHANGES, expected, unique)

    record_property("schema changes", tried)
    assert tried >= 4


@pytest.mark.parametrize("table", TABLES)
def test_each_change_of_a_table_and_each_harmful_addition_is_one_line(database, record_property, table):
    tried = try_each(database, schema_changes.TABLE_CHANGES, database.expected[table])

    record_property("schema changes", tried)
    assert tried >= 11
