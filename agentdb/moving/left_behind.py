"""Tables and columns that a copy of the four tables omits."""

from __future__ import annotations

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.moving.copydb import CHECKPOINT
from agentdb.schema import expected_tables, read_tables
from agentdb.schema.inspection import inspecting
from agentdb.schema.other_tables import other_tables
from agentdb.wording import counted


def left_behind(alias: str) -> list[str]:
    """Return a sentence about each table, with its rows, and each column that ``copydb`` does not carry over."""
    with inspecting(alias) as connection:
        tables = [
            f"Not copied: table {name!r}, {counted(rows, 'row')}."
            for name, rows in other_tables(connection).items()
            if name != CHECKPOINT  # of a copy into this database that was stopped
        ]
        return tables + [
            f"Not copied: column {column!r} of {table!r}."
            for table, column in _columns(connection)
        ]


def _columns(connection: BaseDatabaseWrapper) -> list[tuple[str, str]]:
    """Return the columns that the models do not have, each with its table."""
    live = read_tables(connection)
    wanted = expected_tables(connection, apps)
    found = []
    for table, expected in wanted.items():
        for column in live[table].columns:
            if expected.column(column.name) is None:
                found.append((table, column.name))
    return found
