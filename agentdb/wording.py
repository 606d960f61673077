"""Small pieces of sentences."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """Return ``1 row`` or ``1,200 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(things: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    *first, last = things
    return f"{', '.join(first)} and {last}" if first else last


def capitalized(text: str) -> str:
    """Return the text with its first letter in upper case and all others as they are."""
    return text[:1].upper() + text[1:]


def uncapitalized(text: str) -> str:
    """Return the text with its first letter in lower case."""
    return text[:1].lower() + text[1:]
