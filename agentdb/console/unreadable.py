"""Finds and names stored values that Python cannot represent: times outside its calendar, text that is not UTF-8."""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeGuard

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext

from agentdb.schema.rows import unreadable_values


class Unreadable(str):
    """The stored text of a value that cannot be read; empty if the table lacks the column."""

    is_missing: bool

    def __new__(cls, stored: str, *, is_missing: bool = False) -> Unreadable:
        made = super().__new__(cls, stored)
        made.is_missing = is_missing
        return made


def is_unreadable(value: Any) -> TypeGuard[Unreadable]:
    """Return whether a value is an ``Unreadable``, which can stand for a value of any type."""
    return isinstance(value, Unreadable)


def unreadable_rows(
    connection: BaseDatabaseWrapper, limit: int, *, thorough: bool = False
) -> list[str]:
    """Return a sentence for each value that cannot be read, at most ``limit``.

    ``thorough`` reads all rows; otherwise only the ends of an index are searched, where nearly all of them sort.
    """
    found = unreadable_values(connection, limit, thorough=thorough)
    return [unreadable_sentence(*each) for each in islice(found, limit)]


def unreadable_sentence(table: str, id: str, column: str, value: str) -> str:
    """Name the row, the column and the value, which is cut."""
    sentence = gettext("Row %(id)s of %(table)s has %(column)s = %(value)s.")
    return sentence % {
        "id": repr(id),
        "table": table,
        "column": column,
        "value": repr(value[:60]),
    }
