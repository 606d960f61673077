"""Adopting a database: one transaction that brings it to the models' schema, or leaves it as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from django.apps import apps
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.transaction import TransactionManagementError

from agentdb.adoption.conforming import conform_table, create_table
from agentdb.adoption.obstacles import OLD_COLUMNS
from agentdb.adoption.online import TO_NATIVE, conform_models_online
from agentdb.adoption.ownership import RECORD, hand_over
from agentdb.adoption.plan import (
    Findings,
    Plan,
    Refusal,
    comparable_columns,
    decide,
    makes_ids,
    read,
)
from agentdb.adoption.rehearsal import rehearse
from agentdb.adoption.shapes import APP, INITIAL, NATIVE, NATIVE_TIMESTAMP_TYPES, drift, later_indexes, state_apps
from agentdb.adoption.sqlite_backup import back_up
from agentdb.adoption.timestamps import add_native_text, native_sql
from agentdb.adoption.values import Progress, known_usable, read_checksum
from agentdb.errors import DatabaseUnavailableError, SchemaMismatchError
from agentdb.faults import describe_failure
from agentdb.models import new_id
from agentdb.schema import Table, expected_tables, read_tables
from agentdb.schema.inspection import (
    ChangedMeanwhileError,
    check_sqlite_file,
    inspecting,
    sqlite_path,
    translated_errors,
)
from agentdb.schema.migration_lock import LIMIT_LOCK_WAITS, migration_lock
from agentdb.schema.sqltext import quote_name

_LOOKS = 3
_CACHE_KIB = 32 * 1024
# agents come last: until the sessions are rebuilt, their foreign key holds the key of the agents.
_ORDER = ("sessions", "sandboxes", "api_keys", "agents")


class AdoptionRefusedError(SchemaMismatchError):
    """The database was not adopted and is as it was. ``refusals`` says why."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        super().__init__("\n".join(str(refusal) for refusal in refusals))
        self.refusals = refusals


@dataclass(frozen=True)
class Outcome:
    """What an adoption did: nothing, if ``plan`` has no work."""

    findings: Findings
    plan: Plan
    backup: Path | None = None
    checksums: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Listener:
    """Where an adoption says how far it is; every part may be left out."""

    say: Callable[[str], None] = lambda text: None
    progress: Progress = lambda table, done, total: None


def look(alias: str, listener: Listener = Listener(), *, backup: bool = True) -> tuple[Findings, Plan]:
    """Read the database of ``alias`` through a read-only connection, and decide."""
    connection = connections[alias]
    for attempt in range(_LOOKS):
        try:
            # Under the lock, because a look in the middle of another process's adoption would see half of each.
            with translated_errors(connection), _lock(connection, listener), inspecting(alias) as reading:
                findings = read(reading, listener.progress)
                return findings, _decide(reading, findings, backup=backup)
        except ChangedMeanwhileError:
            if attempt == _LOOKS - 1:
                raise
    raise AssertionError("unreachable: the last look returns or raises")


def _decide(connection: BaseDatabaseWrapper, findings: Findings, *, backup: bool) -> Plan:
    """Decide, and try on a copy of the schema what was decided, so that it does not fail half-way."""
    plan = decide(findings, backup=backup)
    if plan.has_work and (refusals := rehearse(connection, findings.shape, plan, _act_on_schema(findings, plan))):
        return Plan(refusals=refusals, notes=plan.notes)
    return plan


def _act_on_schema(findings: Findings, plan: Plan) -> Callable[[BaseDatabaseWrapper], None]:
    def act(connection: BaseDatabaseWrapper) -> None:
        _act(connection, findings, plan, Listener())
        _verify_schema(connection, read_tables(connection))

    return act


def _lock(connection: BaseDatabaseWrapper, listener: Listener) -> AbstractContextManager[None]:
    return migration_lock(connection, lambda: listener.say("Another process is changing the schema; waiting for it."))


def adopt(alias: str, listener: Listener = Listener(), *, backup: bool = True) -> Outcome:
    """Adopt the database of ``alias``, all of it or nothing; on CockroachDB step by step, and another run goes on.

    Raises ``AdoptionRefusedError`` or ``DatabaseUnavailableError``; then the database is as it was, but for the steps.
    """
    connection = connections[alias]
    if (path := sqlite_path(connection)) is not None:
        check_sqlite_file(path)
        _check_writable(path)
    with (
        _one_connection(connection),
        _refusing(connection),
        _lock(connection, listener),
        # Each schema change on CockroachDB is a transaction of its own.
        nullcontext() if connection.vendor == "cockroachdb" else _transaction(connection),
    ):
        _lock_tables(connection)
        # Again, because the tables may have changed since they were looked at.
        findings = read(connection, listener.progress, checksums=True)
        plan = _decide(connection, findings, backup=backup)
        if plan.refusals:
            raise AdoptionRefusedError(plan.refusals)
        if not plan.has_work:
            return Outcome(findings, plan)
        copy = None
        if path is not None and backup:
            listener.say("Backing up.")
            timeout = float(connection.settings_dict["OPTIONS"].get("timeout", 5.0))
            copy = back_up(path, lambda done, total: listener.progress("backup", done, total), timeout_seconds=timeout)
        try:
            if connection.vendor != "cockroachdb":  # whose temporary tables are experimental
                _remember_ids(connection, findings)
            _act(connection, findings, plan, listener)
            listener.say("Comparing.")
            _verify(connection, findings, listener)
        except BaseException:
            # The database is as it was, so the copy of it is of no use to anybody.
            if copy is not None:
                copy.unlink(missing_ok=True)
            raise
        checksums = {name: content.checksum or 0 for name, content in findings.contents.items()}
        return Outcome(findings, plan, copy, checksums)


def _check_writable(path: Path) -> None:
    for place, what in ((path, f"The database file {str(path)!r}"), (path.parent, f"The folder of {str(path)!r}")):
        if not os.access(place, os.W_OK):
            raise DatabaseUnavailableError(
                f"{what} may not be written to by this user; an adoption needs that. Nothing was changed."
            )


@contextmanager
def _one_connection(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Begin with a fresh connection, so that nothing set before has an influence, and leave none behind."""
    connection.close()
    try:
        yield
    finally:
        connection.close()


@contextmanager
def _refusing(connection: BaseDatabaseWrapper) -> Iterator[None]:
    try:
        yield
    except AdoptionRefusedError:
        raise
    except SchemaMismatchError as error:
        raise AdoptionRefusedError((Refusal(f"{error} {_left(connection)}"),)) from error
    except DatabaseError as error:
        reason = describe_failure(connection, _original(error))
        raise AdoptionRefusedError((Refusal(f"{reason} {_left(connection)}"),)) from error


def _left(connection: BaseDatabaseWrapper) -> str:
    if connection.vendor == "cockroachdb":
        return "Steps that were done stay; run the command again to go on."
    return "Nothing was changed."


def _undone(connection: BaseDatabaseWrapper) -> str:
    return "" if connection.vendor == "cockroachdb" else ", so everything was undone and nothing is changed"


def _original(error: DatabaseError) -> DatabaseError:
    """The error that broke the transaction, where this one only says that it is broken."""
    found: BaseException | None = error
    while isinstance(found, TransactionManagementError):
        found = found.__cause__ or found.__context__
    return found if isinstance(found, DatabaseError) else error


@contextmanager
def _transaction(connection: BaseDatabaseWrapper) -> Iterator[None]:
    if connection.vendor != "sqlite":
        with transaction.atomic(using=connection.alias, durable=True):
            yield
        return
    connection.ensure_connection()
    # Ids are random, so that each row's place in the new key is another page; the usual 2 MiB hold few of them.
    connection.connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    mode = connection.transaction_mode  # type: ignore[attr-defined]
    check_constraints = connection.check_constraints
    # SQLite ignores this inside a transaction, and with foreign keys on a rebuild would delete or refuse rows.
    connection.disable_constraint_checking()
    try:
        connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]
        # Django looks at the foreign keys of every table after each migration. Those of tables that are not ours were
        # broken before, if they are.
        connection.check_constraints = lambda *args, **kwargs: None  # type: ignore[method-assign]
        with transaction.atomic(using=connection.alias, durable=True):
            yield
    finally:
        connection.transaction_mode = mode  # type: ignore[attr-defined]
        connection.check_constraints = check_constraints  # type: ignore[method-assign]


def _lock_tables(connection: BaseDatabaseWrapper) -> None:
    if connection.vendor != "postgresql":
        return  # SQLite's write lock is on the whole file
    tables = [name for name in read_tables(connection, OLD_COLUMNS) if name in OLD_COLUMNS]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        # A policy that hides rows from this role must fail, not have them left out of the comparison.
        cursor.execute("SET LOCAL row_security = off")
        cursor.execute(LIMIT_LOCK_WAITS)
        if tables:
            quoted = ", ".join(map(quote_name, tables))
            cursor.execute(f"LOCK TABLE {quoted} IN ACCESS EXCLUSIVE MODE")


def _act(connection: BaseDatabaseWrapper, findings: Findings, plan: Plan, listener: Listener) -> None:
    for stored, name in plan.renames.items():
        _rename(connection, stored, name)
    if plan.conform_to is not None:
        listener.say(f"Bringing the tables to what migration {plan.conform_to} makes.")
        _conform(connection, findings, plan.conform_to, listener)
    recorder = MigrationRecorder(connection)
    recorder.ensure_schema()
    if connection.vendor == "postgresql":
        made = [
            name for name in (RECORD, *OLD_COLUMNS) if name not in findings.live and name not in findings.shape.tables
        ]
        hand_over(connection, made, findings.shape.tables)
    for name in findings.shape.recorded:
        if name not in plan.record:
            recorder.record_unapplied(APP, name)
    for name in plan.record:
        if name not in findings.shape.recorded:
            recorder.record_applied(APP, name)
    if plan.apply:
        with known_usable(connection):
            MigrationExecutor(connection, _announcing(listener)).migrate([(APP, plan.apply[-1])])


def _announcing(listener: Listener) -> Callable[..., None]:
    def announce(action: str, migration: object = None, fake: bool = False) -> None:
        if action == "apply_start":
            listener.say(f"Applying {migration}.")

    return announce


def _rename(connection: BaseDatabaseWrapper, stored: str, name: str) -> None:
    quote = quote_name
    with connection.cursor() as cursor:
        # Otherwise the rename fails on any view that names the missing table.
        cursor.execute("PRAGMA legacy_alter_table = ON")
        cursor.execute(f"ALTER TABLE {quote(stored)} RENAME TO {quote(name)}")
        cursor.execute("PRAGMA legacy_alter_table = OFF")


def _conform(connection: BaseDatabaseWrapper, findings: Findings, level: str, listener: Listener) -> None:
    state = state_apps(level)
    models = {model._meta.db_table: model for model in state.get_models() if model._meta.app_label == APP}
    if connection.vendor == "cockroachdb":
        sources = {name: _sources(connection, name, table, level) for name, table in findings.shape.tables.items()}
        ordered = [models[name] for name in _ORDER]
        conform_models_online(connection, state, ordered, TO_NATIVE, sources, listener.say)
        return
    if connection.vendor == "sqlite":
        connection.connection.create_function("agentdb_new_id", 0, new_id)
        add_native_text(connection)
    with connection.schema_editor() as editor:
        for index in later_indexes(connection, level, read_tables(connection, OLD_COLUMNS)):
            editor.execute(f"DROP INDEX {quote_name(index)}")
        for name in _ORDER:
            table = findings.shape.tables.get(name)
            if table is None:
                create_table(editor, models[name])
            else:
                conform_table(editor, models[name], _sources(connection, name, table, level))


def _sources(connection: BaseDatabaseWrapper, name: str, table: Table, level: str) -> dict[str, str]:
    """SQL for the columns that have no value yet, or one in the form of a later migration."""
    sources = {}
    if name == "agents":
        fresh = "agentdb_new_id()" if connection.vendor == "sqlite" else "gen_random_uuid()::text"
        column = table.column("id")
        if column is None:
            sources["id"] = fresh
        elif makes_ids(name, table):
            sources["id"] = f"coalesce(id, {fresh})"
    for column in table.columns:
        if OLD_COLUMNS[name].get(column.name) != "timestamp":
            continue
        is_native = column.type in NATIVE_TIMESTAMP_TYPES[connection.vendor]
        if connection.vendor == "sqlite":
            if is_native or level >= NATIVE:
                sources[column.name] = native_sql(quote_name(column.name))
        elif is_native and level == INITIAL:
            sources[column.name] = (
                f"to_char({quote_name(column.name)} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'"
            )
    return sources


def _remember_ids(connection: BaseDatabaseWrapper, findings: Findings) -> None:
    """Keep the ids that some agents have already; the checksum leaves the column out when others have none."""
    table = findings.shape.tables.get("agents")
    if table is None or table.column("id") is None or not makes_ids("agents", table):
        return
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TEMPORARY TABLE agentdb_old_ids {'' if connection.vendor == 'sqlite' else 'ON COMMIT DROP '}"
            f"AS SELECT name, id FROM {quote_name(table.name)} WHERE id IS NOT NULL"
        )


def _changed_ids(connection: BaseDatabaseWrapper, findings: Findings) -> int:
    table = findings.shape.tables.get("agents")
    if table is None or table.column("id") is None or not makes_ids("agents", table):
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM agentdb_old_ids o"
            " WHERE NOT EXISTS (SELECT 1 FROM agents a WHERE a.id = o.id AND a.name = o.name)"
        )
        changed = int(cursor.fetchone()[0])
        cursor.execute("DROP TABLE agentdb_old_ids")
    return changed


def _verify(
    connection: BaseDatabaseWrapper,
    findings: Findings,
    listener: Listener,
) -> None:
    """Raise ``AdoptionRefusedError`` unless the schema is the models' and every row is there, unchanged."""
    changed_ids = 0 if connection.vendor == "cockroachdb" else _changed_ids(connection, findings)
    live = read_tables(connection)
    _verify_schema(connection, live)
    changed = ["agents: other ids"] if changed_ids else []
    for name, table in findings.shape.tables.items():
        before = findings.contents[name]
        columns = comparable_columns(name, table)
        after = read_checksum(connection, name, live[name], columns, progress=listener.progress)
        if (before.rows, before.checksum) != after:
            changed.append(f"{name}: {before.rows:,} rows before, {after[0]:,} after")
    if connection.vendor == "sqlite":
        # The rows of other tables are not touched, and on a server others may change them or their tables meanwhile.
        changed += [name for name in findings.shape.others if live.get(name) != findings.live[name]]
    if changed:
        raise AdoptionRefusedError(
            (
                Refusal(
                    f"The rows were not the same afterwards{_undone(connection)}. Please report this as a bug of "
                    f"agentdb. Tables: {'; '.join(changed)}."
                ),
            )
        )


def _verify_schema(connection: BaseDatabaseWrapper, live: Mapping[str, Table]) -> None:
    if differences := drift(expected_tables(connection, apps), live):
        lines = "".join(f"\n  {difference}" for difference in differences)
        raise AdoptionRefusedError(
            (
                Refusal(
                    f"The tables still differ from the models, and steps that were done stay:{lines}"
                    if connection.vendor == "cockroachdb"
                    else f"The tables would still differ from the models, so nothing was changed:{lines}"
                ),
            )
        )
