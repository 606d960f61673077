"""Running baselinedb in this process, and what a database looks like from outside."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.apps import apps
from django.core.management import CommandError, call_command
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema import drift, expected_tables, read_tables
from agentdb.schema.migration_record import migration_names, recorded_migrations
from tests.helpers.legacy_databases import opened, rows, sqlite_path

TABLES = ("agents", "sessions", "sandboxes", "api_keys")

_OLD_COLUMNS = {
    "agents": "name, version, path, created_at, updated_at",
    "sessions": "id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at",
    "sandboxes": "id, session_id, agent_name, state, workspace_dir, created_at, last_used_at",
}


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str  # the message of a refusal, or what was said on the way


def baselinedb(url: str, *arguments: str) -> Run:
    out, err = io.StringIO(), io.StringIO()
    with opened(url) as connection:
        try:
            call_command(
                "baselinedb",
                *arguments,
                database=connection.alias,
                stdout=out,
                stderr=err,
                no_color=True,
            )
        except CommandError as error:
            return Run(error.returncode, out.getvalue(), str(error))
        except SystemExit as error:
            assert isinstance(error.code, int)
            return Run(error.code, out.getvalue(), err.getvalue())
    return Run(0, out.getvalue(), err.getvalue())


class Told:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.said: list[str] = []

    def __call__(self, table: str, done: int, total: int) -> None:
        self.steps.append((table, done, total))

    def say(self, text: str) -> None:
        self.said.append(text)


def instant(text: str) -> datetime:
    """What an old timestamp means, read by other code than agentdb's."""
    read = datetime.fromisoformat(text)
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


def contents(
    connection: BaseDatabaseWrapper, table: str, columns: list[str]
) -> list[dict[str, Any]]:
    """The table's rows, timestamps as instants, in the order of their first column."""
    selected = ", ".join(f'"{column}"' for column in columns)
    found = [
        {
            column: _instant(value) if column.endswith("_at") else value
            for column, value in zip(columns, row, strict=True)
        }
        for row in rows(connection, f'SELECT {selected} FROM "{table}"')
    ]
    return sorted(found, key=lambda row: row[columns[0]].encode())


def _instant(value: str | datetime) -> datetime:
    if isinstance(
        value, str
    ):  # SQLite, where the order of the texts must be that of the instants
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.(?!000000)\d{6})?", value
        )
        value = datetime.fromisoformat(value)
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def expected_contents(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an ``.expected.json``, as ``contents`` gives those of an adopted database."""
    columns = table["columns"]
    found = [
        {
            column: instant(value) if column.endswith("_at") else value
            for column, value in zip(
                columns, row.values() if isinstance(row, dict) else row, strict=True
            )
        }
        for row in table["rows"]
    ]
    return sorted(found, key=lambda row: row[columns[0]].encode())


def assert_adopted(connection: BaseDatabaseWrapper) -> None:
    """The schema is the models' and the record says so."""
    assert drift(expected_tables(connection, apps), read_tables(connection)) == []
    assert sorted(recorded_migrations(connection)) == list(migration_names())


def digest(url: str) -> dict[str, tuple[int, str]]:
    """The rows of the tables that a single-tenant database has, timestamps as instants; by no code of agentdb's."""
    result = {}
    with opened(url) as connection:
        for table, columns in _OLD_COLUMNS.items():
            seen = sorted(
                repr(
                    [
                        _read(v) if c.endswith("_at") else v
                        for c, v in zip(columns.split(", "), row, strict=True)
                    ]
                )
                for row in rows(connection, f"SELECT {columns} FROM {table}")
            )
            result[table] = (
                len(seen),
                hashlib.sha256("\n".join(seen).encode()).hexdigest(),
            )
    return result


def _read(value: str | datetime) -> datetime:
    return instant(value) if isinstance(value, str) else value.astimezone(UTC)


def assert_next_run_finishes(url: str, before: dict[str, tuple[int, str]]) -> None:
    run = baselinedb(url)
    assert (run.code, run.err if run.code else "") == (0, "")
    with opened(url) as connection:
        assert_adopted(connection)
        assert rows(connection, "SELECT count(*) FROM api_keys") == [(0,)]
        assert rows(connection, "SELECT count(DISTINCT id) FROM agents") == [
            (before["agents"][0],)
        ]
    assert digest(url) == before
    if url.startswith("sqlite"):
        assert [
            path.name
            for path in sqlite_path(url).parent.iterdir()
            if ".partial" in path.name
        ] == []


def snapshot(url: str) -> object:
    """Everything that a refusal or a look must leave as it is: the files beside a SQLite file, or a dump."""
    if url.startswith("sqlite"):
        return {
            path.name: path.read_bytes() for path in sqlite_path(url).parent.iterdir()
        }
    with opened(url) as connection:
        tables = rows(
            connection,
            "SELECT n.nspname, c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
            " ORDER BY 1, 2",
        )
        return [
            (
                name,
                rows(
                    connection, f'SELECT t::text FROM "{schema}"."{name}" t ORDER BY 1'
                ),
                rows(
                    connection,
                    "SELECT attname, atttypid, attnotnull, pg_get_expr(adbin, adrelid) FROM pg_attribute"
                    " LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
                    f" WHERE attrelid = {oid} AND attnum > 0 ORDER BY attnum",
                ),
                rows(
                    connection,
                    f"SELECT oid, conname FROM pg_constraint WHERE conrelid = {oid} ORDER BY oid",
                ),
                rows(
                    connection,
                    f"SELECT indexrelid, indexrelid::regclass FROM pg_index WHERE indrelid = {oid}",
                ),
            )
            for schema, name, oid in tables
        ]
