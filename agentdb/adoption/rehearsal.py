"""Tries an adoption on a copy of a SQLite schema in memory, without rows, so that ``--check`` finds what would fail.

Only SQLite itself knows everything that prevents a change: functions and collations that only the operator's program
defines, taken names, contradictory constraints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from agentdb.adoption.change import change_of
from agentdb.adoption.culprits import explaining
from agentdb.adoption.obstacles import OLD_COLUMNS, first_line
from agentdb.adoption.plan import AdoptionRefusedError, Findings, Refusal
from agentdb.adoption.progress import SILENT
from agentdb.errors import SchemaMismatchError
from agentdb.schema.queries import rows, run

_ALIAS = "agentdb_rehearsal"


def rehearse(
    connection: BaseDatabaseWrapper, findings: Findings
) -> tuple[Refusal, ...]:
    """Make the changes on a copy of the schema; return what prevents them."""
    ours = {*OLD_COLUMNS, *findings.shape.stored_as.values()}
    try:
        with explaining(), _copy_in_memory(connection) as copy:
            _copy_schema(connection, copy, ours)
            change_of(copy, findings, SILENT).rehearse()
    except AdoptionRefusedError as error:
        return error.refusals
    except SchemaMismatchError as error:
        return (Refusal(str(error)),)
    return ()


@contextmanager
def _copy_in_memory(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper]:
    settings = {**connection.settings_dict, "NAME": ":memory:", "OPTIONS": {}}
    copy: BaseDatabaseWrapper = load_backend(settings["ENGINE"]).DatabaseWrapper(
        settings, _ALIAS
    )
    # atomic() and the schema editor find a connection by its alias, so it needs one for as long as the block runs.
    connections.settings[_ALIAS], connections[_ALIAS] = settings, copy
    try:
        yield copy
    finally:
        del connections.settings[_ALIAS], connections[_ALIAS]
        # The driver's, because Django's close() keeps a database in memory.
        copy.connection and copy.connection.close()


# In an order in which each index and trigger finds its table or view; what a view names is looked up when it is read.
_OBJECTS = """
    SELECT type, name, lower(tbl_name), sql FROM main.sqlite_master
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    ORDER BY CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 WHEN 'view' THEN 3 ELSE 4 END, rowid
"""


def _copy_schema(
    source: BaseDatabaseWrapper, copy: BaseDatabaseWrapper, ours: set[str]
) -> None:
    # The virtual table that owns them makes them.
    listed = rows(source, "PRAGMA main.table_list")
    shadows = {name for _, name, kind, *_ in listed if kind == "shadow"}
    copy.ensure_connection()
    copy.disable_constraint_checking()
    for kind, name, table, sql in rows(source, _OBJECTS):
        if name in shadows:
            continue
        try:
            run(copy, sql)
        except DatabaseError as error:
            # Skip other objects that cannot be read here.
            if table in ours and kind != "view":
                reason = first_line(error).removesuffix(".")
                raise SchemaMismatchError(f"{kind} {name!r}: {reason}") from error
