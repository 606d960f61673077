"""Finds the operator's index, constraint or statistics that prevents PostgreSQL from changing a column's type.

The server rebuilds them itself and does not say which one failed. So each is tried on temporary tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.dependents import DROP_FIRST, column_numbers, naming
from agentdb.adoption.obstacles import first_line, is_transient
from agentdb.adoption.plan import AdoptionRefusedError
from agentdb.errors import SchemaMismatchError
from agentdb.schema.queries import quote_name, rows, run


@contextmanager
def explaining(culprit: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Raise ``SchemaMismatchError`` with what the operator built that failed the block; ``culprit`` may name it."""
    try:
        yield
    except (DatabaseError, SchemaMismatchError) as error:
        # These already name the object and what to do.
        is_said = isinstance(error, AdoptionRefusedError)
        if is_said or is_transient(error) or str(error).endswith(DROP_FIRST):
            raise
        raise SchemaMismatchError(culprit() or _sentence(error)) from error


@contextmanager
def naming_culprits(
    connection: BaseDatabaseWrapper, changing: Mapping[str, Mapping[str, str]]
) -> Iterator[None]:
    """The same on PostgreSQL. ``changing`` has the final types of each table's changing columns.

    The block is rolled back first.
    """
    with (
        explaining(lambda: _culprit(connection, changing)),
        transaction.atomic(using=connection.alias),
    ):
        yield


def _sentence(error: Exception) -> str:
    reason = first_line(error).removesuffix(".").replace("; nothing was changed", "")
    return (
        f"The adoption would fail on what was built around the tables: {reason}. Rename or drop that, run the command "
        "again, and recreate it."
    )


def _culprit(
    connection: BaseDatabaseWrapper, changing: Mapping[str, Mapping[str, str]]
) -> str | None:
    [(schemas,)] = rows(connection, "SELECT current_schemas(false)")
    # Temporary tables without rows and with the final types: what cannot be created on them could not be rebuilt. They
    # are dropped with the savepoint, whose rollback leaves the operator's tables as they were.
    try:
        with transaction.atomic(using=connection.alias):
            definitions = _definitions(connection, changing)
            # There every name shadows the real one.
            path = ", ".join(map(quote_name, ["pg_temp", *schemas]))
            run(connection, f"SET LOCAL search_path = {path}")
            for table, types in changing.items():
                if own := [
                    definition for definition in definitions if definition[0] == table
                ]:
                    _make_empty(connection, schemas[0], table, types)
                for _, title, sql in own:
                    with naming(title):
                        run(connection, sql)
            transaction.set_rollback(True, using=connection.alias)
    except SchemaMismatchError as error:
        return str(error)
    except DatabaseError:
        pass  # report the known reason; also if this role may make no temporary table
    return None


# What the server rebuilds for a column's new type. Statistics over plain columns compute nothing from a value.
_REBUILT = """
    SELECT 'Index ' || quote_literal(c.relname), i.indrelid, pg_get_indexdef(i.indexrelid, 0, true),
        ARRAY(SELECT refobjsubid FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = i.indexrelid
            AND refclassid = 'pg_class'::regclass AND refobjid = i.indrelid)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT 'Statistics ' || quote_literal(stxname), stxrelid, pg_get_statisticsobjdef(oid), NULL
    FROM pg_statistic_ext WHERE stxexprs IS NOT NULL
    UNION ALL
    SELECT CASE contype WHEN 'x' THEN 'Exclusion constraint ' ELSE 'Check ' END || quote_literal(conname), conrelid,
        'ALTER TABLE ' || conrelid::regclass || ' ADD CONSTRAINT ' || quote_ident(conname) || ' '
            || pg_get_constraintdef(oid, true),
        coalesce(conkey::int[], '{}')
    FROM pg_constraint WHERE contype IN ('x', 'c')
"""


def _definitions(
    connection: BaseDatabaseWrapper, changing: Mapping[str, Collection[str]]
) -> list[tuple[str, str, str]]:
    """Return the table, the title and the statement of what reads a column whose type changes."""
    columns = column_numbers(connection, changing)
    return [
        (table, f"{what} of table {table!r}", sql)
        for what, oid, table, sql, numbers in rows(
            connection,
            f"SELECT what, oid, oid::regclass::text, sql, numbers FROM ({_REBUILT}) AS r (what, oid, sql, numbers)"
            " WHERE oid = ANY(%s::oid[]) ORDER BY what",
            [list(columns)],
        )
        if numbers is None or set(numbers) & set(columns[oid])
    ]


def _make_empty(
    connection: BaseDatabaseWrapper, schema: str, table: str, types: Mapping[str, str]
) -> None:
    """Create a table with the columns of another and their final types."""
    name = quote_name(table)
    run(connection, f"CREATE TABLE {name} (LIKE {quote_name(schema)}.{name})")
    for column, type_ in types.items():
        run(
            connection,
            f"ALTER TABLE {name} ALTER {quote_name(column)} TYPE {type_} USING NULL::{type_}",
        )
