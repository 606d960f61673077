"""Runs SQL on a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper


def rows(
    connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] | None = None
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
