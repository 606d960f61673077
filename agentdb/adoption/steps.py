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

    # Whether all steps are one transaction, so that no statement of a killed run can still be at work.
    is_atomic: ClassVar = True

    connection: BaseDatabaseWrapper
    live: Table
    wanted: Table
    sources: Mapping[str, str]

    @property
    def alter(self) -> str:
        return f"ALTER TABLE {quote_name(self.live.name)}"

    def convert(self, expressions: Mapping[str, str]) -> Iterator[str]:
        """Yield what gives these columns their wanted types, and the values of the expressions."""
        raise NotImplementedError


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


def obsolete_constraints(step: Step) -> Iterator[str]:
    """Drop the constraints that our columns no longer have."""
    live = step.live
    ours = {column.name for column in step.wanted.columns}
    dropped = [key.name for key in live.foreign_keys if is_obsolete_key(key, ours)]
    for check in live.checks:
        if _is_obsolete(check, live, ours):
            dropped.append(check.name)
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


def no_column(table: str, column: str) -> SchemaMismatchError:
    # As after --fake on a database in which another migration than the recorded one is due.
    return SchemaMismatchError(
        f"Table {table!r} has no column {column!r}. Run 'agentdb baselinedb'."
    )


def conversions(step: Step) -> Iterator[str]:
    """Give columns of another type, and columns that lack values, the values of their sources, or a cast."""
    expressions = {}
    for column in step.wanted.columns:
        live = step.live.column(column.name)
        source = step.sources.get(column.name)
        if live is not None and _changes(live, column, fills=source is not None):
            cast = f"{quote_name(column.name)}::{column.type}"
            expressions[column.name] = source or cast
    yield from step.convert(expressions)


def _changes(live: Column, wanted: Column, *, fills: bool) -> bool:
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


def primary_key(step: Step) -> Iterator[str]:
    """Give the table its primary key, under its name."""
    live, wanted = step.live.primary_key, step.wanted.primary_key
    assert wanted is not None  # every table of ours has one
    added = f"ADD {key_sql('PRIMARY KEY', wanted.name, wanted.columns)}"
    if live is None:
        yield f"{step.alter} {added}"
    elif live.does != wanted.does:
        # One statement for both: CockroachDB refuses a table without a key.
        yield f"{step.alter} DROP CONSTRAINT {quote_name(live.name)}, {added}"
    elif live.name != wanted.name:
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


def keys_in_the_way(step: Step) -> Iterator[str]:
    """Drop what has the name of a key of ours and does not become one."""
    # Before the conversion, which would rebuild it: an index that CREATE INDEX CONCURRENTLY left half built, because it
    # found a duplicate, would find it again.
    yield from (_drop(step, key) for key in _superseded(step, has_our_name=True))


def keys(step: Step) -> Iterator[str]:
    """Leave each unique constraint and each index once; one that does the same is renamed instead of rebuilt."""
    for key in step.wanted.keys:
        yield from _make(step, key, _becoming(step, key))
    # Last, so that uniqueness never lapses on CockroachDB, where the old server may be writing at the same time.
    yield from (_drop(step, key) for key in _superseded(step, has_our_name=False))


def _superseded(step: Step, *, has_our_name: bool) -> list[Key]:
    """Return the live keys that go because ours do the same, or need their names."""
    names = {key.name for key in step.wanted.keys}
    stay = [_becoming(step, key) for key in step.wanted.keys]
    going = [key for key in step.live.keys if key not in stay]
    return [
        key
        for key in going
        if (key.name in names) is has_our_name and is_superseded(key, step.wanted)
    ]


def _becoming(step: Step, wanted: Key) -> Key | None:
    """Return the live key that is the wanted one, or becomes it: it has its columns in the same order."""
    # Not one with the name of another of ours, which goes before that other is created.
    others = {key.name for key in step.wanted.keys} - {wanted.name}
    free = [key for key in step.live.keys if key.name not in others]
    alike = [key for key in free if key.does == wanted.does]
    # An index becomes a constraint; the way back does not exist.
    fit = [key for key in alike if wanted.is_constraint or not key.is_constraint]
    return wanted if wanted in fit else next(iter(fit), None)


def _make(step: Step, wanted: Key, found: Key | None) -> Iterator[str]:
    name = wanted.name
    if found is None and wanted.is_constraint:
        yield f"{step.alter} ADD {key_sql('UNIQUE', wanted.name, wanted.columns)}"
    elif found is None:
        # Without transactions a killed run's statement may still be building it.
        if_missing = "" if step.is_atomic else "IF NOT EXISTS "
        table = quote_name(step.live.name)
        yield f"CREATE {wanted.kind.upper()} {if_missing}{quote_name(name)} ON {table} {index_sql(wanted)}"
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
    name = quote_name(key.name)
    if not key.is_constraint:
        return f"DROP INDEX {name}"
    if step.is_atomic:
        return f"{step.alter} DROP CONSTRAINT {name}"
    # CockroachDB refuses DROP CONSTRAINT for a UNIQUE one, and DROP INDEX for its index unless CASCADE follows.
    return f"DROP INDEX {name} CASCADE"


# The order matters: a key needs columns with their final values and types, and obstacles to a conversion are removed
# before it.
ASPECTS: tuple[Callable[[Step], Iterator[str]], ...] = (
    obsolete_constraints,
    keys_in_the_way,
    missing_columns,
    conversions,
    defaults,
    primary_key,
    keys,
)
