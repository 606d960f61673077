"""Small pieces of sentences."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return ``1 row`` or ``1,200 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def uncapitalized(text: str) -> str:
    """Return the text with its first letter in lower case."""
    return text[:1].lower() + text[1:]
