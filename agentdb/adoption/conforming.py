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

from agentdb.adoption.dependents import drop, make_again, read_dependents, table_obstacles
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
from agentdb.schema.tables import Index, IndexPart, Table

# Indexes that old servers made and no model has any more; ours cover what they were for.
LEFT_OVER_INDEXES = frozenset({"idx_api_keys_hash", "api_keys_key_hash_unique"})


class LegacyUnique(models.UniqueConstraint):
    """A unique constraint as the old server made it: on PostgreSQL a unique index, which has no constraint."""

    def constraint_sql(self, model: type[models.Model] | None, schema_editor: BaseDatabaseSchemaEditor | None) -> Any:
        assert model is not None and schema_editor is not None
        if schema_editor.connection.vendor == "sqlite":
            return super().constraint_sql(model, schema_editor)
        schema_editor.deferred_sql.append(self.create_sql(model, schema_editor))
        return None

    def create_sql(self, model: type[models.Model] | None, schema_editor: BaseDatabaseSchemaEditor | None) -> Any:
        assert model is not None and schema_editor is not None
        if schema_editor.connection.vendor == "sqlite":
            return super().create_sql(model, schema_editor)
        columns = ", ".join(quote_name(_column(model, name)) for name in self.fields)
        table = quote_name(model._meta.db_table)
        return f"CREATE UNIQUE INDEX {quote_name(self.name)} ON {table} ({columns})"


def create_table(schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model]) -> None:
    """Create the model's table. Unlike ``create_model``, without text_pattern_ops indexes, which no query uses."""
    sql, params = schema_editor.table_sql(model)
    # A nullable key, as the old server's on SQLite: PostgreSQL makes it NOT NULL, unless NULL is spelt out.
    schema_editor.execute(sql.replace("text NULL PRIMARY KEY", "text PRIMARY KEY"), params or None)
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)


def conform_table(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], sources: Mapping[str, str] | None = None
) -> None:
    """Change the live table into the model's; additional columns, indexes, triggers and views stay.

    ``sources`` gives, for columns that are new or converted, an SQL expression over the old row. The caller holds the
    transaction. ``SchemaMismatchError`` if a column is missing that no source or default fills, or if what was built
    around the table does not let it change.
    """
    conform = _conform_on_sqlite if schema_editor.connection.vendor == "sqlite" else _conform_on_postgresql
    try:
        conform(schema_editor, model, sources or {})
    except DatabaseError as error:
        # Not what will pass: a lock, a full disk, a lost connection.
        if isinstance(error, OperationalError) and classify(error) not in (Fault.OTHER, Fault.MISMATCH):
            raise
        raise SchemaMismatchError(
            f"Table {model._meta.db_table!r} cannot be converted; nothing was changed. {first_line(error)}"
        ) from error


def _fields(model: type[models.Model]) -> dict[str, models.Field[Any, Any]]:
    """The model's fields by column."""
    return {str(model_field.column): model_field for model_field in model._meta.local_fields}


def _column(model: type[models.Model], name: str) -> str:
    return next(column for column, model_field in _fields(model).items() if model_field.name == name)


def _run(schema_editor: BaseDatabaseSchemaEditor, sql: str) -> None:
    # No parameters, so that a percent sign in somebody's view or default is one.
    schema_editor.execute(sql, None)


def _rows(schema_editor: BaseDatabaseSchemaEditor, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
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


def _index_columns(model: type[models.Model], index: models.Index) -> tuple[str, ...]:
    """The columns of a plain ascending index; empty for one with expressions, an order or a condition."""
    if index.expressions or index.condition or any(order for _, order in index.fields_orders):
        return ()
    return tuple(_column(model, name) for name, _ in index.fields_orders)


# SQLite ---------------------------------------------------------------------------------------------------------------


def _conform_on_sqlite(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], sources: Mapping[str, str]
) -> None:
    """The rebuild that SQLite documents: make the new table, copy, drop the old one, rename, make the rest again."""
    table = model._meta.db_table
    quote = quote_name
    objects = dict(_rows(schema_editor, "SELECT lower(name), name FROM sqlite_master"))
    found = _rows(
        schema_editor, "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(%s)", [table]
    )
    if not found:
        raise SchemaMismatchError(f"The database has no table {table!r}. Run 'agentdb baselinedb'.")
    old_name, old_sql = found[0]
    old_columns, old_constraints = written_definitions(old_sql)
    columns = [(name, hidden) for _, name, *_, hidden in _rows(schema_editor, f"PRAGMA table_xinfo({quote(old_name)})")]
    live = {name.lower() for name, _ in columns}
    ours = _fields(model)
    extra = [(name, hidden) for name, hidden in columns if name.lower() not in ours]
    guarded = {*ours, *(name.lower() for name, hidden in extra if hidden)}

    definitions = [
        f"{quote(column)} {schema_editor.column_sql(model, model_field)[0]}" for column, model_field in ours.items()
    ]
    definitions += [without_checks(old_columns[name.lower()], guarded) for name, _ in extra]
    definitions += [str(constraint.constraint_sql(model, schema_editor)) for constraint in model._meta.constraints]
    for text, words in old_constraints:
        kept = without_checks(text, guarded)
        if kept and words & {name.lower() for name, _ in extra}:
            definitions.append(kept)

    copied: dict[str, str] = {}
    for column, model_field in ours.items():
        if column in sources:
            copied[column] = sources[column]
        elif column in live:
            copied[column] = quote(column)
        elif not (model_field.null or model_field.has_db_default()):
            raise SchemaMismatchError(f"Table {table!r} has no column {column!r}. Run 'agentdb baselinedb'.")
    copied |= {name: quote(name) for name, hidden in extra if not hidden}
    if (rowid := rowid_name(old_sql, live)) is not None:
        # An operator's full-text index, or his notes, may refer to rows by it.
        copied = {rowid: rowid, **copied}

    rest = _sqlite_rest(schema_editor, model, old_name)
    new_name = next(
        name for name in (f"agentdb_new_{table}{'_' * length}" for length in count()) if name not in objects
    )
    _run(schema_editor, f"CREATE TABLE {quote(new_name)} ({', '.join(definitions)})")
    _run(
        schema_editor,
        f"INSERT INTO {quote(new_name)} ({', '.join(map(quote, copied))})"
        f" SELECT {', '.join(copied.values())} FROM {quote(old_name)}",
    )
    _run(schema_editor, f"DROP TABLE {quote(old_name)}")
    # Otherwise the rename fails on any view or trigger that names the table, which is away at this moment.
    [(legacy_alter_table,)] = _rows(schema_editor, "PRAGMA legacy_alter_table")
    _run(schema_editor, "PRAGMA legacy_alter_table = ON")
    try:
        _run(schema_editor, f"ALTER TABLE {quote(new_name)} RENAME TO {quote(table)}")
    finally:
        _run(schema_editor, f"PRAGMA legacy_alter_table = {legacy_alter_table}")
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)
    for sql in rest:
        _run(schema_editor, sql)


def rowid_name(sql: str, columns: Collection[str]) -> str | None:
    """What the rowid can be called in a table made by ``sql``; None if it has none, or columns took all its names."""
    if "without rowid" in parse_create_table(sql).options:
        return None
    return next((name for name in ("rowid", "_rowid_", "oid") if name not in columns), None)


def written_definitions(sql: str) -> tuple[dict[str, str], list[tuple[str, frozenset[str]]]]:
    """The definitions in a CREATE TABLE as they are written: of columns by lower-case name, and of the table's
    constraints, each with the lower-case words in it."""
    columns = {column.name.lower(): sql[column.start : column.end] for column in parse_create_table(sql).columns}
    tokens = tokenize(sql)
    opening = next(position for position, token in enumerate(tokens) if token.text == "(")
    constraints = [
        (sql[item[0].start : item[-1].end], frozenset(token.identifier.lower() for token in item))
        for item in split(tokens[opening + 1 : matching(tokens, opening)])
        if sql[item[0].start : item[-1].end] not in columns.values()
    ]
    return columns, constraints


def _sqlite_rest(schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], table: str) -> list[str]:
    """The statements that make the table's additional indexes and its triggers again."""
    quote = quote_name
    uniques = {frozenset(unique.columns) for unique in _wanted_uniques(model)}
    indexes = {_index_columns(model, index) for index in model._meta.indexes}
    names = LEFT_OVER_INDEXES | {unique.name for unique in _wanted_uniques(model)}
    names |= {index.name for index in model._meta.indexes}
    kept = []
    for kind, name, sql in _rows(
        schema_editor,
        "SELECT type, name, sql FROM sqlite_master WHERE lower(tbl_name) = lower(%s) AND sql IS NOT NULL"
        " AND type IN ('index', 'trigger') ORDER BY type, name",
        [table],
    ):
        if kind == "index":
            if name.lower() in names:
                continue
            [(unique, partial)] = [
                row[2:5:2] for row in _rows(schema_editor, f"PRAGMA index_list({quote(table)})") if row[1] == name
            ]
            parts = [row for row in _rows(schema_editor, f"PRAGMA index_xinfo({quote(name)})") if row[5]]
            if not partial and all(row[2] is not None and not row[3] and row[4] == "BINARY" for row in parts):
                columns = tuple(row[2].lower() for row in parts)
                if frozenset(columns) in uniques if unique else columns in indexes:
                    continue  # one of ours under another name
        kept.append(sql)
    return kept


# PostgreSQL -----------------------------------------------------------------------------------------------------------


def _live_table(schema_editor: BaseDatabaseSchemaEditor, table: str) -> Table:
    live = read_tables(schema_editor.connection, [table]).get(table)
    if live is None:
        raise SchemaMismatchError(f"The database has no table {table!r}. Run 'agentdb baselinedb'.")
    return live


def _plain_columns(live: Table, index: Index) -> tuple[str, ...]:
    """The columns of a valid, plain ascending index; empty for one that is more, or less, than that."""
    columns = tuple(part.expression for part in index.parts)
    is_plain = (
        index == Index(index.name, tuple(IndexPart(column) for column in columns), unique=index.unique)
        and index.valid
        and all(live.column(column) for column in columns)
    )
    return columns if is_plain else ()


def _conform_on_postgresql(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], sources: Mapping[str, str]
) -> None:
    table = model._meta.db_table
    quote = quote_name
    alter = f"ALTER TABLE {quote(table)}"
    live = _live_table(schema_editor, table)
    fields = _fields(model)
    [primary_key] = [column for column, model_field in fields.items() if model_field.primary_key]

    dropped = [key.name for key in live.foreign_keys if set(key.columns) & fields.keys()]
    dropped += [check.name for check in live.checks if check.kind == "check" and reads_ours(check, live, fields)]
    key = live.primary_key
    if key is not None and (key.columns != (primary_key,) or key.options):
        dropped.append(key.name)
        key = None
    for old_name in dropped:
        _run(schema_editor, f"{alter} DROP CONSTRAINT {quote(str(old_name))}")

    _convert_pg_columns(schema_editor, model, live, sources)

    name = key_name(table)
    if key is None:
        _run(schema_editor, f"{alter} ADD CONSTRAINT {quote(name)} PRIMARY KEY ({quote(primary_key)})")
    elif key.name != name:
        _run(schema_editor, f"{alter} RENAME CONSTRAINT {quote(str(key.name))} TO {quote(name)}")

    indexes = list(live.indexes)
    for unique in _wanted_uniques(model):
        indexes = _conform_pg_unique(schema_editor, live, indexes, unique)
    _conform_pg_indexes(schema_editor, model, live, indexes)


def _convert_pg_columns(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], live: Table, sources: Mapping[str, str]
) -> None:
    table = model._meta.db_table
    quote = quote_name
    alter = f"ALTER TABLE {quote(table)}"
    fields = _fields(model)
    types = {column: str(f.db_parameters(schema_editor.connection)["type"]) for column, f in fields.items()}

    added = [column for column in fields if live.column(column) is None]
    for column in added:
        if column not in sources and not (fields[column].null or fields[column].has_db_default()):
            raise SchemaMismatchError(f"Table {table!r} has no column {column!r}. Run 'agentdb baselinedb'.")
        # With its default at once, so that the rows which are there get it too.
        default = "" if column in sources else _pg_default(schema_editor, fields[column])
        _run(schema_editor, f"{alter} ADD COLUMN {quote(column)} {types[column]}{default and f' DEFAULT {default}'}")

    using = {column: f"({expression})" for column, expression in sources.items()}
    for live_column in live.columns:
        column = live_column.name
        if column not in fields or column in using:
            continue
        if live_column.type == types[column] and live_column.collation is None:
            continue
        if types[column] == "integer" and live_column.type in ("smallint", "bigint"):
            using[column] = f"{quote(column)}::integer"
            continue
        if not live_column.type.startswith(("text", "character varying")) or types[column] != "text":
            raise SchemaMismatchError(
                f"Column {column!r} of table {table!r} is {live_column.type}, not {types[column]}. "
                "Run 'agentdb baselinedb'."
            )
        using[column] = f"{quote(column)}::text"
    if using:
        with _without_dependents(schema_editor, table, using):
            defaults = [f"ALTER COLUMN {quote(column)} DROP DEFAULT" for column in using]
            _run(schema_editor, f"{alter} {', '.join(defaults)}")
            # All in one statement, so that the table is rewritten once. An UPDATE would fire the user's triggers.
            conversions = [
                f"ALTER COLUMN {quote(column)} TYPE {types[column]} USING {expression}"
                for column, expression in using.items()
            ]
            _run(schema_editor, f"{alter} {', '.join(conversions)}")

    actions = []
    for column, model_field in fields.items():
        default = _pg_default(schema_editor, model_field)
        actions.append(f"ALTER COLUMN {quote(column)} " + (f"SET DEFAULT {default}" if default else "DROP DEFAULT"))
        if not model_field.primary_key:
            actions.append(f"ALTER COLUMN {quote(column)} {'DROP' if model_field.null else 'SET'} NOT NULL")
    _run(schema_editor, f"{alter} {', '.join(actions)}")


def _pg_default(schema_editor: BaseDatabaseSchemaEditor, model_field: models.Field[Any, Any]) -> str:
    if not model_field.has_db_default():
        return ""
    sql, params = schema_editor.db_default_sql(model_field)
    return str(sql % tuple(schema_editor.quote_value(param) for param in params))


def _conform_pg_unique(
    schema_editor: BaseDatabaseSchemaEditor, live: Table, indexes: list[Index], wanted: _Unique
) -> list[Index]:
    """Leave one unique key of the columns, the wanted one. The answer is the indexes that are none of them."""
    quote, table = quote_name, live.name
    alter = f"ALTER TABLE {quote(table)}"
    columns = ", ".join(map(quote, wanted.columns))
    constraints = [unique for unique in live.uniques if set(unique.columns) == set(wanted.columns)]
    keys = {index: _plain_columns(live, index) for index in indexes if index.unique}
    alike = [index for index, own in keys.items() if own and set(own) == set(wanted.columns)]

    # One object carries the rule from now on, the constraint if there is one; whatever else says the same goes.
    constraint = None
    if not wanted.is_index:
        constraint = next((one for one in constraints if one.columns == wanted.columns and not one.options), None)
    index = next((one for one in alike if keys[one] == wanted.columns), None) if constraint is None else None
    for other in constraints:
        if other is not constraint:
            _run(schema_editor, f"{alter} DROP CONSTRAINT {quote(str(other.name))}")
    for other_index in alike:
        if other_index is not index:
            _run(schema_editor, f"DROP INDEX {quote(other_index.name)}")

    name = quote(wanted.name)
    if constraint is not None:
        if constraint.name != wanted.name:
            _run(schema_editor, f"{alter} RENAME CONSTRAINT {quote(str(constraint.name))} TO {name}")
    elif wanted.is_index:
        if index is None:
            _run(schema_editor, f"CREATE UNIQUE INDEX {name} ON {quote(table)} ({columns})")
        elif index.name != wanted.name:
            _run(schema_editor, f"ALTER INDEX {quote(index.name)} RENAME TO {name}")
    elif index is not None:
        _run(schema_editor, f"{alter} ADD CONSTRAINT {name} UNIQUE USING INDEX {quote(index.name)}")
    else:
        _run(schema_editor, f"{alter} ADD CONSTRAINT {name} UNIQUE ({columns})")
    return [index for index in indexes if index not in alike]


def _conform_pg_indexes(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], live: Table, indexes: Sequence[Index]
) -> None:
    quote = quote_name
    wanted = {index.name: index for index in model._meta.indexes}
    keys = {index.name: _plain_columns(live, index) for index in indexes}
    right = {
        index.name
        for index in indexes
        if index.name in wanted
        and not index.unique
        and keys[index.name]
        and keys[index.name] == _index_columns(model, wanted[index.name])
    }
    for index in indexes:
        if index.name not in right and (index.name in wanted or index.name in LEFT_OVER_INDEXES):
            _run(schema_editor, f"DROP INDEX {quote(index.name)}")
    others = [i for i in indexes if i.name not in wanted and i.name not in LEFT_OVER_INDEXES and not i.unique]
    for name, model_index in wanted.items():
        columns = _index_columns(model, model_index)
        same = [index for index in others if columns and keys[index.name] == columns]
        if name not in right:
            if same:
                _run(schema_editor, f"ALTER INDEX {quote(same.pop().name)} RENAME TO {quote(name)}")
            else:
                schema_editor.add_index(model, model_index)
        for index in same:
            _run(schema_editor, f"DROP INDEX {quote(index.name)}")


@contextmanager
def _without_dependents(
    schema_editor: BaseDatabaseSchemaEditor, table: str, columns: Collection[str]
) -> Iterator[None]:
    """What stands on the columns is away, and afterwards it is as it was. ``SchemaMismatchError`` if that cannot be."""
    query, run = partial(_rows, schema_editor), partial(_run, schema_editor)
    [(oid,)] = query("SELECT to_regclass(quote_ident(%s))::oid", [table])
    numbered = query("SELECT attname, attnum FROM pg_attribute WHERE attrelid = %s AND NOT attisdropped", [oid])
    numbers = [number for name, number in numbered if name in columns]
    version = schema_editor.connection.pg_version  # type: ignore[attr-defined]
    dependents = read_dependents(query, {oid: numbers}, server_version=version)
    for obstacle in (*table_obstacles(query, [oid]), *dependents.obstacles):
        raise SchemaMismatchError(obstacle)
    drop(run, dependents)
    yield
    make_again(query, run, dependents)
