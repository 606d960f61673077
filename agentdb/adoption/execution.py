"""Adopts a database in one transaction, which brings it to the models' schema or leaves it as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from pathlib import Path
from typing import NamedTuple

from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from agentdb.adoption.change import change_of
from agentdb.adoption.obstacles import (
    BUILT_AROUND,
    OLD_COLUMNS,
    AdoptionRefusedError,
    refusing,
)
from agentdb.adoption.plan import Findings, Plan, decide, read
from agentdb.adoption.progress import SILENT, Progress
from agentdb.adoption.sqlite_backup import back_up_first
from agentdb.conf import server_name
from agentdb.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    SchemaMismatchError,
)
from agentdb.faults import Fault, classify, describe_failure, said_by_server
from agentdb.schema import read_tables
from agentdb.schema.inspection import (
    check_sqlite_file,
    inspecting,
    kept_commands,
    sqlite_path,
    translated_errors,
    unless_changed,
)
from agentdb.schema.migration_lock import (
    LIMIT_LOCK_WAITS,
    lock_holders,
    lock_in_transaction,
    migration_lock,
)
from agentdb.schema.queries import lifted_limits, quote_name, rows, run

_LARGE_CACHE = "PRAGMA cache_size = -32768"  # KiB
_PERHAPS_ADOPTED = (
    "The database may be adopted all the same: run the command again, which says so."
)
_WAITING = "Another process is changing the schema; waiting for it."

Found = Callable[[Findings, Plan], None]


class Outcome(NamedTuple):
    """The result of an adoption; if ``plan`` has no actions, nothing was done."""

    findings: Findings
    plan: Plan
    backup: Path | None = None
    checksums: Mapping[str, str] = {}


def look(
    alias: str,
    progress: Progress,
    found: Found,
    *,
    backup: bool,
) -> Outcome:
    """Return what adopting the database would do, and change nothing. ``found`` gets the decision first.

    On PostgreSQL that is the adoption itself, rolled back. A SQLite file is read through a read-only connection, and
    the schema changes are tried on a copy in memory. On CockroachDB, which can do neither, the schema is only read.
    """
    if connections[alias].vendor == "postgresql":
        return adopt(alias, progress, found, backup=backup, keep=False)
    return unless_changed(partial(_look, alias, progress, found, backup=backup))


def _look(alias: str, progress: Progress, found: Found, *, backup: bool) -> Outcome:
    connection = connections[alias]
    # Under the lock, to see no half-done adoption of another process. Not on CockroachDB: each step of an adoption is
    # visible there anyway, and to take the lock can mean to create its table.
    lock = (
        nullcontext()
        if connection.vendor == "cockroachdb"
        else _lock(connection, progress)
    )
    with translated_errors(connection), lock, inspecting(alias) as reading:
        findings = read(reading, progress)
        plan = _decide(reading, findings, backup=backup)
    found(findings, plan)
    return Outcome(findings, plan)


def _decide(
    connection: BaseDatabaseWrapper, findings: Findings, *, backup: bool
) -> Plan:
    """Decide; on SQLite, also try the schema changes on a copy in memory, before the backup."""
    plan = decide(findings, backup=backup)
    if connection.vendor == "sqlite" and plan.actions:
        try:
            _rehearse(connection, findings)
        except AdoptionRefusedError as error:
            return Plan(refusals=error.refusals, notes=plan.notes)
    return plan


def _lock(
    connection: BaseDatabaseWrapper, progress: Progress
) -> AbstractContextManager[None]:
    return migration_lock(connection, lambda: progress.say(_WAITING))


def adopt(
    alias: str,
    progress: Progress,
    found: Found,
    *,
    backup: bool,
    keep: bool = True,
) -> Outcome:
    """Adopt the database of ``alias``, all or nothing; on CockroachDB in steps, which another run continues.

    Without ``keep`` everything is done and then rolled back. Raises ``AdoptionRefusedError`` or
    ``DatabaseUnavailableError``; then the database is as it was, except for completed steps on CockroachDB.
    """
    connection = connections[alias]
    if (path := sqlite_path(connection)) is not None:
        _check_writable(path)
    copy = outcome = None
    try:
        with _alone(connection, progress):
            with _refusing(connection):
                not_locked = _lock_tables(connection, progress)
            findings = read(connection, progress)
            plan = _decide(connection, findings, backup=backup)
            found(findings, plan)
            if not plan.actions:
                _roll_back(connection)  # a COMMIT would write to an empty file
                return Outcome(findings, plan)
            # What was read says it better, as "the role does not own table …"; this is for what it does not explain.
            if not_locked is not None:
                raise not_locked
            if backup:
                copy = back_up_first(connection, progress)
            with _refusing(connection):
                checksums = change_of(connection, findings, progress).run()
            if not keep:
                _roll_back(connection)
                return Outcome(findings, plan)
            outcome = Outcome(findings, plan, copy, checksums)
    except BaseException as error:
        # From the COMMIT on only a refusal says that nothing was stored. Ctrl-C may come while it writes.
        if outcome is None or isinstance(error, AdoptionRefusedError):
            _discard(copy)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_PERHAPS_ADOPTED) from None
        raise
    return outcome


def _check_writable(path: Path) -> None:
    check_sqlite_file(path)
    # SQLite says so too late: it has made a log beside the file.
    if not os.access(path, os.W_OK):
        raise DatabaseUnavailableError(
            f"The database file {str(path)!r} is read-only. Allow writing to it and to its folder, and try again. "
            "Nothing was changed."
        )


def _discard(copy: Path | None) -> None:
    # The database is as it was, so its backup is useless.
    if copy is not None:
        copy.unlink(missing_ok=True)


@contextmanager
def _alone(connection: BaseDatabaseWrapper, progress: Progress) -> Iterator[None]:
    """A new connection, the migration lock, and one transaction if the engine allows schema changes in it."""
    vendor = connection.vendor
    # The transaction is inside the lock: it begins after the process that had the lock has ended its own, and the next
    # process gets the lock only after its COMMIT.
    with (
        _one_connection(connection),
        translated_errors(connection),
        lifted_limits(connection, progress.say),
        # On PostgreSQL the transaction takes the lock, so that one connection is enough.
        nullcontext() if vendor == "postgresql" else _lock(connection, progress),
        nullcontext() if vendor == "cockroachdb" else _transaction(connection),
    ):
        yield


def _roll_back(connection: BaseDatabaseWrapper) -> None:
    if connection.in_atomic_block:
        transaction.set_rollback(True, using=connection.alias)


@contextmanager
def _one_connection(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Use a new connection, which no earlier setting affects, and close it at the end.

    It keeps a SQLite file's journal mode, because switching it would change a file that may be refused.
    """
    connection.close()
    before = connection.settings_dict["OPTIONS"]
    if connection.vendor == "sqlite":
        connection.settings_dict["OPTIONS"] = {
            **before,
            # Ids are random, so each row's place in the new key is on another page; the default 2 MiB cache few of
            # them.
            "init_command": ";".join([*kept_commands(connection), _LARGE_CACHE]),
            # The write lock now: a deferred transaction takes it at its first write, and fails there if another
            # program wrote after its first read.
            "transaction_mode": "IMMEDIATE",
        }
    try:
        yield
    finally:
        connection.settings_dict["OPTIONS"] = before
        connection.close()


@contextmanager
def _refusing(connection: BaseDatabaseWrapper) -> Iterator[None]:
    try:
        yield
    except SchemaMismatchError as error:
        raise AdoptionRefusedError.of(str(error), _left(connection)) from error
    except DatabaseError as error:
        reason = describe_failure(connection, _original(error))
        raise AdoptionRefusedError.of(f"{reason} {_left(connection)}") from error


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
    if connection.vendor == "sqlite":
        # Before the transaction, in which SQLite ignores it. With foreign keys on, a rebuild would delete or refuse
        # rows.
        connection.disable_constraint_checking()
        # Django checks the foreign keys of every table after each change of the schema. If those of other tables are
        # broken, they were so before.
        connection.check_constraints = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        with ExitStack() as stack:
            stack.enter_context(transaction.atomic(using=connection.alias))
            yield
            with _committing(connection):
                stack.close()
    finally:
        vars(connection).pop("check_constraints", None)


@contextmanager
def _committing(connection: BaseDatabaseWrapper) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        # A server that answers has rolled back. SQLite finds a reader in the way, or a full disk, before it commits.
        if said_by_server(error) or classify(error) in (Fault.LOCKED, Fault.FULL):
            with _refusing(connection):
                raise
        raise OutcomeUnknownError(
            f"{describe_failure(connection, error)} {_PERHAPS_ADOPTED}"
        ) from error


def _lock_tables(
    connection: BaseDatabaseWrapper, progress: Progress
) -> DatabaseError | None:
    """Lock the tables; return why this role may not, which the later reading explains."""
    if connection.vendor != "postgresql":
        return None  # SQLite's write lock is on the whole file
    with connection.cursor() as cursor:
        # Each statement must see what was committed while the one before it waited for a lock. Under a role's default
        # of REPEATABLE READ the rows would be those of the moment before the wait.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        lock_in_transaction(connection, lambda: progress.say(_WAITING))
        # The zone of timestamps without one.
        cursor.execute("SET LOCAL TimeZone = 'UTC'")
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


# The rehearsal --------------------------------------------------------------------------------------------------------


_ALIAS = "agentdb_rehearsal"


def _rehearse(connection: BaseDatabaseWrapper, findings: Findings) -> None:
    """Make the changes on a copy of a SQLite schema in memory, without rows; raise what prevents them."""
    # Only SQLite itself knows all that does: functions and collations that only the operator's program defines, taken
    # names, contradictory constraints.
    ours = {*OLD_COLUMNS, *findings.shape.stored_as.values()}
    with refusing(BUILT_AROUND), _copy_in_memory(connection) as copy:
        _copy_schema(connection, copy, ours)
        change_of(copy, findings, SILENT).rehearse()


@contextmanager
def _copy_in_memory(connection: BaseDatabaseWrapper) -> Iterator[BaseDatabaseWrapper]:
    copy = connection.copy(_ALIAS)
    copy.settings_dict |= {"NAME": ":memory:", "OPTIONS": {}}
    # atomic() and the schema editor find a connection by its alias, so it needs one for as long as the block runs.
    connections.settings[_ALIAS], connections[_ALIAS] = copy.settings_dict, copy
    try:
        copy.disable_constraint_checking()
        yield copy
    finally:
        del connections.settings[_ALIAS], connections[_ALIAS]
        # The driver's, because Django's close() keeps a database in memory.
        copy.connection.close()


# In an order in which each index and trigger finds its table or view; what a view names is looked up when it is read.
_OBJECTS = """
    SELECT type, name, lower(tbl_name), sql FROM main.sqlite_master
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    ORDER BY CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 WHEN 'view' THEN 3 ELSE 4 END, rowid
"""


def _copy_schema(
    source: BaseDatabaseWrapper, copy: BaseDatabaseWrapper, ours: set[str]
) -> None:
    for kind, name, table, sql in rows(source, _OBJECTS):
        # Skip other objects that cannot be made here, such as the tables of a virtual table, which made them.
        is_other = table not in ours or kind == "view"
        named = refusing(f"{BUILT_AROUND} {kind} {name!r}:")
        with suppress(DatabaseError) if is_other else named:
            run(copy, sql)
