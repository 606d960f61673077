"""Rows that cannot be converted as they are, found before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from django.db import DatabaseError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.timestamps import (
    POSTGRES_CASTABLE,
    UnreadableTimestampError,
    parse_timestamp,
)
from agentdb.errors import SchemaMismatchError
from agentdb.faults import Fault, classify
from agentdb.schema.queries import rows, run
from agentdb.schema.rows import NotUtf8, StoredColumn
from agentdb.wording import counted

# The columns of the old tables and what they hold. Frozen: it describes what migration 0002 finds.
OLD_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "agents": {
        "id": "text",
        "tenant_id": "text",
        "name": "text",
        "version": "integer",
        "path": "text",
        "created_at": "timestamp",
        "updated_at": "timestamp",
    },
    "sessions": {
        "id": "text",
        "tenant_id": "text",
        "agent_name": "text",
        "sandbox_id": "text",
        "status": "text",
        "runner_id": "text or null",
        "created_at": "timestamp",
        "last_active_at": "timestamp",
    },
    "sandboxes": {
        "id": "text",
        "tenant_id": "text",
        "session_id": "text or null",
        "agent_name": "text",
        "state": "text",
        "workspace_dir": "text",
        "created_at": "timestamp",
        "last_used_at": "timestamp",
    },
    "api_keys": {
        "id": "text",
        "tenant_id": "text",
        "key_hash": "text",
        "label": "text",
        "created_at": "timestamp",
    },
}

SHOWN_ROWS = 20
_BATCH = 1000


class UnusableValue(NamedTuple):
    """A value that cannot be converted. ``row`` is the id, the agent's name without an id, or ``rowid N``."""

    table: str
    row: str
    column: str
    value: str
    reason: str

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 120 else f"{self.value[:120]}…"
        return f"table {self.table!r}, {self.row}, column {self.column!r}: {value} {self.reason}"


@dataclass
class UnusableValues:
    """How many there are, and the first 20."""

    total: int = 0
    first: list[UnusableValue] = field(default_factory=list)

    def add(self, value: UnusableValue) -> None:
        self.total += 1
        if len(self.first) < SHOWN_ROWS:
            self.first.append(value)

    @property
    def more(self) -> str:
        """What a sentence about them says if not all are shown."""
        shown = len(self.first)
        return f" (the first {shown} are shown)" if self.total > shown else ""


class Refusal(NamedTuple):
    """Why a database cannot be adopted as it is: a sentence, and the rows that it is about."""

    message: str
    rows: tuple[UnusableValue, ...] = ()
    total: int = 0

    @classmethod
    def about(cls, values: UnusableValues, message: str) -> Refusal:
        return cls(message, tuple(values.first), values.total)

    @classmethod
    def unconvertible(cls, values: UnusableValues) -> Refusal:
        them = "it" if values.total == 1 else "them"
        return cls.about(
            values,
            f"{counted(values.total, 'value')} cannot be converted{values.more}. Fix {them}, timestamps as "
            "'YYYY-MM-DD HH:MM:SS+00:00', and run the command again.",
        )

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {row}" for row in self.rows)])


class AdoptionRefusedError(SchemaMismatchError):
    """The database was not adopted and is as it was. ``refusals`` says why."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        super().__init__("\n".join(map(str, refusals)))
        self.refusals = refusals

    @classmethod
    def of(cls, *messages: str) -> AdoptionRefusedError:
        return cls(tuple(map(Refusal, messages)))


def first_line(error: BaseException) -> str:
    """The driver's message and PostgreSQL's detail without hints and positions, as a sentence."""
    detail = getattr(getattr(error.__cause__, "diag", None), "message_detail", None)
    texts = filter(None, (str(error).strip(), detail))
    return f"{': '.join(text.partition(chr(10))[0].rstrip('.') for text in texts)}."


BUILT_AROUND = "The adoption would fail on what was built around the tables:"


@contextmanager
def refusing(
    what: str,
    advice: str = "Rename or drop that, run the command again, and recreate it.",
    suspects: Callable[[], list[str]] = list,
) -> Iterator[None]:
    """Raise ``AdoptionRefusedError`` with the driver's reason behind ``what``, unless it is about the moment.

    ``suspects`` lists what may have failed if the engine does not say which object did. Blocks may be nested: the
    innermost one, which knows the object best, words the error.
    """
    try:
        yield
    except DatabaseError as error:
        # A lock, a full disk, a limit or a lost connection says nothing about the schema. SQLite's driver raises
        # OperationalError for bad SQL too.
        is_operational = isinstance(error, OperationalError)
        if is_operational and classify(error) not in (Fault.OTHER, Fault.MISMATCH):
            raise
        found = ", ".join(suspects())
        read = f" These read columns whose types change: {found}." if found else ""
        raise AdoptionRefusedError.of(
            f"{what} {first_line(error)}{read} {advice}"
        ) from error


def unusable_reason(kind: str, value: object) -> str | None:
    """Return why a value cannot be converted, as the end of a sentence about it; None if it can."""
    if isinstance(value, NotUtf8):
        return "is not valid UTF-8"
    if value is None:
        return None if kind == "text or null" else "is not allowed"
    if kind == "integer":
        return None if isinstance(value, int) else "is not an integer"
    if not isinstance(value, str):
        return "is not text"
    if kind != "timestamp":
        return None
    try:
        parse_timestamp(value)
    except UnreadableTimestampError as error:
        return str(error)
    return None


def too_wide(value: int) -> str | None:
    """Return why a number does not fit into a server's integer; SQLite's have 64 bits."""
    return None if -(2**31) <= value < 2**31 else "does not fit into 32 bits"


def not_castable(connection: BaseDatabaseWrapper, column: str) -> str:
    """Return an SQL condition: PostgreSQL's cast may not read the column's text as agentdb does."""
    no_match = f"\"{column}\" !~ '{POSTGRES_CASTABLE}'"
    if not connection.features.is_postgresql_16:  # type: ignore[attr-defined]
        return no_match
    # The server's own format comes back unchanged, which takes a third of the time of a pattern.
    back = f"""to_char("{column}"::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
    return (
        f'CASE WHEN length("{column}") = 24 AND pg_input_is_valid("{column}", \'timestamptz\')'
        f' THEN CASE WHEN {back} = "{column}" THEN false ELSE {no_match} END ELSE {no_match} END'
    )


def read_instants(
    connection: BaseDatabaseWrapper, table: str, columns: list[StoredColumn]
) -> bool:
    """Fill ``pg_temp.agentdb_instants`` with the instants of PostgreSQL's rare formats in a table; False without any.

    ``pg_temp.agentdb_instant(text)`` finds them there, and casts all other texts.
    """
    # Python reads these, because PostgreSQL guesses: it takes IST for Israel's time whatever zone wrote it, and takes
    # the order of day and month from today's settings. The table maps each text to the instant that Python found.
    doubtful = " OR ".join(not_castable(connection, column.name) for column in columns)
    selected = ", ".join(column.sql for column in columns)
    source = f'FROM "{table}" WHERE {doubtful}'
    # A role may have no right to make a temporary table, and seldom needs one.
    if rows(connection, f"SELECT count(*) {source}") == [(0,)]:
        return False
    run(
        connection,
        "CREATE TEMPORARY TABLE IF NOT EXISTS agentdb_instants"
        " (text text PRIMARY KEY, instant timestamptz NOT NULL) ON COMMIT DROP",
    )
    # PL/pgSQL plans once per session; an SQL function would be planned for each row.
    run(
        connection,
        "CREATE OR REPLACE FUNCTION pg_temp.agentdb_instant(value text) RETURNS timestamptz"
        " LANGUAGE plpgsql AS $$ BEGIN"
        f" IF value ~ '{POSTGRES_CASTABLE}' THEN RETURN value::timestamptz; END IF;"
        # Not there is only what comes back unchanged from a cast, such as a 29th of February, see not_castable().
        " RETURN coalesce((SELECT instant FROM pg_temp.agentdb_instants WHERE text = value), value::timestamptz);"
        " END $$",
    )
    # A server-side cursor keeps memory bounded if every row is of this kind.
    with (
        connection.cursor() as cursor,
        connection.connection.cursor(name="agentdb_not_castable") as found,
    ):
        found.execute(f"SELECT {selected} {source}")
        while batch := found.fetchmany(_BATCH):
            cursor.executemany(
                "INSERT INTO pg_temp.agentdb_instants VALUES (%s, %s::timestamptz) ON CONFLICT DO NOTHING",
                [(text, str(parse_timestamp(text))) for row in batch for text in row],
            )
    return True
