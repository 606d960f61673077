"""The statements that lead from a live table to the wanted one, on PostgreSQL and on CockroachDB.

Each function checks one aspect of the table and yields the remaining statements for it. PostgreSQL runs them all in one
transaction, CockroachDB one at a time. Nothing is stored in between: the present table determines the next statement,
so the next run continues one that was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import SchemaMismatchError
from agentdb.schema.comparison import reads_ours
from agentdb.schema.queries import quote_name
from agentdb.schema.tables import Check, Column, ForeignKey, Key, Table

# Indexes of old servers that no model has any more; ours replace them.
LEFT_OVER_INDEXES = frozenset({"idx_api_keys_hash", "api_keys_key_hash_unique"})


# What CockroachDB calls the check that stands for a NOT NULL which it is adding or dropping. It goes by itself.
_NOT_NULL_UNDER_WAY = "_auto_not_null"


@dataclass
class Step:
    """The table as it is now, and as it should be. Each engine extends it by what it does in its own way.

    ``sources`` gives, for columns that are new or have another type, an SQL expression over the old row.
    """

    # Whether all steps are one transaction: the table may then lack its key for a moment, and no index is half built.
    is_atomic: ClassVar = True

    connection: BaseDatabaseWrapper
    live: Table
    wanted: Table
    sources: Mapping[str, str]

    @property
    def alter(self) -> str:
        return f"ALTER TABLE {quote_name(self.live.name)}"

    def drop_unique(self, name: str) -> str:
        """Return the statement that drops a unique constraint."""
        return f"{self.alter} DROP CONSTRAINT {quote_name(name)}"

    def cast(self, live: Column, wanted: Column) -> str | None:
        """Return an expression that converts the column without a source, or None."""
        return None

    def convert(self, expressions: Mapping[str, str]) -> Iterator[str]:
        """Yield what gives these columns their wanted types, and the values of the expressions."""
        raise NotImplementedError

    def finish(self) -> Iterator[str]:
        """Yield what is left to do when everything else is as wanted."""
        return iter(())


def columns_sql(columns: Collection[str]) -> str:
    return f"({', '.join(map(quote_name, columns))})"


def declaration(column: Column) -> str:
    """The type, default and NOT NULL of a column, as SQL."""
    sql = column.type
    if column.default is not None:
        sql += f" DEFAULT {column.default}"
    if not column.nullable:
        sql += " NOT NULL"
    return sql


def key_sql(kind: str, name: str, columns: Collection[str]) -> str:
    """A PRIMARY KEY or UNIQUE constraint, as SQL."""
    return f"CONSTRAINT {quote_name(name)} {kind} {columns_sql(columns)}"


def index_sql(index: Key) -> str:
    """The keys and the condition of an index, as SQL."""
    condition = f" WHERE {index.condition}" if index.condition else ""
    return f"({', '.join(index.columns)}){condition}"


def add_index_sql(table: str, index: Key, *, if_missing: bool = False) -> str:
    """The statement that adds the index; ``if_missing`` accepts whatever has its name."""
    name = f"{'IF NOT EXISTS ' if if_missing else ''}{quote_name(index.name)}"
    return (
        f"CREATE {index.kind.upper()} {name} ON {quote_name(table)} {index_sql(index)}"
    )


def half_built_indexes(step: Step) -> Iterator[str]:
    """Drop what takes the name of an index of ours, and does not let its columns change their types."""
    # CREATE INDEX CONCURRENTLY leaves it behind if it is stopped or finds a duplicate. An ALTER TYPE of its columns
    # would build it again, and fail at the duplicate.
    names = {key.name for key in step.wanted.keys}
    for index in step.live.indexes:
        if not index.valid and index.name in names:
            yield f"DROP INDEX {quote_name(index.name)}"


def obsolete_constraints(step: Step) -> Iterator[str]:
    """Drop the constraints that our columns no longer have."""
    live = step.live
    ours = {column.name for column in step.wanted.columns}
    dropped = [key.name for key in live.foreign_keys if is_obsolete_key(key, ours)]
    for check in live.checks:
        if _is_obsolete(check, live, ours):
            dropped.append(check.name)
    # A key that goes does so before the conversion, which would rebuild its index.
    if step.is_atomic and live.primary_key and not _has_its_key(step):
        dropped.append(live.primary_key.name)
    for name in dropped:
        yield f"{step.alter} DROP CONSTRAINT {quote_name(name)}"


def is_obsolete_key(key: ForeignKey, ours: Collection[str]) -> bool:
    """Return whether the foreign key is about our columns alone; one that has a column of the operator's stays."""
    return all(column in ours for column in key.columns)


def _is_obsolete(check: Check, live: Table, ours: Collection[str]) -> bool:
    is_under_way = check.name.endswith(_NOT_NULL_UNDER_WAY)
    is_plain = check.kind == "check" and not is_under_way
    return is_plain and reads_ours(check, live, ours)


def missing_columns(step: Step) -> Iterator[str]:
    """Add each missing column; one with a source stays NULL until it is filled."""
    for column in step.wanted.columns:
        if step.live.column(column.name) is not None:
            continue
        if column.name in step.sources:
            # Without NOT NULL, because the rows have no value yet, and without the default, which would be a wrong one.
            text = column.type
        elif column.default is None and not column.nullable:
            raise no_column(step.wanted.name, column.name)
        else:
            text = declaration(column)
        yield f"{step.alter} ADD COLUMN {quote_name(column.name)} {text}"


def no_table(table: str) -> SchemaMismatchError:
    return SchemaMismatchError(
        f"The database has no table {table!r}. Run 'agentdb baselinedb'."
    )


def no_column(table: str, column: str) -> SchemaMismatchError:
    return SchemaMismatchError(
        f"Table {table!r} has no column {column!r}. Run 'agentdb baselinedb'."
    )


def conversions(step: Step) -> Iterator[str]:
    """Give columns of another type, and columns that lack values, the values of their sources."""
    expressions = {}
    for column in step.wanted.columns:
        live = step.live.column(column.name)
        source = step.sources.get(column.name)
        if live is None or not changes(live, column, fills=source is not None):
            continue
        expression = source or step.cast(live, column)
        if expression is None:
            raise SchemaMismatchError(
                f"Column {column.name!r} of table {step.wanted.name!r} is {live.type}, not {column.type}. Run 'agentdb "
                "baselinedb'."
            )
        expressions[column.name] = expression
    yield from step.convert(expressions)


def changes(live: Column, wanted: Column, *, fills: bool) -> bool:
    """Whether the column gets another type, or values in the rows that have none."""
    fills = fills and live.nullable and not wanted.nullable
    # A collation that an operator gave the column is another order than ours, and only ALTER TYPE takes it off.
    return fills or live.type != wanted.type or live.collation is not None


def defaults(step: Step) -> Iterator[str]:
    """Give each column the wanted default, and allow or refuse NULL."""
    for column in step.wanted.columns:
        live = step.live.column(column.name)
        assert live is not None  # it was added
        alter = f"{step.alter} ALTER COLUMN {quote_name(column.name)}"
        if live.default == column.default:
            pass
        elif column.default is None:
            yield f"{alter} DROP DEFAULT"
        else:
            yield f"{alter} SET DEFAULT {column.default}"
        if live.nullable != column.nullable:
            verb = "DROP" if column.nullable else "SET"
            yield f"{alter} {verb} NOT NULL"


def _has_its_key(step: Step) -> bool:
    live, wanted = step.live.primary_key, step.wanted.primary_key
    assert wanted is not None  # every table of ours has one
    return live is not None and live.does == wanted.does


def primary_key(step: Step) -> Iterator[str]:
    """Give the table its primary key, under its name."""
    live, wanted = step.live.primary_key, step.wanted.primary_key
    assert wanted is not None
    if not _has_its_key(step):
        actions = f"ADD {key_sql('PRIMARY KEY', wanted.name, wanted.columns)}"
        # One statement for both: CockroachDB refuses a table without a key.
        if live is not None:
            actions = f"DROP CONSTRAINT {quote_name(live.name)}, {actions}"
        yield f"{step.alter} {actions}"
    elif live and live.name != wanted.name:
        yield _rename(live.name, wanted.name)


def is_superseded(key: Key, wanted: Table) -> bool:
    """Return whether a live key is one of ours under any name, and is dropped when ours exists."""
    return key.name in LEFT_OVER_INDEXES or any(
        key.name == ours.name or _serves_as(key, ours) for ours in wanted.keys
    )


def _serves_as(key: Key, ours: Key) -> bool:
    """Return whether ours would be superfluous beside the key, whatever either is called."""
    if not ours.is_unique:
        return key.does == ours.does
    # An index with a condition or a collation of its own keeps something else unique, and stays beside ours.
    is_plain = key.does == replace(ours.does, columns=key.columns)
    # As sets: uniqueness does not depend on the order of columns.
    is_over_them = set(key.columns) == set(ours.columns)
    return is_over_them and (is_plain or key.is_constraint)


def keys(step: Step) -> Iterator[str]:
    """Leave each unique constraint and each index once; one that does the same is renamed instead of rebuilt."""
    live, wanted = step.live.keys, step.wanted.keys
    names = {key.name for key in wanted}  # on a server each key has one
    kept = [(key, _best(key, live, names)) for key in wanted]
    stay = [found for _, found in kept]
    dropped = [
        key for key in live if key not in stay and is_superseded(key, step.wanted)
    ]
    # What has a wanted name goes before the name is given; what has another goes last, so that uniqueness never lapses
    # on CockroachDB, where the old server may be writing at the same time.
    yield from (_drop(step, key) for key in dropped if key.name in names)
    for key, found in kept:
        yield from _make(step, key, found)
    yield from (_drop(step, key) for key in dropped if key.name not in names)


def _best(
    wanted: Key, live: Collection[Key], names: Collection[str | None]
) -> Key | None:
    """The live key that becomes the wanted one: it has its columns in the same order, and best its kind and name."""
    found = []
    for key in live:
        if key.does != wanted.does:
            continue
        # It is to become another of ours.
        if key.name in names and key.name != wanted.name:
            continue
        # An index becomes a constraint; the way back does not exist.
        if key.is_constraint and not wanted.is_constraint:
            continue
        found.append(key)

    def likeness(key: Key) -> tuple[bool, bool]:
        return key.is_constraint == wanted.is_constraint, key.name == wanted.name

    return max(found, key=likeness, default=None)


def _make(step: Step, wanted: Key, found: Key | None) -> Iterator[str]:
    name = wanted.name
    if found is None and wanted.is_constraint:
        yield f"{step.alter} ADD {key_sql('UNIQUE', wanted.name, wanted.columns)}"
    elif found is None:
        # Without transactions a killed run's statement may still be building it.
        if_missing = not step.is_atomic
        yield add_index_sql(step.live.name, wanted, if_missing=if_missing)
    elif wanted.is_constraint and not found.is_constraint:
        # The index is not built again, and it gets the constraint's name.
        old = quote_name(found.name)
        yield f"{step.alter} ADD CONSTRAINT {quote_name(name)} UNIQUE USING INDEX {old}"
    elif found.name != wanted.name:
        yield _rename(found.name, wanted.name)


def _rename(name: str, wanted: str) -> str:
    # A constraint takes the name of its index, on either engine.
    return f"ALTER INDEX {quote_name(name)} RENAME TO {quote_name(wanted)}"


def _drop(step: Step, key: Key) -> str:
    if key.is_constraint:
        return step.drop_unique(key.name)
    return f"DROP INDEX {quote_name(key.name)}"


# The order matters: a key needs columns with their final values and types, and obstacles to a conversion are removed
# before it.
ASPECTS: tuple[Callable[[Step], Iterator[str]], ...] = (
    half_built_indexes,
    obsolete_constraints,
    missing_columns,
    conversions,
    defaults,
    primary_key,
    keys,
    lambda step: step.finish(),
)
