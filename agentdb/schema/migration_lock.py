"""One migrator at a time, among processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

if sys.platform != "win32":
    import fcntl

# Any number that no other program is likely to lock on: "agentdb" in ASCII.
_ADVISORY_KEY = int.from_bytes(b"agentdb", "big")

# One idle reader of a table would keep a schema change waiting for ever, and everybody else behind that.
LIMIT_LOCK_WAITS = "SET LOCAL lock_timeout = '30s'"

_held = threading.local()


@contextmanager
def migration_lock(connection: BaseDatabaseWrapper, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the right to change the schema of the connection's database; a nested call in the same thread is free.

    ``waiting`` is called once if another process has it. The operating system or the server takes the lock from a
    process that dies.
    """
    key = (connection.vendor, str(connection.settings_dict["NAME"]), connection.settings_dict.get("HOST"))
    held: set[object] = _held.__dict__.setdefault("keys", set())
    if key in held:
        yield
        return
    take = {"sqlite": _directory_lock, "postgresql": _advisory_lock}.get(connection.vendor, _no_lock)
    with take(connection, waiting or (lambda: None)):
        held.add(key)
        try:
            yield
        finally:
            held.discard(key)


@contextmanager
def _advisory_lock(connection: BaseDatabaseWrapper, waiting: Callable[[], None]) -> Iterator[None]:
    # A connection of its own, and a lock that ends with its transaction: a lock of the session would stay behind in a
    # pooler that hands out server connections by transaction.
    other = connection.copy()
    other.settings_dict["OPTIONS"].pop("pool", None)  # which may have no second one to give
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_ADVISORY_KEY])
            if not cursor.fetchone()[0]:
                waiting()
                cursor.execute("SET LOCAL lock_timeout = 0")
                cursor.execute("SET LOCAL statement_timeout = 0")
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_KEY])
        yield
    finally:
        # The server notices a closed connection only after a while, in which the next one would seem to have to wait.
        with suppress(Error):
            other.rollback()
        other.close()


@contextmanager
def _no_lock(connection: BaseDatabaseWrapper, waiting: Callable[[], None]) -> Iterator[None]:
    yield


@contextmanager
def _directory_lock(connection: BaseDatabaseWrapper, waiting: Callable[[], None]) -> Iterator[None]:
    # The directory, because locking the file itself would disturb SQLite's own locks, and a lock file beside it would
    # have to be cleaned up.
    name = str(connection.settings_dict["NAME"])
    if sys.platform == "win32" or connection.is_in_memory_db():  # type: ignore[attr-defined]
        yield  # on Windows, SQLite's own write lock still makes each migration atomic
        return
    try:
        folder = os.open(Path(name.removeprefix("file:").partition("?")[0]).absolute().parent, os.O_RDONLY)
    except OSError:
        yield  # opening the database will say what is wrong
        return
    try:
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
