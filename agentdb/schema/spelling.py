"""The format of SQLite's timestamps: it compares them as text, so equal instants must be equal texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import rows
from agentdb.schema.sqltext import quote_name
from agentdb.schema.tables import Table

# SQL of a server: a native timestamp in SQLite's format.
AS_SQLITE_TEXT = (
    "replace(to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '.000000', '')"
)


@dataclass(frozen=True)
class Misspelt:
    """Timestamps of a column that another program wrote in its own format."""

    table: str
    column: str
    rows: int
    example: str


def is_in_python(column: str) -> str:
    """SQL of a server: Python can represent the instant, which infinity, BC and years above 9999 are not."""
    # With the zone: a limit without one would be read in the session's zone, which moves it by hours.
    return (
        f"{column} >= '0001-01-01 00:00:00+00' AND {column} < '10000-01-01 00:00:00+00'"
    )


def sorts_outside(column: str) -> str:
    """SQL of SQLite: the text sorts before year 1 or after year 9999."""
    # Two comparisons with OR, because SQLite looks each up in an index; for NOT with AND it would read every row. The
    # hyphen keeps '0001-' a text: a datetime column has NUMERIC affinity, which makes a number of '0001', and every
    # text sorts after every number.
    return f"{column} < '0001-' OR {column} > '9999-12-31 23:59:59.999999'"


def is_in_calendar(column: str) -> str:
    """SQL: the text, which begins as ``YYYY-MM-DD HH``, names a day from year 1 on and an hour below 24."""
    return (
        f"{column} >= '0001-' AND substr({column}, 12, 2) < '24'"
        # Days that every month has skip the slower calendar check.
        f" AND (substr({column}, 9, 2) BETWEEN '01' AND '28'"
        f" OR strftime('%Y-%m-%d', substr({column}, 1, 10), '+0 days') = substr({column}, 1, 10))"
    )


def is_spelt_as_agentdb_does(column: str) -> str:
    """SQL: the value is ``YYYY-MM-DD HH:MM:SS``, with six digits of a second behind it unless those are zeros."""
    # strftime() reads other spellings too: only what it writes back letter by letter is in this one. It lets '24:00'
    # and the 30th of February pass, hence the calendar.
    return (
        f"typeof({column}) = 'text' AND strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19))"
        f" = substr({column}, 1, 19) AND {is_in_calendar(column)} AND (length(CAST({column} AS BLOB)) = 19"
        f" OR length(CAST({column} AS BLOB)) = 26 AND substr({column}, 20) GLOB '.{'[0-9]' * 6}'"
        f" AND substr({column}, 21) <> '000000')"
    )


def misspelt_timestamps(
    connection: BaseDatabaseWrapper, tables: Mapping[str, Table]
) -> list[Misspelt]:
    """Read the native timestamps of these tables, and return the columns with values that sort and compare wrongly."""
    if connection.vendor != "sqlite":
        return []
    found = []
    for name, table in tables.items():
        columns = [column.name for column in table.columns if column.type == "datetime"]
        for column in columns if table.kind == "table" else ():
            quoted = quote_name(column)
            # The plus sign bypasses Django's converter, which cannot read everything.
            [(number, example)] = rows(
                connection,
                f"SELECT count(*), min(+{quoted}) FROM {quote_name(table.name)}"
                f" WHERE ({is_spelt_as_agentdb_does(quoted)}) IS NOT TRUE AND {quoted} IS NOT NULL",
            )
            if number:
                found.append(Misspelt(name, column, number, str(example)))
    return found
