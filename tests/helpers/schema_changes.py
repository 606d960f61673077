"""Single changes to agentdb's tables; each function makes one and returns the one line that it must cause.

It returns None, having changed nothing, where the engine or the thing has no such change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.sqltext import parse_create_table
from agentdb.schema.tables import Column, Key, Table

OTHER_TYPE = {
    "text": "varchar(100)",
    "integer": "bigint",
    "datetime": "text",
    "timestamp with time zone": "timestamp without time zone",
}
OTHER_DEFAULT = {
    "text": "'zz'",
    "integer": "7",
    "datetime": "'zz'",
    "timestamp with time zone": "now()",
}
READABLE_TYPE = {
    "varchar(100)": {"sqlite": "varchar(100)", "postgresql": "character varying(100)"}
}
OTHER_COLLATION = {"sqlite": "NOCASE", "postgresql": "C"}


@dataclass(frozen=True)
class Database:
    """A migrated database whose tables a test changes, inside a transaction that is rolled back."""

    connection: BaseDatabaseWrapper
    expected: dict[str, Table]

    @property
    def engine(self) -> str:
        return self.connection.vendor

    def execute(self, *statements: str) -> None:
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def rebuild(
        self,
        table: str,
        edit: Callable[[str], str],
        *,
        keep: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """On SQLite: make the table again from its edited statement, with those of its indexes to ``keep``."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT sql FROM sqlite_master WHERE name = %s", [table])
            ((before,),) = cursor.fetchall()
            cursor.execute(
                "SELECT name, sql FROM sqlite_master WHERE tbl_name = %s AND type = 'index'",
                [table],
            )
            indexes = [sql for name, sql in cursor.fetchall() if sql and keep(name)]
        after = edit(before)
        assert after != before
        self.execute(f"DROP TABLE {table}", after, *indexes)

    def edit_column(self, table: str, column: str, edit: Callable[[str], str]) -> None:
        def edited(sql: str) -> str:
            written = parse_create_table(sql).definitions[column]
            return sql.replace(written, edit(written), 1)

        self.rebuild(table, edited)


def _columns_of(index: Key) -> set[str]:
    return set(re.findall(r"\w+", f"{index.columns} {index.condition}"))


# ----------------------------------------------------------------------------------------------------------- columns


def drop_column(database: Database, table: Table, column: Column) -> str:
    if database.engine == "sqlite":
        gone = {
            index.name for index in table.indexes if column.name in _columns_of(index)
        }

        def edited(sql: str) -> str:
            for unique in table.uniques:
                if unique.name and column.name in unique.columns:
                    sql = re.sub(
                        rf', CONSTRAINT "{unique.name}" UNIQUE \([^)]*\)', "", sql
                    )
            written = parse_create_table(sql).definitions[column.name]
            before, after = map(str.strip, sql.split(written, 1))
            return (
                before + after[1:]
                if after.startswith(",")
                else before.removesuffix(",") + after
            )

        database.rebuild(table.name, edited, keep=lambda name: name not in gone)
    else:
        database.execute(f"ALTER TABLE {table.name} DROP COLUMN {column.name}")
    return f"Column {table.name}.{column.name} is missing."


def rename_column(database: Database, table: Table, column: Column) -> str:
    database.execute(
        f"ALTER TABLE {table.name} RENAME COLUMN {column.name} TO zz_{column.name}"
    )
    return (
        f"Column {table.name}.{column.name} is missing (column zz_{column.name} is "
        "defined like it: was it renamed?)."
    )


def retype_column(database: Database, table: Table, column: Column) -> str:
    new = OTHER_TYPE[column.type]
    if database.engine == "sqlite":
        database.edit_column(
            table.name,
            column.name,
            lambda sql: sql.replace(f" {column.type}", f" {new}", 1),
        )
    else:
        database.execute(
            f"ALTER TABLE {table.name} ALTER COLUMN {column.name} TYPE {new}"
        )
    found = READABLE_TYPE.get(new, {}).get(database.engine, new)
    return f"Column {table.name}.{column.name} has the type {found}; it should be {column.type}."


def flip_nullability(database: Database, table: Table, column: Column) -> str | None:
    if database.engine == "sqlite":
        database.edit_column(
            table.name,
            column.name,
            lambda sql: (
                f"{sql} NOT NULL" if column.nullable else sql.replace(" NOT NULL", "")
            ),
        )
    elif table.primary_key and column.name in table.primary_key.columns:
        return None  # PostgreSQL does not let a primary key be NULL
    else:
        action = "SET" if column.nullable else "DROP"
        database.execute(
            f"ALTER TABLE {table.name} ALTER COLUMN {column.name} {action} NOT NULL"
        )
    if column.nullable:
        return f"Column {table.name}.{column.name} is NOT NULL; it should allow NULL."
    return f"Column {table.name}.{column.name} allows NULL; it should be NOT NULL."


def _set_default(
    database: Database, table: Table, column: Column, default: str | None
) -> None:
    if database.engine == "sqlite":
        clause = "" if default is None else f" DEFAULT {default}"

        def edited(sql: str) -> str:
            without = re.sub(r" DEFAULT (\(.*\)|'[^']*'|\d+)", "", sql)
            return without + clause

        database.edit_column(table.name, column.name, edited)
    else:
        action = "DROP DEFAULT" if default is None else f"SET DEFAULT {default}"
        database.execute(
            f"ALTER TABLE {table.name} ALTER COLUMN {column.name} {action}"
        )


def other_default(database: Database, table: Table, column: Column) -> str:
    default = OTHER_DEFAULT[column.type]
    _set_default(database, table, column, default)
    should = "have none" if column.default is None else f"be {column.default}"
    return f"Column {table.name}.{column.name} has the default {default}; it should {should}."


def drop_default(database: Database, table: Table, column: Column) -> str | None:
    if column.default is None:
        return None
    _set_default(database, table, column, None)
    return f"Column {table.name}.{column.name} has no default; it should be {column.default}."


def other_collation(database: Database, table: Table, column: Column) -> str | None:
    if column.type != "text":
        return None
    collation = OTHER_COLLATION[database.engine]
    if database.engine == "sqlite":
        database.edit_column(
            table.name, column.name, lambda sql: f"{sql} COLLATE {collation}"
        )
    else:
        database.execute(
            f'ALTER TABLE {table.name} ALTER COLUMN {column.name} TYPE text COLLATE "{collation}"'
        )
    return f"Column {table.name}.{column.name} has the collation {collation}; it should have the usual one."


def generate_column(database: Database, table: Table, column: Column) -> str | None:
    if column.default is not None or column.type != "text" or not column.nullable:
        return None
    if database.engine == "sqlite":
        database.edit_column(
            table.name,
            column.name,
            lambda sql: f"{sql} GENERATED ALWAYS AS ('zz') VIRTUAL",
        )
        return f"Column {table.name}.{column.name} is generated as 'zz'; it should be an ordinary column."
    indexes = [index for index in table.indexes if column.name in _columns_of(index)]
    statements = [
        statement
        for index in indexes
        for statement in create_index(database, table, index)
    ]
    database.execute(
        f"ALTER TABLE {table.name} DROP COLUMN {column.name}",
        f"ALTER TABLE {table.name} ADD COLUMN {column.name} text GENERATED ALWAYS AS ('zz') STORED",
        *statements,
    )
    return f"Column {table.name}.{column.name} is generated as 'zz'; it should be an ordinary column."


# ----------------------------------------------------------------------------------------------------------- indexes


def create_index(database: Database, table: Table, index: Key) -> list[str]:
    keys = ", ".join(index.columns)
    using = f" USING {index.method}" if index.method != "btree" else ""
    return [
        f"CREATE {index.kind} {index.name} ON {table.name}{using} ({keys})"
        + (f" INCLUDE ({', '.join(index.include)})" if index.include else "")
        + (f" WHERE {index.condition}" if index.condition else "")
    ]


def on(index: Key) -> str:
    """An index as messages show it, spelt out a second time, so that the first is tested."""
    text = f"({', '.join(index.columns)})"
    text += f" using {index.method}" if index.method != "btree" else ""
    text += f" including ({', '.join(index.include)})" if index.include else ""
    return text + (f" where {index.condition}" if index.condition else "")


def _replace_index(database: Database, table: Table, index: Key, new: Key) -> str:
    database.execute(f"DROP INDEX {index.name}", *create_index(database, table, new))
    kind = "a unique index" if new.is_unique else "an index"
    plain = kind.partition(" ")[2]
    return (
        f"Index {index.name} on {table.name} is {kind.partition(' ')[0]} {plain} on {on(new)}; "
        f"it should be an index on {on(index)}."
    )


def drop_index(database: Database, table: Table, index: Key) -> str:
    database.execute(f"DROP INDEX {index.name}")
    return f"Index {index.name} on {table.name} {on(index)} is missing."


def rename_index(database: Database, table: Table, index: Key) -> str:
    database.execute(
        f"DROP INDEX {index.name}",
        *create_index(database, table, replace(index, name="zz")),
    )
    return f"Index on {table.name} {on(index)} is named zz; it should be {index.name}."


def index_more_columns(database: Database, table: Table, index: Key) -> str:
    extra = next(
        column.name for column in table.columns if column.name not in _columns_of(index)
    )
    return _replace_index(
        database, table, index, replace(index, columns=(*index.columns, extra))
    )


def index_fewer_columns(database: Database, table: Table, index: Key) -> str | None:
    if len(index.columns) == 1:
        return None
    return _replace_index(
        database, table, index, replace(index, columns=index.columns[:-1])
    )


def index_other_column(database: Database, table: Table, index: Key) -> str:
    other = next(
        column.name for column in table.columns if column.name not in _columns_of(index)
    )
    return _replace_index(
        database,
        table,
        index,
        replace(index, columns=(other, *index.columns[1:])),
    )


def index_other_order(database: Database, table: Table, index: Key) -> str | None:
    if len(index.columns) == 1:
        return None
    return _replace_index(
        database,
        table,
        index,
        replace(index, columns=(*index.columns[1:], index.columns[0])),
    )


def index_other_direction(database: Database, table: Table, index: Key) -> str:
    last = index.columns[-1]
    turned = last.removesuffix(" DESC") if last.endswith(" DESC") else f"{last} DESC"
    return _replace_last(database, table, index, turned)


def _replace_last(database: Database, table: Table, index: Key, column: str) -> str:
    columns = (*index.columns[:-1], column)
    return _replace_index(database, table, index, replace(index, columns=columns))


def index_other_collation(database: Database, table: Table, index: Key) -> str | None:
    name, _, rest = index.columns[-1].partition(" ")
    column = table.column(name)
    if column is None or column.type != "text":
        return None
    if "COLLATE" in rest:
        rest = re.sub(r"COLLATE \S+ ?", "", rest)
    else:
        collation = {"sqlite": "nocase", "postgresql": '"C"'}[database.engine]
        rest = f"COLLATE {collation} {rest}"
    return _replace_last(database, table, index, f"{name} {rest}".rstrip())


def index_other_nulls(database: Database, table: Table, index: Key) -> str | None:
    if database.engine == "sqlite":
        return None  # SQLite has no NULLS FIRST in an index
    last = index.columns[-1]
    nulls = "desc nulls last" if last.endswith(" DESC") else "nulls first"
    changed = f"{last.removesuffix(' DESC')} {nulls}"
    return _replace_last(database, table, index, changed)


def index_other_operator_class(
    database: Database, table: Table, index: Key
) -> str | None:
    name, _, rest = index.columns[0].partition(" ")
    column = table.column(name)
    if database.engine == "sqlite" or column is None or column.type != "text":
        return None
    changed = f"{name} text_pattern_ops {rest}".rstrip()
    return _replace_index(
        database, table, index, replace(index, columns=(changed, *index.columns[1:]))
    )


def index_other_method(database: Database, table: Table, index: Key) -> str | None:
    if database.engine == "sqlite" or len(index.columns) > 1:
        return None
    return _replace_index(database, table, index, replace(index, method="hash"))


def index_including(database: Database, table: Table, index: Key) -> str | None:
    if database.engine == "sqlite":
        return None
    extra = next(
        column.name for column in table.columns if column.name not in _columns_of(index)
    )
    return _replace_index(database, table, index, replace(index, include=(extra,)))


def index_unique(database: Database, table: Table, index: Key) -> str:
    return _replace_index(database, table, index, replace(index, kind="unique index"))


def index_other_condition(database: Database, table: Table, index: Key) -> str:
    return _replace_index(database, table, index, replace(index, condition="id > 'zz'"))


def index_no_condition(database: Database, table: Table, index: Key) -> str | None:
    if index.condition is None:
        return None
    return _replace_index(database, table, index, replace(index, condition=None))


def index_invalid(database: Database, table: Table, index: Key) -> str | None:
    if database.engine == "sqlite":
        return None
    _invalidate(database, index.name)
    return (
        f"Index {index.name} on {table.name} is invalid and serves no query: "
        f"run 'REINDEX INDEX CONCURRENTLY {index.name}'."
    )


def _invalidate(database: Database, index: str) -> None:
    """Leave the index as an interrupted CREATE INDEX CONCURRENTLY does."""
    database.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass"
    )


# ------------------------------------------------------------------------------------------------------- constraints


def drop_primary_key(database: Database, table: Table) -> str:
    if database.engine == "sqlite":
        database.edit_column(
            table.name, "id", lambda sql: sql.replace(" PRIMARY KEY", "")
        )
    else:
        database.execute(f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey")
    return f"The primary key on {table.name} (id) is missing."


def rename_primary_key(database: Database, table: Table) -> str:
    if database.engine == "sqlite":
        database.edit_column(
            table.name,
            "id",
            lambda sql: sql.replace(" PRIMARY KEY", " CONSTRAINT zz PRIMARY KEY"),
        )
        return f"Primary key on {table.name} (id) is named zz; it should have none."
    database.execute(
        f"ALTER TABLE {table.name} RENAME CONSTRAINT {table.name}_pkey TO zz"
    )
    return (
        f"Primary key on {table.name} (id) is named zz; it should be {table.name}_pkey."
    )


def widen_primary_key(database: Database, table: Table) -> str:
    if database.engine == "sqlite":
        database.rebuild(
            table.name,
            lambda sql: (
                sql.replace(" PRIMARY KEY", "", 1).rstrip().removesuffix(")")
                + ", PRIMARY KEY (tenant_id, id))"
            ),
        )
    else:
        database.execute(
            f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey, "
            f"ADD CONSTRAINT {table.name}_pkey PRIMARY KEY (tenant_id, id)"
        )
    return f"The primary key on {table.name} is a primary key on (tenant_id, id); it should be a primary key on (id)."


def soften_primary_key(database: Database, table: Table) -> str:
    if database.engine == "sqlite":
        database.edit_column(
            table.name,
            "id",
            lambda sql: sql.replace(" PRIMARY KEY", " PRIMARY KEY ON CONFLICT REPLACE"),
        )
        return (
            f"The primary key on {table.name} is a primary key on (id) on conflict replace; "
            "it should be a primary key on (id)."
        )
    database.execute(
        f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey, "
        f"ADD CONSTRAINT {table.name}_pkey PRIMARY KEY (id) DEFERRABLE"
    )
    return f"The primary key on {table.name} is a primary key on (id) deferrable; it should be a primary key on (id)."


def include_in_primary_key(database: Database, table: Table) -> str | None:
    if database.engine == "sqlite":
        return None
    database.execute(
        f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey, "
        f"ADD CONSTRAINT {table.name}_pkey PRIMARY KEY (id) INCLUDE (tenant_id)"
    )
    return (
        f"The primary key on {table.name} is a primary key on (id) including (tenant_id); "
        "it should be a primary key on (id)."
    )


def invalidate_primary_key(database: Database, table: Table) -> str | None:
    if database.engine == "sqlite":
        return None
    _invalidate(database, f"{table.name}_pkey")
    return (
        f"The primary key on {table.name} is invalid and serves no query: "
        f"run 'REINDEX INDEX CONCURRENTLY {table.name}_pkey'."
    )


def soften_not_null(database: Database, table: Table) -> str | None:
    if database.engine != "sqlite":
        return None
    database.edit_column(
        table.name,
        "id",
        lambda sql: sql.replace(" NOT NULL", " NOT NULL ON CONFLICT IGNORE"),
    )
    return f"Column {table.name}.id has NOT NULL on conflict ignore; it should refuse NULL."


def rule(database: Database, table: Table) -> str | None:
    if database.engine != "postgresql":
        return None
    database.execute(
        f"CREATE RULE lost AS ON INSERT TO {table.name} DO INSTEAD NOTHING"
    )
    return f"Rule lost on {table.name} is not in the models and can swallow or change what agentdb writes."


def _unique_title(unique: Key) -> str:
    return (
        f"unique constraint {unique.name}"
        if unique.name
        else "unique constraint without a name"
    )


def _edit_unique(database: Database, table: Table, unique: Key, new: str) -> None:
    """Replace the constraint by ``new``: a table constraint, or nothing."""
    if database.engine == "sqlite":
        clause = f", {new}" if new else ""

        def edited(sql: str) -> str:
            if unique.name:
                return re.sub(
                    rf', CONSTRAINT "{unique.name}" UNIQUE \([^)]*\)', clause, sql
                )
            return (
                sql.replace(" UNIQUE", "", 1).rstrip().removesuffix(")") + f"{clause})"
            )

        database.rebuild(table.name, edited)
    else:
        database.execute(f"ALTER TABLE {table.name} DROP CONSTRAINT {unique.name}")
        if new:
            database.execute(f"ALTER TABLE {table.name} ADD {new}")


def _named(unique: Key) -> str:
    return f'CONSTRAINT "{unique.name}" ' if unique.name else ""


def drop_unique(database: Database, table: Table, unique: Key) -> str:
    _edit_unique(database, table, unique, "")
    columns = ", ".join(unique.columns)
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} ({columns}) is missing."
    )


def rename_unique(database: Database, table: Table, unique: Key) -> str:
    columns = ", ".join(unique.columns)
    _edit_unique(database, table, unique, f"CONSTRAINT zz UNIQUE ({columns})")
    should = f"be {unique.name}" if unique.name else "have none"
    return f"Unique constraint on {table.name} ({columns}) is named zz; it should {should}."


def widen_unique(database: Database, table: Table, unique: Key) -> str:
    columns = ", ".join(unique.columns)
    _edit_unique(database, table, unique, f"{_named(unique)}UNIQUE ({columns}, id)")
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} is a unique constraint on ({columns}, id); "
        f"it should be a unique constraint on ({columns})."
    )


def turn_unique(database: Database, table: Table, unique: Key) -> str | None:
    if len(unique.columns) == 1:
        return None
    columns, turned = ", ".join(unique.columns), ", ".join(reversed(unique.columns))
    _edit_unique(database, table, unique, f"{_named(unique)}UNIQUE ({turned})")
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} is a unique constraint on ({turned}); "
        f"it should be a unique constraint on ({columns})."
    )


def index_for_unique(database: Database, table: Table, unique: Key) -> str | None:
    if not unique.name:
        return None  # an index has a name, so this would be two changes
    columns = ", ".join(unique.columns)
    _edit_unique(database, table, unique, "")
    database.execute(f"CREATE UNIQUE INDEX {unique.name} ON {table.name} ({columns})")
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} is a unique index on ({columns}); "
        f"it should be a unique constraint on ({columns})."
    )


def plain_index_for_unique(database: Database, table: Table, unique: Key) -> str | None:
    if not unique.name:
        return None
    columns = ", ".join(unique.columns)
    _edit_unique(database, table, unique, "")
    database.execute(f"CREATE INDEX {unique.name} ON {table.name} ({columns})")
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} is an index on ({columns}); "
        f"it should be a unique constraint on ({columns})."
    )


def soften_unique(database: Database, table: Table, unique: Key) -> str:
    columns = ", ".join(unique.columns)
    if database.engine == "sqlite":
        clause, words = " ON CONFLICT REPLACE", "on conflict replace"
    else:
        clause, words = " DEFERRABLE", "deferrable"
    _edit_unique(database, table, unique, f"{_named(unique)}UNIQUE ({columns}){clause}")
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} is a unique constraint on ({columns}) {words}; "
        f"it should be a unique constraint on ({columns})."
    )


def invalidate_unique(database: Database, table: Table, unique: Key) -> str | None:
    if database.engine == "sqlite" or not unique.name:
        return None
    _invalidate(database, unique.name)
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} is invalid and serves no query: "
        f"run 'REINDEX INDEX CONCURRENTLY {unique.name}'."
    )


def nulls_not_distinct(database: Database, table: Table, unique: Key) -> str | None:
    if database.engine == "sqlite" or database.connection.pg_version < 150000:  # type: ignore[attr-defined]
        return None
    columns = ", ".join(unique.columns)
    _edit_unique(
        database,
        table,
        unique,
        f"{_named(unique)}UNIQUE NULLS NOT DISTINCT ({columns})",
    )
    return (
        f"{_unique_title(unique).capitalize()} on {table.name} is a unique constraint on ({columns}) nulls not "
        f"distinct; it should be a unique constraint on ({columns})."
    )


# ------------------------------------------------------------------------------------------------ tables and additions


def drop_table(database: Database, table: Table) -> str:
    database.execute(f"DROP TABLE {table.name}")
    return f"Table {table.name} is missing."


def view_for_table(database: Database, table: Table) -> str:
    database.execute(
        f"ALTER TABLE {table.name} RENAME TO zz_kept",
        f"CREATE VIEW {table.name} AS SELECT * FROM zz_kept",
    )
    return f"{table.name} is a view, not a table."


def table_option(database: Database, table: Table) -> str:
    if database.engine == "sqlite":
        database.rebuild(table.name, lambda sql: f"{sql} WITHOUT ROWID")
        return f"Table {table.name} is without rowid; the models say nothing of it."
    database.execute(f"ALTER TABLE {table.name} SET UNLOGGED")
    return f"Table {table.name} is unlogged: PostgreSQL empties it after a crash."


def row_security(database: Database, table: Table) -> str | None:
    if database.engine == "sqlite":
        return None
    database.execute(f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY")
    return f"Table {table.name} has row security: it hides rows and refuses inserts."


def add_required_column(database: Database, table: Table) -> str:
    if database.engine == "sqlite":
        database.rebuild(
            table.name, lambda sql: sql.replace("(", "(zz text NOT NULL, ", 1)
        )
    else:
        database.execute(f"ALTER TABLE {table.name} ADD COLUMN zz text NOT NULL")
    return f"Column {table.name}.zz (text NOT NULL) is not in the models and has no default: every insert fails."


def add_unique_index(database: Database, table: Table) -> str:
    column = table.columns[1].name
    database.execute(f"CREATE UNIQUE INDEX zz ON {table.name} ({column})")
    return f"Unique index zz on {table.name} ({column}) is not in the models and can refuse what agentdb writes."


def add_unique_constraint(database: Database, table: Table) -> str:
    column = table.columns[1].name
    _add_constraint(database, table, f"CONSTRAINT zz UNIQUE ({column})")
    return f"Unique constraint zz on {table.name} ({column}) is not in the models and can refuse what agentdb writes."


def add_check(database: Database, table: Table) -> str:
    _add_constraint(database, table, "CONSTRAINT zz CHECK (tenant_id <> 'zz')")
    return (
        f"Check constraint zz on {table.name} (tenant_id <> 'zz') is not in the models and can refuse what "
        "agentdb writes."
    )


def add_foreign_key(database: Database, table: Table) -> str:
    other = "agents" if table.name != "agents" else "sessions"
    _add_constraint(
        database,
        table,
        f"CONSTRAINT zz FOREIGN KEY (tenant_id) REFERENCES {other} (id)",
    )
    return (
        f"Foreign key zz on {table.name} (tenant_id) to {other} (id) is not in the models and can refuse what "
        "agentdb writes."
    )


def _add_constraint(database: Database, table: Table, constraint: str) -> None:
    if database.engine == "sqlite":
        database.rebuild(
            table.name, lambda sql: f"{sql.rstrip().removesuffix(')')}, {constraint})"
        )
    else:
        database.execute(f"ALTER TABLE {table.name} ADD {constraint}")


# -------------------------------------------------------------------------------------------------------- the changes

COLUMN_CHANGES = (
    drop_column,
    rename_column,
    retype_column,
    flip_nullability,
    other_default,
    drop_default,
    other_collation,
    generate_column,
)
INDEX_CHANGES = (
    drop_index,
    rename_index,
    index_more_columns,
    index_fewer_columns,
    index_other_column,
    index_other_order,
    index_other_direction,
    index_other_collation,
    index_other_nulls,
    index_other_operator_class,
    index_other_method,
    index_including,
    index_unique,
    index_other_condition,
    index_no_condition,
    index_invalid,
)
UNIQUE_CHANGES = (
    drop_unique,
    rename_unique,
    widen_unique,
    turn_unique,
    index_for_unique,
    plain_index_for_unique,
    soften_unique,
    invalidate_unique,
    nulls_not_distinct,
)
TABLE_CHANGES = (
    drop_primary_key,
    rename_primary_key,
    widen_primary_key,
    soften_primary_key,
    include_in_primary_key,
    invalidate_primary_key,
    soften_not_null,
    rule,
    drop_table,
    view_for_table,
    table_option,
    row_security,
    add_required_column,
    add_unique_index,
    add_unique_constraint,
    add_check,
    add_foreign_key,
)
