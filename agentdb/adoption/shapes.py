"""The shapes of old servers' databases as data; recognise() finds the one of a database. Read-only.

The order of statements and the names of indexes and constraints do not matter, because they vary with the history of a
database. Only columns, their types and the keys count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import StateApps

from agentdb.adoption.obstacles import OLD_COLUMNS
from agentdb.schema import (
    Column,
    Table,
    drift,
    expected_tables,
    read_tables,
)
from agentdb.schema.comparison import keys_of
from agentdb.schema.migration_record import (
    migration_names,
    recorded_migrations,
    tables_elsewhere,
)
from agentdb.wording import counted

APP = "agentdb"
INITIAL = "0001_initial"
NATIVE = "0002_native_timestamps"


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

_KINDS = {
    "text": "text",
    "text or null": "text",
    "integer": "an integer",
    "timestamp": "a timestamp",
}
_TEXT_TYPES = ("text", "varchar", "character varying", "clob")
_INTEGER_TYPES = ("integer", "int", "smallint", "bigint", "int2", "int4", "int8")
NATIVE_TIMESTAMP = {
    "sqlite": "datetime",
    "postgresql": "timestamp with time zone",
    "cockroachdb": "timestamp with time zone",
}


@dataclass(frozen=True)
class Shape:
    """What a database's schema says about its origin."""

    kind: Kind
    description: str  # a phrase for the operator
    live: Mapping[str, Table]  # all tables of the database, as they are
    tables: Mapping[str, Table]  # those of the four that exist, by their final name
    stored_as: Mapping[str, str]  # final name -> name in the database
    others: tuple[str, ...]  # tables that are not ours
    recorded: tuple[str, ...]  # agentdb's migrations in django_migrations
    level: str | None  # the migration that leaves the tables like this, or None
    problems: tuple[str, ...]  # obstacles, a sentence each

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
    recorded = _recorded(connection, live)
    tables, stored_as = _ours(connection.vendor, live)
    others = tuple(sorted(set(live) - set(stored_as.values()) - {"django_migrations"}))
    problems = tuple(_problems(connection, tables, recorded))
    # A migration leaves the tables under their names, and none in the middle of a conversion. Comparing with each
    # migration is the slow part, and says nothing about tables that another program made.
    is_settled = all(name == stored for name, stored in stored_as.items())
    level = None
    if tables and is_settled and live == found and not problems:
        level = _level(connection, live)
    if tables:
        kind, description = _kind(connection.vendor, tables, others, level, recorded)
    else:
        kind, description = _kind_without_tables(others, "django_migrations" in live)
    return Shape(
        kind,
        description,
        found,
        tables,
        stored_as,
        others,
        recorded,
        level,
        problems,
    )


def unadopted(connection: BaseDatabaseWrapper) -> Shape | None:
    """Return the shape of an old server's tables that are not adopted yet; None if there are none."""
    if recorded_migrations(connection):
        return None
    shape = recognise(connection)
    return shape if shape.tables else None


def _problems(
    connection: BaseDatabaseWrapper,
    tables: Mapping[str, Table],
    recorded: tuple[str, ...],
) -> Iterator[str]:
    for table in tables.values():
        yield from _table_problems(connection.vendor, table)
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


def _ours(
    vendor: str, live: Mapping[str, Table]
) -> tuple[dict[str, Table], dict[str, str]]:
    tables: dict[str, Table] = {}
    stored_as: dict[str, str] = {}
    for name in OLD_COLUMNS:
        stored = name
        if name not in live and vendor == "sqlite" and REBUILT_AS.get(name) in live:
            # Interrupted between dropping the old table and renaming the new one, which has all rows.
            stored = REBUILT_AS[name]
            if _misses(live[stored]):
                continue
        if stored in live:
            tables[name] = live[stored]
            stored_as[name] = stored
    return tables, stored_as


def _misses(table: Table) -> list[str]:
    """Return the columns of every release that the table lacks."""
    name = _final_name(table.name)
    added = ADDED_COLUMNS[name]
    missing = []
    for column in OLD_COLUMNS[name]:
        if column in added:
            continue
        if table.column(column) is None:
            missing.append(column)
    return missing


def _final_name(stored: str) -> str:
    names = {rebuilt: name for name, rebuilt in REBUILT_AS.items()}
    return names.get(stored, stored)


def _table_problems(vendor: str, table: Table) -> list[str]:
    if table.kind != "table":
        return [f"{table.name!r} is a {table.kind}, not a table. Rename it."]
    if missing := _misses(table):
        return [
            f"Table {table.name!r} was not made by the server: it has no column {', '.join(map(repr, missing))}. "
            "Rename it, or check the database URL."
        ]
    kinds = OLD_COLUMNS[_final_name(table.name)]
    problems = [
        _foreign_column_problem(table, column)
        if column.name not in kinds
        else _column_problem(vendor, table, column, kinds[column.name])
        for column in table.columns
    ]
    return [problem for problem in problems if problem]


def _column_problem(vendor: str, table: Table, column: Column, kind: str) -> str:
    if column.generated is not None:
        return f"Column {column.name!r} of table {table.name!r} is generated. Make it a plain column."
    if _holds(vendor, column.type, kind):
        return ""
    return (
        f"Column {column.name!r} of table {table.name!r} has the type {column.type or '(none)'}, "
        f"which cannot be read as {_KINDS[kind]}."
    )


def _foreign_column_problem(table: Table, column: Column) -> str:
    if not column.nullable and column.default is None and column.generated is None:
        return (
            f"Table {table.name!r} has an additional column {column.name!r} that is NOT NULL without a "
            "default, so that no row could be inserted. Give it a default, or allow NULL."
        )
    if "strict" in table.options and column.type == "any":
        return (
            f"Column {column.name!r} of the STRICT table {table.name!r} has the type ANY, which keeps a number "
            "in a text as it is there, and not in the table that agentdb makes. Give it another type."
        )
    return ""


def _holds(vendor: str, column_type: str, kind: str) -> bool:
    base = column_type.partition("(")[0].strip()
    if kind == "integer":
        return base in _INTEGER_TYPES
    return base in _TEXT_TYPES or (
        kind == "timestamp" and base == NATIVE_TIMESTAMP[vendor]
    )


def _recorded(
    connection: BaseDatabaseWrapper, live: Mapping[str, Table]
) -> tuple[str, ...]:
    if "django_migrations" not in live:
        return ()
    return tuple(sorted(recorded_migrations(connection)))


def _record_problems(
    recorded: tuple[str, ...], tables: Mapping[str, Table]
) -> list[str]:
    if not recorded:
        return []
    if unknown := [name for name in recorded if name not in migration_names()]:
        return [
            f"The database was migrated by a newer agentdb: {unknown[-1]!r} is unknown here. Upgrade agentdb."
        ]
    if not tables:
        return [
            f"Migration {recorded[-1]!r} is recorded, but none of the four tables is there. Restore a backup, or run "
            "'agentdb migrate --fake agentdb zero' and 'agentdb migrate' to begin with empty tables."
        ]
    return []


@cache
def state_apps(name: str) -> StateApps:
    """Return the models as the named migration leaves them."""
    return MigrationLoader(None).project_state((APP, name)).apps


def _level(connection: BaseDatabaseWrapper, live: Mapping[str, Table]) -> str | None:
    """Return the last migration that leaves the tables as they are."""
    latest = expected_tables(connection, state_apps(migration_names()[-1]))
    for name in reversed(migration_names()):
        expected = expected_tables(connection, state_apps(name))
        if drift(expected, live, names=name != INITIAL):
            continue
        # With an index of a later migration it does not match this one, and the later one would fail.
        if _has_later_index(expected, latest, live):
            return None
        return name
    return None


def _has_later_index(
    expected: Mapping[str, Table],
    latest: Mapping[str, Table],
    live: Mapping[str, Table],
) -> bool:
    for name, table in expected.items():
        later = _index_names(latest[name]) - _index_names(table)
        if later & _index_names(live[name]):
            return True
    return False


def _index_names(table: Table) -> set[str]:
    return {index.name for index in table.indexes}


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
    if any(_misses(table) for table in tables.values()):
        return Kind.FOREIGN, "tables that the server did not make"
    # The old server leaves the tables of the first migration too, so they prove nothing unless it is recorded.
    is_first = level == INITIAL and recorded[-1:] != (INITIAL,)
    if level is not None and not is_first:
        return Kind.ADOPTED, _adopted(level, recorded)
    if any(_is_native(vendor, name, table) for name, table in tables.items()):
        return Kind.ALTERED, _altered(recorded)
    steps = _steps(vendor)
    done = [step for step in steps if step.is_done(tables)]
    if len(done) == len(steps):
        return _multi_tenant(tables, others)
    return _old_kind(vendor, tables, done)


def _altered(recorded: tuple[str, ...]) -> str:
    if recorded:
        return f"changed since migration {recorded[-1]} was applied"
    return "in part with native timestamps"


def _adopted(level: str, recorded: tuple[str, ...]) -> str:
    if not recorded:
        return f"the tables of migration {level}, but no migration is recorded"
    if recorded[-1] == level:
        return f"adopted, at migration {level}"
    return f"the tables of migration {level}, but {recorded[-1]} is recorded"


def _multi_tenant(
    tables: Mapping[str, Table], others: tuple[str, ...]
) -> tuple[Kind, str]:
    """Return which of two releases made the tables: a later one has further tables, or no defaults."""
    later = sorted(LATER_TABLES.intersection(others))
    if later:
        return Kind.LATER, f"a later server's: multi-tenant, with {', '.join(later)}"
    timestamps: list[Column] = []
    for name, table in tables.items():
        timestamps += _timestamps(name, table)
    if all(column.default is None for column in timestamps):
        return Kind.LATER, "a later server's: multi-tenant, timestamps without defaults"
    return Kind.MULTI_TENANT, "multi-tenant"


def _old_kind(
    vendor: str, tables: Mapping[str, Table], done: list[Step]
) -> tuple[Kind, str]:
    upgraded = [step for step in done if step not in (*_CREATED, _BY_HAND)]
    if not upgraded and all(step in done for step in _CREATED):
        return Kind.SINGLE_TENANT, "single-tenant"
    if vendor != "sqlite" and _is_stuck(tables, done):
        return Kind.STUCK, (
            "stuck: the old server's upgrade to multi-tenant cannot finish on PostgreSQL, "
            "and agents are still keyed by name"
        )
    how_far = _how_far(_steps(vendor), done)
    return Kind.INTERRUPTED, f"an upgrade to multi-tenant {how_far}"


def _how_far(steps: list[Step], done: list[Step]) -> str:
    # One that was taken by hand says nothing about how far the server came.
    by_hand = [step for step in done if step is _BY_HAND]
    expected = [step for step in steps if step not in by_hand]
    taken = [step for step in expected if step in done]
    if taken != expected[: len(taken)]:
        missing = ", ".join(step.what for step in steps if step not in done)
        return f"in which these of {len(steps)} steps are missing: {missing}"
    if not taken:
        return "that stopped before its first step"
    return f"that stopped after step {len(taken)} of {len(steps)} ({taken[-1].what})"


def _is_stuck(tables: Mapping[str, Table], done: list[Step]) -> bool:
    """Return whether the old server's upgrade took every step before the statement that always fails."""
    # PostgreSQL does not drop the key of agents while the foreign key of sessions refers to it. The old server did not
    # expect that: its upgrade ends at this statement, and again at each start.
    agents = tables.get("agents")
    if key_of(agents) != ("name",):
        return False
    return all(step in done for step in _BEFORE_STUCK)


def _is_native(vendor: str, name: str, table: Table) -> bool:
    """Return whether a timestamp of the table has the engine's type for it, as no old server made it."""
    native = NATIVE_TIMESTAMP[vendor]
    types = [column.type for column in _timestamps(name, table)]
    return native in types


def _timestamps(name: str, table: Table) -> list[Column]:
    """Return the table's columns that hold timestamps in every old release, whatever their type is now."""
    kinds = OLD_COLUMNS[name]
    found = []
    for column in table.columns:
        if kinds.get(column.name) == "timestamp":
            found.append(column)
    return found


def key_of(table: Table | None) -> tuple[str, ...]:
    """The columns of the table's primary key."""
    key = None if table is None else table.primary_key
    return () if key is None else key.columns


def unique_keys(table: Table) -> list[frozenset[str]]:
    """Return the sets of columns that a key, a constraint or a plain unique index keeps unique."""
    keys = [
        key.columns
        for key in keys_of(table)
        if key.does.unique and key.does.valid and key.does.condition is None
    ]
    return [*keys, frozenset(key_of(table))] if table.primary_key else keys


@dataclass(frozen=True)
class Step:
    """A step of the upgrade to multi-tenant, and how the table shows that it was taken."""

    what: str
    table: str
    shows: Callable[[Table], bool]

    def is_done(self, tables: Mapping[str, Table]) -> bool:
        return self.table in tables and self.shows(tables[self.table])


def _creates(name: str) -> Step:
    return Step(f"created {name}", name, lambda table: True)


def _adds(name: str, column: str) -> Step:
    def has_column(table: Table) -> bool:
        return table.column(column) is not None

    return Step(f"added {name}.{column}", name, has_column)


def _has_ids(agents: Table) -> bool:
    column = agents.column("id")
    return column is not None and not column.nullable


def _is_unique_by_tenant(agents: Table) -> bool:
    return frozenset({"tenant_id", "name"}) in unique_keys(agents)


# What the single-tenant release does.
_CREATED = [_creates("agents"), _creates("sessions"), _creates("sandboxes")]
# Some operators took this step by hand, to leave the stuck state.
_BY_HAND = Step(
    "dropped the foreign key of sessions",
    "sessions",
    lambda sessions: not sessions.foreign_keys,
)
_FIRST = [
    *_CREATED,
    _adds("agents", "tenant_id"),
    _adds("sessions", "tenant_id"),
    _adds("sandboxes", "tenant_id"),
    _creates("api_keys"),
]
_LAST = [
    Step("keyed agents by id", "agents", lambda agents: key_of(agents) == ("id",)),
    Step("made (tenant_id, name) unique", "agents", _is_unique_by_tenant),
    _BY_HAND,
]
# SQLite rebuilds agents with its id and its key at once; PostgreSQL takes a statement for each.
_BEFORE_STUCK = [
    *_FIRST,
    _adds("agents", "id"),
    Step("made agents.id NOT NULL", "agents", _has_ids),
]
_STUCK = Step(
    "dropped the key of agents by name",
    "agents",
    lambda agents: key_of(agents) != ("name",),
)


def _steps(vendor: str) -> list[Step]:
    if vendor == "sqlite":
        return [*_FIRST, *_LAST]
    return [*_BEFORE_STUCK, _STUCK, *_LAST]
