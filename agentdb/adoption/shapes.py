"""The shapes of old servers' databases as data; recognise() finds the one of a database. Read-only.

The order of statements and the names of indexes and constraints do not matter, because they vary with the history of a
database. Only columns, their types and the keys count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import OLD_COLUMNS
from agentdb.adoption.steps import is_obsolete_key
from agentdb.schema import Column, Table, read_tables
from agentdb.schema.migration_record import (
    migration_names,
    recorded_migrations,
    tables_elsewhere,
)
from agentdb.schema.verification import level as level_of
from agentdb.wording import counted

INITIAL = "0001_initial"
NATIVE = "0002_native_timestamps"
RECORD = "django_migrations"


class Kind(StrEnum):
    EMPTY = "empty"  # none of the four tables
    SINGLE_TENANT = "single-tenant"
    INTERRUPTED = "interrupted"  # between single-tenant and multi-tenant
    STUCK = "stuck"  # the state in which the old server's upgrade ends on PostgreSQL
    MULTI_TENANT = "multi-tenant"
    LATER = "later"  # multi-tenant, and tables of a later server
    ADOPTED = "adopted"  # as a migration leaves it
    ALTERED = "altered"  # native timestamps, but not as any migration leaves it
    FOREIGN = "foreign"  # not made by the server


# Columns that the multi-tenant release added. All other OLD_COLUMNS are in every release.
ADDED_COLUMNS: Mapping[str, frozenset[str]] = {
    "agents": frozenset({"id", "tenant_id"}),
    "sessions": frozenset({"tenant_id"}),
    "sandboxes": frozenset({"tenant_id"}),
    "api_keys": frozenset(),
}

# The temporary names of new tables when old servers rebuild a table on SQLite.
REBUILT_AS = {"agents": "agents_new", "sessions": "sessions_new"}

# Prefixes of a column that is being filled, and of the one whose place it took.
FRESH = "agentdb_new_"
STALE = "agentdb_old_"
WORK = (FRESH, STALE)

# Tables of servers after the multi-tenant release.
LATER_TABLES = frozenset({"messages", "session_events", "__drizzle_migrations"})

_TEXT_TYPES = ("text", "varchar", "character varying", "clob")
_INTEGER_TYPES = ("integer", "int", "smallint", "bigint", "int2", "int4", "int8")
NATIVE_TIMESTAMP = {
    "sqlite": "datetime",
    "postgresql": "timestamp with time zone",
    "cockroachdb": "timestamp with time zone",
}


class Shape(NamedTuple):
    """What a database's schema says about its origin."""

    kind: Kind
    description: str  # a phrase for the operator
    live: Mapping[str, Table]  # all tables of the database, as they are
    tables: Mapping[str, Table]  # those of the four that exist, by their final name
    others: tuple[str, ...]  # tables that are not ours
    recorded: tuple[str, ...]  # agentdb's migrations in django_migrations
    level: str | None  # the migration that leaves the tables like this, or None
    problems: tuple[str, ...]  # obstacles, a sentence each

    @property
    def stored_as(self) -> dict[str, str]:
        """The names in the database by the final ones."""
        return {name: table.name for name, table in self.tables.items()}

    @property
    def is_latest(self) -> bool:
        """Whether the tables are as the last migration leaves them."""
        return self.level == migration_names()[-1]

    @property
    def renames(self) -> dict[str, str]:
        """Final names by the names in the database, where an upgrade stopped before a rename."""
        return {
            stored: name for name, stored in self.stored_as.items() if stored != name
        }


def recognise(connection: BaseDatabaseWrapper) -> Shape:
    """Return the shape of the database, from its schema and its record of migrations."""
    found = read_tables(connection)
    # On CockroachDB a killed adoption leaves columns that are half converted. The next run continues it, so they say
    # nothing about which server made the table.
    live = {name: without_work(table) for name, table in found.items()}
    recorded: tuple[str, ...] = ()
    if RECORD in live:
        recorded = tuple(sorted(recorded_migrations(connection)))
    tables = _ours(connection.vendor, live)
    stored = {table.name for table in tables.values()}
    others = tuple(sorted(set(live) - stored - {RECORD}))
    problems = tuple(_problems(connection, tables, recorded))
    # A migration leaves the tables under their names, and none in the middle of a conversion. Comparing with each
    # migration is the slow part, and says nothing about tables that another program made.
    is_settled = stored == set(tables)
    level = None
    if tables and is_settled and live == found and not problems:
        level = level_of(connection, live)
    if tables:
        kind, description = _kind(connection.vendor, tables, others, level, recorded)
    else:
        kind, description = _kind_without_tables(others, RECORD in live)
    return Shape(
        kind,
        description,
        found,
        tables,
        others,
        recorded,
        level,
        problems,
    )


def unadopted(connection: BaseDatabaseWrapper) -> Shape | None:
    """Return the shape of a database that records no migration of agentdb's; None if it records one."""
    if recorded_migrations(connection):
        return None  # most databases do, and this is on the path of each 'migrate'
    shape = recognise(connection)
    # Another process may have migrated after the first look, so that the tables are its tables.
    return None if shape.recorded else shape


def _problems(
    connection: BaseDatabaseWrapper,
    tables: Mapping[str, Table],
    recorded: tuple[str, ...],
) -> Iterator[str]:
    for name, table in tables.items():
        yield from _table_problems(connection.vendor, name, table)
    yield from _record_problems(recorded, tables)
    if (elsewhere := tables_elsewhere(connection, OLD_COLUMNS)) is not None:
        yield elsewhere


def without_work(table: Table) -> Table:
    """Return the table without the temporary columns of a conversion in steps."""
    return replace(
        table,
        columns=tuple(
            column for column in table.columns if not column.name.startswith(WORK)
        ),
    )


def _ours(vendor: str, live: Mapping[str, Table]) -> dict[str, Table]:
    tables = {}
    for name in OLD_COLUMNS:
        table = live.get(name)
        rebuilt = live.get(REBUILT_AS.get(name, ""))
        # Interrupted between dropping the old table and renaming the new one, which has all rows.
        if (
            table is None
            and vendor == "sqlite"
            and rebuilt
            and not _misses(name, rebuilt)
        ):
            table = rebuilt
        if table is not None:
            tables[name] = table
    return tables


def _misses(name: str, table: Table) -> list[str]:
    """Return the columns of every release that the table lacks."""
    return [
        column
        for column in OLD_COLUMNS[name]
        if column not in ADDED_COLUMNS[name] and table.column(column) is None
    ]


def _table_problems(vendor: str, name: str, table: Table) -> Iterator[str]:
    if table.kind != "table":
        yield f"{table.name!r} is a {table.kind}, not a table. Rename it."
    elif missing := _misses(name, table):
        yield (
            f"Table {table.name!r} was not made by the server: it has no column {', '.join(map(repr, missing))}. "
            "Rename it, or check the database URL."
        )
    else:
        yield from unfit_columns(vendor, name, table)
        for column in table.columns:
            if column.name not in OLD_COLUMNS[name]:
                yield from _foreign_column_problem(table, column)


def unfit_columns(vendor: str, name: str, table: Table) -> Iterator[str]:
    """Yield why columns of the old server do not hold what it stored in them; a cast could make other values of it."""
    for column in table.columns:
        kind = OLD_COLUMNS[name].get(column.name)
        if kind is None:
            continue
        if column.generated is not None:
            yield f"Column {column.name!r} of table {table.name!r} is generated. Make it a plain column."
        elif not _holds(vendor, column.type, kind):
            yield (
                f"Column {column.name!r} of table {table.name!r} has the type {column.type or '(none)'}, "
                f"which does not hold what agentdb needs: {kind}."
            )


def _foreign_column_problem(table: Table, column: Column) -> Iterator[str]:
    if not column.nullable and column.default is None and column.generated is None:
        yield (
            f"Table {table.name!r} has an additional column {column.name!r} that is NOT NULL without a "
            "default, so that no row could be inserted. Give it a default, or allow NULL."
        )
    elif "strict" in table.options and column.type == "any":
        yield (
            f"Column {column.name!r} of the STRICT table {table.name!r} has the type ANY, which keeps a number "
            "in a text as it is there, and not in the table that agentdb makes. Give it another type."
        )


def _holds(vendor: str, column_type: str, kind: str) -> bool:
    base = column_type.partition("(")[0].strip()
    if kind == "integer":
        return base in _INTEGER_TYPES
    return base in _TEXT_TYPES or (
        kind == "timestamp" and base == NATIVE_TIMESTAMP[vendor]
    )


def _record_problems(
    recorded: tuple[str, ...], tables: Mapping[str, Table]
) -> Iterator[str]:
    if unknown := [name for name in recorded if name not in migration_names()]:
        yield f"The database was migrated by a newer agentdb: {unknown[-1]!r} is unknown here. Upgrade agentdb."
    elif recorded and not tables:
        yield (
            f"Migration {recorded[-1]!r} is recorded, but none of the four tables is there. Restore a backup, or run "
            "'agentdb migrate --fake agentdb zero' and 'agentdb migrate' to begin with empty tables."
        )


def _kind_without_tables(others: tuple[str, ...], is_django: bool) -> tuple[Kind, str]:
    if not others or is_django:
        return Kind.EMPTY, "none of the four tables"
    what = f"none of the four tables, and {counted(len(others), 'other table')}"
    return Kind.FOREIGN, what


def _kind(
    vendor: str,
    tables: Mapping[str, Table],
    others: tuple[str, ...],
    level: str | None,
    recorded: tuple[str, ...],
) -> tuple[Kind, str]:
    if any(_misses(name, table) for name, table in tables.items()):
        return Kind.FOREIGN, "tables that the server did not make"
    if level is not None and recorded[-1:] == (level,):
        return Kind.ADOPTED, f"adopted, at migration {level}"
    # The old server leaves the tables of the first migration too, so they prove nothing unless it is recorded.
    if level not in (None, INITIAL) and not recorded:
        return (
            Kind.ADOPTED,
            f"the tables of migration {level}, but no migration is recorded",
        )
    native = NATIVE_TIMESTAMP[vendor]
    # No old server made timestamps of the engine's type.
    if any(column.type == native for column in _timestamps(tables)):
        return Kind.ALTERED, _altered(recorded)
    steps = _steps(vendor, tables)
    if all(steps.values()):
        return _multi_tenant(tables, others)
    return _old_kind(steps)


def _altered(recorded: tuple[str, ...]) -> str:
    if recorded:
        return f"changed since migration {recorded[-1]} was applied"
    return "in part with native timestamps"


def _multi_tenant(
    tables: Mapping[str, Table], others: tuple[str, ...]
) -> tuple[Kind, str]:
    """Return which of two releases made the tables: a later one has further tables, or no defaults."""
    later = sorted(LATER_TABLES.intersection(others))
    if later:
        return Kind.LATER, f"a later server's: multi-tenant, with {', '.join(later)}"
    if all(column.default is None for column in _timestamps(tables)):
        return Kind.LATER, "a later server's: multi-tenant, timestamps without defaults"
    return Kind.MULTI_TENANT, "multi-tenant"


def _old_kind(steps: Mapping[str, bool]) -> tuple[Kind, str]:
    taken = [step for step, is_taken in steps.items() if is_taken and step != _BY_HAND]
    missing = [step for step, is_taken in steps.items() if not is_taken]
    in_order = list(steps)
    if taken == in_order[: len(_FIRST_TABLES)]:
        return Kind.SINGLE_TENANT, "single-tenant"
    # PostgreSQL does not drop the key of agents while the foreign key of sessions refers to it. The old server did not
    # expect that: its upgrade ends at this statement, and again at each start.
    if missing[0] == _STUCK:
        return Kind.STUCK, (
            "stuck: the old server's upgrade to multi-tenant cannot finish on PostgreSQL, "
            "and agents are still keyed by name"
        )
    number = in_order.index(missing[0])
    last = in_order[number - 1] if number else "nothing"
    return Kind.INTERRUPTED, (
        f"an upgrade to multi-tenant that stopped after step {number} of {len(steps)} ({last})"
    )


def _timestamps(tables: Mapping[str, Table]) -> Iterator[Column]:
    """Yield the columns that hold timestamps in every old release, whatever their type is now."""
    for name, table in tables.items():
        for column in table.columns:
            if OLD_COLUMNS[name].get(column.name) == "timestamp":
                yield column


def key_of(table: Table | None) -> tuple[str, ...]:
    """The columns of the table's primary key."""
    key = None if table is None else table.primary_key
    return () if key is None else key.columns


def unique_keys(table: Table) -> list[frozenset[str]]:
    """Return the sets of columns that a key, a constraint or a plain unique index keeps unique."""
    keys = [
        key.names
        for key in table.keys
        if key.is_unique and key.valid and key.condition is None
    ]
    return [*keys, frozenset(key_of(table))] if table.primary_key else keys


# Those of the single-tenant release.
_FIRST_TABLES = ("agents", "sessions", "sandboxes")
_STUCK = "dropped the key of agents by name"
# Some operators took this step by hand, to leave the stuck state, so it does not say how far the server came.
_BY_HAND = "dropped the foreign key of sessions"


def _steps(vendor: str, tables: Mapping[str, Table]) -> dict[str, bool]:
    """Return the steps to a multi-tenant database in order, each with whether the tables show that it was taken."""
    agents, sessions = tables.get("agents"), tables.get("sessions")
    key = key_of(agents)
    steps = {f"created {name}": name in tables for name in _FIRST_TABLES}
    for name in _FIRST_TABLES:
        tenant = _column(tables.get(name), "tenant_id")
        steps[f"added {name}.tenant_id"] = tenant is not None
    steps["created api_keys"] = "api_keys" in tables
    # SQLite rebuilds agents with its id and its key at once; PostgreSQL takes a statement for each.
    if vendor != "sqlite":
        ids = _column(agents, "id")
        steps["added agents.id"] = ids is not None
        steps["made agents.id NOT NULL"] = ids is not None and not ids.nullable
        steps[_STUCK] = agents is not None and key != ("name",)
    steps["keyed agents by id"] = key == ("id",)
    unique = [] if agents is None else unique_keys(agents)
    steps["made (tenant_id, name) unique"] = {"tenant_id", "name"} in unique
    steps[_BY_HAND] = sessions is not None and not any(
        is_obsolete_key(key, OLD_COLUMNS["sessions"]) for key in sessions.foreign_keys
    )
    return steps


def _column(table: Table | None, name: str) -> Column | None:
    return None if table is None else table.column(name)
