"""The definitions inside a CREATE TABLE of SQLite, verbatim: SQLite itself only tells them in parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Quoted names and strings, with their own way to write the quote itself; comments; words; any other single character.
_TOKEN = re.compile(
    r"""
    '(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
    | --[^\n]*\n? | /\*.*?(?:\*/|\Z)
    | [\w$]+ | \s+ | .
    """,
    re.DOTALL | re.VERBOSE,
)
_CONSTRAINT_WORDS = frozenset({"constraint", "primary", "unique", "check", "foreign"})


@dataclass(frozen=True, slots=True)
class CreateTable:
    """``columns`` by lower-case name; ``constraints`` of the table, each with the lower-case words that are in it."""

    columns: dict[str, str]
    constraints: tuple[tuple[str, frozenset[str]], ...]


def parse_create_table(sql: str) -> CreateTable:
    """Split the text that sqlite_master has for a table. Comments are dropped, all else stays as written."""
    columns: dict[str, str] = {}
    constraints: list[tuple[str, frozenset[str]]] = []
    for tokens in _definitions(sql):
        text = "".join(tokens).strip()
        first = next(token for token in tokens if not token.isspace())
        if first.lower() in _CONSTRAINT_WORDS:
            words = frozenset(_name(token).lower() for token in tokens if not token.isspace() and token[0] != "'")
            constraints.append((text, words))
        else:
            columns[_name(first).lower()] = text
    return CreateTable(columns, tuple(constraints))


def _definitions(sql: str) -> Iterator[list[str]]:
    depth = 0
    tokens: list[str] = []
    for token in _TOKEN.findall(sql):
        if token.startswith(("--", "/*")):
            token = " "
        if token == ")":
            depth -= 1
            if depth == 0:
                break
        if depth == 1 and token == ",":
            yield tokens
            tokens = []
        elif depth:
            tokens.append(token)
        if token == "(":
            depth += 1
    yield tokens


def _name(token: str) -> str:
    if token[0] in "\"'`" and len(token) > 1:
        return token[1:-1].replace(token[0] * 2, token[0])
    return token[1:-1] if token[0] == "[" else token
