"""Runs the adoption's SQL on a connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

Query = Callable[[str, Sequence[Any] | None], list[tuple[Any, ...]]]
Run = Callable[[str], None]


def rows(
    connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return all rows. Without parameters a percent sign, for example in a view or default, is literal."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def run(connection: BaseDatabaseWrapper, sql: str) -> None:
    """Run a statement that returns no rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, None)
