"""Decides whether ``migrate --fake-initial`` may record ``0001_initial``; Django compares only table names."""

from __future__ import annotations

from django.db import IntegrityError
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.shapes import INITIAL, Kind, Shape, recognise, state_apps
from agentdb.adoption.values import read_usable_values
from agentdb.errors import SchemaMismatchError
from agentdb.schema import Difference, compare, expected_tables
from agentdb.schema.migration_record import migration_names, recorded_migrations


def refuse_unadopted(connection: BaseDatabaseWrapper, *, fake_initial: bool) -> None:
    """Raise ``SchemaMismatchError`` if the old server's tables prevent the first migration. Read-only.

    With ``fake_initial``, tables are accepted if 0002_native_timestamps can bring them, every row included, to their
    final shape.
    """
    if recorded_migrations(connection):
        return  # later migrations check for themselves, and this is on the path of each 'migrate'
    shape = recognise(connection)
    if not shape.tables:
        if shape.problems:
            raise SchemaMismatchError(" ".join(shape.problems))
        return
    where = ", ".join(shape.tables)
    obstacles = [*shape.problems, *_obstacles(connection, shape)]
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
    read_usable_values(connection)
    if connection.vendor == "sqlite":
        try:
            connection.check_constraints()
        except IntegrityError as error:
            raise SchemaMismatchError(
                f"{str(error).rstrip('.')}. Delete the row or add what it refers to, and run the command again."
            ) from error


# What 0002_native_timestamps cannot bring to its final shape. Defaults, checks and plain indexes it can.
_IN_THE_WAY = frozenset(
    {
        "table.missing",
        "column.missing",
        "column.type",
        "primary_key.missing",
        "primary_key.columns",
        "unique.missing",
        "foreign_key.extra",
    }
)


def _obstacles(connection: BaseDatabaseWrapper, shape: Shape) -> list[str]:
    """Return a sentence for each difference from the multi-tenant tables."""
    if (
        shape.kind not in (Kind.MULTI_TENANT, Kind.LATER)
        and shape.level in migration_names()[1:]
    ):
        return [f"They are those of migration {shape.level!r}, which is not recorded."]
    wanted = expected_tables(connection, state_apps(INITIAL))
    # By the name in the database: a half-renamed agents_new is missing as agents, because 0002 does not rename.
    live = {shape.stored_as[name]: table for name, table in shape.tables.items()}
    found = compare(wanted, live, names=False)
    return [difference.message for difference in found if _is_in_the_way(difference)]


def _is_in_the_way(found: Difference) -> bool:
    if found.code == "column.nullable":
        return found.expected == "NOT NULL"
    if found.code == "index.missing":
        return (found.expected or "").startswith("unique")
    return found.code in _IN_THE_WAY and found.severity == "drift"
