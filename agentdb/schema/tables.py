"""A table's schema as data, the same for every engine."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Column:
    name: str
    type: str  # in lower case: text, integer, datetime, timestamp with time zone
    nullable: bool
    default: str | None  # canonical SQL; None for no default and for DEFAULT NULL
    collation: str | None = None  # None: the database's own
    generated: str | None = None  # expression of a generated or identity column
    conflict: str | None = None  # SQLite: what happens to a NULL: ignore, replace, …


_QUOTED_NAME = re.compile(r'"((?:[^"]|"")*)"')

KeyKind = Literal["primary key", "unique constraint", "unique index", "index"]


@dataclass(frozen=True)
class Key:
    """A primary key, a UNIQUE constraint or an index."""

    name: str  # '' for none, as SQLite stores a column's own UNIQUE
    # Of an index in canonical SQL, with what is not usual: 'created_at DESC', 'id COLLATE "C"', '(a || b)', 'lower(a)'.
    columns: tuple[str, ...]
    kind: KeyKind = "index"
    condition: str | None = None  # canonical SQL of a partial index
    include: tuple[str, ...] = ()
    method: str = "btree"
    options: tuple[str, ...] = ()  # deferrable, nulls not distinct, on conflict …
    valid: bool = True

    @property
    def is_unique(self) -> bool:
        return self.kind != "index"

    @property
    def is_constraint(self) -> bool:
        return self.kind == "unique constraint"

    @property
    def does(self) -> Key:
        """What it does, whatever it is called; a UNIQUE constraint does what a unique index does."""
        kind: KeyKind = "unique index" if self.is_constraint else self.kind
        return replace(self, name="", kind=kind)

    @property
    def names(self) -> frozenset[str]:
        """The columns without their order, an index's expression as its first word."""
        if not self.kind.endswith("index"):
            return frozenset(self.columns)
        return frozenset(map(_first_word, self.columns))


def _first_word(sql: str) -> str:
    """Return the name with which a column of an index begins, without its quotes."""
    if name := _QUOTED_NAME.match(sql):
        return name[1].replace('""', '"')
    return sql.partition(" ")[0]


@dataclass(frozen=True)
class ForeignKey:
    name: str
    columns: tuple[str, ...]
    target_table: str
    target_columns: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """A CHECK constraint, or PostgreSQL's exclusion constraint."""

    name: str
    expression: str
    kind: Literal["check", "exclusion"] = "check"


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]  # in the database's order, which is not compared
    primary_key: Key | None = None
    uniques: tuple[Key, ...] = ()  # UNIQUE constraints
    indexes: tuple[Key, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    checks: tuple[Check, ...] = ()
    kind: str = "table"  # or view, virtual table, partitioned table …
    options: tuple[str, ...] = ()  # unlogged, row security, without rowid, strict
    triggers: tuple[str, ...] = ()  # names
    rules: tuple[str, ...] = ()  # names of PostgreSQL's rewrite rules

    def with_keys(self, keys: Collection[Key]) -> Table:
        """Return the table with these keys, in whatever order their kinds are."""
        return replace(
            self,
            primary_key=next((key for key in keys if key.kind == "primary key"), None),
            uniques=tuple(key for key in keys if key.is_constraint),
            indexes=tuple(key for key in keys if key.kind.endswith("index")),
        )

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    @property
    def keys(self) -> tuple[Key, ...]:
        """The UNIQUE constraints and the indexes."""
        return self.uniques + self.indexes

    def index(self, name: str) -> Key | None:
        return next((index for index in self.indexes if index.name == name), None)
