"""Tries an adoption on a copy of a SQLite schema in memory, without rows, so that ``--check`` finds what would fail.

Only SQLite itself knows everything that prevents a change: functions and collations that only the operator's program
defines, taken names, contradictory constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.db.utils import load_backend

from agentdb.adoption.culprits import explain
from agentdb.adoption.dependents import DROP_FIRST
from agentdb.adoption.obstacles import OLD_COLUMNS, first_line
from agentdb.adoption.plan import Plan, Refusal
from agentdb.errors import SchemaMismatchError

_ALIAS = "agentdb_rehearsal"


def rehearse(
    connection: BaseDatabaseWrapper,
    plan: Plan,
    act: Callable[[BaseDatabaseWrapper], None],
) -> tuple[Refusal, ...]:
    """Call ``act`` on a copy of the schema; return its error."""
    try:
        with _copy_in_memory(connection) as copy:
            if refusals := _copy_schema(
                connection, copy, {*OLD_COLUMNS, *plan.renames}
            ):
                return refusals
            act(copy)
    except DatabaseError as error:
        return (Refusal(explain(first_line(error))),)
    except SchemaMismatchError as error:
        # The sentence already names the operator's object and what to do.
        reason = str(error) if str(error).endswith(DROP_FIRST) else explain(str(error))
        return getattr(error, "refusals", None) or (Refusal(reason),)
    return ()


@contextmanager
def _copy_in_memory(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper]:
    settings = {**connection.settings_dict, "NAME": ":memory:", "OPTIONS": {}}
    copy: BaseDatabaseWrapper = load_backend(settings["ENGINE"]).DatabaseWrapper(
        settings, _ALIAS
    )
    connections.settings[_ALIAS], connections[_ALIAS] = settings, copy
    try:
        yield copy
    finally:
        del connections.settings[_ALIAS], connections[_ALIAS]
        copy.connection and copy.connection.close()


def _copy_schema(
    source: BaseDatabaseWrapper, copy: BaseDatabaseWrapper, ours: set[str]
) -> tuple[Refusal, ...]:
    with source.cursor() as cursor:
        cursor.execute("PRAGMA main.table_list")
        shadows = {row[1] for row in cursor.fetchall() if row[2] == "shadow"}
        cursor.execute(
            "SELECT type, name, lower(tbl_name), sql FROM main.sqlite_master WHERE sql IS NOT NULL"
            " ORDER BY CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 WHEN 'view' THEN 3 ELSE 4 END, rowid"
        )
        objects = [
            row
            for row in cursor.fetchall()
            if row[1] not in shadows and not row[1].startswith("sqlite_")
        ]
    copy.ensure_connection()
    copy.disable_constraint_checking()
    for kind, name, table, sql in objects:
        try:
            with copy.cursor() as cursor:
                cursor.execute(sql, None)
        except DatabaseError as error:
            if table in ours and kind != "view":
                return (
                    Refusal(
                        explain(
                            f"{kind} {name!r}: {first_line(error).removesuffix('.')}"
                        )
                    ),
                )
            # Skip other objects that cannot be read here.
    # The table may be missing.
    with (
        suppress(DatabaseError),
        source.cursor() as cursor,
    ):
        cursor.execute("SELECT app, name FROM django_migrations")
        for app, name in cursor.fetchall():
            MigrationRecorder(copy).record_applied(app, name)
    return ()
