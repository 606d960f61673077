"""A table's schema as data, the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class IndexPart:
    """One key of an index: a column, or an expression in parentheses."""

    expression: str
    descending: bool = False
    collation: str | None = None  # None: the column's own
    nulls: Literal["first", "last"] | None = None  # None: the engine's usual place
    operator_class: str | None = None  # None: the type's own


@dataclass(frozen=True)
class PrimaryKey:
    name: str | None
    columns: tuple[str, ...]
    options: tuple[str, ...] = ()  # deferrable, on conflict …


@dataclass(frozen=True)
class Unique:
    """A UNIQUE constraint. A unique index that belongs to no constraint is an Index."""

    name: str | None  # SQLite stores none for a column's own UNIQUE
    columns: tuple[str, ...]
    options: tuple[str, ...] = ()  # deferrable, nulls not distinct, on conflict …


@dataclass(frozen=True)
class Index:
    name: str
    parts: tuple[IndexPart, ...]
    unique: bool = False
    condition: str | None = None  # canonical SQL of a partial index
    include: tuple[str, ...] = ()
    method: str = "btree"
    valid: bool = True
    options: tuple[str, ...] = ()  # nulls not distinct


@dataclass(frozen=True)
class ForeignKey:
    name: str | None
    columns: tuple[str, ...]
    target_table: str
    target_columns: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """A CHECK constraint, or PostgreSQL's exclusion constraint."""

    name: str | None
    expression: str
    kind: Literal["check", "exclusion"] = "check"


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]  # in the database's order, which is not compared
    primary_key: PrimaryKey | None
    uniques: tuple[Unique, ...] = ()
    indexes: tuple[Index, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    checks: tuple[Check, ...] = ()
    kind: str = "table"  # or view, virtual table, partitioned table …
    options: tuple[str, ...] = ()  # unlogged, row security, without rowid, strict
    triggers: tuple[str, ...] = ()  # names
    rules: tuple[str, ...] = ()  # names of PostgreSQL's rewrite rules

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    def index(self, name: str) -> Index | None:
        return next((index for index in self.indexes if index.name == name), None)
