"""Compares live tables with the expected ones. Pure functions: they read no database."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from agentdb.schema.sqltext import names_in, quoted
from agentdb.schema.tables import (
    Check,
    Column,
    Index,
    IndexPart,
    PrimaryKey,
    Table,
)
from agentdb.wording import capitalized, listed


@dataclass(frozen=True)
class Difference:
    """One difference from the models; ``note`` means that it does no harm."""

    code: str  # stable: table.missing, column.type, index.extra …; docs/verifydb.md lists them
    severity: Literal["drift", "note"]
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
            found.append(
                Difference(
                    "table.missing",
                    "drift",
                    name,
                    None,
                    "table",
                    None,
                    f"Table {name} is missing.",
                )
            )
    for name, table in live.items():
        if name not in expected:
            message = (
                f"{capitalized(table.kind)} {name} is not agentdb's and is left alone."
            )
            found.append(
                Difference(
                    "table.foreign", "note", name, None, None, table.kind, message
                )
            )
    return found


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
class _Key:
    """An index or a UNIQUE constraint, in the form that is compared."""

    name: str | None
    index: Index
    constraint: bool

    @property
    def noun(self) -> str:
        return "unique" if self.constraint else "index"

    @property
    def kind(self) -> str:
        if self.constraint:
            return "unique constraint"
        return "unique index" if self.index.unique else "index"

    @property
    def on(self) -> str:
        """Its keys and what else defines it, as in '(tenant_id, created_at DESC) where runner_id IS NOT NULL'."""
        index = self.index
        text = f"({', '.join(map(_part_text, index.parts))})"
        if index.method != "btree":
            text += f" using {index.method}"
        if index.include:
            text += f" including ({', '.join(index.include)})"
        if index.options:
            text += f" {', '.join(index.options)}"
        return text + (f" where {index.condition}" if index.condition else "")

    @property
    def title(self) -> str:
        return (
            f"{self.kind} {self.name}" if self.name else f"{self.kind} without a name"
        )

    @property
    def columns(self) -> frozenset[str]:
        texts = [part.expression for part in self.index.parts]
        return names_in(
            " ".join([*texts, *self.index.include, self.index.condition or ""])
        )

    def is_like(self, other: _Key, *, names: bool) -> bool:
        kinds = self.constraint == other.constraint or not names
        return kinds and replace(self.index, valid=True) == replace(
            other.index, valid=True
        )


def _part_text(part: IndexPart) -> str:
    text = part.expression
    if part.collation:
        text += f' COLLATE "{part.collation}"'
    if part.operator_class:
        text += f" {part.operator_class}"
    if part.descending:
        text += " DESC"
    return text + (f" NULLS {part.nulls.upper()}" if part.nulls else "")


def _keys(table: Table) -> list[_Key]:
    uniques = [
        _Key(
            unique.name,
            Index(
                "",
                tuple(IndexPart(column) for column in unique.columns),
                unique=True,
                valid="invalid" not in unique.options,
                options=tuple(each for each in unique.options if each != "invalid"),
            ),
            constraint=True,
        )
        for unique in table.uniques
    ]
    return uniques + [
        _Key(index.name, replace(index, name=""), constraint=False)
        for index in table.indexes
    ]


def _paired(
    wanted: list[_Key], live: list[_Key], same: Callable[[_Key, _Key], bool]
) -> list[tuple[_Key, _Key]]:
    """Remove equal keys from both lists, and return them in pairs."""
    pairs = []
    for key in list(wanted):
        other = next((other for other in live if same(key, other)), None)
        if other is not None:
            wanted.remove(key)
            live.remove(other)
            pairs.append((key, other))
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
        recollated = {
            column.name
            for column in expected.columns
            for found in (live.column(column.name),)
            if found is not None and found.collation != column.collation
        }
        # A changed column also shows in its indexes. Report it once: compare them as if the column were unchanged.
        self.wanted_keys = [
            _without_collations(key, recollated) for key in _keys(expected)
        ]
        self.live_keys = [
            _without_collations(self._with_old_names(key), recollated)
            for key in _keys(live)
        ]

    def differences(self) -> list[Difference]:
        if self.live.kind != self.expected.kind:
            message = f"{self.table} is a {self.live.kind}, not a {self.expected.kind}."
            return [
                self._drift(
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
            *self._triggers(),
            *self._rules(),
        ]

    def _drift(
        self,
        code: str,
        thing: str | None,
        expected: str | None,
        found: str | None,
        message: str,
    ) -> Difference:
        return Difference(code, "drift", self.table, thing, expected, found, message)

    def _extra(
        self, what: str, thing: str | None, found: str, title: str, *, harmless: bool
    ) -> Difference:
        fate = "and is left alone" if harmless else "and can refuse what agentdb writes"
        message = f"{title} is not in the models {fate}."
        return Difference(
            f"{what}.extra",
            "note" if harmless else "drift",
            self.table,
            thing,
            None,
            found,
            message,
        )

    def _options(self) -> Iterator[Difference]:
        words = {
            "unlogged": "is unlogged: PostgreSQL empties it after a crash",
            "row security": "has row security: it hides rows and refuses inserts",
            "strict": "is strict: it refuses SQLite's datetimes",
        }
        for option in self.live.options:
            message = f"Table {self.table} {words.get(option, f'is {option}; the models say nothing of it')}."
            yield self._drift("table.option", None, None, option, message)

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
            yield self._drift(
                "column.missing",
                column.name,
                _column_text(column),
                other,
                f"{message}.",
            )

    def _column(self, column: Column, found: Column) -> Iterator[Difference]:
        for what, words in _WORDS_OF_COLUMNS.items():
            wanted, live = getattr(column, what), getattr(found, what)
            if wanted == live:
                continue
            has, should = words(live)[0], words(wanted)[1]
            message = f"Column {self.table}.{column.name} {has}; it should {should}."
            yield self._drift(
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
                yield self._drift("column.extra", column.name, None, text, message)

    # --------------------------------------------------------------------------------------------------------- keys

    def _with_old_names(self, key: _Key) -> _Key:
        def old(sql: str) -> str:
            return re.sub(
                r"\w+",
                lambda match: self._old_names.get(match.group(), match.group()),
                sql,
            )

        index = replace(
            key.index,
            parts=tuple(
                replace(part, expression=old(part.expression))
                for part in key.index.parts
            ),
            condition=None if key.index.condition is None else old(key.index.condition),
            include=tuple(map(old, key.index.include)),
        )
        return replace(key, index=index)

    def _primary_key(self) -> Iterator[Difference]:
        wanted, found = self.expected.primary_key, self.live.primary_key
        if wanted is None:
            return
        columns = f"({', '.join(wanted.columns)})"
        if found is None:
            if not {column.name for column in self.missing} & set(wanted.columns):
                message = (
                    f"Table {self.table} has no primary key; it should be {columns}."
                )
                yield self._drift(
                    "primary_key.missing", wanted.name, columns, None, message
                )
        elif self._key_columns(found) != wanted.columns:
            actual = f"({', '.join(found.columns)})"
            yield self._changed_primary_key("columns", wanted, columns, actual)
        elif found.options == (*wanted.options, "invalid"):
            yield self._invalid(
                f"The primary key of {self.table}", wanted.name, found.name
            )
        elif found.options != wanted.options:
            actual = f"{columns} {', '.join(found.options)}"
            yield self._changed_primary_key("options", wanted, columns, actual)
        elif self.names and found.name != wanted.name:
            message = f"The primary key of {self.table} {_called(found.name)}; it should {_be_called(wanted.name)}."
            yield self._drift(
                "primary_key.name", wanted.name, wanted.name, found.name, message
            )

    def _key_columns(self, key: PrimaryKey) -> tuple[str, ...]:
        return tuple(self._old_names.get(name, name) for name in key.columns)

    def _changed_primary_key(
        self, what: str, wanted: PrimaryKey, columns: str, actual: str
    ) -> Difference:
        message = (
            f"The primary key of {self.table} is {actual}; it should be {columns}."
        )
        return self._drift(f"primary_key.{what}", wanted.name, columns, actual, message)

    def _keys(self) -> tuple[list[Difference], dict[str, list[str]]]:
        """Compare indexes and UNIQUE constraints; also collect those that vanished with a missing column."""
        wanted, live = list(self.wanted_keys), list(self.live_keys)
        # From the most alike to the least, and each key once: what is the same in name and kind, what has the name,
        # what does the same under another name. The rest is missing, or additional.
        same = _paired(
            wanted,
            live,
            lambda key, other: (
                key.name == other.name and key.is_like(other, names=self.names)
            ),
        )
        changed = (
            _paired(wanted, live, lambda key, other: key.name == other.name)
            if self.names
            else []
        )
        renamed = _paired(
            wanted, live, lambda key, other: key.is_like(other, names=self.names)
        )
        lost = self._lost_primary_key()
        found = [
            *self._changed_keys(changed),
            *(self._renamed_keys(renamed) if self.names else ()),
            *self._invalid_keys(same + renamed),
            *self._missing_keys(wanted, lost),
            *map(self._extra_key, live),
        ]
        return found, lost

    def _lost_primary_key(self) -> dict[str, list[str]]:
        lost: dict[str, list[str]] = defaultdict(list)
        primary = self.expected.primary_key
        if primary and self.live.primary_key is None:
            for column in [
                column.name for column in self.missing if column.name in primary.columns
            ][:1]:
                lost[column].append("the primary key")
        return lost

    def _missing_keys(
        self, keys: list[_Key], lost: dict[str, list[str]]
    ) -> Iterator[Difference]:
        for key in keys:
            takers = [
                column.name for column in self.missing if column.name in key.columns
            ]
            if takers:
                lost[takers[0]].append(key.title)
                continue
            message = f"{capitalized(key.title)} on {self.table} {key.on} is missing."
            yield self._drift(
                f"{key.noun}.missing",
                key.name,
                f"{key.kind} on {key.on}",
                None,
                message,
            )

    def _extra_key(self, key: _Key) -> Difference:
        collides = "nulls not distinct" in key.index.options
        harmless = not key.index.unique or (
            not collides
            and self._left_null(part.expression for part in key.index.parts)
        )
        title = f"{capitalized(key.title)} on {self.table} {key.on}"
        return self._extra(
            key.noun, key.name, f"{key.kind} on {key.on}", title, harmless=harmless
        )

    def _changed_keys(self, pairs: list[tuple[_Key, _Key]]) -> Iterator[Difference]:
        for key, other in pairs:
            wanted, found = f"{key.kind} on {key.on}", f"{other.kind} on {other.on}"
            message = (
                f"{capitalized(key.title)} on {self.table} is {_article(other.kind)} {found}; it should be "
                f"{_article(key.kind)} {wanted}."
            )
            yield self._drift(f"{key.noun}.changed", key.name, wanted, found, message)

    def _renamed_keys(self, pairs: list[tuple[_Key, _Key]]) -> Iterator[Difference]:
        for key, other in pairs:
            message = (
                f"{capitalized(key.kind)} on {self.table} {key.on} {_called(other.name)}; it should "
                f"{_be_called(key.name)}."
            )
            yield self._drift(
                f"{key.noun}.name", key.name, key.name, other.name, message
            )

    def _invalid_keys(self, pairs: list[tuple[_Key, _Key]]) -> Iterator[Difference]:
        for key, other in pairs:
            if not other.index.valid:
                title = f"{capitalized(other.title)} on {self.table}"
                yield self._invalid(title, key.name, other.name)

    def _invalid(self, title: str, thing: str | None, index: str | None) -> Difference:
        message = (
            f"{title} is invalid and serves no query: "
            f"run 'REINDEX INDEX CONCURRENTLY {quoted(index or '')}'."
        )
        return self._drift("index.invalid", thing, "valid", "invalid", message)

    def _left_null(self, columns: Iterable[str]) -> bool:
        """Return whether agentdb leaves one of the columns NULL in every insert, so that no row can collide."""
        return left_null(
            self.live, [column.name for column in self.expected.columns], columns
        )

    def _extra_constraints(self) -> Iterator[Difference]:
        for key in self.live.foreign_keys:
            on = f"({', '.join(key.columns)}) to {key.target_table} ({', '.join(key.target_columns)})"
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

    def _rules(self) -> Iterator[Difference]:
        for rule in self.live.rules:
            message = f"Rule {rule} on {self.table} is not in the models and can swallow or change what agentdb writes."
            yield self._drift("rule.extra", rule, None, "rule", message)

    def _triggers(self) -> Iterator[Difference]:
        for trigger in self.live.triggers:
            yield self._extra(
                "trigger",
                trigger,
                "trigger",
                f"Trigger {trigger} on {self.table}",
                harmless=True,
            )


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
    generated = {column.name for column in live.columns if column.generated}
    return not names_in(check.expression).isdisjoint({*ours, *generated})


def _renamed(missing: list[Column], extra: list[Column]) -> dict[str, str]:
    """Pair each missing column with the only additional column of the same definition."""
    renamed = {}
    for column in missing:
        alike = [
            other.name for other in extra if replace(other, name=column.name) == column
        ]
        rivals = [
            other for other in missing if replace(other, name=column.name) == column
        ]
        if len(alike) == len(rivals) == 1:
            renamed[column.name] = alike[0]
    return renamed


def _without_collations(key: _Key, columns: set[str]) -> _Key:
    parts = tuple(
        replace(part, collation=None) if part.expression in columns else part
        for part in key.index.parts
    )
    return replace(key, index=replace(key.index, parts=parts))


def _article(kind: str) -> str:
    return "an" if kind == "index" else "a"


def _called(name: str | None) -> str:
    return f"is named {name}" if name else "has no name"


def _be_called(name: str | None) -> str:
    return f"be {name}" if name else "have none"


def _type_words(type_: str) -> tuple[str, str]:
    return f"has the type {type_}", f"be {type_}"


def _null_words(is_nullable: bool) -> tuple[str, str]:
    if is_nullable:
        return "allows NULL", "allow NULL"
    return "is NOT NULL", "be NOT NULL"


def _default_words(default: str | None) -> tuple[str, str]:
    if default is None:
        return "has no default", "have none"
    return f"has the default {default}", f"be {default}"


def _collation_words(collation: str | None) -> tuple[str, str]:
    if collation is None:
        return "has the usual collation", "have the usual one"
    return f"has the collation {collation}", f"be {collation}"


def _conflict_words(conflict: str | None) -> tuple[str, str]:
    return f"has NOT NULL on conflict {conflict}", "refuse NULL"


def _generated_words(expression: str | None) -> tuple[str, str]:
    if expression is None:
        return "is not generated", "be an ordinary column"
    return f"is generated as {expression}", f"be generated as {expression}"


# The words for a column that has the value, and for one that should have it.
_WORDS_OF_COLUMNS: Mapping[str, Callable[[Any], tuple[str, str]]] = {
    "type": _type_words,
    "nullable": _null_words,
    "default": _default_words,
    "collation": _collation_words,
    "conflict": _conflict_words,
    "generated": _generated_words,
}


def _sql(value: str | bool | None) -> str | None:
    if isinstance(value, bool):
        return "NULL" if value else "NOT NULL"
    return value


def _column_text(column: Column) -> str:
    text = column.type if column.nullable else f"{column.type} NOT NULL"
    return text if column.default is None else f"{text} DEFAULT {column.default}"
