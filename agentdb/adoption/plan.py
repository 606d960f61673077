"""Reads a database, and decides what its adoption has to do. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import OLD_COLUMNS, Refusal, UnusableValues
from agentdb.adoption.progress import SILENT, Progress
from agentdb.adoption.shapes import (
    ADDED_COLUMNS,
    RECORD,
    Kind,
    Shape,
    key_of,
    recognise,
    unique_keys,
)
from agentdb.adoption.steps import is_obsolete_key
from agentdb.adoption.values import (
    TableContent,
    duplicates,
    read_contents,
)
from agentdb.conf import server_name
from agentdb.schema import Table, expected_tables
from agentdb.schema.comparison import never_collides, reads_ours
from agentdb.schema.inspection import server_version, sqlite_path
from agentdb.schema.migration_record import migration_names
from agentdb.schema.queries import rows
from agentdb.schema.rows import Misspelt, misspelt_timestamps, readable_rows
from agentdb.wording import counted


class Findings(NamedTuple):
    """Everything on which the decision depends."""

    engine: str
    place: str  # the file, or database, host and port
    size: int | None  # of the file, in bytes; None without a file
    version: str
    shape: Shape
    wanted: Mapping[str, Table]  # what the models say
    contents: Mapping[str, TableContent]  # by the table's final name
    other_rows: Mapping[str, int]
    misspelt: tuple[Misspelt, ...]
    refusals: tuple[Refusal, ...]  # why it cannot be adopted as it is

    @property
    def is_to_conform(self) -> bool:
        """Whether the tables, or the format of their timestamps, change."""
        return not self.shape.is_latest or bool(self.misspelt)


class Plan(NamedTuple):
    """What to do, as data and as sentences."""

    actions: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()


def read(connection: BaseDatabaseWrapper, progress: Progress = SILENT) -> Findings:
    """Read the schema, the record of migrations and every row of the four tables."""
    shape = recognise(connection)
    wanted = expected_tables(connection, apps)
    # With a problem, such as a missing column, no query over the rows would work, and none is needed to refuse.
    readable = {} if shape.problems else shape.tables
    misspelt = tuple(misspelt_timestamps(connection, readable))
    is_done = shape.is_latest and shape.recorded == migration_names() and not misspelt
    path = sqlite_path(connection)
    contents, unusable = read_contents(connection, readable, progress)
    return Findings(
        engine=connection.vendor,
        place=str(path or _place(connection)),
        size=rows(connection, _FILE_SIZE)[0][0] if path else None,
        version=server_version(connection),
        shape=shape,
        wanted=wanted,
        contents=contents,
        other_rows={
            name: _count_or_zero(connection, shape.live[name]) for name in shape.others
        },
        misspelt=misspelt,
        refusals=tuple(_refusals(connection, shape, wanted, unusable, is_done=is_done)),
    )


def makes_ids(name: str, table: Table) -> bool:
    """Return whether some of the table's rows may get their id in the adoption."""
    column = table.column("id")
    return name == "agents" and (
        column is None or (column.nullable and key_of(table) != ("id",))
    )


def comparable_columns(name: str, table: Table) -> tuple[str, ...]:
    """Return the columns whose values must be equal before and after."""
    # What the database computes from a timestamp changes with its form. An identity's values are stored.
    stored = [
        column.name
        for column in table.columns
        if column.generated in (None, "identity")
    ]
    has_new_ids = makes_ids(name, table)
    return tuple(column for column in stored if not (has_new_ids and column == "id"))


def _refusals(
    connection: BaseDatabaseWrapper,
    shape: Shape,
    wanted: Mapping[str, Table],
    unusable: UnusableValues,
    *,
    is_done: bool,
) -> Iterator[Refusal]:
    yield from map(Refusal, shape.problems)
    if shape.tables and not is_done:
        yield from map(Refusal, _obstacles(connection, shape, wanted))
    if shape.kind is Kind.FOREIGN and not shape.tables:
        yield Refusal(
            f"There is none of the four tables in this database, but {counted(len(shape.others), 'other table')}. "
            "Check the database URL, or run 'agentdb migrate' to create the tables beside them."
        )
    if unusable.total:
        yield Refusal.unconvertible(unusable)
    if not shape.problems:
        yield from _duplicates(connection, shape.tables, wanted)


def _duplicates(
    connection: BaseDatabaseWrapper,
    tables: Mapping[str, Table],
    wanted: Mapping[str, Table],
) -> Iterator[Refusal]:
    for name, table in tables.items():
        for key in unique_keys(wanted[name]):
            columns = [each.name for each in wanted[name].columns if each.name in key]
            # A missing tenant_id will be the same for all rows, so it does not matter.
            if present := list(filter(table.column, columns)):
                found = duplicates(connection, name, table, present)
                if found.total:
                    yield Refusal.about(
                        found,
                        f"{counted(found.total, 'row')} of {name} share {', '.join(present)} with another row"
                        f"{found.more}. Rename or delete all but one, and run the command again.",
                    )


def _count_or_zero(connection: BaseDatabaseWrapper, table: Table) -> int:
    """Return the rows of a table that is not ours; zero if it is a view, or this role may not read them all."""
    return readable_rows(connection, table.name) if table.kind == "table" else 0


def _place(connection: BaseDatabaseWrapper) -> str:
    is_sqlite = connection.vendor == "sqlite"
    return "in memory" if is_sqlite else server_name(connection.settings_dict)


_FILE_SIZE = (
    "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
)


def _obstacles(
    connection: BaseDatabaseWrapper,
    shape: Shape,
    wanted: Mapping[str, Table],
) -> list[str]:
    """Return what around the tables, or in the role's rights, would make an adoption fail."""
    obstacles = [
        *_keys_to_names(shape),
        *_too_unique_keys(shape, wanted),
    ]
    if connection.vendor == "postgresql":
        stored = list(shape.stored_as.values())
        found = rows(connection, _SERVER_OBSTACLES, [stored])
        if RECORD in shape.live:
            found += rows(connection, _BEHIND)
        obstacles += [sentence for *_, sentence in found]
    return obstacles


def _keys_to_names(shape: Shape) -> Iterator[str]:
    """Foreign keys of other tables to the name of an agent, which is not a key afterwards."""
    if key_of(shape.tables.get("agents")) != ("name",):
        return
    for name in shape.others:
        for key in shape.live[name].foreign_keys:
            # SQLite's REFERENCES without columns is one to the primary key.
            if key.target_table == "agents" and key.target_columns in (("name",), ()):
                yield (
                    f"Table {name!r} has a foreign key to the name of agents, which several tenants may use once it is "
                    "adopted. Drop the foreign key."
                )


def _too_unique_keys(shape: Shape, wanted: Mapping[str, Table]) -> Iterator[str]:
    """Return other unique keys, which could refuse what agentdb writes."""
    for name, table in shape.tables.items():
        ours = unique_keys(wanted[name])
        for key in table.keys:
            # A condition makes it another key than the columns alone.
            is_ours = key.names in ours and not key.condition
            # A half-built index with the name of one of ours is dropped.
            is_dropped = not key.valid and wanted[name].index(key.name)
            is_harmless = never_collides(key, table, OLD_COLUMNS[name])
            if not (is_ours or is_dropped or is_harmless):
                called = f" {key.name!r}" if key.name else ""
                yield (
                    f"Table {name!r} has a {key.kind}{called}, which could refuse what agentdb writes. Drop it, or "
                    "make it one that is not unique."
                )


# Whether the record's sequence would give an id that a row already has, as after a restore that copied rows with their
# ids. Recording a migration would then fail as a duplicate key, at the very end.
_BEHIND = f"""
    SELECT 'The sequence of {RECORD}.id is behind its rows. Run "SELECT setval(''' || sequence || ''', max(id)) FROM '
        || '{RECORD}", and run the command again.'
    FROM pg_get_serial_sequence('{RECORD}', 'id') sequence
    WHERE sequence IS NOT NULL
        AND (SELECT max(id) FROM {RECORD}) > coalesce(pg_sequence_last_value(sequence::regclass), 0)
"""

# What this role or this server may not do, tables that lose or hide rows, and names in the way, a sentence each, in
# ASCII: the server may not know other characters. With several owners, the owner of one table cannot change the others.
_SERVER_OBSTACLES = """
    WITH ours AS (
        SELECT *, pg_get_userbyid(relowner) AS owner, pg_has_role(relowner, 'USAGE') AS may_change
        FROM pg_class WHERE relname = ANY(%s) AND relnamespace = quote_ident(current_schema())::regnamespace
    ),
    owners AS (SELECT count(DISTINCT owner) > 1 AS are_several FROM ours)
    SELECT 1, relname, 'The role ' || quote_literal(current_user) || ' does not own table ' || quote_literal(relname)
        || CASE WHEN are_several THEN ', which ' || quote_literal(owner) || ' owns,' ELSE '' END
        || ' and may not change it. '
        || CASE WHEN are_several THEN 'The tables have several owners: use a role that is a member of all of them, or '
            || 'give the tables to one with ''ALTER TABLE ... OWNER TO''.'
            ELSE 'Use the role ' || quote_literal(owner) || '.' END
    FROM ours, owners WHERE NOT may_change
    UNION ALL
    SELECT 2, '', 'The role ' || quote_literal(current_user) || ' may not create tables in schema '
        || quote_literal(current_schema()) || '. Run ''GRANT CREATE ON SCHEMA ' || quote_ident(current_schema())
        || ' TO ' || quote_ident(current_user) || ''' as its owner, or use another role.'
    WHERE NOT has_schema_privilege(current_schema(), 'CREATE')
    UNION ALL
    SELECT 3, '', 'The server is a standby, which cannot be written to. Use the primary server.'
    WHERE pg_is_in_recovery()
    UNION ALL
    SELECT 3, '', 'Nothing can be written: default_transaction_read_only is on for this database, the role '
        || quote_literal(current_user) || ' or this connection. Turn it off for as long as the command runs.'
    WHERE NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'on'
    UNION ALL
    SELECT 4, relname, 'Table ' || quote_literal(relname) || ' is unlogged: PostgreSQL empties it after a crash. Run '
        || '''ALTER TABLE ' || relname || ' SET LOGGED''.'
    FROM ours WHERE relpersistence = 'u'
    UNION ALL
    SELECT 4, relname, 'Table ' || quote_literal(relname) || ' has row security, which hides rows and refuses inserts. '
        || 'Run ''ALTER TABLE ' || relname || ' DISABLE ROW LEVEL SECURITY''; its policies stay.'
    FROM ours WHERE relrowsecurity
    UNION ALL
    -- The server would give a new table's key another name instead of refusing it.
    SELECT 5, c.relname, CASE WHEN i.indrelid IS NULL THEN 'Relation ' ELSE 'Index ' END || quote_literal(c.relname)
        || coalesce(' of table ' || quote_literal(i.indrelid::regclass::text), '') || ' has a name that agentdb needs. '
        || 'Rename it.'
    FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN ours ON ours.oid = i.indrelid
    WHERE c.relname ~ '^((agents|sessions|sandboxes|api_keys)_pkey|api_keys_key_hash_key)$' AND ours.oid IS NULL
        AND c.relnamespace = quote_ident(current_schema())::regnamespace
    UNION ALL
    -- What about a table, whatever its columns, prevents changing them.
    SELECT 6, relname, 'Rule ' || quote_literal(rulename) || ' on table ' || quote_literal(relname) ||
        ' stands in the way of converting its columns. Drop it and run the command again.'
    FROM pg_rewrite JOIN ours ON ours.oid = ev_class WHERE rulename <> '_RETURN'
    UNION ALL
    SELECT 6, c.relname, 'Table ' || quote_literal(c.relname) || ' inherits from table ' || quote_literal(p.relname) ||
        ', so that its rows are also those of the other. End that with ALTER TABLE, NO INHERIT or DETACH PARTITION.'
    FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid JOIN pg_class p ON p.oid = inhparent
    WHERE c.oid IN (SELECT oid FROM ours) OR p.oid IN (SELECT oid FROM ours)
    UNION ALL
    SELECT 6, relname, 'Table ' || quote_literal(relname) || ' is made of the type ' || reloftype::regtype ||
        ', which fixes its columns. Run ''ALTER TABLE ' || quote_ident(relname) || ' NOT OF''.'
    FROM ours WHERE reloftype <> 0
    ORDER BY 1, 2
"""


def decide(findings: Findings, *, backup: bool = True) -> Plan:
    """Return what to do, or why nothing can be done. Does not query the database."""
    shape, notes = findings.shape, _notes(findings)
    if findings.refusals:
        return Plan(refusals=findings.refusals, notes=notes)
    actions = list(_actions(findings))
    if shape.kind is Kind.EMPTY or not actions:
        return Plan(notes=notes)
    # Before anything else, although it takes longest: a copy that is made later is one of a file half changed.
    if findings.size is not None and backup:
        actions.insert(0, "Back the file up beside itself, and check the copy.")
    actions.append(_VERIFY_ONLINE if findings.engine == "cockroachdb" else _VERIFY)
    return Plan(tuple(actions), notes=notes)


def _actions(findings: Findings) -> Iterator[str]:
    if not findings.shape.is_latest:
        yield from _conforming(findings)
    yield from _rewriting(findings.misspelt)
    for name in migration_names():
        if name not in findings.shape.recorded:
            yield f"Record migration {name}."


_VERIFY = "Verify every row and the schema; roll back if anything differs."
_VERIFY_ONLINE = "Verify every row and the schema; if the command is stopped, run it again to continue."


def _rewriting(misspelt: Iterable[Misspelt]) -> Iterator[str]:
    for found in misspelt:
        yield (
            f"Rewrite {counted(found.rows, 'timestamp')} in {found.table}.{found.column} that another program wrote, "
            f"as {found.example!r}."
        )


def _conforming(findings: Findings) -> list[str]:
    shape = findings.shape
    actions = [
        f"Rename table {stored} to {name}, as the old server was about to do."
        for stored, name in shape.renames.items()
    ]
    for name in OLD_COLUMNS:
        if name in shape.tables:
            actions += _conforming_columns(
                name, shape.tables[name], findings.contents[name]
            )
            actions += _conforming_constraints(name, shape.tables[name])
        else:
            actions.append(f"Create table {name}, empty.")
    number = sum(
        counts.total()
        for content in findings.contents.values()
        for counts in content.formats.values()
    )
    if number:
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
    if key_of(table) != ("id",):
        before = f" from {', '.join(key_of(table))}" if key_of(table) else ""
        yield f"Change the primary key of {name}{before} to id."


def _conforming_constraints(name: str, table: Table) -> Iterator[str]:
    for key in table.foreign_keys:
        if is_obsolete_key(key, OLD_COLUMNS[name]):
            called = f" {key.name}" if key.name else ""
            yield f"Drop the foreign key{called} of {name} to {key.target_table}."
    for check in table.checks:
        if reads_ours(check, table, OLD_COLUMNS[name]):
            called = f" {check.name}" if check.name else ""
            yield f"Drop the check{called} of {name}: {check.expression}."


def _notes(findings: Findings) -> tuple[str, ...]:
    return (
        *_extra_columns(findings.shape),
        *_keyed_hashes(findings),
    )


def _extra_columns(shape: Shape) -> Iterator[str]:
    for name, table in shape.tables.items():
        known = OLD_COLUMNS[name]
        extra = [each.name for each in table.columns if each.name not in known]
        if extra:
            yield f"{name} has additional columns, which stay, and which Db does not show: {', '.join(extra)}."


def _keyed_hashes(findings: Findings) -> Iterator[str]:
    keys = findings.contents.get("api_keys")
    if findings.shape.kind is Kind.LATER and keys is not None and keys.rows > 0:
        yield (
            "A later server with a secret (its ASH_CREDENTIAL_KEY) stores API keys as HMAC-SHA256 of it. If it had "
            "one, set AGENTDB_KEY_SECRET to the same value; authenticate() would reject its keys otherwise."
        )
