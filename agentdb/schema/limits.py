"""PostgreSQL's time limits for a role, which a long command lifts for its own session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

_LIMITS = [
    "statement_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
]
# Asked of pg_settings, because older servers do not know all of them.
_LIFT = "SELECT set_config(name, '0', {}) FROM pg_settings WHERE name = ANY(%s)"


@contextmanager
def lifted_limits(
    connection: BaseDatabaseWrapper, say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Let no statement of this session be ended for taking long; ``say`` is told which limits there were."""
    if connection.vendor != "postgresql":
        yield
        return
    # For the session and not for a transaction: a command has several.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s) AND setting <> '0'",
            [_LIMITS],
        )
        limits = cursor.fetchall()
        cursor.execute(_LIFT.format("false"), [_LIMITS])
    for name, value in limits:
        say(
            f"{name} is {value} for this role. This command sets it to 0 in its own session."
        )
    try:
        yield
    finally:
        with suppress(Error), connection.cursor() as cursor:
            for name, value in limits:
                cursor.execute("SELECT set_config(%s, %s, false)", [name, value])


def lift_for_transaction(connection: BaseDatabaseWrapper) -> None:
    """The same for the transaction that is open, after which the limits are back."""
    with connection.cursor() as cursor:
        cursor.execute(_LIFT.format("true"), [_LIMITS])
