"""A schema as data: what the models say, what a database has, and how the two differ. Reads only."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from django.apps.registry import Apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.db.models import Field, Model, UniqueConstraint, Value
from django.db.models.sql import Query

from agentdb.sqltext import IndexText, TableText, canonical, parse_create_index, parse_create_table, tokenize

APP_LABEL = "agentdb"

# Where the engine puts NULLs when an index does not say, by whether the key is descending.
_USUAL_NULLS = {"sqlite": {False: "first", True: "last"}, "postgresql": {False: "last", True: "first"}}
_USUAL_COLLATIONS = {"sqlite": "BINARY", "postgresql": "default"}


@dataclass(frozen=True)
class Column:
    name: str
    type: str  # canonical, lower case: text, integer, datetime, timestamp with time zone
    nullable: bool
    default: str | None  # canonical SQL; None for no default and for DEFAULT NULL
    collation: str | None = None  # None: the database's own
    generated: str | None = None  # canonical expression of a generated or identity column


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


@dataclass(frozen=True)
class Unique:
    """A UNIQUE constraint. A unique index that belongs to no constraint is an Index."""

    name: str | None  # SQLite keeps none for a column's own UNIQUE
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
    name: str | None
    expression: str


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]  # in the database's order, which means nothing
    primary_key: PrimaryKey | None
    uniques: tuple[Unique, ...] = ()
    indexes: tuple[Index, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    checks: tuple[Check, ...] = ()
    kind: str = "table"  # or view, virtual table, partitioned table …
    options: tuple[str, ...] = ()  # unlogged, without rowid, strict
    triggers: tuple[str, ...] = ()  # names

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)

    def index(self, name: str) -> Index | None:
        return next((index for index in self.indexes if index.name == name), None)


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the models say; ``note`` means that agentdb works all the same."""

    code: str  # stable: table.missing, column.type, index.extra …
    severity: Literal["drift", "note"]
    table: str
    object: str | None  # the column, index or constraint; None for the table itself
    expected: str | None
    found: str | None
    message: str  # one sentence, one line


def expected_tables(connection: BaseDatabaseWrapper, apps: Apps | StateApps) -> dict[str, Table]:
    """Return the tables of agentdb's models in ``apps`` (the global registry, or a migration state's) by name."""
    editor = connection.schema_editor(collect_sql=True, atomic=False)
    models = [model for model in apps.get_models() if model._meta.app_label == APP_LABEL and model._meta.managed]
    tables = [_expected_table(connection, editor, model) for model in models]
    return {table.name: table for table in sorted(tables, key=lambda table: table.name)}


def read_tables(connection: BaseDatabaseWrapper, names: Collection[str] | None = None) -> dict[str, Table]:
    """Return the tables of the current schema by name; only those in ``names``, if given. Reads no row of them.

    Names of SQLite, which knows no difference, are in lower case. A view or the like is told only where it is named.
    """
    read = _read_sqlite if connection.vendor == "sqlite" else _read_postgresql
    return read(connection, None if names is None else set(names))


# ------------------------------------------------------------------------------------------------- what the models say


def _dialect(connection: BaseDatabaseWrapper) -> str:
    return "sqlite" if connection.vendor == "sqlite" else "postgresql"


def _expected_table(connection: BaseDatabaseWrapper, editor: BaseDatabaseSchemaEditor, model: type[Model]) -> Table:
    meta = model._meta
    sqlite = connection.vendor == "sqlite"
    fields = meta.local_concrete_fields
    uniques = [
        Unique(None if sqlite else f"{meta.db_table}_{field.column}_key", (_name_of(field),))
        for field in fields
        if field.unique and not field.primary_key
    ]
    for constraint in meta.constraints:
        if type(constraint) is not UniqueConstraint or constraint.expressions or constraint.condition is not None:
            # A constraint that nobody compares would look as if it were there.
            raise NotImplementedError(f"{constraint!r} of {model.__name__}: agentdb.schema cannot compare it.")
        columns = tuple(_name_of(meta.get_field(name)) for name in constraint.fields)
        uniques.append(Unique(constraint.name, columns))
    return Table(
        name=meta.db_table,
        columns=tuple(_expected_column(connection, editor, field) for field in fields),
        primary_key=PrimaryKey(None if sqlite else f"{meta.db_table}_pkey", (_name_of(meta.pk),)),
        uniques=tuple(uniques),
        indexes=tuple(
            _index(connection, parse_create_index(str(index.create_sql(model, editor)))) for index in meta.indexes
        ),
    )


def _name_of(field: Any) -> str:
    return str(field.column)


def _expected_column(
    connection: BaseDatabaseWrapper, editor: BaseDatabaseSchemaEditor, field: Field[Any, Any]
) -> Column:
    parameters = field.db_parameters(connection)
    return Column(
        name=_name_of(field),
        type=_type(connection, str(parameters["type"])),
        # Only SQLite lets a primary key be NULL.
        nullable=field.null and not (field.primary_key and connection.vendor != "sqlite"),
        default=_expected_default(connection, field),
        collation=parameters.get("collation"),
    )


def _expected_default(connection: BaseDatabaseWrapper, field: Field[Any, Any]) -> str | None:
    if not field.has_db_default():
        return None
    expression = field.db_default if hasattr(field.db_default, "resolve_expression") else Value(field.db_default, field)
    sql, parameters = Query(model=field.model).get_compiler(connection=connection).compile(expression)
    return canonical(sql % tuple(_literal(parameter) for parameter in parameters))


def _literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


def _default(sql: str | None) -> str | None:
    text = None if sql is None else canonical(sql)
    return None if text == "NULL" else text


def _type(connection: BaseDatabaseWrapper, declared: str) -> str:
    name = re.sub(r"\s+", " ", declared).strip().lower()
    if connection.vendor == "cockroachdb":
        return {"integer": "bigint", "int8": "bigint", "string": "text", "timestamptz": "timestamp with time zone"}.get(
            name, name
        )
    return name


def _index(connection: BaseDatabaseWrapper, text: IndexText, *, valid: bool = True) -> Index:
    dialect = _dialect(connection)
    parts = []
    for key in text.keys:
        usual = _USUAL_NULLS[dialect][key.descending]
        collation = None if key.collation == _USUAL_COLLATIONS[dialect] else key.collation
        nulls: Any = None if key.nulls == usual else key.nulls
        parts.append(IndexPart(key.expression, key.descending, collation, nulls, key.operator_class))
    return Index(
        name=_folded(text.name) if dialect == "sqlite" else text.name,
        parts=tuple(parts),
        unique=text.unique,
        condition=text.condition,
        include=text.include,
        method=text.method or "btree",
        valid=valid,
        options=("nulls not distinct",) if text.nulls_not_distinct else (),
    )


# --------------------------------------------------------------------------------------------------- what SQLite has


def _folded(name: str) -> str:
    return name.translate(_LOWER)


_LOWER = str.maketrans({chr(code): chr(code).lower() for code in range(ord("A"), ord("Z") + 1)})


def _read_sqlite(connection: BaseDatabaseWrapper, names: set[str] | None) -> dict[str, Table]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT type, name, tbl_name, sql FROM main.sqlite_master")
        objects = [(kind, name, _folded(owner), sql or "") for kind, name, owner, sql in cursor.fetchall()]
        triggers = defaultdict(list)
        index_texts = {name: sql for kind, name, _, sql in objects if kind == "index"}
        for kind, name, owner, _ in objects:
            if kind == "trigger":
                triggers[owner].append(name)
        tables = {}
        shadows = _shadow_tables([(name, sql) for kind, name, _, sql in objects if kind == "table"])
        for kind, name, _, sql in objects:
            key = _folded(name)
            wanted = kind == "table" if names is None else kind in ("table", "view") and key in names
            if not wanted or key.startswith("sqlite_") or key in shadows:
                continue
            if kind == "view":
                tables[key] = Table(key, (), None, kind="view")
            elif _is_virtual(sql):
                tables[key] = Table(key, (), None, kind="virtual table")
            else:
                tables[key] = _read_sqlite_table(connection, cursor, name, sql, index_texts, tuple(triggers[key]))
    return tables


def _is_virtual(sql: str) -> bool:
    return [token.word for token in tokenize(sql[:100])[1:2]] == ["VIRTUAL"]


def _shadow_tables(tables: list[tuple[str, str]]) -> set[str]:
    """The tables in which a virtual table keeps its own data: ``notes_fts_content`` of ``notes_fts``."""
    owners = tuple(f"{_folded(name)}_" for name, sql in tables if _is_virtual(sql))
    return {_folded(name) for name, _ in tables if owners and _folded(name).startswith(owners)}


def _read_sqlite_table(
    connection: BaseDatabaseWrapper,
    cursor: Any,
    name: str,
    sql: str,
    index_texts: Mapping[str, str],
    triggers: tuple[str, ...],
) -> Table:
    quote = connection.ops.quote_name
    text = parse_create_table(sql)
    written = {_folded(column.name): column for column in text.columns}
    columns = []
    keys: dict[int, str] = {}
    cursor.execute(f"PRAGMA main.table_xinfo({quote(name)})")
    for _, column, declared, not_null, default, key, _ in cursor.fetchall():
        column = _folded(column)
        own = written.get(column)
        if key:
            keys[key] = column
        columns.append(
            Column(
                name=column,
                type=_type(connection, declared).removesuffix(" generated always"),
                nullable=not not_null,
                default=_sqlite_default(default),
                collation=None if own is None or _is_binary(own.collation) else own.collation,
                generated=own.generated if own else None,
            )
        )
    uniques, indexes = [], []
    cursor.execute(f"PRAGMA main.index_list({quote(name)})")
    for _, index, _, origin, _ in cursor.fetchall():
        if origin == "c":
            indexes.append(_index(connection, parse_create_index(index_texts[index])))
        elif origin == "u":
            cursor.execute(f"PRAGMA main.index_xinfo({quote(index)})")
            uniques.append(_sqlite_unique([row for row in cursor.fetchall() if row[5]], columns, text))
    named = {constraint.kind: constraint.name for constraint in text.constraints if constraint.kind == "primary key"}
    return Table(
        name=_folded(name),
        columns=tuple(columns),
        primary_key=PrimaryKey(named.get("primary key"), tuple(keys[position] for position in sorted(keys)))
        if keys
        else None,
        uniques=tuple(sorted(uniques, key=lambda unique: (unique.columns, unique.name or ""))),
        indexes=tuple(sorted(indexes, key=lambda index: index.name)),
        foreign_keys=tuple(
            ForeignKey(
                constraint.name,
                tuple(map(_folded, constraint.columns)),
                _folded(constraint.target_table),
                tuple(map(_folded, constraint.target_columns)),
            )
            for constraint in text.constraints
            if constraint.kind == "foreign key"
        ),
        checks=tuple(
            Check(constraint.name, constraint.expression)
            for constraint in text.constraints
            if constraint.kind == "check"
        ),
        options=text.options,
        triggers=triggers,
    )


def _is_binary(collation: str | None) -> bool:
    return collation is None or collation.upper() == "BINARY"


def _sqlite_default(default: str | None) -> str | None:
    if default is None:
        return None
    tokens = tokenize(default)
    # In a default SQLite takes a quoted name for a string.
    if len(tokens) == 1 and tokens[0].kind == "name":
        return _literal(tokens[0].identifier)
    return _default(default)


def _sqlite_unique(keys: list[Any], columns: list[Column], text: TableText) -> Unique:
    names = tuple(_folded(row[2]) for row in keys)
    collations = {column.name: column.collation or "BINARY" for column in columns}
    options = []
    written = [constraint for constraint in text.constraints if constraint.kind == "unique"]
    constraint = next((one for one in written if tuple(map(_folded, one.columns)) == names), None)
    if constraint and constraint.conflict not in (None, "abort"):
        options.append(f"on conflict {constraint.conflict}")
    options += [f"collate {row[4].lower()}" for row in keys if collations[_folded(row[2])].upper() != row[4].upper()]
    return Unique(constraint.name if constraint else None, names, tuple(options))


# ----------------------------------------------------------------------------------------------- what PostgreSQL has

_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "f": "foreign table",
    "v": "view",
    "m": "materialized view",
}

_RELATIONS = """
    SELECT c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
    ORDER BY c.relname
"""
_COLUMNS = """
    SELECT a.attrelid, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated,
           CASE WHEN a.attcollation <> t.typcollation THEN o.collname END
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
    WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
"""
_CONSTRAINTS = """
    SELECT k.conrelid, k.conname, k.contype, k.condeferrable, k.convalidated, k.conindid,
           ARRAY(SELECT a.attname FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(number, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
           f.relname,
           ARRAY(SELECT a.attname FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u(number, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.place),
           pg_catalog.pg_get_constraintdef(k.oid)
    FROM pg_catalog.pg_constraint k
    LEFT JOIN pg_catalog.pg_class f ON f.oid = k.confrelid
    WHERE k.conrelid = ANY(%s)
    ORDER BY k.conrelid, k.conname
"""
_INDEXES = """
    SELECT i.indrelid, i.indexrelid, c.relname, pg_catalog.pg_get_indexdef(i.indexrelid), i.indisvalid AND i.indisready
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = ANY(%s)
    ORDER BY i.indrelid, c.relname
"""
_TRIGGERS = """
    SELECT t.tgrelid, t.tgname FROM pg_catalog.pg_trigger t WHERE t.tgrelid = ANY(%s) AND NOT t.tgisinternal
    ORDER BY t.tgrelid, t.tgname
"""


def _read_postgresql(connection: BaseDatabaseWrapper, names: set[str] | None) -> dict[str, Table]:
    with connection.cursor() as cursor:
        cursor.execute(_RELATIONS)
        relations = {
            oid: (name, _KINDS[_text(kind)], _text(persistence), row_security)
            for oid, name, kind, persistence, row_security in cursor.fetchall()
            if (_text(kind) not in "vm" if names is None else name in names)
        }
        oids = list(relations)

        def by_table(query: str) -> dict[int, list[Any]]:
            rows = defaultdict(list)
            cursor.execute(query, [oids])
            for owner, *row in cursor.fetchall():
                rows[owner].append(row)
            return rows

        columns, constraints = by_table(_COLUMNS), by_table(_CONSTRAINTS)
        indexes, triggers = by_table(_INDEXES), by_table(_TRIGGERS)
    return {
        name: _postgresql_table(
            connection,
            Table(
                name,
                (),
                None,
                kind=kind,
                options=(("unlogged",) if persistence == "u" else ()) + (("row security",) if row_security else ()),
                triggers=tuple(trigger for (trigger,) in triggers[oid]),
            ),
            columns[oid],
            constraints[oid],
            indexes[oid],
        )
        for oid, (name, kind, persistence, row_security) in relations.items()
    }


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # the catalog's "char" type


def _postgresql_table(
    connection: BaseDatabaseWrapper, table: Table, columns: list[Any], constraints: list[Any], indexes: list[Any]
) -> Table:
    index_texts = {oid: (parse_create_index(definition), valid) for oid, _, definition, valid in indexes}
    primary_key = None
    uniques, foreign_keys, checks = [], [], []
    owned, unproven = set(), set()
    for name, kind, deferrable, validated, index, own, target, target_columns, definition in constraints:
        kind, own = _text(kind), tuple(own)
        options = (("deferrable",) if deferrable else ()) + (() if validated else ("not valid",))
        if kind in "pux":
            owned.add(index)
        if kind == "p":
            primary_key = PrimaryKey(name, own)
        elif kind == "u":
            text, valid = index_texts[index]
            options += ("nulls not distinct",) if text.nulls_not_distinct else ()
            options += () if valid else ("invalid",)
            options += (f"include ({', '.join(text.include)})",) if text.include else ()
            uniques.append(Unique(name, own, options))
        elif kind == "f":
            foreign_keys.append(ForeignKey(name, own, target, tuple(target_columns)))
        elif kind == "n":  # PostgreSQL 18 lists NOT NULL here; below it is only a flag of the column
            unproven |= set() if validated else set(own)
        elif kind in "cx":
            expression = canonical(re.sub(r"^CHECK |( NO INHERIT)?( NOT VALID)?$", "", definition))
            checks.append(Check(name, expression))
    return replace(
        table,
        columns=tuple(
            Column(
                name=name,
                type=_type(connection, declared),
                nullable=not not_null or name in unproven,
                default=None if _text(generated) else _default(default),
                collation=collation,
                generated=_generated(_text(identity), _text(generated), default),
            )
            for name, declared, not_null, default, identity, generated, collation in columns
        ),
        primary_key=primary_key,
        uniques=tuple(uniques),
        indexes=tuple(
            replace(_index(connection, text, valid=valid), name=name)
            for oid, name, _, _ in indexes
            if oid not in owned
            for text, valid in (index_texts[oid],)
        ),
        foreign_keys=tuple(foreign_keys),
        checks=tuple(checks),
    )


def _generated(identity: str, generated: str, expression: str | None) -> str | None:
    if identity:
        return "identity"
    return canonical(expression or "") if generated else None


# -------------------------------------------------------------------------------------------------------- the diff


def compare(expected: Mapping[str, Table], live: Mapping[str, Table], *, names: bool = True) -> list[Difference]:
    """Return how ``live`` differs from ``expected``; an empty list, or notes alone, is a match.

    With ``names=False`` constraints and indexes are matched by what they do, whatever they are called, and a unique
    index serves where a UNIQUE constraint is expected: how the old server's databases differ among themselves.

    One change is one difference: what a missing or renamed column takes with it is told in that column's line.
    """
    found: list[Difference] = []
    for name, table in expected.items():
        if name in live:
            found += _TableDiff(table, live[name], names=names).differences()
        else:
            found.append(Difference("table.missing", "drift", name, None, "table", None, f"Table {name} is missing."))
    for name, table in live.items():
        if name not in expected:
            message = f"{table.kind.capitalize()} {name} is not agentdb's and is left alone."
            found.append(Difference("table.foreign", "note", name, None, None, table.kind, message))
    return found


@dataclass(frozen=True)
class _Key:
    """An index or a UNIQUE constraint, as the diff sees it."""

    name: str | None
    index: Index
    constraint: bool

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
        return f"{self.kind} {self.name}" if self.name else f"{self.kind} without a name"

    @property
    def columns(self) -> set[str]:
        texts = [part.expression for part in self.index.parts] + [self.index.condition or "", *self.index.include]
        return {token.identifier for text in texts for token in tokenize(text) if token.kind in ("word", "name")}


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
            Index("", tuple(IndexPart(column) for column in unique.columns), unique=True, options=unique.options),
            constraint=True,
        )
        for unique in table.uniques
    ]
    return uniques + [_Key(index.name, replace(index, name=""), constraint=False) for index in table.indexes]


class _TableDiff:
    def __init__(self, expected: Table, live: Table, *, names: bool) -> None:
        self.expected = expected
        self.live = live
        self.names = names
        self.found: list[Difference] = []
        self.missing = [column for column in expected.columns if live.column(column.name) is None]
        self.extra = [column for column in live.columns if expected.column(column.name) is None]
        self.renamed = _renamed(self.missing, self.extra)
        self._new_names = {new: old for old, new in self.renamed.items()}
        recollated = set()
        for column in expected.columns:
            found = live.column(column.name)
            if found is not None and found.collation != column.collation:
                recollated.add(column.name)
        # A change of a column shows in its indexes too; it is told once, so they are compared as if it were undone.
        self.wanted_keys = [_without_collations(key, recollated) for key in _keys(expected)]
        self.live_keys = [_without_collations(self._with_old_names(key), recollated) for key in _keys(live)]

    def differences(self) -> list[Difference]:
        if self.live.kind != self.expected.kind:
            message = f"{self.live.name} is a {self.live.kind}, not a {self.expected.kind}."
            self._drift("table.kind", None, self.expected.kind, self.live.kind, message)
            return self.found
        self._diff_options()
        lost = self._diff_keys()
        for column in self.expected.columns:
            found = self.live.column(column.name)
            if found is None:
                self._tell_missing(column, lost)
            else:
                self._diff_column(column, found)
        self._tell_extra_columns()
        self._diff_primary_key()
        self.found += self._key_differences
        self._tell_extra_constraints()
        for trigger in self.live.triggers:
            message = f"Trigger {trigger} on {self.live.name} is not in the models and is left alone."
            self._note("trigger.extra", trigger, "trigger", message)
        return self.found

    def _drift(self, code: str, object: str | None, expected: str | None, found: str | None, message: str) -> None:
        self.found.append(Difference(code, "drift", self.expected.name, object, expected, found, message))

    def _note(self, code: str, object: str | None, found: str, message: str) -> None:
        self.found.append(Difference(code, "note", self.expected.name, object, None, found, message))

    def _diff_options(self) -> None:
        words = {
            "unlogged": "is unlogged: PostgreSQL empties it after a crash",
            "row security": "has row security: it hides rows and refuses inserts",
        }
        for option in self.live.options:
            message = f"Table {self.live.name} {words.get(option, f'is {option}')}, which the models do not ask for."
            self._drift("table.option", None, None, option, message)

    # ------------------------------------------------------------------------------------------------------ columns

    def _tell_missing(self, column: Column, lost: Mapping[str, list[str]]) -> None:
        message = f"Column {self.expected.name}.{column.name} is missing"
        if lost.get(column.name):
            message += f", and with it {_listed(lost[column.name])}"
        other = self.renamed.get(column.name)
        if other is not None:
            message += f" (column {other} is defined like it: was it renamed?)"
        self._drift("column.missing", column.name, _column_text(column), other, f"{message}.")

    def _tell_extra_columns(self) -> None:
        for column in self.extra:
            name, text = f"{self.expected.name}.{column.name}", _column_text(column)
            if column.name in self._new_names:
                continue
            if column.nullable or column.default is not None or column.generated:
                message = f"Column {name} ({text}) is not in the models and is left alone."
                self._note("column.extra", column.name, text, message)
            else:
                message = f"Column {name} ({text}) is not in the models and has no default: every insert fails."
                self._drift("column.extra", column.name, None, text, message)

    def _diff_column(self, column: Column, found: Column) -> None:
        def tell(what: str, expected: str | None, live: str | None, has: str, should: str) -> None:
            message = f"Column {self.expected.name}.{column.name} {has}; it should {should}."
            self._drift(f"column.{what}", column.name, expected, live, message)

        if column.type != found.type:
            tell("type", column.type, found.type, f"has the type {found.type}", f"be {column.type}")
        if column.nullable != found.nullable:
            words = {True: ("NULL", "allows NULL", "allow NULL"), False: ("NOT NULL", "is NOT NULL", "be NOT NULL")}
            wanted, has = words[column.nullable], words[found.nullable]
            tell("nullable", wanted[0], has[0], has[1], wanted[2])
        if column.default != found.default:
            tell(
                "default",
                column.default,
                found.default,
                "has no default" if found.default is None else f"has the default {found.default}",
                "have none" if column.default is None else f"be {column.default}",
            )
        if column.collation != found.collation:
            tell(
                "collation",
                column.collation,
                found.collation,
                f"has the collation {found.collation}" if found.collation else "has the usual collation",
                f"be {column.collation}" if column.collation else "have the usual one",
            )
        if column.generated != found.generated:
            tell(
                "generated",
                column.generated,
                found.generated,
                f"is generated as {found.generated}" if found.generated else "is not generated",
                f"be generated as {column.generated}" if column.generated else "be an ordinary column",
            )

    # --------------------------------------------------------------------------------------------------------- keys

    def _with_old_names(self, key: _Key) -> _Key:
        if not self._new_names:
            return key

        def old(sql: str) -> str:
            return re.sub(r"\w+", lambda match: self._new_names.get(match.group(), match.group()), sql)

        index = replace(
            key.index,
            parts=tuple(replace(part, expression=old(part.expression)) for part in key.index.parts),
            condition=None if key.index.condition is None else old(key.index.condition),
            include=tuple(map(old, key.index.include)),
        )
        return replace(key, index=index)

    def _diff_primary_key(self) -> None:
        table, wanted, found = self.expected.name, self.expected.primary_key, self.live.primary_key
        if wanted is None:
            return
        columns = f"({', '.join(wanted.columns)})"
        if found is None:
            if not {column.name for column in self.missing} & set(wanted.columns):
                message = f"Table {table} has no primary key; it should be {columns}."
                self._drift("primary_key.missing", wanted.name, columns, None, message)
        elif tuple(self._new_names.get(name, name) for name in found.columns) != wanted.columns:
            actual = f"({', '.join(found.columns)})"
            message = f"The primary key of {table} is {actual}; it should be {columns}."
            self._drift("primary_key.columns", wanted.name, columns, actual, message)
        elif self.names and found.name != wanted.name:
            message = f"The primary key of {table} {_called(found.name)}; it should {_be_called(wanted.name)}."
            self._drift("primary_key.name", wanted.name, wanted.name, found.name, message)

    def _diff_keys(self) -> dict[str, list[str]]:
        """Compare indexes and UNIQUE constraints; return what each missing column took with it."""
        wanted, live = list(self.wanted_keys), list(self.live_keys)

        def paired(same: Any) -> list[tuple[_Key, _Key]]:
            pairs = []
            for key in list(wanted):
                other = next((other for other in live if same(key, other)), None)
                if other is not None:
                    wanted.remove(key)
                    live.remove(other)
                    pairs.append((key, other))
            return pairs

        def alike(key: _Key, other: _Key) -> bool:
            kinds = not self.names or key.constraint == other.constraint
            return kinds and replace(key.index, valid=True) == replace(other.index, valid=True)

        pairs = paired(lambda key, other: key.name == other.name and alike(key, other))
        changed = paired(lambda key, other: key.name == other.name) if self.names else []
        renamed = paired(alike)
        table, before = self.expected.name, self.found
        self.found = []
        for key, other in pairs + renamed:
            if not other.index.valid:
                message = (
                    f"{_capitalized(other.title)} on {table} is invalid, so no query uses it: "
                    f"run 'REINDEX INDEX CONCURRENTLY {other.name}'."
                )
                self._drift("index.invalid", key.name, "valid", "invalid", message)
        for key, other in renamed:
            if self.names:
                message = (
                    f"{_capitalized(key.kind)} on {table} {key.on} {_called(other.name)}; it should "
                    f"{_be_called(key.name)}."
                )
                self._drift(f"{_code(key)}.name", key.name, key.name, other.name, message)
        for key, other in changed:
            message = (
                f"{_capitalized(key.title)} on {table} is {_article(other)} on {other.on}; it should be "
                f"{_article(key)} on {key.on}."
            )
            self._drift(
                f"{_code(key)}.changed", key.name, f"{key.kind} on {key.on}", f"{other.kind} on {other.on}", message
            )
        lost: dict[str, list[str]] = defaultdict(list)
        primary = self.expected.primary_key
        gone = [column.name for column in self.missing]
        for column in gone:
            if primary and column in primary.columns and self.live.primary_key is None:
                lost[column].append("the primary key")
        for key in wanted:
            takers = [column for column in gone if column in key.columns]
            if takers:
                lost[takers[0]].append(key.title)
            else:
                message = f"{_capitalized(key.title)} on {table} {key.on} is missing."
                self._drift(f"{_code(key)}.missing", key.name, f"{key.kind} on {key.on}", None, message)
        for key in live:
            title, found = _capitalized(key.title), f"{key.kind} on {key.on}"
            if not key.index.unique or self._left_null(part.expression for part in key.index.parts):
                message = f"{title} on {table} {key.on} is not in the models and is left alone."
                self._note(f"{_code(key)}.extra", key.name, found, message)
            else:
                message = f"{title} on {table} {key.on} is not in the models: it can refuse what agentdb writes."
                self._drift(f"{_code(key)}.extra", key.name, None, found, message)
        self._key_differences, self.found = self.found, before
        return lost

    def _left_null(self, columns: Iterable[str]) -> bool:
        """Whether one of the columns is NULL in every row that agentdb inserts, so that nothing there can collide."""
        nulls = {column.name for column in self.extra if column.nullable and column.default is None}
        return any(column in nulls for column in columns)

    def _tell_extra_constraints(self) -> None:
        table = self.live.name
        for key in self.live.foreign_keys:
            on = f"({', '.join(key.columns)}) to {key.target_table} ({', '.join(key.target_columns)})"
            title = f"Foreign key {key.name}" if key.name else "A foreign key"
            if self._left_null(key.columns):
                message = f"{title} on {table} {on} is not in the models and is left alone."
                self._note("foreign_key.extra", key.name, on, message)
            else:
                message = f"{title} on {table} {on} is not in the models: it can refuse what agentdb writes."
                self._drift("foreign_key.extra", key.name, None, on, message)
        for check in self.live.checks:
            title = f"Check constraint {check.name}" if check.name else "A check constraint"
            message = (
                f"{title} on {table} ({check.expression}) is not in the models: it can refuse what agentdb writes."
            )
            self._drift("check.extra", check.name, None, check.expression, message)


def _renamed(missing: list[Column], extra: list[Column]) -> dict[str, str]:
    """The missing columns of which exactly one additional one has the definition, with its name."""
    renamed = {}
    for column in missing:
        alike = [other.name for other in extra if replace(other, name="") == replace(column, name="")]
        rivals = [other for other in missing if replace(other, name="") == replace(column, name="")]
        if len(alike) == len(rivals) == 1:
            renamed[column.name] = alike[0]
    return renamed


def _without_collations(key: _Key, columns: set[str]) -> _Key:
    parts = tuple(replace(part, collation=None) if part.expression in columns else part for part in key.index.parts)
    return replace(key, index=replace(key.index, parts=parts))


def _code(key: _Key) -> str:
    return "unique" if key.constraint else "index"


def _article(key: _Key) -> str:
    return f"{'an' if key.kind == 'index' else 'a'} {key.kind}"


def _called(name: str | None) -> str:
    return f"is named {name}" if name else "has no name"


def _be_called(name: str | None) -> str:
    return f"be {name}" if name else "have none"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _column_text(column: Column) -> str:
    text = column.type if column.nullable else f"{column.type} NOT NULL"
    return text if column.default is None else f"{text} DEFAULT {column.default}"
