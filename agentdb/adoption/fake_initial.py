"""Whether ``migrate --fake-initial`` may record ``0001_initial``: Django itself only compares the names of tables."""

from __future__ import annotations

from collections.abc import Mapping

from django.db import IntegrityError
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import OLD_COLUMNS
from agentdb.adoption.shapes import Kind, Shape, recognise, unique_keys
from agentdb.adoption.values import refuse_unusable_values
from agentdb.errors import SchemaMismatchError
from agentdb.schema import Table
from agentdb.schema.migration_record import migration_names, recorded_migrations

_UNIQUE: Mapping[str, tuple[str, ...]] = {
    "agents": ("tenant_id", "name"),
    "api_keys": ("key_hash",),
}


def refuse_unadopted(connection: BaseDatabaseWrapper, *, fake_initial: bool) -> None:
    """Raise ``SchemaMismatchError`` if the old server's tables are in the way of the first migration. Reads only.

    With ``fake_initial``, tables that 0002_native_timestamps can bring to their final shape as they are, every row of
    them included, are not in the way.
    """
    if recorded_migrations(connection):
        return  # what a migration finds then is that migration's to check
    shape = recognise(connection)
    if not shape.tables:
        if shape.problems:
            raise SchemaMismatchError(" ".join(shape.problems))
        return
    where = ", ".join(shape.tables)
    obstacles = [*shape.problems, *_obstacles(connection.vendor, shape)]
    if shape.problems:
        raise SchemaMismatchError(
            f"The database has tables ({where}) that cannot be adopted as they are. "
            f"{' '.join(obstacles)} Then run 'agentdb baselinedb'."
        )
    if obstacles:
        raise SchemaMismatchError(
            f"The database already has tables ({where}), and not in the shape that --fake-initial adopts: "
            f"{shape.description}. {' '.join(obstacles)} Run 'agentdb baselinedb', which adopts every shape of the old "
            "server."
        )
    if not fake_initial:
        raise SchemaMismatchError(
            f"The database already has the old server's tables ({where}): {shape.description}. "
            "Run 'agentdb baselinedb', which backs up, adopts and verifies them, or 'agentdb migrate --fake-initial'."
        )
    refuse_unusable_values(connection)
    if connection.vendor == "sqlite":
        try:
            connection.check_constraints()
        except IntegrityError as error:
            raise SchemaMismatchError(
                f"{str(error).rstrip('.')}. Delete the row or add what it refers to, and run the command again."
            ) from error


def _obstacles(vendor: str, shape: Shape) -> list[str]:
    """What keeps the tables from being the multi-tenant ones, a sentence each."""
    if (
        shape.kind not in (Kind.MULTI_TENANT, Kind.LATER)
        and shape.level in migration_names()[1:]
    ):
        return [f"They are those of migration {shape.level!r}, which is not recorded."]
    obstacles = []
    for name, columns in OLD_COLUMNS.items():
        table = shape.tables.get(name)
        if table is None:
            obstacles.append(f"Table {name!r} is missing.")
            continue
        if shape.stored_as[name] != name:
            obstacles.append(
                f"Table {name!r} is still called {shape.stored_as[name]!r}."
            )
        for column, kind in columns.items():
            obstacles += _column_obstacles(vendor, table, name, column, kind)
        key = table.primary_key.columns if table.primary_key else ()
        if key != ("id",):
            obstacles.append(
                f"Table {name!r} has {'the primary key ' + _list(key) if key else 'no primary key'}."
            )
        if name in _UNIQUE and frozenset(_UNIQUE[name]) not in unique_keys(table):
            obstacles.append(
                f"Table {name!r} lacks the unique key {_list(_UNIQUE[name])}."
            )
        for foreign_key in table.foreign_keys:
            if set(foreign_key.columns) <= columns.keys():
                obstacles.append(
                    f"Table {name!r} has a foreign key {_list(foreign_key.columns)} to {foreign_key.target_table!r}."
                )
    return obstacles


def _column_obstacles(
    vendor: str, table: Table, name: str, column: str, kind: str
) -> list[str]:
    live = table.column(column)
    if live is None:
        return [f"Table {name!r} lacks the column {column!r}."]
    type_wanted = "integer" if kind == "integer" else "text"
    if live.type != type_wanted:
        return [
            f"Column {column!r} of table {name!r} is {live.type or 'untyped'}, not {type_wanted}."
        ]
    if (
        live.nullable
        and kind != "text or null"
        and not (column == "id" and vendor == "sqlite")
    ):
        return [f"Column {column!r} of table {name!r} may be NULL."]
    return []


def _list(columns: tuple[str, ...]) -> str:
    return f"({', '.join(columns)})"
