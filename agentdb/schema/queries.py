"""Runs SQL on a connection, and lifts PostgreSQL's time limits for a role, for a command that takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from django.db import Error, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.faults import needs_another_program


def rows(
    connection: BaseDatabaseWrapper,
    sql: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
) -> list[tuple[Any, ...]]:
    """Return all rows. Without parameters a percent sign, for example in a view or default, is literal."""
    # Not an empty list for none: with any list the drivers of both engines take each percent sign for a placeholder.
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def run(
    connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] | None = None
) -> None:
    """Run a statement whose rows nobody needs."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def quote_name(name: str) -> str:
    """Return ``name`` in quotes, with inner quotes doubled, which Django's ``quote_name`` does not do."""
    return '"' + name.replace('"', '""') + '"'


def count_rows(connection: BaseDatabaseWrapper, table: str) -> int:
    count = f"SELECT count(*) FROM {quote_name(table)}"
    try:
        [(number,)] = rows(connection, count)
    except OperationalError as error:
        # SQLite counts the entries of the smallest index, which may need a collation that only another program has. The
        # table itself is many times as large.
        if not needs_another_program(error):
            raise
        [(number,)] = rows(connection, f"{count} NOT INDEXED")
    return int(number)


_LIMITS = [
    "statement_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
]
# From pg_settings, because older servers lack some of them.
_LIFT = "SELECT set_config(name, '0', {}) FROM pg_settings WHERE name = ANY(%s)"


@contextmanager
def lifted_limits(
    connection: BaseDatabaseWrapper, say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Lift the time limits of this session; ``say`` is called for each."""
    if connection.vendor != "postgresql":
        yield
        return
    # For the session and not for a transaction: a command has several.
    limits = rows(
        connection,
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s) AND setting <> '0'",
        [_LIMITS],
    )
    run(connection, _LIFT.format("false"), [_LIMITS])
    for name, value in limits:
        say(
            f"{name} is {value} for this role. This command sets it to 0 in its own session."
        )
    try:
        yield
    finally:
        # A pooler may give the session to another client as it is. If the connection is gone, so are its settings.
        with suppress(Error):
            for name, value in limits:
                run(connection, "SELECT set_config(%s, %s, false)", [name, value])


def lift_for_transaction(connection: BaseDatabaseWrapper) -> None:
    """Lift them for the open transaction only."""
    run(connection, _LIFT.format("true"), [_LIMITS])
