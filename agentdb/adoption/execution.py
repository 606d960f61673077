"""Adopts a database in one transaction, which brings it to the models' schema or leaves it as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from django.apps import apps
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.db.transaction import TransactionManagementError

from agentdb.adoption.conforming import conform_table, create_table
from agentdb.adoption.culprits import naming_culprits
from agentdb.adoption.obstacles import OLD_COLUMNS, first_line
from agentdb.adoption.ownership import RECORD, hand_over
from agentdb.adoption.plan import (
    Findings,
    Plan,
    Refusal,
    changing_columns,
    comparable_columns,
    decide,
    makes_ids,
    read,
)
from agentdb.adoption.rehearsal import rehearse
from agentdb.adoption.shapes import APP
from agentdb.adoption.sqlite_backup import back_up_first
from agentdb.adoption.sqlite_rebuild import rename
from agentdb.adoption.timestamps import add_native_text, native_sql
from agentdb.adoption.values import CAST, Progress, checksum, instants, old_columns
from agentdb.conf import server_name
from agentdb.errors import DatabaseUnavailableError, SchemaMismatchError
from agentdb.faults import Fault, classify, describe_failure
from agentdb.models import new_id
from agentdb.schema import Table, drift, read_tables
from agentdb.schema.inspection import (
    check_sqlite_file,
    inspecting,
    sqlite_path,
    translated_errors,
    unless_changed,
)
from agentdb.schema.limits import lifted_limits
from agentdb.schema.migration_lock import (
    LIMIT_LOCK_WAITS,
    event_triggers,
    lock_holders,
    lock_in_transaction,
    migration_lock,
)
from agentdb.schema.migration_record import migration_names
from agentdb.schema.queries import rows, run
from agentdb.schema.sqltext import quote_name

_CACHE_KIB = 32 * 1024
_OWN_COLLATIONS = ("BINARY", "NOCASE", "RTRIM")  # SQLite's
_WAITING = "Another process is changing the schema; waiting for it."
# agents are last: until the sessions are rebuilt, their foreign key protects the agents' key.
_ORDER = ("sessions", "sandboxes", "api_keys", "agents")


class AdoptionRefusedError(SchemaMismatchError):
    """The database was not adopted and is as it was. ``refusals`` says why."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        super().__init__("\n".join(str(refusal) for refusal in refusals))
        self.refusals = refusals


@dataclass(frozen=True)
class Outcome:
    """The result of an adoption; if ``plan`` has no work, nothing was done."""

    findings: Findings
    plan: Plan
    backup: Path | None = None
    checksums: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Listener:
    """What an adoption calls to report its findings and its progress; every part is optional."""

    say: Callable[[str], None] = lambda text: None
    progress: Progress = lambda table, done, total: None
    found: Callable[[Findings, Plan], None] = lambda findings, plan: None


def look(
    alias: str, listener: Listener = Listener(), *, backup: bool = True
) -> Outcome:
    """Return what adopting the database would do, and change nothing.

    On PostgreSQL that is the adoption itself, rolled back. A SQLite file is read through a read-only connection, and
    the schema changes are tried on a copy in memory. On CockroachDB, which can do neither, the schema is only read.
    """
    if connections[alias].vendor == "postgresql":
        return adopt(alias, listener, keep=False)
    return unless_changed(partial(_look, alias, listener, backup=backup))


def _look(alias: str, listener: Listener, *, backup: bool) -> Outcome:
    connection = connections[alias]
    # Under the lock, to see no half-done adoption of another process. Not on CockroachDB: each step of an adoption is
    # visible there anyway, and to take the lock can mean to create its table.
    lock = (
        nullcontext()
        if connection.vendor == "cockroachdb"
        else _lock(connection, listener)
    )
    with translated_errors(connection), lock, inspecting(alias) as reading:
        findings = read(reading, listener.progress)
        plan = _decide(reading, findings, backup=backup)
    listener.found(findings, plan)
    return Outcome(findings, plan)


def _decide(
    connection: BaseDatabaseWrapper, findings: Findings, *, backup: bool
) -> Plan:
    """Decide; on SQLite, also try the schema changes on a copy in memory, before the backup."""
    plan = decide(findings, backup=backup)
    if plan.has_work and connection.vendor == "sqlite":
        refusals = rehearse(
            connection, plan, lambda copy: _act(copy, findings, plan, Listener())
        )
        if refusals:
            return Plan(refusals=refusals, notes=plan.notes)
    return plan


def _lock(
    connection: BaseDatabaseWrapper, listener: Listener
) -> AbstractContextManager[None]:
    return migration_lock(connection, lambda: listener.say(_WAITING))


def adopt(
    alias: str,
    listener: Listener = Listener(),
    *,
    backup: bool = True,
    keep: bool = True,
) -> Outcome:
    """Adopt the database of ``alias``, all or nothing; on CockroachDB in steps, which another run continues.

    Without ``keep`` everything is done and then rolled back. Raises ``AdoptionRefusedError`` or
    ``DatabaseUnavailableError``; then the database is as it was, except for completed steps on CockroachDB.
    """
    connection = connections[alias]
    if (path := sqlite_path(connection)) is not None:
        # Before the lock: there is no reason to wait for it if the file cannot be written to.
        check_sqlite_file(path)
        _check_writable(path)
    with _alone(connection, listener):
        with _refusing(connection):
            not_locked = _lock_tables(connection, listener)
        findings = read(connection, listener.progress)
        plan = _decide(connection, findings, backup=backup)
        listener.found(findings, plan)
        if not plan.has_work:
            _roll_back(connection)  # a COMMIT would write to an empty file
            return Outcome(findings, plan)
        # What was read says it better, as "the role does not own table …"; this is for what it does not explain.
        if not_locked is not None:
            raise not_locked
        copy = None
        if backup:
            copy = back_up_first(connection, listener.say, listener.progress)
        try:
            with _refusing(connection):
                checksums = _change(connection, findings, plan, listener)
        except BaseException:
            # The database is as it was, so its backup is useless.
            if copy is not None:
                copy.unlink(missing_ok=True)
            raise
        if not keep:
            _roll_back(connection)
            return Outcome(findings, plan)
        return Outcome(findings, plan, copy, checksums)


@contextmanager
def _alone(connection: BaseDatabaseWrapper, listener: Listener) -> Iterator[None]:
    """A new connection, the migration lock, and one transaction if the engine allows schema changes in it."""
    vendor = connection.vendor
    # The transaction is inside the lock: it begins after the process that had the lock has ended its own, and the next
    # process gets the lock only after its COMMIT.
    with (
        _one_connection(connection),
        translated_errors(connection),
        lifted_limits(connection, listener.say),
        # On PostgreSQL the transaction takes the lock, so that one connection is enough.
        nullcontext() if vendor == "postgresql" else _lock(connection, listener),
        nullcontext() if vendor == "cockroachdb" else _transaction(connection),
    ):
        yield


def _roll_back(connection: BaseDatabaseWrapper) -> None:
    if connection.in_atomic_block:
        transaction.set_rollback(True, using=connection.alias)


def _change(
    connection: BaseDatabaseWrapper, findings: Findings, plan: Plan, listener: Listener
) -> dict[str, int]:
    """Act and verify; return the checksum of each table."""
    to_instant = _instants(connection, findings)
    # Over the texts as the conversion will read them. The same sum over the converted columns proves every value, and
    # needs no copy of the old rows; both are taken in the transaction, so nobody can write in between.
    before = {
        name: checksum(
            connection,
            name,
            table,
            comparable_columns(name, table),
            to_instant.get(name, CAST),
        )
        for name, table in findings.shape.tables.items()
    }
    if not findings.is_online:  # CockroachDB's temporary tables are experimental
        _remember_ids(connection, findings)
    # What could not be updated before is not the adoption's doing.
    not_updatable = _not_updatable(connection, findings.shape.tables)
    if connection.vendor == "sqlite":
        _stand_in_for_collations(connection, findings)
    changing = changing_columns(findings.shape, findings.wanted)
    # SQLite's rehearsal has named them already. CockroachDB has no transaction in which another try could be made.
    is_server = connection.vendor == "postgresql"
    with naming_culprits(connection, changing) if is_server else nullcontext():
        _act(connection, findings, plan, listener, to_instant, before)
    now = _not_updatable(connection, OLD_COLUMNS)
    if broken := [now[table] for table in now.keys() - not_updatable.keys()]:
        raise _refused(*broken)
    return {name: total for name, (_, total) in before.items()}


def _stand_in_for_collations(
    connection: BaseDatabaseWrapper, findings: Findings
) -> None:
    """Let SQLite parse indexes of other tables whose collations only the operator's program defines.

    Renaming a table parses every index. Nothing is compared, because the other tables are not written to.
    """
    raw = connection.connection
    ours = {name.lower() for name in findings.shape.stored_as.values()}
    found = raw.execute(
        "SELECT DISTINCT lower(m.tbl_name), x.coll FROM sqlite_master m, pragma_index_xinfo(m.name) x"
        " WHERE m.type = 'index' AND x.coll IS NOT NULL"
    )
    for table, collation in found.fetchall():
        if table not in ours and collation.upper() not in _OWN_COLLATIONS:
            raw.create_collation(collation, lambda one, other: 0)


def _instants(connection: BaseDatabaseWrapper, findings: Findings) -> dict[str, str]:
    """Return by table the SQL that converts a timestamp's text, if a cast does not."""
    found = {}
    for name, table in findings.shape.tables.items():
        # A row in a rare format is an odd one, so most tables need no second look.
        if connection.vendor == "postgresql" and findings.contents[name].odd_rows:
            columns = old_columns(connection, name, table)
            texts = [column.name for column in columns if column.is_to_convert]
            found[name] = instants(connection, table.name, texts)
    return found


def _check_writable(path: Path) -> None:
    # The folder too, in which SQLite makes its journal.
    for place, what in (
        (path, f"The database file {str(path)!r}"),
        (path.parent, f"The folder of {str(path)!r}"),
    ):
        if not os.access(place, os.W_OK):
            raise DatabaseUnavailableError(
                f"{what} may not be written to by this user; an adoption needs that. Nothing was changed."
            )


@contextmanager
def _one_connection(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Use a new connection, which no earlier setting affects, and close it at the end.

    It keeps a SQLite file's journal mode, because switching it would change a file that may be refused.
    """
    connection.close()
    before = connection.settings_dict["OPTIONS"]
    if connection.vendor == "sqlite":
        commands = before.get("init_command", "").split(";")
        kept = ";".join(one for one in commands if "journal_mode" not in one)
        connection.settings_dict["OPTIONS"] = {**before, "init_command": kept}
    try:
        yield
    finally:
        connection.settings_dict["OPTIONS"] = before
        connection.close()


@contextmanager
def _refusing(connection: BaseDatabaseWrapper) -> Iterator[None]:
    try:
        yield
    except AdoptionRefusedError:
        raise
    except SchemaMismatchError as error:
        raise _refused(f"{error} {_left(connection)}") from error
    except DatabaseError as error:
        reason = describe_failure(connection, _original(error))
        raise _refused(f"{reason} {_left(connection)}") from error


def _refused(*messages: str) -> AdoptionRefusedError:
    return AdoptionRefusedError(tuple(map(Refusal, messages)))


def _left(connection: BaseDatabaseWrapper) -> str:
    if connection.vendor == "cockroachdb":
        return "Steps that were done stay; run the command again to go on."
    return "Nothing was changed."


def _original(error: DatabaseError) -> DatabaseError:
    """The error that broke the transaction, if this one only says that it is broken."""
    # Once a block within it has failed, Django refuses each further query of the transaction with an error of its own,
    # whose cause is the first one.
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
    # Ids are random, so each row's place in the new key is on another page; the default 2 MiB cache few of them.
    connection.connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    mode = connection.transaction_mode  # type: ignore[attr-defined]
    check_constraints = connection.check_constraints
    # Before the transaction, in which SQLite ignores it. With foreign keys on, a rebuild would delete or refuse rows.
    connection.disable_constraint_checking()
    try:
        connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]
        # IMMEDIATE takes the write lock now: a deferred transaction takes it at its first write, and fails there if
        # another program wrote after its first read. Django checks the foreign keys of every table after each
        # migration. If those of other tables are broken, they were so before.
        connection.check_constraints = lambda *args, **kwargs: None  # type: ignore[method-assign]
        with transaction.atomic(using=connection.alias, durable=True):
            yield
    finally:
        connection.transaction_mode = mode  # type: ignore[attr-defined]
        connection.check_constraints = check_constraints  # type: ignore[method-assign]


def _lock_tables(
    connection: BaseDatabaseWrapper, listener: Listener
) -> DatabaseError | None:
    """Lock the tables; return why this role may not, which the later reading explains."""
    if connection.vendor != "postgresql":
        return None  # SQLite's write lock is on the whole file
    with connection.cursor() as cursor:
        # Each statement must see what was committed while the one before it waited for a lock. Under a role's default
        # of REPEATABLE READ the rows would be those of the moment before the wait.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        lock_in_transaction(connection, lambda: listener.say(_WAITING))
        # The zone of timestamps without one.
        cursor.execute("SET LOCAL TimeZone = 'UTC'")
        # A policy that hides rows must fail, instead of leaving them out of the comparison.
        cursor.execute("SET LOCAL row_security = off")
        cursor.execute(LIMIT_LOCK_WAITS)
        tables = [
            name
            for name, table in read_tables(connection, OLD_COLUMNS).items()
            if table.kind == "table"
        ]
        if not tables:
            return None
        # The strongest lock from the start, although rows are only read at first: a later row would be converted
        # without a check, and raising a weaker lock later can deadlock with a writer.
        try:
            # In a savepoint, because the reading goes on in this transaction if the lock is refused.
            with transaction.atomic(using=connection.alias):
                cursor.execute(
                    f"LOCK TABLE {', '.join(map(quote_name, tables))} IN ACCESS EXCLUSIVE MODE"
                )
        except DatabaseError as error:
            fault = classify(error)
            if fault in (Fault.FORBIDDEN, Fault.READ_ONLY):
                return error
            # Asked at once: the holders may be gone a moment later.
            if fault is Fault.LOCKED and (holders := lock_holders(connection, tables)):
                raise DatabaseUnavailableError(
                    f"The tables in {server_name(connection.settings_dict)} are in use: {'; '.join(holders)}. Stop "
                    f"that, and try again. {_left(connection)}"
                ) from error
            raise
    return None


def _act(
    connection: BaseDatabaseWrapper,
    findings: Findings,
    plan: Plan,
    listener: Listener,
    to_instant: Mapping[str, str] = MappingProxyType({}),
    before: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    for stored, name in plan.renames.items():
        rename(connection, stored, name)
    if plan.conform:
        listener.say("Bringing the tables to their new shape.")
        _conform(connection, findings, listener, to_instant)
    if before is not None:
        # Before recording anything, because on CockroachDB the next run continues one that is stopped here.
        listener.say("Verifying.")
        _verify(connection, findings, before)
    recorder = MigrationRecorder(connection)
    recorder.ensure_schema()
    # After all changes of the schema: until now this role owns the tables that it created, and could change them.
    if connection.vendor == "postgresql":
        hand_over(connection, _made(findings), findings.shape.tables)
    for name in migration_names():
        if name not in findings.shape.recorded:
            recorder.record_applied(APP, name)
    # Last, because event triggers have changed by now whatever they change, the new django_migrations included.
    _verify_schema(connection, findings.wanted, read_tables(connection))


def _made(findings: Findings) -> list[str]:
    """Return the tables that the adoption creates."""
    return [
        name
        for name in (RECORD, *OLD_COLUMNS)
        if name not in findings.live and name not in findings.shape.tables
    ]


def _conform(
    connection: BaseDatabaseWrapper,
    findings: Findings,
    listener: Listener,
    to_instant: Mapping[str, str],
) -> None:
    if connection.vendor == "sqlite":
        connection.connection.create_function("agentdb_new_id", 0, new_id)
        add_native_text(connection)
    models = {
        model._meta.db_table: model for model in apps.get_app_config(APP).get_models()
    }
    with connection.schema_editor(atomic=not findings.is_online) as editor:
        for name in _ORDER:
            table = findings.shape.tables.get(name)
            # On CockroachDB a killed run may have created the table: conform_table() creates it or goes on with it.
            if table is None and not findings.is_online:
                create_table(editor, models[name])
                continue
            sources = {}
            if table is not None:
                template = to_instant.get(name, CAST)
                sources = _sources(connection, name, table, template)
            conform_table(editor, models[name], sources, listener.say)
    if connection.vendor == "postgresql":
        # A column that changed its type has no statistics, and the planner would guess until autovacuum runs.
        run(connection, f"ANALYZE {', '.join(map(quote_name, _ORDER))}")


def _sources(
    connection: BaseDatabaseWrapper, name: str, table: Table, to_instant: str
) -> dict[str, str]:
    """Return SQL for columns that have no value yet, or one of another type or format."""
    sources = {}
    if makes_ids(name, table):
        is_sqlite = connection.vendor == "sqlite"
        fresh = "agentdb_new_id()" if is_sqlite else "gen_random_uuid()::text"
        sources["id"] = f"coalesce(id, {fresh})" if table.column("id") else fresh
    for stored in old_columns(connection, name, table):
        # On SQLite native ones too, because another program may have written them in its own way.
        if stored.kind == "timestamp" and connection.vendor == "sqlite":
            sources[stored.name] = native_sql(stored.sql)
        elif stored.is_to_convert:
            sources[stored.name] = to_instant.format(stored.sql)
    return sources


def _has_ids_to_keep(findings: Findings) -> bool:
    table = findings.shape.tables.get("agents")
    return bool(table and table.column("id") and makes_ids("agents", table))


def _remember_ids(connection: BaseDatabaseWrapper, findings: Findings) -> None:
    """Remember the ids of agents that have one; the checksum omits the column if others have none."""
    if not _has_ids_to_keep(findings):
        return
    source = quote_name(findings.shape.tables["agents"].name)
    # On SQLite it is dropped after the comparison, and is gone with the connection if that does not come.
    end = "" if connection.vendor == "sqlite" else " ON COMMIT DROP"
    run(
        connection,
        f"CREATE TEMPORARY TABLE agentdb_old_ids{end} AS"
        f" SELECT name, id FROM {source} WHERE id IS NOT NULL",
    )


def _changed_ids(connection: BaseDatabaseWrapper, findings: Findings) -> int:
    if findings.is_online or not _has_ids_to_keep(findings):
        return 0
    [(changed,)] = rows(
        connection,
        "SELECT count(*) FROM agentdb_old_ids o"
        " WHERE NOT EXISTS (SELECT 1 FROM agents a WHERE a.id = o.id AND a.name = o.name)",
    )
    run(connection, "DROP TABLE agentdb_old_ids")
    return int(changed)


def _verify(
    connection: BaseDatabaseWrapper,
    findings: Findings,
    before: Mapping[str, tuple[int, int]],
) -> None:
    """Raise ``AdoptionRefusedError`` unless every row is there, unchanged, and agentdb can use what was created."""
    changed = ["agents: other ids"] if _changed_ids(connection, findings) else []
    live = read_tables(connection)
    for name, table in findings.shape.tables.items():
        after = checksum(connection, name, live[name], comparable_columns(name, table))
        if before[name] != after:
            changed.append(
                f"{name}: {before[name][0]:,} rows before, {after[0]:,} after"
            )
    if connection.vendor == "sqlite":
        # Other tables are not compared: the adoption does not touch them, and others may change them meanwhile.
        changed += [
            name
            for name in findings.shape.others
            if live.get(name) != findings.live[name]
        ]
    undone = "" if findings.is_online else ". The transaction was rolled back"
    if changed:
        raise _refused(
            f"The rows differ after the conversion{undone}. Please report this as a bug of "
            f"agentdb. Tables: {'; '.join(changed)}."
        )


def _not_updatable(
    connection: BaseDatabaseWrapper, tables: Iterable[str]
) -> dict[str, str]:
    """Return by table why PostgreSQL refuses updates, for example a publication without the key."""
    reasons = {}
    for table in tables if connection.vendor == "postgresql" else ():
        column = "id" if table != "agents" else "name"  # which every old shape has
        try:
            with transaction.atomic(using=connection.alias):
                # The server checks publications before it reads rows. Rolled back, because a trigger of the operator's
                # for each statement fires without rows too.
                sql = f"UPDATE {quote_name(table)} SET {column} = {column} WHERE false"
                run(connection, sql)
                transaction.set_rollback(True, using=connection.alias)
        except DatabaseError as error:
            diagnosis = getattr(error.__cause__, "diag", None)
            detail = getattr(diagnosis, "message_detail", None) or ""
            reason = f"{first_line(error)} {detail}".rstrip()
            reasons[table] = f"Table {table} could not be updated: {reason}"
    return reasons


def _verify_schema(
    connection: BaseDatabaseWrapper,
    wanted: Mapping[str, Table],
    live: Mapping[str, Table],
) -> None:
    differences = drift(wanted, live)
    if RECORD in live and "row security" in live[RECORD].options:
        differences.append(
            f"Table {RECORD} has row security: agentdb could not read the record of migrations."
        )
    if not differences:
        return
    lines = "".join(f"\n  {difference}" for difference in differences)
    if connection.vendor == "cockroachdb":
        message = f"The tables still differ from the models, and steps that were done stay:{lines}"
    else:
        message = f"The tables would still differ from the models, so nothing was changed:{lines}"
    raise _refused(message, *event_triggers(connection))
