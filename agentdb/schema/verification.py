"""Checks whether a database matches the models and its record of migrations is true. Read-only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.text import get_text_list

from agentdb.conf import server_name
from agentdb.schema import (
    Difference,
    Table,
    compare,
    drift,
    expected_tables,
    read_tables,
)
from agentdb.schema.expected import state_apps
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.migration_record import (
    migration_names,
    recorded_migrations,
    tables_elsewhere,
)
from agentdb.schema.rows import (
    Misspelt,
    UnreadableValue,
    misspelt_timestamps,
    unreadable_timestamps,
)
from agentdb.sqlite_files import file_concern
from agentdb.wording import counted

# Raise it when a field of the JSON report is renamed, removed or changes its meaning; new fields may be added.
JSON_FORMAT = 1
SPELLING = "value.spelling"
UNREADABLE = "value.unreadable"
_SHOWN = 20  # unreadable values that are named

_listed = partial(get_text_list, last_word="and")


@dataclass(frozen=True)
class Verification:
    engine: str
    database: str
    tables: int  # existing tables of the models
    recorded: tuple[str, ...]  # of this agentdb's migrations, in their order
    pending: tuple[str, ...]
    unknown: tuple[str, ...]  # recorded by another agentdb
    record_is_true: bool | None  # None: unknown migrations were applied
    differences: tuple[Difference, ...]  # drift
    notes: tuple[Difference, ...]

    @property
    def matches(self) -> bool:
        return not self.differences and not self.pending and self.record_is_true is True

    @cached_property
    def verdict(self) -> str:
        """One line: the result, and what to do."""
        if self.unknown:
            return (
                f"A newer agentdb migrated this database: {_listed(self.unknown)} {_is(self.unknown)} not known here. "
                "Upgrade agentdb."
            )
        if self.differences and self.differences[0].code == "table.elsewhere":
            return "The search_path leads to more than one schema. Name one, and run the command again."
        if not self.recorded and not self.tables:
            return "There are no agentdb tables. Run 'agentdb migrate'."
        if not self.recorded:
            return "No migration is recorded: these tables are not adopted yet. Run 'agentdb baselinedb'."
        if not self.record_is_true:
            done = f"Recorded {_is(self.recorded)} {_listed(self.recorded)}, but the tables are not as "
            return f"{done}{self.recorded[-1]} leaves them. Run 'agentdb baselinedb --check' to see what can be done."
        if self.pending:
            pending = _listed(self.pending)
            return f"The tables are as {self.recorded[-1]} leaves them. Run 'agentdb migrate' to apply {pending}."
        return self._verdict_of_differences()

    def _verdict_of_differences(self) -> str:
        if not self.differences:
            return f"The schema matches the models, and the recorded migrations are true: {_listed(self.recorded)}."
        # With a true record and nothing pending only values can differ.
        if self.differences[0].code == UNREADABLE:
            return "The schema matches the models, but there are timestamps that cannot be read. Correct them."
        return (
            "The schema matches the models, but an old server, or another program, has written timestamps of its own "
            "spelling. Run 'agentdb baselinedb'."
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "format": JSON_FORMAT,
            "engine": self.engine,
            "database": self.database,
            "matches": self.matches,
            "verdict": self.verdict,
            "migrations": {
                "recorded": list(self.recorded),
                "pending": list(self.pending),
                "unknown": list(self.unknown),
                "record_is_true": self.record_is_true,
            },
            "differences": list(map(asdict, self.differences)),
            "notes": list(map(asdict, self.notes)),
        }


def verify(connection: BaseDatabaseWrapper) -> Verification:
    """Compare the connection's database with the models and with its recorded migrations."""
    live = read_tables(connection)
    expected = expected_tables(connection, apps)
    # Looked for among the tables of this schema: a query would find a record further down the search_path, too.
    record = recorded_migrations(connection) if "django_migrations" in live else set()
    recorded = tuple(name for name in migration_names() if name in record)
    unknown = tuple(sorted(record - set(recorded)))
    ours = {name: table for name, table in live.items() if name in expected}
    found = _differences(connection, expected, live, ours)
    return Verification(
        engine=connection.vendor,
        database=_name(connection),
        tables=len(ours),
        recorded=recorded,
        pending=tuple(name for name in migration_names() if name not in record),
        unknown=unknown,
        record_is_true=None if unknown else _is_true(connection, recorded, ours),
        differences=tuple(each for each in found if each.severity == "drift"),
        notes=tuple(each for each in found if each.severity == "note"),
    )


def _differences(
    connection: BaseDatabaseWrapper,
    expected: Mapping[str, Table],
    live: Mapping[str, Table],
    ours: Mapping[str, Table],
) -> list[Difference]:
    elsewhere = tables_elsewhere(connection, expected)
    if elsewhere is not None:
        return [Difference("table.elsewhere", "drift", "", None, None, None, elsewhere)]
    # The operator knows the tables of the project's other apps.
    others = {"django_migrations", *connection.introspection.django_table_names()}
    strange = {name: live[name] for name in live if name not in others}
    unreadable = unreadable_timestamps(connection, ours.values())
    return [
        *compare(expected, {**strange, **ours}),
        *map(_spelling, misspelt_timestamps(connection, ours)),
        *map(_unreadable, islice(unreadable, _SHOWN)),
        *_file_system(connection),
    ]


def _spelling(found: Misspelt) -> Difference:
    timestamps = counted(found.rows, "timestamp")
    message = (
        f"Column {found.table}.{found.column} holds {timestamps} in another spelling than agentdb's, as "
        f"{found.example!r}, which SQLite sorts and compares wrongly. "
        "Stop the program that writes them, and run 'agentdb baselinedb'."
    )
    return Difference(
        SPELLING, "drift", found.table, found.column, None, found.example, message
    )


def _unreadable(found: UnreadableValue) -> Difference:
    message = (
        f"Column {found.table}.{found.column} of the row with id {found.id!r} holds {found.value!r}, which is outside "
        "the years 1 to 9999: lists with that row fail. Correct it."
    )
    return Difference(
        UNREADABLE, "drift", found.table, found.column, None, found.value, message
    )


def _file_system(connection: BaseDatabaseWrapper) -> Iterator[Difference]:
    path = sqlite_path(connection)
    if path and (concern := file_concern(path)):
        yield Difference("file.system", "note", "", None, None, None, concern)


def _name(connection: BaseDatabaseWrapper) -> str:
    # A read-only connection to a SQLite file has a URI as its name; the configured one has the path.
    settings = connections[connection.alias].settings_dict
    return (
        str(settings["NAME"])
        if connection.vendor == "sqlite"
        else server_name(settings)
    )


def _is_true(
    connection: BaseDatabaseWrapper, recorded: tuple[str, ...], ours: dict[str, Table]
) -> bool:
    """Return whether the recorded migrations have no gap and the tables are as the last one leaves them."""
    # A gap: Django would apply the missing one after the later ones.
    if recorded != migration_names()[: len(recorded)]:
        return False
    if not recorded:
        return not ours
    return level(connection, ours) == recorded[-1]


def level(connection: BaseDatabaseWrapper, live: Mapping[str, Table]) -> str | None:
    """Return the last migration that leaves the tables as they are."""
    initial, *_ = migration_names()
    for name in reversed(migration_names()):
        expected = expected_tables(connection, state_apps(name))
        # The names of constraints differ among the old server's databases, over which the first one is recorded.
        if not drift(expected, live, names=name != initial):
            return name
    return None


def _is(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"
