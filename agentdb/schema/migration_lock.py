"""A lock between processes: one migrates at a time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from django.db import Error, OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.faults import Fault, classify
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.introspection import LOCK_TABLE
from agentdb.schema.queries import lift_for_transaction, quote_name, rows, run

if sys.platform != "win32":
    import fcntl

# A number that no other program is likely to lock: "agentdb" in ASCII.
_ADVISORY_KEY = int.from_bytes(b"agentdb")

# A schema change waits for every reader of the table, and all later ones wait behind it: an idle transaction would
# stop everybody without end.
LIMIT_LOCK_WAITS = "SET LOCAL lock_timeout = '30s'"

_held = threading.local()


@contextmanager
def migration_lock(
    connection: BaseDatabaseWrapper, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the right to change the schema of the connection's database; a nested call in the same thread takes nothing.

    ``waiting`` is called once if another process has it. The operating system or the server releases the lock of a
    dead process.
    """
    key = (
        connection.vendor,
        str(connection.settings_dict["NAME"]),
        connection.settings_dict.get("HOST"),
    )
    # A second connection of this thread would wait for the lock that its first one has.
    held: set[object] = _held.__dict__.setdefault("keys", set())
    if key in held:
        yield
        return
    locks = {
        "sqlite": _directory_lock,
        "postgresql": _advisory_lock,
        "cockroachdb": _row_lock,
    }
    held.add(key)
    try:
        with locks[connection.vendor](connection, waiting or (lambda: None)):
            yield
    finally:
        held.discard(key)


def is_migrating() -> bool:
    """Return whether this thread has the right to change a schema, or waits for it."""
    return bool(_held.__dict__.get("keys"))


@contextmanager
def _second_connection(
    connection: BaseDatabaseWrapper,
) -> Iterator[BaseDatabaseWrapper]:
    """Yield a connection that holds a lock in a transaction of its own, beside those of the migrations."""
    other = connection.copy()
    # A pool may have no second connection to give.
    other.settings_dict["OPTIONS"].pop("pool", None)
    try:
        yield other
    finally:
        # The server notices only after a while that a connection is closed. A rollback gives the lock back at once.
        with suppress(Error):
            other.rollback()
        other.close()


@contextmanager
def _advisory_lock(
    connection: BaseDatabaseWrapper, waiting: Callable[[], None]
) -> Iterator[None]:
    # A lock that ends with its transaction: in a pooler that hands out server connections by transaction, a lock of the
    # session would stay behind on a connection that others get.
    connection.ensure_connection()
    with _second_connection(connection) as other:
        try:
            other.ensure_connection()
        except OperationalError:
            # The server, or the role, has a single connection.
            with _session_lock(connection, waiting):
                yield
            return
        other.set_autocommit(False)
        lift_for_transaction(other)
        lock_in_transaction(other, waiting)
        yield


def lock_in_transaction(
    connection: BaseDatabaseWrapper, waiting: Callable[[], None]
) -> None:
    """Take PostgreSQL's migration lock until the open transaction ends."""
    _take(connection, f"advisory_xact_lock({_ADVISORY_KEY})", waiting)


def _take(
    connection: BaseDatabaseWrapper, lock: str, waiting: Callable[[], None]
) -> None:
    if rows(connection, f"SELECT pg_try_{lock}") == [(True,)]:
        return
    waiting()
    # Another process migrates, which may take as long as it takes.
    run(connection, "SET LOCAL lock_timeout = 0")
    run(connection, f"SELECT pg_{lock}")


@contextmanager
def _session_lock(
    connection: BaseDatabaseWrapper, waiting: Callable[[], None]
) -> Iterator[None]:
    # The wait has no limit within a transaction, which the lock outlives.
    with transaction.atomic(connection.alias):
        _take(connection, f"advisory_lock({_ADVISORY_KEY})", waiting)
    try:
        yield
    finally:
        # If the connection is gone, so is the lock.
        with suppress(Error):
            run(connection, f"SELECT pg_advisory_unlock({_ADVISORY_KEY})")


@contextmanager
def _row_lock(
    connection: BaseDatabaseWrapper, waiting: Callable[[], None]
) -> Iterator[None]:
    """Insert a row without committing: others who insert the same row wait until the transaction ends.

    CockroachDB has no advisory locks. Its FOR UPDATE locks are in memory and get lost when a range moves to another
    node; an inserted row does not. The schema changes run outside this transaction.
    """
    with _second_connection(connection) as other:
        _ensure_lock_table(other)
        other.set_autocommit(False)
        # With a limit at first, to be able to say that it waits.
        if not _inserted(other, "'100ms'"):
            waiting()
            while not _inserted(other, "0"):
                pass  # the server asked to restart the transaction
        yield


def _ensure_lock_table(connection: BaseDatabaseWrapper) -> None:
    try:
        run(connection, f"CREATE TABLE IF NOT EXISTS {LOCK_TABLE} (id INT PRIMARY KEY)")
    except Error:
        # IF NOT EXISTS checks first: if two processes create the table at the same moment, one may fail.
        if LOCK_TABLE not in connection.introspection.table_names():
            raise


def _inserted(connection: BaseDatabaseWrapper, lock_timeout: str) -> bool:
    try:
        # The transaction stays open and idle for as long as the migration takes.
        run(connection, "SET LOCAL idle_in_transaction_session_timeout = 0")
        run(connection, "SET LOCAL statement_timeout = 0")
        run(connection, f"SET LOCAL lock_timeout = {lock_timeout}")
        run(connection, f"INSERT INTO {LOCK_TABLE} VALUES (1)")
        return True
    except Error as error:
        connection.rollback()
        # Another process has it, or the server asks to restart the transaction.
        if classify(error) not in (Fault.LOCKED, Fault.CONFLICT):
            raise
        return False


@contextmanager
def _directory_lock(
    connection: BaseDatabaseWrapper, waiting: Callable[[], None]
) -> Iterator[None]:
    # Lock the directory: locking the file itself would disturb SQLite's own locks, and a lock file would need
    # cleaning up.
    path = sqlite_path(connection)
    if sys.platform == "win32" or path is None:
        yield  # on Windows, SQLite's own write lock still makes each migration atomic
        return
    try:
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
    except OSError:
        yield  # opening the database will report what is wrong
        return
    try:
        # flock and not lockf: a lock of lockf is the process's, so a second thread would have it too, and closing any
        # other descriptor of the folder would release it.
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)


# A prepared transaction has no process. Its lock on a table is found by the virtual transaction that it shares with the
# lock on its own id, which the list of prepared transactions has.
_HOLDERS = """
    SELECT DISTINCT coalesce(
        'prepared transaction ' || quote_literal(p.gid)
            || ', which ''COMMIT PREPARED'' or ''ROLLBACK PREPARED'' ends',
        'process ' || l.pid || ' (' || coalesce(nullif(a.application_name, ''), 'unnamed') || ', role '
            || coalesce(a.usename, '?') || ', ' || coalesce(a.state, '?') || ')',
        'a lock of the server')
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
        AND x.virtualtransaction = l.virtualtransaction
    LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
    WHERE l.relation = ANY(%s::regclass[]) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() ORDER BY 1
"""


def lock_holders(connection: BaseDatabaseWrapper, tables: Collection[str]) -> list[str]:
    """Return the sessions and prepared transactions with locks on these tables, for an operator to end."""
    names = [quote_name(table) for table in tables]
    found = rows(connection, _HOLDERS, [names])
    return [holder for (holder,) in found]


def event_triggers(connection: BaseDatabaseWrapper) -> list[str]:
    """Return a sentence for each event trigger of PostgreSQL, which may interfere with schema changes."""
    if connection.vendor != "postgresql":
        return []
    return [
        f"The event trigger {name!r} calls {function} on each schema change. If it does that, run 'ALTER EVENT "
        f"TRIGGER {name} DISABLE' for as long as the command runs."
        for name, function in rows(
            connection,
            "SELECT evtname, evtfoid::regproc::text FROM pg_event_trigger WHERE evtenabled <> 'D' ORDER BY 1",
        )
    ]
