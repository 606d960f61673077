"""Running SQL through a connection, as the adoption does it everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

Query = Callable[[str, Sequence[Any] | None], list[tuple[Any, ...]]]
Run = Callable[[str], None]


def rows(
    connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return all rows. Without parameters a percent sign, as in somebody's view or default, is one."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def run(connection: BaseDatabaseWrapper, sql: str) -> None:
    """Run a statement that returns no rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, None)
