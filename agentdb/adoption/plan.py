"""What adopting a database means: what is found in it, and what is to be done about that. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from agentdb.adoption.dependents import column_numbers, read_dependents, table_obstacles
from agentdb.adoption.obstacles import OLD_COLUMNS, UnusableValue
from agentdb.adoption.ownership import RECORD
from agentdb.adoption.shapes import (
    ADDED_COLUMNS,
    NATIVE_TIMESTAMP_TYPES,
    REBUILT_AS,
    Kind,
    Shape,
    old_name,
    recognise,
)
from agentdb.adoption.values import (
    Progress,
    TableContent,
    duplicates,
    read_content,
)
from agentdb.conf import server_name
from agentdb.schema import Table, expected_tables, read_tables
from agentdb.schema.comparison import reads_ours
from agentdb.schema.inspection import server_version, sqlite_path
from agentdb.schema.migration_record import migration_names
from agentdb.schema.rows import count_rows
from agentdb.schema.spelling import Misspelt, may_read, misspelt_timestamps
from agentdb.schema.tables import Column, Index
from agentdb.wording import counted

# What is to be unique in an adopted database.
_KEYS = (
    ("agents", ("id",)),
    ("sessions", ("id",)),
    ("sandboxes", ("id",)),
    ("api_keys", ("id",)),
    ("agents", ("tenant_id", "name")),
    ("api_keys", ("key_hash",)),
)


@dataclass(frozen=True)
class Refusal:
    """Why a database cannot be adopted as it is: a sentence, and the rows that it is about."""

    message: str
    rows: tuple[UnusableValue, ...] = ()
    total: int = 0

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {row}" for row in self.rows)])


@dataclass(frozen=True)
class Findings:
    """Everything that the decision rests on."""

    engine: str
    place: str  # the file, or database, host and port
    size: int | None  # bytes
    version: str
    shape: Shape
    live: Mapping[str, Table]
    contents: Mapping[str, TableContent]  # by the name the table is to have
    other_rows: Mapping[str, int] = field(default_factory=dict)
    duplicates: tuple[tuple[int, tuple[UnusableValue, ...]], ...] = ()
    obstacles: tuple[str, ...] = ()
    misspelt: tuple[Misspelt, ...] = ()
    is_file: bool = False


@dataclass(frozen=True)
class Plan:
    """What to do, for the machine and for the reader."""

    actions: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)  # name now -> name to have
    conform: bool = False  # whether the tables change, or their timestamps' spelling

    @property
    def has_work(self) -> bool:
        return bool(self.actions) and not self.refusals


def read(
    connection: BaseDatabaseWrapper,
    progress: Progress = lambda table, done, total: None,
) -> Findings:
    """Look at the schema, the record of migrations and every row of the four tables."""
    shape = recognise(connection)
    live = read_tables(connection)
    misspelt = (
        () if shape.problems else tuple(misspelt_timestamps(connection, shape.tables))
    )
    done = _is_done(shape) and not misspelt
    contents: dict[str, TableContent] = {}
    shared: list[tuple[int, tuple[UnusableValue, ...]]] = []
    if not shape.problems:
        contents = {
            name: read_content(connection, name, table, progress=progress)
            for name, table in shape.tables.items()
        }
        if not done:
            found = [
                duplicates(connection, name, shape.tables[name], key)
                for name, key in _KEYS
                if _has(shape, name, key)
            ]
            shared = [rows for rows in found if rows[0]]
    path = sqlite_path(connection)
    return Findings(
        engine=connection.vendor,
        place=str(path) if path else _place(connection),
        size=_size(connection),
        version=server_version(connection),
        shape=shape,
        live=live,
        contents=contents,
        other_rows={
            name: _count_or_zero(connection, live[name]) for name in shape.others
        },
        duplicates=tuple(shared),
        obstacles=()
        if done or not shape.tables
        else tuple(_obstacles(connection, shape, live)),
        misspelt=misspelt,
        is_file=path is not None,
    )


def makes_ids(name: str, table: Table) -> bool:
    """Whether some of the table's rows may get their id in the adoption."""
    column = table.column("id")
    return name == "agents" and (
        column is None or (column.nullable and _key(table) != ("id",))
    )


def comparable_columns(name: str, table: Table) -> tuple[str, ...]:
    """The columns whose every value must be the same before and after."""
    return tuple(
        column.name
        for column in table.columns
        if not (column.name == "id" and makes_ids(name, table))
    )


def _has(shape: Shape, name: str, key: tuple[str, ...]) -> bool:
    """Whether the key can be looked at: a tenant_id that is to be added is the same for all rows."""
    table = shape.tables.get(name)
    return table is not None and any(table.column(column) for column in key)


def _is_done(shape: Shape) -> bool:
    names = migration_names()
    return (
        shape.kind is Kind.ADOPTED
        and shape.level == names[-1]
        and shape.recorded == tuple(names)
    )


def _count_or_zero(connection: BaseDatabaseWrapper, table: Table) -> int:
    return (
        count_rows(connection, table.name)
        if table.kind == "table" and may_read(connection, table.name)
        else 0
    )


def _place(connection: BaseDatabaseWrapper) -> str:
    return (
        "in memory"
        if connection.vendor == "sqlite"
        else server_name(connection.settings_dict)
    )


def _size(connection: BaseDatabaseWrapper) -> int | None:
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            )
        elif connection.vendor == "postgresql":
            cursor.execute("SELECT pg_database_size(current_database())")
        else:
            return None
        return int(cursor.fetchone()[0])


def _obstacles(
    connection: BaseDatabaseWrapper, shape: Shape, live: Mapping[str, Table]
) -> list[str]:
    """What in the schema around the tables, or in the role's rights, would make an adoption fail half-way."""
    obstacles = [
        *_keys_to_names(shape, live),
        *_too_unique_keys(connection, shape),
        *_names_in_the_way(connection, shape),
    ]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            obstacles += _missing_rights(cursor, set(shape.stored_as.values()))
            obstacles += _around(connection, cursor, shape)
            if RECORD in live:
                obstacles += _behind(cursor)
    return obstacles


def _keys_to_names(shape: Shape, live: Mapping[str, Table]) -> Iterator[str]:
    """Foreign keys of other tables to the name of an agent, which is no key afterwards."""
    if _key(shape.tables.get("agents")) != ("name",):
        return
    for name in shape.others:
        for key in live[name].foreign_keys:
            if key.target_table == "agents" and key.target_columns in (("name",), ()):
                yield (
                    f"Table {name!r} has a foreign key to the name of agents, which several tenants may use once it is "
                    "adopted. Drop the foreign key."
                )


def _too_unique_keys(connection: BaseDatabaseWrapper, shape: Shape) -> Iterator[str]:
    """Unique keys that are not ours and could refuse what agentdb writes."""
    # An index of ours that is half built is rebuilt as the models want it.
    replaced = {
        index.name
        for table in expected_tables(connection, apps).values()
        for index in table.indexes
    }
    for name, table in shape.tables.items():
        keys = {frozenset(key) for of, key in _KEYS if of == name}
        found = [
            ("constraint", unique.name, unique.columns, unique.options)
            for unique in table.uniques
        ]
        found += [
            ("index", index.name, _index_key(index), index.options)
            for index in table.indexes
            if index.unique and (index.valid or index.name not in replaced)
        ]
        for kind, called, columns, options in found:
            if frozenset(columns) not in keys and not _left_null(
                table, columns, options
            ):
                yield _too_unique(name, kind, called)


def _index_key(index: Index) -> tuple[str, ...]:
    """What the index keeps unique; a condition makes it another key than the columns alone."""
    return (
        *(part.expression for part in index.parts),
        *((index.condition,) if index.condition else ()),
    )


def _names_in_the_way(connection: BaseDatabaseWrapper, shape: Shape) -> Iterator[str]:
    """Objects that have the name of an index, a constraint or a table that is to be made."""
    ours = {
        wanted.name: shape.stored_as.get(table.name)
        for table in expected_tables(connection, apps).values()
        for wanted in (*table.indexes, *table.uniques, table.primary_key)
        if wanted is not None and wanted.name is not None
    } | dict.fromkeys(set(OLD_COLUMNS) - set(shape.tables))
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT type, name, tbl_name FROM sqlite_master")
        else:
            cursor.execute(
                "SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'i' THEN 'index' WHEN 'v' THEN 'view'"
                " ELSE 'object' END, c.relname, coalesce(t.relname, c.relname) FROM pg_class c"
                " LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = i.indrelid"
                " WHERE c.relnamespace = quote_ident(current_schema())::regnamespace UNION ALL"
                " SELECT 'type', typname, typname FROM pg_type WHERE typrelid = 0 AND typelem = 0"
                " AND typnamespace = quote_ident(current_schema())::regnamespace"
            )
        found = cursor.fetchall()
    for kind, name, on_table in found:
        key, owner = (
            (name.lower(), on_table.lower())
            if connection.vendor == "sqlite"
            else (name, on_table)
        )
        if key in ours and not (kind == "index" and owner == ours[key]):
            of = f" of table {on_table!r}" if on_table != name else ""
            yield f"The {kind} {name!r}{of} has a name that agentdb needs. Rename it."


def changing_columns(shape: Shape, engine: str) -> dict[str, list[str]]:
    """The columns whose type an adoption changes, by the table's name in the database."""
    native = NATIVE_TIMESTAMP_TYPES[engine]

    def changes(table: Table, column: Column) -> bool:
        kind = OLD_COLUMNS[old_name(table.name)].get(column.name)
        if kind is None:
            return False
        if kind == "timestamp":
            return column.type not in native
        is_final = (
            column.type == ("integer" if kind == "integer" else "text")
            and column.collation is None
        )
        return not is_final or (column.name == "id" and makes_ids(table.name, table))

    return {
        table.name: [column.name for column in table.columns if changes(table, column)]
        for table in shape.tables.values()
    }


def _around(
    connection: BaseDatabaseWrapper, cursor: CursorWrapper, shape: Shape
) -> list[str]:
    """What of the operator's can neither stand nor be made again."""
    obstacles = []
    for table in shape.tables.values():
        obstacles += [
            _OPTIONS[option].format(table=table.name)
            for option in table.options
            if option in _OPTIONS
        ]

    def query(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())

    columns = column_numbers(query, changing_columns(shape, connection.vendor))
    version = connection.pg_version  # type: ignore[attr-defined]
    obstacles += table_obstacles(query, columns)
    obstacles += read_dependents(query, columns, server_version=version).obstacles
    return obstacles


def _behind(cursor: CursorWrapper) -> Iterator[str]:
    """Whether the record's sequence would give an id that a row has: somebody inserted rows with ids of their own."""
    cursor.execute("SELECT pg_get_serial_sequence(%s, 'id')", [RECORD])
    [(sequence,)] = cursor.fetchall()
    if sequence is None:
        return
    cursor.execute(
        f"SELECT (SELECT max(id) FROM {RECORD}) >= last_value + is_called::int FROM {sequence}"
    )
    if cursor.fetchall() == [(True,)]:
        yield (
            f"The sequence of {RECORD}.id is behind its rows. Run \"SELECT setval('{sequence}', max(id)) FROM "
            f'{RECORD}", and run the command again.'
        )


_OPTIONS = {
    "unlogged": "Table {table!r} is unlogged: PostgreSQL empties it after a crash. Run 'ALTER TABLE {table} SET "
    "LOGGED'.",
    "row security": "Table {table!r} has row security, which hides rows and refuses inserts. Run 'ALTER TABLE {table} "
    "DISABLE ROW LEVEL SECURITY'; its policies stay.",
}


def _left_null(table: Table, columns: Iterable[str], options: Collection[str]) -> bool:
    """Whether one of the columns is NULL in every row that agentdb inserts, so that nothing there can collide."""
    return "nulls not distinct" not in options and any(
        column is not None
        and name not in OLD_COLUMNS[old_name(table.name)]
        and column.nullable
        and not column.default
        for name in columns
        for column in (table.column(name),)
    )


def _too_unique(table: str, kind: str, name: str | None) -> str:
    return (
        f"Table {table!r} has a unique {kind}{'' if name is None else f' {name!r}'}, which could refuse what agentdb "
        "writes. Drop it, or make it one that is not unique."
    )


_SEVERAL_OWNERS = (
    "The tables have several owners: use a role that is a member of all of them, or give the tables to one with 'ALTER "
    "TABLE … OWNER TO'."
)


def _missing_rights(cursor: CursorWrapper, tables: set[str]) -> list[str]:
    cursor.execute(
        "SELECT relname, pg_get_userbyid(relowner), current_user, pg_has_role(relowner, 'USAGE') FROM pg_class"
        " WHERE relname = ANY(%s) AND relnamespace = quote_ident(current_schema())::regnamespace ORDER BY 1",
        [list(tables)],
    )
    found = cursor.fetchall()
    owners = {owner for _, owner, *_ in found}
    # With several owners, the owner of one table is of no help with the others.
    advice = f"Use the role {min(owners)!r}." if len(owners) == 1 else _SEVERAL_OWNERS
    missing = [
        f"The role {role!r} does not own table {table!r}, which {owner!r} owns, and may not change it. {advice}"
        if len(owners) > 1
        else f"The role {role!r} does not own table {table!r} and may not change it. {advice}"
        for table, owner, role, may_change in found
        if not may_change
    ]
    cursor.execute(
        "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE'), current_user, pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only') = 'on'"
    )
    schema, may_create, role, is_standby, is_read_only = cursor.fetchall()[0]
    if not may_create:
        missing.append(
            f"The role {role!r} may not create tables in schema {schema!r}. Run 'GRANT CREATE ON SCHEMA {schema} TO "
            f"{role}' as its owner, or use another role."
        )
    if is_standby:
        missing.append(
            "The server is a standby, which cannot be written to. Use the primary server."
        )
    elif is_read_only:
        missing.append(
            f"Nothing can be written: default_transaction_read_only is on for this database, the role {role!r} or this "
            "connection. Turn it off for as long as the command runs."
        )
    return missing


def _key(table: Table | None) -> tuple[str, ...]:
    return (
        table.primary_key.columns
        if table is not None and table.primary_key is not None
        else ()
    )


def decide(findings: Findings, *, backup: bool = True) -> Plan:
    """Say what to do about what was found, or why nothing can be done. Asks the database nothing."""
    shape = findings.shape
    notes = _notes(findings)
    if shape.kind is Kind.EMPTY and not shape.problems:
        return Plan(notes=notes)
    if refusals := _refusals(findings):
        return Plan(refusals=refusals, notes=notes)
    names = migration_names()
    is_online = findings.engine == "cockroachdb"
    conform = shape.level != names[-1] or bool(findings.misspelt)
    actions = [
        *(_conforming(findings) if shape.level != names[-1] else ()),
        *_rewriting(findings.misspelt),
        *_recording(shape.recorded, names),
    ]
    if not actions:
        return Plan(notes=notes)
    if findings.engine == "sqlite" and findings.is_file and backup:
        actions.insert(0, "Back the file up beside itself, and check the copy.")
    actions.append(
        "Verify every row and the schema; "
        + (
            "if the command is stopped, run it again to continue."
            if is_online
            else "roll back if anything differs."
        )
    )
    return Plan(
        actions=tuple(actions),
        notes=notes,
        renames={
            stored: name for name, stored in shape.stored_as.items() if stored != name
        },
        conform=conform,
    )


def _rewriting(misspelt: Iterable[Misspelt]) -> Iterator[str]:
    for found in misspelt:
        yield (
            f"Rewrite {counted(found.rows, 'timestamp')} in {found.table}.{found.column} that another program wrote, "
            f"as {found.example!r}."
        )


def _recording(recorded: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name not in recorded:
            yield f"Record migration {name}."


def _text_timestamps(findings: Findings) -> int:
    return sum(
        sum(counts.values())
        for content in findings.contents.values()
        for counts in content.formats.values()
    )


def _conforming(findings: Findings) -> list[str]:
    shape = findings.shape
    actions = [
        f"Rename table {stored} to {name}, as the old server was about to do."
        for name, stored in shape.stored_as.items()
        if stored != name
    ]
    for name in OLD_COLUMNS:
        if name in shape.tables:
            actions += _conforming_columns(
                name, shape.tables[name], findings.contents[name]
            )
            actions += _conforming_constraints(name, shape.tables[name])
        else:
            actions.append(f"Create table {name}, empty.")
    if number := _text_timestamps(findings):
        actions.append(f"Make {counted(number, 'timestamp')} native.")
    actions.append(
        f"Bring columns, defaults, constraints and indexes to what migration {migration_names()[-1]} makes."
    )
    return actions


def _conforming_columns(
    name: str, table: Table, content: TableContent
) -> Iterator[str]:
    added = [column for column in ADDED_COLUMNS[name] if table.column(column) is None]
    if "tenant_id" in added:
        yield f"Add column tenant_id to {name}: 'default' in {counted(content.rows, 'row')}."
    if name == "agents" and ("id" in added or content.null_ids):
        yield f"Give {counted(content.rows if 'id' in added else content.null_ids, 'agent')} an id, a random UUID."
    if _key(table) != ("id",):
        before = f" from {', '.join(_key(table))}" if _key(table) else ""
        yield f"Change the primary key of {name}{before} to id."


def _conforming_constraints(name: str, table: Table) -> Iterator[str]:
    for key in table.foreign_keys:
        if set(key.columns) <= OLD_COLUMNS[name].keys():
            called = f" {key.name}" if key.name else ""
            yield f"Drop the foreign key{called} of {name} to {key.target_table}."
    for check in table.checks:
        if reads_ours(check, table, OLD_COLUMNS[name]):
            called = f" {check.name}" if check.name else ""
            yield f"Drop the check{called} of {name}: {check.expression}."


def _refusals(findings: Findings) -> tuple[Refusal, ...]:
    shape = findings.shape
    refusals = [Refusal(message) for message in (*shape.problems, *findings.obstacles)]
    if shape.kind is Kind.FOREIGN and not shape.tables:
        refusals.append(
            Refusal(
                f"There is none of the four tables in this database, but {counted(len(shape.others), 'other table')}. "
                "Check the database URL, or run 'agentdb migrate' to make the tables beside them."
            )
        )
    bad = [value for content in findings.contents.values() for value in content.bad]
    if bad:
        total = sum(content.bad_total for content in findings.contents.values())
        refusals.append(
            Refusal(
                f"{counted(total, 'value')} cannot be converted{_shown(total, len(bad[:20]))}. Fix "
                f"{'it' if total == 1 else 'them'}, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the command "
                "again.",
                tuple(bad[:20]),
                total,
            )
        )
    for total, rows in findings.duplicates:
        refusals.append(
            Refusal(
                f"{counted(total, 'row')} of {rows[0].table} share {rows[0].column} with another row"
                f"{_shown(total, len(rows))}. Rename or delete all but one, and run the command again.",
                rows,
                total,
            )
        )
    return tuple(refusals)


def _notes(findings: Findings) -> tuple[str, ...]:
    shape = findings.shape
    notes = []
    for name, table in shape.tables.items():
        extra = [
            column.name
            for column in table.columns
            if column.name not in OLD_COLUMNS[name]
        ]
        if extra:
            notes.append(
                f"{name} has additional columns, which stay, and which Db does not show: {', '.join(extra)}."
            )
    for name, rebuilt in REBUILT_AS.items():
        if rebuilt in shape.others and shape.stored_as.get(name) != rebuilt:
            notes.append(
                f"{rebuilt} is left over from an upgrade of the old server that was stopped. {name} has the rows; "
                f"{rebuilt} stays, and may be dropped."
            )
    nul = sum(content.nul_rows for content in findings.contents.values())
    if nul:
        notes.append(
            f"{counted(nul, 'row')} {'holds' if nul == 1 else 'hold'} U+0000 in a text. SQLite keeps it; PostgreSQL "
            "could not store it."
        )
    if _may_have_keyed_hashes(findings):
        notes.append(
            "A later server with a secret (its ASH_CREDENTIAL_KEY) stores API keys as HMAC-SHA256 of it. If it had "
            "one, set AGENTDB_KEY_SECRET to the same value; authenticate() would reject its keys otherwise."
        )
    return tuple(notes)


def _may_have_keyed_hashes(findings: Findings) -> bool:
    keys = findings.contents.get("api_keys")
    return findings.shape.kind is Kind.LATER and keys is not None and keys.rows > 0


def _shown(total: int, shown: int) -> str:
    return f" (the first {shown} are shown)" if total > shown else ""
