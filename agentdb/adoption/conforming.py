"""Bring a live table to exactly what a model says, whatever old shape it is in, and keep what is not ours.

The schema editor's own methods start from the model a table was made from. These start from the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from django.db import DatabaseError, OperationalError, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from agentdb.adoption.dependents import (
    drop,
    make_again,
    read_dependents,
    table_obstacles,
)
from agentdb.adoption.obstacles import first_line
from agentdb.errors import SchemaMismatchError
from agentdb.faults import Fault, classify
from agentdb.schema import read_tables
from agentdb.schema.comparison import reads_ours
from agentdb.schema.expected import key_name, unique_name
from agentdb.schema.sqltext import (
    matching,
    parse_create_table,
    quote_name,
    split,
    tokenize,
    without_checks,
)
from agentdb.schema.tables import Column, Index, IndexPart, Table

# Indexes that old servers made and no model has any more; ours cover what they were for.
LEFT_OVER_INDEXES = frozenset({"idx_api_keys_hash", "api_keys_key_hash_unique"})


class LegacyUnique(models.UniqueConstraint):
    """A unique constraint as the old server made it: on PostgreSQL a unique index, which has no constraint."""

    def constraint_sql(
        self,
        model: type[models.Model] | None,
        schema_editor: BaseDatabaseSchemaEditor | None,
    ) -> Any:
        assert model is not None and schema_editor is not None
        if schema_editor.connection.vendor == "sqlite":
            return super().constraint_sql(model, schema_editor)
        schema_editor.deferred_sql.append(self.create_sql(model, schema_editor))
        return None

    def create_sql(
        self,
        model: type[models.Model] | None,
        schema_editor: BaseDatabaseSchemaEditor | None,
    ) -> Any:
        assert model is not None and schema_editor is not None
        if schema_editor.connection.vendor == "sqlite":
            return super().create_sql(model, schema_editor)
        columns = ", ".join(quote_name(_column(model, name)) for name in self.fields)
        table = quote_name(model._meta.db_table)
        return f"CREATE UNIQUE INDEX {quote_name(self.name)} ON {table} ({columns})"


def create_table(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model]
) -> None:
    """Create the model's table. Unlike ``create_model``, without text_pattern_ops indexes, which no query uses."""
    sql, params = schema_editor.table_sql(model)
    # A nullable key, as the old server's on SQLite: PostgreSQL makes it NOT NULL, unless NULL is spelt out.
    schema_editor.execute(
        sql.replace("text NULL PRIMARY KEY", "text PRIMARY KEY"), params or None
    )
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)


def conform_table(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    sources: Mapping[str, str] | None = None,
) -> None:
    """Change the live table into the model's; additional columns, indexes, triggers and views stay.

    ``sources`` gives, for columns that are new or converted, an SQL expression over the old row. The caller holds the
    transaction. ``SchemaMismatchError`` if a column is missing that no source or default fills, or if what was built
    around the table does not let it change.
    """
    conform = (
        _conform_on_sqlite
        if schema_editor.connection.vendor == "sqlite"
        else _conform_on_postgresql
    )
    try:
        conform(schema_editor, model, sources or {})
    except DatabaseError as error:
        # Not what will pass: a lock, a full disk, a lost connection.
        if isinstance(error, OperationalError) and classify(error) not in (
            Fault.OTHER,
            Fault.MISMATCH,
        ):
            raise
        raise SchemaMismatchError(
            f"Table {model._meta.db_table!r} cannot be converted; nothing was changed. {first_line(error)}"
        ) from error


def _fields(model: type[models.Model]) -> dict[str, models.Field[Any, Any]]:
    """The model's fields by column."""
    return {
        str(model_field.column): model_field for model_field in model._meta.local_fields
    }


def _column(model: type[models.Model], name: str) -> str:
    return next(
        column
        for column, model_field in _fields(model).items()
        if model_field.name == name
    )


def _run(schema_editor: BaseDatabaseSchemaEditor, sql: str) -> None:
    # No parameters, so that a percent sign in somebody's view or default is one.
    schema_editor.execute(sql, None)


def _rows(
    schema_editor: BaseDatabaseSchemaEditor, sql: str, params: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class _Unique:
    name: str
    columns: tuple[str, ...]
    is_index: bool


def _wanted_uniques(model: type[models.Model]) -> list[_Unique]:
    table = model._meta.db_table
    return [
        _Unique(unique_name(table, column), (column,), False)
        for column, model_field in _fields(model).items()
        if model_field.unique and not model_field.primary_key
    ] + [
        _Unique(
            constraint.name,
            tuple(_column(model, name) for name in constraint.fields),
            isinstance(constraint, LegacyUnique),
        )
        for constraint in model._meta.constraints
        if isinstance(constraint, models.UniqueConstraint)
    ]


def _our_names(model: type[models.Model]) -> set[str]:
    return {unique.name for unique in _wanted_uniques(model)} | {
        index.name for index in model._meta.indexes
    }


def _index_columns(model: type[models.Model], index: models.Index) -> tuple[str, ...]:
    """The columns of a plain ascending index; empty for one with expressions, an order or a condition."""
    if (
        index.expressions
        or index.condition
        or any(order for _, order in index.fields_orders)
    ):
        return ()
    return tuple(_column(model, name) for name, _ in index.fields_orders)


# SQLite ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Written:
    """A table of a SQLite file as it is written, and its columns, each with whether it is hidden (generated)."""

    name: str
    sql: str
    columns: list[tuple[str, int]]

    @property
    def names(self) -> set[str]:
        return {name.lower() for name, _ in self.columns}

    def extra(self, ours: Collection[str]) -> list[tuple[str, int]]:
        return [
            (name, hidden) for name, hidden in self.columns if name.lower() not in ours
        ]


def _conform_on_sqlite(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    sources: Mapping[str, str],
) -> None:
    """The rebuild that SQLite documents: create the new table, copy, drop the old one, rename, recreate the rest."""
    table = model._meta.db_table
    old = _written_table(schema_editor, table)
    definitions = _definitions(schema_editor, model, old)
    copied = _copied(model, old, sources)
    rest = _sqlite_rest(schema_editor, model, old.name)
    new_name = _unused_name(schema_editor, table)
    _run(
        schema_editor, f"CREATE TABLE {quote_name(new_name)} ({', '.join(definitions)})"
    )
    _run(
        schema_editor,
        f"INSERT INTO {quote_name(new_name)} ({', '.join(map(quote_name, copied))})"
        f" SELECT {', '.join(copied.values())} FROM {quote_name(old.name)}",
    )
    _run(schema_editor, f"DROP TABLE {quote_name(old.name)}")
    _rename_on_sqlite(schema_editor, new_name, table)
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)
    for sql in rest:
        _run(schema_editor, sql)


def _written_table(schema_editor: BaseDatabaseSchemaEditor, table: str) -> _Written:
    found = _rows(
        schema_editor,
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(%s)",
        [table],
    )
    if not found:
        raise SchemaMismatchError(
            f"The database has no table {table!r}. Run 'agentdb baselinedb'."
        )
    [(name, sql)] = found
    rows = _rows(schema_editor, f"PRAGMA table_xinfo({quote_name(name)})")
    return _Written(name, sql, [(column, hidden) for _, column, *_, hidden in rows])


def _definitions(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], old: _Written
) -> list[str]:
    """What stands in the new CREATE TABLE: our columns and constraints, and the operator's with what is about them."""
    ours = _fields(model)
    extra = old.extra(ours)
    guarded = {*ours, *(name.lower() for name, hidden in extra if hidden)}
    columns, constraints = written_definitions(old.sql)
    definitions = [
        f"{quote_name(column)} {schema_editor.column_sql(model, ours[column])[0]}"
        for column in ours
    ]
    definitions += [without_checks(columns[name.lower()], guarded) for name, _ in extra]
    definitions += [
        str(constraint.constraint_sql(model, schema_editor))
        for constraint in model._meta.constraints
    ]
    about = {name.lower() for name, _ in extra}
    kept = [
        without_checks(text, guarded) for text, words in constraints if words & about
    ]
    return definitions + [text for text in kept if text]


def _copied(
    model: type[models.Model], old: _Written, sources: Mapping[str, str]
) -> dict[str, str]:
    """The columns that get a value from the old row, and the expression for it."""
    copied: dict[str, str] = {}
    ours, live = _fields(model), old.names
    for column, model_field in ours.items():
        if column in sources:
            copied[column] = sources[column]
        elif column in live:
            copied[column] = quote_name(column)
        elif not (model_field.null or model_field.has_db_default()):
            raise _no_column(model, column)
    copied |= {name: quote_name(name) for name, hidden in old.extra(ours) if not hidden}
    rowid = rowid_name(old.sql, live)
    # An operator's full-text index, or his notes, may refer to rows by it.
    return copied if rowid is None else {rowid: rowid, **copied}


def _no_column(model: type[models.Model], column: str) -> SchemaMismatchError:
    return SchemaMismatchError(
        f"Table {model._meta.db_table!r} has no column {column!r}. Run 'agentdb baselinedb'."
    )


def _unused_name(schema_editor: BaseDatabaseSchemaEditor, table: str) -> str:
    taken = {
        name
        for (name,) in _rows(schema_editor, "SELECT lower(name) FROM sqlite_master")
    }
    return next(
        name
        for length in count()
        if (name := f"agentdb_new_{table}{'_' * length}") not in taken
    )


def _rename_on_sqlite(
    schema_editor: BaseDatabaseSchemaEditor, name: str, table: str
) -> None:
    # Without the legacy mode the rename fails on any view or trigger that names the table, which is away right now.
    [(legacy_alter_table,)] = _rows(schema_editor, "PRAGMA legacy_alter_table")
    _run(schema_editor, "PRAGMA legacy_alter_table = ON")
    try:
        _run(
            schema_editor,
            f"ALTER TABLE {quote_name(name)} RENAME TO {quote_name(table)}",
        )
    finally:
        _run(schema_editor, f"PRAGMA legacy_alter_table = {legacy_alter_table}")


def rowid_name(sql: str, columns: Collection[str]) -> str | None:
    """What the rowid can be called in a table made by ``sql``; None if it has none, or columns took all its names."""
    if "without rowid" in parse_create_table(sql).options:
        return None
    return next(
        (name for name in ("rowid", "_rowid_", "oid") if name not in columns), None
    )


def written_definitions(
    sql: str,
) -> tuple[dict[str, str], list[tuple[str, frozenset[str]]]]:
    """The definitions in a CREATE TABLE as they are written: of columns by lower-case name, and of the table's
    constraints, each with the lower-case words in it."""
    columns = {
        column.name.lower(): sql[column.start : column.end]
        for column in parse_create_table(sql).columns
    }
    tokens = tokenize(sql)
    opening = next(
        position for position, token in enumerate(tokens) if token.text == "("
    )
    constraints = [
        (
            sql[item[0].start : item[-1].end],
            frozenset(token.identifier.lower() for token in item),
        )
        for item in split(tokens[opening + 1 : matching(tokens, opening)])
        if sql[item[0].start : item[-1].end] not in columns.values()
    ]
    return columns, constraints


def _sqlite_rest(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], table: str
) -> list[str]:
    """The statements that recreate the table's additional indexes and its triggers."""
    names = LEFT_OVER_INDEXES | {unique.name for unique in _wanted_uniques(model)}
    names |= {index.name for index in model._meta.indexes}
    found = _rows(
        schema_editor,
        "SELECT type, name, sql FROM sqlite_master WHERE lower(tbl_name) = lower(%s) AND sql IS NOT NULL"
        " AND type IN ('index', 'trigger') ORDER BY type, name",
        [table],
    )
    return [
        sql
        for kind, name, sql in found
        if kind == "trigger"
        or not (
            name.lower() in names or _is_ours_renamed(schema_editor, model, table, name)
        )
    ]


def _is_ours_renamed(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    table: str,
    name: str,
) -> bool:
    """Whether an index of a SQLite file is one of the model's under another name."""
    listed = _rows(schema_editor, f"PRAGMA index_list({quote_name(table)})")
    [(unique, is_partial)] = [row[2:5:2] for row in listed if row[1] == name]
    parts = [
        row
        for row in _rows(schema_editor, f"PRAGMA index_xinfo({quote_name(name)})")
        if row[5]
    ]
    is_plain = all(
        row[2] is not None and not row[3] and row[4] == "BINARY" for row in parts
    )
    if is_partial or not is_plain:
        return False
    columns = tuple(row[2].lower() for row in parts)
    if unique:
        return frozenset(columns) in {
            frozenset(wanted.columns) for wanted in _wanted_uniques(model)
        }
    return columns in {_index_columns(model, index) for index in model._meta.indexes}


# PostgreSQL -----------------------------------------------------------------------------------------------------------


def _live_table(schema_editor: BaseDatabaseSchemaEditor, table: str) -> Table:
    live = read_tables(schema_editor.connection, [table]).get(table)
    if live is None:
        raise SchemaMismatchError(
            f"The database has no table {table!r}. Run 'agentdb baselinedb'."
        )
    return live


def _plain_columns(live: Table, index: Index) -> tuple[str, ...]:
    """The columns of a valid, plain ascending index; empty for one that is more, or less, than that."""
    columns = tuple(part.expression for part in index.parts)
    is_plain = (
        index
        == Index(
            index.name,
            tuple(IndexPart(column) for column in columns),
            unique=index.unique,
        )
        and index.valid
        and all(live.column(column) for column in columns)
    )
    return columns if is_plain else ()


def _conform_on_postgresql(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    sources: Mapping[str, str],
) -> None:
    table = model._meta.db_table
    quote = quote_name
    alter = f"ALTER TABLE {quote(table)}"
    live = _live_table(schema_editor, table)
    fields = _fields(model)
    [primary_key] = [
        column for column, model_field in fields.items() if model_field.primary_key
    ]

    # A half-built index of ours is in the way of its name, and of a change of its columns' types.
    half_built = [
        index
        for index in live.indexes
        if not index.valid and index.name in _our_names(model)
    ]
    for index in half_built:
        _run(schema_editor, f"DROP INDEX {quote(index.name)}")
    dropped = [
        key.name for key in live.foreign_keys if set(key.columns) & fields.keys()
    ]
    dropped += [
        check.name
        for check in live.checks
        if check.kind == "check" and reads_ours(check, live, fields)
    ]
    key = live.primary_key
    if key is not None and (key.columns != (primary_key,) or key.options):
        dropped.append(key.name)
        key = None
    for old_name in dropped:
        _run(schema_editor, f"{alter} DROP CONSTRAINT {quote(str(old_name))}")

    _convert_pg_columns(schema_editor, model, live, sources)

    name = key_name(table)
    if key is None:
        _run(
            schema_editor,
            f"{alter} ADD CONSTRAINT {quote(name)} PRIMARY KEY ({quote(primary_key)})",
        )
    elif key.name != name:
        _run(
            schema_editor,
            f"{alter} RENAME CONSTRAINT {quote(str(key.name))} TO {quote(name)}",
        )

    indexes = [index for index in live.indexes if index not in half_built]
    for unique in _wanted_uniques(model):
        indexes = _conform_pg_unique(schema_editor, live, indexes, unique)
    _conform_pg_indexes(schema_editor, model, live, indexes)
    [(lost_its_index,)] = _rows(
        schema_editor,
        "SELECT relreplident = 'i' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisreplident)"
        " FROM pg_class c WHERE oid = to_regclass(quote_ident(%s))",
        [table],
    )
    if lost_its_index:  # the key's, which was another one
        _run(schema_editor, f"{alter} REPLICA IDENTITY USING INDEX {quote(name)}")


def _convert_pg_columns(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    live: Table,
    sources: Mapping[str, str],
) -> None:
    table = model._meta.db_table
    alter = f"ALTER TABLE {quote_name(table)}"
    fields = _fields(model)
    types = {
        column: str(f.db_parameters(schema_editor.connection)["type"])
        for column, f in fields.items()
    }
    for column, field in fields.items():
        if live.column(column) is None:
            _add_pg_column(
                schema_editor, model, field, types[column], has_source=column in sources
            )
    using = {column: f"({expression})" for column, expression in sources.items()}
    for live_column in live.columns:
        if live_column.name in types and live_column.name not in using:
            using |= _pg_conversion(table, live_column, types[live_column.name])
    if using:
        with _without_dependents(schema_editor, table, using):
            defaults = [
                f"ALTER COLUMN {quote_name(column)} DROP DEFAULT" for column in using
            ]
            _run(schema_editor, f"{alter} {', '.join(defaults)}")
            # All in one statement, so that the table is rewritten once. An UPDATE would fire the user's triggers.
            conversions = [
                f"ALTER COLUMN {quote_name(column)} TYPE {types[column]} USING {expression}"
                for column, expression in using.items()
            ]
            _run(schema_editor, f"{alter} {', '.join(conversions)}")
    actions = [
        action
        for field in fields.values()
        for action in _pg_actions(schema_editor, field)
    ]
    _run(schema_editor, f"{alter} {', '.join(actions)}")


def _add_pg_column(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    field: models.Field[Any, Any],
    column_type: str,
    *,
    has_source: bool,
) -> None:
    column = str(field.column)
    if not (has_source or field.null or field.has_db_default()):
        raise _no_column(model, column)
    # With its default at once, so that the rows which are there get it too.
    default = "" if has_source else _pg_default(schema_editor, field)
    clause = f" DEFAULT {default}" if default else ""
    table = quote_name(model._meta.db_table)
    _run(
        schema_editor,
        f"ALTER TABLE {table} ADD COLUMN {quote_name(column)} {column_type}{clause}",
    )


def _pg_conversion(table: str, live: Column, wanted: str) -> dict[str, str]:
    """The column with the expression that makes the wanted type of it; nothing if it has that type already."""
    name = quote_name(live.name)
    if live.type == wanted and live.collation is None:
        return {}
    if wanted == "integer" and live.type in ("smallint", "bigint"):
        return {live.name: f"{name}::integer"}
    if wanted == "text" and live.type.startswith(("text", "character varying")):
        return {live.name: f"{name}::text"}
    raise SchemaMismatchError(
        f"Column {live.name!r} of table {table!r} is {live.type}, not {wanted}. Run 'agentdb baselinedb'."
    )


def _pg_actions(
    schema_editor: BaseDatabaseSchemaEditor, field: models.Field[Any, Any]
) -> Iterator[str]:
    """What ALTER TABLE has to do so that default and NULL are the field's."""
    column, default = quote_name(str(field.column)), _pg_default(schema_editor, field)
    yield f"ALTER COLUMN {column} " + (
        f"SET DEFAULT {default}" if default else "DROP DEFAULT"
    )
    if not field.primary_key:
        yield f"ALTER COLUMN {column} {'DROP' if field.null else 'SET'} NOT NULL"


def _pg_default(
    schema_editor: BaseDatabaseSchemaEditor, model_field: models.Field[Any, Any]
) -> str:
    if not model_field.has_db_default():
        return ""
    sql, params = schema_editor.db_default_sql(model_field)
    return str(sql % tuple(schema_editor.quote_value(param) for param in params))


def _conform_pg_unique(
    schema_editor: BaseDatabaseSchemaEditor,
    live: Table,
    indexes: list[Index],
    wanted: _Unique,
) -> list[Index]:
    """Leave one unique key of the columns, the wanted one. The answer is the indexes that are none of them."""
    alter = f"ALTER TABLE {quote_name(live.name)}"
    columns = {
        index.name: _plain_columns(live, index) for index in indexes if index.unique
    }
    alike = [
        name for name, own in columns.items() if sorted(own) == sorted(wanted.columns)
    ]

    # One object carries the rule from now on, the constraint if there is one; whatever else says the same goes.
    kept = "" if wanted.is_index else _same_constraint(live, wanted)
    index = (
        ""
        if kept
        else next((name for name in alike if columns[name] == wanted.columns), "")
    )
    for other in live.uniques:
        if set(other.columns) == set(wanted.columns) and other.name != kept:
            _run(
                schema_editor, f"{alter} DROP CONSTRAINT {quote_name(str(other.name))}"
            )
    _drop_indexes(schema_editor, [name for name in alike if name != index])
    if not kept:
        _make_pg_unique(schema_editor, live.name, wanted, index)
    elif kept != wanted.name:
        _run(
            schema_editor,
            f"{alter} RENAME CONSTRAINT {quote_name(kept)} TO {quote_name(wanted.name)}",
        )
    return [index for index in indexes if index.name not in alike]


def _same_constraint(live: Table, wanted: _Unique) -> str:
    """The name of a constraint that is already the wanted one but for its name; "" if there is none."""
    same = [
        str(unique.name)
        for unique in live.uniques
        if unique.columns == wanted.columns and not unique.options
    ]
    return same[0] if same else ""


def _make_pg_unique(
    schema_editor: BaseDatabaseSchemaEditor, table: str, wanted: _Unique, index: str
) -> None:
    """Make the wanted unique key, of the ``index`` that has its columns if there is one."""
    name, columns = quote_name(wanted.name), ", ".join(map(quote_name, wanted.columns))
    if not wanted.is_index:
        key = f"USING INDEX {quote_name(index)}" if index else f"({columns})"
        _run(
            schema_editor,
            f"ALTER TABLE {quote_name(table)} ADD CONSTRAINT {name} UNIQUE {key}",
        )
    elif not index:
        _run(
            schema_editor,
            f"CREATE UNIQUE INDEX {name} ON {quote_name(table)} ({columns})",
        )
    elif index != wanted.name:
        _run(schema_editor, f"ALTER INDEX {quote_name(index)} RENAME TO {name}")


def _conform_pg_indexes(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    live: Table,
    indexes: Sequence[Index],
) -> None:
    """Leave each of the model's indexes once, under its name; one of the same columns is renamed, not rebuilt."""
    wanted = {index.name: index for index in model._meta.indexes}
    plain = {
        index.name: () if index.unique else _plain_columns(live, index)
        for index in indexes
    }
    columns = {name: _index_columns(model, index) for name, index in wanted.items()}
    right = {
        name for name in wanted if columns[name] and plain.get(name) == columns[name]
    }
    ours = wanted.keys() | LEFT_OVER_INDEXES
    _drop_indexes(schema_editor, sorted((plain.keys() & ours) - right))
    others = {name: own for name, own in plain.items() if name not in ours}
    for name, model_index in wanted.items():
        same = [other for other, own in others.items() if own and own == columns[name]]
        if name in right:
            _drop_indexes(schema_editor, same)
        elif same:
            _run(
                schema_editor,
                f"ALTER INDEX {quote_name(same[-1])} RENAME TO {quote_name(name)}",
            )
            _drop_indexes(schema_editor, same[:-1])
        else:
            schema_editor.add_index(model, model_index)


def _drop_indexes(
    schema_editor: BaseDatabaseSchemaEditor, names: Collection[str]
) -> None:
    for name in names:
        _run(schema_editor, f"DROP INDEX {quote_name(name)}")


@contextmanager
def _without_dependents(
    schema_editor: BaseDatabaseSchemaEditor, table: str, columns: Collection[str]
) -> Iterator[None]:
    """What stands on the columns is away, and afterwards it is as it was. ``SchemaMismatchError`` if that cannot be."""
    query, run = partial(_rows, schema_editor), partial(_run, schema_editor)
    [(oid,)] = query("SELECT to_regclass(quote_ident(%s))::oid", [table])
    numbered = query(
        "SELECT attname, attnum FROM pg_attribute WHERE attrelid = %s AND NOT attisdropped",
        [oid],
    )
    numbers = [number for name, number in numbered if name in columns]
    version = schema_editor.connection.pg_version  # type: ignore[attr-defined]
    dependents = read_dependents(query, {oid: numbers}, server_version=version)
    for obstacle in (*table_obstacles(query, [oid]), *dependents.obstacles):
        raise SchemaMismatchError(obstacle)
    drop(run, dependents)
    yield
    make_again(query, run, dependents)
