"""Compares live tables with the expected ones. Pure functions: they read no database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from django.utils.text import capfirst

from agentdb.schema.sqltext import names_in, quoted
from agentdb.schema.tables import Check, Column, Key, Table

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

    One change is one difference: the line of a missing, renamed or recollated column stands for its keys too.
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
    message = f"{capfirst(kind)} {table.name} is not agentdb's and is left alone."
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


def _text(key: Key) -> str:
    """Return all of a key but its name, as in 'index on (tenant_id, created_at DESC) where runner_id IS NOT NULL'."""
    return f"{key.kind} on {_on(key)}"


def _on(key: Key) -> str:
    text = _columns_text(key.columns)
    if key.method != "btree":
        text += f" using {key.method}"
    if key.include:
        text += f" including {_columns_text(key.include)}"
    if key.options:
        text += f" {', '.join(key.options)}"
    return text + (f" where {key.condition}" if key.condition else "")


def _title(key: Key) -> str:
    if key.kind == "primary key":
        return "The primary key"
    return f"{capfirst(key.kind)} {key.name or 'without a name'}"


def _reads(key: Key) -> frozenset[str]:
    """Return the columns that the key reads, in expressions and the condition too."""
    return names_in(" ".join([*key.columns, *key.include, key.condition or ""]))


def _paired(
    wanted: list[Key], live: list[Key], is_pair: Callable[[Key, Key], bool]
) -> Iterator[tuple[Key, Key]]:
    """Remove the keys that belong together from both lists, and yield them."""
    for key in list(wanted):
        for other in live:
            if is_pair(key, other):
                wanted.remove(key)
                live.remove(other)
                yield key, other
                break


class _TableDiff:
    def __init__(self, expected: Table, live: Table, *, names: bool) -> None:
        self.table = expected.name
        self.expected = expected
        self.live = live
        self.names = names
        self.ours = {column.name for column in expected.columns}
        missing = [
            column for column in expected.columns if live.column(column.name) is None
        ]
        self.extra = [column for column in live.columns if column.name not in self.ours]
        self.renamed = _renamed(missing, self.extra)
        told = [
            column.name
            for column in expected.columns
            if (found := live.column(column.name)) is None
            or found.collation != column.collation
        ]
        # As names_in() returns them.
        self.told = {name.lower() for name in (*told, *self.renamed.values())}

    def differences(self) -> list[Difference]:
        if self.live.kind != self.expected.kind:
            message = f"{self.table} is a {self.live.kind}, not a {self.expected.kind}."
            return [
                self._difference(
                    "table.kind", None, self.expected.kind, self.live.kind, message
                )
            ]
        return [
            *self._options(),
            *self._columns(),
            *self._extra_columns(),
            *self._keys(),
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
        # A key may have no name.
        thing, expected, found = thing or None, expected or None, found or None
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

    def _columns(self) -> Iterator[Difference]:
        for column in self.expected.columns:
            found = self.live.column(column.name)
            if found is not None:
                yield from self._column(column, found)
                continue
            message = f"Column {self.table}.{column.name} is missing"
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
            if column.name in self.renamed.values():
                continue
            text = _column_text(column)
            title = f"Column {self.table}.{column.name} ({text})"
            if column.nullable or column.default is not None or column.generated:
                yield self._extra("column", column.name, text, title, harmless=True)
            else:
                message = f"{title} is not in the models and has no default: every insert fails."
                yield self._difference("column.extra", column.name, None, text, message)

    # --------------------------------------------------------------------------------------------------------- keys

    def _keys_of(self, table: Table) -> list[Key]:
        """Return the primary key, the UNIQUE constraints and the indexes, but for those whose column is told."""
        primary = [table.primary_key] if table.primary_key else []
        keys = [*primary, *table.keys]
        return [key for key in keys if _reads(key).isdisjoint(self.told)]

    def _keys(self) -> Iterator[Difference]:
        """Compare the primary keys, the UNIQUE constraints and the indexes."""
        wanted = self._keys_of(self.expected)
        live = self._keys_of(self.live)

        # From the most alike to the least, and each key once: what is the same in name and kind, what has the name,
        # what does the same under another name. The rest is missing, or additional.
        def is_primary(key: Key, other: Key) -> bool:
            return key.kind == other.kind == "primary key"

        def is_same(key: Key, other: Key) -> bool:
            return key.name == other.name and self._is_alike(key, other)

        def has_name(key: Key, other: Key) -> bool:
            return self.names and key.name == other.name

        for is_pair in (is_primary, is_same, has_name, self._is_alike):
            for key, other in _paired(wanted, live, is_pair):
                yield from self._key(key, other)
        for key in wanted:
            message = f"{_title(key)} on {self.table} {_on(key)} is missing."
            code = f"{_NOUNS[key.kind]}.missing"
            yield self._difference(code, key.name, _text(key), None, message)
        yield from map(self._extra_key, live)

    def _is_alike(self, key: Key, other: Key) -> bool:
        """Return whether both do the same, valid or not; if names matter, they are also of the same kind."""
        if self.names and key.kind != other.kind:
            return False
        return replace(key.does, valid=other.valid) == other.does

    def _key(self, key: Key, other: Key) -> Iterator[Difference]:
        noun = _NOUNS[key.kind]
        title = f"{_title(key)} on {self.table}"
        if not self._is_alike(key, other):
            wanted, found = _text(key), _text(other)
            message = (
                f"{title} is {_article(other)} {found}; it should be "
                f"{_article(key)} {wanted}."
            )
            change = "changed"
            if noun == "primary_key":
                change = "options" if key.columns == other.columns else "columns"
            yield self._difference(f"{noun}.{change}", key.name, wanted, found, message)
            return
        if self.names and key.name != other.name:
            has = f"is named {other.name}" if other.name else "has no name"
            should = f"be {key.name}" if key.name else "have none"
            message = f"{capfirst(key.kind)} on {self.table} {_on(key)} {has}; it should {should}."
            yield self._difference(
                f"{noun}.name", key.name, key.name, other.name, message
            )
        if not other.valid:
            message = (
                f"{title} is invalid and serves no query: "
                f"run 'REINDEX INDEX CONCURRENTLY {quoted(other.name)}'."
            )
            yield self._difference(
                "index.invalid", key.name, "valid", "invalid", message
            )

    def _extra_key(self, key: Key) -> Difference:
        harmless = never_collides(key, self.live, self.ours)
        title = f"{_title(key)} on {self.table} {_on(key)}"
        return self._extra(
            _NOUNS[key.kind], key.name, _text(key), title, harmless=harmless
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
                harmless=left_null(self.live, self.ours, key.columns),
            )
        for check in self.live.checks:
            title = (
                f"{capfirst(check.kind)} constraint {check.name or 'without a name'}"
            )
            on = f"{self.table} ({check.expression})"
            # Inserts leave additional columns to their defaults, like the old server's.
            harmless = check.kind == "check" and not reads_ours(
                check, self.live, self.ours
            )
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


def never_collides(key: Key, live: Table, ours: Collection[str]) -> bool:
    """Return whether no row that agentdb writes can be refused by the key."""
    # An index that is not unique only costs time. A row with NULL in one of the columns is usually equal to no other.
    is_distinct = "nulls not distinct" not in key.options
    return not key.is_unique or (is_distinct and left_null(live, ours, key.names))


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
    return any(each.generated and each.name.lower() in read for each in live.columns)


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


def _article(key: Key) -> str:
    return "an" if key.kind == "index" else "a"


def _columns_text(columns: Iterable[str]) -> str:
    return f"({', '.join(columns)})"


# The first part of the codes of a kind of key.
_NOUNS = {
    "primary key": "primary_key",
    "unique constraint": "unique",
    "unique index": "index",
    "index": "index",
}

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
