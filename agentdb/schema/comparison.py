"""Compares live tables with the expected ones. Pure functions: they read no database."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agentdb.schema.sqltext import names_in, quoted
from agentdb.schema.tables import (
    Check,
    Column,
    Index,
    IndexPart,
    Table,
)
from agentdb.wording import capitalized, listed

Severity = Literal["drift", "note"]


@dataclass(frozen=True)
class Difference:
    """One difference from the models; ``note`` means that it does no harm."""

    code: str  # stable: table.missing, column.type, index.extra …; docs/verifydb.md lists them
    severity: Severity
    table: str
    # The column, index or constraint; None for the table itself and for nameless objects.
    object: str | None
    expected: str | None
    found: str | None
    message: str  # one sentence, one line


def compare(
    expected: Mapping[str, Table], live: Mapping[str, Table], *, names: bool = True
) -> list[Difference]:
    """Return the differences between ``live`` and ``expected``; no drift is a match.

    With ``names=False`` constraints and indexes are matched by what they do, whatever they are called, and a unique
    index serves as a UNIQUE constraint: that is how the old server's databases differ among themselves.

    One change is one difference: what a missing or renamed column takes with it is told in that column's line.
    """
    found: list[Difference] = []
    for name, table in expected.items():
        if name in live:
            found += _TableDiff(table, live[name], names=names).differences()
        else:
            found.append(_missing_table(name))
    foreign = [table for name, table in live.items() if name not in expected]
    return [*found, *map(_foreign_table, foreign)]


def _missing_table(name: str) -> Difference:
    message = f"Table {name} is missing."
    return Difference("table.missing", "drift", name, None, "table", None, message)


def _foreign_table(table: Table) -> Difference:
    kind = table.kind
    message = f"{capitalized(kind)} {table.name} is not agentdb's and is left alone."
    return Difference("table.foreign", "note", table.name, None, None, kind, message)


def drift(
    expected: Mapping[str, Table], live: Mapping[str, Table], *, names: bool = True
) -> list[str]:
    """Return a sentence for each drift, without the notes."""
    return [
        found.message
        for found in compare(expected, live, names=names)
        if found.severity == "drift"
    ]


@dataclass(frozen=True)
class Key:
    """An index or a UNIQUE constraint; ``does`` is what it does, without its name."""

    name: str | None
    does: Index
    # The first part of its codes. A primary key is one only where a table has none.
    noun: Literal["index", "unique", "primary_key"] = "index"

    @property
    def is_constraint(self) -> bool:
        return self.noun == "unique"

    @property
    def kind(self) -> str:
        if self.noun == "index":
            return "unique index" if self.does.unique else "index"
        return "unique constraint" if self.is_constraint else "primary key"

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(part.expression for part in self.does.parts)

    @property
    def on(self) -> str:
        """Its keys and what else defines it, as in '(tenant_id, created_at DESC) where runner_id IS NOT NULL'."""
        does = self.does
        text = f"({', '.join(map(_part_text, does.parts))})"
        if does.method != "btree":
            text += f" using {does.method}"
        if does.include:
            text += f" including ({', '.join(does.include)})"
        if does.options:
            text += f" {', '.join(does.options)}"
        return text + (f" where {does.condition}" if does.condition else "")

    @property
    def text(self) -> str:
        return f"{self.kind} on {self.on}"

    @property
    def title(self) -> str:
        if self.noun == "primary_key":
            return "the primary key"
        return f"{self.kind} {self.name or 'without a name'}"

    def names(self) -> frozenset[str]:
        """Return the columns that it reads, in expressions and the condition too."""
        read = [*self.columns, *self.does.include]
        if self.does.condition:
            read.append(self.does.condition)
        return names_in(" ".join(read))

    def is_like(self, other: Key, *, names: bool) -> bool:
        """Return whether both do the same, valid or not; with ``names`` they are also of the same kind."""
        if names and self.noun != other.noun:
            return False
        return replace(self.does, valid=True) == replace(other.does, valid=True)


def _part_text(part: IndexPart) -> str:
    text = part.expression
    if part.collation:
        text += f' COLLATE "{part.collation}"'
    if part.operator_class:
        text += f" {part.operator_class}"
    if part.descending:
        text += " DESC"
    return text + (f" NULLS {part.nulls.upper()}" if part.nulls else "")


def plain_key(columns: Iterable[str], options: Iterable[str] = ()) -> Index:
    """Return what a UNIQUE constraint over the columns does."""
    return Index(
        "",
        tuple(map(IndexPart, columns)),
        unique=True,
        valid="invalid" not in options,
        options=tuple(each for each in options if each != "invalid"),
    )


def keys_of(table: Table) -> list[Key]:
    """Return the UNIQUE constraints and the indexes of a table, without the primary key."""
    return [
        *(
            Key(each.name, plain_key(each.columns, each.options), "unique")
            for each in table.uniques
        ),
        *(Key(index.name, replace(index, name="")) for index in table.indexes),
    ]


def _paired(
    wanted: list[Key], live: list[Key], *conditions: Callable[[Key, Key], bool]
) -> list[tuple[Key, Key]]:
    """Remove keys that meet all conditions from both lists, and return them in pairs."""
    pairs = []
    for key in list(wanted):
        for other in live:
            if all(is_met(key, other) for is_met in conditions):
                wanted.remove(key)
                live.remove(other)
                pairs.append((key, other))
                break
    return pairs


class _TableDiff:
    def __init__(self, expected: Table, live: Table, *, names: bool) -> None:
        self.table = expected.name
        self.expected = expected
        self.live = live
        self.names = names
        self.missing = [
            column for column in expected.columns if live.column(column.name) is None
        ]
        self.extra = [
            column for column in live.columns if expected.column(column.name) is None
        ]
        self.renamed = _renamed(self.missing, self.extra)
        self._old_names = {new: old for old, new in self.renamed.items()}
        self._recollated = {
            column.name
            for column in expected.columns
            if (found := live.column(column.name))
            and found.collation != column.collation
        }

    def differences(self) -> list[Difference]:
        if self.live.kind != self.expected.kind:
            message = f"{self.table} is a {self.live.kind}, not a {self.expected.kind}."
            return [
                self._difference(
                    "table.kind", None, self.expected.kind, self.live.kind, message
                )
            ]
        keys, lost = self._keys()
        return [
            *self._options(),
            *self._columns(lost),
            *self._extra_columns(),
            *self._primary_key(),
            *keys,
            *self._extra_constraints(),
            *self._triggers_and_rules(),
        ]

    def _difference(
        self,
        code: str,
        thing: str | None,
        expected: str | None,
        found: str | None,
        message: str,
        severity: Severity = "drift",
    ) -> Difference:
        return Difference(code, severity, self.table, thing, expected, found, message)

    def _extra(
        self, what: str, thing: str | None, found: str, title: str, *, harmless: bool
    ) -> Difference:
        fate = "and is left alone" if harmless else "and can refuse what agentdb writes"
        message = f"{title} is not in the models {fate}."
        severity: Severity = "note" if harmless else "drift"
        return self._difference(f"{what}.extra", thing, None, found, message, severity)

    def _options(self) -> Iterator[Difference]:
        words = {
            "unlogged": "is unlogged: PostgreSQL empties it after a crash",
            "row security": "has row security: it hides rows and refuses inserts",
            "strict": "is strict: it refuses SQLite's datetimes",
        }
        # The models have none of them, so that each is a difference.
        for option in self.live.options:
            message = f"Table {self.table} {words.get(option, f'is {option}; the models say nothing of it')}."
            yield self._difference("table.option", None, None, option, message)

    # ------------------------------------------------------------------------------------------------------ columns

    def _columns(self, lost: Mapping[str, list[str]]) -> Iterator[Difference]:
        for column in self.expected.columns:
            found = self.live.column(column.name)
            if found is not None:
                yield from self._column(column, found)
                continue
            message = f"Column {self.table}.{column.name} is missing"
            if lost.get(column.name):
                message += f", and with it {listed(lost[column.name])}"
            other = self.renamed.get(column.name)
            if other is not None:
                message += f" (column {other} is defined like it: was it renamed?)"
            yield self._difference(
                "column.missing",
                column.name,
                _column_text(column),
                other,
                f"{message}.",
            )

    def _column(self, column: Column, found: Column) -> Iterator[Difference]:
        for what, words in _WORDS_OF_COLUMNS.items():
            wanted = getattr(column, what)
            live = getattr(found, what)
            if wanted == live:
                continue
            has, has_none, be, be_none = words
            has = has.format(live) if live else has_none
            should = be.format(wanted) if wanted else be_none
            message = f"Column {self.table}.{column.name} {has}; it should {should}."
            yield self._difference(
                f"column.{what}", column.name, _sql(wanted), _sql(live), message
            )

    def _extra_columns(self) -> Iterator[Difference]:
        for column in self.extra:
            if column.name in self._old_names:
                continue
            text = _column_text(column)
            title = f"Column {self.table}.{column.name} ({text})"
            if column.nullable or column.default is not None or column.generated:
                yield self._extra("column", column.name, text, title, harmless=True)
            else:
                message = f"{title} is not in the models and has no default: every insert fails."
                yield self._difference("column.extra", column.name, None, text, message)

    # --------------------------------------------------------------------------------------------------------- keys

    def _old(self, sql: str) -> str:
        """Return the expression with the models' names of renamed columns."""
        # In one pass over the words: names that were swapped would be swapped back by a second one.
        return re.sub(
            r"\w+", lambda match: self._old_names.get(match[0], match[0]), sql
        )

    def _keys_of(self, table: Table) -> list[Key]:
        """Return the keys as if the columns had the models' names and collations.

        A changed column would show in its indexes too, and has a line of its own.
        """
        keys = []
        for key in keys_of(table):
            does = key.does
            parts = []
            for part in does.parts:
                expression = self._old(part.expression)
                is_recollated = expression in self._recollated
                collation = None if is_recollated else part.collation
                parts.append(replace(part, expression=expression, collation=collation))
            index = replace(
                does,
                parts=tuple(parts),
                condition=does.condition and self._old(does.condition),
                include=tuple(map(self._old, does.include)),
            )
            keys.append(replace(key, does=index))
        return keys

    def _primary_key(self) -> Iterator[Difference]:
        wanted, found = self.expected.primary_key, self.live.primary_key
        if wanted is None or found is None:
            return  # a missing one is among the missing keys
        title = f"The primary key of {self.table}"
        columns = _columns_text(wanted.columns)
        actual = _columns_text(map(self._old, found.columns))
        what = "options" if actual == columns else "columns"
        if found.options and what == "options":
            actual += f" {', '.join(found.options)}"
        if actual == f"{columns} invalid":
            yield self._invalid(title, wanted.name, found.name)
        elif actual != columns:
            message = f"{title} is {actual}; it should be {columns}."
            yield self._difference(
                f"primary_key.{what}", wanted.name, columns, actual, message
            )
        elif self.names and found.name != wanted.name:
            yield self._misnamed("primary_key", title, wanted.name, found.name)

    def _misnamed(
        self, noun: str, title: str, wanted: str | None, found: str | None
    ) -> Difference:
        has = f"is named {found}" if found else "has no name"
        should = f"be {wanted}" if wanted else "have none"
        message = f"{title} {has}; it should {should}."
        return self._difference(f"{noun}.name", wanted, wanted, found, message)

    def _keys(self) -> tuple[list[Difference], dict[str, list[str]]]:
        """Compare indexes and UNIQUE constraints.

        Also return, by missing column, the titles of the keys that vanished with it.
        """
        wanted = self._keys_of(self.expected)
        live = self._keys_of(self.live)

        # From the most alike to the least, and each key once: what is the same in name and kind, what has the name,
        # what does the same under another name. The rest is missing, or additional.
        def has_name(key: Key, other: Key) -> bool:
            return key.name == other.name

        def is_alike(key: Key, other: Key) -> bool:
            return key.is_like(other, names=self.names)

        same = _paired(wanted, live, has_name, is_alike)
        changed = _paired(wanted, live, has_name) if self.names else []
        renamed = _paired(wanted, live, is_alike)
        primary = self.expected.primary_key
        if primary is not None and self.live.primary_key is None:
            does = plain_key(primary.columns)
            wanted.insert(0, Key(primary.name, does, "primary_key"))
        lost: dict[str, list[str]] = defaultdict(list)
        found = [
            *self._changed_keys(changed),
            *(self._renamed_keys(renamed) if self.names else ()),
            *self._invalid_keys(same + renamed),
            *self._missing_keys(wanted, lost),
            *map(self._extra_key, live),
        ]
        return found, lost

    def _missing_keys(
        self, keys: list[Key], lost: dict[str, list[str]]
    ) -> Iterator[Difference]:
        for key in keys:
            reads = key.names()
            takers = [column.name for column in self.missing if column.name in reads]
            if takers:
                lost[takers[0]].append(key.title)
                continue
            message = f"{capitalized(key.title)} on {self.table} {key.on} is missing."
            code = f"{key.noun}.missing"
            yield self._difference(code, key.name, key.text, None, message)

    def _extra_key(self, key: Key) -> Difference:
        # An index that is not unique only costs time. A unique one refuses rows, unless each of ours has NULL in it.
        harmless = not key.does.unique
        if "nulls not distinct" not in key.does.options:
            harmless = harmless or self._left_null(key.columns)
        title = f"{capitalized(key.title)} on {self.table} {key.on}"
        return self._extra(key.noun, key.name, key.text, title, harmless=harmless)

    def _changed_keys(self, pairs: list[tuple[Key, Key]]) -> Iterator[Difference]:
        for key, other in pairs:
            wanted, found = key.text, other.text
            message = (
                f"{capitalized(key.title)} on {self.table} is {_article(other.kind)} {found}; it should be "
                f"{_article(key.kind)} {wanted}."
            )
            yield self._difference(
                f"{key.noun}.changed", key.name, wanted, found, message
            )

    def _renamed_keys(self, pairs: list[tuple[Key, Key]]) -> Iterator[Difference]:
        for key, other in pairs:
            title = f"{capitalized(key.kind)} on {self.table} {key.on}"
            yield self._misnamed(key.noun, title, key.name, other.name)

    def _invalid_keys(self, pairs: list[tuple[Key, Key]]) -> Iterator[Difference]:
        for key, other in pairs:
            if not other.does.valid:
                title = f"{capitalized(other.title)} on {self.table}"
                yield self._invalid(title, key.name, other.name)

    def _invalid(self, title: str, thing: str | None, index: str | None) -> Difference:
        message = (
            f"{title} is invalid and serves no query: "
            f"run 'REINDEX INDEX CONCURRENTLY {quoted(index or '')}'."
        )
        return self._difference("index.invalid", thing, "valid", "invalid", message)

    def _left_null(self, columns: Iterable[str]) -> bool:
        """Return whether agentdb leaves one of the columns NULL in every insert, so that no row can collide."""
        return left_null(
            self.live, [column.name for column in self.expected.columns], columns
        )

    def _extra_constraints(self) -> Iterator[Difference]:
        for key in self.live.foreign_keys:
            on = f"{_columns_text(key.columns)} to {key.target_table} {_columns_text(key.target_columns)}"
            title = f"Foreign key {key.name or 'without a name'} on {self.table} {on}"
            yield self._extra(
                "foreign_key",
                key.name,
                on,
                title,
                harmless=self._left_null(key.columns),
            )
        ours = {column.name for column in self.expected.columns}
        for check in self.live.checks:
            title = (
                f"{capitalized(check.kind)} constraint {check.name or 'without a name'}"
            )
            on = f"{self.table} ({check.expression})"
            # Inserts leave additional columns to their defaults, like the old server's.
            harmless = check.kind == "check" and not reads_ours(check, self.live, ours)
            yield self._extra(
                "check",
                check.name,
                check.expression,
                f"{title} on {on}",
                harmless=harmless,
            )

    def _triggers_and_rules(self) -> Iterator[Difference]:
        for trigger in self.live.triggers:
            title = f"Trigger {trigger} on {self.table}"
            yield self._extra("trigger", trigger, "trigger", title, harmless=True)
        for rule in self.live.rules:
            message = f"Rule {rule} on {self.table} is not in the models and can swallow or change what agentdb writes."
            yield self._difference("rule.extra", rule, None, "rule", message)


def left_null(live: Table, ours: Collection[str], columns: Iterable[str]) -> bool:
    """Return whether agentdb leaves one of the columns NULL in every insert, so that no row can collide."""
    nulls = {
        column.name
        for column in live.columns
        if column.name not in ours and column.nullable and column.default is None
    }
    return not nulls.isdisjoint(columns)


def reads_ours(check: Check, live: Table, ours: Collection[str]) -> bool:
    """Return whether a check reads one of our columns, or a generated one that may depend on them."""
    read = names_in(check.expression)
    if not read.isdisjoint(ours):
        return True
    return any(column.generated and column.name in read for column in live.columns)


def _renamed(missing: list[Column], extra: list[Column]) -> dict[str, str]:
    """Pair each missing column with the only additional column of the same definition."""
    # Only a guess, so it is made only if it is the only one: with two candidates neither is named.
    renamed = {}
    for column in missing:
        alike = _alike(column, extra)
        rivals = _alike(column, missing)
        if len(alike) == len(rivals) == 1:
            renamed[column.name] = alike[0].name
    return renamed


def _alike(column: Column, others: list[Column]) -> list[Column]:
    """Return those with the column's definition, whatever they are called."""
    return [other for other in others if replace(other, name=column.name) == column]


def _article(kind: str) -> str:
    return "an" if kind == "index" else "a"


def _columns_text(columns: Iterable[str]) -> str:
    return f"({', '.join(columns)})"


# What is said of a column that has a value or has none (or False), and of one that should.
_WORDS_OF_COLUMNS = {
    "type": ("has the type {}", "has no type", "be {}", "have none"),
    "nullable": ("allows NULL", "is NOT NULL", "allow NULL", "be NOT NULL"),
    "default": ("has the default {}", "has no default", "be {}", "have none"),
    "collation": (
        "has the collation {}",
        "has the usual collation",
        "be {}",
        "have the usual one",
    ),
    "conflict": ("has NOT NULL on conflict {}", "", "", "refuse NULL"),
    "generated": (
        "is generated as {}",
        "is not generated",
        "be generated as {}",
        "be an ordinary column",
    ),
}


def _sql(value: str | bool | None) -> str | None:
    if isinstance(value, bool):
        return "NULL" if value else "NOT NULL"
    return value


def _column_text(column: Column) -> str:
    text = column.type if column.nullable else f"{column.type} NOT NULL"
    return text if column.default is None else f"{text} DEFAULT {column.default}"
